"""kohya's sd-scripts and musubi-tuner: raw weights, their clock in the metadata."""

import re
from glob import escape

from phema_cli.trainers.base import Clock, Reading, Series, StoredFile, parsed

NAME = "kohya"
SOURCE = "kohya-ss/sd-scripts, library/train_util.py; kohya-ss/musubi-tuner, utils/train_utils.py"

_EPOCH = re.compile(r".*-(?P<epoch>\d{6})")
_STEP = re.compile(r".*-step(?P<step>\d{8})")
_STATE = re.compile(r"(?P<weights>.*)-state")


def read(file: StoredFile) -> Reading | None:
    """Steps done are ``ss_steps``; epochs in names count from 1."""
    if (found := file.matches(_STATE)) is not None:
        return _state(file, found["weights"])
    metadata = file.metadata
    if not any(name.startswith("ss_") for name in metadata):
        return None
    clock = None
    if "ss_steps" in metadata:
        clock = Clock(parsed(metadata["ss_steps"]), "steps", "ss_steps")
    elif found := file.matches(_STEP):
        clock = Clock(float(found["step"]), "steps", "step", "name")
    elif found := file.matches(_EPOCH):
        clock = Clock(float(found["epoch"]), "epochs", "epoch", "name")
    return Reading((Series(file.dicts.get(".", {}), "raw"),), clock)


def _state(file: StoredFile, weights: str) -> Reading | None:
    """The state that a run resumes from: a file beside it has the same weights."""
    step = file.value(file.json("train_state.json").get("current_step"))
    if step is None or "." not in file.dicts:
        return None
    if file.has_beside(f"../{escape(weights)}.*"):
        return Reading(left_out="a trainer's own state")
    clock = Clock(step, "steps", "train_state.json")
    return Reading((Series(file.dicts["."], "raw"),), clock)
