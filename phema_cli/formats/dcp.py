"""Directories of ``torch.distributed.checkpoint``, read by extents, without running their pickles.

``.metadata`` is a pickle that says which boxes each tensor is split into, and where they lie: each
is an archive of ``torch.save`` somewhere in a ``.distcp`` file. Nothing of torch is imported: the
former is read by an unpickler that knows only stand-ins, the latter as ``.pt`` files are.
"""

from __future__ import annotations

import math
import os
import zipfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from io import RawIOBase
from itertools import pairwise, product
from pathlib import Path
from typing import IO, Any, NamedTuple, cast

from phema_cli.errors import InputError, PhemaError, StorageError
from phema_cli.formats._metadata import REMEDY, check_text
from phema_cli.formats._unpickle import ALLOWED, StandIn, TensorStub, load
from phema_cli.formats.base import MOST_DIMENSIONS, Contents, DType, Extent, Piece, StoredTensor
from phema_cli.formats.files import OpenFiles
from phema_cli.formats.locations import beside
from phema_cli.formats.torch_zip import data_offset, read_pickle, tensor_extent
from phema_cli.pickles import Inert, Kind
from phema_cli.system.files import read_at

NAME = "dcp"

_MAX_PICKLE_BYTES = 256 << 20
_MAX_NUMBER = 1 << 62
# How deep dicts are nested, how long their names are, along how many dimensions a tensor is split.
_MAX_DEPTH = 50
_MAX_NAME = 1000
_MAX_SPLIT = 4
# No chunk is described in fewer bytes.
_CHUNK_BYTES = 16
_BYTE = 8
_MAGIC = b"PK\x03\x04"
_CONVERT = (
    "re-save it with torch's default serialization, or convert it with "
    "torch.distributed.checkpoint.format_utils.dcp_to_torch_save"
)


def _nothing(*_: object) -> None:
    """Memory formats are of no use here."""


_METADATA = "torch.distributed.checkpoint.metadata"
#: where torch up to 2.2 had the properties of tensors.
_SHARDED = "torch.distributed._shard.sharded_tensor.metadata"
_RECORDS = (
    *("Metadata", "MetadataIndex", "StorageMeta", "TensorProperties"),
    *("BytesStorageMetadata", "TensorStorageMetadata", "ChunkStorageMetadata"),
)
#: the entry of something that is no tensor.
_BYTES = "BytesStorageMetadata"
_ALLOWED: Mapping[tuple[str, str], object] = {
    **ALLOWED,
    (_METADATA, "_MEM_FORMAT_ENCODING"): StandIn(_nothing),
    (_SHARDED, "MEM_FORMAT_ENCODING"): StandIn(_nothing),
    (_SHARDED, "TensorProperties"): Kind("TensorProperties"),
    ("torch.distributed.checkpoint.filesystem", "_StorageInfo"): Kind("_StorageInfo"),
    **{(_METADATA, name): Kind(name) for name in _RECORDS},
}
#: stands for a place that is not listed.
_NOWHERE = Inert("_StorageInfo")
_REMEDY = "phema runs no code from files; save it with torch's own planner and writer"


class _Box(NamedTuple):
    """A part of a tensor: the index of its first element, and its shape."""

    origin: tuple[int, ...]
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class _Tensor(StoredTensor):
    """A tensor as ``.metadata`` describes it, under the name that its chunks go by."""

    name: str
    dtype: DType
    shape: tuple[int, ...]
    boxes: tuple[_Box, ...]


class _Chunk(NamedTuple):
    """A box of a tensor, and the bytes of the archive that holds it."""

    file: Path
    offset: int
    length: int
    tensor: _Tensor
    box: _Box


class _Window(RawIOBase):
    """The bytes of a chunk, as a file of their own."""

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
        """Read on, up to the end of the chunk."""
        view = memoryview(buffer)[: max(0, self._chunk.length - self._at)]
        got = read_at(self._descriptor, view, self._chunk.offset + self._at)
        self._at += got
        return got


