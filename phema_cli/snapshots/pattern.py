"""What the user's own pattern finds in a path."""

from __future__ import annotations

import re
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import PurePosixPath

from phema_cli.errors import InputError, UsageError

#: of the processor's time, for the search of a pattern in a path.
_MOST_SECONDS = 0.5
#: named groups that a --pattern may have.
FIELDS = ("gamma", "sigma_rel", "beta", "index", "step", "kimg", "epoch")
#: which of them say when a file was stored; and the others, with what a row of phema.toml may say.
TIMES = ("step", "kimg", "epoch")
AVERAGES = ("gamma", "sigma_rel", "beta", "index", "average")


def compile_pattern(pattern: str) -> re.Pattern[str]:
    """Compile what the user gave as a pattern.

    Raises:
        UsageError: not a regular expression, or none of its groups is one of ``FIELDS``.
    """
    try:
        compiled = re.compile(pattern)
    except (re.error, RecursionError, OverflowError) as error:
        raise UsageError(f"the pattern is not a regular expression: {error}") from error
    if not set(compiled.groupindex) & set(FIELDS):
        raise UsageError(
            "the pattern has no named group",
            remedy=f"name some of {', '.join(FIELDS)}: (?P<step>...)",
        )
    return compiled


class SlowPatternError(InputError):
    """A pattern that takes too long, as it may on all other paths too."""


@contextmanager
def _limited(path: PurePosixPath) -> Iterator[None]:
    """End a search that tries out more than it can: what a phema.toml says may come from anyone."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(_number: int, _frame: object) -> None:
        raise SlowPatternError("the pattern takes too long", where=path)

    before = signal.signal(signal.SIGVTALRM, stop)
    signal.setitimer(signal.ITIMER_VIRTUAL, _MOST_SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)


def match_pattern(pattern: str, path: PurePosixPath) -> dict[str, str] | None:
    """Named groups of ``pattern`` in the path, None where it does not match."""
    with _limited(path):
        match = compile_pattern(pattern).search(path.as_posix())
    if match is None:
        return None
    return {k: v for k, v in match.groupdict().items() if k in FIELDS and v is not None}
