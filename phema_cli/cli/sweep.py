"""``phema sweep``: evaluates a grid of targets by a command, searches for the best and shows it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from phema_cli.cli import options, render
from phema_cli.errors import CheckFailedError, SignalError
from phema_cli.sweep.request import SweepRequest

if TYPE_CHECKING:
    from rich.table import Table

    from phema_cli.sweep.results import Record
    from phema_cli.sweep.run import Outcome
    from phema_cli.synthesis.recipe import Recipe
    from phema_cli.system.pools import Progress

_LOG = "eval.log"
#: the chart's width; tables of this width fit beside it.
_MOST_COLUMNS = 80
#: sigma_rel above which there is nothing more to evaluate.
_NEAR_LIMIT = 0.28


Plot = Annotated[
    Path | None,
    options.option(
        "--plot",
        help="Draw metric against sigma_rel: png, svg, pdf.",
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
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Find the best EMA length by a metric of yours; prints the path of the best.

    Targets are synthesized in one pass, CMD is run on each, and further ones are searched around
    the best. Without --gamma, --sigma-rel or --profile that is a grid over what the snapshots
    reach. The same command goes on from sweep.jsonl.

    Examples:
      Where the demo's validation loss is least:
        $ phema sweep demo/ckpts -g 7,9 --eval 'python demo/validate.py {path}'

      Three gammas and what lies around the best; larger is better:
        $ phema sweep ckpts/ -g 5,10,15 --maximize -o best --eval 'echo {gamma}'
    """
    from phema_cli.estimate.solve import scan_for
    from phema_cli.snapshots.tensors import statistics
    from phema_cli.sweep.run import sweep as run

    if plot is not None:
        from phema_cli.cli import pictures

        pictures.check(plot, overwrite=True)
    if quiet:
        asked = replace(asked, log=Path(asked.output) / _LOG)
    scan = scan_for(paths, asked.request)
    names = scan.snapshots[-1].checkpoint.tensors if scan.snapshots else ()
    render.findings([*scan.findings, *statistics(names)], stderr=True, quiet=quiet)
    with _resumable(asked.output):
        outcome = run(scan, asked, _Shown(quiet=quiet))
    if not quiet:
        _show(outcome, maximize=asked.maximize)
    if plot is not None and outcome.best is not None:
        from phema_cli.cli import sweep_curve

        curve = sweep_curve.valley(outcome, maximize=asked.maximize)
        sweep_curve.draw(curve, plot, asked.metric_key or "metric")
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


class _Shown:
    """What is said on stderr while the work goes on.

    Args:
        quiet: nothing.
    """

    def __init__(self, *, quiet: bool) -> None:
        self._quiet = quiet

    def synthesizing(self, recipe: Recipe) -> AbstractContextManager[Progress | None]:
        """A bar."""
        total = recipe.read_bytes + recipe.write_bytes
        return render.progress("synthesizing", total, quiet=self._quiet)

    def evaluated(self, record: Record) -> None:
        """A line."""
        if not self._quiet:
            said = f"[red]{record.failure}[/]" if record.metric is None else f"{record.metric:.7g}"
            at = "" if record.sigma_rel is None else f"sigma_rel {record.sigma_rel:.4g}, "
            render.console(stderr=True).print(f"{at}{render.plain(record.profile)}: {said}")


def _reference(record: Record) -> str:
    """What the option of its kind takes: a gamma, or a profile."""
    return record.profile if record.gamma is None else repr(record.gamma)


def _show(outcome: Outcome, *, maximize: bool) -> None:
    """The table, the curve, and what to do about an optimum that may lie elsewhere."""
    from phema_cli.cli import sweep_curve

    out = render.console(stderr=True)
    out.print()
    render.show(_table(outcome), out)
    out.print()
    curve = sweep_curve.valley(outcome, maximize=maximize)
    if curve is not None and outcome.position != "alone":
        for line in sweep_curve.lines(curve, min(out.width, _MOST_COLUMNS)):
            out.print(line)
    advice = _advice(outcome)
    if advice is not None:
        out.print(f"[{render.WARNING}]warning:[/] {advice}", soft_wrap=True)


def _advice(outcome: Outcome) -> str | None:
    """What the best one's place says, where that is at an end or nowhere."""
    evaluated = [r.sigma_rel for r in outcome.records if r.sigma_rel and r.metric is not None]
    if outcome.position == "flat":
        return "all metrics are equal: is {path} what --eval evaluates?"
    if outcome.position == "lowest":
        return (
            f"the best sigma_rel is the lowest that was evaluated, {evaluated[0]:.4g}: the optimum "
            "may lie below; the same command with lower --sigma-rel goes on"
        )
    if outcome.position == "highest" and evaluated[-1] < _NEAR_LIMIT:
        return (
            f"the best sigma_rel is the highest that was evaluated, {evaluated[-1]:.4g}: the "
            "optimum may lie above; the same command with higher --sigma-rel goes on"
        )
    return None


def _table(outcome: Outcome) -> Table:
    """A row for each evaluation."""
    right = ("sigma_rel", "metric", "sigma error", "seconds")
    table = render.table(
        "target", "sigma_rel", "metric", "verdict", "sigma error", "seconds", "", right=right, gap=2
    )
    for r in outcome.records:
        note = "[bold green]best[/]" if r is outcome.best else ""
        table.add_row(
            render.plain(r.profile),
            "" if r.sigma_rel is None else f"{r.sigma_rel:.4g}",
            "" if r.metric is None else f"{r.metric:.7g}",
            f"[{render.STYLES[r.verdict]}]{r.verdict}[/]",
            "" if r.sigma_error is None else render.per_cent(r.sigma_error),
            f"{r.seconds:.1f}",
            note if r.failure is None else f"[red]{render.plain(r.failure)}[/]",
        )
    return table


def _document(outcome: Outcome, asked: SweepRequest) -> dict[str, Any]:
    """The content of ``--json``."""
    return {
        "eval": asked.eval,
        "direction": "maximize" if asked.maximize else "minimize",
        "best": None if outcome.best is None else asdict(outcome.best),
        "position": outcome.position,
        "path": None if outcome.path is None else str(outcome.path),
        "evaluations": [asdict(r) for r in outcome.records],
    }
