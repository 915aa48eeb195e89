"""From snapshots to weights: the targets, what a sample shows of the run, and the solution."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from phema_cli.errors import CheckFailedError, InputError, UsageError
from phema_cli.estimate import sample as sampling
from phema_cli.estimate.evidence import TagCheck, check_tags, with_proposal
from phema_cli.estimate.targets import needs_of
from phema_cli.profiles import Array, CombinationProfile, Profile, RawProfile
from phema_cli.request import DEFAULT_METHOD, Request
from phema_cli.snapshots import Paths, Scan, Snapshot, scan
from phema_cli.snapshots.base import UnknownSpacingError, distinct, is_float, reference
from phema_cli.snapshots.tensors import stored_types
from phema_cli.solver import (
    Figures,
    Movement,
    Solution,
    calibrate,
    exact_figures,
    solve,
    storage_noise,
)


@dataclass(frozen=True, slots=True)
class Measured:
    """What a sample of the tensors shows, the same for any target.

    Attributes:
        movement: how the weights moved during training; None where there is nothing to measure.
        tags: whether the snapshots fit their tags.
    """

    movement: Movement | None = None
    tags: TagCheck = field(default_factory=TagCheck)


def scan_for(paths: Paths, request: Request) -> Scan:
    """The snapshots of a request; if only their laws are missing, with what they look like.

    Errors as :func:`phema_cli.snapshots.scan`.
    """
    found = scan(paths, request.config, needs_of(request))
    return with_proposal(found) if request.sample and found.untagged else found


def solve_snapshots(
    snapshots: Sequence[Snapshot],
    targets: Sequence[Profile],
    measured: Measured,
    *,
    method: str = DEFAULT_METHOD,
    together: bool = False,
) -> Solution:
    """Weights of the snapshots for each target; rows in the order of ``snapshots``.

    Combinations of snapshots have theirs already.

    Args:
        snapshots: oldest first.
        targets: what to build.
        measured: what :func:`measure` finds; ``Measured()`` to do without.
        method: one of ``phema_cli.solver.METHODS``.
        together: whether only figures of many targets are wanted: far faster, and the last bits of
            a target's weights depend on the others.

    Errors as :func:`phema_cli.solver.solve`.
    """
    sought = [t for t in targets if not isinstance(t, CombinationProfile)]
    if sought or not targets:
        solution = solve(
            [s.tag.profile for s in snapshots],
            sought,
            method=method,
            movement=measured.movement,
            storage_noise=stored_noise(snapshots),
            together=together,
        )
    else:
        solution = Solution(np.empty((len(snapshots), 0)), ())
    solved = zip(solution.weights.T, solution.figures, strict=True)
    found: list[tuple[Array, Figures]] = []
    for t in targets:
        if isinstance(t, CombinationProfile):
            column = t.column(len(snapshots))
            found.append((column, exact_figures(column)))
            continue
        column, own = next(solved)
        found.append((column, exact_figures(column) if _is_copy(t, snapshots, column) else own))
    weights, figures = zip(*found, strict=True)
    return replace(solution, weights=np.column_stack(weights), figures=figures)


def _is_copy(target: Profile, snapshots: Sequence[Snapshot], column: Array) -> bool:
    """Whether a target is raw weights that are stored; averages of one gamma have an error."""
    alone = [i for i, weight in enumerate(column) if weight]
    if not isinstance(target, RawProfile) or len(alone) != 1:
        return False
    return bool(column[alone[0]] == 1) and snapshots[alone[0]].tag.profile == target


def measure(scan: Scan, request: Request) -> Measured:
    """How the weights moved during training, and whether the snapshots fit their tags.

    Contradicted tags are no error yet: ``tags.require()`` raises it. Nothing is measured without
    ``request.sample``, nor where the laws of averages do not matter.

    Errors as :func:`phema_cli.estimate.sample.sample`.
    """
    if not request.sample or scan.needs != "laws":
        return Measured()
    found = sampling.sample(scan.snapshots, scan.copy, allow_nonfinite=request.allow_nonfinite)
    if found is None:
        return Measured()
    tags = TagCheck() if scan.trust_tags else _asking(check_tags(scan.snapshots, found), scan)
    return Measured(calibrate([s.tag.profile for s in scan.snapshots], found), tags)


def _asking(tags: TagCheck, scan: Scan) -> TagCheck:
    """The check, whose error asks first how often averages were updated if that is a guess."""
    if not any(isinstance(f.error, UnknownSpacingError) for f in scan.findings):
        return tags
    ask = "pass --update-every, as the trainer was told; else "
    findings = (
        replace(f, error=InputError.of(f.error, remedy=f"{ask}{f.error.remedy}"))
        if f.level == "error"
        else f
        for f in tags.findings
    )
    return replace(tags, findings=tuple(findings))


def stored_noise(snapshots: Sequence[Snapshot]) -> float:
    """RMS relative rounding error over all float elements, in the coarsest types they have."""
    floats = [e for e in reference(snapshots).checkpoint.stored if is_float(e)]
    firsts = distinct(snapshots)
    bits = {
        e.name: min(d.mantissa_bits for d in stored_types(firsts, e.name) if d.kind == "float")
        for e in floats
    }
    elements = sum(e.elements for e in floats)
    squares = sum(storage_noise(bits[e.name]) ** 2 * e.elements for e in floats)
    return math.sqrt(squares / elements) if elements else 0.0


def check_error(solution: Solution, targets: Sequence[Profile], most: float) -> None:
    """Refuse targets whose expected error is above ``most``; those that are exact have none.

    Raises:
        CheckFailedError: it is.
        UsageError: a target has no such error.
    """
    for figures, target in zip(solution.figures, targets, strict=True):
        if figures.verdict == "exact":
            continue
        if isinstance(target, RawProfile):
            raise UsageError(
                f"{target.label} has no expected_error: it is a fraction of what averaging moves",
                remedy="leave --max-error out for it",
            )
        if not figures.expected_error <= most:
            raise CheckFailedError(
                f"expected_error {figures.expected_error:.3g} of {target.label} is "
                f"above --max-error {most:g}",
                remedy="nothing was written; phema inspect shows which targets are in reach",
            )
