"""mmcv's EMAHook: the average among the weights, as buffers whose names have no dots."""

from phema_cli.errors import InputError
from phema_cli.trainers.base import Reading, StoredFile

NAME = "mmcv"
SOURCE = "open-mmlab/mmcv 1.x, mmcv/runner/hooks/ema.py, from memory"

_PREFIX = "ema_"


def read(file: StoredFile) -> Reading | None:
    """The hook swaps weights and buffers after an epoch, and no entry says whether it did."""
    for tensors in file.dicts.values():
        buffers = {n for n in tensors if n.startswith(_PREFIX) and "." not in n}
        weights = tensors.keys() - buffers
        if buffers and buffers <= {f"{_PREFIX}{n.replace('.', '_')}" for n in weights}:
            raise InputError(
                "has each weight twice, from mmcv's EMAHook, and does not say which is the average",
                remedy="store the averages alone as a state dict first",
            )
    return None
