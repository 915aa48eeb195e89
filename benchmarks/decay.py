"""What merged checkpoints are worth beside a learning rate that is really decayed.

Trains small language models (``benchmarks/language_model.py``) at a constant learning rate, and
decays it really over the last fifth as well. Compares what ``--profile decay`` makes of stored
checkpoints, or of two averages, with the published weights of checkpoint merging. Writes
``docs/merging-measured.md`` (ten minutes on two cores):

    python -m benchmarks.decay
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch

from benchmarks.language_model import (
    AVERAGES,
    GAMMAS,
    SHAPES,
    WINDOW,
    Trained,
    Vector,
    train,
    validation_loss,
)
from phema_cli.profiles import PowerProfile, Profile, RawProfile, parse_profile
from phema_cli.solver import Sample, calibrate, solve

PAGE = Path(__file__).parents[1] / "docs" / "merging-measured.md"
TEMPLATE = Path(__file__).with_name("decay_template.md")
STEPS, SEEDS = 3000, 3
Loss = Callable[[Vector], float]
#: checkpoints in the window.
COUNTS = (5, 10, 20)
#: of the elements that the movement is learned from.
_STRIDE = 8
_MEAN_OF = 5
#: how estimates are called in tables.
ALL = "`decay:`, all checkpoints of the run"
WINDOWED = "`decay:`, those in the window alone"
PUBLISHED = "published weights, those in the window"
MEAN = f"plain mean of the last {_MEAN_OF}"
AVERAGED = f"`decay:`, {AVERAGES} snapshots each of gamma {GAMMAS[0]:g} and {GAMMAS[1]:g}"
SUM = "the run's own sum, from every step"
DECAYED = "learning rate really decayed"
LAST = "last weights, not decayed"


@dataclass(frozen=True, slots=True)
class Case:
    """One set of weights that was evaluated.

    Attributes:
        seed: of the run.
        shape: of the decay.
        name: where the weights come from.
        count: checkpoints in the window; 0 where that says nothing.
        loss: validation loss, nats a character.
        error: RMS distance from the run's own sum, over that of the last weights.
        expected: the error that was expected; 0 where none was.
    """

    seed: int
    shape: str
    name: str
    count: int
    loss: float
    error: float
    expected: float = 0.0


def published(shape: str, count: int) -> Vector:
    """The weights of checkpoint merging, oldest first: what the schedule loses up to each.

    The checkpoints are evenly spaced and the last ends the window. For 5 and sqrt they are .447
    .185 .142 .120 .106.
    """
    profile = parse_profile(f"decay:last=1,shape={shape}").ending_at(1.0)
    weights: Vector = np.diff(profile.cdf(np.arange(count + 1) / count))
    return weights


def cases(seed: int, steps: int, batches: int) -> list[Case]:
    """Every case of a run; validation looks at so many batches."""
    torch.set_num_threads(1)
    finest = round(WINDOW * steps) // COUNTS[-1]
    run = train(seed, steps, range(finest, steps + 1, finest))
    loss = partial(validation_loss, batches=batches)
    found: list[Case] = []
    for count in COUNTS:
        gap = round(WINDOW * steps) // count
        every = list(range(gap, steps + 1, gap))
        inside = every[-count:]
        stored = np.stack([run.checkpoints[s] for s in inside])
        found += _solved(run, loss, seed, ALL, count, [(s, None) for s in every])
        found += _solved(run, loss, seed, WINDOWED, count, [(s, None) for s in inside])
        merged = {shape: published(shape, count) @ stored for shape in SHAPES}
        found += _cases(run, loss, seed, PUBLISHED, count, merged)
        found += _cases(run, loss, seed, MEAN, count, _same(stored[-_MEAN_OF:].mean(axis=0)))
    found += _solved(run, loss, seed, AVERAGED, 0, [(s, g) for g, s in run.averages])
    found += _cases(run, loss, seed, SUM, 0, run.sums)
    found += _cases(run, loss, seed, DECAYED, 0, run.decayed)
    found += _cases(run, loss, seed, LAST, 0, _same(run.last))
    return found


def _same(weights: Vector) -> dict[str, Vector]:
    """Weights that do not depend on the shape."""
    return dict.fromkeys(SHAPES, weights)


def _cases(
    run: Trained, loss: Loss, seed: int, name: str, count: int, made: Mapping[str, Vector]
) -> Iterator[Case]:
    """The weights that are made for each shape, evaluated."""
    for shape, weights in made.items():
        yield Case(seed, shape, name, count, loss(weights), _error(run, shape, weights))


def _error(run: Trained, shape: str, weights: Vector) -> float:
    """The distance from the run's own sum, over that of the last weights."""
    truth = run.sums[shape]
    return float(np.linalg.norm(weights - truth) / np.linalg.norm(run.last - truth))


