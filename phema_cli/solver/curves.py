"""Profiles as curves to draw: a target's, and the one that weighted sources achieve."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import numpy as np

from phema_cli.profiles import Array, Profile

#: relative differences: of breaks that are one, and of a point beside a break from it.
_ROUNDING, _BESIDE = 1e-9, 1e-8
#: a source that weighs less than this part of the heaviest one makes no curve longer.
_NEGLIGIBLE = 1e-3
#: points to a piece between breaks, and to the time in which the steepest profile falls e-fold.
_LEAST_POINTS, _MOST_POINTS, _PER_FALL = 4, 64, 8
#: points of a curve in all, where it has few breaks.
_POINTS = 240


@dataclass(frozen=True, slots=True)
class Curves:
    """A target's profile and the achieved one over time.

    Attributes:
        quantity: ``density``, the weight per step, or ``cumulative``, the weight of all up to a
            time, where a single point has no density.
        times: (p,) ascending, in steps; where a profile jumps, one just before and one just after.
        target: (p,) float64.
        achieved: (p,) float64, the sum of the sources' by their weights.
    """

    quantity: Literal["density", "cumulative"]
    times: Array
    target: Array
    achieved: Array

    @property
    def difference(self) -> Array:
        """(p,) achieved minus target."""
        return self.achieved - self.target


def curves(
    sources: Sequence[Profile], weights: Array, target: Profile, *, dense: bool = True
) -> Curves:
    """Sample a target's profile and the one that its weights achieve.

    The curves end with the target, or with the last source that weighs something.

    Args:
        sources: n profiles.
        weights: (n,) their weights.
        target: what the weights are for.
        dense: whether densities are wanted; a single point, which has none, counts as 0 there.
    """
    weighing = [(x, s) for x, s in zip(weights.tolist(), sources, strict=True) if x]
    least = _NEGLIGIBLE * float(np.abs(weights).max())
    shown = [target, *(s for x, s in weighing if abs(x) > least)]
    until = max(p.end for p in shown)
    breaks = [b for p in (target, *(s for _, s in weighing)) for b in p.breaks]
    times = _times([*_distinct(breaks, until), until], max(p.exponent for p in shown))

    def along(profile: Profile) -> Array:
        return profile.density(times) if dense else profile.cdf(times)

    achieved = np.zeros_like(times)
    for x, source in weighing:
        achieved += x * along(source)
    return Curves("density" if dense else "cumulative", times, along(target), achieved)


def _distinct(breaks: Sequence[float], until: float) -> list[float]:
    """Breaks before ``until``, ascending; those that differ by rounding alone are one."""
    found: list[float] = []
    for time in sorted(breaks):
        if (not found or time > found[-1] * (1 + _ROUNDING)) and time * (1 + _ROUNDING) < until:
            found.append(time)
    return found


def _times(breaks: Sequence[float], steepest: float) -> Array:
    """Points between breaks, next to them on both sides, close enough for the steepest profile.

    Args:
        breaks: ascending, above 0; the last is the end.
        steepest: largest exponent.
    """
    end = breaks[-1]
    pieces = []
    for low, high in pairwise([0.0, *breaks]):
        falls = (high - low) * (steepest + 1) / high
        wanted = max(_PER_FALL * falls, _POINTS * (high - low) / end)
        count = min(max(math.ceil(wanted), _LEAST_POINTS), _MOST_POINTS if low else _POINTS)
        pieces.append(np.linspace(low * (1 + _BESIDE), high * (1 - _BESIDE), count))
    return np.concatenate(pieces)
