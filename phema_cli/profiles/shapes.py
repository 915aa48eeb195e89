"""Profiles that are no power functions: docs/maths.md has each F."""

import math
from dataclasses import dataclass, field
from itertools import count, takewhile
from typing import ClassVar, Literal, Self, get_args

import numpy as np

from phema_cli.errors import UsageError
from phema_cli.profiles.base import Array, Profile, check_end, check_window

#: the decays that are no straight line; that one is the uniform average of the window.
Curve = Literal["cosine", "sqrt"]
#: cells towards a singular start: the n-th is 2^-n of the first step wide. What is below the last
#: one adds less than 1e-9 to an error that steps of full width leave.
_HALVINGS = 12


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
    # Averages of one rate and end are one, whatever they are called.
    name: str = field(default="", compare=False)
    square_integrable: ClassVar[bool] = True
    sparse: ClassVar[None] = None

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

    def cdf(self, t: Array) -> Array:
        """``exp(-rate (T - t))`` from 0 to T, 1 from T on."""
        return np.where(t < 0, 0.0, np.exp(-self.rate * np.maximum(self.end - t, 0.0)))

    def density(self, t: Array) -> Array:
        """``rate exp(-rate (T - t))`` on (0, T], 0 elsewhere."""
        return np.where((t > 0) & (t <= self.end), self.rate * self.cdf(t), 0.0)


@dataclass(frozen=True, slots=True)
class WindowProfile:
    """The uniform average over (start, end]; also what a linear decay of the learning rate does.

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
    # Windows of one start and end are one average, whatever they are called.
    name: str = field(default="", compare=False)
    exponent: ClassVar[float] = 0.0
    square_integrable: ClassVar[bool] = True
    sparse: ClassVar[None] = None

    @classmethod
    def of_last(cls, last: float, end: float, name: str) -> Self:
        """The window of the ``last`` steps before its end; up to 1, a fraction of the time."""
        return cls(end * (1 - last) if last <= 1 else max(end - last, 0.0), end, name)

    def __post_init__(self) -> None:
        check_end(self.end)
        check_window(self.start, self.end, self.name or "uniform")

    @property
    def label(self) -> str:
        """``uniform:last=0.2``."""
        return self.name or f"uniform:last={1 - self.start / self.end:.6g}"

    @property
    def breaks(self) -> tuple[float, ...]:
        """Start and end."""
        return (self.start, self.end) if self.start > 0 else (self.end,)

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
    label: ClassVar[str] = "raw"
    #: a jump needs no resolution.
    exponent: ClassVar[float] = 0.0
    #: all weight is on one point.
    square_integrable: ClassVar[bool] = False
    sparse: ClassVar[None] = None

    def __post_init__(self) -> None:
        check_end(self.end)

    @property
    def breaks(self) -> tuple[float, ...]:
        """The time."""
        return (self.end,)

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
        label: what the user called it: ``csv:profile.csv``.

    Raises:
        UsageError: fewer than two points, times that don't ascend, or no weight.
    """

    times: tuple[float, ...]
    heights: tuple[float, ...]
    label: str = "csv"
    exponent: ClassVar[float] = 1.0
    square_integrable: ClassVar[bool] = True
    sparse: ClassVar[None] = None

    def __post_init__(self) -> None:
        t, h = np.array(self.times), np.array(self.heights)
        fits = len(t) == len(h) > 1 and np.isfinite(t).all() and np.isfinite(h).all()
        if not fits or t[0] < 0 or (np.diff(t) <= 0).any():
            raise UsageError(f"{self.label}: times must ascend from 0 or later, two at least")
        if (h < 0).any() or not h.any():
            raise UsageError(f"{self.label}: weights must not be negative, nor all 0")

    @property
    def end(self) -> float:
        """The last time."""
        return self.times[-1]

    @property
    def breaks(self) -> tuple[float, ...]:
        """Every time above 0."""
        return tuple(t for t in self.times if t > 0)

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


