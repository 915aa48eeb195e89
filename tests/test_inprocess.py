"""Commands that are called in the tests' process give what a process gives, and leave it alone."""

import gc
import os
import random
import signal
import sys
import time
import warnings
from pathlib import Path

import pytest
import torch

from tests.builders import phema
from tests.inprocess import as_process, exit_code
from tests.limits import BYTES, SECONDS, limits_of

pytestmark = [pytest.mark.slow, pytest.mark.linux("a process of its own, compared by /proc")]


@pytest.mark.parametrize(
    "arguments",
    [
        ("synthesize", "-g", "7", "ckpts", "-o", "{way}.safetensors"),
        ("synthesize", "-g", "900", "ckpts", "--max-error", "1e-6"),
        ("inspect", "ckpts", "-v"),
        ("inspect", "nowhere"),
        ("weights", "ckpts", "--gama", "7"),
        ("plan", "--help"),
        (),
    ],
    ids=" ".join,
)
def test_exit_code_and_texts_are_those_of_a_process(ckpts, tmp_path, arguments):
    """Outputs, errors, usage and help are the same to the letter."""
    assert ckpts.parent == tmp_path
    here, there = (
        phema(*(a.format(way=way) for a in arguments), cwd=tmp_path, process=way == "there")
        for way in ("here", "there")
    )
    assert here.code == there.code
    assert here.out.replace("here.", "there.") == there.out
    assert here.err == there.err


def test_a_traceback_ends_in_the_same_line(tmp_path):
    """What escapes with --debug is shown as the interpreter shows it."""
    here, there = (
        phema("--debug", "inspect", tmp_path / "none", process=way) for way in (False, True)
    )
    assert (here.code, here.out) == (there.code, there.out) == (3, "")
    assert here.err.splitlines()[0] == there.err.splitlines()[0]
    assert here.err.splitlines()[-1] == there.err.splitlines()[-1]


def state():
    """What a command may change of the process that it is called in."""
    return (
        dict(os.environ),
        Path.cwd(),
        [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGALRM)],
        (sys.stdout, sys.stderr, sys.argv, sys.modules["__main__"]),
        [os.readlink(f"/proc/self/fd/{number}") for number in (0, 1, 2)],  # noqa: PTH115 - as it is
        (torch.get_num_threads(), torch.get_rng_state().tolist(), random.getstate()),
        (gc.isenabled(), gc.get_freeze_count(), list(warnings.filters)),
    )


@pytest.mark.parametrize(
    "arguments", [("inspect", "ckpts"), ("inspect", "nowhere"), ("--debug", "inspect", "nowhere")]
)
def test_nothing_of_a_command_stays(ckpts, tmp_path, arguments):
    """Directory, environment, signals, streams, threads and random numbers are as before."""
    assert ckpts.parent == tmp_path
    before = state()
    phema(*arguments, cwd=tmp_path, PHEMA_QUIET="1", COLUMNS="70")
    assert state() == before


def test_what_only_a_new_process_reads_is_refused():
    """A variable that the interpreter has read long ago would be without effect."""
    with pytest.raises(AssertionError, match="process=True"):
        phema("--version", LC_ALL="C")


@pytest.mark.parametrize(
    ("code", "ended", "said"),
    [
        ("print('a')", 0, ("a\n", "")),
        ("import sys; sys.exit(3)", 3, ("", "")),
        ("import sys; sys.exit('no')", 1, ("", "no\n")),
        ("import os; os.write(1, b'a'); os.system('echo b >&2')", 0, ("a", "b\n")),
    ],
)
def test_programs_end_as_in_the_interpreter(tmp_path, code, ended, said):
    """Exit codes, and what is written to the streams by whatever means."""
    with as_process(tmp_path, dict(os.environ)) as texts:
        found = exit_code(lambda: exec(code, {}))  # noqa: S102 - it is above
    assert (found, tuple(texts)) == (ended, said)


def test_limits_are_seen():
    """Work beyond either limit is told from work within them, whatever kind of memory it takes."""
    _, seconds, held = limits_of(lambda: None)
    assert (seconds < SECONDS, held < BYTES) == (True, True)
    # The system gives zeros when they are touched; small blocks have been free before.
    assert limits_of(lambda: len(bytes(2 * BYTES)))[2] > BYTES
    kept = [bytes(400) for _ in range(2 * BYTES // 400)][::400]
    for _ in range(2):
        assert limits_of(lambda: len([bytes(400) for _ in range(BYTES // 400)]))[2] > BYTES

    assert kept

    def busy():
        until = time.process_time() + 1.1 * SECONDS
        while time.process_time() < until:
            pass

    _, seconds, _ = limits_of(busy)
    assert seconds > SECONDS
