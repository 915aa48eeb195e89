"""Settles small differences between the tensors of snapshots: averaged, copied, or left out.

Outputs have the tensors of the newest snapshot of the whole model. A tensor is averaged if it is a
float of one shape in every snapshot; others are copied or left out, with a notice.

Snapshots come oldest first; ``copy`` and ``drop`` are globs of tensor names, of those that are
copied and of those that are left out, of the checks too.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from difflib import get_close_matches

from phema_cli.errors import InputError, UsageError
from phema_cli.formats.base import DType, Extent
from phema_cli.formats.entries import alike, changed
from phema_cli.globs import matching
from phema_cli.snapshots.base import Finding, Snapshot, distinct, is_float, notice, reference
from phema_cli.snapshots.consistency import quantized
from phema_cli.snapshots.ties import with_ties

#: prefixes of wrappers, removed if every tensor of every snapshot has them.
_PREFIXES = ("module.", "_orig_mod.", "ema_model.")
_SHOWN = 3
#: how similar a name has to be to the user's glob, from 0 to 1, to be shown first.
_LIKE = 0.4


def strip_prefixes(snapshots: Sequence[Snapshot]) -> tuple[list[Snapshot], list[Finding]]:
    """Snapshots without the wrappers' prefixes that all their tensors share."""
    result = list(snapshots)
    findings: list[Finding] = []
    while True:
        lists = [s.checkpoint.tensors for s in result if s.checkpoint.tensors]
        shared = (
            p
            for p in _PREFIXES
            if lists and all(n.startswith(p) and n != p for names in lists for n in names)
        )
        prefix = next(shared, None)
        if prefix is None:
            return result, findings
        findings.append(notice(f"prefix {prefix} removed from all tensor names"))

        def cut(name: str, prefix: str = prefix) -> str:
            return name.removeprefix(prefix)

        named = changed((s.checkpoint.tensors for s in result), cut)
        result = [_with_tensors(s, own) for s, own in zip(result, named, strict=True)]


def _with_tensors(snapshot: Snapshot, tensors: Mapping[str, Extent]) -> Snapshot:
    """The snapshot with other tensors."""
    return replace(snapshot, checkpoint=replace(snapshot.checkpoint, tensors=tensors))


def settle(
    snapshots: Sequence[Snapshot], copy: Sequence[str] = (), drop: Sequence[str] = ()
) -> tuple[list[Snapshot], list[Finding]]:
    """Snapshots without tensors that no output has, and findings about their differences.

    Reads headers alone, unless a tensor may be tied to another one. Differences that remain are
    errors, which :func:`consistency.check` finds.
    """
    settled, findings = _without(snapshots, drop)
    if (error := quantized(settled, copy)) is not None:
        findings.append(Finding("error", error))
    if settled and all(s.partial for s in settled):
        error = InputError(
            "averages a part of the model, and no snapshot has the rest",
            where=settled[-1].name,
            remedy="give the raw weights beside it too: leave out --select and --exclude",
        )
        findings.append(Finding("error", error))
    if any(f.level == "error" for f in findings) or all(_alike(settled[0], s) for s in settled):
        return settled, findings
    if any(s.checkpoint.tensors.keys() != settled[0].checkpoint.tensors.keys() for s in settled):
        settled, ties = with_ties(settled, copy)
        settled, surplus = _without_surplus(settled, copy)
        findings += [*ties, *surplus]
    return settled, [*findings, *_copied(settled, copy), *_types(settled, copy)]


def averaged(snapshots: Sequence[Snapshot], copy: Sequence[str]) -> list[str]:
    """Names of the tensors that are averaged, in the order of the newest snapshot's files."""
    newest, copied = reference(snapshots).checkpoint.tensors, matching(copy)
    shapes = {n: e.shape for n, e in newest.items() if is_float(e) and not copied(n)}
    for snapshot in snapshots:
        have = snapshot.checkpoint.tensors
        if not alike(have, newest):
            shapes = {
                name: shape
                for name, shape in shapes.items()
                if (e := have.get(name)) is not None and e.shape == shape and is_float(e)
            }
    return list(shapes)


