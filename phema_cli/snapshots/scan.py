"""Scan: from paths to tagged snapshots and findings, reading headers only."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath

from phema_cli.errors import InputError, PhemaError, StorageError
from phema_cli.formats import endings, read_index
from phema_cli.formats.base import Checkpoint
from phema_cli.snapshots.config import Config, read_config
from phema_cli.snapshots.consistency import Finding, Snapshot, check, strip_prefixes
from phema_cli.snapshots.tags import (
    METADATA_FIELDS,
    Reading,
    Readings,
    compile_pattern,
    match_pattern,
    read_name,
)

#: metadata entry that says a checkpoint was synthesized, by phema, from others.
PROVENANCE_KEY = "phema"

_INDEX = ".safetensors.index.json"
_SHARD = re.compile(r"^(?P<base>.*)-\d{5}-of-\d{5}\.safetensors$")
_ENDINGS = endings()


@dataclass(frozen=True, slots=True)
class Scan:
    """What a scan found.

    Attributes:
        snapshots: sorted by step, then gamma.
        findings: errors, warnings and notices, in the order they were met.
        copy: globs of tensor names that are copied instead of averaged.
    """

    snapshots: tuple[Snapshot, ...]
    findings: tuple[Finding, ...]
    copy: tuple[str, ...] = ()

    def require(self) -> tuple[Snapshot, ...]:
        """The snapshots, if nothing stands against using them.

        Raises:
            PhemaError: the first error found, and how many more there are.
        """
        errors = [f.error for f in self.findings if f.level == "error"]
        if errors:
            first = errors[0]
            more = f" (and {len(errors) - 1} more: see phema inspect)" if len(errors) > 1 else ""
            raise type(first)(first.what + more, where=first.where, remedy=first.remedy)
        return self.snapshots


@dataclass(frozen=True, slots=True)
class _Candidate:
    """A file that may be a snapshot.

    Attributes:
        path: the file.
        relative: its path below what was scanned.
        root: the name of the directory that was scanned.
        orphan: whether it is a shard and has no index beside it.
        link: whether it is a link to a directory.
    """

    path: Path
    relative: PurePosixPath
    root: str
    orphan: bool = False
    link: bool = False

    @property
    def stem(self) -> str:
        """The file's name without ending."""
        stem = self.path.name
        for ending in _ENDINGS:
            stem = stem.removesuffix(ending)
        return stem

    @property
    def name(self) -> str:
        """How the user knows it: by its directory where the file's own name says nothing."""
        name = self.relative.as_posix()
        if self.stem in _GENERIC:
            parent = self.relative.parent
            name = parent.as_posix() if parent != PurePosixPath() else self.root or name
        # Names go into messages and metadata, which are UTF-8; names of files may be any bytes.
        return name.encode(errors="backslashreplace").decode()

    def name_parts(self) -> list[str]:
        """The file's name without ending, then its directories below the root, innermost first."""
        return [self.stem, *self.relative.parent.parts[::-1]]

    def matches(self, globs: Sequence[str]) -> bool:
        """Whether any glob matches the relative path, the name or the file's own name."""
        texts = {self.relative.as_posix(), self.name, self.path.name}
        return any(fnmatchcase(text, glob) for glob in globs for text in texts)


#: what trainers store beside the weights.
_TRAINER_FILES = (
    "optimizer*",
    "scheduler*",
    "rng_state*",
    "random_states*",
    "scaler*",
    "training_args*",
)
_GENERIC = {"model", "pytorch_model", "diffusion_pytorch_model"}


def scan(paths: Sequence[str | os.PathLike[str]], config: Config | None = None) -> Scan:
    """Find the snapshots in files and directories, read their tags and headers, check they fit.

    Args:
        paths: files, or directories that are searched with all below them.
        config: what the user says; a phema.toml in a given directory fills in what it leaves open.

    Raises:
        InputError: a path does not exist, or there is no snapshot at all.
        UsageError: ``config.pattern`` is no regular expression with a known group.
    """
    said = config or Config()
    if said.pattern is not None:
        compile_pattern(said.pattern)
    snapshots: list[Snapshot] = []
    seen: set[str] = set()
    findings: list[Finding] = []
    copy: tuple[str, ...] = said.copy
    for root in map(Path, paths):
        folder = _is_there(root) and root.is_dir()
        local = read_config(root) if folder else Config(origin="phema.toml")
        copy = copy or local.copy
        for candidate in _candidates(root):
            # realpath, since resolve() stumbles over links that lead in a circle.
            real = os.path.realpath(candidate.path)
            if real not in seen:
                seen.add(real)
                found = _read(candidate, said, local)
                if isinstance(found, Snapshot):
                    snapshots.append(found)
                elif found is not None:
                    findings.append(found)
    ordered = sorted(snapshots, key=lambda s: (s.tag.step, s.tag.gamma, s.name))
    if not ordered and not any(f.level == "error" for f in findings):
        left = f" ({len(findings)} files were left out: {findings[0].error})" if findings else ""
        raise InputError(
            f"no snapshots found{left}",
            where=", ".join(str(p) for p in paths),
            remedy=f"snapshots are files ending in {', '.join(_ENDINGS)}",
        )
    ordered, stripped = strip_prefixes(ordered)
    findings += [
        Finding("notice", InputError(f"prefix {p} removed from all tensor names")) for p in stripped
    ]
    findings += check(ordered, copy)
    return Scan(tuple(ordered), tuple(findings), copy)


