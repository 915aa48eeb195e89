"""Reads candidates: what each file holds, what its trainer says, and the series that count."""

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from phema_cli.errors import InputError, PhemaError, UnsafePickleError, UsageError
from phema_cli.formats import read
from phema_cli.formats.base import Checkpoint
from phema_cli.formats.image import PROVENANCE_KEY
from phema_cli.formats.objects import refuse_beside, refuse_hidden
from phema_cli.formats.remote import is_remote, to_path
from phema_cli.globs import matching
from phema_cli.profiles import Law
from phema_cli.request import Config
from phema_cli.snapshots.base import Finding, LeftOutError, Origin, finding_of, notice
from phema_cli.snapshots.config import FILE_NAME
from phema_cli.snapshots.files import Candidate, candidates
from phema_cli.snapshots.pattern import AVERAGES, TIMES, Search, SlowPatternError, searching
from phema_cli.trainers.base import Clock, Series, StoredFile, under
from phema_cli.trainers.nested import by_path, is_state_key, tensors_of
from phema_cli.trainers.registry import FileReading, read_file

#: keys that a message lists.
_OFFERED = 8

#: what is no remedy where a single file is named.
_LEAVE_OUT = re.compile("(, or |; )?leave it out with --exclude")


class NothingNestedError(UsageError):
    """A key is given of files that are weights and nothing else."""


#: a field that the user gives for one file, and where.
UserField = tuple[str, Origin]


@dataclass(slots=True)
class InputFile:
    """A file that was read.

    Attributes:
        candidate: the file.
        stored: its content.
        reading: what trainers' modules know of it.
        fields: fields for this file alone, from phema.toml or from the groups of a pattern.
        time: how much training was done; None until that is known.
        time_origin: where the time was read.
        time_error: why it has no time.
    """

    candidate: Candidate
    stored: StoredFile
    reading: FileReading
    fields: Mapping[str, UserField] = field(default_factory=dict)
    time: Clock | None = None
    time_origin: Origin = "content"
    time_error: PhemaError | None = None


@dataclass(slots=True)
class Draft:
    """A series of a file, from which a snapshot will be made.

    Attributes:
        file: the file.
        series: its weights.
        law: what it is an average of; None until that is known.
        origin: where the law was read.
        overrules: the law in the file, if the user gives another one.
        error: why it can't be a snapshot.
        law_unknown: whether nothing says its law.
    """

    file: InputFile
    series: Series
    law: Law | None = None
    origin: Origin = "content"
    overrules: str | None = None
    error: PhemaError | None = None
    law_unknown: bool = False

    @property
    def group(self) -> tuple[object, ...]:
        """What the drafts of one series have in common in all files."""
        return (self.series.role == "raw", self.series.key, self.series.index, self.series.law)

    @property
    def settled(self) -> bool:
        """Whether its law is known, or that it can't be."""
        return self.law is not None or self.error is not None


def read_checkpoint(path: str | os.PathLike[str], key: str | None = None) -> Checkpoint:
    """The one checkpoint that a file or directory is, tagged or not.

    Of several series in it the only average counts, else the only network.

    Raises:
        InputError: there is none, there are several, or it is broken.
    """
    root = to_path(path)
    found = [c for c in candidates(root) if c.path == root or c.fault is None]
    # A directory that is a checkpoint itself may have others below it.
    found = [c for c in found if c.is_root and c.folder == root] or found
    if len(found) != 1:
        raise InputError(
            f"holds {len(found)} checkpoints, not one", where=root, remedy="name one of its files"
        )
    return open_checkpoint(found[0], key)


def open_checkpoint(candidate: Candidate, key: str | None = None) -> Checkpoint:
    """The checkpoint at a candidate; errors as :func:`read_checkpoint` has them."""
    try:
        file = _read(candidate, keyed=key is not None)
        series = [d.series for d in drafts_of([file], [key] if key else [])]
    except (InputError, UnsafePickleError, UsageError) as error:
        raise _of_a_file(error).at(candidate.path) from error
    stored = file.stored
    found = [s for s in series if s.role == "average"] or series
    # Where no tensors are weights, the only ones count.
    found = found or [Series(tensors, within=k) for k, tensors in stored.everything.items()]
    if not found and stored.contents.format == "safetensors":
        found = [Series({})]
    if len(found) != 1:
        keys = ", ".join(s.key for s in found)
        raise InputError(
            f"holds {len(found)} dicts of tensors" if found else "holds no dict of tensors",
            where=candidate.path,
            remedy=f"pass --key with one of {keys}" if found else "pass a checkpoint",
        )
    return stored.checkpoint(found[0])


