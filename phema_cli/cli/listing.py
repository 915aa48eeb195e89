"""Snapshots and their weights, as tables and as entries of JSON documents."""

from collections import Counter
from collections.abc import Sequence
from itertools import groupby, pairwise
from typing import Any

from phema_cli.cli import reachable, render
from phema_cli.formats.base import Checkpoint
from phema_cli.formats.chains import link_of
from phema_cli.formats.packing import parse
from phema_cli.profiles import Array, PowerProfile, Profile, describe
from phema_cli.snapshots import Snapshot
from phema_cli.snapshots.base import reference
from phema_cli.solver import Figures

#: snapshots up to which each has a line.
_LISTED = 16
#: columns of numbers.
_RIGHT = ("step", "gamma", "effective", "sigma_rel", "size", "snapshots")


def entry(snapshot: Snapshot) -> dict[str, Any]:
    """A snapshot in a JSON document."""
    tag, checkpoint = snapshot.tag, snapshot.checkpoint
    profile = describe(tag.profile)
    return {
        "name": snapshot.name,
        "layout": snapshot.trainers[0] if snapshot.trainers else None,
        "trainers": list(snapshot.trainers),
        "series": snapshot.series,
        "law": tag.law,
        "overrules": tag.overrules,
        "step": tag.step,
        "step_origin": tag.step_origin,
        "unit": tag.unit,
        "average": tag.label,
        "gamma": tag.gamma,
        "gamma_origin": tag.profile_origin,
        "effective_gamma": profile["gamma"],
        "sigma_rel": profile["sigma_rel"],
        "time": profile["step"],
        "format": checkpoint.format,
        "key": checkpoint.key,
        "files": _files(checkpoint),
        "tensors": len(checkpoint.tensors),
        "parameters": checkpoint.parameters,
        "dtype": _dtypes(snapshot),
        "size_bytes": checkpoint.size_bytes,
        "packing": _packing(checkpoint),
    }


def _files(checkpoint: Checkpoint) -> int:
    """Files of a checkpoint, without those that a packed one follows."""
    return len(checkpoint.files) if link_of(checkpoint) is None else 1


def _packing(checkpoint: Checkpoint) -> dict[str, Any] | None:
    """How a checkpoint is packed; None if it is not."""
    packing = parse(checkpoint.metadata, checkpoint.path)
    if packing is None:
        return None
    return {
        "bits": packing.bits or None,
        "keyframe": None if packing.keyframe is None else packing.keyframe[0],
        "follows": [followed.name for followed in packing.follows],
    }


def _packed(snapshot: Snapshot) -> str:
    """How a snapshot is packed, as a cell."""
    packing = _packing(snapshot.checkpoint)
    if packing is None:
        return ""
    if packing["keyframe"] is None:
        return "keyframe"
    follows = len(packing["follows"])
    return f"{packing['bits']} bits, follows {follows + 1}"


def target_entry(
    target: Profile,
    step: float,
    figures: Figures,
    snapshots: Sequence[Snapshot],
    weights: Array,
) -> dict[str, Any]:
    """A target in a JSON document, with its figures and the (n,) weights of the snapshots."""
    from phema_cli.synthesis.provenance import source_entry

    sources = [
        source_entry(s) | {"weight": float(w)} for s, w in zip(snapshots, weights, strict=True)
    ]
    return {**describe(target, step), **reachable.entry(figures), "sources": sources}


def show(snapshots: Sequence[Snapshot], verbose: bool) -> None:
    """Print a summary, and a table of the snapshots, or of the averages where there are many."""
    if not snapshots:
        return
    out = render.console()
    averages = {s.tag.label for s in snapshots}
    total = sum(s.checkpoint.size_bytes for s in snapshots)
    out.print(
        f"[bold]{render.counted(len(snapshots), 'snapshot')}[/] of "
        f"{render.counted(len(averages), _heading(snapshots))}, {render.size(total)} in all"
    )
    model = reference(snapshots)
    newest = model.checkpoint
    formats = " and ".join(sorted({s.checkpoint.format for s in snapshots}))
    trainers = " and".join(sorted({f" of {name}" for s in snapshots for name in s.trainers}))
    shards = f", {_files(newest)} shards" if _files(newest) > 1 else ""
    key = "" if newest.key is None else f", key {render.plain(newest.key)}"
    out.print(
        f"each {render.counted(len(newest.tensors), 'tensor')}, "
        f"{render.count(newest.parameters)} parameters, {_dtypes(model)}, "
        f"{render.size(newest.size_bytes)}, {formats}{trainers}{shards}{key}"
    )
    out.print()
    listed = verbose or len(snapshots) <= _LISTED
    columns = _snapshots_columns(snapshots) if listed else _averages_columns(snapshots)
    render.show(columns, out, right=_RIGHT, gap=2 if listed else 3)
    out.print()


