"""The search for the best length, on curves whose optimum is known, smooth and noisy."""

import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from phema_cli.solver.search import (
    FURTHER_POINTS,
    GRID_POINTS,
    Limits,
    Point,
    next_scales,
    optimum,
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


TOTAL = GRID_POINTS + FURTHER_POINTS


def search(metric, lowest, highest, *, limits=None, total=TOTAL, maximize=False, count=1):
    """The grid over a range and further points, as a sweep without options takes them."""
    sign = -1 if maximize else 1
    limits = limits or Limits(lowest, highest)
    grid = spread_out(lowest, highest, whole=limits.whole)
    points = [Point(s, sign * metric(s)) for s in grid]
    while len(points) < total:
        left = total - len(points)
        scales = next_scales(points, limits, left=left, count=count, maximize=maximize)
        if not scales:
            break
        assert all(limits.low <= s <= limits.high for s in scales)
        points += [Point(s, sign * metric(s)) for s in scales]
    assert len({p.scale for p in points}) == len(points) <= total
    return points, optimum(points, maximize=maximize)


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
    at = math.exp(math.log(lowest) + place * math.log(highest / lowest))

    def metric(sigma_rel):
        return CURVES[curve](math.log(sigma_rel / at))

    height = max(1.0, *(abs(metric(s)) for s in (lowest, at, highest)))
    points, best = search(
        lambda s: scale * (metric(s) / height), lowest, highest, total=12, maximize=maximize
    )
    assert not best.fitted
    assert points[best.best].scale == best.scale
    assert abs(best.scale / at - 1) <= 0.05


#: where the optimum is, the range of the first grid, and what may be evaluated.
PLACES = [
    (optimum, *ranges)
    for optimum in (0.015, 0.06, 0.28)
    for ranges in (((0.03, 0.2), Limits(0.008, 0.2886)), ((0.02, 0.28), Limits(0.01, 0.2886)))
]
#: windows of a run: its fractions, and checkpoints of 200.
WINDOWS = [
    (0.03, (0.05, 0.8), Limits(0.01, 1.0)),
    (0.3, (0.05, 0.8), Limits(0.01, 1.0)),
    (0.7, (0.02, 0.5), Limits(0.01, 1.0)),
    (7, (5, 200), Limits(1, 200, whole=True)),
    (60, (5, 200), Limits(1, 200, whole=True)),
]
#: how much a metric rises at a factor of four beside the optimum: the depth of the valley.
DEPTH = math.log(4) ** 2


def nearest(scale, limits):
    """What is a length: a whole number where lengths are that."""
    return round(scale) if limits.whole else scale


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize(("at", "grid", "limits"), PLACES + WINDOWS)
def test_an_optimum_beyond_the_grid_is_found(at, grid, limits, count):
    """A valley quadratic in log scale: within 5 %, in at most 14 evaluations, two at a time too."""
    _, best = search(lambda s: math.log(s / at) ** 2, *grid, limits=limits, count=count)
    assert abs(nearest(best.scale, limits) / at - 1) <= 0.05
    assert best.noise is None


@pytest.mark.slow
@pytest.mark.parametrize(("at", "grid", "limits"), PLACES + WINDOWS)
def test_a_noisy_optimum_is_found(at, grid, limits):
    """With noise of 5 % of the depth: within 10 %, or one checkpoint, in 18 of 20 seeds."""
    near = 0
    for seed in range(20):
        random = np.random.default_rng(seed)
        points, best = search(
            lambda s, random=random: math.log(s / at) ** 2 + 0.05 * DEPTH * random.normal(),
            *grid,
            limits=limits,
        )
        near += abs(points[best.best].scale - at) <= max(0.1 * at, limits.whole)
    assert near >= 18


def test_noise_is_measured_and_tells_what_is_as_good():
    """By repetitions, or by what is left of a smooth curve; lengths far off are not as good."""
    for count in (1, 4):
        found = []
        for seed in range(10):
            random = np.random.default_rng(seed)
            points = []
            for scale in np.geomspace(0.02, 0.25, 24):
                values = math.log(scale / 0.07) ** 2 + 0.1 * random.standard_normal(count)
                variance = float(values.var(ddof=1)) if count > 1 else None
                points.append(Point(float(scale), float(values.mean()), count, variance))
            best = optimum(points)
            assert best.fitted
            found.append(best.noise)
            good = [p.scale for p, as_good in zip(points, best.as_good, strict=True) if as_good]
            assert points[best.best].scale in good
            assert all(0.03 < scale < 0.16 for scale in good)
            # What is as good is an interval.
            places = [i for i, as_good in enumerate(best.as_good) if as_good]
            assert all(b - a == 1 for a, b in pairwise(places))
        assert 0.07 < np.mean(found) < 0.13


def test_the_lucky_evaluation_is_not_the_best():
    """One that noise has made lowest, far from the ground of the valley, is not taken."""
    points = [Point(float(s), math.log(s / 0.07) ** 2) for s in np.geomspace(0.02, 0.25, 11)]
    random = np.random.default_rng(1)
    points = [Point(p.scale, p.metric + 0.1 * random.standard_normal()) for p in points]
    points[1] = Point(points[1].scale, min(p.metric for p in points) - 0.01)
    best = optimum(points)
    assert best.fitted
    assert best.best != 1
    assert abs(best.scale / 0.07 - 1) < 0.3


metrics = st.none() | st.floats(-1e308, 1e308) | st.sampled_from([0.0, 1.0])


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.floats(0.001, 0.288), metrics), unique_by=lambda p: p[0], max_size=20),
    st.booleans(),
    st.integers(1, 3),
    st.randoms(),
)
def test_any_points_have_next_ones_or_none(pairs, maximize, count, random):
    """Noise, failures, equals, clusters: what comes next is new and within the limits."""
    points = [Point(*pair) for pair in pairs]
    limits = Limits(0.0005, 0.2885)
    found = next_scales(points, limits, left=9, count=count, maximize=maximize)
    assert len(found) <= count
    for i, scale in enumerate(found):
        assert limits.low <= scale <= limits.high
        others = [p.scale for p in points] + found[:i]
        assert all(abs(math.log(scale / other)) > 0.0039 for other in others)
    best = optimum(points, maximize=maximize)
    assert (best is None) == all(p.metric is None for p in points)
    if best is not None:
        assert points[best.best].metric is not None
        assert best.as_good[best.best]
    random.shuffle(points)
    if len({p.metric for p in points}) == len(points):
        assert next_scales(points, limits, left=9, maximize=maximize) == found[:1]


