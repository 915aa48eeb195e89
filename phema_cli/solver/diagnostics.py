"""Figures that say how good a set of weights is before a tensor is written."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from phema_cli.profiles import SIGMA_REL_LIMIT, Array, PowerProfile, Profile, gamma_from_sigma_rel
from phema_cli.solver.movement import Movement
from phema_cli.solver.system import System

#: sigma_error in per cent up to which a target is called good, and fair.
GOOD, FAIR = 1.0, 10.0
#: how far a sum of weights may lie from one and still be rounding.
SUM_ROUNDING = 1e-9

Verdict = Literal["good", "fair", "poor"]


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
            measure); None where a profile has no density.
        weight_sum: sum of the weights before any normalisation.
        noise_gain: 2-norm of the weights.
    """

    expected_error: float
    expected_rms: float | None
    sigma_error: float | None
    profile_error: float | None
    weight_sum: float
    noise_gain: float

    @property
    def verdict(self) -> Verdict:
        """``good``, ``fair`` or ``poor``, by sigma_error (by expected_error without one)."""
        per_cent = 100 * self.expected_error if self.sigma_error is None else self.sigma_error
        if per_cent <= GOOD:
            return "good"
        return "fair" if per_cent <= FAIR else "poor"


def neighbours(targets: Sequence[Profile]) -> list[Profile | None]:
    """For each target the one of 1.01 sigma_rel, or None where it has no sigma_rel.

    Next to the limit of sigma_rel the step is taken downwards.
    """
    found: list[Profile | None] = []
    for target in targets:
        if isinstance(target, PowerProfile) and target.gamma >= 0:
            sigma = target.sigma_rel
            other = sigma * 1.01 if sigma * 1.01 < SIGMA_REL_LIMIT else sigma / 1.01
            found.append(PowerProfile(gamma_from_sigma_rel(other), target.end))
        else:
            found.append(None)
    return found


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
    missing = np.square(lack, where=lack != 0, out=np.zeros_like(lack))
    missing[lack != 0] *= mean_square
    total: Array = moved + np.maximum(rounded, 0.0) + missing
    return total


def averaging_distance(system: System, movement: Movement) -> Array:
    """``sqrt(int q F_r^2 dt)`` up to each target's end: how far averaging moves the final weights.

    Returns:
        (k,) RMS per parameter.
    """
    before = system.times[:, None] < system.target_ends
    w = movement.intensity(system) * system.weights
    distance: Array = np.sqrt(w @ np.where(before, system.target_cdf, 0.0) ** 2)
    return distance


def profile_errors(system: System, x: Array) -> Array:
    """Relative L2 distances of the achieved densities from those of the first k targets, (k,)."""
    root = np.sqrt(system.weights)[:, None]
    target = root * system.target_density[:, : x.shape[1]]
    norm = np.linalg.norm(target, axis=0)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio: Array = np.linalg.norm(target - root * (system.source_density @ x), axis=0) / norm
    return ratio


def ratio(error: float, distance: float) -> float:
    """``error / distance``; nothing is exact where averaging moves nothing, except no error."""
    if error == 0:
        return 0.0
    return error / distance if distance > 0 else math.inf
