"""A case of the fidelity benchmark, and how its values are stored and averaged."""

from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray

SIGMA_RELS = (0.03, 0.04, 0.06, 0.08, 0.12, 0.16, 0.20, 0.25)
#: storage types: torch's, mantissa bits, exponent of the smallest normal number.
STORED = {
    "fp32": (torch.float32, 23, -126),
    "fp16": (torch.float16, 10, -14),
    "bf16": (torch.bfloat16, 7, -126),
}
#: in place of a pair: no average was stored, only the weights themselves.
RAW = -1


@dataclass(frozen=True, slots=True)
class Case:
    """One target of one set of snapshots.

    Attributes:
        run: the training run.
        pair: index of the pair of gammas stored, or ``RAW``.
        stored: the storage type.
        count: snapshots per gamma.
        sigma_rel: of the target.
        errors: RMS error per parameter by method.
        expected: what ``blue`` foretold.
        distance: RMS distance from the final weights to the target.
        planned: expected errors as a fraction of that distance, by what was known, and
            ``like rms`` and ``inspect rms`` per parameter; empty for ``RAW``.
    """

    run: str
    pair: int
    stored: str
    count: int
    sigma_rel: float
    errors: dict[str, float]
    expected: float
    distance: float = 0.0
    planned: dict[str, float] = field(default_factory=dict)


def rounded_to(values: NDArray[np.float64], stored: str) -> NDArray[np.float32]:
    """Values as that type stores them."""
    rounded: NDArray[np.float32] = torch.from_numpy(values).to(STORED[stored][0]).float().numpy()
    return rounded


def units_of(values: NDArray[np.float32], stored: str) -> NDArray[np.float64]:
    """Units in the last place of stored values."""
    _, mantissa, smallest = STORED[stored]
    exponent = np.where(values == 0, smallest, np.frexp(values)[1] - 1.0)
    units: NDArray[np.float64] = np.exp2(np.maximum(exponent, smallest) - mantissa)
    return units


def rms(values: NDArray[np.float64]) -> float:
    """Root mean square of all elements."""
    return float(np.sqrt((values**2).mean()))


def geometric_mean(values: NDArray[np.float64]) -> float:
    """Geometric mean."""
    return float(np.exp(np.log(values).mean()))
