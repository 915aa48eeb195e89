"""Movement: how the weights moved during training and how they were rounded, as the solver sees it.

docs/maths.md, "What the snapshots say of the run". The weights are taken as a random walk of
intensity q(t), the drift: mean square movement per step and parameter. Real weights differ from it
between two snapshots, where they glide (an optimizer with little noise) or jitter about (one with
much). Two numbers say so: the *roughness* f scales what happens inside of a cell against what the
drift says of its ends, and the *jitter* adds white noise, of the power that movement of that many
steps would have.

A system is one of n sources and k targets.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Self

import numpy as np
from numpy.typing import NDArray

from phema_cli.profiles import Array
from phema_cli.solver.system import Parts, System, split

#: without a look at the data: movement of the weights per unit of log time over their RMS value
#: (the ratio at which the worst of ten training runs lost least), and white noise, as a fraction of
#: the movement per unit of log time.
MOVEMENT_RATIO = 0.3
_WHITE = 1e-3
#: an early time, as a fraction of the first snapshot's, before which the drift is constant.
EARLY = 1 / 8
#: terms of the series of rho, and points of a table of covariances.
_TERMS, _POINTS = 20, 400
#: below this s/u the series converges slowly; the one that Poisson summation turns it into ends
#: after three terms, the next being of the order of exp(-1/(2 (s/u)^2)).
_NEAR = 0.1
_SLOPE = 6 * math.sqrt(2 / math.pi)
#: elements that move this much less than the average count as moving that little.
_LEAST_PACE = 1e-3
#: bins to an octave of pace over unit.
_BINS = 4


@dataclass(frozen=True, slots=True)
class Rounding:
    """N: the covariance of rounding errors as a function of the distance of two snapshots.

    A value stored with a unit u in the last place is off by an error of variance u^2/12. Where the
    weights hardly moved between two snapshots both are off by the same: if the true values differ
    by a normal amount of standard deviation s, the errors correlate with

        rho(s/u) = (6/pi^2) sum_k exp(-2 pi^2 k^2 (s/u)^2) / k^2

    so snapshots share their errors by a function of their distance alone, averaged over elements.

    Attributes:
        variance: mean square rounding error of a stored value, in squared parameter units.
        log_distance: (p,) ascending natural logarithms of RMS distances; empty where errors of
            different snapshots are independent.
        shared: (p,) covariance of the errors of snapshots that far apart.
    """

    variance: float
    log_distance: Array
    shared: Array

    @classmethod
    def independent(cls, variance: float) -> Self:
        """Rounding errors that no two snapshots share."""
        return cls(variance, np.empty(0), np.empty(0))

    @classmethod
    def of_elements(cls, units: Array, paces: Array) -> Self:
        """Rounding of elements with the units and relative movements of a sample.

        Args:
            units: (e,) unit in the last place of each element, 0 where it is stored exactly.
            paces: (e,) RMS movement of each element relative to the average one.
        """
        rounded = units > 0
        if not rounded.any():
            return cls.independent(0.0)
        u, count = units[rounded], len(units)
        pace = np.maximum(paces[rounded], _LEAST_PACE) / u
        where = np.round(np.log2(pace) * _BINS).astype(np.int64)
        first = int(where.min())
        bins = np.flatnonzero(np.bincount(where - first))
        power = np.bincount(where - first, u**2 / 12)[bins] / count
        pace = np.exp2((bins + first) / _BINS)
        log_distance = np.linspace(math.log(1e-6 / pace.max()), math.log(1e2 / pace.min()), _POINTS)
        shared = np.array([power @ _correlation(math.exp(d) * pace) for d in log_distance])
        return cls(float(power.sum()), log_distance, shared)

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


def _correlation(ratio: Array) -> Array:
    """``rho(s/u)`` of the rounding errors of two snapshots."""
    k = np.arange(1, _TERMS)
    series = np.exp(-2 * (math.pi * k * ratio[:, None]) ** 2) @ (6 / (math.pi * k) ** 2)
    return np.where(ratio > _NEAR, series, 1 - _SLOPE * ratio + 6 * ratio**2)


@dataclass(frozen=True, slots=True)
class Movement:
    """How weights moved and were rounded.

    Attributes:
        times: (m,) ascending, in steps.
        drift: (m,) q at ``times``, squared parameter units per step; its logarithm is linear in the
            logarithm of time between them and constant outside.
        blocks: (b,) ascending, the last step of each block of snapshots; the last one has no end.
        roughness: (b,) f of each block, no unit.
        jitter: (b,) in steps.
        rounding: of stored values.
        mean_square: of the weights, in squared parameter units.
        measured: whether data was looked at: without, the parameter unit is the movement per unit
            of log time.
        errors: (n,) mean square error of each source that it shares with no other; None without
            any.
    """

    times: Array
    drift: Array
    blocks: Array
    roughness: Array
    jitter: Array
    rounding: Rounding
    mean_square: float
    measured: bool
    errors: Array | None = None

    def __repr__(self) -> str:
        """``<Movement measured at 20 times>``, or assumed."""
        how = "measured" if self.measured else "assumed"
        return f"<Movement {how} at {len(self.times)} times>"

    def of(self, rows: NDArray[np.intp]) -> Movement:
        """The movement as some of the sources show it."""
        return self if self.errors is None else replace(self, errors=self.errors[rows])

    def problem(self, system: System) -> tuple[Array, Array, Array, Array]:
        """The least-squares problem ``J(x) = |b - A x|^2 + x' N x + rest`` of these sources.

        Returns:
            A (r, n), b (r, k), N (n, n), and rest (k,), what no weights can change.
        """
        parts = self.split(system)
        a, b, rest = self.rows(system, parts)
        return a, b, self.noise(parts, len(system.source_ends)), rest

    def split(self, system: System) -> Parts:
        """The system split by :meth:`intensity`; roughness and jitter don't count."""
        return split(system, self.intensity(system, system.times))

    def intensity(self, system: System, times: Array) -> Array:
        """Q at some times of a system, per unit of its time; the shape of ``times``."""
        at = np.log(times * system.unit)
        log_q: Array = np.interp(at, np.log(self.times), np.log(self.drift))
        return np.exp(log_q) * system.unit

    def noise(self, parts: Parts, sources: int) -> Array:
        """N (n, n): the covariance of the rounding errors of the n sources."""
        rows = np.vstack([parts.steps, parts.inside])[:, :sources]
        gram = rows.T @ rows
        square = np.diag(gram)
        distance = np.maximum(square[:, None] + square - 2 * gram, 0.0)
        np.fill_diagonal(distance, 0.0)
        covariance = self.rounding.covariance(distance)
        if self.errors is None:
            return covariance
        return covariance + np.diag(self.errors)

    def rows(self, system: System, parts: Parts) -> tuple[Array, Array, Array]:
        """Rows whose squared differences are the movement's part of J, with roughness and jitter.

        Args:
            system: what is split.
            parts: the system split with this movement's :meth:`intensity`.

        Returns:
            (r, n) of the sources, (r, k) of the targets, and (k,) the part of the targets' squares
            that is in no row: it adds to J whatever the weights.
        """
        n = len(system.source_ends)
        block = np.searchsorted(self.blocks[:-1] / system.unit * (1 + 1e-12), system.ends)
        roughness, jitter = self.roughness[block], self.jitter[block] / system.unit
        if self.measured and len(system.ends) > 1:
            # The beginning of training is unlike the rest: of the time before the first snapshots
            # only the drift is known.
            roughness[0], jitter[0] = 1.0, 0.0
        inside = roughness[parts.cells][:, None] * parts.inside
        white = jitter[parts.cells][:, None] * parts.white
        # A single point has the white noise of its cell; points of one time have the same.
        all_ends = np.concatenate([system.source_ends, system.target_ends])
        times, row = np.unique(all_ends[system.points], return_inverse=True)
        cell = np.minimum(np.searchsorted(system.ends, times), len(system.ends) - 1)
        gaps = np.diff(system.ends, prepend=0.0)
        noise = np.sqrt(self.intensity(system, times) / gaps[cell]) * jitter[cell]
        points = np.zeros((len(times), len(all_ends)))
        points[row, np.flatnonzero(system.points)] = noise[row]
        rows = np.vstack([parts.steps, inside, white, points])
        rest: Array = roughness**2 @ parts.inside_rest + jitter**2 @ parts.white_rest
        return rows[:, :n], rows[:, n:], rest + roughness**2 @ parts.between_updates(system)


def nominal(system: System, storage_noise: float) -> Movement:
    """Movement without a look at the data: a random walk in log time, q(t) = 1/t.

    Rounding errors are independent, of a fixed size relative to the movement, and there is a little
    white noise.

    Args:
        system: what gives the times.
        storage_noise: RMS rounding error of a stored value relative to its size.
    """
    ends = system.ends * system.unit
    times = np.array([EARLY * ends[0], system.unit])
    white = _WHITE if not system.points[: len(system.source_ends)].any() else 0.0
    return Movement(
        times=times,
        drift=1 / times,
        blocks=ends,
        roughness=np.ones(len(ends)),
        jitter=np.sqrt(white * system.unit * ends),
        rounding=Rounding.independent((storage_noise / MOVEMENT_RATIO) ** 2),
        mean_square=MOVEMENT_RATIO**-2,
        measured=False,
    )
