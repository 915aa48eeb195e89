"""Simulated training runs of known truth: weights after every step, and averages of them."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from phema_cli.profiles import ExponentialProfile, PowerProfile, RawProfile, parse_law
from phema_cli.solver import Sample

STEPS, ELEMENTS = 1024, 600
#: mantissa bits.
STORED = {"float32": 23, "float16": 10, "bfloat16": 7}


def decay(name, step):
    """The decay of an update of the average of a name: ``5``, ``c0.99``, ``w0.999``, ``raw``."""
    if name == "raw":
        return 0.0
    if name[0] == "c":
        return float(name[1:])
    if name[0] == "w":
        return min(float(name[1:]), (1 + step) / (10 + step))
    return (1 - 1 / step) ** (float(name) + 1)


def profile(name, end):
    """The profile of that average."""
    if name == "raw":
        return RawProfile(end)
    if name[0] == "c":
        return ExponentialProfile(-np.log(float(name[1:])), end)
    if name[0] == "w":
        return parse_law(f"warmup:beta={name[1:]},start=1").profile(end)
    return PowerProfile(float(name), end)


def recursion(
    rows: NDArray[np.float64], decay: Callable[[int], float | None]
) -> NDArray[np.float64]:
    """The average after each step by the decay of that; None where it is no update.

    Row 0 is of the time before the first step.
    """
    kept = rows.copy()
    for step in range(1, len(rows)):
        beta, old = decay(step), kept[step - 1]
        kept[step] = old if beta is None else beta * old + (1 - beta) * rows[step]
    return kept


@dataclass(frozen=True)
class Run:
    """A run: its weights after each step, from those that it began with."""

    start: NDArray[np.float64]
    path: NDArray[np.float64]

    def average(self, name, every=1):
        """(steps, elements): what an average held after each step, updated every N-th only."""
        rows = np.vstack([self.start, self.path])
        return recursion(rows, lambda n: None if n % every else decay(name, n))[1:]


def glide(seed=0, noise=1.0):
    """Weights that wander about as in training: slow trends under a rate that falls, and noise."""
    random = np.random.default_rng(seed)
    u = np.arange(1, STEPS + 1)[:, None] / STEPS
    rate = 0.5 * (1 + np.cos(np.pi * u)) + 0.01
    slow = random.standard_normal(ELEMENTS) * (1 - np.exp(-3 * u))
    walk = (rate * random.standard_normal((STEPS, ELEMENTS))).cumsum(axis=0) * STEPS**-0.5
    jitter = 0.01 * noise * rate * random.standard_normal((STEPS, ELEMENTS))
    start = random.standard_normal(ELEMENTS)
    return Run(start, start + slow + 0.3 * noise * walk + jitter)


def rounded(values, stored="float32"):
    """Values with as many bits as a type keeps, and the units of the last snapshot's."""
    fraction, exponent = np.frexp(values)
    bits = STORED[stored] + 1
    units = np.exp2(np.frexp(values[-1])[1] - float(bits))
    return Sample(np.ldexp(np.round(np.ldexp(fraction, bits)), exponent - bits), units)


def times_of(count):
    """So many times, evenly over the run."""
    return np.arange(STEPS // count, STEPS + 1, STEPS // count)


def snapshots(run, names, count, stored="float32", every=1):
    """The sample of averages stored so many times, one series after the other."""
    at = times_of(count)
    kept = [run.average(name, every if name != "raw" else 1)[at - 1] for name in names]
    return rounded(np.concatenate(kept), stored)


def tags(names, count):
    """The profiles of such snapshots under some names."""
    return [profile(name, float(t)) for name in names for t in times_of(count)]
