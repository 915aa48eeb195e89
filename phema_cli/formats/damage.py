"""Damage to packed files: bytes of tensors that are not those that were written.

A bit that flips in the residues of one file moves all averages that follow it, by an amount that
looks like any other number. So packed files, which know the CRC-32 of their tensors, are checked
before an output gets its name: by what workers have read, and what they have not is read then.
"""

import threading
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from phema_cli.errors import reading
from phema_cli.formats.base import Checkpoint
from phema_cli.formats.chains import link_of
from phema_cli.formats.checks import broken
from phema_cli.formats.crc32 import Ranges, crc32_from
from phema_cli.formats.packing import CHECKSUM_KEY
from phema_cli.formats.remote import remote_errors
from phema_cli.formats.safetensors import read_header
from phema_cli.formats.stamps import Stamp, known_stamp

#: stamps of local files that were found whole: several syntheses of one process read the same.
_WHOLE: dict[Path, Stamp] = {}


def packed_files(checkpoints: Iterable[Checkpoint]) -> set[Path]:
    """All files of packed checkpoints, with those that they follow."""
    return {f for c in checkpoints if link_of(c) is not None for f in c.files}


def unchecked(files: Iterable[Path]) -> set[Path]:
    """The files that this process has not found whole yet, as they are now."""
    return {path for path in files if path not in _WHOLE or known_stamp(path) != _WHOLE[path]}


def refuse_damaged(files: Iterable[Path], read: Ranges, jobs: int) -> None:
    """Refuse packed files whose tensors have other bytes than when they were written.

    Args:
        files: which.
        read: what has been read of them, by their paths; the rest is read now.
        jobs: files that are read at a time.

    Raises:
        InputError: there is one.
        StorageError: the operating system failed to read.
    """
    stopped = threading.Event()
    with ThreadPoolExecutor(jobs) as pool:
        try:
            ordered = sorted(unchecked(files), key=str)
            for _ in pool.map(lambda path: _refuse_damaged(path, read, stopped), ordered):
                pass
        finally:
            # An interruption does not wait for the rest of large files.
            stopped.set()
            pool.shutdown(cancel_futures=True)


def _refuse_damaged(path: Path, read: Ranges, stopped: threading.Event) -> None:
    """Refuse one file; returns early when the others are not wanted any more."""
    with remote_errors(path):
        before = known_stamp(path)
        extents, metadata = read_header(path)
        start = min(extent.offset for extent in extents.values())
        stop = max(extent.offset + extent.length for extent in extents.values())
        with reading(path), path.open("rb") as stream:
            rest = partial(crc32_from, stream, stopped=stopped.is_set)
            crc = read.crc32(str(path), start, stop, rest)
    if stopped.is_set():
        return
    if f"{crc:08x}" != metadata.get(CHECKSUM_KEY):
        remedy = "copy it again: all files up to the next keyframe need it"
        raise broken("its tensors have other bytes than when it was written", path, remedy)
    if before is not None:
        _WHOLE[path] = before
