"""Method blue and its calibration: ties to the projection, optimality, bad cases."""

import math
from dataclasses import replace

import numpy as np
import pytest

from phema_cli.errors import InputError, UsageError
from phema_cli.profiles import ExponentialProfile, PowerProfile, RawProfile, WindowProfile
from phema_cli.solver import Sample, calibrate, solve
from phema_cli.solver.calibration import calibrate as fit
from phema_cli.solver.calibration import neighbouring
from phema_cli.solver.least_squares import cholesky, leave_one_out, minimise
from phema_cli.solver.movement import Rounding, _correlation, nominal
from phema_cli.solver.system import evaluate, families

GAMMAS = (5.0, 10.0)
TARGETS = [PowerProfile(g, 1024.0) for g in (1.0, 7.0, 25.0)]


def profiles(ends, gammas=GAMMAS):
    """Every gamma at every time."""
    return [PowerProfile(g, float(t)) for t in ends for g in gammas]


def walk(intensity, elements=3000, seed=0):
    """(steps, elements): a random walk of that mean square increment at each step."""
    random = np.random.default_rng(seed)
    steps = np.sqrt(intensity)[:, None] * random.standard_normal((len(intensity), elements))
    return steps.cumsum(axis=0) + random.standard_normal(elements)


def stored(sources, path):
    """The sources' averages of a path, exactly."""
    at = np.arange(0.0, len(path) + 1)
    weights = [np.diff(s.cdf(at)) for s in sources]
    return np.array(weights) @ path


def rms(values):
    """Root of the mean square."""
    return float(np.sqrt(np.mean(np.square(values))))


def sample(values, unit=1e-12):
    """A sample of values that are stored with one unit in the last place."""
    return Sample(values, np.full(values.shape[1], unit))


FALLING = 1e-4 * np.geomspace(1, 1e-4, 1024)
SCHEDULES = {
    "constant": np.full(1024, 1e-4),
    "rsqrt": 1e-4 / np.arange(1, 1025) ** 0.5,
    "falling": FALLING,
}


def test_the_same_path_reproduces_the_projection():
    """With densities, no noise and no constraint the estimator is the paper's projection."""
    sources = profiles(range(128, 1025, 128))
    system = evaluate(sources, TARGETS)
    root = np.sqrt(system.weights)[:, None]
    x = minimise(root * system.source_density, root * system.target_density, sum_to_one=False)
    expected = solve(sources, TARGETS, method="projection").weights
    np.testing.assert_allclose(x, expected, atol=1e-9)
    # And white noise alone, in the rows that blue solves, leads there but for the constraint.
    white = minimise(root * system.source_density, root * system.target_density)
    near = expected / expected.sum(axis=0)
    assert np.abs(white - near).max() < 0.05 * np.abs(near).max()


def test_the_constrained_minimum_is_that_of_the_bordered_system():
    """Least squares under the constraint agree with Lagrange's equations of the Gram matrix."""
    random = np.random.default_rng(0)
    a, b = random.standard_normal((40, 6)), random.standard_normal((40, 3))
    root = random.standard_normal((6, 6))
    noise = root @ root.T
    x = minimise(a, b, noise)
    bordered = np.block([[a.T @ a + noise, np.ones((6, 1))], [np.ones((1, 6)), np.zeros((1, 1))]])
    expected = np.linalg.solve(bordered, np.vstack([a.T @ b, np.ones((1, 3))]))[:6]
    np.testing.assert_allclose(x, expected, atol=1e-8)


