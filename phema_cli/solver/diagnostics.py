"""Figures that say how good a set of weights is before a tensor is read.

They take the weights during training as a random walk in log time, q(t) = 1/t, and the rounding of
stored values as independent noise of a fixed size relative to that walk.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np

from phema_cli.profiles import SIGMA_REL_LIMIT, Array, PowerProfile, gamma_from_sigma_rel

#: movement of the weights per unit of log time over their RMS value: the ratio at which, among
#: ten measured training runs, the worst case of the noise term lost least.
MOVEMENT_RATIO = 0.3

#: sigma_error in per cent up to which a target is called good, and fair.
GOOD, FAIR = 1.0, 10.0

Verdict = Literal["good", "fair", "poor"]


@dataclass(frozen=True, slots=True)
class Figures:
    """How well a target is met.

    Attributes:
        expected_error: expected RMS error over the RMS distance by which averaging moves the
            final weights (no unit).
        sigma_error: the expected error as the per cent by which sigma_rel would have to be off to
            do the same harm; None for a target that has no sigma_rel near it.
        profile_error: relative L2 distance of the achieved profile from the target's (the paper's
            measure).
        weight_sum: sum of the weights before any normalisation.
        noise_gain: 2-norm of the weights.
    """

    expected_error: float
    sigma_error: float | None
    profile_error: float
    weight_sum: float
    noise_gain: float

    @property
    def verdict(self) -> Verdict:
        """``good``, ``fair`` or ``poor``, by sigma_error (by expected_error without one)."""
        per_cent = 100 * self.expected_error if self.sigma_error is None else self.sigma_error
        if per_cent <= GOOD:
            return "good"
        return "fair" if per_cent <= FAIR else "poor"


def walk_error(residual: Array, log_weight: Array, x: Array, storage_noise: float) -> Array:
    """``sqrt(J)`` in units of the movement per unit of log time, for each target.

    ``J = int (F_r - sum_i x_i F_i)^2 dt/t + ((1 - sum x)/rho)^2 + (eps/rho)^2 |x|^2``: the walk
    between the profiles, the part of the weights that a sum other than one takes away, and the
    rounding of the stored values.

    Args:
        residual: (rows, k) ``F_r - sum_i x_i F_i`` at the nodes.
        log_weight: (rows,) quadrature weights of dt/t.
        x: (n, k) weights.
        storage_noise: eps, RMS rounding error of a stored value relative to its size.

    Returns:
        (k,) float64.
    """
    walk = log_weight @ residual**2
    missing = ((1 - x.sum(axis=0)) / MOVEMENT_RATIO) ** 2
    rounding = (storage_noise / MOVEMENT_RATIO) ** 2 * (x**2).sum(axis=0)
    total: Array = np.sqrt(walk + missing + rounding)
    return total


def averaging_distance(gamma: float) -> float:
    """``sqrt(int_0^T F^2 dt/t)``, the RMS distance of the average from the final weights."""
    return 1 / math.sqrt(2 * (gamma + 1))


def sigma_step(target: PowerProfile) -> float | None:
    """Distance between the targets sigma_rel and 1.01 sigma_rel, in the norm of the walk.

    ``int (F_a - F_b)^2 dt/t = (A-B)^2 / (2 A B (A+B))`` with A = a+1 and B = b+1. Next to the limit
    of sigma_rel the step is taken downwards.
    """
    sigma = target.sigma_rel
    if target.gamma < 0 or sigma >= SIGMA_REL_LIMIT:
        return None
    other = sigma * 1.01 if sigma * 1.01 < SIGMA_REL_LIMIT else sigma / 1.01
    a, b = target.gamma + 1, gamma_from_sigma_rel(other) + 1
    return abs(a - b) / math.sqrt(2 * a * b * (a + b))
