"""ema-pytorch and posthoc-ema: ``EMA``, ``KarrasEMA`` and ``PostHocEMA``, alone or in any dict."""

import math
import re
from collections.abc import Iterator
from dataclasses import replace

from phema_cli.errors import UsageError
from phema_cli.profiles import Profile
from phema_cli.profiles.base import GAMMA, SIGMA_REL
from phema_cli.profiles.grammar import (
    BETA,
    COUNT,
    EVERY,
    FLOOR,
    POSITIVE,
    STEPS,
    Numbers,
    effective_power,
    gamma_of,
)
from phema_cli.profiles.laws import Key, LawForm
from phema_cli.profiles.schedules import SLACK, Rates, Schedule, inverse, power_function
from phema_cli.trainers.base import Clock, Reading, Series, StoredFile, Tensors, under, without

NAME = "ema-pytorch"
SOURCE = "lucidrains/ema-pytorch, ema_pytorch.py, post_hoc_ema.py; nextml-code/pytorch-posthoc-ema"

_NAME = re.compile(r"(?P<index>\d+)\.(?P<step>\d+)")
_COUNTED = re.compile(r"(?:.*\.)?ema_models\.(?P<index>\d+)\.initted")
_MARKS = ("initted", "step")
_AVERAGE, _ONLINE = "ema_model.", "online_model."
_SPACING = "ema-pytorch's update_every is taken as 1; its default is 100"


def read(file: StoredFile) -> Reading | None:
    """Each average in each dict, and the raw weights that lie beside it there."""
    series: list[Series] = []
    clock = None
    for within, tensors in file.dicts.items():
        for prefix in _prefixes(tensors):
            clock = clock or _clock(file, tensors, prefix)
            series += _series(file, within, tensors, prefix)
    return Reading(tuple(series), clock) if series else None


def _prefixes(tensors: Tensors) -> Iterator[str]:
    """The prefix of each average: its counter and its flag have it too."""
    for name in tensors:
        if name.endswith("initted") and tensors[name].shape in {(), (1,)}:
            prefix = name.removesuffix("initted")
            if f"{prefix}step" in tensors and (not prefix or prefix.endswith(".")):
                yield prefix


def _series(file: StoredFile, within: str, tensors: Tensors, prefix: str) -> Iterator[Series]:
    """The average below a prefix, and the raw weights unless the trainer stores them."""
    own = {n: t for n, t in under(tensors, prefix).items() if n not in _MARKS}
    average = under(own, _AVERAGE) or without(own, _ONLINE)
    named, counted = file.matches(_NAME), _COUNTED.fullmatch(f"{prefix}initted")
    calls = _calls(file, tensors, prefix)
    index = named["index"] if named else counted["index"] if counted else None
    yield Series(
        average,
        "average",
        within,
        prefix,
        grows=None if index else "ema-pytorch",
        power="ema-pytorch",
        spacing_warning=_SPACING,
        index=None if index is None else int(index),
        first_index=0,
        updates=calls if index is None else None,
        hint=None if index else "ema-pytorch:beta=0.9999,every=10,update_after=100",
        label=None if index is None else f"average {index}",
    )
    rest = without(tensors, *_prefixes(tensors))
    online = under(own, _ONLINE)
    if prefix and rest and (counted is None or counted["index"] == "0"):
        yield Series(rest, "raw", within)
    elif online and len(file.dicts) == 1:
        # Without another dict no trainer has stored the raw weights once more.
        yield Series(online, "raw", within, f"{prefix}{_ONLINE}")


def _clock(file: StoredFile, tensors: Tensors, prefix: str) -> Clock | None:
    """Calls of ``update``. PostHocEMA rounds its counter, so that its names are more exact.

    posthoc-ema makes its first call later than at step 1, and its averages begin there.
    """
    done = _calls(file, tensors, prefix)
    if named := file.matches(_NAME):
        step = float(named["step"])
        if done and done < step:
            return Clock(done, "steps", "step")
        return Clock(step, "steps", "step", "name")
    return None if done is None else Clock(done, "steps", f"{prefix}step", weak=True)


def _calls(file: StoredFile, tensors: Tensors, prefix: str) -> float | None:
    """How often ``update`` was called, if the counter is exact."""
    counter = tensors[f"{prefix}step"]
    return file.value(counter) if counter.dtype.kind == "exact" else None


def _schedule(numbers: Numbers) -> Schedule:
    """Updates follow steps 1, N + 1, ...; those up to step ``update_after + 1`` copy."""
    every, gamma = int(numbers["every"]), gamma_of(numbers)
    if gamma is not None:
        return _karras(numbers, gamma, every)
    after = int(numbers["update_after"])
    copied = 1 + after // every * every
    least = -math.log(numbers["beta"])
    rates = Rates(
        inverse,
        (numbers["inv_gamma"], numbers["power"]),
        offset=copied - 1 - after,
        stride=every,
        least=least,
        # The cap wins over the floor.
        most=max(-math.log(numbers["min"]), least) if numbers["min"] else math.inf,
    )
    return Schedule(rates, every, copied, wide=True)


def _karras(numbers: Numbers, gamma: float, every: int) -> Schedule:
    """The decay after step n is that of t = n + 1; the first update copies before it averages."""
    others = {k.name for k in LAW.keys if k.default not in {None, numbers.get(k.name)}} - {"every"}
    if others:
        raise UsageError(
            f"ema-pytorch: an average of one gamma has no {', '.join(sorted(others))}",
            remedy="leave them out, or give beta for an average of class EMA",
        )
    rates = Rates(power_function, (gamma + 1,), offset=2.0, stride=every)
    return Schedule(rates, every, 1, wide=True)


def _law_profile(numbers: Numbers, step: float, _: str) -> Profile | None:
    """A power function of t = n + 1, updated after step 1 and every N steps later."""
    gamma, every = gamma_of(numbers), int(numbers["every"])
    if gamma is None:
        return None
    _karras(numbers, gamma, every)
    updated = every * ((step - 1 + SLACK) // every) + 2
    return effective_power(gamma, updated, every, step + 1)


LAW = LawForm(
    "ema-pytorch",
    "by beta: decay 1 - (1 + s/inv_gamma)^-power between min and beta after step n with "
    "s = n - update_after - 1, a copy up to s = 0; by gamma: (1 - 1/t)^(gamma + 1) with "
    "t = n + 1; after steps 1, N + 1, 2N + 1, ...",
    "ema_pytorch, ema_pytorch.py and post_hoc_ema.py",
    "ema-pytorch:beta=0.995,every=10",
    (
        Key("beta", "the greatest decay, of class EMA", BETA),
        Key("gamma", "exponent of the power function, of KarrasEMA and PostHocEMA", GAMMA),
        Key("sigma_rel", "its width relative to the time so far", SIGMA_REL),
        Key("inv_gamma", "unit of the warm-up", POSITIVE, 1),
        Key("power", "exponent of the warm-up", POSITIVE, 2 / 3),
        Key("update_after", "steps before averaging begins (update_after_step)", STEPS, 100),
        Key("min", "the smallest decay (min_value)", FLOOR, 0),
        replace(EVERY, meaning="steps between two updates (update_every)", range=COUNT, default=10),
    ),
    _schedule,
    one_of=("beta", "gamma", "sigma_rel"),
    closed=_law_profile,
)
