"""Averaging profiles: how much each moment of training weighs in an average.

A profile is described by its cumulative weight F(t). For the power function ending at T,
``F(t) = (t/T)^(gamma+1)`` (arXiv:2312.02696, section 3.1); gamma and the relative standard
deviation sigma_rel of the profile name the same length of averaging.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from phema_cli.errors import UsageError

Array = NDArray[np.float64]

#: sigma_rel of gamma = 0, the uniform average: no gamma >= 0 reaches it or more.
SIGMA_REL_LIMIT = 12**-0.5

#: at and below this gamma the profile is not square-integrable.
GAMMA_LIMIT = -0.5
#: averages shorter than 1e-4 of the run are single checkpoints for any purpose.
GAMMA_MOST = 1e4


class Profile(Protocol):
    """The weighting of an average over training time [0, end].

    F(0) may be above 0: that much weighs the weights that training began with.
    """

    @property
    def end(self) -> float:
        """The time after which nothing weighs any more, in steps."""
        ...

    @property
    def label(self) -> str:
        """What users call it, without its time: ``gamma 7``, ``uniform:last=0.2``."""
        ...

    @property
    def breaks(self) -> tuple[float, ...]:
        """Times at which F is not smooth, in steps; the last is ``end``."""
        ...

    @property
    def exponent(self) -> float:
        """Exponent of the power density that falls off as fast below ``end``; no unit."""
        ...

    @property
    def square_integrable(self) -> bool:
        """Whether the density has an L2 norm."""
        ...

    def cdf(self, t: Array) -> Array:
        """F(t), the weight of everything up to t; shape and dtype as ``t`` (float64)."""
        ...

    def density(self, t: Array) -> Array:
        """p(t) = F'(t) inside (0, end], per step; shape and dtype as ``t`` (float64)."""
        ...


@dataclass(frozen=True, slots=True)
class PowerProfile:
    """The power function profile of exponent ``gamma`` that ends at time ``end``.

    Args:
        gamma: exponent, above -0.5.
        end: time of the average in steps, above 0.

    Raises:
        UsageError: gamma or end is out of range or not finite.
    """

    gamma: float
    end: float

    def __post_init__(self) -> None:
        if not GAMMA_LIMIT < self.gamma <= GAMMA_MOST:
            raise UsageError(
                f"gamma {self.gamma:g} is not above {GAMMA_LIMIT} and up to {GAMMA_MOST:g}"
            )
        _check_end(self.end)

    @property
    def sigma_rel(self) -> float:
        """Relative standard deviation of the profile (no unit)."""
        return sigma_rel_from_gamma(self.gamma)

    @property
    def label(self) -> str:
        """``gamma 7``."""
        return f"gamma {self.gamma:.6g}"

    @property
    def breaks(self) -> tuple[float, ...]:
        """The end."""
        return (self.end,)

    @property
    def exponent(self) -> float:
        """Gamma itself."""
        return self.gamma

    @property
    def square_integrable(self) -> bool:
        """True: gamma is above -0.5."""
        return True

    def cdf(self, t: Array) -> Array:
        """``F(t) = (t/T)^(gamma+1)``, 0 before time 0 and 1 from T on."""
        u: Array = np.clip(t / self.end, 0.0, 1.0)
        return u ** (self.gamma + 1)

    def density(self, t: Array) -> Array:
        """``p(t) = (gamma+1) t^gamma / T^(gamma+1)`` on (0, T], 0 elsewhere."""
        u: Array = t / self.end
        inside = (u > 0) & (u <= 1)
        power = np.where(inside, u, 1.0) ** self.gamma
        return np.where(inside, (self.gamma + 1) / self.end * power, 0.0)


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
    name: str = ""

    def __post_init__(self) -> None:
        _check_end(self.end)
        if not (math.isfinite(self.rate) and self.rate > 0):
            raise UsageError(f"a decay of {self.rate:g} per step is not above 0")

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
        return min(self.rate * self.end, GAMMA_MOST)

    @property
    def square_integrable(self) -> bool:
        """True."""
        return True

    def cdf(self, t: Array) -> Array:
        """``exp(-rate (T - t))`` from 0 to T, 1 from T on."""
        return np.where(t < 0, 0.0, np.exp(-self.rate * np.maximum(self.end - t, 0.0)))

    def density(self, t: Array) -> Array:
        """``rate exp(-rate (T - t))`` on (0, T], 0 elsewhere."""
        return np.where((t > 0) & (t <= self.end), self.rate * self.cdf(t), 0.0)


