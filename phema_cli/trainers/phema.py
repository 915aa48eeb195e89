"""phema's own tracker: gamma and step in the metadata and in the name."""

from __future__ import annotations

import math
from collections.abc import Mapping
from decimal import Decimal

from phema_cli.errors import PhemaError
from phema_cli.profiles import gamma_from_sigma_rel
from phema_cli.trainers.base import Clock, Reading, Series, StoredFile, parsed, text
from phema_cli.trainers.clocks import own_name

NAME = "phema"
FILES = "`<name>-step0001000-gamma5.safetensors`"
CALL = "`phema inspect DIR`"
SOURCE = "phema itself: phema_cli/tracker"

_FIELDS = ("gamma", "sigma_rel")
#: names have six digits.
_DIGITS = 1e-5


def read(file: StoredFile) -> Reading | None:
    """A snapshot with gamma and step in its metadata, or in its name, which has nothing else."""
    named = own_name(file.name)
    entries = {f: file.metadata[f] for f in _FIELDS if f in file.metadata}
    if not entries and (named is None or len(file.dicts) != 1):
        return None
    clock = None if named is None else named[0]
    if "step" in file.metadata:
        clock = Clock(parsed(file.metadata["step"]), "steps", "step")
    within, tensors = next(iter(file.dicts.items()), (".", {}))
    if entries:
        field, value = next(iter(entries.items()))
        law, doubt = f"power:{field}={text(parsed(value))}", _doubt(entries, named)
        return Reading((Series(tensors, "average", within, law=law, doubt=doubt),), clock)
    own = f"power:gamma={named[1]}" if named else None
    return Reading((Series(tensors, "average", within, law=own, evidence="name"),), clock)


def _doubt(entries: Mapping[str, str], named: tuple[Clock, str] | None) -> str | None:
    """Which entry is not a number, or how gamma, sigma_rel and the name contradict each other."""
    found = []
    for field, value in entries.items():
        if not math.isfinite(number := parsed(value)):
            return f"its {field} is {value!r:.80}, not a number"
        try:
            gamma = number if field == "gamma" else gamma_from_sigma_rel(number)
        except PhemaError as error:
            return error.what
        found.append((f"its entry {field}", gamma, _DIGITS * (abs(gamma) + 1)))
    if named is not None:
        # Names are rounded to half of their last decimal.
        exponent = int(Decimal(named[1]).as_tuple().exponent)
        slack = 0.5 * 10.0**exponent + _DIGITS if exponent < 0 else 0.0
        found.append(("its name", float(named[1]), slack))
    (first, one, slack), *others = found
    for where, other, also in others:
        if abs(one - other) > max(slack, also):
            return f"its gamma is {one:.10g} by {first} and {other:.10g} by {where}"
    return None
