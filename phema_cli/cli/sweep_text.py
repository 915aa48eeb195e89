"""The curve of a sweep as text: in braille cells, or in ASCII.

Lines carry rich's markup for colours.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np

from phema_cli.cli import render
from phema_cli.cli.axis import Axis, linear_axis, log_axis, tick_labels
from phema_cli.cli.sweep_curve import Level, View
from phema_cli.profiles import Array

_LEAST_WIDTH = 24
_ROWS = 12
#: columns of a tick and its label on the horizontal axis; ticks on the vertical one.
_TICK_COLUMNS, _TICKS_UP = 10, 5
#: a braille character has two by four dots.
_ACROSS, _DOWN = 2, 4
_BITS = np.array([[0x01, 0x08], [0x02, 0x10], [0x04, 0x20], [0x40, 0x80]], dtype=np.uint8)
_BRAILLE = 0x2800
_COLOUR, _FAINT, _MARKED = "cyan", "dim", "bold"


@dataclass(frozen=True, slots=True)
class _Signs:
    """The characters of a drawing; without one for a dot it is drawn in braille."""

    dot: str
    mark: str
    point: str
    error: str
    level: str
    side: str
    tick: str
    corner: str
    base: str
    base_tick: str


_UNICODE = _Signs("", "★", "●", "╎", "┈", "│", "┤", "└", "─", "┴")
_ASCII = _Signs(".", "*", "o", "!", "-", "|", "+", "+", "-", "+")


def lines(view: View, width: int) -> list[str]:
    """The curve with its points over a logarithmic axis, the best marked.

    No line is longer than ``width``, which is 24 at least.
    """
    unicode = render.supports_unicode(stderr=True)
    signs = _UNICODE if unicode else _ASCII
    kept = ~view.beyond
    scale, metric, error = view.scale[kept], view.metric[kept], view.error[kept]
    x, y = view.line()
    levels = view.named_levels()
    heights = [level.y for level in levels]
    held = np.concatenate([y, metric, metric - error, metric + error, heights])
    y_axis = linear_axis(held[np.isfinite(held)], _TICKS_UP)
    numbers = tick_labels(y_axis.ticks)
    gutter = max(map(len, numbers))
    columns = max(width, _LEAST_WIDTH) - gutter - 1
    x_axis = log_axis(np.concatenate([x[np.isfinite(y)], scale]), columns // _TICK_COLUMNS)
    canvas = _Canvas(x_axis, y_axis, columns, signs)
    canvas.draw_curve(x, y)
    # A line without a name shows where the curve changes its sign.
    zero = [Level("", 0.0, "right")] if y_axis.low < 0 < y_axis.high else []
    for level in (*zero, *levels):
        canvas.draw_level(level)
    canvas.draw_points(scale, metric, error)
    canvas.draw_best(view)
    number_at = {canvas.row(t): n for t, n in zip(y_axis.ticks, numbers, strict=True)}
    indent = " " * (gutter + 1)
    label = view.family.label
    label = label if unicode else label.replace("\N{GREEK SMALL LETTER SIGMA}", "sigma")
    return [
        render.plain(view.name[: gutter + 1 + columns]),
        *(
            f"{number_at.get(row, ''):>{gutter}}"
            f"{signs.tick if row in number_at else signs.side}{canvas.text(row)}"
            for row in range(_ROWS)
        ),
        *_base(canvas, gutter, view.bands()),
        indent + render.plain(label[:columns].center(columns).rstrip()),
        f"{indent}[{_MARKED}]{signs.mark}[/] {_best(view, columns - len(signs.mark) - 1)}",
    ]


def _best(view: View, room: int) -> str:
    """Where the best is, and how many points are not shown, in so many columns."""
    hidden = int(view.beyond.sum())
    points = "point is" if hidden == 1 else "points are"
    more = f"; {hidden} further {points} not shown" if hidden else ""
    text = f"best: {view.metric[view.best]:.7g} at {view.said(view.best)}{more}"
    return render.plain(text if len(text) <= room else f"{text[: room - 1]}~")


class _Canvas:
    """The cells between the axes, with dots and characters in them."""

    def __init__(self, x: Axis, y: Axis, columns: int, signs: _Signs) -> None:
        self.x, self.y, self.signs = x, y, signs
        self.across, self.down = (1, 1) if signs.dot else (_ACROSS, _DOWN)
        self.columns = columns
        self._dots = np.zeros((_ROWS, columns), dtype=np.uint8)
        self._characters: dict[tuple[int, int], tuple[str, str]] = {}

    def place(self, x: Array, y: Array) -> tuple[Array, Array]:
        """Dots of points, not yet rounded, from the upper left corner."""
        last = _ROWS * self.down - 1
        # A point beyond the last tick, by less than a dot, is at the edge.
        down = np.clip(last - self.y.part(y) * last, 0, last)
        return self.x.part(x) * (self.columns * self.across - 1), down

    def cell(self, x: float, y: float) -> tuple[int, int]:
        """Row and column of a point."""
        (right,), (down,) = self.place(np.array([x]), np.array([y]))
        return _nearest(down) // self.down, _nearest(right) // self.across

    def row(self, y: float) -> int:
        """The row of a height."""
        return self.cell(self.x.high, y)[0]

    def column(self, x: float) -> int:
        """The column of a place on the horizontal axis."""
        return self.cell(x, self.y.high)[1]

    def draw_curve(self, x: Array, y: Array) -> None:
        """A line through points, with gaps where they are not finite."""
        right, down = self.place(x, y)
        shown = np.isfinite(y)
        for i in np.flatnonzero(shown):
            # A point between two gaps is a line from itself to itself.
            j = i + 1 if i + 1 < len(shown) and shown[i + 1] else i
            count = int(max(abs(right[j] - right[i]), abs(down[j] - down[i]))) + 2
            across = np.floor(np.linspace(right[i], right[j], count) + 0.5).astype(int)
            below = np.floor(np.linspace(down[i], down[j], count) + 0.5).astype(int)
            bits = _BITS[below % self.down, across % self.across]
            np.bitwise_or.at(self._dots, (below // self.down, across // self.across), bits)

    def draw_level(self, level: Level) -> None:
        """A faint line through the empty cells at a height, and its name on its side."""
        row = self.row(level.y)
        name = render.printable(level.name)[: self.columns // 2]
        room = self.columns - len(name)
        first = {"left": 0, "center": room // 2}.get(level.side, room)
        for column in np.flatnonzero(self._dots[row] == 0):
            named = first <= column < first + len(name)
            sign = name[column - first] if named else self.signs.level
            self._characters.setdefault((row, int(column)), (sign, _FAINT))

    def draw_points(self, x: Array, y: Array, errors: Array) -> None:
        """Points, and bars for their errors through the cells that nothing else is in."""
        for at, height, error in zip(x, y, errors, strict=True):
            if np.isfinite(error):
                top, column = self.cell(at, height + error)
                for row in range(top, self.row(height - error) + 1):
                    if not self._dots[row, column]:
                        self._characters[row, column] = (self.signs.error, _FAINT)
        for cell in map(self.cell, x, y):
            self._characters[cell] = (self.signs.point, _COLOUR)

    def draw_best(self, view: View) -> None:
        """The best point, on top of everything else."""
        cell = self.cell(float(view.scale[view.best]), float(view.metric[view.best]))
        self._characters[cell] = (self.signs.mark, _MARKED)

    def text(self, row: int) -> str:
        """A row with markup, without blanks at its end."""
        cells = [self._cell(row, column) for column in range(self.columns)]
        while cells and cells[-1][0] == " ":
            cells.pop()
        return _marked_up(cells)

    def _cell(self, row: int, column: int) -> tuple[str, str]:
        """What a cell shows, and in which colour."""
        if (row, column) in self._characters:
            return self._characters[row, column]
        dots = int(self._dots[row, column])
        return (self.signs.dot or chr(_BRAILLE + dots), _COLOUR) if dots else (" ", "")


def _nearest(value: float) -> int:
    """The nearest whole number; halves go up, unlike round's."""
    return math.floor(value + 0.5)


