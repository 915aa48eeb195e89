"""The search for the best sigma_rel, on curves whose optimum is known."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from phema_cli.solver.search import (
    FURTHER_POINTS,
    GRID_POINTS,
    Point,
    next_sigma_rel,
    position,
    spread_out,
)

#: metric over u = log(sigma_rel / optimum): falling, then rising; kinked, lopsided, flat, concave.
CURVES = {
    "parabola": lambda u: u * u,
    "kink": abs,
    "lopsided kink": lambda u: 5 * u if u > 0 else -u,
    "lopsided parabola": lambda u: u * u if u > 0 else 9 * u * u,
    "half kink": lambda u: 20 * u if u > 0 else u * u,
    "quartic": lambda u: u**4,
    "exponential": lambda u: math.exp(6 * u) - 6 * u,
    "linear in sigma_rel": lambda u: (math.exp(u) - 1) ** 2,
    "well": lambda u: -math.exp(-4 * u * u),
}


def search(metric, lowest, highest, *, maximize=False):
    """The grid over a range and further points, as a sweep without options takes them."""
    sign = -1 if maximize else 1
    points = [Point(s, sign * metric(s)) for s in spread_out(lowest, highest)]
    while len(points) < GRID_POINTS + FURTHER_POINTS:
        sigma_rel = next_sigma_rel(points, maximize=maximize)
        if sigma_rel is None:
            break
        assert min(p.sigma_rel for p in points) < sigma_rel < max(p.sigma_rel for p in points)
        assert all(abs(math.log(sigma_rel / p.sigma_rel)) > 0.019 for p in points)
        points.append(Point(sigma_rel, sign * metric(sigma_rel)))
    return points, min(points, key=lambda p: sign * p.metric)


@pytest.mark.parametrize("curve", CURVES)
@settings(max_examples=40, deadline=None)
@given(
    lowest=st.floats(0.01, 0.1),
    width=st.floats(1.5, 14),
    place=st.floats(0, 1),
    scale=st.sampled_from([1e-6, 1.0, 1e300]),
    maximize=st.booleans(),
)
def test_the_optimum_is_found_in_twelve(curve, lowest, width, place, scale, maximize):
    """Wherever it lies in a range of up to 1 to 14, in units however small or large: within 5 %."""
    highest = min(lowest * width, 0.288)
    optimum = math.exp(math.log(lowest) + place * math.log(highest / lowest))

    def metric(sigma_rel):
        return CURVES[curve](math.log(sigma_rel / optimum))

    height = max(1.0, *(abs(metric(s)) for s in (lowest, optimum, highest)))
    points, best = search(
        lambda s: scale * (metric(s) / height), lowest, highest, maximize=maximize
    )
    assert len(points) <= 12
    assert abs(best.sigma_rel / optimum - 1) <= 0.05


metrics = st.none() | st.floats(-1e308, 1e308) | st.sampled_from([0.0, 1.0])


@given(
    st.lists(st.tuples(st.floats(0.001, 0.288), metrics), unique_by=lambda p: p[0]),
    st.booleans(),
    st.randoms(),
)
def test_any_points_have_a_next_one_inside_or_none(pairs, maximize, random):
    """Noise, failures, equals, clusters: the next point is new and inside, whatever the order."""
    points = [Point(*pair) for pair in pairs]
    found = next_sigma_rel(points, maximize=maximize)
    random.shuffle(points)
    ties = len({p.metric for p in points}) < len(points)
    if found is not None:
        known = [p.sigma_rel for p in points if p.metric is not None]
        assert min(known) <= found <= max(known)
        assert all(abs(math.log(found / p.sigma_rel)) > 0.019 for p in points)
    if not ties:
        assert next_sigma_rel(points, maximize=maximize) == found


@pytest.mark.parametrize(
    ("metrics", "expected"),
    [
        ([3, 1, 2], "inside"),
        ([1, 2, 3], "lowest"),
        ([3, 2, 1], "highest"),
        ([1, 1, 1], "flat"),
        ([None, 1, None], "alone"),
        ([None, None, None], "alone"),
        ([None, 1, 2], "lowest"),
    ],
)
def test_where_the_best_stands(metrics, expected):
    """An end of what was evaluated is told from an optimum between points."""
    points = [Point(s, m) for s, m in zip((0.05, 0.1, 0.2), metrics, strict=True)]
    assert position(points) == expected
    negated = [Point(p.sigma_rel, None if p.metric is None else -p.metric) for p in points]
    assert position(negated, maximize=True) == expected


@pytest.mark.parametrize("metrics", [[1, 1, 1], [1, None, None], []])
def test_nothing_to_be_gained_ends_the_search(metrics):
    """Equal metrics and a single one say nothing of where the best is."""
    points = [Point(s, m) for s, m in zip((0.05, 0.1, 0.2), metrics, strict=False)]
    assert next_sigma_rel(points) is None


def test_an_optimum_at_the_end_of_the_range_is_closed_in_on():
    """The last points come within 5 % of the end, so that the end is known to be the best."""
    points, best = search(lambda s: s, 0.05, 0.2)
    assert best.sigma_rel == 0.05
    others = sorted(p.sigma_rel for p in points)
    assert others[1] < 0.05 * 1.05
    assert next_sigma_rel(points) is None
    assert position(points) == "lowest"


def test_failures_are_kept_away_from():
    """A point that failed is not tried again, nor one next to it; the search goes on elsewhere."""
    points = [Point(0.05, 4.0), Point(0.1, 1.0), Point(0.2, 4.0)]
    tried = []
    for _ in range(4):
        sigma_rel = next_sigma_rel(points)
        tried.append(sigma_rel)
        points.append(Point(sigma_rel, None))
    assert len(set(tried)) == 4


def test_the_grid_keeps_to_its_range():
    """Rounding to three digits doesn't lead outside; a range of one point is a grid of one."""
    grid = spread_out(0.04449, 0.28449)
    assert grid[0] == 0.0445
    assert grid[-1] == 0.284
    assert list(grid) == sorted(grid)
    assert spread_out(0.1, 0.1) == (0.1,)
