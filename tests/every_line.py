"""A signal at every line that runs once something is on the disk: a program, and what it finds.

``python -m tests.every_line FOLDER JOBS STRIDE FIRST`` makes an average of the snapshots in FOLDER
once for each line, each time in a process of its own that sends itself Ctrl-C before that line.
It prints the lines after which something is wrong, and last the number of signals.
"""

from __future__ import annotations

import gc
import os
import shutil
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from types import FrameType
from typing import Any

import torch  # noqa: F401 - so that those which are forked have it

from phema_cli.errors import SignalError
from phema_cli.estimate.solve import scan_for
from phema_cli.request import Request
from phema_cli.synthesis.execute import execute
from phema_cli.synthesis.recipe import Recipe, make_recipe
from phema_cli.system.signals import raise_on_signals

#: whose lines: phema's, and those of the library that run between them.
_TRACED = ("/phema_cli/", "/contextlib.py", "/multiprocessing/")


@dataclass(frozen=True)
class End:
    """How a process ended.

    Attributes:
        place: the line at which it got the signal; empty if it had fewer lines.
        message: what it said; empty if it ended without a word.
    """

    place: str
    message: str


def _signalled(folder: Path, recipe: Recipe, number: int) -> End:
    """Make the average in a new process that gets a signal before a line, counted from 1."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            raise_on_signals()
            sys.settrace(tracer(folder / "out", number, lambda text: os.write(writing, text)))
            message = "done"
            try:
                execute(recipe, processes=recipe.request.jobs != 1)
            except SignalError as error:
                message = "; ".join([error.outcome, *getattr(error, "__notes__", [])])
            sys.settrace(None)
            os.write(writing, message.encode())
        finally:
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as stream:
        place, _, message = stream.read().rpartition("\n")
    os.waitpid(child, 0)
    return End(place, message)


def tracer(out: Path, number: int, tell: Callable[[bytes], object]) -> Any:
    """A trace function that sends the signal at the line with that number."""
    lines = count(1)
    parent = os.getpid()
    folder = str(out)

    def at_line(frame: FrameType, event: str, _arg: object) -> Any:
        if os.getpid() == parent and _has_entries(folder) and next(lines) == number:
            code = frame.f_code
            name = f"{Path(code.co_filename).name}:{frame.f_lineno} {code.co_name} {event}"
            tell(f"{name}\n".encode())
            signal.raise_signal(signal.SIGINT)
        return at_line

    def at_call(frame: FrameType, event: str, arg: object) -> Any:
        traced = any(part in frame.f_code.co_filename for part in _TRACED)
        return at_line(frame, event, arg) if traced else None

    return at_call


def _has_entries(folder: str) -> bool:
    try:
        return bool(os.listdir(folder))  # noqa: PTH208 - it is asked before every line
    except OSError:
        return False


def _faults(folder: Path, end: End, name: str, whole: bytes) -> list[str]:
    """What is wrong after a signal."""
    out = folder / "out"
    left = sorted(p.name for p in out.iterdir()) if out.exists() else []
    named = [[], [name]]["all outputs are written" in end.message or end.message == "done"]
    staged = [f"{name}.partial"] * ("the same command resumes" in end.message)
    faults = [] if end.message else ["ended without a word"]
    if left != [*named, *staged]:
        faults.append(f"left {left}, and said: {end.message}")
    if named and (out / name).read_bytes() != whole:
        faults.append("other bytes")
    return faults


def main(folder: Path, jobs: int, stride: int, first: int) -> None:
    """Print what is wrong after signals at every ``stride``-th line from the ``first`` on."""
    out = folder / "out"
    name = "average.safetensors"
    request = Request(gamma=(7.0,), output=str(out / name), jobs=jobs)
    recipe, _ = make_recipe(scan_for([folder], request), request)
    assert recipe is not None
    gc.freeze()
    _signalled(folder, recipe, 0)
    whole = (out / name).read_bytes()
    shutil.rmtree(out)
    signals = 0
    for number in count(first, stride):
        end = _signalled(folder, recipe, number)
        faults = _faults(folder, end, name, whole)
        if not end.place:
            break
        signals += 1
        if "the same command resumes" in end.message:
            _signalled(folder, recipe, 0)
            if (out / name).read_bytes() != whole or len(list(out.iterdir())) != 1:
                faults.append("did not resume")
        shutil.rmtree(out, ignore_errors=True)
        for fault in faults:
            print(f"{number} {end.place}: {fault}")  # noqa: T201 - its output
    print(signals)  # noqa: T201 - its output


if __name__ == "__main__":
    main(Path(sys.argv[1]), *map(int, sys.argv[2:]))
