"""Globs, matched in time that grows with the length of a name and not with the number of globs.

A regular expression made of many globs tries one after the other. Here all are followed at once, as
by an automaton: a bit says how far one of them has matched, and an integer holds the bits of all.
"""

import re
from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase
from functools import lru_cache

from phema_cli.errors import UsageError

#: characters of one glob, as a path may have them.
_LONGEST = 4096
#: characters of all globs of an option that have a wildcard.
_MOST_WILD = 8192
_WILD = frozenset("*?[")
#: a part of a glob: a class, whose first character may be its closing bracket, or a character.
_PART = re.compile(r"\[(?:!.|[^!])[^]]*\]|.", re.DOTALL)
#: characters and names whose results are kept.
_CHARACTERS, _NAMES = 1024, 1 << 17


class Globs:
    """Globs of which one has to match a whole name: ``*``, ``?``, ``[seq]`` and ``[!seq]``.

    Args:
        globs: any number without a wildcard; at most 8192 characters of others.

    Raises:
        UsageError: one is longer than 4096 characters, or all with wildcards are too long.
    """

    def __init__(self, globs: Sequence[str]) -> None:
        wild = [g for g in dict.fromkeys(globs) if not _WILD.isdisjoint(g)]
        longest = max(globs, key=len, default="")
        if len(longest) > _LONGEST:
            raise UsageError(f"the glob {longest[:20]}... has more than {_LONGEST} characters")
        if (total := sum(map(len, wild))) > _MOST_WILD:
            raise UsageError(
                f"{len(wild)} globs with wildcards have {total} characters, more than {_MOST_WILD}",
                remedy="write names without wildcards: their number has no limit",
            )
        self._exact = frozenset(globs).difference(wild)
        self._starts = self._loops = 0
        self._ends: dict[str, int] = {}
        self._characters: dict[str, int] = {}
        self._classes: dict[str, int] = {}
        self._accepted: dict[str, int] = {}
        self._matched: dict[str, bool] = {}
        place = 0
        for glob in wild:
            place = self._add(glob, place)
        self._all_ends = sum(self._ends.values())

    def __bool__(self) -> bool:
        """Whether there is any glob."""
        return bool(self._exact or self._starts)

    def __call__(self, name: str) -> bool:
        """Whether one of the globs matches the name."""
        if not self._starts or name in self._exact:
            return name in self._exact
        matched = self._matched.get(name)
        if matched is None:
            matched = bool(self._follow(name))
            if len(self._matched) < _NAMES:
                self._matched[name] = matched
        return matched

    def _add(self, glob: str, place: int) -> int:
        """Give a glob its bits from ``place`` on; return the first place behind them."""
        self._starts |= 1 << place
        for part in _PART.findall(glob):
            if part == "*":
                self._loops |= 1 << place
                continue
            kind = self._classes if part == "?" or len(part) > 1 else self._characters
            kind[part] = kind.get(part, 0) | 1 << place
            place += 1
        self._ends[glob] = 1 << place
        return place + 1

    def unused(self, names: Iterable[str]) -> set[str]:
        """The globs that match none of the names."""
        reached, exact = 0, set(self._exact)
        for name in names:
            exact.discard(name)
            reached |= self._follow(name)
        return exact | {glob for glob, end in self._ends.items() if not reached & end}

    def _follow(self, name: str) -> int:
        """The ends that globs with wildcards have reached when the name ends, a bit each."""
        state = self._starts
        for character in name:
            accepted = self._accepted.get(character)
            if accepted is None:
                # The bits whose globs match one character more.
                accepted = self._characters.get(character, 0)
                for text, places in self._classes.items():
                    if fnmatchcase(character, text):
                        accepted |= places
                if len(self._accepted) < _CHARACTERS:
                    self._accepted[character] = accepted
            state = (state & accepted) << 1 | state & self._loops
            if not state:
                return 0
        return state & self._all_ends


_cached = lru_cache(maxsize=8)(Globs)


def matching(globs: Sequence[str]) -> Globs:
    """The globs, ready to match; the same object where the same ones were asked for before.

    Errors as :class:`Globs`.
    """
    return _cached(tuple(globs))
