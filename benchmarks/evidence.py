"""Are right tags left alone and wrong ones seen? On real training runs; writes docs/evidence.md.

    python -m benchmarks.evidence                          # about 20 minutes on two cores
    python -m benchmarks.evidence --results build/e.jsonl  # resumes after the last finished run

The runs and cases stand in ``benchmarks/evidence_cases.py``, written before the first run.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.evidence_cases import (
    ALONE,
    COUNTS,
    ELEMENTS,
    RIGHT,
    RUNS,
    STEPS,
    STORED,
    TIMES,
    WRONG,
    WRONG_AT,
    WRONG_ON,
    Case,
    Wrong,
)
from benchmarks.evidence_page import write_page
from benchmarks.fidelity import STORED as TYPES
from benchmarks.training import Tracked, train
from phema_cli.errors import InputError
from phema_cli.profiles import (
    ExponentialProfile,
    PowerProfile,
    Profile,
    RawProfile,
    gamma_from_sigma_rel,
    parse_law,
)
from phema_cli.solver import Sample, calibrate, solve
from phema_cli.solver.evidence import Alternative, Evidence, weigh

#: targets at which damage is measured.
TARGETS = tuple(gamma_from_sigma_rel(s) for s in (0.05, 0.1, 0.2))
_NAMES = ("g5", "g10", "g6.937196", "g16.972163", "c10", "c20", "c40", "w")
_SLOW = ("u5", "u10", "u6.937196", "u16.972163")


def decay(name: str, step: int) -> float:
    """The decay of the update of a step of the average of a name."""
    kind, number = name[0], float(name[1:] or 0)
    if kind == "c":
        return float(np.exp(-number / STEPS))
    if kind == "w":
        return min(0.9999, (1 + step) / (10 + step))
    if kind == "u" and step % 10:
        return 1.0
    return float((1 - 1 / step) ** (number + 1))


def profile(name: str, end: float) -> Profile:
    """The profile of the average of a name."""
    if name == "raw":
        return RawProfile(end)
    kind, number = name[0], float(name[1:] or 0)
    if kind == "c":
        return ExponentialProfile(number / STEPS, end)
    if kind == "b":
        return ExponentialProfile(-float(np.log(number)), end)
    if kind == "w":
        return parse_law("warmup:beta=0.9999,start=1").profile(end)
    if kind == "u":
        return PowerProfile((number + 1) / 10 - 1, end)
    return PowerProfile(number, end)


def rounded(values: NDArray[np.float64], stored: str) -> Sample:
    """Values as a type stores them, and the units of the newest."""
    dtype, mantissa, smallest = TYPES[stored]
    kept = torch.from_numpy(values).to(dtype).float().numpy()
    exponent = np.where(kept[-1] == 0, smallest, np.frexp(kept[-1])[1] - 1.0)
    return Sample(kept, np.exp2(np.maximum(exponent, smallest) - mantissa))


@dataclass(frozen=True, slots=True)
class Snapshots:
    """What a run and another one of the same kind left.

    Attributes:
        name: of the run.
        averages: by name, (times, elements) float64; ``raw`` among them.
        other: the same of the other run.
        steps: (times,) when they were stored.
        truth: (targets, elements) averages of ``TARGETS`` at the end.
    """

    name: str
    averages: dict[str, NDArray[np.float64]]
    other: dict[str, NDArray[np.float64]]
    steps: NDArray[np.float64]
    truth: NDArray[np.float64]

    def made(self, profiles: Sequence[Profile], sample: Sample) -> NDArray[np.float64]:
        """(targets, elements) what is made of a sample under some tags; NaN if nothing can be."""
        last = max(p.end for p in profiles)
        targets = [PowerProfile(gamma, last) for gamma in TARGETS]
        try:
            found = solve(profiles, targets, movement=calibrate(profiles, sample))
        except InputError:
            return np.full_like(self.truth, np.nan)
        result: NDArray[np.float64] = found.weights.T @ sample.values
        return result

    def damage(self, made: NDArray[np.float64], wanted: NDArray[np.float64]) -> float:
        """How far two results are apart, over the averaging distance, at the worst target."""
        distance = np.linalg.norm(self.truth - self.averages["raw"][-1], axis=1)
        return float((np.linalg.norm(made - wanted, axis=1) / distance).max())


def collect(index: int, *, alone: bool) -> Snapshots:
    """Train the run of a number, and one of another seed beside it if it is not alone."""
    torch.set_num_threads(1)
    run, seed = RUNS[index]
    names = [*_NAMES[4:], *_SLOW]
    training = partial(
        train,
        run,
        steps=STEPS,
        snapshots=TIMES,
        elements=ELEMENTS,
        others={name: partial(decay, name) for name in names},
    )
    tracked = training([(STEPS, gamma) for gamma in TARGETS], seed=seed)
    other = tracked if alone else training([], seed=seed + 1000)
    return Snapshots(
        run.name,
        _averages(tracked),
        _averages(other),
        tracked.steps.astype(float),
        np.stack([tracked.truth[STEPS, gamma] for gamma in TARGETS]),
    )


def _averages(tracked: Tracked) -> dict[str, NDArray[np.float64]]:
    """All averages of a run by name."""
    powers = {f"g{gamma:.8g}": average for gamma, average in tracked.snapshots.items()}
    return {"raw": tracked.raw, **powers, **tracked.others}


def right_cases(kept: Snapshots) -> Iterator[Case]:
    """Right tags at every number of times and in every type."""
    for names in RIGHT:
        for count in COUNTS:
            at = np.arange(TIMES // count - 1, TIMES, TIMES // count)
            exact = np.concatenate([kept.averages[name][at] for name in names.split()])
            profiles = [profile(name, t) for name in names.split() for t in kept.steps[at]]
            for stored in STORED:
                sample = rounded(exact, stored)
                yield _case(kept, names, profiles, sample, kept.truth, count, stored)


def wrong_cases(kept: Snapshots) -> Iterator[Case]:
    """Wrong tags."""
    for wrong in (*WRONG, *ALONE):
        for count, stored in WRONG_AT:
            at = np.arange(TIMES // count - 1, TIMES, TIMES // count)
            names, late = wrong.stored.split(), wrong.offset * STEPS
            honest = rounded(np.concatenate([kept.averages[n][at] for n in names]), stored)
            wanted = kept.made([profile(n, t) for n in names for t in kept.steps[at]], honest)
            profiles = [profile(n, t + late) for n in wrong.told.split() for t in kept.steps[at]]
            sample = rounded(_mixed(wrong, kept, at), stored)
            case = _case(kept, wrong.name, profiles, sample, wanted, count, stored)
            yield replace(case, right=False)


def _mixed(wrong: Wrong, kept: Snapshots, at: NDArray[np.int64]) -> NDArray[np.float64]:
    """The snapshots of a mistake, one series after the other."""
    names, n = wrong.stored.split(), len(at)
    series = [kept.averages[name][at].copy() for name in names]
    half, late = np.arange(n) % 2 == 0, np.arange(n) >= n // 2
    which: dict[str, tuple[Sequence[int], NDArray[np.bool_]]] = {
        "early raw": (range(len(names)), ~late),
        "late raw": (range(len(names)), late),
        "first alternates": ((0,), half),
        "all alternate": (range(len(names)), half),
        "second of another run": ((1,), late | ~late),
        "late of another run": (range(len(names)), late),
        "one of another run": ((0,), np.arange(n) == n // 2),
    }
    if wrong.mix == "second frozen":
        series[1][:] = kept.averages["raw"][0]
    elif wrong.mix:
        for k in which[wrong.mix][0]:
            rows = which[wrong.mix][1]
            foreign = kept.other[names[k]] if "another" in wrong.mix else kept.averages["raw"]
            series[k][rows] = foreign[at][rows]
    return np.concatenate(series)


def _case(
    kept: Snapshots,
    name: str,
    profiles: Sequence[Profile],
    sample: Sample,
    wanted: NDArray[np.float64],
    count: int,
    stored: str,
) -> Case:
    """Test some tags."""
    groups = [i // count for i in range(len(profiles))]
    start = time.process_time()
    found = weigh(profiles, sample, groups)
    seconds = time.process_time() - start
    fitting = [a for a in found.alternatives if a.fits and count == max(COUNTS)]
    best = fitting[0] if fitting else None
    mended = kept.damage(kept.made(_told(found, best), sample), wanted) if best else np.nan
    return Case(
        run=kept.name,
        name=name,
        right=True,
        count=count,
        stored=stored,
        state=found.state,
        gain=_number(found.gain),
        jitter=_number(found.jitter),
        worst=_number(found.worst),
        tag_error=_number(found.tag_error),
        harm=_number(found.harm),
        damage=kept.damage(kept.made(profiles, sample), wanted),
        mended=mended,
        seconds=seconds,
    )


def _number(value: float | None) -> float:
    """NaN for None."""
    return float("nan") if value is None else value


def _told(found: Evidence, best: Alternative) -> list[Profile]:
    """The profiles that an alternative gives the snapshots."""
    pairs = zip(best.laws, found.series, strict=True)
    return [law.profile(t + best.offset) for law, s in pairs for t in s.times]


def cases(job: tuple[int, bool]) -> list[Case]:
    """The cases of the run of a number, the right ones or the wrong ones."""
    index, right = job
    kept = collect(index, alone=right)
    return list(right_cases(kept) if right else wrong_cases(kept))


def main() -> None:
    """Run all that is not in the results yet, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--results", type=Path, default=Path("build/evidence.jsonl"))
    parser.add_argument("--page", action="store_true", help="only write the page")
    arguments = parser.parse_args()
    arguments.results.parent.mkdir(parents=True, exist_ok=True)
    arguments.results.touch()
    found = [Case(**json.loads(line)) for line in arguments.results.read_text().splitlines()]
    done = {(case.run, case.right) for case in found}
    jobs = [(i, True) for i in range(len(RUNS))] + [(i, False) for i in WRONG_ON]
    left = [] if arguments.page else [j for j in jobs if (RUNS[j[0]][0].name, j[1]) not in done]
    with ProcessPoolExecutor(arguments.workers) as pool, arguments.results.open("a") as kept:
        for made in pool.map(cases, left):
            kept.writelines(json.dumps(asdict(case)) + "\n" for case in made)
            kept.flush()
            found += made
            print(f"{made[0].run}: {len(made)} cases", flush=True)
    write_page(found)


if __name__ == "__main__":
    main()
