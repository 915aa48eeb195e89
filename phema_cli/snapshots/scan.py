"""Scan: from paths to tagged snapshots and findings, reading headers only."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

from phema_cli.errors import InputError, PhemaError, UsageError
from phema_cli.formats.locations import locate
from phema_cli.globs import matching
from phema_cli.request import Config
from phema_cli.snapshots.config import checked, read_config
from phema_cli.snapshots.consistency import (
    Finding,
    Snapshot,
    Untagged,
    check,
    strip_prefixes,
)
from phema_cli.snapshots.files import ENDINGS, candidates, is_folder
from phema_cli.snapshots.laws import settle_laws
from phema_cli.snapshots.reading import fault, left_out, notice, read_all
from phema_cli.snapshots.resolve import (
    Item,
    LeftOutError,
    Member,
    members_of,
    settle_roles,
)
from phema_cli.snapshots.tagging import make_snapshot, without_doubles
from phema_cli.snapshots.tensors import require_matches, settle
from phema_cli.snapshots.times import Time, are_counters, settle_times
from phema_cli.trainers.registry import parse_law


@dataclass(frozen=True, slots=True)
class Scan:
    """What a scan found.

    Attributes:
        snapshots: sorted by step, then gamma.
        findings: errors, warnings and notices, in the order they were met.
        copy: globs of tensor names that are copied instead of averaged.
        drop: globs of tensor names that are left out.
        read: what was found before differences between tensors were settled.
        trust_tags: whether the tags hold whatever the snapshots show.
        untagged: what would be snapshots if somebody said what they are averages of.
    """

    snapshots: tuple[Snapshot, ...]
    findings: tuple[Finding, ...]
    copy: tuple[str, ...] = ()
    drop: tuple[str, ...] = ()
    read: Scan | None = None
    trust_tags: bool = False
    untagged: tuple[Untagged, ...] = ()

    def settled(self, copy: Sequence[str], drop: Sequence[str]) -> Scan:
        """What was read, checked, with these tensors copied and left out."""
        read = self.read or self
        snapshots, told = settle(read.snapshots, copy, drop)
        findings = (*read.findings, *told, *check(snapshots, copy))
        return replace(
            read,
            snapshots=tuple(snapshots),
            findings=findings,
            copy=tuple(copy),
            drop=tuple(drop),
            read=read,
        )

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
    said = checked(config or Config())
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
    untagged: list[Untagged] = []
    findings: list[Finding] = []
    seen: set[object] = set()
    copy, drop = said.copy, said.drop
    unmatched, trusted = said.typed_files, said.trust_tags
    for root in map(locate, paths):
        local = read_config(root) if is_folder(root) else Config(origin="phema.toml")
        copy, drop = copy or local.copy, drop or local.drop
        trusted = trusted or local.trust_tags
        listed = list(candidates(root))
        lost = matching([g for _, g in unmatched]).unused(t for c in listed for t in c.texts)
        unmatched = tuple(typed for typed in unmatched if typed[1] in lost)
        items, met = read_all(listed, said, local, seen)
        findings += met
        try:
            found, lacking, met = _tagged(items, said, local)
        except UsageError as error:
            # What the user says may fit a file that can't be read.
            if not any(f.level == "error" for f in met):
                raise
            found, lacking, met = [], [], [Finding("error", error)]
        snapshots += found
        untagged += lacking
        findings += met
    if unmatched:
        raise UsageError(
            f"{unmatched[0][0]} {unmatched[0][1]!r} matches no file", remedy="see phema inspect"
        )
    if not snapshots and not any(f.level == "error" for f in findings):
        raise _nothing_found(paths, findings)
    # What holds for many snapshots, or for a file that was given twice, is said once.
    findings = list({(f.level, str(f.error)): f for f in findings}.values())
    # Of one step the raw weights come first: outputs continue the average.
    ordered = sorted(
        snapshots,
        key=lambda s: (s.tag.step, s.tag.label != "raw", s.tag.gamma or 0.0, s.name),
    )
    ordered, stripped = strip_prefixes(ordered)
    findings += [notice(f"prefix {p} removed from all tensor names") for p in stripped]
    require_matches(ordered, said.typed)
    made = Scan(tuple(ordered), tuple(findings), trust_tags=trusted, untagged=tuple(untagged))
    return made.settled(copy, drop)


def _tagged(
    items: Sequence[Item], said: Config, local: Config
) -> tuple[list[Snapshot], list[Untagged], list[Finding]]:
    """The snapshots in what was read, those that lack a law, and what stands against others."""
    config = said.over(local)
    findings = [notice(note, item.candidate.name) for item in items for note in item.reading.notes]
    members = list(members_of(items, config.keys, insists=bool(said.keys)))
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
        return [], [], [*findings, Finding("error", error)]
    counters = are_counters([t for t in times.values() if isinstance(t, Time)])
    places = {id(item): place for place, item in enumerate(items)}
    snapshots: list[Snapshot] = []
    untagged: list[Untagged] = []
    for member in members:
        time = times[places[id(member.item)]]
        try:
            snapshots.append(make_snapshot(member, time, config, counters=counters))
        except LeftOutError as error:
            findings.append(left_out(error, member.item.candidate))
        except PhemaError as error:
            findings.append(fault(error, member.item.candidate))
            if member.untagged:
                untagged += _untagged(member, time, config, findings[-1])
    kept, doubles = without_doubles(snapshots, members)
    findings += doubles
    if config.update_every is None and not config.averages:
        remedy = "pass --update-every, or the averages are not what they seem"
        told = dict.fromkeys(m.series.spacing for m in members if _is_power(m))
        findings += [Finding("warning", InputError(what, remedy=remedy)) for what in told if what]
    return kept, untagged, findings


def _untagged(
    member: Member, time: Time | PhemaError, config: Config, error: Finding
) -> Iterator[Untagged]:
    """A series that lacks a law as the snapshot that it may become, if nothing else is missing."""
    as_raw = replace(member, law=parse_law("raw"), error=None)
    try:
        snapshot = make_snapshot(as_raw, time, config)
    except PhemaError:
        return
    yield Untagged(snapshot, member.series.index, error)


def _is_power(member: Member) -> bool:
    """Whether it is an average of one gamma."""
    return member.law is not None and member.law.gamma is not None


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
