"""Logs: files of JSON lines that outlive a kill and a power loss."""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from phema_cli.errors import InputError
from phema_cli.system.files import lock, open_plain


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
        self._descriptor: int | None = None

    def lock(self) -> None:
        """Keep other processes from locking it.

        Raises:
            StorageError: another process has locked it.
            OSError: the operating system failed.
        """
        self._descriptor = lock(self.path)

    def unlock(self) -> None:
        """Let others lock it. All that was written has been flushed before."""
        if self._descriptor is not None:
            with suppress(OSError):
                os.close(self._descriptor)
            self._descriptor = None

    def append(self, entry: Mapping[str, Any]) -> None:
        """Write a line and flush it."""
        line = json.dumps(entry, allow_nan=False).encode()
        line += b" %08x\n" % zlib.crc32(line) if self._checksums else b"\n"
        descriptor = self._descriptor
        if descriptor is None:
            descriptor = open_plain(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        try:
            while line:
                line = line[os.write(descriptor, line) :]
            os.fsync(descriptor)
        finally:
            if descriptor != self._descriptor:
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
                os.fsync(descriptor)
        finally:
            os.close(descriptor)
