"""Scan: from paths to tagged snapshots and findings, by their headers alone."""

from __future__ import annotations

import gc
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from phema_cli.errors import InputError, PhemaError, UsageError
from phema_cli.formats.remote import no_such, to_path
from phema_cli.globs import matching
from phema_cli.profiles.grammar import TooLongError
from phema_cli.request import Config
from phema_cli.snapshots.base import (
    Finding,
    LeftOutError,
    Needs,
    Snapshot,
    UnknownSpacingError,
    Untagged,
    finding_of,
    left_out,
    notice,
    unused,
)
from phema_cli.snapshots.config import FILE_NAME, checked, read_config
from phema_cli.snapshots.consistency import check
from phema_cli.snapshots.files import ENDINGS, candidates, is_folder, is_there
from phema_cli.snapshots.laws import do_without_laws, settle_laws
from phema_cli.snapshots.reading import Draft, InputFile, drafts_of, read_files
from phema_cli.snapshots.tag import make_snapshot, without_doubles
from phema_cli.snapshots.tensors import require_matches, settle, strip_prefixes
from phema_cli.snapshots.times import are_counters, in_order, settle_times
from phema_cli.trainers.registry import parse_law

#: what to do where nothing says how often averages were updated.
_SPACING = "pass --update-every, or the averages are not what they seem"
#: what is scanned: a file, a directory, or several of them.
Paths = str | os.PathLike[str] | Sequence[str | os.PathLike[str]]
#: averages that a scan's text names; of more it says how many.
_LISTED = 4


@dataclass(frozen=True, slots=True)
class Scan:
    """The snapshots of a scan, and findings about them.

    Attributes:
        snapshots: sorted by step, then gamma.
        findings: errors, warnings and notices, in the order in which they were found.
        copy: globs of tensor names that are copied instead of averaged.
        drop: globs of tensor names that are left out.
        read: the scan before differences between tensors were settled.
        trust_tags: whether the tags hold, whatever the values of the snapshots show.
        untagged: what would be snapshots if their laws were known.
        needs: what had to be known of the snapshots.
        roots: the paths as the user gave them.
    """

    snapshots: tuple[Snapshot, ...]
    findings: tuple[Finding, ...]
    copy: tuple[str, ...] = ()
    drop: tuple[str, ...] = ()
    read: Scan | None = None
    trust_tags: bool = False
    untagged: tuple[Untagged, ...] = ()
    needs: Needs = "laws"
    roots: tuple[str, ...] = ()

    def __repr__(self) -> str:
        """``<Scan of 20 snapshots: gamma 5, gamma 10; steps 50 to 500>``, and errors if any."""
        count = len(self.snapshots)
        text = f"Scan of {count} snapshot{'' if count == 1 else 's'}"
        if count:
            labels = list(dict.fromkeys(s.tag.label for s in self.snapshots))
            first, last = (f"{self.snapshots[i].tag.step:.10g}" for i in (0, -1))
            averages = ", ".join(labels) if len(labels) <= _LISTED else f"{len(labels)} averages"
            steps = f"step {first}" if first == last else f"steps {first} to {last}"
            text += f": {averages}; {steps}"
        errors = sum(f.level == "error" for f in self.findings)
        if errors:
            text += f"; {errors} error{'' if errors == 1 else 's'}"
        return f"<{text}>"

    def settled(self, copy: Sequence[str], drop: Sequence[str]) -> Scan:
        """The scan with these tensors copied and left out, and its snapshots checked."""
        read = self.read or self
        snapshots, findings = settle(read.snapshots, copy, drop)
        return replace(
            read,
            snapshots=tuple(snapshots),
            findings=(*read.findings, *findings, *check(snapshots, copy, self.needs)),
            copy=tuple(copy),
            drop=tuple(drop),
            read=read,
        )

    def require(self) -> tuple[Snapshot, ...]:
        """The snapshots, if there is no error.

        Raises:
            PhemaError: the first error, with the number of the others.
        """
        errors = [f.error for f in self.findings if f.level == "error"]
        if errors:
            first = errors[0]
            more = f" (and {len(errors) - 1} more: see phema inspect)" if len(errors) > 1 else ""
            raise type(first).of(first, what=first.what + more)
        return self.snapshots


