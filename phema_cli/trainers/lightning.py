"""PyTorch Lightning's checkpoints, and its ``WeightAveraging`` callback."""

from __future__ import annotations

from phema_cli.trainers.base import Clock, Reading, Series, StoredFile

NAME = "Lightning"
FILES = "`epoch=0-step=100.ckpt`; with `WeightAveraging` the average is `state_dict`"
CALL = "`--raw`, or `--average exponential:beta=0.999` for `EMAWeightAveraging`"
SOURCE = "Lightning-AI/pytorch-lightning, callbacks/weight_averaging.py"

_MARK, _WEIGHTS, _RAW = "pytorch-lightning_version", "state_dict", "current_model_state"


def read(file: StoredFile) -> Reading | None:
    """The weights are ``state_dict``: averaged where ``current_model_state`` lies beside."""
    if _MARK not in file.top or _WEIGHTS not in file.dicts:
        return None
    step = file.number("global_step")
    clock = None if step is None else Clock(step, "steps", "global_step")
    if _RAW not in file.dicts:
        return Reading((Series(file.dicts[_WEIGHTS], "unknown", _WEIGHTS),), clock)
    updates = file.number("averaging_state", "n_averaged")
    hint = "exponential:beta=0.999"
    average = Series(file.dicts[_WEIGHTS], "average", _WEIGHTS, updates=updates, hint=hint)
    return Reading((average, Series(file.dicts[_RAW], "raw", _RAW)), clock)