def test_holding_back_is_estimating_from_the_others():
    """Each row of the contrasts is the source less its estimate from all the others."""
    sources = profiles(range(128, 1025, 256))
    system = evaluate(sources, [])
    movement = nominal(system, 1e-3)
    rows, _, noise, _ = movement.problem(system)
    held = leave_one_out(rows, noise)
    for i in (0, 3, 7):
        others = [j for j in range(len(sources)) if j != i]
        x = minimise(rows[:, others], rows[:, [i]], noise[np.ix_(others, others)])[:, 0]
        np.testing.assert_allclose(held[i, others], -x, atol=1e-6)
        assert held[i, i] == pytest.approx(1.0)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_the_drift_of_a_walk_is_found(schedule):
    """The fitted q is that of the walk within a fifth where there are snapshots."""
    intensity = SCHEDULES[schedule]
    sources = profiles(range(64, 1025, 64))
    movement = calibrate(sources, sample(stored(sources, walk(intensity))))
    late = movement.times >= 128
    expected = intensity[movement.times[late].astype(int) - 1]
    assert np.abs(np.log(movement.drift[late] / expected)).max() < math.log(1.25)
    assert movement.measured


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_the_error_of_a_walk_is_foretold(schedule):
    """expected_rms is the true error within a quarter, also where q falls by 10^4."""
    sources = profiles(range(64, 1025, 64))
    path = walk(SCHEDULES[schedule])
    values = stored(sources, path)
    solution = solve(sources, TARGETS, movement=calibrate(sources, sample(values)))
    truth = stored(TARGETS, path)
    for k, figures in enumerate(solution.figures):
        error = rms(solution.weights[:, k] @ values - truth[k])
        assert figures.expected_rms == pytest.approx(error, rel=0.25)
        moved = rms(path[-1] - truth[k])
        assert figures.expected_error == pytest.approx(error / moved, rel=0.3)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_no_other_method_is_better_on_a_walk(schedule):
    """On what it was derived for, the estimator beats the projection and its normalised form."""
    sources = profiles(range(128, 1025, 128))
    path = walk(SCHEDULES[schedule])
    values, truth = stored(sources, path), stored(TARGETS, path)
    movement = calibrate(sources, sample(values))
    errors = {
        method: [
            rms(e)
            for e in solve(sources, TARGETS, method=method, movement=movement).weights.T @ values
            - truth
        ]
        for method in ("blue", "normalized", "projection")
    }
    assert all(a <= 1.01 * b for a, b in zip(errors["blue"], errors["normalized"], strict=True))
    assert all(a <= 1.01 * b for a, b in zip(errors["blue"], errors["projection"], strict=True))


def test_rounding_is_foretold_and_averaged():
    """float16 snapshots of small moves: the error is foretold, and below that of normalized."""
    sources = profiles(range(16, 1025, 16))
    path = walk(np.full(1024, 1e-9), elements=4000) + 0.75
    values = stored(sources, path).astype(np.float16).astype(np.float32)
    _, exponent = np.frexp(values[-1])
    movement = calibrate(sources, Sample(values, np.exp2(exponent - 11.0)))
    truth = stored(TARGETS, path)
    for k, figures in enumerate(solve(sources, TARGETS, movement=movement).figures):
        blue = solve(sources, TARGETS, movement=movement).weights[:, k] @ values
        plain = solve(sources, TARGETS, method="normalized").weights[:, k] @ values
        assert rms(blue - truth[k]) <= rms(plain - truth[k]) * 1.02
        assert 0.5 < figures.expected_rms / rms(blue - truth[k]) < 2


@pytest.mark.parametrize("ratio", [0.01, 0.1, 0.3, 1.0, 3.0])
def test_rounding_errors_correlate_as_they_should(ratio):
    """The covariance of the rounding errors of values that differ by s is what rounding gives."""
    random = np.random.default_rng(2)
    a = random.random(400_000) * 1000
    b = a + ratio * random.standard_normal(len(a))
    product = ((np.round(a) - a) * (np.round(b) - b)).mean()
    model = Rounding.of_elements(np.ones(10), np.ones(10))
    assert model.covariance(np.array([0.0]))[0] == pytest.approx(1 / 12)
    assert model.covariance(np.array([ratio**2]))[0] == pytest.approx(product, abs=0.003)


def test_independent_rounding_is_a_diagonal():
    """Without a scale of movement only a snapshot's own errors are its own."""
    model = Rounding.independent(4.0)
    np.testing.assert_array_equal(model.covariance(np.array([0.0, 1e-9, 1.0])), [4, 0, 0])
    assert Rounding.of_elements(np.zeros(5), np.ones(5)).variance == 0


def test_a_factor_reproduces_a_covariance():
    """Also a singular one, of snapshots that share all their rounding errors."""
    for covariance in (np.ones((4, 4)), np.diag([1.0, 2.0, 3.0]), np.zeros((2, 2))):
        r = cholesky(covariance)
        np.testing.assert_allclose(r.T @ r, covariance, atol=1e-8)


