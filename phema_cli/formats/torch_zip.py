"""PyTorch's zip format (``torch.save`` since 1.6), read by extents, without running its pickle."""

from __future__ import annotations

import errno
import math
import struct
import zipfile
from collections.abc import Iterable, Mapping
from itertools import pairwise
from pathlib import Path
from typing import IO

from phema_cli.errors import InputError, PhemaError, StorageError
from phema_cli.formats import _unpickle
from phema_cli.formats._metadata import check_text, parse_object, text_to_text
from phema_cli.formats._nested import find_weights
from phema_cli.formats._torch_write import METADATA_RECORD, encode
from phema_cli.formats._unpickle import TensorStub
from phema_cli.formats.base import Checkpoint, Extent
from phema_cli.pickles import Inert

__all__ = ["NAME", "SUFFIXES", "encode", "read_index"]

NAME = "torch"
SUFFIXES = (".pt", ".pth", ".ckpt", ".bin", ".pth.tar", ".pkl")

_MAX_PICKLE_BYTES = 256 << 20
# Views may show what is stored again and again; of a few bytes up to so many.
_MOST_REPEATED = 1 << 30
_BYTE = 8
_LOCAL_HEADER = struct.Struct("<4s22xHH")
_REMEDY = "copy it again, or leave it out with --exclude"
_LEGACY = "in torch, torch.save(torch.load(old, weights_only=True), new) writes the zip format"


def read_index(path: Path, key: str | None = None) -> Checkpoint:
    """Reduce a ``.pt`` file with a flat or nested state dict to extents.

    Args:
        path: the file.
        key: dotted name of the dict of weights; needed only when several could be meant.

    Raises:
        InputError: not a zip of torch's, broken, or the dict of weights is not clear.
        UnsafePickleError: the pickle asks for what could do harm, or hides tensors.
        StorageError: the operating system failed.
    """
    try:
        with path.open("rb") as file, zipfile.ZipFile(file) as archive:
            root, data = read_pickle(archive, path)
            content = _unpickle.load(data, path)
            prefix = f"{root}/data/"
            records = {
                info.filename.removeprefix(prefix): info
                for info in archive.infolist()
                if info.filename.startswith(prefix)
            }
            weights = find_weights(content, key, path, TensorStub)
            state = weights.tensors
            check_text(state, path)
            metadata = _scalars(content) | _stored_metadata(archive, root, path)
            starts = {
                stub.storage.key: data_offset(file, records, stub, archive.start_dir, path)
                for stub in state.values()
            }
            _check_apart(starts.values(), path)
    except PhemaError:
        raise
    except OSError as error:
        # A damaged zip makes zipfile seek to places that no file has.
        if error.errno == errno.EINVAL:
            raise _not_a_zip(path) from error
        raise StorageError.wrap(error, path, "read") from error
    except Exception as error:
        # Nor does it raise BadZipFile alone: NotImplementedError, UnicodeDecodeError, struct.error.
        raise _not_a_zip(path) from error
    tensors = {
        name: tensor_extent(name, stub, path, *starts[stub.storage.key])
        for name, stub in state.items()
    }
    return Checkpoint(
        path, NAME, (path,), tensors, metadata, path.stem, weights.key, weights.unnamed
    )


def _check_apart(places: Iterable[tuple[int, int]], path: Path) -> None:
    """Refuse records that share bytes."""
    for (start, length), (other, _) in pairwise(sorted(places)):
        if start + length > other:
            raise InputError("records overlap", where=path, remedy=_REMEDY)


def _not_a_zip(path: Path) -> InputError:
    """The error for a file that is no zip: legacy, or not a checkpoint at all."""
    with path.open("rb") as file:
        legacy = file.read(1) == b"\x80"
    if legacy:
        return InputError("written by torch's legacy format", where=path, remedy=_LEGACY)
    return InputError("not a PyTorch checkpoint, or truncated", where=path, remedy=_REMEDY)


def read_pickle(archive: zipfile.ZipFile, path: Path) -> tuple[str, bytes]:
    """The archive's root name and its ``data.pkl``, after checks of kind, size and byte order."""
    names = archive.namelist()
    if len(archive.NameToInfo) < len(names):
        raise InputError("an archive with two entries of one name", where=path, remedy=_REMEDY)
    pickles = [n for n in names if n.count("/") == 1 and n.endswith("/data.pkl")]
    if len(pickles) != 1:
        raise InputError("a zip, but not one of torch.save", where=path, remedy=_REMEDY)
    root = pickles[0].removesuffix("/data.pkl")
    if f"{root}/constants.pkl" in names:
        raise InputError(
            "a TorchScript archive", where=path, remedy="save the model's state_dict() instead"
        )
    order = f"{root}/byteorder"
    if order in names and archive.getinfo(order).file_size == len(b"big"):
        raise InputError("big-endian data", where=path, remedy="re-save it on this machine")
    return root, _read_record(archive, pickles[0], path)


