"""What a hostile file may take: time of the processor and memory, measured in this process."""

from __future__ import annotations

import ctypes
import mmap
import os
import re
import signal
import sys
import tempfile
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
#: a mapping that takes no memory: MAP_PRIVATE, MAP_ANONYMOUS and MAP_NORESERVE.
_UNTOUCHED = 0x4022


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


def _grown(work: Callable[[], Result]) -> tuple[Result, float, int]:
    """The same, and what it can't have held more than; all there is, where the system can't tell.

    A process grows by what it touches and by what it asks for, also if it is never touched: the
    larger counts. What the system's allocator has free is given back before, what Python's own has
    free is counted as if all of it had been used.
    """
    peaks, free = Path("/proc/self/clear_refs"), _free()
    if not peaks.exists() or free is None:
        return *seconds_of(work), sys.maxsize
    ctypes.CDLL(None).malloc_trim(0)
    peaks.write_text("5", encoding="utf-8")
    before = _sizes()
    # With this the process is as large as it ever was: it can't grow unseen.
    missing = before["VmPeak"] - before["VmSize"]
    with mmap.mmap(-1, missing + mmap.PAGESIZE, _UNTOUCHED, prot=0):
        before = _sizes()
        result, seconds = seconds_of(work)
        after = _sizes()
    touched, asked = after["VmHWM"] - before["VmRSS"], after["VmPeak"] - before["VmSize"]
    return result, seconds, free + max(touched, asked)


def _free() -> int | None:
    """The bytes that Python's allocator has and does not use, as it tells itself on stderr."""
    kept = os.dup(2)
    try:
        with tempfile.TemporaryFile() as file:
            os.dup2(file.fileno(), 2)
            sys._debugmallocstats()  # noqa: SLF001 - there is no other way
            file.seek(0)
            told = file.read().decode()
    finally:
        os.dup2(kept, 2)
        os.close(kept)
    blocks = re.search(r"^# bytes in available blocks *= *([\d,]+)$", told, re.M)
    pools = re.search(r"^([\d,]+) unused pools \* (\d+) bytes", told, re.M)
    if blocks is None or pools is None:
        return None
    number, size, block_bytes = (int(t.replace(",", "")) for t in (*pools.groups(), blocks[1]))
    return number * size + block_bytes


def _sizes() -> dict[str, int]:
    """The process's sizes and their peaks, in bytes."""
    text = Path("/proc/self/status").read_text(encoding="utf-8")
    return {name: int(kib) << 10 for name, kib in re.findall(r"^(Vm\w+):\s+(\d+) kB", text, re.M)}


def _watched(work: Callable[[], Result]) -> tuple[Result, int]:
    """What the work gives while each block of memory is counted, and the bytes it held at most."""
    tracemalloc.start()
    try:
        with stopped(60 * SECONDS):
            result = work()
        return result, tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def limits_of(work: Callable[[], Result]) -> tuple[Result, float, int]:
    """What the work gives, the processor's seconds, and the bytes that it held at most.

    Counting blocks slows work down several times. By how much the process grows is known without:
    only work that may have held more than is allowed by that is done again, and counted.
    """
    result, seconds, held = _grown(work)
    # What is loaded once, and is no part of the work, is loaded by now.
    if seconds >= SECONDS:
        result, seconds = seconds_of(work)
    if held >= BYTES:
        result, held = _watched(work)
    return result, seconds, held
