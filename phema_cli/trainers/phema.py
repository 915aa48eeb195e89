"""phema's own tracker: gamma and step in the metadata and in the name."""

import math
import re
from collections.abc import Mapping
from decimal import Decimal

from phema_cli.errors import PhemaError
from phema_cli.profiles import gamma_from_sigma_rel
from phema_cli.trainers.base import Clock, Reading, Series, StoredFile, law_text, parsed

NAME = "phema"
SOURCE = "phema itself: phema_cli/tracker"

#: ``<prefix>-step0001000-gamma5``, as the tracker writes; both numbers count only together.
_NAME = re.compile(
    r"(?:.*-)?step(?P<step>\d+(?:\.\d+)?(?:e[-+]\d+)?)-gamma(?P<gamma>(?:=-)?\d+(?:\.\d+)?(?:e[-+]\d+)?)"
)
_FIELDS = ("gamma", "sigma_rel")
#: names have six digits.
_DIGITS = 1e-5


def read(file: StoredFile) -> Reading | None:
    """A snapshot with gamma and step in its metadata, or in its name, which has nothing else."""
    named = file.matches(_NAME)
    gamma = None if named is None else named["gamma"].removeprefix("=")
    entries = {f: file.metadata[f] for f in _FIELDS if f in file.metadata}
    if not entries and (gamma is None or len(file.dicts) != 1):
        return None
    clock = None if named is None else Clock(float(named["step"]), "steps", "step", "name")
    if "step" in file.metadata:
        clock = Clock(parsed(file.metadata["step"]), "steps", "step")
    within, tensors = next(iter(file.dicts.items()), (".", {}))
    if entries:
        field, value = next(iter(entries.items()))
        law, doubt = law_text("power", **{field: parsed(value)}), _doubt(entries, gamma)
        return Reading((Series(tensors, "average", within, law=law, doubt=doubt),), clock)
    law = f"power:gamma={gamma}"
    return Reading((Series(tensors, "average", within, law=law, evidence="name"),), clock)


def _doubt(entries: Mapping[str, str], named: str | None) -> str | None:
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
        exponent = int(Decimal(named).as_tuple().exponent)
        slack = 0.5 * 10.0**exponent + _DIGITS if exponent < 0 else 0.0
        found.append(("its name", float(named), slack))
    (first, one, slack), *others = found
    for where, other, also in others:
        if abs(one - other) > max(slack, also):
            return f"its gamma is {one:.10g} by {first} and {other:.10g} by {where}"
    return None
