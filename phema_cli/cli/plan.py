"""``phema plan``: before training, which snapshots to store, what they will reach and cost."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from phema_cli.cli import groups, options, parsing, plan_report, reachable, render
from phema_cli.errors import InputError, UsageError

if TYPE_CHECKING:
    from phema_cli.formats.base import DType
    from phema_cli.snapshots import Finding
    from phema_cli.solver.assumptions import Assumption
    from phema_cli.solver.planning import Aim, Plan

_RUN, _STORED, _SERVED = "Run", "Snapshots", "Targets"
#: snapshots of each gamma, and number of gammas, by default.
_SNAPSHOTS, _NUMBER = 64, 2
_MOST = 1024

Steps = Annotated[
    str,
    options.option("--steps", help="Length of the run: 400000 or 400k.", panel=_RUN, metavar="N"),
]
Parameters = Annotated[
    str | None,
    options.option(
        "--parameters",
        help="Parameters of the model, for sizes: 280M, 1.2B.",
        panel=_RUN,
        metavar="N",
    ),
]
Schedule = Annotated[
    str | None,
    options.option(
        "--schedule",
        help="Schedule of the learning rate: constant, cosine, cosine:end=0.1, linear, "
        "wsd:last=0.2, rsqrt:start=0.06 (the default); or walk, which --no-sample assumes.",
        panel=_RUN,
        metavar="NAME",
    ),
]
Like = Annotated[
    str | None,
    options.option(
        "--like",
        help="Snapshots of an earlier run of the same kind, to measure how weights move.",
        panel=_RUN,
        metavar="PATH",
    ),
]
Gammas = Annotated[
    list[str] | None,
    options.option(
        "--gammas",
        help="Gammas to store: 5,10; phema finds the best by default.",
        panel=_STORED,
        metavar="LIST",
    ),
]
SigmaRels = Annotated[
    list[str] | None,
    options.option("--sigma-rels", help="The same by sigma_rel.", panel=_STORED, metavar="LIST"),
]
Snapshots = Annotated[
    int | None,
    options.option(
        "--snapshots",
        help="Snapshots of each gamma; 64 by default.",
        panel=_STORED,
        min=1,
        max=_MOST,
        metavar="N",
    ),
]
Every = Annotated[
    str | None,
    options.option("--every", help="Steps between snapshots.", panel=_STORED, metavar="N"),
]
Dtype = Annotated[
    str,
    options.option(
        "--dtype",
        help="Type of the stored snapshots: float16, bf16, ...",
        panel=_STORED,
        metavar="NAME",
    ),
]
Budget = Annotated[
    str | None,
    options.option(
        "--budget",
        help="Disk space for all snapshots, 200GB: phema finds the best gammas and number.",
        panel=_STORED,
        metavar="SIZE",
    ),
]
Range = Annotated[
    str,
    options.option(
        "--range",
        help="Targets to plan for, by sigma_rel: least and largest.",
        panel=_SERVED,
        metavar="LOW,HIGH",
    ),
]


@dataclass(frozen=True, slots=True)
class Stored:
    """What to store; None where it is left open."""

    gammas: Gammas = None
    sigma_rels: SigmaRels = None
    snapshots: Snapshots = None
    every: Every = None
    dtype: Dtype = "float16"
    budget: Budget = None


@dataclass(frozen=True, slots=True)
class Run:
    """What is known of the run."""

    parameters: Parameters = None
    schedule: Schedule = None
    like: Like = None


@groups.spread
def plan(
    *,
    steps: Steps,
    run: Run,
    stored: Stored,
    served: Range = "0.03,0.20",
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Plan a run: which snapshots to store, which targets they will reach, what they cost.

    phema chooses what you leave open so that the error of the worst target in --range is least.
    The figures are those that inspect will show, if the weights move as assumed.

    Examples:
      What is best within a budget:
        $ phema plan --steps 400k --parameters 280M --budget 50GB

      What gammas 5 and 10 reach, stored every 10,000 steps:
        $ phema plan --steps 400k --parameters 280M --gammas 5,10 --every 10k

      A run whose weights move as in an earlier one:
        $ phema plan --steps 4000 --like ckpts/
    """
    from phema_cli.solver.assumptions import DEFAULT_SCHEDULE
    from phema_cli.solver.planning import figures
    from phema_cli.synthesis import find_dtype

    dtype = find_dtype(stored.dtype)
    assumed, parameters = _assume(run, parsing.count(steps), dtype)
    aim = _aim(parsing.count(steps), served, assumed)
    sizes = plan_report.Sizes(dtype, parameters)
    budget = parsing.size(stored.budget)
    most = None if budget is None else sizes.affordable(budget)
    chosen = _choose(aim, stored, most)
    grid = reachable.GRID
    reach = dict(zip(grid, figures(chosen, grid, assumed), strict=True))
    report = plan_report.Report(chosen, aim, sizes, reach)
    if json:
        schedule = None if run.like else run.schedule or DEFAULT_SCHEDULE
        assumptions = {"schedule": schedule, "like": run.like}
        render.document("plan", plan_report.document(report, assumptions))
        return
    if not (run.schedule or run.like):
        render.findings([_assumed_notice()], stderr=True, quiet=quiet)
    plan_report.show(report, measured=run.like is not None)


