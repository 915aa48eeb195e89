"""Evaluations: a user's command is run on a checkpoint, and its metric read from what it prints."""

from __future__ import annotations

import json
import math
import os
import re
import string
import subprocess
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from phema_cli.errors import StorageError, UsageError
from phema_cli.system.processes import end, quoted, start
from phema_cli.system.signals import held_signals

#: what a command may name in braces.
PLACEHOLDERS = ("path", "gamma", "sigma_rel", "step", "target")
#: seconds that a command which is to end may take to clean up.
_GRACE = 5.0
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

    Raises:
        UsageError: an unknown placeholder, none at all, or no regular expression.
    """

    command: str
    pattern: str | None = None
    key: str | None = None
    timeout: float | None = None

    def __post_init__(self) -> None:
        if self.pattern is not None and self.key is not None:
            raise UsageError("--metric and --metric-key say two things", remedy="pass one of them")
        try:
            re.compile(self.pattern or "")
        except (re.error, RecursionError, OverflowError) as error:
            raise UsageError(
                f"--metric {self.pattern!r} is no regular expression: {error}"
            ) from None
        known = "; ".join(
            (f"use {', '.join(f'{{{p}}}' for p in PLACEHOLDERS)}", "{{ and }} for braces")
        )
        try:
            parts = list(string.Formatter().parse(self.command))
        except ValueError as error:
            raise UsageError(f"--eval {self.command!r}: {error}", remedy=known) from None
        fields = [(name, spec, how) for _, name, spec, how in parts if name is not None]
        for name, spec, how in fields:
            if name not in PLACEHOLDERS or spec or how:
                raise UsageError(f"--eval has an unknown placeholder {{{name}}}", remedy=known)
        if not fields:
            raise UsageError(
                "--eval would run the same for every target",
                remedy="put {path} where the checkpoint's name goes",
            )

    def run(self, values: Mapping[str, str], log: Path | None = None) -> Result:
        """Run the command with the placeholders' values.

        It has no stdin, and a process group of its own, which is ended as a whole when time is up
        or phema itself is to end.

        Args:
            values: by the names of ``PLACEHOLDERS``.
            log: file that its stderr is added to, instead of going where phema's goes.

        Raises:
            StorageError: the command can't be started, or the log not be written.
        """
        line = self.command.format(**{k: quoted(v) for k, v in values.items()})
        began = time.monotonic()
        try:
            with tempfile.TemporaryFile() as out, (log or Path(os.devnull)).open("ab") as errors:
                code = _run(line, out.fileno(), errors.fileno() if log else None, self.timeout)
                out.seek(0)
                text = out.read().decode(errors="replace")
        except OSError as error:
            raise StorageError.wrap(error, "--eval", "run the command") from error
        seconds = round(time.monotonic() - began, 3)
        if code is None:
            return Result(None, f"timed out after {self.timeout:g} s", seconds)
        if code:
            how = f"ended by signal {-code}" if code < 0 else f"exit code {code}"
            return Result(None, how, seconds)
        found = self.read(text)
        if isinstance(found, str):
            return Result(None, found, seconds)
        return Result(found, None, seconds)

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


def _by_key(text: str, key: str | None) -> str | None:
    """The entry of that dotted name in the whole text as JSON, or in the last line that has it."""
    for part in [text, *reversed(text.splitlines())]:
        try:
            entry: Any = json.loads(part)
        except (ValueError, RecursionError):
            continue
        for name in (key or "").split("."):
            entry = entry.get(name) if isinstance(entry, dict) else None
        if isinstance(entry, int | float | str) and not isinstance(entry, bool):
            return str(entry)
    return None


def _run(line: str, out: int, errors: int | None, timeout: float | None) -> int | None:
    """Run a line of shell; its exit code, or None where time was up."""
    process = None
    try:
        with held_signals():
            process = start(line, out, errors)
        return process.wait(timeout)
    except BaseException as error:
        if process is not None:
            with held_signals():
                end(process, _GRACE)
        if isinstance(error, subprocess.TimeoutExpired):
            return None
        raise
