"""The registry of formats: a row for each, with the module that reads and writes it."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple, Protocol, cast

from phema_cli.errors import InputError, reading
from phema_cli.formats.base import Checkpoint, Contents
from phema_cli.formats.image import FileImage, FolderImage, Specs
from phema_cli.formats.remote import is_remote, remote_errors
from phema_cli.formats.stamps import Stamp, stamp


class Format(Protocol):
    """What the module of a format provides: to read it, and what its row says beside that."""

    def read(self, path: Path) -> Contents:
        """What the checkpoint at ``path`` holds; no tensor's values are read.

        A size or an offset that the file says is checked against the file before it is used.

        Args:
            path: a file with one of the format's endings.

        Raises:
            InputError: the file is not what its name says, or is broken.
            UnsafePickleError: loading it elsewhere would run code.
            StorageError: the operating system failed.
        """

    def encode(
        self,
        specs: Specs,
        metadata: Mapping[str, str],
        ties: Mapping[str, str],
        carried: Checkpoint,
    ) -> FileImage:
        """Lay out a file.

        Args:
            specs: the tensors to be written, in the order in which they should lie.
            metadata: text to text, with the provenance.
            ties: names of tensors in ``specs``, by each further name of theirs.
            carried: the checkpoint that the output continues; what a format holds beside tensors
                comes from it.

        Raises:
            InputError: the format can't hold that.
        """
        ...

    def encode_folder(
        self,
        shards: Sequence[Specs],
        metadata: Mapping[str, str],
        ties: Mapping[str, str],
        carried: Checkpoint,
    ) -> FolderImage:
        """Lay out a directory of these shards, each the tensors of a file; the rest as above."""


class Row(NamedTuple):
    """A registered format.

    Attributes:
        module: a :class:`Format`, imported when a file of the format is read or written.
        endings: of its files' names; outputs get the first.
        magic: the first bytes of its files, if another format has the same ending.
        writes: whether phema writes the format, so that the module has ``encode``.
        folder: whether its checkpoints are always directories, and it has ``encode_folder``.
    """

    module: str
    endings: tuple[str, ...]
    magic: bytes = b""
    writes: bool = True
    folder: bool = False


#: formats by name.
FORMATS: Mapping[str, Row] = MappingProxyType(
    {
        "safetensors": Row(
            "phema_cli.formats.safetensors", (".safetensors", ".safetensors.index.json")
        ),
        "edm2": Row("phema_cli.formats.edm2", (".pkl",), b"\x80"),
        "torch": Row(
            "phema_cli.formats.torch_zip",
            (".pt", ".pth", ".th", ".ckpt", ".bin", ".pth.tar", ".pkl", ".bin.index.json"),
            b"PK",
        ),
        "dcp": Row("phema_cli.formats.dcp", (".metadata",), folder=True),
    }
)
#: endings of files that say what others beside them hold.
_INDEXES = (".index.json", ".metadata")


def endings() -> tuple[str, ...]:
    """Endings of the names of all checkpoints."""
    return tuple(dict.fromkeys(ending for row in FORMATS.values() for ending in row.endings))


def _reader(path: Path) -> Format:
    """The module that reads the file.

    Raises:
        InputError: the name is not that of a checkpoint.
        StorageError: several formats share the ending, and the file can't be read.
    """
    rows = [row for row in FORMATS.values() if path.name.endswith(row.endings)]
    if not rows:
        remedy = f"known endings: {', '.join(endings())}"
        raise InputError("not a checkpoint", where=path, remedy=remedy)
    if len(rows) > 1:
        with reading(path), path.open("rb") as file:
            head = file.read(max(len(row.magic) for row in rows))
        rows = [row for row in rows if head.startswith(row.magic)] or rows
    return _module(rows[0])


def writable() -> list[str]:
    """Names of the formats that phema writes."""
    return [name for name, row in FORMATS.items() if row.writes]


def writer(name: str) -> Format:
    """The module that writes a format."""
    return _module(FORMATS[name])


def _module(row: Row) -> Format:
    return cast("Format", import_module(row.module))


def read(path: Path) -> Contents:
    """What the checkpoint at ``path`` holds, whatever its format.

    Raises:
        InputError, UnsafePickleError, StorageError: as :meth:`Format.read` says.
    """
    with remote_errors(path):
        reader = _reader(path)
        before = _stamps(path)
        contents = reader.read(path)
        local = [p for p in contents.files or before if not is_remote(p)]
        with reading(path):
            return replace(contents, stamps={p: before.get(p) or stamp(p) for p in local})


def _stamps(path: Path) -> dict[Path, Stamp]:
    """Stamps of the files that a checkpoint may have, from before any of them is read.

    After the reading, a file that was replaced meanwhile would pass for what its header says.
    """
    stamps: dict[Path, Stamp] = {}
    if not is_remote(path):
        # The reader reports what can't be looked at.
        with suppress(OSError):
            for file in path.parent.iterdir() if path.name.endswith(_INDEXES) else [path]:
                stamps[file] = stamp(file)
    return stamps
