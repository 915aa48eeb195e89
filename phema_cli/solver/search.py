"""The search for the best length: which to evaluate next, and where the best one is.

A length is any number above 0 that is searched in its logarithm: sigma_rel, the window of an
average, a half-life.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from phema_cli.profiles import Array
from phema_cli.solver.valley import LEAST_POINTS, Valley

#: points of a grid, and further ones that are searched, where nobody says otherwise. With twelve
#: any curve that falls and then rises is found to 5 % over a range of 1 to 14; two more serve
#: optima beyond the grid, and metrics with noise.
GRID_POINTS, FURTHER_POINTS = 6, 8
#: in log scale: no two points lie nearer to each other than 2 %.
_APART = 0.02
#: the same where metrics have noise: what is nearly the same length again tells of it.
_AGAIN = 0.004
#: golden section: the part of an interval at which it is divided.
_GOLDEN = (3 - math.sqrt(5)) / 2
#: a parabola is taken where the intervals beside the best are no more unequal than this,
_UNEQUAL = 3.0
#: where it predicts the next points with at most this error, relative to their height,
_TRUSTED = 0.5
#: and no nearer to the best than this part of the wider interval, so that this one shrinks too.
_STEP = 0.2
#: log scale by which a search leaves the range of its points at a time, at least; and at most
#: where the metric is noisy.
_OUTWARDS, _FURTHEST = 0.55, 0.6
#: of the range of metrics: noise below this is what rounding and the shape of a curve may be.
_SMOOTH = 0.002
#: what is left of the way to a limit is gone in one step where it is at most so many steps.
_LAST_STEP = 1.5
#: places at which a noisy metric's next evaluation may be.
_PLACES = 121
#: part of the range of all other metrics by which one is a spike; noise that is to be told from a
#: valley does not reach it.
_SPIKE = 0.6
#: standard errors up to which a metric is as good as the best.
_ERRORS = 2.0

#: where the best point stands among those that gave a metric: between others, at an end of the
#: range, among equals only, or alone.
Position = Literal["inside", "lowest", "highest", "flat", "alone"]
#: logarithm of a length, metric, number of evaluations, index of the point.
_Row = tuple[float, float, int, int]


@dataclass(frozen=True, slots=True)
class Point:
    """An evaluation, or several of the same length.

    Attributes:
        scale: the length, above 0.
        metric: what it gave, finite, the mean of several; None where it failed.
        count: of how many evaluations the metric is the mean.
        variance: of these, as they differ from their mean; None where there is but one.
    """

    scale: float
    metric: float | None
    count: int = 1
    variance: float | None = None


@dataclass(frozen=True, slots=True)
class Limits:
    """Between which lengths a search stays.

    Attributes:
        low: the shortest.
        high: the longest.
        whole: whether lengths are whole numbers.
    """

    low: float
    high: float
    whole: bool = False

    def nearest(self, u: float) -> float:
        """The length of a logarithm, in four digits or whole, within the limits."""
        scale = math.exp(u)
        scale = float(round(scale)) if self.whole else float(f"{scale:.4g}")
        return min(max(scale, self.low), self.high)


@dataclass(frozen=True, slots=True)
class Optimum:
    """The best length, as far as it is known.

    Attributes:
        scale: the length.
        metric: the metric there.
        fitted: whether a curve through all points says so, as evaluations differ by noise; else
            it is the best evaluation.
        noise: standard deviation of an evaluation; None where nothing shows that there is any.
        best: index of the point to take: the lowest of the curve where that is fitted.
        as_good: for each point, whether its metric can't be told from that of ``best``.
        heights: of the points that did not fail, the metric, or the curve's height there.
        position: where the best stands on the curve.
    """

    scale: float
    metric: float
    fitted: bool
    noise: float | None
    best: int
    as_good: tuple[bool, ...]
    heights: tuple[float, ...]
    position: Position


@dataclass(frozen=True, slots=True)
class _Curve:
    """Points that did not fail, ascending, without spikes; metrics are to be minimised.

    Attributes:
        u: (n,) logarithms of the lengths.
        y: (n,) metrics over ``unit``.
        counts: (n,) evaluations of each.
        known: variance of an evaluation over ``unit**2``, and degrees of freedom; None without
            repetitions.
        unit: what y is to be multiplied with, negative where the highest metric is the best.
        order: (n,) which of the points given each is.
    """

    u: Array
    y: Array
    counts: Array
    known: tuple[float, int] | None
    unit: float
    order: tuple[int, ...]

    @property
    def has_shape(self) -> bool:
        """Whether there are enough points apart from each other for a smooth curve."""
        return len(np.unique(np.round(self.u / _APART))) >= LEAST_POINTS

    @property
    def is_noisy(self) -> bool:
        """Whether points differ by noise: repetitions do, or metrics don't fall and then rise."""
        if not self.has_shape:
            return False
        if self.known is not None and self.known[0] > 0:
            return True
        best, steps = int(np.argmin(self.y)), np.diff(self.y)
        return bool((steps[:best] > 0).any() or (steps[best:] < 0).any())

    def valley(self) -> Valley:
        """The smooth curve through them."""
        return Valley(self.u, self.y, self.counts, self.known)


