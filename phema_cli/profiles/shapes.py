"""Profiles that are no power functions, and what ``--profile`` says: docs/maths.md has each F."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Self

import numpy as np

from phema_cli.errors import UsageError
from phema_cli.profiles.base import Array, PowerProfile, Profile, check_end, check_window
from phema_cli.profiles.combination import CHECKPOINTS, CheckpointsSpec, step_of
from phema_cli.profiles.grammar import POSITIVE
from phema_cli.profiles.learning_rate import SHAPES, DecayProfile


@dataclass(frozen=True, slots=True)
class ExponentialProfile:
    """An EMA of constant decay: ``F(t) = exp(-rate (T - t))``, of which F(0) is initial weights.

    With ``beta = exp(-rate)`` the update at step s weighs ``(1 - beta) beta^(T-s) = F(s) - F(s-1)``
    and the initial weights ``beta^T = F(0)``, exactly.

    Args:
        rate: ``-ln beta`` per step, above 0.
        end: time of the average in steps, above 0.
        name: what the user called it.

    Raises:
        UsageError: rate or end is not above 0 and finite.
    """

    rate: float
    end: float
    # Averages of one rate and end are one, whatever they are called.
    name: str = field(default="", compare=False)
    square_integrable: ClassVar[bool] = True
    sparse: ClassVar[None] = None

    def __post_init__(self) -> None:
        check_end(self.end)
        if not (math.isfinite(self.rate) and self.rate > 0):
            raise UsageError(
                f"a decay of {self.rate:g} per step is not above 0 and finite",
                remedy="beta lies between 0 and 1",
            )

    @property
    def label(self) -> str:
        """``exponential:halflife=2000``."""
        return self.name or f"exponential:beta={math.exp(-self.rate):.10g}"

    @property
    def breaks(self) -> tuple[float, ...]:
        """The end."""
        return (self.end,)

    @property
    def exponent(self) -> float:
        """Near its end it falls as ``(t/T)^(rate T)``."""
        return self.rate * self.end

    def cdf(self, t: Array) -> Array:
        """``exp(-rate (T - t))`` from 0 to T, 1 from T on."""
        return np.where(t < 0, 0.0, np.exp(-self.rate * np.maximum(self.end - t, 0.0)))

    def density(self, t: Array) -> Array:
        """``rate exp(-rate (T - t))`` on (0, T], 0 elsewhere."""
        return np.where((t > 0) & (t <= self.end), self.rate * self.cdf(t), 0.0)


@dataclass(frozen=True, slots=True)
class WindowProfile:
    """The uniform average over (start, end]; also what a linear decay of the learning rate does.

    A learning rate that falls linearly from ``start`` to 0 at ``end`` scales the increment of time
    t by ``1 - (t - start)/(end - start)``. That is the survival function of the uniform average.

    Args:
        start: where the window begins, in steps, at least 0.
        end: where it ends.
        name: what the user called it.

    Raises:
        UsageError: start is not in [0, end).
    """

    start: float
    end: float
    # Windows of one start and end are one average, whatever they are called.
    name: str = field(default="", compare=False)
    exponent: ClassVar[float] = 0.0
    square_integrable: ClassVar[bool] = True
    sparse: ClassVar[None] = None

    @classmethod
    def of_last(cls, last: float, end: float, name: str) -> Self:
        """The window of the ``last`` steps before its end; up to 1, a fraction of the time."""
        return cls(end * (1 - last) if last <= 1 else max(end - last, 0.0), end, name)

    def __post_init__(self) -> None:
        check_end(self.end)
        check_window(self.start, self.end, self.name or "uniform")

    @property
    def label(self) -> str:
        """``uniform:last=0.2``."""
        return self.name or f"uniform:last={1 - self.start / self.end:.6g}"

    @property
    def breaks(self) -> tuple[float, ...]:
        """Start and end."""
        return (self.start, self.end) if self.start > 0 else (self.end,)

    def cdf(self, t: Array) -> Array:
        """``(t - start)/(end - start)`` inside, 0 before and 1 after."""
        inside: Array = np.clip((t - self.start) / (self.end - self.start), 0.0, 1.0)
        return inside

    def density(self, t: Array) -> Array:
        """``1/(end - start)`` inside, 0 elsewhere."""
        return np.where((t > self.start) & (t <= self.end), 1 / (self.end - self.start), 0.0)


@dataclass(frozen=True, slots=True)
class RawProfile:
    """The weights as they are at one time, not averaged.

    Args:
        end: that time in steps, above 0.

    Raises:
        UsageError: end is not above 0 and finite.
    """

    end: float
    label: ClassVar[str] = "raw"
    #: a jump needs no resolution.
    exponent: ClassVar[float] = 0.0
    #: all weight is on one point.
    square_integrable: ClassVar[bool] = False
    sparse: ClassVar[None] = None

    def __post_init__(self) -> None:
        check_end(self.end)

    @property
    def breaks(self) -> tuple[float, ...]:
        """The time."""
        return (self.end,)

    def cdf(self, t: Array) -> Array:
        """0 before the time, 1 from it on."""
        return np.where(t >= self.end, 1.0, 0.0)

    def density(self, t: Array) -> Array:
        """0: the weight of a single point has no density."""
        return np.zeros_like(t)


@dataclass(frozen=True, slots=True)
class TableProfile:
    """A density given at points, linear between them, normalised to one.

    Args:
        times: ascending, in steps, from 0 or later.
        heights: the density there in any unit, not negative, not all 0.
        name: what the user called it.

    Raises:
        UsageError: fewer than two points, times that don't ascend, or no weight.
    """

    times: tuple[float, ...]
    heights: tuple[float, ...]
    name: str = "csv"
    exponent: ClassVar[float] = 1.0
    square_integrable: ClassVar[bool] = True
    sparse: ClassVar[None] = None

    def __post_init__(self) -> None:
        t, h = np.array(self.times), np.array(self.heights)
        fits = len(t) == len(h) > 1 and np.isfinite(t).all() and np.isfinite(h).all()
        if not fits or t[0] < 0 or (np.diff(t) <= 0).any():
            raise UsageError(f"{self.name}: times must ascend from 0 or later, two at least")
        if (h < 0).any() or not h.any():
            raise UsageError(f"{self.name}: weights must not be negative, nor all 0")

    @property
    def end(self) -> float:
        """The last time."""
        return self.times[-1]

    @property
    def label(self) -> str:
        """``csv:profile.csv``."""
        return self.name

    @property
    def breaks(self) -> tuple[float, ...]:
        """Every time above 0."""
        return tuple(t for t in self.times if t > 0)

    def _pieces(self) -> tuple[Array, Array, Array]:
        """Times, normalised density there, F there."""
        t, h = np.array(self.times), np.array(self.heights) / max(self.heights)
        steps = np.diff(t) * (h[1:] + h[:-1]) / 2
        total = steps.sum()
        return t, h / total, np.concatenate([[0.0], np.cumsum(steps)]) / total

    def cdf(self, t: Array) -> Array:
        """Integral of the density, a parabola on each piece."""
        at, height, weight = self._pieces()
        i = np.clip(np.searchsorted(at, t, side="right") - 1, 0, len(at) - 2)
        into = np.clip(t - at[i], 0.0, at[i + 1] - at[i])
        slope = (height[i + 1] - height[i]) / (at[i + 1] - at[i])
        inside: Array = weight[i] + into * (height[i] + slope * into / 2)
        return inside

    def density(self, t: Array) -> Array:
        """The points' density, normalised, linear between them; 0 outside."""
        at, height, _ = self._pieces()
        return np.interp(t, at, height, left=0.0, right=0.0)


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
    parameters: dict[str, str] = {}
    for part in rest.split(",") if rest else ():
        key, equals, value = (piece.strip() for piece in part.partition("="))
        if not equals:
            raise UsageError(f"{text}: {part!r} is not a parameter", remedy=HELP)
        if key in parameters:
            raise UsageError(f"{text}: {key} is given twice", remedy=HELP)
        parameters[key] = value
    make = PROFILES[name]
    make(parameters, 1e6, text)
    return ProfileSpec(text, lambda end: make(parameters, end, text))


