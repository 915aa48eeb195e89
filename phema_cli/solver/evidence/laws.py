"""What a series may be an average of: its law as numbers that a search can change."""

from __future__ import annotations

import math
from collections.abc import Container, Hashable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import ClassVar, Literal

import numpy as np

from phema_cli.errors import UsageError
from phema_cli.profiles import Array, ExponentialProfile, PowerProfile, Profile, RawProfile
from phema_cli.profiles.schedules import Schedule, ScheduleProfile, constant, inverse, ratio

Kind = Literal["power", "exponential", "warmup", "raw", "other"]

#: updates up to which a growing decay is summed one by one, the last update of the table beyond,
#: and the ratio of neighbouring entries there.
_EXACT, _LAST, _RATIO = 64, 1e10, 1.01


@dataclass(frozen=True, slots=True)
class Warmup:
    """How the decay of each update grows up to its cap.

    Update k (from 1) has the decay 0 up to ``k = start + 1``; later, with ``s = k - start - 1``, it
    is ``(1 + s)/(10 + s)`` or ``1 - (1 + s/inv_gamma)^-power``.

    Attributes:
        growth: which of the two.
        start: updates before averaging begins.
        inv_gamma: unit of the growth, for ``power``.
        power: its exponent.
    """

    growth: Literal["ratio", "power"] = "ratio"
    start: int = 0
    inv_gamma: float = 1.0
    power: float = 2 / 3

    def rate(self, s: Array) -> Array:
        """``-ln decay`` of the s-th update after the first, without cap or floor."""
        s = np.maximum(s, 1.0)
        if self.growth == "ratio":
            return np.log((10 + s) / (1 + s))
        return -np.log1p(-((1 + s / self.inv_gamma) ** -self.power))

    def depth(self, s: Array) -> Array:
        """Sum of the first s rates, s not negative.

        For ``(1 + s)/(10 + s)`` the product of the decays telescopes:
        ``sum = sum_{j=2}^{10} ln((s + j)/j)``.
        """
        if self.growth == "ratio":
            total: Array = sum((np.log1p(s / j) for j in range(2, 11)), np.zeros_like(s))
            return total
        sums: Array = np.interp(s, *_table(self.inv_gamma, self.power))
        return sums

    def capped_at(self, rate: float) -> float:
        """The number of updates s after which ``-ln decay`` would fall below ``rate``."""
        if not rate:
            return math.inf
        if self.growth == "ratio":
            return max(0.0, (10 - math.exp(min(rate, 3.0))) / math.expm1(rate))
        left = -math.expm1(-rate)
        return float(self.inv_gamma * (left ** (-1 / self.power) - 1))


#: the warm-up of TensorFlow's averages, torch-ema and many a training script.
RATIO = Warmup("ratio")


@lru_cache(maxsize=16)
def _table(inv_gamma: float, power: float) -> tuple[Array, Array]:
    """Numbers of updates, and sums of ``-ln (1 - (1 + s/inv_gamma)^-power)`` over that many.

    Sums become integrals between half numbers, by Simpson's rule on even steps in the logarithm.
    """
    rate = Warmup("power", inv_gamma=inv_gamma, power=power).rate
    few = np.arange(_EXACT + 1.0)
    sums = np.concatenate([[0.0], np.cumsum(rate(few[1:]))])
    edges = np.geomspace(_EXACT, _LAST, 1 + round(math.log(_LAST / _EXACT) / math.log(_RATIO)))
    low, high = edges[:-1] + 0.5, edges[1:] + 0.5
    middle = np.sqrt(low * high)
    width = np.log(high / low) / 6
    ends = low * rate(low) + high * rate(high)
    pieces = width * (ends + 4 * middle * rate(middle))
    return np.concatenate([few, edges[1:]]), np.concatenate([sums, sums[-1] + np.cumsum(pieces)])


