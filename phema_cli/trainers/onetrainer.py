"""OneTrainer: with its EMA on, saved files are the average, which only metadata may say."""

from __future__ import annotations

import json
import re
from typing import Any

from phema_cli.trainers.base import Clock, Reading, Role, Series, StoredFile

NAME = "OneTrainer"
FILES = "`<prefix><date>-save-<step>-<epoch>-<step of the epoch>.safetensors`"
CALL = "`--raw`; with EMA `--average warmup:beta=0.999,every=5`"
SOURCE = "Nerogar/OneTrainer, modules/trainer/GenericTrainer.py, modules/module/EMAModule.py"

_NAME = re.compile(r".*-save-(?P<step>\d+)-\d+-\d+")
_MARKS = ("ot_revision", "ot_branch")


def read(file: StoredFile) -> Reading | None:
    """The step in the name counts batches; ``ot_config`` says whether the EMA was on."""
    found = file.matches(_NAME)
    if not all(mark in file.metadata for mark in _MARKS):
        return None
    clock = None if found is None else Clock(float(found["step"]), "steps", "step", "name")
    config = _config(file.metadata.get("ot_config", ""))
    on = config.get("ema")
    role: Role = "unknown" if on is None else "raw" if str(on).upper() == "OFF" else "average"
    hint = "warmup:beta=0.999,every=5"
    return Reading((Series(file.dicts.get(".", {}), role, hint=hint),), clock)


def _config(given: str) -> dict[str, Any]:
    """The training's configuration, empty where it was not recorded."""
    try:
        found = json.loads(given)
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}
