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

if TYPE_CHECKING:
    from phema_cli.profiles import Array
    from phema_cli.sweep.run import Outcome

_ROWS = 12
#: a flank is shown up to this many times the height of the lower one.
_HIGHEST = 5.0


@dataclass(frozen=True, slots=True)
class Valley:
    """Where a metric is best, and how it grows worse to both sides.

    Attributes:
        sigma_rel: (n,) ascending, of the evaluations that gave a metric; n is at least 1.
        metric: (n,) what they gave.
        best: index of the best one.
        edge: metric up to which the curve is shown, infinite for all of it: one end of the range
            may be so bad that beside it everything else looks the same.
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


def valley(outcome: Outcome, *, maximize: bool) -> Valley | None:
    """What to draw; None where no power function has a metric."""
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


def lines(found: Valley, width: int) -> list[str]:
    """The curve as text, with the best marked."""
    sigma_rel, metric = float(found.sigma_rel[found.best]), float(found.metric[found.best])
    hidden = int(found.beyond.sum())
    points = "point is" if hidden == 1 else "points are"
    more = f"; {hidden} further {points} not shown" if hidden else ""
    return chart(
        *_cut(found),
        Mark(sigma_rel, metric, f"best: {metric:.7g} at sigma_rel {sigma_rel:.4g}{more}"),
        width=width,
        height=_ROWS,
        x_label="sigma_rel",
        y_label="metric",
        unicode=render.unicode(),
    )


def draw(found: Valley | None, path: Path, label: str) -> None:
    """The same as a picture; without points it is empty."""
    from phema_cli.cli import pictures

    if found is None:
        pictures.metric_picture(path, [], None, metric_label=label, overwrite=True)
        return
    shown, metric = _cut(found)
    shown = shown[np.isfinite(metric)]
    pictures.metric_picture(
        path,
        list(zip(found.sigma_rel, found.metric, strict=True)),
        (found.sigma_rel[found.best], found.metric[found.best]),
        metric_label=label,
        part=None if np.isinf(found.edge) else (shown.min(), shown.max(), found.edge),
        overwrite=True,
    )


def _cut(found: Valley) -> tuple[Array, Array]:
    """The curve up to its edge, where it ends; NaN is where it is not shown."""
    x, beyond = np.log(found.sigma_rel), found.beyond
    points = []
    for i, j in pairwise(range(len(x))):
        points.append((x[i], np.nan if beyond[i] else found.metric[i]))
        if beyond[i] != beyond[j]:
            part = (found.edge - found.metric[i]) / (found.metric[j] - found.metric[i])
            points.append((x[i] + part * (x[j] - x[i]), found.edge))
    points.append((x[-1], np.nan if beyond[-1] else found.metric[-1]))
    logs, metric = np.array(points).T
    return np.exp(logs), metric
