"""The curve of a sweep: which part of it is shown, and what marks the best."""

import re

import numpy as np
import pytest
from rich.text import Text

from phema_cli.cli import sweep_curve
from phema_cli.cli.sweep_picture import draw
from phema_cli.cli.sweep_text import lines
from phema_cli.sweep.outcome import found
from phema_cli.sweep.request import SweepRequest
from phema_cli.sweep.results import Record


def record(sigma_rel, metric, *, verdict="good", metrics=(), baseline=None, profile=None):
    """The record of an evaluation."""
    name = profile or f"gamma {sigma_rel}"
    failure = "exit code 1" if metric is None else None
    return Record(
        *(name, name, None if sigma_rel is None else 1.0, sigma_rel, metric, failure, 1.0),
        *(False, name, verdict, None, None, metrics, tuple(range(len(metrics))), baseline),
    )


def view(*records, maximize=False, name="FID"):
    """What is drawn of evaluations, each a record, or a sigma_rel and a metric."""
    records = [r if isinstance(r, Record) else record(*r) for r in records]
    asked = SweepRequest(eval="{path}", metric_key=name, maximize=maximize)
    return sweep_curve.view(found(records, 100.0, maximize=maximize), asked)


FLANK = ((0.02, 4.0), (0.03, 1.5), (0.04, 1.0), (0.06, 2.0), (0.1, 7.0), (0.2, 90.0), (0.28, 900.0))


@pytest.mark.parametrize("maximize", [False, True])
def test_a_flank_is_shown_up_to_some_times_the_other(maximize):
    """The valley is seen whatever the far end is; the best is marked, hidden points are counted."""
    sign = -1 if maximize else 1
    found = view(*((s, sign * m) for s, m in FLANK), maximize=maximize)
    assert (found.best, found.edge) == (2, sign * 14.5)
    assert found.beyond.tolist() == [False] * 5 + [True] * 2
    text = [Text.from_markup(line).plain for line in lines(found, 80)]
    assert f"best: {sign * 1} at sigma_rel 0.04; 2 further points are not shown" in text[-1]
    assert not any("900" in line or "90" in line for line in text)


@pytest.mark.parametrize(
    "points",
    [
        ((0.02, 4.0), (0.04, 1.0), (0.1, 8.0)),
        ((0.02, 1.0), (0.04, 2.0), (0.1, 3.0)),
        ((0.02, 3.0), (0.04, 2.0), (0.1, 1.0)),
        ((0.02, 1.0), (0.1, 1.0)),
        ((0.1, 1.0),),
    ],
)
def test_all_of_a_curve_is_shown_where_nothing_towers(points):
    """Flanks that are comparable, and bests at an end, beside which there is no lower flank."""
    found = view(*points)
    assert np.isinf(found.edge)
    assert not found.beyond.any()
    assert "shown" not in lines(found, 80)[-1]


@pytest.mark.parametrize("place", [0, 2, 5])
def test_an_outlier_does_not_flatten_the_curve(place):
    """Wherever it is, also where the best is at an end: what it towers over is seen."""
    metrics = [1.0, 1.2, 1.4, 1.7, 2.0, 2.4]
    metrics[place] = 500.0
    found = view(*zip((0.02, 0.03, 0.05, 0.08, 0.13, 0.2), metrics, strict=True))
    assert found.edge < 10
    assert np.flatnonzero(found.beyond).tolist() == [place]


def test_without_lengths_there_is_no_curve():
    """Failures and other profiles have no place on it."""
    assert view(record(None, 1.0, profile="raw"), (0.1, None)) is None


NOISY = [record(s, m, metrics=(m - 0.1, m + 0.1)) for s, m in FLANK[:5]]
LAST = record(None, 3.0, baseline="last weights", profile="raw", verdict="exact")


def test_points_levels_and_errors_are_in_the_drawing(monkeypatch):
    """Every evaluation is a dot of its own beside the star, the baseline a line with its name."""
    monkeypatch.setattr("phema_cli.cli.render.supports_unicode", lambda **_: True)
    for width in (80, 200):
        text = [Text.from_markup(line).plain for line in lines(view(*NOISY, LAST), width)]
        drawn = "".join(text[:-1])
        assert drawn.count("\u25cf") == 4
        assert drawn.count("\u2605") == 1
        assert any("last weights" in line and "\u2508\u2508" in line for line in text)
        assert "\u03c3_rel" in text[-2]
        assert text[0] == "FID"
        assert max(map(len, text)) <= width


def test_levels_close_to_each_other_share_a_name():
    """Else one name would hide the other; the side is that on which the curve is not."""
    beside = record(None, 3.01, baseline="stored average", profile="gamma 5")
    found = view(*FLANK[:5], LAST, beside)
    assert found.named_levels() == [("last weights, gamma 5", 3.01, "right")]
    assert len(found.levels) == 2


def test_verdicts_are_bands():
    """From the first length to the last, with their borders in the middle, in log scale."""
    verdicts = ("poor", "good", "good", "fair")
    points = [record(s, m, verdict=v) for (s, m), v in zip(FLANK, verdicts, strict=False)]
    bands = view(*points).bands()
    assert [b[2] for b in bands] == ["poor", "good", "fair"]
    assert bands[0][:2] == pytest.approx((0.02, (0.02 * 0.03) ** 0.5))
    assert bands[1][1] == bands[2][0] == pytest.approx((0.04 * 0.06) ** 0.5)


def test_the_picture_shows_all_that_is_known(tmp_path):
    """Every evaluation is a ring, errors are bars, outliers arrows; again the same bytes."""
    shown = view(*NOISY, (0.2, 90.0), (0.28, None), LAST)
    for name in ("one.svg", "two.svg"):
        draw(shown, tmp_path / name)
    drawn = (tmp_path / "one.svg").read_text()
    assert drawn == (tmp_path / "two.svg").read_text()
    assert "best: 1 at" in drawn
    assert "FID" in drawn
    assert "last weights" in drawn
    assert r"<!-- $\sigma_{\mathrm{rel}}$ -->" in drawn
    # A log scale: numbers at 0.02 and 0.03 and 0.05.
    assert {"0.02", "0.03", "0.05"} <= set(re.findall(r"<!-- (\S+) -->", drawn))
    rings = re.findall(r"<use [^>]*stroke: (#0072b2|#d55e00)", drawn)
    assert rings.count("#0072b2") >= 5
    assert rings.count("#d55e00") == 1


def test_a_picture_without_points_is_empty(tmp_path):
    """Where no length has a metric the picture has axes alone."""
    draw(None, tmp_path / "none.svg")
    drawn = (tmp_path / "none.svg").read_text()
    assert "sigma" in drawn
    assert "#0072b2" not in drawn
