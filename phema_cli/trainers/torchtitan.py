"""torchtitan: raw weights at the top, and an EMA kept as an optimizer's state."""

import re

from phema_cli.formats.base import StoredTensor
from phema_cli.trainers.base import Clock, Reading, Series, StoredFile
from phema_cli.trainers.nested import is_state

NAME = "torchtitan"
SOURCE = "pytorch/torchtitan, components/checkpointer/dcp.py; components/ema.py (pull request 3985)"

_MARKS = ("train_state", "train_state.step")
_ENDING = ".ema_params"
_STEP = re.compile(r"step-(?P<step>\d+)")
_NAME = re.compile(r"(?:(?P<head>[\w.]*?)\.)?state\.(?P<name>.+)\.ema_params")


def read(file: StoredFile) -> Reading | None:
    """The average's tensors wherever they are nested; the raw weights are at the top.

    The last file of a run may have no state of the trainer, and still an average.
    """
    if file.contents.format != "dcp":
        return None
    averaged = any(n.endswith(_ENDING) for names in file.everything.values() for n in names)
    if not averaged and not any(mark in file.top for mark in _MARKS):
        return None
    average: dict[str, StoredTensor] = {}
    raw: dict[str, StoredTensor] = {}
    for key, tensors in file.everything.items():
        for name, tensor in tensors.items():
            if name.endswith(_ENDING) and (match := _NAME.fullmatch(name)):
                average[match["name"]] = tensor
            elif key == "." and not is_state(name):
                raw[name] = tensor
    found = file.matches(_STEP)
    clock = None if found is None else Clock(float(found["step"]), "steps", "step", "name")
    series = Series(average, "average", "ema_params", hint="power:halflife=0.05")
    return Reading((series, Series(raw, "raw")), clock)
