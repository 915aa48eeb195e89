"""Evaluations: a user's command is run on checkpoints, and its metric read from what it prints."""

from __future__ import annotations

import json
import math
import os
import re
import string
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Generic, Self, TypeVar

from phema_cli.errors import UsageError, storage_errors
from phema_cli.system.processes import end, quoted, start
from phema_cli.system.signals import held_signals

#: what a command may name in braces.
PLACEHOLDERS = ("path", "gamma", "sigma_rel", "step", "target", "worker", "repeat")
#: those that differ from target to target.
_OF_TARGETS = frozenset(PLACEHOLDERS) - {"step", "worker", "repeat"}
#: seconds between two looks at running commands: the shortest wait, and the longest.
_SOONEST, _LATEST = 0.001, 0.05
_NUMBER = re.compile(
    r"(?<![\w.])[-+]?(?:(?:\d+\.?\d*|\.\d+)(?:e[-+]?\d+)?|inf(?:inity)?|nan)(?![\w])", re.IGNORECASE
)


@dataclass(frozen=True, slots=True)
class Result:
    """What an evaluation gave: a finite metric, or why there is none.

    Attributes:
        metric: the number, None where it failed.
        failure: why, in a few words; None where it did not.
        seconds: how long it ran.
    """

    metric: float | None
    failure: str | None
    seconds: float


@dataclass(frozen=True, slots=True)
class Evaluator:
    """A command with placeholders, and how its metric is found on its stdout.

    Args:
        command: for the shell; ``{path}`` and the other ``PLACEHOLDERS`` stand for values, quoted
            for the shell, and ``{{ }}`` for braces.
        pattern: regular expression whose last match, or the first group of it, is the metric; by
            default the last number is.
        key: dotted name of the metric in a JSON document, which is all of stdout or a line of it.
        timeout: seconds after which the command is ended and has failed; None for no limit.
        log: file that its stderr is added to, instead of going where phema's goes.

    Raises:
        UsageError: an unknown placeholder, none at all, or no regular expression.
    """

    command: str
    pattern: str | None = None
    key: str | None = None
    timeout: float | None = None
    log: Path | None = None

    def __post_init__(self) -> None:
        if self.pattern is not None and self.key is not None:
            raise UsageError(
                "--metric and --metric-key exclude each other", remedy="pass one of them"
            )
        try:
            re.compile(self.pattern or "")
        except (re.error, RecursionError, OverflowError) as error:
            raise UsageError(
                f"--metric {self.pattern!r} is no regular expression: {error}"
            ) from None
        names = ", ".join(f"{{{p}}}" for p in PLACEHOLDERS)
        known = f"use {names}; {{{{ and }}}} for braces"
        try:
            parts = list(string.Formatter().parse(self.command))
        except ValueError as error:
            raise UsageError(f"--eval {self.command!r}: {error}", remedy=known) from None
        fields = [(name, spec, how) for _, name, spec, how in parts if name is not None]
        for name, spec, how in fields:
            if name not in PLACEHOLDERS or spec or how:
                raise UsageError(f"--eval has an unknown placeholder {{{name}}}", remedy=known)
        if not _OF_TARGETS.intersection(name for name, _, _ in fields):
            raise UsageError(
                "--eval would run the same for every target",
                remedy="put {path} where the checkpoint's name goes",
            )

    def start(self, values: Mapping[str, str]) -> Running:
        """Start the command with the values of ``PLACEHOLDERS``.

        It has no stdin, and a process group of its own.

        Raises:
            StorageError: the command can't be started, or the log not be written.
        """
        line = self.command.format(**{k: quoted(v) for k, v in values.items()})
        with storage_errors("--eval", "run the command"), ExitStack() as cleanup:
            out = cleanup.enter_context(tempfile.TemporaryFile())
            with (self.log or Path(os.devnull)).open("ab") as errors, held_signals():
                process = start(line, out.fileno(), errors.fileno() if self.log else None)
                running = Running(self, process, out, time.monotonic())
                # One that a signal comes in the way of is ended again.
                cleanup.callback(running.end)
            cleanup.pop_all()
        return running

    def read(self, text: str) -> float | str:
        """The metric that a command has printed, or why that is none."""
        found = _by_key(text, self.key) if self.key is not None else self._by_pattern(text)
        if found is None:
            return "no metric on its stdout"
        try:
            value = float(found)
        except ValueError:
            return f"its metric is {found[:20]!r}, no number"
        return value if math.isfinite(value) else f"its metric is {value}"

    def _by_pattern(self, text: str) -> str | None:
        """The last number, or the last match of the user's pattern."""
        pattern = _NUMBER if self.pattern is None else re.compile(self.pattern, re.MULTILINE)
        found = list(pattern.finditer(text))
        if not found:
            return None
        return str(found[-1][1] if pattern.groups else found[-1][0])


