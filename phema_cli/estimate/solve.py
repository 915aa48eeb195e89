"""From snapshots to weights: the targets, what a sample shows of the run, and the solution."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from phema_cli.errors import UsageError
from phema_cli.estimate import sample as sampling
from phema_cli.estimate.evidence import TagCheck, check_tags, with_proposal
from phema_cli.profiles import PowerProfile, Profile, gamma_from_sigma_rel, parse_profile
from phema_cli.request import DEFAULT_METHOD, Request
from phema_cli.snapshots import Paths, Scan, Snapshot, scan
from phema_cli.snapshots.base import is_float, reference
from phema_cli.snapshots.tensors import stored_types
from phema_cli.solver import (
    Movement,
    Solution,
    calibrate,
    solve,
    storage_noise,
)

#: targets of one call: an output each.
_MOST_TARGETS = 1000


def scan_for(paths: Paths, request: Request) -> Scan:
    """The snapshots of a request; if only their laws are missing, with what they look like.

    Errors as :func:`phema_cli.snapshots.scan`.
    """
    found = scan(paths, request.config)
    return with_proposal(found) if request.sample and found.untagged else found


def make_targets(snapshots: Sequence[Snapshot], request: Request) -> list[Profile]:
    """The targets of a request in its order, gammas first, at its step or the last snapshot's.

    Their ends are times as the snapshots' profiles have them, which may differ from the trainer's
    count.

    Raises:
        UsageError: more than 1000, one given twice, or one that does not exist.
    """
    end = time_of(snapshots, target_step(snapshots, request.step))
    gammas = [*request.gammas, *map(gamma_from_sigma_rel, request.sigma_rels)]
    profiles = request.profiles
    asked = len(gammas) + len(profiles)
    if asked > _MOST_TARGETS:
        raise UsageError(
            f"{asked} targets are above {_MOST_TARGETS}", remedy="make them in several calls"
        )
    for gamma in gammas:
        if gamma < 0:
            raise UsageError(
                f"target gamma {gamma:g} is below 0", remedy="pass 0, the longest average, or more"
            )
    targets: list[Profile] = [PowerProfile(gamma, end) for gamma in gammas]
    specs = [parse_profile(p) if isinstance(p, str) else p for p in profiles]
    targets += [spec.ending_at(end) for spec in specs]
    for target in targets:
        if targets.count(target) > 1:
            raise UsageError(f"target {target.label} is given twice")
    return targets


def target_step(snapshots: Sequence[Snapshot], step: float | None) -> float:
    """The step of targets, as the trainer counts: what the user says, or the last snapshot's.

    Raises:
        UsageError: it is later than the last snapshot, or not above 0.
    """
    last = max(s.tag.step for s in snapshots)
    if step is None:
        return last
    if not 0 < step < math.inf:
        raise UsageError(f"step {step:g} is not above 0 and finite")
    if step > last:
        raise UsageError(
            f"target step {step:.12g} is later than the last snapshot's, {last:.12g}",
            remedy=f"pass a --step of at most {last:.12g}",
        )
    _check_begun(snapshots, step)
    return step


def _check_begun(snapshots: Sequence[Snapshot], step: float) -> None:
    """Refuse a target from before the average that the user has described, where all is raw."""
    said = [
        s.tag.step
        for s in snapshots
        if s.tag.profile_origin in {"command line", "phema.toml"} and s.tag.label != "raw"
    ]
    if said and step < min(said):
        raise UsageError(
            f"target step {step:.12g} is before the first snapshot of the average that you "
            f"describe, at step {min(said):.12g}",
            remedy="pass --raw to use the raw weights of that time",
        )


def time_of(snapshots: Sequence[Snapshot], step: float) -> float:
    """The time of a step, between the times of the snapshots' steps."""
    times: dict[float, float] = {}
    for s in snapshots:
        # Averages that are updated now and then end before the raw weights beside them.
        times[s.tag.step] = max(times.get(s.tag.step, 0.0), s.tag.profile.end)
    steps = sorted(times)
    ends = [times[s] for s in steps]
    if step >= steps[0]:
        return float(np.interp(step, steps, ends))
    return step * ends[0] / steps[0]


def solve_snapshots(
    snapshots: Sequence[Snapshot],
    targets: Sequence[Profile],
    measured: Measured,
    *,
    method: str = DEFAULT_METHOD,
    together: bool = False,
) -> Solution:
    """Weights of the snapshots for each target; rows in the order of ``snapshots``.

    Args:
        snapshots: oldest first.
        targets: what to build.
        measured: what :func:`measure` finds; ``Measured()`` to do without.
        method: one of ``phema_cli.solver.METHODS``.
        together: whether only figures of many targets are wanted: far faster, and the last bits of
            a target's weights depend on the others.

    Errors as :func:`phema_cli.solver.solve`.
    """
    return solve(
        [s.tag.profile for s in snapshots],
        targets,
        method=method,
        movement=measured.movement,
        storage_noise=stored_noise(snapshots),
        together=together,
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


def measure(scan: Scan, request: Request) -> Measured:
    """How the weights moved during training, and whether the snapshots fit their tags.

    Contradicted tags are no error yet: ``tags.require()`` raises it. Without ``request.sample``
    nothing is measured.

    Errors as :func:`phema_cli.estimate.sample.sample`.
    """
    if not request.sample:
        return Measured()
    found = sampling.sample(scan.snapshots, scan.copy, allow_nonfinite=request.allow_nonfinite)
    if found is None:
        return Measured()
    tags = TagCheck() if scan.trust_tags else check_tags(scan.snapshots, found)
    return Measured(calibrate([s.tag.profile for s in scan.snapshots], found), tags)


def stored_noise(snapshots: Sequence[Snapshot]) -> float:
    """RMS relative rounding error over all float elements, in the coarsest types they have."""
    floats = [e for e in reference(snapshots).checkpoint.stored if is_float(e)]
    bits = {
        e.name: min(d.mantissa_bits for d in stored_types(snapshots, e.name) if d.kind == "float")
        for e in floats
    }
    elements = sum(e.elements for e in floats)
    squares = sum(storage_noise(bits[e.name]) ** 2 * e.elements for e in floats)
    return math.sqrt(squares / elements) if elements else 0.0
