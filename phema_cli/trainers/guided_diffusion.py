"""guided-diffusion and others like it: a file each for average, raw weights and optimizer."""

import re

from phema_cli.trainers.base import Clock, Reading, Series, StoredFile

NAME = "guided-diffusion"
SOURCE = (
    "openai/guided-diffusion, guided_diffusion/train_util.py; openai/consistency_models, "
    "cm/train_util.py"
)

_AVERAGE = re.compile(r"ema_(?P<rate>0?\.\d+)_(?P<step>\d{6,})")
_RAW = re.compile(r"model(?P<step>\d{6,})")
_STATE = re.compile(r"opt\d{6,}")
# What a consistency model learns from: an average by another rule, and a finished model.
_OTHERS = re.compile(r"(target|teacher)_model\d{6,}")
_BESIDE = "model[0-9]*.pt"


def read(file: StoredFile) -> Reading | None:
    """Files are written before the step is counted: that of step N holds N + 1 updates."""
    if file.matches(_STATE) is not None and not file.dicts:
        return Reading(left_out="a trainer's own state")
    if file.matches(_OTHERS) is not None and file.has_beside(_BESIDE):
        return Reading(left_out="a network that consistency training learns from")
    average, raw = file.matches(_AVERAGE), file.matches(_RAW)
    found = average or raw
    if found is None or set(file.dicts) != {"."}:
        return None
    clock = Clock(float(found["step"]) + 1, "steps", "step", "name")
    tensors = file.dicts["."]
    if average is None:
        return Reading((Series(tensors, "raw", label="model"),), clock)
    rate = average["rate"]
    law = f"exponential:beta={rate}"
    series = Series(tensors, "average", law=law, evidence="name", label=f"ema_{rate}")
    return Reading((series,), clock)
