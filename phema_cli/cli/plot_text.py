"""What ``phema plot`` draws in the terminal."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from phema_cli.cli import chart, render
from phema_cli.cli.chart import Curve, Rule

if TYPE_CHECKING:
    from phema_cli.cli.plotted import Panel, Plotted

#: columns of the widest drawing, and rows of each.
_WIDEST = 120
_PROFILE_ROWS, _DIFFERENCE_ROWS, _WEIGHTS_ROWS, _REACH_ROWS = 12, 5, 9, 12


def drawing(plotted: Plotted, width: int, *, unicode: bool) -> Iterator[str]:
    """Lines with rich's markup.

    Args:
        plotted: what is drawn.
        width: columns.
        unicode: whether the stream carries more than ASCII.
    """
    sheet = _Sheet(min(width, _WIDEST), unicode)
    time = f"training time in {plotted.unit}"
    for panel in plotted.panels:
        yield from _profiles(sheet, plotted, panel, time)
        yield from _weights(sheet, plotted, panel, time)
    yield from _reach(sheet, plotted)


class _Sheet:
    """A width and a set of characters to draw with."""

    def __init__(self, width: int, unicode: bool) -> None:
        self.width, self.unicode = width, unicode

    def draw(
        self,
        curves: Sequence[Curve],
        height: int,
        *,
        x_label: str = "",
        y_label: str = "",
        log_y: bool = False,
        rules: Sequence[Rule] = (),
    ) -> list[str]:
        """A chart and an empty line."""
        lines = chart.chart(
            curves,
            width=self.width,
            height=height,
            x_label=x_label,
            y_label=y_label,
            log_y=log_y,
            rules=rules,
            unicode=self.unicode,
        )
        return [*lines, ""]


def _profiles(sheet: _Sheet, plotted: Plotted, panel: Panel, time: str) -> Iterator[str]:
    """Target and achieved profile, and what lies between them."""
    yield f"[bold]{render.plain(panel.target.label)}[/]: target and achieved profile"
    found = panel.curves
    unit = plotted.unit.removesuffix("s")
    quantity = f"weight per {unit}" if found.quantity == "density" else "cumulative weight"
    both = [
        Curve("target", found.times, found.target),
        Curve("achieved", found.times, found.achieved),
    ]
    yield from sheet.draw(both, _PROFILE_ROWS, y_label=quantity)
    difference = [Curve("difference", found.times, found.difference)]
    yield from sheet.draw(difference, _DIFFERENCE_ROWS, x_label=time, y_label="achieved - target")


def _weights(sheet: _Sheet, plotted: Plotted, panel: Panel, time: str) -> Iterator[str]:
    """The weights of the snapshots, a series for each kind of average."""
    yield f"[bold]{render.plain(panel.target.label)}[/]: weights of the snapshots"
    series = [
        Curve(label, plotted.times[which], panel.weights[which], "stems")
        for label, which in plotted.series.items()
    ]
    yield from sheet.draw(series, _WEIGHTS_ROWS, x_label=time, y_label="weight")


def _reach(sheet: _Sheet, plotted: Plotted) -> Iterator[str]:
    """Expected error over the whole range, and the targets in it."""
    yield f"[bold]Targets at step {plotted.step:.10g}[/] by method {plotted.method}"
    sigma, shift, error = plotted.reached()
    at = [(p.sigma_rel, p.figures.sigma_error) for p in plotted.panels]
    marks = np.array([[s, e] for s, e in at if s and e], dtype=float).reshape(-1, 2).T
    curves = [
        Curve("sigma_error", sigma, shift),
        Curve("expected_error", sigma, error),
        *([Curve("targets", marks[0], marks[1], "points")] if marks.size else []),
    ]
    rules = [Rule(1.0, " good up to 1 %"), Rule(10.0, " fair up to 10 %")]
    yield from sheet.draw(
        curves, _REACH_ROWS, x_label="sigma_rel", y_label="error in %", log_y=True, rules=rules
    )
