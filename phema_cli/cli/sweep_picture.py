"""The picture of a sweep: metric against length, over bands of the verdicts."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from phema_cli.cli import pictures
from phema_cli.cli.axis import log_axis, tick_labels
from phema_cli.cli.pictures import COLOURS, FAINT
from phema_cli.cli.sweep_curve import View
from phema_cli.profiles import gamma_from_sigma_rel
from phema_cli.sweep.families import SIGMA_REL

if TYPE_CHECKING:
    from matplotlib.axes import Axes

#: inches.
_HEIGHT = 2.6
#: parts of the axes beyond the outer points, in log scale and in metric.
_BESIDE, _ABOVE = 0.05, 0.09
#: characters of a baseline's name.
_NAME = 28


def draw(view: View | None, path: Path) -> None:
    """Write the curve as a picture, over an existing one; without points its axes are empty.

    Errors as :func:`phema_cli.cli.pictures.picture`.
    """
    with pictures.picture(path, (pictures.COLUMN, _HEIGHT), overwrite=True) as figure:
        axes = figure.subplots()
        if view is None:
            pictures.sigma_axis(axes)
            return
        axes.set_ylabel(pictures.plain(view.name))
        axes.set_xscale("log")
        _limit(axes, view)
        pictures.draw_bands(axes, view.bands())
        _draw_levels(axes, view)
        _draw_points(axes, view)
        _label(axes, view)


def _limit(axes: Axes, view: View) -> None:
    """Limits that leave out what is beyond the edge of the metrics."""
    logs = np.log(view.scale)
    beside = _BESIDE * max(float(np.ptp(logs)), 0.1)
    axes.set_xlim(np.exp(logs[0] - beside), np.exp(logs[-1] + beside))
    heights = np.append(view.heights, view.edge)
    heights = heights[np.isfinite(heights)]
    low, high = float(heights.min()), float(heights.max())
    room = _ABOVE * ((high - low) or abs(high) or 1.0)
    axes.set_ylim(low - room, high + room)


def _draw_levels(axes: Axes, view: View) -> None:
    """The baselines that have no length, as lines with names."""
    for _, level in view.levels:
        axes.axhline(level, color="0.35", linewidth=0.8, linestyle=(0, (4, 2)), zorder=1)
    for name, level, side in view.named_levels():
        text = pictures.plain(name if len(name) <= _NAME else f"{name[: _NAME - 1]}…")
        axes.text(
            *({"left": 0.01, "center": 0.5}.get(side, 0.995), level, text),
            transform=axes.get_yaxis_transform(),
            ha=side,
            va="bottom",
            fontsize=6,
            color="0.25",
        )


def _draw_points(axes: Axes, view: View) -> None:
    """All evaluations as rings, so that none hides another; the best in another colour."""
    kept = ~view.beyond
    axes.plot(*view.line(), "-", color=COLOURS[0], linewidth=1.0, zorder=2)
    if np.isfinite(view.error).any():
        axes.errorbar(
            *(view.scale[kept], view.metric[kept], view.error[kept]),
            fmt="none",
            ecolor=COLOURS[0],
            elinewidth=0.7,
            capsize=1.5,
            zorder=2,
        )
    good, best = view.as_good & kept, np.arange(len(kept)) == view.best
    for members, face, edge, size, width, order in (
        (kept & ~good, "white", COLOURS[0], 3.2, 0.8, 3),
        (good, COLOURS[5], COLOURS[0], 3.2, 0.8, 3),
        (best, "none", COLOURS[1], 7.5, 1.3, 4),
    ):
        axes.plot(
            *(view.scale[members], view.metric[members], "o"),
            markerfacecolor=face,
            markeredgecolor=edge,
            markersize=size,
            markeredgewidth=width,
            zorder=order,
        )
    for i in np.flatnonzero(view.beyond):
        axes.plot(
            *(view.scale[i], 0.985, "^") if view.is_open_above else (view.scale[i], 0.015, "v"),
            color=FAINT,
            markersize=3.5,
            zorder=3,
            transform=axes.get_xaxis_transform(),
        )


def _label(axes: Axes, view: View) -> None:
    """The axes' ticks and names, and where the best is."""
    best = view.best
    where = f"{view.family.label.partition(',')[0]} {view.scale[best]:.3g}"
    if view.family.name == SIGMA_REL:
        sigma_rel = float(view.scale[best])
        where = f"{pictures.SIGMA} {sigma_rel:.3g}, $\\gamma$ {gamma_from_sigma_rel(sigma_rel):.3g}"
    axes.set_title(f"best: {view.metric[best]:.4g} at {where}", color=COLOURS[1])
    ticks = log_axis(view.scale, 6).ticks
    axes.set_xticks(ticks, tick_labels(ticks))
    axes.set_xticks([], minor=True)
    if view.family.name == SIGMA_REL:
        pictures.sigma_axis(axes)
    else:
        axes.set_xlabel(view.family.label)