@dataclass(frozen=True, slots=True)
class GrowthProfile:
    """The average of a warm-up's decays with any cap and any interval, in closed form.

    A trainer's own average is a :class:`phema_cli.profiles.schedules.ScheduleProfile`, which is
    exact. Here the cap is unknown and many are tried: each is cheap, whatever the run's length.

    Args:
        warmup: how the decay grows.
        rate: ``-ln`` of the cap, per update.
        end: time of the average in steps, above 0.
        every: steps from one update to the next.
    """

    warmup: Warmup
    rate: float
    end: float
    every: float = 1.0
    square_integrable: ClassVar[bool] = True
    sparse: ClassVar[None] = None

    @property
    def label(self) -> str:
        """``decay 0.9999, warm-up``."""
        return f"decay {math.exp(-self.rate):.10g}, warm-up"

    @property
    def breaks(self) -> tuple[float, ...]:
        """Where averaging begins, and the end."""
        start = self.warmup.start * self.every
        return (*(t for t in (start, start + self.every) if 0 < t < self.end), self.end)

    @property
    def exponent(self) -> float:
        """Near its end it falls as ``(t/T)^(rate T)`` with the rate of the last update."""
        since = self._since(np.array([self.end]))
        last = max(self.rate, float(self.warmup.rate(since)[0]))
        return last * self.end / self.every if since[0] > 0 else self.end

    def _since(self, t: Array) -> Array:
        """Updates after the first one that counts, up to time t; not negative."""
        return np.maximum(t / self.every - (self.warmup.start + 1), 0.0)

    def _depth(self, t: Array) -> Array:
        """``-ln`` of the product of the decays up to time t."""
        since, limit = self._since(t), self.warmup.capped_at(self.rate)
        total: Array = self.warmup.depth(np.minimum(since, limit))
        return total + self.rate * np.maximum(since - limit, 0.0)

    def cdf(self, t: Array) -> Array:
        """F(t), 0 before the first update that counts and 1 from the end on."""
        inside = np.clip(t, 0.0, self.end)
        kept = np.exp(self._depth(inside) - self._depth(np.array([self.end])))
        begun = np.clip(inside / self.every - self.warmup.start, 0.0, 1.0)
        return np.where(t < 0, 0.0, kept * begun)

    def density(self, t: Array) -> Array:
        """F'(t) on (0, end], 0 elsewhere."""
        since = self._since(t)
        grown = np.maximum(self.warmup.rate(since), self.rate)
        rate = np.where(since > 0, grown, 1.0) / self.every
        inside = (t > self.warmup.start * self.every) & (t <= self.end)
        kept = np.exp(self._depth(np.minimum(t, self.end)) - self._depth(np.array([self.end])))
        return np.where(inside, rate * kept, 0.0)


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
        # As many digits as 1 - beta needs; without a cap it is 1.
        digits = max(4, 2 + math.ceil(-math.log10(min(self.scale or 1.0, 0.9))))
        label = f"decay {math.exp(-self.scale):.{digits}f}".rstrip("0").rstrip(".")
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
    """Snapshots of one kind along a run, and what their tags say.

    Attributes:
        rows: their rows in the sample, oldest first.
        profiles: as their tags say, in the same order.
        law: the law that all of these follow.
    """

    rows: tuple[int, ...]
    profiles: tuple[Profile, ...]
    law: Law

    @property
    def times(self) -> tuple[float, ...]:
        """When each of them was stored, in steps."""
        return tuple(p.end for p in self.profiles)

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
        tagged = tuple(profiles[i] for i in ordered)
        found.append(Series(tuple(ordered), tagged, law_of(tagged)))
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

    @property
    def averages(self) -> list[int]:
        """Which of the laws have a scale."""
        return [i for i, law in enumerate(self.laws) if law.averages]

    def profiles(self, series: Sequence[Series]) -> list[Profile]:
        """The profile of each snapshot, series after series; the tag's where laws are the same."""
        found: list[Profile] = []
        for law, tagged in zip(self.laws, series, strict=True):
            if law == tagged.law and not self.offset:
                found += tagged.profiles
            else:
                found += [law.profile(t + self.offset) for t in tagged.times]
        return found


def as_tagged(series: Sequence[Series]) -> Hypothesis:
    """That the tags are right."""
    return Hypothesis(tuple(s.law for s in series))