def _of_a_file(error: PhemaError) -> PhemaError:
    """The error of a file that the user names itself: nothing is left over without it."""
    remedy = _LEAVE_OUT.sub("", error.remedy or "") or None
    return type(error).of(error, remedy=remedy)


def _read(candidate: Candidate, *, keyed: bool) -> InputFile:
    """A file with what trainers' modules know of it; ``keyed`` if the user names what counts."""
    contents = read(candidate.path)
    if not keyed:
        refuse_hidden(contents.content, contents.path, is_state_key)
    name, file_name = candidate.own_name, candidate.path.name
    stored = StoredFile(contents, name, file_name, candidate.folders, candidate.beside)
    return InputFile(candidate, stored, read_file(stored, keyed=keyed))


def read_files(
    listed: Sequence[Candidate],
    command_line: Config,
    toml: Config,
    seen: set[object],
    *,
    outputs: bool = False,
) -> tuple[list[InputFile], list[Finding], int]:
    """The files that are selected, findings, and how many files are not selected.

    There is a finding for each file that can't be used, and for rows of phema.toml that fit none.

    Args:
        listed: the candidates.
        command_line: the user's options.
        toml: the phema.toml of the directory.
        seen: files that were read before, under any name; these are added.
        outputs: whether what phema has synthesized can be used too.

    Raises:
        SlowPatternError: the search for the pattern takes too long.
    """
    config = command_line.over(toml)
    select, exclude = matching(config.select), matching(config.exclude)
    keyed = bool(config.keys)
    files: list[InputFile] = []
    findings: list[Finding] = []
    unselected = 0
    with searching(config.pattern) as search:
        for candidate in listed:
            identity = _identity(candidate.path)
            if identity in seen:
                continue
            texts = candidate.texts
            if (select and not any(map(select, texts))) or any(map(exclude, texts)):
                unselected += 1
                continue
            try:
                if candidate.fault is not None:
                    raise candidate.fault
                fields = _user_fields(candidate, search, command_line, toml)
                file = _read(candidate, keyed=keyed)
                _require_weights(file, keyed=keyed, outputs=outputs)
            except SlowPatternError:
                raise
            except PhemaError as error:
                findings.append(finding_of(error, candidate.name))
            else:
                file.fields = fields
                files.append(file)
                # Not before: another name of the file may be the selected one.
                seen.add(identity)
    lost = _lost_rows(listed, toml, config) if files else ()
    return files, [*findings, *lost], unselected


def _lost_rows(listed: Sequence[Candidate], toml: Config, config: Config) -> Iterator[Finding]:
    """Notices of what in phema.toml fits no file, and may be misspelt: rows, of all in one, globs.

    Args:
        listed: the candidates.
        toml: what it says.
        config: the same below the user's options.
    """
    if config.select == toml.select:
        for glob in matching(toml.select).unused(t for c in listed for t in c.texts):
            yield notice(f"select {glob!r:.200} matches no file", FILE_NAME)
    names = {name for c in listed for name in (c.relative.as_posix(), c.name)}
    lost = [name for name in toml.snapshots if name not in names]
    if lost:
        rows = "a row names" if len(lost) == 1 else f"{len(lost)} rows name"
        first = "" if len(lost) == 1 else "first "
        yield notice(f"{rows} no file that may be a snapshot: {first}{lost[0]!r:.200}", FILE_NAME)


def _identity(path: Path) -> object:
    """The same value for all names of one file, be they links or hard links."""
    try:
        status = path.stat()
    except OSError:
        return path
    return str(path) if is_remote(path) else (status.st_dev, status.st_ino)


