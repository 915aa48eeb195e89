"""``phema plan``: before training, which snapshots to store, what they will reach and cost."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING

from phema_cli.cli import options, plan_keep, plan_report, render
from phema_cli.cli.plan_report import Report, Sizes
from phema_cli.errors import InputError, UsageError
from phema_cli.options import option, typed
from phema_cli.request import GRID

if TYPE_CHECKING:
    from phema_cli.formats.base import DType
    from phema_cli.snapshots import Finding
    from phema_cli.solver.assumptions import Assumption
    from phema_cli.solver.planning import Aim, Plan

#: snapshots of each gamma that a plan may have.
_MOST_SNAPSHOTS = 1024
#: snapshots of each gamma, and number of gammas, by default.
_SNAPSHOTS, _NUMBER = 64, 2
#: type of the snapshots, by default.
_DTYPE = "float16"

#: options that count with --keep.
_KEEPING = {"like", "keep", "range"}

_RUN, _STORED, _SERVED = "Run", "Snapshots", "Targets"


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanRequest:
    """A run, what to store of it, and the targets to plan for.

    The help of each option says what it holds. None, an empty tuple and 0 steps are left open;
    ``budget`` is in bytes. With ``keep`` nothing but the snapshots to remove is planned.
    """

    steps: int = option(
        "Length of the run: 400000 or 400k; with --like, as long by default.",
        default=0,
        group=_RUN,
        metavar="COUNT",
        common=True,
    )
    parameters: int | None = option(
        "Parameters of the model, for sizes: 280M, 1.2B.",
        group=_RUN,
        metavar="COUNT",
        common=True,
    )
    schedule: str | None = option(
        "Schedule of the learning rate: constant, cosine, cosine:end=0.1, linear, "
        "wsd:last=0.2, rsqrt:start=0.06; or walk, which --no-sample assumes.",
        group=_RUN,
        metavar="NAME",
        common=True,
    )
    like: str | None = option(
        "Snapshots of an earlier run of the same kind, to measure how weights move.",
        group=_RUN,
        metavar="PATH",
        common=True,
    )
    keep: int | None = option(
        "With --like: name the checkpoints of that run which may go at the least loss, but for N.",
        group=_RUN,
        metavar="N",
        type=int,
        least=2,
        variable="PHEMA_PLAN_KEEP",
    )
    gammas: tuple[float, ...] = option(
        "Gammas to store: 5,10; phema finds the best by default.",
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
    dtype: str | None = option(
        "Type of the stored snapshots: float16 (the default), bf16, ...",
        group=_STORED,
        metavar="TYPE",
    )
    packing: int | None = option(
        "Bits of packed snapshots: 16, 8 or 4, as PowerEMA.save and phema pack write them.",
        group=_STORED,
        metavar="16|8|4",
        type=int,
    )
    budget: int | None = option(
        "Disk space for all snapshots, 200GB: phema finds the best gammas and number.",
        group=_STORED,
        metavar="SIZE",
        common=True,
    )
    range: tuple[float, float] = option(
        "Targets to plan for, by sigma_rel: least and largest.",
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

    phema chooses what you leave open so that the error of the worst target in --range is least.
    The figures are those that inspect will show, if the weights move as assumed.

    Examples:
      What is best within a budget:
        $ phema plan --like ckpts/ --steps 400k --budget 50GB

      The same without an earlier run:
        $ phema plan --steps 400k --parameters 280M --schedule cosine --budget 50GB

      What gammas 5 and 10 reach, stored every 10,000 steps:
        $ phema plan --like ckpts/ --steps 400k --gammas 5,10 --every 10k

      Which checkpoints of a run may go, when disk is short:
        $ phema plan --like ckpts/ --keep 4
    """
    from phema_cli.solver.assumptions import WALK

    if asked.keep is not None:
        if asked.like is None:
            raise UsageError("--keep needs a run", remedy="pass --like RUN")
        others = typed(asked, frozenset(f.name for f in fields(asked)) - _KEEPING)
        if others:
            raise UsageError("--keep plans nothing", remedy=f"leave {others[0]} out")
        plan_keep.show(asked.like, asked.keep, asked.range, json=json, quiet=quiet)
        return
    if asked.like is None and not asked.steps:
        raise UsageError("nothing says how long the run is", remedy="pass --steps or --like")
    report = _report(asked, quiet=quiet)
    if json:
        assumptions = {"schedule": asked.schedule, "like": asked.like}
        render.document("plan", plan_report.document(report, assumptions))
        return
    if asked.schedule not in {None, WALK}:
        render.findings([_assumed_notice()], stderr=True, quiet=quiet)
    plan_report.show(report, measured=asked.like is not None)


