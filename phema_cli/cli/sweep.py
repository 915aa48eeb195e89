"""``phema sweep``: evaluates a grid of targets by a command, searches for the best and shows it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from phema_cli.cli import options, render
from phema_cli.errors import CheckFailedError, SignalError
from phema_cli.sweep.request import SweepRequest

if TYPE_CHECKING:
    from rich.table import Table

    from phema_cli.cli.sweep_curve import View
    from phema_cli.sweep.outcome import Outcome
    from phema_cli.sweep.results import Record
    from phema_cli.sweep.targets import Planner

_LOG = "eval.log"
#: the chart's width; tables of this width fit beside it.
_MOST_COLUMNS = 80
#: the colours of notes on evaluations.
_COLOURS = {"best": "bold green", "as good": "green"}

Plot = Annotated[
    Path | None,
    options.option(
        "--plot",
        help="Draw the metric against the length: png, svg, pdf.",
        panel="Output",
        metavar="FILE",
    ),
]
Report = Annotated[
    Path | None,
    options.option(
        "--report",
        help="Write a page to share, again after each evaluation: FILE.html.",
        panel="Output",
        metavar="FILE",
    ),
]


@options.command
def sweep(
    paths: options.Paths,
    *,
    asked: SweepRequest,
    plot: Plot = None,
    report: Report = None,
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Find the best EMA length by a metric of yours; prints the path of the best.

    Targets are synthesized in one pass, CMD is run on each, and further ones are searched around
    the best, beyond the first ones too. Without --gamma, --sigma-rel, --profile or --search that
    is a grid over what the snapshots reach. The last weights and the stored averages are evaluated
    to compare with. The same command resumes from sweep.jsonl.

    Examples:
      Where the demo's validation loss is least:
        $ phema sweep demo/ckpts -g 7,9 --eval 'python demo/validate.py {path}'

      Three gammas and what lies around the best; larger is better:
        $ phema sweep ckpts/ -g 5,10,15 --maximize -o best --eval 'echo {gamma}'

      The best window of a plain mean:
        $ phema sweep ckpts/ --search uniform:last -o w --eval 'wc -c {path}'
    """
    from phema_cli.cli import pictures, sweep_curve, sweep_picture
    from phema_cli.cli.sweep_progress import Shown
    from phema_cli.cli.sweep_report import Page
    from phema_cli.estimate.solve import scan_for
    from phema_cli.snapshots.tensors import statistics
    from phema_cli.sweep.run import sweep as run

    if plot is not None:
        pictures.check(plot, overwrite=True)
    if quiet:
        asked = replace(asked, log=Path(asked.output) / _LOG)
    shown = Shown(quiet=quiet, page=None if report is None else Page(report, asked))
    scan = scan_for(paths, asked.scanned)
    names = scan.snapshots[-1].checkpoint.tensors if scan.snapshots else ()
    render.findings([*scan.findings, *statistics(names)], stderr=True, quiet=quiet)
    with _resumable(asked.output):
        outcome = run(scan, asked, shown)
    shown.write_page(outcome, left=0)
    view = sweep_curve.view(outcome, asked)
    if not quiet:
        _show(outcome, view, shown.planner)
    if plot is not None and outcome.best is not None:
        sweep_picture.draw(view, plot)
    if json:
        render.document("sweep", _document(outcome, asked))
    if outcome.best is None:
        raise CheckFailedError(
            "no evaluation gave a metric",
            where=asked.output,
            remedy=f"the first: {outcome.records[0].failure}; mend --eval, or pass --retry-failed",
        )
    if not json:
        render.line(outcome.path or _reference(outcome.best))


@contextmanager
def _resumable(output: str) -> Iterator[None]:
    """Say on a signal that what is finished stays."""
    try:
        yield
    except SignalError as error:
        error.outcome = f"finished evaluations stay in {output}"
        if not getattr(error, "__notes__", []):
            error.add_note("the same command goes on")
        raise


def _reference(record: Record) -> str:
    """What the option of its kind takes: a gamma, or a profile."""
    return record.profile if record.gamma is None else repr(record.gamma)


def _show(outcome: Outcome, view: View | None, planner: Planner | None) -> None:
    """The table, the curve, and what to do about an optimum that may lie elsewhere."""
    from phema_cli.cli import sweep_curve, sweep_words

    out = render.console(stderr=True)
    out.print()
    render.show(_table(outcome), out)
    out.print()
    if view is not None and outcome.position != "alone":
        for line in sweep_curve.lines(view, min(out.width, _MOST_COLUMNS)):
            out.print(line)
    summary = sweep_words.summary(outcome)
    if summary is not None:
        out.print(summary, soft_wrap=True)
    for text in () if planner is None else sweep_words.advice(outcome, planner):
        out.print(f"[{render.WARNING}]warning:[/] {render.plain(text)}", soft_wrap=True)


def _table(outcome: Outcome) -> Table:
    """A row for each evaluation."""
    rows = [_cells(record, outcome) for record in outcome.records]
    empty = {name for name in ("±", "sigma_rel", "sigma error") if not any(r[name] for r in rows)}
    columns = [name for name in rows[0] if name not in empty]
    error = "±" if render.supports_unicode(stderr=True) else "+/-"
    heads = [error if name == "±" else name for name in columns]
    table = render.table(*heads, right=("sigma_rel", "metric", error, "sigma error"), gap=2)
    for row in rows:
        table.add_row(*(row[name] for name in columns))
    return table


def _cells(record: Record, outcome: Outcome) -> dict[str, str]:
    """The cells of a row by their column."""
    from phema_cli.cli import sweep_words

    cells = {name: render.plain(text) for name, text in sweep_words.cells(record).items()}
    cells["verdict"] = f"[{render.STYLES[record.verdict]}]{record.verdict}[/]"
    if record.failure is not None:
        return cells | {"": f"[red]{render.plain(record.failure)}[/]"}
    notes = sweep_words.notes(record, outcome)
    marked = (f"[{_COLOURS[n]}]{n}[/]" if n in _COLOURS else n for n in notes)
    return cells | {"": ", ".join(marked)}


def _document(outcome: Outcome, asked: SweepRequest) -> dict[str, Any]:
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
