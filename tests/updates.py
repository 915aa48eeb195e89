"""The updates of a law one by one: what its profile has to agree with."""

import math

import numpy as np
from numpy.typing import NDArray

from phema_cli.profiles import Law
from phema_cli.profiles.schedules import Schedule

_Array = NDArray[np.float64]


def schedule_of(law: Law) -> Schedule | None:
    """When the law's average is updated, and by which decays; None where it has no updates."""
    return None if law.form.schedule is None else law.form.schedule(law.parameters)


def updates_of(law: Law, time: float) -> tuple[_Array, _Array]:
    """The times whose weights the average is made of, and how much each weighs, exactly.

    0 stands for the initial weights.
    """
    schedule = schedule_of(law)
    if schedule is None:
        times = np.arange(math.floor(time) + 1.0)
        return times, np.diff(law.profile(time).cdf(times), prepend=0.0)
    made = np.arange(schedule.count(time) + 1.0)
    sums = schedule.rates.sums(made)
    weights = np.exp(sums - sums[-1]) * -np.expm1(-np.diff(sums, prepend=-math.inf))
    return (schedule.copy_at(time) + schedule.every * made) * schedule.unit, weights