def test_gliding_and_jittering_are_told_apart():
    """Smooth motion is found smoother than a walk, white noise on top of it rougher."""
    sources = profiles(range(64, 1025, 64))
    t = np.arange(1024)[:, None] / 1024
    random = np.random.default_rng(3)
    waves = np.sin(2 * np.pi * (t * random.uniform(0.5, 2, 2000) + random.random(2000)))
    smooth = calibrate(sources, sample(stored(sources, waves)))
    assert smooth.roughness.max() < 0.3
    assert smooth.jitter.max() < 2
    noisy = calibrate(sources, sample(stored(sources, waves + random.standard_normal(waves.shape))))
    assert noisy.jitter.min() > 4


SHAPES = {
    "one gamma": profiles(range(128, 1025, 128), (7.0,)),
    "two snapshots": profiles((512, 1024), (7.0,)),
    "two gammas at one step": profiles((1024,)),
    "one snapshot": profiles((1024,), (7.0,)),
    "raw": [RawProfile(float(t)) for t in range(128, 1025, 128)],
    "exponential": [
        ExponentialProfile(r, float(t)) for t in range(128, 1025, 128) for r in (0.02, 0.005)
    ],
    "a mix": [
        *profiles((512, 1024)),
        RawProfile(1000.0),
        ExponentialProfile(0.01, 768.0),
        WindowProfile(300.0, 700.0),
    ],
}


@pytest.mark.parametrize("shape", SHAPES)
def test_any_sources_do(shape):
    """Whatever the sources are, a target at the end and one between come out near the truth.

    Near means within three times the expected error; with one snapshot nothing is measured.
    """
    sources = SHAPES[shape]
    path = walk(SCHEDULES["rsqrt"])
    values = stored(sources, path)
    if shape == "raw":
        np.testing.assert_allclose(values, path[127::128])
    movement = calibrate(sources, sample(values))
    assert (movement is None) == (shape == "one snapshot")
    targets = [PowerProfile(12.0, 1024.0), PowerProfile(4.0, 900.0), WindowProfile(600.0, 1000.0)]
    solution = solve(sources, targets, movement=movement)
    truth = stored(targets, path)
    np.testing.assert_allclose(solution.weights.sum(axis=0), 1.0)
    if movement is not None:
        for k, figures in enumerate(solution.figures):
            error = rms(solution.weights[:, k] @ values - truth[k])
            assert 1 / 3 < figures.expected_rms / error < 3


def test_raw_snapshots_beat_replaying_them():
    """On a walk, raw snapshots give less error than replaying the EMA, or the trapezoid rule."""
    ends = np.arange(64.0, 1025.0, 64.0)
    sources = [RawProfile(t) for t in ends]
    path = walk(SCHEDULES["constant"])
    values = stored(sources, path)
    movement = calibrate(sources, sample(values))
    for k, target in enumerate(TARGETS):
        truth = stored([target], path)[0]
        replay = np.diff(target.cdf(ends), prepend=0.0)
        trapezoid = target.density(ends) * np.where(ends == 1024, 32.0, 64.0)
        blue = rms(solve(sources, TARGETS, movement=movement).weights[:, k] @ values - truth)
        assert blue < rms(replay @ values / replay.sum() - truth)
        assert blue < rms(trapezoid @ values / trapezoid.sum() - truth)


def test_nothing_to_measure_is_said():
    """Identical snapshots and empty samples have no movement; solving falls back on the assumed."""
    sources = profiles((512, 1024))
    assert calibrate(sources, sample(np.ones((4, 10)))) is None
    assert calibrate(sources, sample(np.ones((4, 0)))) is None
    figures = solve(sources, TARGETS, movement=None).figures
    assert all(f.expected_rms is None for f in figures)


def test_frozen_elements_change_no_weights():
    """Elements that never move lower the error per parameter and leave the weights alone."""
    sources = profiles(range(128, 1025, 128))
    values = stored(sources, walk(SCHEDULES["constant"], elements=500))
    frozen = np.hstack([values, np.tile(np.linspace(-1, 1, 500), (len(sources), 1))])
    a = solve(sources, TARGETS, movement=calibrate(sources, sample(values)))
    b = solve(sources, TARGETS, movement=calibrate(sources, sample(frozen)))
    np.testing.assert_allclose(a.weights, b.weights, atol=1e-6)
    assert b.figures[1].expected_rms == pytest.approx(a.figures[1].expected_rms / 2**0.5, rel=0.01)


