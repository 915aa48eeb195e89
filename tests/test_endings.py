"""How commands end in any console and under any limit of the system: in one line, and rightly."""

import os
import re
import resource
import shlex
import signal
import subprocess

import pytest

from phema_cli.cli import process, render
from phema_cli.errors import InputError, StorageError
from tests.builders import PHEMA, phema, write_run
from tests.warm import popen, programs


@pytest.fixture(scope="module")
def ckpts(tmp_path_factory):
    """A run of eight snapshots, in a directory with an accent."""
    folder = tmp_path_factory.mktemp("endings")
    write_run(folder / "été")
    return folder / "été"


def shell(script, cwd, *, forked=False, **environment):
    """Exit code, stdout and stderr of a script in which $PHEMA is the command, or a forked one."""
    command = programs() / "phema" if forked else PHEMA
    done = subprocess.run(
        ["bash", "-c", f"set -o pipefail; PHEMA={shlex.quote(str(command))}; {script}"],
        cwd=cwd,
        env={k: v for k, v in os.environ.items() if k != "COLUMNS"} | environment,
        capture_output=True,
        check=False,
        timeout=300,
    )
    return done.returncode, done.stdout.decode(errors="replace"), done.stderr.decode()


def one_line(ended, code, *words):
    """Whether a run ended with the exit code and one line that has the words."""
    assert (ended[0], ended[2].count("\n")) == (code, 1), ended
    assert ended[2].startswith("phema: ")
    assert all(word in ended[2] for word in words), ended[2]


# --- streams --------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_closed_stdout(ckpts):
    """What can't be told anybody is an error, and no file gets the descriptor of stdout."""
    one_line(shell("$PHEMA inspect été >&-", ckpts.parent), 5, "stdout", "Bad file descriptor")
    ended = shell("$PHEMA inspect été >/dev/full", ckpts.parent)
    one_line(ended, 5, "stdout", "No space left", "and run the command again")
    ended = shell("$PHEMA synthesize -g 7 été -o closed.safetensors -q >&-", ckpts.parent)
    one_line(ended, 5, "stdout", "; all outputs are written")
    ended = shell("$PHEMA pack été -o packed -q >/dev/full", ckpts.parent)
    one_line(ended, 5, "No space left on device; all outputs are written")
    verified = phema("verify", "closed.safetensors", "été", "--full", "-q", cwd=ckpts.parent)
    assert (verified.code, verified.out, verified.err) == (0, "", "")
    assert shell("$PHEMA inspect nothing 2>&-", ckpts.parent) == (3, "", "")
    assert shell("$PHEMA inspect été --json <&- >&- 2>&-", ckpts.parent) == (5, "", "")


