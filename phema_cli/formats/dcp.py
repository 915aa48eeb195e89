"""Directories of ``torch.distributed.checkpoint``, read without running their pickles.

``.metadata`` is a pickle that says which boxes each tensor is split into, and where they lie: each
box is a chunk of a ``.distcp`` file, and each chunk an archive of ``torch.save``.
"""

import os
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from io import RawIOBase
from itertools import pairwise
from pathlib import Path
from typing import IO, Any, NamedTuple, cast

from phema_cli.errors import InputError, PhemaError, StorageError
from phema_cli.formats.base import (
    MOST_DIMENSIONS,
    Checkpoint,
    Contents,
    DType,
    Extent,
    Piece,
    StoredTensor,
)
from phema_cli.formats.boxes import Box, covers
from phema_cli.formats.checks import REMEDY, broken, check_text, checked_metadata
from phema_cli.formats.dcp_write import lay_out
from phema_cli.formats.image import INDEX_NAME, PROVENANCE_KEY, FolderImage, Specs
from phema_cli.formats.reader import OpenFiles
from phema_cli.formats.sharded import file_beside
from phema_cli.formats.stamps import Stamp, stamp
from phema_cli.formats.torch_pickle import TensorStub, load
from phema_cli.formats.torch_zip import find_record, read_pickle
from phema_cli.pickles import Inert
from phema_cli.system.files import read_at

NAME = "dcp"

_MAX_PICKLE_BYTES = 256 << 20
_MAX_NUMBER = 1 << 62
# How deep dicts are nested, how long their names are.
_MAX_DEPTH = 50
_MAX_NAME = 1000
# No chunk is described in fewer bytes.
_CHUNK_BYTES = 16
_BYTE_BITS = 8
_MAGIC = b"PK\x03\x04"
_CONVERT = (
    "re-save it with torch's default serialization, or convert it with "
    "torch.distributed.checkpoint.format_utils.dcp_to_torch_save"
)
_REMEDY = "phema runs no code from files; save it with torch's own planner and writer"

#: the class of an entry that is no tensor.
_BYTES = "torch.distributed.checkpoint.metadata.BytesStorageMetadata"


@dataclass(frozen=True, slots=True)
class _Tensor(StoredTensor):
    """A tensor as ``.metadata`` describes it, under the name that its chunks have."""

    name: str
    dtype: DType
    shape: tuple[int, ...]
    boxes: tuple[Box, ...]


class _Chunk(NamedTuple):
    """A box of a tensor, and the bytes of the archive that holds it."""

    file: Path
    offset: int
    length: int
    tensor: _Tensor
    box: Box


class _Window(RawIOBase):
    """The bytes of a chunk, as a file."""

    def __init__(self, descriptor: int, chunk: _Chunk) -> None:
        self._descriptor, self._chunk, self._at = descriptor, chunk, 0

    def seek(self, offset: int, whence: int = 0) -> int:
        """Move; raises ``ValueError`` for a place before its beginning."""
        at = (0, self._at, self._chunk.length)[whence] + offset
        if at < 0:
            raise ValueError("before the beginning")
        self._at = at
        return at

    def readinto(self, buffer: Any) -> int:  # noqa: ANN401 - any writable buffer
        """Read up to the end of the chunk."""
        view = memoryview(buffer)[: max(0, self._chunk.length - self._at)]
        got = read_at(self._descriptor, view, self._chunk.offset + self._at)
        self._at += got
        return got


