"""Small differences between the tensors of snapshots, settled: what is averaged, copied, left out.

Outputs have the tensors of the newest snapshot of the whole model. A tensor is averaged where it is
a float of one shape in every snapshot; what else is there is copied, or left out, and that is told.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from difflib import get_close_matches

from phema_cli.errors import InputError, UsageError
from phema_cli.formats.base import DType
from phema_cli.globs import matching
from phema_cli.snapshots.consistency import Finding, Snapshot, is_float, reference
from phema_cli.snapshots.quantized import quantized
from phema_cli.snapshots.ties import with_ties

_SHOWN = 3
#: how like a name has to be to what was typed, from 0 to 1, to be shown first.
_LIKE = 0.4


def settle(
    snapshots: Sequence[Snapshot], copy: Sequence[str] = (), drop: Sequence[str] = ()
) -> tuple[list[Snapshot], list[Finding]]:
    """Snapshots without tensors that no output has, and what is to be said of their differences.

    What is left of differences stands against a synthesis. Reads headers alone, but where a tensor
    may be tied to another one.

    Args:
        snapshots: oldest first.
        copy: globs of tensor names that are copied.
        drop: globs of tensor names that are left out, of the checks too.
    """
    settled, findings = _without(snapshots, drop)
    findings += quantized(settled, copy)
    if settled and all(s.partial for s in settled):
        findings.append(_parts_alone(settled[-1]))
    if any(f.level == "error" for f in findings) or all(_alike(settled[0], s) for s in settled):
        return settled, findings
    if any(s.checkpoint.tensors.keys() != settled[0].checkpoint.tensors.keys() for s in settled):
        settled, told = with_ties(settled, copy)
        findings += told
        settled, told = _without_surplus(settled, copy)
        findings += told
    return settled, [*findings, *_copied(settled, copy), *_types(settled, copy)]


def averaged(snapshots: Sequence[Snapshot], copy: Sequence[str]) -> list[str]:
    """Names of the tensors that are averaged, in the order of the newest snapshot's files.

    Args:
        snapshots: oldest first.
        copy: globs of tensor names that are copied.
    """
    newest, copied = reference(snapshots).checkpoint.tensors, matching(copy)
    shapes = {n: e.shape for n, e in newest.items() if is_float(e) and not copied(n)}
    for snapshot in snapshots:
        have = snapshot.checkpoint.tensors
        if have is not newest:
            shapes = {
                name: shape
                for name, shape in shapes.items()
                if (e := have.get(name)) is not None and e.shape == shape and is_float(e)
            }
    return list(shapes)


def stored_types(snapshots: Iterable[Snapshot], name: str) -> tuple[DType, ...]:
    """The types that a tensor is stored in, each once, by name."""
    tensors = (s.checkpoint.tensors.get(name) for s in snapshots)
    found = {e.dtype.name: e.dtype for e in tensors if e is not None}
    return tuple(found[n] for n in sorted(found))


def require_matches(snapshots: Sequence[Snapshot], typed: Sequence[tuple[str, str]]) -> None:
    """Refuse globs of tensor names that mean no tensor of any snapshot.

    Args:
        snapshots: as they were found.
        typed: options with a glob each, as they were typed.

    Raises:
        UsageError: a glob means none; names like it are shown.
    """
    if not typed or not snapshots:
        return
    names = list(dict.fromkeys(n for s in reversed(snapshots) for n in s.checkpoint.tensors))
    lost = matching([glob for _, glob in typed]).unused(names)
    for option, glob in typed:
        if glob in lost:
            like = get_close_matches(glob.strip("*"), names, _SHOWN, _LIKE) or names[:_SHOWN]
            raise UsageError(
                f"{option} {glob!r} matches no tensor", remedy=f"there are {', '.join(like)}, ..."
            )


def _alike(one: Snapshot, other: Snapshot) -> bool:
    """Whether both have the same names, shapes and types."""
    a, b = one.checkpoint.tensors, other.checkpoint.tensors
    return a.keys() == b.keys() and all(
        e.shape == b[n].shape and e.dtype.name == b[n].dtype.name for n, e in a.items()
    )


def _without(
    snapshots: Sequence[Snapshot], drop: Sequence[str]
) -> tuple[list[Snapshot], list[Finding]]:
    """Snapshots without the tensors that the user leaves out."""
    names = {n: None for s in snapshots for n in s.checkpoint.tensors} if drop else {}
    dropped = list(filter(matching(drop), names))
    if not dropped:
        return list(snapshots), []
    kept = _remove(snapshots, set(dropped))
    for snapshot in kept:
        if not snapshot.checkpoint.tensors:
            error = InputError(
                "no tensor is left", where=snapshot.name, remedy="--drop leaves all of them out"
            )
            return kept, [Finding("error", error)]
    return kept, [_notice(dropped, "left out, as --drop says")]


def _remove(snapshots: Sequence[Snapshot], names: set[str]) -> list[Snapshot]:
    """Snapshots without these tensors."""
    return [
        replace(s, checkpoint=replace(s.checkpoint, tensors=kept))
        if len(kept) < len(s.checkpoint.tensors)
        else s
        for s in snapshots
        for kept in [{n: e for n, e in s.checkpoint.tensors.items() if n not in names}]
    ]


def _parts_alone(newest: Snapshot) -> Finding:
    """The error that the rest of the model is nowhere."""
    error = InputError(
        "averages a part of the model, and no snapshot has the rest",
        where=newest.name,
        remedy="give the raw weights beside it too: leave out --select and --exclude",
    )
    return Finding("error", error)


def _without_surplus(
    snapshots: Sequence[Snapshot], copy: Sequence[str]
) -> tuple[list[Snapshot], list[Finding]]:
    """Snapshots without what the newest does not have and no output needs."""
    newest, copied = reference(snapshots).checkpoint.tensors, matching(copy)
    older: dict[str, bool] = {}
    parts: dict[str, None] = {}
    for snapshot in snapshots:
        for name, extent in snapshot.checkpoint.tensors.items():
            if name in newest:
                continue
            if snapshot.partial:
                parts[name] = None
            else:
                needless = not is_float(extent) or copied(name)
                older[name] = older.get(name, True) and needless
    alone = [n for n in parts if n not in older]
    gone = [n for n, needless in older.items() if needless]
    told = []
    if alone:
        told.append(_notice(alone, "only in averages of a part of the model: left out"))
    if gone:
        told.append(_notice(gone, "not in the newest snapshot, and can't be averaged: left out"))
    return _remove(snapshots, {*alone, *gone}), told


def _copied(snapshots: Sequence[Snapshot], copy: Sequence[str]) -> list[Finding]:
    """What is said of tensors that are copied, not because the user says so."""
    newest, copied = reference(snapshots).checkpoint.tensors, matching(copy)
    means = set(averaged(snapshots, copy))
    parts, others = [], []
    for name, extent in newest.items():
        if name in means or copied(name):
            continue
        found = [(s.partial, s.checkpoint.tensors.get(name)) for s in snapshots]
        kinds = [e.dtype.kind for _, e in found if e is not None]
        if all(kind == "float" for kind in kinds):
            if any(partial and e is None for partial, e in found):
                parts.append(name)
        elif any(
            (e is None and not partial)
            or (e is not None and (e.shape, e.dtype.name) != (extent.shape, extent.dtype.name))
            for partial, e in found
        ):
            others.append(name)
    told = []
    if parts:
        told.append(_notice(parts, "not in every average: copied from the newest whole model"))
    if others:
        why = "not alike in all snapshots, and can't be averaged: copied from the newest"
        told.append(_notice(others, why))
    return told


def _types(snapshots: Sequence[Snapshot], copy: Sequence[str]) -> list[Finding]:
    """What is said of tensors that are stored in several types of floats."""
    newest = reference(snapshots).checkpoint.tensors
    mixed = [n for n in averaged(snapshots, copy) if len(stored_types(snapshots, n)) > 1]
    if not mixed:
        return []
    first = mixed[0]
    labels = " and ".join(t.label for t in stored_types(snapshots, first))
    kept = f"outputs have the newest's, {newest[first].dtype.label}"
    return [_notice(mixed, f"stored as {labels}: {kept}")]


def _notice(names: Sequence[str], what: str) -> Finding:
    """A notice about some tensors, of which the first is named."""
    one = len(names) == 1
    subject = f"tensor {names[0]} is" if one else f"{len(names)} tensors (first {names[0]}) are"
    return Finding("notice", InputError(f"{subject} {what}"))
