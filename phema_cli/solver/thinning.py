"""Thinning: which snapshots of a run may go at the least loss of what the rest can be made into.

Where the minimum of ``J(x) = |b - A x|^2 + x' N x`` with weights that sum to one lies at x, forcing
``x_i = 0`` raises it by ``x_i^2 / P_ii``, with ``P = Z (Z' (A' A + N) Z)^-1 Z'`` and a basis Z of
the vectors that sum to zero. So one solution tells the loss of each snapshot exactly, and the
least one goes, again and again.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from phema_cli.errors import UsageError
from phema_cli.profiles import Profile
from phema_cli.solver.least_squares import contrasts, minimise
from phema_cli.solver.movement import Movement
from phema_cli.solver.system import evaluate
from phema_cli.solver.weights import neighbour, square_error

#: snapshots that must stay.
_LEAST = 2
#: of so many snapshots one goes at a time, of twice as many two.
_AT_A_TIME = 200


def thinned(
    sources: Sequence[Profile], targets: Sequence[Profile], movement: Movement, keep: int
) -> list[int]:
    """The snapshots to keep.

    Args:
        sources: n profiles.
        targets: k profiles with a sigma_rel, none ending later than the last source; the worst of
            their errors, as an error in sigma_rel, counts.
        movement: of the weights.
        keep: how many stay.

    Returns:
        Their places, ascending. The last one is always among them.

    Raises:
        UsageError: too few or too many are to stay.
    """
    if not _LEAST <= keep < len(sources):
        raise UsageError(
            f"{keep} of {len(sources)} snapshots cannot be kept",
            remedy=f"pass {_LEAST} to {len(sources) - 1}",
        )
    k = len(targets)
    near = [one for one in map(neighbour, targets) if one is not None]
    system = evaluate(sources, [*targets, *near])
    a, b, noise, rest = movement.problem(system)
    steps = np.linalg.norm(b[:, :k] - b[:, k:], axis=0)
    left = np.arange(len(sources))
    latest = int(np.argmax(system.source_ends))
    while len(left) > keep:
        own, shared = a[:, left], noise[np.ix_(left, left)]
        x = minimise(own, b[:, :k], shared)
        now = square_error(x, own, b[:, :k], shared, movement.mean_square) + rest[:k]
        lost = x**2 / np.square(contrasts(own, shared)).sum(axis=1)[:, None]
        worst = (np.sqrt(now + lost) / steps).max(axis=1)
        worst[left == latest] = np.inf
        going = min(max(1, len(left) // _AT_A_TIME), len(left) - keep)
        # Of snapshots that make no difference the oldest go.
        order = np.lexsort((system.source_ends[left], worst))
        left = np.delete(left, order[:going])
    return [int(i) for i in left]
