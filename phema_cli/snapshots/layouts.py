"""What trainers leave: how their files are called, what their counts mean, what is no weight."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from phema_cli.errors import InputError
from phema_cli.formats.base import Checkpoint
from phema_cli.profiles import GAMMA_LIMIT, PowerProfile


@dataclass(frozen=True, slots=True)
class Layout:
    """The files of a library or trainer.

    Attributes:
        name: what it is called in messages.
        stem: their names without ending; named groups are fields of the tag.
        format: the format they have, where others have such names too.
        metadata: entries that their metadata have, where others have such names too.
        bookkeeping: tensors without dimensions that are no weights; a file with all of them is of
            this layout whatever it is called.
        sparse: whether the decay of one step is applied at every N-th step only.
    """

    name: str
    stem: re.Pattern[str]
    format: str | None = None
    metadata: tuple[str, ...] = ()
    bookkeeping: tuple[str, ...] = ()
    sparse: bool = False

    def fits(self, stem: str, checkpoint: Checkpoint) -> bool:
        """Whether a checkpoint called ``stem`` is of this layout."""
        if self.bookkeeping:
            return self.is_marked(checkpoint)
        return (
            self.stem.match(stem) is not None
            and self.format in {None, checkpoint.format}
            and all(entry in checkpoint.metadata for entry in self.metadata)
        )

    def is_marked(self, checkpoint: Checkpoint) -> bool:
        """Whether the checkpoint holds the layout's bookkeeping."""
        found = [checkpoint.tensors.get(name) for name in self.bookkeeping]
        return bool(found) and all(e is not None and not e.shape for e in found)

    def fields(self, stem: str) -> dict[str, str]:
        """Fields of the tag in a file's name."""
        match = self.stem.match(stem)
        return {} if match is None else {k: v for k, v in match.groupdict().items() if v}


#: a row each; the first that fits counts.
LAYOUTS = (
    Layout(
        "ema-pytorch",
        re.compile(r"^(?P<index>\d+)\.(?P<step>\d+)$"),
        bookkeeping=("initted", "step"),
        sparse=True,
    ),
    Layout("karras-power-ema-tutorial", re.compile(r"^model_ema_(?P<index>\d+)_(?P<update>\d+)$")),
    Layout(
        "EDM2",
        re.compile(r"^.*-(?P<kimg>\d+)-(?P<sigma_rel>\d+\.\d+)$"),
        format="edm2",
    ),
    # The number in the name is the epoch, which the file says too.
    Layout(
        "timm",
        re.compile(r"^checkpoint-(?P<epoch>\d+)$|^last$|^model_best$"),
        metadata=("arch", "epoch", "version"),
    ),
)


def recognise(stem: str, checkpoint: Checkpoint) -> Layout | None:
    """The layout of a checkpoint that is called ``stem``, if it is a known one."""
    return next((row for row in LAYOUTS if row.fits(stem, checkpoint)), None)


def without_bookkeeping(checkpoint: Checkpoint) -> Checkpoint:
    """The checkpoint without what is known to be no weight."""
    for row in LAYOUTS:
        if row.is_marked(checkpoint):
            kept = {n: e for n, e in checkpoint.tensors.items() if n not in row.bookkeeping}
            return replace(checkpoint, tensors=kept)
    return checkpoint


def sparse_profile(gamma: float, step: float, every: int) -> PowerProfile:
    """The profile of a power function EMA whose decay of one step is applied at every N-th only.

    The product of ``(1 - 1/t)^(gamma+1)`` over every N-th t falls as one of exponent
    ``(gamma+1)/N``. ema-pytorch averages at steps 1, N+1, 2N+1, ... with t one more than the step,
    since it counts the initial weights; each averaging stands for N steps, so the last one ends at
    ``N (floor((n-1)/N) + 1/2) + 3/2``. With N = 1 that is n + 1, exactly.

    Args:
        gamma: as the trainer was told.
        step: n, as the trainer counts.
        every: N.

    Raises:
        InputError: the effective gamma is not above -0.5.
    """
    effective = (gamma + 1) / every - 1
    if effective <= GAMMA_LIMIT:
        raise InputError(
            f"gamma {gamma:.6g} averaged at every {every}th step is gamma {effective:.4g} in "
            f"effect, not above {GAMMA_LIMIT}: too long an average to be of use",
            remedy="check --update-every, or leave the file out with --exclude",
        )
    return PowerProfile(effective, every * ((step - 1) // every + 0.5) + 1.5)
