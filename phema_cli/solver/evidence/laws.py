"""What a series may be an average of: its law as numbers that a search can change."""

from __future__ import annotations

import math
from collections.abc import Container, Hashable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from phema_cli.errors import UsageError
from phema_cli.profiles import (
    ExponentialProfile,
    PowerProfile,
    Profile,
    RawProfile,
)
from phema_cli.profiles.rates import constant, inverse, ratio
from phema_cli.profiles.schedules import Schedule, ScheduleProfile
from phema_cli.solver.evidence.growth import GrowthProfile, Warmup

Kind = Literal["power", "exponential", "warmup", "raw", "other"]

#: the warm-up of TensorFlow's averages, torch-ema and many a training script.
RATIO = Warmup("ratio")


@dataclass(frozen=True, slots=True)
class Law:
    """The averaging of one series.

    Attributes:
        kind: what family it is of; ``other`` is what no number describes here (tables, windows).
        scale: gamma + 1 of a power function; ``-ln beta`` per step of a constant decay, and of a
            warm-up's cap per update; 0 for raw weights.
        warmup: how the decay of a warm-up grows.
        every: steps from one update of a warm-up to the next. (Of the other kinds ``scale`` holds
            it: an average that is updated every N-th step is one of 1/N of the scale.)
    """

    kind: Kind
    scale: float = 0.0
    warmup: Warmup | None = None
    every: float = 1.0

    @property
    def averages(self) -> bool:
        """Whether it has a scale."""
        return self.kind not in ("raw", "other")

    @property
    def label(self) -> str:
        """``gamma 5``, ``decay 0.9999``, ``decay 0.9999, warm-up``, ``raw``."""
        if self.kind == "power":
            return f"gamma {self.scale - 1:.3g}"
        if not self.averages:
            return self.kind
        # As many digits as 1 - beta needs.
        digits = max(4, 2 + math.ceil(-math.log10(min(self.scale, 0.9))))
        label = f"decay {math.exp(-self.scale):.{digits}f}".rstrip("0")
        label += ", warm-up" if self.kind == "warmup" else ""
        return label + (f", every {self.every:g} steps" if self.every != 1 else "")

    def scaled(self, factor: float) -> Law:
        """The law of ``factor`` times the scale."""
        return replace(self, scale=factor * self.scale) if self.averages else self

    def slowed(self, every: float) -> Law:
        """The law where only every such step updates."""
        if self.kind == "warmup":
            return replace(self, every=every * self.every)
        return self.scaled(1 / every)

    def profile(self, end: float) -> Profile:
        """The profile of the snapshot of a time."""
        match self.kind:
            case "power":
                return PowerProfile(self.scale - 1, end)
            case "exponential":
                return ExponentialProfile(self.scale, end)
            case "raw":
                return RawProfile(end)
            case _:
                if self.warmup is None:
                    raise UsageError(f"a law of kind {self.kind} has no profile")
                return GrowthProfile(self.warmup, self.scale, end, self.every)


RAW = Law("raw")


def power(gamma: float) -> Law:
    """The power function of an exponent."""
    return Law("power", gamma + 1)


def law_of(profiles: Sequence[Profile]) -> Law:
    """The one law that all of a series' profiles follow, or ``other``."""
    found = {_law(p) for p in profiles}
    return found.pop() if len(found) == 1 else Law("other")


def _law(profile: Profile) -> Law:
    """The law of one profile."""
    match profile:
        case PowerProfile():
            return Law("power", profile.gamma + 1)
        case ExponentialProfile():
            return Law("exponential", profile.rate)
        case ScheduleProfile():
            return _scheduled(profile.schedule)
        case GrowthProfile():
            return Law("warmup", profile.rate, profile.warmup, profile.every)
        case RawProfile():
            return RAW
        case _:
            return Law("other")


def _scheduled(schedule: Schedule) -> Law:
    """The law of a trainer's own updates, near enough to try others like it."""
    rates, every = schedule.rates, float(schedule.every)
    start = max(0, round(schedule.copied / every) - 1)
    if rates.falling is constant:
        return Law("exponential", rates.least / every)
    if rates.falling is ratio:
        return Law("warmup", rates.least, Warmup("ratio", start), every)
    if rates.falling is inverse:
        inv_gamma, power = rates.numbers
        unit = inv_gamma / rates.stride
        return Law("warmup", rates.least, Warmup("power", start, unit, power), every)
    return Law("other")


@dataclass(frozen=True, slots=True)
class Series:
    """Snapshots of one kind along a run, and what they are told to be.

    Attributes:
        rows: their rows in the sample, oldest first.
        profiles: as told, in the same order.
        law: the law that all of these follow.
    """

    rows: tuple[int, ...]
    profiles: tuple[Profile, ...]
    law: Law

    @property
    def times(self) -> tuple[float, ...]:
        """When each of them was stored, in steps."""
        return tuple(p.end for p in self.profiles)

    def chosen(self, times: frozenset[float]) -> Series:
        """The series of these times only."""
        return self.at([i for i, t in enumerate(self.times) if t in times])

    def without(self, rows: Container[int]) -> Series:
        """The series without some rows of the sample."""
        return self.at([i for i, row in enumerate(self.rows) if row not in rows])

    def at(self, kept: Sequence[int]) -> Series:
        """The series of these of its snapshots only, by number."""
        rows = tuple(self.rows[i] for i in kept)
        return replace(self, rows=rows, profiles=tuple(self.profiles[i] for i in kept))


def series_of(
    profiles: Sequence[Profile], groups: Sequence[Hashable] | None = None
) -> tuple[Series, ...]:
    """Snapshots grouped into series.

    Args:
        profiles: of the n snapshots.
        groups: (n,) what is equal within a series and differs between them, such as the name of
            the dict they were read from; without it, the laws of the profiles.

    Returns:
        Series in the order of their first snapshots.
    """
    keys = [_law(p) for p in profiles] if groups is None else groups
    members: dict[Hashable, list[int]] = {}
    for i, key in enumerate(keys):
        members.setdefault(key, []).append(i)
    found = []
    for rows in members.values():
        ordered = sorted(rows, key=lambda i: profiles[i].end)
        told = tuple(profiles[i] for i in ordered)
        found.append(Series(tuple(ordered), told, law_of(told)))
    return tuple(found)


@dataclass(frozen=True, slots=True)
class Hypothesis:
    """What all series are, if the tags are not right.

    Attributes:
        laws: one of each series.
        offset: steps that are to be added to all times: by so many the counter began too late.
    """

    laws: tuple[Law, ...]
    offset: float = 0.0

    @property
    def kind(self) -> tuple[Hashable, ...]:
        """What two hypotheses share that differ in numbers only."""
        return (*(law.kind for law in self.laws), self.offset != 0)

    def profiles(self, series: Sequence[Series]) -> list[Profile]:
        """The profile of each snapshot under it, series after series; as told where it says so."""
        found: list[Profile] = []
        for law, told in zip(self.laws, series, strict=True):
            if law == told.law and not self.offset:
                found += told.profiles
            else:
                found += [law.profile(t + self.offset) for t in told.times]
        return found


def as_told(series: Sequence[Series]) -> Hypothesis:
    """That the tags are right."""
    return Hypothesis(tuple(s.law for s in series))
