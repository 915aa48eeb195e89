"""Ranks: the processes that one synthesis runs in, on machines that share their files.

``torchrun -m phema_cli synthesize ...`` starts them. Rank 0 decides and publishes, and every rank
reads and writes its share. They exchange objects by torch.distributed with gloo.
"""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TypeVar

from phema_cli.errors import StorageError, UsageError
from phema_cli.system.processes import processors

Value = TypeVar("Value")
#: digits of a number of ranks, at most.
_DIGITS = 6


class Ranks:
    """The ranks of one synthesis, as one of them sees them.

    Args:
        rank: its number.
        size: how many there are.

    Attributes:
        leads: whether it is the one that decides, publishes and prints.
    """

    def __init__(self, rank: int = 0, size: int = 1) -> None:
        self.rank = rank
        self.size = size
        self.leads = rank == 0
        self._waits = size > 1

    def share(self, value: Value) -> Value:
        """What rank 0 gives; all ranks call this at the same point.

        Raises:
            StorageError: a rank is gone.
        """
        self._waits = False
        if self.size == 1:
            return value
        import torch.distributed as dist

        box = [value]
        with _rank_errors():
            # Pickled, between processes of one job that started from one command.
            dist.broadcast_object_list(box, src=0)
        return box[0]

    def release(self) -> None:
        """Let ranks that wait for rank 0's recipe go: there is none, if it has shared none."""
        if self.leads and self._waits:
            self.share(None)

    def gather(self, value: Value) -> list[Value]:
        """What every rank gives, by rank; all ranks call this at the same point.

        Raises:
            StorageError: a rank is gone.
        """
        if self.size == 1:
            return [value]
        import torch.distributed as dist

        values: list[Value] = [value] * self.size
        with _rank_errors():
            dist.all_gather_object(values, value)
        return values


@contextmanager
def _rank_errors() -> Iterator[None]:
    """Raise phema's error where another rank is gone."""
    try:
        yield
    except RuntimeError as error:
        raise StorageError(
            "another rank has failed", remedy="its message says why; nothing was written"
        ) from error


def number_of_ranks(variable: str) -> int:
    """The number of ranks that a launcher has put into a variable; 1 where it is not set.

    Raises:
        UsageError: the variable holds something else.
    """
    text = os.environ.get(variable, "1")
    if not (text.isdecimal() and len(text) <= _DIGITS and int(text)):
        raise UsageError(f"{variable} is {text!r:.80}, not a number of ranks")
    return int(text)


def default_jobs() -> int:
    """Workers by default: one per processor, at most 8; ranks on one machine share them."""
    return min(8, max(1, processors() // number_of_ranks("LOCAL_WORLD_SIZE")))


@contextmanager
def joined() -> Iterator[Ranks]:
    """The ranks that a launcher started this process among, else this one alone.

    Only ``python -m phema_cli`` joins: a training script's rank that calls ``phema`` passes the
    launcher's environment on, and means one process.
    """
    spec = getattr(sys.modules.get("__main__"), "__spec__", None)
    launched = getattr(spec, "name", None) == "phema_cli.__main__"
    if not launched or number_of_ranks("WORLD_SIZE") == 1:
        yield Ranks()
        return
    import torch.distributed as dist

    dist.init_process_group("gloo")
    ranks = Ranks(dist.get_rank(), dist.get_world_size())
    try:
        yield ranks
    finally:
        # Where another rank is gone too, the error that matters is the first one.
        with suppress(StorageError):
            ranks.release()
        dist.destroy_process_group()
