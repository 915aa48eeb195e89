"""mmcv's EMAHook: the average among the weights, as buffers whose names have lost their dots."""

from __future__ import annotations

from phema_cli.errors import InputError
from phema_cli.trainers.base import Reading, StoredFile, Tensors

NAME = "mmcv"
FILES = "`epoch_3.pth` with a buffer `ema_<name>` for each weight: refused"
CALL = "store the averages alone: what the buffers hold depends on when the file was saved"
SOURCE = "open-mmlab/mmcv 1.x, mmcv/runner/hooks/ema.py, from memory"

_PREFIX = "ema_"


def read(file: StoredFile) -> Reading | None:
    """The hook swaps weights and buffers after an epoch, and no entry says whether it did."""
    for tensors in file.dicts.values():
        if _is_doubled(tensors):
            raise InputError(
                "holds each weight twice, as mmcv's EMAHook does, and does not say which is the "
                "average",
                remedy="store the averages alone as a state dict first",
            )
    return None


def _is_doubled(tensors: Tensors) -> bool:
    """Whether there is a buffer for every weight."""
    buffers = {n for n in tensors if n.startswith(_PREFIX) and "." not in n}
    if not buffers:
        return False
    return buffers <= {f"{_PREFIX}{n.replace('.', '_')}" for n in tensors if n not in buffers}
