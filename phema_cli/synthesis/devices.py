"""Devices: what averages tiles, the processor or one of its GPUs."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from phema_cli.errors import StorageError, UsageError


def find_device(name: str) -> str:
    """The device of that name: ``cpu``, or ``cuda:N`` where torch has one.

    ``cuda`` alone is the first GPU, or with several ranks on a machine one for each in turn.

    Raises:
        UsageError: no device is called so, or it is not there.
    """
    if name == "cpu":
        return name
    kind, colon, number = name.partition(":")
    if kind != "cuda" or (colon and not (number.isascii() and number.isdecimal())):
        raise UsageError(f"no device {name!r}", remedy="--device takes cpu, cuda or cuda:N")
    import torch

    count = torch.cuda.device_count()
    if not count:
        raise UsageError(
            f"--device {name}: torch {torch.__version__} finds no GPU",
            remedy="leave --device out, or install a build of torch for the GPU and its driver",
        )
    index = int(number) if colon else int(os.environ.get("LOCAL_RANK", "0")) % count
    if index >= count:
        raise UsageError(
            f"--device {name}: torch finds {count} GPUs, counted from 0",
            remedy="choose one of them, or --device cuda",
        )
    return f"cuda:{index}"


@contextmanager
def room_on(device: str) -> Iterator[None]:
    """Say in phema's words that a GPU has too little memory.

    Raises:
        StorageError: it has.
    """
    import torch

    try:
        yield
    except torch.OutOfMemoryError as error:
        raise StorageError(
            f"{device} has too little free memory", remedy="-j 1 needs the least"
        ) from error
