"""Output layout: names, formats, shards, and where each tensor goes."""

import math
import os
import re
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from phema_cli.errors import storage_errors
from phema_cli.formats import FORMATS, writer
from phema_cli.formats.base import PARTIAL, Checkpoint
from phema_cli.formats.image import INDEX_NAME, PROVENANCE_KEY, FileImage, Specs
from phema_cli.formats.safetensors import BASE_NAMES, INDEX_SUFFIX, folder_base
from phema_cli.synthesis.provenance import carried_metadata
from phema_cli.system.files import writing

DEFAULT_FORMAT = "safetensors"
ENDING = ".safetensors"
CARD = "README.md"
#: outputs larger than this are split unless the user names a single file.
DEFAULT_MAX_SHARD_BYTES = 5 * 10**9
#: files of which a directory has one if it holds a whole checkpoint.
_WHOLE = (INDEX_NAME, *(b + end for b in BASE_NAMES.values() for end in (ENDING, INDEX_SUFFIX)))
#: what the head of a card has that phema wrote, and how far it may begin.
_OF_A_CARD, _HEAD_BYTES = b"\nphema:\n  version: ", 4096


@dataclass(frozen=True, slots=True)
class OutputFile:
    """A file to be written.

    Attributes:
        path: its final path.
        image: all of it but the tensors' values; only its size where it is a copy.
        source: the file that it is a copy of.
    """

    path: Path
    image: FileImage
    source: Path | None = None

    @classmethod
    def of(cls, path: Path, data: bytes) -> Self:
        """A file without tensors."""
        return cls(path, FileImage(((0, data),), {}, len(data)))


@dataclass(frozen=True, slots=True)
class Output:
    """A checkpoint to be written.

    Attributes:
        path: what the user gets: the file, or the directory.
        files: files with tensor data.
        homes: for each tensor its file, as an index into ``files``.
        index: the index of a sharded checkpoint.
        beside: the files that a user needs with the weights.
    """

    path: Path
    files: tuple[OutputFile, ...]
    homes: Mapping[str, int]
    index: OutputFile | None = None
    beside: tuple[OutputFile, ...] = ()

    def __repr__(self) -> str:
        """``<Output emas/ema.safetensors: 1 file, 10 tensors>``."""
        count = len(self.files)
        files = f"{count} file{'' if count == 1 else 's'}"
        return f"<Output {self.path}: {files}, {len(self.homes)} tensors>"

    @property
    def is_folder(self) -> bool:
        """Whether the user gets a directory."""
        return self.path != self.files[0].path

    @property
    def made(self) -> list[OutputFile]:
        """The files that are made of tensors, and the index."""
        return [*self.files, *([self.index] if self.index else [])]

    @property
    def size_bytes(self) -> int:
        """Bytes of all its files."""
        return sum(f.image.size_bytes for f in (*self.beside, *self.made))

    @property
    def finals(self) -> list[Path]:
        """All files that it will have, in the order in which they get their names."""
        return [f.path for f in (*self.beside, *self.made)]

    @property
    def staging(self) -> Path:
        """The directory beside it that its files are made in."""
        # Where a link leads to another disk a rename has to be there.
        path = Path(os.path.realpath(self.path)) if self.is_folder else self.path
        return path.with_name(path.name + PARTIAL)

    def staged(self, final: Path) -> Path:
        """Where one of ``finals`` is until it is complete."""
        return self.staging / final.name

    def stale(self) -> list[Path]:
        """Files of an earlier checkpoint of that name that this one does not replace."""
        return [p for p in self.present() if p != self.path and p not in self.finals]

    def present(self) -> list[Path]:
        """Files that exist and belong to a checkpoint of that name, in whatever shards."""
        if not self.is_folder:
            return [self.path] if self.path.exists() else []
        beside = [b.path for b in self.beside if b.path.exists()]
        return sorted({*_checkpoint_files(self.path, self.files[0].path.name), *beside})

    def other_cards(self) -> list[Path]:
        """The card that an earlier output has left there, if any: it speaks of other weights."""
        file = self.files[0].path
        card = file.with_name(CARD)
        names = {f"{base}{ENDING}" for base in BASE_NAMES.values()}
        may_be = card not in self.finals and (self.is_folder or file.name in names)
        return [card] if may_be and self.present() and _is_card(card) else []


def _is_card(path: Path) -> bool:
    """Whether a file is a model card that phema wrote."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return _OF_A_CARD in file.read(_HEAD_BYTES)


def is_folder(path: Path, format_name: str) -> bool:
    """Whether an output of that path is a directory: its name has no ending of the format's."""
    row = FORMATS[format_name]
    return row.folder or not path.name.endswith(row.endings)


