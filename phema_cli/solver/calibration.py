"""Calibration: fits the movement of the weights and their rounding to a sample of the snapshots.

Which snapshots are compared and how far they differ is found here; :mod:`.fitting` makes a movement
of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from phema_cli.errors import InputError
from phema_cli.profiles import Array, Profile
from phema_cli.solver.fitting import Observed, fit
from phema_cli.solver.movement import Movement
from phema_cli.solver.rounding import measured
from phema_cli.solver.system import evaluate, families

#: sizes that keep the fit of a thousand snapshots below a second: pairs of snapshots compared,
#: values that the held-back estimates are computed for.
_MOST_PAIRS, _MOST_VALUES = 512, 2_000_000


@dataclass(frozen=True, slots=True)
class Sample:
    """Elements of the snapshots.

    Attributes:
        values: (n, e) the same elements of every snapshot, float32 or float64, all finite.
        units: (e,) unit in the last place of each element as it is stored; 0 where that is exact.
    """

    values: NDArray[np.floating]
    units: Array


def calibrate(sources: Sequence[Profile], sample: Sample) -> Movement | None:
    """Fit drift, roughness, jitter and rounding.

    Args:
        sources: n profiles.
        sample: the sources' elements in the same order.

    Returns:
        The movement, or None where there is nothing to fit: fewer than two snapshots, or none of
        the elements moves.

    Raises:
        InputError: the sources' elements differ by more than a square can hold.
    """
    pairs = neighbouring(sources, families(sources))
    if not len(pairs) or not sample.values.size:
        return None
    reference = sample.values[int(np.argmax([s.end for s in sources]))]
    moved = np.any(sample.values != reference, axis=0)
    with np.errstate(over="ignore"):
        squares, drift = _differences(sample.values, pairs)
        mean_square = float(np.mean(np.square(reference, dtype=np.float64)))
    if not squares.any():
        return None
    if not np.isfinite(squares).all():
        raise InputError(
            "values of the snapshots are too large to be compared",
            remedy="leave their tensor out with --copy, or pass --no-sample",
        )
    stride = max(1, int(sample.values.size) // _MOST_VALUES)
    observed = Observed(
        pairs=pairs,
        squares=squares,
        residual=sample.values[:, ::stride] - reference[::stride],
        rounding=measured(np.where(moved, sample.units, 0.0), drift),
        mean_square=mean_square,
    )
    return fit(evaluate(sources, []), observed)


def neighbouring(sources: Sequence[Profile], kinds: NDArray[np.intp]) -> NDArray[np.intp]:
    """Sources to compare: same time and neighbouring length, same kind and neighbouring time.

    Args:
        sources: n profiles.
        kinds: (n,) which of them are of one kind, by number.

    Returns:
        (p, 2) indices, about ``_MOST_PAIRS`` of them at most, evenly chosen.
    """
    same_time: dict[float, list[int]] = {}
    same_kind: dict[int, list[int]] = {}
    for i, source in enumerate(sources):
        same_time.setdefault(source.end, []).append(i)
        same_kind.setdefault(int(kinds[i]), []).append(i)
    by_length: list[tuple[int, int]] = []
    for end in sorted(same_time):
        by_length += pairwise(sorted(same_time[end], key=lambda i: sources[i].exponent))
    by_time = [
        list(pairwise(sorted(group, key=lambda i: sources[i].end))) for group in same_kind.values()
    ]
    lists = [by_length, *by_time]
    if not any(lists):
        # Each of its own length and time.
        lists = [list(pairwise(sorted(range(len(sources)), key=lambda i: sources[i].end)))]
    stride = max(1, -(-sum(map(len, lists)) // _MOST_PAIRS))
    # Each list is thinned by itself, from its newest pair on, so that all kinds stay.
    found = [pair for pairs in lists for pair in pairs[::-1][::stride][::-1]]
    return np.array(found, dtype=np.intp).reshape(-1, 2)


def _differences(values: NDArray[np.floating], pairs: NDArray[np.intp]) -> tuple[Array, Array]:
    """Mean square difference of each pair, and each element's RMS one relative to the average."""
    squares = np.empty(len(pairs))
    relative = np.zeros(values.shape[1])
    for k, (a, b) in enumerate(pairs):
        square = np.square(np.subtract(values[a], values[b], dtype=np.float64))
        squares[k] = square.mean()
        if 0 < squares[k] < np.inf:
            relative += square / squares[k]
    return squares, np.sqrt(relative / max(1, int((squares > 0).sum())))
