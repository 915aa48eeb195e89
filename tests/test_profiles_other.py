"""Profiles beside the power function: closed forms, brute-force averages, and what is refused."""

import numpy as np
import pytest

from phema_cli.errors import UsageError
from phema_cli.profiles import (
    PROFILES,
    ExponentialProfile,
    PowerProfile,
    RawProfile,
    TableProfile,
    WindowProfile,
    parse_profile,
)
from phema_cli.solver import solve
from phema_cli.trainers.registry import parse_law

STEPS = 600
AT = np.arange(1, STEPS + 1)


@pytest.fixture(scope="module")
def path():
    """A trajectory with drift and noise: row 0 before training, then one row a step."""
    random = np.random.default_rng(1)
    return (
        random.standard_normal((STEPS + 1, 50)).cumsum(axis=0)
        + np.linspace(0, 9, STEPS + 1)[:, None]
    )


def averaged(profile, path):
    """The average of the trajectory: each step weighs F(s) - F(s-1), the start F(0)."""
    weights = np.diff(profile.cdf(np.arange(0.0, len(path))), prepend=0.0)
    return weights @ path


def test_exponential_is_the_ema_of_constant_decay(path):
    """The profile's weights are those of ``ema = beta ema + (1 - beta) theta``, start included."""
    beta, ema = 0.99, path[0]
    for theta in path[1:]:
        ema = beta * ema + (1 - beta) * theta
    np.testing.assert_allclose(
        averaged(parse_profile("exponential:beta=0.99").ending_at(600.0), path), ema
    )
    half = parse_profile("exponential:halflife=50").ending_at(600.0)
    assert half.cdf(np.array([550.0]))[0] == pytest.approx(0.5)


def test_uniform_is_the_mean_of_the_last_steps(path):
    """A fifth of the run, or a number of steps, is the plain mean over them."""
    for text in ("uniform:last=0.2", "uniform:last=120"):
        made = averaged(parse_profile(text).ending_at(600.0), path)
        np.testing.assert_allclose(made, path[-120:].mean(axis=0))


def test_cooldown_is_what_a_linear_decay_of_the_learning_rate_gives(path):
    """Increments that shrink linearly to nothing lead to the average that the profile gives.

    The increment of the first step of the window counts whole, that of the last one 1/L.
    """
    length = 150
    scale = 1 - np.arange(length) / length
    increments = np.diff(path[-length - 1 :], axis=0)
    cooled = path[-length - 1] + scale @ increments
    made = averaged(parse_profile("cooldown:last=0.25").ending_at(600.0), path)
    np.testing.assert_allclose(made, cooled)


def test_a_table_is_the_average_with_its_weights(path):
    """Weights on a triangle, given by three points, are those of the brute-force average."""
    profile = TableProfile((0.0, 300.0, 600.0), (0.0, 2.0, 0.0), "csv:triangle")
    middle = AT - 0.5
    weights = np.minimum(middle, 600 - middle)
    np.testing.assert_allclose(
        averaged(profile, path), weights / weights.sum() @ path[1:], rtol=1e-4
    )


@pytest.mark.parametrize(
    "profile",
    [
        PowerProfile(3.0, 500.0),
        ExponentialProfile(0.01, 500.0),
        WindowProfile(100.0, 500.0),
        WindowProfile(0.0, 500.0),
        RawProfile(500.0),
        TableProfile((0.0, 100.0, 500.0), (1.0, 3.0, 0.5)),
        TableProfile((50.0, 500.0), (0.0, 1.0)),
        parse_law("timm:beta=0.99,warmup=1,power=0.75").profile(500.0),
        parse_law("warmup:beta=0.9,start=100").profile(500.0),
        parse_law("exponential:beta=0.98,start=30").profile(500.0),
    ],
    ids=lambda p: p.label,
)
def test_density_is_the_derivative_of_the_cdf(profile):
    """F rises from F(0) to 1 at the end, and the density integrates to the difference."""
    t = np.linspace(0, 500, 200_001)
    f, p = profile.cdf(t), profile.density(t)
    assert f[-1] == pytest.approx(1.0)
    assert (np.diff(f) >= 0).all()
    assert profile.cdf(np.array([600.0]))[0] == pytest.approx(1.0)
    assert profile.density(np.array([600.0]))[0] == 0
    assert profile.breaks[-1] == profile.end == 500
    if profile.square_integrable:
        inside = (p[1:] + p[:-1]) / 2 * np.diff(t)
        np.testing.assert_allclose(f[0] + inside.cumsum(), f[1:], atol=1e-4)


