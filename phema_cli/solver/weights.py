"""The weights of every target: the linear system is set up, solved and judged."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from phema_cli.errors import InputError, UsageError
from phema_cli.profiles import Array, PowerProfile, Profile
from phema_cli.request import DEFAULT_METHOD
from phema_cli.solver.diagnostics import (
    Figures,
    averaging_distance,
    neighbours,
    profile_errors,
    ratio,
    square_error,
)
from phema_cli.solver.estimate import estimate, normalized
from phema_cli.solver.movement import Movement, nominal
from phema_cli.solver.system import System, evaluate, split

#: the best linear unbiased estimator; the projection divided by its sum; the paper's projection.
METHODS = ("blue", "normalized", "projection")
#: relative difference of gamma + 1 up to which two gammas are one.
SAME_GAMMA = 1e-12

#: RMS rounding error relative to the value, times 2^(stored mantissa bits): measured 2.1e-4 for
#: 10 bits, 1.66e-3 for 7, 2.5e-8 for 23.
ROUNDING_UNIT = 0.215


@dataclass(frozen=True, slots=True)
class Solution:
    """The weights of every target of a call.

    Attributes:
        weights: (n sources, k targets) float64.
        figures: one per target.
        movement: how the weights moved during training, as the figures take it.
    """

    weights: Array
    figures: tuple[Figures, ...]
    movement: Movement


def storage_noise(mantissa_bits: int) -> float:
    """RMS rounding error of a value stored with that many mantissa bits, relative to the value."""
    return float(ROUNDING_UNIT * 2.0**-mantissa_bits)


def solve(
    sources: Sequence[Profile],
    targets: Sequence[Profile],
    *,
    method: str = DEFAULT_METHOD,
    movement: Movement | None = None,
    storage_noise: float = 0.0,
    together: bool = True,
) -> Solution:
    """Weights that build each target from the sources, and how good they are.

    All sources are used, also those later than a target: a target between two snapshots is far
    better with the later one. A target that is itself a source gets that source with weight 1.

    Args:
        sources: n profiles, no two alike.
        targets: k profiles, none ending later than the last source.
        method: one of ``METHODS``.
        movement: what :func:`calibrate` found in the sources' data; without it, a random walk in
            log time.
        storage_noise: without ``movement``, RMS rounding error of a stored value relative to its
            size.
        together: whether targets share the times at which profiles are evaluated: far faster, and
            the last bits of a target's weights depend on the others.

    Raises:
        InputError: no sources, two that are alike, or weights that float64 can't hold.
        UsageError: an unknown method, no target, one later than the last source, or a profile
            without a density where the method needs one.
    """
    _check(sources, targets, method)
    groups = [targets] if together else [[target] for target in targets]
    found = [_solved(sources, group, method, movement, storage_noise) for group in groups]
    return Solution(
        np.hstack([one.weights for one in found]),
        tuple(figures for one in found for figures in one.figures),
        found[0].movement,
    )


def _solved(
    sources: Sequence[Profile],
    targets: Sequence[Profile],
    method: str,
    movement: Movement | None,
    storage_noise: float,
) -> Solution:
    """The solution of targets that share the times at which profiles are evaluated."""
    beside = neighbours(targets)
    k = len(targets)
    system = evaluate(sources, [*targets, *(p for p in beside if p is not None)])
    if movement is None:
        movement = nominal(system, storage_noise)
    parts = split(system, movement.intensity(system))
    a, b, rest = movement.rows(system, parts)
    noise = movement.noise(parts, len(sources))
    if method == "blue":
        raw = estimate(a, b[:, :k], noise)
    else:
        root = np.sqrt(system.weights)[:, None]
        p_sources, p_targets = root * system.source_density, root * system.target_density[:, :k]
        raw = estimate(p_sources, p_targets, sum_to_one=False)
    raw = _exact(raw, sources, targets)
    x = normalized(raw) if method == "normalized" else raw
    if not np.isfinite(x).all():
        raise InputError(
            "no finite weights solve this; are times or values of the snapshots extreme?",
            remedy="see phema inspect -v, or pass --no-sample",
        )
    missed = square_error(x, a, b[:, :k], noise, movement.mean_square)
    error = np.sqrt(missed + rest[:k])
    shift = iter(range(k, b.shape[1]))
    steps = [
        None if p is None else float(np.linalg.norm(b[:, j] - b[:, next(shift)]))
        for j, p in enumerate(beside)
    ]
    return Solution(x, _figures(system, movement, targets, raw, x, error, steps), movement)


def _figures(
    system: System,
    movement: Movement,
    targets: Sequence[Profile],
    raw: Array,
    x: Array,
    error: Array,
    steps: Sequence[float | None],
) -> tuple[Figures, ...]:
    """Figures of each target.

    Args:
        system: sources and targets.
        movement: what the errors are relative to.
        targets: k profiles.
        raw: (n, k) weights before any normalisation.
        x: (n, k) weights.
        error: (k,) expected RMS error per parameter.
        steps: RMS distance from each target to that of 1.01 sigma_rel.
    """
    distance = averaging_distance(system, movement)
    miss = profile_errors(system, x)
    dense = not system.points[: len(x)].any()
    return tuple(
        Figures(
            expected_error=ratio(float(error[j]), float(distance[j])),
            expected_rms=float(error[j]) if movement.measured else None,
            sigma_error=None if step is None else ratio(float(error[j]), step),
            profile_error=float(miss[j]) if dense and targets[j].square_integrable else None,
            weight_sum=float(raw[:, j].sum()),
            noise_gain=float(np.linalg.norm(x[:, j])),
        )
        for j, step in enumerate(steps)
    )


def _check(sources: Sequence[Profile], targets: Sequence[Profile], method: str) -> None:
    """Refuse what has no answer."""
    if method not in METHODS:
        raise UsageError(f"no method {method!r}", remedy=f"one of {', '.join(METHODS)}")
    if not sources:
        raise InputError("no snapshots to build a target from")
    _check_distinct(sources)
    if not targets:
        raise UsageError("no target given", remedy="pass --gamma, --sigma-rel or --profile")
    last = max(s.end for s in sources)
    for target in targets:
        if target.end > last:
            raise UsageError(
                f"target step {target.end:.12g} is later than the last snapshot's, {last:.12g}",
                remedy=f"pass a --step of at most {last:.12g}",
            )
    for profile in (*sources, *targets):
        if method != "blue" and not profile.square_integrable:
            raise UsageError(
                f"method {method} has no place for {profile.label} weights",
                remedy="pass --method blue",
            )


def _check_distinct(sources: Sequence[Profile]) -> None:
    """Refuse two snapshots of one profile."""
    ordered = sorted(sources, key=lambda s: (type(s).__name__, s.end, s.exponent))
    for a, b in pairwise(ordered):
        # Exponents that float64 densities can't tell apart make the system singular.
        near = isinstance(a, PowerProfile) and b.exponent - a.exponent < SAME_GAMMA * (
            b.exponent + 1
        )
        if type(a) is type(b) and a.end == b.end and (near or a == b):
            raise InputError(
                f"two snapshots of {a.label} at step {a.end:g}", remedy="leave one out: --exclude"
            )


def _exact(x: Array, sources: Sequence[Profile], targets: Sequence[Profile]) -> Array:
    """Put weight 1 on the source that a target is, and 0 on the others, free of rounding."""
    where = {s: i for i, s in enumerate(sources)}
    for k, target in enumerate(targets):
        i = where.get(target)
        if i is not None:
            x[:, k] = 0.0
            x[i, k] = 1.0
    return x
