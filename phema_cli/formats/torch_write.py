"""The writer of PyTorch's zip format: all bytes of a file but the tensors' values."""

import json
import math
import pickle
import struct
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from phema_cli.errors import InputError
from phema_cli.formats.base import Checkpoint, DType
from phema_cli.formats.image import FileImage, Specs
from phema_cli.formats.torch_pickle import STORAGE_DTYPES

#: the directory inside the archive.
_ROOT = "archive"
#: what the records ``byteorder`` and ``version`` hold.
_ORDER, _FILE_VERSION = b"little", b"3\n"
#: the record that holds the metadata; torch ignores it.
METADATA_RECORD = "phema.json"

#: bytes to which storages are aligned, as torch does since 2.6, so that they can be mapped.
_ALIGNMENT = 64
#: items that the pickle puts into a dict at a time, as Python's pickler does: readers bound the
#: stack.
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
    stored = dict.fromkeys(ties.get(n, n) for n in order)
    keys = {name: str(number) for number, name in enumerate(stored)}
    fixed = {
        "data.pkl": _pickle(order, specs, ties, keys),
        "byteorder": _ORDER,
        METADATA_RECORD: json.dumps(dict(metadata), sort_keys=True, ensure_ascii=False).encode(),
    }
    records = [_Record(f"{_ROOT}/{n}", len(c), c) for n, c in fixed.items()]
    records += [
        _Record(f"{_ROOT}/data/{keys[n]}", dtype.size_bytes(math.prod(shape)), tensor=n)
        for n, (dtype, shape) in specs.items()
    ]
    records.append(_Record(f"{_ROOT}/version", len(_FILE_VERSION), _FILE_VERSION))
    return _archive(records)


def encode_tensor(name: str, dtype: DType, shape: tuple[int, ...]) -> FileImage:
    """Lay out what ``torch.save`` makes of one tensor, as chunks of distributed checkpoints are.

    Raises:
        InputError: torch has no type for the tensor.
    """
    pickled = b"".join([b"\x80\x02", *_tensor(name, dtype, shape, "0"), b"."])
    size = dtype.size_bytes(math.prod(shape))
    return _archive(
        [
            _Record(f"{_ROOT}/data.pkl", len(pickled), pickled),
            _Record(f"{_ROOT}/byteorder", len(_ORDER), _ORDER),
            _Record(f"{_ROOT}/data/0", size, tensor=name),
            _Record(f"{_ROOT}/version", len(_FILE_VERSION), _FILE_VERSION),
        ]
    )


def _archive(records: list[_Record]) -> FileImage:
    """A zip archive of stored records."""
    at = 0
    segments: list[tuple[int, bytes]] = []
    offsets: dict[str, int] = {}
    checksums: dict[str, tuple[int, ...]] = {}
    entries: list[bytes] = []
    places: list[tuple[_Record, int]] = []
    for record in records:
        head, entry = _headers(record, at)
        places.append((record, at))
        entries.append(entry)
        segments.append((at, head + (record.content or b"")))
        if record.tensor is not None:
            offsets[record.tensor] = at + len(head)
        at += len(head) + record.size
    start = at
    for (record, head_at), entry in zip(places, entries, strict=True):
        if record.tensor is not None and record.size:
            checksums[record.tensor] = (head_at + _CRC_IN_LOCAL, at + _CRC_IN_CENTRAL)
        at += len(entry)
    tail = b"".join(entries) + _end(len(entries), start, at - start)
    segments.append((start, tail))
    return FileImage(tuple(segments), offsets, start + len(tail), checksums)


def _headers(record: _Record, at: int) -> tuple[bytes, bytes]:
    """The header of a record that begins at byte ``at``, and its entry in the directory."""
    name = record.name.encode()
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


def _pickle(
    order: list[str], specs: Specs, ties: Mapping[str, str], keys: Mapping[str, str]
) -> bytes:
    """The pickle of a dict of tensors, with the calls that torch's own pickles have."""
    parts = [b"\x80\x02}"]
    for at in range(0, len(order), _BATCH):
        parts.append(b"(")
        for name in order[at : at + _BATCH]:
            stored = ties.get(name, name)
            parts += [plain(name), *_tensor(stored, *specs[stored], keys[stored])]
        parts.append(b"u")
    return b"".join([*parts, b"."])


def _tensor(name: str, dtype: DType, shape: tuple[int, ...], key: str) -> Iterator[bytes]:
    """The call that rebuilds a tensor from its storage."""
    typed = dtype.name in _STORAGES
    shape = torch_shape(name, dtype, shape)
    storage = f"torch\n{_STORAGES[dtype.name]}" if typed else "torch.storage\nUntypedStorage"
    count = math.prod(shape) if typed else math.prod(shape) * max(dtype.bits // 8, 1)
    strides = tuple(math.prod(shape[i + 1 :]) for i in range(len(shape)))
    function = "_rebuild_tensor_v2" if typed else "_rebuild_tensor_v3"
    yield f"ctorch._utils\n{function}\n((".encode() + plain("storage")
    yield f"c{storage}\n".encode() + plain(key) + plain("cpu") + plain(count) + b"tQ"
    yield plain(0) + plain(shape) + plain(strides) + b"\x89ccollections\nOrderedDict\n)R"
    if not typed:
        yield f"ctorch\n{dtype.label}\n".encode()
    yield b"tR"


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
