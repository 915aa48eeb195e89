"""A curve as text: in braille cells, or in ASCII where those don't print; one point stands out.

Lines carry rich's markup for colours.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import groupby

import numpy as np

from phema_cli.cli import axes, render
from phema_cli.cli.axes import Array, Axis

_LEAST_WIDTH = 24
#: columns of a tick and its label on the horizontal axis; rows on the vertical one.
_TICK_COLUMNS, _TICK_ROWS = 10, 3
#: a cell of the terminal holds two by four dots.
_ACROSS, _DOWN = 2, 4
_BITS = np.array([[0x01, 0x08], [0x02, 0x10], [0x04, 0x20], [0x40, 0x80]], dtype=np.uint8)
_BRAILLE = 0x2800
_COLOUR, _FAINT, _MARKED = "cyan", "bright_black", "bold"


@dataclass(frozen=True, slots=True)
class _Signs:
    """The characters of a drawing; without one for a dot it is drawn in braille."""

    dot: str
    mark: str
    zero: str
    side: str
    tick: str
    corner: str
    base: str
    base_tick: str


_UNICODE = _Signs("", "★", "┈", "│", "┤", "└", "─", "┴")
_ASCII = _Signs("o", "*", ".", "|", "+", "+", "-", "+")


@dataclass(frozen=True, slots=True)
class Mark:
    """A point that stands out."""

    x: float
    y: float
    label: str


def chart(
    x: Array,
    y: Array,
    mark: Mark,
    *,
    width: int,
    height: int,
    x_label: str,
    y_label: str,
    unicode: bool = True,
) -> list[str]:
    """Draw a line through points over a logarithmic horizontal axis.

    Args:
        x: (n,) float64, above 0.
        y: (n,) float64; NaN interrupts the line.
        mark: the point to show.
        width: columns in all, axis and its numbers included; 24 at least.
        height: rows of the drawing itself, without the horizontal axis and the labels.
        x_label: what the horizontal axis counts, with its unit.
        y_label: the same of the vertical one.
        unicode: whether the stream carries it; see ``render.unicode``.

    Returns:
        Lines with rich's markup, none longer than ``width``.
    """
    shown = np.isfinite(y)
    y_axis = axes.even(np.append(y[shown], mark.y), max(3, height // _TICK_ROWS + 1))
    numbers = axes.written(y_axis.ticks)
    gutter = max(len(n) for n in numbers)
    columns = max(width, _LEAST_WIDTH) - gutter - 1
    x_axis = axes.logarithmic(np.append(x[shown], mark.x), columns // _TICK_COLUMNS)
    plane = _Plane(x_axis, y_axis, columns, height, _UNICODE if unicode else _ASCII)
    plane.draw(x, y)
    if y_axis.low < 0 < y_axis.high:
        plane.draw_zero()
    plane.draw_mark(mark)
    return [
        render.plain(y_label[: gutter + 1 + columns]),
        *_with_side(plane, numbers, gutter),
        *_base(plane, gutter),
        " " * (gutter + 1) + render.plain(x_label[:columns].center(columns).rstrip()),
        _legend(mark, plane.signs, gutter + 1, columns),
    ]


class _Plane:
    """Cells with dots and characters in them."""

    def __init__(self, x: Axis, y: Axis, columns: int, rows: int, signs: _Signs) -> None:
        self.x, self.y, self.signs = x, y, signs
        self.across, self.down = (1, 1) if signs.dot else (_ACROSS, _DOWN)
        self.columns, self.rows = columns, rows
        self._dots = np.zeros((rows, columns), dtype=np.uint8)
        self._text: dict[tuple[int, int], tuple[str, str]] = {}

    def place(self, x: Array, y: Array) -> tuple[Array, Array]:
        """Dots of points, not yet rounded, from the upper left corner."""
        right = self.x.dots(x, self.columns * self.across)
        last = self.rows * self.down - 1
        # What lies beyond the last tick by less than a dot is at the edge.
        return right, np.clip(last - self.y.dots(y, last + 1), 0, last)

    def row(self, y: float) -> int:
        """The row of a height."""
        _, down = self.place(np.array([self.x.high]), np.array([y]))
        return _nearest(down[0]) // self.down

    def draw(self, x: Array, y: Array) -> None:
        """A line through points, with gaps where they are not finite."""
        right, down = self.place(x, y)
        shown = np.isfinite(y)
        for i in np.flatnonzero(shown):
            # A point between two gaps is a line of its own.
            j = i + 1 if i + 1 < len(shown) and shown[i + 1] else i
            self._line((right[i], down[i]), (right[j], down[j]))

    def _line(self, start: tuple[float, float], end: tuple[float, float]) -> None:
        """Set the dots from one place to another."""
        count = int(max(abs(end[0] - start[0]), abs(end[1] - start[1]))) + 2
        right = np.floor(np.linspace(start[0], end[0], count) + 0.5).astype(int)
        down = np.floor(np.linspace(start[1], end[1], count) + 0.5).astype(int)
        bits = _BITS[down % self.down, right % self.across]
        np.bitwise_or.at(self._dots, (down // self.down, right // self.across), bits)

    def draw_zero(self) -> None:
        """A faint line through the empty cells where the curve would be 0."""
        row = self.row(0.0)
        for column in np.flatnonzero(self._dots[row] == 0):
            self._text[row, int(column)] = (self.signs.zero, _FAINT)

    def draw_mark(self, mark: Mark) -> None:
        """The point that stands out, on top of everything else."""
        right, down = self.place(np.array([mark.x]), np.array([mark.y]))
        cell = _nearest(down[0]) // self.down, _nearest(right[0]) // self.across
        self._text[cell] = (self.signs.mark, _MARKED)

    def lines(self) -> list[str]:
        """The rows as text with markup."""
        return [self._row_text(row) for row in range(self.rows)]

    def _row_text(self, row: int) -> str:
        cells = [self._character(row, column) for column in range(self.columns)]
        while cells and cells[-1][0] == " ":
            cells.pop()
        parts = []
        for style, run in groupby(cells, key=lambda c: c[1]):
            text = "".join(c[0] for c in run)
            parts.append(f"[{style}]{render.plain(text)}[/]" if style else text)
        return "".join(parts)

    def _character(self, row: int, column: int) -> tuple[str, str]:
        """What a cell shows, and in which colour."""
        if (row, column) in self._text:
            return self._text[row, column]
        dots = int(self._dots[row, column])
        return (self.signs.dot or chr(_BRAILLE + dots), _COLOUR) if dots else (" ", "")


def _nearest(value: float) -> int:
    """Halves go up, unlike round's."""
    return int(np.floor(value + 0.5))