#: how the profiles are written.
HELP = (
    "write uniform:last=0.2 or uniform:last=2000steps, exponential:beta=0.999, "
    "exponential:halflife=2000, decay:last=0.2,shape=linear (or cosine, sqrt), cooldown:last=0.2, "
    "raw, csv:FILE or checkpoints:last=5"
)


def _number(parameters: Mapping[str, str], key: str, text: str, unit: str = "") -> float:
    """A parameter's number, which its unit may follow.

    Raises:
        UsageError: it is no number.
    """
    try:
        return float(parameters[key].removesuffix(unit))
    except ValueError:
        written = f"{key}={parameters[key]}"
        raise UsageError(f"{text}: {written!r} is not a parameter", remedy=HELP) from None


def _window(parameters: Mapping[str, str], end: float, text: str) -> WindowProfile:
    """``last``: up to 1 a fraction of the time until the target; above 1, or in steps, so many."""
    last = _number(parameters, "last", text, "steps") if set(parameters) == {"last"} else math.nan
    if not POSITIVE.holds(last):
        raise UsageError(f"{text}: needs last, a fraction or a number of steps", remedy=HELP)
    if parameters["last"].endswith("steps"):
        return WindowProfile(max(end - last, 0.0), end, text)
    return WindowProfile.of_last(last, end, text)


def _decay(parameters: Mapping[str, str], end: float, text: str) -> Profile:
    """A window, and the ``shape`` of the learning rate in it."""
    shape = parameters.get("shape", "linear")
    if shape not in SHAPES:
        names = f"{', '.join([*SHAPES][:-1])} or {[*SHAPES][-1]}"
        raise UsageError(f"{text}: shape must be {names}, not {shape!r}", remedy=HELP)
    window = _window({k: v for k, v in parameters.items() if k != "shape"}, end, text)
    curve = SHAPES[shape]
    return window if curve is None else DecayProfile(window.start, end, curve, text)


def _exponential(parameters: Mapping[str, str], end: float, text: str) -> Profile:
    """``beta`` per step, or ``halflife`` in steps."""
    numbers = {key: _number(parameters, key, text) for key in parameters}
    if set(numbers) == {"beta"} and 0 < numbers["beta"] < 1:
        return ExponentialProfile(-math.log(numbers["beta"]), end, text)
    if set(numbers) == {"halflife"} and POSITIVE.holds(numbers["halflife"]):
        return ExponentialProfile(math.log(2) / numbers["halflife"], end, text)
    raise UsageError(f"{text}: needs beta between 0 and 1, or halflife above 0", remedy=HELP)


def _raw(parameters: Mapping[str, str], end: float, text: str) -> Profile:
    if parameters:
        raise UsageError(f"{text}: raw has no parameters", remedy=HELP)
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
