"""What can be asked of a sweep: its options, each declared once."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from phema_cli.options import option, part
from phema_cli.request import SOLVING, SOURCES, TARGETS, Request

Keep = Literal["best", "all", "none"]

#: evaluations of one target, and at the same time.
MOST_REPEATS, MOST_WORKERS = 1000, 256
#: the family of plain means of the last checkpoints.
CHECKPOINTS = "checkpoints:last"
_EVALUATION, _OUTPUT = "Evaluation", "Output"
#: the options of Request that a sweep has too.
SWEPT = (TARGETS | SOLVING | SOURCES | {"format", "dtype", "jobs", "max_memory"}) - {"weights"}


@dataclass(frozen=True, slots=True, kw_only=True)
class SweepRequest:
    """What to evaluate and how; the help of each option says what it holds.

    Attributes:
        maximize: whether the highest metric is the best, instead of the lowest.
        search: the family in which the best length is searched, from a grid over what the snapshots
            allow on; None for that of power functions, where the request has no targets.
        refine: None for 8 further points where a grid is evaluated, else for none.
        baselines: whether the last weights and the stored averages are evaluated too.
        timeout: in seconds; None for no limit.
        request: the targets and how they are made. Without targets a grid over what the snapshots
            reach is evaluated. Its outputs go into ``output`` and replace others there.
        max_disk: in bytes; None for nine tenths of the free disk.
        log: file for what evaluations say on stderr, instead of phema's.
    """

    eval: str = option(
        "What to run on each, by the shell, with {path}, {gamma}, {sigma_rel}, {step}, {target}, "
        "{worker}, {repeat}.",
        group=_EVALUATION,
        metavar="CMD",
        required=True,
        common=True,
    )
    metric: str | None = option(
        "Regular expression whose last match, or its group, is the metric; by default the last "
        "number printed is.",
        group=_EVALUATION,
        metavar="REGEX",
    )
    metric_key: str | None = option(
        "Name of the metric in the JSON printed, dotted.", group=_EVALUATION, metavar="KEY"
    )
    maximize: bool = option(
        "Which metric is the best; the lowest.",
        default=False,
        group=_EVALUATION,
        flag="--maximize/--minimize",
    )
    refine: int | None = option(
        "Further points searched for the best; 8 after a grid of phema's, else 0.",
        group=_EVALUATION,
        metavar="N",
        type=int,
        least=0,
        common=True,
    )
    search: str | None = option(
        "Family to search: sigma_rel (the default without targets), uniform:last, decay:last, "
        "checkpoints:last; docs/sweep.md has more.",
        group=_EVALUATION,
        metavar="FAMILY",
    )
    repeat: int = option(
        "Evaluations of each target, where the metric has noise; {repeat} counts them from 0.",
        default=1,
        group=_EVALUATION,
        metavar="N",
        type=int,
        least=1,
        most=MOST_REPEATS,
    )
    parallel: int = option(
        "Evaluations at the same time; {worker} is 0 to N-1, for one GPU each.",
        default=1,
        group=_EVALUATION,
        metavar="N",
        type=int,
        least=1,
        most=MOST_WORKERS,
    )
    baselines: bool = option(
        "Don't evaluate the last weights and the stored averages.",
        default=True,
        group=_EVALUATION,
        flag="--no-baselines",
    )
    timeout: float | None = option(
        "Time after which an evaluation has failed: 90s, 30m, 2h.",
        group=_EVALUATION,
        metavar="TIME",
    )
    retry_failed: bool = option(
        "Run again what failed in an earlier run.", default=False, group=_EVALUATION
    )
    request: Request = part(Request, SWEPT)
    output: str = option(
        "Directory for the outputs and sweep.jsonl.",
        default="sweep",
        group=_OUTPUT,
        metavar="DIR",
        short="-o",
        common=True,
    )
    keep: Keep = option(
        "Which outputs stay: best, all, none.", default="best", group=_OUTPUT, type=Keep
    )
    max_disk: int | None = option(
        "Disk that outputs may take at a time; 90 % of what is free by default.",
        group=_OUTPUT,
        metavar="SIZE",
    )
    overwrite: bool = option("Forget an earlier sweep's results.", default=False, group=_OUTPUT)
    log: Path | None = None

    @property
    def scanned(self) -> Request:
        """The request whose needs the snapshots have to meet: a mean of checkpoints needs less."""
        if (self.search or "").startswith(CHECKPOINTS):
            lasting = (*self.request.profiles, f"{CHECKPOINTS}=1")
            return replace(self.request, profile=lasting)
        return self.request
