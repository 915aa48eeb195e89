"""Whether verdicts foretell harm: the loss of synthesized averages against that of tracked ones.

Of every run of ``benchmarks/training.py``, snapshots of three types and several numbers are made
into targets, and each is evaluated beside the average that was tracked in float64, on the same data.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch

from benchmarks.fidelity import SIGMA_RELS, STORED, rounded_to, units_of
from benchmarks.training import (
    MOST_SNAPSHOTS,
    PAIRS,
    RUNS,
    STEPS,
    Run,
    Tracked,
    loss_of,
    train,
)
from phema_cli.profiles import PowerProfile, gamma_from_sigma_rel
from phema_cli.solver import Sample, calibrate, solve

COUNTS = (8, 32)
_SAMPLED = 1 << 20


@dataclass(frozen=True, slots=True)
class Case:
    """One target of one set of snapshots.

    Attributes:
        run: the training run.
        stored: the storage type.
        count: snapshots per gamma.
        sigma_rel: of the target.
        harm: relative difference of the loss from that of the tracked average.
        sigma_error: foretold, in per cent.
        rounding_ratio: the error foretold over that of rounding.
        verdict: of the figures.
    """

    run: str
    stored: str
    count: int
    sigma_rel: float
    harm: float
    sigma_error: float
    expected_error: float
    expected_rms: float
    rounding: float
    size: float
    verdict: str


def cases(run: Run) -> list[Case]:
    """Every case of a run."""
    torch.set_num_threads(1)
    gammas = [gamma_from_sigma_rel(s) for s in SIGMA_RELS]
    tracked = train(run, [(STEPS, g) for g in gammas])
    truth = np.stack([tracked.truth[STEPS, g] for g in gammas])
    losses = [loss_of(run, weights) for weights in truth]
    return list(_cases(run, tracked, gammas, losses))


def _cases(
    run: Run, tracked: Tracked, gammas: Sequence[float], losses: Sequence[float]
) -> Iterator[Case]:
    targets = [PowerProfile(g, float(STEPS)) for g in gammas]
    for count in COUNTS:
        every = MOST_SNAPSHOTS // count
        chosen = np.arange(every - 1, MOST_SNAPSHOTS, every)
        sources = [PowerProfile(g, float(tracked.steps[i])) for g in PAIRS[0] for i in chosen]
        exact = np.concatenate([tracked.snapshots[g][chosen] for g in PAIRS[0]])
        for stored in STORED:
            values = rounded_to(exact, stored)
            sampled = values[:, :: max(1, values.size // _SAMPLED)]
            movement = calibrate(sources, Sample(sampled, units_of(sampled[count - 1], stored)))
            solution = solve(sources, targets, movement=movement)
            made = solution.weights.T @ values.astype(np.float64)
            for k, figures in enumerate(solution.figures):
                loss = loss_of(run, made[k])
                yield Case(
                    run.name,
                    stored,
                    count,
                    SIGMA_RELS[k],
                    abs(loss - losses[k]) / losses[k],
                    figures.sigma_error or 0.0,
                    figures.expected_error,
                    figures.expected_rms or 0.0,
                    float(np.sqrt(movement.rounding.variance)),
                    float(np.sqrt(movement.mean_square)),
                    figures.verdict,
                )


if __name__ == "__main__":
    began = time.monotonic()
    found: list[Case] = []
    with ProcessPoolExecutor(2) as pool:
        for run, some in zip(RUNS, pool.map(cases, RUNS), strict=True):
            found += some
            print(run.name, round(time.monotonic() - began), flush=True)
            Path("/tmp/verdict_cases.json").write_text(
                json.dumps([asdict(c) for c in found]), encoding="utf-8"
            )
