"""Values of options: lists of numbers, profiles, tables of weights, sizes, times."""

from __future__ import annotations

import re
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import TYPE_CHECKING

from phema_cli.errors import InputError, UsageError

if TYPE_CHECKING:
    from phema_cli.profiles import CheckpointsSpec, ProfileSpec

_MOST_NUMBERS, _DIGITS = 10_000, 12
#: of a table of weights.
_MOST_BYTES = 1 << 20
#: a hundred years: what waits takes no more.
_MOST_SECONDS = 3.2e9
#: of steps and parameters; what counts more has no number that is exact.
_MOST_COUNT = 1 << 53
_TABLE = "write a number, a comma and a number a line, times ascending"


def numbers(texts: list[str]) -> tuple[float, ...]:
    """Numbers of lists like ``5,7,9`` and ``0.05,0.06,...,0.15``; ``...`` fills an even interval.

    Raises:
        UsageError: not numbers, or ``...`` is not between two numbers and a last one.
    """
    found = tuple(float(n) for text in texts for n in _expand(text))
    if len(found) > _MOST_NUMBERS:
        raise UsageError(f"{len(found)} numbers are above {_MOST_NUMBERS}")
    return found


def ends(text: str) -> tuple[float, float]:
    """The two ends of a range like ``0.03,0.20``.

    Raises:
        UsageError: not two numbers, the smaller first.
    """
    found = numbers([text])
    if len(found) != 2 or not found[0] < found[1]:  # noqa: PLR2004 - a range has two ends
        raise UsageError(f"{text!r} is not a range of sigma_rel", remedy="write 0.03,0.20")
    return found[0], found[1]


def profiles(texts: list[str]) -> tuple[ProfileSpec | CheckpointsSpec, ...]:
    """Target profiles of ``uniform:last=0.2`` and the like, and of ``csv:FILE``.

    Raises:
        UsageError: not a profile.
        InputError: a file that is no table of numbers.
        StorageError: it can't be read.
    """
    from phema_cli.profiles import parse_profile

    return tuple(_table(t) if t.startswith("csv:") else parse_profile(t) for t in texts)


def _table(text: str) -> ProfileSpec:
    """A profile from a file of ``time,weight`` lines; its last time is the target's step."""
    from phema_cli.profiles import ProfileSpec, TableProfile
    from phema_cli.system.files import read_small

    path = Path(text.removeprefix("csv:"))
    try:
        lines = read_small(path, _MOST_BYTES, _TABLE).decode("utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise InputError("not a text file", where=path) from error
    lines = [line for line in lines if line.strip()]
    # A first line of names is no row.
    lines = lines[1:] if lines and not any(c.isdigit() for c in lines[0]) else lines
    try:
        points = [(float(time), float(weight)) for time, weight in (s.split(",") for s in lines)]
    except ValueError as error:
        raise InputError("not lines of time,weight", where=path, remedy=_TABLE) from error
    times, weights = [p[0] for p in points], tuple(p[1] for p in points)
    label = f"csv:{path.stem}"
    last = times[-1] if times and times[-1] > 0 else 1.0
    try:
        TableProfile(tuple(times), weights, label)
    except UsageError as error:
        what = error.what.removeprefix(f"{label}: ")
        raise InputError(what, where=path, remedy=_TABLE) from error

    def ending_at(end: float) -> TableProfile:
        stretched = [*(t / last * end for t in times[:-1]), end]
        return TableProfile(tuple(stretched), weights, label)

    return ProfileSpec(label, ending_at)


def _expand(text: str) -> list[Decimal]:
    """One list; decimals, so that 0.05,0.06,...,0.15 ends at 0.15."""
    result: list[Decimal] = []
    parts = [part.strip() for part in text.split(",")]
    for i, part in enumerate(parts):
        if part == "...":
            if len(result) < 2 or i + 1 >= len(parts):  # noqa: PLR2004 - an interval has two ends
                raise UsageError(f"{text!r}: ... needs two numbers before it and one after it")
            result += _between(result[-2], result[-1], _decimal(parts[i + 1], text), text)
        else:
            result.append(_decimal(part, text))
    return result


def _between(before: Decimal, first: Decimal, last: Decimal, text: str) -> list[Decimal]:
    """The numbers between ``first`` and ``last``, as far apart as ``before`` and ``first``."""
    step = first - before
    count = (last - first) / step if step else Decimal(0)
    if count < 1 or count > _MOST_NUMBERS or first + int(count) * step != last:
        raise UsageError(
            f"{text!r}: steps of {step} don't lead from {first} to {last}",
            remedy=f"at most {_MOST_NUMBERS} steps, the last one whole",
        )
    return [first + i * step for i in range(1, int(count))]


def _decimal(part: str, text: str) -> Decimal:
    try:
        value = Decimal(part)
    except InvalidOperation:
        value = Decimal("nan")
    if not value.is_finite() or abs(value.adjusted()) > _DIGITS:
        of = "" if part == text else f" of {text!r}"
        raise UsageError(f"{part!r}{of} is not a number", remedy="write 7 or 5,7,9")
    return value


def size(text: str) -> int:
    """Bytes of ``5GB`` (decimal) or ``2GiB`` (binary).

    Raises:
        UsageError: not a size above 0.
    """
    match = re.fullmatch(r"\s*(\d{1,12}(?:\.\d{1,12})?)\s*([kKMGT]?)(i?)[bB]?\s*", text)
    power = " KMGT".index(match[2].upper() or " ") if match else 0
    value = int(float(match[1]) * (1024 if match[3] else 1000) ** power) if match else 0
    if value <= 0:
        raise UsageError(f"{text!r} is not a size", remedy="write 500MB, 5GB or 2GiB")
    return value


def count(text: str) -> int:
    """A number of steps or parameters: ``400000``, ``400k``, ``1.2B``, ``1e6``.

    Raises:
        UsageError: not a whole number above 0.
    """
    match = re.fullmatch(r"\s*(\d{1,15}(?:\.\d{1,12})?(?:[eE]\+?\d{1,2})?)\s*([kKMBT]?)\s*", text)
    value = Decimal(match[1]) * 1000 ** " KMBT".index(match[2].upper() or " ") if match else 0
    if not 0 < value <= _MOST_COUNT or value != int(value):
        raise UsageError(
            f"{text!r} is not a whole number from 1 to {_MOST_COUNT}",
            remedy="write 400000, 400k or 1.2B",
        )
    return int(value)


def seconds(text: str) -> float:
    """Seconds of ``90``, ``90s``, ``30m`` or ``2h``.

    Raises:
        UsageError: not a time above 0.
    """
    match = re.fullmatch(r"\s*(\d{1,9}(?:\.\d{1,9})?)\s*([smh]?)\s*", text)
    value = float(match[1]) * {"": 1, "s": 1, "m": 60, "h": 3600}[match[2]] if match else 0.0
    if not 0 < value <= _MOST_SECONDS:
        raise UsageError(f"{text!r} is not a time", remedy="write 90s, 30m or 2h")
    return value