def _marked_up(cells: Sequence[tuple[str, str]]) -> str:
    """Characters with rich's markup for the style of each, where it has one."""
    runs = [(style, list(run)) for style, run in groupby(cells, key=lambda cell: cell[1])]
    texts = [(style, "".join(character for character, _ in run)) for style, run in runs]
    return "".join(f"[{style}]{render.plain(text)}[/]" if style else text for style, text in texts)


def _base(canvas: _Canvas, gutter: int, bands: Sequence[tuple[float, float, str]]) -> list[str]:
    """The horizontal axis and its numbers; one that would touch its neighbour is left out."""
    rule = [canvas.signs.base] * canvas.columns
    numbers: list[tuple[int, str]] = []
    for tick, number in zip(canvas.x.ticks, tick_labels(canvas.x.ticks), strict=True):
        column = canvas.column(tick)
        rule[column] = canvas.signs.base_tick
        first = min(column - len(number) // 2, canvas.columns - len(number))
        numbers.append((first + gutter + 1, number))
    styles = [""] * canvas.columns
    for low, high, verdict in bands:
        first, last = (min(max(canvas.column(end), 0), canvas.columns - 1) for end in (low, high))
        styles[first : last + 1] = [render.STYLES[verdict]] * (last - first + 1)
    cells = list(zip(rule, styles, strict=True))
    return [" " * gutter + canvas.signs.corner + _marked_up(cells), render.in_places(numbers)]
