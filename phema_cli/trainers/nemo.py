"""NeMo's EMA callback: ``<name>-EMA.ckpt`` holds the average, ``<name>.ckpt`` the raw weights."""

from __future__ import annotations

from phema_cli.trainers.base import Reading, Series, StoredFile, escaped

NAME = "NeMo"
FILES = "`<name>-EMA.ckpt` beside `<name>.ckpt`"
CALL = "`--average exponential:beta=0.999`"
SOURCE = "NVIDIA/NeMo, nemo/collections/common/callbacks/ema.py"

_MARK, _WEIGHTS, _ENDING = "pytorch-lightning_version", "state_dict", "-EMA"


def read(file: StoredFile) -> Reading | None:
    """Of a pair of Lightning's checkpoints, which it is."""
    if _MARK not in file.top or _WEIGHTS not in file.dicts:
        return None
    weights = file.dicts[_WEIGHTS]
    if file.name.endswith(_ENDING):
        hint = "exponential:beta=0.999"
        return Reading((Series(weights, "average", _WEIGHTS, hint=hint, label="EMA"),))
    if file.has_beside(f"{escaped(file.name)}{_ENDING}.ckpt"):
        return Reading((Series(weights, "raw", _WEIGHTS),))
    return None
