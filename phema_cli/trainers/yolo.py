"""YOLO and the DETRs after it: averages whose decay grows as ``1 - exp(-n/tau)``."""

import math

from phema_cli.profiles.grammar import BETA, EVERY, POSITIVE, START, Numbers
from phema_cli.profiles.laws import Key, LawForm
from phema_cli.profiles.schedules import Rates, Schedule, saturating
from phema_cli.trainers.base import Reading, Series, StoredFile

NAME = "YOLO and its kin"
SOURCE = (
    "ultralytics/ultralytics, utils/torch_utils.py, engine/trainer.py; ultralytics/yolov5, "
    "train.py; Peterande/D-FINE, src/optim/ema.py, src/solver/_solver.py; "
    "Megvii-BaseDetection/YOLOX, yolox/core/trainer.py"
)

_YOLO, _YOLOX = {"epoch", "best_fitness", "model", "ema", "updates"}, {"start_epoch", "best_ap"}


def read(file: StoredFile) -> Reading | None:
    """The average and how often it was updated; only the code has its decay."""
    if "model" in file.dicts and file.top.keys() >= _YOLOX:
        # Times are of epochs that are complete.
        average = Series(
            file.dicts["model"], "average", "model", grows="yolo", hint="yolo:beta=0.9998"
        )
        return Reading((average,), file.clock("start_epoch", unit="epochs"))
    if file.top.keys() >= _YOLO:
        if "ema" not in file.dicts:
            return Reading(left_out="the end of training has taken the time and the average out")
        return _both(file, "ema", "updates")
    return _both(file, "ema.module", "ema", "updates") if "ema.module" in file.dicts else None


def _both(file: StoredFile, key: str, *counter: str) -> Reading | None:
    """The average that has a counter, and raw weights beside it."""
    clock = file.clock(*counter)
    if clock is None:
        return None
    # The DETRs call it warmups, and some store it.
    tau = file.number("ema", "warmups")
    hint = "yolo:beta=0.9999" + ("" if tau is None else f",tau={tau:g}")
    average = Series(file.dicts[key], "average", key, grows="yolo", updates=clock.value, hint=hint)
    return Reading((average, Series(file.dicts.get("model", {}), "raw", "model")), clock)


def _schedule(numbers: Numbers) -> Schedule:
    least = -math.log(numbers["beta"])
    rates = Rates(saturating, (numbers["tau"], least), least=least)
    return Schedule(rates, int(numbers["every"]), int(numbers["start"]))


LAW = LawForm(
    "yolo",
    "decay beta (1 - exp(-n/tau)) at the n-th update, from a copy of the initial weights",
    "ultralytics, utils/torch_utils.py, ModelEMA; YOLOX; RT-DETR; ExpMomentumEMA of mmdet",
    "yolo:beta=0.9999,tau=2000",
    (
        Key("beta", "the greatest decay", BETA),
        Key("tau", "unit of the warm-up (warmups, gamma)", POSITIVE, 2000),
        EVERY,
        START,
    ),
    _schedule,
    one_of=("beta",),
)
