"""Averages that stand still because their trainer keeps them in 16 bits.

An update ``(1 - beta) (w - average)`` that is smaller than half a unit of the type is lost: an
element stands still until one is larger, and then moves by many units. What is only stored in such
a type moves smoothly: of the elements that have just moved by several units and will again, as many
move by one unit between two snapshots as stand still, or more. Where weights stand still an average
goes on towards them: after a step of s units it has ``s exp(-spacing/length)`` of them before it.
"""

import math
from collections.abc import Iterator, Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from phema_cli.profiles import Array
from phema_cli.solver.calibration import Sample
from phema_cli.solver.evidence.laws import Series

#: how many times as many elements stand still as move by up to one unit, and how many at least.
#: ``benchmarks/stalls.py`` measures it: docs/fidelity.md, "Averages kept in 16 bits".
STANDING, LEAST = 4.0, 20
#: snapshots of a series, at least: a pair to look at, one before it and one after it.
SNAPSHOTS = 4
#: length of an average over the time between snapshots, at least: shorter ones have arrived where
#: weights stand still, as those of rare words and of layers that are trained in turn.
SHORTEST = 1 / 4
#: units in which an element moves for certain.
_MOVED = 2.0
#: elements that are used at most.
_ELEMENTS = 1 << 16
#: the last bits of float32 that each type has no use for, and of its own numbers the mantissa bits
#: and the exponent of the smallest normal one.
_FLOAT16, _BFLOAT16 = 13, 16
_TYPES = {_FLOAT16: (10, -14), _BFLOAT16: (7, -126)}


def find_stalled(series: Sequence[Series], sample: Sample) -> tuple[int, ...]:
    """The series, by number, whose elements stand still as those of averages kept in 16 bits.

    Averages only, of ``SNAPSHOTS`` or more, that are not far shorter than the time between these.
    What is packed, or has more digits than float16, is not looked at.
    """
    if sample.errors is not None or sample.values.dtype != np.float32:
        return ()
    # Odd, so that rows of matrices, which have even lengths, are not met at the same places.
    values = sample.values[:, :: -(-sample.values.shape[1] // _ELEMENTS) | 1]
    return tuple(
        k
        for k, s in enumerate(series)
        if s.law.kind != "raw"
        and len(s.rows) >= SNAPSHOTS
        and (length := _length(s)) >= SHORTEST
        and _stands(values[list(s.rows)], math.exp(-1 / length))
    )


def _length(series: Series) -> float:
    """The length of the last average, in times between snapshots."""
    last, gap = series.profiles[-1], float(np.median(np.diff(series.times)))
    return last.end / (last.exponent + 1) / gap if gap else math.inf


def _stands(values: NDArray[np.floating], left: float) -> bool:
    """Whether far more elements of (n, e) snapshots stand still than move by a unit.

    ``left`` is the share of its way that an average has before it at the next snapshot.
    """
    unused = _unused_bits(values)
    if unused is None:
        return False
    bits, smallest = _TYPES[unused]
    units = np.exp2(np.maximum(np.frexp(values[-1])[1] - 1.0, smallest) - bits)
    last = np.full(len(units), -1)
    for k, step in _steps(values, units):
        np.maximum(last, k, out=last, where=step >= _MOVED)
    still = moved = 0
    before = np.zeros(len(units))
    for k, step in _steps(values, units):
        inside = (before >= max(_MOVED, 1 / left)) & (k < last)
        before = step
        if unused < _BFLOAT16:
            # Where weights in bfloat16 stand still, their average comes to stand on the same value.
            inside &= values[k].view(np.uint32) % (1 << _BFLOAT16) != 0
        still += int((inside & (step == 0)).sum())
        moved += int((inside & (step > 0) & (step <= 1)).sum())
    return still >= LEAST and still >= STANDING * moved


def _steps(values: NDArray[np.floating], units: Array) -> Iterator[tuple[int, Array]]:
    """How many units each element moves to a snapshot, by its number, if it was updated at all."""
    for k, (before, after) in enumerate(pairwise(values), start=1):
        # Masks hold infinities, which are alike in all snapshots.
        with np.errstate(invalid="ignore"):
            step = np.abs(np.subtract(after, before, dtype=np.float64)) / units
        if step.any():
            yield k, step


def _unused_bits(values: NDArray[np.floating]) -> int | None:
    """How many of the last bits of float32 no snapshot uses in most elements; None if fewer."""
    used = np.bitwise_or.reduce(values.view(np.uint32), axis=0)
    most = (n for n in (_BFLOAT16, _FLOAT16) if np.mean(used % (1 << n) == 0) > 1 / 2)
    return next(most, None)
