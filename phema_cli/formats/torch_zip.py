"""PyTorch's zip format (``torch.save`` since 1.6), read without running its pickle, and written."""

import errno
import json
import math
import pickle
import struct
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import chain, islice, pairwise
from pathlib import Path
from typing import IO

from phema_cli.errors import InputError, PhemaError, StorageError
from phema_cli.formats.base import Checkpoint, Contents, DType, Extent, StoredTensor, located
from phema_cli.formats.checks import broken, check_text, checked_metadata, parse_object
from phema_cli.formats.image import FileImage, Specs
from phema_cli.formats.sharded import read_sharded
from phema_cli.formats.torch_pickle import STORAGE_DTYPES, Record, TensorStub, load

NAME = "torch"
INDEX_SUFFIX = ".bin.index.json"

_MAX_PICKLE_BYTES = 256 << 20
#: the directory inside the archive.
_ROOT = "archive"
#: what the record ``version`` holds.
_FILE_VERSION = b"3\n"
#: the record that holds the metadata; torch ignores it.
_METADATA = "phema.json"

#: bytes to which storages are aligned, as torch does since 2.6, so that they can be mapped.
_ALIGNMENT = 64
#: items that are put into a dict at a time, as Python's pickler does: readers bound the stack.
_BATCH = 1000
_BYTE_BITS = 8
#: the headers of the zip format.
_LOCAL = struct.Struct("<4sHHHHHIIIHH")
_CENTRAL = struct.Struct("<4sHHHHHHIIIHHHHHII")
_END = struct.Struct("<4sHHHHIIH")
_END_64 = struct.Struct("<4sQHHIIQQQQ")
_LOCATOR_64 = struct.Struct("<4sIQI")
_VERSION, _VERSION_64 = 20, 45
_UTF8 = 0x800
_NO_DATE = 0x21  # 1 January 1980, the first day that the format knows
_CRC_IN_LOCAL, _CRC_IN_CENTRAL = 14, 16
# These values say that the true one is in a field of 64 bits; larger ones must be there.
_MOST_32, _MOST_16 = 0xFFFFFFFF, 0xFFFF

_STORAGES = {code: name for name, code in STORAGE_DTYPES.items() if name != "UntypedStorage"}


def read(path: Path) -> Contents:
    """What a file of ``torch.save`` holds, or an index with its shards.

    Errors as :meth:`phema_cli.formats.registry.Format.read` says.
    """
    if path.name.endswith(INDEX_SUFFIX):
        tensors, metadata, files = read_sharded(path, ".bin", _read_shard)
        base = path.name.removesuffix(INDEX_SUFFIX)
        return Contents(path, NAME, tensors, located, files, metadata, base)
    with _zip_errors(path), path.open("rb") as file, zipfile.ZipFile(file) as archive:
        root, data = read_pickle(archive, path)
        content = load(data, path)
        metadata = {}
        if (name := f"{root}/{_METADATA}") in archive.NameToInfo:
            metadata = checked_metadata(parse_object(_read_entry(archive, name, path), path), path)
        locate = partial(_locate, path, archive.NameToInfo, f"{root}/data/", archive.start_dir)
    return Contents(path, NAME, content, locate, (path,), metadata, path.stem)


def _read_shard(path: Path) -> tuple[Mapping[str, Extent], Mapping[str, str]]:
    """The tensors of a shard, which is a flat dict."""
    shard = read(path)
    content = shard.content if isinstance(shard.content, dict) else {}
    stubs = {
        name: stub
        for name, stub in content.items()
        if isinstance(name, str) and isinstance(stub, TensorStub)
    }
    return shard.locate(stubs), {}


@contextmanager
def _zip_errors(path: Path) -> Iterator[None]:
    """Turn errors of reading an archive into those of phema."""
    try:
        yield
    except PhemaError:
        raise
    except OSError as error:
        # A damaged zip makes zipfile seek to places that no file has.
        if error.errno == errno.EINVAL:
            raise _not_a_zip(path) from error
        raise StorageError.wrap(error, path, "read") from error
    except Exception as error:
        # zipfile also raises NotImplementedError, UnicodeDecodeError and struct.error.
        raise _not_a_zip(path) from error


