"""Movement before there is a run to measure: by the learning rate's schedule, or an earlier run's.

Under a constant learning rate r the weights of small networks move about as far in every unit of
log time, and the square of that falls a little more slowly than r^2 where r falls, so

    q(t) = r(t)^1.8 / t

in units of the movement per unit of log time. ``benchmarks/planning.py`` measures what that is
worth; the constants here were fitted on two thirds of the runs of ``benchmarks/training.py``.

A packed snapshot holds the residue of a linear prediction from the last few
(``phema_cli/formats/packing.py``). How large residues will be, and so what their integers lose,
follows from how the weights move.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import NormalDist
from typing import NamedTuple

import numpy as np

from phema_cli.errors import UsageError
from phema_cli.profiles import Array, Profile
from phema_cli.profiles.grammar import keyed, number_of
from phema_cli.solver.movement import Movement, Rounding
from phema_cli.solver.system import evaluate

#: movement per unit of log time over the RMS value of the weights, at the full learning rate.
SCHEDULED_RATIO = 0.3
_POWER = 1.8
#: mantissa bits of float32.
_SINGLE_BITS = 23
#: before this fraction of the run the weights move less (warm-up, and weights still small), ...
_SLOW = 0.15
#: ... and before this one they glide: roughness before and after.
_GLIDE, _ROUGHNESS = 0.3, (0.3, 0.7)
#: steps for which an optimizer with momentum 0.9 remembers a gradient, about.
_JITTER_STEPS = 8.0
#: least rate: a schedule that ends at zero still leaves the noise of its last steps.
_LEAST_RATE = 1e-4
#: spread of the logarithm of the elements' movement.
_SPREAD = 0.4
_VALUES, _PACES, _KNOTS, _EARLY = 32, 9, 60, 1e-3
#: the step that is the RMS of all blocks', times the largest integer, over the RMS residue: with
#: it foretold errors are 0.9 to 1.7 times those of the runs of benchmarks/packing.py (medians).
_PEAK = 2.0


@dataclass(frozen=True, slots=True)
class Packing:
    """How the snapshots of a planned run are packed.

    Attributes:
        bits: of an integer.
        followed: how many files a prediction follows.
        keyframe_every: files from one that is whole to the next.
    """

    bits: int
    followed: int
    keyframe_every: int

    def keyframes(self, files: int) -> int:
        """How many of so many files are whole."""
        return -(-files // self.keyframe_every)


@dataclass(frozen=True, slots=True)
class Assumption:
    """What a plan assumes of a run.

    Attributes:
        movement: of the weights; None for a random walk in log time, as ``--no-sample`` assumes.
        storage_noise: without ``movement``, RMS rounding error of a stored value relative to its
            size.
        packing: how snapshots are packed; None where they are whole.
    """

    movement: Movement | None
    storage_noise: float = 0.0
    packing: Packing | None = None


class _Schedule(NamedTuple):
    """From time as a fraction of the run, and a parameter, to the learning rate over its peak."""

    rate: Callable[[Array, float], Array]
    parameter: str = ""
    default: float = 0.0


SCHEDULES: Mapping[str, _Schedule] = {
    "constant": _Schedule(lambda u, _: np.ones_like(u)),
    "cosine": _Schedule(lambda u, end: end + (1 - end) * (1 + np.cos(np.pi * u)) / 2, "end"),
    "linear": _Schedule(lambda u, end: end + (1 - end) * (1 - u), "end"),
    "wsd": _Schedule(lambda u, last: np.minimum(1.0, (1 - u) / last), "last", 0.2),
    "rsqrt": _Schedule(lambda u, start: np.sqrt(start / np.maximum(u, start)), "start", 0.0625),
}
#: a random walk in log time.
WALK = "walk"
#: how schedules are written.
HELP = "write constant, cosine, cosine:end=0.1, linear, wsd:last=0.2, rsqrt:start=0.06 or walk"


def parse_schedule(text: str) -> Callable[[Array], Array] | None:
    """The learning rate over its peak as a function of the fraction of the run that has passed.

    Returns:
        That function of an array, or None for ``walk``.

    Raises:
        UsageError: an unknown name or parameter, or a value that is not between 0 and 1.
    """
    name, _, rest = text.partition(":")
    if text == WALK:
        return None
    if name not in SCHEDULES:
        raise UsageError(f"no schedule {text!r}", remedy=HELP)
    schedule = SCHEDULES[name]
    value = schedule.default
    if rest:
        wrong = UsageError(f"{text!r} is not a schedule", remedy=HELP)
        given = keyed(rest, number_of, "a number", lambda _: wrong)
        value = given.get(schedule.parameter, -1.0)
        # A rate may end at 0; a window and a beginning need a length.
        least = 0.0 if schedule.parameter == "end" else _EARLY
        if given.keys() != {schedule.parameter} - {""} or not least <= value <= 1:
            raise wrong
    return lambda u: schedule.rate(u, value)


def scheduled(rate: Callable[[Array], Array], steps: float, mantissa_bits: int) -> Movement:
    """Movement under a schedule, in units of that per unit of log time at the full rate.

    Args:
        rate: what :func:`parse_schedule` gives.
        steps: length of the run.
        mantissa_bits: of the type that snapshots are stored in.
    """
    # Close to both ends, where the schedule or 1/t changes.
    u = np.geomspace(_EARLY, 1.0, _KNOTS)
    u = np.unique(np.concatenate([u, 1 - np.geomspace(_LEAST_RATE, 0.5, _KNOTS)]))
    power = np.maximum(rate(u), _LEAST_RATE) ** _POWER
    values, paces = _elements()
    units = np.exp2(np.floor(np.log2(values)) - mantissa_bits)
    return Movement(
        times=u * steps,
        drift=power * np.minimum(1.0, u / _SLOW) / (u * steps),
        blocks=np.array([_GLIDE * steps, steps]),
        roughness=np.array(_ROUGHNESS),
        jitter=np.full(2, _JITTER_STEPS),
        rounding=Rounding.of_elements(units, paces),
        mean_square=SCHEDULED_RATIO**-2,
        measured=False,
    )


def _elements() -> tuple[Array, Array]:
    """Typical elements: normal values, each with all of some log-normal relative movements."""
    normal = NormalDist()
    values = [normal.inv_cdf(0.5 + (i + 0.5) / _VALUES / 2) for i in range(_VALUES)]
    paces = np.exp(_SPREAD * np.array([normal.inv_cdf((i + 0.5) / _PACES) for i in range(_PACES)]))
    paces /= np.sqrt((paces**2).mean())
    return np.repeat(values, _PACES) / SCHEDULED_RATIO, np.tile(paces, _VALUES)


def packed(movement: Movement, sources: Sequence[Profile], packing: Packing) -> Movement:
    """The movement with the errors that packing adds to each source.

    The residue of a source is what the movements since the keyframe of those that it follows can't
    foretell, in the mean square; their own errors count, since one predicts from what readers have.
    A step is ``_PEAK`` residues over the largest integer; rounding to it has the variance
    ``step^2 / 12``.

    Args:
        movement: of the weights; ``rounding`` is that of float32, in which keyframes are stored.
        sources: n profiles in the order of their files.
        packing: how they are packed.
    """
    system = evaluate(sources, [])
    rows, _, _ = movement.rows(system, movement.split(system))
    step = _PEAK / (2 ** (packing.bits - 1) - 1)
    errors = np.zeros(len(sources))
    for low in range(0, len(sources), packing.keyframe_every):
        moved = rows[:, low : low + packing.keyframe_every]
        moved = moved[:, 1:] - moved[:, :1]
        gram = moved.T @ moved + movement.rounding.variance * np.eye(moved.shape[1])
        for i in range(moved.shape[1]):
            own = slice(max(0, i - packing.followed), i)
            known = gram[own, own] + np.diag(errors[low + 1 :][own])
            foretold = gram[i, own] @ np.linalg.solve(known, gram[own, i]) if i else 0.0
            residue = max(gram[i, i] - foretold, movement.rounding.variance)
            errors[low + 1 + i] = residue * step**2 / 12
    return replace(movement, errors=errors)


def packed_instead(assumed: Assumption, mantissa_bits: int, packing: Packing) -> Assumption:
    """What is assumed of the same run if its snapshots are packed, not stored in a type.

    Args:
        assumed: of snapshots in that type.
        mantissa_bits: of the type.
        packing: how they are packed; keyframes and averages are float32.
    """
    finer = 2.0 ** (mantissa_bits - _SINGLE_BITS)
    moved = assumed.movement
    if moved is not None:
        moved = replace(moved, rounding=moved.rounding.scaled(finer))
    return Assumption(moved, assumed.storage_noise * finer, packing)


def earlier(movement: Movement, end: float, steps: float, coarser: float) -> Movement:
    """The movement of an earlier run, of another length and stored in another type.

    Weights move as far in the same fraction of the run; jitter and parameters keep their units.
    Errors of packed snapshots are those of the earlier run alone.

    Args:
        movement: what :func:`phema_cli.solver.calibrate` found.
        end: time of the earlier run's last snapshot.
        steps: length of the run that is planned.
        coarser: unit in the last place of the planned type over that of the earlier one.
    """
    longer = steps / end
    return replace(
        movement,
        times=movement.times * longer,
        drift=movement.drift / longer,
        blocks=movement.blocks * longer,
        rounding=movement.rounding.scaled(coarser),
        errors=None,
    )