def _require_weights(file: InputFile, *, keyed: bool, outputs: bool) -> None:
    """Refuse a file that can't be a snapshot, by its content."""
    if PROVENANCE_KEY in file.stored.metadata and not outputs:
        raise LeftOutError("it was synthesized by phema")
    if file.reading.left_out is not None:
        raise LeftOutError(file.reading.left_out)
    if not keyed and not file.reading.series:
        raise LeftOutError("it holds no weights")
    if file.candidate.is_part:
        raise InputError(
            "has only the weights of one rank, or of one part, of several",
            remedy="gather them with the tool of the trainer that wrote them",
        )


def _user_fields(
    candidate: Candidate, search: Search | None, command_line: Config, toml: Config
) -> Mapping[str, UserField]:
    """The fields that the user gives for one file: average and time, by pattern or phema.toml.

    Raises:
        LeftOutError: there is a pattern that does not match, and phema.toml has no row.
    """
    row = toml.snapshots.get(candidate.relative.as_posix()) or toml.snapshots.get(candidate.name)
    rows: dict[str, UserField] = {k: (v, "phema.toml") for k, v in (row or {}).items()}
    if search is None:
        return rows
    groups = search(candidate.relative)
    if groups is None and row is None:
        raise LeftOutError("it does not match --pattern")
    origin = (command_line if command_line.pattern else toml).origin
    matched: dict[str, UserField] = {k: (v, origin) for k, v in (groups or {}).items()}
    first, second = (matched, rows) if command_line.pattern else (rows, matched)
    # Average and time each come from the first that has any of their fields.
    settled = {k for kind in (AVERAGES, TIMES) if not first.keys().isdisjoint(kind) for k in kind}
    return {k: v for k, v in second.items() if k not in settled} | first


def drafts_of(
    files: Sequence[InputFile], keys: Sequence[str], *, insists: bool = True
) -> list[Draft]:
    """The series that count: those that the user names, or all.

    What one file leaves open others may settle: an average in one file shows what the dict of the
    same key is in others.

    Args:
        files: all files.
        keys: the names of series that the user gives.
        insists: whether a name without a series is an error; a phema.toml may be about other files.

    Raises:
        UsageError: no file has a series of that name.
    """
    drafts = [Draft(file, s) for file in files for s in file.reading.series if not keys]
    missing = dict.fromkeys(keys)
    for file in files:
        for key in keys:
            if (series := _series_at(file, key)) is not None:
                missing.pop(key, None)
                drafts.append(Draft(file, series))
    if missing and files and insists:
        names = dict.fromkeys(s.key for file in files for s in file.reading.series)
        names |= dict.fromkeys(k for file in files for k in file.stored.dicts)
        listed = ", ".join([name for name in names if name != "."][:_OFFERED])
        kind = UsageError if listed else NothingNestedError
        raise kind(
            f"no dict of tensors, and no prefix of their names, is {next(iter(missing))!r}",
            remedy=f"there are {listed}" if listed else "leave --key out: no dict is nested",
        )
    roles = {
        d.series.key: d.series.role
        for d in drafts
        if d.series.role != "unknown" and d.series.law is None
    }
    for draft in drafts:
        if draft.series.role == "unknown":
            series = draft.series
            draft.series = replace(series, role=roles.get(series.key, series.role))
    return drafts


def _series_at(file: InputFile, key: str) -> Series | None:
    """The series that a key names in a file: a trainer's, any dict, or a prefix of names."""
    for series in file.reading.series:
        if series.key == key:
            return series
    content, path = file.stored.contents.content, file.stored.contents.path
    node = by_path(content, key)
    if (group := tensors_of(node)) is not None:
        refuse_hidden(node, path)
        refuse_beside(node, path, is_state_key)
        tensors, named = group
        return Series(tensors, within=key, unnamed=not named)
    prefix = f"{key.rstrip('.')}."
    for series in file.reading.series:
        # A part of an average is the same average.
        if not series.prefix and (part := under(series.tensors, prefix)):
            return replace(series, tensors=part, prefix=prefix, label=None)
    for within, tensors in file.stored.dicts.items():
        if part := under(tensors, prefix):
            return Series(part, within=within, prefix=prefix)
    return None
