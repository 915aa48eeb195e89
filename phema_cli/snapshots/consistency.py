"""Whether snapshots fit together: no tag twice, the same tensors wherever they are averaged."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby, pairwise
from typing import Literal

from phema_cli.errors import InputError, PhemaError
from phema_cli.formats.base import Checkpoint, Extent
from phema_cli.globs import matching
from phema_cli.snapshots.tags import Tag
from phema_cli.trainers.names import clock_in

#: ratio of gamma + 1 below which two averages tell hardly more than one.
_HARDLY_DIFFERENT = 1.01

#: bits of the widest type that only quantized weights have.
NARROW = 8
UNQUANTIZED = "synthesize from checkpoints saved before quantization"

#: wrappers' prefixes, stripped when every tensor of every snapshot has them.
PREFIXES = ("module.", "_orig_mod.", "ema_model.")


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A stored average: its checkpoint and its tag.

    Attributes:
        name: path relative to the directory that was scanned, with ``/``.
        checkpoint: extents of its tensors.
        tag: average and step.
        trainers: names of the trainers whose files it is in.
        series: what ``--key`` calls it.
        partial: whether it is an average of a part of the model beside the whole raw model.
    """

    name: str
    checkpoint: Checkpoint
    tag: Tag
    trainers: tuple[str, ...] = ()
    series: str = "."
    partial: bool = False


@dataclass(frozen=True, slots=True)
class Finding:
    """Something about the inputs that the user should know.

    Attributes:
        level: ``error`` stops a synthesis, ``warning`` may harm it, ``notice`` is for information.
        error: what, where and the remedy.
    """

    level: Literal["error", "warning", "notice"]
    error: PhemaError


@dataclass(frozen=True, slots=True)
class Untagged:
    """A snapshot of which only one thing is missing: what it is an average of.

    Attributes:
        snapshot: with the tag of raw weights.
        index: its place among the averages that names count; None where they don't.
        error: the finding that says so.
    """

    snapshot: Snapshot
    index: int | None
    error: Finding


def reference(snapshots: Sequence[Snapshot]) -> Snapshot:
    """The newest snapshot of the whole model: outputs have its tensors and its types.

    Where there is none it is the newest of all.
    """
    return next((s for s in reversed(snapshots) if not s.partial), snapshots[-1])


def check(snapshots: Sequence[Snapshot], copy: Sequence[str] = ()) -> Iterator[Finding]:
    """Findings about snapshots, sorted by step and gamma, taken together.

    Args:
        snapshots: oldest first; small differences of their tensors are settled.
        copy: globs of tensor names that are copied, whatever their type.
    """
    yield from _duplicates(snapshots)
    yield from _times(snapshots)
    yield from _runs(snapshots)
    if snapshots:
        yield from differences(snapshots, copy)
        yield from _not_averaged(reference(snapshots), copy)
    labels = {s.tag.label for s in snapshots}
    gammas = sorted({s.tag.gamma for s in snapshots if s.tag.gamma is not None})
    for a, b in pairwise(gammas):
        if (b + 1) / (a + 1) < _HARDLY_DIFFERENT:
            yield Finding(
                "warning",
                InputError(
                    f"gammas {a:.10g} and {b:.10g} hardly differ, which makes weights large",
                    remedy="if they are one gamma, say so with --gammas or in phema.toml",
                ),
            )
    if len(labels) == len(gammas) == 1:
        yield Finding(
            "warning",
            InputError(
                f"all snapshots have gamma {gammas[0]:.6g}; one gamma "
                "reaches other targets only roughly",
                remedy="see expected_error, and track a second gamma in the next run",
            ),
        )


def _times(snapshots: Sequence[Snapshot]) -> Iterator[Finding]:
    """What is doubtful about the counts of training time."""
    units: dict[str, Snapshot] = {}
    for snapshot in snapshots:
        units.setdefault(snapshot.tag.unit, snapshot)
    for (unit, one), (other_unit, other) in pairwise(units.items()):
        yield Finding(
            "error",
            InputError(
                f"its time is in {unit}, that of {other.name} in {other_unit}",
                where=one.name,
                remedy="say one unit for all with --pattern, --steps-per-epoch or in phema.toml",
            ),
        )
    if "epochs" in units:
        yield Finding("notice", InputError("times are epochs; one counted e ends at time e + 1"))


def _runs(snapshots: Sequence[Snapshot]) -> Iterator[Finding]:
    """Series that lie in several directories, and whose times interleave: of two runs."""
    homes: dict[tuple[str, str, str], list[Snapshot]] = {}
    for snapshot in snapshots:
        series = (snapshot.series, snapshot.tag.label, _home(snapshot))
        homes.setdefault(series, []).append(snapshot)
    groups = sorted((*series, members) for series, members in homes.items() if len(members) > 1)
    for (*kind, name, one), (*other_kind, other, two) in pairwise(groups):
        begin = max(one[0].tag.step, two[0].tag.step)
        if kind == other_kind and begin < min(one[-1].tag.step, two[-1].tag.step):
            error = InputError(
                f"is of the same time and kind as files in {name or 'the directory itself'}: "
                "of another run",
                where=other or two[0].name,
                remedy="give the directory of one run",
            )
            yield Finding("error", error)


def _home(snapshot: Snapshot) -> str:
    """The directories that a snapshot lies in, but for those that are called by a time."""
    above = snapshot.name.split("/")[:-1]
    return "/".join(p for p in above if not p.isdigit() and clock_in(p, whole=True) is None)


