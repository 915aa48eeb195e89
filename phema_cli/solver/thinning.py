"""Thinning: which snapshots of a run may go at the least loss of what the rest can be made into.

Where the minimum of ``J(x) = |b - A x|^2 + x' N x`` with weights that sum to one lies at x, forcing
``x_i = 0`` raises it by ``x_i^2 / P_ii``, with ``P = Z (Z' (A' A + N) Z)^-1 Z'`` and a basis Z of
the vectors that sum to zero. For the snapshots G of one file, which go together, it is
``x_G' P_GG^-1 x_G``. So one solution tells the loss of each exactly, and the least one goes, again
and again.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from phema_cli.errors import UsageError
from phema_cli.profiles import Array, Profile
from phema_cli.solver.least_squares import contrasts, minimise
from phema_cli.solver.movement import Movement
from phema_cli.solver.system import evaluate
from phema_cli.solver.weights import neighbour, square_error

#: files that must stay.
_LEAST = 2
#: of so many files one goes at a time, of twice as many two.
_AT_A_TIME = 200


def thinned(
    sources: Sequence[Profile],
    targets: Sequence[Profile],
    movement: Movement,
    keep: int,
    files: Sequence[str] = (),
) -> list[int]:
    """The snapshots to keep.

    Args:
        sources: n profiles.
        targets: k profiles with a sigma_rel, none ending later than the last source; the worst of
            their errors, as an error in sigma_rel, counts.
        movement: of the weights.
        keep: how many files stay.
        files: (n,) where each snapshot is; by default each has a file of its own.

    Returns:
        Their places, ascending. The last one is always among them.

    Raises:
        UsageError: too few or too many files are to stay.
    """
    _, place = np.unique(files or np.arange(len(sources)), return_inverse=True)
    count = int(place.max()) + 1
    if not _LEAST <= keep < count:
        raise UsageError(
            f"{keep} of {count} checkpoints cannot be kept",
            remedy=f"pass {_LEAST} to {count - 1}" if count > _LEAST else "keep all of them",
        )
    k = len(targets)
    near = [one for one in map(neighbour, targets) if one is not None]
    system = evaluate(sources, [*targets, *near])
    a, b, noise, rest = movement.problem(system)
    steps = np.linalg.norm(b[:, :k] - b[:, k:], axis=0)
    newest = np.zeros(count)
    np.maximum.at(newest, place, system.source_ends)
    latest = place[np.argmax(system.source_ends)]
    left = np.arange(len(sources))
    while len(staying := np.unique(place[left])) > keep:
        own, shared = a[:, left], noise[np.ix_(left, left)]
        x = minimise(own, b[:, :k], shared)
        now = square_error(x, own, b[:, :k], shared, movement.mean_square) + rest[:k]
        lost = _lost(x, contrasts(own, shared), place[left])[staying]
        worst = (np.sqrt(now + lost) / steps).max(axis=1)
        worst[staying == latest] = np.inf
        going = min(max(1, len(staying) // _AT_A_TIME), len(staying) - keep)
        # Of files that make no difference the oldest go.
        order = np.lexsort((newest[staying], worst))
        left = left[~np.isin(place[left], staying[order[:going]])]
    return [int(i) for i in left]


def _lost(x: Array, basis: Array, place: NDArray[np.intp]) -> Array:
    """What is lost where the snapshots of one file weigh nothing.

    Args:
        x: (n, k) weights.
        basis: (n, n - 1), whose product with its transpose is P.
        place: (n,) numbers of the files.

    Returns:
        (max(place) + 1, k) for each file.
    """
    lost = np.zeros((int(place.max()) + 1, x.shape[1]))
    lost[place] = x**2 / np.square(basis).sum(axis=1)[:, None]
    for file in np.flatnonzero(np.bincount(place) > 1):
        within = place == file
        # The shortest w with Z_G w = x_G has the length sought.
        shortest, *_ = np.linalg.lstsq(basis[within], x[within], rcond=None)
        lost[file] = np.square(shortest).sum(axis=0)
    return lost
