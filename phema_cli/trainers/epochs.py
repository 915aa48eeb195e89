"""ConvNeXt, MAE, MAR, JiT, RF-DETR and others: ``checkpoint-<epoch>.pth`` with the epoch inside."""

import re

from phema_cli.trainers.base import Clock, Reading, Series, StoredFile, law_text

NAME = "ConvNeXt and its kin"
SOURCE = (
    "facebookresearch/ConvNeXt, utils.py; facebookresearch/mae and LTH14/mar, util/misc.py; "
    "a copy of LTH14/JiT, util/misc.py; roboflow/rf-detr, rfdetr/main.py"
)

KEYS = {"model", "optimizer", "epoch", "args"}
_AVERAGE = re.compile(r"model_ema(?P<number>\d*)|ema_model")


def read(file: StoredFile) -> Reading | None:
    """The epoch counts from 0 and is complete; the arguments have the decays."""
    if "model" not in file.dicts:
        return None
    epoch = file.number("epoch")
    clock = None if epoch is None else Clock(epoch + 1, "epochs", "epoch")
    averages = [s for key in file.dicts if (s := _average(file, key)) is not None]
    if not averages:
        return Reading(clock=clock)
    return Reading((*averages, Series(file.dicts["model"], "raw", "model")), clock)


def _average(file: StoredFile, key: str) -> Series | None:
    """An average, with its decay by the arguments."""
    found = _AVERAGE.fullmatch(key)
    if found is None:
        return None
    number = found["number"]
    names = [f"ema_decay{number}"] if number else ["model_ema_decay", "ema_rate", "ema_decay"]
    decay = next((d for name in names if (d := file.number("args", name)) is not None), None)
    # RF-DETR has the decay of YOLO, unless its tau is 0.
    tau = file.number("args", "ema_tau") or None
    law = None if decay is None else law_text("yolo" if tau else "exponential", beta=decay, tau=tau)
    return Series(file.dicts[key], "average", key, law=law)
