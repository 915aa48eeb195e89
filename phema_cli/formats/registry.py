"""The registry of formats: which module reads or writes a file."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple, cast

from phema_cli.errors import InputError, StorageError
from phema_cli.formats.base import Contents, Format, Stamp, Writer, stamp
from phema_cli.formats.locations import is_remote, reading


class Row(NamedTuple):
    """A registered format.

    Attributes:
        module: what reads it.
        endings: of the names of its files; outputs take the first.
        magic: the first bytes of its files, where another format has the same ending.
        writes: whether the module writes it too.
    """

    module: str
    endings: tuple[str, ...]
    magic: bytes = b""
    writes: bool = True


#: formats by name.
FORMATS: Mapping[str, Row] = MappingProxyType(
    {
        "safetensors": Row(
            "phema_cli.formats.safetensors", (".safetensors", ".safetensors.index.json")
        ),
        "edm2": Row("phema_cli.formats.edm2", (".pkl",), b"\x80"),
        "torch": Row(
            "phema_cli.formats.torch_zip",
            (".pt", ".pth", ".ckpt", ".bin", ".pth.tar", ".pkl", ".bin.index.json"),
            b"PK",
        ),
        "dcp": Row("phema_cli.formats.dcp", (".metadata",), writes=False),
    }
)


def endings() -> tuple[str, ...]:
    """Endings of the names of all checkpoints."""
    return tuple(dict.fromkeys(ending for row in FORMATS.values() for ending in row.endings))


def format_of(path: Path) -> Format | None:
    """The module that reads files of this name, or None.

    Raises:
        StorageError: formats share the ending, and the file can't be read.
    """
    rows = [row for row in FORMATS.values() if path.name.endswith(row.endings)]
    if len(rows) > 1:
        head = _head(path)
        rows = [row for row in rows if head.startswith(row.magic)] or rows
    return cast("Format", import_module(rows[0].module)) if rows else None


def writable() -> list[str]:
    """Formats that phema writes."""
    return [name for name, row in FORMATS.items() if row.writes]


def writer(name: str) -> Writer:
    """The module that writes one of the formats of ``writable``."""
    return cast("Writer", import_module(FORMATS[name].module))


def _head(path: Path) -> bytes:
    """The first bytes of a file."""
    try:
        with path.open("rb") as file:
            return file.read(max(len(row.magic) for row in FORMATS.values()))
    except OSError as error:
        raise StorageError.wrap(error, path, "read") from error


def read(path: Path) -> Contents:
    """What the checkpoint at ``path`` holds, whatever its format.

    Raises:
        InputError, UnsafePickleError, StorageError: as the format's ``read`` says.
    """
    with reading(path):
        reader = format_of(path)
        if reader is None:
            raise InputError(
                "not a checkpoint", where=path, remedy=f"known endings: {', '.join(endings())}"
            )
        before = _stamps(path)
        found = reader.read(path)
        local = [p for p in found.files or before if not is_remote(p)]
        try:
            return replace(found, stamps={p: before.get(p) or stamp(p) for p in local})
        except OSError as error:
            raise StorageError.wrap(error, path, "read") from error


def _stamps(path: Path) -> dict[Path, Stamp]:
    """Stamps of the files that a checkpoint may have, from before any of them is read.

    Were they taken after, a file that is replaced in between would pass for what its header says.
    """
    shared = path.name.endswith((".index.json", ".metadata"))
    found: dict[Path, Stamp] = {}
    if is_remote(path):
        return found
    # What can't be looked at is reported by what reads it.
    with suppress(OSError):
        for file in path.parent.iterdir() if shared else [path]:
            found[file] = stamp(file)
    return found
