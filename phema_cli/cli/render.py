"""The one output sink: tables and JSON on stdout, everything else on stderr."""

from __future__ import annotations

import json
import math
import os
import re
import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal

from phema_cli.errors import InputError
from phema_cli.system.processes import quoted

if TYPE_CHECKING:
    from rich.console import Console

    from phema_cli.profiles import Profile
    from phema_cli.snapshots import Finding
    from phema_cli.solver import Figures

#: heads of a table's columns, each with its cells.
Columns = list[tuple[str, list[str]]]
#: columns of a console that is no terminal: nothing is cut off in a pipe.
_PIPE_WIDTH = 10_000
#: columns of tables that may be folded where there is no room, and what is left of them at least.
_NAMES = ("snapshot", "source", "tensor", "target", "average", "tag from")
_LEAST_NAME = 16
#: columns of a progress bar itself, and those of a console that has room for speed and time too.
_BAR_WIDTH, _FULL_WIDTH = 10, 80
_MINUTE, _HOUR = 60.0, 3600.0
#: more findings than this that differ in their file alone are printed as one line.
_ALIKE = 3
#: what differs between errors of one kind.
_PARTICULAR = re.compile(r"tensor \S+|'[^']*'|\[[^]]*\]|\d[\d.,e+-]*")
#: options that say what averages are: one takes the place of another.
_STATEMENTS = {"--average", "--gammas", "--sigma-rels", "--raw"}
#: colours that are read on a dark and on a light background: no yellow, white or black.
STYLES = {"good": "green", "fair": "magenta", "poor": "red", "exact": "green"}
WARNING = "magenta"
#: levels of findings in the order in which they are printed.
_LEVELS = {"notice": "cyan", "warning": WARNING, "error": "bold red"}


def console(*, stderr: bool = False) -> Console:
    """A console on stdout, or on stderr."""
    from rich.console import Console

    stream = sys.stderr if stderr else sys.stdout
    width = None if stream.isatty() or os.environ.get("COLUMNS") else _PIPE_WIDTH
    return Console(stderr=stderr, width=width, highlight=False, soft_wrap=False, emoji=False)


def supports_unicode(*, stderr: bool = False) -> bool:
    """Whether the encoding of stdout, or of stderr, has all characters of drawings.

    Whoever prints a character that is not ASCII asks here first, and has a plain one for it. What
    else an encoding lacks comes from outside, as names do, and is escaped.
    """
    stream = sys.stderr if stderr else sys.stdout
    try:
        "⣿★┈┤█▒…".encode(stream.encoding or "ascii")
    except (UnicodeEncodeError, LookupError):
        return False
    return True


def document(command: str, content: Mapping[str, Any]) -> None:
    """Print one JSON document on stdout; arrays become lists, numbers that are not finite null."""
    whole = {"schema": f"phema/{command}/1", **_plain_values(content)}
    line(json.dumps(whole, indent=2, allow_nan=False))


