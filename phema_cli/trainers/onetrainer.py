"""OneTrainer: with its EMA on, saved files are the average; only metadata may say so."""

import json
import math
import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from phema_cli.profiles.grammar import BETA, EVERY, Numbers
from phema_cli.profiles.laws import Key, LawForm
from phema_cli.profiles.schedules import Rates, Schedule, ratio
from phema_cli.trainers.base import Clock, Reading, Series, StoredFile, law_text

NAME = "OneTrainer"
SOURCE = "Nerogar/OneTrainer, modules/trainer/GenericTrainer.py, modules/module/EMAModule.py"

_NAME = re.compile(r".*-save-(?P<step>\d+)-\d+-\d+")
_MARKS = ("ot_revision", "ot_branch")
_HINT = "onetrainer:beta=0.999,every=5"


def read(file: StoredFile) -> Reading | None:
    """The step in the name counts batches; ``ot_config`` says whether the EMA was on."""
    if not all(mark in file.metadata for mark in _MARKS):
        return None
    try:
        config = json.loads(file.metadata.get("ot_config", ""))
    except (ValueError, RecursionError):
        config = {}
    config = config if isinstance(config, dict) else {}
    clock = None
    if (found := file.matches(_NAME)) is not None:
        # Several batches may make one step.
        batches = file.value(config.get("gradient_accumulation_steps")) or 1
        clock = Clock(float(found["step"]) // batches, "steps", "step", "name")
    tensors, on = file.dicts.get(".", {}), config.get("ema")
    if on is None:
        return Reading((Series(tensors, hint=_HINT),), clock)
    if str(on).upper() == "OFF":
        return Reading((Series(tensors, "raw"),), clock)
    return Reading((Series(tensors, "average", law=_law(file, config), hint=_HINT),), clock)


def _law(file: StoredFile, config: Mapping[str, Any]) -> str | None:
    """The law by the training's configuration."""
    decay, every = (file.value(config.get(k)) for k in ("ema_decay", "ema_update_step_interval"))
    if decay is None or every is None:
        return None
    return law_text("onetrainer", beta=decay, every=every)


def _schedule(numbers: Numbers) -> Schedule:
    """The decay grows with steps, not with updates."""
    every = int(numbers["every"])
    rates = Rates(ratio, offset=-1.0, stride=every, least=-math.log(numbers["beta"]))
    return Schedule(rates, every)


LAW = LawForm(
    "onetrainer",
    "decay min(beta, n/(9 + n)) at step n, from a copy of the initial weights; after steps "
    "N, 2N, ...",
    "OneTrainer, modules/module/EMAModule.py",
    "onetrainer:beta=0.999,every=5",
    (
        Key("beta", "the greatest decay (ema_decay)", BETA),
        replace(EVERY, meaning="steps between two updates (ema_update_step_interval)"),
    ),
    _schedule,
    one_of=("beta",),
)
