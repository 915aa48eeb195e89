"""What ``--profile`` says: a profile without its end, or which snapshots a mean is of."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Self

from phema_cli.errors import UsageError
from phema_cli.profiles.base import PowerProfile, Profile
from phema_cli.profiles.grammar import BETA, COUNT, POSITIVE, keyed, number_of
from phema_cli.profiles.shapes import (
    CombinationProfile,
    Curve,
    DecayProfile,
    ExponentialProfile,
    RawProfile,
    WindowProfile,
)

CHECKPOINTS = "checkpoints"
_CHECKPOINTS_HELP = (
    "write checkpoints:last=5, checkpoints:first=5, or checkpoints:from=STEP,to=STEP"
)
#: what ``shape`` may be; None for the straight line.
SHAPES: Mapping[str, Curve | None] = {"linear": None, "cosine": "cosine", "sqrt": "sqrt"}


@dataclass(frozen=True, slots=True)
class CheckpointsSpec:
    """Which snapshots a plain mean is of: what ``--profile checkpoints:`` says.

    Attributes:
        label: as the user wrote it.
        first: how many of the first ones; None where that is not asked.
        last: how many of the last ones; None where that is not asked.
        low: the earliest step.
        high: the latest step.
    """

    label: str
    first: int | None = None
    last: int | None = None
    low: float = 0.0
    high: float = math.inf

    @classmethod
    def read(cls, text: str) -> Self:
        """What a text such as ``checkpoints:last=5`` says.

        Raises:
            UsageError: it is none.
        """
        error = partial(_error, text, remedy=_CHECKPOINTS_HELP)
        given = keyed(text.partition(":")[2], number_of, "a parameter", error)
        counted = given.keys() & {"first", "last"}
        if not given or given.keys() - {"first", "last", "from", "to"} or len(counted) > 1:
            raise error("needs last, first, or from and to")
        for name in counted:
            if not COUNT.holds(given[name]):
                raise error(
                    f"{name} is a number of checkpoints, from 1 on",
                    remedy="uniform:last=0.2 is the average of a fraction of training"
                    if 0 < given[name] < 1
                    else _CHECKPOINTS_HELP,
                )
        low, high = given.get("from", 0.0), given.get("to", math.inf)
        if not low <= high:
            raise error(f"no step is from {low:g} to {high:g}")
        first, last = (int(given[n]) if n in given else None for n in ("first", "last"))
        return cls(text, first, last, low, high)

    def chosen(self, steps: Sequence[float], end: float) -> list[int]:
        """Which of the snapshots it means.

        Args:
            steps: of each snapshot, ascending.
            end: the step of the target; later ones do not count.

        Raises:
            UsageError: there are none, or fewer than it asks for.
        """
        within = [i for i, s in enumerate(steps) if self.low <= s <= min(self.high, end)]
        wanted = self.first or self.last or 1
        if len(within) < wanted:
            count = f"{len(within)} checkpoint" + ("s" if len(within) != 1 else "")
            raise UsageError(
                f"{self.label}: there are {count} up to step {min(self.high, end):.12g}"
                + (f" from step {self.low:.12g} on" if self.low else ""),
                remedy="phema inspect -v lists their steps",
            )
        return within[-self.last :] if self.last else within[: self.first]


@dataclass(frozen=True, slots=True)
class ProfileSpec:
    """A profile without its end: what ``--profile`` says.

    Attributes:
        label: as the user wrote it.
        ending_at: makes the profile of a target step.
    """

    label: str
    ending_at: Callable[[float], Profile]


def parse_profile(text: str) -> ProfileSpec | CheckpointsSpec:
    """The profile that ``name:parameter=value`` means; ``PROFILES`` lists the names.

    Which snapshots ``checkpoints:`` means is known only with the snapshots.

    Raises:
        UsageError: an unknown name or parameter, or a value that is no number.
    """
    name, _, rest = text.partition(":")
    if name == CHECKPOINTS:
        return CheckpointsSpec.read(text)
    if name not in PROFILES:
        known = ", ".join([*PROFILES, CHECKPOINTS, "csv"])
        raise UsageError(f"no profile {name!r}", remedy=f"one of {known}")
    parameters = keyed(rest, str, "a parameter", partial(_error, text))
    make = PROFILES[name]
    make(parameters, 1e6, text)
    return ProfileSpec(text, lambda end: make(parameters, end, text))


#: how the profiles are written.
HELP = (
    "write uniform:last=0.2 or uniform:last=2000steps, exponential:beta=0.999, "
    "exponential:halflife=2000, decay:last=0.2,shape=linear (or cosine, sqrt), cooldown:last=0.2, "
    "raw, csv:FILE or checkpoints:last=5"
)


def _error(text: str, what: str, remedy: str = HELP) -> UsageError:
    return UsageError(f"{text}: {what}", remedy=remedy)


def _number(parameters: Mapping[str, str], key: str, text: str, unit: str = "") -> float:
    """A parameter's number, which its unit may follow; raises UsageError where it is none."""
    number = number_of(parameters[key].removesuffix(unit))
    if number is None:
        raise _error(text, f"{f'{key}={parameters[key]}'!r} is not a parameter")
    return number


