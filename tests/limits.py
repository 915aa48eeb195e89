"""What a hostile file may take: time of the processor and memory, measured in this process."""

from __future__ import annotations

import signal
import sys
import time
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import pytest

resource = pytest.importorskip("resource", reason="limits of memory and time are POSIX alone")
Result = TypeVar("Result")

#: of the processor's time, not of the clock's: others may be at work.
SECONDS = 1.0
BYTES = 64 << 20


class LimitError(AssertionError):
    """Too much time or memory."""


class _StopError(BaseException):
    """The end of what would not end; nothing that catches exceptions may hide it."""


@contextmanager
def stopped(seconds: float) -> Iterator[None]:
    """End what would not end."""

    def stop(_number: int, _frame: object) -> None:
        raise _StopError

    before = signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    except _StopError:
        raise LimitError(f"not done after {seconds} s") from None
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


@contextmanager
def private_memory(size_bytes: int) -> Iterator[None]:
    """Let the system give this process no more than so much memory beyond what it has."""
    with Path("/proc/self/status").open(encoding="utf-8") as file:
        held = next(int(line.split()[1]) for line in file if line.startswith("VmData")) * 1024
    before = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (held + size_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, before)


def seconds_of(work: Callable[[], Result]) -> tuple[Result, float]:
    """What the work gives, and the processor's seconds that it took, up to ten times the limit.

    What measures coverage pauses meanwhile: its time is not the work's.
    """
    tracer = sys.gettrace()
    sys.settrace(None)
    try:
        with stopped(10 * SECONDS):
            start = time.process_time()
            result = work()
            return result, time.process_time() - start
    finally:
        sys.settrace(tracer)


def _watched(work: Callable[[], Result]) -> tuple[Result, float, int]:
    """The same while its memory is watched, and the bytes that it held at most."""
    tracemalloc.start()
    try:
        with stopped(60 * SECONDS):
            start = time.process_time()
            result = work()
            seconds = time.process_time() - start
        return result, seconds, tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def limits_of(work: Callable[[], Result]) -> tuple[Result, float, int]:
    """What the work gives, the processor's seconds, and the bytes that it held at most.

    Work that is quick enough while its memory is watched, which slows it down several times, is so
    without that; only other work is done again.
    """
    result, seconds, held = _watched(work)
    if seconds >= SECONDS or held >= BYTES:
        result, seconds = seconds_of(work)
    if held >= BYTES:
        # What is loaded once, and is no part of the work, is loaded by now.
        held = _watched(work)[2]
    return result, seconds, held
