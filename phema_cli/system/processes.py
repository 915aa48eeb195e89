"""Processes of the operating system: signals, limits, processors, process groups.

Two signals ask a program to end: that of Ctrl-C, and that of ``kill`` and of schedulers.
"""

from __future__ import annotations

import math
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType

from phema_cli.errors import SignalError

#: the signals that ask a program to end, and the word for such an end.
ENDING: dict[int, str] = {signal.SIGINT: "interrupted", signal.SIGTERM: "terminated"}
#: names of the module that imports others: before ``importlib`` is loaded, and after it.
_IMPORTING = ("_frozen_importlib", "importlib._bootstrap")
#: seconds until an error that would have been lost is raised again, and how long that goes on.
_AGAIN_SECONDS = 0.02
_PATIENCE_SECONDS = 2.0
#: the signal for writing to a pipe that nobody reads.
BROKEN_PIPE: int = signal.SIGPIPE


def raise_on_signals() -> None:
    """Make the first signal raise SignalError, and ignore all later ones.

    So nothing interrupts the clean-up. A signal that is ignored already stays so. Where its error
    would be lost it is raised a moment later.
    """
    sys.unraisablehook = _again_if_lost
    for number in ENDING:
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, _raise)


def _raise(number: int, frame: FrameType | None) -> None:
    """Raise the error for a signal."""
    ignore_signals()
    error = SignalError(number)
    if _imports(frame):
        # A library that is being loaded may read any error as "not installed", or, if it is in
        # C++, abort the process.
        _raise_again(error, time.monotonic() + _PATIENCE_SECONDS)
    else:
        raise error


def _raise_again(error: SignalError, until: float) -> None:
    """Raise an error a moment later; where it can't be for too long, end the process at once."""

    def ring(_number: int, frame: FrameType | None) -> None:
        if not _imports(frame):
            raise error
        if time.monotonic() > until:
            os.write(2, f"phema: {ENDING[error.number]}\n".encode())
            os._exit(error.exit_code)
        _raise_again(error, until)

    signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, _AGAIN_SECONDS)


def _imports(frame: FrameType | None) -> bool:
    """Whether a frame runs while a module is imported."""
    while frame is not None:
        if frame.f_globals.get("__name__") in _IMPORTING:
            return True
        frame = frame.f_back
    return False


def _again_if_lost(lost: sys.UnraisableHookArgs) -> None:
    """Raise the error of a signal once more if Python drops it, as it does in a ``__del__``."""
    if isinstance(lost.exc_value, SignalError):
        _raise_again(lost.exc_value, math.inf)
    else:
        sys.__unraisablehook__(lost)


def ignore_signals() -> None:
    """Ignore the signals that ask for an end."""
    for number in ENDING:
        signal.signal(number, signal.SIG_IGN)


@contextmanager
def held_signals() -> Iterator[None]:
    """Hold signals back until the block is done: one that starts or ends processes must finish.

    Only the main thread gets signals; in other threads this does nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    held: list[int] = []
    before = {number: signal.getsignal(number) for number in (*ENDING, signal.SIGALRM)}
    for number, handler in before.items():
        if handler not in {None, signal.SIG_IGN}:
            signal.signal(number, lambda number, _frame: held.append(number))
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        if held:
            signal.raise_signal(held[0])


def processors() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0))


def most_open_files() -> int:
    """Files that this process may have open at a time."""
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]


def files_of_each(workers: int) -> int:
    """Files that each worker may have open to read, and as many to write."""
    return max(4, (most_open_files() - 64) // (2 * workers))


def most_memory_bytes() -> int | None:
    """Bytes of memory that this process may use; None if there is no limit."""
    kinds = (resource.RLIMIT_AS, resource.RLIMIT_DATA)
    limits = [resource.getrlimit(kind)[0] for kind in kinds]
    return min((limit for limit in limits if limit != resource.RLIM_INFINITY), default=None)


def end_group(process: subprocess.Popen[bytes], grace_seconds: float) -> None:
    """End a process that leads a group, and all processes that it has started."""
    # The group has the number of its leader, and outlives it.
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGTERM)
    with suppress(subprocess.TimeoutExpired):
        process.wait(grace_seconds)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


@contextmanager
def time_limit(left: list[float], error: Exception) -> Iterator[None]:
    """Raise an error in the block when its processor time is over.

    Only the main thread can be stopped in this way; other threads run without a limit.

    Args:
        left: one number, seconds of the processor; the block leaves the rest in it.
        error: raised when they are over.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(_number: int, _frame: object) -> None:
        raise error

    before = signal.signal(signal.SIGVTALRM, stop)
    # A timer of 0 seconds would never ring.
    signal.setitimer(signal.ITIMER_VIRTUAL, max(left[0], 1e-6))
    try:
        yield
    finally:
        left[0] = signal.setitimer(signal.ITIMER_VIRTUAL, 0)[0]
        signal.signal(signal.SIGVTALRM, before)
