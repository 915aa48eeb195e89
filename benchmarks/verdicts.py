"""Whether verdicts foretell harm: the loss of synthesized averages beside that of tracked ones.

Of every run of ``benchmarks/training.py``, snapshots of three types and two numbers are made into
targets, and each is evaluated beside the average that was tracked in float64, on the same data.
Writes a section of ``docs/fidelity.md`` (a quarter of an hour on two cores):

    python -m benchmarks.verdicts
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from textwrap import fill

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.fidelity_cases import SIGMA_RELS, STORED, rounded_to, units_of
from benchmarks.measuring import WIDTH, publish
from benchmarks.training import MOST_SNAPSHOTS, PAIRS, RUNS, STEPS, Run, Tracked, loss_of, train
from phema_cli.profiles import PowerProfile, gamma_from_sigma_rel
from phema_cli.solver import Sample, calibrate, solve
from phema_cli.solver.weights import FAIR, GOOD, Figures

COUNTS = (8, 32)
#: the runs that the thresholds were chosen by, by how their names begin.
_CHOSEN_BY = ("mlp", "flow adam")
_SAMPLED = 1 << 20
_VERDICTS = ("good", "fair", "poor")


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
        expected_error: the same, as a fraction of the distance that averaging moves weights.
        rounding_error: over the error of rounding to float16.
    """

    run: str
    stored: str
    count: int
    sigma_rel: float
    harm: float
    sigma_error: float
    expected_error: float
    rounding_error: float

    @property
    def verdict(self) -> int:
        """Place in ``_VERDICTS``."""
        figures = Figures(
            self.expected_error, None, self.sigma_error, None, 1.0, 1.0, self.rounding_error
        )
        return _VERDICTS.index(figures.verdict)

    @property
    def verdict_of_sigma(self) -> int:
        """What it would be by sigma_error alone."""
        return int(self.sigma_error > GOOD) + int(self.sigma_error > FAIR)


def cases(run: Run) -> list[Case]:
    """Every case of a run."""
    torch.set_num_threads(1)
    gammas = [gamma_from_sigma_rel(s) for s in SIGMA_RELS]
    tracked = train(run, [(STEPS, g) for g in gammas])
    losses = [loss_of(run, tracked.truth[STEPS, g]) for g in gammas]
    return list(_cases(run, tracked, gammas, losses))


def _cases(
    run: Run, tracked: Tracked, gammas: Sequence[float], losses: Sequence[float]
) -> Iterator[Case]:
    """The cases of what a run left."""
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
            for sigma_rel, figures, average, loss in zip(
                SIGMA_RELS, solution.figures, made, losses, strict=True
            ):
                yield Case(
                    run.name,
                    stored,
                    count,
                    sigma_rel,
                    abs(loss_of(run, average) - loss) / loss,
                    figures.sigma_error or 0.0,
                    figures.expected_error,
                    math.inf if figures.rounding_error is None else figures.rounding_error,
                )


def measure(jobs: int) -> list[Case]:
    """The cases of all runs."""
    with ProcessPoolExecutor(jobs) as pool:
        return [case for some in pool.map(cases, RUNS) for case in some]


def rank_correlation(a: Sequence[float], b: Sequence[float]) -> float:
    """Spearman's, with the middle rank for what is alike."""
    return float(np.corrcoef(_ranks(a), _ranks(b))[0, 1])


def _ranks(values: Sequence[float]) -> NDArray[np.float64]:
    """Places among all values, from 1."""
    _, place, count = np.unique(np.asarray(values), return_inverse=True, return_counts=True)
    ranks: NDArray[np.float64] = (np.cumsum(count) - (count - 1) / 2)[place]
    return ranks


_TEXT = """\
The loss of a synthesized average beside that of the average tracked in float64, on the same data:
{cases:,} cases of all runs above, with 8 and 32 snapshots a gamma, in float32, float16 and
bfloat16. `rounding_error`, the expected error over that of rounding the weights to float16,
foretells the relative difference of the losses better than `sigma_error` does, above all where
the weights come to rest. So a verdict asks for both: *good* up to a `rounding_error` of 1, or of
3 with a `sigma_error` up to 1 %; *poor* above 3 with a `sigma_error` above 10 %. The thresholds
were chosen by the runs of the first line. Rank correlations (Spearman) with the difference of the
loss:"""


def section(found: Sequence[Case]) -> str:
    """The text and two tables."""
    set_by = [c for c in found if c.run.startswith(_CHOSEN_BY)]
    others = [c for c in found if not c.run.startswith(_CHOSEN_BY)]
    names = ("`sigma_error`", "`rounding_error`", "verdict by `sigma_error`", "verdict")
    lines = ["| runs | cases | " + " | ".join(names) + " |", "| --- |" + " ---: |" * 5]
    for label, some in (
        ("that set the thresholds", set_by),
        ("all others", others),
        ("others, cosine to zero", [c for c in others if "cosine" in c.run]),
    ):
        harm = [c.harm for c in some]
        told = (
            [c.sigma_error for c in some],
            [c.rounding_error for c in some],
            [c.verdict_of_sigma for c in some],
            [c.verdict for c in some],
        )
        ranks = " | ".join(f"{rank_correlation(values, harm):.2f}" for values in told)
        lines.append(f"| {label} | {len(some)} | {ranks} |")
    harms = ["| verdict | cases | median | 90 % below |", "| --- | ---: | ---: | ---: |"]
    for place, verdict in enumerate(_VERDICTS):
        harm = [c.harm for c in others if c.verdict == place]
        if harm:
            low, high = np.percentile(harm, [50, 90])
            harms.append(f"| {verdict} | {len(harm)} | {low:.1e} | {high:.1e} |")
    between = "Relative differences of the loss, of the runs that set no threshold:"
    text = fill(_TEXT.format(cases=len(found)), WIDTH)
    parts = ["## What verdicts are worth", text, "\n".join(lines), between, "\n".join(harms)]
    return "\n\n".join(parts) + "\n"


def main() -> None:
    """Measure, and write the section."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time")
    parser.add_argument("--cases", type=Path, help="keep the cases in this file, or take them")
    given = parser.parse_args()
    if given.cases and given.cases.exists():
        found = [Case(**c) for c in json.loads(given.cases.read_text(encoding="utf-8"))]
    else:
        found = measure(given.jobs)
    if given.cases:
        text = json.dumps([asdict(c) for c in found])
        given.cases.write_text(text, encoding="utf-8")
    publish(section(found), "fidelity.md")


if __name__ == "__main__":
    main()
