"""The one output sink: tables and JSON on stdout, everything else on stderr."""

from __future__ import annotations

import json
import math
import os
import re
import shlex
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal

from phema_cli.errors import InputError

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from phema_cli.profiles import Profile
    from phema_cli.snapshots import Finding
    from phema_cli.solver import Figures

_PIPE_WIDTH = 10_000
# columns of text, which may be folded where there is no room
_NAMES = ("snapshot", "source", "tensor", "target", "average", "tag from")
# of which no less than so many columns is left
_LEAST_NAME = 16
# findings that differ in their file alone and are more than this are one line
_ALIKE = 3
STYLES = {"good": "green", "fair": "yellow", "poor": "red"}
_LEVELS = {"error": "bold red", "warning": "yellow", "notice": "cyan"}


def console(*, stderr: bool = False) -> Console:
    """A console; in a pipe it is wide, so that nothing is cut off."""
    from rich.console import Console

    stream = sys.stderr if stderr else sys.stdout
    width = None if stream.isatty() or os.environ.get("COLUMNS") else _PIPE_WIDTH
    return Console(stderr=stderr, width=width, highlight=False, soft_wrap=False, emoji=False)


def unicode() -> bool:
    """Whether stdout carries more than ASCII drawings."""
    try:
        "⣿●┤█…".encode(sys.stdout.encoding or "ascii")
    except (UnicodeEncodeError, LookupError):
        return False
    return True


def document(command: str, content: Mapping[str, Any]) -> None:
    """Print one JSON document on stdout; what is not finite becomes null."""
    sys.stdout.write(
        json.dumps({"schema": f"phema/{command}/1", **_finite(content)}, indent=2, allow_nan=False)
        + "\n"
    )


#: what differs between faults of one kind.
_PARTICULAR = re.compile(r"tensor \S+|'[^']*'|\[[^]]*\]|\d[\d.,e+-]*")


def _finite(value: Any) -> Any:  # noqa: ANN401 - whatever JSON can hold
    if isinstance(value, Mapping):
        return {k: _finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def line(text: object) -> None:
    """Print a line on stdout, as it is."""
    sys.stdout.write(f"{text}\n")


def fail(message: str) -> None:
    """Print an error: one line on stderr."""
    console(stderr=True).print(f"[bold red]phema:[/] {plain(message)}", soft_wrap=True)


def findings(found: Sequence[Finding], *, stderr: bool, quiet: bool = False) -> None:
    """Print findings, one a line, errors last; what is said of many files is said once."""
    order = {"notice": 0, "warning": 1, "error": 2}
    out = console(stderr=stderr)
    alike: dict[tuple[str, str, str | None], list[Finding]] = {}
    for finding in sorted(found, key=lambda f: order[f.level]):
        key = (finding.level, _kind(finding), finding.error.remedy)
        alike.setdefault(key, []).append(finding)
    for (level, _, remedy), members in alike.items():
        if quiet and level == "notice":
            continue
        first = members[0].error
        texts = [str(f.error) for f in members]
        if len(members) > (1 if level == "error" else _ALIKE):
            where = f"{first.where} and {counted(len(members) - 1, 'other')}"
            texts = [str(InputError(first.what, where=where, remedy=remedy))]
        for text in texts:
            out.print(f"[{_LEVELS[level]}]{level}:[/] {plain(text)}", soft_wrap=True)


def _kind(finding: Finding) -> str:
    """What findings of one kind have in common: all but their numbers and names of tensors."""
    if finding.level != "error":
        return finding.error.what
    return _PARTICULAR.sub("#", finding.error.what)


def way_on(typed: object, errors: Sequence[Finding]) -> None:
    """Print the command line, as it was typed, with what would let it go on."""
    option = next((f.error.option for f in errors if f.error.option is not None), None)
    if option is not None and isinstance(typed, list):
        text = f"phema {shlex.join(typed)} {option}"
        console().print(f"[bold]go on:[/] {plain(text)}", soft_wrap=True)


def plain(text: object) -> str:
    """Text from outside, such as a name: nothing in it is markup, or a control character."""
    from rich.markup import escape

    shown = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in str(text))
    return escape(shown)


def table(*columns: str, right: Sequence[str] = (), gap: int = 3) -> Table:
    """A plain table with aligned columns, ``gap`` blanks apart."""
    from rich.table import Table

    made = Table(box=None, header_style="bold", pad_edge=False, padding=(0, gap, 0, 0))
    for column in columns:
        side: Literal["left", "right"] = "right" if column in right else "left"
        made.add_column(column, justify=side, no_wrap=column not in _NAMES, overflow="fold")
    return made


def show(made: Table, out: Console) -> None:
    """Print a table; where there is no room for its numbers it goes beyond the edge.

    Cut off they would be other numbers.
    """
    from rich.text import Text

    gap = made.padding[1]
    needed = -gap
    for column in made.columns:
        cells = [Text.from_markup(str(cell)) for cell in (column.header, *column.cells)]
        widest = max(line.cell_len for cell in cells for line in cell.split("\n", allow_blank=True))
        needed += gap + (widest if column.no_wrap else min(widest, _LEAST_NAME))
    if needed > out.width:
        made.width = needed
    out.print(made, crop=False)


def figures_table(targets: Sequence[Profile], figures: Sequence[Figures]) -> Table:
    """A row of figures for each target, in the order of their use."""
    names = (
        "verdict",
        "expected_error",
        "expected_rms",
        "sigma_error",
        "profile_error",
        "weight_sum",
        "noise_gain",
    )
    # Names in two lines: eight columns fit into 80.
    heads = [name.replace("_", "_\n") for name in names]
    made = table("target", *heads, right=heads[1:], gap=1)
    for target, f in zip(targets, figures, strict=True):
        made.add_row(
            plain(target.label),
            f"[{STYLES[f.verdict]}]{f.verdict}[/]",
            f"{f.expected_error:.2g}",
            "" if f.expected_rms is None else f"{f.expected_rms:.2g}",
            "" if f.sigma_error is None else per_cent(f.sigma_error),
            "" if f.profile_error is None else f"{f.profile_error:.2g}",
            f"{f.weight_sum:.6f}",
            f"{f.noise_gain:.3g}",
        )
    return made


def per_cent(value: float) -> str:
    """Two digits and a per cent sign; whole numbers from 100 up."""
    hundred = 100
    return f"{value:.0f} %" if value >= hundred else f"{value:.2g} %"


def size(size_bytes: float) -> str:
    """Bytes in decimal units, three digits."""
    thousand = 1000
    for unit in ("B", "kB", "MB", "GB"):
        if size_bytes < thousand:
            return f"{size_bytes:.3g} {unit}"
        size_bytes /= thousand
    return f"{size_bytes:.3g} TB" if size_bytes < thousand else f"{size_bytes:,.0f} TB"


def counted(number: int, noun: str) -> str:
    """``1 tensor``, ``2 tensors``."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def count(number: int) -> str:
    """Whole numbers with K, M, B or T, three digits."""
    thousand, value = 1000, float(number)
    for unit in ("", " K", " M", " B"):
        if value < thousand:
            return f"{value:.3g}{unit}"
        value /= thousand
    return f"{value:.3g} T"


@contextmanager
def progress(label: str, total: int, *, quiet: bool) -> Iterator[Callable[[int], None] | None]:
    """A bar on stderr, on a terminal only; yields what to call with the bytes done."""
    if quiet or not sys.stderr.isatty():
        yield None
        return
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console(stderr=True), transient=True) as bar:
        task = bar.add_task(label, total=total)
        yield lambda done: bar.advance(task, done)