def _with_side(plane: _Plane, numbers: list[str], gutter: int) -> list[str]:
    """Rows with the vertical axis before them."""
    signs = plane.signs
    at = {plane.row(tick): n for tick, n in zip(plane.y.ticks, numbers, strict=True)}
    return [
        f"{at.get(row, ''):>{gutter}}{signs.tick if row in at else signs.side}{line}"
        for row, line in enumerate(plane.lines())
    ]


def _base(plane: _Plane, gutter: int) -> list[str]:
    """The horizontal axis and its numbers; one that would touch its neighbour is left out."""
    right, _ = plane.place(np.array(plane.x.ticks), np.full(len(plane.x.ticks), plane.y.high))
    rule = [plane.signs.base] * plane.columns
    text = ""
    for dot, number in zip(right, axes.written(plane.x.ticks), strict=True):
        column = _nearest(dot) // plane.across
        rule[column] = plane.signs.base_tick
        first = min(column - len(number) // 2, plane.columns - len(number)) + gutter + 1
        if not text or first > len(text):
            text += " " * (first - len(text)) + number
    return [" " * gutter + plane.signs.corner + "".join(rule), text]


def _legend(mark: Mark, signs: _Signs, indent: int, columns: int) -> str:
    """What the point is, cut where there is no room."""
    room = columns - len(signs.mark) - 1
    label = mark.label if len(mark.label) <= room else mark.label[: room - 1] + "~"
    return f"{' ' * indent}[{_MARKED}]{signs.mark}[/] {render.plain(label)}"