class _Tagged(NamedTuple):
    """The snapshots of some files, what should be known of them, and those that lack a law."""

    snapshots: list[Snapshot]
    findings: list[Finding]
    untagged: list[Untagged]


def scan(paths: Paths, config: Config | None = None, needs: Needs = "laws") -> Scan:
    """Find the snapshots in files and directories, read their tags and headers, check they fit.

    Args:
        paths: a file, a directory that is searched with all below it, or several of them.
        config: the user's options; a phema.toml in a given directory fills in what they leave open.
        needs: what has to be known of a snapshot. Where laws are not needed, an average of unknown
            law is one; where times are not either, a file that has none comes after all others.

    Raises:
        InputError: a path, or a file of names, does not exist, or there is no snapshot at all.
        UsageError: an option fits no file, no average or no tensor.
    """
    command_line = checked(config or Config())
    names = command_line.names_from
    if names is not None and not is_there(to_path(names)):
        raise no_such(names)
    roots = [paths] if isinstance(paths, str | os.PathLike) else paths
    # Headers of many tensors are objects without cycles that all stay: nothing to collect.
    collecting = gc.isenabled()
    gc.disable()
    try:
        return _scan(roots, command_line, needs)
    finally:
        if collecting:
            gc.enable()


def _scan(paths: Sequence[str | os.PathLike[str]], command_line: Config, needs: Needs) -> Scan:
    """Scan each path, then look at the snapshots of all together."""
    snapshots: list[Snapshot] = []
    untagged: list[Untagged] = []
    findings: list[Finding] = []
    seen: set[object] = set()
    said, unmatched, unselected = command_line, command_line.typed_files, 0
    for root in map(to_path, paths):
        folder = is_folder(root)
        toml = read_config(root) if folder else Config(origin="phema.toml")
        said = said.over(toml)
        listed = list(candidates(root))
        globs = matching([g for _, g in unmatched]).unused(t for c in listed for t in c.texts)
        unmatched = tuple(typed for typed in unmatched if typed[1] in globs)
        outputs = needs == "names"
        files, faults, left = read_files(listed, command_line, toml, seen, outputs=outputs)
        findings += faults
        unselected += left
        try:
            tagged = _tag(files, command_line, toml, needs)
        except UsageError as error:
            # An option that fits nothing may fit a file that can't be read.
            if not any(f.level == "error" for f in faults):
                raise
            tagged = _Tagged([], [Finding("error", error)], [])
        # Where a directory is itself a snapshot, the name is below the one above it.
        top = root if folder else root.parent
        named = ((s, top.parent if s.folder == top else top) for s in tagged.snapshots)
        snapshots += [replace(snapshot, root=above) for snapshot, above in named]
        untagged += tagged.untagged
        findings += tagged.findings
    if unmatched:
        option, glob = unmatched[0]
        raise UsageError(f"{option} {glob!r} matches no file", remedy="see phema inspect")
    if not snapshots and not any(f.level == "error" for f in findings):
        raise _nothing(", ".join(map(str, paths)), findings, unselected)
    findings = _without_idle(findings, command_line, len(paths))
    # A finding about many snapshots, or about a file that was given twice, counts once.
    findings = list({(f.level, str(f.error)): f for f in findings}.values())
    if needs == "names":
        snapshots = _with_homes(snapshots)
    # Of one step the raw weights come first: outputs continue the average.
    snapshots.sort(key=lambda s: (s.tag.step, s.tag.label != "raw", s.tag.gamma or 0.0, s.name))
    snapshots, stripped = strip_prefixes(snapshots)
    require_matches(snapshots, command_line.typed)
    read = Scan(
        tuple(snapshots),
        (*findings, *stripped),
        trust_tags=said.trust_tags,
        untagged=tuple(untagged),
        needs=needs,
        roots=tuple(os.fspath(path) for path in paths),
    )
    return read.settled(said.copy, said.drop)


def _nothing(where: str, findings: Sequence[Finding], unselected: int) -> InputError:
    """The error where there is no snapshot: what was left out, or was not selected."""
    left = [f.error for f in findings if isinstance(f.error, LeftOutError)]
    if unselected and not left:
        return InputError(
            f"no snapshots found: select and exclude leave out all {unselected} files",
            where=where,
            remedy=f"change --select and --exclude, or these lines of {FILE_NAME}",
        )
    files = "1 file was" if len(left) == 1 else f"{len(left)} files were"
    out = f" ({files} left out: {left[0]})" if left else ""
    remedy = f"snapshots are files ending in {', '.join(ENDINGS)}"
    return InputError(f"no snapshots found{out}", where=where, remedy=remedy)


