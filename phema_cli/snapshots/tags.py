"""Tags: the average and step of a snapshot, where they were read, and which reading counts."""

from __future__ import annotations

import math
import re
import signal
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Literal

from phema_cli.errors import InputError, PhemaError, UsageError
from phema_cli.profiles import (
    GAMMA_LIMIT,
    GAMMA_MOST,
    ExponentialProfile,
    PowerProfile,
    Profile,
    ProfileSpec,
    WarmupProfile,
    gamma_from_sigma_rel,
    parse_profile,
)

Unit = Literal["steps", "images", "epochs"]
Origin = Literal["command line", "phema.toml", "metadata", "name"]
#: the most explicit first.
ORIGINS: tuple[Origin, ...] = ("command line", "phema.toml", "metadata", "name")

# A sign only after "=": in gamma-5 the dash is a separator.
_NUMBER = r"(?:(?<==)-)?\d+(?:\.\d+)?(?:e[-+]\d+)?"

#: words in names: each row is tried on the file's name without its ending and on the names of its
#: directories. A row may give one field or several.
WORDS: Mapping[str, re.Pattern[str]] = {
    "step": re.compile(
        rf"(?:^|[-_.])(?:global_)?step[-_=]?(?P<step>{_NUMBER})(?!\.?\d)", re.IGNORECASE
    ),
    "checkpoint": re.compile(r"(?:^|[-_.])checkpoint-(?P<step>\d+)$", re.IGNORECASE),
    "beta": re.compile(r"(?:^|[-_.])beta[-_=]?(?P<beta>0?\.\d+)", re.IGNORECASE),
    "gamma": re.compile(rf"(?:^|[-_.])gamma[-_=]?(?P<gamma>{_NUMBER})", re.IGNORECASE),
    "sigma": re.compile(
        rf"(?:^|[-_.])sigma(?:_?rel)?[-_=]?(?P<sigma_rel>{_NUMBER})", re.IGNORECASE
    ),
}

_AVERAGE_OPTIONS = "--gammas (or --average, --raw)"
#: of the processor's time, for the search of a pattern in a path.
_MOST_SECONDS = 0.5
#: named groups that a --pattern may have.
FIELDS = ("gamma", "sigma_rel", "beta", "index", "step", "kimg", "epoch")
#: entries of a checkpoint's metadata that say its average, and its step, the most exact first.
AVERAGE_FIELDS = ("gamma", "sigma_rel")
STEP_FIELDS = ("step", "global_step", "optimization_step")
METADATA_FIELDS = (*AVERAGE_FIELDS, *STEP_FIELDS)


@dataclass(frozen=True, slots=True)
class Tag:
    """What is known of a snapshot's averaging.

    Attributes:
        profile: how each moment of training weighs in it. Its end is the time, which differs from
            ``step`` where the trainer counts otherwise.
        step: training time as the trainer counts it, in any unit proportional to updates.
        gamma: exponent of the power function as the trainer was told; None for other averages.
        profile_origin: where gamma, or what else the average is, was read.
        step_origin: where the step was read.
        unit: what the trainer counts.
    """

    profile: Profile
    step: float
    gamma: float | None
    profile_origin: Origin
    step_origin: Origin
    unit: Unit = "steps"

    @property
    def label(self) -> str:
        """What the average is called: ``gamma 5``, ``exponential:beta=0.999``, ``raw``."""
        return self.profile.label if self.gamma is None else f"gamma {self.gamma:.10g}"


@dataclass(frozen=True, slots=True)
class Reading:
    """A value read somewhere, how far its written digits leave it open, and a step's unit."""

    value: float
    tolerance: float
    origin: Origin
    unit: Unit = "steps"

    def agrees(self, other: Reading) -> bool:
        """Whether both may be roundings of one value."""
        slack = self.tolerance + other.tolerance + 1e-9 * abs(self.value)
        return abs(self.value - other.value) <= slack


