"""Damage to packed files: bytes of tensors that are not those that were written.

A bit that flips in the residues of one file moves all averages that follow it, by an amount that
looks like any other number. So packed files, which know the CRC-32 of their tensors, are read once
more before an output gets its name.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from phema_cli.errors import InputError, StorageError
from phema_cli.formats.base import Checkpoint
from phema_cli.formats.chains import link_of
from phema_cli.formats.image import hash_from
from phema_cli.formats.packing import CHECKSUM_KEY
from phema_cli.formats.remote import is_remote, remote_errors
from phema_cli.formats.safetensors import read_header
from phema_cli.formats.stamps import Stamp, stamp

#: stamps of local files that were found whole: several syntheses of one process read the same.
_WHOLE: dict[Path, Stamp] = {}


def refuse_damaged(checkpoints: Iterable[Checkpoint], jobs: int) -> None:
    """Refuse packed files whose tensors have other bytes than when they were written.

    Args:
        checkpoints: packed ones count, with all that they follow.
        jobs: files that are read at a time.

    Raises:
        InputError: there is one.
        StorageError: the operating system failed to read.
    """
    packed = (c for c in checkpoints if link_of(c) is not None)
    files = sorted({file for checkpoint in packed for file in checkpoint.files}, key=str)
    stopped = threading.Event()
    with ThreadPoolExecutor(jobs) as pool:
        try:
            for _ in pool.map(lambda path: _refuse_damaged(path, stopped), files):
                pass
        finally:
            # An interruption does not wait for the rest of large files.
            stopped.set()
            pool.shutdown(cancel_futures=True)


def _refuse_damaged(path: Path, stopped: threading.Event) -> None:
    """Refuse one file; returns early when the others are not wanted any more."""
    with remote_errors(path):
        before = None if is_remote(path) else stamp(path)
        if before is not None and _WHOLE.get(path) == before:
            return
        extents, metadata = read_header(path)
        start = min(extent.offset for extent in extents.values())
        try:
            with path.open("rb") as stream:
                digest = hash_from(stream, start, "crc32", stopped.is_set)
        except OSError as error:
            raise StorageError.wrap(error, path, "read") from error
    if stopped.is_set():
        return
    if digest != metadata.get(CHECKSUM_KEY):
        raise InputError(
            "its tensors have other bytes than when it was written",
            where=path,
            remedy="copy it again: all files up to the next keyframe need it",
        )
    if before is not None:
        _WHOLE[path] = before
