"""Are right tags left alone and wrong ones seen? On real training runs; writes docs/evidence.md.

    python -m benchmarks.evidence                          # about an hour on two cores
    python -m benchmarks.evidence --results build/e.jsonl  # resumes after the last finished run

The runs and cases stand in ``benchmarks/evidence_cases.py``, written before the first run.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from benchmarks.evidence_cases import (
    ALONE,
    COUNTS,
    LAYOUTS,
    LIMITS_COUNTS,
    LIMITS_STORED,
    RIGHT,
    STORED,
    TIMES,
    TRIALS,
    UNEVEN_STORED,
    WRONG,
    WRONG_AT,
    WRONG_WIDE,
    WRONG_WIDE_AT,
    Case,
    Proposed,
    Trial,
)
from benchmarks.evidence_page import write_page
from benchmarks.evidence_runs import Kept, Places, collect, mixed, profile, rounded
from phema_cli.profiles import Profile
from phema_cli.solver import Sample
from phema_cli.solver.evidence import Alternative, Evidence, propose, weigh
from phema_cli.solver.evidence.laws import RAW

_Made = TypeVar("_Made", Case, Proposed)


def right_cases(kept: Kept) -> Iterator[Case]:
    """Right tags at every number of times, and at uneven ones, in every type."""
    for names in RIGHT:
        series = names.split()
        for count in LIMITS_COUNTS if kept.trial.group == "limits" else COUNTS:
            yield from _right(kept, "", series, [_even(count)] * len(series), count)
    if kept.trial.group != "wide":
        return
    for one in LAYOUTS:
        series = one.averages.split()
        places = [list(one.first), *[list(one.others)] * (len(series) - 1)]
        yield from _right(kept, one.name, series, places, len({*one.first, *one.others}))


def _even(count: int) -> NDArray[np.int64]:
    """Numbers of so many times, evenly over the run."""
    return np.arange(TIMES // count - 1, TIMES, TIMES // count)


def _right(
    kept: Kept,
    layout: str,
    names: Sequence[str],
    at: Sequence[Places],
    count: int,
) -> Iterator[Case]:
    """Right tags of some snapshots in every type."""
    exact, profiles = kept.stored(names, at), kept.profiles(names, at)
    groups = [name for name, rows in zip(names, at, strict=True) for _ in rows]
    types = UNEVEN_STORED if layout else STORED
    for stored in LIMITS_STORED if kept.trial.group == "limits" else types:
        sample = rounded(exact, stored)
        case = _case(kept, (" ".join(names), count, stored), profiles, groups, sample, kept.truth)
        yield replace(case, layout=layout, blameless=case.foreign)


def proposals(trial: Trial) -> list[Proposed]:
    """What is proposed where tags are missing, of two averages or of one beside raw weights."""
    kept, found = collect(replace(trial, wrong=False)), []
    at = _even(max(COUNTS))
    times = [t for _ in range(2) for t in kept.times[at]]
    for names in map(str.split, RIGHT):
        if len(names) != 2:
            continue
        groups = [name for name in names for _ in at]
        known = {"raw": RAW} if "raw" in names else {}
        right, exact = kept.profiles(names, [at, at]), kept.stored(names, [at, at])
        for stored in STORED:
            sample = rounded(exact, stored)
            laws = propose(times, groups, known, sample)
            damage = float("nan")
            if laws is not None:
                told = {**known, **laws}
                profiles = [told[g].profile(t) for g, t in zip(groups, times, strict=True)]
                damage = kept.damage(kept.made(profiles, sample), kept.made(right, sample))
            found.append(Proposed(trial.seed, " ".join(names), stored, damage))
    return found


def wrong_cases(kept: Kept) -> Iterator[Case]:
    """Wrong tags."""
    wide = kept.trial.group == "wide"
    for wrong in (*WRONG, *(WRONG_WIDE if wide else ()), *ALONE):
        stored_as, told = wrong.stored.split(), wrong.told.split()
        late = wrong.offset * kept.trial.steps
        for count, stored in WRONG_WIDE_AT if wide else WRONG_AT:
            at = _even(count)
            exact, right = kept.stored(stored_as, [at] * len(stored_as)), kept.profiles
            honest = rounded(exact, stored)
            wanted = kept.made(right(stored_as, [at] * len(stored_as)), honest)
            steps = kept.trial.steps
            profiles = [profile(n, steps, t + late) for n in told for t in kept.times[at]]
            groups = [name for name in stored_as for _ in at]
            values = mixed(wrong, kept, at)
            sample = rounded(values, stored)
            odd = frozenset(np.flatnonzero((values != exact).any(axis=1)).tolist())
            name = (wrong.name, count, stored)
            case = _case(kept, name, profiles, groups, sample, wanted, odd)
            yield replace(case, right=False)


def _case(
    kept: Kept,
    name: tuple[str, int, str],
    profiles: Sequence[Profile],
    groups: Sequence[str],
    sample: Sample,
    wanted: NDArray[np.float64],
    odd: frozenset[int] = frozenset(),
) -> Case:
    """Test some tags."""
    called, count, stored = name
    start = time.process_time()
    found = weigh(profiles, sample, groups)
    seconds = time.process_time() - start
    named = count == max(COUNTS) and not found.later
    fitting = [a for a in found.alternatives if a.fits and named]
    best = fitting[0] if fitting else None
    mended = kept.damage(kept.made(_told(found, best), sample), wanted) if best else np.nan
    return Case(
        group=kept.trial.group,
        run=kept.trial.run.name,
        seed=kept.trial.seed,
        name=called,
        layout="",
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
        foreign=len(found.foreign),
        blameless=len(set(found.foreign) - odd),
        seconds=seconds,
    )


def _number(value: float | None) -> float:
    """NaN for None."""
    return float("nan") if value is None else value


def _told(found: Evidence, best: Alternative) -> list[Profile]:
    """The profiles that an alternative gives the snapshots, as its option would have them."""
    laws = best.laws
    if best.every is not None:
        laws = tuple(s.law.slowed(best.every) for s in found.series)
    pairs = zip(laws, found.series, strict=True)
    return [law.profile(t + best.offset) for law, s in pairs for t in s.times]


def cases(trial: Trial) -> list[Case]:
    """The cases of a run, the right ones and, where they are tried, the wrong ones."""
    kept = collect(trial)
    return [*right_cases(kept), *(wrong_cases(kept) if trial.wrong else ())]


def main() -> None:
    """Run all that is not in the results yet, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--results", type=Path, default=Path("build/evidence.jsonl"))
    parser.add_argument("--page", action="store_true", help="only write the page")
    arguments = parser.parse_args()
    arguments.results.parent.mkdir(parents=True, exist_ok=True)
    found = [Case(**line) for line in _lines(arguments.results)]
    beside = arguments.results.with_suffix(".proposals.jsonl")
    proposed = [Proposed(**line) for line in _lines(beside)]
    done = {(case.group, case.seed) for case in found}
    left = [t for t in TRIALS if (t.group, t.seed) not in done]
    tried = {one.seed for one in proposed}
    untried = [t for t in TRIALS if t.wrong and not t.run.large and t.seed not in tried]
    if not arguments.page:
        found += _run(cases, left, arguments.results, arguments.workers)
        proposed += _run(proposals, untried, beside, arguments.workers)
    write_page(found, proposed)


def _lines(path: Path) -> list[dict[str, Any]]:
    """What was written before."""
    return (
        [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        if path.exists()
        else []
    )


def _run(
    what: Callable[[Trial], list[_Made]], trials: Sequence[Trial], path: Path, workers: int
) -> list[_Made]:
    """What several runs give, added to a file as soon as it is known."""
    found: list[_Made] = []
    with ProcessPoolExecutor(workers) as pool, path.open("a", encoding="utf-8") as kept:
        for trial, made in zip(trials, pool.map(what, trials), strict=True):
            kept.writelines(json.dumps(asdict(one)) + "\n" for one in made)
            kept.flush()
            found += made
            print(f"{trial.group}, {trial.run.name}: {len(made)} cases", flush=True)
    return found


if __name__ == "__main__":
    main()
