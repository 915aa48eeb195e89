"""k-diffusion: ``model_ema`` beside ``model``, and its law in ``ema_sched``."""

import math

from phema_cli.profiles.grammar import CAP, EVERY, FLOOR, POSITIVE, STEPS, Numbers
from phema_cli.profiles.laws import Key, LawForm
from phema_cli.profiles.schedules import Rates, Schedule, inverse
from phema_cli.trainers.base import Clock, Reading, Series, StoredFile, law_text

NAME = "k-diffusion"
SOURCE = "crowsonkb/k-diffusion, train.py, k_diffusion/utils.py"

_SCHEDULE = "ema_sched"
_SETTINGS = (
    ("inv_gamma", "inv_gamma"),
    ("power", "power"),
    ("min_value", "min"),
    ("max_value", "beta"),
    ("start_at", "start"),
)


def read(file: StoredFile) -> Reading | None:
    """``last_epoch`` counts the updates."""
    updates = file.number(_SCHEDULE, "last_epoch")
    if updates is None or "model_ema" not in file.dicts:
        return None
    law = law_text("k-diffusion", **{key: file.number(_SCHEDULE, name) for name, key in _SETTINGS})
    step = file.number("step")
    clock = Clock(updates if step is None else step, "steps", "step")
    average = Series(file.dicts["model_ema"], "average", "model_ema", law=law, updates=updates)
    return Reading((average, Series(file.dicts.get("model", {}), "raw", "model")), clock)


def _schedule(numbers: Numbers) -> Schedule:
    """The first ``start + 1`` updates have the floor as their decay: they copy if it is 0."""
    every, before = int(numbers["every"]), int(numbers["start"]) + 1
    growth, least = (numbers["inv_gamma"], numbers["power"]), -math.log(numbers["beta"])
    if not numbers["min"]:
        return Schedule(Rates(inverse, growth, least=least), every, every * before, wide=True)
    # The cap wins over the floor.
    most = max(-math.log(numbers["min"]), least)
    return Schedule(Rates(inverse, growth, least=least, most=most, lag=before), every)


LAW = LawForm(
    "k-diffusion",
    "decay 1 - (1 + s/inv_gamma)^-power between min and beta at update n, with "
    "s = max(0, n - start - 1)",
    "k_diffusion, utils.py, EMAWarmup",
    "k-diffusion:power=2/3,beta=0.9999",
    (
        Key("inv_gamma", "unit of the warm-up", POSITIVE, 1),
        Key("power", "exponent of the warm-up", POSITIVE, 1),
        Key("min", "the smallest decay (min_value)", FLOOR, 0),
        Key("beta", "the greatest decay (max_value)", CAP, 1),
        Key("start", "updates before the decay grows (start_at)", STEPS, 0),
        EVERY,
    ),
    _schedule,
)
