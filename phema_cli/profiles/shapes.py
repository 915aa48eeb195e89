"""Averages that are no power functions: constant decay, windows, raw weights, tables."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from phema_cli.errors import UsageError
from phema_cli.profiles.base import Array, check_end


@dataclass(frozen=True, slots=True)
class ExponentialProfile:
    """An EMA of constant decay: ``F(t) = exp(-rate (T - t))``, of which F(0) is initial weights.

    With ``beta = exp(-rate)`` the update at step s weighs ``(1 - beta) beta^(T-s) = F(s) - F(s-1)``
    and the initial weights ``beta^T = F(0)``, exactly.

    Args:
        rate: ``-ln beta`` per step, above 0.
        end: time of the average in steps, above 0.
        name: what the user called it.

    Raises:
        UsageError: rate or end is not above 0 and finite.
    """

    rate: float
    end: float
    name: str = ""

    def __post_init__(self) -> None:
        check_end(self.end)
        if not (math.isfinite(self.rate) and self.rate > 0):
            raise UsageError(
                f"a decay of {self.rate:g} per step is not above 0 and finite",
                remedy="beta lies between 0 and 1",
            )

    @property
    def label(self) -> str:
        """``exponential:halflife=2000``."""
        return self.name or f"exponential:beta={math.exp(-self.rate):.10g}"

    @property
    def breaks(self) -> tuple[float, ...]:
        """The end."""
        return (self.end,)

    @property
    def exponent(self) -> float:
        """Near its end it falls as ``(t/T)^(rate T)``."""
        return self.rate * self.end

    @property
    def square_integrable(self) -> bool:
        """True."""
        return True

    def cdf(self, t: Array) -> Array:
        """``exp(-rate (T - t))`` from 0 to T, 1 from T on."""
        return np.where(t < 0, 0.0, np.exp(-self.rate * np.maximum(self.end - t, 0.0)))

    def density(self, t: Array) -> Array:
        """``rate exp(-rate (T - t))`` on (0, T], 0 elsewhere."""
        return np.where((t > 0) & (t <= self.end), self.rate * self.cdf(t), 0.0)


@dataclass(frozen=True, slots=True)
class WindowProfile:
    """The uniform average over (start, end]; also what a linear cooldown of the learning rate does.

    A learning rate that falls linearly from ``start`` to 0 at ``end`` scales the increment of time
    t by ``1 - (t - start)/(end - start)``. That is the survival function of the uniform average.

    Args:
        start: where the window begins, in steps, at least 0.
        end: where it ends.
        name: what the user called it.

    Raises:
        UsageError: start is not in [0, end).
    """

    start: float
    end: float
    name: str = ""

    def __post_init__(self) -> None:
        check_end(self.end)
        if not 0 <= self.start < self.end:
            raise UsageError(
                f"{self.name or 'uniform'}: steps {self.start:g} to {self.end:g} are no window",
                remedy="make last longer",
            )

    @property
    def label(self) -> str:
        """``uniform:last=0.2``."""
        return self.name or f"uniform:last={1 - self.start / self.end:.6g}"

    @property
    def breaks(self) -> tuple[float, ...]:
        """Start and end."""
        return (self.start, self.end) if self.start > 0 else (self.end,)

    @property
    def exponent(self) -> float:
        """Flat up to its end."""
        return 0.0

    @property
    def square_integrable(self) -> bool:
        """True."""
        return True

    def cdf(self, t: Array) -> Array:
        """``(t - start)/(end - start)`` inside, 0 before and 1 after."""
        inside: Array = np.clip((t - self.start) / (self.end - self.start), 0.0, 1.0)
        return inside

    def density(self, t: Array) -> Array:
        """``1/(end - start)`` inside, 0 elsewhere."""
        return np.where((t > self.start) & (t <= self.end), 1 / (self.end - self.start), 0.0)


@dataclass(frozen=True, slots=True)
class RawProfile:
    """The weights as they are at one time, not averaged.

    Args:
        end: that time in steps, above 0.

    Raises:
        UsageError: end is not above 0 and finite.
    """

    end: float

    def __post_init__(self) -> None:
        check_end(self.end)

    @property
    def label(self) -> str:
        """``raw``."""
        return "raw"

    @property
    def breaks(self) -> tuple[float, ...]:
        """The time."""
        return (self.end,)

    @property
    def exponent(self) -> float:
        """A step needs no resolution."""
        return 0.0

    @property
    def square_integrable(self) -> bool:
        """False: all weight is on one point."""
        return False

    def cdf(self, t: Array) -> Array:
        """0 before the time, 1 from it on."""
        return np.where(t >= self.end, 1.0, 0.0)

    def density(self, t: Array) -> Array:
        """0: the weight of a single point has no density."""
        return np.zeros_like(t)


@dataclass(frozen=True, slots=True)
class TableProfile:
    """A density given at points, linear between them, normalised to one.

    Args:
        times: ascending, in steps, from 0 or later.
        heights: the density there in any unit, not negative, not all 0.
        name: what the user called it.

    Raises:
        UsageError: fewer than two points, times that don't ascend, or no weight.
    """

    times: tuple[float, ...]
    heights: tuple[float, ...]
    name: str = "csv"

    def __post_init__(self) -> None:
        t, h = np.array(self.times), np.array(self.heights)
        fits = len(t) == len(h) > 1 and np.isfinite(t).all() and np.isfinite(h).all()
        if not fits or t[0] < 0 or (np.diff(t) <= 0).any():
            raise UsageError(f"{self.name}: times must ascend from 0 or later, two at least")
        if (h < 0).any() or not h.any():
            raise UsageError(f"{self.name}: weights must not be negative, nor all 0")

    @property
    def end(self) -> float:
        """The last time."""
        return self.times[-1]

    @property
    def label(self) -> str:
        """``csv:profile.csv``."""
        return self.name

    @property
    def breaks(self) -> tuple[float, ...]:
        """Every time above 0."""
        return tuple(t for t in self.times if t > 0)

    @property
    def exponent(self) -> float:
        """Piecewise straight."""
        return 1.0

    @property
    def square_integrable(self) -> bool:
        """True."""
        return True

    def _pieces(self) -> tuple[Array, Array, Array]:
        """Times, normalised density there, F there."""
        t, h = np.array(self.times), np.array(self.heights) / max(self.heights)
        steps = np.diff(t) * (h[1:] + h[:-1]) / 2
        total = steps.sum()
        return t, h / total, np.concatenate([[0.0], np.cumsum(steps)]) / total

    def cdf(self, t: Array) -> Array:
        """Integral of the density, a parabola on each piece."""
        at, height, weight = self._pieces()
        i = np.clip(np.searchsorted(at, t, side="right") - 1, 0, len(at) - 2)
        into = np.clip(t - at[i], 0.0, at[i + 1] - at[i])
        slope = (height[i + 1] - height[i]) / (at[i + 1] - at[i])
        inside: Array = weight[i] + into * (height[i] + slope * into / 2)
        return inside

    def density(self, t: Array) -> Array:
        """The points' density, normalised, linear between them; 0 outside."""
        at, height, _ = self._pieces()
        return np.interp(t, at, height, left=0.0, right=0.0)
