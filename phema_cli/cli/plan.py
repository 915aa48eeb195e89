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
#: snapshots of each gamma where nothing is said, and gammas that are chosen then.
_SNAPSHOTS, _NUMBER = 64, 2
_MOST = 1024

Steps = Annotated[
    str,
    options.option("--steps", help="Length of the run: 400000 or 400k.", panel=_RUN, metavar="N"),
]
Parameters = Annotated[
    str | None,
    options.option(
        "--parameters", help="Of the model: 280M, 1.2B. Gives sizes.", panel=_RUN, metavar="N"
    ),
]
Schedule = Annotated[
    str | None,
    options.option(
        "--schedule",
        help="Of the learning rate: constant, cosine, cosine:end=0.1, linear, wsd:last=0.2, "
        "rsqrt:start=0.06 (the default); or walk, what --no-sample assumes.",
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
        help="Gammas to store: 5,10. By default the best are found.",
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
        help="In which snapshots are stored: float16, bf16, ...",
        panel=_STORED,
        metavar="NAME",
    ),
]
Budget = Annotated[
    str | None,
    options.option(
        "--budget",
        help="Disk that snapshots may take, 200GB: the best gammas and number are found.",
        panel=_STORED,
        metavar="SIZE",
    ),
]
Range = Annotated[
    str,
    options.option(
        "--range",
        help="Targets that must be served, by sigma_rel: least and largest.",
        panel=_SERVED,
        metavar="LOW,HIGH",
    ),
]


@dataclass(frozen=True, slots=True)
class Stored:
    """What is to be stored, as far as it is said."""

    gammas: Gammas = None
    sigma_rels: SigmaRels = None
    snapshots: Snapshots = None
    every: Every = None
    dtype: Dtype = "float16"
    budget: Budget = None


@dataclass(frozen=True, slots=True)
class Run:
    """The run that is planned."""

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

    What is left open is chosen, so that the worst target of --range is met best. Figures are those
    that inspect will show, as far as the run moves as assumed.

    Examples:
      What is best within a budget:
        $ phema plan --steps 400k --parameters 280M --budget 50GB

      What gammas 5 and 10 reach, stored every 10,000 steps:
        $ phema plan --steps 400k --parameters 280M --gammas 5,10 --every 10k

      A run that moves as an earlier one did:
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
    made = figures(chosen, reachable.GRID, assumed)
    entry = plan_report.entry(chosen, made, aim, sizes)
    if json:
        known = {
            "schedule": None if run.like else run.schedule or DEFAULT_SCHEDULE,
            "like": run.like,
        }
        render.document("plan", plan_report.document(aim, sizes, known, entry, made))
        return
    if not (run.schedule or run.like):
        render.findings([_assumed_notice()], stderr=True, quiet=quiet)
    plan_report.show(entry, sizes, chosen, aim)
    reachable.show(made, aim.steps, "blue")
    plan_report.show_figures(made, measured=run.like is not None)
    plan_report.show_loop(chosen, dtype)


def _assumed_notice() -> Finding:
    """What is said where nothing is known of the run."""
    from phema_cli.snapshots import Finding

    remedy = "pass --schedule, or better --like and an earlier run's snapshots"
    return Finding(
        "notice", InputError("assumes that the learning rate falls by rsqrt", remedy=remedy)
    )


def _assume(run: Run, steps: int, dtype: DType) -> tuple[Assumption, int | None]:
    """How the weights will move, and how many there are.

    Raises:
        UsageError: no such schedule, or a schedule beside an earlier run.
        InputError: the earlier run's snapshots say nothing.
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
        raise UsageError("--schedule and --like say two things", remedy="pass one of them")
    return _like(run.like, steps, dtype, parameters)


def _like(
    path: str, steps: int, dtype: DType, parameters: int | None
) -> tuple[Assumption, int | None]:
    """The same by the snapshots of an earlier run."""
    from phema_cli.estimate.solve import measure, stored_noise
    from phema_cli.snapshots import Config, scan
    from phema_cli.snapshots.base import reference
    from phema_cli.solver import storage_noise
    from phema_cli.solver.assumptions import Assumption, earlier

    found = scan([path], Config())
    snapshots = found.require()
    movement = measure(snapshots, copy=found.copy, trust_tags=True).movement
    if movement is None:
        raise InputError("too little to measure movement by", where=path, remedy="pass --schedule")
    newest = snapshots[-1]
    coarser = storage_noise(dtype.mantissa_bits) / stored_noise(snapshots)
    moved = earlier(movement, newest.tag.profile.end, steps, coarser)
    return Assumption(moved), parameters or reference(snapshots).checkpoint.parameters


def _aim(steps: int, served: str, assumed: Assumption) -> Aim:
    """What is to be served.

    Raises:
        UsageError: not a range of sigma_rel.
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
    """The plan that was asked for; what is left open is chosen.

    Raises:
        UsageError: two options say the same thing, or too few or too many snapshots are left.
    """
    from phema_cli.profiles import gamma_from_sigma_rel
    from phema_cli.solver.planning import Plan, best_gammas, best_plan, evenly

    if stored.gammas and stored.sigma_rels:
        raise UsageError("--gammas and --sigma-rels say the same thing", remedy="pass one of them")
    if (stored.snapshots, stored.every, most).count(None) < 2:  # noqa: PLR2004 - all but one
        raise UsageError(
            "--snapshots, --every and --budget each say how many", remedy="pass one of them"
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
        raise UsageError(f"--every {every} gives {count} snapshots", remedy=f"1 to {_MOST} will do")
    return Plan(aim.steps, tuple(sorted(gammas)) or best_gammas(aim, _NUMBER, count), every)
