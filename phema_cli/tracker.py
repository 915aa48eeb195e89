"""PowerEMA: keeps power-function averages of a model during training and stores snapshots.

Each update at step t takes ``ema += (1 - beta_t) (theta - ema)`` with
``beta_t = (1 - 1/t)^(gamma+1)`` (arXiv:2312.02696, Eq. 127), so the first update copies the model.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from phema_cli._version import __version__
from phema_cli.errors import StorageError, UsageError
from phema_cli.formats.base import PARTIAL
from phema_cli.profiles import PowerProfile
from phema_cli.snapshots.tags import snapshot_name

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True)
class _Slot:
    """Where the model keeps a tensor: fetched anew each time, since models replace them."""

    holder: dict[str, Any]
    key: str

    def fetch(self) -> torch.Tensor:
        tensor: torch.Tensor = self.holder[self.key]
        return tensor.detach()


class PowerEMA:
    """Power-function averages of a model's weights, one per gamma.

    Averaged are all trainable parameters and all floating-point buffers that the model's state
    dict has, in float32. Frozen parameters, integers and booleans are stored as the model has them.
    Tied tensors are averaged and stored once. Wrappers (``DataParallel``, ``torch.compile``) leave
    no trace in the names.

    Args:
        model: the model being trained.
        gammas: exponents, at least one, no two alike.
        device: where the averages live; by default beside the parameters.

    Raises:
        UsageError: no gamma, one given twice or out of range, or nothing in the model to average.
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
        self._slots, self._aliases = _slots(_unwrapped(model))
        self._frozen = [
            n
            for n, slot in self._slots.items()
            if isinstance(slot.holder[slot.key], torch.nn.Parameter)
            and not slot.holder[slot.key].requires_grad
        ]
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
                for t in self._fetch()
            ]
            for _ in self.gammas
        ]

    def _fetch(self) -> list[torch.Tensor]:
        """The averaged tensors as the model has them now."""
        return [self._slots[n].fetch() for n in self._averaged]

    def update(self) -> None:
        """Take the model's present weights into the averages; call it after each optimizer step.

        Raises:
            UsageError: a parameter that was frozen when PowerEMA was made is trained now.
        """
        import torch

        for name in self._frozen:
            slot = self._slots[name]
            if slot.holder[slot.key].requires_grad:
                raise UsageError(
                    f"parameter {name} was frozen when PowerEMA was made and is trainable now",
                    remedy="make PowerEMA after unfreezing it",
                )
        self.step += 1
        with torch.no_grad():
            like = self._averages[0]
            present = [t.to(a.device, a.dtype) for t, a in zip(self._fetch(), like, strict=True)]
            for gamma, averages in zip(self.gammas, self._averages, strict=True):
                if self.step == 1:
                    torch._foreach_copy_(averages, present)
                else:
                    weight = -math.expm1((gamma + 1) * math.log1p(-1 / self.step))
                    torch._foreach_lerp_(averages, present, weight)

    def average(self, gamma: float) -> dict[str, torch.Tensor]:
        """The state dict of one gamma: averages in float32, the rest as the model has it now.

        Tied tensors come under their first name only. The tensors are those that ``update``
        changes: clone what is to be kept.

        Raises:
            UsageError: gamma is not tracked, or nothing was averaged yet.
        """
        if gamma not in self.gammas:
            raise UsageError(f"gamma {gamma:g} is not tracked", remedy=f"one of {self.gammas}")
        if self.step == 0:
            raise UsageError("no update() yet", remedy="call it after each optimizer step")
        averages = dict(zip(self._averaged, self._averages[self.gammas.index(gamma)], strict=True))
        return {n: averages.get(n, slot.fetch()) for n, slot in self._slots.items()}

    def state_dict(self) -> dict[str, Any]:
        """Everything needed to resume; loads with ``torch.load(..., weights_only=True)``."""
        return {
            "step": self.step,
            "gammas": list(self.gammas),
            "averages": [dict(zip(self._averaged, a, strict=True)) for a in self._averages],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Resume from :meth:`state_dict`.

        Raises:
            UsageError: the gammas, names or shapes are not those of this PowerEMA.
        """
        if tuple(state["gammas"]) != self.gammas:
            raise UsageError(f"the state has gammas {state['gammas']}, not {list(self.gammas)}")
        for mine, stored in zip(self._averages, state["averages"], strict=True):
            shapes = {n: t.shape for n, t in stored.items()}
            if shapes != {n: t.shape for n, t in zip(self._averaged, mine, strict=True)}:
                raise UsageError("the state is of another model: its names or shapes differ")
        self.step = int(state["step"])
        for mine, stored in zip(self._averages, state["averages"], strict=True):
            for name, tensor in zip(self._averaged, mine, strict=True):
                tensor.copy_(stored[name])

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

        Args:
            directory: made if need be.
            name: what the files' names begin with.
            dtype: element type in which averages are stored; float32 by default.

        Returns:
            The files, in the order of the gammas.

        Raises:
            StorageError: the operating system failed to write.
            UsageError: nothing was averaged yet.
        """
        folder = Path(directory)
        averaged = set(self._averaged)
        paths = []
        for gamma in self.gammas:
            tensors = {
                n: _alone(t.to(dtype) if dtype and n in averaged else t)
                for n, t in self.average(gamma).items()
            }
            metadata = {
                **self._aliases,
                "format": "pt",
                "gamma": repr(gamma),
                "phema_tracker": __version__,
                "step": str(self.step),
            }
            path = folder / (snapshot_name(name, self.step, gamma) + ".safetensors")
            _write(path, tensors, metadata)
            paths.append(path)
        return paths


def _alone(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor, in a storage of its own: safetensors takes no views of shared ones."""
    shared = tensor.untyped_storage().nbytes() != tensor.nbytes
    return tensor.clone() if shared else tensor.contiguous()


def _write(path: Path, tensors: dict[str, torch.Tensor], metadata: dict[str, str]) -> None:
    """Write a safetensors file beside its name, flush it, and rename it."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    partial = path.with_name(path.name + PARTIAL)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            save_file(tensors, partial, metadata)
            with partial.open("rb") as stream:
                os.fsync(stream.fileno())
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)
    except OSError as error:
        raise StorageError.wrap(error, path, "write") from error
    except SafetensorError as error:
        # The library's own words for a full disk or a bad path.
        raise StorageError(f"cannot write: {error}", where=path) from error


def _unwrapped(model: torch.nn.Module) -> torch.nn.Module:
    """The model inside ``DataParallel``, ``DistributedDataParallel`` and ``torch.compile``."""
    import torch

    parallel = (torch.nn.DataParallel, torch.nn.parallel.DistributedDataParallel)
    while True:
        if isinstance(model, parallel):
            model = model.module
        elif isinstance(inner := getattr(model, "_orig_mod", None), torch.nn.Module):
            model = inner
        else:
            return model


def _slots(model: torch.nn.Module) -> tuple[dict[str, _Slot], dict[str, str]]:
    """Every tensor of the state dict once, by its first name, and the other names of tied ones."""
    slots: dict[str, _Slot] = {}
    aliases: dict[str, str] = {}
    first: dict[int, str] = {}
    for name, slot in _walk(model):
        tensor = slot.holder[slot.key]
        if id(tensor) in first:
            aliases[name] = first[id(tensor)]
        else:
            first[id(tensor)] = name
            slots[name] = slot
    return slots, aliases


def _walk(model: torch.nn.Module) -> Iterator[tuple[str, _Slot]]:
    """Name and slot of every parameter and persistent buffer, in the state dict's order."""
    for prefix, module in model.named_modules(remove_duplicate=False):
        dot = f"{prefix}." if prefix else ""
        # The set of buffers that stay out of the state dict has no public name.
        hidden = module._non_persistent_buffers_set  # noqa: SLF001
        holders: tuple[dict[str, Any], ...] = (module._parameters, module._buffers)  # noqa: SLF001
        for holder in holders:
            for key, tensor in holder.items():
                if tensor is not None and not (holder is module._buffers and key in hidden):  # noqa: SLF001
                    name = (dot + key).replace("_orig_mod.", "")
                    yield name, _Slot(holder, key)
