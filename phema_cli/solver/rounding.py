"""Rounding of stored values: how large their errors are, and how two snapshots share them.

A value stored with a unit u in the last place is off by an error of variance u^2/12. Where the
weights hardly moved between two snapshots both are off by the same: if the true values differ by a
normal amount of standard deviation s, the errors correlate with

    rho(s/u) = (6/pi^2) sum_k exp(-2 pi^2 k^2 (s/u)^2) / k^2

so snapshots share their errors by a function of their distance alone, averaged over elements.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from phema_cli.profiles import Array

_TERMS = 20
_POINTS = 400
#: below this s/u the series converges slowly; the one that Poisson summation turns it into ends
#: after three terms, the next being of the order of exp(-1/(2 (s/u)^2)).
_NEAR = 0.1
_SLOPE = 6 * math.sqrt(2 / math.pi)
#: elements that move this much less than the average count as moving that little.
_LEAST_DRIFT = 1e-3
#: bins to an octave of drift over unit.
_BINS = 4


@dataclass(frozen=True, slots=True)
class Rounding:
    """Covariance of rounding errors as a function of the distance of two snapshots.

    Attributes:
        variance: mean square rounding error of a stored value, in squared parameter units.
        log_distance: (p,) ascending natural logarithms of RMS distances; empty where errors of
            different snapshots are independent.
        shared: (p,) covariance of the errors of snapshots that far apart.
    """

    variance: float
    log_distance: Array
    shared: Array

    def covariance(self, square_distance: Array) -> Array:
        """Covariance of the rounding errors of snapshots whose mean square distance is given.

        Args:
            square_distance: mean square distance per parameter, any shape.

        Returns:
            The same shape, float64; ``variance`` at distance 0.
        """
        if not len(self.log_distance):
            return np.where(square_distance > 0, 0.0, self.variance)
        with np.errstate(divide="ignore"):
            at = 0.5 * np.log(square_distance)
        shared: Array = np.interp(at, self.log_distance, self.shared, left=self.variance, right=0.0)
        return shared

    def scaled(self, factor: float) -> Rounding:
        """The rounding of the same values in a type whose units are ``factor`` times as large."""
        log_distance = self.log_distance + math.log(factor)
        return Rounding(self.variance * factor**2, log_distance, self.shared * factor**2)


def independent(variance: float) -> Rounding:
    """Rounding errors that no two snapshots share."""
    return Rounding(variance, np.empty(0), np.empty(0))


def measured(units: Array, drift: Array) -> Rounding:
    """Rounding of elements with the units and relative drifts of a sample.

    Args:
        units: (e,) unit in the last place of each element, 0 where it is stored exactly.
        drift: (e,) RMS movement of each element relative to the average one.
    """
    rounded = units > 0
    if not rounded.any():
        return independent(0.0)
    u, count = units[rounded], len(units)
    pace = np.maximum(drift[rounded], _LEAST_DRIFT) / u
    where = np.round(np.log2(pace) * _BINS).astype(np.int64)
    first = int(where.min())
    bins = np.flatnonzero(np.bincount(where - first))
    power = np.bincount(where - first, u**2 / 12)[bins] / count
    pace = np.exp2((bins + first) / _BINS)
    log_distance = np.linspace(math.log(1e-6 / pace.max()), math.log(1e2 / pace.min()), _POINTS)
    shared = np.array([power @ _correlation(math.exp(d) * pace) for d in log_distance])
    return Rounding(float(power.sum()), log_distance, shared)


def _correlation(ratio: Array) -> Array:
    """``rho(s/u)`` of rounding errors."""
    k = np.arange(1, _TERMS)
    series = np.exp(-2 * (math.pi * k * ratio[:, None]) ** 2) @ (6 / (math.pi * k) ** 2)
    return np.where(ratio > _NEAR, series, 1 - _SLOPE * ratio + 6 * ratio**2)
