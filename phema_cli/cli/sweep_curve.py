"""The curve of a sweep: metric against sigma_rel, drawn in the terminal and as a picture."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from phema_cli.cli import render
from phema_cli.cli.chart import Mark, chart
from phema_cli.profiles import gamma_from_sigma_rel

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from phema_cli.profiles import Array
    from phema_cli.sweep.run import Outcome

_ROWS = 12
#: a flank is shown up to this many times the height of the lower one.
_HIGHEST = 5.0
#: inches.
_HEIGHT = 2.4


@dataclass(frozen=True, slots=True)
class Valley:
    """Where a metric is best, and how it gets worse on both sides.

    Attributes:
        sigma_rel: (n,) ascending, of the evaluations that gave a metric; n is at least 1.
        metric: (n,) what they gave.
        best: index of the best one.
        edge: the worst metric that is shown; infinite shows all. One end of the range may be so
            bad that everything else would look the same beside it.
    """

    sigma_rel: Array
    metric: Array
    best: int
    edge: float

    @property
    def beyond(self) -> NDArray[np.bool_]:
        """(n,) which points are worse than what is shown."""
        worse = self.edge > self.metric[self.best]
        return self.metric > self.edge if worse else self.metric < self.edge

    def shown(self) -> tuple[Array, Array]:
        """sigma_rel and metric of the curve up to its edge; NaN is where it is not shown."""
        x, beyond = np.log(self.sigma_rel), self.beyond
        points = []
        for i, j in pairwise(range(len(x))):
            points.append((x[i], np.nan if beyond[i] else self.metric[i]))
            if beyond[i] != beyond[j]:
                part = (self.edge - self.metric[i]) / (self.metric[j] - self.metric[i])
                points.append((x[i] + part * (x[j] - x[i]), self.edge))
        points.append((x[-1], np.nan if beyond[-1] else self.metric[-1]))
        logs, metric = np.array(points).T
        return np.exp(logs), metric


def valley(outcome: Outcome, *, maximize: bool) -> Valley | None:
    """The curve to draw; None where no power function has a metric."""
    points = [
        (r.sigma_rel, r.metric)
        for r in outcome.records
        if r.sigma_rel is not None and r.metric is not None
    ]
    if not points:
        return None
    sigma_rel, metric = np.array(points, dtype=np.float64).T
    sign = -1.0 if maximize else 1.0
    best = int(np.argmin(sign * metric))
    height = sign * (metric - metric[best])
    shown = max(_HIGHEST * min(height[0], height[-1]), float(np.median(height)))
    cut = 0 < shown < height.max() and 0 < best < len(points) - 1
    return Valley(sigma_rel, metric, best, float(metric[best] + sign * (shown if cut else np.inf)))


def lines(curve: Valley, width: int) -> list[str]:
    """The curve as text, with the best marked."""
    sigma_rel, metric = float(curve.sigma_rel[curve.best]), float(curve.metric[curve.best])
    hidden = int(curve.beyond.sum())
    points = "point is" if hidden == 1 else "points are"
    more = f"; {hidden} further {points} not shown" if hidden else ""
    return chart(
        *curve.shown(),
        Mark(sigma_rel, metric, f"best: {metric:.7g} at sigma_rel {sigma_rel:.4g}{more}"),
        width=width,
        height=_ROWS,
        x_label="sigma_rel",
        y_label="metric",
        unicode=render.supports_unicode(stderr=True),
    )


def draw(curve: Valley | None, path: Path, label: str) -> None:
    """Write the curve as a picture, over an existing one; without points its axes are empty.

    Errors as :func:`phema_cli.cli.pictures.picture`.
    """
    from phema_cli.cli import pictures

    with pictures.picture(path, (pictures.COLUMN, _HEIGHT), overwrite=True) as figure:
        axes = figure.subplots()
        axes.set_ylabel(label)
        if curve is not None:
            _draw_points(axes, curve)
        pictures.sigma_axis(axes)


def _draw_points(axes: Axes, curve: Valley) -> None:
    """All evaluations, the best in another colour, and limits that leave out what is not shown."""
    from phema_cli.cli.pictures import COLOURS

    axes.plot(
        curve.sigma_rel,
        curve.metric,
        "-o",
        color=COLOURS[0],
        markeredgecolor="white",
        markeredgewidth=0.5,
    )
    sigma_rel, metric = curve.sigma_rel[curve.best], curve.metric[curve.best]
    axes.plot(sigma_rel, metric, "o", color=COLOURS[1], markersize=6, zorder=3)
    where = f"sigma_rel {sigma_rel:.3g}, gamma {gamma_from_sigma_rel(sigma_rel):.3g}"
    axes.set_title(f"best: {metric:.4g} at {where}", color=COLOURS[1])
    axes.margins(x=0.04, y=0.08)
    if np.isfinite(curve.edge):
        x, y = curve.shown()
        low, high = x[np.isfinite(y)].min(), x[np.isfinite(y)].max()
        room = 0.04 * (high - low)
        axes.set_xlim(low - room, high + room)
        axes.set_ylim(*sorted((metric + 0.08 * (metric - curve.edge), curve.edge)))
