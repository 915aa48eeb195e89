"""What is lost where averages are updated at every N-th step, and how well that is foretold.

Exponential averages of two lengths, updated after every N-th step of real training runs, make
power functions of every step. Writes a section of ``docs/fidelity.md``:

    python -m benchmarks.sparse
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from textwrap import fill

import numpy as np
import torch

from benchmarks.fidelity_cases import units_of
from benchmarks.measuring import WIDTH, publish
from benchmarks.training import MOST_SNAPSHOTS, RUNS, STEPS, Run, Tracked, train
from phema_cli.profiles import PowerProfile, gamma_from_sigma_rel, parse_law
from phema_cli.solver import Sample, calibrate, solve

SIGMA_RELS = (0.03, 0.05, 0.08, 0.12, 0.20)
STRIDES = (1, 2, 4, 8, 16, 32, 64)
#: steps in which a stored average forgets to 1/e.
LENGTHS = (150.0, 400.0)
COUNTS = (16, 64)
_ELEMENTS = 3000
#: whose weights are not rounded themselves.
_RUNS = [run for run in RUNS if run.weights != "bfloat16"]


@dataclass(frozen=True, slots=True)
class Case:
    """One target of one set of snapshots.

    Attributes:
        stride: steps between two updates.
        error: true RMS error over the RMS distance that averaging moves the final weights.
        expected: the same as it was foretold.
    """

    stride: int
    error: float
    expected: float


def _decay(step: int, stride: int, length: float) -> float:
    return 1.0 if step % stride else math.exp(-stride / length)


def _cases(run: Run) -> list[Case]:
    """All of a run."""
    torch.set_num_threads(1)
    others = {
        f"{stride} {length}": partial(_decay, stride=stride, length=length)
        for stride in STRIDES
        for length in LENGTHS
    }
    targets = [(STEPS, gamma_from_sigma_rel(s)) for s in SIGMA_RELS]
    tracked = train(run, targets, others=others, elements=_ELEMENTS)
    return [c for n in STRIDES for count in COUNTS for c in _of_snapshots(tracked, n, count)]


def _of_snapshots(tracked: Tracked, stride: int, count: int) -> Iterator[Case]:
    """Those of one spacing of updates and number of snapshots of each average."""
    every = MOST_SNAPSHOTS // count
    values, profiles = [], []
    for length in LENGTHS:
        law = parse_law(f"exponential:beta={math.exp(-stride / length)!r},every={stride}")
        for i in range(every - 1, MOST_SNAPSHOTS, every):
            values.append(tracked.others[f"{stride} {length}"][i].astype(np.float32))
            profiles.append(law.profile(float(tracked.steps[i])))
    rows = np.stack(values)
    sample = Sample(rows, units_of(rows[-1], "fp32"))
    targets = [PowerProfile(gamma, float(STEPS)) for _, gamma in tracked.truth]
    solution = solve(profiles, targets, movement=calibrate(profiles, sample))
    for truth, x, figures in zip(
        tracked.truth.values(), solution.weights.T, solution.figures, strict=True
    ):
        missed = np.linalg.norm(x @ rows - truth)
        moved = np.linalg.norm(truth - tracked.raw[-1])
        yield Case(stride, float(missed / moved), figures.expected_error)


def measure(jobs: int) -> list[Case]:
    """All cases of the runs whose weights are float32."""
    with ProcessPoolExecutor(jobs) as pool:
        return [case for cases in pool.map(_cases, _RUNS) for case in cases]


_TEXT = """\
Exponential averages of {lengths} steps, updated after every N-th of {steps:,} steps, make power
functions of every step: {counts} snapshots of each in float32, {runs} runs, sigma_rel {low} to
{high}. What weights do between two updates is in no snapshot; phema counts it as the walk at random
that it takes the weights for. Real weights glide over a few steps, so that where N is small it
expects more than is lost. The true error is a share of what averaging moves. The last columns have
the expected error over the true one, in 90 % of the cases, and how often it is below half of it.
`python -m benchmarks.sparse` measures it."""


def section(found: list[Case]) -> str:
    """The text and the table."""
    text = _TEXT.format(
        lengths=" and ".join(f"{n:g}" for n in LENGTHS),
        steps=STEPS,
        counts=" and ".join(map(str, COUNTS)),
        runs=len(_RUNS),
        low=SIGMA_RELS[0],
        high=SIGMA_RELS[-1],
    )
    head = "| N | cases | true error, median | 95 % | expected / true | below half (%) |"
    lines = [head, "| ---: |" + " ---: |" * (head.count("|") - 2)]
    for stride in STRIDES:
        cases = [c for c in found if c.stride == stride]
        errors = np.array([c.error for c in cases])
        ratios = np.array([c.expected for c in cases]) / errors
        low, high = np.percentile(ratios, [5, 95])
        middle, most = np.percentile(errors, [50, 95])
        lines.append(
            f"| {stride} | {len(cases)} | {middle:.1e} | {most:.1e} | {low:.2f} to {high:.2f} | "
            f"{100 * np.mean(ratios < 0.5):.1f} |"
        )
    heading = "## Averages that are not updated at every step"
    return "\n\n".join([heading, fill(text, WIDTH), "\n".join(lines)]) + "\n"


def main() -> None:
    """Measure, and write the section."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time")
    publish(section(measure(parser.parse_args().jobs)), "fidelity.md")


if __name__ == "__main__":
    main()
