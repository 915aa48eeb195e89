"""Writing a snapshot tensor by tensor: none but the one being written is in memory besides."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from phema_cli.errors import StorageError, UsageError
from phema_cli.formats import writer
from phema_cli.formats.base import DTYPES, PARTIAL, Checkpoint, DType

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray


def element_type(dtype: torch.dtype) -> DType:
    """The element type of safetensors that is torch's ``dtype``.

    Raises:
        UsageError: safetensors has none, or counts its elements otherwise.
    """
    label = str(dtype).removeprefix("torch.")
    found = next((d for d in DTYPES.values() if d.label == label), None)
    if found is None or found.bits != 8 * dtype.itemsize:
        raise UsageError(f"{label} can't be stored in safetensors files")
    return found


def write(
    path: Path,
    shapes: Mapping[str, tuple[torch.dtype, tuple[int, ...]]],
    tensors: Iterable[torch.Tensor],
    metadata: Mapping[str, str],
) -> None:
    """Write a safetensors file beside its name, flush it, and rename it.

    Args:
        path: the file; its directory is made if need be.
        shapes: element type and shape of each tensor, by name.
        tensors: the tensors in the order of ``shapes``, on any device.
        metadata: text to text.

    Raises:
        StorageError: the operating system failed; nothing is left under either name.
        UsageError: an element type can't be stored.
    """
    specs = {n: (element_type(dtype), shape) for n, (dtype, shape) in shapes.items()}
    image = writer("safetensors").encode(specs, metadata, {}, Checkpoint(path, "", (), {}))
    partial = path.with_name(path.name + PARTIAL)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with partial.open("wb") as stream:
                for _, head in image.segments:
                    stream.write(head)
                for tensor in tensors:
                    stream.write(_values(tensor).data)
                stream.flush()
                os.fsync(stream.fileno())
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)
    except OSError as error:
        raise StorageError.wrap(error, path, "write") from error


def _values(tensor: torch.Tensor) -> NDArray[np.uint8]:
    """The tensor's bytes in row-major order."""
    import torch

    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy()
