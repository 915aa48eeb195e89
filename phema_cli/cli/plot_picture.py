"""The picture of ``phema plot``: profiles, weights and the reachable range as panels."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from phema_cli.cli import pictures, reachable, render
from phema_cli.cli.pictures import COLOURS, FAINT
from phema_cli.profiles import SIGMA_REL_LIMIT, Array, PowerProfile, Profile
from phema_cli.snapshots import Snapshot
from phema_cli.solver import Figures
from phema_cli.solver.curves import Curves
from phema_cli.solver.weights import FAIR

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

#: inches: the narrowest column of panels, the heights of a block of them, of the range, of the
#: figure of one target, and the width of a character of a title.
_NARROWEST, _BLOCK, _REACH, _BESIDE, _CHARACTER = 1.65, 3.7, 2.3, 3.7, 0.064
#: relative heights of a target's panels.
_HEIGHTS = (1.5, 0.6, 1.2)
#: snapshots of a series up to which each has a symbol of its own.
_WITH_SYMBOLS = 60
#: part of the time between snapshots over which those of one time are drawn.
_APART = 0.5
#: the scale of weights above this is logarithmic outside of -1 to 1.
_LARGE = 5.0
_LEAST_ERROR = 1e-6
#: part of the decades of the range that stays free for its legend.
_HEADROOM = 0.25


@dataclass(frozen=True, slots=True)
class Panel:
    """A target, how well it is met, and by what.

    Attributes:
        target: its profile.
        figures: of the weights.
        curves: target and achieved profile.
        weights: (n,) of the snapshots.
    """

    target: Profile
    figures: Figures
    curves: Curves
    weights: Array


@dataclass(frozen=True, slots=True)
class Plotted:
    """All that is drawn.

    Attributes:
        snapshots: n, oldest first.
        panels: one a target.
        reach: figures of the reachable range, by sigma_rel.
    """

    snapshots: Sequence[Snapshot]
    panels: Sequence[Panel]
    reach: Mapping[float, Figures]

    @property
    def unit(self) -> str:
        """What the time counts: steps, images or epochs."""
        return self.snapshots[-1].tag.unit

    @property
    def times(self) -> Array:
        """(n,) times of the snapshots."""
        return np.array([s.tag.profile.end for s in self.snapshots])


class _Column(NamedTuple):
    """The axes of one target."""

    profile: Axes
    difference: Axes
    weights: Axes


def draw(plotted: Plotted, path: Path, *, width: float, overwrite: bool) -> None:
    """Draw a column of panels for each target, and the reachable range; ``width`` is in inches.

    Errors as :func:`phema_cli.cli.pictures.picture`.
    """
    number = len(plotted.panels)
    beside = number == 1 and width >= 3 * _NARROWEST
    across = 2 if beside else min(number, max(1, int(width / _NARROWEST)))
    height = _BESIDE if beside else _BLOCK * math.ceil(number / across) + _REACH
    letters = (f"({chr(ord('a') + i)})" for i in count())
    with pictures.picture(path, (width, height), overwrite=overwrite) as figure:
        columns, reach = _beside(figure) if beside else _grid(figure, number, across)
        factor = _factor(*(c for p in plotted.panels for c in (p.curves.target, p.curves.achieved)))
        room = int(width / across / _CHARACTER)
        for i, (column, panel) in enumerate(zip(columns, plotted.panels, strict=True)):
            column.profile.set_title(_title(panel, next(letters), room))
            _draw_profiles(column, panel, plotted.times, factor)
            _draw_weights(column.weights, panel, plotted)
            _label(column, panel, plotted.unit, factor, first=i % across == 0)
        columns[0].profile.legend(loc="best")
        if beside:
            columns[0].weights.legend(loc="best")
            columns[0].difference.set_xlabel(columns[0].weights.get_xlabel())
            columns[0].weights.set_title(f"{next(letters)} weights of the snapshots")
        else:
            _legend_above(columns[0].weights)
        _draw_reach(reach, plotted, next(letters))


def _beside(figure: Figure) -> tuple[list[_Column], Axes]:
    """One target: its profile at the left, weights and range at the right."""
    left, right = figure.subfigures(1, 2, squeeze=False, width_ratios=(1, 1.05))[0]
    profile, difference = left.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    weights, reach = right.subplots(2, 1, height_ratios=(1, 1.15))
    return [_Column(profile, difference, weights)], reach


def _grid(figure: Figure, number: int, across: int) -> tuple[list[_Column], Axes]:
    """Several targets: a column for each, in blocks of ``across``, the range below all."""
    blocks = math.ceil(number / across)
    heights = [*([_BLOCK] * blocks), _REACH]
    parts = figure.subfigures(blocks + 1, 1, squeeze=False, height_ratios=heights)[:, 0]
    rows = [
        p.subplots(3, across, sharex="col", squeeze=False, height_ratios=_HEIGHTS)
        for p in parts[:-1]
    ]
    columns = [_Column(*block[:, i]) for block in rows for i in range(across)]
    for column in columns[number:]:
        for axes in column:
            axes.set_axis_off()
    for column in columns[1:number]:
        column.profile.sharey(columns[0].profile)
        column.weights.sharey(columns[0].weights)
    return columns[:number], parts[-1].subplots()


def _legend_above(axes: Axes) -> None:
    """The legend of a panel where a title would be: nothing is in its way, whatever the weights."""
    axes.set_title(" ")
    legend = axes.legend(
        loc="lower left", bbox_to_anchor=(0, 1), ncols=4, columnspacing=1, handletextpad=0
    )
    legend.set_in_layout(False)


def _title(panel: Panel, letter: str, room: int) -> str:
    """The target, and below it how well it is met."""
    name = f"{letter} {panel.target.label}"
    name = name if len(name) <= room else f"{name[: room - 1]}…"
    error = panel.figures.sigma_error
    met = (
        f"expected error {panel.figures.expected_error:.2g}"
        if error is None
        else f"error of {pictures.SIGMA}: {render.per_cent(error)}"
    )
    return f"{pictures.plain(name)}\n{met}"


def _draw_profiles(column: _Column, panel: Panel, times: Array, factor: float) -> None:
    """Target and achieved profile, the snapshots' times, and below the difference."""
    curves, top, bottom = panel.curves, column.profile, column.difference
    top.plot(curves.times, curves.target / factor, color="0.78", linewidth=3, label="target")
    top.plot(curves.times, curves.achieved / factor, color=COLOURS[0], label="achieved")
    seen = np.unique(times[times <= curves.times[-1] * (1 + 1e-9)])
    top.plot(
        seen,
        np.full(len(seen), 0.025),
        "|",
        transform=top.get_xaxis_transform(),
        color="0.4",
        markeredgewidth=0.5,
        label="snapshots",
    )
    top.margins(y=0.09)
    top.locator_params(axis="y", nbins=5)
    bottom.axhline(0, color=FAINT, linewidth=0.5)
    own = _factor(curves.difference)
    bottom.plot(curves.times, curves.difference / own, color=COLOURS[0], linewidth=0.8)
    bottom.set_title(f"achieved $-$ target{_power(own)}", fontsize=7)
    bottom.locator_params(axis="y", nbins=3)
    bottom.locator_params(axis="x", nbins=5)
    bottom.set_xlim(0, curves.times[-1] * 1.02)


