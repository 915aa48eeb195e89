"""The sample, reduced once to what every hypothesis needs: a triangle and a rounding table."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import cast

import numpy as np
from numpy.typing import NDArray

from phema_cli.profiles import Array
from phema_cli.solver.calibration import Sample
from phema_cli.solver.evidence.laws import Series
from phema_cli.solver.rounding import Rounding, measured

#: elements that are used at most, and of which so many are held in float64 at a time.
_MOST_ELEMENTS, _CHUNK = 1 << 17, 1 << 13


@dataclass(frozen=True, slots=True)
class Reduced:
    """A sample of n snapshots without its elements.

    Attributes:
        root: (n, min(n, e)) columns in which any combination of the snapshots whose weights sum to
            zero has the mean square that it has over the e elements. A triangle, not the Gram
            matrix that it is a root of: contrasts of snapshots cancel to 1e-6 of them.
        rounding: of the stored values.
    """

    root: Array
    rounding: Rounding


def reduce(sample: Sample, rows: Sequence[int], most: int = _MOST_ELEMENTS) -> Reduced | None:
    """Reduce some snapshots of a sample, in a given order.

    An element that no snapshot changes is not rounded, for its values agree. How far an element
    moves against the others is taken from neighbouring rows, each pair weighed alike, so that it
    depends on no tag.

    Args:
        sample: elements of all snapshots.
        rows: the n snapshots that are meant.
        most: elements to use.

    Returns:
        None where none of them differs, or they differ by more than a square can hold.
    """
    stride = -(-sample.values.shape[1] // most)
    # Odd, so that rows of matrices, which have even lengths, are not met at the same places.
    stride += 1 - stride % 2
    values, units = sample.values[:, ::stride], sample.units[::stride]
    count = values.shape[1]
    triangle, square = np.empty((0, len(rows))), np.zeros(len(rows))
    with np.errstate(over="ignore", invalid="ignore"):
        for _, away in _chunks(values, rows):
            square += _steps(away).sum(axis=1)
            stacked = np.vstack([triangle, away.T])
            triangle = cast("Array", np.linalg.qr(stacked, mode="r"))
    if not square.any() or not np.isfinite(square).all() or not np.isfinite(triangle).all():
        return None
    size = np.where(square > 0, square / count, np.inf)
    pace, moved = np.empty(count), np.empty(count, dtype=np.bool_)
    for where, away in _chunks(values, rows):
        pace[where] = np.sqrt((_steps(away) / size[:, None]).sum(axis=0) / (square > 0).sum())
        moved[where] = away.any(axis=0)
    root = triangle.T * np.sqrt(len(triangle) / count)
    return Reduced(root, measured(np.where(moved, units, 0.0), pace))


def _chunks(
    values: NDArray[np.floating], rows: Sequence[int]
) -> Iterator[tuple[slice, NDArray[np.float64]]]:
    """Pieces of the elements: which, and (n, piece) how far the snapshots lie from the last one."""
    for low in range(0, values.shape[1], _CHUNK):
        where = slice(low, low + _CHUNK)
        piece = values[np.asarray(rows), where].astype(np.float64)
        yield where, piece - piece[-1]


def _steps(away: Array) -> Array:
    """(n, e) squared differences of each snapshot from the next, and of the last from the first."""
    return (away - np.roll(away, -1, axis=0)) ** 2


def without(
    series: Sequence[Series], reduced: Reduced, left_out: Sequence[int]
) -> tuple[list[Series], Reduced]:
    """Snapshots and their sample without some of them, by number; no series is left empty."""
    kept = [i for i in range(len(reduced.root)) if i not in left_out]
    others, first = [], 0
    for s in series:
        size = len(s.rows)
        others.append(s.at([i - first for i in kept if first <= i < first + size]))
        first += size
    return [s for s in others if s.rows], replace(reduced, root=reduced.root[kept])
