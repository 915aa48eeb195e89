"""Decay laws as users write them, ``NAME:key=value,...``: their keys, ranges and profiles."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np

from phema_cli.errors import UsageError
from phema_cli.profiles.base import (
    GAMMA,
    PowerProfile,
    Profile,
    Range,
    Sparse,
    gamma_from_sigma_rel,
)
from phema_cli.profiles.schedules import Schedule, ScheduleProfile

Numbers = Mapping[str, float]
_Value = TypeVar("_Value")
#: points of time at which two laws are compared, in each of several spacings.
_POINTS = 2000


#: of whole numbers; above, not each one is exact as a float.
MOST_EXACT = 1 << 53
BETA = Range("between 0 and 1", 0, 1, inner=(True, True))
CAP = Range("above 0 and at most 1", 0, 1, inner=(True, False))
FLOOR = Range("at least 0 and below 1", 0, 1, inner=(False, True))
POSITIVE = Range("from 1e-9 to 2^53", 1e-9, MOST_EXACT)
COUNT = Range("a whole number from 1 on", 1, MOST_EXACT, whole=True)
STEPS = Range("a whole number from 0 on", 0, MOST_EXACT, whole=True)
CALLS = Range("a whole number from -1 on", -1, MOST_EXACT, whole=True)
FLAG = Range("0 or 1", 0, 1, whole=True)


@dataclass(frozen=True, slots=True)
class Key:
    """A number of a law.

    Attributes:
        name: what stands before ``=``.
        meaning: what it is, in a few words.
        range: the numbers that it may be.
        default: its value where it is left out; None where it must be given, or may be missing.
    """

    name: str
    meaning: str
    range: Range
    default: float | None = None


EVERY = Key("every", "steps between two updates", COUNT, 1)
START = Key("start", "steps before averaging begins; up to then the weights are copied", STEPS, 0)


@dataclass(frozen=True, slots=True)
class LawForm:
    """A kind of decay law: its keys, and what their numbers make.

    Attributes:
        name: what it is called.
        formula: the decay, in a line.
        source: where it comes from: a library's file, or a paper.
        example: a law of this kind.
        keys: its numbers, in the order in which they are written.
        schedule: the updates and their decays; None for what has no updates of its own.
        one_of: keys of which exactly one must be given.
        closed: the profile where it has a closed form; None where it has none for these numbers.
    """

    name: str
    formula: str
    source: str
    example: str
    keys: tuple[Key, ...]
    schedule: Callable[[Numbers], Schedule] | None = None
    one_of: tuple[str, ...] = ()
    closed: Callable[[Numbers, float, str], Profile | None] | None = None

    def law(self, /, **numbers: float) -> Law:
        """The law of these numbers; a key that is left out has its default.

        Raises:
            UsageError: an unknown or a missing key, or a number out of its range.
        """
        keys = {key.name: key for key in self.keys}
        for name, value in numbers.items():
            if name not in keys:
                raise self._error(f"has no key {name!r}")
            if not keys[name].range.holds(value):
                raise self._error(f"{name} must be {keys[name].range.words}, not {value:.10g}")
        given = [name for name in self.one_of if name in numbers]
        if self.one_of and len(given) != 1:
            needed = " or ".join(self.one_of)
            what = f"{' and '.join(given)} exclude each other" if given else f"needs {needed}"
            raise self._error(what)
        unusual = [k.name for k in self.keys if numbers.get(k.name, k.default) != k.default]
        law = Law(self.name, tuple((name, float(numbers[name])) for name in unusual), self)
        # Numbers that do not go together are refused now, not at the first snapshot.
        law.profile(1e6)
        return law

    def read(self, text: str) -> Law:
        """The law that ``key=value,...`` means, what stands after the name.

        Raises:
            UsageError: as :meth:`law` does, or a key given twice or without a number.
        """
        return self.law(**keyed(text, _number, "key=number", self._error))

    @property
    def usage(self) -> str:
        """All its keys: ``exponential:beta=|halflife=,every=1,start=0``."""
        written = ["|".join(f"{name}=" for name in self.one_of)] if self.one_of else []
        for key in self.keys:
            if key.name not in self.one_of:
                default = "" if key.default is None else _number_text(float(key.default))
                written.append(f"{key.name}={default}")
        return f"{self.name}:{','.join(written)}" if written else self.name

    def _error(self, what: str) -> UsageError:
        return UsageError(f"{self.name}: {what}", remedy=f"write {self.usage}, as {self.example}")


@dataclass(frozen=True, slots=True)
class Law:
    """How a stored average weighs the steps of training: a name and its numbers.

    Attributes:
        name: the form's.
        values: the numbers that are not the form's defaults, in its order.
        form: what they mean.
    """

    name: str
    values: tuple[tuple[str, float], ...]
    form: LawForm = field(compare=False, repr=False)

    @property
    def parameters(self) -> dict[str, float]:
        """All its numbers by key, with the defaults."""
        defaults = {k.name: k.default for k in self.form.keys if k.default is not None}
        return defaults | dict(self.values)

    @property
    def text(self) -> str:
        """What ``--average`` takes: ``exponential:beta=0.999,every=10``."""
        numbers = ",".join(f"{name}={_number_text(value)}" for name, value in self.values)
        return f"{self.name}:{numbers}" if numbers else self.name

    @property
    def label(self) -> str:
        """What tables show: ``gamma 5``, else the text."""
        named = {"gamma", "sigma_rel"} & dict(self.values).keys()
        if self.gamma is None or not named or "start" in dict(self.values):
            return self.text
        return f"gamma {self.gamma:.10g}"

    @property
    def gamma(self) -> float | None:
        """The exponent of a power function, as the trainer has it set; None of other laws."""
        return gamma_of(self.parameters) if "gamma" in self.form.one_of else None

    def profile(self, step: float) -> Profile:
        """The profile after ``step`` steps of the trainer.

        Raises:
            UsageError: the step is not above 0 and finite.
        """
        numbers, form = self.parameters, self.form
        found = form.closed(numbers, step, self.text) if form.closed is not None else None
        if found is not None:
            return found
        if form.schedule is None:
            raise TypeError(f"the form {self.name} has neither updates nor a closed profile")
        return ScheduleProfile(form.schedule(numbers), step, self.label)

    def replace(self, /, **numbers: float) -> Law:
        """The law with other numbers: ``law.replace(every=10)``.

        Raises:
            UsageError: as :meth:`LawForm.law` does.
        """
        instead = set(numbers) & set(self.form.one_of)
        kept = {n: v for n, v in self.values if not (instead and n in self.form.one_of)}
        return self.form.law(**(kept | numbers))

    def distance(self, other: Law, step: float) -> float:
        """The largest difference of the two cumulative weights over time, after ``step`` steps."""
        one, two = self.profile(step), other.profile(step)
        end = max(one.end, two.end)
        spread = np.geomspace(1e-12, 1.0, _POINTS) * end
        marks = np.array([0.0, *one.breaks, *two.breaks])
        around = (marks[:, None] + np.concatenate([-spread, [0.0], spread])).ravel()
        times = np.concatenate([np.linspace(0.0, end, _POINTS), around])
        times = times[(times >= 0) & (times <= end)]
        return float(np.abs(one.cdf(times) - two.cdf(times)).max())


_POWERS: Mapping[str, Callable[[float], float]] = {
    "gamma": lambda gamma: gamma,
    "sigma_rel": gamma_from_sigma_rel,
    "halflife": lambda fraction: math.log(2) / fraction - 1,
}


def gamma_of(numbers: Numbers) -> float | None:
    """Gamma of a power function that is given by one of several numbers; None where none is."""
    return next((exponent(numbers[n]) for n, exponent in _POWERS.items() if n in numbers), None)


class TooLongError(UsageError):
    """An average is too long to be of use."""


def effective_power(gamma: float, updated: float, every: int, time: float) -> PowerProfile:
    """The profile of a power function whose decay of one step is applied at every N-th only.

    The product of ``(1 - 1/t)^(gamma+1)`` over every N-th t falls as one of ``(gamma+1)/N``. The
    last update, at ``updated``, stands for the N steps around it.

    Raises:
        TooLongError: that is too small.
    """
    found = (gamma + 1) / every - 1
    if found <= GAMMA.low:
        raise TooLongError(
            f"gamma {gamma:.6g} averaged at every {every}th step is gamma {found:.4g} in effect, "
            f"not above {GAMMA.low}: the average is too long to be of use",
            remedy="check --update-every",
        )
    if every == 1:
        return PowerProfile(found, time)
    return PowerProfile(found, updated + (every - 1) / 2, Sparse(every, time))


def keyed(
    text: str,
    value_of: Callable[[str], _Value | None],
    wanted: str,
    error: Callable[[str], UsageError],
) -> dict[str, _Value]:
    """The values in ``key=value,...`` by their keys; none in an empty text.

    ``value_of`` reads a value, None where it is none; ``wanted`` is what errors say is missing.

    Raises:
        UsageError: a part without a value, or a key given twice; ``error`` makes it of its message.
    """
    values: dict[str, _Value] = {}
    for part in text.split(",") if text else ():
        key, equals, written = (piece.strip() for piece in part.partition("="))
        value = value_of(written) if equals else None
        if value is None:
            raise error(f"{part!r} is not {wanted}")
        if key in values:
            raise error(f"{key} is given twice")
        values[key] = value
    return values


def number_of(text: str) -> float | None:
    """The number that a text is; None if it is none."""
    try:
        return float(text)
    except ValueError:
        return None


def _number(text: str) -> float | None:
    """A number, or a fraction of two; None where it is neither."""
    above, slash, below = text.partition("/")
    try:
        return float(above) / float(below) if slash else float(above)
    except (ValueError, ZeroDivisionError, OverflowError):
        return None


def _number_text(value: float) -> str:
    """The shortest text that means the number: ``2/3`` and not its sixteen digits."""
    if value.is_integer() and abs(value) < MOST_EXACT:
        return str(int(value))
    thirds = round(3 * value)
    return f"{thirds}/3" if thirds / 3 == value else repr(value)
