"""phema's own tracker: gamma and step in the metadata and in the name."""

from __future__ import annotations

from collections.abc import Mapping

from phema_cli.errors import PhemaError
from phema_cli.profiles import gamma_from_sigma_rel
from phema_cli.trainers.base import Clock, Reading, Series, StoredFile, number
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
        law, doubt = f"power:{field}={value}", _doubt(said, named[1] if named else None)
        return Reading((Series(tensors, "average", within, law=law, doubt=doubt),), clock)
    own = f"power:gamma={named[1]}" if named else None
    return Reading((Series(tensors, "average", within, law=own, evidence="name"),), clock)


def _doubt(said: Mapping[str, str], named: str | None) -> str | None:
    """How gamma, sigma_rel and the name contradict each other, if they do."""
    found = [(f"its {field}", _gamma(field, value)) for field, value in said.items()]
    found += [] if named is None else [("its name", _gamma("gamma", named))]
    (first, one), *others = found
    for where, other in others:
        if abs(one - other) > _DIGITS * (abs(one) + 1):
            return f"its gamma is {one:.10g} by {first} and {other:.10g} by {where}"
    return None


def _gamma(field: str, value: str) -> float:
    """A gamma, written as itself or as sigma_rel; NaN where it is none."""
    try:
        return number(value) if field == "gamma" else gamma_from_sigma_rel(number(value))
    except PhemaError:
        return float("nan")
