"""Directories of the Hugging Face Trainer and of accelerate."""

import re

from phema_cli.trainers.base import Clock, Reading, Series, StoredFile

NAME = "Hugging Face"
SOURCE = "huggingface/transformers, trainer.py; huggingface/accelerate, accelerator.py"

#: accelerate's names for models.
_MODELS = ("model", "pytorch_model")
_SAVES = re.compile(r"checkpoint_(?P<number>\d+)")


def read(file: StoredFile) -> Reading | None:
    """``trainer_state.json`` has the steps; accelerate's own names count its saves from 0.

    Beside the state of the training accelerate saves the raw weights.
    """
    step = file.value(file.json("trainer_state.json").get("global_step"))
    if step is not None:
        return Reading(clock=Clock(step, "steps", "trainer_state.json"))
    if not file.file_name.startswith(_MODELS) or not file.has_beside("random_states_0.pkl"):
        return None
    found = file.matches(_SAVES)
    clock = Clock(float(found["number"]) + 1, "saves", "checkpoint", "name") if found else None
    return Reading((Series(file.dicts.get(".", {}), "raw"),), clock)
