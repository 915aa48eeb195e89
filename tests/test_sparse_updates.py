"""Averages that are updated at every N-th step: when they were stored, and what they leave out."""

import math

import numpy as np
import pytest
import torch

from phema_cli.errors import UsageError
from phema_cli.profiles import PowerProfile, RawProfile, gamma_from_sigma_rel, stored_at
from phema_cli.solver import Sample, calibrate, solve
from phema_cli.trainers.registry import parse_law
from tests.builders import phema
from tests.runs import base
from tests.simulated import recursion
from tests.trajectories import STEPS, trajectories

SIGMA_RELS = (0.05, 0.12, 0.2)
LENGTHS = (75.0, 200.0)


@pytest.mark.parametrize(
    ("law", "step", "end", "stored"),
    [
        ("power:gamma=9,every=2", 1000, 1000.5, 1000),
        ("exponential:beta=0.9,every=10", 1000, 1004.5, 1000),
        ("exponential:beta=0.9,every=10", 1008, 1004.5, 1008),
        ("ema-pytorch:beta=0.9,every=10", 1008, 1005.5, 1008),
        # It counts t = n + 1: one step more.
        ("ema-pytorch:gamma=99,every=10", 1008, 1006.5, 1009),
        ("ema-pytorch:gamma=99,every=1", 1008, 1009, 1009),
        ("rampup:halflife=8000,ratio=0.1,batch=8,every=10", 8000, 8036, 8000),
        ("exponential:beta=0.9", 1000, 1000, 1000),
    ],
)
def test_the_last_update_stands_for_the_steps_around_it(law, step, end, stored):
    """So a profile ends before or after its average was stored; that is the time of a target."""
    profile = parse_law(law).profile(step)
    assert profile.end == pytest.approx(end)
    assert stored_at(profile) == pytest.approx(stored)


def foretold(path, stride, every):
    """True and expected RMS errors of power functions made of averages of sparse updates."""
    values, profiles = [], []
    for length in LENGTHS:
        beta = math.exp(-stride / length)
        law = parse_law(f"exponential:beta={beta!r},every={stride}")
        rows = recursion(path, lambda n, beta=beta: None if n % stride else beta)
        for step in range(every, STEPS + 1, every):
            values.append(rows[step].astype(np.float32))
            profiles.append(law.profile(float(step)))
    stack = np.stack(values)
    sample = Sample(stack, np.spacing(np.abs(stack[-1])).astype(np.float64))
    gammas = [gamma_from_sigma_rel(s) for s in SIGMA_RELS]
    targets = [PowerProfile(gamma, float(STEPS)) for gamma in gammas]
    solution = solve(profiles, targets, movement=calibrate(profiles, sample))
    truth = [recursion(path, lambda n, g=g: (1 - 1 / n) ** (g + 1))[-1] for g in gammas]
    errors = np.sqrt(np.mean((solution.weights.T @ stack - truth) ** 2, axis=1))
    return errors, np.array([f.expected_rms for f in solution.figures]), path[-1] - truth


@pytest.mark.parametrize("every", [50, 200])
@pytest.mark.parametrize("stride", [5, 20, 30, 50])
def test_what_weights_do_between_updates_is_expected(stride, every):
    """The expected error of a walk is its true one, also where the last update is long past."""
    true, expected, _ = foretold(trajectories()["walk"], stride, every)
    assert ((expected > true / 1.6) & (expected < 1.6 * true)).all(), expected / true


@pytest.mark.parametrize("stride", [5, 20])
def test_targets_end_when_the_last_snapshot_was_stored(stride):
    """Weights that glide tell every shift in time."""
    true, _, moved = foretold(trajectories()["glide"], stride, 50)
    assert (true < 0.01 * np.sqrt(np.mean(moved**2, axis=1))).all()


def test_no_target_ends_later():
    """Any later one is refused, and a stored average of sparse updates is still a source."""
    law = parse_law("exponential:beta=0.99,every=30")
    sources = [law.profile(float(step)) for step in (1000, 2000)]
    late = RawProfile(2000.0)
    assert late.end > max(s.end for s in sources)
    assert solve(sources, [late, PowerProfile(7.0, 2000.0)]).weights.sum(axis=0) == pytest.approx(1)
    with pytest.raises(UsageError, match=r"step 2001 is later than the last snapshot's, 2000"):
        solve(sources, [PowerProfile(7.0, 2001.0)])


def test_what_is_copied_is_of_the_targets_step(tmp_path):
    """A snapshot whose last update counts for later steps is still of the step at its storing."""
    law = "exponential:beta=0.9,every=10"
    rows = base.walk().averages(lambda n: None if n % 10 else 0.9)
    for step in base.STORED:
        content = base.state(rows[step], step)
        torch.save({"step": step, "ema": content}, tmp_path / f"ckpt_{step}.pt")
    out = tmp_path / "out" / "ema.pt"
    done = phema("synthesize", "-g", 7, "--average", law, tmp_path, "--step", 500, "-o", out)
    assert done.code == 0, done.err
    made = torch.load(out)
    assert int(made["norm.num_batches_tracked"]) == 500
    truth = base.walk().power(7.0)[500]
    made = base.flat({name: made[name] for name in base.parameters()})
    assert base.missed(made, truth, 500) < 0.06
