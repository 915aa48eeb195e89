"""A plane of braille or ASCII cells to draw dots, lines and symbols on."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import groupby

import numpy as np

from phema_cli.cli import render
from phema_cli.cli.axes import Array, Axis

#: a cell of the terminal holds two by four dots.
_ACROSS, _DOWN = 2, 4
_BITS = np.array([[0x01, 0x08], [0x02, 0x10], [0x04, 0x20], [0x40, 0x80]], dtype=np.uint8)
_BRAILLE = 0x2800
_COLOURS = ("cyan", "magenta", "green", "yellow", "blue", "red", "default", "bright_black")


@dataclass(frozen=True, slots=True)
class Signs:
    """The characters of a drawing."""

    curves: str
    mark: str
    rule: str
    side: str
    tick: str
    corner: str
    base: str
    base_tick: str


UNICODE = Signs("●○◆◇▲△■□", "★", "┈", "│", "┤", "└", "─", "┴")
ASCII = Signs("ox+#%@&=", "*", ".", "|", "+", "+", "-", "+")


class Plane:
    """Cells with dots and characters in them, and whose they are."""

    def __init__(
        self, x: Axis, y: Axis, columns: int, rows: int, signs: Signs, unicode: bool
    ) -> None:
        self.x, self.y, self.signs = x, y, signs
        self.across, self.down = (_ACROSS, _DOWN) if unicode else (1, 1)
        self.columns, self.rows = columns, rows
        self.dots = np.zeros((rows, columns), dtype=np.uint8)
        self.owner = np.full((rows, columns), -1)
        self.text: dict[tuple[int, int], tuple[str, str]] = {}

    def place(self, x: Array, y: Array) -> tuple[Array, Array]:
        """Dots of points, not yet rounded, from the upper left corner."""
        right = self.x.dots(x, self.columns * self.across)
        last = self.rows * self.down - 1
        # What lies beyond the last tick by less than a dot is at the edge.
        return right, np.clip(last - self.y.dots(y, last + 1), 0, last)

    def cell(self, right: float, down: float) -> tuple[int, int]:
        """Row and column of a dot."""
        return nearest(down) // self.down, nearest(right) // self.across

    def line(self, start: tuple[float, float], end: tuple[float, float], owner: int) -> None:
        """Set the dots from one place to another."""
        count = int(max(abs(end[0] - start[0]), abs(end[1] - start[1]))) + 2
        right = np.floor(np.linspace(start[0], end[0], count) + 0.5).astype(int)
        down = np.floor(np.linspace(start[1], end[1], count) + 0.5).astype(int)
        cells = down // self.down, right // self.across
        bits = _BITS[down % self.down, right % self.across]
        np.bitwise_or.at(self.dots, cells, bits)
        self.owner[cells] = owner

    def lines(self) -> list[str]:
        """The rows as text with markup."""
        return [self._line(row) for row in range(self.rows)]

    def _line(self, row: int) -> str:
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
        if (row, column) in self.text:
            return self.text[row, column]
        owner, dots = int(self.owner[row, column]), int(self.dots[row, column])
        if not dots:
            return " ", ""
        sign = chr(_BRAILLE + dots) if self.across > 1 else self.signs.curves[owner % 8]
        return sign, colour(owner)


def nearest(value: float) -> int:
    """Halves go up, unlike round's."""
    return int(np.floor(value + 0.5))


def colour(index: int) -> str:
    """The colour of a curve."""
    return _COLOURS[index % len(_COLOURS)]
