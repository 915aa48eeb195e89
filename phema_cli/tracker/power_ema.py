"""PowerEMA: power-function averages of a model in training, and snapshots of them.

The update at step t is ``ema += (1 - beta_t) (theta - ema)`` with ``beta_t = (1 - 1/t)^(gamma+1)``
(arXiv:2312.02696, Eq. 127), so that the first update copies the model. ``averages.py`` does it
without loss in runs of millions of steps.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from phema_cli._version import __version__
from phema_cli.errors import PhemaError, UsageError, listed
from phema_cli.formats.packing import KEYFRAME_EVERY
from phema_cli.profiles import PowerProfile
from phema_cli.snapshots.base import snapshot_name
from phema_cli.tracker import packed, snapshot
from phema_cli.tracker.averages import Averages
from phema_cli.tracker.model import ModelTensors
from phema_cli.tracker.sharding import as_part_of, gather, is_sharded, local, part_of, rank

if TYPE_CHECKING:
    import torch


class PowerEMA:
    """Power-function averages of a model's weights, one per gamma.

    It averages all trainable parameters and all floating-point buffers of the model's state dict,
    and takes 6 bytes for each element and gamma: a float32, and a bfloat16 that keeps what one step
    of a long run changes. Frozen parameters, integers, booleans and floating-point buffers that
    never changed are stored as the model has them. Tied tensors are averaged and stored once.
    Wrappers (``DataParallel``, ``torch.compile``, activation checkpointing) leave no trace in the
    names.

    If several ranks train one model, make and update it on every rank. If FSDP2 (``fully_shard``)
    or another ``DTensor`` shards the model, each rank averages its shards; make PowerEMA after
    sharding. FSDP1, DeepSpeed ZeRO-3 and models without their weights are refused.

    Args:
        model: the model being trained.
        gammas: exponents, at least one, no two alike.
        device: where the averages live; by default beside the parameters.

    Raises:
        UsageError: no gamma, one given twice or out of range, nothing in the model to average, or
            a tensor that can't be averaged.
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
            raise UsageError(f"pass at least one gamma, and no two alike: not {list(gammas)}")
        for gamma in self.gammas:
            PowerProfile(gamma, 1.0)
        self._tensors = ModelTensors(model)
        now = self._tensors.current()
        parts = [local(now[n]) for n in self._tensors.averaged]
        self._averages = Averages.of(parts, self.gammas, device)
        self._index = {n: i for i, n in enumerate(self._tensors.averaged)}
        # What the floating-point buffers held at the first update: many never change.
        self._first_buffers = {n: now[n].clone() for n in self._tensors.buffers}
        self._chain = packed.Chain()

    def __repr__(self) -> str:
        """``<PowerEMA of gamma 5, 10 after 500 updates>``."""
        gammas = ", ".join(f"{gamma:g}" for gamma in self.gammas)
        return f"<PowerEMA of gamma {gammas} after {self.step} updates>"

    @property
    def step(self) -> int:
        """How many updates there were."""
        return self._averages.step

    def update(self) -> None:
        """Average the model's present weights in; call it after each optimizer step.

        Tensors and modules may be replaced by others of the same names and shapes.

        Raises:
            UsageError: the model was changed since PowerEMA was made: a parameter was added,
                removed, tied, unfrozen, resized or sharded in another way. Nothing is averaged
                then.
        """
        import torch

        with torch.no_grad():
            present = self._tensors.current_averaged(self._averages.recent[0])
            if self.step == 0:
                now = self._tensors.current()
                self._first_buffers = {n: now[n].clone() for n in self._tensors.buffers}
            self._averages.update(present)

    def average(self, gamma: float) -> dict[str, torch.Tensor]:
        """The state dict of one gamma: averages in float32, the rest as the model has it now.

        Tied tensors have their first name only, and a ``DTensor`` of the model is one here too.
        ``update`` may change these tensors: clone what you keep.

        Raises:
            UsageError: gamma is not tracked, nothing was averaged yet, or the model was changed.
        """
        if gamma not in self.gammas:
            raise UsageError(f"gamma {gamma:g} is not tracked", remedy=f"pass one of {self.gammas}")
        now, averaged = self._current()
        index = self.gammas.index(gamma)
        return {n: self._average(index, n, t) if n in averaged else t for n, t in now.items()}

    def _current(self) -> tuple[dict[str, torch.Tensor], set[str]]:
        """All tensors as the model has them now, and the names of those stored as averages.

        Buffers that always held what they hold now are stored as they are.

        Raises:
            UsageError: nothing was averaged yet, or the model was changed.
        """
        if self.step == 0:
            raise UsageError("no update() yet", remedy="call it after each optimizer step")
        now = self._tensors.current()
        constant = {
            name
            for name, first in self._first_buffers.items()
            if snapshot.is_same(now[name], first)
            and snapshot.is_near(self._averages.average(0, self._index[name]), first)
        }
        return now, set(self._index) - constant

    def _average(self, index: int, name: str, like: torch.Tensor) -> torch.Tensor:
        """One average in float32, split over the ranks as ``like`` is."""
        return as_part_of(like, self._averages.average(index, self._index[name]))

    def state_dict(self, *, sharded: bool = False) -> dict[str, Any]:
        """Everything needed to resume; loads with ``torch.load(..., weights_only=True)``.

        If the model is sharded every rank must call it. Store the state of rank 0: it has the whole
        averages, on the CPU, and the others have none.

        Args:
            sharded: give the averages as a ``DTensor`` of each rank's shards, which
                ``torch.distributed.checkpoint`` stores and loads.
        """
        like = self._tensors.current()
        return {
            "step": self.step,
            "gammas": list(self.gammas),
            "origin": self._averages.origin,
            "recent": [self._named(t, like, sharded=sharded) for t in self._averages.recent],
            "base": [self._named(t, like, sharded=sharded) for t in self._averages.base],
            "first": self._first_buffers,
        }

    def _named(
        self, parts: Sequence[torch.Tensor], like: Mapping[str, torch.Tensor], *, sharded: bool
    ) -> dict[str, torch.Tensor]:
        """Tensors by name for :meth:`state_dict`: shards, or whole tensors on rank 0 alone."""
        named = {n: as_part_of(like[n], parts[i]) for n, i in self._index.items()}
        if sharded or not any(map(is_sharded, like.values())):
            return named
        gathered = ((n, gather(t)) for n, t in named.items())
        return {n: t.cpu() for n, t in gathered if rank() == 0}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Resume from :meth:`state_dict`, sharded or not, whatever the number of ranks was.

        States of phema 0.1, whose averages are float32 alone, load too.

        Raises:
            UsageError: the gammas, names or shapes are not those of this PowerEMA, or the state
                has no averages, as that of a rank other than 0.
        """
        if tuple(state["gammas"]) != self.gammas:
            raise UsageError(f"the state has gammas {state['gammas']}, not {list(self.gammas)}")
        is_old = "averages" in state
        recent = state["averages" if is_old else "recent"]
        base = [] if is_old else state["base"]
        if not all([*recent, *base]):
            raise UsageError(
                "the state is that of a rank other than 0, and has no averages",
                remedy="load the state of rank 0 on every rank",
            )
        like = self._tensors.current()
        shapes = {n: like[n].shape for n in self._index}
        if any({n: t.shape for n, t in stored.items()} != shapes for stored in [*recent, *base]):
            raise UsageError("the state is of another model: its names or shapes differ")
        averages = self._averages
        pairs = [*zip(averages.recent, recent, strict=True)]
        pairs += [*zip(averages.base, base, strict=not is_old)]
        for mine, stored in pairs:
            for name, i in self._index.items():
                mine[i].copy_(part_of(stored[name], like[name]))
        averages.step = int(state["step"])
        averages.origin = 0 if is_old else int(state["origin"])
        # An old state's average of what never changed is that value itself.
        first = recent[0] if is_old else state["first"]
        self._first_buffers = {n: first[n].to(like[n], copy=True) for n in self._tensors.buffers}
        # The next file is a keyframe.
        self._chain = packed.Chain()

    def save(
        self,
        directory: str | os.PathLike[str],
        *,
        name: str = "ema",
        dtype: torch.dtype | None = None,
        packing: int | None = None,
        keyframe_every: int = KEYFRAME_EVERY,
    ) -> list[Path]:
        """Write one snapshot per gamma, ``<name>-step0001000-gamma5.safetensors``.

        A snapshot appears complete or not at all, even if other processes write the same one. Names
        of tied tensors are recorded as ``safetensors.torch.save_model`` does, and ``load_model``
        restores them. In a ``torch.distributed`` process group rank 0 alone writes; if the model is
        sharded every rank must call it, and whole tensors are gathered one at a time.

        Averages that are infinite or NaN, because the model was, are stored, and a
        ``RuntimeWarning`` names them: the training and the other averages continue.

        With ``packing`` a snapshot holds what the four before it, of all gammas, could not foretell
        of it, in integers of so many bits. It is read together with them, so keep all. Some files,
        keyframes, are whole: each 64th, the first after a resume, and one of averages that are not
        finite. Rank 0 keeps 36 bytes for each averaged element in main memory from then on.

        Args:
            directory: made if need be.
            name: what the files' names begin with.
            dtype: floating-point type in which averages are stored; float32 by default.
            packing: bits of a packed element, 16, 8 or 4; None for whole averages.
            keyframe_every: files from one keyframe to the next, from 2 to 256.

        Returns:
            The files, in the order of the gammas, on every rank.

        Raises:
            StorageError: the operating system failed to write.
            UsageError: nothing was averaged yet, the model has other tensors than when PowerEMA was
                made, or ``dtype`` can't hold an average; no file is written. Or ``dtype`` and
                ``packing`` were passed together.
        """
        packed.check(packing, keyframe_every, dtype)
        way = None if packing is None else packed.Way(name, packing, keyframe_every)
        now, averaged = self._current()
        packable = self._check_values(now, averaged, dtype)
        names = [snapshot_name(name, self.step, gamma) for gamma in self.gammas]
        paths = [Path(directory) / f"{stem}.safetensors" for stem in names]
        if way is not None:
            self._chain.begin(paths)
        for index, path in enumerate(paths):
            made = self._snapshot(index, now, averaged, dtype, packable=index in packable)
            self._write(path, index, now, made, way)
        return paths

    def _check_values(
        self, now: Mapping[str, torch.Tensor], averaged: set[str], dtype: torch.dtype | None
    ) -> set[int]:
        """Warn of averages that are not finite; refuse a type that can't hold the others.

        If the model is sharded all ranks refuse what any of them finds. Returns the indices of the
        gammas whose averages can be packed, on rank 0.
        """
        import torch.distributed

        sharded = any(map(is_sharded, now.values()))
        if rank() and not sharded:
            return set()
        extremes = [
            (i, n, *snapshot.extremes(self._averages.average(i, self._index[n])))
            for i in range(len(self.gammas))
            for n in self._index
            if n in averaged
        ]
        if sharded:
            by_rank: list[Any] = [None] * torch.distributed.get_world_size()
            torch.distributed.all_gather_object(by_rank, extremes)
            extremes = [one for of_rank in by_rank for one in of_rank]
        if dtype is not None:
            snapshot.check_range([(n, largest) for _, n, largest, _ in extremes], dtype)
        nonfinite = sorted({n for _, n, _, is_finite in extremes if not is_finite})
        if nonfinite and rank() == 0:
            message = (
                f"at step {self.step} the averages of {listed(nonfinite)} are not finite, "
                "because the model was not finite at an update. They will stay so: to repair them, "
                "resume from an earlier state"
            )
            warnings.warn(message, RuntimeWarning, stacklevel=3)
        large = {i for i, _, value, finite in extremes if not finite or value > packed.LARGEST}
        return set(range(len(self.gammas))) - large

    def _snapshot(
        self,
        index: int,
        now: Mapping[str, torch.Tensor],
        averaged: set[str],
        dtype: torch.dtype | None,
        *,
        packable: bool,
    ) -> snapshot.Snapshot:
        """What the snapshot of one gamma holds."""
        import torch

        average_type = dtype or torch.float32
        types = {n: average_type if n in averaged else t.dtype for n, t in now.items()}
        # As safetensors does: wide elements first, so that each tensor is aligned.
        order = sorted(now, key=lambda n: (-types[n].itemsize, n))
        metadata = {
            **self._tensors.aliases,
            "format": "pt",
            "gamma": repr(self.gammas[index]),
            "phema_tracker": __version__,
            "step": str(self.step),
        }
        shapes = {n: (types[n], tuple(now[n].shape)) for n in order}
        return snapshot.Snapshot(shapes, averaged, metadata, packable)

    def _write(
        self,
        path: Path,
        index: int,
        now: Mapping[str, torch.Tensor],
        made: snapshot.Snapshot,
        way: packed.Way | None,
    ) -> None:
        """Write one snapshot on rank 0; the other ranks send their shards."""
        import torch.distributed

        sharded = any(map(is_sharded, now.values()))
        # Packing looks at the averages before it writes them.
        sample = self._gathered(index, now, made, set() if way is None else made.averaged)
        tensors = self._gathered(index, now, made, set(now))
        if sharded:
            tensors = _behind(sample, tensors)
        failure: list[PhemaError | None] = [None]
        if rank() == 0:
            try:
                if way is None:
                    snapshot.write(path, made, tensors)
                else:
                    self._chain.write(path, way, made, sample, tensors)
            except PhemaError as error:
                failure[0] = error
        if sharded:
            # Each gathering needs all ranks: if the one that writes fails, it still takes part in
            # the rest, and all ranks fail together.
            for _ in tensors:
                pass
            torch.distributed.broadcast_object_list(failure)
        if failure[0] is not None:
            raise failure[0]

    def _gathered(
        self,
        index: int,
        now: Mapping[str, torch.Tensor],
        made: snapshot.Snapshot,
        names: set[str],
    ) -> Iterator[torch.Tensor]:
        """The whole tensors that a snapshot holds, one at a time; every rank must take them all."""
        for name in made.shapes:
            if name in names:
                is_average = name in made.averaged
                part = self._average(index, name, now[name]) if is_average else now[name]
                yield gather(part).to(made.shapes[name][0])


def _behind(
    sample: Iterator[torch.Tensor], tensors: Iterator[torch.Tensor]
) -> Iterator[torch.Tensor]:
    """The tensors, after what a keyframe left of the sample: all ranks gather in the same order."""
    for _ in sample:
        pass
    yield from tensors
