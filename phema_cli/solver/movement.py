"""Movement: how the weights moved during training and how they were rounded, as the solver sees it.

The weights are taken as a Brownian motion of intensity q(t), the drift: mean square movement per
step and parameter. Real weights differ from it within the time between two snapshots, where they
glide (an optimizer with little noise) or jitter about (one with much), and two numbers say so: the
*roughness* f scales what happens inside of a cell against what the drift says of its ends, and the
*jitter* adds white noise, of the power that movement of that many steps would have.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from phema_cli.profiles import Array
from phema_cli.solver.rounding import Rounding, independent
from phema_cli.solver.system import Parts, System

#: without a look at the data: movement of the weights per unit of log time over their RMS value
#: (the ratio at which the worst of ten training runs lost least), and white noise, as a fraction of
#: the movement per unit of log time.
MOVEMENT_RATIO = 0.3
_WHITE = 1e-3
#: an early time, as a fraction of the first snapshot's, before which the drift is constant.
EARLY = 1 / 8


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
    """

    times: Array
    drift: Array
    blocks: Array
    roughness: Array
    jitter: Array
    rounding: Rounding
    mean_square: float
    measured: bool

    def intensity(self, system: System) -> Array:
        """(rows,) q at the system's nodes, per unit of its time."""
        at = np.log(system.times * system.unit)
        log_q: Array = np.interp(at, np.log(self.times), np.log(self.drift))
        return np.exp(log_q) * system.unit

    def noise(self, parts: Parts, sources: int) -> Array:
        """(n, n) covariance of the rounding errors of the n sources."""
        rows = np.vstack([parts.steps, parts.inside])[:, :sources]
        gram = rows.T @ rows
        square = np.diag(gram)
        distance = np.maximum(square[:, None] + square - 2 * gram, 0.0)
        np.fill_diagonal(distance, 0.0)
        return self.rounding.covariance(distance)

    def rows(self, system: System, parts: Parts) -> tuple[Array, Array, Array]:
        """Rows whose squared differences are the movement's part of J.

        Args:
            system: n sources and k targets.
            parts: the system split with this movement's :meth:`intensity`.

        Returns:
            (r, n) of the sources, (r, k) of the targets, and (k,) the part of the targets' squares
            that is in no row: it adds to J whatever the weights.
        """
        n = len(system.source_ends)
        block = np.searchsorted(self.blocks[:-1] / system.unit * (1 + 1e-12), system.ends)
        roughness, jitter = self.roughness[block], self.jitter[block] / system.unit
        if self.measured and len(system.ends) > 1:
            # Training begins unlike it goes on: of the time before the first snapshots nothing is
            # known but the drift.
            roughness[0], jitter[0] = 1.0, 0.0
        inside = roughness[parts.cells][:, None] * parts.inside
        white = jitter[parts.cells][:, None] * parts.white
        rows = np.vstack([parts.steps, inside, white, self._points(system, jitter)])
        rest: Array = roughness**2 @ parts.inside_rest + jitter**2 @ parts.white_rest
        return rows[:, :n], rows[:, n:], rest

    def _points(self, system: System, jitter: Array) -> Array:
        """White noise of single points, that of their cell; alike for points of one time."""
        all_ends = np.concatenate([system.source_ends, system.target_ends])
        times, row = np.unique(all_ends[system.points], return_inverse=True)
        cell = np.searchsorted(system.ends, times)
        at = np.log(times * system.unit)
        q = np.exp(np.interp(at, np.log(self.times), np.log(self.drift))) * system.unit
        rows = np.zeros((len(times), len(all_ends)))
        rows[row, np.flatnonzero(system.points)] = (np.sqrt(q / system.gaps[cell]) * jitter[cell])[
            row
        ]
        return rows


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
        rounding=independent((storage_noise / MOVEMENT_RATIO) ** 2),
        mean_square=MOVEMENT_RATIO**-2,
        measured=False,
    )
