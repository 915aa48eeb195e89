"""Combinations of stored snapshots as they are, and which snapshots ``checkpoints:`` means."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from phema_cli.errors import UsageError
from phema_cli.profiles.base import Array, Profile
from phema_cli.profiles.grammar import MOST_EXACT

CHECKPOINTS = "checkpoints"
_HELP = "write checkpoints:last=5, checkpoints:first=5, or checkpoints:from=STEP,to=STEP"


@dataclass(frozen=True, slots=True)
class CombinationProfile:
    """The profile of a sum of snapshots with given weights: ``F(t) = sum_i x_i F_i(t)``.

    Args:
        label: what users call it.
        kind: whether it is a plain mean or has weights of its own.
        places: which of the snapshots have a weight, ascending.
        weights: their weights, of any sign and sum.
        profiles: their profiles.
        step: when the last of them was stored, as the trainer counts; None where nothing says it.
    """

    label: str
    kind: Literal["mean", "weights"]
    places: tuple[int, ...]
    weights: tuple[float, ...]
    profiles: tuple[Profile, ...]
    step: float | None = None
    exponent: ClassVar[float] = 0.0
    #: there is nothing to compare its density with.
    square_integrable: ClassVar[bool] = False
    sparse: ClassVar[None] = None

    @property
    def end(self) -> float:
        """The time of the last of its snapshots."""
        return max(p.end for p in self.profiles)

    @property
    def breaks(self) -> tuple[float, ...]:
        """Those of its snapshots."""
        return tuple(sorted({t for p in self.profiles for t in p.breaks}))

    def cdf(self, t: Array) -> Array:
        """The sum of its snapshots' F; from its end on, what its weights sum to."""
        return self._sum(t, lambda profile: profile.cdf(t))

    def density(self, t: Array) -> Array:
        """The sum of its snapshots' densities; raw weights have none."""
        return self._sum(t, lambda profile: profile.density(t))

    def column(self, count: int) -> Array:
        """The weights of all ``count`` snapshots, (count,) float64."""
        column = np.zeros(count)
        column[list(self.places)] = self.weights
        return column

    def _sum(self, t: Array, values: Callable[[Profile], Array]) -> Array:
        """The weighted sum of what the snapshots' profiles have at t."""
        total = np.zeros_like(t, dtype=np.float64)
        for weight, profile in zip(self.weights, self.profiles, strict=True):
            total += weight * values(profile)
        return total


def step_of(target: Profile, step: float) -> float | None:
    """When a target is, as the trainer counts: that of all targets, or a combination's own."""
    return target.step if isinstance(target, CombinationProfile) else step


@dataclass(frozen=True, slots=True)
class CheckpointsSpec:
    """Which snapshots a plain mean is of: what ``--profile checkpoints:`` says.

    Attributes:
        label: as the user wrote it.
        first: how many of the first ones; None where that is not asked.
        last: how many of the last ones; None where that is not asked.
        low: the earliest step.
        high: the latest step.
    """

    label: str
    first: int | None = None
    last: int | None = None
    low: float = 0.0
    high: float = math.inf

    @classmethod
    def read(cls, text: str) -> CheckpointsSpec:
        """What a text such as ``checkpoints:last=5`` says.

        Raises:
            UsageError: it is none.
        """
        given: dict[str, float] = {}
        parameters = text.partition(":")[2]
        for part in parameters.split(",") if parameters else ():
            name, _, value = (piece.strip() for piece in part.partition("="))
            try:
                number = float(value)
            except ValueError:
                raise UsageError(f"{text}: {part!r} is not a parameter", remedy=_HELP) from None
            if name in given:
                raise UsageError(f"{text}: {name} is given twice", remedy=_HELP)
            given[name] = number
        counted = given.keys() & {"first", "last"}
        if not given or given.keys() - {"first", "last", "from", "to"} or len(counted) > 1:
            raise UsageError(f"{text}: needs last, first, or from and to", remedy=_HELP)
        for name in counted:
            if not (1 <= given[name] <= MOST_EXACT and given[name].is_integer()):
                raise UsageError(
                    f"{text}: {name} is a number of checkpoints, from 1 on",
                    remedy="uniform:last=0.2 is the average of a fraction of training"
                    if 0 < given[name] < 1
                    else _HELP,
                )
        low, high = given.get("from", 0.0), given.get("to", math.inf)
        if not low <= high:
            raise UsageError(f"{text}: no step is from {low:g} to {high:g}", remedy=_HELP)
        first, last = (int(given[n]) if n in given else None for n in ("first", "last"))
        return cls(text, first, last, low, high)

    def chosen(self, steps: Sequence[float], end: float) -> list[int]:
        """Which of the snapshots it means.

        Args:
            steps: of each snapshot, ascending.
            end: the step of the target; later ones do not count.

        Raises:
            UsageError: there are none, or fewer than it asks for.
        """
        within = [i for i, s in enumerate(steps) if self.low <= s <= min(self.high, end)]
        wanted = self.first or self.last or 1
        if len(within) < wanted:
            count = f"{len(within)} checkpoint" + ("s" if len(within) != 1 else "")
            raise UsageError(
                f"{self.label}: there are {count} up to step {min(self.high, end):.12g}"
                + (f" from step {self.low:.12g} on" if self.low else ""),
                remedy="phema inspect -v lists their steps",
            )
        if self.last is not None:
            return within[-self.last :]
        return within if self.first is None else within[: self.first]
