"""EDM2 and EDM1: pickled networks, one average a file."""

import math
import re
from collections.abc import Mapping
from typing import Any

from phema_cli.trainers.base import Clock, Reading, Series, StoredFile, Tensors, law_text
from phema_cli.trainers.clocks import images

NAME = "EDM2"
SOURCE = "NVlabs/edm2 and NVlabs/edm, training/training_loop.py, training/phema.py"

_EDM2 = re.compile(r".*-(?P<kimg>\d+)-(?P<std>\d+\.\d+)")
_ONE = re.compile(r".*-(?P<kimg>\d+)")
_EDM1_KEYS = {"ema", "augment_pipe", "loss_fn"}
#: the default half-life as a fraction of the images shown.
_RATIO = 0.05
_NO_RAMP = 1e9
_HINT = "rampup:halflife=500000,ratio=0.05,batch=512"
#: EDM2's TraditionalEMA, whose files have no width in their names.
_TRADITIONAL = "power:halflife=0.09"


def read(file: StoredFile) -> Reading | None:
    """Names have the images shown, in thousands; EDM2's have the width of the average too."""
    if file.contents.format != "edm2" or "ema" not in file.dicts:
        return None
    tensors = file.dicts["ema"]
    if found := file.matches(_EDM2):
        law = f"power:sigma_rel={found['std']}"
        series = Series(tensors, "average", "ema", law=law, evidence="name")
        return Reading((series,), _clock(found["kimg"]))
    found = file.matches(_ONE)
    if file.top.keys() >= _EDM1_KEYS:
        return _edm1(file, tensors, None if found is None else int(found["kimg"]))
    clock = None if found is None else _clock(found["kimg"])
    return Reading((Series(tensors, "average", "ema", hint=_TRADITIONAL),), clock)


def _clock(kimg: str) -> Clock:
    """The time by EDM2's count of thousands of images."""
    return Clock(images(int(kimg)), "images", "kimg", "name")


def _edm1(file: StoredFile, tensors: Tensors, kimg: int | None) -> Reading:
    """EDM1 stores the augmentation of images too; its options are beside its files."""
    options = file.json("training_options.json")
    batch = file.value(options.get("batch_size"))
    clock = None
    if kimg is not None:
        # Names round down to thousands; training shows whole batches.
        count = kimg * 1000.0
        count = count if not batch else math.ceil(count / batch) * batch
        clock = Clock(count, "images", "kimg", "name")
    series = Series(tensors, "average", "ema", law=_law(file, options), hint=_HINT)
    return Reading((series,), clock)


def _law(file: StoredFile, options: Mapping[str, Any]) -> str | None:
    """The law by the options of the training, which have the ratio only if it is not 0.05."""
    batch, kimg = (file.value(options.get(k)) for k in ("batch_size", "ema_halflife_kimg"))
    if not batch or not kimg:
        return None
    ratio = file.value(options.get("ema_rampup_ratio", _RATIO))
    if ratio is None:
        # No ramp: the images shown never limit the half-life, of which one batch has its share.
        ratio = _NO_RAMP
    return law_text("rampup", halflife=kimg * 1000, ratio=ratio, batch=batch)
