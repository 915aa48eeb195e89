"""What ``phema plan`` foretells of the runs of the fidelity benchmark, before they are trained."""

from collections.abc import Sequence
from functools import cache

import numpy as np
from numpy.typing import NDArray

from benchmarks.fidelity_cases import Case
from benchmarks.training import RUNS, STEPS
from phema_cli.solver import Movement
from phema_cli.solver.assumptions import (
    Assumption,
    earlier,
    parse_schedule,
    scheduled,
)
from phema_cli.solver.planning import evenly, figures

#: the runs that the constants of ``assumptions.py`` were not fitted on.
HELD_OUT = frozenset(r.name for r in RUNS[::3])

_TEXT = """\
The same errors, predicted before the run by `phema plan`. With `--like` it knows an earlier run,
here half as long and of another seed, of which 32 snapshots each of gamma 5 and 10 are left in
float32. With `--schedule` it knows the learning rate's schedule and no weights; its constants were
fitted on two runs of three, the others held out.

`expected_rms` is compared with the true error, `expected_error` with the true error over the true
distance by which averaging moves the final weights. Averages don't show that distance well, even
in the last line, which is what `inspect` says afterwards. `--schedule` can't know how far weights
move for their size: these runs differ in it by a factor of 4."""

_HEAD = (
    "| known | runs | cases | expected_rms within 2 (%) | within 3 (%) | "
    "expected_error / true, median | within 2 (%) | within 3 (%) |\n| --- | --- |" + " ---: |" * 6
)
_BY_RUN = (
    "**Within a factor of 2, by run (%)**\n\n"
    "| run | `--like`, expected_rms | `--like`, expected_error | `--schedule`, expected_error |\n"
    "| --- |" + " ---: |" * 3
)


def foretold(
    schedule: str,
    gammas: tuple[float, ...],
    count: int,
    mantissa_bits: int,
    sigma_rels: tuple[float, ...],
    before: Movement | None,
) -> dict[str, NDArray[np.float64]]:
    """Figures of each target by what is known: expected errors, and ``like rms``.

    Args:
        schedule: of the learning rate.
        gammas: the pair that is stored.
        count: snapshots of each.
        mantissa_bits: of the type that they are stored in.
        sigma_rels: of the targets.
        before: movement of an earlier run of half the length, calibrated in float32.
    """
    found = {
        "schedule": _by_schedule(schedule, gammas, count, mantissa_bits, sigma_rels),
    }
    if before is not None:
        movement = earlier(before, STEPS / 2, STEPS, 2.0 ** (23 - mantissa_bits))
        made = figures(evenly(STEPS, gammas, count), sigma_rels, Assumption(movement))
        found["like"] = np.array([f.expected_error for f in made])
        found["like rms"] = np.array([f.expected_rms or 0.0 for f in made])
    return found


@cache
def _by_schedule(
    schedule: str,
    gammas: tuple[float, ...],
    count: int,
    mantissa_bits: int,
    sigma_rels: tuple[float, ...],
) -> NDArray[np.float64]:
    """Expected errors by a schedule."""
    rate = parse_schedule(schedule)
    if rate is None:
        raise ValueError(schedule)
    assumed = Assumption(scheduled(rate, STEPS, mantissa_bits))
    made = figures(evenly(STEPS, gammas, count), sigma_rels, assumed)
    return np.array([f.expected_error for f in made])


def section(found: Sequence[Case]) -> str:
    """The part of the page."""
    held = [c for c in found if c.run in HELD_OUT]
    fitted = [c for c in found if c.run not in HELD_OUT]
    rows = [_row("an earlier run, `--like`", "all", found, "like")]
    rows += [
        _row("the schedule, `--schedule`", runs, some, "schedule")
        for runs, some in (("fitted", fitted), ("held out", held))
        if some
    ]
    rows += [
        _row("the snapshots, `inspect`", "all", found, "inspect"),
    ]
    by_run = [
        _run_row(run, [c for c in found if c.run == run])
        for run in dict.fromkeys(c.run for c in found)
    ]
    return "\n\n".join([_TEXT, "\n".join([_HEAD, *rows]), "\n".join([_BY_RUN, *by_run])])


def _row(label: str, runs: str, found: Sequence[Case], known: str) -> str:
    """A line of the table by what was known."""
    told = _errors(found, known)
    rms = _within(_rms(found, known)) if f"{known} rms" in found[0].planned else ["", ""]
    cells = [label, runs, str(len(found)), *rms, f"{np.median(told):.2f}", *_within(told)]
    return f"| {' | '.join(cells)} |"


def _run_row(run: str, found: Sequence[Case]) -> str:
    """A line of the table by run."""
    told = [_rms(found, "like"), _errors(found, "like"), _errors(found, "schedule")]
    return f"| {' | '.join([run, *(_within(ratios)[0] for ratios in told)])} |"


def _errors(found: Sequence[Case], known: str) -> NDArray[np.float64]:
    """Expected errors over true ones, both as fractions of the distance of averaging."""
    return np.array([c.planned[known] * c.distance / c.errors["blue"] for c in found])


def _rms(found: Sequence[Case], known: str) -> NDArray[np.float64]:
    """Expected RMS errors over true ones."""
    return np.array([c.planned[f"{known} rms"] / c.errors["blue"] for c in found])


def _within(ratios: NDArray[np.float64]) -> list[str]:
    """Shares within a factor of 2 and of 3, in per cent."""
    return [f"{100 * (np.abs(np.log(ratios)) <= np.log(k)).mean():.1f}" for k in (2, 3)]
