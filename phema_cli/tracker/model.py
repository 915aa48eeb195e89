"""The tensors of a model, found by their names again and again while it is trained.

Models replace tensors and modules: FSDP2 swaps shards for whole parameters, ``torch.compile`` wraps
modules, users assign parameters. A tensor of the same name, shape and kind takes the old one's
place; any other change is refused, since averages would no longer be those of the model.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from phema_cli.errors import UsageError
from phema_cli.tracker.sharding import fsdp_module, is_sharded, local, reshard

if TYPE_CHECKING:
    import torch

#: what wrappers of submodules add to names, and the model's own state dict leaves out.
WRAPPERS = ("_orig_mod.", "_checkpoint_wrapped_module.")
_REMEDY = "make PowerEMA after changing the model"


@dataclass(frozen=True, slots=True)
class Slot:
    """Where the model holds a tensor; the tensor itself may be replaced at any time."""

    holder: dict[str, Any]
    key: str

    def tensor(self) -> torch.Tensor:
        """What the model holds there now.

        Raises:
            UsageError: it holds nothing there.
        """
        tensor: torch.Tensor | None = self.holder.get(self.key)
        if tensor is None:
            raise UsageError(f"the model no longer has {self.key}", remedy=_REMEDY)
        return tensor


@dataclass(frozen=True, slots=True)
class _Outline:
    """Where a model holds its modules and tensors; faster to compare than to walk through it."""

    holders: list[dict[str, Any]]
    keys: list[tuple[str, ...]]
    parents: list[dict[str, Any]]
    children: list[tuple[Any, ...]]
    empty: list[dict[str, Any]]
    unset: list[tuple[dict[str, Any], str]]

    @classmethod
    def of(cls, model: torch.nn.Module) -> _Outline:
        """The outline of the model now."""
        every = list(model.modules())
        tensors = [h for m in every for h in (m._parameters, m._buffers)]  # noqa: SLF001
        modules = [m._modules for m in every]  # noqa: SLF001
        holders, parents = [h for h in tensors if h], [h for h in modules if h]
        return cls(
            holders,
            [tuple(h) for h in holders],
            parents,
            [tuple(h.values()) for h in parents],
            [h for h in tensors + modules if not h],
            [(h, k) for h in holders for k, t in h.items() if t is None],
        )

    def is_current(self) -> bool:
        """Whether the model still has the same modules, and tensors of the same names in each."""
        return (
            not any(self.empty)
            and list(map(tuple, self.holders)) == self.keys
            and [tuple(h.values()) for h in self.parents] == self.children
            and all(h[k] is None for h, k in self.unset)
        )


class ModelTensors:
    """The tensors of a model by name, and which of them are averaged.

    Attributes:
        aliases: the first name of each tied tensor, by each further name.
        averaged: names of trainable parameters and floating-point buffers.
        buffers: which of those are buffers that are not sharded.

    Raises:
        UsageError: nothing is to be averaged, or a tensor can't be.
    """

    def __init__(self, model: torch.nn.Module) -> None:
        import torch

        self._model = unwrapped(model)
        reshard(self._model)
        self._slots, self.aliases = find_slots(self._model)
        self._outline = _Outline.of(self._model)
        tensors = {n: s.tensor() for n, s in self._slots.items() if n not in self.aliases}
        parameters = {n for n, t in tensors.items() if isinstance(t, torch.nn.Parameter)}
        self._frozen = [n for n in tensors if n in parameters and not tensors[n].requires_grad]
        frozen = set(self._frozen)
        moving = {n: t for n, t in tensors.items() if n not in frozen}
        self.averaged = [n for n, t in moving.items() if t.is_floating_point()]
        self.buffers = [
            n for n in self.averaged if n not in parameters and not is_sharded(moving[n])
        ]
        if not self.averaged:
            raise UsageError(
                f"{type(model).__name__} has nothing to average",
                remedy="make PowerEMA when its parameters are trainable",
            )
        for name, tensor in moving.items():
            if tensor.is_complex():
                raise UsageError(
                    f"{name} is complex, and complex tensors cannot be averaged",
                    remedy="store it as pairs of real numbers (torch.view_as_real)",
                )

    def current(self) -> dict[str, torch.Tensor]:
        """All tensors now by their first names, whole or this rank's shards, without graphs.

        Raises:
            UsageError: a tensor was added, removed, tied or is of another kind.
        """
        return {n: t.detach() for n, t in self._held().items()}

    def current_averaged(self, like: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """This rank's parts of the averaged tensors now, of the types and devices of ``like``.

        Call it where no graph is recorded.

        Raises:
            UsageError: as :meth:`current` does; or a parameter was unfrozen, or a tensor has
                another shape than in ``like`` or is on the meta device.
        """
        now = self._held()
        for name in self._frozen:
            if now[name].requires_grad:
                raise UsageError(
                    f"parameter {name} was frozen when PowerEMA was made and is trainable now",
                    remedy="make PowerEMA after unfreezing it",
                )
        parts = []
        for name, average in zip(self.averaged, like, strict=True):
            tensor = local(now[name])
            if tensor.shape != average.shape or tensor.is_meta:
                raise UsageError(
                    f"{name} was {list(average.shape)} on {average.device} when PowerEMA was made "
                    f"and is {list(tensor.shape)} on {tensor.device} now",
                    remedy="make PowerEMA after resizing, sharding or offloading the model",
                )
            parts.append(tensor.to(average.device, average.dtype))
        return parts

    def _held(self) -> dict[str, torch.Tensor]:
        """What the slots of first names hold now; raises as :meth:`current` does."""
        reshard(self._model)
        if not self._outline.is_current():
            self._find_again()
        held = {n: slot.tensor() for n, slot in self._slots.items()}
        untied = [held.pop(n) is not held[first] for n, first in self.aliases.items()]
        if any(untied) or len(set(map(id, held.values()))) < len(held):
            self._find_again()
        return held

    def _find_again(self) -> None:
        """Look all names up in a model whose modules or tensors were replaced."""
        slots, aliases = find_slots(self._model)
        self._check_same(slots, aliases)
        self._slots, self.aliases, self._outline = slots, aliases, _Outline.of(self._model)

    def _check_same(self, slots: Mapping[str, Slot], aliases: Mapping[str, str]) -> None:
        """Refuse tensors that were added, removed or tied, or are no longer floating-point."""
        before, now = self._slots.keys(), slots.keys()
        for names, what in ((now - before, "was added"), (before - now, "was removed")):
            if names:
                first, *more = sorted(names)
                others = f" (as {len(more)} more)" if more else ""
                raise UsageError(
                    f"{first} {what} after PowerEMA was made for the model{others}", remedy=_REMEDY
                )
        for name in sorted(now):
            if aliases.get(name) != self.aliases.get(name):
                tie = aliases.get(name)
                what = f"tied to {tie}" if tie else f"no longer tied to {self.aliases[name]}"
                raise UsageError(f"{name} is {what} since PowerEMA was made", remedy=_REMEDY)
        for name in self.averaged:
            if not slots[name].tensor().is_floating_point():
                raise UsageError(f"{name} is no longer floating-point", remedy=_REMEDY)


def unwrapped(model: torch.nn.Module) -> torch.nn.Module:
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


def find_slots(
    model: torch.nn.Module, use: str = "averaged"
) -> tuple[dict[str, Slot], dict[str, str]]:
    """The slots of all tensors by their names; the first name of tied ones by each further name.

    Args:
        model: without wrappers, as :func:`unwrapped` gives it.
        use: what is to be done with the tensors, for errors.

    Raises:
        UsageError: a tensor is of a kind that can't be averaged, stored or filled.
    """
    slots: dict[str, Slot] = {}
    aliases: dict[str, str] = {}
    first: dict[int, str] = {}
    for name, slot in _walk(model):
        tensor = slot.tensor()
        if id(tensor) in first:
            aliases[name] = first[id(tensor)]
        else:
            _check_kind(name, tensor, use)
            first[id(tensor)] = name
        slots[name] = slot
    return slots, aliases


def _walk(model: torch.nn.Module) -> Iterator[tuple[str, Slot]]:
    """Name and slot of every parameter and persistent buffer, in the order of the state dict."""
    for prefix, module in model.named_modules(remove_duplicate=False):
        dot = f"{prefix}." if prefix else ""
        for wrapper in WRAPPERS:
            dot = dot.replace(wrapper, "")
        # No public name gives the buffers that the state dict leaves out.
        hidden = module._non_persistent_buffers_set  # noqa: SLF001
        holders: tuple[dict[str, Any], ...] = (module._parameters, module._buffers)  # noqa: SLF001
        for holder in holders:
            for key, tensor in holder.items():
                if tensor is not None and not (holder is module._buffers and key in hidden):  # noqa: SLF001
                    yield dot + key, Slot(holder, key)


def _check_kind(name: str, tensor: torch.Tensor, use: str) -> None:
    """Refuse what only stands for a tensor, by the marks that its library leaves."""
    from torch.nn.parameter import is_lazy

    if hasattr(tensor, "ds_id"):
        what, remedy = "is sharded by DeepSpeed ZeRO-3", "use ZeRO-2, or FSDP2 (fully_shard)"
    elif name.endswith("_flat_param") or hasattr(tensor, "_fsdp_flattened"):
        what, remedy = "is flattened by FSDP1", "use FSDP2 (fully_shard)"
    elif is_lazy(tensor):
        what, remedy = "has no shape yet", "run a batch through the model first"
    elif tensor.is_meta:
        what, remedy = "is on the meta device", "give the model its weights first"
    elif is_sharded(tensor) and fsdp_module() is None:
        what, remedy = "is a DTensor of a torch before 2.6", "use a newer torch"
    elif is_sharded(tensor) and any(p.is_partial() for p in tensor.placements):
        what, remedy = "is a DTensor that the ranks have yet to sum", "redistribute it"
    else:
        return
    raise UsageError(f"{name} {what} and cannot be {use}", remedy=remedy)
