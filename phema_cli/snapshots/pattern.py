"""What the user's own pattern finds in a path."""

import re
from collections.abc import Callable, Iterator
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

#: finds the named groups of a pattern in a path; None where it does not match.
Search = Callable[[PurePosixPath], dict[str, str] | None]


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


@contextmanager
def searching(pattern: str | None) -> Iterator[Search | None]:
    """What searches the user's pattern in paths; None where there is none.

    All searches together have half a second, and a ten-thousandth more for each path. What takes
    longer raises SlowPatternError.

    Raises:
        UsageError: as :func:`compile_pattern`.
    """
    if not pattern:
        yield None
        return
    compile_pattern(pattern)
    with closing(Limit(_MOST_SECONDS)) as limit:

        def search(path: PurePosixPath) -> dict[str, str] | None:
            limit.left = min(limit.left + _PATH_SECONDS, _MOST_SECONDS)
            try:
                groups = limit.search(pattern, path.as_posix())
            except TimeoutError as error:
                raise SlowPatternError("the pattern takes too long", where=path) from error
            if groups is None:
                return None
            return {k: v for k, v in groups.items() if k in FIELDS and v is not None}

        yield search
