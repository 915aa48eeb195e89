"""Headers of an output that is there: all of its bytes but the tensors' values, compared."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from phema_cli.errors import CheckFailedError, StorageError
from phema_cli.formats.reader import FileReader
from phema_cli.synthesis.layout import Output, OutputFile

_CRC_BYTES = 4


def check_headers(output: Output, reader: FileReader) -> None:
    """Compare all bytes of the files but those of tensors and of their checksums.

    Raises:
        CheckFailedError: a file is missing, too many, of another size, or has other bytes.
    """
    try:
        for file in output.files:
            _check_file(file, reader)
        if output.index is not None:
            _check_index(*output.index)
        stale = output.stale()
    except OSError as error:
        raise StorageError.wrap(error, output.path, "read") from error
    if stale:
        raise CheckFailedError("is no file of this output", where=stale[0])


def _check_file(file: OutputFile, reader: FileReader) -> None:
    """Compare a file's size and what is no tensor's."""
    size = file.path.stat().st_size if file.path.exists() else 0
    if size != file.image.size_bytes:
        raise CheckFailedError(
            f"has {size:,} bytes instead of {file.image.size_bytes:,}", where=file.path
        )
    places = (p for found in file.image.checksums.values() for p in found)
    later = {place + i for place in places for i in range(_CRC_BYTES)}
    for offset, data in file.image.segments:
        found = bytearray(len(data))
        reader.read_bytes(file.path, offset, memoryview(found))
        if found != data:
            _refuse_bytes(file.path, offset, found, data, later)


def _check_index(path: Path, wanted: bytes) -> None:
    """Compare the index of shards."""
    found = path.read_bytes() if path.exists() else b""
    if len(found) != len(wanted):
        raise CheckFailedError(f"has {len(found):,} bytes instead of {len(wanted):,}", where=path)
    _refuse_bytes(path, 0, found, wanted, set())


def _refuse_bytes(
    path: Path, offset: int, found: bytes | bytearray, wanted: bytes, later: set[int]
) -> None:
    """Refuse bytes that differ, but where checksums go."""
    for i, (a, b) in enumerate(zip(found, wanted, strict=True)):
        if a != b and offset + i not in later:
            raise CheckFailedError(f"byte {offset + i:,}, of no tensor, differs", where=path)


def check_checksums(output: Output, sums: Mapping[str, int], reader: FileReader) -> None:
    """Compare each CRC-32 that the files hold with that of the tensor's bytes.

    Args:
        output: what is there.
        sums: CRC-32 by name of the tensor.
        reader: what reads it.

    Raises:
        CheckFailedError: one differs.
    """
    for file in output.files:
        for name, places in file.image.checksums.items():
            for place in places:
                found = bytearray(_CRC_BYTES)
                reader.read_bytes(file.path, place, memoryview(found))
                if found != sums.get(name, 0).to_bytes(_CRC_BYTES, "little"):
                    raise CheckFailedError(f"tensor {name}: its CRC-32 differs", where=file.path)
