"""``phema plan``: before training, which snapshots to store, what they will reach and cost."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from phema_cli.cli import options, plan_report, reachable, render
from phema_cli.errors import InputError, UsageError
from phema_cli.options import option
from phema_cli.request import GRID, Config, Request

if TYPE_CHECKING:
    from phema_cli.formats.base import DType
    from phema_cli.snapshots import Finding
    from phema_cli.solver.assumptions import Assumption
    from phema_cli.solver.planning import Aim, Plan

#: snapshots of each gamma that a plan may have.
_MOST_SNAPSHOTS = 1024
#: snapshots of each gamma where nothing is said, and gammas that are chosen then.
_SNAPSHOTS, _NUMBER = 64, 2

_RUN, _STORED, _SERVED = "Run", "Snapshots", "Targets"


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanRequest:
    """A run that is planned, what is to be stored and which targets must be served.

    Attributes:
        steps: length of the run.
        parameters: of the model.
        schedule: of the learning rate, or how weights move.
        like: snapshots of an earlier run.
        gammas: exponents to store.
        sigma_rels: the same by sigma_rel.
        snapshots: of each gamma.
        every: steps between snapshots.
        dtype: in which they are stored.
        budget: bytes that they may take.
        range: least and largest sigma_rel of the targets.
    """

    steps: int = option(
        "Length of the run: 400000 or 400k.", group=_RUN, metavar="COUNT", required=True
    )
    parameters: int | None = option(
        "Of the model: 280M, 1.2B. Gives sizes.", group=_RUN, metavar="COUNT"
    )
    schedule: str | None = option(
        "Of the learning rate: constant, cosine, cosine:end=0.1, linear, wsd:last=0.2, "
        "rsqrt:start=0.06 (the default); or walk, what --no-sample assumes.",
        group=_RUN,
        metavar="NAME",
    )
    like: str | None = option(
        "Snapshots of an earlier run of the same kind, to measure how weights move.",
        group=_RUN,
        metavar="PATH",
    )
    gammas: tuple[float, ...] = option(
        "Gammas to store: 5,10. By default the best are found.",
        default=(),
        group=_STORED,
        metavar="LIST",
    )
    sigma_rels: tuple[float, ...] = option(
        "The same by sigma_rel.", default=(), group=_STORED, metavar="LIST"
    )
    snapshots: int | None = option(
        "Snapshots of each gamma; 64 by default.",
        group=_STORED,
        metavar="N",
        type=int,
        least=1,
        most=_MOST_SNAPSHOTS,
    )
    every: int | None = option("Steps between snapshots.", group=_STORED, metavar="COUNT")
    dtype: str = option(
        "In which snapshots are stored: float16, bf16, ...",
        default="float16",
        group=_STORED,
        metavar="TYPE",
    )
    budget: int | None = option(
        "Disk that snapshots may take, 200GB: the best gammas and number are found.",
        group=_STORED,
        metavar="SIZE",
    )
    range: tuple[float, ...] = option(
        "Targets that must be served, by sigma_rel: least and largest.",
        default=(0.03, 0.2),
        group=_SERVED,
        metavar="LOW,HIGH",
    )


@options.command
def plan(
    *,
    asked: PlanRequest,
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

    dtype = find_dtype(asked.dtype)
    assumed, parameters = _assume(asked, dtype)
    aim = _aim(asked, assumed)
    sizes = plan_report.Sizes(dtype, parameters)
    most = None if asked.budget is None else sizes.affordable(asked.budget)
    chosen = _choose(aim, asked, most)
    made = figures(chosen, GRID, assumed)
    entry = plan_report.entry(chosen, made, aim, sizes)
    if json:
        known = {
            "schedule": None if asked.like else asked.schedule or DEFAULT_SCHEDULE,
            "like": asked.like,
        }
        render.document("plan", plan_report.document(aim, sizes, known, entry, made))
        return
    if not (asked.schedule or asked.like):
        render.findings([_assumed_notice()], stderr=True, quiet=quiet)
    plan_report.show(entry, sizes, chosen, aim)
    reachable.show(made, aim.steps, "blue")
    plan_report.show_figures(made, measured=asked.like is not None)
    plan_report.show_loop(chosen, dtype)


def _assumed_notice() -> Finding:
    """What is said where nothing is known of the run."""
    from phema_cli.snapshots import Finding

    remedy = "pass --schedule, or better --like and an earlier run's snapshots"
    return Finding(
        "notice", InputError("assumes that the learning rate falls by rsqrt", remedy=remedy)
    )


def _assume(asked: PlanRequest, dtype: DType) -> tuple[Assumption, int | None]:
    """How the weights will move, and how many there are.

    Raises:
        UsageError: no such schedule, or a schedule beside an earlier run.
        InputError: the earlier run's snapshots say nothing.
    """
    from phema_cli.solver import storage_noise
    from phema_cli.solver.assumptions import DEFAULT_SCHEDULE, Assumption, parse_schedule, scheduled

    parameters = asked.parameters
    if asked.like is None:
        rate = parse_schedule(asked.schedule or DEFAULT_SCHEDULE)
        if rate is None:
            return Assumption(None, storage_noise(dtype.mantissa_bits)), parameters
        return Assumption(scheduled(rate, asked.steps, dtype.mantissa_bits)), parameters
    if asked.schedule is not None:
        raise UsageError("--schedule and --like say two things", remedy="pass one of them")
    return _like(asked.like, asked.steps, dtype, parameters)


def _like(
    path: str, steps: int, dtype: DType, parameters: int | None
) -> tuple[Assumption, int | None]:
    """The same by the snapshots of an earlier run."""
    from phema_cli.estimate.solve import measure, stored_noise
    from phema_cli.snapshots import scan
    from phema_cli.snapshots.base import reference
    from phema_cli.solver import storage_noise
    from phema_cli.solver.assumptions import Assumption, earlier

    found = scan([path], Config(trust_tags=True))
    snapshots = found.require()
    movement = measure(found, Request()).movement
    if movement is None:
        raise InputError("too little to measure movement by", where=path, remedy="pass --schedule")
    newest = snapshots[-1]
    coarser = storage_noise(dtype.mantissa_bits) / stored_noise(snapshots)
    moved = earlier(movement, newest.tag.profile.end, steps, coarser)
    return Assumption(moved), parameters or reference(snapshots).checkpoint.parameters


def _aim(asked: PlanRequest, assumed: Assumption) -> Aim:
    """What is to be served.

    Raises:
        UsageError: not a range of sigma_rel.
    """
    from phema_cli.profiles import gamma_from_sigma_rel
    from phema_cli.solver.planning import Aim

    low, high = asked.range
    for end in (low, high):
        gamma_from_sigma_rel(end)
    return Aim(asked.steps, low, high, assumed)


def _choose(aim: Aim, asked: PlanRequest, most: int | None) -> Plan:
    """The plan that was asked for; what is left open is chosen.

    Raises:
        UsageError: two options say the same thing, or too few or too many snapshots are left.
    """
    from phema_cli.profiles import gamma_from_sigma_rel
    from phema_cli.solver.planning import Plan, best_gammas, best_plan, evenly

    if asked.gammas and asked.sigma_rels:
        raise UsageError("--gammas and --sigma-rels say the same thing", remedy="pass one of them")
    if (asked.snapshots, asked.every, most).count(None) < 2:  # noqa: PLR2004 - all but one
        raise UsageError(
            "--snapshots, --every and --budget each say how many", remedy="pass one of them"
        )
    gammas = asked.gammas or tuple(gamma_from_sigma_rel(s) for s in asked.sigma_rels)
    if most is not None:
        return best_plan(aim, most, gammas)
    if asked.every is None:
        count = min(asked.snapshots or _SNAPSHOTS, aim.steps)
        return evenly(aim.steps, gammas or best_gammas(aim, _NUMBER, count), count)
    count = aim.steps // asked.every
    if not 1 <= count <= _MOST_SNAPSHOTS:
        raise UsageError(
            f"--every {asked.every} gives {count} snapshots",
            remedy=f"1 to {_MOST_SNAPSHOTS} will do",
        )
    return Plan(aim.steps, tuple(sorted(gammas)) or best_gammas(aim, _NUMBER, count), asked.every)