def _not_a_zip(path: Path) -> InputError:
    """The error for a file that is no zip: one of the legacy format, or no checkpoint at all."""
    with path.open("rb") as file:
        is_legacy = file.read(1) == b"\x80"
    if is_legacy:
        return InputError(
            "written in torch's legacy format",
            where=path,
            remedy="in torch, torch.save(torch.load(old, weights_only=True), new) writes the zip "
            "format",
        )
    return broken("not a PyTorch checkpoint, or truncated", path)


def read_pickle(archive: zipfile.ZipFile, path: Path) -> tuple[str, bytes]:
    """The archive's root and its ``data.pkl``; kind, size and byte order are checked."""
    names = archive.namelist()
    if len(archive.NameToInfo) < len(names):
        raise broken("an archive with two entries of one name", path)
    pickles = [n for n in names if n.count("/") == 1 and n.endswith("/data.pkl")]
    if len(pickles) != 1:
        raise broken("a zip, but not one of torch.save", path)
    root = pickles[0].removesuffix("/data.pkl")
    if f"{root}/constants.pkl" in names:
        raise InputError(
            "a TorchScript archive", where=path, remedy="save the model's state_dict() instead"
        )
    order = f"{root}/byteorder"
    if order in names and archive.getinfo(order).file_size == len(b"big"):
        raise InputError("big-endian data", where=path, remedy="re-save it on this machine")
    return root, _read_entry(archive, pickles[0], path)


def _read_entry(archive: zipfile.ZipFile, name: str, path: Path) -> bytes:
    """An entry that is read as a whole."""
    info = archive.getinfo(name)
    _check_stored(info, name, path)
    # The archive says these sizes.
    if info.file_size > min(_MAX_PICKLE_BYTES, archive.start_dir - info.header_offset):
        raise broken(f"its {name:.80} is larger than 256 MiB, or than the file", path)
    return archive.read(name)


def _check_stored(info: zipfile.ZipInfo, name: str, path: Path) -> None:
    """Refuse a compressed entry: torch stores all of them, and nothing is unpacked."""
    if info.compress_type != zipfile.ZIP_STORED or info.compress_size != info.file_size:
        what = f"record {name:.80} is compressed"
        raise InputError(what, where=path, remedy="re-save it with torch")


def _locate(
    path: Path,
    entries: Mapping[str, zipfile.ZipInfo],
    prefix: str,
    end: int,
    tensors: Mapping[str, StoredTensor],
) -> dict[str, Extent]:
    """Extents of an archive's tensors.

    Args:
        path: the archive.
        entries: its records by name.
        prefix: of the names, before the keys of storages.
        end: where they end.
        tensors: the tensors.
    """
    check_text(tensors, path)
    stubs = {name: t for name, t in tensors.items() if isinstance(t, TensorStub)}
    with _zip_errors(path), path.open("rb") as file:
        records = {
            key: find_record(file, entries.get(prefix + key), key, end, path)
            for key in dict.fromkeys(stub.storage.key for stub in stubs.values())
        }
    for (start, length), (following, _) in pairwise(sorted(records.values())):
        if start + length > following:
            raise broken("records overlap", path)
    return {
        name: stub.extent(name, path, records[stub.storage.key]) for name, stub in stubs.items()
    }


def find_record(
    file: IO[bytes], info: zipfile.ZipInfo | None, key: str, end: int, path: Path
) -> Record:
    """Where the bytes of a storage lie in the archive.

    Args:
        file: the archive.
        info: the record's entry in the directory; None if there is none.
        key: the storage's key.
        end: where the archive's records end.
        path: the file, for messages.

    Raises:
        InputError: the record is missing, compressed, or broken.
    """
    if info is None:
        raise broken(f"record {key:.80} is missing", path)
    _check_stored(info, key, path)
    file.seek(info.header_offset)
    magic, *_, name_length, extra_length = _LOCAL.unpack(file.read(_LOCAL.size))
    if magic != b"PK\x03\x04":
        raise broken("a record's header is broken", path)
    start = info.header_offset + _LOCAL.size + name_length + extra_length
    if start + info.file_size > end:
        raise broken(f"record {key:.80} goes beyond the file", path)
    return start, info.file_size


