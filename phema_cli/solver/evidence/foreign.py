"""Which few snapshots do not belong to the others, where these bear their tags out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from phema_cli.solver.calibration import Sample
from phema_cli.solver.evidence.choosing import parts_of
from phema_cli.solver.evidence.laws import Series
from phema_cli.solver.evidence.limits import LEAST_TIMES, fits_of, gain_limits, second
from phema_cli.solver.evidence.reduction import reduce, without
from phema_cli.solver.evidence.scoring import Score, foretold_by
from phema_cli.solver.evidence.search import Search
from phema_cli.solver.movement import Movement

#: times from which on snapshots are blamed: without them, few others always fit.
_LEAST_TIMES = 6
#: one in so many snapshots is blamed at most, and at least so many may be: of more foreign ones
#: some may agree with each other, and leaving out right ones explains as much.
_SHARE, _FEW = 10, 2
#: ratio ``l_i/v_i`` from which a snapshot is of another run if the movement is known from others:
#: with right tags 64 times of 19 runs gave 10.3 at most, files of another run 95 and far more.
FAR = 100.0
#: elements that are enough to see a file of another run.
_ELEMENTS = 1 << 13


def blamed(search: Search, times: int) -> tuple[tuple[int, ...], Score] | None:
    """The few snapshots without which all others fit, under their tags and no others.

    One after the other, or all of one time, whichever leaves the least ratio, is left out.

    Args:
        search: of n snapshots whose tags do not fit.
        times: distinct times among them.

    Returns:
        Their numbers, and the score of the others; None where that explains nothing.
    """
    found = _fitting(search, times)
    if found is None:
        return None
    out, others, told = found
    if second(others.series) >= LEAST_TIMES:
        others.explore()
        rival = others.tried[0] if others.tried else told
        agree = others.gain(rival) < gain_limits(others, rival, times)[1]
        return (out, told) if agree else None
    # A series of too few to compare is not left out down to its last.
    return (out, told) if len(others.series) == 1 else None


def _fitting(search: Search, times: int) -> tuple[tuple[int, ...], Search, Score] | None:
    """The fewest snapshots to leave out so that the others fit, and these; None if many are."""
    if search.told is None or times < _LEAST_TIMES:
        return None
    out: tuple[int, ...] = ()
    rest, told = search, search.told
    while not fits_of(told, times):
        tried = [(out + odd, search.without(out + odd)) for odd in _suspects(search, out, told)]
        left = [(s.told, o, s) for o, s in tried if s is not None and s.told is not None]
        if not left:
            return None
        told, out, rest = min(left, key=lambda t: (not fits_of(t[0], times), len(t[1]), t[0].worst))
        if len(out) > max(_FEW, search.size // _SHARE):
            return None
    return out, rest, told


def _suspects(search: Search, out: Sequence[int], told: Score) -> Iterator[tuple[int, ...]]:
    """The two snapshots with the largest ratios among the rest, and all of the first one's time."""
    kept = [i for i in range(search.size) if i not in out]
    ends = [t for s in search.series for t in s.times]
    first, *others = (kept[int(i)] for i in np.argsort(-told.ratios)[:2])
    together = tuple(i for i in kept if ends[i] == ends[first])
    yield from dict.fromkeys([(first,), *((i,) for i in others), together])


def strays(series: Sequence[Series], sample: Sample, movement: Movement) -> tuple[int, ...]:
    """Snapshots that do not belong, among all: a search looks at few times.

    How the weights moved is known from those that were looked at and bear their tags out. That
    foretells all others, and the farthest of them is left out until none is far off.

    Args:
        series: all snapshots.
        sample: their elements.
        movement: fitted to those that were looked at.

    Returns:
        Their rows.
    """
    found: list[int] = []
    for part in parts_of(series):
        found += _strays_in(part, sample, movement)
    return tuple(sorted(found))


def _strays_in(part: list[Series], sample: Sample, movement: Movement) -> list[int]:
    """The rows of those of a few snapshots."""
    found: list[int] = []
    rows = [row for s in part for row in s.rows]
    reduced = reduce(sample, rows, _ELEMENTS)
    while reduced is not None and len(rows) > 1:
        ratios = foretold_by(movement, part, reduced)
        if ratios is None or ratios.max() < FAR:
            break
        odd = int(ratios.argmax())
        part, reduced = without(part, reduced, [odd])
        found.append(rows.pop(odd))
    return found
