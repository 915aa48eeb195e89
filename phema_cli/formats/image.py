"""What formats lay out: files to be written, all of their bytes but the tensors' values."""

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from io import BufferedIOBase
from typing import Literal

from phema_cli.formats.base import DType
from phema_cli.formats.crc32 import crc32_from

#: the entry of an output's metadata that says how it was made.
PROVENANCE_KEY = "phema"
#: the index of a directory of ``torch.distributed.checkpoint``, for those that import no format.
INDEX_NAME = ".metadata"
#: a CRC-32 is found five times as fast as a SHA-256, which programs know LoRAs by.
Algorithm = Literal["crc32", "sha256"]
#: digits of a hash.
HASH_DIGITS: Mapping[Algorithm, int] = {"crc32": 8, "sha256": 64}
#: element type and shape of tensors to be written, by name.
Specs = Mapping[str, tuple[DType, tuple[int, ...]]]


@dataclass(frozen=True, slots=True)
class FileImage:
    """A file to be written: all of its bytes but the tensors' values.

    Attributes:
        segments: offsets and the bytes that lie there, ascending.
        offsets: where each tensor's values go, in row-major order and one after the other.
        size_bytes: of the whole file.
        checksums: offsets at which a tensor's CRC-32 goes (32 bits, little-endian), for tensors
            whose CRC-32 the file holds.
        hashes: by offset, what is computed of all tensors' bytes and goes there in hexadecimal.
    """

    segments: tuple[tuple[int, bytes], ...]
    offsets: Mapping[str, int]
    size_bytes: int
    checksums: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    hashes: Mapping[int, Algorithm] = field(default_factory=dict)

    def __repr__(self) -> str:
        """``<FileImage of 10 tensors, 1,234 bytes>``."""
        return f"<FileImage of {len(self.offsets)} tensors, {self.size_bytes:,} bytes>"

    def hash_of(self, stream: BufferedIOBase, algorithm: Algorithm) -> str:
        """The hash of all tensors' bytes in a file that was written, in hexadecimal."""
        start = min(self.offsets.values(), default=self.size_bytes)
        if algorithm == "crc32":
            return f"{crc32_from(stream, start, stream.seek(0, os.SEEK_END)):08x}"
        stream.seek(start)
        return hashlib.file_digest(stream, algorithm).hexdigest()

    def seal(self, stream: BufferedIOBase) -> dict[Algorithm, str]:
        """Put the hashes where they go, once the tensors are written; returns them."""
        wanted = set(self.hashes.values())
        digests = {algorithm: self.hash_of(stream, algorithm) for algorithm in wanted}
        for place, algorithm in self.hashes.items():
            stream.seek(place)
            stream.write(digests[algorithm].encode())
        return digests


@dataclass(frozen=True, slots=True)
class FolderImage:
    """A directory to be written, by the names of its files.

    Attributes:
        files: those with tensors, in the order of the shards.
        index: the one that says what the others hold, which is written last, and its bytes; None
            if a single file needs none.
    """

    files: Mapping[str, FileImage]
    index: tuple[str, bytes] | None