@pytest.mark.parametrize(
    "text",
    ["uniform:last=0.5", "cooldown:last=0.25", "exponential:halflife=60", "exponential:beta=0.98"],
)
def test_targets_of_other_profiles_are_met(text, path):
    """From snapshots of two gammas each profile is built within a hundredth of what it moves."""
    ends = np.arange(25.0, 601.0, 25.0)
    sources = [PowerProfile(g, t) for g in (5.0, 16.0) for t in ends]
    stored = np.array([averaged(s, path) for s in sources])
    target = parse_profile(text).ending_at(600.0)
    solution = solve(sources, [target])
    truth = averaged(target, path)
    error = np.sqrt(np.mean((solution.weights[:, 0] @ stored - truth) ** 2))
    moved = np.sqrt(np.mean((path[-1] - truth) ** 2))
    assert error < 0.03 * moved
    assert solution.figures[0].sigma_error is None
    assert solution.figures[0].profile_error is not None


def test_raw_target_of_raw_snapshots_is_that_snapshot():
    """Raw weights that are stored come back, and others are met no better than they can be."""
    sources = [RawProfile(float(t)) for t in (10, 20, 30)]
    solution = solve(sources, [RawProfile(30.0), RawProfile(25.0)])
    assert solution.weights[:, 0].tolist() == [0, 0, 1]
    assert solution.figures[0].expected_error == 0
    assert solution.figures[1].verdict == "poor"
    assert solution.figures[1].profile_error is None


@pytest.mark.parametrize("text", ["exponential:beta=.98", "exponential:beta=98e-2"])
def test_a_stored_exponential_is_that_average_by_any_name(text):
    """The way in which its numbers are written is no difference: weight 1."""
    stored = [parse_law("exponential:beta=0.98").profile(float(t)) for t in (100, 200, 300)]
    weights = solve(stored, [parse_profile(text).ending_at(200.0)]).weights
    assert weights[:, 0].tolist() == [0, 1, 0]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("triangle", "no profile 'triangle'; one of uniform"),
        ("uniform", "needs last"),
        ("uniform:last=0", "needs last"),
        ("uniform:last=x", "'last=x' is not a parameter"),
        ("uniform:first=0.2", "needs last"),
        ("exponential:beta=1", "needs beta"),
        ("exponential:halflife=0", "needs beta"),
        ("exponential:beta=0.9,halflife=3", "needs beta"),
        ("raw:step=3", "raw has no parameters"),
    ],
)
def test_what_is_no_profile_is_refused(text, message):
    """Each refusal quotes what was written and says how it is written."""
    with pytest.raises(UsageError, match=message):
        parse_profile(text)


@pytest.mark.parametrize(
    "make",
    [
        lambda: ExponentialProfile(0.0, 1.0),
        lambda: ExponentialProfile(0.1, 0.0),
        lambda: WindowProfile(3.0, 3.0),
        lambda: RawProfile(float("inf")),
        lambda: TableProfile((0.0,), (1.0,)),
        lambda: TableProfile((1.0, 1.0), (1.0, 1.0)),
        lambda: TableProfile((0.0, 1.0), (0.0, 0.0)),
        lambda: TableProfile((0.0, 1.0), (-1.0, 2.0)),
        lambda: TableProfile((0.0, float("nan")), (1.0, 1.0)),
    ],
)
def test_profiles_that_do_not_exist_are_refused(make):
    """Lengths, times and weights out of range raise where they are given."""
    with pytest.raises(UsageError):
        make()


def test_every_registered_profile_is_documented():
    """Help text names each row of the registry."""
    from phema_cli.profiles import HELP

    assert all(name in HELP for name in PROFILES)


def test_short_exponentials_at_the_end_of_long_runs_are_resolved():
    """With a half-life far below the gaps of snapshots, errors scale as the averaging distance."""
    sources = [PowerProfile(g, e) for e in (2.5e6, 5e6, 7.5e6, 1e7) for g in (5.0, 10.0)]
    targets = [parse_profile(f"exponential:halflife={h}").ending_at(1e7) for h in (200, 2, 0.2)]
    long, *short = solve(sources, targets).figures
    for figures, factor in zip(short, (100, 1000), strict=True):
        assert figures.expected_error == pytest.approx(long.expected_error * factor, rel=0.01)
        assert figures.profile_error == pytest.approx(1.0, abs=0.01)


@pytest.mark.parametrize("last", [0.0, 1e-9])
def test_a_tail_without_weight_counts_in_the_distance(last):
    """What averaging moves the final weights counts up to the end, not to the last weight."""
    sources = [PowerProfile(g, e) for e in (500.0, 1000.0) for g in (5.0, 10.0)]
    times = (0.0, 380.0, 381.0, 1000.0)
    table = TableProfile(times, (1.0, 1.0, 0.0, last))
    reference = TableProfile(times, (1.0, 1.0, 0.0, 1e-7))
    found, near = (solve(sources, [t]).figures[0].expected_error for t in (table, reference))
    assert found == pytest.approx(near, rel=1e-3)


def test_heights_of_a_table_may_be_as_large_as_floats_are():
    """Only ratios of heights count, so none overflow."""
    table = TableProfile((0.0, 1.0, 2.0), (1e308, 1e308, 1e308))
    np.testing.assert_allclose(table.cdf(np.array([0.5, 1.0, 2.0])), [0.25, 0.5, 1.0])
