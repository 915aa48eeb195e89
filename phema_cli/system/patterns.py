"""Regular expressions of users within a limit of time: some search for longer than anybody waits.

Nothing stops a search that has begun but the end of its interpreter, so another one searches.
"""

import json
import re
import subprocess
import sys
import threading
import weakref
from contextlib import suppress
from typing import IO, Any, cast

#: the other interpreter: a pattern, a text and the seconds of the processor that are left on each
#: line, and what was found with the seconds that it took. Where there are such alarms one ends it.
_SEARCHER = """
import json, re, signal, sys, time
alarm = getattr(signal, "setitimer", lambda *_: None)
for line in sys.stdin:
    pattern, text, left = json.loads(line)
    began = time.process_time()
    alarm(getattr(signal, "ITIMER_VIRTUAL", 0), left)
    try:
        found = re.search(pattern, text)
        groups = None if found is None else found.groupdict()
    except Exception:
        groups = None
    alarm(getattr(signal, "ITIMER_VIRTUAL", 0), 0)
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
        self._process = subprocess.Popen(  # noqa: S603 - this very interpreter
            [sys.executable, "-I", "-S", "-c", _SEARCHER],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        #: ends the other interpreter, as the end of this object does.
        self.close = weakref.finalize(self, _end, self._process)

    def compile(self, pattern: str) -> re.Pattern[str]:
        """Compile a pattern.

        Raises:
            TimeoutError: it takes too long.
            re.error, RecursionError, OverflowError, MemoryError: it is none.
        """
        self.search(pattern, "")
        # What the other interpreter was able to compile is compiled again, here, for its groups.
        return re.compile(pattern)

    def search(self, pattern: str, text: str) -> dict[str, Any] | None:
        """Named groups of a pattern in a text; None where it does not match, or is none.

        Raises:
            TimeoutError: it takes too long, or did before.
        """
        stdin = cast("IO[bytes]", self._process.stdin)
        stdout = cast("IO[bytes]", self._process.stdout)
        # A timer of 0 seconds would never ring.
        asked = json.dumps([pattern, text, max(self.left, 1e-6)]).encode() + b"\n"
        timer = threading.Timer(self.left + _PATIENCE_SECONDS, self._process.kill)
        timer.start()
        try:
            with suppress(OSError):
                stdin.write(asked)
                stdin.flush()
            line = stdout.readline()
        finally:
            timer.cancel()
        groups, taken = json.loads(line) if line else (None, self.left)
        self.left -= taken
        if self.left <= 0:
            raise TimeoutError
        return cast("dict[str, Any] | None", groups)


def _end(process: subprocess.Popen[bytes]) -> None:
    """End it, and close its pipes."""
    process.kill()
    process.communicate()
