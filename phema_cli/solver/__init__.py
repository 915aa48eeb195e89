"""From the profiles of the snapshots to the weights of a target: pure numpy, float64, no files."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from phema_cli.errors import InputError, UsageError
from phema_cli.profiles import Array, PowerProfile
from phema_cli.solver.diagnostics import Figures, averaging_distance, sigma_step, walk_error
from phema_cli.solver.projection import normalized, projection
from phema_cli.solver.quadrature import nodes

#: what each method makes of the projection's weights.
METHODS: dict[str, Callable[[Array], Array]] = {
    "normalized": normalized,
    "projection": np.copy,
}
DEFAULT_METHOD = "normalized"
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
    """

    weights: Array
    figures: tuple[Figures, ...]


def storage_noise(mantissa_bits: int) -> float:
    """RMS rounding error of a value stored with that many mantissa bits, relative to the value."""
    return float(ROUNDING_UNIT * 2.0**-mantissa_bits)


def solve(
    sources: Sequence[PowerProfile],
    targets: Sequence[PowerProfile],
    *,
    method: str = DEFAULT_METHOD,
    storage_noise: float = 0.0,
) -> Solution:
    """Weights that build each target from the sources, and how good they are.

    All sources are used, also those later than a target: a target between two snapshots is far
    better with the later one. A target that is itself a source gets that source with weight 1.

    Args:
        sources: n profiles, no two alike.
        targets: k profiles, none ending later than the last source.
        method: a key of ``METHODS``.
        storage_noise: RMS rounding error of a stored value relative to its size.

    Raises:
        InputError: no sources, or two that are alike.
        UsageError: an unknown method, no target, or one later than the last source.
    """
    _check(sources, targets, method)
    last = max(s.end for s in sources)
    # Only ratios of times matter, and densities in units of the last time don't overflow.
    unit = [PowerProfile(s.gamma, s.end / last) for s in sources]
    goals = [PowerProfile(t.gamma, t.end / last) for t in targets]
    everything = [*unit, *goals]
    t, w = nodes(
        np.unique([p.end for p in everything]),
        min(p.gamma for p in everything),
        max(p.gamma for p in everything),
    )
    root = np.sqrt(w)[:, None]
    p_sources = root * np.column_stack([p.density(t) for p in unit])
    p_targets = root * np.column_stack([p.density(t) for p in goals])
    raw = _exact(projection(p_sources, p_targets), sources, targets)
    x = METHODS[method](raw)

    f_residual = np.column_stack([p.cdf(t) for p in goals])
    f_residual -= np.column_stack([p.cdf(t) for p in unit]) @ x
    error = walk_error(f_residual, w / t, x, storage_noise)
    miss = np.linalg.norm(p_targets - p_sources @ x, axis=0) / np.linalg.norm(p_targets, axis=0)
    figures = []
    for k, target in enumerate(targets):
        step = sigma_step(target)
        figures.append(
            Figures(
                expected_error=float(error[k] / averaging_distance(target.gamma)),
                sigma_error=None if step is None else float(error[k] / step),
                profile_error=float(miss[k]),
                weight_sum=float(raw[:, k].sum()),
                noise_gain=float(np.linalg.norm(x[:, k])),
            )
        )
    return Solution(x, tuple(figures))


def _check(sources: Sequence[PowerProfile], targets: Sequence[PowerProfile], method: str) -> None:
    """Refuse what has no answer."""
    if method not in METHODS:
        raise UsageError(f"no method {method!r}", remedy=f"one of {', '.join(METHODS)}")
    if not sources:
        raise InputError("no snapshots to build a target from")
    for a, b in pairwise(sorted(sources, key=lambda s: (s.gamma, s.end))):
        # Exponents that float64 densities can't tell apart make the system singular.
        if b.gamma - a.gamma < SAME_GAMMA * (b.gamma + 1) and a.end == b.end:
            raise InputError(f"two snapshots of gamma {a.gamma:g} at step {a.end:g}")
    if not targets:
        raise UsageError("no target given", remedy="pass --gamma or --sigma-rel")
    last = max(s.end for s in sources)
    for target in targets:
        if target.end > last:
            raise UsageError(
                f"target step {target.end:.12g} is later than the last snapshot's, {last:.12g}",
                remedy=f"pass a --step of at most {last:.12g}",
            )


def _exact(x: Array, sources: Sequence[PowerProfile], targets: Sequence[PowerProfile]) -> Array:
    """Put weight 1 on the source that a target is, and 0 on the others, free of rounding."""
    where = {(s.gamma, s.end): i for i, s in enumerate(sources)}
    for k, target in enumerate(targets):
        i = where.get((target.gamma, target.end))
        if i is not None:
            x[:, k] = 0.0
            x[i, k] = 1.0
    return x