def show_weights(
    snapshots: Sequence[Snapshot], weights: Array, targets: Sequence[Profile], *, verbose: bool
) -> None:
    """Print the weights of the snapshots, (n, k); those that look like 0 are counted."""
    from phema_cli.synthesis.provenance import LEAST_WEIGHT

    heading = _heading(snapshots)
    largest = abs(weights).max(axis=1)
    rows = [i for i in range(len(snapshots)) if verbose or largest[i] >= LEAST_WEIGHT]
    shown = [snapshots[i] for i in rows]
    names = [render.plain(t.label) for t in targets]
    columns = [
        ("snapshot", [render.plain(s.name) for s in shown]),
        ("step", [f"{s.tag.step:.10g}" for s in shown]),
        (heading, [_average(s, heading) for s in shown]),
        *((n, [f"{w:+.6f}" for w in own]) for n, own in zip(names, weights[rows].T, strict=True)),
    ]
    out = render.console()
    render.show(columns, out, right=("step", "gamma", *names))
    hidden = len(snapshots) - len(rows)
    if hidden:
        out.print(f"and {render.counted(hidden, 'snapshot')} with weights of 0 to six digits")


def _dtypes(snapshot: Snapshot) -> str:
    """The float types of a snapshot, the most frequent first."""
    sizes = Counter[str]()
    for extent in snapshot.checkpoint.stored:
        if extent.dtype.kind == "float":
            sizes[extent.dtype.label] += extent.elements
    return ", ".join(label for label, _ in sizes.most_common()) or "no floats"


def _heading(snapshots: Sequence[Snapshot]) -> str:
    """The heading of the column of averages: gamma if all have one."""
    return "average" if any(s.tag.gamma is None for s in snapshots) else "gamma"


def _average(snapshot: Snapshot, heading: str) -> str:
    """The average in the column of this heading."""
    tag = snapshot.tag
    return f"{tag.gamma:.6g}" if heading == "gamma" else tag.label


def _effective_gamma(snapshot: Snapshot) -> str:
    """The gamma of the profile, where it differs from the one that the trainer was given."""
    tag = snapshot.tag
    differs = isinstance(tag.profile, PowerProfile) and tag.profile.gamma != tag.gamma
    return f"{tag.profile.exponent:.4g}" if differs else ""


def _average_columns(snapshots: Sequence[Snapshot]) -> render.Columns:
    """What the average of each snapshot is, in as few columns as it takes."""
    heading = _heading(snapshots)
    columns = [(heading, [_average(s, heading) for s in snapshots])]
    effective = [_effective_gamma(s) for s in snapshots]
    if any(effective):
        columns.append(("effective", effective))
    if any(s.tag.gamma is not None for s in snapshots):
        sigma_rels = [describe(s.tag.profile)["sigma_rel"] for s in snapshots]
        cells = ["" if s is None else f"{s:.4f}" for s in sigma_rels]
        columns.append(("sigma_rel", cells))
    return columns


def _snapshots_columns(snapshots: Sequence[Snapshot]) -> render.Columns:
    """A row for each snapshot."""
    packed = [_packed(s) for s in snapshots]
    return [
        ("snapshot", [render.plain(s.name) for s in snapshots]),
        ("step", [f"{s.tag.step:.10g}" for s in snapshots]),
        *_average_columns(snapshots),
        ("size", [render.size(s.checkpoint.size_bytes) for s in snapshots]),
        *([("packed", packed)] if any(packed) else []),
        ("tag from", [_origin(s) for s in snapshots]),
    ]


def _averages_columns(snapshots: Sequence[Snapshot]) -> render.Columns:
    """A row for each average."""

    def average(snapshot: Snapshot) -> tuple[float, str]:
        tag = snapshot.tag
        return (-1.0 if tag.gamma is None else tag.gamma), tag.label

    ordered = sorted(snapshots, key=lambda s: (*average(s), s.tag.step))
    groups = [list(group) for _, group in groupby(ordered, key=average)]
    return [
        *_average_columns([group[0] for group in groups]),
        ("snapshots", [str(len(group)) for group in groups]),
        ("steps", [_steps([s.tag.step for s in group]) for group in groups]),
        ("tag from", [", ".join(sorted({_origin(s) for s in group})) for group in groups]),
    ]


def _steps(steps: Sequence[float]) -> str:
    """The first and the last of some steps, and how far they are apart."""
    if len(steps) == 1:
        return f"{steps[0]:.10g}"
    dots = "…" if render.supports_unicode() else "..."
    gaps = {b - a for a, b in pairwise(steps)}
    every = f", every {gaps.pop():.10g}" if len(gaps) == 1 else ""
    return f"{steps[0]:.10g} {dots} {steps[-1]:.10g}{every}"


def _origin(snapshot: Snapshot) -> str:
    """Where the tag was read."""
    tag = snapshot.tag
    kind = "average" if tag.gamma is None else "gamma"
    average, step = tag.profile_origin, tag.step_origin
    origin = average if average == step else f"{kind} {average}, step {step}"
    return origin if tag.overrules is None else f"{origin}; the file says {tag.overrules}"
