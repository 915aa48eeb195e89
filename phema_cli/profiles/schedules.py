"""Averages by the updates they are made of: their exact weights, and their profiles."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from phema_cli.errors import UsageError
from phema_cli.profiles.base import Array, check_end
from phema_cli.profiles.rates import Rates

#: by how much a time that was multiplied or divided may miss a whole step.
SLACK = 1e-6
#: updates that are listed one by one: half a gigabyte.
_MOST_UPDATES = 1 << 24


@dataclass(frozen=True, slots=True)
class Schedule:
    """At which steps an average is updated, and by which decays.

    The average is a copy of the weights up to step ``copied``. Update i, counted from 1, follows
    ``every * i`` steps later.

    Attributes:
        rates: minus the logarithms of the decays.
        every: steps between two updates.
        copied: the last step whose weights are copied; 0 if the initial ones are.
        wide: whether weights are copied at every N-th step too, not at each.
        unit: of the trainer's time, a step; 64 where it counts images in batches of 64.
    """

    rates: Rates
    every: int = 1
    copied: int = 0
    wide: bool = False
    unit: float = 1.0

    def steps(self, time: float) -> int:
        """Whole steps that a time of the trainer means."""
        return math.floor(time / self.unit + SLACK)

    def count(self, time: float) -> int:
        """Updates made by then."""
        return max((self.steps(time) - self.copied) // self.every, 0)

    def copy_at(self, time: float) -> int:
        """The step whose weights were copied last; 0 if they are the initial ones."""
        step = self.steps(time)
        if step >= self.copied:
            return self.copied
        if not self.wide:
            return step
        return max(self.copied - self.every * -(-(self.copied - step) // self.every), 0)

    def updates(self, time: float) -> tuple[Array, Array]:
        """The times that the average is made of, 0 for the initial weights, and their weights.

        Raises:
            UsageError: there are more than 16.7 million updates.
        """
        first = self.copy_at(time)
        if self.count(time) > _MOST_UPDATES:
            raise UsageError(f"{self.count(time)} updates are above the {_MOST_UPDATES} of a list")
        made = np.arange(self.count(time) + 1.0)
        sums = self.rates.sums(made)
        kept = np.exp(sums - sums[-1])
        weights = kept * -np.expm1(-np.diff(sums, prepend=-math.inf))
        return (first + self.every * made) * self.unit, weights


@dataclass(frozen=True, slots=True)
class ScheduleProfile:
    """The profile of a schedule: ``F(n) = prod of the decays of the updates after step n``.

    The update at step n weighs ``(1 - decay)`` times the later decays, ``F(n) - F(n-1)``, exactly.
    With ``every = N`` each update stands for the N steps around it, the last for those up to
    ``n + (N-1)/2``. F is interpolated in its logarithm.

    Args:
        schedule: the updates.
        time: of the average, as the trainer counts, above 0.
        name: what it is called.

    Raises:
        UsageError: the time is not above 0 and finite.
    """

    schedule: Schedule
    time: float
    name: str

    def __post_init__(self) -> None:
        check_end(self.time)

    @property
    def _made(self) -> int:
        return self.schedule.count(self.time)

    @property
    def _copied(self) -> tuple[float, float]:
        """From where to where the copied weights count, in steps: up to 0 the initial ones."""
        step, wide = self.schedule.copy_at(self.time), self.schedule.wide
        half = (self.schedule.every - 1) / 2 if wide or not step else 0.0
        return (max(step - half - 1, 0.0), step + half) if step else (0.0, 0.0)

    @property
    def _begin(self) -> float:
        """From which step on the first update counts."""
        return self.schedule.copied + (self.schedule.every - 1) / 2

    @property
    def end(self) -> float:
        """Up to where the last update counts."""
        made, every = self._made, self.schedule.every
        last = self._begin + made * every if made else self._copied[1] or (every - 1) / 2
        return last * self.schedule.unit if last else self.time

    @property
    def label(self) -> str:
        """``diffusers:beta=0.9999``."""
        return self.name

    @property
    def breaks(self) -> tuple[float, ...]:
        """Where the copied weights count, where decays reach their limits, and the end."""
        limits = [self._begin + k * self.schedule.every for k in self.schedule.rates.kinks]
        inside = {t * self.schedule.unit for t in (*self._copied, self._begin, *limits)}
        return (*sorted(t for t in inside if 0 < t < self.end), self.end)

    @property
    def exponent(self) -> float:
        """Near its end it falls as ``(t/T)^(rate T)`` with the rate of the last update."""
        span = self.end / self.schedule.unit
        if self._made:
            rate = float(self.schedule.rates(np.array([float(self._made)]))[0])
            return rate / self.schedule.every * span
        low, high = self._copied
        return span / (high - low) if high > low else 0.0

    @property
    def square_integrable(self) -> bool:
        """True."""
        return True

    def cdf(self, t: Array) -> Array:
        """F(t), 0 before the first weights that count and 1 from the end on."""
        step = t / self.schedule.unit
        low, high = self._copied
        if high > low:
            return self._kept(step) * np.clip((step - low) / (high - low), 0.0, 1.0)
        return np.where(step < 0, 0.0, self._kept(step))

    def _kept(self, step: Array) -> Array:
        """What the updates after a step have left of the weight before it."""
        at, sums = self._place(step), self.schedule.rates.sums
        whole = np.floor(at)
        into = at - whole
        rate = np.where(into > 0, self.schedule.rates(whole + 1), 0.0)
        result: Array = np.exp(sums(whole) + into * rate - sums(np.array([float(self._made)])))
        return result

    def _place(self, step: Array) -> Array:
        """Updates that count whole up to a step, and the part of the next one that does."""
        place: Array = np.clip((step - self._begin) / self.schedule.every, 0.0, float(self._made))
        return place

    def density(self, t: Array) -> Array:
        """F'(t) on (0, end], 0 elsewhere."""
        step = t / self.schedule.unit
        low, high = self._copied
        kept = self._kept(step)
        updating = (step > self._begin) & (t <= self.end)
        rate = self.schedule.rates(np.maximum(np.ceil(self._place(step)), 1.0))
        slope = np.where(updating, kept * rate / self.schedule.every, 0.0)
        if high > low:
            slope += np.where((step > low) & (step <= high), kept / (high - low), 0.0)
        return slope / self.schedule.unit
