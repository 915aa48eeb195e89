"""timm: ``ModelEmaV3`` as its training script calls it. V1 and V2 are ``exponential``."""

from __future__ import annotations

import math

from phema_cli.profiles.grammar import BETA, CALLS, EVERY, FLAG, FLOOR, POSITIVE, Numbers
from phema_cli.profiles.laws import Key, LawForm
from phema_cli.profiles.rates import Rates, constant, inverse
from phema_cli.profiles.schedules import Schedule


def _schedule(numbers: Numbers) -> Schedule:
    """``update_after + 1`` calls copy; then s counts from 1. The floor wins over the cap."""
    every, least = int(numbers["every"]), -math.log(numbers["beta"])
    if numbers["warmup"]:
        growth = (numbers["gamma"], numbers["power"])
        most = -math.log(numbers["min"]) if numbers["min"] else math.inf
        rates = Rates(inverse, growth, least=least, most=most)
    else:
        rates = Rates(constant, least=least)
    return Schedule(rates, every, every * (int(numbers["update_after"]) + 1), wide=True)


LAWS = {
    "timm": LawForm(
        "timm",
        "decay beta, with warmup 1 - (1 + s/gamma)^-power between min and beta, at step n with "
        "s = n - update_after - 1; 0 (a copy) up to s = 0",
        "timm, utils/model_ema.py, ModelEmaV3",
        "timm:beta=0.9998,warmup=1",
        (
            Key("beta", "the greatest decay (decay)", BETA),
            Key("warmup", "whether use_warmup is set", FLAG, 0),
            Key("gamma", "unit of the warm-up (warmup_gamma)", POSITIVE, 1),
            Key("power", "exponent of the warm-up (warmup_power)", POSITIVE, 2 / 3),
            Key("update_after", "steps before averaging begins (update_after_step)", CALLS, 0),
            Key("min", "the smallest decay of a warm-up (min_decay)", FLOOR, 0),
            EVERY,
        ),
        _schedule,
        one_of=("beta",),
    )
}
