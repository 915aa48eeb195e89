"""From snapshots to solved targets: which steps, which storage noise, which weights."""

from __future__ import annotations

import math
from collections.abc import Sequence

from phema_cli.errors import UsageError
from phema_cli.formats.base import Checkpoint
from phema_cli.profiles import PowerProfile, gamma_from_sigma_rel
from phema_cli.snapshots import Snapshot
from phema_cli.solver import DEFAULT_METHOD, Solution, solve, storage_noise


def make_targets(
    snapshots: Sequence[Snapshot],
    *,
    gammas: Sequence[float] = (),
    sigma_rels: Sequence[float] = (),
    step: float | None = None,
) -> list[PowerProfile]:
    """Targets in the order given, gammas first, at ``step`` or at the last snapshot's.

    Raises:
        UsageError: no target, one given twice, or one that does not exist.
    """
    end = max(s.tag.step for s in snapshots) if step is None else step
    wanted = [*gammas, *(gamma_from_sigma_rel(s) for s in sigma_rels)]
    for gamma in wanted:
        if gamma < 0:
            raise UsageError(f"target gamma {gamma:g} is below 0")
        if wanted.count(gamma) > 1:
            raise UsageError(f"target gamma {gamma:g} is given twice")
    return [PowerProfile(gamma, end) for gamma in wanted]


def solve_snapshots(
    snapshots: Sequence[Snapshot],
    targets: Sequence[PowerProfile],
    *,
    method: str = DEFAULT_METHOD,
) -> Solution:
    """Weights of the snapshots for each target; rows in the order of ``snapshots``.

    Errors as :func:`phema_cli.solver.solve`.
    """
    profiles = [s.tag.profile for s in snapshots]
    noise = stored_noise(snapshots[-1].checkpoint)
    return solve(profiles, targets, method=method, storage_noise=noise)


def stored_noise(checkpoint: Checkpoint) -> float:
    """RMS relative rounding error over all float elements of a checkpoint."""
    floats = [e for e in checkpoint.tensors.values() if e.dtype.kind == "float"]
    elements = sum(e.elements for e in floats)
    squares = sum(storage_noise(e.dtype.mantissa_bits) ** 2 * e.elements for e in floats)
    return math.sqrt(squares / elements) if elements else 0.0