@dataclass(slots=True)
class Readings:
    """All that was read for one snapshot, most explicit origins first.

    Attributes:
        gamma: exponents of the power function.
        step: training times.
        average: other averages, and where each was read.
        index: whether a name counts gammas that were not given.
    """

    gamma: list[Reading] = field(default_factory=list)
    step: list[Reading] = field(default_factory=list)
    average: list[tuple[ProfileSpec, Origin]] = field(default_factory=list)
    index: bool = False

    @property
    def averaged(self) -> bool:
        """Whether it is known what the average is."""
        return bool(self.gamma or self.average)

    def add(
        self,
        fields: Mapping[str, str],
        origin: Origin,
        gammas: Sequence[float] = (),
        steps_per_epoch: float | None = None,
    ) -> None:
        """Take the fields of one pattern match, metadata or table row.

        Args:
            fields: text by field name; other names are ignored.
            origin: where they were read.
            gammas: what an ``index`` counts.
            steps_per_epoch: steps of an epoch; epochs are counted as such without it.

        Raises:
            InputError: a value is no number, or an index outside ``gammas``.
        """
        for name, text in fields.items():
            if name in _COUNTS:
                self.step.append(_step_reading(name, text, origin, steps_per_epoch))
            elif name in {"gamma", "sigma_rel"}:
                self.gamma.append(_gamma_reading(name, text, origin))
            elif name in {"beta", "average"}:
                self.average.append((_average(name, text), origin))
            elif name == "index":
                self._add_index(int(_number(name, text)), gammas, origin)

    def _add_index(self, index: int, gammas: Sequence[float], origin: Origin) -> None:
        """Take the gamma that an index counts."""
        self.index = not gammas
        if gammas:
            if not 0 <= index < len(gammas):
                raise InputError(f"index {index}, but {len(gammas)} gammas were given")
            self.gamma.append(Reading(gammas[index], 0.0, origin))

    def tag(self, counted: Callable[[float, float], Profile] = PowerProfile) -> Tag | None:
        """The tag that the readings give, or None at step 0, where nothing is averaged yet.

        The command line and phema.toml overrule what the file says; metadata and names must agree,
        and of two that agree the one with more digits counts.

        Args:
            counted: the profile that a gamma and a step mean in the layout.

        Raises:
            InputError: nothing was read for the average or the step, or two values contradict each
                other.
        """
        gamma, average = self._settle_average()
        if not (self.averaged or self.step):
            _settle("gamma", self.gamma, _AVERAGE_OPTIONS, index=self.index)
        step = _settle("step", self.step, "--pattern")
        if step.value <= 0:
            return None
        if average is not None:
            spec, origin = average
            profile = spec.ending_at(step.value)
            if step.unit == "epochs" and isinstance(profile, ExponentialProfile | WarmupProfile):
                raise InputError(
                    f"its average, {spec.label}, counts steps, and its time epochs",
                    remedy="pass --steps-per-epoch",
                )
            return Tag(profile, step.value, None, origin, step.origin, step.unit)
        if gamma is None:
            gamma = _settle("gamma", self.gamma, _AVERAGE_OPTIONS, index=self.index)
        profile = counted(gamma.value, step.value)
        return Tag(profile, step.value, gamma.value, gamma.origin, step.origin, step.unit)

    def _settle_average(self) -> tuple[Reading | None, tuple[ProfileSpec, Origin] | None]:
        """The gamma or the other average that counts, neither where nothing was read."""
        if not self.average:
            return None, None
        first = min(self.average, key=lambda found: ORIGINS.index(found[1]))
        for spec, origin in self.average:
            if origin == first[1] and spec.label != first[0].label:
                raise InputError(
                    f"its average is {first[0].label} and {spec.label} by its {origin}",
                    remedy="say which in phema.toml",
                )
        if self.gamma:
            gamma = _settle("gamma", self.gamma, _AVERAGE_OPTIONS)
            if gamma.origin == first[1]:
                raise InputError(
                    f"has gamma {gamma.value:.10g} and {first[0].label} by its {gamma.origin}",
                    remedy="say which in phema.toml",
                )
            if ORIGINS.index(gamma.origin) < ORIGINS.index(first[1]):
                return gamma, None
        return None, first


def read_name(parts: Iterable[str]) -> dict[str, list[str]]:
    """Fields found in a file's name (without ending) and in its directories' names."""
    found: dict[str, list[str]] = {}
    for part in parts:
        for row in WORDS.values():
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


def _settle(field: str, readings: list[Reading], option: str, *, index: bool = False) -> Reading:
    """The reading that counts."""
    for origin in ("command line", "phema.toml"):
        for reading in readings:
            if reading.origin == origin:
                return reading
    if not readings:
        if index:
            raise InputError(
                "its name counts gammas, but says none",
                remedy="pass --gammas or --sigma-rels as the trainer had them, in that order",
            )
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
        if not GAMMA_LIMIT < value <= GAMMA_MOST:
            raise InputError(
                f"its gamma is {value:g}, not above {GAMMA_LIMIT} and up to {GAMMA_MOST:g}"
            )
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


def _average(name: str, text: str) -> ProfileSpec:
    """An average that is no power function: its beta per step, or as --profile writes it."""
    try:
        return parse_profile(f"exponential:beta={text}" if name == "beta" else text)
    except UsageError as error:
        raise InputError(error.what, remedy=error.remedy) from error


#: what counts are in their unit: whole batches of images, and numbers that begin at 0.
_COUNTS: Mapping[str, tuple[Callable[[float], float], Unit]] = {
    "step": (float, "steps"),
    "global_step": (float, "steps"),
    "optimization_step": (float, "steps"),
    "update": (lambda number: number + 1, "steps"),
    "kimg": (_images, "images"),
    "epoch": (lambda number: number + 1, "epochs"),
}


def _step_reading(name: str, text: str, origin: Origin, steps_per_epoch: float | None) -> Reading:
    """A training time."""
    convert, unit = _COUNTS[name]
    value = convert(_number(name, text))
    if unit == "epochs" and steps_per_epoch is not None:
        value, unit = value * steps_per_epoch, "steps"
    return Reading(value, 0.0, origin, unit)


def snapshot_name(prefix: str, step: float, gamma: float) -> str:
    """``<prefix>-step0001000-gamma5``, the name without ending of what phema writes."""
    sign = "=" if gamma < 0 else ""
    return f"{step_name(prefix, step)}-gamma{sign}{gamma:.6g}"


def step_name(prefix: str, step: float) -> str:
    """``<prefix>-step0001000``, what the names of all that phema writes begin with."""
    when = f"{int(step):07d}" if float(step).is_integer() else f"{step:.10g}"
    return f"{prefix}-step{when}"
