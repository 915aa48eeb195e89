"""Checkpoint formats: one module each, and the registry that finds the module for a file."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from types import MappingProxyType
from typing import cast

from phema_cli.errors import InputError
from phema_cli.formats.base import Checkpoint, Format

#: format name -> module and the file name endings that it reads.
FORMATS: Mapping[str, tuple[str, tuple[str, ...]]] = MappingProxyType(
    {
        "safetensors": (
            "phema_cli.formats.safetensors",
            (".safetensors", ".safetensors.index.json"),
        ),
        "torch": ("phema_cli.formats.torch_zip", (".pt", ".pth", ".ckpt", ".bin")),
    }
)


def format_of(path: Path) -> Format | None:
    """The module that reads files of this name, or None."""
    for module, suffixes in FORMATS.values():
        if path.name.endswith(suffixes):
            return cast("Format", import_module(module))
    return None


def read_index(path: Path, key: str | None = None) -> Checkpoint:
    """Reduce the checkpoint at ``path`` to extents, whatever its format.

    Raises:
        InputError, UnsafePickleError, StorageError: as the format's ``read_index`` says.
    """
    reader = format_of(path)
    if reader is None:
        endings = ", ".join(e for _, suffixes in FORMATS.values() for e in suffixes)
        raise InputError("not a checkpoint", where=path, remedy=f"known endings: {endings}")
    return reader.read_index(path, key)