def position_of(points, *, maximize=False):
    """Where the best of some points stands; none is alone too."""
    best = optimum(points, maximize=maximize)
    return "alone" if best is None else best.position


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
    assert position_of(points) == expected
    negated = [Point(p.scale, None if p.metric is None else -p.metric) for p in points]
    assert position_of(negated, maximize=True) == expected


@pytest.mark.parametrize("metrics", [[1, 1, 1], [1, None, None], []])
def test_nothing_to_be_gained_ends_the_search(metrics):
    """Equal metrics and a single one say nothing of where the best is."""
    points = [Point(s, m) for s, m in zip((0.05, 0.1, 0.2), metrics, strict=False)]
    assert next_scales(points, Limits(0.01, 0.28), left=9) == []


def test_an_optimum_at_the_end_of_the_limits_is_closed_in_on():
    """The last points come within 5 % of the end, so that the end is known to be the best."""
    points, best = search(lambda s: s, 0.05, 0.2)
    assert best.scale == 0.05
    others = sorted(p.scale for p in points)
    assert others[1] < 0.05 * 1.05
    assert best.position == "lowest"


def test_a_search_leaves_its_grid_and_stays_within_limits():
    """Where the best is at an edge the next point is beyond it, up to the limit and no further."""
    points, best = search(lambda s: s, 0.05, 0.2, limits=Limits(0.013, 0.25))
    scales = [p.scale for p in points]
    assert scales[GRID_POINTS] == pytest.approx(0.05 * math.exp(-0.55), rel=1e-3)
    assert best.scale == min(scales) == 0.013
    assert max(scales) == 0.2


def test_failures_are_kept_away_from():
    """A point that failed is not tried again, nor one next to it; the search goes on elsewhere."""
    points = [Point(0.05, 4.0), Point(0.1, 1.0), Point(0.2, 4.0)]
    tried = []
    for _ in range(4):
        (scale,) = next_scales(points, Limits(0.05, 0.2), left=9)
        tried.append(scale)
        points.append(Point(scale, None))
    assert len(set(tried)) == 4


def test_the_grid_keeps_to_its_range():
    """Rounding to three digits doesn't lead outside; a range of one point is a grid of one."""
    grid = spread_out(0.04449, 0.28449)
    assert grid[0] == 0.0445
    assert grid[-1] == 0.284
    assert list(grid) == sorted(grid)
    assert spread_out(0.1, 0.1) == (0.1,)
    assert spread_out(1, 8, whole=True) == (1, 2, 3, 5, 8)
