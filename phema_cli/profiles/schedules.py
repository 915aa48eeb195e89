"""Averages by the updates they are made of: decays, exact weights, and profiles.

The rate of an update is minus the logarithm of its decay. The sum of the rates of all later updates
is what an update has lost of its weight, in logarithm.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar

import numpy as np

from phema_cli.profiles.base import Array, Sparse, check_end

#: updates up to which rates are added one by one: 512 KiB a law.
_EXACT = 1 << 16
#: updates up to which sums are computed; beyond, the last rate continues.
_LAST = 1 << 40
#: of neighbouring points of the sums beyond ``_EXACT``: a cubic between them is exact to 1e-13.
_RATIO = 1.001
_LAWS_KEPT = 32
#: of a logarithm below 0: a decay of 1e-300 stands for none.
_TINY = 1e-300
#: by how much a time that was multiplied or divided may miss a whole step.
SLACK = 1e-6


def inverse(s: Array, inv_gamma: float, power: float) -> Array:
    """The decay ``1 - (1 + s/inv_gamma)^-power``."""
    return _rate_below(-power * np.log1p(s / inv_gamma))


def ratio(s: Array) -> Array:
    """The decay ``(1 + s)/(10 + s)``."""
    return np.log1p(9 / (1 + s))


def power_function(t: Array, exponent: float) -> Array:
    """The decay ``(1 - 1/t)^exponent`` of a power function (arXiv:2312.02696, Eq. 127)."""
    return -exponent * np.log1p(-1 / t)


def share(t: Array, exponent: float) -> Array:
    """The decay ``exp(-exponent/t)``: a half-life that is a fraction of t."""
    return exponent / t


def saturating(s: Array, tau: float, least: float) -> Array:
    """The decay ``exp(-least) (1 - exp(-s/tau))``."""
    return least + _rate_below(-s / tau)


def _rate_below(logarithm: Array) -> Array:
    """The rate of the decay ``1 - exp(logarithm)``, of a logarithm up to 0."""
    # Each form loses what the other one keeps: near a decay of 0, and near 1.
    near = -np.log(-np.expm1(np.minimum(logarithm, -_TINY)))
    return np.where(logarithm > -math.log(2), near, -np.log1p(-np.exp(np.minimum(logarithm, -0.5))))


def constant(t: Array) -> Array:
    """The decay 1, which a cap makes what it is."""
    return np.zeros_like(t)


@dataclass(frozen=True, slots=True)
class Rates:
    """The rate of each update after the last one that copies the weights, counted from 1.

    Update i has ``most`` up to ``lag``, later ``falling(offset + stride (i - lag), *numbers)``, at
    least ``least`` and at most ``most``.

    Attributes:
        falling: how rates fall, that is how decays grow, with their first argument.
        numbers: its other arguments.
        offset: its first argument at update ``lag``.
        stride: by how much an update raises it.
        least: rate of the greatest decay.
        most: rate of the smallest decay.
        lag: updates before the decay grows.
    """

    falling: Callable[..., Array]
    numbers: tuple[float, ...] = ()
    offset: float = 0.0
    stride: float = 1.0
    least: float = 0.0
    most: float = math.inf
    lag: int = 0

    def unlimited(self, updates: Array) -> Array:
        """Rates between ``least`` and ``most`` or not, of updates after ``lag``, or between two."""
        return self.falling(self.offset + self.stride * updates, *self.numbers)

    def limited(self, rates: Array) -> Array:
        """Rates between ``least`` and ``most``."""
        result: Array = np.minimum(np.maximum(rates, self.least), self.most)
        return result

    def __call__(self, updates: Array) -> Array:
        """The rates of updates (float64, whole, from 1)."""
        grown = self.limited(self.unlimited(np.maximum(updates - self.lag, 1.0)))
        return np.where(updates > self.lag, grown, self.most)

    def sums(self, updates: Array) -> Array:
        """Sums of the rates of the first 0, 1, ... updates (float64, whole)."""
        lagging = np.minimum(updates, self.lag) * self.most if self.lag else 0.0
        return lagging + _sums(self).upto(np.maximum(updates - self.lag, 0.0))

    @property
    def kinks(self) -> tuple[float, ...]:
        """The last update whose decay is the smallest, and the last before the greatest."""
        found = {_last_above(self, self.most), _last_above(self, self.least)}
        return tuple(self.lag + k for k in sorted(found) if 0 < k < _LAST)


@lru_cache(maxsize=2 * _LAWS_KEPT)
def _last_above(rates: Rates, bound: float) -> float:
    """The last update after ``lag`` whose rate falls no lower than ``bound``."""
    low, high = 0.0, float(_LAST)
    while high - low > 1:
        middle = math.floor((low + high) / 2)
        if float(rates.unlimited(np.array([middle]))[0]) > bound:
            low = middle
        else:
            high = middle
    return low


@dataclass(frozen=True, slots=True, eq=False)
class _Sums:
    """Sums of rates: one by one up to the table's end, then at ``edges`` and a cubic between them.

    Attributes:
        table: sums of the first 0, 1, ... rates.
        edges: ascending numbers of updates, from the table's end.
        at: sums there.
        left: slope of the cubic at the first edge of each cell.
        right: slope at the second.
    """

    table: Array
    edges: Array
    at: Array
    left: Array
    right: Array

    def upto(self, updates: Array) -> Array:
        """Sums of so many rates (float64, whole, from 0)."""
        last = len(self.table) - 1
        near: Array = self.table[np.minimum(updates, last).astype(np.intp)]
        if not (updates > last).any():
            return near
        cell = np.clip(np.searchsorted(self.edges, updates, "right") - 1, 0, len(self.left) - 1)
        width = self.edges[cell + 1] - self.edges[cell]
        u = np.clip((updates - self.edges[cell]) / width, 0.0, 1.0)
        first, rise = self.at[cell], self.at[cell + 1] - self.at[cell]
        begin, finish = self.left[cell] * width, self.right[cell] * width
        bent = u * (1 - u) * ((1 - u) * (begin - rise) - u * (finish - rise))
        beyond = np.maximum(updates - self.edges[-1], 0.0) * self.right[-1]
        return np.where(updates > last, first + u * rise + bent + beyond, near)


@lru_cache(maxsize=_LAWS_KEPT)
def _sums(rates: Rates) -> _Sums:
    """The sums of the rates after ``lag``."""
    settled = _last_above(rates, rates.least)
    last = int(min(settled + 1, _EXACT))
    table = np.cumsum(rates.limited(rates.unlimited(np.arange(1.0, last + 1))))
    table = np.concatenate([[0.0], table])
    if last < _EXACT:
        edges = np.array([last, _LAST], dtype=np.float64)
    else:
        count = math.ceil(math.log(_LAST / last) / math.log(_RATIO))
        kinks = [k - rates.lag for k in rates.kinks if k - rates.lag > last]
        edges = np.unique([*np.geomspace(last, _LAST, count).round().tolist(), *kinks])
    risen, left, right = _cells(rates, edges[:-1], edges[1:])
    at = table[-1] + np.concatenate([[0.0], np.cumsum(risen)])
    return _Sums(table, edges, at, left, right)


def _cells(rates: Rates, low: Array, high: Array) -> tuple[Array, Array, Array]:
    """Sums of the rates after ``low`` up to ``high``, and slopes at both, by Euler and Maclaurin.

    The sum over whole numbers after a up to b is the integral from a + 1/2 to b + 1/2, less a 24th
    of what the slope changes.
    """
    x, w = np.polynomial.legendre.leggauss(8)
    points = low + 0.5 + (high - low) * (x[:, None] + 1) / 2
    change = [rates.unlimited(e + 1) - rates.unlimited(e) for e in (low, high)]
    whole = (high - low) * (w / 2 @ rates.unlimited(points)) - (change[1] - change[0]) / 24
    middle = rates.unlimited((low + high + 1) / 2)
    limited = rates.limited(middle)
    flat = limited != middle
    return (
        np.where(flat, limited * (high - low), whole),
        np.where(flat, limited, rates.unlimited(low + 0.5)),
        np.where(flat, limited, rates.unlimited(high + 0.5)),
    )


@dataclass(frozen=True, slots=True)
class Schedule:
    """At which steps an average is updated, and by which decays.

    The average is a copy of the weights up to step ``copied``. Update i, counted from 1, follows
    ``every * i`` steps later.

    Attributes:
        rates: minus the logarithms of the decays.
        every: steps between two updates.
        copied: the last step whose weights are copied; 0 if the initial ones are.
        wide: whether weights are copied at every N-th step too, not at each.
        unit: of the trainer's time, a step; 64 where it counts images in batches of 64.
    """

    rates: Rates
    every: int = 1
    copied: int = 0
    wide: bool = False
    unit: float = 1.0

    def steps(self, time: float) -> int:
        """Whole steps that a time of the trainer means."""
        return math.floor(time / self.unit + SLACK)

    def count(self, time: float) -> int:
        """Updates made up to a time."""
        return max((self.steps(time) - self.copied) // self.every, 0)

    def copy_at(self, time: float) -> int:
        """The step whose weights were copied last; 0 if they are the initial ones."""
        step = self.steps(time)
        if step >= self.copied:
            return self.copied
        if not self.wide:
            return step
        return max(self.copied - self.every * -(-(self.copied - step) // self.every), 0)


@dataclass(frozen=True, slots=True)
class ScheduleProfile:
    """The profile of a schedule: ``F(n) = prod of the decays of the updates after step n``.

    The update at step n weighs ``(1 - decay)`` times the later decays, ``F(n) - F(n-1)``, exactly.
    With ``every = N`` each update stands for the N steps around it, the last for those up to
    ``n + (N-1)/2``. F is interpolated in its logarithm.

    Args:
        schedule: the updates.
        time: of the average, as the trainer counts, above 0.
        label: what it is called: ``diffusers:beta=0.9999``.

    Raises:
        UsageError: the time is not above 0 and finite.
    """

    schedule: Schedule
    time: float
    label: str
    square_integrable: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_end(self.time)

    @property
    def sparse(self) -> Sparse | None:
        """How far apart its updates are; None if every step is one."""
        every, unit = self.schedule.every, self.schedule.unit
        return Sparse(every * unit, self.time) if every > 1 else None

    @property
    def _made(self) -> int:
        return self.schedule.count(self.time)

    @property
    def _copied(self) -> tuple[float, float]:
        """The steps between which the copied weights count; both 0 for the initial ones."""
        step, wide = self.schedule.copy_at(self.time), self.schedule.wide
        half = (self.schedule.every - 1) / 2 if wide or not step else 0.0
        return (max(step - half - 1, 0.0), step + half) if step else (0.0, 0.0)

    @property
    def _begin(self) -> float:
        """The step from which the first update counts."""
        return self.schedule.copied + (self.schedule.every - 1) / 2

    @property
    def end(self) -> float:
        """The time up to which the last update counts."""
        made, every = self._made, self.schedule.every
        last = self._begin + made * every if made else self._copied[1] or (every - 1) / 2
        return last * self.schedule.unit if last else self.time

    @property
    def breaks(self) -> tuple[float, ...]:
        """Where the copied weights count, where decays reach their limits, and the end."""
        limits = [self._begin + k * self.schedule.every for k in self.schedule.rates.kinks]
        inside = {t * self.schedule.unit for t in (*self._copied, self._begin, *limits)}
        return (*sorted(t for t in inside if 0 < t < self.end), self.end)

    @property
    def exponent(self) -> float:
        """Near its end it falls as ``(t/T)^(rate T)`` with the rate of the last update."""
        span = self.end / self.schedule.unit
        if self._made:
            rate = float(self.schedule.rates(np.array([float(self._made)]))[0])
            return rate / self.schedule.every * span
        low, high = self._copied
        return span / (high - low) if high > low else 0.0

    def cdf(self, t: Array) -> Array:
        """F(t), 0 before the first weights that count and 1 from the end on."""
        step = t / self.schedule.unit
        low, high = self._copied
        if high > low:
            return self._kept(step) * np.clip((step - low) / (high - low), 0.0, 1.0)
        return np.where(step < 0, 0.0, self._kept(step))

    def _kept(self, step: Array) -> Array:
        """What the updates after a step have left of the weight before it."""
        at, sums = self._place(step), self.schedule.rates.sums
        whole = np.floor(at)
        into = at - whole
        rate = np.where(into > 0, self.schedule.rates(whole + 1), 0.0)
        result: Array = np.exp(sums(whole) + into * rate - sums(np.array([float(self._made)])))
        return result

    def _place(self, step: Array) -> Array:
        """Updates that count whole up to a step, and the part of the next one that does."""
        place: Array = np.clip((step - self._begin) / self.schedule.every, 0.0, float(self._made))
        return place

    def density(self, t: Array) -> Array:
        """F'(t) on (0, end], 0 elsewhere."""
        step = t / self.schedule.unit
        low, high = self._copied
        kept = self._kept(step)
        updating = (step > self._begin) & (t <= self.end)
        rate = self.schedule.rates(np.maximum(np.ceil(self._place(step)), 1.0))
        slope = np.where(updating, kept * rate / self.schedule.every, 0.0)
        if high > low:
            slope += np.where((step > low) & (step <= high), kept / (high - low), 0.0)
        return slope / self.schedule.unit
