"""Regular expressions of users within a limit of time: some search for longer than anybody waits.

An alarm stops a search in the main thread. Elsewhere, and on systems without such alarms, another
interpreter searches, which can be ended.
"""

import json
import re
import signal
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable
from contextlib import suppress
from typing import IO, Any, TypeVar, cast

Result = TypeVar("Result")
#: the other interpreter: a pattern and a text on each line, and what was found with the seconds of
#: the processor that it took.
_SEARCHER = """
import json, re, sys, time
for line in sys.stdin:
    pattern, text = json.loads(line)
    began = time.process_time()
    try:
        found = re.search(pattern, text)
        groups = None if found is None else found.groupdict()
    except Exception:
        groups = None
    print(json.dumps([groups, time.process_time() - began]), flush=True)
"""
#: seconds beside those of the processor: the other interpreter has to start, and others run too.
_PATIENCE_SECONDS = 5.0


class Limit:
    """The time that the patterns of one user may take.

    Args:
        seconds: of the processor.

    Attributes:
        left: what is left of them.
    """

    def __init__(self, seconds: float) -> None:
        self.left = seconds
        self._searcher: _Searcher | None = None

    def compile(self, pattern: str) -> re.Pattern[str]:
        """Compile a pattern.

        Raises:
            TimeoutError: it takes too long.
            re.error, RecursionError, OverflowError, MemoryError: it is none.
        """
        if _alarms():
            return self._alarmed(lambda: re.compile(pattern))
        # What it took is compiled again, here, for its groups.
        self._ask(pattern, "")
        return re.compile(pattern)

    def search(self, pattern: re.Pattern[str], text: str) -> dict[str, Any] | None:
        """Named groups of a pattern in a text; None where it does not match.

        Raises:
            TimeoutError: it takes too long.
        """
        if not _alarms():
            return self._ask(pattern.pattern, text)
        found = self._alarmed(lambda: pattern.search(text))
        return None if found is None else found.groupdict()

    def _alarmed(self, work: Callable[[], Result]) -> Result:
        """Work that an alarm stops."""

        def stop(_number: int, _frame: object) -> None:
            raise TimeoutError

        before = signal.signal(signal.SIGVTALRM, stop)
        # A timer of 0 seconds would never ring.
        signal.setitimer(signal.ITIMER_VIRTUAL, max(self.left, 1e-6))
        try:
            return work()
        finally:
            self.left = signal.setitimer(signal.ITIMER_VIRTUAL, 0)[0]
            signal.signal(signal.SIGVTALRM, before)

    def _ask(self, pattern: str, text: str) -> dict[str, Any] | None:
        """Let the other interpreter search."""
        if self._searcher is None:
            self._searcher = _Searcher()
        groups, seconds = self._searcher.search(pattern, text, self.left + _PATIENCE_SECONDS)
        self.left -= seconds
        if self.left <= 0:
            raise TimeoutError
        return groups


def _alarms() -> bool:
    """Whether an alarm can stop this thread."""
    main = threading.current_thread() is threading.main_thread()
    return main and hasattr(signal, "setitimer")


class _Searcher:
    """Another interpreter, which ends with this object or when it takes too long."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(  # noqa: S603 - this very interpreter
            [sys.executable, "-I", "-S", "-c", _SEARCHER],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        weakref.finalize(self, _end, self._process)

    def search(
        self, pattern: str, text: str, seconds: float
    ) -> tuple[dict[str, Any] | None, float]:
        """What it finds, and the seconds of the processor that it took.

        Raises:
            TimeoutError: it takes longer than ``seconds``, or did before.
        """
        stdin = cast("IO[bytes]", self._process.stdin)
        stdout = cast("IO[bytes]", self._process.stdout)
        asked = json.dumps([pattern, text]).encode() + b"\n"
        timer = threading.Timer(seconds, self._process.kill)
        timer.start()
        try:
            with suppress(OSError):
                stdin.write(asked)
                stdin.flush()
            line = stdout.readline()
        finally:
            timer.cancel()
        if not line:
            raise TimeoutError
        groups, taken = json.loads(line)
        return groups, taken


def _end(process: subprocess.Popen[bytes]) -> None:
    """End it, and close its pipes."""
    process.kill()
    process.communicate()