def _without_idle(findings: Sequence[Finding], command_line: Config, roots: int) -> list[Finding]:
    """Findings, without options that are not used where one of several paths may have used them.

    A phema.toml may be about any files.
    """
    count = Counter(f.unused for f in findings)
    typed = {o for o in count if o and getattr(command_line, o) is not None}
    return [f for f in findings if not f.unused or (f.unused in typed and count[f.unused] == roots)]


def _with_homes(snapshots: Sequence[Snapshot]) -> list[Snapshot]:
    """Snapshots of which none has another one's name: several directories may have the same."""
    count = Counter((s.name, s.series, s.tag.label) for s in snapshots)
    return [
        replace(s, name=f"{s.root.name}/{s.name}")
        if count[s.name, s.series, s.tag.label] > 1 and s.root.name
        else s
        for s in snapshots
    ]


def _tag(files: Sequence[InputFile], command_line: Config, toml: Config, needs: Needs) -> _Tagged:
    """The snapshots in the files of one path, those without a law, and findings."""
    config = command_line.over(toml)
    findings = [notice(note, f.candidate.name) for f in files for note in f.reading.notes]
    drafts = drafts_of(files, config.keys, insists=bool(command_line.keys))
    if config.keys:
        what, keyed = f"it holds no {', '.join(config.keys)}", {id(d.file) for d in drafts}
        findings += [left_out(what, f.candidate.name) for f in files if id(f) not in keyed]
    findings += settle_laws(drafts, config)
    if needs != "laws":
        do_without_laws(drafts)
    try:
        findings += settle_times(files, config)
    except InputError as error:
        if needs != "names":
            return _Tagged([], [*findings, Finding("error", error)], [])
    if needs == "names":
        in_order(files)
    made = _make(files, drafts, config, needs)
    findings += made.findings
    if needs == "laws" and config.update_every is None and not config.averages:
        findings += _spacing_warnings(drafts)
    return made._replace(findings=findings)


def _make(
    files: Sequence[InputFile], drafts: Sequence[Draft], config: Config, needs: Needs
) -> _Tagged:
    """The snapshots that drafts are, and a finding for each that is none."""
    counters = are_counters(files)
    snapshots: list[Snapshot] = []
    untagged: list[Untagged] = []
    findings: list[Finding] = []
    too_long: list[Finding] = []
    if drafts and config.names_from is not None and not any(d.series.unnamed for d in drafts):
        findings.append(unused("names_from", "all tensors have names"))
    for draft in drafts:
        try:
            snapshots.append(make_snapshot(draft, config, counters=counters, needs=needs))
        except PhemaError as error:
            found = finding_of(error, draft.file.candidate.name)
            (too_long if isinstance(error.__cause__, TooLongError) else findings).append(found)
            if draft.law_unknown:
                untagged += _untagged(draft, config, found)
    # Others can do without them.
    findings += [left_out(f.error.what, f.error.where) if snapshots else f for f in too_long]
    if needs != "names":
        snapshots, doubles = without_doubles(snapshots, drafts)
        findings += doubles
    return _Tagged(snapshots, findings, untagged)


def _spacing_warnings(drafts: Sequence[Draft]) -> Iterator[Finding]:
    """Warnings about averages of which nothing says how often they were updated."""
    powers = (d.series for d in drafts if d.law is not None and d.law.gamma is not None)
    for what in dict.fromkeys(s.spacing_warning for s in powers if s.spacing_warning):
        yield Finding("warning", UnknownSpacingError(what, remedy=_SPACING))


def _untagged(draft: Draft, config: Config, error: Finding) -> Iterator[Untagged]:
    """The snapshot that a series would be if its law were known, unless it lacks more."""
    as_raw = replace(draft, law=parse_law("raw"), error=None)
    try:
        snapshot = make_snapshot(as_raw, config)
    except PhemaError:
        return
    yield Untagged(snapshot, error)
