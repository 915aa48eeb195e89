"""The karras-power-ema tutorial: ``model_ema_1_{i}.pth`` and ``model_ema_2_{i}.pth``."""

import re

from phema_cli.trainers.base import Clock, Reading, Series, StoredFile

NAME = "karras-power-ema-tutorial"
SOURCE = "cloneofsimo/karras-power-ema-tutorial, README.md"

_NAME = re.compile(r"model_ema_(?P<index>\d+)_(?P<i>\d+)")


def read(file: StoredFile) -> Reading | None:
    """The index counts averages from 1; file i is written after update i + 1, i = 0 too."""
    found = file.matches(_NAME)
    if found is None or len(file.dicts) != 1:
        return None
    within, tensors = next(iter(file.dicts.items()))
    clock = Clock(float(found["i"]) + 1, "steps", "i", "name")
    series = Series(tensors, "average", within, index=int(found["index"]), first_index=1)
    return Reading((series,), clock)
