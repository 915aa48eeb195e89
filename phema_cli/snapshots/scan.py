"""Scan: from paths to tagged snapshots and findings, reading headers only."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from phema_cli.errors import InputError, PhemaError
from phema_cli.formats import read_index
from phema_cli.formats.base import Checkpoint
from phema_cli.formats.locations import is_remote, locate
from phema_cli.snapshots.config import Config, read_config
from phema_cli.snapshots.consistency import Finding, Snapshot, check, strip_prefixes
from phema_cli.snapshots.files import ENDINGS, Candidate, candidates, is_folder
from phema_cli.snapshots.layouts import recognise, without_bookkeeping
from phema_cli.snapshots.naming import give_names
from phema_cli.snapshots.tagging import read_tag
from phema_cli.snapshots.tags import SlowPatternError, compile_pattern
from phema_cli.snapshots.tensors import require_matches, settle

#: metadata entry that says a checkpoint was synthesized, by phema, from others.
PROVENANCE_KEY = "phema"


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
            raise type(first)(first.what + more, where=first.where, remedy=first.remedy)
        return self.snapshots


def scan(paths: Sequence[str | os.PathLike[str]], config: Config | None = None) -> Scan:
    """Find the snapshots in files and directories, read their tags and headers, check they fit.

    Args:
        paths: files, or directories that are searched with all below them.
        config: what the user says; a phema.toml in a given directory fills in what it leaves open.

    Raises:
        InputError: a path does not exist, or there is no snapshot at all.
        UsageError: ``config.pattern`` is no regular expression with a known group, or a glob that
            was typed matches no tensor.
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
        for candidate in candidates(root):
            if _identity(candidate.path) in seen:
                continue
            found = _read(candidate, said, local)
            if isinstance(found, Snapshot):
                # Not before: the file's other name may be the one that is selected.
                seen.add(_identity(candidate.path))
                snapshots.append(found)
                findings += _doubts(found, said.over(local))
            elif found is not None:
                findings.append(found)
    if not snapshots and not any(f.level == "error" for f in findings):
        raise _nothing_found(paths, findings)
    # What holds for many snapshots, or for a file that was given twice, is said once.
    findings = list({(f.level, str(f.error)): f for f in findings}.values())
    ordered = sorted(snapshots, key=lambda s: (s.tag.step, s.tag.gamma or 0.0, s.name))
    ordered, stripped = strip_prefixes(ordered)
    findings += [_notice(f"prefix {p} removed from all tensor names") for p in stripped]
    require_matches(ordered, said.typed)
    return Scan(tuple(ordered), tuple(findings)).settled(copy, drop)


def read_checkpoint(path: str | os.PathLike[str], key: str | None = None) -> Checkpoint:
    """The one checkpoint that a file or directory is, tagged or not.

    Raises:
        InputError: there is none, there are several, or it is broken.
    """
    root = locate(path)
    found = [c.path for c in candidates(root) if c.path == root or not (c.orphan or c.unusable)]
    if len(found) != 1:
        raise InputError(
            f"holds {len(found)} checkpoints, not one", where=root, remedy="name one of its files"
        )
    return read_index(found[0], key)


_UPDATE_EVERY = Finding(
    "warning",
    InputError(
        "ema-pytorch's update_every is taken as 1; its default is 100",
        remedy="pass --update-every, or the averages are not what they seem",
    ),
)


def _doubts(snapshot: Snapshot, config: Config) -> list[Finding]:
    """What a layout leaves open."""
    sparse = snapshot.layout is not None and snapshot.layout.sparse
    return [_UPDATE_EVERY] if sparse and config.update_every is None else []


def _identity(path: Path) -> object:
    """What is the same for two names of one file, be they links or hard links."""
    try:
        found = path.stat()
    except OSError:
        return path
    if is_remote(path):
        return str(path)
    return found.st_dev, found.st_ino


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


def _read(candidate: Candidate, said: Config, local: Config) -> Snapshot | Finding | None:
    """The snapshot at a candidate, a finding that says why there is none, or None: not meant."""
    config = said.over(local)
    selected = not config.select or candidate.matches(config.select)
    if candidate.matches(config.exclude) or not selected:
        return None
    try:
        return _tagged(candidate, said, local)
    except SlowPatternError:
        raise
    except PhemaError as error:
        where = error.where or candidate.name
        return Finding("error", type(error)(error.what, where=where, remedy=error.remedy))


def _tagged(candidate: Candidate, said: Config, local: Config) -> Snapshot | Finding:
    """The snapshot, or the notice that it is left out; raises what stands against it."""
    if candidate.unusable is not None:
        return _left_out(candidate.unusable, candidate)
    if candidate.orphan:
        raise InputError(
            "a shard without its index",
            remedy="put the .safetensors.index.json beside it, or leave it out with --exclude",
        )
    config = said.over(local)
    checkpoint = read_index(candidate.path, config.key)
    if PROVENANCE_KEY in checkpoint.metadata:
        return _left_out("it was synthesized by phema", candidate)
    layout = recognise(candidate.stem, checkpoint)
    tag = read_tag(candidate, checkpoint, layout, said, local)
    if isinstance(tag, str):
        return _left_out(tag, candidate)
    checkpoint = without_bookkeeping(checkpoint)
    if not checkpoint.tensors:
        raise InputError("holds no tensors", remedy="leave it out with --exclude")
    if checkpoint.unnamed:
        reference = None if config.names_from is None else read_checkpoint(config.names_from)
        checkpoint = give_names(checkpoint, reference)
    return Snapshot(candidate.name, checkpoint, tag, layout)


def _left_out(why: str, candidate: Candidate) -> Finding:
    """The notice that a file is not used."""
    return _notice(f"left out: {why}", candidate.name)


def _notice(what: str, where: str | None = None) -> Finding:
    return Finding("notice", InputError(what, where=where))
