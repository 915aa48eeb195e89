"""The Hugging Face Trainer's and accelerate's directories, and what lies in them beside weights."""

from __future__ import annotations

import re

from phema_cli.trainers.base import Clock, Reading, StoredFile

NAME = "Hugging Face"
FILES = "`checkpoint-1000/` with `trainer_state.json`; accelerate's `checkpoint_3/`"
CALL = "`--raw`"
SOURCE = "huggingface/transformers, trainer.py; huggingface/accelerate, accelerator.py"

_SAVES = re.compile(r"checkpoint_(?P<number>\d+)")


def read(file: StoredFile) -> Reading | None:
    """Steps by ``trainer_state.json``; accelerate's own names count its saves from 0."""
    step = file.value(file.json("trainer_state.json").get("global_step"))
    if step is not None:
        return Reading(clock=Clock(step, "steps", "trainer_state.json"))
    found = file.matches(_SAVES)
    if found is None or not file.has_beside("random_states_*.pkl"):
        return None
    clock = Clock(float(found["number"]) + 1, "saves", "checkpoint", "name")
    return Reading(clock=clock)
