"""PowerEMA: keeps power-function averages of a model during training and stores snapshots.

Each update at step t takes ``ema += (1 - beta_t) (theta - ema)`` with
``beta_t = (1 - 1/t)^(gamma+1)`` (arXiv:2312.02696, Eq. 127), so the first update copies the model.
How that loses nothing in runs of millions of steps is in ``averages.py``.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from phema_cli._version import __version__
from phema_cli.errors import PhemaError, UsageError
from phema_cli.profiles import PowerProfile
from phema_cli.snapshots.base import snapshot_name
from phema_cli.tracker import storing
from phema_cli.tracker.averages import Averages
from phema_cli.tracker.model import is_sharded, local, shard_of, whole, with_shard
from phema_cli.tracker.watch import Watch

if TYPE_CHECKING:
    import torch


class PowerEMA:
    """Power-function averages of a model's weights, one per gamma.

    Averaged are all trainable parameters and all floating-point buffers that the model's state
    dict has, each in 6 bytes an element and gamma: float32, and 8 bits more for what one step of a
    long run changes. Frozen parameters, integers, booleans and floating-point buffers that never
    changed are stored as the model has them. Tied tensors are averaged and stored once. Wrappers
    (``DataParallel``, ``torch.compile``, activation checkpointing) leave no trace in the names.

    Where several ranks train one model, make and update it on every rank. Of a model sharded by
    FSDP2 (``fully_shard``) or other ``DTensor``s, each rank averages its shards; make PowerEMA
    after sharding. FSDP1, DeepSpeed ZeRO-3 and models without their weights are refused.

    Args:
        model: the model being trained.
        gammas: exponents, at least one, no two alike.
        device: where the averages live; by default beside the parameters.

    Raises:
        UsageError: no gamma, one given twice or out of range, nothing in the model to average, or
            a tensor that can't be.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        gammas: Sequence[float] = (5.0, 10.0),
        *,
        device: torch.device | str | None = None,
    ) -> None:
        self.gammas = tuple(float(g) for g in gammas)
        if not self.gammas or len(set(self.gammas)) < len(self.gammas):
            raise UsageError(f"gammas {list(gammas)} must be at least one, and no two alike")
        for gamma in self.gammas:
            PowerProfile(gamma, 1.0)
        self._watch = Watch(model)
        like = self._watch.fetch()
        shards = [local(like[n]) for n in self._watch.averaged]
        self._averages = Averages.of(shards, self.gammas, device)
        self._place = {n: i for i, n in enumerate(self._watch.averaged)}
        #: what the floating-point buffers held at the first update: many never change.
        self._first = {n: like[n].clone() for n in self._watch.buffers}

    @property
    def step(self) -> int:
        """How many updates there were."""
        return self._averages.step

    def update(self) -> None:
        """Take the model's present weights into the averages; call it after each optimizer step.

        A tensor or module that was replaced by one of the same names and shapes is followed.

        Raises:
            UsageError: the model was changed since PowerEMA was made: a parameter was added,
                removed, tied, unfrozen, resized or sharded otherwise. Nothing is averaged then.
        """
        import torch

        with torch.no_grad():
            present = self._watch.present(self._averages.recent[0])
            if self.step == 0:
                now = self._watch.fetch()
                self._first = {n: now[n].clone() for n in self._first}
            self._averages.update(present)

    def average(self, gamma: float) -> dict[str, torch.Tensor]:
        """The state dict of one gamma: averages in float32, the rest as the model has it now.

        Tied tensors come under their first name only, and what is a ``DTensor`` in the model is
        one here. Tensors may be those that ``update`` changes: clone what is to be kept.

        Raises:
            UsageError: gamma is not tracked, nothing was averaged yet, or the model was changed.
        """
        if gamma not in self.gammas:
            raise UsageError(f"gamma {gamma:g} is not tracked", remedy=f"one of {self.gammas}")
        now = self._fetch()
        averaged = self._changing(now)
        index = self.gammas.index(gamma)
        return {n: self._average(index, n, t) if n in averaged else t for n, t in now.items()}

    def _fetch(self) -> dict[str, torch.Tensor]:
        """All tensors as the model has them now, once there are averages of them."""
        if self.step == 0:
            raise UsageError("no update() yet", remedy="call it after each optimizer step")
        return self._watch.fetch()

    def _average(self, index: int, name: str, like: torch.Tensor) -> torch.Tensor:
        """One average in float32, split over the ranks as ``like`` is."""
        return with_shard(like, self._averages.average(index, self._place[name]))

    def _changing(self, now: Mapping[str, torch.Tensor]) -> set[str]:
        """Names of what is averaged without the buffers that always held what they hold now."""
        constant = {
            name
            for name, first in self._first.items()
            if storing.is_same(now[name], first)
            and storing.is_near(self._averages.average(0, self._place[name]), first)
        }
        return set(self._place) - constant

    def state_dict(self, *, sharded: bool = False) -> dict[str, Any]:
        """Everything needed to resume; loads with ``torch.load(..., weights_only=True)``.

        Of a sharded model every rank must call it, and that of rank 0 is to be stored: it has the
        whole averages, on the CPU, the others have none.

        Args:
            sharded: give the averages as the ``DTensor``s of each rank's shards, which
                ``torch.distributed.checkpoint`` stores and loads.
        """
        like = self._watch.fetch()
        return {
            "step": self.step,
            "gammas": list(self.gammas),
            "origin": self._averages.origin,
            "recent": [self._shared(t, like, sharded=sharded) for t in self._averages.recent],
            "base": [self._shared(t, like, sharded=sharded) for t in self._averages.base],
            "first": self._first,
        }

    def _shared(
        self, tensors: Sequence[torch.Tensor], like: Mapping[str, torch.Tensor], *, sharded: bool
    ) -> dict[str, torch.Tensor]:
        """A part of the state by name: shards, or on rank 0 whole tensors."""
        found = {n: with_shard(like[n], tensors[i]) for n, i in self._place.items()}
        if sharded or not any(map(is_sharded, like.values())):
            return found
        gathered = ((n, whole(t)) for n, t in found.items())
        return {n: t.cpu() for n, t in gathered if _rank() == 0}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Resume from :meth:`state_dict`, sharded or not, whatever the number of ranks was.

        The states of phema 0.1, which have the averages in float32 alone, load too.

        Raises:
            UsageError: the gammas, names or shapes are not those of this PowerEMA; it has no
                averages, as that of a rank other than 0.
        """
        if tuple(state["gammas"]) != self.gammas:
            raise UsageError(f"the state has gammas {state['gammas']}, not {list(self.gammas)}")
        plain = "averages" in state
        recent = state["averages" if plain else "recent"]
        base = [] if plain else state["base"]
        if not all([*recent, *base]):
            raise UsageError(
                "the state is that of a rank other than 0, which has no averages",
                remedy="load on every rank what rank 0 has stored",
            )
        like = self._watch.fetch()
        shapes = {n: like[n].shape for n in self._place}
        if any({n: t.shape for n, t in stored.items()} != shapes for stored in [*recent, *base]):
            raise UsageError("the state is of another model: its names or shapes differ")
        averages = self._averages
        pairs = [*zip(averages.recent, recent, strict=True)]
        pairs += [*zip(averages.base, base, strict=not plain)]
        for mine, stored in pairs:
            for name, i in self._place.items():
                mine[i].copy_(shard_of(stored[name], like[name]))
        averages.step = int(state["step"])
        averages.origin = 0 if plain else int(state["origin"])
        # A plain average of what never changed is that value itself.
        first = recent[0] if plain else state["first"]
        self._first = {n: first[n].to(like[n], copy=True) for n in self._watch.buffers}

    def save(
        self,
        directory: str | os.PathLike[str],
        *,
        name: str = "ema",
        dtype: torch.dtype | None = None,
    ) -> list[Path]:
        """Write one snapshot per gamma, ``<name>-step0001000-gamma5.safetensors``.

        A snapshot appears under its name complete or not at all, whoever else writes it. Names of
        tied tensors are recorded as ``safetensors.torch.save_model`` does, whose ``load_model``
        restores them. In a ``torch.distributed`` process group rank 0 alone writes, and every rank
        must call it if the model is sharded: whole tensors are gathered one at a time.

        Averages that are infinite or NaN, since the model was, are named by a ``RuntimeWarning``
        and stored: the training and the other averages go on.

        Args:
            directory: made if need be.
            name: what the files' names begin with.
            dtype: floating-point type in which averages are stored; float32 by default.

        Returns:
            The files, in the order of the gammas, on every rank.

        Raises:
            StorageError: the operating system failed to write.
            UsageError: nothing was averaged yet, the model has other tensors than when PowerEMA was
                made, or ``dtype`` can't hold an average; no file is written.
        """
        if dtype is not None:
            storing.check_type(dtype)
        now = self._fetch()
        averaged = self._changing(now)
        self._check_values(now, averaged, dtype)
        paths = []
        for index, gamma in enumerate(self.gammas):
            path = Path(directory) / (snapshot_name(name, self.step, gamma) + ".safetensors")
            self._write(path, index, now, averaged, dtype)
            paths.append(path)
        return paths

    def _check_values(
        self, now: Mapping[str, torch.Tensor], averaged: set[str], dtype: torch.dtype | None
    ) -> None:
        """Warn of averages that are not finite; refuse a type that can't hold the others.

        If the model is sharded every rank refuses what one finds.
        """
        import torch.distributed

        sharded = any(map(is_sharded, now.values()))
        if _rank() and not sharded:
            return
        found = [
            (n, *storing.extremes(self._averages.average(i, self._place[n])))
            for i in range(len(self.gammas))
            for n in self._place
            if n in averaged
        ]
        if sharded:
            everywhere: list[Any] = [None] * torch.distributed.get_world_size()
            torch.distributed.all_gather_object(everywhere, found)
            found = [one for of_rank in everywhere for one in of_rank]
        if dtype is not None:
            storing.refuse_range([(n, largest) for n, largest, _ in found], dtype)
        odd = sorted({n for n, _, is_finite in found if not is_finite})
        if odd and _rank() == 0:
            warnings.warn(storing.nonfinite(odd, self.step), RuntimeWarning, stacklevel=3)

    def _write(
        self,
        path: Path,
        index: int,
        now: Mapping[str, torch.Tensor],
        averaged: set[str],
        dtype: torch.dtype | None,
    ) -> None:
        """Write one snapshot on rank 0; the other ranks give their shards."""
        import torch.distributed

        average_type = dtype or torch.float32
        types = {n: average_type if n in averaged else t.dtype for n, t in now.items()}
        # As safetensors has it: wide elements first, so that each tensor is aligned.
        order = sorted(now, key=lambda n: (-types[n].itemsize, n))
        gathered = (
            whole(self._average(index, n, now[n]) if n in averaged else now[n]).to(types[n])
            for n in order
        )
        metadata = {
            **self._watch.aliases,
            "format": "pt",
            "gamma": repr(self.gammas[index]),
            "phema_tracker": __version__,
            "step": str(self.step),
        }
        failure: list[PhemaError | None] = [None]
        if _rank() == 0:
            shapes = {n: (types[n], tuple(now[n].shape)) for n in order}
            try:
                storing.write(path, shapes, gathered, metadata)
            except PhemaError as error:
                failure[0] = error
        if any(map(is_sharded, now.values())):
            # The other ranks wait in each gathering: whatever befell the one that writes, all of
            # them go through all, and fail together.
            for _ in gathered:
                pass
            torch.distributed.broadcast_object_list(failure)
        if failure[0] is not None:
            raise failure[0]


def _rank() -> int:
    """This process's rank where there are several."""
    import torch.distributed

    group = torch.distributed.is_available() and torch.distributed.is_initialized()
    return torch.distributed.get_rank() if group else 0
