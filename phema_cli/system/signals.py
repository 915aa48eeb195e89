"""Signals that ask a program to end: that of Ctrl-C, and that of ``kill`` and of schedulers."""

from __future__ import annotations

import _thread
import math
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from phema_cli.errors import NOTHING_WRITTEN, SignalError

#: the signals that ask a program to end, and the word for such an end.
ENDING: dict[int, str] = {signal.SIGINT: "interrupted", signal.SIGTERM: "terminated"}
if hasattr(signal, "SIGBREAK"):
    # Ctrl-Break of Windows, which also ends groups of processes.
    ENDING[signal.SIGBREAK] = "interrupted"
#: the signal of this program's own alarm.
_ALARM: int = getattr(signal, "SIGALRM", signal.SIGINT)
#: names of the module that imports others: before ``importlib`` is loaded, and after it.
_IMPORTING = ("_frozen_importlib", "importlib._bootstrap")
#: seconds until an error that would have been lost is raised again, and how long that goes on.
_AGAIN_SECONDS = 0.02
_PATIENCE_SECONDS = 2.0
#: the signal for writing to a pipe that nobody reads.
BROKEN_PIPE: int = getattr(signal, "SIGPIPE", 13)

_outcome = NOTHING_WRITTEN


def set_outcome(outcome: str) -> None:
    """Say what has come of the command's work: from now on, the error of a signal says it."""
    global _outcome  # noqa: PLW0603 - signals come at any moment, to the process
    _outcome = outcome


def outcome() -> str:
    """What has come of the command's work, as far as that was said."""
    return _outcome


def raise_on_signals() -> None:
    """Make the first signal raise SignalError, and ignore all later ones.

    So nothing interrupts the clean-up. A signal that is ignored already stays so. Where its error
    would be lost it is raised a moment later.
    """
    sys.unraisablehook = _again_if_lost
    set_outcome(NOTHING_WRITTEN)
    for number in ENDING:
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, _raise)


def _raise(number: int, frame: FrameType | None) -> None:
    """Raise the error for a signal."""
    ignore_signals()
    error = SignalError(number, _outcome)
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

    signal.signal(_ALARM, ring)
    if hasattr(signal, "setitimer"):
        signal.setitimer(signal.ITIMER_REAL, _AGAIN_SECONDS)
    else:
        timer = threading.Timer(_AGAIN_SECONDS, _thread.interrupt_main, (_ALARM,))
        timer.daemon = True
        timer.start()


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
    before = {number: signal.getsignal(number) for number in (*ENDING, _ALARM)}
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