def next_scales(
    points: Sequence[Point], limits: Limits, *, left: int, count: int = 1, maximize: bool = False
) -> list[float]:
    """The lengths that tell most about where the best one is, for evaluations at the same time.

    Args:
        points: what is known.
        limits: which lengths there are.
        left: how many evaluations there may still be.
        count: how many are asked for.
        maximize: whether the highest metric is the best, instead of the lowest.

    Returns:
        Fewer than ``count`` where nothing is to be gained.
    """
    known, chosen = list(points), []
    for i in range(min(count, left)):
        curve = _curve(known, maximize=maximize)
        scale = _next(known, curve, limits, last=left - i == 1)
        if scale is None:
            break
        chosen.append(scale)
        expected = None
        if curve.is_noisy:
            # A metric that may be stored, however far the curve goes beyond those known.
            mean = float(np.clip(curve.valley().mean(np.log([scale]))[0], -1.0, 1.0))
            expected = mean * curve.unit
        known.append(Point(scale, expected))
    return chosen


def _next(points: Sequence[Point], curve: _Curve, limits: Limits, *, last: bool) -> float | None:
    """The next length; None where nothing is to be gained.

    Metrics that fall and then rise are searched by brackets, others through a smooth curve. It is
    a function of the points alone, not of their order. Failed points count for nothing but are
    kept away from.
    """
    if _position(curve.y) in {"flat", "alone"}:
        return None
    noisy = curve.is_noisy
    candidates = [] if noisy else _bracketing(curve, limits)
    if not candidates and curve.has_shape:
        valley = curve.valley()
        if noisy or valley.noise > _SMOOTH * float(np.ptp(curve.y)):
            # Where brackets are done, what is left tells noise from a narrow valley.
            candidates = _informative(curve, valley, limits, last=last and noisy)
    evaluated = np.log([p.scale for p in points])
    # Nearly the same length again says little, but where metrics have noise.
    apart = _AGAIN if noisy else _APART
    for u in candidates:
        scale = limits.nearest(u)
        if float(np.abs(evaluated - math.log(scale)).min()) >= apart:
            return scale
    return None


def _bracketing(curve: _Curve, limits: Limits) -> list[float]:
    """What to try by brackets, the best first.

    The best point so far and its neighbours bracket the optimum of a curve that falls and then
    rises. The next point is the vertex of the parabola through the three in log scale, where the
    points beyond agree with it, and else divides the wider interval by the golden section (Brent,
    Algorithms for Minimization without Derivatives, 1973, chapter 5). Where the best is at an end
    of them, the next one is beyond that end, unless a limit is near.
    """
    x, y = curve.u, curve.y
    best = int(np.argmin(y))
    left = float(x[best] - x[best - 1]) if best > 0 else 0.0
    right = float(x[best + 1] - x[best]) if best + 1 < len(x) else 0.0
    for beside, limit in ((left, limits.low), (right, limits.high)):
        room = math.log(limit) - x[best]
        if beside == 0 and abs(room) > 2 * _APART:
            step = max(_OUTWARDS, left + right)
            # A second worker goes two steps, a third one to the other side.
            outwards = [
                room
                if abs(room) < (count - 1 + _LAST_STEP) * step
                else math.copysign(count * step, room)
                for count in (1, 2)
            ]
            return [float(x[best]) + c for c in (*outwards, _GOLDEN * (right - left))]
    if max(left, right) <= 2 * _APART:
        return []
    wider, other = (right, -left) if right > left else (-left, right)
    candidates = [_GOLDEN * wider, wider / 2, _GOLDEN * other, other / 2]
    vertex = _vertex(x - x[best], y - y[best], best)
    if vertex is not None:
        least = _STEP * abs(wider)
        candidates.insert(0, math.copysign(least, wider) if abs(vertex) < least else vertex)
    return [float(x[best]) + c for c in candidates]


