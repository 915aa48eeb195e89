"""Planning: closed forms, what is assumed of a run, and the search for the best snapshots."""

import math
from dataclasses import replace

import numpy as np
import pytest

from phema_cli.errors import UsageError
from phema_cli.formats.packing import FOLLOWED, KEYFRAME_EVERY, encode, fit
from phema_cli.profiles import PowerProfile, gamma_from_sigma_rel
from phema_cli.solver import Sample, calibrate, solve, storage_noise
from phema_cli.solver.assumptions import (
    SCHEDULES,
    Assumption,
    Packing,
    earlier,
    packed,
    parse_schedule,
    scheduled,
)
from phema_cli.solver.movement import Rounding
from phema_cli.solver.planning import (
    Aim,
    best_gammas,
    best_plan,
    evenly,
    figures,
    worst_error,
)
from tests.builders import ema_weights

pytestmark = pytest.mark.slow

EDM2 = (gamma_from_sigma_rel(0.05), gamma_from_sigma_rel(0.10))
TARGETS = (0.03, 0.06, 0.12, 0.2)


def assumed(schedule, *, steps=4096, bits=10):
    """What a plan assumes under a schedule."""
    rate = parse_schedule(schedule)
    if rate is None:
        return Assumption(None, storage_noise(bits))
    return Assumption(scheduled(rate, steps, bits))


@pytest.mark.parametrize("gammas", [(7.0,), (5.0, 10.0), EDM2])
@pytest.mark.parametrize("count", [32, 128])
@pytest.mark.parametrize("target", [3.0, 8.0, 20.0])
def test_profile_errors_follow_the_closed_form(gammas, count, target):
    """The projection's profile_error for evenly spaced snapshots is its asymptotic closed form.

    For G gammas stored together, n times, ``prod |r - g| G! / ((2G)! sqrt(2G + 1)) n^-G
    sqrt((2r + 1)/(2r + 1 - 2G))``, which is never below it and for G up to 2 hardly above.
    """
    plan = evenly(count * 10, gammas, count)
    goal = PowerProfile(target, float(plan.steps))
    (found,) = solve(plan.profiles, [goal], method="projection").figures
    n = len(gammas)
    closed = math.prod(abs(target - g) for g in gammas) * math.factorial(n)
    closed *= count**-n / (math.factorial(2 * n) * math.sqrt(2 * n + 1))
    closed *= math.sqrt((2 * target + 1) / (2 * target + 1 - 2 * n))
    assert found.profile_error is not None
    assert found.profile_error <= closed * (1 + 1e-9)
    assert found.profile_error == pytest.approx(closed, rel=0.06)


@pytest.mark.parametrize(
    ("steps", "count", "times"),
    [(12, 4, (3, 6, 9, 12)), (10, 4, (3, 6, 9, 10)), (10, 1, (10,)), (3, 64, (1, 2, 3))],
)
def test_snapshots_are_evenly_spaced_and_end_with_the_run(steps, count, times):
    """There are at most as many as asked for, at whole steps, and the last step is one."""
    assert evenly(steps, (10, 5), count).times == times
    assert evenly(steps, (10, 5), count).gammas == (5, 10)


@pytest.mark.parametrize("schedule", ["constant", "rsqrt", "cosine", "walk"])
@pytest.mark.parametrize("bits", [7, 10, 23])
def test_the_best_pair_beats_edm2s(schedule, bits):
    """With as many snapshots the chosen pair's worst target is better served."""
    aim = Aim(4096, 0.03, 0.2, assumed(schedule, bits=bits))
    best = evenly(aim.steps, best_gammas(aim, 2, 16), 16)
    assert worst_error(best, aim) < worst_error(evenly(aim.steps, EDM2, 16), aim)


def test_a_narrow_range_has_gammas_that_differ():
    """Where all gammas of the list are far from the range they still are no two alike."""
    aim = Aim(1000, 0.0095, 0.0100, assumed("walk"))
    assert len(set(best_gammas(aim, 3, 6))) == 3


@pytest.mark.parametrize("gammas", [(), (5.0, 10.0)])
def test_more_files_never_give_a_worse_plan(gammas):
    """The worst error falls or stays as files are allowed; no plan has more than that."""
    aim = Aim(4096, 0.04, 0.2, assumed("cosine"))
    worst = math.inf
    for files in (8, 11, 25, 40):
        plan = best_plan(aim, files, gammas)
        assert plan.files <= files
        assert worst_error(plan, aim) <= worst
        worst = worst_error(plan, aim)


def test_too_few_files_are_no_plan():
    """Below four snapshots of each gamma nothing is planned."""
    aim = Aim(4096, 0.04, 0.2, assumed("walk"))
    assert best_plan(aim, 4).files == 4
    for files, gammas in ((3, ()), (7, (5.0, 10.0))):
        with pytest.raises(UsageError, match="too few"):
            best_plan(aim, files, gammas)


@pytest.mark.parametrize("name", SCHEDULES)
def test_rates_are_those_of_the_schedule(name):
    """A rate is 1 at its peak and never above; its last value is what the schedule says."""
    rate = parse_schedule(name)
    assert rate is not None
    u = np.linspace(0.001, 1, 400)
    last = {"constant": 1.0, "rsqrt": 0.25}.get(name, 0.0)
    assert rate(u).max() == pytest.approx(1, abs=2e-3)
    assert rate(u)[-1] == pytest.approx(last, abs=1e-12)
    drift = scheduled(rate, 1e6, 10).drift
    assert np.isfinite(drift).all()
    assert (drift > 0).all()