def test_some_identical_snapshots_share_the_weight():
    """Snapshots that hold the same values do no harm."""
    sources = profiles(range(128, 1025, 128))
    values = stored(sources, walk(SCHEDULES["constant"], elements=500))
    values[-4:] = values[-4]
    solution = solve(sources, TARGETS, movement=calibrate(sources, sample(values, 1e-7)))
    assert np.isfinite(solution.weights).all()
    np.testing.assert_allclose(solution.weights.sum(axis=0), 1.0)


def test_the_unit_of_time_and_of_weights_scale_out():
    """Steps in images and weights in other units give the same weights and scaled errors."""
    sources = profiles(range(128, 1025, 128))
    values = stored(sources, walk(SCHEDULES["rsqrt"], elements=500))
    a = solve(sources, TARGETS, movement=fit(sources, sample(values)))
    far = [replace(s, end=s.end * 1000) for s in sources]
    targets = [replace(t, end=t.end * 1000) for t in TARGETS]
    b = solve(far, targets, movement=fit(far, sample(values * 7, 7e-12)))
    np.testing.assert_allclose(a.weights, b.weights, atol=1e-5)
    for one, other in zip(a.figures, b.figures, strict=True):
        assert other.expected_rms == pytest.approx(7 * one.expected_rms, rel=1e-3)
        assert other.expected_error == pytest.approx(one.expected_error, rel=1e-3)


def test_methods_of_densities_refuse_raw_weights():
    """The projection refuses what has no density, and names the method that takes it."""
    with pytest.raises(UsageError, match=r"can't use raw weights, .*; pass --method blue"):
        solve([RawProfile(1.0), RawProfile(2.0)], [PowerProfile(3.0, 2.0)], method="projection")


def noisy_waves():
    """Smooth motion under white noise, as an optimizer with much gradient noise jitters."""
    random = np.random.default_rng(5)
    t = np.arange(1024)[:, None] / 1024
    waves = np.sin(2 * np.pi * (t * random.uniform(0.5, 2, 2000) + random.random(2000)))
    return waves + 3 * random.standard_normal(waves.shape)


def test_jitter_counts_in_weights_and_errors():
    """Under white noise the estimator keeps up with normalized, and foretells the error."""
    sources = profiles(range(64, 1025, 64))
    path = noisy_waves()
    values = stored(sources, path)
    targets = [PowerProfile(7.0, 1024.0), PowerProfile(25.0, 1024.0)]
    truth = stored(targets, path)
    movement = calibrate(sources, sample(values))
    blue = solve(sources, targets, movement=movement)
    plain = solve(sources, targets, method="normalized").weights.T @ values
    for k, figures in enumerate(blue.figures):
        error = rms(blue.weights[:, k] @ values - truth[k])
        assert error < 1.03 * rms(plain[k] - truth[k])
        assert 0.6 < figures.expected_rms / error < 1.6


def test_raw_weights_that_jitter_are_averaged():
    """White noise in raw snapshots is foretold, and averaged away where that pays."""
    sources = [RawProfile(float(t)) for t in range(16, 1025, 16)]
    path = noisy_waves()
    values = stored(sources, path)
    target = PowerProfile(40.0, 1024.0)
    truth = stored([target], path)[0]
    solution = solve(sources, [target], movement=calibrate(sources, sample(values)))
    error = rms(solution.weights[:, 0] @ values - truth)
    times = np.arange(16.0, 1025.0, 16.0)
    trapezoid = target.density(times) * np.where(times == 1024, 8.0, 16.0)
    assert error < rms(trapezoid @ values / trapezoid.sum() - truth)
    assert 1 / 3 < solution.figures[0].expected_rms / error < 3


def test_the_last_checkpoints_alone_are_not_good():
    """How far weights moved before the first one is a guess, however little they move then."""
    steps = np.arange(1, 1025)
    rate = 1e-4 * (1 + np.cos(math.pi * steps / 1024))
    path = np.random.default_rng(0).standard_normal((1024, 500)) * rate[:, None]
    path = 1 + path.cumsum(axis=0)
    sources = [RawProfile(float(t)) for t in range(8, 1025, 8)]
    values = stored(sources, path)
    targets = [PowerProfile(gamma, 1024.0) for gamma in (7.0, 20.0)]
    late = slice(-8, None)
    few = solve(sources[late], targets, movement=calibrate(sources[late], sample(values[late])))
    assert [f.verdict for f in few.figures] == ["poor", "poor"]
    assert [f.rounding_error for f in few.figures] == [None, None]
    every = solve(sources, targets, movement=calibrate(sources, sample(values)))
    assert all(f.rounding_error is not None for f in every.figures)


