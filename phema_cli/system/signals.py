"""The signals that ask a program to end: Ctrl-C's, and that of ``kill`` and of schedulers."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from phema_cli.errors import SignalError

ENDING = (signal.SIGINT, signal.SIGTERM)


def raise_on_signals() -> None:
    """Have the first of them raise SignalError, and all later ones do nothing.

    What cleans up on the way out is not interrupted. A signal that is ignored stays so.
    """
    for number in ENDING:
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, _raise)


def _raise(number: int, _frame: object) -> None:
    """End, as a shell reports it."""
    ignore_signals()
    raise SignalError(number)


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
