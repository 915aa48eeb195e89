"""Verdicts of a real run whose weights come to rest, beside averages tracked in float64."""

import numpy as np
import pytest

from benchmarks.fidelity_cases import rms, rounded_to, units_of
from benchmarks.training import Run, train
from phema_cli.profiles import PowerProfile, gamma_from_sigma_rel
from phema_cli.solver import Sample, calibrate, solve
from phema_cli.solver.weights import storage_noise

STEPS, COUNT, STORED = 1000, 20, (5.0, 10.0)
SIGMA_RELS = (0.02, 0.03, 0.05, 0.08, 0.12, 0.2)


@pytest.fixture(scope="module")
def solved():
    """Figures, and true errors over that of rounding to float16, by sigma_rel."""
    gammas = [gamma_from_sigma_rel(s) for s in SIGMA_RELS]
    run = Run("mlp", "adamw", "cosine")
    tracked = train(run, [(STEPS, g) for g in gammas], steps=STEPS, snapshots=COUNT)
    sources = [PowerProfile(g, float(t)) for g in STORED for t in tracked.steps]
    exact = np.concatenate([tracked.snapshots[g] for g in STORED])
    values = rounded_to(exact, "fp16")
    movement = calibrate(sources, Sample(values, units_of(values[COUNT - 1], "fp16")))
    targets = [PowerProfile(g, float(STEPS)) for g in gammas]
    solution = solve(sources, targets, movement=movement)
    made = solution.weights.T @ values.astype(np.float64)
    unit = storage_noise(10) * rms(exact[COUNT - 1])
    true = [rms(m - tracked.truth[STEPS, g]) / unit for m, g in zip(made, gammas, strict=True)]
    return dict(zip(SIGMA_RELS, zip(solution.figures, true, strict=True), strict=True))


@pytest.mark.slow
def test_what_rounding_would_do_as_well_is_not_poor(solved):
    """Under a cosine to zero, in float16: however large the error is of a tiny distance."""
    at_rounding = [figures for figures, true in solved.values() if true <= 2]
    assert len(at_rounding) > 2
    assert max(figures.sigma_error for figures in at_rounding) > 10
    assert "poor" not in {figures.verdict for figures in at_rounding}


@pytest.mark.slow
def test_rounding_errors_are_foretold(solved):
    """Within a factor of 2, as other errors are."""
    for figures, true in solved.values():
        assert 0.5 < figures.rounding_error / true < 2


@pytest.mark.slow
def test_lengths_that_rounding_makes_alike_are_told(solved):
    """Averages closer to the last weights than rounding are the shortest ones, if any."""
    moved = [figures.moved for figures, _ in solved.values()]
    assert moved == sorted(moved)
