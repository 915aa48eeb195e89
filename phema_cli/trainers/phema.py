"""phema's own tracker: gamma and step in the metadata and in the name."""

from __future__ import annotations

import math
from collections.abc import Mapping
from decimal import Decimal

from phema_cli.errors import PhemaError
from phema_cli.profiles import gamma_from_sigma_rel
from phema_cli.trainers.base import Clock, Reading, Series, StoredFile, number, text
from phema_cli.trainers.names import own_name

NAME = "phema"
FILES = "`<name>-step0001000-gamma5.safetensors`"
CALL = "`phema inspect DIR`"
SOURCE = "phema itself: phema_cli/tracker"

_FIELDS = ("gamma", "sigma_rel")
#: names have six digits.
_DIGITS = 1e-5


def read(file: StoredFile) -> Reading | None:
    """A snapshot whose metadata, or whose whole name, say gamma and step."""
    named = own_name(file.name)
    said = {f: file.metadata[f] for f in _FIELDS if f in file.metadata}
    if not said and (named is None or len(file.dicts) != 1):
        return None
    clock = None if named is None else named[0]
    if "step" in file.metadata:
        clock = Clock(number(file.metadata["step"]), "steps", "step")
    within, tensors = next(iter(file.dicts.items()), (".", {}))
    if said:
        field, value = next(iter(said.items()))
        law, doubt = f"power:{field}={text(number(value))}", _doubt(said, named)
        return Reading((Series(tensors, "average", within, law=law, doubt=doubt),), clock)
    own = f"power:gamma={named[1]}" if named else None
    return Reading((Series(tensors, "average", within, law=own, evidence="name"),), clock)


def _doubt(said: Mapping[str, str], named: tuple[Clock, str] | None) -> str | None:
    """Which value is none, or how gamma, sigma_rel and the name contradict each other."""
    found = []
    for field, value in said.items():
        if not math.isfinite(given := number(value)):
            return f"its {field} is {value!r:.80}, not a number"
        try:
            gamma = given if field == "gamma" else gamma_from_sigma_rel(given)
        except PhemaError as error:
            return error.what
        found.append((f"its entry {field}", gamma, _DIGITS * (abs(gamma) + 1)))
    if named is not None:
        found.append(("its name", float(named[1]), _half_digit(named[1])))
    (first, one, slack), *others = found
    for where, other, also in others:
        if abs(one - other) > max(slack, also):
            return f"its gamma is {one:.10g} by {first} and {other:.10g} by {where}"
    return None


def _half_digit(written: str) -> float:
    """How far a number in a name may be from what it was rounded from: half its last decimal."""
    exponent = int(Decimal(written).as_tuple().exponent)
    return 0.5 * 10.0**exponent + _DIGITS if exponent < 0 else 0.0