@dataclass(frozen=True, slots=True)
class _Record:
    """A file in the archive, with its content or with the tensor whose values it will hold."""

    name: str
    size: int
    content: bytes | None = None
    tensor: str | None = None


def encode(
    specs: Specs, metadata: Mapping[str, str], ties: Mapping[str, str], carried: Checkpoint
) -> FileImage:
    """Lay out a file as ``torch.save`` does; as :class:`phema_cli.formats.registry.Format` says.

    Names come in the order of ``carried``. Tied names share a storage.

    Raises:
        InputError: torch has no type for a tensor.
    """
    order = [n for n in carried.tensors if n in specs or n in ties]
    stored = [ties.get(n, n) for n in order]
    keys = {name: str(number) for number, name in enumerate(dict.fromkeys(stored))}
    opcodes = pickled_dict(
        (plain(name), _tensor(own, *specs[own], keys[own]))
        for name, own in zip(order, stored, strict=True)
    )
    text = json.dumps(dict(metadata), sort_keys=True, ensure_ascii=False)
    return _archive(opcodes, specs, keys, {_METADATA: text.encode()})


def encode_tensor(name: str, dtype: DType, shape: tuple[int, ...]) -> FileImage:
    """Lay out what ``torch.save`` makes of one tensor, as chunks of distributed checkpoints are.

    Raises:
        InputError: torch has no type for the tensor.
    """
    opcodes = _tensor(name, dtype, shape, "0")
    return _archive(opcodes, {name: (dtype, shape)}, {name: "0"}, {})


def _archive(
    opcodes: bytes, specs: Specs, keys: Mapping[str, str], further: Mapping[str, bytes]
) -> FileImage:
    """The archive of a pickle, of tensors by their keys, and of further records."""
    fixed = {"data.pkl": b"\x80\x02" + opcodes + b".", "byteorder": b"little", **further}
    records = [_Record(name, len(content), content) for name, content in fixed.items()]
    records += [
        _Record(f"data/{keys[name]}", dtype.size_bytes(math.prod(shape)), tensor=name)
        for name, (dtype, shape) in specs.items()
    ]
    records.append(_Record("version", len(_FILE_VERSION), _FILE_VERSION))
    at = 0
    segments: list[tuple[int, bytes]] = []
    offsets: dict[str, int] = {}
    checksums: dict[str, tuple[int, ...]] = {}
    entries: list[tuple[_Record, int, bytes]] = []
    for record in records:
        head, entry = _headers(record, at)
        entries.append((record, at, entry))
        segments.append((at, head + (record.content or b"")))
        if record.tensor is not None:
            offsets[record.tensor] = at + len(head)
        at += len(head) + record.size
    start = at
    for record, head_at, entry in entries:
        if record.tensor is not None and record.size:
            checksums[record.tensor] = (head_at + _CRC_IN_LOCAL, at + _CRC_IN_CENTRAL)
        at += len(entry)
    tail = b"".join(entry for *_, entry in entries) + _end(len(entries), start, at - start)
    segments.append((start, tail))
    return FileImage(tuple(segments), offsets, start + len(tail), checksums)


