"""EMAs whose decay grows over training up to a cap, as diffusers, timm and k-diffusion apply it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np

from phema_cli.errors import UsageError
from phema_cli.profiles.base import Array, check_end

#: how the decay of the s-th step after the start grows: ``1 - (1 + s/inv_gamma)^-power``,
#: ``(1 + s)/(10 + s)``, or not at all.
Growth = Literal["power", "ratio", "constant"]

#: steps up to which decays are tabulated; those who grow for longer are refused.
_MOST_STEPS = 1 << 22


@dataclass(frozen=True, slots=True)
class Warmup:
    """The decay of each update.

    Update k (from 1) has the decay 0 up to ``k = start + 1``, later, with ``s = k - start - 1``,
    what ``growth`` says, at least ``least`` and at most ``decay``.

    Attributes:
        decay: the cap, between 0 and 1.
        least: the floor.
        start: updates before averaging begins.
        growth: how it grows.
        inv_gamma: unit of the growth in steps, for ``power``.
        power: exponent of the growth, for ``power``.
    """

    decay: float
    least: float = 0.0
    start: int = 0
    growth: Growth = "constant"
    inv_gamma: float = 1.0
    power: float = 2 / 3

    def __post_init__(self) -> None:
        """Refuse what is no decay."""
        if not (0 < self.decay < 1 and 0 <= self.least < 1 and self.start >= 0):
            raise UsageError(f"a decay of {self.decay:g}, at least {self.least:g}, is no average")
        if self.growth == "power" and not (0 < self.inv_gamma < math.inf and self.power > 0):
            raise UsageError(
                f"a warm-up with inv_gamma {self.inv_gamma:g} and power {self.power:g} never grows"
            )

    def decays(self, updates: Array) -> Array:
        """Decay of each of the updates (float64, from 1)."""
        s = np.maximum(updates - self.start - 1, 0.0)
        if self.growth == "power":
            grown = 1 - (1 + s / self.inv_gamma) ** -self.power
        elif self.growth == "ratio":
            grown = (1 + s) / (10 + s)
        else:
            grown = np.full_like(s, self.decay)
        return np.where(s > 0, np.clip(grown, self.least, max(self.decay, self.least)), 0.0)


@lru_cache(maxsize=16)
def _depths(warmup: Warmup, updates: int) -> Array:
    """Sums of ``-ln decay`` over the first 0, 1, ... updates after the last decay of 0."""
    first = warmup.start + 1
    rates = -np.log(warmup.decays(first + np.arange(1.0, updates + 1.0)))
    return np.concatenate([[0.0], np.cumsum(rates)])


@dataclass(frozen=True, slots=True)
class WarmupProfile:
    """The average that decays d_1, d_2, ... give: ``F(n) = prod_{k > n} d_k`` at whole steps n.

    The update at step n weighs ``(1 - d_n) prod_{k > n} d_k = F(n) - F(n-1)``, exactly. Between
    steps F is interpolated in its logarithm; weights don't move there.

    Args:
        warmup: the decays.
        end: updates made, at least 1.

    Raises:
        UsageError: end is below 1, or the decays still grow after 4 million steps.
    """

    warmup: Warmup
    end: float

    def __post_init__(self) -> None:
        check_end(self.end)
        known = self.warmup.start + 1.0 + self._table
        if known < self.end and np.ptp(self.warmup.decays(np.array([known, self.end]))) > 0:
            raise UsageError(
                f"the decay still grows after {self._table} steps",
                remedy="say what the average is in phema.toml",
            )

    @property
    def _first(self) -> float:
        """The last update that replaces the average by the weights as they are."""
        return float(min(self.warmup.start + 1, self.end))

    @property
    def _table(self) -> int:
        """Decays that are tabulated: a power of two, so that snapshots of a run share a table."""
        if self.warmup.growth == "constant":
            return 1
        return min(1 << math.ceil(max(self.end, 1.0)).bit_length(), _MOST_STEPS)

    @property
    def label(self) -> str:
        """``decay 0.9999, warm-up``."""
        grows = ", warm-up" if self.warmup.growth != "constant" else ""
        return f"decay {self.warmup.decay:.10g}{grows}"

    @property
    def breaks(self) -> tuple[float, ...]:
        """Where averaging begins, and the end."""
        times = {self._first - 1, self._first, self.end}
        return tuple(sorted(t for t in times if t > 0))

    @property
    def exponent(self) -> float:
        """Near its end it falls as ``(t/T)^(rate T)`` with the rate of the last update."""
        decay = float(self.warmup.decays(np.array([self.end]))[0])
        return -math.log(decay) * self.end if decay > 0 else self.end

    @property
    def square_integrable(self) -> bool:
        """True."""
        return True

    def _depth(self, t: Array) -> Array:
        """``-ln`` of the product of the decays after the first update, up to time t."""
        table = _depths(self.warmup, self._table)
        since = np.maximum(t - (self.warmup.start + 1), 0.0)
        beyond = np.maximum(since - (len(table) - 1), 0.0)
        known = np.interp(since, np.arange(float(len(table))), table)
        result: Array = known + beyond * (table[-1] - table[-2])
        return result

    def cdf(self, t: Array) -> Array:
        """F(t), 0 before the first update that counts and 1 from the end on."""
        inside = np.clip(t, 0.0, self.end)
        kept = np.exp(self._depth(inside) - self._depth(np.array([self.end])))
        begun = np.clip(inside - (self._first - 1), 0.0, 1.0)
        return np.where(t < 0, 0.0, kept * begun)

    def density(self, t: Array) -> Array:
        """F'(t) on (0, end], 0 elsewhere."""
        inside = (t > self._first - 1) & (t <= self.end)
        decays = self.warmup.decays(np.ceil(np.clip(t, 1.0, None)))
        ramp = t <= self._first
        rate = np.where(ramp, 1.0, -np.log(np.where(decays > 0, decays, 1.0)))
        kept = np.exp(self._depth(np.clip(t, 0, self.end)) - self._depth(np.array([self.end])))
        return np.where(inside, rate * kept, 0.0)