def statistics(names: Iterable[str]) -> list[Finding]:
    """A notice where layers keep running statistics, which belong to the weights they were run by.

    Args:
        names: of the tensors of an average.
    """
    known = set(names)
    ends = ("running_mean", "running_var")
    begins = sorted(n.removesuffix(ends[0]) for n in known if n.endswith(ends[0]))
    layers = [b for b in begins if b + ends[1] in known and b[-1:] in {"", "."}]
    if not layers:
        return []
    more = f" and {len(layers) - 1} more" if len(layers) > 1 else ""
    what = (
        f"BatchNorm statistics ({layers[0]}{ends[0]}{more}) are not those of the averaged weights"
    )
    remedy = "load the result and call torch.optim.swa_utils.update_bn(loader, model)"
    return [notice(what, remedy=remedy)]


def stored_types(snapshots: Iterable[Snapshot], name: str) -> tuple[DType, ...]:
    """The types in which a tensor is stored, each once, sorted by name.

    Of :func:`distinct` snapshots alone, where many tensors are asked for.
    """
    tensors = (s.checkpoint.tensors.get(name) for s in snapshots)
    found = {e.dtype.name: e.dtype for e in tensors if e is not None}
    return tuple(found[n] for n in sorted(found))


def require_matches(snapshots: Sequence[Snapshot], typed: Sequence[tuple[str, str]]) -> None:
    """Refuse globs that match no tensor of any snapshot.

    Args:
        snapshots: as they were read.
        typed: pairs of an option and a glob, as the user typed them.

    Raises:
        UsageError: a glob matches none; the message lists similar names.
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
    return alike(a, b) or (
        a.keys() == b.keys()
        and all(e.shape == b[n].shape and e.dtype.name == b[n].dtype.name for n, e in a.items())
    )


def _without(
    snapshots: Sequence[Snapshot], drop: Sequence[str]
) -> tuple[list[Snapshot], list[Finding]]:
    """Snapshots without the tensors that the user drops."""
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
    if not names:
        return list(snapshots)
    lists = (s.checkpoint.tensors for s in snapshots)
    kept = changed(lists, lambda name: None if name in names else name)
    return [_with_tensors(s, own) for s, own in zip(snapshots, kept, strict=True)]


def _without_surplus(
    snapshots: Sequence[Snapshot], copy: Sequence[str]
) -> tuple[list[Snapshot], list[Finding]]:
    """Snapshots without the tensors that the newest does not have and no output needs."""
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
    findings = []
    if alone:
        findings.append(_notice(alone, "left out: only in averages of a part of the model"))
    if gone:
        why = "left out: not in the newest snapshot, and can't be averaged"
        findings.append(_notice(gone, why))
    return _remove(snapshots, {*alone, *gone}), findings


def _copied(snapshots: Sequence[Snapshot], copy: Sequence[str]) -> Iterator[Finding]:
    """Notices about tensors that are copied without the user's word."""
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
    if parts:
        yield _notice(parts, "copied from the newest whole model: not in every average")
    if others:
        why = "copied from the newest: not alike in all snapshots, and can't be averaged"
        yield _notice(others, why)


def _types(snapshots: Sequence[Snapshot], copy: Sequence[str]) -> Iterator[Finding]:
    """A notice about tensors that are stored in several types of floats."""
    firsts = distinct(snapshots)
    mixed = [n for n in averaged(snapshots, copy) if len(stored_types(firsts, n)) > 1]
    if mixed:
        labels = " and ".join(t.label for t in stored_types(firsts, mixed[0]))
        newest = reference(snapshots).checkpoint.tensors[mixed[0]].dtype.label
        yield _notice(mixed, f"stored as {labels}; outputs have the newest's type, {newest}")


def _notice(names: Sequence[str], what: str) -> Finding:
    """A notice about some tensors, of which the first is named."""
    one = len(names) == 1
    subject = f"tensor {names[0]} is" if one else f"{len(names)} tensors (first {names[0]}) are"
    return notice(f"{subject} {what}")