def _report(asked: PlanRequest, *, quiet: bool) -> Report:
    """The plan that was asked for, and what packed snapshots would reach within its budget."""
    from phema_cli.formats.packing import BITS, FOLLOWED, KEYFRAME_EVERY
    from phema_cli.solver.assumptions import Packing, packed_instead
    from phema_cli.solver.planning import best_plan, figures
    from phema_cli.synthesis import find_dtype

    if asked.packing not in {None, *BITS}:
        raise UsageError(f"--packing {asked.packing} is unknown", remedy="pass 16, 8 or 4")
    if asked.packing is not None and asked.dtype is not None:
        raise UsageError("--packing replaces --dtype", remedy="pass one of them")
    dtype = find_dtype(asked.dtype or _DTYPE)
    assumed, parameters, steps = _assume(asked, dtype, quiet=quiet)
    asked = replace(asked, steps=steps)

    def stored_in(bits: int | None) -> tuple[Aim, Sizes]:
        """The aim and the sizes of snapshots that are whole, or packed in so many bits."""
        if bits is None:
            return _aim(asked, assumed), Sizes(dtype, parameters)
        packing = Packing(bits, FOLLOWED, KEYFRAME_EVERY)
        aim = _aim(asked, packed_instead(assumed, dtype.mantissa_bits, packing))
        return aim, Sizes(find_dtype("float32"), parameters, packing)

    aim, sizes = stored_in(asked.packing)
    most = None if asked.budget is None else sizes.affordable(asked.budget)
    plan = _choose(aim, asked, most)
    packed: list[Report] = []
    if asked.budget is not None and asked.packing is None:
        for bits in BITS:
            other, smaller = stored_in(bits)
            files = smaller.affordable(asked.budget)
            if files >= plan.files:
                packed.append(Report(best_plan(other, files, plan.gammas), other, smaller))
    reach = dict(zip(GRID, figures(plan, GRID, aim.assumed), strict=True))
    return Report(plan, aim, sizes, reach, packed)


def _assumed_notice() -> Finding:
    """The notice for a run of which only the schedule is known."""
    from phema_cli.snapshots import Finding

    error = InputError(
        "a schedule does not say how far the weights move, so errors may be off by a factor of 2",
        remedy="pass --like instead where there are snapshots of an earlier run",
    )
    return Finding("notice", error)


def _assume(asked: PlanRequest, dtype: DType, *, quiet: bool) -> tuple[Assumption, int | None, int]:
    """How the weights will move, the number of parameters where it is known, and of steps."""
    from phema_cli.solver import storage_noise
    from phema_cli.solver.assumptions import Assumption, parse_schedule, scheduled

    parameters = asked.parameters
    if asked.like is None:
        if asked.schedule is None:
            raise UsageError(
                "a plan needs to know how the weights will move",
                remedy="pass --like and an earlier run's snapshots, or --schedule, such as cosine",
            )
        rate = parse_schedule(asked.schedule)
        if rate is None:
            return Assumption(None, storage_noise(dtype.mantissa_bits)), parameters, asked.steps
        moved = scheduled(rate, asked.steps, dtype.mantissa_bits)
        return Assumption(moved), parameters, asked.steps
    if asked.schedule is not None:
        raise UsageError("--schedule and --like contradict each other", remedy="pass one of them")
    return _assume_like(asked.like, asked.steps, dtype, parameters, quiet=quiet)


def _assume_like(
    path: str, steps: int, dtype: DType, parameters: int | None, *, quiet: bool
) -> tuple[Assumption, int | None, int]:
    """The same from the snapshots of an earlier run."""
    from phema_cli.estimate.solve import stored_noise
    from phema_cli.profiles import stored_at
    from phema_cli.snapshots.base import reference
    from phema_cli.solver import storage_noise
    from phema_cli.solver.assumptions import Assumption, earlier

    snapshots, movement = plan_keep.measured(path, "pass --schedule instead", quiet=quiet)
    newest = snapshots[-1]
    coarser = storage_noise(dtype.mantissa_bits) / stored_noise(snapshots)
    end = stored_at(newest.tag.profile)
    moved = earlier(movement, end, steps or end, coarser)
    size = parameters or reference(snapshots).checkpoint.parameters
    return Assumption(moved), size, steps or int(end)


def _aim(asked: PlanRequest, assumed: Assumption) -> Aim:
    """The targets to plan for."""
    from phema_cli.profiles import gamma_from_sigma_rel
    from phema_cli.solver.planning import Aim

    for end in asked.range:
        # Refuses what is no sigma_rel.
        gamma_from_sigma_rel(end)
    return Aim(asked.steps, *asked.range, assumed)


def _choose(aim: Aim, asked: PlanRequest, most: int | None) -> Plan:
    """The plan that is asked for, of at most ``most`` files; what is left open is chosen."""
    from phema_cli.profiles import gamma_from_sigma_rel
    from phema_cli.solver.planning import Plan, best_gammas, best_plan, evenly

    if asked.gammas and asked.sigma_rels:
        raise UsageError("--gammas and --sigma-rels say the same thing", remedy="pass one of them")
    if (asked.snapshots, asked.every, most).count(None) < 2:  # noqa: PLR2004 - all but one
        raise UsageError(
            "--snapshots, --every and --budget each set the number of snapshots",
            remedy="pass one of them",
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
            remedy=f"1 to {_MOST_SNAPSHOTS} are possible",
        )
    return Plan(aim.steps, tuple(sorted(gammas)) or best_gammas(aim, _NUMBER, count), asked.every)
