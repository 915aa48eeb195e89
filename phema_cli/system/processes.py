"""Processes as the operating system has them: signals, limits, processors, groups to end.

Two signals ask a program to end: Ctrl-C's, and that of ``kill`` and of schedulers.
"""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType

from phema_cli.errors import SignalError

#: the signals that ask a program to end, and what they have done to it then.
ENDING: dict[int, str] = {signal.SIGINT: "interrupted", signal.SIGTERM: "terminated"}
#: the names of the module that imports others: before ``importlib`` is loaded, and from then on.
_IMPORTING = ("_frozen_importlib", "importlib._bootstrap")
#: what a program gets that writes to a pipe which nobody reads any more.
BROKEN_PIPE: int = signal.SIGPIPE


def raise_on_signals() -> None:
    """Have the first of them raise SignalError, and all later ones do nothing.

    What cleans up on the way out is not interrupted. A signal that is ignored stays so. Where an
    error would not come through, the process ends at once, as it does by ``kill -9``.
    """
    sys.unraisablehook = _end_if_lost
    for number in ENDING:
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, _raise)


def _raise(number: int, frame: FrameType | None) -> None:
    """End, as a shell reports it."""
    ignore_signals()
    error = SignalError(number)
    if _imports(frame):
        # A library that is being loaded may take any error for "not installed". In one of C++ an
        # error aborts the process.
        _end_now(error)
    raise error


def _imports(frame: FrameType | None) -> bool:
    """Whether a frame runs because a module is imported."""
    while frame is not None:
        if frame.f_globals.get("__name__") in _IMPORTING:
            return True
        frame = frame.f_back
    return False


def _end_if_lost(lost: sys.UnraisableHookArgs) -> None:
    """End where Python drops the error of a signal, as it does in a ``__del__``."""
    if isinstance(lost.exc_value, SignalError):
        _end_now(lost.exc_value)
    sys.__unraisablehook__(lost)


def _end_now(error: SignalError) -> None:
    """End without a way back, with the line and the exit code that a way back would end in."""
    os.write(2, f"phema: {ENDING[error.number]}\n".encode())
    os._exit(error.exit_code)


def ignore_signals() -> None:
    """Go on whatever comes."""
    for number in ENDING:
        signal.signal(number, signal.SIG_IGN)


@contextmanager
def held_signals() -> Iterator[None]:
    """Let signals wait until the block is done, as one that starts or ends processes has to be.

    Only the main thread gets signals; in others nothing is done.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    met: list[int] = []
    before = {number: signal.getsignal(number) for number in ENDING}
    for number, handler in before.items():
        if handler != signal.SIG_IGN:
            signal.signal(number, lambda number, _frame: met.append(number))
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        if met:
            signal.raise_signal(met[0])


def processors() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0))


def most_open_files() -> int:
    """Files that this process may have open at a time."""
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]


def most_memory_bytes() -> int | None:
    """Bytes of memory that this process is allowed; None without a limit."""
    kinds = (resource.RLIMIT_AS, resource.RLIMIT_DATA)
    limits = [resource.getrlimit(kind)[0] for kind in kinds]
    return min((limit for limit in limits if limit != resource.RLIM_INFINITY), default=None)


def end_group(process: subprocess.Popen[bytes], grace_seconds: float) -> None:
    """End a process that leads a group, and all that it has started."""
    # The group has the number of its first process, and outlives it.
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGTERM)
    with suppress(subprocess.TimeoutExpired):
        process.wait(grace_seconds)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


@contextmanager
def time_limit(left: list[float], error: Exception) -> Iterator[None]:
    """Raise an error in the block when its share of the processor's time is over.

    Only a program's main thread can be stopped in this way; others take what time they need.

    Args:
        left: seconds of the processor, one number; what was not used is left in it.
        error: what is raised when they are over.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(_number: int, _frame: object) -> None:
        raise error

    before = signal.signal(signal.SIGVTALRM, stop)
    # A timer of nothing would never ring.
    signal.setitimer(signal.ITIMER_VIRTUAL, max(left[0], 1e-6))
    try:
        yield
    finally:
        left[0] = signal.setitimer(signal.ITIMER_VIRTUAL, 0)[0]
        signal.signal(signal.SIGVTALRM, before)
