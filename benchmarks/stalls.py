"""How far averages are off that are kept in 16 bits, and how often phema notices.

Averages of real training runs, updated at every step in float16 or bfloat16, beside the same in
float64 that are rounded when they are stored. Writes a section of ``docs/fidelity.md``:

    python -m benchmarks.stalls
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
from numpy.typing import NDArray

from benchmarks.evidence_runs import rounded
from benchmarks.fidelity_cases import STORED
from benchmarks.measuring import WIDTH, publish
from benchmarks.training import RUNS, STEPS, Run, train
from phema_cli.profiles import ExponentialProfile, PowerProfile
from phema_cli.solver.evidence import series_of
from phema_cli.solver.evidence.stalls import STANDING, find_stalled

TYPES = ("fp16", "bf16")
#: steps in which an average forgets to 1/e; 0 is the mean of all steps.
LENGTHS = (100, 300, 1000, 3000, 0)
COUNTS = (4, 8, 16, 64)
_ELEMENTS = 3000


@dataclass(frozen=True, slots=True)
class Case:
    """One average's snapshots.

    Attributes:
        count: how many.
        kept: whether it was kept in the type, and not only stored.
        noticed: whether phema takes it for one that was.
        error: how far the last is off, over the distance of the true one from the weights.
    """

    count: int
    kept: bool
    noticed: bool
    error: float


def _averages(raw: NDArray[np.float64], dtype: torch.dtype, length: int) -> NDArray[np.float64]:
    """(n, e) the average at ``max(COUNTS)`` even times, updated in a type at every step."""
    weights = torch.from_numpy(raw).to(dtype)
    average, kept = weights[0].clone(), []
    for step, now in enumerate(weights, start=1):
        average.lerp_(now, 1 - math.exp(-1 / length) if length else 1 / step)
        if step % (STEPS // max(COUNTS)) == 0:
            kept.append(average.double().numpy().copy())
    return np.stack(kept)


def _cases(run: Run) -> list[Case]:
    """All of a run."""
    torch.set_num_threads(1)
    raw = train(run, [], snapshots=STEPS, elements=_ELEMENTS).raw
    found = []
    for length in LENGTHS:
        true = _averages(raw, torch.float64, length)
        for stored in TYPES:
            stalled = _averages(raw, STORED[stored][0], length)
            for kept in (False, True):
                values = stalled if kept else true
                away = np.linalg.norm(values[-1] - true[-1]) / np.linalg.norm(true[-1] - raw[-1])
                check = partial(_noticed, values, stored, length)
                found += [Case(count, kept, check(count), float(away)) for count in COUNTS]
    return found


def _noticed(values: NDArray[np.float64], stored: str, length: int, count: int) -> bool:
    """Whether so many snapshots are noticed."""
    every = max(COUNTS) // count
    times = np.arange(1, max(COUNTS) + 1)[every - 1 :: every] * (STEPS / max(COUNTS))
    profiles = [ExponentialProfile(1 / length, t) if length else PowerProfile(0, t) for t in times]
    return bool(find_stalled(series_of(profiles), rounded(values[every - 1 :: every], stored)))


def measure(jobs: int) -> list[Case]:
    """All cases."""
    with ProcessPoolExecutor(jobs) as pool:
        return [case for cases in pool.map(_cases, RUNS) for case in cases]


_TEXT = """\
Averages of {lengths} steps, and the mean of all, updated at each of {steps:,} steps in float16 or
bfloat16, of {runs} runs. Updates smaller than half a unit are lost, so that many elements stand
still: in the median an average is off by {median:.1f} times the distance that averaging moves the
weights, in 95 % of the cases by more than {least:.2f}. The same averages in float64, rounded when
they are stored, are right. phema counts the elements that stand still between two snapshots and
those that move by up to one unit, of those that have just moved by so many that the average is not
there yet, and will move again: {standing:g} times as many that stand still are an error. It looks
at no average shorter than a quarter of the time between snapshots, which comes to stand where
weights do. `python -m benchmarks.stalls` measures it."""


def section(found: list[Case]) -> str:
    """The text and the table."""
    return (
        "\n\n".join(["## Averages kept in 16 bits", _text(found), "\n".join(_table(found))]) + "\n"
    )


def _text(found: list[Case]) -> str:
    errors = [c.error for c in found if c.kept and c.count == max(COUNTS)]
    text = _TEXT.format(
        lengths=", ".join(str(n) for n in LENGTHS if n),
        steps=STEPS,
        runs=len(RUNS),
        median=np.median(errors),
        least=np.percentile(errors, 5),
        standing=STANDING,
    )
    return fill(text, WIDTH)


def _table(found: list[Case]) -> Iterator[str]:
    """What is noticed, by number of snapshots."""
    yield "| snapshots | stored in 16 bits | errors | kept in 16 bits | errors | (%) |"
    yield "| ---: |" + " ---: |" * 5
    for count in COUNTS:
        right = [c.noticed for c in found if c.count == count and not c.kept]
        wrong = [c.noticed for c in found if c.count == count and c.kept]
        yield (
            f"| {count} | {len(right)} | {sum(right)} | {len(wrong)} | {sum(wrong)} | "
            f"{100 * np.mean(wrong):.1f} |"
        )


def main() -> None:
    """Measure, and write the section."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time")
    publish(section(measure(parser.parse_args().jobs)), "fidelity.md")


if __name__ == "__main__":
    main()
