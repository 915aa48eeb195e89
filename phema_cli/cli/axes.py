"""Axes of drawings in text: ranges, round numbers to put ticks at, and how those are written."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

#: mantissas of ticks of a logarithmic axis by the decades that it spans, at most.
_MANTISSAS = ((1.5, (1.0, 2.0, 3.0, 5.0)), (2.5, (1.0, 3.0)))
#: numbers from here up are written with an exponent, and so are those below its counterpart.
_LARGE, _SMALL = 1e6, 1e-4
#: the part of a range that may lie beyond the outer ticks.
_BEYOND = 0.01
#: steps between ticks that are no distance.
_SAME = 1e-9


@dataclass(frozen=True, slots=True)
class Axis:
    """A range of numbers and the ticks in it.

    Attributes:
        low: the number at its beginning, above 0 where ``log`` is true.
        high: the number at its end, above ``low``.
        log: whether equal ratios are equal distances, instead of equal differences.
        ticks: ascending, from ``low`` to ``high``.
    """

    low: float
    high: float
    log: bool
    ticks: tuple[float, ...]

    def dots(self, values: Array, count: int) -> Array:
        """Where values lie on ``count`` dots from ``low`` to ``high``, not yet rounded.

        Args:
            values: any shape, above 0 where the axis is logarithmic.
            count: dots, at least 2.
        """
        if self.log:
            low, high = math.log(self.low), math.log(self.high)
            return (np.log(values) - low) / (high - low) * (count - 1)
        return (values - self.low) / (self.high - self.low) * (count - 1)


def even(values: Array, most: int) -> Axis:
    """The axis of equal differences that holds values, and begins and ends at ticks.

    Args:
        values: (n,) finite; n is at least 1. At most a hundredth of their range is beyond the ends.
        most: ticks that there is room for.
    """
    ticks = _even(*_ends(values), most, whole=True)
    return Axis(ticks[0], ticks[-1], log=False, ticks=ticks)


def logarithmic(values: Array, most: int) -> Axis:
    """The axis of equal ratios from the least to the largest value.

    Powers of ten are its ticks, and a few multiples of them on a short axis.

    Args:
        values: (n,) above 0 and finite; n is at least 1.
        most: ticks that there is room for.
    """
    low, high = _ends(values)
    decades = math.log10(high / low)
    mantissas = next((m for span, m in _MANTISSAS if decades <= span), (1.0,))
    first, last = math.floor(math.log10(low) + 1e-9), math.ceil(math.log10(high) - 1e-9)
    every = max(1, math.ceil((last - first) / max(most - 1, 1))) if len(mantissas) == 1 else 1
    found = [m * 10.0**e for e in range(first, last + 1, every) for m in mantissas]
    ticks = tuple(t for t in found if low * (1 - 1e-9) <= t <= high * (1 + 1e-9))
    if len(ticks) < 2:  # noqa: PLR2004 - one number doesn't say how long an axis is
        ticks = tuple(t for t in _even(low, high, most, whole=False) if t > 0)
    return Axis(low, high, log=True, ticks=ticks)


def _ends(values: Array) -> tuple[float, float]:
    """The least and the largest value, moved apart where they are one."""
    low, high = float(values.min()), float(values.max())
    if not high - low > 1e-9 * max(abs(low), abs(high)):
        beside = abs(low) / 10 or 1.0
        return low - beside, high + beside
    return low, high


def _even(low: float, high: float, most: int, whole: bool) -> tuple[float, ...]:
    """Multiples of 1, 2 or 5 times a power of ten; those around the range where ``whole``."""
    exponent = math.floor(math.log10((high - low) / max(most, 2)))
    steps = [m * 10.0 ** (exponent + e) for e in (0, 1) for m in (1, 2, 5)]
    step = next((s for s in steps if np.ptp(_multiples(low, high, s, whole)) < max(most, 2)), 0.0)
    step = step or 10 * steps[-1] / 5
    first, last = _multiples(low, high, step, whole)
    digits = max(0, 1 - math.floor(math.log10(step)))
    return tuple(round(i * step, digits) for i in range(first, max(last, first) + 1))


def _multiples(low: float, high: float, step: float, whole: bool) -> tuple[int, int]:
    """First and last multiple of a step in a range, or around it."""
    if whole:
        beyond = _BEYOND * (high - low) / step
        return math.floor(low / step + beyond), math.ceil(high / step - beyond)
    # Next to a multiple is on it: 0.3 is no multiple of 0.1 in binary.
    return math.ceil(low / step - _SAME), math.floor(high / step + _SAME)


def written(ticks: Sequence[float]) -> list[str]:
    """Ticks as text, with as many digits as tell them apart."""
    largest = max((abs(t) for t in ticks), default=0.0)
    smallest = min((abs(t) for t in ticks if t), default=0.0)
    gaps = [b - a for a, b in pairwise(ticks)] or [1.0]
    if largest >= _LARGE or largest < _SMALL:
        digits = 3 if not largest else max(3, math.ceil(math.log10(largest / min(gaps))))
        return [_exponential(t, digits) for t in ticks]
    even = max(gaps) < 1.001 * min(gaps)
    if not even and smallest < _SMALL:
        return [_exponential(t) if abs(t) < _SMALL else f"{t:.4g}" for t in ticks]
    if not even:
        return [f"{t:.4g}" for t in ticks]
    digits = max(0, -math.floor(math.log10(min(gaps)) + 1e-9))
    return [f"{t:.{digits}f}" for t in ticks]


def _exponential(value: float, digits: int = 3) -> str:
    """``2e6``, ``1.5e-7``."""
    if value == 0:
        return "0"
    mantissa, _, exponent = f"{value:.{digits}e}".partition("e")
    return f"{float(mantissa):.{digits + 1}g}e{int(exponent)}"
