"""What a run would have given, had its learning rate been decayed at the end: docs/merging.md."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import count, takewhile
from typing import ClassVar, Literal, get_args

import numpy as np

from phema_cli.errors import UsageError
from phema_cli.profiles.base import Array, check_end, check_window

#: the decays that are no straight line; that one is the uniform average of the window.
Curve = Literal["cosine", "sqrt"]
#: cells towards a singular start: the n-th is 2^-n of the first step wide. What is below the last
#: one adds less than 1e-9 to an error that steps of full width leave.
_HALVINGS = 12


@dataclass(frozen=True, slots=True)
class DecayProfile:
    """A learning rate that falls from its full value at ``start`` to 0 at ``end``.

    An update at fraction u of the window counts by what the schedule leaves of the learning rate,
    f(u) = (1 + cos(pi u))/2 for ``cosine`` and 1 - sqrt(u) for ``sqrt``. So ``F(u) = 1 - f(u)``.

    Args:
        start: where the window begins, in steps, at least 0.
        end: where it ends.
        curve: how the learning rate falls.
        name: what the user called it.

    Raises:
        UsageError: start is not in [0, end), or there is no such curve.
    """

    start: float
    end: float
    curve: Curve
    name: str = ""
    exponent: ClassVar[float] = 0.0
    sparse: ClassVar[None] = None

    def __post_init__(self) -> None:
        check_end(self.end)
        check_window(self.start, self.end, self.label)
        if self.curve not in get_args(Curve):
            raise UsageError(f"no curve {self.curve!r}", remedy="one of cosine, sqrt")

    @property
    def label(self) -> str:
        """``decay:last=0.2,shape=sqrt``."""
        share = 1 - self.start / self.end
        return self.name or f"decay:last={share:.6g},shape={self.curve}"

    @property
    def square_integrable(self) -> bool:
        """Not that of ``sqrt``: its density is 1/sqrt(u) at the start."""
        return self.curve != "sqrt"

    @property
    def _first(self) -> float:
        """The width of the first step, in steps: 1, or the whole window."""
        return min(1.0, self.end - self.start)

    @property
    def breaks(self) -> tuple[float, ...]:
        """Start, middle and end, and for ``sqrt`` distances from the start that double."""
        span = self.end - self.start
        found = [self.start, self.start + span / 2, self.end]
        if self.curve == "sqrt":
            widths = (self._first * 2.0**k for k in count(-_HALVINGS))
            found += [self.start + width for width in takewhile(lambda w: w < span, widths)]
        return tuple(sorted({time for time in found if 0 < time <= self.end}))

    def cdf(self, t: Array) -> Array:
        """``1 - f(u)`` inside, 0 before and 1 after."""
        u: Array = np.clip((t - self.start) / (self.end - self.start), 0.0, 1.0)
        return np.sqrt(u) if self.curve == "sqrt" else np.sin(np.pi / 2 * u) ** 2

    def density(self, t: Array) -> Array:
        """``-f'(u)/(end - start)`` inside, 0 elsewhere; over the first step of ``sqrt``, its mean.

        No update is split, so no time weighs more than that mean: the noise of a single update
        counts by the square of its weight, which is finite.
        """
        span, inside = self.end - self.start, (t > self.start) & (t <= self.end)
        if self.curve == "sqrt":
            after = np.maximum(t - self.start, 0.0)
            late = after > self._first
            slope = 0.5 / np.sqrt(np.where(late, after, 1.0) * span)
            height = np.where(late, slope, 1 / np.sqrt(self._first * span))
        else:
            height = np.pi / 2 / span * np.sin(np.pi * (t - self.start) / span)
        return np.where(inside, height, 0.0)


#: what ``shape`` may be; None for the straight line.
SHAPES: Mapping[str, Curve | None] = {"linear": None, "cosine": "cosine", "sqrt": "sqrt"}
