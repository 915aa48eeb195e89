"""The curve of a sweep: which part of it is shown, and what marks the best."""

import re

import numpy as np
import pytest
from rich.text import Text

from phema_cli.cli.sweep_curve import draw, lines, valley
from phema_cli.sweep.results import Record
from phema_cli.sweep.run import Outcome


def outcome(*points):
    """The outcome of evaluations, each a sigma_rel and a metric."""
    records = [
        Record(str(s), str(s), 1.0, s, m, None, 1.0, False, str(s), "good", None, None)
        for s, m in points
    ]
    return Outcome(tuple(records), records[0], "inside", None)


FLANK = ((0.02, 4.0), (0.03, 1.5), (0.04, 1.0), (0.06, 2.0), (0.1, 7.0), (0.2, 90.0), (0.28, 900.0))


@pytest.mark.parametrize("maximize", [False, True])
def test_a_flank_is_shown_up_to_five_times_the_other(maximize):
    """The valley is seen whatever the far end is; the best is marked, hidden points are counted."""
    sign = -1 if maximize else 1
    found = valley(outcome(*((s, sign * m) for s, m in FLANK)), maximize=maximize)
    assert (found.best, found.edge) == (2, sign * 16.0)
    assert found.beyond.tolist() == [False] * 5 + [True] * 2
    text = [Text.from_markup(line).plain for line in lines(found, 80)]
    assert f"best: {sign * 1} at sigma_rel 0.04; 2 further points are not shown" in text[-1]
    assert "0.2" not in text[-3]
    assert not any("900" in line or "90" in line for line in text)


@pytest.mark.parametrize(
    "points",
    [
        ((0.02, 4.0), (0.04, 1.0), (0.1, 16.0)),
        ((0.02, 1.0), (0.04, 2.0), (0.1, 90.0)),
        ((0.02, 90.0), (0.04, 2.0), (0.1, 1.0)),
        ((0.02, 1.0), (0.1, 1.0)),
        ((0.1, 1.0),),
    ],
)
def test_all_of_a_curve_is_shown_where_nothing_towers(points):
    """Flanks that are comparable, and bests at an end, beside which there is no lower flank."""
    found = valley(outcome(*points), maximize=False)
    assert np.isinf(found.edge)
    assert not found.beyond.any()
    assert "shown" not in lines(found, 80)[-1]


def test_half_of_the_points_are_shown():
    """A low end that is as good as the best hides no more than half of the others."""
    found = valley(outcome((0.02, 1.001), (0.03, 1.0), (0.05, 3.0), (0.1, 9.0)), maximize=False)
    assert found.edge == pytest.approx(1.0 + (0.001 + 2.0) / 2)
    assert found.beyond.sum() == 2


def test_without_power_functions_there_is_no_curve():
    """Failures and other profiles have no place on it."""
    assert valley(outcome((None, 1.0), (0.1, None)), maximize=False) is None


def test_the_picture_marks_the_best(tmp_path):
    """Every evaluation with a metric is a point; a second run makes the same bytes."""
    curve = valley(outcome((0.05, 4.0), (0.1, 3.0), (0.15, 3.5), (0.2, None)), maximize=False)
    for name in ("one.svg", "two.svg"):
        draw(curve, tmp_path / name, "FID")
    drawn = (tmp_path / "one.svg").read_text()
    assert drawn == (tmp_path / "two.svg").read_text()
    assert "best: 3 at sigma_rel 0.1, gamma 6.94" in drawn
    assert "FID" in drawn
    (line,) = re.findall(r'<path d="(M [^"]*)" clip-path[^>]*stroke: #0072b2', drawn, re.DOTALL)
    assert len(re.findall(r"[ML]", line)) == 3


def test_a_picture_without_points_is_empty(tmp_path):
    """Where no power function has a metric the picture has axes alone."""
    draw(None, tmp_path / "none.svg", "FID")
    drawn = (tmp_path / "none.svg").read_text()
    assert "sigma_rel" in drawn
    assert "#0072b2" not in drawn
