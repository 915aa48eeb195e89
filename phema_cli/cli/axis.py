"""Axes of drawings: their ends, their ticks, and the ticks' numbers."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from phema_cli.profiles import Array

#: mantissas of the ticks of a logarithmic axis that spans at most so many decades.
_MANTISSAS = ((1.5, (1.0, 2.0, 3.0, 5.0)), (2.5, (1.0, 3.0)))
#: numbers from the first on, and those below the second, are written with an exponent.
_LARGE, _SMALL = 1e6, 1e-4
#: the part of a range that may lie beyond the outer ticks.
_BEYOND = 0.01
#: relative differences up to here are rounding.
_ROUNDING = 1e-9


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

    def part(self, values: Array) -> Array:
        """Where values lie, from 0 at ``low`` to 1 at ``high``; above 0 on a logarithmic axis."""
        if self.log:
            low, high = math.log(self.low), math.log(self.high)
            return (np.log(values) - low) / (high - low)
        return (values - self.low) / (self.high - self.low)


def linear_axis(values: Array, most: int) -> Axis:
    """The axis of equal differences that holds values, and begins and ends at ticks.

    Args:
        values: (n,) finite; n is at least 1. At most a hundredth of their range is beyond the ends.
        most: ticks that there is room for.
    """
    ticks = _round_ticks(*_ends(values), most, around=True)
    return Axis(ticks[0], ticks[-1], log=False, ticks=ticks)


def log_axis(values: Array, most: int) -> Axis:
    """The axis of equal ratios from the least to the largest value.

    Its ticks are powers of ten, and a few multiples of them on a short axis.

    Args:
        values: (n,) above 0 and finite; n is at least 1.
        most: ticks that there is room for.
    """
    low, high = _ends(values)
    decades = math.log10(high / low)
    mantissas = next((m for span, m in _MANTISSAS if decades <= span), (1.0,))
    first = math.floor(math.log10(low) + _ROUNDING)
    last = math.ceil(math.log10(high) - _ROUNDING)
    every = max(1, math.ceil((last - first) / max(most - 1, 1))) if len(mantissas) == 1 else 1
    powers = (m * 10.0**e for e in range(first, last + 1, every) for m in mantissas)
    ticks = tuple(t for t in powers if low * (1 - _ROUNDING) <= t <= high * (1 + _ROUNDING))
    if len(ticks) < 2:  # noqa: PLR2004 - one number doesn't say how long an axis is
        ticks = tuple(t for t in _round_ticks(low, high, most, around=False) if t > 0)
    return Axis(low, high, log=True, ticks=ticks)


def _ends(values: Array) -> tuple[float, float]:
    """The least and the largest value, moved apart where they are one."""
    low, high = float(values.min()), float(values.max())
    if not high - low > _ROUNDING * max(abs(low), abs(high)):
        beside = abs(low) / 10 or 1.0
        return low - beside, high + beside
    return low, high


def _round_ticks(low: float, high: float, most: int, *, around: bool) -> tuple[float, ...]:
    """Multiples of 1, 2 or 5 times a power of ten: those in a range, or ``around`` it."""
    room = max(most, 2)
    exponent = math.floor(math.log10((high - low) / room))
    steps = (m * 10.0 ** (exponent + e) for e in (0, 1) for m in (1, 2, 5))
    step = next(
        (s for s in steps if np.ptp(_multiples(low, high, s, around=around)) < room),
        10.0 ** (exponent + 2),
    )
    first, last = _multiples(low, high, step, around=around)
    digits = max(0, 1 - math.floor(math.log10(step)))
    return tuple(round(i * step, digits) for i in range(first, max(last, first) + 1))


def _multiples(low: float, high: float, step: float, *, around: bool) -> tuple[int, int]:
    """First and last multiple of a step in a range, or around it."""
    if around:
        beyond = _BEYOND * (high - low) / step
        return math.floor(low / step + beyond), math.ceil(high / step - beyond)
    # 0.3 counts as a multiple of 0.1, which it is not in binary.
    return math.ceil(low / step - _ROUNDING), math.floor(high / step + _ROUNDING)


def tick_labels(ticks: Sequence[float]) -> list[str]:
    """Ticks as text, with enough digits to tell them apart."""
    largest = max((abs(t) for t in ticks), default=0.0)
    gaps = [b - a for a, b in pairwise(ticks)] or [1.0]
    if largest >= _LARGE or largest < _SMALL:
        digits = 3 if not largest else max(3, math.ceil(math.log10(largest / min(gaps))))
        return [_exponential(t, digits) for t in ticks]
    if max(gaps) < 1.001 * min(gaps):
        digits = max(0, -math.floor(math.log10(min(gaps)) + _ROUNDING))
        return [f"{t:.{digits}f}" for t in ticks]
    return [_exponential(t, 3) if abs(t) < _SMALL else f"{t:.4g}" for t in ticks]


def _exponential(value: float, digits: int) -> str:
    """``2e6``, ``1.5e-7``."""
    if value == 0:
        return "0"
    mantissa, _, exponent = f"{value:.{digits}e}".partition("e")
    return f"{float(mantissa):.{digits + 1}g}e{int(exponent)}"
