"""What the user's own pattern finds in a path."""

import re
from collections.abc import Iterator
from contextlib import closing, contextmanager
from functools import lru_cache
from pathlib import PurePosixPath

from phema_cli.errors import InputError, UsageError
from phema_cli.system.patterns import Limit

#: of the processor's time: to compile a pattern, and to search it in paths.
_MOST_SECONDS = 0.5
#: what each path adds to the time that is left, up to that.
_PATH_SECONDS = 1e-4
#: characters of a pattern.
_LONGEST = 1000
#: named groups that a --pattern may have.
FIELDS = ("gamma", "sigma_rel", "beta", "index", "step", "kimg", "epoch")
#: which of them say when a file was stored; and the others, with what a row of phema.toml may say.
TIMES = ("step", "kimg", "epoch")
AVERAGES = ("gamma", "sigma_rel", "beta", "index", "average")


@lru_cache(maxsize=8)
def compile_pattern(pattern: str) -> re.Pattern[str]:
    """Compile what the user gave as a pattern.

    Raises:
        UsageError: too long, not a regular expression, one that takes too long to compile, or none
            of its groups is one of ``FIELDS``.
    """
    if len(pattern) > _LONGEST:
        raise UsageError(f"the pattern has {len(pattern)} characters, above {_LONGEST}")
    try:
        # What a phema.toml says may come from anyone.
        with closing(Limit(_MOST_SECONDS)) as limit:
            compiled = limit.compile(pattern)
    except TimeoutError as error:
        raise UsageError("the pattern takes too long to compile") from error
    except (re.error, RecursionError, OverflowError, MemoryError) as error:
        raise UsageError(f"the pattern is not a regular expression: {error}") from error
    if not set(compiled.groupindex) & set(FIELDS):
        raise UsageError(
            "the pattern has no named group",
            remedy=f"name some of {', '.join(FIELDS)}: (?P<step>...)",
        )
    return compiled


class SlowPatternError(InputError):
    """A pattern that takes too long, as it may on all other paths too."""


class PathPattern:
    """A pattern that is searched in paths, for half a second and a ten-thousandth for each path.

    Args:
        pattern: as the user gave it.

    Raises:
        UsageError: as :func:`compile_pattern`.
    """

    def __init__(self, pattern: str) -> None:
        compile_pattern(pattern)
        self._pattern = pattern
        self._limit = Limit(_MOST_SECONDS)
        self.close = self._limit.close

    def __call__(self, path: PurePosixPath) -> dict[str, str] | None:
        """Named groups of the pattern in the path, None where it does not match.

        Raises:
            SlowPatternError: it takes too long, with all paths before it.
        """
        self._limit.left = min(self._limit.left + _PATH_SECONDS, _MOST_SECONDS)
        try:
            groups = self._limit.search(self._pattern, path.as_posix())
        except TimeoutError as error:
            raise SlowPatternError("the pattern takes too long", where=path) from error
        if groups is None:
            return None
        return {k: v for k, v in groups.items() if k in FIELDS and v is not None}


@contextmanager
def searching(pattern: str | None) -> Iterator[PathPattern | None]:
    """The user's pattern, if there is one, until it has been searched in all paths."""
    search = PathPattern(pattern) if pattern else None
    try:
        yield search
    finally:
        # An error that is told later may hold it.
        if search is not None:
            search.close()