@dataclass(frozen=True, slots=True)
class DecayProfile:
    """A learning rate that falls from its full value at ``start`` to 0 at ``end``.

    An update at fraction u of the window counts by what the schedule leaves of the learning rate,
    f(u) = (1 + cos(pi u))/2 for ``cosine`` and 1 - sqrt(u) for ``sqrt``. So ``F(u) = 1 - f(u)``.

    Args:
        start: where the window begins, in steps, at least 0.
        end: where it ends.
        curve: how the learning rate falls.
        name: what the user called it.

    Raises:
        UsageError: start is not in [0, end), or there is no such curve.
    """

    start: float
    end: float
    curve: Curve
    name: str = ""
    exponent: ClassVar[float] = 0.0
    sparse: ClassVar[None] = None

    def __post_init__(self) -> None:
        check_end(self.end)
        check_window(self.start, self.end, self.label)
        if self.curve not in get_args(Curve):
            raise UsageError(f"no curve {self.curve!r}", remedy="one of cosine, sqrt")

    @property
    def label(self) -> str:
        """``decay:last=0.2,shape=sqrt``."""
        share = 1 - self.start / self.end
        return self.name or f"decay:last={share:.6g},shape={self.curve}"

    @property
    def square_integrable(self) -> bool:
        """Not that of ``sqrt``: its density is 1/sqrt(u) at the start."""
        return self.curve != "sqrt"

    @property
    def _first(self) -> float:
        """The width of the first step, in steps: 1, or the whole window."""
        return min(1.0, self.end - self.start)

    @property
    def breaks(self) -> tuple[float, ...]:
        """Start, middle and end, and for ``sqrt`` distances from the start that double."""
        span = self.end - self.start
        found = [self.start, self.start + span / 2, self.end]
        if self.curve == "sqrt":
            widths = (self._first * 2.0**k for k in count(-_HALVINGS))
            found += [self.start + width for width in takewhile(lambda w: w < span, widths)]
        return tuple(sorted({time for time in found if 0 < time <= self.end}))

    def cdf(self, t: Array) -> Array:
        """``1 - f(u)`` inside, 0 before and 1 after."""
        u: Array = np.clip((t - self.start) / (self.end - self.start), 0.0, 1.0)
        return np.sqrt(u) if self.curve == "sqrt" else np.sin(np.pi / 2 * u) ** 2

    def density(self, t: Array) -> Array:
        """``-f'(u)/(end - start)`` inside, 0 elsewhere; over the first step of ``sqrt``, its mean.

        No update is split, so no time weighs more than that mean: the noise of a single update
        counts by the square of its weight, which is finite.
        """
        span, inside = self.end - self.start, (t > self.start) & (t <= self.end)
        if self.curve == "sqrt":
            after = np.maximum(t - self.start, 0.0)
            late = after > self._first
            slope = 0.5 / np.sqrt(np.where(late, after, 1.0) * span)
            height = np.where(late, slope, 1 / np.sqrt(self._first * span))
        else:
            height = np.pi / 2 / span * np.sin(np.pi * (t - self.start) / span)
        return np.where(inside, height, 0.0)


@dataclass(frozen=True, slots=True)
class CombinationProfile:
    """The profile of a sum of snapshots with given weights: ``F(t) = sum_i x_i F_i(t)``.

    Args:
        label: what users call it.
        kind: whether it is a plain mean or has weights of its own.
        places: which of the snapshots have a weight, ascending.
        weights: their weights, of any sign and sum.
        profiles: their profiles.
        step: when the last of them was stored, as the trainer counts; None where nothing says it.
    """

    label: str
    kind: Literal["mean", "weights"]
    places: tuple[int, ...]
    weights: tuple[float, ...]
    profiles: tuple[Profile, ...]
    step: float | None = None
    exponent: ClassVar[float] = 0.0
    #: there is nothing to compare its density with.
    square_integrable: ClassVar[bool] = False
    sparse: ClassVar[None] = None

    @property
    def end(self) -> float:
        """The time of the last of its snapshots."""
        return max(p.end for p in self.profiles)

    @property
    def breaks(self) -> tuple[float, ...]:
        """Those of its snapshots."""
        return tuple(sorted({t for p in self.profiles for t in p.breaks}))

    def cdf(self, t: Array) -> Array:
        """The sum of its snapshots' F; from its end on, what its weights sum to."""
        parts = (x * p.cdf(t) for x, p in zip(self.weights, self.profiles, strict=True))
        return sum(parts, np.zeros_like(t, dtype=np.float64))

    def density(self, t: Array) -> Array:
        """The sum of its snapshots' densities; raw weights have none."""
        parts = (x * p.density(t) for x, p in zip(self.weights, self.profiles, strict=True))
        return sum(parts, np.zeros_like(t, dtype=np.float64))

    def column(self, count: int) -> Array:
        """The weights of all ``count`` snapshots, (count,) float64."""
        column = np.zeros(count)
        column[list(self.places)] = self.weights
        return column
