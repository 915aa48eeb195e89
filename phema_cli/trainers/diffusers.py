"""diffusers' ``EMAModel``: ``unet_ema`` beside ``unet``, or a list of tensors with its settings."""

import math
from collections.abc import Mapping
from typing import Any

from phema_cli.errors import InputError
from phema_cli.profiles.grammar import BETA, CALLS, EVERY, FLAG, FLOOR, POSITIVE, Numbers
from phema_cli.profiles.laws import Key, LawForm
from phema_cli.profiles.schedules import Rates, Schedule, inverse, ratio
from phema_cli.trainers.base import Clock, Reading, Series, StoredFile, law_text, real, shown

NAME = "diffusers"
SOURCE = "huggingface/diffusers, src/diffusers/training_utils.py"

_MARKS = ("decay", "inv_gamma", "power", "update_after_step", "use_ema_warmup")
_ENDING = "_ema"
#: the names of EMAModel's settings, and of the law's.
_SETTINGS = (
    ("decay", "beta"),
    ("min_decay", "min"),
    ("inv_gamma", "inv_gamma"),
    ("power", "power"),
    ("update_after_step", "update_after"),
)


def read(file: StoredFile) -> Reading | None:
    """The settings are in ``config.json``, or in the dict that holds the list."""
    tensors = file.dicts.get(".")
    if tensors is not None:
        config = file.json("config.json")
        if set(_MARKS) <= set(config):
            series = Series(tensors, "average", law=law_of(config), label=file.name)
            return Reading((series,), _clock(config.get("optimization_step"), "config.json"))
        if file.is_folder and file.json("..", f"{file.name}{_ENDING}", "config.json"):
            return Reading((Series(tensors, "raw", label=file.name),))
    found, clock = [], None
    for key, tensors in file.lists.items():
        parent, _, last = key.rpartition(".")
        holder = file.get(*parent.split(".")) if parent else file.top
        known = isinstance(holder, Mapping) and set(_MARKS) <= set(holder)
        if last != "shadow_params" or not known:
            continue
        clock = _clock(holder.get("optimization_step"), "optimization_step")
        law, label = law_of(holder), parent or "shadow_params"
        found.append(Series(tensors, "average", key, law=law, unnamed=True, label=label))
    return Reading(tuple(found), clock) if found else None


def law_of(settings: Mapping[Any, Any], every: float | None = None) -> str:
    """The law of an ``EMAModel`` by its settings.

    Args:
        settings: its own, by their names.
        every: steps from one update to the next, if there are several.

    Raises:
        InputError: a setting is not a number.
    """
    copied = real(settings.get("warmup_steps"))
    if copied is not None and copied > 0:
        # SimpleTuner's own setting: copies, then a constant decay.
        beta = _setting(settings, "decay")
        return law_text("exponential", beta=beta, start=copied - 1, every=every)
    numbers = {
        key: _setting(settings, name) for name, key in _SETTINGS if settings.get(name) is not None
    }
    warmup = settings.get("use_ema_warmup")
    numbers |= {} if warmup is None else {"warmup": float(bool(warmup))}
    return law_text("diffusers", **numbers, every=every)


def _setting(settings: Mapping[Any, Any], name: str) -> float:
    """A setting that must be a number."""
    number = real(settings.get(name))
    if number is None:
        raise InputError(f"its {name} is {shown(settings.get(name))}, not a number")
    return number


def _clock(updates: object, field: str) -> Clock | None:
    """The time by the number of updates."""
    count = real(updates)
    return None if count is None else Clock(count, "steps", field)


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


LAW = LawForm(
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
