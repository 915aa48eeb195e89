"""What can be asked of a sweep: its options, each declared once."""

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal

from phema_cli.options import option, output_option, part
from phema_cli.request import SOLVING, SOURCES, TARGETS, Request

Keep = Literal["best", "all", "none"]

#: evaluations of one target, and at the same time.
MOST_REPEATS, MOST_WORKERS = 1000, 256
#: the family of plain means of the last checkpoints.
CHECKPOINTS = "checkpoints:last"
_eval_option = partial(option, group="Evaluation")
#: the options of Request that a sweep has too.
SWEPT = (TARGETS | SOLVING | SOURCES | {"format", "dtype", "jobs", "max_memory"}) - {"weights"}


@dataclass(frozen=True, slots=True, kw_only=True)
class SweepRequest:
    """What to evaluate and how; the help of each option says what it holds.

    Attributes:
        maximize: whether the highest metric is the best, instead of the lowest.
        search: the family in which the best length is searched, from a grid over what the snapshots
            allow on; None for that of power functions, where the request has no targets.
        baselines: whether the last weights and the stored averages are evaluated too.
        timeout: in seconds; None for no limit.
        request: the targets and how they are made. Without targets a grid over what the snapshots
            reach is evaluated. Its outputs go into ``output`` and replace others there.
        max_disk: in bytes; None for nine tenths of the free disk.
        log: file for what evaluations say on stderr, instead of phema's.
    """

    eval: str = _eval_option(
        "What to run on each, by the shell, with {path}, {gamma}, {sigma_rel}, {step}, {target}, "
        "{worker}, {repeat}.",
        metavar="CMD",
        required=True,
        common=True,
    )
    metric: str | None = _eval_option(
        "Regular expression whose last match, or its group, is the metric; by default the last "
        "number printed is.",
        metavar="REGEX",
    )
    metric_key: str | None = _eval_option(
        "Name of the metric in the JSON printed, dotted.", metavar="KEY"
    )
    maximize: bool = _eval_option(
        "Which metric is the best; the lowest.", default=False, flag="--maximize/--minimize"
    )
    refine: int | None = _eval_option(
        "Further points searched for the best; 8 after a grid of phema's, else 0.",
        metavar="N",
        type=int,
        least=0,
        common=True,
    )
    search: str | None = _eval_option(
        "Family to search: sigma_rel (the default without targets), uniform:last, decay:last, "
        "checkpoints:last; docs/sweep.md has more.",
        metavar="FAMILY",
    )
    repeat: int = _eval_option(
        "Evaluations of each target, where the metric has noise; {repeat} counts them from 0.",
        default=1,
        metavar="N",
        type=int,
        least=1,
        most=MOST_REPEATS,
    )
    parallel: int = _eval_option(
        "Evaluations at the same time; {worker} is 0 to N-1, for one GPU each.",
        default=1,
        metavar="N",
        type=int,
        least=1,
        most=MOST_WORKERS,
    )
    baselines: bool = _eval_option(
        "Don't evaluate the last weights and the stored averages.",
        default=True,
        flag="--no-baselines",
    )
    timeout: float | None = _eval_option(
        "Time after which an evaluation has failed: 90s, 30m, 2h.", metavar="TIME"
    )
    retry_failed: bool = _eval_option("Run again what failed in an earlier run.", default=False)
    request: Request = part(Request, SWEPT)
    output: str = output_option(
        "Directory for the outputs and sweep.jsonl.",
        default="sweep",
        metavar="DIR",
        short="-o",
        common=True,
    )
    keep: Keep = output_option("Which outputs stay: best, all, none.", default="best", type=Keep)
    max_disk: int | None = output_option(
        "Disk that outputs may take at a time; 90 % of what is free by default.", metavar="SIZE"
    )
    overwrite: bool = output_option("Forget an earlier sweep's results.", default=False)
    log: Path | None = None

    @property
    def scanned(self) -> Request:
        """The request whose needs the snapshots have to meet: a mean of checkpoints needs less."""
        if (self.search or "").startswith(CHECKPOINTS):
            lasting = (*self.request.profiles, f"{CHECKPOINTS}=1")
            return replace(self.request, profile=lasting)
        return self.request
