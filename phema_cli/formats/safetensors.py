"""The safetensors format: reading headers and indexes, and laying out files to be written.

A file is a little-endian u64, the length of a JSON header, the header, and the data. Sharded
checkpoints have an index that maps each tensor to its shard.
"""

from __future__ import annotations

import json
import math
import re
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from phema_cli.errors import InputError, StorageError
from phema_cli.formats.base import DTYPES, Checkpoint, DType, Extent

NAME = "safetensors"
INDEX_SUFFIX = ".safetensors.index.json"
SUFFIXES = (".safetensors", INDEX_SUFFIX)

_LENGTH = struct.Struct("<Q")
_MAX_HEADER_BYTES = 100_000_000
_MAX_INDEX_BYTES = 1 << 30
_REMEDY = "copy it again, or leave it out with --exclude"


def read_index(path: Path, key: str | None = None) -> Checkpoint:
    """Reduce a safetensors file, or an index with its shards, to extents.

    ``key`` is not used: the format is flat. Errors as :class:`phema_cli.formats.base.Format` says.
    """
    del key
    if path.name.endswith(INDEX_SUFFIX):
        return _read_sharded(path)
    tensors, metadata = read_header(path)
    base = re.sub(r"-\d{5}-of-\d{5}$", "", path.stem)
    return Checkpoint(path, NAME, (path,), tensors, metadata, base)


def read_header(path: Path) -> tuple[dict[str, Extent], dict[str, str]]:
    """Extents, in the order of their data, and metadata of one file, checked against its size."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            prefix = file.read(_LENGTH.size)
            length = _LENGTH.unpack(prefix)[0] if len(prefix) == _LENGTH.size else -1
            if not len(b"{}") <= length <= min(_MAX_HEADER_BYTES, size - _LENGTH.size):
                raise InputError("not a safetensors file", where=path, remedy=_REMEDY)
            raw = file.read(length)
    except OSError as error:
        raise StorageError.wrap(error, path, "read") from error
    header = _parse_object(raw, path)
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise InputError("the metadata is not text to text", where=path, remedy=_REMEDY)
    _check_text([*header, *metadata, *metadata.values()], path)
    start = _LENGTH.size + length
    entries = [_parse_entry(path, name, entry, start) for name, entry in header.items()]
    entries.sort(key=lambda item: (item[0].offset, item[1]))
    end = start
    for extent, stop in entries:
        if extent.offset != end:
            raise InputError(
                f"tensor {extent.name}: its data overlap others or leave a hole",
                where=path,
                remedy=_REMEDY,
            )
        end = stop
    if end != size:
        raise InputError(
            f"has {size} bytes where its header says {end}; truncated?", where=path, remedy=_REMEDY
        )
    return {extent.name: extent for extent, _ in entries}, metadata


def _check_text(texts: list[str], path: Path) -> None:
    """Refuse half surrogate pairs, which JSON can spell and no file can hold."""
    try:
        "".join(texts).encode()
    except UnicodeEncodeError as error:
        raise InputError("a name in its header is not text", where=path, remedy=_REMEDY) from error


def _parse_object(raw: bytes, path: Path) -> dict[str, Any]:
    """JSON that must be an object, else an InputError."""
    try:
        value = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise InputError("not a JSON header", where=path, remedy=_REMEDY) from error
    if not isinstance(value, dict):
        raise InputError("its JSON is not an object", where=path, remedy=_REMEDY)
    return value


def _parse_entry(path: Path, name: str, entry: object, start: int) -> tuple[Extent, int]:
    """One tensor's extent and the file offset at which its data end."""
    match entry:
        case {"dtype": str(code), "shape": [*shape], "data_offsets": [int(low), int(high)]} if all(
            type(n) is int and n >= 0 for n in (*shape, low, high)
        ):
            pass
        case _:
            raise InputError(f"tensor {name}: malformed entry", where=path, remedy=_REMEDY)
    if code not in DTYPES:
        raise InputError(
            f"tensor {name}: unknown dtype {code}", where=path, remedy="is phema out of date?"
        )
    dtype = DTYPES[code]
    if low > high or dtype.size_bytes(math.prod(shape)) != high - low:
        raise InputError(
            f"tensor {name}: {high - low} bytes don't hold {code} {shape}",
            where=path,
            remedy=_REMEDY,
        )
    return Extent(name, dtype, tuple(shape), path, start + low), start + high


def _read_sharded(path: Path) -> Checkpoint:
    """An index and the shards that it names, which must lie beside it."""
    try:
        if path.stat().st_size > _MAX_INDEX_BYTES:
            raise InputError("too large for an index", where=path, remedy=_REMEDY)
        raw = path.read_bytes()
    except OSError as error:
        raise StorageError.wrap(error, path, "read") from error
    weight_map = _parse_object(raw, path).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise InputError("an index without a weight_map", where=path, remedy=_REMEDY)
    files = [_shard_path(path, shard) for shard in sorted({str(v) for v in weight_map.values()})]
    tensors: dict[str, Extent] = {}
    metadata: dict[str, str] = {}
    for file in files:
        header, file_metadata = read_header(file)
        metadata = file_metadata | metadata
        tensors |= {n: e for n, e in header.items() if weight_map.get(n) == file.name}
    lost = sorted(set(weight_map) - set(tensors))
    if lost:
        raise InputError(
            f"tensor {lost[0]} is not in its shard {weight_map[lost[0]]}",
            where=path,
            remedy=_REMEDY,
        )
    base = path.name.removesuffix(INDEX_SUFFIX)
    return Checkpoint(path, NAME, tuple(files), tensors, metadata, base)


def _shard_path(index: Path, shard: str) -> Path:
    """The shard beside the index; a name that leads elsewhere is refused."""
    if Path(shard).name != shard or "\\" in shard or not shard.endswith(".safetensors"):
        raise InputError(
            f"names a shard outside its directory: {shard!r}",
            where=index,
            remedy="shards must be plain .safetensors names",
        )
    file = index.with_name(shard)
    if not file.is_file():
        raise InputError(f"shard {shard} is missing", where=index, remedy=_REMEDY)
    return file


def encode_header(
    tensors: Mapping[str, tuple[DType, tuple[int, ...]]], metadata: Mapping[str, str]
) -> tuple[bytes, dict[str, int]]:
    """The bytes before the data of a file, and where each tensor's data go.

    Args:
        tensors: dtype and shape by name, in the order in which the data are to lie.
        metadata: text to text; written in sorted order, so that equal input gives equal bytes.

    Returns:
        Length prefix and header, padded with spaces to a multiple of 8 bytes, and the absolute
        offset of each tensor.
    """
    header: dict[str, object] = {"__metadata__": dict(sorted(metadata.items()))}
    offsets: dict[str, int] = {}
    end = 0
    for name, (dtype, shape) in tensors.items():
        start, end = end, end + dtype.size_bytes(math.prod(shape))
        offsets[name] = start
        header[name] = {"dtype": dtype.name, "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    head = _LENGTH.pack(len(text)) + text
    return head, {name: len(head) + start for name, start in offsets.items()}


def encode_index(
    weight_map: Mapping[str, str], total_size: int, metadata: Mapping[str, str]
) -> bytes:
    """The index of a sharded checkpoint, as Hugging Face writes it."""
    index = {
        "metadata": {"total_size": total_size, **metadata},
        "weight_map": dict(sorted(weight_map.items())),
    }
    return (json.dumps(index, indent=2, sort_keys=True, ensure_ascii=False) + "\n").encode()