def read(path: Path) -> Contents:
    """What a directory of ``torch.distributed.checkpoint`` holds.

    Args:
        path: the directory, or the ``.metadata`` in it.

    Errors as :meth:`phema_cli.formats.registry.Format.read` says.
    """
    directory = path if path.is_dir() else path.parent
    index = directory / INDEX_NAME
    metadata, size = _load(index)
    nested = _nested(metadata, index, size // _CHUNK_BYTES)
    record = metadata.state.get(PROVENANCE_KEY)
    ours = checked_metadata({PROVENANCE_KEY: record}, index) if isinstance(record, str) else {}
    return Contents(directory, NAME, nested, partial(_locate, metadata, index), metadata=ours)


def encode_folder(
    shards: Sequence[Specs],
    metadata: Mapping[str, str],
    ties: Mapping[str, str],
    carried: Checkpoint,
) -> FolderImage:
    """Lay out a directory; as :class:`phema_cli.formats.registry.Format` says.

    Tensors get the names and the nesting that they have in ``carried``, if it is of this format.
    """
    paths: Mapping[str, tuple[str | int, ...]] = {}
    if carried.format == NAME:
        index = carried.path / INDEX_NAME
        paths = _paths(index, stamp(index) if index.exists() else None)
    return lay_out(shards, metadata, ties, carried, paths)


@lru_cache(maxsize=1)
def _paths(index: Path, version: Stamp | None) -> Mapping[str, tuple[str | int, ...]]:
    """The path of each entry by its name; all outputs of a call continue one checkpoint.

    Args:
        index: the ``.metadata``.
        version: its stamp, so that a file that was replaced is read again.
    """
    del version
    return {name: path for name, path, _ in _entries(_load(index)[0], index)}


def _load(index: Path) -> tuple[Inert, int]:
    """The object in ``.metadata``, and its bytes."""
    try:
        data = _read_index(index)
    except OSError as error:
        raise StorageError.wrap(error, error.filename or index.parent, "read") from error
    metadata = load(data, index, _REMEDY)
    if not isinstance(metadata, Inert):
        raise broken("not the metadata of a checkpoint", index)
    return metadata, len(data)


def _read_index(index: Path) -> bytes:
    """The bytes of ``.metadata``, which a writer stores last."""
    if index.is_file():
        if index.stat().st_size > _MAX_PICKLE_BYTES:
            raise broken("larger than 256 MiB", index)
        return index.read_bytes()
    if any(index.parent.glob("__*.metadata")):
        what = "has one .metadata for each rank"
        raise broken(what, index.parent, "save it with use_collectives=True")
    begun = any(index.parent.glob("*.distcp"))
    what = "not finished" if begun else "not of torch.distributed.checkpoint"
    raise broken(f"{what}: no .metadata", index.parent, "leave it out with --exclude")


def _naturals(value: object) -> tuple[int, ...] | None:
    """A tuple of natural numbers; None for anything else."""
    if not isinstance(value, tuple) or len(value) > MOST_DIMENSIONS:
        return None
    if all(type(n) is int and 0 <= n < _MAX_NUMBER for n in value):
        return value
    return None


def _nested(metadata: Inert, index: Path, most: int) -> object:
    """The content as it was nested, with None for all that is no tensor.

    Args:
        metadata: the object in ``.metadata``.
        index: the file.
        most: chunks that it has room to describe.
    """
    entries = list(_entries(metadata, index))
    listed = [entry.state.get("chunks") for _, _, entry in entries if isinstance(entry, Inert)]
    # A pickle can repeat a list in two bytes.
    if sum(len(chunks) for chunks in listed if isinstance(chunks, list)) > most:
        raise broken("lists more chunks than it describes", index)
    root: dict[object, object] = {}
    for name, path, entry in entries:
        inside: object = root
        for step in path[:-1]:
            inside = inside.setdefault(step, {}) if isinstance(inside, dict) else None
        if not isinstance(inside, dict) or path[-1] in inside:
            raise broken(f"{name:.80}: lies inside another entry, or is listed twice", index)
        inside[path[-1]] = _tensor(name, entry, index)
    return _with_lists(root)


def _entries(metadata: Inert, index: Path) -> Iterator[tuple[str, tuple[str | int, ...], object]]:
    """The entries of a checkpoint: the name of each, its path, and what it is."""
    flat, paths = metadata.state.get("state_dict_metadata"), metadata.state.get("planner_data")
    if not isinstance(flat, dict) or not all(isinstance(name, str) for name in flat):
        raise broken("lists no tensors", index)
    check_text(flat, index)
    for name, entry in flat.items():
        # A planner that doesn't flatten stores no paths, and nests nothing.
        path = paths.get(name, (name,)) if isinstance(paths, dict) else (name,)
        yield name, _path(path, index), entry


def _path(path: object, index: Path) -> tuple[str | int, ...]:
    """The path of an entry: names, and places in lists."""
    if isinstance(path, tuple) and 0 < len(path) <= _MAX_DEPTH:
        names = [step for step in path if isinstance(step, str)]
        if all(len(name) <= _MAX_NAME for name in names):
            check_text(names, index)
            if _naturals(tuple(step for step in path if not isinstance(step, str))) is not None:
                return path
    raise broken("an entry with an invalid path", index)


def _with_lists(node: object) -> object:
    """The node with lists in place of dicts whose keys are 0, 1 and so on."""
    if not isinstance(node, dict):
        return node
    inside = {step: _with_lists(child) for step, child in node.items()}
    numbered = set(inside) == set(range(len(inside)))
    return [inside[i] for i in range(len(inside))] if numbered else inside


def _tensor(name: str, entry: object, index: Path) -> _Tensor | None:
    """A tensor from its entry, without boxes that have no elements; None for other entries."""
    if isinstance(entry, Inert):
        if entry.class_name == _BYTES:
            return None
        chunks, shape = entry.state.get("chunks"), _naturals(entry.state.get("size"))
        match getattr(entry.state.get("properties"), "raw_state", None), chunks:
            case (DType() as dtype, *_), [*_] if shape is not None:
                boxes = [_box(chunk, len(shape), name, index) for chunk in chunks]
                full = [box for box in boxes if 0 not in box.shape]
                # Older planners list a replica twice, at one place.
                return _Tensor(name, dtype, shape, tuple(dict.fromkeys(full or boxes[:1])))
    raise broken(f"tensor {name:.80}: malformed entry", index)


def _box(chunk: object, dimensions: int, name: str, index: Path) -> Box:
    """A part of a tensor from the entry of its chunk."""
    if isinstance(chunk, Inert):
        origin, shape = _naturals(chunk.state.get("offsets")), _naturals(chunk.state.get("sizes"))
        if origin is not None and shape is not None and len(origin) == len(shape) == dimensions:
            return Box(origin, shape)
    raise broken(f"tensor {name:.80}: malformed chunk", index)


def _locate(metadata: Inert, index: Path, tensors: Mapping[str, StoredTensor]) -> dict[str, Extent]:
    """Extents of tensors, as the archives in their chunks say."""
    check_text(tensors, index)
    stored = {name: t for name, t in tensors.items() if isinstance(t, _Tensor)}
    chunks = sorted(
        _chunks({t.name: t for t in stored.values()}.values(), metadata, index),
        key=lambda c: c[:3],
    )
    # Chunks that share bytes would be read again and again. Tied tensors are one, and read once.
    for one, other in pairwise(chunks):
        tied = one[:3] == other[:3] and len(one.tensor.boxes) == len(other.tensor.boxes) == 1
        if one.file == other.file and one.offset + one.length > other.offset and not tied:
            raise broken(
                f"tensor {other.tensor.name:.200}: its chunk overlaps that of another", one.file
            )
    try:
        with OpenFiles() as files:
            extents = {(c.tensor.name, c.box): _read_chunk(files, c) for c in chunks}
    except OSError as error:
        raise StorageError.wrap(error, error.filename or index.parent, "read") from error
    return {name: _tensor_extent(name, t, extents) for name, t in stored.items()}


def _chunks(tensors: Iterable[_Tensor], metadata: Inert, index: Path) -> Iterator[_Chunk]:
    """The chunks of tensors."""
    listed = metadata.state.get("storage_data")
    places = {
        (key.state.get("fqn"), _naturals(key.state.get("offset"))): info.state
        for key, info in (listed.items() if isinstance(listed, dict) else ())
        if isinstance(key, Inert) and isinstance(key.state.get("fqn"), str)
        if isinstance(info, Inert)
    }
    files: dict[str, Path] = {}
    for tensor in tensors:
        if not covers(tensor.boxes, tensor.shape):
            raise broken(f"tensor {tensor.name}: its chunks overlap, or don't cover it", index)
        if tensor.dtype.bits < _BYTE_BITS and len(tensor.boxes) > 1:
            what = f"tensor {tensor.name}: {tensor.dtype.label} in several chunks"
            raise broken(what, index, "save it unsharded")
        for box in tensor.boxes:
            listing = places.get((tensor.name, box.origin), {})
            place = _naturals((listing.get("offset"), listing.get("length")))
            name = listing.get("relative_path")
            if place is None or not isinstance(name, str):
                raise broken(
                    f"tensor {tensor.name}: doesn't say where its chunk at {box.origin} lies", index
                )
            if listing.get("transform_descriptors"):
                raise broken(f"tensor {tensor.name}: is compressed", index, _CONVERT)
            if name not in files:
                files[name] = file_beside(index, name, f"tensor {tensor.name:.200}: its file")
            offset, length = place
            yield _Chunk(files[name], offset, length, tensor, box)


def _read_chunk(files: OpenFiles, chunk: _Chunk) -> Extent:
    """Where the values of a chunk lie, as its archive says."""
    try:
        return _chunk_extent(files.descriptor(chunk.file), chunk)
    except InputError as error:
        what = f"tensor {chunk.tensor.name}: {error.what}"
        raise broken(what, chunk.file, error.remedy or REMEDY) from error
    except (PhemaError, OSError):
        raise
    except Exception as error:
        # zipfile raises more than BadZipFile for a broken archive.
        raise broken(
            f"tensor {chunk.tensor.name}: its chunk is broken ({error!s:.80})", chunk.file
        ) from error


def _chunk_extent(descriptor: int, chunk: _Chunk) -> Extent:
    """The extent of the tensor in a chunk's archive."""
    size = os.fstat(descriptor).st_size
    if chunk.offset + chunk.length > size:
        raise broken(f"its chunk goes beyond the file's {size} bytes: it was cut short", chunk.file)
    window = cast("IO[bytes]", _Window(descriptor, chunk))
    if window.read(len(_MAGIC)) != _MAGIC:
        raise broken("not stored by torch.save", chunk.file, _CONVERT)
    with zipfile.ZipFile(window) as archive:
        root, data = read_pickle(archive, chunk.file)
        stub = load(data, chunk.file)
        if not isinstance(stub, TensorStub):
            raise broken("its chunk holds no tensor", chunk.file)
        key = stub.storage.key
        info = archive.getinfo(f"{root}/data/{key}")
        start, length = find_record(window, info, key, archive.start_dir, chunk.file)
    if stub.dtype is not chunk.tensor.dtype or stub.shape != chunk.box.shape:
        raise broken("its chunk has another type or shape than .metadata says", chunk.file)
    return stub.extent(chunk.tensor.name, chunk.file, (chunk.offset + start, length))


def _tensor_extent(name: str, tensor: _Tensor, extents: Mapping[tuple[str, Box], Extent]) -> Extent:
    """A tensor's extent: that of its only chunk, or pieces."""
    pieces = [Piece(box, extents[tensor.name, box]) for box in tensor.boxes]
    first = pieces[0].extent
    if 0 in tensor.shape:
        return replace(first, name=name, shape=tensor.shape)
    if len(pieces) == 1:
        return replace(first, name=name)
    return Extent(name, tensor.dtype, tensor.shape, first.file, first.offset, None, tuple(pieces))
