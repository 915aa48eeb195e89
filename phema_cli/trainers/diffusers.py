"""diffusers: ``EMAModel``."""

from __future__ import annotations

import math

from phema_cli.profiles.grammar import BETA, CALLS, EVERY, FLAG, FLOOR, POSITIVE, Numbers
from phema_cli.profiles.laws import Key, LawForm
from phema_cli.profiles.rates import Rates, inverse, ratio
from phema_cli.profiles.schedules import Schedule


def _schedule(numbers: Numbers) -> Schedule:
    """``update_after + 1`` calls copy; then s counts from 1. The floor wins over the cap."""
    every, least = int(numbers["every"]), -math.log(numbers["beta"])
    most = -math.log(numbers["min"]) if numbers["min"] else math.inf
    if numbers["warmup"]:
        growth = (numbers["inv_gamma"], numbers["power"])
        rates = Rates(inverse, growth, least=least, most=most)
    else:
        rates = Rates(ratio, least=least, most=most)
    return Schedule(rates, every, every * (int(numbers["update_after"]) + 1), wide=True)


LAWS = {
    "diffusers": LawForm(
        "diffusers",
        "decay (1 + s)/(10 + s), with warmup 1 - (1 + s/inv_gamma)^-power, between min and beta, "
        "at call n with s = n - update_after - 1; 0 (a copy) up to s = 0",
        "diffusers, training_utils.py, EMAModel",
        "diffusers:beta=0.9999,warmup=1,power=0.75",
        (
            Key("beta", "the greatest decay (decay)", BETA),
            Key("min", "the smallest decay (min_decay)", FLOOR, 0),
            Key("inv_gamma", "unit of the warm-up", POSITIVE, 1),
            Key("power", "exponent of the warm-up", POSITIVE, 2 / 3),
            Key("update_after", "calls before averaging begins (update_after_step)", CALLS, 0),
            Key("warmup", "whether use_ema_warmup is set", FLAG, 0),
            EVERY,
        ),
        _schedule,
        one_of=("beta",),
    )
}
