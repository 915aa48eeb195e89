"""The sample as a test uses it: few snapshots, and a triangle in place of their elements."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import cast

import numpy as np
from numpy.typing import NDArray

from phema_cli.profiles import Array
from phema_cli.solver.calibration import Sample
from phema_cli.solver.evidence.laws import Series
from phema_cli.solver.movement import Rounding

#: distinct times that one test looks at.
MOST_TIMES = 16
#: series that the search for other tags looks at.
_MOST_SERIES = 4
#: updates after which a curve describes an average, and snapshots of a series that are enough.
_BEGUN, _ENOUGH = 16.0, 6
#: snapshots of a part of them all, at most, and times, at least.
_PART, _LEAST = 64, 4
#: elements that are used at most, and of which so many are held in float64 at a time.
_MOST_ELEMENTS, _CHUNK = 1 << 17, 1 << 13


def select_snapshots(series: Sequence[Series]) -> list[Series]:
    """The snapshots that one test uses: few times, above all those that several series share.

    The first few updates are left out where there are others enough: a smooth curve does not
    describe them to the rounding of what is stored. With more than ``_MOST_SERIES`` series, the raw
    weights and the averages of most snapshots.
    """
    ranked = sorted(
        range(len(series)), key=lambda k: (series[k].law.kind != "raw", -len(series[k].rows), k)
    )
    used = [series[k] for k in sorted(ranked[:_MOST_SERIES])]
    begun = [s.at([i for i, t in enumerate(s.times) if t >= _BEGUN]) for s in used]
    used = [b if len(b.rows) >= _ENOUGH else s for s, b in zip(used, begun, strict=True)]
    count = Counter(t for s in used for t in s.times)
    shared = sorted(t for t, k in count.items() if k > 1)
    kept = thin(shared, MOST_TIMES)
    room = MOST_TIMES - len(kept)
    alone = sorted(t for t, k in count.items() if k == 1)
    kept += thin(alone, room) if room else []
    newest = max(count)
    if newest not in kept:
        kept = [*sorted(kept)[1:], newest]
    chosen = (s.at([i for i, t in enumerate(s.times) if t in kept]) for s in used)
    return [s for s in chosen if s.rows]


def thin(times: Sequence[float], most: int) -> list[float]:
    """At most so many of ascending times: the newest, others with odd gaps between their indices.

    With even gaps the test would never look at every other snapshot, and not see mistakes that
    alternate.
    """
    last = len(times) - 1
    if last < most:
        return list(times)
    chosen, at = [last], last
    for k in range(1, most):
        ideal = last * (1 - k / (most - 1))
        # The nearest index below with an odd gap to the one before.
        at -= max(1, 2 * round((at - ideal - 1) / 2) + 1)
        if at < 0:
            break
        chosen.append(at)
    return [times[i] for i in reversed(chosen)]


def alternating_parts(series: Sequence[Series]) -> list[list[Series]]:
    """All snapshots in two parts or more of few times each, dealt in turns.

    No parts where one would have less than four times.
    """
    longest = max(len(s.rows) for s in series)
    most = max(_LEAST, min(MOST_TIMES, _PART // len(series)))
    count = max(2, -(-longest // most))
    if longest < _LEAST * count:
        return []
    turns = ([s.at(range(k, len(s.rows), count)) for s in series] for k in range(count))
    return [[s for s in part if s.rows] for part in turns]


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

    An element that no snapshot changes is not rounded, since its values agree. Neighbouring rows
    say how far an element moves against the others, each pair weighed alike, so that it depends on
    no tag.

    Args:
        sample: elements of all snapshots.
        rows: the n snapshots to use.
        most: elements to use.

    Returns:
        None where none of them differs, or they differ by more than a square can hold.
    """
    # Odd, so that rows of matrices, which have even lengths, are not met at the same places.
    stride = -(-sample.values.shape[1] // most) | 1
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
    rounding = Rounding.of_elements(np.where(moved, units, 0.0), pace)
    if sample.errors is not None:
        # No two snapshots share these.
        variance = rounding.variance + float(sample.errors[list(rows)].mean())
        rounding = replace(rounding, variance=variance)
    return Reduced(root, rounding)


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
