"""Thousands of snapshots: those that a target is solved from, and what that loses."""

import numpy as np
import pytest

from phema_cli.profiles import PowerProfile, gamma_from_sigma_rel
from phema_cli.solver import solve, weights
from phema_cli.solver.assumptions import parse_schedule, scheduled
from phema_cli.solver.system import MOST_SOURCES, selected

GAMMAS = (5.0, 10.0)
SIGMA_RELS = (0.01, 0.02, 0.03, 0.05, 0.1, 0.15, 0.2, 0.25)
#: mantissa bits, and the loss in error for half of the snapshots (docs/maths.md).
LOSSES = {10: 1.05, 23: 1.25}


def run(count, steps=20.0):
    """A run's sources, both gammas at each of its times."""
    return [PowerProfile(g, i * steps) for i in range(1, count + 1) for g in GAMMAS]


def test_few_sources_are_all_used():
    """Up to the limit nothing is left out."""
    ends = np.repeat(np.arange(1.0, 513.0), 2)
    assert len(selected(ends, 512.0)) == 1024
    assert len(selected(np.arange(1.0, 1025.0), 1.0)) == 1024


@pytest.mark.parametrize("near", [10_000.0, 7_300.0, 1.0, 7_300.5])
@pytest.mark.parametrize("order", [1, -1])
def test_early_near_and_last_ones_are_selected(near, order):
    """The target's neighbours on both sides, the beginning and the end; times stay whole."""
    ends = np.repeat(np.arange(1.0, 10_001.0), 2)[::order]
    rows = selected(ends, near)
    times, counts = np.unique(ends[rows], return_counts=True)
    assert len(rows) == MOST_SOURCES
    assert (counts == 2).all()
    assert {1.0, 128.0, 10_000.0, np.floor(near), min(np.ceil(near), 10_000.0)} <= set(times)
    assert np.diff(times).max() < 50
    around = np.abs(times - near) < 60
    assert (np.diff(times[around]) == 1).all()


def test_sources_of_few_times_are_all_used():
    """Thousands of averages at one time are one time."""
    assert len(selected(np.repeat([1.0, 2.0], 2000), 2.0)) == 4000


@pytest.mark.slow
@pytest.mark.parametrize(("schedule", "bits"), [("constant", 10), ("wsd", 23)])
def test_half_of_the_snapshots_lose_little(monkeypatch, schedule, bits):
    """Expected errors of targets from 1,024 of 2,048 sources over those from all of them."""
    sources = run(1024)
    last = sources[-1].end
    targets = [PowerProfile(gamma_from_sigma_rel(s), last) for s in SIGMA_RELS]
    movement = scheduled(parse_schedule(schedule), last, bits)
    some = solve(sources, targets, movement=movement)
    assert np.count_nonzero(some.weights.any(axis=1)) == MOST_SOURCES
    monkeypatch.setattr(weights, "selected", lambda ends, _: np.arange(len(ends)))
    whole = solve(sources, targets, movement=movement).figures
    lost = [a.expected_error / b.expected_error for a, b in zip(some.figures, whole, strict=True)]
    assert max(lost) < LOSSES[bits]


def test_a_stored_snapshot_is_itself_among_thousands():
    """The one that a target is comes back with weight one, also in the middle."""
    sources = run(1500)
    found = solve(sources, [sources[1501]], storage_noise=1e-4)
    assert found.weights[1501, 0] == 1.0
    assert np.count_nonzero(found.weights) == 1
