"""Scan: from paths to tagged snapshots and findings, reading headers only."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from phema_cli.errors import InputError, PhemaError, UsageError
from phema_cli.formats.base import Checkpoint
from phema_cli.formats.locations import locate
from phema_cli.snapshots.config import Config, read_config
from phema_cli.snapshots.consistency import Finding, Snapshot, check, strip_prefixes
from phema_cli.snapshots.files import ENDINGS, candidates, is_folder
from phema_cli.snapshots.naming import give_names
from phema_cli.snapshots.pattern import compile_pattern
from phema_cli.snapshots.reading import fault, left_out, notice, read_all, read_checkpoint
from phema_cli.snapshots.resolve import (
    Item,
    LeftOutError,
    Member,
    members_of,
    settle_laws,
    settle_roles,
)
from phema_cli.snapshots.tags import Tag
from phema_cli.snapshots.tensors import require_matches, settle
from phema_cli.snapshots.times import Time, settle_times
from phema_cli.trainers.base import Series
from phema_cli.trainers.names import has_number


@dataclass(frozen=True, slots=True)
class Scan:
    """What a scan found.

    Attributes:
        snapshots: sorted by step, then gamma.
        findings: errors, warnings and notices, in the order they were met.
        copy: globs of tensor names that are copied instead of averaged.
        drop: globs of tensor names that are left out.
        read: what was found before differences between tensors were settled.
    """

    snapshots: tuple[Snapshot, ...]
    findings: tuple[Finding, ...]
    copy: tuple[str, ...] = ()
    drop: tuple[str, ...] = ()
    read: Scan | None = None

    def settled(self, copy: Sequence[str], drop: Sequence[str]) -> Scan:
        """What was read, checked, with these tensors copied and left out."""
        read = self.read or self
        snapshots, told = settle(read.snapshots, copy, drop)
        findings = (*read.findings, *told, *check(snapshots, copy))
        return Scan(tuple(snapshots), findings, tuple(copy), tuple(drop), read)

    def require(self) -> tuple[Snapshot, ...]:
        """The snapshots, if nothing stands against using them.

        Raises:
            PhemaError: the first error found, and how many more there are.
        """
        errors = [f.error for f in self.findings if f.level == "error"]
        if errors:
            first = errors[0]
            more = f" (and {len(errors) - 1} more: see phema inspect)" if len(errors) > 1 else ""
            raise type(first)(
                first.what + more, where=first.where, remedy=first.remedy, option=first.option
            )
        return self.snapshots


def scan(paths: Sequence[str | os.PathLike[str]], config: Config | None = None) -> Scan:
    """Find the snapshots in files and directories, read their tags and headers, check they fit.

    Args:
        paths: files, or directories that are searched with all below them.
        config: what the user says; a phema.toml in a given directory fills in what it leaves open.

    Raises:
        InputError: a path does not exist, or there is no snapshot at all.
        UsageError: what ``config`` says fits nothing that was found.
    """
    said = config or Config()
    if said.pattern is not None:
        compile_pattern(said.pattern)
    with _no_collection():
        return _scan(paths, said)


@contextmanager
def _no_collection() -> Iterator[None]:
    """Spare the garbage collector headers of many tensors: objects without cycles, all kept."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _scan(paths: Sequence[str | os.PathLike[str]], said: Config) -> Scan:
    """Find, read and check the snapshots."""
    snapshots: list[Snapshot] = []
    findings: list[Finding] = []
    seen: set[object] = set()
    copy, drop = said.copy, said.drop
    for root in map(locate, paths):
        local = read_config(root) if is_folder(root) else Config(origin="phema.toml")
        copy, drop = copy or local.copy, drop or local.drop
        items, met = read_all(candidates(root), said, local, seen)
        findings += met
        try:
            found, met = _tagged(items, said, local)
        except UsageError as error:
            # What the user says may fit a file that can't be read.
            if not any(f.level == "error" for f in met):
                raise
            found, met = [], [Finding("error", error)]
        snapshots += found
        findings += met
    if not snapshots and not any(f.level == "error" for f in findings):
        raise _nothing_found(paths, findings)
    # What holds for many snapshots, or for a file that was given twice, is said once.
    findings = list({(f.level, str(f.error)): f for f in findings}.values())
    ordered = sorted(snapshots, key=lambda s: (s.tag.step, s.tag.gamma or 0.0, s.name))
    ordered, stripped = strip_prefixes(ordered)
    findings += [notice(f"prefix {p} removed from all tensor names") for p in stripped]
    require_matches(ordered, said.typed)
    return Scan(tuple(ordered), tuple(findings)).settled(copy, drop)


