"""Averages whose decay changes during training: one decay fits them all, but not the later half."""

import math

import numpy as np
import pytest
import torch

from benchmarks.training import Run, train
from phema_cli.profiles import ExponentialProfile, RawProfile
from phema_cli.solver.evidence import verdict, weigh
from tests.builders import phema
from tests.simulated import rounded

pytestmark = pytest.mark.slow

STEPS, SNAPSHOTS = 1600, 32


def shares(name, step):
    """1 - decay of the update of a step, over 1/T."""
    match name:
        case "resumed with a shorter one":
            return 10 if step <= STEPS / 2 else 40
        case "resumed with a longer one":
            return 40 if step <= 0.7 * STEPS else 10
        case "a momentum that rises":
            return 10 * (1 + math.cos(math.pi * step / STEPS))
        case _:
            return 20


#: what each is told to be: 1 - decay, over 1/T.
TOLD = {
    "resumed with a shorter one": 10,
    "resumed with a longer one": 40,
    "a momentum that rises": 20,
    "constant": 20,
}


@pytest.fixture(scope="module")
def trained():
    """A real run beside whose raw weights all of the averages are stored."""
    torch.set_num_threads(1)
    run = Run("mlp", "adam", "constant")
    decays = {name: lambda step, name=name: 1 - shares(name, step) / STEPS for name in TOLD}
    return train(run, [], steps=STEPS, snapshots=SNAPSHOTS, others=decays, elements=2000)


def checked(trained, name, spoilt=None):
    """The test of an average's tags beside raw weights, all told to be of one constant decay.

    With ``spoilt``, the snapshot of that number is of other weights.
    """
    times = trained.steps.astype(float)
    rate = -math.log1p(-TOLD[name] / STEPS)
    tags = [ExponentialProfile(rate, t) for t in times] + [RawProfile(t) for t in times]
    values = np.concatenate([trained.others[name], trained.raw])
    if spoilt is not None:
        noise = np.random.default_rng(0).standard_normal(values.shape[1])
        values[spoilt] += 5 * abs(values[spoilt]).mean() * noise
    return weigh(tags, rounded(values, "float32"))


@pytest.mark.parametrize("name", [name for name in TOLD if name != "constant"])
def test_a_decay_that_changes_is_seen(trained, name):
    """By the later half if not by all, and the figures are of what was looked at."""
    found = checked(trained, name)
    assert found.state == "contradicted"
    times = {t for s in found.compared for t in s.times}
    assert found.times == len(times)
    assert found.later == (min(times) > STEPS / 2)


def test_the_later_half_alone_sees_some(trained, monkeypatch):
    """Without it, a run that was resumed with a shorter average is confirmed."""
    monkeypatch.setattr(verdict, "_LATER", math.inf)
    assert checked(trained, "resumed with a shorter one").state == "confirmed"


def test_a_decay_that_stays_is_confirmed(trained):
    """The second look raises no alarm."""
    assert checked(trained, "constant").state == "confirmed"


def test_a_file_of_another_run_is_no_change_of_the_decay(trained):
    """It is named, and the figures are of the whole run."""
    found = checked(trained, "constant", spoilt=17)
    assert (found.state, found.foreign, found.later) == ("contradicted", (17,), False)


def test_the_later_half_is_said(trained, tmp_path):
    """The message says from which step on, and doesn't offer one decay for all."""
    for step, raw, average in zip(
        trained.steps.tolist(),
        trained.raw,
        trained.others["resumed with a shorter one"],
        strict=True,
    ):
        held = {
            key: {"w": torch.tensor(v).float()} for key, v in (("model", raw), ("ema", average))
        }
        torch.save({**held, "step": step}, tmp_path / f"step{step:07d}.pt")
    law = f"exponential:beta={1 - 10 / STEPS}"
    done = phema("synthesize", "--gamma", 7, "--average", law, "--dry-run", tmp_path)
    assert done.code == 3
    assert "from step 850 on the snapshots do not fit their tags" in done.err
    assert "did the decay change?; pass --raw, or --select" in done.err
