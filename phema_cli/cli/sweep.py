"""``phema sweep``: evaluates a grid of targets by a command, searches for the best and shows it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from phema_cli.cli import groups, options, parsing, render
from phema_cli.cli.reachable import GRID
from phema_cli.errors import CheckFailedError, SignalError

if TYPE_CHECKING:
    from rich.table import Table

    from phema_cli.sweep.results import Record
    from phema_cli.sweep.run import Outcome
    from phema_cli.sweep.targets import Sweep
    from phema_cli.synthesis.pools import Progress
    from phema_cli.synthesis.recipe import Recipe

_EVALUATION = "Evaluation"
_LOG = "eval.log"
#: the chart's width; tables of this width fit beside it.
_MOST_COLUMNS = 80
#: sigma_rel above which there is nothing more to evaluate.
_NEAR_LIMIT = 0.28


class Keep(StrEnum):
    """Which outputs stay."""

    best = "best"
    all = "all"
    none = "none"


Eval = Annotated[
    str,
    options.option(
        "--eval",
        help="What to run on each, by the shell, with {path}, {gamma}, {sigma_rel}, {step}, "
        "{target}.",
        panel=_EVALUATION,
        metavar="CMD",
    ),
]
Metric = Annotated[
    str | None,
    options.option(
        "--metric",
        help="Regular expression whose last match, or its group, is the metric; by default the "
        "last number printed is.",
        panel=_EVALUATION,
        metavar="REGEX",
    ),
]
MetricKey = Annotated[
    str | None,
    options.option(
        "--metric-key",
        help="Name of the metric in the JSON printed, dotted.",
        panel=_EVALUATION,
        metavar="KEY",
    ),
]
Maximize = Annotated[
    bool,
    options.flag(
        "--maximize/--minimize", help="Which metric is the best; the lowest.", panel=_EVALUATION
    ),
]
Refine = Annotated[
    int | None,
    options.option(
        "--refine",
        help="Further points searched around the best; 6 without targets given, else 0.",
        panel=_EVALUATION,
        min=0,
        metavar="N",
    ),
]
Timeout = Annotated[
    str | None,
    options.option(
        "--timeout",
        help="Time after which an evaluation has failed: 90s, 30m, 2h.",
        panel=_EVALUATION,
        metavar="TIME",
    ),
]
RetryFailed = Annotated[
    bool,
    options.flag(
        "--retry-failed", help="Run again what failed in an earlier run.", panel=_EVALUATION
    ),
]
Output = Annotated[
    str,
    options.option(
        "--output",
        "-o",
        help="Directory for the outputs and sweep.jsonl.",
        panel=options.OUTPUT,
        metavar="DIR",
    ),
]
Keeping = Annotated[
    Keep,
    options.option("--keep", help="Which outputs stay: best, all, none.", panel=options.OUTPUT),
]
MaxDisk = Annotated[
    str | None,
    options.option(
        "--max-disk",
        help="Disk that outputs may take at a time; 90 % of what is free by default.",
        panel=options.OUTPUT,
        metavar="SIZE",
    ),
]
Overwrite = Annotated[
    bool,
    options.flag("--overwrite", help="Forget an earlier sweep's results.", panel=options.OUTPUT),
]
Plot = Annotated[
    Path | None,
    options.option(
        "--plot",
        help="Draw metric against sigma_rel: png, svg, pdf.",
        panel=options.OUTPUT,
        metavar="FILE",
    ),
]


@groups.spread
def sweep(
    paths: options.Paths,
    *,
    eval: Eval,  # noqa: A002 - the option's name
    metric: Metric = None,
    metric_key: MetricKey = None,
    maximize: Maximize = False,
    refine: Refine = None,
    timeout: Timeout = None,
    retry_failed: RetryFailed = False,
    wanted: groups.Targets,
    solving: groups.Solving,
    output: Output = "sweep",
    keep: Keeping = Keep.best,
    max_disk: MaxDisk = None,
    overwrite: Overwrite = False,
    plot: Plot = None,
    format: options.Format = None,  # noqa: A002 - the option's name
    dtype: options.Dtype = None,
    sources: groups.Sources,
    copy: options.Copy = None,
    drop: options.Drop = None,
    jobs: options.Jobs = None,
    max_memory: options.MaxMemory = "256MiB",
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
    from phema_cli.solver.search import FURTHER_POINTS
    from phema_cli.sweep.evaluation import Evaluator
    from phema_cli.sweep.run import sweep as run
    from phema_cli.sweep.targets import Sweep
    from phema_cli.synthesis import Request, find_dtype

    given = bool(wanted.gammas or wanted.sigma_rels or wanted.profiles)
    asked = Sweep(
        request=Request(
            gammas=wanted.gammas,
            sigma_rels=wanted.sigma_rels,
            profiles=wanted.profiles,
            step=solving.step,
            method=solving.method,
            sample=not solving.no_sample,
            output=output,
            form=format,
            dtype=find_dtype(dtype) if dtype else None,
            max_memory=parsing.size(max_memory) or 0,
            jobs=jobs,
        ),
        evaluator=Evaluator(eval, metric, metric_key, parsing.seconds(timeout)),
        maximize=maximize,
        refine=refine if refine is not None else 0 if given else FURTHER_POINTS,
        keep=keep.value,
        max_disk=parsing.size(max_disk),
        retry_failed=retry_failed,
        overwrite=overwrite,
        candidates=GRID,
        log=Path(output) / _LOG if quiet else None,
    )
    if plot is not None:
        from phema_cli.cli import pictures

        pictures.check(plot, overwrite=True)
    found = sources.scan(paths, sampled=not solving.no_sample, copy=copy, drop=drop)
    render.findings(found.findings, stderr=True, quiet=quiet)
    with _resumable(output):
        outcome = run(found, asked, _Shown(quiet=quiet))
    if not quiet:
        _show(outcome, maximize=maximize)
    if plot is not None and outcome.best is not None:
        from phema_cli.cli import sweep_curve

        curve = sweep_curve.valley(outcome, maximize=maximize)
        sweep_curve.draw(curve, plot, metric_key or "metric")
    if json:
        render.document("sweep", _document(outcome, asked))
    if outcome.best is None:
        raise CheckFailedError(
            "no evaluation gave a metric",
            where=output,
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
        out.print(f"[yellow]warning:[/] {advice}", soft_wrap=True)


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
    right = ("sigma_rel", "metric", "sigma_error", "seconds")
    table = render.table(
        "target", "sigma_rel", "metric", "verdict", "sigma_error", "seconds", "", right=right, gap=2
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


def _document(outcome: Outcome, asked: Sweep) -> dict[str, Any]:
    """The content of ``--json``."""
    return {
        "eval": asked.evaluator.command,
        "direction": "maximize" if asked.maximize else "minimize",
        "best": None if outcome.best is None else asdict(outcome.best),
        "position": outcome.position,
        "path": None if outcome.path is None else str(outcome.path),
        "evaluations": [asdict(r) for r in outcome.records],
    }