def _solved(
    run: Trained,
    loss: Loss,
    seed: int,
    name: str,
    count: int,
    stored: Sequence[tuple[int, float | None]],
) -> Iterator[Case]:
    """What phema makes of snapshots, given by step and gamma (None for raw weights)."""
    sources: list[Profile] = [
        RawProfile(float(step)) if gamma is None else PowerProfile(gamma, float(step))
        for step, gamma in stored
    ]
    values = np.stack([run.checkpoints[s] if g is None else run.averages[g, s] for s, g in stored])
    sampled = values[:, ::_STRIDE].astype(np.float32)
    movement = calibrate(sources, Sample(sampled, np.spacing(np.abs(sampled[-1])).astype(float)))
    for shape in SHAPES:
        target = parse_profile(f"decay:last={WINDOW},shape={shape}").ending_at(float(run.steps))
        solution = solve(sources, [target], movement=movement)
        made = solution.weights[:, 0] @ values
        error, expected = _error(run, shape, made), solution.figures[0].expected_error
        yield Case(seed, shape, name, count, loss(made), error, expected)


def _mean(values: Sequence[float]) -> float:
    """Geometric mean."""
    return float(np.exp(np.mean(np.log(values))))


def _table(found: Sequence[Case], rows: Sequence[str], cell: Callable[[list[Case]], str]) -> str:
    """A table with a column for each shape; ``cell`` has the cases of all seeds."""
    lines = [
        f"| weights | checkpoints | {' | '.join(SHAPES)} |",
        "| --- | ---: |" + " ---: |" * len(SHAPES),
    ]
    for name in rows:
        for count in sorted({c.count for c in found if c.name == name}):
            some = [c for c in found if (c.name, c.count) == (name, count)]
            cells = [cell([c for c in some if c.shape == shape]) for shape in SHAPES]
            lines.append(f"| {name} | {count or ''} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _ratios(found: Sequence[Case], name: str, over: str, count: int) -> list[float]:
    """The errors of one kind of weights over those of another one, seed by seed."""
    errors = {(c.name, c.count, c.seed, c.shape): c.error for c in found}
    return [
        error / errors[over, count, seed, shape]
        for (n, k, seed, shape), error in errors.items()
        if (n, k) == (name, count)
    ]


def _against(found: Sequence[Case]) -> str:
    """The estimates against the published weights."""
    columns = ("all of the run / published", "worst", "in the window / published", "worst")
    lines = [
        f"| checkpoints in the window | {' | '.join(columns)} | expected / true |",
        "| ---: |" + " ---: |" * 5,
    ]
    for count in COUNTS:
        whole, part = (_ratios(found, name, PUBLISHED, count) for name in (ALL, WINDOWED))
        told = [c.expected / c.error for c in found if (c.name, c.count) == (ALL, count)]
        lines.append(
            f"| {count} | {_mean(whole):.3f} | {max(whole):.3f} | {_mean(part):.3f} | "
            f"{max(part):.3f} | {min(told):.2f} to {max(told):.2f} |"
        )
    return "\n".join(lines)


def report(found: Sequence[Case], steps: int) -> str:
    """The page."""
    made = (ALL, WINDOWED, PUBLISHED, MEAN, AVERAGED)
    return TEMPLATE.read_text().format(
        steps=steps,
        seeds=len({c.seed for c in found}),
        losses=_table(
            found, (LAST, DECAYED, SUM, *made), lambda s: f"{np.mean([c.loss for c in s]):.4f}"
        ),
        errors=_table(found, (DECAYED, *made), lambda s: f"{_mean([c.error for c in s]):.3f}"),
        against=_against(found),
    )


def main() -> None:
    """Run everything and write the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=STEPS, help="steps of a run, whole hundreds")
    parser.add_argument("--seeds", type=int, default=SEEDS, help="number of runs")
    parser.add_argument("--batches", type=int, default=40, help="that validation looks at")
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time")
    parser.add_argument("--print", action="store_true", help="print the page, write nothing")
    parser.add_argument("--cases", type=Path, help="keep the cases in this file, or take them")
    given = parser.parse_args()
    if given.cases and given.cases.exists():
        found = [Case(**c) for c in json.loads(given.cases.read_text())]
    else:
        with ProcessPoolExecutor(given.jobs) as pool:
            asked = partial(cases, steps=given.steps, batches=given.batches)
            runs = pool.map(asked, range(given.seeds))
            found = [case for some in runs for case in some]
    if given.cases:
        given.cases.write_text(json.dumps([asdict(c) for c in found]))
    page = report(found, given.steps)
    if given.print:
        print(page, end="")
    else:
        PAGE.write_text(page)


if __name__ == "__main__":
    main()
