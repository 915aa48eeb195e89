"""What a sweep compares with: the last weights, and the averages that the run itself stored."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from phema_cli.estimate.given_weights import combined
from phema_cli.formats.image import PROVENANCE_KEY
from phema_cli.profiles import CheckpointsSpec, PowerProfile, Profile, ProfileSpec
from phema_cli.snapshots import Scan, Snapshot
from phema_cli.snapshots.consistency import home_of

Kind = Literal["last weights", "stored average", "last checkpoint"]
#: the mean of one checkpoint: what is last where nothing says what the snapshots are.
_LAST = "checkpoints:last=1"


@dataclass(frozen=True, slots=True)
class Baseline:
    """A snapshot as it was stored.

    Attributes:
        kind: what it is.
        label: what users call it, one for each baseline.
        gamma: of a power function that ends with the targets; it is a point of the search too.
        spec: what makes it, where it is none.
    """

    kind: Kind
    label: str
    gamma: float | None
    spec: ProfileSpec | CheckpointsSpec | None


def baselines(scan: Scan, step: float, end: float) -> list[Baseline]:
    """The newest snapshot of each series at a step; those that are older would not compare.

    Args:
        scan: the snapshots.
        step: of the targets, as the trainer counts.
        end: their time.
    """
    newest: dict[tuple[str, str, str], int] = {}
    for i, snapshot in enumerate(scan.snapshots):
        if snapshot.tag.step == step and PROVENANCE_KEY not in snapshot.checkpoint.metadata:
            newest[home_of(snapshot), snapshot.series, snapshot.tag.label] = i
    if scan.needs != "laws":
        last = CheckpointsSpec.read(_LAST)
        return [Baseline("last checkpoint", _LAST, None, last)] if len(newest) == 1 else []
    found: dict[str, Baseline] = {}
    for i in newest.values():
        one = _baseline(scan.snapshots, i, end)
        # Of several runs the newest of one kind stands for all.
        found.setdefault(one.label, one)
    return list(found.values())


def _baseline(snapshots: Sequence[Snapshot], place: int, end: float) -> Baseline:
    """The baseline of a snapshot."""
    tag = snapshots[place].tag
    kind: Kind = "last weights" if tag.label == "raw" else "stored average"
    profile = tag.profile
    if isinstance(profile, PowerProfile) and profile.end == end and profile.gamma >= 0:
        return Baseline(kind, profile.label, profile.gamma, None)

    def as_it_is(_end: float) -> Profile:
        return combined(snapshots, {place: 1.0}, tag.label, "mean")

    return Baseline(kind, tag.label, None, ProfileSpec(tag.label, as_it_is))
