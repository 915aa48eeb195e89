"""macOS and Windows: what they lack is taken away, and the commands give what they give on Linux.

No machine with these systems runs here: what only they have, such as Windows' own locks, is not
tried. The workflow runs the suite there.
"""

import ast
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

import phema_cli
from tests import systems, warm
from tests.builders import run, write_run

pytestmark = pytest.mark.linux("it takes away what others lack")

CODE = Path(phema_cli.__file__).parent
#: an evaluation that every shell can run: the size of the file.
SIZE = f'"{sys.executable}" -c "import os, sys; print(os.path.getsize(sys.argv[1]))" {{path}}'
#: the commands, and the exit codes that they have everywhere.
COMMANDS = [
    (["inspect", "ckpts", "--json"], 0),
    (["inspect", "ckpts", "-v"], 0),
    (["weights", "ckpts", "-g", "7"], 0),
    (["synthesize", "ckpts", "-g", "6,7", "-o", "out/", "-j", "3", "-q"], 0),
    (["synthesize", "ckpts", "-g", "7", "-o", "out/seven.pt", "-q"], 0),
    (["synthesize", "ckpts", "-g", "7", "-o", "shards", "--max-shard-size", "100B", "-q"], 0),
    (["synthesize", "ckpts", "-g", "7", "-o", "out/", "-q"], 2),
    (["verify", "out/seven.pt", "ckpts", "--full"], 0),
    (["diff", "out/seven.pt", "out/phema-step0000100-gamma7.safetensors"], 0),
    (["pack", "ckpts", "-o", "packed", "-q"], 0),
    (["synthesize", "packed", "-g", "7", "-o", "out/packed.safetensors", "-q"], 0),
    (["sweep", "ckpts", "--eval", SIZE, "-o", "sweep", "-q", "--gamma", "4,8"], 0),
    (["sweep", "ckpts", "--eval", "false {path}", "-o", "failing", "-q"], 1),
    (["plan", "--steps", "400", "--like", "ckpts", "--json"], 0),
    (["plot", "ckpts", "-g", "7", "-o", "plot.svg"], 0),
    (["demo", "demo", "--steps", "200", "-q"], 0),
    (["inspect", "ckpts", "--pattern", "step0*(?P<step>[0-9]+)-gamma(?P<gamma>[0-9.]+)"], 0),
    (["inspect", "ckpts", "--pattern", "([a-z0-9.-]+)+!(?P<step>x)"], 3),
    (["inspect", "none"], 3),
]
#: runs them all in one process, and keeps what they print and their exit codes.
ALL = """
import contextlib, io, json, os, sys, warnings
from pathlib import Path
import phema_cli.cli.app
from phema_cli.cli import process
from tests.once import each_sample_is_tested_once

each_sample_is_tested_once().start()
warnings.simplefilter("ignore")
for number, (arguments, _) in enumerate(json.loads(Path("commands.json").read_text())):
    sys.argv = ["phema", *arguments]
    out, errors = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(errors):
        try:
            phema_cli.cli.app.main()
            code = 0
        except SystemExit as end:
            code = end.code or 0
    Path(f"said-{number:02d}.txt").write_text(f"{code}\\n{out.getvalue()}{errors.getvalue()}")
"""


def run_on(system, folder, *arguments, changed=None):
    """A program of Python in a process that has what a system has."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "COLUMNS": "100"}
    command = [sys.executable, *arguments]
    return warm.run(command, cwd=folder, env=environment, system=system, changed=changed)


def after_all_commands(system, ckpts, folder):
    """A directory with the same snapshots after all commands on a system; Linux has no name."""
    shutil.copytree(ckpts, folder / "ckpts")
    (folder / "commands.json").write_text(json.dumps(COMMANDS))
    # Of the process that searches for a pattern where no alarm ends it.
    short = {"phema_cli.system.patterns._PATIENCE_SECONDS": 1.0}
    done = run_on(system, folder, "-c", ALL, changed=short)
    assert done.returncode == 0, done.stderr
    return folder


def files(folder):
    """All files by their names, but for what tells the time."""
    everything = (p for p in folder.rglob("*") if p.is_file() and p.name != "sweep.jsonl")
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in everything}


def said(folder, number):
    """Exit code and text of a command, without paths of the machine and the time that it took."""
    text = (folder / f"said-{number:02d}.txt").read_bytes().replace(bytes(folder), b"")
    return re.sub(rb"[0-9.]+ s\b", b"? s", text)


@pytest.mark.slow
def test_commands_give_what_they_give_on_linux(ckpts, tmp_path):
    """Every file that every command makes has the same name and bytes, and it says the same.

    So it is of the exit code and the text of what is refused.
    """
    linux = after_all_commands("", ckpts, tmp_path / "linux")
    expected = files(linux)
    assert len(expected) > 40
    for system in systems.SYSTEMS:
        folder = after_all_commands(system, ckpts, tmp_path / system)
        made = files(folder)
        assert set(made) == set(expected)
        for name, data in expected.items():
            if not name.startswith("said-"):
                assert made[name] == data, (system, name)
        for number, (arguments, code) in enumerate(COMMANDS):
            assert said(linux, number).startswith(f"{code}\n".encode()), arguments
            assert said(folder, number) == said(linux, number), (system, arguments)


#: sends itself Ctrl-C at a line of phema's, counted from the moment that something is on the disk.
INTERRUPTED = """
import sys
from pathlib import Path
from phema_cli.__main__ import run
from tests.every_line import tracer