def read_checkpoint(path: str | os.PathLike[str], key: str | None = None) -> Checkpoint:
    """The one checkpoint that a file or directory is, tagged or not.

    Raises:
        InputError: there is none, there are several, or it is broken.
    """
    root = Path(path)
    found = [c.path for c in _candidates(root) if c.path == root or not c.orphan]
    if len(found) != 1:
        raise InputError(f"holds {len(found)} checkpoints, not one", where=root)
    return read_index(found[0], key)


def _candidates(root: Path) -> Iterator[_Candidate]:
    """Files that may be snapshots, in sorted order; shards are left to their index."""
    if not _is_there(root):
        raise InputError("no such file or directory", where=root)
    if root.is_file():
        yield _Candidate(root, PurePosixPath(root.name), root.absolute().parent.name)
        return

    def fail(error: OSError) -> None:
        raise StorageError.wrap(error, error.filename, "list") from error

    outer = Path(os.path.realpath(root)).name
    for folder, folders, files in os.walk(root, onerror=fail):
        folders[:] = sorted(f for f in folders if not f.startswith("."))
        for link in (f for f in folders if Path(folder, f).is_symlink()):
            relative = PurePosixPath(Path(folder, link).relative_to(root).as_posix())
            yield _Candidate(Path(folder, link), relative, outer, link=True)
        indexed = {f.removesuffix(_INDEX) for f in files if f.endswith(_INDEX)}
        for file in sorted(f for f in files if _may_be_read(Path(folder, f))):
            path = Path(folder, file)
            shard = _SHARD.match(file)
            if not (shard and shard["base"] in indexed):
                relative = PurePosixPath(path.relative_to(root).as_posix())
                yield _Candidate(path, relative, outer, orphan=shard is not None)


def _may_be_read(path: Path) -> bool:
    """Whether a name is a checkpoint's; a named pipe would wait for a writer that never comes."""
    named = path.name.endswith(_ENDINGS) and not path.name.startswith(".")
    return named and (path.is_file() or path.is_symlink())


def _is_there(path: Path) -> bool:
    """Whether a path exists; names that no file system takes don't."""
    try:
        return path.exists()
    except OSError:
        return False


def _read(candidate: _Candidate, said: Config, local: Config) -> Snapshot | Finding | None:
    """The snapshot at a candidate, a finding that says why there is none, or None: not meant."""
    config = said.over(local)
    selected = not config.select or candidate.matches(config.select)
    if candidate.matches(config.exclude) or not selected:
        return None
    try:
        return _tagged(candidate, said, local, config.key)
    except PhemaError as error:
        where = error.where or candidate.name
        return Finding("error", type(error)(error.what, where=where, remedy=error.remedy))


def _tagged(
    candidate: _Candidate, said: Config, local: Config, key: str | None
) -> Snapshot | Finding:
    """The snapshot, or the notice that it is left out; raises what stands against it."""
    if candidate.link:
        return _left_out("links to directories are not followed", candidate)
    if any(fnmatchcase(candidate.path.name, glob) for glob in _TRAINER_FILES):
        return _left_out("a trainer's own state", candidate)
    if candidate.orphan:
        raise InputError(
            "a shard without its index",
            remedy="put the .safetensors.index.json beside it, or leave it out with --exclude",
        )
    checkpoint = read_index(candidate.path, key)
    if PROVENANCE_KEY in checkpoint.metadata:
        return _left_out("it was synthesized by phema", candidate)
    readings = _readings(candidate, checkpoint, said, local)
    if readings is None:
        return _left_out("it does not match --pattern", candidate)
    tag = readings.tag()
    if tag.step <= 0:
        return _left_out("step 0 holds no average yet", candidate)
    if not checkpoint.tensors:
        raise InputError("holds no tensors", remedy="leave it out with --exclude")
    return Snapshot(candidate.name, checkpoint, tag)


def _left_out(why: str, candidate: _Candidate) -> Finding:
    """The notice that a file is not used."""
    return Finding("notice", InputError(f"left out: {why}", where=candidate.name))


def _readings(
    candidate: _Candidate, checkpoint: Checkpoint, said: Config, local: Config
) -> Readings | None:
    """All readings of a candidate's tag, or None where a pattern leaves it out."""
    readings = Readings([], [])
    row = local.snapshots.get(candidate.relative.as_posix()) or local.snapshots.get(candidate.name)
    pattern_of = said if said.pattern else local
    gammas_of = said if said.gammas else local
    if row:
        readings.add(row, "phema.toml")
    if pattern_of.pattern:
        fields = match_pattern(pattern_of.pattern, candidate.relative)
        if fields is None and row is None:
            return None
        readings.add(fields or {}, pattern_of.origin, gammas_of.gammas)
    stored = {k: v for k, v in checkpoint.metadata.items() if k in METADATA_FIELDS}
    names = read_name(candidate.name_parts())
    open_fields = _open(readings)
    readings.add({k: v for k, v in stored.items() if k in open_fields}, "metadata")
    _add_names(readings, {k: v for k, v in names.items() if k in open_fields})
    if not readings.gamma and len(gammas_of.gammas) == 1:
        readings.gamma.append(Reading(gammas_of.gammas[0], 0.0, gammas_of.origin))
    outer = read_name([candidate.root])
    _add_names(readings, {k: v for k, v in outer.items() if k in _open(readings)})
    return readings


def _open(readings: Readings) -> set[str]:
    """Fields that still have to be read; what was said explicitly needs no other reading."""
    fields = set() if readings.gamma else {"gamma", "sigma_rel"}
    return fields if readings.step else fields | {"step"}


def _add_names(readings: Readings, found: dict[str, list[str]]) -> None:
    """Add what names say, value by value."""
    for field, texts in found.items():
        for text in texts:
            readings.add({field: text}, "name")
