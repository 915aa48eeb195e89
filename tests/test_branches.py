"""Snapshots that a resumed run has left behind, by when they were written."""

import os
import re
import shutil

import pytest
import torch

from phema_cli.tracker import PowerEMA
from tests.builders import phema, write_run


def save(folder, ema, net, steps, clock):
    """Train and save at these steps; each file a minute after the one before."""
    torch.manual_seed(steps.start)
    for step in range(steps.start - steps.step + 1, steps.stop):
        with torch.no_grad():
            net.weight += 0.01 * torch.randn_like(net.weight)
        ema.update()
        if step in steps:
            for path in ema.save(folder):
                os.utime(path, ns=(0, next(clock) * 60 * 10**9))


@pytest.fixture
def resumed(tmp_path):
    """A run of 200 steps that was resumed at step 100, and stopped again after step 160."""
    net, clock = torch.nn.Linear(30, 30), iter(range(1, 1000))
    ema = PowerEMA(net, [5.0, 10.0])
    folder = tmp_path / "ckpts"
    save(folder, ema, net, range(20, 101, 20), clock)
    state, weights = ema.state_dict(), net.weight.detach().clone()
    save(folder, ema, net, range(120, 201, 20), clock)
    ema.load_state_dict(state)
    with torch.no_grad():
        net.weight.copy_(weights)
    save(folder, ema, net, range(120, 161, 20), clock)
    return folder


def warned(folder, *options):
    """The warning of an inspection by names and times alone."""
    done = phema("inspect", folder, "--no-sample", *options)
    assert done.code == 0, done.out
    lines = done.out.splitlines()
    return [line for line in lines if line.startswith("warning") and "branch" in line]


def test_later_steps_of_an_abandoned_branch_are_told(resumed):
    """The average of what is there is one of two trajectories."""
    (told,) = warned(resumed)
    assert "ema-step0000180-gamma10.safetensors" in told
    assert "ema-step0000200-gamma5.safetensors" in told
    assert "0160" not in told
    assert "before step 120 was: if the run was resumed at step 100" in told
    assert not warned(resumed, "--exclude", "*180*", "--exclude", "*200*")


def test_copies_and_runs_that_end_say_nothing(resumed, tmp_path):
    """Files of one time, in the order of their steps, or in any order."""
    names = sorted(p.name for p in resumed.iterdir())
    for order in ([0] * len(names), range(len(names)), [7 * i % 13 for i in range(len(names))]):
        for time, name in zip(order, names, strict=True):
            os.utime(resumed / name, ns=(0, (time + 1) * 60 * 10**9))
        assert not warned(resumed)
    assert not warned(shutil.copytree(resumed, tmp_path / "copy", copy_function=shutil.copyfile))


def test_names_without_zeros_are_copied_in_another_order(tmp_path):
    """As a shell has them: step 1000 comes before 200, and is no branch."""
    write_run(tmp_path / "run", steps=tuple(range(100, 1101, 100)))
    for path in (tmp_path / "run").iterdir():
        path.rename(path.with_name(re.sub("step0*", "step", path.name)))
    for time, path in enumerate(sorted((tmp_path / "run").iterdir()), start=1):
        os.utime(path, ns=(0, time * 60 * 10**9))
    assert not warned(tmp_path / "run")