number, *sys.argv[1:] = sys.argv[1:]
sys.settrace(tracer(Path("out"), int(number), lambda text: None))
run()
"""
OPTIONS = ("-g", "7", "-q", "-j", "2", "--trust-tags")
SYNTHESIS = ("synthesize", "ckpts", "-o", "out/seven.safetensors", *OPTIONS)


@pytest.mark.slow
@pytest.mark.parametrize("line", [3, 250, 550, 700])
@pytest.mark.parametrize("system", systems.SYSTEMS)
def test_an_interrupted_run_resumes(system, line, tmp_path):
    """It ends with the code of Ctrl-C, says what is left, and the same command makes the file."""
    write_run(tmp_path / "ckpts")
    whole = tmp_path / "whole.safetensors"
    run("synthesize", tmp_path / "ckpts", "-o", whole, *OPTIONS)
    first = run_on(system, tmp_path, "-c", INTERRUPTED, str(line), *SYNTHESIS)
    assert first.returncode == 130, first.stderr
    assert len(first.stderr.splitlines()) == 1
    left = {p.name for p in (tmp_path / "out").glob("*")}
    if "resumes" in first.stderr:
        assert left == {"seven.safetensors.partial"}
    elif "all outputs are written" in first.stderr:
        assert left == {"seven.safetensors"}
    else:
        assert not left
    again = run_on(system, tmp_path, "-m", "phema_cli", *SYNTHESIS, "--overwrite")
    assert again.returncode == 0, again.stderr
    assert files(tmp_path / "out") == {"seven.safetensors": whole.read_bytes()}


HOLDER = """
from pathlib import Path
from phema_cli.system.log import Log

folder = Path("out/seven.safetensors.partial")
folder.mkdir(parents=True)
held = Log(folder / "journal")
held.lock()
print("held", flush=True)
input()
"""


@pytest.mark.slow
@pytest.mark.parametrize("system", systems.SYSTEMS)
def test_two_runs_at_once_exclude_each_other(system, tmp_path):
    """The second is refused while the first lives, and not when it was killed."""
    write_run(tmp_path / "ckpts")
    short = {"phema_cli.system.log.PATIENCE_SECONDS": 0.2}
    with warm.popen(
        [sys.executable, "-c", HOLDER],
        cwd=tmp_path,
        system=system,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        refused = run_on(system, tmp_path, "-m", "phema_cli", *SYNTHESIS, changed=short)
        holder.send_signal(signal.SIGKILL)
    assert refused.returncode == 5
    assert "another process is writing this output" in refused.stderr
    done = run_on(system, tmp_path, "-m", "phema_cli", *SYNTHESIS)
    assert done.returncode == 0, done.stderr
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["seven.safetensors"]


@pytest.mark.slow
def test_a_command_that_times_out_is_ended_without_groups(tmp_path):
    """Where there are no process groups at least the shell itself is ended."""
    program = """
        from phema_cli.sweep.evaluation import Evaluator, Workers
        evaluator = Evaluator("sleep 1 # {path}", timeout=0.2)
        with Workers(evaluator, 1) as workers:
            workers.start("x", {"path": "x"})
            ((_, result),) = workers.ended(lambda: None)
        print(result.failure)
    """
    done = run_on("windows", tmp_path, "-c", textwrap.dedent(program))
    assert done.stdout == "timed out after 0.2 s\n", done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("system", ["", "windows"])
def test_a_pattern_is_bounded_in_every_thread(system, tmp_path):
    """One that searches for ever, after many that are quick; with alarms and without."""
    program = """
        import threading
        from phema_cli.system import patterns
        patterns._PATIENCE_SECONDS = 1.0
        def search():
            limit = patterns.Limit(0.5)
            slow, quick = "(a+)+!", "(?P<step>[0-9]+)"
            assert limit.compile(slow).pattern == slow
            print([limit.search(quick, f"s{n}")["step"] for n in range(500)][-1], limit.left > 0)
            try:
                limit.search(slow, 40 * "a")
            except TimeoutError:
                print("stopped")
        for run in (search, lambda: threading.Thread(target=search).start()):
            run()
    """
    done = run_on(system, tmp_path, "-c", textwrap.dedent(program))
    assert done.stdout == 2 * "499 True\nstopped\n", done.stderr


def test_only_system_asks_for_what_not_every_system_has():
    """No other module names a service of ``os`` or ``signal`` that macOS or Windows lacks."""
    missing = {*systems.NOT_ON_MACOS, *systems.NOT_ON_WINDOWS, *systems.SIGNALS_NOT_ON_WINDOWS}
    asked = []
    for path in CODE.rglob("*.py"):
        if path.parent.name == "system":
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            named = isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)
            if named and node.value.id in {"os", "signal"} and node.attr in missing:
                asked.append(f"{path.name}: {node.value.id}.{node.attr}")
    assert not asked
