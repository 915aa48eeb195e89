"""The weights of every target and the figures that say how good they are.

:func:`solve` is the whole way; docs/maths.md derives J and its minimiser, and defines the figures.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Literal

import numpy as np

from phema_cli.errors import InputError, UsageError
from phema_cli.profiles import (
    SIGMA_REL_LIMIT,
    Array,
    PowerProfile,
    Profile,
    gamma_from_sigma_rel,
    stored_at,
)
from phema_cli.request import DEFAULT_METHOD
from phema_cli.solver.least_squares import minimise
from phema_cli.solver.movement import Movement, nominal
from phema_cli.solver.system import System, evaluate, selected

#: the best linear unbiased estimator; the projection divided by its sum; the paper's projection.
METHODS = ("blue", "normalized", "projection")
#: relative difference of gamma + 1 up to which two gammas are one.
SAME_GAMMA = 1e-12

#: RMS rounding error relative to the value, times 2^(stored mantissa bits): measured 2.1e-4 for
#: 10 bits, 1.66e-3 for 7, 2.5e-8 for 23.
ROUNDING_UNIT = 0.215
#: mantissa bits of float16.
_FLOAT16_BITS = 10
#: sigma_error in per cent up to which a target is called good, and fair.
GOOD, FAIR = 1.0, 10.0
#: rounding_error up to which it is good whatever its sigma_error, and above which it is never good:
#: docs/fidelity.md has what they do to the loss.
HARMLESS, SEEN = 1.0, 3.0
#: share of the square error from which on it is mostly of a time.
_MOSTLY = 0.5
#: how far a sum of weights may lie from one and still be rounding.
SUM_ROUNDING = 1e-9

Verdict = Literal["good", "fair", "poor", "exact"]


@dataclass(frozen=True, slots=True)
class Figures:
    """How well a target is met.

    Attributes:
        expected_error: expected RMS error over the RMS distance by which averaging moves the
            final weights (no unit).
        expected_rms: expected RMS error per parameter, in the parameters' own unit; None without a
            look at the data.
        sigma_error: the expected error as the per cent by which sigma_rel would have to be off to
            do the same harm; None for a target that has no sigma_rel near it.
        profile_error: relative L2 distance of the achieved profile from the target's (the paper's
            measure); None where a profile's density has no square integral.
        weight_sum: sum of the weights before any normalisation.
        noise_gain: 2-norm of the weights.
        rounding_error: the expected RMS error over that of rounding the weights to float16; None
            without a look at the data, and where it would be small, but the error is mostly of the
            time before the first snapshot, in which nobody knows how far the weights moved.
    """

    expected_error: float
    expected_rms: float | None
    sigma_error: float | None
    profile_error: float | None
    weight_sum: float
    noise_gain: float
    rounding_error: float | None = None

    def __repr__(self) -> str:
        """``<Figures good: expected_error 5.6e-05, sigma_error 0.0062 %>``."""
        sigma = "" if self.sigma_error is None else f", sigma_error {self.sigma_error:.2g} %"
        return f"<Figures {self.verdict}: expected_error {self.expected_error:.2g}{sigma}>"

    @property
    def verdict(self) -> Verdict:
        """``good``, ``fair`` or ``poor``.

        What rounding to float16 would do as well is good, whatever its share of a short distance.
        Else sigma_error counts (expected_error without one), as far as rounding_error is not
        against it.
        """
        per_cent = 100 * self.expected_error if self.sigma_error is None else self.sigma_error
        if self.rounding_error is None:
            harm = per_cent
        elif self.rounding_error <= SEEN:
            harm = GOOD if self.rounding_error <= HARMLESS else min(per_cent, FAIR)
        else:
            harm = max(per_cent, FAIR)
        if harm <= GOOD:
            return "good"
        return "fair" if harm <= FAIR else "poor"

    @property
    def moved(self) -> float | None:
        """How far averaging moves the final weights, over the RMS error of rounding to float16."""
        if self.rounding_error is None or not 0 < self.expected_error < math.inf:
            return None
        return self.rounding_error / self.expected_error


@dataclass(frozen=True, slots=True)
class ExactFigures(Figures):
    """Of a combination of snapshots that was asked for as it is: nothing is estimated."""

    @property
    def verdict(self) -> Verdict:
        """``exact``."""
        return "exact"


def exact_figures(weights: Array) -> Figures:
    """The figures of given weights, (n,)."""
    total, gain = float(weights.sum()), float(np.linalg.norm(weights))
    return ExactFigures(0.0, None, None, None, total, gain)


@dataclass(frozen=True, slots=True)
class Solution:
    """The weights of every target of a call.

    Attributes:
        weights: (n sources, k targets) float64.
        figures: one per target.
        movement: how the weights moved during training, as the figures take it; None where no
            target was solved for.
    """

    weights: Array
    figures: tuple[Figures, ...]
    movement: Movement | None = None

    def __repr__(self) -> str:
        """``<Solution of 40 sources for 3 targets: 2 good, 1 fair>``."""
        sources, targets = self.weights.shape
        counts = Counter(f.verdict for f in self.figures)
        verdicts = ", ".join(f"{n} {verdict}" for verdict, n in counts.items())
        return (
            f"<Solution of {sources} source{'' if sources == 1 else 's'} "
            f"for {targets} target{'' if targets == 1 else 's'}: {verdicts}>"
        )


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

    Sources later than a target are used too: a target between two snapshots is far better with the
    later one. A target that is itself a source gets that source with weight 1. Of more than 1,024
    sources a target gets some: early ones, those around its end, and others at even distances.

    Args:
        sources: n profiles, no two alike.
        targets: k profiles, none ending later than the last source was stored.
        method: one of ``METHODS``.
        movement: what :func:`calibrate` finds in the sources' data; without it, a random walk in
            log time.
        storage_noise: without ``movement``, RMS rounding error of a stored value relative to its
            size.
        together: whether targets share the times at which profiles are evaluated, and the selected
            sources: far faster, and a target's weights depend on the others.

    Raises:
        InputError: no sources, two that are alike, or weights that float64 can't hold.
        UsageError: an unknown method, no target, one later than the last source, or a profile
            whose density has no square integral where the method needs one.
    """
    _check(sources, targets, method)
    groups = [targets] if together else [[target] for target in targets]
    ends = np.array([s.end for s in sources])
    solutions = []
    for group in groups:
        rows = selected(ends, max(t.end for t in group))
        moved = None if movement is None else movement.of(rows)
        some = _solve_together([sources[i] for i in rows], group, method, moved, storage_noise)
        weights: Array = np.zeros((len(sources), len(group)))
        weights[rows] = some.weights
        solutions.append(replace(some, weights=weights))
    return Solution(
        np.hstack([one.weights for one in solutions]),
        tuple(figures for one in solutions for figures in one.figures),
        solutions[0].movement,
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
    last = max(max(s.end, stored_at(s)) for s in sources)
    for target in targets:
        if target.end > last:
            raise UsageError(
                f"target step {target.end:.12g} is later than the last snapshot's, {last:.12g}",
                remedy=f"pass a --step of at most {last:.12g}",
            )
    for profile in (*sources, *targets):
        if method != "blue" and not profile.square_integrable:
            raise UsageError(
                f"method {method} can't use {profile.label} weights, whose density has no square "
                "integral",
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


def _solve_together(
    sources: Sequence[Profile],
    targets: Sequence[Profile],
    method: str,
    movement: Movement | None,
    storage_noise: float,
) -> Solution:
    """The solution of targets that share the times at which profiles are evaluated."""
    k = len(targets)
    near = {j: p for j, p in enumerate(map(neighbour, targets)) if p is not None}
    system = evaluate(sources, [*targets, *near.values()])
    if movement is None:
        movement = nominal(system, storage_noise)
    a, both, noise, rest = movement.problem(system)
    b, shifted = both[:, :k], both[:, k:]
    if method == "blue":
        raw = minimise(a, b, noise)
    else:
        root = np.sqrt(system.weights)[:, None]
        densities = root * system.target_density[:, :k]
        raw = minimise(root * system.source_density, densities, sum_to_one=False)
    # A target that is a source is that source, free of rounding.
    place = {source: i for i, source in enumerate(sources)}
    for j, target in enumerate(targets):
        if target in place:
            raw[:, j] = 0.0
            raw[place[target], j] = 1.0
    x: Array = raw / raw.sum(axis=0) if method == "normalized" else raw
    if not np.isfinite(x).all():
        raise InputError(
            "the weights are not finite: times or values of the snapshots may be extreme",
            remedy="look at them with phema inspect -v, or pass --no-sample",
        )
    error = np.sqrt(square_error(x, a, b, noise, movement.mean_square) + rest[:k])
    steps = {j: float(np.linalg.norm(b[:, j] - shifted[:, i])) for i, j in enumerate(near)}
    return Solution(x, _figures(system, movement, targets, raw, x, error, steps), movement)


def neighbour(target: Profile) -> Profile | None:
    """The target of 1.01 sigma_rel, next to the limit of sigma/1.01; None without a sigma_rel."""
    if not isinstance(target, PowerProfile) or target.gamma < 0:
        return None
    sigma = target.sigma_rel
    other = sigma * 1.01 if sigma * 1.01 < SIGMA_REL_LIMIT else sigma / 1.01
    return PowerProfile(gamma_from_sigma_rel(other), target.end)


def _figures(
    system: System,
    movement: Movement,
    targets: Sequence[Profile],
    raw: Array,
    x: Array,
    error: Array,
    steps: Mapping[int, float],
) -> tuple[Figures, ...]:
    """Figures of each target.

    ``raw`` are the (n, k) weights ``x`` before any normalisation, ``error`` the (k,) expected RMS
    errors per parameter, ``steps`` the RMS distances to the targets of 1.01 sigma_rel, by the
    numbers of those that have one.
    """
    distance = averaging_distance(system, movement)
    root = np.sqrt(system.weights)[:, None]
    wanted = root * system.target_density[:, : len(targets)]
    missed = np.linalg.norm(wanted - root * (system.source_density @ x), axis=0)
    with np.errstate(divide="ignore", invalid="ignore"):
        profile_errors = missed / np.linalg.norm(wanted, axis=0)
    dense = not system.points[: len(x)].any()
    unit = storage_noise(_FLOAT16_BITS) * math.sqrt(movement.mean_square)
    rounding = [_ratio(e, unit) for e in error.tolist()]
    guessed = _before_all(system, movement, x) >= _MOSTLY * error**2
    return tuple(
        Figures(
            expected_error=_ratio(float(error[j]), float(distance[j])),
            expected_rms=float(error[j]) if movement.measured else None,
            sigma_error=_ratio(float(error[j]), steps[j]) if j in steps else None,
            profile_error=(
                float(profile_errors[j]) if dense and targets[j].square_integrable else None
            ),
            weight_sum=float(raw[:, j].sum()),
            noise_gain=float(np.linalg.norm(x[:, j])),
            rounding_error=(
                rounding[j]
                if movement.measured and not (guessed[j] and rounding[j] <= SEEN)
                else None
            ),
        )
        for j in range(len(targets))
    )


def square_error(
    x: Array, sources: Array, targets: Array, noise: Array, mean_square: float
) -> Array:
    """J: expected square error per parameter of each target.

    ``J = |b - A x|^2 + x' N x + (1 - sum x)^2 mean(theta^2)``: the movement between the profiles,
    the rounding of the stored values, and the part of the weights that a sum other than one takes
    away.

    Args:
        x: (n, k) weights.
        sources: (rows, n) A.
        targets: (rows, k) b.
        noise: (n, n) N.
        mean_square: of the weights themselves.

    Returns:
        (k,) float64.
    """
    moved = ((targets - sources @ x) ** 2).sum(axis=0)
    lack = 1 - x.sum(axis=0)
    lack[np.abs(lack) < SUM_ROUNDING] = 0.0
    rounded = np.einsum("ik,ij,jk->k", x, noise, x, optimize=True)
    missing = np.square(lack)
    missing[lack != 0] *= mean_square
    total: Array = moved + np.maximum(rounded, 0.0) + missing
    return total


def averaging_distance(system: System, movement: Movement) -> Array:
    """``sqrt(int q F_r^2 dt)`` up to each target's end: how far averaging moves the final weights.

    Returns:
        (k,) RMS per parameter.
    """
    before = system.times[:, None] < system.target_ends
    w = movement.intensity(system, system.times) * system.weights
    distance: Array = np.sqrt(w @ np.where(before, system.target_cdf, 0.0) ** 2)
    return distance


def _before_all(system: System, movement: Movement, x: Array) -> Array:
    """(k,) the part of J from before the first source, ``int q (F_r - F x)^2 dt``."""
    early = system.times < system.ends[0]
    w = movement.intensity(system, system.times[early]) * system.weights[early]
    missed = system.target_cdf[early, : x.shape[1]] - system.source_cdf[early] @ x
    square: Array = w @ missed**2
    return square


def _ratio(error: float, distance: float) -> float:
    """``error / distance``; nothing is exact where averaging moves nothing, except no error."""
    if error == 0:
        return 0.0
    return error / distance if distance > 0 else math.inf
