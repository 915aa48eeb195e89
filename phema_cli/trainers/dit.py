"""DiT, SiT, REPA, LlamaGen: ``0050000.pt`` with the raw weights and their average."""

import re

from phema_cli.trainers.base import Clock, Reading, Series, StoredFile

NAME = "DiT"
SOURCE = (
    "facebookresearch/DiT, willisma/SiT, sihyun-yu/REPA, train.py; FoundationVision/LlamaGen, "
    "autoregressive/train/train_c2i.py"
)

_NAME = re.compile(r"(?P<step>\d{7,})")
KEYS = {"model", "ema", "args"}
_MAY_BE = {"opt", "optimizer", "steps"}


def read(file: StoredFile) -> Reading | None:
    """Only the code has the decay, and for some only the name has the step."""
    if not set(file.top) - KEYS <= _MAY_BE or not {"model", "ema"} <= file.dicts.keys():
        return None
    found = None if "steps" in file.top else file.matches(_NAME)
    clock = None if found is None else Clock(float(found["step"]), "steps", "step", "name")
    average = Series(file.dicts["ema"], "average", "ema", hint="exponential:beta=0.9999")
    return Reading((average, Series(file.dicts["model"], "raw", "model")), clock)