def _tagged(
    items: Sequence[Item], said: Config, local: Config
) -> tuple[list[Snapshot], list[Finding]]:
    """The snapshots in what was read, and what stands against others."""
    config = said.over(local)
    findings = [notice(note, item.candidate.name) for item in items for note in item.reading.notes]
    members = list(members_of(items, config.keys))
    if config.keys:
        held = {id(m.item) for m in members}
        findings += [
            notice(f"left out: it holds no {', '.join(config.keys)}", item.candidate.name)
            for item in items
            if id(item) not in held
        ]
    settle_roles(members)
    settle_laws(members, config, said)
    try:
        times = settle_times(items, config)
    except InputError as error:
        return [], [*findings, Finding("error", error)]
    places = {id(item): place for place, item in enumerate(items)}
    snapshots: list[Snapshot] = []
    for member in members:
        time = times[places[id(member.item)]]
        try:
            snapshots.append(_snapshot(member, time, config))
        except LeftOutError as error:
            findings.append(left_out(error, member.item.candidate))
        except PhemaError as error:
            findings.append(fault(error, member.item.candidate))
    kept, doubles = _without_doubles(snapshots, members)
    findings += doubles
    if config.update_every is None:
        remedy = "pass --update-every, or the averages are not what they seem"
        told = dict.fromkeys(m.series.spacing for m in members if m.series.spacing is not None)
        findings += [Finding("warning", InputError(what, remedy=remedy)) for what in told]
    return kept, findings


def _snapshot(member: Member, time: Time | PhemaError, config: Config) -> Snapshot:
    """The snapshot that a series is.

    Raises:
        PhemaError: what stands against it.
    """
    if isinstance(time, LeftOutError):
        raise time
    if member.error is not None:
        raise member.error
    if isinstance(time, PhemaError):
        raise time
    if member.law is None:
        raise AssertionError("a series without an error has a law")
    candidate, one, clock = member.item.candidate, member.series, time.clock
    counts_steps = member.law.name not in {"power", "raw", "uniform"}
    if clock.unit in {"epochs", "saves"} and counts_steps:
        raise InputError(
            f"its average, {member.law.text}, counts steps, and its time {clock.unit}",
            remedy="pass --steps-per-epoch" if clock.unit == "epochs" else "pass --pattern",
            option="--steps-per-epoch N" if clock.unit == "epochs" else None,
        )
    try:
        profile = member.law.profile(clock.value)
    except UsageError as error:
        raise InputError(error.what, remedy=error.remedy) from error
    _check_elements(one)
    shown = None if one.key == "." else one.key
    checkpoint = member.item.file.contents.checkpoint(one.tensors, shown, unnamed=one.unnamed)
    if one.unnamed:
        checkpoint = give_names(checkpoint, _reference(member, config))
    tag = Tag(
        profile,
        clock.value,
        member.law.gamma,
        member.origin,
        time.origin,
        clock.unit,
        member.law.text,
        member.overrules,
    )
    trainers, partial = member.item.reading.trainers, _is_partial(member, checkpoint)
    return Snapshot(candidate.name, checkpoint, tag, trainers, one.key, partial)


def _check_elements(series: Series) -> None:
    """Refuse weights that are cut up: tensors have no elements then, or one holds many."""
    for name, tensor in series.tensors.items():
        if tensor.dtype.kind == "float" and 0 in tensor.shape:
            raise InputError(
                f"tensor {name:.200} has no elements: the weights are cut up among other files",
                remedy="gather them with the tool of the trainer that wrote it",
            )
        if name.endswith("flat_param"):
            raise InputError(
                f"tensor {name:.200} is one of FSDP's flat parameters, of a part of the model each",
                remedy="save it with FSDP's StateDictType.FULL_STATE_DICT",
            )


def _is_partial(member: Member, checkpoint: Checkpoint) -> bool:
    """Whether an average lacks tensors of the raw weights beside it."""
    if member.series.role != "average":
        return False
    whole = [s.tensors for s in member.item.reading.series if s.role == "raw"]
    # Lists are of parameters, without what else a model holds.
    return (
        member.series.part
        or member.series.unnamed
        or any(not tensors.keys() <= checkpoint.tensors.keys() for tensors in whole)
    )


def _reference(member: Member, config: Config) -> Checkpoint | None:
    """The state dict that names a list: the user's, else the raw weights in the same file."""
    if config.names_from is not None:
        return read_checkpoint(config.names_from)
    raw = next((s for s in member.item.reading.series if s.role == "raw"), None)
    if raw is None or raw.unnamed:
        return None
    return member.item.file.contents.checkpoint(raw.tensors)


def _without_doubles(
    snapshots: Sequence[Snapshot], members: Sequence[Member]
) -> tuple[list[Snapshot], list[Finding]]:
    """Leave out files without a number that hold what a numbered one holds, as ``last`` does."""
    numbered = {m.item.candidate.name: has_number(m.item.file.name) for m in members}
    taken = {(s.series, s.tag.label, s.tag.step): s.name for s in snapshots if numbered[s.name]}
    kept: list[Snapshot] = []
    findings: list[Finding] = []
    for snapshot in snapshots:
        other = taken.get((snapshot.series, snapshot.tag.label, snapshot.tag.step))
        if numbered[snapshot.name] or other is None:
            kept.append(snapshot)
        else:
            findings.append(notice(f"left out: of the same time as {other}", snapshot.name))
    return kept, findings


def _nothing_found(
    paths: Sequence[str | os.PathLike[str]], findings: Sequence[Finding]
) -> InputError:
    """The error of a scan without a snapshot."""
    left = f" ({len(findings)} files were left out: {findings[0].error})" if findings else ""
    return InputError(
        f"no snapshots found{left}",
        where=", ".join(str(p) for p in paths),
        remedy=f"snapshots are files ending in {', '.join(ENDINGS)}",
    )
