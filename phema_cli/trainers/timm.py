"""timm's training script: ``state_dict_ema`` beside ``state_dict``, epochs in names."""

import math
import re

from phema_cli.profiles.grammar import BETA, CALLS, EVERY, FLAG, FLOOR, POSITIVE, Numbers
from phema_cli.profiles.laws import Key, LawForm
from phema_cli.profiles.schedules import Rates, Schedule, constant, inverse
from phema_cli.trainers.base import Clock, Reading, Series, StoredFile, law_text

NAME = "timm"
SOURCE = "huggingface/pytorch-image-models, timm/utils/checkpoint_saver.py, model_ema.py, train.py"

KEYS = {"arch", "epoch", "version", "state_dict"}
_AVERAGE, _RAW = "state_dict_ema", "state_dict"
_RECOVERY = re.compile(r"recovery.*")


def read(file: StoredFile) -> Reading | None:
    """The epoch counts from 0 and is complete; the arguments have the law of the average."""
    if _RAW not in file.dicts:
        return None
    if file.matches(_RECOVERY) is not None:
        return Reading(left_out="it was stored in the middle of an epoch")
    epoch = file.number("epoch")
    clock = None if epoch is None else Clock(epoch + 1, "epochs", "epoch")
    if _AVERAGE not in file.dicts:
        return Reading((Series(file.dicts[_RAW], "unknown", _RAW),), clock)
    average = Series(file.dicts[_AVERAGE], "average", _AVERAGE, law=_law(file))
    return Reading((average, Series(file.dicts[_RAW], "raw", _RAW)), clock)


def _law(file: StoredFile) -> str | None:
    """The law of ``ModelEmaV3`` as the script makes it from its arguments."""
    decay = file.number("args", "model_ema_decay")
    if decay is None:
        return None
    grows = bool(file.get("args", "model_ema_warmup"))
    return law_text("timm", beta=decay, warmup=grows)


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


LAW = LawForm(
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