def _checkpoint_files(folder: Path, like: str | None = None) -> list[Path]:
    """Files in a directory that carry a name of a checkpoint there: single, shards, index.

    Args:
        folder: the directory.
        like: a file of the checkpoint; by default those of any are listed.
    """
    bases, distributed = list(BASE_NAMES.values()), like is None or like.endswith(".distcp")
    if like is not None:
        bases = [] if distributed else [re.sub(r"(-\d{5}-of-\d{5})?\.safetensors", "", like)]
    kinds = [rf"{re.escape(b)}(-\d{{5}}-of-\d{{5}})?\.safetensors(\.index\.json)?" for b in bases]
    if distributed:
        kinds.append(rf"__\d+_\d+\.distcp|{re.escape(INDEX_NAME)}")
    pattern = re.compile("|".join(kinds))
    return sorted(p for p in folder.glob("*") if pattern.fullmatch(p.name))


def index_names(format_name: str, base_name: str) -> tuple[str, ...]:
    """Files of which a directory has one if it is an output that is complete.

    Args:
        format_name: the outputs' format.
        base_name: what the sources' files are called.
    """
    if FORMATS[format_name].folder:
        return (INDEX_NAME,)
    base = folder_base(base_name)
    return (f"{base}{ENDING}", f"{base}{INDEX_SUFFIX}")


def is_complete(path: Path, names: Sequence[str] | None = None) -> bool:
    """Whether a path that ``output_paths`` gave holds a whole checkpoint.

    Args:
        path: a file or a directory.
        names: files of which a directory has to hold one; none for a file. By default both will do,
            and any checkpoint.
    """
    with writing(path):
        real = Path(os.path.realpath(path))
        if any(p.with_name(p.name + PARTIAL).exists() for p in (path, real)):
            # A run that was interrupted may not have given all names.
            return False
        if path.is_file():
            return not names
        return any((path / name).exists() for name in (_WHOLE if names is None else names))


def remove_checkpoint(path: Path, beside: Collection[str] = ()) -> None:
    """Remove the checkpoint that a path of ``output_paths`` holds, if there is one.

    Args:
        path: a file or a directory.
        beside: names of files that a directory was given with the weights.

    Raises:
        StorageError: the operating system failed.
    """
    with storage_errors(path, "remove"):
        if not path.is_dir() or path.is_symlink():
            path.unlink(missing_ok=True)
            return
        for file in [*_checkpoint_files(path), *(path / name for name in beside)]:
            file.unlink(missing_ok=True)
        # What else lies there is not phema's, and stays.
        with suppress(OSError):
            path.rmdir()


def lay_out(
    path: Path,
    format_name: str,
    specs: Specs,
    ties: Mapping[str, str],
    carried: Checkpoint,
    record: str,
    max_shard_bytes: int | None,
) -> Output:
    """Split tensors into files and place each.

    Args:
        path: a file if it has an ending of the format's, else a directory.
        format_name: the outputs' format.
        specs: dtype and shape of each tensor, in the order to write.
        ties: further names of these tensors.
        carried: the checkpoint that the output continues.
        record: how it was made.
        max_shard_bytes: the most bytes of tensors in a file, or None for one file.

    Raises:
        InputError: the format can't hold the tensors.
    """
    metadata = carried_metadata(carried) | {"format": "pt", PROVENANCE_KEY: record}
    if not is_folder(path, format_name):
        image = writer(format_name).encode(specs, metadata, ties, carried)
        return Output(path, (OutputFile(path, image),), dict.fromkeys(specs, 0))
    shards = split_shards(specs, max_shard_bytes)
    parts = [{name: specs[name] for name in names} for names in shards]
    folder = writer(format_name).encode_folder(parts, metadata, ties, carried)
    files = tuple(OutputFile(path / name, file) for name, file in folder.files.items())
    homes = {name: number for number, names in enumerate(shards) for name in names}
    if folder.index is None:
        return Output(path, files, homes)
    name, data = folder.index
    return Output(path, files, homes, OutputFile.of(path / name, data))


def split_shards(specs: Specs, max_shard_bytes: int | None) -> list[list[str]]:
    """Names by shard: greedily in order; a tensor larger than a shard gets one of its own."""
    shards: list[list[str]] = [[]]
    filled = 0
    for name, spec in specs.items():
        dtype, shape = spec
        size = dtype.size_bytes(math.prod(shape))
        if shards[-1] and max_shard_bytes is not None and filled + size > max_shard_bytes:
            shards.append([])
            filled = 0
        shards[-1].append(name)
        filled += size
    return shards
