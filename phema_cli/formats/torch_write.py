"""The writer of PyTorch's zip format: all bytes of a file but the tensors' values."""

import json
import math
import pickle
import struct
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import chain, islice

from phema_cli.errors import InputError
from phema_cli.formats.base import Checkpoint, DType
from phema_cli.formats.image import FileImage, Specs
from phema_cli.formats.torch_pickle import STORAGE_DTYPES

#: the directory inside the archive.
_ROOT = "archive"
#: what the record ``version`` holds.
_FILE_VERSION = b"3\n"
#: the record that holds the metadata; torch ignores it.
METADATA_RECORD = "phema.json"

#: bytes to which storages are aligned, as torch does since 2.6, so that they can be mapped.
_ALIGNMENT = 64
#: items that are put into a dict at a time, as Python's pickler does: readers bound the stack.
_BATCH = 1000
_BYTE_BITS = 8
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


@dataclass(frozen=True, slots=True)
class _Record:
    """A file in the archive, with its content or with the tensor whose values it will hold."""

    name: str
    size: int
    content: bytes | None = None
    tensor: str | None = None

    @property
    def crc(self) -> int:
        """CRC-32 of the content; a tensor's is filled in later."""
        return zlib.crc32(self.content or b"")


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
    return _archive(opcodes, specs, keys, {METADATA_RECORD: text.encode()})


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
    large = record.size >= _MOST_32
    size = _MOST_32 if large else record.size
    extra = struct.pack("<HHQQ", 1, 16, record.size, record.size) if large else b""
    filled = at + _LOCAL.size + len(name) + len(extra) + 4
    padding = -filled % _ALIGNMENT
    # torch pads with a field of this kind.
    extra += struct.pack("<2sH", b"FB", padding) + b"Z" * padding
    version = _VERSION_64 if large else _VERSION
    head = _LOCAL.pack(
        b"PK\3\4", version, _UTF8, 0, 0, _NO_DATE, record.crc, size, size, len(name), len(extra)
    )
    far = at >= _MOST_32
    wide = struct.pack("<QQ", record.size, record.size) if large else b""
    wide += struct.pack("<Q", at) if far else b""
    wide = struct.pack("<HH", 1, len(wide)) + wide if wide else b""
    version = _VERSION_64 if wide else _VERSION
    offset = _MOST_32 if far else at
    common = (_UTF8, 0, 0, _NO_DATE, record.crc, size, size, len(name), len(wide), 0, 0, 0, 0)
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
