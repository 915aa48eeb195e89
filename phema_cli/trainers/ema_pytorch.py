"""ema-pytorch: ``EMA``, ``KarrasEMA`` and ``PostHocEMA``."""

from __future__ import annotations

import math
from dataclasses import replace

from phema_cli.errors import UsageError
from phema_cli.profiles import Profile
from phema_cli.profiles.grammar import (
    BETA,
    COUNT,
    EVERY,
    FLOOR,
    GAMMA,
    POSITIVE,
    SIGMA_REL,
    STEPS,
    Numbers,
    effective,
    power_of,
)
from phema_cli.profiles.laws import Key, LawForm
from phema_cli.profiles.rates import Rates, inverse, power_function
from phema_cli.profiles.schedules import SLACK, Schedule


def _schedule(numbers: Numbers) -> Schedule:
    """Updates follow steps 1, N + 1, ...; those up to step ``update_after + 1`` copy."""
    every, gamma = int(numbers["every"]), power_of(numbers)
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
    others = {k.name for k in _KEYS if k.default not in {None, numbers.get(k.name)}} - {"every"}
    if others:
        raise UsageError(
            f"ema-pytorch: an average of one gamma has no {', '.join(sorted(others))}",
            remedy="leave them out, or give beta for an average of class EMA",
        )
    rates = Rates(power_function, (gamma + 1,), offset=2.0, stride=every)
    return Schedule(rates, every, 1, wide=True)


def _profile(numbers: Numbers, step: float, _: str) -> Profile | None:
    """A power function of t = n + 1; each update stands for N steps, so the last one ends later."""
    gamma, every = power_of(numbers), int(numbers["every"])
    if gamma is None:
        return None
    _karras(numbers, gamma, every)
    return effective(gamma, every * ((step - 1 + SLACK) // every + 0.5) + 1.5, every)


_KEYS = (
    Key("beta", "the greatest decay, of class EMA", BETA),
    Key("gamma", "exponent of the power function, of KarrasEMA and PostHocEMA", GAMMA),
    Key("sigma_rel", "its width relative to the time so far", SIGMA_REL),
    Key("inv_gamma", "unit of the warm-up", POSITIVE, 1),
    Key("power", "exponent of the warm-up", POSITIVE, 2 / 3),
    Key("update_after", "steps before averaging begins (update_after_step)", STEPS, 100),
    Key("min", "the smallest decay (min_value)", FLOOR, 0),
    replace(EVERY, meaning="steps between two updates (update_every)", range=COUNT, default=10),
)

LAWS = {
    "ema-pytorch": LawForm(
        "ema-pytorch",
        "by beta: decay 1 - (1 + s/inv_gamma)^-power between min and beta after step n with "
        "s = n - update_after - 1, a copy up to s = 0; by gamma: (1 - 1/t)^(gamma + 1) with "
        "t = n + 1; after steps 1, N + 1, 2N + 1, ...",
        "ema_pytorch, ema_pytorch.py and post_hoc_ema.py",
        "ema-pytorch:beta=0.995,every=10",
        _KEYS,
        _schedule,
        one_of=("beta", "gamma", "sigma_rel"),
        closed=_profile,
    )
}
