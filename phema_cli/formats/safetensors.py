"""The safetensors format, read and written.

A file is a little-endian u64, the length of a JSON header, the header, and the data. Sharded
checkpoints have an index that maps each tensor to its shard.
"""

import json
import math
import re
import struct
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from phema_cli.errors import InputError, reading
from phema_cli.formats import packing
from phema_cli.formats.base import (
    DTYPES,
    MOST_DIMENSIONS,
    Checkpoint,
    Contents,
    Entries,
    Entry,
    Extent,
    Tensors,
    located,
)
from phema_cli.formats.chains import followed_files, unpacked
from phema_cli.formats.checks import (
    broken,
    check_text,
    checked_metadata,
    parse_object,
    parse_value,
)
from phema_cli.formats.entries import KNOWN, digest_of
from phema_cli.formats.image import HASH_DIGITS, Algorithm, FileImage, FolderImage, Specs
from phema_cli.formats.sharded import read_sharded

NAME = "safetensors"
INDEX_SUFFIX = ".safetensors.index.json"
#: what Hugging Face libraries call the weights in a directory, by what they are called there
#: before, without shard number and ending.
BASE_NAMES = {
    "model": "model",
    "pytorch_model": "model",
    "diffusion_pytorch_model": "diffusion_pytorch_model",
    "adapter_model": "adapter_model",
    "pytorch_lora_weights": "pytorch_lora_weights",
}

_LENGTH = struct.Struct("<Q")
#: how a header begins whose metadata come first, as libraries write them.
_FIRST = b'{"__metadata__":'
_MAX_HEADER_BYTES = 100_000_000
#: entries for a hash of the tensors' bytes: programs know LoRAs by it, and packed snapshots those
#: that they follow.
_HASHED: Mapping[str, Algorithm] = {
    "sshs_model_hash": "sha256",
    "modelspec.hash_sha256": "sha256",
    packing.CHECKSUM_KEY: "crc32",
}
_MAX_NUMBER = 1 << 63


def read(path: Path) -> Contents:
    """What a safetensors file holds, or an index with its shards.

    Errors as :meth:`phema_cli.formats.registry.Format.read` says.
    """
    tensors: Mapping[str, Extent]
    if path.name.endswith(INDEX_SUFFIX):
        tensors, metadata, files = read_sharded(path, ".safetensors", _read_shard)
        base = path.name.removesuffix(INDEX_SUFFIX)
    else:
        tensors, metadata = read_header(path)
        tensors = unpacked(path, (tensors, metadata), read_header)
        # What a packed file follows is read with it.
        files = (path, *sorted(followed_files(tensors) - {path}))
        base = re.sub(r"-\d{5}-of-\d{5}$", "", path.stem)
    # safetensors.torch.save_model leaves further names of tensors to the metadata.
    further = {
        alias: replace(tensors[name], name=alias)
        for alias, name in metadata.items()
        if name in tensors and alias not in tensors and alias != "format"
    }
    tensors = {**tensors, **further} if further else tensors
    return Contents(path, NAME, tensors, located, files, metadata, base)


def _read_shard(path: Path) -> tuple[Tensors, dict[str, str]]:
    """:func:`read_header` of a shard, which must not be packed."""
    tensors, metadata = read_header(path)
    packed = packing.parse(metadata, path)
    if packed is not None and packed.keyframe is not None:
        raise broken("a packed file cannot be a shard", path)
    return tensors, metadata


def read_header(path: Path) -> tuple[Tensors, dict[str, str]]:
    """Extents, in the order of their data, and metadata of one file; its size is checked."""
    raw, size = _raw_header(path)
    start = _LENGTH.size + len(raw)
    front, rest = _metadata_first(raw)
    # Spaces at the end make up for metadata of other lengths.
    digest = digest_of(rest.rstrip(b" "))
    # Of a million tensors nothing is held twice.
    del rest
    entries = KNOWN.get(digest)
    if entries is None:
        header = parse_object(raw, path, _entry)
        del raw
        metadata = checked_metadata(header.pop("__metadata__", front), path)
        entries = _entries(path, header, digest)
        if metadata == front:
            KNOWN[digest] = entries
    else:
        metadata = checked_metadata(front, path)
    if start + entries.size_bytes != size:
        end = start + entries.size_bytes
        cut = ": it was cut short" if size < end else ""
        raise broken(f"has {size} bytes where its header says {end}{cut}", path)
    return Tensors(entries, ((path, start),)), metadata


def _metadata_first(raw: bytes) -> tuple[object, bytes]:
    """The metadata of a header that begins with them, and what is behind them."""
    if raw.startswith(_FIRST):
        # What makes no sense is refused with the rest.
        with suppress(ValueError, RecursionError, InputError):
            text = raw.decode()
            metadata, end = parse_value(text, len(_FIRST))
            return metadata, text[end:].encode()
    return {}, raw


def _entries(path: Path, header: Mapping[str, object], digest: bytes) -> Entries:
    """The entries of a header, checked, in the order of their data."""
    check_text(header, path)
    found = [(name, _checked(path, name, entry)) for name, entry in header.items()]
    found.sort(key=lambda item: item[1][2:])
    named: dict[str, Entry] = {}
    end = 0
    for name, entry in found:
        if entry.low != end:
            raise broken(f"tensor {name}: its data overlap others or leave a gap", path)
        named[sys.intern(name)] = Entry(DTYPES[entry.code], entry.shape, entry.low)
        end = entry.high
    return Entries(named, end, digest)