def _headers(record: _Record, at: int) -> tuple[bytes, bytes]:
    """The header of a record that begins at byte ``at``, and its entry in the directory."""
    name = f"{_ROOT}/{record.name}".encode()
    # A tensor's is filled in later.
    crc = zlib.crc32(record.content or b"")
    large = record.size >= _MOST_32
    size = _MOST_32 if large else record.size
    extra = struct.pack("<HHQQ", 1, 16, record.size, record.size) if large else b""
    filled = at + _LOCAL.size + len(name) + len(extra) + 4
    padding = -filled % _ALIGNMENT
    # torch pads with a field of this kind.
    extra += struct.pack("<2sH", b"FB", padding) + b"Z" * padding
    version = _VERSION_64 if large else _VERSION
    head = _LOCAL.pack(
        b"PK\3\4", version, _UTF8, 0, 0, _NO_DATE, crc, size, size, len(name), len(extra)
    )
    far = at >= _MOST_32
    wide = struct.pack("<QQ", record.size, record.size) if large else b""
    wide += struct.pack("<Q", at) if far else b""
    wide = struct.pack("<HH", 1, len(wide)) + wide if wide else b""
    version = _VERSION_64 if wide else _VERSION
    offset = _MOST_32 if far else at
    common = (_UTF8, 0, 0, _NO_DATE, crc, size, size, len(name), len(wide), 0, 0, 0, 0)
    entry = _CENTRAL.pack(b"PK\1\2", version, version, *common, offset)
    return head + name + extra, entry + name + wide


def _end(count: int, start: int, size: int) -> bytes:
    """The end of the archive, which says where its directory lies."""
    tail = b""
    if count >= _MOST_16 or max(start, size) >= _MOST_32:
        tail = _END_64.pack(
            b"PK\6\6", _END_64.size - 12, _VERSION_64, _VERSION_64, 0, 0, count, count, size, start
        )
        tail += _LOCATOR_64.pack(b"PK\6\7", 0, start + size, 1)
    few = min(count, _MOST_16)
    short = (min(size, _MOST_32), min(start, _MOST_32))
    return tail + _END.pack(b"PK\5\6", 0, 0, few, few, *short, 0)


def _tensor(name: str, dtype: DType, shape: tuple[int, ...], key: str) -> bytes:
    """The opcodes of the call that rebuilds a tensor from its storage, as torch has them."""
    typed = dtype.name in _STORAGES
    shape = torch_shape(name, dtype, shape)
    storage = f"torch\n{_STORAGES[dtype.name]}" if typed else "torch.storage\nUntypedStorage"
    count = math.prod(shape) if typed else math.prod(shape) * max(dtype.bits // 8, 1)
    strides = tuple(math.prod(shape[i + 1 :]) for i in range(len(shape)))
    function = "_rebuild_tensor_v2" if typed else "_rebuild_tensor_v3"
    return b"".join(
        [
            f"ctorch._utils\n{function}\n((".encode() + plain("storage"),
            f"c{storage}\n".encode() + plain(key) + plain("cpu") + plain(count) + b"tQ",
            plain(0) + plain(shape) + plain(strides) + b"\x89ccollections\nOrderedDict\n)R",
            b"" if typed else f"ctorch\n{dtype.label}\n".encode(),
            b"tR",
        ]
    )


def torch_shape(name: str, dtype: DType, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape that torch gives a tensor: of types that it packs into bytes, in bytes.

    Raises:
        InputError: torch has no type for the tensor.
    """
    if dtype.bits >= _BYTE_BITS:
        return shape
    per_byte = _BYTE_BITS // dtype.bits
    if not dtype.label.endswith(f"_x{per_byte}") or not shape or shape[-1] % per_byte:
        raise InputError(
            f"tensor {name}: torch has no type for {dtype.label}",
            remedy="write .safetensors, or leave the tensor's snapshots out",
        )
    return (*shape[:-1], shape[-1] // per_byte)


def plain(value: object) -> bytes:
    """The opcodes of a number, a text or a tuple of these; they use the memo's first places."""
    return pickle.dumps(value, protocol=2)[2:-1]


def pickled_dict(items: Iterable[tuple[bytes, bytes]]) -> bytes:
    """The opcodes of a dict, from those of its keys and values."""
    waiting, parts = iter(items), [b"}"]
    while batch := list(islice(waiting, _BATCH)):
        parts.append(b"(" + b"".join(chain.from_iterable(batch)) + b"u")
    return b"".join(parts)
