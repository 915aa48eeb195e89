"""How well the search of ``phema sweep`` finds an optimum, smooth and noisy, and what workers save.

Run as ``python -m benchmarks.sweeping``; ``--workers`` measures evaluations of 5 s instead.
"""

from __future__ import annotations

import math
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from phema_cli.solver.search import (
    FURTHER_POINTS,
    GRID_POINTS,
    Limits,
    Point,
    next_scales,
    optimum,
    spread_out,
)
from tests.builders import PHEMA, write_run

#: how much a metric rises at a factor of four beside the optimum: the depth of a valley.
_DEPTH = math.log(4) ** 2
_NOISE = 0.05
_SEEDS = 200
#: optimum, ends of the first grid, limits of the snapshots.
_CASES = [
    *(
        (f"sigma_rel {at:g}", at, grid, limits)
        for at in (0.015, 0.06, 0.28)
        for grid, limits in (
            ((0.03, 0.2), Limits(0.008, 0.2886)),
            ((0.02, 0.28), Limits(0.01, 0.2886)),
        )
    ),
    *(
        (f"window {at:g}", at, grid, Limits(0.01, 1.0))
        for at, grid in (
            (0.03, (0.05, 0.8)),
            (0.3, (0.05, 0.8)),
            (0.7, (0.02, 0.5)),
            (0.9, (0.02, 0.5)),
        )
    ),
]


def search(
    metric: Callable[[float], float], grid: tuple[float, float], limits: Limits, count: int
) -> tuple[float, float, int]:
    """The fitted length, the recommended one, and how many evaluations it took."""
    points = [Point(s, metric(s)) for s in spread_out(*grid)]
    total = GRID_POINTS + FURTHER_POINTS
    while len(points) < total:
        scales = next_scales(points, limits, left=total - len(points), count=count)
        if not scales:
            break
        points += [Point(s, metric(s)) for s in scales]
    found = optimum(points)
    if found is None:
        raise RuntimeError("every point has a metric")
    return found.scale, points[found.best].scale, len(points)


def valleys(count: int, strict: bool) -> None:
    """Print a row for each optimum: error without noise, and how often 10 % is kept with it."""
    for name, at, grid, limits in _CASES:
        logs = np.log(np.array(spread_out(*grid)) / at)
        depth = float(np.ptp(logs**2)) if strict else _DEPTH
        _, exact, smooth = search(lambda s, at=at: math.log(s / at) ** 2, grid, limits, count)
        errors, taken = [], []
        for seed in range(_SEEDS):
            random = np.random.default_rng(seed)

            def noisy(scale: float) -> float:
                return math.log(scale / at) ** 2 + _NOISE * depth * float(random.normal())  # noqa: B023 - used up in the loop

            _, best, evaluations = search(noisy, grid, limits, count)
            errors.append(abs(best / at - 1))
            taken.append(evaluations)
        print(
            f"{name:16} grid {grid[0]:g} to {grid[1]:g}: smooth {100 * abs(exact / at - 1):4.1f} % "
            f"in {smooth:2d}; noisy within 10 % in {100 * np.mean(np.array(errors) <= 0.1):5.1f} % "
            f"of {_SEEDS}, median {100 * np.median(errors):.1f} %, at most {max(taken)}"
        )


def workers() -> None:
    """Print how long two evaluations of 5 s take, for one worker and for two."""
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        write_run(place / "ckpts")
        seconds = []
        for count in ("1", "2"):
            now = f"date +%s.%N >> {count}.times"
            timed = f"{now}; sleep 5; {now}; echo {{sigma_rel}}"
            command = [
                *(str(PHEMA), "sweep", "ckpts", "-s", "0.1,0.2", "--no-baselines", "-q"),
                *("--eval", timed, "--parallel", count, "-o", count),
            ]
            began = time.monotonic()
            subprocess.run(command, cwd=place, check=True, capture_output=True)
            whole = time.monotonic() - began
            lines = (place / count / "sweep.jsonl").read_text().splitlines()
            # The command tells itself when it began and ended.
            times = [float(t) for t in (place / f"{count}.times").read_text().split()]
            seconds.append(max(times) - min(times))
            print(
                f"{count} at a time: {whole:.2f} s in all, {seconds[-1]:.2f} s from the first "
                f"evaluation to the last of {len(lines) - 2}"
            )
        print(f"two workers take {seconds[1] / seconds[0]:.2f} of the time of one")


def main() -> None:
    """Measure what the command line asks for."""
    if "--workers" in sys.argv:
        workers()
        return
    for count in (1, 2):
        print(f"{count} at a time, depth: the rise at a factor of four")
        valleys(count, strict=False)
    print("1 at a time, depth: the range of the metric over the first grid")
    valleys(1, strict=True)


if __name__ == "__main__":
    main()
