"""EDM2 and EDM1: pickled networks, one average a file."""

from __future__ import annotations

import re

from phema_cli.trainers.base import Clock, Reading, Series, StoredFile
from phema_cli.trainers.names import images

NAME = "EDM2"
FILES = "`<prefix>-<kimg>-<std>.pkl`; EDM1's `network-snapshot-<kimg>.pkl`"
CALL = "`phema inspect DIR`; EDM1: `--average rampup:halflife=500000,ratio=0.05,batch=512`"
SOURCE = "NVlabs/edm2 and NVlabs/edm, training/training_loop.py, training/phema.py"

_EDM2 = re.compile(r".*-(?P<kimg>\d+)-(?P<std>\d+\.\d+)")
_EDM1 = re.compile(r".*-(?P<kimg>\d+)")
_EDM1_KEYS = {"ema", "augment_pipe", "loss_fn"}


def read(file: StoredFile) -> Reading | None:
    """The name has the images shown, in thousands, and EDM2's the width of the average."""
    if file.contents.format != "edm2" or "ema" not in file.dicts:
        return None
    tensors = file.dicts["ema"]
    if found := file.matches(_EDM2):
        clock = Clock(images(int(found["kimg"])), "images", "kimg", "name")
        law = f"power:sigma_rel={found['std']}"
        return Reading((Series(tensors, "average", "ema", law=law, evidence="name"),), clock)
    if found := file.matches(_EDM1):
        clock = Clock(int(found["kimg"]) * 1000.0, "images", "kimg", "name")
        hint = "rampup:halflife=500000,ratio=0.05,batch=512" if _is_edm1(file) else None
        return Reading((Series(tensors, "average", "ema", hint=hint),), clock)
    return Reading((Series(tensors, "average", "ema"),))


def _is_edm1(file: StoredFile) -> bool:
    """EDM1 keeps what augments images, EDM2 an encoder."""
    return file.top.keys() >= _EDM1_KEYS
