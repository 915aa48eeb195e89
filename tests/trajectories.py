"""Recorded trajectories of several kinds, and what a decayed learning rate makes of their updates.

Every one is (steps + 1, elements) float64: the weights before training, then those after each step.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import numpy as np
from numpy.typing import NDArray

STEPS, WINDOW, ELEMENTS = 2000, 400, 300
Values = NDArray[np.float64]

#: the integral of F from 0 to u, in closed form: F is the share of the learning rate that is gone.
_LOST: dict[str, Callable[[Values], Values]] = {
    "linear": lambda u: u**2 / 2,
    "cosine": lambda u: u / 2 - np.sin(np.pi * u) / (2 * np.pi),
    "sqrt": lambda u: 2 / 3 * u**1.5,
}
SHAPES = tuple(_LOST)


def shares(shape: str, window: int) -> Values:
    """(window,) what the schedule leaves of the learning rate, on average over each step."""
    left: Values = 1 - window * np.diff(_LOST[shape](np.arange(window + 1) / window))
    return left


def decayed_sum(path: Values, shape: str, window: int) -> Values:
    """The weights before the window, and each update after that times its share."""
    updates = np.diff(path[-window - 1 :], axis=0)
    led: Values = path[-window - 1] + shares(shape, window) @ updates
    return led


def _driven(noise: Values, keep: float) -> Values:
    """What remembers its last value by ``keep`` and is pushed by the noise."""
    rows, now = np.empty_like(noise), np.zeros(noise.shape[1])
    for i, push in enumerate(noise):
        now = keep * now + push
        rows[i] = now
    return rows


@cache
def trajectories() -> dict[str, Values]:
    """From noise alone to a glide: what real weights do lies between."""
    random = np.random.default_rng(0)
    noise = random.standard_normal((STEPS, ELEMENTS))
    trend = random.standard_normal(ELEMENTS) * np.linspace(0, 20, STEPS)[:, None]
    slow = 0.05 * random.standard_normal((STEPS, ELEMENTS)).cumsum(axis=0) + trend
    glide = random.standard_normal(ELEMENTS) * np.sqrt(np.arange(1, STEPS + 1))[:, None]
    found = {
        "walk": noise.cumsum(axis=0),
        "momentum": _driven(noise, 0.95).cumsum(axis=0),
        "jitter": slow + _driven(noise, 0.8),
        "pulled back": _driven(noise, 0.99),
        "glide": glide + 0.02 * noise.cumsum(axis=0),
    }
    return {name: np.vstack([np.zeros(ELEMENTS), path]) for name, path in found.items()}