def _draw_weights(axes: Axes, panel: Panel, plotted: Plotted) -> None:
    """A stem for each snapshot, a colour for each kind of average."""
    axes.axhline(0, color=FAINT, linewidth=0.5)
    tags = [s.tag for s in plotted.snapshots]
    labels = [t.label if t.gamma is None else f"gamma {t.gamma:.6g}" for t in tags]
    kinds = list(dict.fromkeys(labels))
    # Beside each other, so that none hides another of the same time.
    apart = _APART * float(np.median(np.diff(np.unique(plotted.times), prepend=0.0))) / len(kinds)
    for i, label in enumerate(kinds):
        colour = COLOURS[(i + 1) % len(COLOURS)]
        members = np.array(labels) == label
        times = plotted.times[members] + apart * (i - (len(kinds) - 1) / 2)
        weights = panel.weights[members]
        axes.vlines(times, 0, weights, color=colour, linewidth=0.8)
        size = 2.5 if len(times) <= _WITH_SYMBOLS else 1.0
        axes.plot(
            times,
            weights,
            "o",
            color=colour,
            markersize=size,
            clip_on=False,
            label=pictures.plain(label),
        )
    if np.abs(panel.weights).max() > _LARGE:
        axes.set_yscale("symlog", linthresh=1.0)
    axes.set_xlim(0, plotted.times[-1] * 1.02)
    axes.locator_params(axis="x", nbins=5)
    axes.set_xlabel(f"training time, {plotted.unit}")


