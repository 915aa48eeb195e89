"""The results of a sweep on disk: a line for each finished evaluation, for a run that goes on.

The first line says what is evaluated, and how; lines of batches name the outputs that are made
together. A last line that a kill cut short counts for nothing.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from phema_cli.errors import InputError, StorageError, UsageError
from phema_cli.system.files import append, lock, sync_folder, unlock

NAME = "sweep.jsonl"
_SCHEMA = "phema/sweep-results/1"


@dataclass(frozen=True, slots=True)
class Record:
    """A finished evaluation.

    Attributes:
        target: what tells the target from others.
        profile: what users call it.
        gamma: exponent, None for other profiles than powers.
        sigma_rel: relative standard deviation, None for other profiles.
        metric: what the command printed, None where it failed.
        failure: why it failed, None where it did not.
        seconds: how long the command ran.
        refined: whether the search chose the target, not the user.
        file: the output's name in the directory of the sweep.
        verdict: how good the target was expected to be.
        expected_error: as the figures of a synthesis have it.
        sigma_error: as the figures of a synthesis have it.
    """

    target: str
    profile: str
    gamma: float | None
    sigma_rel: float | None
    metric: float | None
    failure: str | None
    seconds: float
    refined: bool
    file: str
    verdict: str
    expected_error: float | None
    sigma_error: float | None


class Results:
    """The locked file of a sweep's results.

    Args:
        folder: the directory of the sweep, which is made if need be.
        what: what is evaluated and how; results of anything else are refused.
        anew: whether results that are there are forgotten.

    Attributes:
        records: by ``Record.target``, the latest of each.
        batch: names of the outputs that were made last, or were to be.
        stale: names of outputs that were forgotten.

    Raises:
        UsageError: the file has the results of another sweep.
        InputError: it is no such file.
        StorageError: another sweep is writing there, or the operating system failed.
    """

    def __init__(self, folder: Path, what: Mapping[str, Any], *, anew: bool = False) -> None:
        self.path = folder / NAME
        self.records: dict[str, Record] = {}
        self.batch: list[str] = []
        self.stale: list[str] = []
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._descriptor = lock(self.path)
        except OSError as error:
            raise StorageError.wrap(error, self.path, "write") from error
        try:
            self._open({"schema": _SCHEMA, **what}, anew=anew)
        except BaseException:
            self.close()
            raise

    def _open(self, first: Mapping[str, Any], *, anew: bool) -> None:
        """Read what is there, or begin."""
        found = self._lines()
        if found:
            for entry in found[1:]:
                self._take(entry)
            if not anew:
                self._check(found[0], first)
                return
            self.stale = sorted({*self.batch, *(r.file for r in self.records.values())})
            self.records, self.batch = {}, []
            os.ftruncate(self._descriptor, 0)
        self._append(first)
        sync_folder(self.path.parent)

    def _lines(self) -> list[dict[str, Any]]:
        """The whole lines; what a kill has left of one is cut off."""
        data = self.path.read_bytes()
        whole = data.rpartition(b"\n")[0] + b"\n" if b"\n" in data else b""
        os.ftruncate(self._descriptor, len(whole))
        entries = []
        for number, line in enumerate(whole.splitlines(), start=1):
            try:
                entry = json.loads(line)
            except (ValueError, RecursionError):
                entry = None
            if not isinstance(entry, dict):
                raise InputError(
                    f"line {number} is no result of a sweep",
                    where=self.path,
                    remedy="mend or remove it, or choose another -o",
                )
            entries.append(entry)
        return entries

    def _check(self, found: Mapping[str, Any], first: Mapping[str, Any]) -> None:
        """Refuse results of something else."""
        other = [key for key in {**first, **found} if found.get(key) != first.get(key)]
        if other:
            raise UsageError(
                f"has the results of another sweep: not the same {' and '.join(other)}",
                where=self.path,
                remedy="choose another -o, or pass --overwrite to begin anew",
            )

    def _take(self, entry: Mapping[str, Any]) -> None:
        """Take a line into account."""
        batch = entry.get("batch")
        if isinstance(batch, list):
            self.batch = [_plain(name, self.path) for name in batch]
            return
        try:
            record = Record(**{f.name: entry[f.name] for f in fields(Record)})
        except KeyError as error:
            raise InputError(f"a line has no {error}", where=self.path) from error
        _plain(record.file, self.path)
        self.records[record.target] = record

    def add(self, record: Record) -> None:
        """Put a finished evaluation on the disk."""
        self._append(asdict(record))
        self.records[record.target] = record

    def begin(self, batch: Sequence[str]) -> None:
        """Put on the disk which outputs are made together, so that the same are after a kill."""
        if self.batch != list(batch):
            self._append({"batch": list(batch)})
            self.batch = list(batch)

    def _append(self, entry: Mapping[str, Any]) -> None:
        """Add a line and flush it."""
        try:
            append(self._descriptor, json.dumps(entry, allow_nan=False).encode() + b"\n")
        except OSError as error:
            raise StorageError.wrap(error, self.path, "write") from error

    def close(self) -> None:
        """Let others write there."""
        unlock(self._descriptor)


def _plain(name: object, where: Path) -> str:
    """A file's name without a way out of its directory."""
    if not isinstance(name, str) or Path(name).name != name or name in {"", ".."}:
        raise InputError(f"{name!r} is no name of an output", where=where)
    return name
