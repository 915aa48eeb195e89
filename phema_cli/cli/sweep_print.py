"""What a sweep prints: each result and how long it takes, then the table, the curve and JSON."""

import sys
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict
from typing import Any

from phema_cli.cli import render, sweep_words
from phema_cli.cli.sweep_curve import View
from phema_cli.cli.sweep_report import Page
from phema_cli.cli.sweep_text import lines
from phema_cli.sweep.outcome import Outcome
from phema_cli.sweep.request import SweepRequest
from phema_cli.sweep.results import Record
from phema_cli.sweep.targets import Planner
from phema_cli.synthesis.recipe import Recipe
from phema_cli.system.pools import Progress

#: seconds between two changes of the line on a terminal.
_EVERY = 0.5
#: clears a line of a terminal, and goes to its beginning.
_CLEAR = "\r\x1b[K"
#: the curve's width; tables of this width fit beside it.
_MOST_COLUMNS = 80
#: heads of the column of standard errors, and those that are left out where they are empty.
_ERRORS = ("±", "+/-")
_LEFT_OUT = {*_ERRORS, "sigma_rel", "sigma error"}
#: the colours of notes on evaluations.
_COLOURS = {"best": "bold green", "as good": "green"}


class Shown:
    """Tells of a sweep on stderr, and on its page.

    Args:
        quiet: nothing on stderr.
        page: what is written after each evaluation; None for none.
    """

    #: given by ``begun``, which a sweep calls first.
    _planner: Planner

    def __init__(self, *, quiet: bool, page: Page | None) -> None:
        self._quiet = quiet
        self._page = page
        self._live = not quiet and sys.stderr.isatty()
        self._began = self._drawn = time.monotonic()
        self._done = 0

    def begun(self, planner: Planner, outcome: Outcome, left: int) -> None:
        """Say whether tags are in doubt, and what an earlier run has left to do."""
        render.findings(planner.findings, stderr=True, quiet=self._quiet)
        self._planner = planner
        self._began = time.monotonic()
        self._write_page(outcome, left)
        if outcome.records and not self._quiet:
            done = render.counted(len(outcome.records), "target")
            more = f"at most {render.counted(left, 'evaluation')} left"
            render.console(stderr=True).print(
                f"{done} of an earlier run; {more if left else 'nothing is left to evaluate'}"
            )

    def synthesizing(self, recipe: Recipe) -> AbstractContextManager[Progress | None]:
        """A bar."""
        total = recipe.read_bytes + recipe.write_bytes
        return render.progress("synthesizing", total, quiet=self._quiet)

    def waiting(self, running: Sequence[str], left: int) -> None:
        """On a terminal, a line that changes."""
        now = time.monotonic()
        if not self._live or now - self._drawn < _EVERY:
            return
        self._drawn = now
        first = self._done + 1
        last = first + len(running) - 1
        counts = f"{first}" if last == first else f"{first} to {last}"
        text = f"{counts} of {self._all(left)}: {', '.join(running)}; {self._times(left)}"
        width = render.console(stderr=True).width
        sys.stderr.write(_CLEAR + render.printable(text)[: width - 1])
        sys.stderr.flush()

    def evaluated(self, record: Record, metric: float | None, outcome: Outcome, left: int) -> None:
        """A line."""
        self._done += 1
        self._write_page(outcome, left)
        if self._quiet:
            return
        if self._live:
            sys.stderr.write(_CLEAR)
            sys.stderr.flush()
        failure = f"[red]{render.plain(record.failure)}[/]"
        said = failure if metric is None else f"{metric:.7g}"
        render.console(stderr=True).print(
            f"{self._done} of {self._all(left)}: {render.plain(sweep_words.named(record))}: "
            f"{said}  [dim]{self._times(left)}[/]",
            soft_wrap=True,
        )

    def _all(self, left: int) -> str:
        """How many evaluations there will be; a search may end before."""
        most = "at most " if left and self._planner.refine else ""
        return f"{most}{self._done + left}"

    def _times(self, left: int) -> str:
        """How long it has taken, and may still take."""
        elapsed = time.monotonic() - self._began
        text = render.duration(elapsed)
        if self._done and left:
            text += f", {render.duration(elapsed / self._done * left)} left"
        return text

    def _write_page(self, outcome: Outcome, left: int) -> None:
        """The page, where there is one."""
        if self._page is not None:
            self._page.write(self._planner, outcome, left)

    def ended(self, outcome: Outcome, view: View | None) -> None:
        """The table, the curve, and what to do about an optimum that may lie elsewhere."""
        self._write_page(outcome, left=0)
        if self._quiet:
            return
        out = render.console(stderr=True)
        out.print()
        render.show(_columns(outcome), out, right=("sigma_rel", "metric", *_ERRORS, "sigma error"))
        out.print()
        if view is not None and outcome.position != "alone":
            for line in lines(view, min(out.width, _MOST_COLUMNS)):
                out.print(line)
        summary = sweep_words.summary(outcome)
        if summary is not None:
            out.print(summary, soft_wrap=True)
        for text in sweep_words.advice(outcome, self._planner):
            out.print(f"[{render.WARNING}]warning:[/] {render.plain(text)}", soft_wrap=True)


def _columns(outcome: Outcome) -> render.Columns:
    """The table's columns, a cell for each evaluation."""
    rows = [_cells(record, outcome) for record in outcome.records]
    columns = [(name, [row[name] for row in rows]) for name in rows[0]]
    return [(name, cells) for name, cells in columns if name not in _LEFT_OUT or any(cells)]


def _cells(record: Record, outcome: Outcome) -> dict[str, str]:
    """The cells of a row by their column."""
    error = _ERRORS[0 if render.supports_unicode(stderr=True) else 1]
    cells = sweep_words.cells(record)
    row = {error if n == _ERRORS[0] else n: render.plain(text) for n, text in cells.items()}
    row["verdict"] = f"[{render.STYLES[record.verdict]}]{record.verdict}[/]"
    if record.failure is not None:
        return row | {"": f"[red]{render.plain(record.failure)}[/]"}
    said = sweep_words.notes(record, outcome)
    return row | {"": ", ".join(f"[{_COLOURS[n]}]{n}[/]" if n in _COLOURS else n for n in said)}


def document(outcome: Outcome, asked: SweepRequest) -> dict[str, Any]:
    """The content of ``--json``."""
    lengths = {
        r.target: (c.family.name, scale)
        for c in outcome.curves
        for r, scale in zip(c.records, c.scales, strict=True)
    }

    def entry(record: Record) -> dict[str, Any]:
        family, scale = lengths.get(record.target, (None, None))
        more = {"family": family, "scale": scale, "as_good": record.target in outcome.as_good}
        return asdict(record) | more

    curve, limits = outcome.curve, outcome.limits
    best = None if curve is None else curve.optimum
    return {
        "eval": asked.eval,
        "direction": "maximize" if asked.maximize else "minimize",
        "best": None if outcome.best is None else entry(outcome.best),
        "position": outcome.position,
        "path": None if outcome.path is None else str(outcome.path),
        "evaluations": [entry(r) for r in outcome.records],
        "optimum": None
        if best is None or curve is None
        else {
            "family": curve.family.name,
            "scale": best.scale,
            "metric": best.metric,
            "fitted": best.fitted,
        },
        "noise": outcome.noise,
        "limits": None if limits is None else {"low": limits.low, "high": limits.high},
    }
