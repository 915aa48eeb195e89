"""Ways of keeping power-function averages, for the benchmark of long runs."""

# ruff: noqa: SLF001 - torch's operations on lists of tensors have names with an underscore

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import torch

from phema_cli.tracker.averages import Averages, decay_share

#: the share that the steps after one have at another.
share = decay_share
_BLOCK = 64
_INFINITY = torch.tensor(float("inf"))


class Method(Protocol):
    """Averages of tensors for several gammas, begun at a step with given averages."""

    def update(self, present: list[torch.Tensor]) -> None:
        """Take in a step."""

    def average(self, gamma: int) -> list[torch.Tensor]:
        """The averages of one gamma, by its index, in float64: all that is kept of them."""

    def kept(self) -> list[torch.Tensor]:
        """Everything that stays in memory between two steps."""


class _Plain:
    """One tensor for an average, changed by each step."""

    dtype = torch.float32

    def __init__(self, first: Sequence[torch.Tensor], gammas: Sequence[float], step: int) -> None:
        self.gammas, self.step = gammas, step
        self.averages = [[t.to(self.dtype, copy=True) for t in first] for _ in gammas]

    def update(self, present: list[torch.Tensor]) -> None:
        self.step += 1
        for gamma, averages in zip(self.gammas, self.averages, strict=True):
            self.take(averages, present, share(gamma, self.step - 1, self.step))

    def take(self, averages: list[torch.Tensor], now: list[torch.Tensor], weight: float) -> None:
        """Change the averages of one gamma."""
        torch._foreach_lerp_(averages, now, weight)

    def average(self, gamma: int) -> list[torch.Tensor]:
        return [t.double() for t in self.averages[gamma]]

    def kept(self) -> list[torch.Tensor]:
        return [t for averages in self.averages for t in averages]


class _Double(_Plain):
    """The same in float64."""

    dtype = torch.float64

    def update(self, present: list[torch.Tensor]) -> None:
        super().update([t.double() for t in present])


class _Stochastic(_Plain):
    """Rounds up or down by chance, in proportion to what rounding leaves."""

    def take(self, averages: list[torch.Tensor], now: list[torch.Tensor], weight: float) -> None:
        for average, value in zip(averages, now, strict=True):
            step = (value - average) * weight
            moved = average + step
            rest = step - (moved - average)
            further = torch.nextafter(moved, _INFINITY.copysign(rest))
            chance = rest / (further - moved)
            average.copy_(torch.where(torch.rand_like(chance) < chance, further, moved))


class _Compensated(_Plain):
    """Adds what rounding left of a step to the next one, kept in bfloat16 (Kahan 1965)."""

    def __init__(self, first: Sequence[torch.Tensor], gammas: Sequence[float], step: int) -> None:
        super().__init__(first, gammas, step)
        self.rests = [[torch.zeros_like(t, dtype=torch.bfloat16) for t in first] for _ in gammas]
        self._rest = dict(zip(map(id, self.averages), self.rests, strict=True))

    def take(self, averages: list[torch.Tensor], now: list[torch.Tensor], weight: float) -> None:
        rests = self._rest[id(averages)]
        step = torch._foreach_sub(now, averages)
        torch._foreach_mul_(step, weight)
        torch._foreach_add_(step, [r.float() for r in rests])
        moved = torch._foreach_add(averages, step)
        torch._foreach_sub_(step, torch._foreach_sub(moved, averages))
        torch._foreach_copy_(rests, step)
        torch._foreach_copy_(averages, moved)

    def average(self, gamma: int) -> list[torch.Tensor]:
        pairs = zip(self.averages[gamma], self.rests[gamma], strict=True)
        return [t.double() + rest.double() for t, rest in pairs]

    def kept(self) -> list[torch.Tensor]:
        return super().kept() + [t for rests in self.rests for t in rests]


class _Anchored(_Plain):
    """Averages differences from the weights that the run had when it began."""

    def __init__(self, first: Sequence[torch.Tensor], gammas: Sequence[float], step: int) -> None:
        super().__init__([torch.zeros_like(t) for t in first], gammas, step)
        self.anchor = [t.clone() for t in first]

    def update(self, present: list[torch.Tensor]) -> None:
        super().update(list(torch._foreach_sub(present, self.anchor)))

    def average(self, gamma: int) -> list[torch.Tensor]:
        pairs = zip(self.anchor, self.averages[gamma], strict=True)
        return [anchor.double() + t.double() for anchor, t in pairs]

    def kept(self) -> list[torch.Tensor]:
        return super().kept() + self.anchor


def _blocks(kind: type[_Plain]) -> type[_Plain]:
    """Takes in the mean of 64 steps at a time, the same for all gammas."""

    class _Blocks(kind):  # type: ignore[misc, valid-type]  # a class that is made from another
        def __init__(
            self, first: Sequence[torch.Tensor], gammas: Sequence[float], step: int
        ) -> None:
            super().__init__(first, gammas, step)
            self.mean = [torch.zeros_like(t) for t in first]

        def update(self, present: list[torch.Tensor]) -> None:
            self.step += 1
            torch._foreach_lerp_(self.mean, present, 1 / ((self.step - 1) % _BLOCK + 1))
            if self.step % _BLOCK == 0:
                for gamma, averages in zip(self.gammas, self.averages, strict=True):
                    self.take(averages, self.mean, share(gamma, self.step - _BLOCK, self.step))

        def kept(self) -> list[torch.Tensor]:
            return [*super().kept(), *self.mean]

    return _Blocks


class _Parts:
    """As PowerEMA does it."""

    def __init__(self, first: Sequence[torch.Tensor], gammas: Sequence[float], step: int) -> None:
        self.averages = Averages.of(first, gammas, None)
        for recent in self.averages.recent:
            torch._foreach_copy_(recent, list(first))
        self.averages.step = step

    def update(self, present: list[torch.Tensor]) -> None:
        self.averages.update(present)

    def average(self, gamma: int) -> list[torch.Tensor]:
        kept = self.averages
        weight = share(kept.gammas[gamma], kept.origin, kept.step)
        pairs = zip(kept.base[gamma], kept.recent[gamma], strict=True)
        return [torch.lerp(base.double(), recent.double(), weight) for base, recent in pairs]

    def kept(self) -> list[torch.Tensor]:
        parts = [*self.averages.recent, *self.averages.base]
        return [t for tensors in parts for t in tensors]


METHODS: dict[str, Callable[[Sequence[torch.Tensor], Sequence[float], int], Method]] = {
    "float32": _Plain,
    "float64": _Double,
    "float32, rounded by chance": _Stochastic,
    "float32, rest in bfloat16": _Compensated,
    "float32 differences from an anchor": _Anchored,
    "float32, blocks of 64 steps": _blocks(_Plain),
    "float32, blocks of 64, rest in bfloat16": _blocks(_Compensated),
    "two parts, bfloat16 and float32": _Parts,
}
