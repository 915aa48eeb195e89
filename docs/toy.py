"""Draws docs/toy.svg: a noisy parameter, two tracked averages, a target, its reconstruction."""

from __future__ import annotations

import sys
from pathlib import Path

import matplotlib as mpl
import numpy as np

from phema_cli.profiles import PowerProfile
from phema_cli.solver import Sample, calibrate, solve

mpl.use("svg")
mpl.rcParams.update({"svg.hashsalt": "phema", "font.size": 10})

STEPS, STORED, TRACKED, TARGET = 800, range(100, 801, 100), (5.0, 16.0), 2.0
COPIES = 2000


def trajectories() -> np.ndarray:
    """(steps, copies): parameters that settle under noise; the first one is drawn."""
    random = np.random.default_rng(3)
    theta = np.zeros((STEPS, COPIES))
    now, goal = np.zeros(COPIES), random.standard_normal(COPIES)
    goal[0] = 1.3
    for t in range(STEPS):
        rate = 0.02 * (1 - t / STEPS) + 0.002
        now = now + rate * (goal - now) + 0.6 * rate**0.5 * 0.3 * random.standard_normal(COPIES)
        theta[t] = now
    return theta


def average(theta: np.ndarray, gamma: float) -> np.ndarray:
    """The EMA of ``gamma`` after every step."""
    out = np.empty_like(theta)
    for t in range(1, len(theta) + 1):
        beta = (1 - 1 / t) ** (gamma + 1)
        out[t - 1] = theta[0] if t == 1 else beta * out[t - 2] + (1 - beta) * theta[t - 1]
    return out


def main() -> None:
    """Draw."""
    from matplotlib import pyplot as plt

    theta = trajectories()
    tracked = {g: average(theta, g) for g in TRACKED}
    truth = average(theta, TARGET)[:, 0]
    sources = [PowerProfile(g, float(t)) for t in STORED for g in TRACKED]
    values = np.array([tracked[g][t - 1] for t in STORED for g in TRACKED])
    sample = Sample(values, np.full(COPIES, 1e-12))
    times = np.arange(20, STEPS + 1, 4)
    targets = [PowerProfile(TARGET, float(t)) for t in times]
    made = {
        "projection": solve(sources, targets, method="projection").weights.T @ values[:, 0],
        "blue": solve(sources, targets, movement=calibrate(sources, sample)).weights.T
        @ values[:, 0],
    }
    figure, (top, bottom) = plt.subplots(
        2, 1, figsize=(8, 5.6), height_ratios=(3, 1), sharex=True, layout="constrained"
    )
    steps = np.arange(1, STEPS + 1)
    top.plot(steps, theta[:, 0], color="0.8", linewidth=0.7, label="the parameter")
    for gamma, colour in zip(TRACKED, ("#d08700", "#0b6e99"), strict=True):
        top.plot(steps, tracked[gamma][:, 0], color=colour, linewidth=1)
        at = np.array(STORED)
        label = f"gamma {gamma:g}, tracked and stored"
        top.plot(at, tracked[gamma][at - 1, 0], "o", color=colour, markersize=5, label=label)
    top.plot(steps, truth, color="black", linewidth=1.4, label=f"gamma {TARGET:g}, the target")
    top.plot(times, made["blue"], "--", color="#d3006c", linewidth=1.8, label="its reconstruction")
    top.legend(frameon=False, loc="lower right")
    top.set(ylabel="value", xlim=(0, STEPS + 8))
    bottom.axhline(0, color="0.8", linewidth=0.8)
    for method, colour in (("projection", "0.5"), ("blue", "#d3006c")):
        left = made[method] - truth[times - 1]
        bottom.plot(times, left, color=colour, linewidth=1.2, label=method)
    bottom.set(xlabel="step", ylabel="error", ylim=(-0.06, 0.06))
    bottom.legend(frameon=False, loc="upper right", ncols=2)
    path = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).with_name("toy.svg")
    figure.savefig(path, metadata={"Date": None})


if __name__ == "__main__":
    main()
