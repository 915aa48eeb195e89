"""Charts as text: what is drawn where, numbers at the axes, widths, ASCII."""

import math

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from rich.text import Text

from phema_cli.cli import axes
from phema_cli.cli.chart import Curve, Mark, Rule, chart

NUMBERS = st.floats(-1e6, 1e6, allow_nan=False).map(lambda v: round(v, 6))
POINTS = st.lists(st.tuples(NUMBERS, NUMBERS), min_size=1, max_size=12)


def plain(lines):
    """Lines without markup."""
    return [Text.from_markup(line).plain for line in lines]


def drawn(lines, height, side):
    """The rows of the drawing alone, and the row and column of its upper left cell."""
    rows = [line for line in plain(lines) if any(c in line for c in side)][:height]
    first = max(rows[0].find(c) for c in side) + 1
    return [row[first:] for row in rows], first


def curve(points, kind="points"):
    """A curve through points."""
    x, y = np.array(points, dtype=float).T
    return Curve("a curve", x, y, kind)


@settings(deadline=None)
@given(POINTS, st.booleans(), st.integers(24, 100), st.integers(3, 20))
def test_every_point_is_in_its_cell(points, unicode, width, height):
    """A point's symbol is in the row and column that the axes' ends say, to half a dot."""
    lines = chart([curve(points)], width=width, height=height, unicode=unicode)
    rows, first = drawn(lines, height, "│┤" if unicode else "|+")
    symbol = "●" if unicode else "o"
    x, y = np.array(points).T
    columns = width - first
    across, down = (2, 4) if unicode else (1, 1)
    horizontal = axes.fit(x, log=False, most=columns // 10, whole=False)
    vertical = axes.fit(y, log=False, most=max(3, height // 3 + 1), whole=True)
    expected = set()
    for px, py in points:
        right = (px - horizontal.low) / (horizontal.high - horizontal.low)
        up = (py - vertical.low) / (vertical.high - vertical.low)
        dot = math.floor(right * (columns * across - 1) + 0.5)
        fall = height * down - 1 - np.clip(up, 0, 1) * (height * down - 1)
        expected.add((math.floor(fall + 0.5) // down, dot // across))
    found = {(r, c) for r, row in enumerate(rows) for c, s in enumerate(row) if s == symbol}
    assert found == expected


@settings(deadline=None)
@given(POINTS, st.sampled_from(["line", "points", "stems"]), st.booleans(), st.booleans())
def test_no_line_is_longer_than_the_width(points, kind, log, unicode):
    """Whatever is drawn, labels and legend included, fits into the columns given."""
    many = [curve(points, kind), Curve("the [bold]other[/] one" * 9, np.ones(2), np.ones(2))]
    lines = chart(
        many,
        width=50,
        height=8,
        log_x=log,
        log_y=log,
        x_label="a label " * 9,
        y_label="a label " * 9,
        mark=Mark(1, 1, "the best of them all, " * 5),
        rules=[Rule(0.5, "half")],
        unicode=unicode,
    )
    assert max(len(line) for line in plain(lines)) <= 50
    assert unicode or all(line.isascii() for line in plain(lines))


@settings(deadline=None)
@example((-999899.0, -999999.0), 3)
@given(st.tuples(NUMBERS, NUMBERS).filter(lambda t: t[0] != t[1]), st.integers(3, 12))
def test_ticks_are_round_numbers_apart_and_legible(ends, most):
    """Ticks are multiples of 1, 2 or 5 of a power of ten, in order, and their texts say them."""
    axis = axes.fit(np.array(ends), log=False, most=most, whole=True)
    gaps = np.diff(axis.ticks)
    mantissa = float(f"{gaps[0]:.6e}".partition("e")[0])
    assert min(abs(mantissa - m) for m in (1, 2, 5, 10)) < 1e-3
    assert 2 <= len(axis.ticks) <= most
    assert axis.low == axis.ticks[0]
    assert axis.high == axis.ticks[-1]
    texts = axes.written(axis.ticks)
    assert len(set(texts)) == len(texts)
    np.testing.assert_allclose([float(t) for t in texts], axis.ticks, atol=1e-3 * gaps[0])


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0.01, 1000], ["0.01", "0.1", "1", "10", "100", "1000"]),
        ([2, 40], ["2", "3", "5", "10", "20", "30", "50"]),
        ([1e-9, 1e-3], ["1e-9", "1e-8", "1e-7", "1e-6", "1e-5", "0.0001", "0.001"]),
    ],
)
def test_logarithmic_ticks(values, expected):
    """Powers of ten, with what lies between where there are few."""
    axis = axes.fit(np.array(values, dtype=float), log=True, most=8, whole=True)
    assert axes.written(axis.ticks) == expected


def test_a_line_joins_its_points_and_a_gap_interrupts_it():
    """Every column between two points has a dot; none where the curve is not finite."""
    x = np.arange(0.0, 101.0)
    y = np.where((x > 40) & (x < 60), np.nan, x)
    lines = chart([Curve("a", x, y)], width=60, height=10)
    rows, _ = drawn(lines, 10, "│┤")
    used = [any(len(row) > c and row[c] not in " ┈" for row in rows) for c in range(56)]
    assert used[:22] == [True] * 22
    assert used[24:32] == [False] * 8
    assert used[34:] == [True] * 22


def test_curves_are_told_apart_without_colours():
    """Lines, their legend and the marked point have symbols of their own; rules have labels."""
    x = np.linspace(0, 1, 50)
    lines = chart(
        [Curve("up", x, x), Curve("down", x, 1 - x)],
        width=60,
        height=9,
        mark=Mark(0.5, 0.9, "best"),
        rules=[Rule(0.25, "a quarter")],
    )
    text = plain(lines)
    assert text[-1].split() == ["●", "up", "○", "down", "★", "best"]
    drawing = "\n".join(text[:-1])
    assert drawing.count("●") >= 3
    assert drawing.count("○") >= 3
    assert drawing.count("★") == 1
    assert "a quarter" in drawing


@settings(deadline=None)
@given(st.lists(st.integers(1, 60), min_size=2, max_size=8), st.integers(24, 60))
def test_legends_are_broken_between_entries(lengths, width):
    """However long the labels are, every symbol is in the legend once and no line too long."""
    ends = np.array([0.0, 1.0])
    curves = [Curve("a" * n, ends, ends, "points") for n in lengths]
    lines = plain(chart(curves, width=width, height=3))
    assert max(map(len, lines)) <= width
    # Below three rows, the axis and its numbers.
    symbols = [c for line in lines[5:] for c in line if c in "●○◆◇▲△■□"]
    assert symbols == list("●○◆◇▲△■□"[: len(lengths)])


def test_equal_points_and_none_at_all_are_drawn():
    """One value, none, or nothing finite: axes all the same."""
    for y in ([3.0, 3.0], [np.nan, np.inf], []):
        values = np.array(y, dtype=float)
        assert chart([Curve("a", values, values)], width=40, height=5)
