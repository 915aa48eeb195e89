"""PyTorch's zip format (``torch.save`` since 1.6), read without running its pickle."""

import errno
import struct
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import IO

from phema_cli.errors import InputError, PhemaError, StorageError
from phema_cli.formats.base import Contents, Extent, StoredTensor, located
from phema_cli.formats.checks import broken, check_text, checked_metadata, parse_object
from phema_cli.formats.sharded import read_sharded
from phema_cli.formats.torch_pickle import Record, TensorStub, load
from phema_cli.formats.torch_write import METADATA_RECORD, encode

__all__ = ["INDEX_SUFFIX", "NAME", "encode", "read"]

NAME = "torch"
INDEX_SUFFIX = ".bin.index.json"

_MAX_PICKLE_BYTES = 256 << 20
_LOCAL_HEADER = struct.Struct("<4s22xHH")


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
        if (name := f"{root}/{METADATA_RECORD}") in archive.NameToInfo:
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
    """Extents of an archive's tensors, whose records have a prefix before their keys."""
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
    """Where the bytes of a storage lie in an archive whose records end at ``end``.

    Raises:
        InputError: the record is missing, compressed, or broken.
    """
    if info is None:
        raise broken(f"record {key:.80} is missing", path)
    _check_stored(info, key, path)
    file.seek(info.header_offset)
    magic, name_length, extra_length = _LOCAL_HEADER.unpack(file.read(_LOCAL_HEADER.size))
    if magic != b"PK\x03\x04":
        raise broken("a record's header is broken", path)
    start = info.header_offset + _LOCAL_HEADER.size + name_length + extra_length
    if start + info.file_size > end:
        raise broken(f"record {key:.80} goes beyond the file", path)
    return start, info.file_size
