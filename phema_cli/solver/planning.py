"""Planning: what snapshots that a run is to store will reach, and which ones to store.

The figures are those of ``solve`` for the planned snapshots, so what ``inspect`` says afterwards
differs only by what the run turns out to be.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import product

import numpy as np

from phema_cli.errors import UsageError
from phema_cli.profiles import PowerProfile, gamma_from_sigma_rel, sigma_rel_from_gamma
from phema_cli.solver import Figures, solve
from phema_cli.solver.assumptions import Assumption, packed
from phema_cli.solver.movement import nominal
from phema_cli.solver.system import evaluate

#: targets between the ends of a range, these included, of which the worst counts.
_TARGETS = 7
#: gammas that are tried: about ten to a decade.
_GAMMAS = (0.5, 1, 1.5, 2, 3, 4, 5, 6, 8, 10, 12, 16, 20, 25, 32, 40, 50, 64, 80, 100)
#: numbers of gammas, snapshots of each, and files in all that are tried for a budget.
MOST_GAMMAS, MOST_FILES = 3, 256
COUNTS = (4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128)
#: gammas are chosen for one of these numbers of snapshots: more hardly change the choice.
_CHOSEN_AT = (6, 12, 24)


@dataclass(frozen=True, slots=True)
class Plan:
    """Snapshots of each gamma at every ``every``-th step, and at the last one.

    Attributes:
        steps: length of the run.
        gammas: exponents, ascending.
        every: steps between snapshots.

    Raises:
        UsageError: a gamma is given twice.
    """

    steps: int
    gammas: tuple[float, ...]
    every: int

    def __post_init__(self) -> None:
        if len(set(self.gammas)) < len(self.gammas):
            raise UsageError("a gamma is given twice")

    @property
    def times(self) -> tuple[int, ...]:
        """Steps at which snapshots are stored."""
        last = () if self.steps % self.every == 0 else (self.steps,)
        return (*range(self.every, self.steps + 1, self.every), *last)

    @property
    def profiles(self) -> list[PowerProfile]:
        """Of the snapshots, in the order in which ``scan`` has them and the tracker saves them."""
        return [PowerProfile(g, float(t)) for t in self.times for g in self.gammas]

    @property
    def files(self) -> int:
        """Snapshots of all gammas."""
        return len(self.times) * len(self.gammas)


def evenly(steps: int, gammas: Iterable[float], count: int) -> Plan:
    """The plan of at most ``count`` snapshots of each gamma, as far apart as whole steps allow.

    Raises:
        UsageError: a gamma is given twice.
    """
    return Plan(steps, tuple(sorted(gammas)), -(-steps // count))


def figures(plan: Plan, sigma_rels: Sequence[float], assumed: Assumption) -> tuple[Figures, ...]:
    """Figures of targets at the last step.

    Raises:
        UsageError: a sigma_rel or gamma that does not exist.
    """
    movement = assumed.movement
    if assumed.packing is not None:
        if movement is None:
            movement = nominal(evaluate(plan.profiles, []), assumed.storage_noise)
        movement = packed(movement, plan.profiles, assumed.packing)
    return solve(
        plan.profiles,
        [PowerProfile(gamma_from_sigma_rel(s), float(plan.steps)) for s in sigma_rels],
        movement=movement,
        storage_noise=assumed.storage_noise,
    ).figures


@dataclass(frozen=True, slots=True)
class Aim:
    """What a plan is to serve.

    Attributes:
        steps: length of the run.
        low: least sigma_rel of the targets, at the last step.
        high: largest one.
        assumed: how the weights will move.
    """

    steps: int
    low: float
    high: float
    assumed: Assumption


def served(low: float, high: float) -> list[float]:
    """The sigma_rels of a range of which the worst counts."""
    sigma_rels: list[float] = np.geomspace(low, high, _TARGETS).tolist()
    return sigma_rels


def worst(reached: Iterable[Figures]) -> float:
    """The largest sigma_error, in per cent.

    The worst and not the mean: a sweep looks for the best length anywhere in the range.
    """
    return max(f.sigma_error or 0.0 for f in reached)


def worst_error(plan: Plan, aim: Aim) -> float:
    """The largest sigma_error, in per cent, of the targets of an aim."""
    return worst(figures(plan, served(aim.low, aim.high), aim.assumed))


def best_gammas(aim: Aim, number: int, count: int) -> tuple[float, ...]:
    """The gammas with the least worst error, with so many snapshots of each."""
    return _refined(aim, number, count)[-1]


def best_plan(aim: Aim, files: int, gammas: Sequence[float] = ()) -> Plan:
    """The plan with the least worst error of those of at most so many files.

    More files never give a worse plan: the plans that are compared for fewer are among them.

    Args:
        aim: what it is to serve.
        files: number of snapshots of all gammas; more than ``MOST_FILES`` are not tried.
        gammas: the gammas to store; by default one to three are chosen.

    Raises:
        UsageError: not even four snapshots of each gamma fit.
    """
    files = min(files, MOST_FILES)
    plans: list[Plan] = []
    for number in [len(gammas)] if gammas else range(1, MOST_GAMMAS + 1):
        counts = [c for c in COUNTS if c * number <= files and c <= aim.steps]
        if counts:
            chosen = [tuple(gammas)] if gammas else _refined(aim, number, counts[-1])
            plans += [evenly(aim.steps, chosen[min(_place(c), len(chosen) - 1)], c) for c in counts]
    if not plans:
        raise UsageError(
            f"{min(files, aim.steps)} snapshots are too few for a plan",
            remedy=f"allow {COUNTS[0] * max(1, len(gammas))} at least",
        )
    return min(plans, key=lambda p: worst_error(p, aim))


def _place(count: int) -> int:
    """The place of the last of ``_CHOSEN_AT`` that is not above a number of snapshots, or 0."""
    return max(sum(c <= count for c in _CHOSEN_AT) - 1, 0)


def _refined(aim: Aim, number: int, count: int) -> list[tuple[float, ...]]:
    """The best gammas for each of ``_CHOSEN_AT`` up to a number of snapshots.

    Those of one are where the search for the next begins.
    """
    # Short averages to begin with: long ones can be built of them, but not the other way.
    wanted = np.geomspace(aim.high, aim.low, number + 1)[1:]
    tried = np.log([sigma_rel_from_gamma(g) for g in _GAMMAS])
    nearest = [int(np.abs(tried - math.log(s)).argmin()) for s in wanted]
    # No two alike, where the range is narrow.
    spread = np.maximum.accumulate(np.array(nearest) - np.arange(number)) + np.arange(number)
    at = tuple(np.minimum(spread, len(_GAMMAS) - number + np.arange(number)).tolist())
    found = []
    for chosen_at in _CHOSEN_AT[: _place(count) + 1]:
        at = _descend(aim, at, chosen_at)
        found.append(_gammas(at))
    return found


def _descend(aim: Aim, at: tuple[int, ...], count: int) -> tuple[int, ...]:
    """Gammas moved along the list, one by one or two places at a time, until no move helps."""

    @cache
    def error(at: tuple[int, ...]) -> float:
        return worst_error(evenly(aim.steps, _gammas(at), count), aim)

    while True:
        moves = product(range(len(at)), (-2, -1, 1, 2))
        moved = [(*at[:i], at[i] + by, *at[i + 1 :]) for i, by in moves]
        # Places in the list, no two alike.
        ascending = (
            m for m in moved if m[0] >= 0 and m[-1] < len(_GAMMAS) and list(m) == sorted(set(m))
        )
        best = min(ascending, key=error)
        if error(best) >= error(at):
            return at
        at = best


def _gammas(at: Sequence[int]) -> tuple[float, ...]:
    """The gammas at some places of the list."""
    return tuple(float(_GAMMAS[i]) for i in at)
