"""torchtitan's EMA: kept as an optimizer's state in a distributed checkpoint."""

from __future__ import annotations

import re

from phema_cli.formats.base import StoredTensor
from phema_cli.trainers.base import Clock, Reading, Series, StoredFile
from phema_cli.trainers.nested import is_state

NAME = "torchtitan"
FILES = "`step-1000/` of `.distcp` files, with `ema_optimizer.state.<name>.ema_params`"
CALL = "`--average power:halflife=0.05`; without an EMA `--raw`"
SOURCE = "pytorch/torchtitan, components/ema.py (pull request 3985)"

_NAME = re.compile(r"(?:(?P<head>[\w.]*?)\.)?state\.(?P<name>.+)\.ema_params")


def read(file: StoredFile) -> Reading | None:
    """The average's tensors wherever they are nested; the raw weights lie at the top."""
    if file.contents.format != "dcp":
        return None
    average: dict[str, StoredTensor] = {}
    raw: dict[str, StoredTensor] = {}
    for key, tensors in file.everything.items():
        for name, tensor in tensors.items():
            if found := _NAME.fullmatch(name):
                average[found["name"]] = tensor
            elif key == "." and not is_state(name):
                raw[name] = tensor
    if not average:
        return None
    step = file.number("train_state", "step") or file.number("train_state.step")
    clock = None if step is None else Clock(step, "steps", "train_state.step")
    hint = "power:halflife=0.05"
    series = [Series(average, "average", "ema_params", hint=hint)]
    return Reading((*series, *([Series(raw, "raw")] if raw else ())), clock)
