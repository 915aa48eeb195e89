"""The targets of a request: their profiles, their time, and what may have been meant instead."""

import math
import re
from collections.abc import Iterator, Sequence
from itertools import pairwise

import numpy as np

from phema_cli.errors import UsageError
from phema_cli.estimate.given_weights import combination, combined
from phema_cli.profiles import (
    CheckpointsSpec,
    CombinationProfile,
    DecayProfile,
    PowerProfile,
    Profile,
    TableProfile,
    WindowProfile,
    gamma_from_sigma_rel,
    parse_profile,
    stored_at,
)
from phema_cli.request import Request
from phema_cli.snapshots import Finding, Snapshot
from phema_cli.snapshots.base import Needs, notice, warning
from phema_cli.snapshots.consistency import home_of
from phema_cli.solver.system import MOST_SOURCES

#: how far a sum of weights may lie from 1 as people write them, with six digits.
_ROUNDING = 1e-5
#: targets of one call: an output each.
_MOST_TARGETS = 1000


def needs_of(request: Request) -> Needs:
    """What has to be known of the snapshots to make the targets of a request."""
    specs = [parse_profile(p) if isinstance(p, str) else p for p in request.profiles]
    plain = not (request.gammas or request.sigma_rels)
    if not plain or not all(isinstance(s, CheckpointsSpec) for s in specs):
        return "laws"
    if specs:
        return "times"
    return "laws" if request.weights is None else "names"


def make_targets(snapshots: Sequence[Snapshot], request: Request) -> list[Profile]:
    """The targets of a request in its order, gammas first, at its step or the last snapshot's.

    Their ends are times as the snapshots' profiles have them, which may differ from the trainer's
    count.

    Raises:
        UsageError: more than 1000, one given twice, or one that does not exist.
    """
    step = target_step(snapshots, request.step)
    end = time_of(snapshots, step)
    targets: list[Profile] = [PowerProfile(gamma, end) for gamma in _gammas(request)]
    for text in request.profiles:
        spec = parse_profile(text) if isinstance(text, str) else text
        if isinstance(spec, CheckpointsSpec):
            targets.append(_mean(snapshots, spec, step))
        else:
            targets.append(spec.ending_at(end))
    if request.weights is not None:
        targets.append(combination(snapshots, request.weights))
        if request.step is not None and len(targets) == 1:
            raise UsageError(
                "--weights says itself which snapshots count", remedy="leave --step out"
            )
    if len(targets) > _MOST_TARGETS:
        raise UsageError(
            f"{len(targets)} targets are above {_MOST_TARGETS}", remedy="make them in several calls"
        )
    # One average may have two names: uniform and decay.
    named = [(target, target.label) for target in targets]
    for target, label in named:
        if named.count((target, label)) > 1:
            raise UsageError(f"target {label} is given twice")
    return targets


def _gammas(request: Request) -> list[float]:
    """The target exponents, those by sigma_rel last."""
    gammas = [*request.gammas, *map(gamma_from_sigma_rel, request.sigma_rels)]
    for gamma in gammas:
        if gamma < 0:
            raise UsageError(
                f"target gamma {gamma:g} is below 0", remedy="pass 0, the longest average, or more"
            )
    return gammas


def target_step(snapshots: Sequence[Snapshot], step: float | None) -> float:
    """The step of targets, as the trainer counts: what the user says, or the last snapshot's.

    Raises:
        UsageError: it is later than the last snapshot, before the average that the user has
            described, or not above 0.
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
    # Before the average that the user has described all is raw.
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
    return step


def time_of(snapshots: Sequence[Snapshot], step: float) -> float:
    """The time of a step, between the times of the snapshots' steps."""
    times: dict[float, float] = {}
    for s in snapshots:
        # Laws may count from another time than raw weights.
        times[s.tag.step] = max(times.get(s.tag.step, 0.0), stored_at(s.tag.profile))
    steps = sorted(times)
    ends = [times[s] for s in steps]
    if step >= steps[0]:
        return float(np.interp(step, steps, ends))
    return step * ends[0] / steps[0]


def _mean(snapshots: Sequence[Snapshot], spec: CheckpointsSpec, step: float) -> CombinationProfile:
    """The plain mean of the snapshots of one series that a spec means.

    Raises:
        UsageError: there are several series, or too few snapshots.
    """
    series = sorted({(home_of(s), s.series, s.tag.label) for s in snapshots})
    if len(series) > 1:
        parts = (dict.fromkeys(p for p in one if p != ".") for one in series)
        names = ", ".join(" ".join(part) or "the directory itself" for part in parts)
        _, keys, labels = map(set, zip(*series, strict=True))
        remedy = "--key with one of them" if len(keys) > 1 else "--select with a glob of one"
        if "raw" in labels and len(labels) > 1:
            remedy = f"--raw for the raw weights, or {remedy}"
        raise UsageError(
            f"{spec.label} is a mean of one series, and there are {len(series)}: {names}",
            remedy=f"pass {remedy}",
        )
    chosen = spec.chosen([s.tag.step for s in snapshots], step)
    weights = dict.fromkeys(chosen, 1 / len(chosen))
    return combined(snapshots, weights, spec.label, "mean")


def hints(snapshots: Sequence[Snapshot], targets: Sequence[Profile]) -> Iterator[Finding]:
    """What a user may have meant otherwise: above all snapshots, where a profile is of steps."""
    yield from _hint_of_selection(snapshots, targets)
    steps = sorted({s.tag.step for s in snapshots})
    gaps = [b - a for a, b in pairwise(steps)]
    spacing = float(np.median(gaps)) if gaps else 0.0
    for target in targets:
        if isinstance(target, CombinationProfile) and abs(sum(target.weights) - 1) > _ROUNDING:
            text = f"its weights sum to {sum(target.weights):.6g}, not to 1"
            yield notice(text, target.label)
        if isinstance(target, WindowProfile | DecayProfile) and _is_cut(target):
            text = f"the window is longer than the {target.end:.10g} steps up to its end"
            yield notice(f"{text}, and all of them count", target.label)
        if isinstance(target, WindowProfile | DecayProfile) and "steps" not in target.label:
            length = target.end - target.start
            if 1 <= length < spacing:
                yield warning(
                    f"{target.label} is the average of {length:.10g} steps of training, and "
                    f"snapshots are {spacing:.10g} apart",
                    remedy=f"pass --profile checkpoints:last={length:.0f} for the mean of the last "
                    f"{length:.0f} snapshots",
                )
        elif isinstance(target, TableProfile) and len(target.times) > 1:
            ends = {s.tag.profile.end for s in snapshots} | set(steps)
            if all(any(math.isclose(t, end) for end in ends) for t in target.times):
                yield warning(
                    f"{target.label} is a density between its times, and these are the steps of "
                    "snapshots",
                    remedy="pass --weights with that file to give the snapshots these weights",
                )


def _hint_of_selection(
    snapshots: Sequence[Snapshot], targets: Sequence[Profile]
) -> Iterator[Finding]:
    """What becomes of thousands of snapshots."""
    solved = any(not isinstance(t, CombinationProfile) for t in targets)
    if solved and len(snapshots) > MOST_SOURCES:
        yield notice(
            f"each target is made of about {MOST_SOURCES} of the {len(snapshots)} snapshots: early "
            "ones, those near its end, and others at even distances"
        )


def _is_cut(target: WindowProfile | DecayProfile) -> bool:
    """Whether the user has asked for a window of more steps than there are."""
    asked = re.search(r"last\s*=([^,s]+)", target.label)
    return asked is not None and float(asked[1]) > max(target.end, 1.0)
