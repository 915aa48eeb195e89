"""The tensors of a model that PowerEMA averages, followed by their names while it is trained.

Models replace tensors and modules: FSDP2 swaps shards for whole parameters, ``torch.compile`` wraps
modules, users assign parameters. What has the same name, shape and kind takes the old one's place;
anything else would make averages of what the model no longer is, and is refused.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from phema_cli.errors import UsageError
from phema_cli.tracker.model import Slot, is_sharded, local, reshard, slots, unwrapped

if TYPE_CHECKING:
    import torch

_REMEDY = "make PowerEMA after changing the model"


@dataclass(frozen=True, slots=True)
class _Outline:
    """Where a model keeps its modules and tensors: cheap to compare, unlike a walk through it."""

    holders: list[dict[str, Any]]
    keys: list[tuple[str, ...]]
    parents: list[dict[str, Any]]
    children: list[tuple[Any, ...]]
    empty: list[dict[str, Any]]
    unset: list[tuple[dict[str, Any], str]]

    @classmethod
    def of(cls, model: torch.nn.Module) -> _Outline:
        """The outline of a model as it is now."""
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

    def holds(self) -> bool:
        """Whether the model has the same modules, and tensors of the same names in each."""
        return (
            not any(self.empty)
            and list(map(tuple, self.holders)) == self.keys
            and [tuple(h.values()) for h in self.parents] == self.children
            and all(h[k] is None for h, k in self.unset)
        )


class Watch:
    """The tensors of a model by name, and which of them are averaged.

    Attributes:
        slots: every tensor of the state dict once, by its first name.
        aliases: the other names of tied tensors, and their first ones.
        averaged: names of trainable parameters and floating-point buffers.
        buffers: which of those are buffers that are not sharded.

    Raises:
        UsageError: nothing is to be averaged, or a tensor can't be.
    """

    def __init__(self, model: torch.nn.Module) -> None:
        import torch

        self._model = unwrapped(model)
        reshard(self._model)
        self.slots, self._ties = slots(self._model)
        self._outline = _Outline.of(self._model)
        self._frozen = [n for n, slot in self.slots.items() if slot.is_frozen]
        moving = {n: s.held() for n, s in self.slots.items() if n not in set(self._frozen)}
        self.averaged = [n for n, t in moving.items() if t.is_floating_point()]
        self.buffers = [
            n
            for n in self.averaged
            if not isinstance(moving[n], torch.nn.Parameter) and not is_sharded(moving[n])
        ]
        if not self.averaged:
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

    @property
    def aliases(self) -> dict[str, str]:
        """The other names of tied tensors, and their first ones."""
        return {name: first for name, (_, first) in self._ties.items()}

    def fetch(self) -> dict[str, torch.Tensor]:
        """All tensors as the model has them now, whole or this rank's shards, without graphs.

        Raises:
            UsageError: the model has got, lost or tied a tensor, or one is of another kind.
        """
        return {n: t.detach() for n, t in zip(self.slots, self._held(), strict=True)}

    def _held(self) -> list[torch.Tensor]:
        """What the model has in the slots now; raises as :meth:`fetch` does."""
        reshard(self._model)
        if not self._outline.holds():
            self._follow()
        held = [slot.held() for slot in self.slots.values()]
        if len(set(map(id, held))) < len(held) or any(
            slot.held() is not self.slots[first].held() for slot, first in self._ties.values()
        ):
            self._follow()
        return held

    def present(self, like: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """What this rank has of the averaged tensors now, of the types and devices of ``like``.

        To be called where no graph is recorded.

        Raises:
            UsageError: as :meth:`fetch` does, and where a parameter was unfrozen or a tensor has
                another shape than in ``like`` or is on the meta device.
        """
        now = dict(zip(self.slots, self._held(), strict=True))
        for name in self._frozen:
            if now[name].requires_grad:
                raise UsageError(
                    f"parameter {name} was frozen when PowerEMA was made and is trainable now",
                    remedy="make PowerEMA after unfreezing it",
                )
        present = []
        for name, average in zip(self.averaged, like, strict=True):
            tensor = local(now[name])
            if tensor.shape != average.shape or tensor.is_meta:
                raise UsageError(
                    f"{name} was {list(average.shape)} on {average.device} when PowerEMA was made "
                    f"and is {list(tensor.shape)} on {tensor.device} now",
                    remedy="make PowerEMA after resizing, sharding or offloading the model",
                )
            present.append(tensor.to(average.device, average.dtype))
        return present

    def _follow(self) -> None:
        """Look all names up again, where the model has other modules or tensors than before."""
        found, ties = slots(self._model)
        self._compare(found, {n: first for n, (_, first) in ties.items()})
        self.slots, self._ties, self._outline = found, ties, _Outline.of(self._model)

    def _compare(self, found: Mapping[str, Slot], aliases: Mapping[str, str]) -> None:
        """Refuse tensors that were added, removed or tied."""
        before, now = {*self.slots, *self._ties}, {*found, *aliases}
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
            if not found[name].held().is_floating_point():
                raise UsageError(f"{name} is not floating-point any more", remedy=_REMEDY)
