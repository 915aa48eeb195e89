"""Rates of averages, minus the logarithm of each update's decay, and their sums.

The sum of the rates of all later updates is what an update has lost of its weight, in logarithm.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from phema_cli.profiles.base import Array

#: updates up to which rates are added one by one: 512 KiB a law.
_EXACT = 1 << 16
#: updates up to which sums are known; beyond, the last rate goes on.
_LAST = 1 << 40
#: of neighbouring points of the sums beyond ``_EXACT``: a cubic between them is exact to 1e-13.
_RATIO = 1.001
_LAWS_KEPT = 32
#: of a logarithm below 0: a decay of 1e-300 stands for none.
_TINY = 1e-300


def inverse(s: Array, inv_gamma: float, power: float) -> Array:
    """The decay ``1 - (1 + s/inv_gamma)^-power``."""
    logarithm = -power * np.log1p(s / inv_gamma)
    # Each form loses what the other one keeps: near a decay of 0, and near 1.
    near = -np.log(-np.expm1(np.minimum(logarithm, -_TINY)))
    return np.where(logarithm > -math.log(2), near, -np.log1p(-np.exp(np.minimum(logarithm, -0.5))))


def ratio(s: Array) -> Array:
    """The decay ``(1 + s)/(10 + s)``."""
    return np.log1p(9 / (1 + s))


def power_function(t: Array, exponent: float) -> Array:
    """The decay ``(1 - 1/t)^exponent``."""
    return -exponent * np.log1p(-1 / t)


def share(t: Array, exponent: float) -> Array:
    """The decay ``exp(-exponent/t)``: a half-life that is a fraction of t."""
    return exponent / t


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
        found = {self._last_above(self.most), self._last_above(self.least)}
        return tuple(self.lag + k for k in sorted(found) if 0 < k < _LAST)

    def _last_above(self, bound: float) -> float:
        """The last update after ``lag`` whose rate falls no lower than ``bound``."""
        low, high = 0.0, float(_LAST)
        while high - low > 1:
            middle = math.floor((low + high) / 2)
            if float(self.unlimited(np.array([middle]))[0]) > bound:
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
    settled = rates._last_above(rates.least)  # noqa: SLF001 - two halves of one thing
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