def _by_key(text: str, key: str) -> str | None:
    """The entry of that dotted name in the whole text as JSON, or in the last line that has it."""
    for part in [text, *reversed(text.splitlines())]:
        try:
            entry: Any = json.loads(part)
        except (ValueError, RecursionError):
            continue
        for name in key.split("."):
            entry = entry.get(name) if isinstance(entry, dict) else None
        if isinstance(entry, int | float | str) and not isinstance(entry, bool):
            return str(entry)
    return None


@dataclass(frozen=True, slots=True)
class Running:
    """A command that was started.

    Attributes:
        evaluator: what reads its metric, and how long it may take.
        process: the command, which leads a group.
        out: what it prints.
        began: when it was started, by the clock of ``time.monotonic``.
    """

    evaluator: Evaluator
    process: subprocess.Popen[bytes]
    out: IO[bytes]
    began: float

    def result(self) -> Result | None:
        """What it gave, None while it runs; it is ended where its time is up."""
        code = self.process.poll()
        seconds, limit = time.monotonic() - self.began, self.evaluator.timeout
        found: float | str
        if code is None:
            if limit is None or seconds < limit:
                return None
            self.end()
            found = f"timed out after {limit:g} s"
        elif code:
            self.out.close()
            found = f"ended by signal {-code}" if code < 0 else f"exit code {code}"
        else:
            with self.out:
                self.out.seek(0)
                found = self.evaluator.read(self.out.read().decode(errors="replace"))
        metric, failure = (None, found) if isinstance(found, str) else (found, None)
        return Result(metric, failure, round(seconds, 3))

    def end(self) -> None:
        """End it, and all processes that it has started."""
        with held_signals():
            end(self.process)
        self.out.close()


Job = TypeVar("Job")


class Workers(Generic[Job]):
    """Commands that run at the same time; when the block ends none of them does any more.

    Args:
        evaluator: what starts them.
        count: how many may run.
    """

    def __init__(self, evaluator: Evaluator, count: int) -> None:
        self._evaluator = evaluator
        self._count = count
        self._running: dict[int, tuple[Job, Running]] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        for _, running in self._running.values():
            running.end()
        self._running.clear()

    @property
    def jobs(self) -> list[Job]:
        """What runs, by worker."""
        return [self._running[worker][0] for worker in sorted(self._running)]

    @property
    def is_full(self) -> bool:
        """Whether no other command may run now."""
        return len(self._running) >= self._count

    def start(self, job: Job, values: Mapping[str, str]) -> None:
        """Start a job on the first worker that is free; its number is a value too."""
        worker = next(i for i in range(self._count) if i not in self._running)
        self._running[worker] = job, self._evaluator.start({**values, "worker": str(worker)})

    def ended(self, meanwhile: Callable[[], None]) -> list[tuple[Job, Result]]:
        """Wait until a job has ended, and give those that have.

        Args:
            meanwhile: called now and then.
        """
        pause = _SOONEST
        while True:
            done = []
            for worker, (job, running) in list(self._running.items()):
                result = running.result()
                if result is not None:
                    del self._running[worker]
                    done.append((job, result))
            if done:
                return done
            meanwhile()
            time.sleep(pause)
            pause = min(2 * pause, _LATEST)
