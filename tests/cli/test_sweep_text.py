"""The curve of a sweep as text: what is drawn where, numbers at the axes, widths, ASCII."""

import math
from types import SimpleNamespace
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from rich.text import Text

from phema_cli.cli.axis import linear_axis, log_axis, tick_labels
from phema_cli.cli.sweep_curve import View
from phema_cli.cli.sweep_text import lines
from phema_cli.sweep.families import Family

#: rows of the drawing itself.
ROWS = 12
NUMBERS = st.floats(-1e6, 1e6, allow_nan=False).map(lambda v: round(v, 6))
ABOVE_ZERO = st.floats(1e-3, 1e6).map(lambda v: round(v, 6))
POINTS = st.lists(st.tuples(ABOVE_ZERO, NUMBERS), min_size=1, max_size=12)


def plain(lines):
    """Lines without markup."""
    return [Text.from_markup(line).plain for line in lines]


def drawn(lines, side):
    """The rows of the drawing alone, and the column of its left cells."""
    rows = [line for line in plain(lines) if any(c in line for c in side)][:ROWS]
    first = max(rows[0].find(c) for c in side) + 1
    return [row[first:] for row in rows], first


def drawing(points, *, width, unicode=True, shape="linear", name="y", fitted=None, edge=math.inf):
    """Points as text, the first of them marked."""
    x, y = np.array(points, dtype=float).T
    family = Family(f"decay:last,shape={shape}", 1.0)
    records = tuple(SimpleNamespace(verdict="good") for _ in points)
    errors, good = np.full(len(x), np.nan), np.zeros(len(x), dtype=bool)
    view = View(family, name, records, x, y, errors, 0, good, fitted, (), edge)
    with patch("phema_cli.cli.render.supports_unicode", lambda **_: unicode):
        return lines(view, width)


@settings(deadline=None)
@given(POINTS, st.booleans(), st.integers(24, 100))
def test_the_mark_is_in_its_cell(points, unicode, width):
    """Its symbol is in the row and column that the axes' ends say, to half a dot."""
    rows, first = drawn(drawing(points, width=width, unicode=unicode), "│┤" if unicode else "|+")
    symbol = "★" if unicode else "*"
    x, y = np.array(points).T
    columns = width - first
    across, down = (2, 4) if unicode else (1, 1)
    horizontal = log_axis(x, columns // 10)
    vertical = linear_axis(y, 5)
    right = math.log(x[0] / horizontal.low) / math.log(horizontal.high / horizontal.low)
    up = (y[0] - vertical.low) / (vertical.high - vertical.low)
    dot = math.floor(right * (columns * across - 1) + 0.5)
    fall = ROWS * down - 1 - np.clip(up, 0, 1) * (ROWS * down - 1)
    expected = (math.floor(fall + 0.5) // down, dot // across)
    found = [(r, c) for r, row in enumerate(rows) for c, s in enumerate(row) if s == symbol]
    assert found == [expected]


@settings(deadline=None)
@given(POINTS, st.integers(24, 100), st.booleans())
def test_no_line_is_longer_than_the_width(points, width, unicode):
    """Whatever is drawn, labels and the mark's included, fits into the columns given."""
    shape = "the [bold]best[/] of them all, " * 5
    text = plain(drawing(points, width=width, unicode=unicode, shape=shape, name="a label " * 9))
    assert max(map(len, text)) <= width
    assert unicode or all(line.isascii() for line in text)
    # What names say is no markup.
    assert width < 80 or all("[bold]best" in line for line in text[-2:])


@settings(deadline=None)
@example((-999899.0, -999999.0), 3)
@given(st.tuples(NUMBERS, NUMBERS).filter(lambda t: t[0] != t[1]), st.integers(3, 12))
def test_ticks_are_round_numbers_apart_and_legible(ends, most):
    """Ticks are multiples of 1, 2 or 5 of a power of ten, in order, and their texts say them."""
    axis = linear_axis(np.array(ends), most)
    gaps = np.diff(axis.ticks)
    mantissa = float(f"{gaps[0]:.6e}".partition("e")[0])
    assert min(abs(mantissa - m) for m in (1, 2, 5, 10)) < 1e-3
    assert 2 <= len(axis.ticks) <= most
    assert axis.low == axis.ticks[0]
    assert axis.high == axis.ticks[-1]
    texts = tick_labels(axis.ticks)
    assert len(set(texts)) == len(texts)
    np.testing.assert_allclose([float(t) for t in texts], axis.ticks, atol=1e-3 * gaps[0])


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0.01, 1000], ["0.01", "0.1", "1", "10", "100", "1000"]),
        ([2, 40], ["2", "3", "5", "10", "20", "30"]),
        ([1e-9, 1e-3], ["1e-9", "1e-8", "1e-7", "1e-6", "1e-5", "0.0001", "0.001"]),
        ([0.041, 0.043], ["0.0410", "0.0415", "0.0420", "0.0425", "0.0430"]),
    ],
)
def test_logarithmic_ticks(values, expected):
    """Powers of ten, with what lies between where there are few."""
    axis = log_axis(np.array(values, dtype=float), 8)
    assert tick_labels(axis.ticks) == expected


def test_a_line_joins_its_points_and_a_gap_interrupts_it():
    """Every column between two points has a dot; none where the curve is not shown."""
    rows, _ = drawn(drawing([(1, 0), (10, 100)], width=60), "│┤")
    assert all(any(len(row) > c and row[c] != " " for row in rows) for c in range(56))
    x = np.arange(0.0, 101.0)
    y = np.where((x > 40) & (x < 60), 1e9, x)
    fitted = 10 ** (x / 100), y
    rows, _ = drawn(drawing([(1, 0), (10, 100)], width=60, fitted=fitted, edge=101.0), "│┤")
    used = [any(len(row) > c and row[c] not in " ┈" for row in rows) for c in range(56)]
    assert used[:22] == [True] * 22
    assert used[24:32] == [False] * 8
    assert used[34:] == [True] * 22


def test_zero_has_a_line_of_its_own():
    """Where the curve is on both sides of 0, and nowhere else."""
    for shift, there in ((0.0, True), (2.0, False)):
        text = plain(drawing([(1, shift - 1), (2, shift + 1)], width=60))
        assert any("┈┈┈" in line for line in text) == there
    text = plain(drawing([(1, -1), (2, 1)], width=60))
    assert [line[:2].strip() for line in text if "┈┈┈" in line] == ["0"]


def test_a_single_point_and_equal_ones_are_drawn():
    """One value: axes all the same, with numbers on both sides of it."""
    for points in ([(3.0, 3.0)], [(3.0, 3.0), (3.0, 3.0)], [(0.1, 0.0)]):
        text = plain(drawing(points, width=40))
        assert sum(line.count("★") for line in text) == 2
        assert sum("┤" in line for line in text) >= 2