def _duplicates(snapshots: Sequence[Snapshot]) -> Iterator[Finding]:
    """Pairs with the same average and step."""

    def tag(snapshot: Snapshot) -> tuple[float, float, str]:
        found = snapshot.tag
        return (-1.0 if found.gamma is None else found.gamma), found.step, found.label

    for _, group in groupby(sorted(snapshots, key=tag), key=tag):
        first, *others = group
        for other in others:
            same = other.name == first.name
            if first.checkpoint.tensors.keys().isdisjoint(other.checkpoint.tensors):
                yield _apart(first, other)
                continue
            yield Finding(
                "error",
                InputError(
                    f"has the same {other.tag.label} and step {other.tag.step:.10g} as "
                    f"{first.checkpoint.path if same else first.name}",
                    where=other.checkpoint.path if same else other.name,
                    remedy="leave one out with --exclude",
                ),
            )


def _apart(one: Snapshot, other: Snapshot) -> Finding:
    """The error for two snapshots that have no tensor in common."""
    error = InputError(
        f"has no tensor in common with {one.name}: another network, or another part of this one",
        where=other.name,
        remedy="gather parts into one file; synthesize several networks one by one, by --select",
    )
    return Finding("error", error)


def differences(snapshots: Sequence[Snapshot], copy: Sequence[str]) -> Iterator[Finding]:
    """Where what has to be averaged is not in a snapshot as it is in the newest one.

    Args:
        snapshots: oldest first.
        copy: globs of tensor names that are copied.
    """
    newest, copied = reference(snapshots), matching(copy)
    want = newest.checkpoint.tensors
    for snapshot in snapshots:
        have = snapshot.checkpoint.tensors
        if snapshot is newest or have is want:
            continue
        if have and want and want.keys().isdisjoint(have):
            yield _apart(newest, snapshot)
            continue
        lost = [] if snapshot.partial else [n for n in want if n not in have and is_float(want[n])]
        extra = [n for n in have if n not in want]
        others = [n for n in want if n in have and _differ(have[n], want[n])]
        parts = [f"lacks tensor {n}" for n in lost if not copied(n)]
        parts += [f"has tensor {n} in addition" for n in extra]
        parts += [
            f"tensor {n} is {_kind(have[n])} instead of {_kind(want[n])}"
            for n in others
            if not copied(n)
        ]
        if parts:
            more = f" (and {len(parts) - 1} more differences)" if len(parts) > 1 else ""
            yield Finding(
                "error",
                InputError(
                    f"does not fit {newest.name}: {parts[0]}{more}",
                    where=snapshot.name,
                    remedy="leave one of them out with --exclude",
                ),
            )


def _not_averaged(newest: Snapshot, copy: Sequence[str]) -> Iterator[Finding]:
    """The first tensor of a type that can't be averaged."""
    copied = matching(copy)
    for name, extent in newest.checkpoint.tensors.items():
        # What is narrower is quantized, and an error of its own.
        if extent.dtype.kind == "other" and extent.dtype.bits > NARROW and not copied(name):
            yield Finding("warning", not_averaged(name, extent, newest.name))
            return


def not_averaged(name: str, extent: Extent, where: str) -> InputError:
    """The error that a tensor's type can't be averaged."""
    narrow = extent.dtype.bits <= NARROW
    return InputError(
        f"tensor {name}: {extent.dtype.label} values can't be averaged",
        where=where,
        remedy=UNQUANTIZED if narrow else f"--copy '{name}' takes them from the newest snapshot",
    )


def is_float(extent: Extent) -> bool:
    """Whether the tensor can be averaged; what a layer keeps beside its weights is no number."""
    return extent.dtype.kind == "float" and not extent.name.endswith("_extra_state")


def _differ(first: Extent, second: Extent) -> bool:
    """Whether two tensors of a name are not of one model; what can't be averaged may differ."""
    if is_float(first) and is_float(second):
        return first.shape != second.shape
    # Counters may have been averaged by a trainer; a matrix is a weight.
    return is_float(first) != is_float(second) and max(len(first.shape), len(second.shape)) > 1


def _kind(extent: Extent) -> str:
    return f"{extent.dtype.label} {list(extent.shape)}"


def strip_prefixes(snapshots: Sequence[Snapshot]) -> tuple[list[Snapshot], list[str]]:
    """Snapshots without the wrappers' prefixes that all their tensors share, and the prefixes."""
    stripped: list[str] = []
    result = list(snapshots)
    while found := _shared_prefix(result):
        stripped.append(found)
        result = [replace(s, checkpoint=_renamed(s.checkpoint, len(found))) for s in result]
    return result, stripped


def _shared_prefix(snapshots: Sequence[Snapshot]) -> str | None:
    """A wrapper's prefix that every name of every snapshot has."""
    names = [n for s in snapshots for n in s.checkpoint.tensors]
    for prefix in PREFIXES:
        if names and all(n.startswith(prefix) and len(n) > len(prefix) for n in names):
            return prefix
    return None


def _renamed(checkpoint: Checkpoint, cut: int) -> Checkpoint:
    """The checkpoint with the first ``cut`` characters of every name removed."""
    tensors = {n[cut:]: replace(e, name=n[cut:]) for n, e in checkpoint.tensors.items()}
    return replace(checkpoint, tensors=tensors)