def _assumed_notice() -> Finding:
    """The notice for a run that the user says nothing about."""
    from phema_cli.snapshots import Finding

    error = InputError(
        "the plan assumes the learning-rate schedule rsqrt",
        remedy="pass --schedule, or better --like and an earlier run's snapshots",
    )
    return Finding("notice", error)


def _assume(run: Run, steps: int, dtype: DType) -> tuple[Assumption, int | None]:
    """How the weights will move, and the number of parameters where it is known.

    Raises:
        UsageError: an unknown schedule, or a schedule beside an earlier run.
        InputError: the movement of the earlier run can't be measured.
    """
    from phema_cli.solver import storage_noise
    from phema_cli.solver.assumptions import DEFAULT_SCHEDULE, Assumption, parse_schedule, scheduled

    parameters = None if run.parameters is None else parsing.count(run.parameters)
    if run.like is None:
        rate = parse_schedule(run.schedule or DEFAULT_SCHEDULE)
        if rate is None:
            return Assumption(None, storage_noise(dtype.mantissa_bits)), parameters
        return Assumption(scheduled(rate, steps, dtype.mantissa_bits)), parameters
    if run.schedule is not None:
        raise UsageError("--schedule and --like contradict each other", remedy="pass one of them")
    return _assume_like(run.like, steps, dtype, parameters)


def _assume_like(
    path: str, steps: int, dtype: DType, parameters: int | None
) -> tuple[Assumption, int | None]:
    """The same from the snapshots of an earlier run."""
    from phema_cli.estimate.solve import measure, stored_noise
    from phema_cli.snapshots import Config, scan
    from phema_cli.snapshots.consistency import reference
    from phema_cli.solver import storage_noise
    from phema_cli.solver.assumptions import Assumption, earlier

    earlier_run = scan([path], Config())
    snapshots = earlier_run.require()
    movement = measure(snapshots, copy=earlier_run.copy, trust_tags=True).movement
    if movement is None:
        raise InputError(
            "these snapshots are too few to measure how weights move",
            where=path,
            remedy="pass --schedule instead",
        )
    newest = snapshots[-1]
    coarser = storage_noise(dtype.mantissa_bits) / stored_noise(snapshots)
    moved = earlier(movement, newest.tag.profile.end, steps, coarser)
    return Assumption(moved), parameters or reference(snapshots).checkpoint.parameters


def _aim(steps: int, served: str, assumed: Assumption) -> Aim:
    """The targets to plan for.

    Raises:
        UsageError: ``served`` is not a range of sigma_rel.
    """
    from phema_cli.profiles import gamma_from_sigma_rel
    from phema_cli.solver.planning import Aim

    ends = parsing.numbers([served])
    if len(ends) != 2 or not ends[0] < ends[1]:  # noqa: PLR2004 - a range has two ends
        raise UsageError(f"{served!r} is not a range of sigma_rel", remedy="write 0.03,0.20")
    for end in ends:
        gamma_from_sigma_rel(end)
    return Aim(steps, ends[0], ends[1], assumed)


def _choose(aim: Aim, stored: Stored, most: int | None) -> Plan:
    """The plan that the options ask for; what they leave open is chosen.

    Args:
        aim: the targets to plan for.
        stored: the options.
        most: files that the budget allows; None without a budget.

    Raises:
        UsageError: two options say the same thing, or there are too few or too many snapshots.
    """
    from phema_cli.profiles import gamma_from_sigma_rel
    from phema_cli.solver.planning import Plan, best_gammas, best_plan, evenly

    if stored.gammas and stored.sigma_rels:
        raise UsageError("--gammas and --sigma-rels say the same thing", remedy="pass one of them")
    if (stored.snapshots, stored.every, most).count(None) < 2:  # noqa: PLR2004 - all but one
        raise UsageError(
            "--snapshots, --every and --budget each set the number of snapshots",
            remedy="pass one of them",
        )
    gammas = parsing.numbers(stored.gammas) or tuple(
        gamma_from_sigma_rel(s) for s in parsing.numbers(stored.sigma_rels)
    )
    if most is not None:
        return best_plan(aim, most, gammas)
    if stored.every is None:
        count = min(stored.snapshots or _SNAPSHOTS, aim.steps)
        return evenly(aim.steps, gammas or best_gammas(aim, _NUMBER, count), count)
    every = parsing.count(stored.every)
    count = aim.steps // every
    if not 1 <= count <= _MOST:
        raise UsageError(
            f"--every {every} gives {count} snapshots", remedy=f"1 to {_MOST} are possible"
        )
    return Plan(aim.steps, tuple(sorted(gammas)) or best_gammas(aim, _NUMBER, count), every)
