"""Tags: the gamma and step of a snapshot, where each was read, and how readings are reconciled."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Literal

from phema_cli.errors import InputError, PhemaError, UsageError
from phema_cli.profiles import GAMMA_LIMIT, PowerProfile, gamma_from_sigma_rel

Origin = Literal["command line", "phema.toml", "metadata", "name"]

# A sign only after "=": in gamma-5 the dash is a separator.
_NUMBER = r"(?:(?<==)-)?\d+(?:\.\d+)?(?:e[-+]\d+)?"

#: naming layouts: each row is tried on the file's name without its ending and on the names of its
#: directories. A row may give one field or several.
LAYOUTS: Mapping[str, re.Pattern[str]] = {
    "step": re.compile(
        rf"(?:^|[-_.])(?:global_)?step[-_=]?(?P<step>{_NUMBER})(?!\.?\d)", re.IGNORECASE
    ),
    "checkpoint": re.compile(r"(?:^|[-_.])checkpoint-(?P<step>\d+)$", re.IGNORECASE),
    "gamma": re.compile(rf"(?:^|[-_.])gamma[-_=]?(?P<gamma>{_NUMBER})", re.IGNORECASE),
    "sigma": re.compile(
        rf"(?:^|[-_.])sigma(?:_?rel)?[-_=]?(?P<sigma_rel>{_NUMBER})", re.IGNORECASE
    ),
}

#: named groups that a --pattern may have.
FIELDS = ("gamma", "sigma_rel", "index", "step", "kimg")
#: entries of a checkpoint's metadata that are its tag.
METADATA_FIELDS = ("gamma", "sigma_rel", "step")


@dataclass(frozen=True, slots=True)
class Tag:
    """What is known of a snapshot's averaging: its profile's exponent and time.

    Attributes:
        gamma: exponent of the power function.
        step: training time, in any unit proportional to updates.
        gamma_origin: where gamma was read.
        step_origin: where the step was read.
    """

    gamma: float
    step: float
    gamma_origin: Origin
    step_origin: Origin

    @property
    def profile(self) -> PowerProfile:
        """The power function profile of the snapshot."""
        return PowerProfile(self.gamma, self.step)


@dataclass(frozen=True, slots=True)
class Reading:
    """A value read somewhere, and how far its written digits leave it open."""

    value: float
    tolerance: float
    origin: Origin

    def agrees(self, other: Reading) -> bool:
        """Whether both may be roundings of one value."""
        slack = self.tolerance + other.tolerance + 1e-9 * abs(self.value)
        return abs(self.value - other.value) <= slack


@dataclass(slots=True)
class Readings:
    """All that was read for one snapshot, most explicit origins first."""

    gamma: list[Reading]
    step: list[Reading]

    def add(self, fields: Mapping[str, str], origin: Origin, gammas: Sequence[float] = ()) -> None:
        """Take the fields of one pattern match, metadata or table row.

        Args:
            fields: text by field name; names outside ``FIELDS`` are ignored.
            origin: where they were read.
            gammas: what an ``index`` counts.

        Raises:
            InputError: a value is no number, or an index outside ``gammas``.
        """
        for name, text in fields.items():
            if name in {"step", "kimg"}:
                value = _number(name, text)
                self.step.append(Reading(_images(value) if name == "kimg" else value, 0.0, origin))
            elif name in {"gamma", "sigma_rel"}:
                self.gamma.append(_gamma_reading(name, text, origin))
            elif name == "index" and gammas:
                index = int(_number(name, text))
                if not 0 <= index < len(gammas):
                    raise InputError(f"index {index}, but {len(gammas)} gammas were given")
                self.gamma.append(Reading(gammas[index], 0.0, origin))

    def tag(self) -> Tag:
        """The tag that the readings give.

        The command line and phema.toml overrule what the file says; metadata and names must agree,
        and of two that agree the one with more digits counts.

        Raises:
            InputError: nothing was read for gamma or step, or two values contradict each other.
        """
        gamma = _settle("gamma", self.gamma, "--gammas")
        step = _settle("step", self.step, "--pattern")
        return Tag(gamma.value, step.value, gamma.origin, step.origin)


def read_name(parts: Iterable[str]) -> dict[str, list[str]]:
    """Fields found in a file's name (without ending) and in its directories' names."""
    found: dict[str, list[str]] = {}
    for part in parts:
        for row in LAYOUTS.values():
            for match in row.finditer(part):
                for name, text in match.groupdict().items():
                    found.setdefault(name, []).append(text)
    return found


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


def match_pattern(pattern: str, path: PurePosixPath) -> dict[str, str] | None:
    """Named groups of ``pattern`` in the path, None where it does not match."""
    match = compile_pattern(pattern).search(path.as_posix())
    if match is None:
        return None
    return {k: v for k, v in match.groupdict().items() if k in FIELDS and v is not None}


def _settle(field: str, readings: list[Reading], option: str) -> Reading:
    """The reading that counts."""
    for origin in ("command line", "phema.toml"):
        for reading in readings:
            if reading.origin == origin:
                return reading
    if not readings:
        raise InputError(
            f"no {field} in metadata or name",
            remedy=f"pass {option}, say it in phema.toml, or leave the file out with --exclude",
        )
    for other in readings[1:]:
        if not readings[0].agrees(other):
            a, b = readings[0], other
            raise InputError(
                f"its {field} is {a.value:.10g} by its {a.origin} and {b.value:.10g} by its "
                f"{b.origin}",
                remedy="say which in phema.toml",
            )
    return min(readings, key=lambda r: r.tolerance)


def _number(name: str, text: str) -> float:
    """A finite number, or an InputError that quotes what stands there."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise InputError(f"its {name} is {text!r}, not a number")
    return value


def _half_digit(text: str) -> float:
    """How far a number in a name may be from the value it was written for.

    Half a unit of the last decimal, and of six digits as phema writes them.
    """
    decimals = len(text.partition("e")[0].partition(".")[2])
    return max(0.5 * 10.0**-decimals if decimals else 0.0, 1e-5 * abs(float(text)))


def _gamma_reading(name: str, text: str, origin: Origin) -> Reading:
    """A gamma, written as itself or as sigma_rel."""
    value = _number(name, text)
    slack = _half_digit(text) if origin == "name" else 0.0
    if name == "gamma":
        if value <= GAMMA_LIMIT:
            raise InputError(f"its gamma is {value:g}, not above {GAMMA_LIMIT}")
        return Reading(value, slack, origin)
    try:
        gamma = gamma_from_sigma_rel(value)
        # gamma falls as sigma_rel grows, fastest downwards of it.
        tolerance = gamma_from_sigma_rel(value - slack) - gamma if 0 < slack < value else 0.0
    except PhemaError as error:
        raise InputError(error.what, remedy=error.remedy) from error
    return Reading(gamma, tolerance, origin)


def _images(kimg: float) -> float:
    """Images shown when EDM2 wrote ``kimg`` into a name: whole batches of 1024 (nimg // 1000)."""
    return float((int(kimg) * 1000 + 999) // 1024 * 1024)


def snapshot_name(prefix: str, step: float, gamma: float) -> str:
    """``<prefix>-step0001000-gamma5``, the name without ending of what phema writes."""
    sign = "=" if gamma < 0 else ""
    return f"{step_name(prefix, step)}-gamma{sign}{gamma:.6g}"


def step_name(prefix: str, step: float) -> str:
    """``<prefix>-step0001000``, what the names of all that phema writes begin with."""
    when = f"{int(step):07d}" if float(step).is_integer() else f"{step:.10g}"
    return f"{prefix}-step{when}"