@pytest.mark.slow
def test_a_reader_that_has_enough(ckpts):
    """A pipe that is closed ends a command as SIGPIPE does: quietly, 141 to who asks for it."""
    code, out, err = shell("$PHEMA inspect -v été | head -1", ckpts.parent, forked=True)
    assert (code, err) in {(0, ""), (141, "")}
    assert out.startswith("8 snapshots")
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer) as closed:
        done = subprocess.run(
            [PHEMA, "inspect", ckpts], stdout=closed, stderr=subprocess.PIPE, check=False
        )
    assert (done.returncode, done.stderr) == (141, b"")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("environment", "forked"),
    [
        ({"PYTHONIOENCODING": "ascii"}, False),
        ({"PYTHONIOENCODING": "cp1252"}, True),
        ({"PYTHONIOENCODING": "latin-1:strict"}, True),
        ({"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}, False),
        ({"PYTHONIOENCODING": "utf-8"}, True),
    ],
    ids=str,
)
def test_consoles_of_any_encoding(ckpts, environment, forked):
    """Bars are drawn in what the console has; a name that it lacks is escaped, nothing is lost."""

    def ended(script):
        return shell(script, ckpts.parent, forked=forked, **environment)

    code, out, err = ended("$PHEMA inspect été")
    assert (code, err) == (0, "")
    bars = "█▒░" if environment == {"PYTHONIOENCODING": "utf-8"} else "#+."
    assert f"{bars[2]} poor" in out
    assert f"{bars[0]} good" in out
    code, out, err = ended("$PHEMA synthesize -g 7 été -o ≈é.safetensors --overwrite -q")
    assert (code, err) == (0, "")
    assert (ckpts.parent / "≈é.safetensors").exists()
    assert out.endswith(".safetensors\n")
    one_line(ended("$PHEMA inspect ≈nothing"), 3, "nothing")


@pytest.mark.slow
def test_names_that_are_no_text(ckpts):
    """The bytes of a name go to stdout as they are, so that a script finds the file."""
    made = "$PHEMA synthesize -g 7 été -o $'\\xff.safetensors' --overwrite -q"
    script = f"{made} | od -An -tx1"
    code, out, err = shell(script, ckpts.parent, PYTHONIOENCODING="utf-8")
    assert (code, out[1:3], err) == (0, "ff", "")


# --- limits of the system -------------------------------------------------------------------------

# A measurement of coverage needs memory and files of its own, and prints a traceback without them.
UNMEASURED = "unset COVERAGE_PROCESS_CONFIG COVERAGE_PROCESS_START"


@pytest.mark.slow
@pytest.mark.parametrize("kib", [30_000, 100_000, 150_000, 250_000, 400_000])
def test_little_memory(ckpts, kib):
    """Wherever memory runs out, the line says so and how to need less."""
    script = f"{UNMEASURED}; ulimit -v {kib}; $PHEMA synthesize -g 7 été -o m.safetensors -q -j 4"
    one_line(shell(script, ckpts.parent), 5, "memory", "ulimit -v")
    assert not (ckpts.parent / "m.safetensors").exists()


@pytest.mark.slow
@pytest.mark.parametrize("files", [8, 12])
def test_few_files(ckpts, files):
    """That no more files may be open is never laid to stdout."""
    command = "exec $PHEMA synthesize -g 7 été -o f.safetensors -q -j 4"
    script = f"{UNMEASURED}; ulimit -n {files}; {command}"
    ended = shell(script, ckpts.parent)
    one_line(ended, 5, "Too many open files", "ulimit -n")
    assert "stdout" not in ended[2]


@pytest.mark.slow
def test_deep_paths(ckpts, tmp_path):
    """110 levels, longer together than a path may be: the line names the path, not stdout."""
    descriptor = os.open(tmp_path, os.O_RDONLY)
    for _ in range(110):
        os.mkdir("d" * 50, dir_fd=descriptor)
        inner = os.open("d" * 50, os.O_RDONLY, dir_fd=descriptor)
        os.close(descriptor)
        descriptor = inner
    os.close(os.open("step1-gamma5.pt", os.O_CREAT | os.O_WRONLY, dir_fd=descriptor))
    os.close(descriptor)
    long = "d" * 300
    deep = phema("inspect", ".", cwd=tmp_path)
    assert len(deep.err) < 3000
    read = phema("verify", long, cwd=ckpts.parent)
    written = phema("synthesize", "-g", "7", "été", "-o", f"{long}.pt", cwd=ckpts.parent)
    for done in (deep, read, written):
        one_line((done.code, done.out, done.err), 5, "dddd", "File name too long")


@pytest.mark.parametrize(
    ("error", "kind", "words"),
    [
        (MemoryError(), StorageError, "out of memory"),
        (
            RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"),
            StorageError,
            "m",
        ),
        (RuntimeError("can't start new thread"), StorageError, "threads"),
        (OSError(24, "Too many open files"), StorageError, "ulimit -n"),
        (OSError(13, "Permission denied", b"/a/\xff"), StorageError, "/a/"),
        (RecursionError("maximum recursion depth exceeded"), InputError, "nested"),
        (OverflowError("int too large to convert to float"), InputError, "number"),
        ("\ud800".encode, InputError, "encoding"),
        (KeyError("w"), InputError, "--debug"),
    ],
    ids=lambda given: given if isinstance(given, str) else "",
)
def test_whatever_escapes(error, kind, words):
    """Any exception is an error of phema's that says what it is in one line."""
    if not isinstance(error, BaseException):
        with pytest.raises(UnicodeError) as raised:
            error()
        error = raised.value
    reported = process.as_phema_error(error)
    assert type(reported) is kind
    assert words in str(reported)
    assert "\n" not in str(reported)


def test_what_fails_for_want_of_files_says_so():
    """A module that can't be looked for is not found: the cause is another."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, before[1]))
    try:
        reported = process.as_phema_error(ModuleNotFoundError("No module named 'numpy'"))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
    assert "Too many open files" in str(reported)


# --- several at once, and many files --------------------------------------------------------------


@pytest.mark.slow
def test_five_runs_of_one_output(ckpts, tmp_path):
    """One makes it; the others say that it exists, whatever moment they come in."""
    for number in range(3):
        place = tmp_path / f"{number}/deep/o.safetensors"
        command = [PHEMA, "synthesize", "-g", "7", ckpts, "-o", place, "-q", "-j", "1"]
        runs = [popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) for _ in range(5)]
        said = [(*run.communicate(), run.returncode) for run in runs]
        assert sorted(code for _, _, code in said) == [0, 2, 2, 2, 2], said
        assert all("exists already" in err for _, err, code in said if code), said
        assert [p.name for p in place.parent.iterdir()] == [place.name]


@pytest.mark.slow
def test_many_broken_files_are_said_in_few_words(tmp_path):
    """Thousands of files that can't be read are a line or two, with -q too, and exit code 3."""
    for number in range(3000):
        suffix = ("safetensors", "pt", "pkl")[number % 3]
        (tmp_path / f"step{number + 1}-gamma5.{suffix}").write_bytes(b"\x80broken %d" % number)
    done = phema("inspect", "-q", tmp_path)
    assert done.code == 3
    assert 1 <= done.out.count("\n") + done.err.count("\n") <= 5
    counted = sum(map(int, re.findall(r"and (\d+) others", done.out)))
    assert counted + done.out.count("error:") == 3000


@pytest.mark.parametrize(
    ("when", "outcome"),
    [("line", "all outputs are written"), ("findings", "no output was written")],
)
def test_an_interruption_says_what_is_written(ckpts, tmp_path, monkeypatch, when, outcome):
    """All outputs, where it comes while their paths are printed; none before they are made."""
    assert phema("synthesize", "--gamma", 5, ckpts, "-o", tmp_path / "before.pt").code == 0
    monkeypatch.setattr(render, when, lambda *_, **__: signal.raise_signal(signal.SIGINT))
    done = phema("synthesize", "--gamma", 7, ckpts, "-o", tmp_path / "ema.safetensors")
    assert (done.code, done.err.splitlines()[-1]) == (130, f"phema: interrupted; {outcome}")
    assert (tmp_path / "ema.safetensors").exists() == (when == "line")
