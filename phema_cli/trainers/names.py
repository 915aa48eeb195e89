"""What names say: times, in the words that trainers use, and averages in phema's own shape alone.

A word may stand anywhere in a snapshot's own name; a directory above it gives its time only where
the whole name is a word and a number.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace

from phema_cli.trainers.base import Clock, Evidence, Unit

_NUMBER = (
    r"(?P<number>\d{1,3}(?:,\d{3})+(?!\d)|\d+(?:\.\d+(?=[kKmMbB](?![a-zA-Z])))?)"
    r"(?P<scale>[kKmMbB]?)"
)
#: behind a number that counts; another number after "_" or "." would make it a part of one.
_END = r"(?![a-zA-Z\d])(?![.,_]\d)"
#: words for what a trainer counts, the most telling first. A weak one may count anything.
_WORDS: tuple[tuple[str, Unit, bool], ...] = (
    (r"k?img", "images", False),
    (r"(?:global[-_]?|train[-_]?|optim[-_]?)?steps?", "steps", False),
    (r"iter(?:ation)?s?", "steps", False),
    (r"updates?|ba", "steps", False),
    (r"epochs?|ep", "epochs", False),
    (r"checkpoint|ckpt|chkpt", "steps", True),
)
_ROWS = tuple(
    (re.compile(pattern + _END, re.IGNORECASE), unit, weak)
    for word, unit, weak in _WORDS
    for pattern in (
        rf"(?:^|(?<=[-_.=\s]))(?P<word>{word})[-_=.]?{_NUMBER}",
        rf"(?:^|(?<=[-_.\s])){_NUMBER}[-_]?(?P<word>{word})(?![-_.=]?\d)",
    )
)
_VERSION = re.compile(r"[-_.]v\d+$")
_SCALES = {"": 1.0, "k": 1e3, "m": 1e6, "b": 1e9}
_KIMG = re.compile(r"kimg", re.IGNORECASE)

#: ``<prefix>-step0001000-gamma5``, as phema's tracker writes; both numbers count only together.
_OWN = re.compile(
    r"(?:.*-)?step(?P<step>\d+(?:\.\d+)?(?:e[-+]\d+)?)-gamma(?P<gamma>(?:=-)?\d+(?:\.\d+)?(?:e[-+]\d+)?)"
)


def own_name(name: str) -> tuple[Clock, str] | None:
    """The time and the gamma of a name that phema writes, else None."""
    match = _OWN.fullmatch(name)
    if match is None:
        return None
    return Clock(float(match["step"]), "steps", "step", "name"), match["gamma"].removeprefix("=")


def clock_in(name: str, *, whole: bool = False) -> Clock | None:
    """The time that a name gives: of several units the finest.

    Args:
        name: without ending.
        whole: whether the name must be the word and the number, as those of directories must.
    """
    evidence: Evidence = "folder" if whole else "name"
    found: dict[Unit, Clock] = {}
    for clock, match in _clocks(name, evidence):
        if whole and match.group() != name:
            continue
        other = found.setdefault(clock.unit, clock)
        if other.weak and not clock.weak:
            found[clock.unit] = clock
        elif other.value != clock.value and not clock.weak:
            both = f"{other.value:.10g} and {clock.value:.10g} {clock.unit}"
            found[clock.unit] = replace(other, doubt=f"its name gives two times, {both}")
    weak = [c for c in found.values() if c.weak]
    for unit in ("steps", "images", "epochs"):
        if unit in found and not found[unit].weak:
            return found[unit]
    return weak[0] if weak else None


def _clocks(name: str, evidence: Evidence) -> Iterator[tuple[Clock, re.Match[str]]]:
    """Each time in a name."""
    for row, unit, weak in _ROWS:
        for match in row.finditer(name):
            value = float(match["number"].replace(",", "")) * _SCALES[match["scale"].lower()]
            if _KIMG.fullmatch(match["word"]):
                value = images(int(value))
            word, is_open = match["word"].lower(), unit == "epochs"
            yield Clock(value, unit, word, evidence, weak, is_open), match


def has_number(name: str) -> bool:
    """Whether a name has a number that may be a time; ``last-v1`` has a version."""
    return any(character.isdigit() for character in _VERSION.sub("", name))


def epoch_in(name: str, *, whole: bool = False) -> Clock | None:
    """The epoch that a name gives beside its step."""
    evidence: Evidence = "folder" if whole else "name"
    for clock, match in _clocks(name, evidence):
        if clock.unit == "epochs" and (not whole or match.group() == name):
            return clock
    return None


def images(kimg: int) -> float:
    """Images shown where EDM2 counts thousands: whole batches of 1024 (nimg // 1000)."""
    return float((kimg * 1000 + 999) // 1024 * 1024)