@dataclass(frozen=True, slots=True)
class WindowProfile:
    """The uniform average over (start, end]; also what a linear cooldown of the learning rate does.

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
    name: str = ""

    def __post_init__(self) -> None:
        _check_end(self.end)
        if not 0 <= self.start < self.end:
            raise UsageError(f"a window from step {self.start:g} to {self.end:g} is empty")

    @property
    def label(self) -> str:
        """``uniform:last=0.2``."""
        return self.name or f"uniform:last={1 - self.start / self.end:.6g}"

    @property
    def breaks(self) -> tuple[float, ...]:
        """Start and end."""
        return (self.start, self.end) if self.start > 0 else (self.end,)

    @property
    def exponent(self) -> float:
        """Flat up to its end."""
        return 0.0

    @property
    def square_integrable(self) -> bool:
        """True."""
        return True

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

    def __post_init__(self) -> None:
        _check_end(self.end)

    @property
    def label(self) -> str:
        """``raw``."""
        return "raw"

    @property
    def breaks(self) -> tuple[float, ...]:
        """The time."""
        return (self.end,)

    @property
    def exponent(self) -> float:
        """A step needs no resolution."""
        return 0.0

    @property
    def square_integrable(self) -> bool:
        """False: all weight is on one point."""
        return False

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

    @property
    def exponent(self) -> float:
        """Piecewise straight."""
        return 1.0

    @property
    def square_integrable(self) -> bool:
        """True."""
        return True

    def _pieces(self) -> tuple[Array, Array, Array]:
        """Times, normalised density there, F there."""
        t, h = np.array(self.times), np.array(self.heights)
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
            parameters[key.strip()] = float(value)
        except ValueError:
            raise UsageError(f"{text}: {part!r} is not a parameter", remedy=HELP) from None
    make = PROFILES[name]
    make(parameters, 1e6, text)
    return ProfileSpec(text, lambda end: make(parameters, end, text))


#: how the profiles are written.
HELP = "uniform:last=0.2, exponential:beta=0.999, exponential:halflife=2000, cooldown:last=0.2, raw"


def _window(parameters: Mapping[str, float], end: float, text: str) -> Profile:
    """``last``: up to 1 a fraction of the time until the target, above 1 a number of steps."""
    if set(parameters) != {"last"} or not 0 < parameters["last"] < math.inf:
        raise UsageError(f"{text}: needs last, a fraction or a number of steps", remedy=HELP)
    last = parameters["last"]
    return WindowProfile(end * (1 - last) if last <= 1 else max(end - last, 0.0), end, text)


def _exponential(parameters: Mapping[str, float], end: float, text: str) -> Profile:
    """``beta`` per step, or ``halflife`` in steps."""
    if set(parameters) == {"beta"} and 0 < parameters["beta"] < 1:
        return ExponentialProfile(-math.log(parameters["beta"]), end, text)
    if set(parameters) == {"halflife"} and 0 < parameters["halflife"] < math.inf:
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


def describe(profile: Profile) -> dict[str, str | float | None]:
    """A profile in a record: its label, gamma and sigma_rel where it has them, and its step."""
    power = profile if isinstance(profile, PowerProfile) else None
    return {
        "profile": profile.label,
        "gamma": None if power is None else power.gamma,
        "sigma_rel": None if power is None else power.sigma_rel,
        "step": profile.end,
    }


def _check_end(end: float) -> None:
    if not (math.isfinite(end) and end > 0):
        raise UsageError(f"step {end:g} is not above 0")


def sigma_rel_from_gamma(gamma: float) -> float:
    """``sigma_rel^2 = (gamma+1) / ((gamma+2)^2 (gamma+3))`` (arXiv:2312.02696, Eq. 123).

    Args:
        gamma: exponent of the power function, above -1.

    Returns:
        sigma_rel, no unit.
    """
    return math.sqrt((gamma + 1) / (gamma + 3)) / (gamma + 2)


def gamma_from_sigma_rel(sigma_rel: float) -> float:
    """The gamma >= 0 whose profile has relative standard deviation ``sigma_rel``.

    Largest real root of ``g^3 + 7 g^2 + (16 - s) g + (12 - s) = 0`` with ``s = sigma_rel^-2``
    (arXiv:2312.02696, Eq. 126).

    Raises:
        UsageError: sigma_rel is not in (1e-4, 12^-1/2).
    """
    if not 1 / GAMMA_MOST < sigma_rel < SIGMA_REL_LIMIT:
        raise UsageError(
            f"sigma_rel {sigma_rel:g} is not between {1 / GAMMA_MOST:g} and {SIGMA_REL_LIMIT:.4f}",
            remedy=f"no gamma >= 0 has a sigma_rel of 12^-1/2 = {SIGMA_REL_LIMIT:.4f} or more",
        )
    s = sigma_rel**-2
    roots = np.roots([1.0, 7.0, 16.0 - s, 12.0 - s])
    return float(np.max(roots.real[np.abs(roots.imag) < 1e-6 * np.abs(roots.real).max()]))
