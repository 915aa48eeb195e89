"""A curve as text, with axes and one marked point: in braille cells, or in ASCII.

Lines carry rich's markup for colours.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise
from typing import NamedTuple

import numpy as np

from phema_cli.cli import render
from phema_cli.profiles import Array

_LEAST_WIDTH = 24
#: columns of a tick and its label on the horizontal axis; rows on the vertical one.
_TICK_COLUMNS, _TICK_ROWS = 10, 3
#: mantissas of the ticks of a logarithmic axis that spans at most so many decades.
_MANTISSAS = ((1.5, (1.0, 2.0, 3.0, 5.0)), (2.5, (1.0, 3.0)))
#: numbers from the first on, and those below the second, are written with an exponent.
_LARGE, _SMALL = 1e6, 1e-4
#: the part of a range that may lie beyond the outer ticks.
_BEYOND = 0.01
#: relative differences up to here are rounding.
_ROUNDING = 1e-9
#: a braille character has two by four dots.
_ACROSS, _DOWN = 2, 4
_BITS = np.array([[0x01, 0x08], [0x02, 0x10], [0x04, 0x20], [0x40, 0x80]], dtype=np.uint8)
_BRAILLE = 0x2800
_COLOUR, _FAINT, _MARKED = "cyan", "dim", "bold"


@dataclass(frozen=True, slots=True)
class Axis:
    """A range of numbers and the ticks in it.

    Attributes:
        low: the number at its beginning, above 0 where ``log`` is true.
        high: the number at its end, above ``low``.
        log: whether equal ratios are equal distances, instead of equal differences.
        ticks: ascending, from ``low`` to ``high``.
    """

    low: float
    high: float
    log: bool
    ticks: tuple[float, ...]

    def part(self, values: Array) -> Array:
        """Where values lie, from 0 at ``low`` to 1 at ``high``; above 0 on a logarithmic axis."""
        if self.log:
            low, high = math.log(self.low), math.log(self.high)
            return (np.log(values) - low) / (high - low)
        return (values - self.low) / (self.high - self.low)


def linear_axis(values: Array, most: int) -> Axis:
    """The axis of equal differences that holds values, and begins and ends at ticks.

    Args:
        values: (n,) finite; n is at least 1. At most a hundredth of their range is beyond the ends.
        most: ticks that there is room for.
    """
    ticks = _round_ticks(*_ends(values), most, around=True)
    return Axis(ticks[0], ticks[-1], log=False, ticks=ticks)


def log_axis(values: Array, most: int) -> Axis:
    """The axis of equal ratios from the least to the largest value.

    Its ticks are powers of ten, and a few multiples of them on a short axis.

    Args:
        values: (n,) above 0 and finite; n is at least 1.
        most: ticks that there is room for.
    """
    low, high = _ends(values)
    decades = math.log10(high / low)
    mantissas = next((m for span, m in _MANTISSAS if decades <= span), (1.0,))
    first = math.floor(math.log10(low) + _ROUNDING)
    last = math.ceil(math.log10(high) - _ROUNDING)
    every = max(1, math.ceil((last - first) / max(most - 1, 1))) if len(mantissas) == 1 else 1
    powers = (m * 10.0**e for e in range(first, last + 1, every) for m in mantissas)
    ticks = tuple(t for t in powers if low * (1 - _ROUNDING) <= t <= high * (1 + _ROUNDING))
    if len(ticks) < 2:  # noqa: PLR2004 - one number doesn't say how long an axis is
        ticks = tuple(t for t in _round_ticks(low, high, most, around=False) if t > 0)
    return Axis(low, high, log=True, ticks=ticks)


def _ends(values: Array) -> tuple[float, float]:
    """The least and the largest value, moved apart where they are one."""
    low, high = float(values.min()), float(values.max())
    if not high - low > _ROUNDING * max(abs(low), abs(high)):
        beside = abs(low) / 10 or 1.0
        return low - beside, high + beside
    return low, high


def _round_ticks(low: float, high: float, most: int, *, around: bool) -> tuple[float, ...]:
    """Multiples of 1, 2 or 5 times a power of ten: those in a range, or ``around`` it."""
    room = max(most, 2)
    exponent = math.floor(math.log10((high - low) / room))
    steps = (m * 10.0 ** (exponent + e) for e in (0, 1) for m in (1, 2, 5))
    step = next(
        (s for s in steps if np.ptp(_multiples(low, high, s, around=around)) < room),
        10.0 ** (exponent + 2),
    )
    first, last = _multiples(low, high, step, around=around)
    digits = max(0, 1 - math.floor(math.log10(step)))
    return tuple(round(i * step, digits) for i in range(first, max(last, first) + 1))


def _multiples(low: float, high: float, step: float, *, around: bool) -> tuple[int, int]:
    """First and last multiple of a step in a range, or around it."""
    if around:
        beyond = _BEYOND * (high - low) / step
        return math.floor(low / step + beyond), math.ceil(high / step - beyond)
    # 0.3 counts as a multiple of 0.1, which it is not in binary.
    return math.ceil(low / step - _ROUNDING), math.floor(high / step + _ROUNDING)


def tick_labels(ticks: Sequence[float]) -> list[str]:
    """Ticks as text, with enough digits to tell them apart."""
    largest = max((abs(t) for t in ticks), default=0.0)
    gaps = [b - a for a, b in pairwise(ticks)] or [1.0]
    if largest >= _LARGE or largest < _SMALL:
        digits = 3 if not largest else max(3, math.ceil(math.log10(largest / min(gaps))))
        return [_exponential(t, digits) for t in ticks]
    if max(gaps) < 1.001 * min(gaps):
        digits = max(0, -math.floor(math.log10(min(gaps)) + _ROUNDING))
        return [f"{t:.{digits}f}" for t in ticks]
    return [_exponential(t, 3) if abs(t) < _SMALL else f"{t:.4g}" for t in ticks]


def _exponential(value: float, digits: int) -> str:
    """``2e6``, ``1.5e-7``."""
    if value == 0:
        return "0"
    mantissa, _, exponent = f"{value:.{digits}e}".partition("e")
    return f"{float(mantissa):.{digits + 1}g}e{int(exponent)}"


class Mark(NamedTuple):
    """A point that stands out."""

    x: float
    y: float
    label: str


class Level(NamedTuple):
    """A height to compare with, its name, and where that is: ``left``, ``center`` or ``right``."""

    name: str
    y: float
    side: str = "right"


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


def chart(
    x: Array,
    y: Array,
    mark: Mark,
    *,
    points: tuple[Array, Array, Array] | None = None,
    levels: Sequence[Level] = (),
    bands: Sequence[tuple[float, float, str]] = (),
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
        points: (m,) each: x and y of points on the line, and their errors, NaN without one.
        levels: heights with names.
        bands: from, to and colour of parts of the horizontal axis.
        width: columns in all, axis and its numbers included; 24 at least.
        height: rows of the drawing itself, without the horizontal axis and the labels.
        x_label: what the horizontal axis counts, with its unit.
        y_label: the same of the vertical one.
        unicode: whether to draw with more than ASCII; see ``render.supports_unicode``.

    Returns:
        Lines with rich's markup, none longer than ``width``.
    """
    at, heights, errors = points or (np.empty(0), np.empty(0), np.empty(0))
    bars = np.concatenate([y, heights, heights - errors, heights + errors])
    held = np.append(bars[np.isfinite(bars)], [mark.y, *(one.y for one in levels)])
    y_axis = linear_axis(held, max(3, height // _TICK_ROWS + 1))
    numbers = tick_labels(y_axis.ticks)
    gutter = max(len(n) for n in numbers)
    columns = max(width, _LEAST_WIDTH) - gutter - 1
    x_axis = log_axis(
        np.concatenate([x[np.isfinite(y)], at, np.array([mark.x])]), columns // _TICK_COLUMNS
    )
    signs = _UNICODE if unicode else _ASCII
    canvas = _Canvas(x_axis, y_axis, columns, height, signs)
    canvas.draw_curve(x, y)
    # A line without a name shows where the curve changes its sign.
    zero = [Level("", 0.0)] if y_axis.low < 0 < y_axis.high else []
    for level in (*zero, *levels):
        canvas.draw_level(level)
    canvas.draw_points(at, heights, errors)
    canvas.draw_mark(mark)
    number_at = {canvas.row(t): n for t, n in zip(y_axis.ticks, numbers, strict=True)}
    room = columns - len(signs.mark) - 1
    label = mark.label if len(mark.label) <= room else f"{mark.label[: room - 1]}~"
    indent = " " * (gutter + 1)
    return [
        render.plain(y_label[: gutter + 1 + columns]),
        *(
            f"{number_at.get(row, ''):>{gutter}}"
            f"{signs.tick if row in number_at else signs.side}{canvas.text(row)}"
            for row in range(height)
        ),
        *_base(canvas, gutter, bands),
        indent + render.plain(x_label[:columns].center(columns).rstrip()),
        f"{indent}[{_MARKED}]{signs.mark}[/] {render.plain(label)}",
    ]


class _Canvas:
    """The cells between the axes, with dots and characters in them."""

    def __init__(self, x: Axis, y: Axis, columns: int, rows: int, signs: _Signs) -> None:
        self.x, self.y, self.signs = x, y, signs
        self.across, self.down = (1, 1) if signs.dot else (_ACROSS, _DOWN)
        self.columns, self.rows = columns, rows
        self._dots = np.zeros((rows, columns), dtype=np.uint8)
        self._characters: dict[tuple[int, int], tuple[str, str]] = {}

    def place(self, x: Array, y: Array) -> tuple[Array, Array]:
        """Dots of points, not yet rounded, from the upper left corner."""
        last = self.rows * self.down - 1
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
            there = (
                first <= column < first + len(name) and (row, int(column)) not in self._characters
            )
            sign = name[column - first] if there else self.signs.level
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

    def draw_mark(self, mark: Mark) -> None:
        """The point that stands out, on top of everything else."""
        self._characters[self.cell(mark.x, mark.y)] = (self.signs.mark, _MARKED)

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
    for low, high, style in bands:
        first, last = (min(max(canvas.column(end), 0), canvas.columns - 1) for end in (low, high))
        styles[first : last + 1] = [style] * (last - first + 1)
    cells = list(zip(rule, styles, strict=True))
    return [" " * gutter + canvas.signs.corner + _marked_up(cells), render.in_places(numbers)]