def _plain_values(value: Any) -> Any:  # noqa: ANN401 - what JSON can hold, and arrays
    if isinstance(value, Mapping):
        return {k: _plain_values(v) for k, v in value.items()}
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, list | tuple):
        return [_plain_values(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def line(text: object) -> None:
    """Print a line on stdout, as it is."""
    sys.stdout.write(f"{text}\n")


def fail(message: str) -> None:
    """Print an error: one line on stderr."""
    console(stderr=True).print(f"[bold red]phema:[/] {plain(message)}", soft_wrap=True)


def findings(found: Sequence[Finding], *, stderr: bool, quiet: bool = False) -> None:
    """Print findings, one a line, errors last; one that many files share is printed once.

    ``quiet`` leaves notices out.
    """
    out = console(stderr=stderr)
    order = list(_LEVELS)
    alike: dict[tuple[str, str, str | None], list[Finding]] = {}
    for finding in sorted(found, key=lambda f: order.index(f.level)):
        what = finding.error.what
        kind = _PARTICULAR.sub("#", what) if finding.level == "error" else what
        alike.setdefault((finding.level, kind, finding.error.remedy), []).append(finding)
    for (level, _, remedy), members in alike.items():
        if quiet and level == "notice":
            continue
        texts = [str(f.error) for f in members]
        if len(members) > (1 if level == "error" else _ALIKE):
            first = members[0].error
            where = f"{first.where} and {counted(len(members) - 1, 'other')}"
            texts = [str(InputError(first.what, where=where, remedy=remedy))]
        for text in texts:
            out.print(f"[{_LEVELS[level]}]{level}:[/] {plain(text)}", soft_wrap=True)


def suggestion(typed: object, errors: Sequence[Finding]) -> None:
    """Print the command line as it was typed, with the first option that solves an error."""
    option = next((f.error.option for f in errors if f.error.option is not None), None)
    if option is not None and isinstance(typed, list):
        text = f"phema {quoted(*_without(typed, option.split()[0]))} {option}"
        console().print(f"[bold]try:[/] {plain(text)}", soft_wrap=True)


def _without(typed: Sequence[str], flag: str) -> Iterator[str]:
    """A command line without an option that another one takes the place of."""
    replaced = _STATEMENTS if flag in _STATEMENTS else {flag}
    words = iter(typed)
    for word in words:
        if word.partition("=")[0] not in replaced:
            yield word
        elif "=" not in word and word != "--raw":
            next(words, None)


def printable(text: object) -> str:
    """Text from outside, such as a name, without control characters."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in str(text))


def plain(text: object) -> str:
    """Text from outside, such as a name, without markup or control characters."""
    from rich.markup import escape

    return escape(printable(text))


def show(
    columns: Sequence[tuple[str, Sequence[str]]],
    out: Console,
    *,
    right: Collection[str] = (),
    gap: int = 2,
) -> None:
    """Print a table; one whose numbers need more room than there is goes beyond the edge.

    A number that is cut off would be another number.

    Args:
        columns: heads, and cells with markup; those of ``right`` are aligned at the right.
        out: where to.
        right: heads.
        gap: blanks between columns.
    """
    from rich.table import Table
    from rich.text import Text

    made = Table(box=None, header_style="bold", pad_edge=False, padding=(0, gap, 0, 0))
    needed = -gap
    for head, cells in columns:
        is_name = head in _NAMES
        side: Literal["left", "right"] = "right" if head in right else "left"
        made.add_column(head, justify=side, no_wrap=not is_name, overflow="fold")
        texts = (Text.from_markup(cell) for cell in (head, *cells))
        widest = max(line.cell_len for t in texts for line in t.split("\n", allow_blank=True))
        needed += gap + (min(widest, _LEAST_NAME) if is_name else widest)
    for row in zip(*(cells for _, cells in columns), strict=True):
        made.add_row(*row)
    if needed > out.width:
        made.width = needed
    out.print(made, crop=False)


def _figure_cells(figures: Figures) -> dict[str, str]:
    """Figures as cells of a table, by name, in the order of their use; empty where one is None."""
    rms, sigma, profile = figures.expected_rms, figures.sigma_error, figures.profile_error
    return {
        "verdict": f"[{STYLES[figures.verdict]}]{figures.verdict}[/]",
        "expected error": f"{figures.expected_error:.2g}",
        "expected rms": "" if rms is None else f"{rms:.2g}",
        "sigma error": "" if sigma is None else per_cent(sigma),
        "profile error": "" if profile is None else f"{profile:.2g}",
        "weight sum": f"{figures.weight_sum:.6f}",
        "noise gain": f"{figures.noise_gain:.3g}",
    }


def figure_columns(figures: Sequence[Figures], names: Sequence[str] = ()) -> Columns:
    """Figures as columns, all or those named; heads have a word a line: eight fit into 80."""
    rows = [_figure_cells(f) for f in figures]
    return [(name.replace(" ", "\n"), [row[name] for row in rows]) for name in names or rows[0]]


def show_figures(targets: Sequence[Profile], figures: Sequence[Figures], out: Console) -> None:
    """Print a row of figures for each target; there is at least one."""
    columns = figure_columns(figures)
    names = ("target", [plain(target.label) for target in targets])
    show([names, *columns], out, right=[head for head, _ in columns[1:]], gap=1)


def in_places(labels: Iterable[tuple[int, str]]) -> str:
    """Labels, each beginning at its column; one that would touch its neighbour is left out."""
    text = ""
    for at, label in labels:
        if len(text) < at or not text:
            text += " " * (at - len(text)) + label
    return text


def per_cent(value: float) -> str:
    """Two digits and a per cent sign; whole numbers from 100 up."""
    hundred = 100
    return f"{value:.0f} %" if value >= hundred else f"{value:.2g} %"


def size(size_bytes: float) -> str:
    """Bytes in decimal units, three digits."""
    return _scaled(size_bytes, (" B", " kB", " MB", " GB", " TB"))


def count(number: int) -> str:
    """Whole numbers with K, M, B or T, three digits."""
    return _scaled(number, ("", " K", " M", " B", " T"))


def _scaled(value: float, units: Sequence[str]) -> str:
    """A number in the unit in which it is below 1000, or in the last one."""
    thousand = 1000
    for unit in units[:-1]:
        if value < thousand:
            return f"{value:.3g}{unit}"
        value /= thousand
    return f"{value:.3g}{units[-1]}" if value < thousand else f"{value:,.0f}{units[-1]}"


def duration(seconds: float) -> str:
    """``12.5 s``, ``3.4 min``, ``1.7 h``."""
    if seconds < _MINUTE:
        return f"{seconds:.1f} s"
    return f"{seconds / _MINUTE:.1f} min" if seconds < _HOUR else f"{seconds / _HOUR:.1f} h"


def counted(number: int, noun: str) -> str:
    """``1 tensor``, ``2 tensors``."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


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

    out = console(stderr=True)
    columns = [TextColumn("{task.description}"), BarColumn(_BAR_WIDTH), DownloadColumn()]
    if out.width >= _FULL_WIDTH:
        # Where there is less room they would be cut off.
        columns += [TransferSpeedColumn(), TimeRemainingColumn()]
    with Progress(*columns, console=out, transient=True) as bar:
        task = bar.add_task(label, total=total)
        yield lambda done: bar.advance(task, done)
