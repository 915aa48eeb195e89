"""Snapshots as tables and as entries of JSON documents."""

from __future__ import annotations

from collections import Counter
from itertools import groupby, pairwise
from typing import TYPE_CHECKING, Any

from phema_cli.cli import render

if TYPE_CHECKING:
    from collections.abc import Sequence

    from phema_cli.profiles import Array, Profile
    from phema_cli.snapshots import Snapshot

_LISTED = 16
# Smaller weights are 0 to the digits that are shown.
_LEAST_WEIGHT = 5e-7


def entry(snapshot: Snapshot) -> dict[str, Any]:
    """A snapshot in a JSON document."""
    from phema_cli.profiles import describe

    tag, checkpoint = snapshot.tag, snapshot.checkpoint
    works = describe(tag.profile)
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
        "effective_gamma": works["gamma"],
        "sigma_rel": works["sigma_rel"],
        "time": works["step"],
        "format": checkpoint.format,
        "key": checkpoint.key,
        "files": len(checkpoint.files),
        "tensors": len(checkpoint.tensors),
        "parameters": checkpoint.parameters,
        "dtype": _dtypes(snapshot),
        "size_bytes": checkpoint.size_bytes,
    }


def average_heading(snapshots: Sequence[Snapshot]) -> str:
    """What heads the column of averages."""
    return "average" if any(s.tag.gamma is None for s in snapshots) else "gamma"


def average(snapshot: Snapshot) -> str:
    """A cell: gamma, or what else the average is."""
    tag = snapshot.tag
    return tag.label if tag.gamma is None else f"{tag.gamma:.6g}"


def show(snapshots: Sequence[Snapshot], verbose: bool) -> None:
    """The summary and the table."""
    from phema_cli.snapshots.base import reference

    if not snapshots:
        return
    out = render.console()
    formats = sorted({s.checkpoint.format for s in snapshots})
    whole = reference(snapshots)
    newest = whole.checkpoint
    averages = {s.tag.label for s in snapshots}
    kind = average_heading(snapshots)
    total = sum(s.checkpoint.size_bytes for s in snapshots)
    out.print(
        f"[bold]{render.counted(len(snapshots), 'snapshot')}[/] of "
        f"{render.counted(len(averages), kind)}, {render.size(total)} in all"
    )
    shards = f", {len(newest.files)} shards" if len(newest.files) > 1 else ""
    layouts = sorted({f" of {name}" for s in snapshots for name in s.trainers})
    key = "" if newest.key is None else f", key {render.plain(newest.key)}"
    out.print(
        f"each {render.counted(len(newest.tensors), 'tensor')}, "
        f"{render.count(newest.parameters)} parameters, {_dtypes(whole)}, "
        f"{render.size(newest.size_bytes)}, "
        f"{' and '.join(formats)}{' and'.join(layouts)}{shards}{key}"
    )
    out.print()
    listed = verbose or len(snapshots) <= _LISTED
    render.show(_list(snapshots) if listed else _groups(snapshots), out)
    out.print()


def show_weights(
    snapshots: Sequence[Snapshot], weights: Array, targets: Sequence[Profile], *, verbose: bool
) -> None:
    """The weights of the snapshots, (n, k); those that look like 0 are counted, not listed."""
    kind = average_heading(snapshots)
    names = [t.label for t in targets]
    body = render.table("snapshot", "step", kind, *names, right=("step", "gamma", *names), gap=2)
    hidden = 0
    for snapshot, row in zip(snapshots, weights, strict=True):
        if not verbose and abs(row).max() < _LEAST_WEIGHT:
            hidden += 1
            continue
        cells = [f"{w:+.6f}" for w in row]
        name = render.plain(snapshot.name)
        body.add_row(name, f"{snapshot.tag.step:.10g}", average(snapshot), *cells)
    out = render.console()
    render.show(body, out)
    if hidden:
        out.print(f"and {render.counted(hidden, 'snapshot')} with weights of 0 to six digits")


def _dtypes(snapshot: Snapshot) -> str:
    """The float types of a snapshot, the commonest first."""
    sizes = Counter[str]()
    for extent in snapshot.checkpoint.stored:
        if extent.dtype.kind == "float":
            sizes[extent.dtype.label] += extent.elements
    return ", ".join(label for label, _ in sizes.most_common()) or "no floats"


def _columns(snapshots: Sequence[Snapshot]) -> list[str]:
    """What the average is, by as few columns as say it."""
    powers = any(s.tag.gamma is not None for s in snapshots)
    averages = [average_heading(snapshots)]
    averages += ["effective"] * any(_effective(s) for s in snapshots)
    return averages + ["sigma_rel"] * powers


def _effective(snapshot: Snapshot) -> str:
    """The gamma of the average as it works, where that is another than the trainer was told."""
    from phema_cli.profiles import PowerProfile

    tag = snapshot.tag
    differs = isinstance(tag.profile, PowerProfile) and tag.profile.gamma != tag.gamma
    return f"{tag.profile.exponent:.4g}" if differs else ""


def _cells(snapshot: Snapshot, columns: Sequence[str]) -> list[str]:
    """The columns' content."""
    from phema_cli.profiles import describe

    sigma_rel = describe(snapshot.tag.profile)["sigma_rel"]
    content = {
        "gamma": average(snapshot),
        "average": average(snapshot) if snapshot.tag.gamma is None else snapshot.tag.label,
        "effective": _effective(snapshot),
        "sigma_rel": "" if sigma_rel is None else f"{sigma_rel:.4f}",
    }
    return [content[c] for c in columns]


def _list(snapshots: Sequence[Snapshot]) -> Any:  # noqa: ANN401 - a rich table
    """Each snapshot in a row."""
    columns = _columns(snapshots)
    right = ("step", "gamma", "effective", "sigma_rel", "size")
    table = render.table("snapshot", "step", *columns, "size", "tag from", right=right, gap=2)
    for s in snapshots:
        table.add_row(
            render.plain(s.name),
            f"{s.tag.step:.10g}",
            *_cells(s, columns),
            render.size(s.checkpoint.size_bytes),
            _origin(s),
        )
    return table


def _groups(snapshots: Sequence[Snapshot]) -> Any:  # noqa: ANN401 - a rich table
    """Each average in a row."""
    columns = _columns(snapshots)
    right = ("gamma", "effective", "sigma_rel", "snapshots")
    table = render.table(*columns, "snapshots", "steps", "tag from", right=right)
    dots = "…" if render.unicode() else "..."

    def kind(snapshot: Snapshot) -> tuple[float, str]:
        tag = snapshot.tag
        return (-1.0 if tag.gamma is None else tag.gamma), tag.label

    for _, group in groupby(sorted(snapshots, key=lambda s: (*kind(s), s.tag.step)), key=kind):
        members = list(group)
        steps = [s.tag.step for s in members]
        gaps = {b - a for a, b in pairwise(steps)}
        every = f", every {gaps.pop():.10g}" if len(gaps) == 1 else ""
        table.add_row(
            *_cells(members[0], columns),
            str(len(members)),
            f"{steps[0]:.10g} {dots} {steps[-1]:.10g}{every}",
            ", ".join(sorted({_origin(s) for s in members})),
        )
    return table


def _origin(snapshot: Snapshot) -> str:
    """Where the tag was read."""
    what, step = snapshot.tag.profile_origin, snapshot.tag.step_origin
    kind = "average" if snapshot.tag.gamma is None else "gamma"
    origin = what if what == step else f"{kind} {what}, step {step}"
    overruled = snapshot.tag.overrules
    return origin if overruled is None else f"{origin}; the file says {overruled}"
