"""Charts as text: curves, points and stems in braille cells, or in ASCII where those don't print.

Lines carry rich's markup for colours. Curves are told apart by their symbols, so that a chart says
the same without colours.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from phema_cli.cli import axes, render
from phema_cli.cli.axes import Array, Axis
from phema_cli.cli.canvas import ASCII, UNICODE, Plane, Signs, colour, nearest

_FAINT = "bright_black"
#: columns from one symbol on a line to the next.
_APART = 12
_LEAST_WIDTH, _LEAST_HEIGHT = 24, 3
#: columns of a tick and its label on the horizontal axis; rows on the vertical one.
_TICK_COLUMNS, _TICK_ROWS = 10, 3


@dataclass(frozen=True, slots=True)
class Curve:
    """What is drawn.

    Attributes:
        label: what the legend calls it.
        x: (n,) float64; not finite values interrupt a line.
        y: (n,) float64.
        kind: a line through the points, the points alone, or each with a stem from 0 (from the
            lower edge where the axis is logarithmic); many small stems have no symbol.
    """

    label: str
    x: Array
    y: Array
    kind: Literal["line", "points", "stems"] = "line"


@dataclass(frozen=True, slots=True)
class Mark:
    """A point that stands out."""

    x: float
    y: float
    label: str


@dataclass(frozen=True, slots=True)
class Rule:
    """A level that curves are compared with."""

    y: float
    label: str


def chart(
    curves: Sequence[Curve],
    *,
    width: int,
    height: int,
    log_x: bool = False,
    log_y: bool = False,
    x_label: str = "",
    y_label: str = "",
    mark: Mark | None = None,
    rules: Sequence[Rule] = (),
    unicode: bool = True,
) -> list[str]:
    """Draw curves over common axes.

    Args:
        curves: later ones lie on top.
        width: columns in all, axis and its numbers included; 24 at least. See ``render.columns``.
        height: rows of the drawing itself, without the horizontal axis and the labels.
        log_x: whether the horizontal axis is logarithmic; values up to 0 are not drawn then.
        log_y: the same of the vertical one.
        x_label: what the horizontal axis counts, with its unit.
        y_label: the same of the vertical one.
        mark: a point to show.
        rules: levels to show.
        unicode: whether the stream carries it; see ``render.unicode``.

    Returns:
        Lines with rich's markup, none longer than ``width``.
    """
    signs = UNICODE if unicode else ASCII
    rows = max(height, _LEAST_HEIGHT)
    y_axis = _vertical(curves, mark, rules, log_y, rows)
    numbers = axes.written(y_axis.ticks)
    gutter = max(len(n) for n in numbers)
    columns = max(width, _LEAST_WIDTH) - gutter - 1
    xs = [*(v for c in curves for v in c.x[_drawn(c, log_x, log_y)]), *([mark.x] if mark else [])]
    x_axis = axes.fit(np.array(xs), log=log_x, most=columns // _TICK_COLUMNS, whole=False)
    plane = Plane(x_axis, y_axis, columns, rows, signs, unicode)
    _draw(plane, curves, mark, rules)
    lines = [render.plain(y_label[: gutter + 1 + columns])] if y_label else []
    lines += _with_side(plane.lines(), plane, numbers, gutter)
    lines += _base(plane, gutter)
    if x_label:
        lines.append(" " * (gutter + 1) + render.plain(x_label[:columns].center(columns).rstrip()))
    return lines + _legend(curves, mark, signs, gutter + 1, gutter + 1 + columns)


def _drawn(curve: Curve, log_x: bool, log_y: bool) -> NDArray[np.bool_]:
    """Which points have a place."""
    shown = np.isfinite(curve.x) & np.isfinite(curve.y)
    return shown & ((curve.x > 0) | (not log_x)) & ((curve.y > 0) | (not log_y))


def _vertical(
    curves: Sequence[Curve], mark: Mark | None, rules: Sequence[Rule], log: bool, rows: int
) -> Axis:
    """The vertical axis; stems need their foot."""
    heights = [*(v for c in curves for v in c.y), *(r.y for r in rules)]
    heights += [mark.y] if mark else []
    heights += [0.0] if any(c.kind == "stems" for c in curves) and not log else []
    return axes.fit(np.array(heights), log=log, most=max(3, rows // _TICK_ROWS + 1), whole=True)


def _draw(plane: Plane, curves: Sequence[Curve], mark: Mark | None, rules: Sequence[Rule]) -> None:
    """Fill the plane: rules below, then curves, then what stands out."""
    if not plane.y.log and plane.y.low < 0 < plane.y.high:
        rules = [*rules, Rule(0.0, "")]
    for index, curve in enumerate(curves):
        _draw_curve(plane, curve, index, alone=len(curves) == 1)
    for rule in rules:
        _draw_rule(plane, rule)
    if mark is not None:
        right, down = plane.place(np.array([mark.x]), np.array([mark.y]))
        if np.isfinite(right[0]) and np.isfinite(down[0]):
            plane.text[plane.cell(right[0], down[0])] = (plane.signs.mark, "bold")


def _draw_curve(plane: Plane, curve: Curve, index: int, *, alone: bool) -> None:
    """Dots of a line or of stems, and the symbols."""
    shown = _drawn(curve, plane.x.log, plane.y.log)
    right, down = plane.place(curve.x, curve.y)
    which = np.flatnonzero(shown)
    symbol = (plane.signs.curves[index % 8], colour(index))
    if curve.kind == "line":
        for i in which:
            # A point between two gaps is a line of its own.
            j = i + 1 if i + 1 < len(shown) and shown[i + 1] else i
            plane.line((right[i], down[i]), (right[j], down[j]), index)
        if not alone:
            _along(plane, right[which], down[which], index, symbol)
        return
    if curve.kind == "stems":
        which = _stand(plane, right, down, which, index)
    for i in which:
        plane.text[plane.cell(right[i], down[i])] = symbol


def _stand(
    plane: Plane, right: Array, down: Array, which: NDArray[np.intp], index: int
) -> NDArray[np.intp]:
    """Draw stems under points; returns the points that have room for a symbol."""
    foot = plane.rows * plane.down - 1.0
    if not plane.y.log:
        foot = float(plane.place(np.zeros(1), np.zeros(1))[1][0])
    for i in which:
        plane.line((right[i], foot), (right[i], down[i]), index)
    if len(which) <= plane.columns // 2:
        return which
    # Side by side the symbols of small ones would hide everything else.
    return which[np.abs(down[which] - foot) >= plane.down]


def _along(plane: Plane, right: Array, down: Array, index: int, symbol: tuple[str, str]) -> None:
    """Put a line's symbol on it here and there; each curve at other places."""
    if plane.across == 1 or not len(right):
        return
    for column in range(_APART // 2 + 3 * index, plane.columns, _APART):
        at = column * plane.across
        if right.min() <= at <= right.max():
            there = float(np.interp(at, right, down))
            plane.text.setdefault(plane.cell(at, there), symbol)


def _draw_rule(plane: Plane, rule: Rule) -> None:
    """A faint line through the empty cells; its label is where there is room, rather right."""
    _, down = plane.place(np.array([plane.x.high]), np.array([rule.y]))
    row = plane.cell(0.0, down[0])[0]
    empty = [
        not plane.dots[row, column] and (row, column) not in plane.text
        for column in range(plane.columns)
    ]
    for column in np.flatnonzero(empty):
        plane.text[row, int(column)] = (plane.signs.rule, _FAINT)
    length = len(rule.label)
    for first in range(plane.columns - length, -1, -1):
        if all(empty[first : first + length]):
            for i, character in enumerate(rule.label):
                plane.text[row, first + i] = (character, _FAINT)
            return


def _with_side(
    lines: Sequence[str], plane: Plane, numbers: Sequence[str], gutter: int
) -> list[str]:
    """Rows with the vertical axis before them."""
    _, down = plane.place(np.full(len(plane.y.ticks), plane.x.high), np.array(plane.y.ticks))
    at = {plane.cell(0.0, d)[0]: n for d, n in zip(down, numbers, strict=True)}
    return [
        f"{at.get(row, ''):>{gutter}}{plane.signs.tick if row in at else plane.signs.side}{line}"
        for row, line in enumerate(lines)
    ]


def _base(plane: Plane, gutter: int) -> list[str]:
    """The horizontal axis and its numbers; one that would touch its neighbour is left out."""
    right, _ = plane.place(np.array(plane.x.ticks), np.full(len(plane.x.ticks), plane.y.high))
    rule = [plane.signs.base] * plane.columns
    text = ""
    for dot, number in zip(right, axes.written(plane.x.ticks), strict=True):
        column = nearest(dot) // plane.across
        rule[column] = plane.signs.base_tick
        first = min(column - len(number) // 2 + gutter + 1, gutter + 1 + plane.columns)
        first = min(first, gutter + 1 + plane.columns - len(number))
        if not text or first > len(text):
            text += " " * (first - len(text)) + number
    return [" " * gutter + plane.signs.corner + "".join(rule), text]


def _legend(
    curves: Sequence[Curve], mark: Mark | None, signs: Signs, indent: int, width: int
) -> list[str]:
    """Symbols and labels, as many a line as fit; nothing where there is one curve alone."""
    several = len(curves) > 1
    entries = [(signs.curves[i % 8], colour(i), c.label) for i, c in enumerate(curves) if several]
    entries += [(signs.mark, "bold", mark.label)] if mark else []
    lines: list[str] = []
    used = width
    for sign, style, label in entries:
        shown = label if len(label) <= width - indent - 2 else label[: width - indent - 3] + "~"
        length = len(shown) + 2
        if used + 3 + length > width:
            lines.append(" " * indent)
            used = indent
        else:
            lines[-1] += "   "
            used += 3
        lines[-1] += f"[{style}]{sign}[/] {render.plain(shown)}"
        used += length
    return lines