def read(path: Path) -> Contents:
    """What a directory of ``torch.distributed.checkpoint`` holds.

    Args:
        path: the directory, or the ``.metadata`` in it.

    Errors as :class:`phema_cli.formats.base.Format` says.
    """
    directory = path if path.is_dir() else path.parent
    index = directory / ".metadata"
    try:
        data = _read(index)
    except OSError as error:
        raise StorageError.wrap(error, error.filename or directory, "read") from error
    metadata = _load(data, index)
    nested = _nested(metadata, index, len(data) // _CHUNK_BYTES)
    return Contents(directory, NAME, nested, _Places(metadata, index))


@dataclass(frozen=True, slots=True)
class _Places:
    """Looks up where tensors of a directory lie: in their chunks' own headers."""

    metadata: Inert
    index: Path

    def __call__(self, tensors: Mapping[str, StoredTensor]) -> dict[str, Extent]:
        """Extents of tensors; errors as :func:`read` has them."""
        check_text(tensors, self.index)
        stored = {name: t for name, t in tensors.items() if isinstance(t, _Tensor)}
        chunks = sorted(
            _chunks({t.name: t for t in stored.values()}.values(), self.metadata, self.index),
            key=lambda c: c[:3],
        )
        _check_apart(chunks)
        try:
            with OpenFiles() as files:
                places = {(c.tensor.name, c.box): _read_chunk(files, c) for c in chunks}
        except OSError as error:
            where = error.filename or self.index.parent
            raise StorageError.wrap(error, where, "read") from error
        return {name: _whole_tensor(name, t, places) for name, t in stored.items()}


def _read(index: Path) -> bytes:
    """The bytes of ``.metadata``, which is written when all else is."""
    if index.is_file():
        if index.stat().st_size > _MAX_PICKLE_BYTES:
            raise _broken(index, "larger than 256 MiB")
        return index.read_bytes()
    if any(index.parent.glob("__*.metadata")):
        raise _broken(index.parent, "has a .metadata a rank", "save it with use_collectives=True")
    begun = any(index.parent.glob("*.distcp"))
    what = "not finished" if begun else "not of torch.distributed.checkpoint"
    raise _broken(index.parent, f"{what}: no .metadata", "leave it out with --exclude")


def _load(data: bytes, index: Path) -> Inert:
    """What ``.metadata`` holds."""
    content = load(data, index, _ALLOWED, _REMEDY)
    if not isinstance(content, Inert):
        raise _broken(index, "is something else")
    return content


def _broken(where: Path, what: str, remedy: str = REMEDY) -> InputError:
    """The error for what makes no sense."""
    return InputError(what, where=where, remedy=remedy)


def _whole(value: object) -> tuple[int, ...] | None:
    """A tuple of natural numbers, else None."""
    if not isinstance(value, tuple) or len(value) > MOST_DIMENSIONS:
        return None
    if all(type(n) is int and 0 <= n < _MAX_NUMBER for n in value):
        return value
    return None


def _nested(metadata: Inert, index: Path, most: int) -> object:
    """What was saved, as it was nested; what is no tensor is None."""
    flat, paths = metadata.state.get("state_dict_metadata"), metadata.state.get("planner_data")
    if not isinstance(flat, dict) or not all(isinstance(name, str) for name in flat):
        raise _broken(index, "lists no tensors")
    check_text(flat, index)
    listed = [entry.state.get("chunks") for entry in flat.values() if isinstance(entry, Inert)]
    # A list may be there again and again, in two bytes each time.
    if sum(len(chunks) for chunks in listed if isinstance(chunks, list)) > most:
        raise _broken(index, "lists more chunks than it describes")
    root: dict[object, object] = {}
    for name, entry in flat.items():
        # A planner that doesn't flatten has no paths: nothing is nested then.
        path = _path(paths.get(name, (name,)) if isinstance(paths, dict) else (name,), index)
        inside: object = root
        for step in path[:-1]:
            inside = inside.setdefault(step, {}) if isinstance(inside, dict) else None
        if not isinstance(inside, dict) or path[-1] in inside:
            raise _broken(index, f"{name:.80}: lies inside another entry, or is there twice")
        inside[path[-1]] = _tensor(name, entry, index)
    return _with_lists(root)


def _path(path: object, index: Path) -> tuple[str | int, ...]:
    """A path of names, and of places in lists."""
    if isinstance(path, tuple) and 0 < len(path) <= _MAX_DEPTH:
        names = [step for step in path if isinstance(step, str)]
        if all(len(name) <= _MAX_NAME for name in names):
            check_text(names, index)
            if _whole(tuple(step for step in path if not isinstance(step, str))) is not None:
                return path
    raise _broken(index, "a path that is none")


def _with_lists(node: object) -> object:
    """The same with lists in place of dicts whose names are 0, 1 and so on."""
    if not isinstance(node, dict):
        return node
    inside = {step: _with_lists(child) for step, child in node.items()}
    numbered = set(inside) == set(range(len(inside)))
    return [inside[i] for i in range(len(inside))] if numbered else inside


def _tensor(name: str, entry: object, index: Path) -> _Tensor | None:
    """What ``.metadata`` says of a tensor; parts of it without elements are left out."""
    if isinstance(entry, Inert):
        if entry.kind == _BYTES:
            return None
        chunks, shape = entry.state.get("chunks"), _whole(entry.state.get("size"))
        match getattr(entry.state.get("properties"), "raw", None), chunks:
            case (StandIn(dtype=DType() as dtype), *_), [*_] if shape is not None:
                boxes = [_box(chunk, len(shape), name, index) for chunk in chunks]
                full = [box for box in boxes if 0 not in box.shape]
                # Replicas that older planners stored twice are listed twice, at one place.
                return _Tensor(name, dtype, shape, tuple(dict.fromkeys(full or boxes[:1])))
    raise _broken(index, f"tensor {name:.80}: malformed entry")


def _box(chunk: object, dimensions: int, name: str, index: Path) -> _Box:
    """What ``.metadata`` says of a part of a tensor."""
    if isinstance(chunk, Inert):
        origin, shape = _whole(chunk.state.get("offsets")), _whole(chunk.state.get("sizes"))
        if origin is not None and shape is not None and len(origin) == len(shape) == dimensions:
            return _Box(origin, shape)
    raise _broken(index, f"tensor {name:.80}: malformed chunk")


def _covers(boxes: tuple[_Box, ...], shape: tuple[int, ...]) -> bool:
    """Whether boxes cover a shape, each element once.

    A box is the signed sum of the orthants at its corners, and orthants are linearly independent:
    so boxes make up the whole exactly if all corners but those of the whole cancel. Dimensions that
    no box splits have nothing to add, so that rows split among ranks have two corners each.
    """
    if 0 in shape:
        return bool(boxes)
    whole = _Box((0,) * len(shape), shape)
    sides = [{(box.origin[d], box.shape[d]) for box in boxes} for d in range(len(shape))]
    split = [d for d, n in enumerate(shape) if sides[d] != {(0, n)}]
    if len(split) > _MAX_SPLIT:
        return False
    corners: Counter[tuple[int, ...]] = Counter()
    for box, sign in (*((box, 1) for box in boxes), (whole, -1)):
        ends = [((box.origin[d], 1), (box.origin[d] + box.shape[d], -1)) for d in split]
        for corner in product(*ends):
            corners[tuple(at for at, _ in corner)] += sign * math.prod(s for _, s in corner)
    return bool(boxes) and not any(corners.values())


def _chunks(tensors: Iterable[_Tensor], metadata: Inert, index: Path) -> Iterator[_Chunk]:
    """Where the parts of tensors lie."""
    listed = metadata.state.get("storage_data")
    places = {
        (key.state.get("fqn"), _whole(key.state.get("offset"))): info
        for key, info in (listed.items() if isinstance(listed, dict) else ())
        if isinstance(key, Inert) and isinstance(key.state.get("fqn"), str)
        if isinstance(info, Inert)
    }
    files: dict[str, Path] = {}
    for tensor in tensors:
        if not _covers(tensor.boxes, tensor.shape):
            raise _broken(index, f"tensor {tensor.name}: its chunks overlap, or don't cover it")
        if tensor.dtype.bits < _BYTE and len(tensor.boxes) > 1:
            what = f"tensor {tensor.name}: {tensor.dtype.label} in several chunks"
            raise _broken(index, what, "save it unsharded")
        for box in tensor.boxes:
            info = places.get((tensor.name, box.origin), _NOWHERE)
            place = _whole((info.state.get("offset"), info.state.get("length")))
            name = info.state.get("relative_path")
            if place is None or not isinstance(name, str):
                what = f"tensor {tensor.name}: doesn't say where its chunk at {box.origin} lies"
                raise _broken(index, what)
            if info.state.get("transform_descriptors"):
                raise _broken(index, f"tensor {tensor.name}: is compressed", _CONVERT)
            if name not in files:
                files[name] = beside(index, name, f"tensor {tensor.name:.200}: its file")
            offset, length = place
            yield _Chunk(files[name], offset, length, tensor, box)


def _check_apart(chunks: list[_Chunk]) -> None:
    """Refuse chunks, sorted by their places, that share bytes: each would be looked up anew."""
    for one, other in pairwise(chunks):
        if one.file == other.file and one.offset + one.length > other.offset:
            what = f"tensor {other.tensor.name:.200}: its chunk overlaps that of another"
            raise _broken(one.file, what)


def _read_chunk(files: OpenFiles, chunk: _Chunk) -> Extent:
    """Where the values of a chunk lie, as its archive says."""
    try:
        stub, start, length = _stored_tensor(files.descriptor(chunk.file), chunk)
    except InputError as error:
        what = f"tensor {chunk.tensor.name}: {error.what}"
        raise _broken(chunk.file, what, error.remedy or REMEDY) from error
    except (PhemaError, OSError):
        raise
    except Exception as error:
        # What zipfile raises for a broken archive is not BadZipFile alone.
        what = f"tensor {chunk.tensor.name}: its chunk is broken ({error!s:.80})"
        raise _broken(chunk.file, what) from error
    return tensor_extent(chunk.tensor.name, stub, chunk.file, chunk.offset + start, length)


def _stored_tensor(descriptor: int, chunk: _Chunk) -> tuple[TensorStub, int, int]:
    """The tensor in a chunk's archive; where in the chunk its record begins; the record's bytes."""
    size = os.fstat(descriptor).st_size
    if chunk.offset + chunk.length > size:
        raise _broken(chunk.file, f"its chunk goes beyond the file's {size} bytes; truncated?")
    window = cast("IO[bytes]", _Window(descriptor, chunk))
    if window.read(len(_MAGIC)) != _MAGIC:
        raise _broken(chunk.file, "not stored by torch.save", _CONVERT)
    with zipfile.ZipFile(window) as archive:
        root, data = read_pickle(archive, chunk.file)
        stub = load(data, chunk.file)
        if not isinstance(stub, TensorStub):
            raise _broken(chunk.file, "its chunk holds no tensor")
        key = stub.storage.key
        records = {key: archive.getinfo(f"{root}/data/{key}")}
        start, length = data_offset(window, records, stub, archive.start_dir, chunk.file)
    if stub.dtype is not chunk.tensor.dtype or stub.shape != chunk.box.shape:
        raise _broken(chunk.file, "its chunk has another type or shape than .metadata says")
    return stub, start, length


def _whole_tensor(name: str, tensor: _Tensor, found: Mapping[tuple[str, _Box], Extent]) -> Extent:
    """A tensor's extent: that of its only chunk, or pieces."""
    pieces = [Piece(box.origin, found[tensor.name, box]) for box in tensor.boxes]
    first = pieces[0].extent
    if 0 in tensor.shape:
        return replace(first, name=name, shape=tensor.shape)
    if len(pieces) == 1:
        return replace(first, name=name)
    return Extent(name, tensor.dtype, tensor.shape, first.file, first.offset, None, tuple(pieces))
