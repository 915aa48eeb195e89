"""Thinning: snapshots that go at the least loss, against all ways to choose."""

from itertools import combinations

import numpy as np
import pytest

from phema_cli.errors import UsageError
from phema_cli.profiles import PowerProfile, gamma_from_sigma_rel
from phema_cli.solver import solve
from phema_cli.solver.movement import nominal
from phema_cli.solver.planning import evenly
from phema_cli.solver.system import evaluate
from phema_cli.solver.thinning import thinned

PLAN = evenly(100, (5, 10), 6)
SOURCES = PLAN.profiles
TARGETS = [PowerProfile(gamma_from_sigma_rel(s), 100.0) for s in (0.04, 0.07, 0.12, 0.2)]
MOVEMENT = nominal(evaluate(SOURCES, []), 2e-4)


def worst(places):
    """The largest sigma_error of what these snapshots are made into."""
    figures = solve([SOURCES[i] for i in places], TARGETS, movement=MOVEMENT).figures
    return max(f.sigma_error for f in figures)


@pytest.mark.parametrize("keep", [3, 6, 9, 11])
def test_the_loss_is_near_the_least_one(keep):
    """Within a factor of 1.5 of the best of all subsets, and far below a choice by turns."""
    chosen = thinned(SOURCES, TARGETS, MOVEMENT, keep)
    assert chosen == sorted(set(chosen))
    assert len(chosen) == keep
    last = len(SOURCES) - 1
    every = [(*some, last) for some in combinations(range(last), keep - 1)]
    assert worst(chosen) <= 1.5 * min(map(worst, every))
    assert worst(chosen) <= worst(np.linspace(0, last, keep).round().astype(int))


def test_one_that_goes_costs_what_the_formula_says():
    """The first that goes is the one whose loss is least, by solving without each in turn."""
    chosen = thinned(SOURCES, TARGETS, MOVEMENT, len(SOURCES) - 1)
    left = [[j for j in range(len(SOURCES)) if j != i] for i in range(len(SOURCES) - 1)]
    assert worst(chosen) == pytest.approx(min(map(worst, left)), rel=1e-6)


def test_snapshots_of_one_file_go_together():
    """Pairs in files: what goes first is the pair whose loss is least, by solving without each."""
    files = [f"{i // 2}" for i in range(len(SOURCES))]
    chosen = thinned(SOURCES, TARGETS, MOVEMENT, len(SOURCES) // 2 - 1, files)
    pairs = [{i, i + 1} for i in range(0, len(SOURCES) - 2, 2)]
    left = [[j for j in range(len(SOURCES)) if j not in pair] for pair in pairs]
    assert chosen in left
    assert worst(chosen) == pytest.approx(min(map(worst, left)), rel=1e-6)
    with pytest.raises(UsageError, match="6 of 6 checkpoints cannot be kept; pass 2 to 5"):
        thinned(SOURCES, TARGETS, MOVEMENT, 6, files)
