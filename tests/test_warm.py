"""Processes that the server forks are what new ones are."""

import os
import signal
import subprocess
import sys

import pytest

from tests import systems, warm
from tests.builders import PHEMA, run

pytestmark = [pytest.mark.slow, pytest.mark.linux("processes are forked on Linux alone")]

SCRIPTS = PHEMA.parent
#: of a program: what a process is told, by whom it was started, and what it has.
SHOWN = """
import os, signal, sys, torch
print(sys.argv[1:], os.getcwd(), os.environ["TOLD"], __name__, sys.stdout.encoding)
print(torch.get_num_threads(), sys.stdin.read(), sys.path[0])
print(signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM), file=sys.stderr)
"""


def ended(command, folder, programs=None, given="", **environment):
    """How a shell's command ends with programs that are forked, or with new ones."""
    path = f"{programs or SCRIPTS}:/usr/bin:/bin"
    # Whoever started the tests in the background has it ignored, and that is inherited.
    before = signal.signal(signal.SIGINT, signal.SIG_DFL)
    done = subprocess.run(
        ["bash", "-c", command],
        cwd=folder,
        env={k: v for k, v in os.environ.items() if not k.startswith("COV")}
        | {"PATH": path, "OMP_NUM_THREADS": "1", "COLUMNS": "80"}
        | environment,
        input=given,
        capture_output=True,
        text=True,
        check=False,
    )
    signal.signal(signal.SIGINT, before)
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize(
    "command",
    [
        "phema inspect ckpts",
        "phema inspect nowhere",
        "phema --debug weights",
        "python -c 'import sys; sys.exit(3)'",
        "python -c 'import sys; sys.exit(\"no\")'",
        "python -c 'import os; os.kill(os.getpid(), 15)'",
        "python shown.py a 'b c' <<< given",
        "python -m shown a < /dev/null",
        "python -W error -u -c 'import warnings; warnings.warn(\"told\")' 2>/dev/null",
        "python -c 'import atexit; atexit.register(print, 2)'",
        "python -c 'import threading; threading.Timer(0.1, print, [1]).start()'",
    ],
)
def test_programs_end_as_new_ones(ckpts, command):
    """Exit codes, streams, arguments, directory, variables, and what ends them."""
    (ckpts.parent / "shown.py").write_text(SHOWN)
    forked, new = (
        ended(command, ckpts.parent, programs, TOLD="told") for programs in (warm.programs(), None)
    )
    assert forked == new


def test_what_is_read_at_the_start_starts_a_new_one(tmp_path):
    """A variable that the interpreter reads once is heeded: the program is not forked."""
    command = "python -c 'import sys; print(sys.flags.optimize, \"torch\" in sys.modules)'"
    assert ended(command, tmp_path, warm.programs()) == (0, "0 True\n", "")
    assert ended(command, tmp_path, warm.programs(), PYTHONOPTIMIZE="1") == (0, "1 False\n", "")


def test_it_can_be_killed_with_its_group_and_by_itself(tmp_path):
    """The number is its own, and its end is known once it is gone."""
    with warm.popen(
        [sys.executable, "-c", "import time; print(1, flush=True); time.sleep(60)"],
        cwd=tmp_path,
        start_new_session=True,
        stdout=subprocess.PIPE,
    ) as process:
        assert process.stdout.readline() == "1\n"
        assert process.poll() is None
        with pytest.raises(subprocess.TimeoutExpired):
            process.communicate(timeout=0.01)
        os.killpg(process.pid, signal.SIGKILL)
        assert process.wait(timeout=10) == -signal.SIGKILL
        with pytest.raises(ProcessLookupError):
            os.kill(process.pid, 0)


def test_one_that_a_shell_kills_is_gone(tmp_path):
    """With the program that stands for it the process ends too."""
    command = "python -c 'import os, time; print(os.getpid(), flush=True); time.sleep(60)'"
    code, said, _ = ended(f"timeout -s KILL 1 {command}", tmp_path, warm.programs())
    assert code != 0
    gone = f"for i in $(seq 100); do kill -0 {said.strip()} || exit 0; sleep 0.05; done; exit 1"
    assert ended(gone, tmp_path)[0] == 0


def test_other_systems_lack_what_they_lack(tmp_path):
    """What phema finds out when it is loaded it finds out there."""
    program = "from phema_cli.system import log; import os; print(log._LOCKS_FILES, len(dir(os)))"
    found = {
        system: warm.run([sys.executable, "-c", program], cwd=tmp_path, system=system).stdout
        for system in ("", *systems.SYSTEMS)
    }
    assert [said.split()[0] for said in found.values()] == ["True", "True", "False"]
    assert len(set(found.values())) == 3


def test_numbers_of_chance_are_others(tmp_path):
    """Each process has its own, though all come from one."""
    program = (
        "import random, numpy, torch; print(random.random(), numpy.random.rand(), *torch.rand(1))"
    )
    command = [sys.executable, "-c", program]
    one, other = (warm.run(command, cwd=tmp_path).stdout.split() for _ in range(2))
    assert len({*one, *other}) == 6


def test_constants_are_changed_for_one_process(tmp_path):
    """The next one has what phema has."""
    program = "from phema_cli.system import log; print(log.PATIENCE_SECONDS)"
    changed = {"phema_cli.system.log.PATIENCE_SECONDS": 0.25}
    command = [sys.executable, "-c", program]
    assert warm.run(command, cwd=tmp_path, changed=changed).stdout == "0.25\n"
    assert warm.run(command, cwd=tmp_path).stdout == "5.0\n"


def test_outputs_are_those_of_this_process(ckpts):
    """A synthesis in it makes the same bytes."""
    here, there = (ckpts.parent / f"{name}.safetensors" for name in ("here", "there"))
    run("synthesize", ckpts, "-g", 7, "-o", here)
    done = warm.run([PHEMA, "synthesize", ckpts, "-g", 7, "-o", there], check=True)
    assert done.stdout == f"{there}\n"
    assert here.read_bytes() == there.read_bytes()
