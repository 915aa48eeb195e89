"""Journals: what of an output is on the disk, for a run that goes on where this one ended.

A staging directory has one. Its first line names the plan, further ones say which runs' bytes have
been flushed, and that all have. Each line ends with its CRC-32: one that a power loss cut short, or
that was damaged, counts for nothing, nor does what follows it.
"""

from __future__ import annotations

import hashlib
import json
import os
import zlib
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

from phema_cli._version import __version__
from phema_cli.errors import UsageError
from phema_cli.synthesis.recipe import Recipe
from phema_cli.synthesis.tensors import TensorPlan
from phema_cli.system.files import append, lock, open_plain, unlock

NAME = "journal"
_SCHEMA = "phema/partial/1"
#: how the first line of every journal begins.
_HEAD = f'{{"schema": "{_SCHEMA}", "plan": "'.encode()


class Journal:
    """A locked journal: no other process writes what lies beside it.

    Args:
        folder: the staging directory.
        plan: the fingerprint of what is to be written there.

    Attributes:
        done: numbers of the runs that an earlier process has left on the disk.
        complete: whether it left all of them, and files may have their final names already.

    Raises:
        UsageError: another plan has left something there.
        StorageError: another process writes there.
        OSError: the operating system failed.
    """

    def __init__(self, folder: Path, plan: str) -> None:
        self.folder = folder
        self._descriptor = lock(folder / NAME)
        begun = os.fstat(self._descriptor).st_size > 0
        try:
            found = read(folder)
            _check(folder, plan, found)
            for path in _notes(folder):
                # What is added behind a torn line would be lost with it.
                _cut(path, sum(map(len, _whole(path))))
            self.done = noted(folder)
            self.complete = any(entry.get("complete", False) for entry in found)
            if not found:
                _append(folder / NAME, {"schema": _SCHEMA, "plan": plan})
        except BaseException:
            if not begun and [p.name for p in folder.iterdir()] == [NAME]:
                # Interrupted before it says anything: the directory is to be left empty.
                with suppress(OSError):
                    (folder / NAME).unlink()
            self.close()
            raise

    @property
    def is_new(self) -> bool:
        """Whether nothing is noted, before or now; what can't be read may say anything."""
        try:
            return not self.complete and not noted(self.folder)
        except OSError:
            return False

    def restart(self) -> None:
        """Forget what is noted: of all lines the first one stays."""
        lead, *others = _notes(self.folder)
        for path in others:
            _cut(path, 0)
        _cut(lead, len(_whole(lead)[0]))
        self.done, self.complete = set(), False

    def finish(self) -> None:
        """Record that all is on the disk, and names are given from now on."""
        _append(self.folder / NAME, {"complete": True})
        self.complete = True

    def remove(self) -> None:
        """Remove the directory where nothing else is left in it, the plan's name last."""
        for path in reversed(_notes(self.folder)):
            with suppress(OSError):
                path.unlink(missing_ok=True)
        with suppress(OSError):
            self.folder.rmdir()

    def close(self) -> None:
        """Let others write there."""
        unlock(self._descriptor)


def note(folder: Path, rank: int, numbers: Iterable[int]) -> None:
    """Record runs whose bytes are on the disk; each rank has a file of its own."""
    _append(folder / (f"{NAME}-{rank}" if rank else NAME), {"done": _ranges(sorted(numbers))})


def noted(folder: Path) -> set[int]:
    """Numbers of all runs that are recorded."""
    entries = [entry for path in _notes(folder) for entry in _lines(path)]
    return {n for entry in entries for a, b in entry.get("done", []) for n in range(a, b)}


def read(folder: Path) -> list[dict[str, Any]]:
    """The lines of a directory's journal; none where there is none."""
    entries = _lines(folder / NAME)
    return entries if entries and entries[0].get("schema") == _SCHEMA else []


def _check(folder: Path, plan: str, found: list[dict[str, Any]]) -> None:
    """Refuse what is not this plan's."""
    if found and found[0].get("plan") != plan:
        raise UsageError(
            "another synthesis has left its work here",
            where=folder,
            remedy=f"run that one again to finish it, or rm -r '{folder}'",
        )
    text = (folder / NAME).read_bytes()
    begun = _HEAD.startswith(text[: len(_HEAD)]) or not text.strip(b"\0")
    if not found and (not begun or any(p.name != NAME for p in folder.iterdir())):
        raise UsageError(
            "is in the way of the output", where=folder, remedy="move it, or pass another -o"
        )


def _notes(folder: Path) -> list[Path]:
    """The journal and those of other ranks."""
    return [folder / NAME, *sorted(folder.glob(f"{NAME}-*"))]


def _append(path: Path, entry: dict[str, Any]) -> None:
    """Add a line and flush it."""
    text = json.dumps(entry).encode()
    line = b"%s %08x\n" % (text, zlib.crc32(text))
    descriptor = open_plain(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    try:
        append(descriptor, line)
    finally:
        os.close(descriptor)


def _cut(path: Path, size: int) -> None:
    """Keep a file's first bytes, and see to it that no power loss brings back the others."""
    descriptor = open_plain(path, os.O_WRONLY)
    try:
        if os.fstat(descriptor).st_size > size:
            os.ftruncate(descriptor, size)
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _whole(path: Path) -> list[bytes]:
    """The lines of a file, up to one that is none of a journal's."""
    try:
        text = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return []
    lines = []
    for line in text.splitlines(keepends=True):
        entry, _, check = line.rpartition(b" ")
        if check != b"%08x\n" % zlib.crc32(entry):
            break
        lines.append(line)
    return lines


def _lines(path: Path) -> list[dict[str, Any]]:
    """What the lines of a file say."""
    return [json.loads(line.rpartition(b" ")[0]) for line in _whole(path)]


def _treatment(plan: TensorPlan) -> tuple[object, ...]:
    """What is done to a tensor."""
    stored = [d.name for d in plan.stored]
    return plan.name, plan.shape, plan.dtype.name, plan.out_dtype.name, plan.average, stored


def fingerprint(recipe: Recipe) -> str:
    """What is the same for two runs that write the same bytes by the same steps, in hexadecimal."""
    told = hashlib.blake2b(digest_size=16)
    facts = (
        (__version__, recipe.format, recipe.tile_elements, recipe.bases, recipe.spare),
        [_treatment(t) for t in recipe.tensors],
        [(str(p), s) for c in recipe.sources for p, s in sorted(c.checkpoint.stamps.items())],
        [[str(p) for p in s.checkpoint.files] for s in recipe.sources],
        [(str(o.path), [str(p) for p in o.finals], o.index and o.index[1]) for o in recipe.outputs],
        [(f.image.size_bytes, f.image.segments) for o in recipe.outputs for f in o.files],
    )
    told.update(repr(facts).encode(errors="backslashreplace"))
    told.update(recipe.weights.tobytes() + recipe.sums.tobytes())
    return told.hexdigest()


def _ranges(numbers: list[int]) -> list[tuple[int, int]]:
    """Sorted numbers as half-open ranges."""
    found: list[tuple[int, int]] = []
    for n in numbers:
        if found and found[-1][1] == n:
            found[-1] = (found[-1][0], n + 1)
        else:
            found.append((n, n + 1))
    return found
