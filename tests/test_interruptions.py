"""Ctrl-C as a terminal sends it, kill, and workers that the system ends: no hang, no work lost."""

import itertools
import os
import random
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tests import warm
from tests.builders import PHEMA
from tests.injection import digests, wait_for
from tests.warm import popen

pytestmark = [pytest.mark.slow, pytest.mark.linux("signals to groups of processes")]

#: `make faults` sets it to two hundred.
INTERRUPTIONS = int(os.environ.get("PHEMA_INTERRUPTIONS", "6"))
#: lines from one signal to the next; `make faults` sets it to one.
STRIDE = int(os.environ.get("PHEMA_STRIDE", "41"))
JOBS = (1, 2, 4, 8, 16)
#: what ends a run, the exit code that it has then, and what its one line says.
WAYS = {
    "ctrl-c": (130, "phema: interrupted"),
    "terminated": (143, "phema: terminated"),
    "worker killed": (5, "a worker process was killed"),
}


@pytest.fixture(scope="module")
def snapshots(tmp_path_factory):
    """Four snapshots of 32 MB each."""
    folder = tmp_path_factory.mktemp("in")
    generator = torch.Generator().manual_seed(0)
    for step, gamma in itertools.product((1, 2), (5, 10)):
        tensors = {f"layer{i}": torch.randn(1_000_000, generator=generator) for i in range(8)}
        metadata = {"gamma": f"{gamma}.0", "step": str(step)}
        save_file(tensors, folder / f"s{step}-{gamma}.safetensors", metadata)
    return folder


def start(folder, out, jobs):
    """A synthesis by that many workers, in a process group of its own."""
    command = [PHEMA, "synthesize", folder, "-g", "6,7", "--trust-tags", "-q", "-o", f"{out}/"]
    return popen(
        [*command, "-j", jobs, "--max-memory", f"{jobs * 600}KB"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        start_new_session=True,
    )


def heeds(process):
    """Whether signals are caught by now: before, it is Python alone that runs."""
    try:
        status = Path(f"/proc/{process.pid}/status").read_text(encoding="utf-8")
    except OSError:
        return True
    caught = next(line for line in status.splitlines() if line.startswith("SigCgt"))
    return bool(int(caught.split()[1], 16) & 1 << (signal.SIGTERM - 1))


def workers(process):
    """The processes that it has forked."""
    try:
        return (
            Path(f"/proc/{process.pid}/task/{process.pid}/children")
            .read_text(encoding="utf-8")
            .split()
        )
    except OSError:
        return []


def durations(process):
    """How long a run lasts since it catches signals, and since it has workers."""
    wait_for(lambda: heeds(process), process)
    began = time.monotonic()
    wait_for(lambda: workers(process), process)
    forked = time.monotonic()
    assert (process.communicate(timeout=120)[1], process.returncode) == ("", 0)
    return time.monotonic() - began, time.monotonic() - forked


def interrupt(process, way, chance, lasts):
    """End it in a way, at a moment of what it ``lasts``; whether there was anything to end."""
    if way == "worker killed":
        wait_for(lambda: workers(process), process)
        time.sleep(chance.uniform(0, lasts[1]))
        victims = workers(process)
        for victim in victims[:1]:
            os.kill(int(victim), signal.SIGKILL)
        return bool(victims)
    wait_for(lambda: heeds(process), process)
    if chance.random() < 0.7:
        wait_for(lambda: workers(process), process)
        time.sleep(chance.uniform(0, lasts[1]))
    else:
        time.sleep(chance.uniform(0, lasts[0]))
    number = signal.SIGINT if way == "ctrl-c" else signal.SIGTERM
    try:
        os.killpg(process.pid, number)
    except ProcessLookupError:
        return False
    return True


#: programs that lose the error of a signal, and would go on for a minute.
LOSING = {
    "an import that takes any error for a missing library": """
        sys.path.insert(0, sys.argv[1])
        import library
    """,
    "a finalizer": """
        class Waiting:
            def __del__(self):
                print("waits", flush=True)
                time.sleep(60)
        try:
            Waiting()
            time.sleep(60)
        except SignalError as error:
            sys.exit(report(error))
    """,
}
BEGIN = """
import sys, time
from phema_cli.cli.process import report
from phema_cli.errors import SignalError
from phema_cli.system.signals import raise_on_signals
raise_on_signals()
"""
LIBRARY = """
import time
try:
    print("waits", flush=True)
    time.sleep(60)
except BaseException:
    time.sleep(60)
"""


@pytest.mark.parametrize("losing", LOSING)
def test_a_signal_is_not_lost_where_its_error_would_be(losing, tmp_path):
    """While a library is loaded, and where Python only prints an error: the same line and code."""
    (tmp_path / "library.py").write_text(LIBRARY)
    program = BEGIN + textwrap.dedent(LOSING[losing])
    process = popen(
        [sys.executable, "-c", program, tmp_path], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout.readline() == "waits\n"
    process.terminate()
    _, err = process.communicate(timeout=30)
    assert err.startswith("phema: terminated")
    assert err.count("\n") == 1
    assert process.returncode == 143


@pytest.mark.parametrize("jobs", [1, 2])
def test_a_signal_at_every_line(tmp_path, jobs):
    """Nothing is left, or the message says that the same command resumes, which then it does."""
    for step in (1, 2):
        tensors = {"weight": torch.randn(1000) + step, "step": torch.tensor(step)}
        save_file(tensors, tmp_path / f"s{step}.safetensors", {"gamma": "5.0", "step": str(step)})
    program = [sys.executable, "-m", "tests.every_line", tmp_path]
    run = warm.run([*program, jobs, STRIDE, 1 + STRIDE // 2], check=True, timeout=500)
    *faults, signals = run.stdout.splitlines()
    assert not faults
    assert int(signals) > 1000 // STRIDE


def test_interruptions_end_at_once_and_lose_nothing(snapshots, tmp_path):
    """At any moment, with any number of workers: one line, its exit code, the same bytes after."""
    lasts = durations(start(snapshots, tmp_path / "whole", 2))
    expected = digests(tmp_path / "whole")
    chance = random.Random(0)  # noqa: S311 - no secret
    longest, ended = 0.0, 0
    for number in range(INTERRUPTIONS):
        way, jobs = list(WAYS)[number % 3], JOBS[number % 5]
        out = tmp_path / str(number)
        process = start(snapshots, out, jobs)
        met = interrupt(process, way, chance, lasts)
        began = time.monotonic()
        _, err = process.communicate(timeout=30)
        longest = max(longest, time.monotonic() - began if met else 0.0)
        code, line = WAYS[way]
        if process.returncode != 0:
            assert process.returncode == code, (way, jobs, err)
            assert err.count("\n") == 1, (way, jobs, err)
            assert line in err, (way, jobs, err)
            ended += 1
        again = start(snapshots, out, jobs) if digests(out) != expected else None
        if again is not None:
            assert (again.communicate(timeout=120)[1], again.returncode) == ("", 0)
        assert digests(out) == expected
        for path in out.iterdir():
            path.unlink()
    print(f"\n{INTERRUPTIONS} interruptions, {ended} in time; the longest end took {longest:.2f} s")  # noqa: T201 - `make faults` shows it
    assert ended > INTERRUPTIONS // 3