def _read_record(archive: zipfile.ZipFile, name: str, path: Path) -> bytes:
    """A record that is read as a whole, and stored as torch stores it: nothing is unpacked."""
    info = archive.getinfo(name)
    if info.compress_type != zipfile.ZIP_STORED or info.compress_size != info.file_size:
        raise _compressed(name, path)
    # Sizes are what the archive says.
    if info.file_size > min(_MAX_PICKLE_BYTES, archive.start_dir - info.header_offset):
        what = f"its {name:.80} is larger than 256 MiB, or than the file"
        raise InputError(what, where=path, remedy=_REMEDY)
    return archive.read(name)


def _compressed(record: str, path: Path) -> InputError:
    """The error for a record that torch would have stored."""
    what = f"record {record:.80} is compressed"
    return InputError(what, where=path, remedy="re-save it with torch")


def data_offset(
    file: IO[bytes],
    records: Mapping[str, zipfile.ZipInfo],
    stub: TensorStub,
    end: int,
    path: Path,
) -> tuple[int, int]:
    """Where a stored record's bytes begin in the file, and how many they are.

    Args:
        file: the archive.
        records: its records by key.
        stub: a tensor.
        end: where the archive's records end.
        path: the file, for messages.
    """
    info = records.get(stub.storage.key)
    if info is None:
        raise InputError(f"record {stub.storage.key:.80} is missing", where=path, remedy=_REMEDY)
    if info.compress_type != zipfile.ZIP_STORED or info.compress_size != info.file_size:
        raise _compressed(stub.storage.key, path)
    file.seek(info.header_offset)
    head = file.read(_LOCAL_HEADER.size)
    magic, name_length, extra_length = _LOCAL_HEADER.unpack(head)
    if magic != b"PK\x03\x04":
        raise InputError("a record's header is broken", where=path, remedy=_REMEDY)
    start = info.header_offset + _LOCAL_HEADER.size + name_length + extra_length
    if start + info.file_size > end:
        what = f"record {stub.storage.key} goes beyond the file"
        raise InputError(what, where=path, remedy=_REMEDY)
    return start, info.file_size


def tensor_extent(name: str, stub: TensorStub, path: Path, start: int, length: int) -> Extent:
    """A tensor's extent, checked to lie inside its record."""
    shape, strides = stub.shape, stub.strides
    if stub.dtype.bits < _BYTE:
        return _packed(name, stub, path, start, length)
    sane = len(shape) == len(strides) and min(*shape, *strides, stub.offset, 0) >= 0
    itemsize = stub.dtype.bits // 8
    empty = 0 in shape
    last = 0 if empty else 1 + sum((n - 1) * s for n, s in zip(shape, strides, strict=False))
    if not sane or (stub.offset + last) * itemsize > length:
        raise InputError(
            f"tensor {name}: lies outside its record of {length} bytes", where=path, remedy=_REMEDY
        )
    if math.prod(shape) * itemsize > max(length, _MOST_REPEATED):
        what = f"tensor {name}: repeats a record of {length} bytes beyond all measure"
        raise InputError(what, where=path, remedy=_REMEDY)
    return Extent(
        name,
        stub.dtype,
        shape,
        path,
        start + stub.offset * itemsize,
        None if empty or _row_major(shape, strides) else strides,
    )


def _packed(name: str, stub: TensorStub, path: Path, start: int, length: int) -> Extent:
    """The extent of a type that torch packs into bytes: its shape counts bytes, ours elements."""
    shape, strides = stub.shape, stub.strides
    end = stub.offset + math.prod(shape)
    if not shape or min(*shape, stub.offset) < 0 or end > length or not _row_major(shape, strides):
        raise InputError(f"tensor {name}: {stub.dtype.label} in an odd layout", where=path)
    unpacked = (*shape[:-1], shape[-1] * (_BYTE // stub.dtype.bits))
    return Extent(name, stub.dtype, unpacked, path, start + stub.offset)


def _row_major(shape: tuple[int, ...], strides: tuple[int, ...]) -> bool:
    """Whether the elements lie one after the other in row-major order."""
    step = 1
    if len(shape) != len(strides):
        return False
    for size, stride in zip(shape[::-1], strides[::-1], strict=True):
        if size != 1 and stride != step:
            return False
        step *= size
    return True


def _stored_metadata(archive: zipfile.ZipFile, root: str, path: Path) -> dict[str, str]:
    """The metadata that phema wrote into a record of its own."""
    name = f"{root}/{METADATA_RECORD}"
    if name not in archive.NameToInfo:
        return {}
    return text_to_text(parse_object(_read_record(archive, name, path), path), path)


def _scalars(content: object) -> dict[str, str]:
    """Top-level text, numbers and truths, and those of the trainer's arguments, as metadata."""
    if not isinstance(content, dict):
        return {}
    arguments = content.get("args")
    inner = arguments.state if isinstance(arguments, Inert) else {}
    entries = [*content.items(), *((f"args.{k}", v) for k, v in inner.items())]
    plain = (str, int, float)
    return {k: str(v) for k, v in entries if isinstance(k, str) and isinstance(v, plain)}
