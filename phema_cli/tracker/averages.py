"""Power-function averages of tensors, exact over any number of steps.

In float32 alone an average stops moving once a step changes it by less than half a unit in its last
place: after a million steps a weight must move by a hundredth of a percent before its average
does. Here an average of the steps up to n is kept in two parts, which meet at a step o before n:

    average = (1 - W) base + W recent,    W = 1 - (o/n)^(gamma+1)

``recent`` (float32) averages the steps after o, whose share of the whole is W, and ``base``
(bfloat16) stands for all steps up to o. A step n changes ``recent`` alone, as one step changes a
float32 average: the exact update (arXiv:2312.02696, Eq. 127)

    average_n = (1 - w) average_(n-1) + w theta_n,    w = 1 - (1 - 1/n)^(gamma+1)

is ``recent += w/W (theta - recent)``, where w/W is never small. From time to time ``fold`` moves o
to a later step. It rounds the average to the new ``base``, and puts what rounding leaves into
``recent``, divided by the new W. So nothing is lost, and the two parts hold 8 bits more than
float32 does: the 24 of ``recent``, times W, below the 8 of ``base``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

#: steps that ``recent`` averages after a fold; the next fold comes when they are twice as many.
#: With more of them float32 would round as coarsely as in a plain average, fewer would take time.
BLOCK = 64
#: the first step with a fold. Before it, W is 1 and ``recent`` is the plain float32 average.
FIRST_FOLD = 1024
#: elements that are folded at once: on the CPU as many as fit in its cache, elsewhere so few that
#: intermediate results take little memory.
_AT_ONCE = {"cpu": 1 << 16}
_AT_ONCE_ELSEWHERE = 1 << 24


def decay_share(gamma: float, since: int, step: int) -> float:
    """The share 1 - (since/step)^(gamma+1) that the steps after ``since`` have at ``step``."""
    return 1.0 if since == 0 else -math.expm1((gamma + 1) * math.log(since / step))


@dataclass(slots=True)
class Averages:
    """The averages of a list of tensors, for each of several gammas.

    Attributes:
        gammas: exponents.
        recent: float32, by gamma and tensor.
        base: bfloat16, by gamma and tensor.
        step: how many updates there were.
        origin: the step o up to which ``base`` is the average; 0 before the first fold.
    """

    gammas: tuple[float, ...]
    recent: list[list[torch.Tensor]]
    base: list[list[torch.Tensor]]
    step: int = 0
    origin: int = 0

    @classmethod
    def of(
        cls,
        tensors: Sequence[torch.Tensor],
        gammas: Sequence[float],
        device: torch.device | str | None,
    ) -> Averages:
        """Averages of tensors like these before the first update, on ``device`` or beside them."""
        import torch

        def zeros(dtype: torch.dtype) -> list[list[torch.Tensor]]:
            return [
                [torch.zeros_like(t, dtype=dtype, device=device or t.device) for t in tensors]
                for _ in gammas
            ]

        return cls(tuple(gammas), zeros(torch.float32), zeros(torch.bfloat16))

    def update(self, present: list[torch.Tensor]) -> None:
        """Average a step in; ``present`` is float32, on the devices of the averages."""
        import torch

        self.step += 1
        for gamma, recent in zip(self.gammas, self.recent, strict=True):
            if self.step == 1:
                torch._foreach_copy_(recent, present)
            else:
                weight = decay_share(gamma, self.step - 1, self.step)
                weight /= decay_share(gamma, self.origin, self.step)
                torch._foreach_lerp_(recent, present, weight)
        if self.step >= FIRST_FOLD and self.step - self.origin >= 2 * BLOCK:
            self._fold()

    def _fold(self) -> None:
        """Move the origin to ``BLOCK`` steps ago; no average changes."""
        import torch

        before = [decay_share(g, self.origin, self.step) for g in self.gammas]
        if self.origin == 0:
            for recents, bases in zip(self.recent, self.base, strict=True):
                torch._foreach_copy_(bases, recents)
        self.origin = self.step - BLOCK
        for gamma, old, recents, bases in zip(
            self.gammas, before, self.recent, self.base, strict=True
        ):
            for recent, base in _portions(recents, bases):
                fold(recent, base, old, decay_share(gamma, self.origin, self.step))

    def average(self, gamma: int, tensor: int) -> torch.Tensor:
        """The average of one gamma and tensor, by their indices, in float32; do not change it."""
        recent, base = self.recent[gamma][tensor], self.base[gamma][tensor]
        if self.origin == 0:
            return recent
        return base.float().lerp_(recent, decay_share(self.gammas[gamma], self.origin, self.step))


def fold(recent: list[torch.Tensor], base: list[torch.Tensor], old: float, new: float) -> None:
    """Change W from ``old`` to ``new`` in place, and keep the average (1 - W) base + W recent.

    With base', the average rounded to bfloat16, it computes

        recent' = base' + (average - base') / new
                = base + old/new (recent - base) + (base' - base) (1 - 1/new)

    The second form subtracts no nearly equal numbers that were rounded before.
    """
    import torch

    wide = [b.float() for b in base]
    moved = torch._foreach_lerp(wide, recent, old)  # noqa: SLF001
    torch._foreach_copy_(base, moved)
    torch._foreach_copy_(moved, base)
    torch._foreach_sub_(moved, wide)
    torch._foreach_lerp_(recent, wide, 1 - old / new)
    # Two operations: in one, whether the product is rounded before it is added depends on the
    # device and on the tensor's place in memory.
    torch._foreach_mul_(moved, 1 - 1 / new)
    torch._foreach_add_(recent, moved)


def _portions(
    recents: Sequence[torch.Tensor], bases: Sequence[torch.Tensor]
) -> list[tuple[list[torch.Tensor], list[torch.Tensor]]]:
    """Portions of tensors for ``fold``: several small ones, or a part of a large one."""
    portions: list[tuple[list[torch.Tensor], list[torch.Tensor]]] = []
    room = 0
    device = None
    for whole, whole_base in zip(recents, bases, strict=True):
        most = _AT_ONCE.get(whole.device.type, _AT_ONCE_ELSEWHERE)
        if whole.numel() <= most:
            parts = [(whole, whole_base)]
        else:
            rows = max(1, most * len(whole) // whole.numel())
            begins = range(0, len(whole), rows)
            parts = [(whole[i : i + rows], whole_base[i : i + rows]) for i in begins]
        for recent, base in parts:
            if recent.numel() > room or recent.device != device:
                portions.append(([], []))
                room, device = most, recent.device
            portions[-1][0].append(recent)
            portions[-1][1].append(base)
            room -= recent.numel()
    return portions