def test_what_never_moves_is_not_rounded():
    """Elements alike in every snapshot are stored as the model has them, whatever their unit."""
    sources = profiles(range(128, 1025, 128))
    values = stored(sources, walk(SCHEDULES["constant"], elements=500))
    frozen = np.hstack([values, np.ones((len(sources), 500))])
    units = np.concatenate([np.full(500, 1e-12), np.ones(500)])
    figures = solve(sources, TARGETS, movement=calibrate(sources, Sample(frozen, units))).figures
    plain = solve(sources, TARGETS, movement=calibrate(sources, sample(values))).figures
    assert figures[1].expected_rms == pytest.approx(plain[1].expected_rms / 2**0.5, rel=0.01)


def test_a_mask_of_huge_constants_changes_no_figure():
    """A weight sum that is one but for rounding leaves nothing out, however large a constant is."""
    sources = profiles(range(128, 1025, 128))
    values = stored(sources, walk(SCHEDULES["constant"], elements=500))
    mask = np.full((len(sources), 10), np.finfo(np.float64).min)
    plain = solve(sources, TARGETS, movement=calibrate(sources, sample(values)))
    masked = solve(sources, TARGETS, movement=calibrate(sources, sample(np.hstack([values, mask]))))
    for a, b in zip(plain.figures, masked.figures, strict=True):
        assert b.expected_error == pytest.approx(a.expected_error, rel=1e-6)


def test_values_too_large_to_square_are_refused():
    """Differences beyond float64's squares are an error with a remedy, not weights of NaN."""
    sources = profiles([512, 1024])
    values = np.random.default_rng(0).standard_normal((4, 10)) * 1e200
    with pytest.raises(InputError, match=r"too large.*--copy"):
        calibrate(sources, sample(values))


def test_snapshots_that_share_neither_time_nor_gamma_are_compared():
    """Where no two sources have a time or a gamma in common, neighbours in time tell the drift."""
    sources = [PowerProfile(5.0, 512.0), PowerProfile(10.0, 1024.0)]
    values = stored(sources, walk(SCHEDULES["constant"]))
    found = calibrate(sources, sample(values))
    assert found.measured
    assert 0.5e-4 < found.drift[-1] < 2e-4


def test_many_pairs_are_thinned_alike():
    """Of more snapshots than are compared, every kind of pair remains, from the newest on."""
    sources = profiles(range(1, 401))
    pairs = neighbouring(sources, families(sources))
    assert len(pairs) <= 514
    kinds = [(sources[a].end == sources[b].end, sources[a].gamma) for a, b in pairs]
    assert min(kinds.count(kind) for kind in set(kinds)) > 100
    assert len(set(kinds)) == 3
    assert [len(sources) - 2, len(sources) - 1] in pairs.tolist()


def test_a_raw_target_that_is_stored_has_no_error():
    """Weights of one moment jitter; where they are a source, source and target jitter alike."""
    sources, raw = profiles(range(64, 1025, 64)), RawProfile(1024.0)
    jitter = 0.05 * np.random.default_rng(1).standard_normal((1024, 1000))
    path = walk(SCHEDULES["constant"], elements=1000) + jitter
    movement = calibrate(sources, sample(stored(sources, path)))
    assert movement.jitter[-1] > 0
    without, stored_too = (
        solve(s, [raw], movement=movement).figures[0].expected_rms
        for s in (sources, [*sources, raw])
    )
    assert stored_too < 1e-6 * without


def test_correlation_of_rounding_is_one_function():
    """Both of its series agree with thousands of terms of the slow one, also where they meet."""
    ratio = np.geomspace(1e-3, 1, 40)
    k = np.arange(1, 20_000)[:, None]
    exact = (np.exp(-2 * (np.pi * k * ratio) ** 2) * 6 / (np.pi * k) ** 2).sum(axis=0)
    np.testing.assert_allclose(_correlation(ratio), exact, atol=1e-9)
