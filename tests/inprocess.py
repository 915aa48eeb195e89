"""The console script called in this process: what a process of its own gives, without its start."""

from __future__ import annotations

import gc
import io
import os
import random
import signal
import sys
import tempfile
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, chdir, contextmanager
from pathlib import Path
from types import ModuleType
from typing import BinaryIO
from unittest.mock import patch

import torch

from phema_cli.__main__ import run

#: of the clock: far beyond what any command of the tests takes.
_SECONDS = 300
#: the interpreter, the system's libraries and torch read these once, when a process starts.
_READ_AT_START = ("PYTHON", "LC_", "LANG", "LD_", "OMP_", "OPENBLAS_", "MKL_")
#: the variable that says the encoding of stdout and stderr.
_ENCODING = "PYTHONIOENCODING"
_HANDLED = [
    getattr(signal, name)
    for name in ("SIGINT", "SIGTERM", "SIGVTALRM", "SIGBREAK")
    if hasattr(signal, name)
]


class _TooLongError(BaseException):
    """A command that does not end; nothing that catches exceptions may hide it."""


def called(
    arguments: Sequence[str], cwd: Path | None, environment: Mapping[str, str]
) -> tuple[int, str, str]:
    """What the console script gives: exit code, stdout, stderr.

    Args:
        arguments: the command line behind ``phema``.
        cwd: where it is called; here by default.
        environment: all that it sees of it.
    """
    with as_process(cwd, environment) as texts:
        code = exit_code(lambda: _script(arguments))
    return code, texts[0], texts[1]


@contextmanager
def as_process(cwd: Path | None, environment: Mapping[str, str]) -> Iterator[list[str]]:
    """Be what a new process is, but for its memory, and leave this one as it was.

    stdout and stderr are new, down to their file descriptors; the list has their texts at the end.
    """
    differing = {
        name
        for name, value in environment.items()
        if name.startswith(_READ_AT_START) and os.environ.get(name) != value
    } - {"OMP_NUM_THREADS", _ENCODING}
    assert not differing, f"only a process of its own reads {differing}: process=True"
    texts: list[str] = []
    with ExitStack() as stack:
        stack.enter_context(_limited())
        stack.enter_context(_signals())
        stack.enter_context(_memory())
        stack.enter_context(chdir(cwd or Path.cwd()))
        stack.enter_context(patch.dict(os.environ, environment, clear=True))
        stack.enter_context(warnings.catch_warnings())
        warnings.resetwarnings()
        encoding, _, errors = environment.get(_ENCODING, "").partition(":")
        stack.enter_context(_streams(texts, encoding or "utf-8", errors or "strict"))
        stack.enter_context(_threads(int(environment.get("OMP_NUM_THREADS", "1"))))
        stack.enter_context(_chance())
        yield texts


def exit_code(call: Callable[[], object]) -> int:
    """The code that the interpreter ends with when this has been its program."""
    try:
        call()
    except SystemExit as ended:
        if isinstance(ended.code, str):
            sys.stderr.write(f"{ended.code}\n")
            return 1
        return ended.code or 0
    except Exception:  # noqa: BLE001 - the interpreter shows whatever it is, and ends with 1
        traceback.print_exc(file=sys.stderr)
        return 1
    return 0


def _script(arguments: Sequence[str]) -> None:
    """The console script's own lines: the program's name is told by these."""
    before = sys.argv, sys.modules["__main__"]
    sys.argv, sys.modules["__main__"] = ["phema", *arguments], ModuleType("__main__")
    try:
        run()
    finally:
        sys.argv, sys.modules["__main__"] = before


@contextmanager
def _streams(texts: list[str], encoding: str, errors: str) -> Iterator[None]:
    """File descriptors 1 and 2, and Python's streams on them, are files whose texts are kept."""
    before = sys.stdout, sys.stderr
    for stream in before:
        stream.flush()
    with ExitStack() as stack:
        files = [stack.enter_context(_replaced(number)) for number in (1, 2)]
        sys.stdout = _writing(1, encoding, errors)
        sys.stderr = _writing(2, encoding, "backslashreplace")
        try:
            yield
        finally:
            for stream in (sys.stdout, sys.stderr):
                stream.flush()
            sys.stdout, sys.stderr = before
            for file in files:
                file.seek(0)
                texts.append(file.read().decode(encoding))


def _writing(number: int, encoding: str, errors: str) -> io.TextIOWrapper:
    """A stream as the interpreter makes it; stderr's lines do not wait."""
    raw = io.FileIO(number, "wb", closefd=False)
    return io.TextIOWrapper(
        io.BufferedWriter(raw), encoding=encoding, errors=errors, line_buffering=number != 1
    )


@contextmanager
def _replaced(number: int) -> Iterator[BinaryIO]:
    """A file in the place of a file descriptor, for programs that are started too."""
    kept = os.dup(number)
    try:
        with tempfile.TemporaryFile() as file:
            os.dup2(file.fileno(), number)
            yield file
    finally:
        os.dup2(kept, number)
        os.close(kept)


@contextmanager
def _signals() -> Iterator[None]:
    """Ctrl-C is heeded, whoever started the tests; afterwards signals are handled as before."""
    before = {number: signal.getsignal(number) for number in _HANDLED}
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _memory() -> Iterator[None]:
    """What the script takes out of the search for garbage is searched again."""
    try:
        yield
    finally:
        gc.unfreeze()
        gc.enable()


@contextmanager
def _threads(number: int) -> Iterator[None]:
    """Torch has as many threads as it is told at its start."""
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def _chance() -> Iterator[None]:
    """Torch's random numbers begin as in a new process; they and Python's go on as before."""
    before = random.getstate()
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(torch.Generator().initial_seed())
            yield
    finally:
        random.setstate(before)


@contextmanager
def _limited() -> Iterator[None]:
    """End what does not end, where the system has an alarm."""
    if not hasattr(signal, "alarm"):
        yield
        return

    def stop(_number: int, _frame: object) -> None:
        raise _TooLongError

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(_SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
