"""The search for the best sigma_rel: which to evaluate next, and where the best point stands."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from phema_cli.profiles import Array

#: points of a grid, and further ones around its best, where nobody says otherwise: with these any
#: curve that falls and then rises is found to 5 % of sigma_rel over a range of 1 to 14.
GRID_POINTS, FURTHER_POINTS = 6, 6
#: in log sigma_rel: no two points lie nearer to each other than 2 %.
_APART = 0.02
#: golden section: the part of an interval at which it is divided.
_GOLDEN = (3 - math.sqrt(5)) / 2
#: a parabola is taken where the intervals beside the best are no more unequal than this,
_UNEQUAL = 3.0
#: where it predicts the next points with at most this error, relative to their height,
_TRUSTED = 0.5
#: and no nearer to the best than this part of the wider interval, so that this one shrinks too.
_STEP = 0.2

#: where the best point stands among those that gave a metric: between others, at an end of the
#: range, among equals only, or alone.
Position = Literal["inside", "lowest", "highest", "flat", "alone"]


@dataclass(frozen=True, slots=True)
class Point:
    """An evaluation.

    Attributes:
        sigma_rel: relative standard deviation of the profile (no unit).
        metric: what it gave, finite; None where it failed.
    """

    sigma_rel: float
    metric: float | None


def next_sigma_rel(points: Sequence[Point], *, maximize: bool = False) -> float | None:
    """The sigma_rel that tells most about where the best one is.

    The best point so far and its neighbours bracket the optimum of a curve that falls and then
    rises. The next point is the vertex of the parabola through the three in log sigma_rel, where
    the points beyond agree with it, and else divides the wider interval by the golden section
    (Brent, Algorithms for Minimization without Derivatives, 1973, chapter 5). It is a function of
    the points alone, not of their order. Failed points count for nothing but are kept away from.

    Args:
        points: at least none; the range they span is not left.
        maximize: whether the highest metric is the best, instead of the lowest.

    Returns:
        It in four digits; None where nothing is to be gained: fewer than two metrics, all of them
        equal, or the neighbours of the best within 4 % of it.
    """
    x, y = _curve(points, maximize=maximize)
    if _position(y) in {"flat", "alone"}:
        return None
    best = int(np.argmin(y))
    left = float(x[best] - x[best - 1]) if best > 0 else 0.0
    right = float(x[best + 1] - x[best]) if best + 1 < len(x) else 0.0
    if max(left, right) <= 2 * _APART:
        return None
    wider, other = (right, -left) if right > left else (-left, right)
    candidates = [_GOLDEN * wider, wider / 2, _GOLDEN * other, other / 2]
    vertex = _vertex(x - x[best], y - y[best], best)
    if vertex is not None:
        least = _STEP * abs(wider)
        candidates.insert(0, math.copysign(least, wider) if abs(vertex) < least else vertex)
    evaluated = np.log([p.sigma_rel for p in points]) - x[best]
    free = (c for c in candidates if float(np.abs(evaluated - c).min()) >= _APART)
    chosen = next(free, None)
    return None if chosen is None else float(f"{math.exp(float(x[best]) + chosen):.4g}")


def position(points: Sequence[Point], *, maximize: bool = False) -> Position:
    """Where the best of the points stands; ``alone`` also where there is no point."""
    return _position(_curve(points, maximize=maximize)[1])


def spread_out(lowest: float, highest: float) -> tuple[float, ...]:
    """A grid of sigma_rel over a range, even in its logarithm; in three digits but for its ends."""
    grid = [float(f"{s:.3g}") for s in np.geomspace(lowest, highest, GRID_POINTS)]
    return tuple(dict.fromkeys(min(max(s, lowest), highest) for s in grid))


def _curve(points: Sequence[Point], *, maximize: bool) -> tuple[Array, Array]:
    """What is to be minimised over log sigma_rel, ascending, of the points that did not fail."""
    sign = -1.0 if maximize else 1.0
    pairs = sorted((math.log(p.sigma_rel), sign * p.metric) for p in points if p.metric is not None)
    table = np.array(pairs, dtype=np.float64).reshape(-1, 2)
    # So that differences and products of the largest metrics are finite.
    scale = float(np.abs(table[:, 1]).max(initial=0.0))
    return table[:, 0], table[:, 1] / scale if scale > 0 else table[:, 1]


def _position(y: Array) -> Position:
    """Where the least of the values stands; of several, the first."""
    if len(y) < 2:  # noqa: PLR2004 - one point has no neighbours
        return "alone"
    best = int(np.argmin(y))
    if y[best] == y.max():
        return "flat"
    if best == 0:
        return "lowest"
    return "highest" if best == len(y) - 1 else "inside"


def _vertex(x: Array, y: Array, best: int) -> float | None:
    """Vertex of the parabola through a point at the origin, the lowest, and its neighbours.

    ``y = s x + q x^2``, from the slopes ``-l q + s`` and ``r q + s`` of the chords to both sides.

    Args:
        x: (n,) ascending, 0 at ``best``.
        y: (n,) at least 0, 0 at ``best``.
        best: index of the origin.

    Returns:
        None where there is no parabola, or it is not to be trusted.
    """
    if not 0 < best < len(x) - 1:
        return None
    left, right = -x[best - 1], x[best + 1]
    if max(left, right) > _UNEQUAL * min(left, right):
        return None
    down, up = -y[best - 1] / left, y[best + 1] / right
    q = (up - down) / (left + right)
    s = up - q * right
    beyond = [j for j in (best - 2, best + 2) if 0 <= j < len(x)]
    error = [abs(s * x[j] + q * x[j] ** 2 - y[j]) for j in beyond]
    if not (q > 0 and beyond) or any(
        e > _TRUSTED * y[j] for e, j in zip(error, beyond, strict=True)
    ):
        return None
    return float(-s / (2 * q))
