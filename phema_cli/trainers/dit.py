"""DiT and SiT: ``0050000.pt`` with the raw weights, their average, and no step inside."""

import re

from phema_cli.trainers.base import Clock, Reading, Series, StoredFile

NAME = "DiT"
FILES = "`0050000.pt` of `model`, `ema`, `opt` and `args`"
CALL = "`--average exponential:beta=0.9999`"
SOURCE = "facebookresearch/DiT and willisma/SiT, train.py"

_NAME = re.compile(r"(?P<step>\d{7,})")
KEYS = {"model", "ema", "opt", "args"}


def read(file: StoredFile) -> Reading | None:
    """Only the code has the decay, and only the name has the step."""
    if set(file.top) != KEYS or not {"model", "ema"} <= file.dicts.keys():
        return None
    found = file.matches(_NAME)
    clock = None if found is None else Clock(float(found["step"]), "steps", "step", "name")
    average = Series(file.dicts["ema"], "average", "ema", hint="exponential:beta=0.9999")
    return Reading((average, Series(file.dicts["model"], "raw", "model")), clock)