def _raw_header(path: Path) -> tuple[bytes, int]:
    """The header's JSON, and the bytes of the file."""
    with reading(path):
        size = path.stat().st_size
        with path.open("rb") as file:
            prefix = file.read(_LENGTH.size)
            length = _LENGTH.unpack(prefix)[0] if len(prefix) == _LENGTH.size else -1
            if not len(b"{}") <= length <= min(_MAX_HEADER_BYTES, size - _LENGTH.size):
                raise broken("not a safetensors file", path)
            return file.read(length), size


class _Entry(NamedTuple):
    """What a header says of a tensor; less than half of the memory of its JSON."""

    code: str
    shape: tuple[int, ...]
    low: int
    high: int


def _entry(value: dict[str, Any]) -> dict[str, Any] | _Entry:
    """The entry that an object of a header is, or the object itself."""
    match value:
        case {"dtype": str(code), "shape": [*shape], "data_offsets": [low, high]} if all(
            type(n) is int and 0 <= n < _MAX_NUMBER for n in (low, high, *shape)
        ):
            return _Entry(sys.intern(code), _shared(tuple(shape)), low, high)
        case _:
            return value


@lru_cache(1 << 12)
def _shared(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The same tuple for equal shapes: models have few."""
    return shape


def _checked(path: Path, name: str, entry: object) -> _Entry:
    """A tensor's entry, if it makes sense."""
    if not isinstance(entry, _Entry):
        raise broken(f"tensor {name}: malformed entry", path)
    code, shape, low, high = entry
    if code not in DTYPES:
        raise InputError(
            f"tensor {name}: unknown dtype {code}", where=path, remedy="a newer phema may know it"
        )
    if len(shape) > MOST_DIMENSIONS:
        raise broken(f"tensor {name}: {len(shape)} dimensions are too many", path)
    if low > high or DTYPES[code].size_bytes(math.prod(shape)) != high - low:
        raise broken(f"tensor {name}: {high - low} bytes don't hold {code} {list(shape)}", path)
    return entry


def encode(
    specs: Specs, metadata: Mapping[str, str], ties: Mapping[str, str], carried: Checkpoint
) -> FileImage:
    """Lay out a file; as :class:`phema_cli.formats.registry.Format` says.

    The header is padded with spaces to a multiple of 8 bytes, and its metadata are sorted so that
    equal input gives equal bytes. Further names of a tensor go into the metadata, where
    ``safetensors.torch.load_model`` finds them.
    """
    del carried
    texts = {**metadata, **ties}
    hashed = {key: algorithm for key, algorithm in _HASHED.items() if key in texts}
    for key, algorithm in hashed.items():
        # Room for a hash, with 0x where it had that before.
        texts[key] = ("0x" if texts[key].startswith("0x") else "") + "0" * HASH_DIGITS[algorithm]
    header: dict[str, object] = {"__metadata__": dict(sorted(texts.items()))}
    offsets: dict[str, int] = {}
    end = 0
    for name, (dtype, shape) in specs.items():
        start, end = end, end + dtype.size_bytes(math.prod(shape))
        offsets[name] = start
        header[name] = {"dtype": dtype.name, "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    head = _LENGTH.pack(len(text)) + text
    places = {name: len(head) + start for name, start in offsets.items()}
    # In a header a key's quotes are its own; in values they are escaped.
    hashes: dict[int, Algorithm] = {}
    for key, algorithm in hashed.items():
        mark = f'"{key}":"'.encode()
        end_of_text = head.index(mark) + len(mark) + len(texts[key])
        hashes[end_of_text - HASH_DIGITS[algorithm]] = algorithm
    return FileImage(((0, head),), places, len(head) + end, hashes=hashes)


def folder_base(base_name: str) -> str:
    """What the weights in a directory are called, by what they were called in its source."""
    return BASE_NAMES.get(base_name, "model")


def encode_folder(
    shards: Sequence[Specs],
    metadata: Mapping[str, str],
    ties: Mapping[str, str],
    carried: Checkpoint,
) -> FolderImage:
    """Lay out a directory; as :class:`phema_cli.formats.registry.Format` says.

    One shard is a single file without an index, as Hugging Face libraries have it.
    """
    base = folder_base(carried.base_name)
    files: dict[str, FileImage] = {}
    weight_map: dict[str, str] = {}
    for number, specs in enumerate(shards):
        suffix = f"-{number + 1:05d}-of-{len(shards):05d}" if len(shards) > 1 else ""
        tied = {alias: name for alias, name in ties.items() if name in specs}
        file = f"{base}{suffix}.safetensors"
        files[file] = encode(specs, metadata, tied, carried)
        weight_map |= dict.fromkeys(specs, file)
    if len(files) == 1:
        return FolderImage(files, None)
    sizes = (d.size_bytes(math.prod(shape)) for specs in shards for d, shape in specs.values())
    data = encode_index(weight_map, sum(sizes), {**metadata, **ties})
    return FolderImage(files, (f"{base}{INDEX_SUFFIX}", data))


def encode_index(
    weight_map: Mapping[str, str], total_size: int, metadata: Mapping[str, str]
) -> bytes:
    """The index of a sharded checkpoint, as Hugging Face writes it."""
    index = {
        "metadata": {
            "total_size": total_size,
            **{key: text for key, text in metadata.items() if key not in _HASHED},
        },
        "weight_map": dict(sorted(weight_map.items())),
    }
    return (json.dumps(index, indent=2, sort_keys=True, ensure_ascii=False) + "\n").encode()