def _informative(curve: _Curve, valley: Valley, limits: Limits, *, last: bool) -> list[float]:
    """What to try where metrics have noise, the best first.

    That is where an evaluation tells most of the slope at the lowest point of the curve. The last
    one is at that point itself: it is what the search recommends.
    """
    low = max(math.log(limits.low), float(curve.u[0]) - _FURTHEST)
    high = min(math.log(limits.high), float(curve.u[-1]) + _FURTHEST)
    low, high = min(low, float(curve.u[0])), max(high, float(curve.u[-1]))
    lowest = valley.lowest(low, high)
    if last or not curve.u[0] - _APART < lowest < curve.u[-1] + _APART:
        return [lowest]
    places = np.linspace(low, high, _PLACES)
    order = np.argsort(-valley.gain(places, lowest), kind="stable")
    return [float(places[i]) for i in order]


def optimum(points: Sequence[Point], *, maximize: bool = False) -> Optimum | None:
    """Where the best length is; None where no point has a metric."""
    curve = _curve(points, maximize=maximize)
    if not len(curve.u):
        return None
    shown = {i: p.metric for i, p in enumerate(points) if p.metric is not None}
    valley = curve.valley() if curve.is_noisy else None
    heights = curve.y if valley is None else valley.mean(curve.u)
    at = int(np.argmin(heights))
    errors = 0.0 if valley is None else valley.spread(curve.u, float(curve.u[at]))
    good = {curve.order[i] for i in np.flatnonzero(heights - heights[at] <= _ERRORS * errors)}
    best = curve.order[at]
    scale, metric = points[best].scale, shown[best]
    noise: float | None = None
    if valley is not None:
        lowest = valley.lowest(float(curve.u[0]), float(curve.u[-1]))
        scale, metric = math.exp(lowest), float(valley.mean(np.array([lowest]))[0]) * curve.unit
        noise = valley.noise * abs(curve.unit)
        shown |= dict(zip(curve.order, (heights * curve.unit).tolist(), strict=True))
    return Optimum(
        scale=scale,
        metric=metric,
        fitted=valley is not None,
        noise=noise,
        best=best,
        as_good=tuple(i in good for i in range(len(points))),
        heights=tuple(shown.values()),
        position=_position(heights),
    )


def smooth(
    points: Sequence[Point], scales: Sequence[float], *, maximize: bool = False
) -> Array | None:
    """The curve through points with noise, at lengths; None where nothing shows any noise."""
    curve = _curve(points, maximize=maximize)
    if not curve.is_noisy:
        return None
    return curve.valley().mean(np.log(scales)) * curve.unit


def spread_out(lowest: float, highest: float, *, whole: bool = False) -> tuple[float, ...]:
    """A grid of lengths over a range, even in its logarithm; in three digits but for its ends."""
    grid = [float(f"{s:.3g}") for s in np.geomspace(lowest, highest, GRID_POINTS)]
    grid = [float(round(s)) for s in grid] if whole else grid
    return tuple(dict.fromkeys(min(max(s, lowest), highest) for s in grid))


def _curve(points: Sequence[Point], *, maximize: bool) -> _Curve:
    """What is to be minimised over log scale, of the points that did not fail."""
    sign = -1.0 if maximize else 1.0
    # So that differences and products of the largest metrics are finite.
    unit = max((abs(p.metric) for p in points if p.metric is not None), default=0.0) or 1.0
    rows = sorted(
        (math.log(p.scale), sign * (p.metric / unit), p.count, i)
        for i, p in enumerate(points)
        if p.metric is not None
    )
    u, y, counts, order = np.array(_without_spikes(rows), dtype=np.float64).reshape(-1, 4).T
    freedom, squares = 0, 0.0
    for p in points:
        if p.metric is not None and p.variance is not None and p.count > 1:
            freedom += p.count - 1
            squares += (p.count - 1) * (p.variance / unit / unit)
    known = (squares / freedom, freedom) if freedom else None
    return _Curve(u, y, counts, known, sign * unit, tuple(int(i) for i in order))


def _without_spikes(rows: list[_Row]) -> list[_Row]:
    """The rows, ascending, without metrics that are far worse than both of their neighbours.

    An evaluation that went wrong would bend a curve through all of them.
    """
    kept = list(rows)
    while len(kept) > LEAST_POINTS:
        y = np.array([row[1] for row in kept])
        above = y[1:-1] - np.maximum(y[:-2], y[2:])
        worst = int(np.argmax(above)) + 1
        if not above[worst - 1] > _SPIKE * float(np.ptp(np.delete(y, worst))):
            break
        del kept[worst]
    return kept


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
