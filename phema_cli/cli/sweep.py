"""``phema sweep``: evaluates a grid of targets by a command, searches for the best and shows it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from phema_cli.cli import options, render
from phema_cli.errors import CheckFailedError, SignalError
from phema_cli.sweep.request import SweepRequest

if TYPE_CHECKING:
    from rich.table import Table

    from phema_cli.sweep.outcome import Outcome
    from phema_cli.sweep.results import Record
    from phema_cli.sweep.targets import Planner

_LOG = "eval.log"
#: the chart's width; tables of this width fit beside it.
_MOST_COLUMNS = 80

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
    from phema_cli.cli.sweep_progress import Shown
    from phema_cli.estimate.solve import scan_for
    from phema_cli.snapshots.tensors import statistics
    from phema_cli.sweep.run import sweep as run

    _check(plot)
    if quiet:
        asked = replace(asked, log=Path(asked.output) / _LOG)
    told = _reporter(report, asked)
    shown = Shown(quiet=quiet, told=told)
    scan = scan_for(paths, asked.scanned)
    names = scan.snapshots[-1].checkpoint.tensors if scan.snapshots else ()
    render.findings([*scan.findings, *statistics(names)], stderr=True, quiet=quiet)
    with _resumable(asked.output):
        outcome = run(scan, asked, shown)
    if shown.planner is not None:
        told(shown.planner, outcome, 0)
    if not quiet:
        _show(outcome, asked, shown.planner)
    _draw(outcome, asked, plot)
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


def _check(plot: Path | None) -> None:
    """Refuse a picture that could not be written, before there is work to lose."""
    if plot is not None:
        from phema_cli.cli import pictures

        pictures.check(plot, overwrite=True)


def _draw(outcome: Outcome, asked: SweepRequest, plot: Path | None) -> None:
    """The picture, where there is something to draw."""
    if plot is not None and outcome.best is not None:
        from phema_cli.cli import sweep_curve, sweep_picture

        sweep_picture.draw(sweep_curve.view(outcome, asked), plot)


def _reporter(report: Path | None, asked: SweepRequest) -> Callable[[Planner, Outcome, int], None]:
    """What writes the page after each evaluation."""
    if report is None:
        return lambda _planner, _outcome, _left: None
    from phema_cli.cli.sweep_report import Page

    return Page(report, asked).write


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


def _show(outcome: Outcome, asked: SweepRequest, planner: Planner | None) -> None:
    """The table, the curve, and what to do about an optimum that may lie elsewhere."""
    from phema_cli.cli import sweep_curve, sweep_words

    out = render.console(stderr=True)
    out.print()
    render.show(_table(outcome), out)
    out.print()
    view = sweep_curve.view(outcome, asked)
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
    right = ("sigma_rel", "metric", "±", "sigma error")
    table = render.table(*columns, right=right, gap=2)
    for row in rows:
        table.add_row(*(row[name] for name in columns))
    return table


def _cells(record: Record, outcome: Outcome) -> dict[str, str]:
    """The cells of a row by their column."""
    r = record
    return {
        "target": render.plain(r.profile),
        "sigma_rel": "" if r.sigma_rel is None else f"{r.sigma_rel:.4g}",
        "metric": "" if r.metric is None else f"{r.metric:.7g}",
        "±": "" if r.error is None else f"{r.error:.2g}",
        "verdict": f"[{render.STYLES[r.verdict]}]{r.verdict}[/]",
        "sigma error": "" if r.sigma_error is None else render.per_cent(r.sigma_error),
        "": _note(r, outcome),
    }


def _note(record: Record, outcome: Outcome) -> str:
    """What the last column says."""
    if record.failure is not None:
        return f"[red]{render.plain(record.failure)}[/]"
    notes = [] if record.baseline is None else [record.baseline]
    if record is outcome.best:
        notes.append("[bold green]best[/]")
    elif record.target in outcome.as_good:
        notes.append("[green]as good[/]")
    return ", ".join(notes)


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
