"""PowerEMA: keeps power-function averages of a model during training and stores snapshots.

Each update at step t takes ``ema += (1 - beta_t) (theta - ema)`` with
``beta_t = (1 - 1/t)^(gamma+1)`` (arXiv:2312.02696, Eq. 127), so the first update copies the model.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from phema_cli._version import __version__
from phema_cli.errors import PhemaError, UsageError
from phema_cli.profiles import PowerProfile
from phema_cli.snapshots.tags import snapshot_name
from phema_cli.tracker import storing
from phema_cli.tracker.model import (
    is_sharded,
    local,
    reshard,
    shard_of,
    slots,
    unwrapped,
    whole,
    with_shard,
)

if TYPE_CHECKING:
    import torch


class PowerEMA:
    """Power-function averages of a model's weights, one per gamma.

    Averaged are all trainable parameters and all floating-point buffers that the model's state
    dict has, in float32. Frozen parameters, integers and booleans are stored as the model has them.
    Tied tensors are averaged and stored once. Wrappers (``DataParallel``, ``torch.compile``,
    activation checkpointing) leave no trace in the names.

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
        import torch

        self.gammas = tuple(float(g) for g in gammas)
        if not self.gammas or len(set(self.gammas)) < len(self.gammas):
            raise UsageError(f"gammas {list(gammas)} must be at least one, and no two alike")
        for gamma in self.gammas:
            PowerProfile(gamma, 1.0)
        self.step = 0
        self._model = unwrapped(model)
        reshard(self._model)
        self._slots, self._aliases = slots(self._model)
        self._frozen = [n for n, slot in self._slots.items() if slot.is_frozen]
        moving = {n: s.fetch() for n, s in self._slots.items() if n not in set(self._frozen)}
        self._averaged = [n for n, t in moving.items() if t.is_floating_point()]
        if not self._averaged:
            raise UsageError(
                f"{type(model).__name__} has nothing to average",
                remedy="make PowerEMA when its parameters are trainable",
            )
        for name, tensor in moving.items():
            if tensor.is_complex():
                raise UsageError(
                    f"{name} is complex, which is not averaged",
                    remedy="store it as pairs of real numbers (torch.view_as_real)",
                )
        self._averages: list[list[torch.Tensor]] = [
            [
                torch.zeros_like(t, dtype=torch.float32, device=device or t.device)
                for t in (local(moving[n]) for n in self._averaged)
            ]
            for _ in self.gammas
        ]

    def update(self) -> None:
        """Take the model's present weights into the averages; call it after each optimizer step.

        Raises:
            UsageError: the model was changed since PowerEMA was made: a parameter that was frozen
                is trained, or one is gone, of another shape or sharded otherwise.
        """
        import torch

        for name in self._frozen:
            if not self._slots[name].is_frozen:
                raise UsageError(
                    f"parameter {name} was frozen when PowerEMA was made and is trainable now",
                    remedy="make PowerEMA after unfreezing it",
                )
        with torch.no_grad():
            present = self._present()
            self.step += 1
            for gamma, averages in zip(self.gammas, self._averages, strict=True):
                if self.step == 1:
                    torch._foreach_copy_(averages, present)
                else:
                    weight = -math.expm1((gamma + 1) * math.log1p(-1 / self.step))
                    torch._foreach_lerp_(averages, present, weight)

    def _present(self) -> list[torch.Tensor]:
        """What this rank has of the averaged tensors now, of the averages' dtype and device."""
        reshard(self._model)
        present = [local(self._slots[n].fetch()) for n in self._averaged]
        for name, tensor, average in zip(self._averaged, present, self._averages[0], strict=True):
            if tensor.shape != average.shape or tensor.is_meta:
                raise UsageError(
                    f"{name} was {list(average.shape)} on {average.device} when PowerEMA was made "
                    f"and is {list(tensor.shape)} on {tensor.device} now",
                    remedy="make PowerEMA after resizing, sharding or offloading the model",
                )
        return [t.to(a.device, a.dtype) for t, a in zip(present, self._averages[0], strict=True)]

    def average(self, gamma: float) -> dict[str, torch.Tensor]:
        """The state dict of one gamma: averages in float32, the rest as the model has it now.

        Tied tensors come under their first name only, and what is a ``DTensor`` in the model is
        one here. The tensors are those that ``update`` changes: clone what is to be kept.

        Raises:
            UsageError: gamma is not tracked, or nothing was averaged yet.
        """
        if gamma not in self.gammas:
            raise UsageError(f"gamma {gamma:g} is not tracked", remedy=f"one of {self.gammas}")
        if self.step == 0:
            raise UsageError("no update() yet", remedy="call it after each optimizer step")
        present = self._fetch()
        averages = dict(zip(self._averaged, self._averages[self.gammas.index(gamma)], strict=True))
        return {n: with_shard(t, averages[n]) if n in averages else t for n, t in present.items()}

    def _fetch(self) -> dict[str, torch.Tensor]:
        """All tensors as the model has them now."""
        reshard(self._model)
        return {n: slot.fetch() for n, slot in self._slots.items()}

    def state_dict(self, *, sharded: bool = False) -> dict[str, Any]:
        """Everything needed to resume; loads with ``torch.load(..., weights_only=True)``.

        Of a sharded model every rank must call it, and that of rank 0 is to be stored: it has the
        whole averages, on the CPU, the others have none.

        Args:
            sharded: give the averages as the ``DTensor``s of each rank's shards, which
                ``torch.distributed.checkpoint`` stores and loads.
        """
        like = self._fetch()
        averages: list[dict[str, torch.Tensor]] = []
        for mine in self._averages:
            stored = {n: with_shard(like[n], a) for n, a in zip(self._averaged, mine, strict=True)}
            if not sharded and any(map(is_sharded, like.values())):
                gathered = ((n, whole(t)) for n, t in stored.items())
                stored = {n: t.cpu() for n, t in gathered if _rank() == 0}
            averages.append(stored)
        return {"step": self.step, "gammas": list(self.gammas), "averages": averages}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Resume from :meth:`state_dict`, sharded or not, whatever the number of ranks was.

        Raises:
            UsageError: the gammas, names or shapes are not those of this PowerEMA; it has no
                averages, as that of a rank other than 0.
        """
        if tuple(state["gammas"]) != self.gammas:
            raise UsageError(f"the state has gammas {state['gammas']}, not {list(self.gammas)}")
        if not all(state["averages"]):
            raise UsageError(
                "the state is that of a rank other than 0, which has no averages",
                remedy="load on every rank what rank 0 has stored",
            )
        like = self._fetch()
        shapes = {n: like[n].shape for n in self._averaged}
        for stored in state["averages"]:
            if {n: t.shape for n, t in stored.items()} != shapes:
                raise UsageError("the state is of another model: its names or shapes differ")
        for mine, stored in zip(self._averages, state["averages"], strict=True):
            for name, tensor in zip(self._averaged, mine, strict=True):
                tensor.copy_(shard_of(stored[name], like[name]))
        self.step = int(state["step"])

    def save(
        self,
        directory: str | os.PathLike[str],
        *,
        name: str = "ema",
        dtype: torch.dtype | None = None,
    ) -> list[Path]:
        """Write one snapshot per gamma, ``<name>-step0001000-gamma5.safetensors``.

        A snapshot appears under its name complete or not at all. Names of tied tensors are
        recorded as ``safetensors.torch.save_model`` does, whose ``load_model`` restores them.
        In a ``torch.distributed`` process group rank 0 alone writes, and every rank must call it if
        the model is sharded: whole tensors are gathered one at a time.

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
        self._check_names()
        if dtype is not None:
            self._check_range(dtype)
        folder = Path(directory)
        paths = []
        for gamma in self.gammas:
            path = folder / (snapshot_name(name, self.step, gamma) + ".safetensors")
            self._write(path, gamma, dtype)
            paths.append(path)
        return paths

    def _check_names(self) -> None:
        """Refuse to store a model that has got, lost or replaced modules or parameters."""
        now, aliases = slots(self._model)
        places, made_for = ({n: s.place for n, s in d.items()} for d in (now, self._slots))
        for name in sorted({*places, *made_for, *aliases, *self._aliases}):
            kept = places.get(name) == made_for.get(name)
            if not kept or aliases.get(name) != self._aliases.get(name):
                raise UsageError(
                    f"the model's {name} is not the one that PowerEMA was made for",
                    remedy="make PowerEMA after changing the model",
                )

    def _check_range(self, dtype: torch.dtype) -> None:
        """Refuse a type that can't hold the averages, on every rank if the model is sharded."""
        import torch.distributed

        storing.check_type(dtype)
        sharded = any(map(is_sharded, self._fetch().values()))
        if _rank() and not sharded:
            return
        large = [
            storing.beyond(dict(zip(self._averaged, a, strict=True)), dtype) for a in self._averages
        ]
        if sharded:
            everywhere: list[Any] = [None] * torch.distributed.get_world_size()
            torch.distributed.all_gather_object(everywhere, large)
            large = [found for of_rank in everywhere for found in of_rank]
        storing.refuse_range(large, dtype)

    def _write(self, path: Path, gamma: float, dtype: torch.dtype | None) -> None:
        """Write one snapshot on rank 0; the other ranks give their shards."""
        import torch.distributed

        averaged = set(self._averaged)
        tensors = self.average(gamma)
        types = {n: dtype if dtype and n in averaged else t.dtype for n, t in tensors.items()}
        # As safetensors has it: wide elements first, so that each tensor is aligned.
        order = sorted(tensors, key=lambda n: (-types[n].itemsize, n))
        gathered = (whole(tensors[n]).to(types[n]) for n in order)
        metadata = {
            **self._aliases,
            "format": "pt",
            "gamma": repr(gamma),
            "phema_tracker": __version__,
            "step": str(self.step),
        }
        failure: list[PhemaError | None] = [None]
        if _rank() == 0:
            shapes = {n: (types[n], tuple(tensors[n].shape)) for n in order}
            try:
                storing.write(path, shapes, gathered, metadata)
            except PhemaError as error:
                failure[0] = error
        if any(map(is_sharded, tensors.values())):
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