def _window(parameters: Mapping[str, str], end: float, text: str) -> WindowProfile:
    """``last``: up to 1 a fraction of the time until the target; above 1, or in steps, so many."""
    last = _number(parameters, "last", text, "steps") if set(parameters) == {"last"} else math.nan
    if not POSITIVE.holds(last):
        raise _error(text, "needs last, a fraction or a number of steps")
    if parameters["last"].endswith("steps"):
        return WindowProfile(max(end - last, 0.0), end, text)
    return WindowProfile.of_last(last, end, text)


def _decay(parameters: Mapping[str, str], end: float, text: str) -> Profile:
    """A window, and the ``shape`` of the learning rate in it."""
    shape = parameters.get("shape", "linear")
    if shape not in SHAPES:
        raise _error(text, f"shape must be one of {', '.join(SHAPES)}, not {shape!r}")
    window = _window({k: v for k, v in parameters.items() if k != "shape"}, end, text)
    curve = SHAPES[shape]
    return window if curve is None else DecayProfile(window.start, end, curve, text)


def _exponential(parameters: Mapping[str, str], end: float, text: str) -> Profile:
    """``beta`` per step, or ``halflife`` in steps."""
    numbers = {key: _number(parameters, key, text) for key in parameters}
    if set(numbers) == {"beta"} and BETA.holds(numbers["beta"]):
        return ExponentialProfile(-math.log(numbers["beta"]), end, text)
    if set(numbers) == {"halflife"} and POSITIVE.holds(numbers["halflife"]):
        return ExponentialProfile(math.log(2) / numbers["halflife"], end, text)
    raise _error(text, "needs beta between 0 and 1, or halflife above 0")


def _raw(parameters: Mapping[str, str], end: float, text: str) -> Profile:
    if parameters:
        raise _error(text, "raw has no parameters")
    return RawProfile(end)


#: target profiles by name, beside the power function: parameters, end and text to the profile.
PROFILES: Mapping[str, Callable[[Mapping[str, str], float, str], Profile]] = {
    "uniform": _window,
    "exponential": _exponential,
    "decay": _decay,
    "cooldown": _window,
    "raw": _raw,
}


def describe(profile: Profile, step: float | None = None) -> dict[str, str | float | None]:
    """A profile in a record: its label, gamma and sigma_rel where it has them, and its step.

    Args:
        profile: what is described.
        step: its time as the trainer counts, where that is not its end; a combination has its own.
    """
    power = profile if isinstance(profile, PowerProfile) else None
    return {
        "profile": profile.label,
        "gamma": None if power is None else power.gamma,
        "sigma_rel": None if power is None else power.sigma_rel,
        "step": step_of(profile, profile.end if step is None else step),
    }


def step_of(target: Profile, step: float) -> float | None:
    """When a target is, as the trainer counts: that of all targets, or a combination's own."""
    return target.step if isinstance(target, CombinationProfile) else step
