"""Packed snapshots of a planned run: what the integers of their residues will lose.

A packed snapshot holds the residue of a linear prediction from the last few
(``phema_cli/formats/packing.py``). How large residues will be follows from how the weights move, as
everything else of a plan does.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from phema_cli.profiles import Profile
from phema_cli.solver.movement import Movement
from phema_cli.solver.system import evaluate, split

#: the step that is the RMS of all blocks', times the largest integer, over the RMS residue: with
#: it foretold errors are 0.9 to 1.7 times those of the runs of benchmarks/packing.py (medians).
_PEAK = 2.0


@dataclass(frozen=True, slots=True)
class Packing:
    """How the snapshots of a planned run are packed.

    Attributes:
        bits: of an integer.
        followed: how many files a prediction follows.
        keyframe_every: files from one that is whole to the next.
    """

    bits: int
    followed: int
    keyframe_every: int

    def keyframes(self, files: int) -> int:
        """How many of so many files are whole."""
        return -(-files // self.keyframe_every)


def packed(movement: Movement, sources: Sequence[Profile], packing: Packing) -> Movement:
    """The movement with the errors that packing adds to each source.

    The residue of a source is what the movements since the keyframe of those that it follows can't
    foretell, in the mean square; their own errors count, since one predicts from what readers have.
    A step is ``_PEAK`` residues over the largest integer; rounding to it has the variance
    ``step^2 / 12``.

    Args:
        movement: of the weights; ``rounding`` is that of float32, in which keyframes are stored.
        sources: n profiles in the order of their files.
        packing: how they are packed.
    """
    system = evaluate(sources, [])
    rows, _, _ = movement.rows(system, split(system, movement.intensity(system, system.times)))
    step = _PEAK / (2 ** (packing.bits - 1) - 1)
    errors = np.zeros(len(sources))
    for low in range(0, len(sources), packing.keyframe_every):
        moved = rows[:, low : low + packing.keyframe_every]
        moved = moved[:, 1:] - moved[:, :1]
        gram = moved.T @ moved + movement.rounding.variance * np.eye(moved.shape[1])
        for i in range(moved.shape[1]):
            own = slice(max(0, i - packing.followed), i)
            known = gram[own, own] + np.diag(errors[low + 1 :][own])
            foretold = gram[i, own] @ np.linalg.solve(known, gram[own, i]) if i else 0.0
            residue = max(gram[i, i] - foretold, movement.rounding.variance)
            errors[low + 1 + i] = residue * step**2 / 12
    return replace(movement, errors=errors)
