"""The results of a sweep on disk: a log with a line for each finished evaluation.

The first line says what is evaluated, and how; lines of batches name the outputs that are made
together. A sweep that was killed resumes from it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, fields, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from phema_cli.errors import InputError, UsageError
from phema_cli.sweep.evaluation import Result
from phema_cli.system.files import sync_folder, writing
from phema_cli.system.log import Log

NAME = "sweep.jsonl"
_SCHEMA = "phema/sweep-results/1"
#: what stands in a line for a field of such a type.
_STORED: dict[str, tuple[type, ...]] = {
    "str": (str,),
    "str | None": (str, type(None)),
    "bool": (bool,),
    "float": (int, float),
    "float | None": (int, float, type(None)),
    "tuple[float, ...]": (list,),
    "tuple[int, ...]": (list,),
}


@dataclass(frozen=True, slots=True)
class Record:
    """A finished evaluation.

    Attributes:
        target: the target's unique name.
        profile: what users call it.
        gamma: exponent, None for other profiles than powers.
        sigma_rel: relative standard deviation, None for other profiles.
        metric: what the command printed, the mean of several; None where it failed.
        failure: why it failed, None where it did not.
        seconds: how long the command ran, several times in all.
        refined: whether the search chose the target, not the user.
        file: the output's name in the directory of the sweep.
        verdict: how good the target was expected to be.
        expected_error: as the figures of a synthesis have it.
        sigma_error: as the figures of a synthesis have it.
        metrics: what the command printed each time.
        repeats: which of the evaluations of the target each metric is of, counted from 0.
        baseline: ``last weights`` or ``stored average`` where it is one of these, else None.
        finished: when the last evaluation was finished, in UTC; None where that was not recorded.
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
    metrics: tuple[float, ...] = ()
    repeats: tuple[int, ...] = ()
    baseline: str | None = None
    finished: str | None = None

    @property
    def count(self) -> int:
        """How many evaluations the metric is the mean of."""
        return max(1, len(self.metrics))

    @property
    def variance(self) -> float | None:
        """Of these evaluations; None where there is but one."""
        return float(np.var(self.metrics, ddof=1)) if len(self.metrics) > 1 else None

    @property
    def error(self) -> float | None:
        """Standard error of the metric, as its evaluations differ; None where there is but one."""
        return None if self.variance is None else math.sqrt(self.variance / self.count)

    def missing(self, count: int) -> list[int]:
        """Which of ``count`` evaluations gave no metric yet."""
        return [k for k in range(count) if k not in self.repeats]

    def added(self, repeat: int, result: Result) -> Record:
        """The record with one evaluation more; a target has failed where one of them has."""
        metrics, repeats, failure = self.metrics, self.repeats, self.failure or result.failure
        if result.metric is not None:
            metrics, repeats = (*metrics, result.metric), (*repeats, repeat)
        return replace(
            self,
            metrics=metrics,
            repeats=repeats,
            metric=None if failure is not None else _mean(metrics),
            failure=failure,
            seconds=round(self.seconds + result.seconds, 3),
            finished=datetime.now(UTC).isoformat(timespec="seconds"),
        )

    def tried_again(self) -> Record:
        """The record without its failure."""
        return replace(self, failure=None, metric=_mean(self.metrics) if self.metrics else None)


def _mean(metrics: Sequence[float]) -> float:
    """The mean of metrics, however large."""
    try:
        return math.fsum(metrics) / len(metrics)
    except OverflowError:
        return math.fsum(m / len(metrics) for m in metrics)


class Results:
    """The locked file of a sweep's results.

    Args:
        folder: the directory of the sweep, which is made if need be.
        what: what is evaluated and how; results of anything else are refused.
        overwrite: whether results that are there are forgotten.

    Attributes:
        records: by ``Record.target``, the latest of each.
        batch: names of the outputs that were made last, or were to be.
        stale: names of outputs that were forgotten.

    Raises:
        UsageError: the file has the results of another sweep.
        InputError: the file is not one of results.
        StorageError: another sweep is writing there, or the operating system failed.
    """

    def __init__(self, folder: Path, what: Mapping[str, Any], *, overwrite: bool = False) -> None:
        self.path = folder / NAME
        self.records: dict[str, Record] = {}
        self.batch: list[str] = []
        self.stale: list[str] = []
        self._log = Log(self.path)
        try:
            with writing(self.path):
                folder.mkdir(parents=True, exist_ok=True)
                self._log.lock()
                self._open({"schema": _SCHEMA, **what}, overwrite=overwrite)
        except BaseException:
            self.close()
            raise

    def _open(self, first: Mapping[str, Any], *, overwrite: bool) -> None:
        """Read the lines that are there, or write the first one."""
        self._log.truncate()
        entries = self._log.entries()
        if entries:
            for entry in entries[1:]:
                self._read_line(entry)
            if not overwrite:
                self._check(entries[0], first)
                return
            self.stale = sorted({*self.batch, *(r.file for r in self.records.values())})
            self.records, self.batch = {}, []
            self._log.truncate(0)
        self._log.append(first)
        sync_folder(self.path.parent)

    def _check(self, there: Mapping[str, Any], first: Mapping[str, Any]) -> None:
        """Refuse results of another sweep."""
        other = [key for key in {**first, **there} if there.get(key) != first.get(key)]
        if other:
            raise UsageError(
                f"has the results of another sweep: not the same {' and '.join(other)}",
                where=self.path,
                remedy="choose another -o, or pass --overwrite to start again",
            )

    def _read_line(self, entry: Mapping[str, Any]) -> None:
        """Read a line of a batch or of an evaluation."""
        batch = entry.get("batch")
        if isinstance(batch, list):
            self.batch = [_plain(name, self.path) for name in batch]
            return
        missing = [f.name for f in fields(Record) if f.default is MISSING and f.name not in entry]
        if missing:
            raise InputError(f"a line lacks {missing[0]!r}", where=self.path)
        given = {f.name: entry[f.name] for f in fields(Record) if f.name in entry}
        kinds = {f.name: _STORED[str(f.type)] for f in fields(Record)}
        wrong = [name for name, value in given.items() if not isinstance(value, kinds[name])]
        if wrong:
            raise InputError(f"a line has a wrong {wrong[0]!r}", where=self.path)
        record = Record(**given)
        _plain(record.file, self.path)
        metrics, repeats = tuple(record.metrics), tuple(record.repeats)
        if not metrics and record.metric is not None:
            # Of a version that evaluated each target once.
            metrics, repeats = (record.metric,), (0,)
        record = replace(record, metrics=metrics, repeats=repeats)
        self.records[record.target] = record

    def add(self, record: Record) -> None:
        """Record a finished evaluation."""
        with writing(self.path):
            self._log.append(asdict(record))
        self.records[record.target] = record

    def begin(self, batch: Sequence[str]) -> None:
        """Record which outputs are made together: after a kill the same are made together again."""
        if self.batch != list(batch):
            with writing(self.path):
                self._log.append({"batch": list(batch)})
            self.batch = list(batch)

    def close(self) -> None:
        """Let other sweeps write there."""
        self._log.unlock()


def _plain(name: object, where: Path) -> str:
    """A file's name, which does not lead out of its directory."""
    if not isinstance(name, str) or Path(name).name != name or name in {"", ".."}:
        raise InputError(f"{name!r} is not the name of an output", where=where)
    return name