def test_parameters_of_schedules():
    """Where a schedule ends or begins to fall can be said."""
    u = np.array([0.5, 1.0])
    for text, values in (
        ("cosine:end=0.1", (0.55, 0.1)),
        ("linear:end=0.5", (0.75, 0.5)),
        ("wsd:last=0.5", (1.0, 0.0)),
        ("rsqrt:start=0.25", (math.sqrt(0.5), 0.5)),
    ):
        rate = parse_schedule(text)
        assert rate is not None
        np.testing.assert_allclose(rate(u), values, atol=1e-12)


@pytest.mark.parametrize(
    "text",
    ["", "cos", "cosine:last=0.2", "cosine:end=two", "wsd:last=0", "walk:end=1", "wsd:last=2"],
)
def test_what_is_no_schedule_is_refused(text):
    """Unknown names, foreign parameters and values outside of 0 to 1 are errors with a remedy."""
    with pytest.raises(UsageError, match="schedule") as caught:
        parse_schedule(text)
    assert caught.value.remedy is not None


def walked(plan, *, elements=400):
    """Snapshots of a random walk and what is measured by them."""
    at = np.arange(1, plan.steps + 1)
    walk = np.random.default_rng(0).standard_normal((plan.steps, elements)).cumsum(axis=0)
    values = np.stack([ema_weights(p.gamma, int(p.end), at) @ walk for p in plan.profiles])
    return calibrate(plan.profiles, Sample(values, np.full(elements, 1e-3)))


def test_an_earlier_run_foretells_itself():
    """Planned as long, as often and in the same type, a run has the figures that were measured."""
    plan = evenly(400, (5, 10), 16)
    movement = walked(plan)
    again = Assumption(earlier(movement, 400.0, 400.0, 1.0))
    goals = [PowerProfile(gamma_from_sigma_rel(s), 400.0) for s in TARGETS]
    assert figures(plan, TARGETS, again) == solve(plan.profiles, goals, movement=movement).figures


@pytest.mark.parametrize("bits", [16, 8, 4])
def test_errors_of_packed_snapshots_are_foretold(bits):
    """By the movement alone, within a factor of 2 of what packing the snapshots then loses."""
    plan = evenly(3000, (5, 10), 40)
    at = np.arange(1, plan.steps + 1)
    walk = np.random.default_rng(1).standard_normal((plan.steps, 640)).cumsum(axis=0)
    values = np.stack([ema_weights(p.gamma, int(p.end), at) @ walk for p in plan.profiles])
    movement = calibrate(plan.profiles, Sample(values, np.full(640, 1e-6)))
    foretold = packed(movement, plan.profiles, Packing(bits, FOLLOWED, KEYFRAME_EVERY)).errors
    assert foretold is not None
    keyframe = np.float32(values[0])
    lost, movements = [], []
    for place, value in enumerate(np.float32(values)):
        if place % KEYFRAME_EVERY == 0:
            keyframe, movements = value, []
            assert foretold[place] == 0
            continue
        found = fit(movements, np.subtract(value, keyframe, dtype=np.float64), 1e-12)
        *_, movement = encode(value, keyframe, movements, found, bits)
        lost.append(np.square(keyframe + movement - value).mean() / foretold[place])
        movements = [movement, *movements][:FOLLOWED]
    assert 0.5 < np.sqrt(np.median(lost)) < 2


def test_whole_snapshots_have_no_errors_of_packed_ones():
    """An earlier run's packed snapshots say how weights move, not how others are stored."""
    plan = evenly(400, (5, 10), 16)
    movement = packed(walked(plan), plan.profiles, Packing(4, FOLLOWED, KEYFRAME_EVERY))
    assert movement.errors is not None
    assert earlier(movement, 400.0, 800.0, 1.0).errors is None


def test_errors_are_fractions_of_the_run():
    """But for its jitter, a run ten times as long has the same expected errors."""
    movement = walked(evenly(400, (5, 10), 16))
    smooth = replace(movement, jitter=0 * movement.jitter)
    short, long = (
        figures(evenly(n, (5, 10), 20), TARGETS, Assumption(earlier(smooth, 400.0, n, 1.0)))
        for n in (400, 4000)
    )
    for a, b in zip(short, long, strict=True):
        assert a.expected_error == pytest.approx(b.expected_error, rel=1e-6)
        assert a.expected_rms == pytest.approx(b.expected_rms, rel=1e-6)


def test_rounding_of_another_type():
    """Units eight times as large have eight times the errors, shared up to eight times as far."""
    random = np.random.default_rng(0)
    units, drift = np.exp2(random.integers(-20, -10, 500)), random.uniform(0.1, 2, 500)
    fine, coarse = Rounding.of_elements(units, drift), Rounding.of_elements(8 * units, drift)
    distance = np.geomspace(1e-16, 1e-2, 50)
    np.testing.assert_allclose(fine.scaled(8.0).covariance(distance), coarse.covariance(distance))
    assert fine.scaled(8.0).variance == pytest.approx(coarse.variance)
