"""``phema sweep``: evaluates a grid of targets by a command, searches for the best and shows it."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Annotated

from phema_cli.cli import options, render
from phema_cli.errors import CheckFailedError, SignalError
from phema_cli.sweep.request import SweepRequest

_LOG = "eval.log"

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
    from phema_cli.cli.sweep_print import Shown, document
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
    view = sweep_curve.view(outcome, asked)
    shown.ended(outcome, view)
    if plot is not None and outcome.best is not None:
        sweep_picture.draw(view, plot)
    if json:
        render.document("sweep", document(outcome, asked))
    if outcome.best is None:
        raise CheckFailedError(
            f"no evaluation gave a metric (the first: {outcome.records[0].failure})",
            where=asked.output,
            remedy="correct --eval and pass --overwrite, or run it again with --retry-failed",
        )
    if not json:
        best = outcome.best
        render.line(outcome.path or (best.profile if best.gamma is None else repr(best.gamma)))


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
