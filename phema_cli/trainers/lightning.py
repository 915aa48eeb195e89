"""PyTorch Lightning's checkpoints, and its ``WeightAveraging`` callback."""

from phema_cli.trainers.base import Reading, Series, StoredFile

NAME = "Lightning"
SOURCE = "Lightning-AI/pytorch-lightning, callbacks/weight_averaging.py"

KEYS = {"pytorch-lightning_version"}
_WEIGHTS, _RAW = "state_dict", "current_model_state"


def read(file: StoredFile) -> Reading | None:
    """The weights are ``state_dict``: averaged where ``current_model_state`` lies beside."""
    if _WEIGHTS not in file.dicts:
        return None
    clock = file.clock("global_step")
    if _RAW not in file.dicts:
        return Reading((Series(file.dicts[_WEIGHTS], "unknown", _WEIGHTS),), clock)
    updates = file.number("averaging_state", "n_averaged")
    last = file.number("callbacks", "EMAWeightAveraging", "latest_update_step")
    hint = _hint(file, updates, last)
    average = Series(
        file.dicts[_WEIGHTS], "average", _WEIGHTS, updates=updates, updated=last, hint=hint
    )
    return Reading((average, Series(file.dicts[_RAW], "raw", _RAW)), clock)


def _hint(file: StoredFile, updates: float | None, last: float | None) -> str:
    """The law of the class by default; the first update, which copies, follows step 1."""
    if file.get("callbacks", "WeightAveraging") is not None:
        return "power:gamma=0"
    every = (last - 1) / (updates - 1) if last and updates and updates > 1 else 1.0
    spacing = f"every={int(every)}," if every > 1 and every.is_integer() else ""
    return f"exponential:beta=0.999,{spacing}start=1"