def _label(column: _Column, panel: Panel, unit: str, factor: float, *, first: bool) -> None:
    """Say what the vertical axes are, in the first column only, as the others share them."""
    if not first:
        column.profile.tick_params(labelleft=False)
        column.weights.tick_params(labelleft=False)
        return
    dense = panel.curves.quantity == "density"
    per = f"weight per {unit.removesuffix('s')}"
    column.profile.set_ylabel((per if dense else "cumulative weight") + _power(factor))
    column.weights.set_ylabel("weight")


def _draw_reach(axes: Axes, plotted: Plotted, letter: str) -> None:
    """Errors against sigma_rel over bands of the verdicts, and where the targets lie."""
    targets = {
        power.sigma_rel: p.figures
        for p in plotted.panels
        if isinstance(power := p.target, PowerProfile)
    }
    points = dict(sorted({**plotted.reach, **targets}.items()))
    shift = np.array([f.sigma_error for f in points.values()], dtype=float)
    error = np.array([100 * f.expected_error for f in points.values()])
    axes.plot([*points], shift, color=COLOURS[0], label=f"error of {pictures.SIGMA}")
    axes.plot([*points], error, color=COLOURS[3], linestyle=(0, (4, 1.5)), label="expected error")
    axes.set_yscale("log")
    shown = np.array([*shift, *error, 3 * FAIR])
    shown = shown[np.isfinite(shown) & (shown > 0)]
    floor = max(_LEAST_ERROR, float(shown.min()) / 2)
    ceiling = floor * (float(shown.max()) / floor) ** (1 + _HEADROOM)
    axes.set_ylim(floor, ceiling)
    axes.set_xlim(0, SIGMA_REL_LIMIT)
    pictures.draw_bands(axes, reachable.bands([*points], (f.verdict for f in points.values())))
    marks = [
        (s, max(f.sigma_error, floor)) for s, f in targets.items() if f.sigma_error is not None
    ]
    if marks:
        axes.plot(
            *zip(*marks, strict=True), "o", color="black", clip_on=False, zorder=3, label="targets"
        )
    axes.set_ylabel("error, %")
    axes.set_title(f"{letter} what can be reached")
    axes.legend(loc="upper center", ncols=3, columnspacing=1, handletextpad=0.4)
    pictures.sigma_axis(axes)


def _factor(*curves: Array) -> float:
    """A power of ten to divide curves by, so that their numbers are short."""
    largest = max(float(np.abs(c).max()) for c in curves)
    exponent = math.floor(math.log10(largest)) if largest > 0 else 0
    return 1.0 if -2 < exponent < 4 else 10.0**exponent  # noqa: PLR2004 - short anyway


def _power(factor: float) -> str:
    """How a label says that numbers were divided by a power of ten."""
    return "" if factor == 1 else f" ($10^{{{round(math.log10(factor))}}}$)"
