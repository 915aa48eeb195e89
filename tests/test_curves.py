"""Profiles as curves: densities that integrate to their weights, jumps that show."""

import numpy as np
import pytest

from phema_cli.profiles import PowerProfile, RawProfile, WindowProfile
from phema_cli.solver import solve
from phema_cli.solver.curves import curves

SOURCES = [PowerProfile(g, t) for t in (25.0, 50.0, 75.0, 100.0) for g in (5.0, 10.0)]


@pytest.mark.parametrize(
    "target",
    [PowerProfile(7.0, 100.0), PowerProfile(60.0, 60.0), WindowProfile(80.0, 100.0)],
    ids=lambda p: f"{p.label} at {p.end:g}",
)
def test_curves_integrate_to_their_weights(target):
    """The trapezoid rule over the points finds the target's weight of 1 and the achieved one."""
    weights = solve(SOURCES, [target]).weights[:, 0]
    found = curves(SOURCES, weights, target)
    assert found.quantity == "density"
    assert (np.diff(found.times) >= 0).all()
    assert np.trapezoid(found.target, found.times) == pytest.approx(1, abs=3e-3)
    assert np.trapezoid(found.achieved, found.times) == pytest.approx(1, abs=3e-3)
    np.testing.assert_array_equal(found.difference, found.achieved - found.target)


def test_jumps_have_a_point_on_either_side():
    """At the end of a source the achieved profile falls by its weight times its last density."""
    weights = np.array([0.5, 0, 0, 0, 0, 0, 0.5, 0])
    found = curves(SOURCES, weights, PowerProfile(7.0, 100.0))
    i = int(np.searchsorted(found.times, 25.0))
    before, after = found.achieved[i - 1], found.achieved[i]
    assert found.times[i] - found.times[i - 1] < 1e-6
    assert before - after == pytest.approx(0.5 * 6 / 25, rel=1e-6)


def test_breaks_that_differ_by_rounding_are_one():
    """A window that begins where a source ends, but for a rounding, makes no spike."""
    start = np.nextafter(50.0, 0.0)
    source, target = PowerProfile(0.0, 50.0), WindowProfile(start, 100.0)
    found = curves([source, PowerProfile(0.0, 100.0)], np.array([-1.0, 2.0]), target)
    np.testing.assert_allclose(found.achieved, found.target, atol=1e-12)


def test_single_points_are_shown_by_what_has_come_up_to_a_time():
    """Raw weights have no density: their cumulative weight steps up at each of them."""
    sources = [RawProfile(t) for t in (10.0, 20.0)]
    found = curves(sources, np.array([0.25, 0.75]), PowerProfile(1.0, 20.0), dense=False)
    assert found.quantity == "cumulative"
    assert found.achieved[found.times < 10].tolist() == [0.0] * int((found.times < 10).sum())
    np.testing.assert_allclose(found.achieved[found.times > 10], 0.25)
    np.testing.assert_allclose(found.target, (found.times / 20) ** 2)


def test_curves_end_where_nothing_weighs_any_more():
    """Later sources of no weight to speak of make a curve no longer; those that weigh do."""
    target = PowerProfile(7.0, 50.0)
    alone = np.eye(8)[2]
    assert curves(SOURCES, alone, target).times[-1] == pytest.approx(50)
    assert curves(SOURCES, alone + 1e-6 * np.eye(8)[6], target).times[-1] == pytest.approx(50)
    assert curves(SOURCES, alone + 0.1 * np.eye(8)[4], target).times[-1] == pytest.approx(75)
