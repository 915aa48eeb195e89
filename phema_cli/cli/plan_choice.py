"""What a plan stores: as asked for, and what is left open as it is best."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from phema_cli.cli import reachable
from phema_cli.cli.plan_keep import measured
from phema_cli.cli.plan_request import MOST_SNAPSHOTS, PlanRequest
from phema_cli.errors import UsageError
from phema_cli.estimate.solve import stored_noise
from phema_cli.formats.base import DType
from phema_cli.formats.packing import BITS, FOLLOWED, KEYFRAME_EVERY, packed_specs
from phema_cli.profiles import gamma_from_sigma_rel, sigma_rel_from_gamma, stored_at
from phema_cli.request import GRID
from phema_cli.snapshots.base import reference
from phema_cli.solver import Figures, storage_noise
from phema_cli.solver.assumptions import (
    Assumption,
    Packing,
    earlier,
    packed_instead,
    parse_schedule,
    scheduled,
)
from phema_cli.solver.planning import (
    MOST_FILES,
    Aim,
    Plan,
    best_gammas,
    best_plan,
    evenly,
    figures,
    worst_error,
)
from phema_cli.synthesis import find_dtype

#: part of a file that its header takes, at most.
_HEADER = 1e-3
#: snapshots of each gamma, and number of gammas, by default.
_SNAPSHOTS, _NUMBER = 64, 2
#: type of the snapshots, by default.
_DTYPE = "float16"


@dataclass(frozen=True, slots=True)
class Sizes:
    """What snapshots cost.

    Attributes:
        dtype: type that they are stored in; of packed ones, that of their keyframes.
        parameters: of the model, where they are known.
        packing: how they are packed; None where they are whole.
    """

    dtype: DType
    parameters: int | None
    packing: Packing | None = None

    @property
    def bits(self) -> int | None:
        """Of an element of a packed snapshot."""
        return None if self.packing is None else self.packing.bits

    @property
    def file_bytes(self) -> int | None:
        """Bytes of one snapshot, of a packed one that is no keyframe, without its header."""
        if self.parameters is None:
            return None
        if self.packing is None:
            return self.dtype.size_bytes(self.parameters)
        specs = packed_specs("", self.parameters, self.packing.bits).values()
        return sum(dtype.size_bytes(count) for dtype, (count,) in specs)

    def all_bytes(self, files: int) -> int | None:
        """Bytes of so many snapshots without their headers."""
        one = self.file_bytes
        if one is None or self.parameters is None:
            return None
        keyframes = 0 if self.packing is None else self.packing.keyframes(files)
        return one * (files - keyframes) + self.dtype.size_bytes(self.parameters) * keyframes

    def affordable(self, budget_bytes: int) -> int:
        """Number of snapshots that a budget holds; no more than a plan may have.

        Raises:
            UsageError: the size of the model is not known.
        """
        if self.parameters is None:
            raise UsageError("--budget needs the size of the model", remedy="pass --parameters")
        most = budget_bytes / (1 + _HEADER)
        counts = range(1, MOST_FILES + 1)
        return bisect_right(counts, most, key=lambda files: self.all_bytes(files) or 0)


@dataclass(frozen=True, slots=True)
class Report:
    """A plan and what it means.

    Attributes:
        plan: the snapshots to store.
        aim: the targets that it was made for, and the errors of such snapshots.
        sizes: what the snapshots cost.
        reach: figures of the targets of ``phema_cli.request.GRID``, by sigma_rel; those of
            ``packed`` have none.
        packed: plans of packed snapshots within the same budget.
    """

    plan: Plan
    aim: Aim
    sizes: Sizes
    reach: Mapping[float, Figures] = field(default_factory=dict)
    packed: Sequence[Report] = ()

    @property
    def worst(self) -> float:
        """The largest sigma_error in per cent."""
        return worst_error(self.plan, self.aim)

    @property
    def sigma_rels(self) -> list[float]:
        """Of the gammas that are stored."""
        return [sigma_rel_from_gamma(g) for g in self.plan.gammas]

    @property
    def disk_bytes(self) -> int | None:
        """Bytes of all snapshots."""
        return self.sizes.all_bytes(self.plan.files)

    def widest(self, *verdicts: str) -> tuple[float, float] | None:
        """Ends of the widest range of sigma_rel that has one of the verdicts throughout."""
        spans = reachable.spans(self.reach, verdicts)
        return max(spans, key=lambda span: span[1] - span[0], default=None)


def chosen(asked: PlanRequest, *, quiet: bool) -> Report:
    """The plan that was asked for, and what packed snapshots would reach within its budget."""
    if asked.packing not in {None, *BITS}:
        raise UsageError(f"--packing {asked.packing} is unknown", remedy="pass 16, 8 or 4")
    if asked.packing is not None and asked.dtype is not None:
        raise UsageError("--packing replaces --dtype", remedy="pass one of them")
    dtype = find_dtype(asked.dtype or _DTYPE)
    assumed, asked = _assume(asked, dtype, quiet=quiet)
    # Refuses what is no sigma_rel.
    list(map(gamma_from_sigma_rel, asked.range))

    def stored_in(bits: int | None) -> tuple[Aim, Sizes]:
        """The aim and the sizes of snapshots that are whole, or packed in so many bits."""
        if bits is None:
            return Aim(asked.steps, *asked.range, assumed), Sizes(dtype, asked.parameters)
        packing = Packing(bits, FOLLOWED, KEYFRAME_EVERY)
        moved = packed_instead(assumed, dtype.mantissa_bits, packing)
        sizes = Sizes(find_dtype("float32"), asked.parameters, packing)
        return Aim(asked.steps, *asked.range, moved), sizes

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


def _assume(asked: PlanRequest, dtype: DType, *, quiet: bool) -> tuple[Assumption, PlanRequest]:
    """How the weights will move, and the request with what an earlier run says of this one."""
    if asked.like is None:
        if asked.schedule is None:
            raise UsageError(
                "a plan needs to know how the weights will move",
                remedy="pass --like and an earlier run's snapshots, or --schedule, such as cosine",
            )
        rate = parse_schedule(asked.schedule)
        if rate is None:
            return Assumption(None, storage_noise(dtype.mantissa_bits)), asked
        return Assumption(scheduled(rate, asked.steps, dtype.mantissa_bits)), asked
    if asked.schedule is not None:
        raise UsageError("--schedule and --like contradict each other", remedy="pass one of them")
    snapshots, movement = measured(asked.like, "pass --schedule instead", quiet=quiet)
    coarser = storage_noise(dtype.mantissa_bits) / stored_noise(snapshots)
    end = stored_at(snapshots[-1].tag.profile)
    moved = earlier(movement, end, asked.steps or end, coarser)
    parameters = asked.parameters or reference(snapshots).checkpoint.parameters
    return Assumption(moved), replace(asked, steps=asked.steps or int(end), parameters=parameters)


def _choose(aim: Aim, asked: PlanRequest, most: int | None) -> Plan:
    """The plan that is asked for, of at most ``most`` files; what is left open is chosen."""
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
    if not 1 <= count <= MOST_SNAPSHOTS:
        raise UsageError(
            f"--every {asked.every} gives {count} snapshots",
            remedy=f"1 to {MOST_SNAPSHOTS} are possible",
        )
    return Plan(aim.steps, tuple(sorted(gammas)) or best_gammas(aim, _NUMBER, count), asked.every)
