"""What ``--profile`` says, and what records say of a profile."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from phema_cli.errors import UsageError
from phema_cli.profiles.base import PowerProfile, Profile
from phema_cli.profiles.grammar import POSITIVE
from phema_cli.profiles.shapes import ExponentialProfile, RawProfile, WindowProfile


@dataclass(frozen=True, slots=True)
class ProfileSpec:
    """A profile without its end: what ``--profile`` says.

    Attributes:
        label: as the user wrote it.
        ending_at: makes the profile of a target step.
    """

    label: str
    ending_at: Callable[[float], Profile]


def parse_profile(text: str) -> ProfileSpec:
    """The profile that ``name:parameter=value`` means; ``PROFILES`` lists the names.

    Raises:
        UsageError: an unknown name or parameter, or a value that is no number.
    """
    name, _, rest = text.partition(":")
    if name not in PROFILES:
        raise UsageError(f"no profile {name!r}", remedy=f"one of {', '.join([*PROFILES, 'csv'])}")
    parameters: dict[str, float] = {}
    for part in rest.split(",") if rest else ():
        key, _, value = part.partition("=")
        try:
            number = float(value)
        except ValueError:
            raise UsageError(f"{text}: {part!r} is not a parameter", remedy=HELP) from None
        if key.strip() in parameters:
            raise UsageError(f"{text}: {key.strip()} is given twice", remedy=HELP)
        parameters[key.strip()] = number
    make = PROFILES[name]
    make(parameters, 1e6, text)
    return ProfileSpec(text, lambda end: make(parameters, end, text))


#: how the profiles are written.
HELP = (
    "write uniform:last=0.2, exponential:beta=0.999, exponential:halflife=2000, cooldown:last=0.2, "
    "raw or csv:FILE"
)


def _window(parameters: Mapping[str, float], end: float, text: str) -> Profile:
    """``last``: up to 1 a fraction of the time until the target, above 1 a number of steps."""
    if set(parameters) != {"last"} or not POSITIVE.holds(parameters["last"]):
        raise UsageError(f"{text}: needs last, a fraction or a number of steps", remedy=HELP)
    last = parameters["last"]
    return WindowProfile(end * (1 - last) if last <= 1 else max(end - last, 0.0), end, text)


def _exponential(parameters: Mapping[str, float], end: float, text: str) -> Profile:
    """``beta`` per step, or ``halflife`` in steps."""
    if set(parameters) == {"beta"} and 0 < parameters["beta"] < 1:
        return ExponentialProfile(-math.log(parameters["beta"]), end, text)
    if set(parameters) == {"halflife"} and POSITIVE.holds(parameters["halflife"]):
        return ExponentialProfile(math.log(2) / parameters["halflife"], end, text)
    raise UsageError(f"{text}: needs beta between 0 and 1, or halflife above 0", remedy=HELP)


def _raw(parameters: Mapping[str, float], end: float, text: str) -> Profile:
    if parameters:
        raise UsageError(f"{text}: raw has no parameters", remedy=HELP)
    return RawProfile(end)


#: target profiles by name, beside the power function: parameters, end and text to the profile.
PROFILES: Mapping[str, Callable[[Mapping[str, float], float, str], Profile]] = {
    "uniform": _window,
    "exponential": _exponential,
    "cooldown": _window,
    "raw": _raw,
}


def describe(profile: Profile, step: float | None = None) -> dict[str, str | float | None]:
    """A profile in a record: its label, gamma and sigma_rel where it has them, and its step.

    Args:
        profile: what is described.
        step: its time as the trainer counts, where that is not its end.
    """
    power = profile if isinstance(profile, PowerProfile) else None
    return {
        "profile": profile.label,
        "gamma": None if power is None else power.gamma,
        "sigma_rel": None if power is None else power.sigma_rel,
        "step": profile.end if step is None else step,
    }
