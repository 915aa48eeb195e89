"""Averaging profiles: how much each moment of training weighs in an average.

A profile is described by its cumulative weight F(t). For the power function ending at T,
``F(t) = (t/T)^(gamma+1)`` (section 3.1 of arXiv:2312.02696, whose equations are named below); gamma
and the relative standard deviation sigma_rel of the profile name the same length of averaging.
"""

import math
from dataclasses import dataclass, field
from typing import ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray

from phema_cli.errors import UsageError

Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Range:
    """Which numbers a key may have.

    Attributes:
        words: the numbers in words, after "must be".
        low: the smallest.
        high: the largest.
        inner: whether ``low`` and ``high`` themselves are outside.
        whole: whether only whole numbers do.
    """

    words: str
    low: float
    high: float = math.inf
    inner: tuple[bool, bool] = (False, False)
    whole: bool = False

    def holds(self, value: float) -> bool:
        """Whether the number is one of them."""
        above = value > self.low if self.inner[0] else value >= self.low
        below = value < self.high if self.inner[1] else value <= self.high
        return above and below and (not self.whole or float(value).is_integer())


#: at and below the least gamma the profile is not square-integrable; averages shorter than 1e-4 of
#: the run are single checkpoints for any purpose.
GAMMA = Range("above -0.5 and at most 10000", -0.5, 1e4, inner=(True, False))
SIGMA_REL = Range("between 0.0001 and 12^-1/2 = 0.2887", 1e-4, 12**-0.5, inner=(True, True))
#: sigma_rel of gamma = 0, the uniform average: no gamma >= 0 reaches it or more.
SIGMA_REL_LIMIT = SIGMA_REL.high


@dataclass(frozen=True, slots=True)
class Sparse:
    """Of a stored average that is updated now and then, not at every step.

    Attributes:
        stride: time from one update to the next.
        stored: when it was stored: before the profile's end if the last update counts for steps to
            come, and after it if that update is long past.
    """

    stride: float
    stored: float


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
        """Times at which F is not smooth, in steps; the last is ``end``.

        Between two of them a polynomial comes close to F: more times cut up what bends much, and
        lie ever closer to where the slope has no bound.
        """
        ...

    @property
    def exponent(self) -> float:
        """Exponent of the power density that falls off as fast below ``end``; no unit."""
        ...

    @property
    def square_integrable(self) -> bool:
        """Whether the density has an L2 norm."""
        ...

    @property
    def sparse(self) -> Sparse | None:
        """How far apart the updates of a stored average are; None if every step is one."""
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
        sparse: see :class:`Profile`.

    Raises:
        UsageError: gamma or end is out of range or not finite.
    """

    gamma: float
    end: float
    sparse: Sparse | None = field(default=None, compare=False)
    square_integrable: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not GAMMA.holds(self.gamma):
            raise UsageError(f"gamma must be {GAMMA.words}, not {self.gamma:g}")
        check_end(self.end)

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


def stored_at(profile: Profile) -> float:
    """The time at which an average was stored: that of its end, if every step is an update."""
    return profile.end if profile.sparse is None else profile.sparse.stored


def check_end(end: float) -> None:
    """Refuse an end of a profile that is no time above 0."""
    if not (math.isfinite(end) and end > 0):
        raise UsageError(f"step {end:g} is not above 0 and finite")


def check_window(start: float, end: float, label: str) -> None:
    """Refuse a beginning that does not lie from 0 up to before an end above 0."""
    if not 0 <= start < end:
        raise UsageError(
            f"{label}: steps {start:g} to {end:g} are not a window", remedy="make last longer"
        )


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
    if not SIGMA_REL.holds(sigma_rel):
        raise UsageError(
            f"sigma_rel must be {SIGMA_REL.words}, not {sigma_rel:g}",
            remedy="pass a smaller one, or --gamma 0 for the longest average"
            if sigma_rel >= SIGMA_REL_LIMIT
            else "pass a larger one",
        )
    s = sigma_rel**-2
    roots = np.roots([1.0, 7.0, 16.0 - s, 12.0 - s])
    return float(np.max(roots.real[np.abs(roots.imag) < 1e-6 * np.abs(roots.real).max()]))
