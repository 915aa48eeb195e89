"""The curve of a sweep: what its drawings of metric against length show."""

from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from phema_cli.cli import reachable
from phema_cli.cli.sweep_words import metric_name
from phema_cli.profiles import Array
from phema_cli.solver.search import smooth
from phema_cli.sweep.families import Family
from phema_cli.sweep.outcome import Outcome
from phema_cli.sweep.request import SweepRequest
from phema_cli.sweep.results import Record

#: metrics are shown up to this many times the height of the lower flank, and of half of the points.
_HIGHEST, _MIDDLE = 2.5, 3.0
#: part of the range of metrics within which levels share a name.
_NEAR = 0.06
#: part of the axis that the name of a level takes, and the shortest axis in log scale.
_BESIDE, _LEAST = 0.22, 1e-9
#: places of a fitted curve.
_PLACES = 200


class Level(NamedTuple):
    """A height to compare with, its name, and where that is: ``left``, ``center`` or ``right``."""

    name: str
    y: float
    side: str


@dataclass(frozen=True, slots=True)
class View:
    """Where a metric is best, and how it gets worse on both sides.

    Attributes:
        family: what the horizontal axis counts.
        name: what the metric is called.
        records: (n,) evaluations that gave a metric, by their length; n is at least 1.
        scale: (n,) their lengths.
        metric: (n,) what they gave.
        error: (n,) standard errors of these; NaN where nothing says one.
        best: index of the best one.
        as_good: (n,) which are as good as that.
        fitted: lengths and metrics of the curve through points with noise; None without noise.
        levels: metrics of what has no place on the axis, by name: the baselines that are shown.
        edge: the worst metric that is shown; infinite shows all. One end of the range, or one
            evaluation, may be so bad that everything else would look the same beside it.
    """

    family: Family
    name: str
    records: tuple[Record, ...]
    scale: Array
    metric: Array
    error: Array
    best: int
    as_good: NDArray[np.bool_]
    fitted: tuple[Array, Array] | None
    levels: tuple[tuple[str, float], ...]
    edge: float

    @property
    def beyond(self) -> NDArray[np.bool_]:
        """(n,) which points are worse than what is shown."""
        return self._is_beyond(self.metric)

    @property
    def is_open_above(self) -> bool:
        """Whether metrics that are not shown lie above the drawing, not below."""
        return bool(self.edge > self.metric[self.best])

    @property
    def heights(self) -> Array:
        """What a vertical axis has to hold: the metrics with their errors, and the levels."""
        shown, errors = self.metric[~self.beyond], np.nan_to_num(self.error[~self.beyond])
        levels = np.array([level for _, level in self.levels])
        return np.concatenate([shown - errors, shown + errors, levels])

    def _is_beyond(self, metric: Array) -> NDArray[np.bool_]:
        return metric > self.edge if self.is_open_above else metric < self.edge

    def line(self) -> tuple[Array, Array]:
        """Lengths and metrics of the curve up to its edge; NaN is where it is not shown."""
        scale, metric = (self.scale, self.metric) if self.fitted is None else self.fitted
        x, beyond = np.log(scale), self._is_beyond(metric)
        points = []
        for i, j in pairwise(range(len(x))):
            points.append((x[i], np.nan if beyond[i] else metric[i]))
            if beyond[i] != beyond[j]:
                part = (self.edge - metric[i]) / (metric[j] - metric[i])
                points.append((x[i] + part * (x[j] - x[i]), self.edge))
        points.append((x[-1], np.nan if beyond[-1] else metric[-1]))
        logs, heights = np.array(points).T
        return np.exp(logs), heights

    def bands(self) -> list[tuple[float, float, str]]:
        """The ranges of one verdict, from the first length to the last."""
        bands = reachable.bands(np.log(self.scale).tolist(), (r.verdict for r in self.records))
        return [(float(np.exp(low)), float(np.exp(high)), verdict) for low, high, verdict in bands]

    def named_levels(self) -> list[Level]:
        """The levels, named on the side where nothing is in the way; close ones share a name."""
        found: list[Level] = []
        heights = np.append(self.metric[~self.beyond], [level for _, level in self.levels])
        near = _NEAR * float(np.ptp(heights))
        for name, level in sorted(self.levels, key=lambda one: one[1]):
            is_near = found and level - found[-1].y < near
            joined = f"{found.pop().name}, {name}" if is_near else name
            found.append(Level(joined, level, self._free_side(level)))
        return found

    def _free_side(self, level: float) -> str:
        """The side, or the centre, in which the curve and its points are furthest from a level."""
        x, y = self.line()
        scale, metric = np.append(x, self.scale), np.append(y, self.metric)
        distance = np.where(np.isfinite(metric), np.abs(metric - level), np.inf)
        part = np.log(scale / self.scale[0])
        part = part / max(float(np.log(self.scale[-1] / self.scale[0])), _LEAST)
        places = {
            "right": part > 1 - _BESIDE,
            "left": part < _BESIDE,
            "center": np.abs(part - 0.5) < _BESIDE / 2,
        }
        return max(places, key=lambda side: float(distance[places[side]].min(initial=np.inf)))

    def said(self, i: int) -> str:
        """A length in a sentence."""
        return self.family.said(float(self.scale[i]))


def view(outcome: Outcome, asked: SweepRequest) -> View | None:
    """What to draw; None where no length has a metric."""
    curve = outcome.curve
    if curve is None or curve.optimum is None or curve.best is None:
        return None
    kept = [i for i, r in enumerate(curve.records) if r.metric is not None]
    records = tuple(curve.records[i] for i in kept)
    scale = np.array(curve.scales)[kept]
    metric = np.array([r.metric for r in records], dtype=np.float64)
    best = next(i for i, r in enumerate(records) if r is curve.best)
    sign = -1.0 if asked.maximize else 1.0
    edge = _edge(metric, best, sign)
    places = np.geomspace(scale[0], scale[-1], _PLACES)
    heights = smooth(curve.points, places.tolist(), maximize=asked.maximize)
    on_axis = {r.target for r in curve.records}
    levels = [
        (r.profile if r.baseline != "last weights" else "last weights", r.metric)
        for r in outcome.records
        if r.metric is not None and r.baseline is not None and r.target not in on_axis
    ]
    return View(
        curve.family,
        metric_name(asked),
        records,
        scale,
        metric,
        np.array([np.nan if r.error is None else r.error for r in records]),
        best,
        np.array([r.target in outcome.as_good for r in records]),
        None if heights is None else (places, heights),
        tuple((name, level) for name, level in levels if sign * level <= sign * edge),
        edge,
    )


def _edge(metric: Array, best: int, sign: float) -> float:
    """The worst metric to show."""
    height = sign * (metric - metric[best])
    flank = min(height[0], height[-1]) if 0 < best < len(metric) - 1 else 0.0
    worse = height[height > 0]
    middle = float(np.median(worse)) if len(worse) else 0.0
    shown = max(_HIGHEST * float(flank), _MIDDLE * middle)
    cut = 0 < shown < height.max()
    return float(metric[best] + sign * (shown if cut else np.inf))
