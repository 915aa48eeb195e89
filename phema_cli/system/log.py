"""Logs: files of JSON lines that outlive a kill and a power loss."""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from phema_cli.errors import InputError
from phema_cli.system.files import flush, open_plain
from phema_cli.system.locks import Lock


class Log:
    """A file of JSON objects, one a line; a line is on the disk when ``append`` returns.

    A last line that was cut short does not count. With checksums every line ends with its CRC-32,
    and neither a damaged line counts nor what follows it.

    Args:
        path: the file; ``lock`` and ``append`` make it.
        checksums: whether lines have checksums.
    """

    def __init__(self, path: Path, *, checksums: bool = False) -> None:
        self.path = path
        self._checksums = checksums
        self._lock: Lock | None = None

    def lock(self) -> None:
        """Keep other processes from locking it.

        Raises:
            StorageError: another process has locked it.
            OSError: the operating system failed.
        """
        self._lock = Lock(self.path)

    def unlock(self, *, remove: bool = False) -> None:
        """Let others lock it, after it is removed if it is to be."""
        if self._lock is not None:
            held, self._lock = self._lock, None
            held.release(remove=remove)

    def append(self, entry: Mapping[str, Any]) -> None:
        """Write a line and flush it."""
        line = json.dumps(entry, allow_nan=False).encode()
        line += b" %08x\n" % zlib.crc32(line) if self._checksums else b"\n"
        if self._lock is not None:
            _write(self._lock.descriptor, line)
            return
        descriptor = open_plain(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        try:
            _write(descriptor, line)
        finally:
            os.close(descriptor)

    def lines(self) -> list[bytes]:
        """The lines that count, each with its end; none where there is no file."""
        try:
            *lines, _torn = self.path.read_bytes().split(b"\n")
        except (FileNotFoundError, NotADirectoryError):
            return []
        whole = []
        for line in lines:
            text, _, checksum = line.rpartition(b" ")
            if self._checksums and checksum != b"%08x" % zlib.crc32(text):
                break
            whole.append(line + b"\n")
        return whole

    def entries(self) -> list[dict[str, Any]]:
        """The objects of the lines that count.

        Raises:
            InputError: a line is not a JSON object.
        """
        entries = []
        for number, line in enumerate(self.lines(), start=1):
            try:
                entry = json.loads(line.rpartition(b" ")[0] if self._checksums else line)
            except (ValueError, RecursionError):
                entry = None
            if not isinstance(entry, dict):
                raise InputError(
                    f"line {number} is not a JSON object",
                    where=self.path,
                    remedy="repair or remove the file, or choose another -o",
                )
            entries.append(entry)
        return entries

    def truncate(self, count: int | None = None) -> None:
        """Keep the first lines that count, or all of them, and flush the file.

        What is appended behind a torn line would be lost with it, and a power loss could bring the
        other lines back.
        """
        size = sum(map(len, self.lines()[:count]))
        descriptor = open_plain(self.path, os.O_WRONLY)
        try:
            if os.fstat(descriptor).st_size > size:
                os.ftruncate(descriptor, size)
                flush(descriptor)
        finally:
            os.close(descriptor)


def _write(descriptor: int, line: bytes) -> None:
    """Append a line, and flush it."""
    while line:
        line = line[os.write(descriptor, line) :]
    flush(descriptor)
