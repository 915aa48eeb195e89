"""LeRobot: ``pretrained_model`` and ``pretrained_model_ema`` in a directory of the step's."""

from __future__ import annotations

from phema_cli.trainers.base import Clock, Reading, Series, StoredFile
from phema_cli.trainers.diffusers import law_of

NAME = "LeRobot"
FILES = "`checkpoints/005000/pretrained_model/`, `pretrained_model_ema/` beside it"
CALL = "`phema inspect DIR`"
SOURCE = "huggingface/lerobot, common/train_utils.py, configs/default.py"

_RAW, _AVERAGE = "pretrained_model", "pretrained_model_ema"


def read(file: StoredFile) -> Reading | None:
    """The step is the directory's name, and ``training_step.json`` has it too."""
    if file.name not in {_RAW, _AVERAGE} or "." not in file.dicts:
        return None
    state = file.json("..", "training_state", "training_step.json")
    step = file.value(state.get("step"))
    clock = None if step is None else Clock(step, "steps", "training_step.json")
    if clock is None and file.folders and file.folders[0].isdigit():
        clock = Clock(float(file.folders[0]), "steps", "step", "folder")
    tensors = file.dicts["."]
    if file.name == _RAW:
        return Reading((Series(tensors, "raw", label=_RAW),), clock)
    config = file.json("..", _RAW, "train_config.json").get("ema")
    settings = config if isinstance(config, dict) else {}
    law = law_of(
        {"use_ema_warmup": True, "power": 0.75}
        | {k: v for k, v in settings.items() if v is not None}
        | ({"decay": settings["max_decay"]} if "max_decay" in settings else {})
        | (
            {"decay": settings["decay"], "min_decay": settings["decay"]}
            if settings.get("decay") is not None
            else {}
        )
    )
    return Reading(
        (Series(tensors, "average", law=law if settings else None, label=_AVERAGE),), clock
    )
