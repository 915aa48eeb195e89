"""EMAs whose decay grows up to a cap, in closed form: cheap for any cap and any length of run.

:class:`phema_cli.profiles.schedules.ScheduleProfile` is exact and right for what a trainer wrote.
Here the cap of an average is unknown, and many are tried.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np

from phema_cli.profiles import Array

#: updates up to which a growing decay is summed one by one, the last update of the table beyond,
#: and the ratio of neighbouring entries there.
_EXACT, _LAST, _RATIO = 64, 1e10, 1.01


@dataclass(frozen=True, slots=True)
class Warmup:
    """How the decay of each update grows up to its cap.

    Update k (from 1) has the decay 0 up to ``k = start + 1``; later, with ``s = k - start - 1``, it
    is ``(1 + s)/(10 + s)``, ``1 - (1 + s/inv_gamma)^-power``, or the cap at once.

    Attributes:
        growth: which of the three.
        start: updates before averaging begins.
        inv_gamma: unit of the growth, for ``power``.
        power: its exponent.
    """

    growth: Literal["ratio", "power", "constant"] = "ratio"
    start: int = 0
    inv_gamma: float = 1.0
    power: float = 2 / 3


def _rate(warmup: Warmup, s: Array) -> Array:
    """``-ln decay`` of the s-th update after the first, without cap or floor."""
    s = np.maximum(s, 1.0)
    if warmup.growth == "ratio":
        return np.log((10 + s) / (1 + s))
    if warmup.growth == "power":
        return -np.log1p(-((1 + s / warmup.inv_gamma) ** -warmup.power))
    return np.full_like(s, 0.0)


@lru_cache(maxsize=16)
def _table(inv_gamma: float, power: float) -> tuple[Array, Array]:
    """Numbers of updates, and sums of ``-ln (1 - (1 + s/inv_gamma)^-power)`` over that many.

    Sums become integrals between half numbers, by Simpson's rule on even steps in the logarithm.
    """
    warmup = Warmup("power", inv_gamma=inv_gamma, power=power)
    few = np.arange(_EXACT + 1.0)
    sums = np.concatenate([[0.0], np.cumsum(_rate(warmup, few[1:]))])
    edges = np.geomspace(_EXACT, _LAST, 1 + round(math.log(_LAST / _EXACT) / math.log(_RATIO)))
    low, high = edges[:-1] + 0.5, edges[1:] + 0.5
    middle = np.sqrt(low * high)
    width = np.log(high / low) / 6
    ends = low * _rate(warmup, low) + high * _rate(warmup, high)
    pieces = width * (ends + 4 * middle * _rate(warmup, middle))
    return np.concatenate([few, edges[1:]]), np.concatenate([sums, sums[-1] + np.cumsum(pieces)])


def _depth(warmup: Warmup, s: Array) -> Array:
    """Sum of the first s of :func:`_rate`, s not negative.

    For ``(1 + s)/(10 + s)`` the product telescopes: ``sum = sum_{j=2}^{10} ln((s + j)/j)``.
    """
    if warmup.growth == "ratio":
        total: Array = sum((np.log1p(s / j) for j in range(2, 11)), np.zeros_like(s))
        return total
    if warmup.growth == "power":
        known: Array = np.interp(s, *_table(warmup.inv_gamma, warmup.power))
        return known
    return np.zeros_like(s)


def _capped_at(warmup: Warmup, rate: float) -> float:
    """The number of updates s after which ``-ln decay`` would fall below ``rate``."""
    if warmup.growth == "ratio":
        return max(0.0, (10 - math.exp(min(rate, 3.0))) / math.expm1(rate))
    if warmup.growth == "power":
        left = -math.expm1(-rate)
        return float(warmup.inv_gamma * (left ** (-1 / warmup.power) - 1))
    return 0.0


@dataclass(frozen=True, slots=True)
class GrowthProfile:
    """The average of such decays, with any cap and any interval.

    Args:
        warmup: how the decay grows.
        rate: ``-ln`` of the cap, per update.
        end: time of the average in steps, above 0.
        every: steps from one update to the next.
    """

    warmup: Warmup
    rate: float
    end: float
    every: float = 1.0

    @property
    def label(self) -> str:
        """``decay 0.9999, warm-up``."""
        return f"decay {math.exp(-self.rate):.10g}, warm-up"

    @property
    def breaks(self) -> tuple[float, ...]:
        """Where averaging begins, and the end."""
        start = self.warmup.start * self.every
        return (*(t for t in (start, start + self.every) if 0 < t < self.end), self.end)

    @property
    def exponent(self) -> float:
        """Near its end it falls as ``(t/T)^(rate T)`` with the rate of the last update."""
        since = self._since(np.array([self.end]))
        last = max(self.rate, float(_rate(self.warmup, since)[0]))
        return last * self.end / self.every if since[0] > 0 else self.end

    @property
    def square_integrable(self) -> bool:
        """True."""
        return True

    def _since(self, t: Array) -> Array:
        """Updates after the first one that counts, up to time t; not negative."""
        return np.maximum(t / self.every - (self.warmup.start + 1), 0.0)

    def _depth(self, t: Array) -> Array:
        """``-ln`` of the product of the decays up to time t."""
        since, limit = self._since(t), _capped_at(self.warmup, self.rate)
        total: Array = _depth(self.warmup, np.minimum(since, limit))
        return total + self.rate * np.maximum(since - limit, 0.0)

    def cdf(self, t: Array) -> Array:
        """F(t), 0 before the first update that counts and 1 from the end on."""
        inside = np.clip(t, 0.0, self.end)
        kept = np.exp(self._depth(inside) - self._depth(np.array([self.end])))
        begun = np.clip(inside / self.every - self.warmup.start, 0.0, 1.0)
        return np.where(t < 0, 0.0, kept * begun)

    def density(self, t: Array) -> Array:
        """F'(t) on (0, end], 0 elsewhere."""
        since = self._since(t)
        grown = np.maximum(_rate(self.warmup, since), self.rate)
        rate = np.where(since > 0, grown, 1.0) / self.every
        inside = (t > self.warmup.start * self.every) & (t <= self.end)
        kept = np.exp(self._depth(np.minimum(t, self.end)) - self._depth(np.array([self.end])))
        return np.where(inside, rate * kept, 0.0)
