"""From files to what they hold: each is read once, and what stands against one stops no other."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path

from phema_cli.errors import InputError, PhemaError, UsageError
from phema_cli.formats import read
from phema_cli.formats.base import Checkpoint
from phema_cli.formats.locations import is_remote, locate
from phema_cli.globs import matching
from phema_cli.request import Config
from phema_cli.snapshots.consistency import Finding
from phema_cli.snapshots.files import Candidate, candidates
from phema_cli.snapshots.pattern import AVERAGES, TIMES, PathPattern, SlowPatternError
from phema_cli.snapshots.resolve import Item, LeftOutError, Said, members_of
from phema_cli.trainers.base import Series, StoredFile
from phema_cli.trainers.registry import read_file

#: metadata entry that says a checkpoint was synthesized, by phema, from others.
PROVENANCE_KEY = "phema"


def read_checkpoint(path: str | os.PathLike[str], key: str | None = None) -> Checkpoint:
    """The one checkpoint that a file or directory is, tagged or not.

    Of several series in it the only average counts, else the only network.

    Raises:
        InputError: there is none, there are several, or it is broken.
    """
    root = locate(path)
    found = [c for c in candidates(root) if c.path == root or not (c.orphan or c.unusable)]
    if len(found) != 1:
        raise InputError(
            f"holds {len(found)} checkpoints, not one", where=root, remedy="name one of its files"
        )
    return open_checkpoint(found[0], key)


def open_checkpoint(candidate: Candidate, key: str | None = None) -> Checkpoint:
    """The checkpoint at a candidate; errors as :func:`read_checkpoint` has them."""
    try:
        item = _item(candidate, keyed=key is not None)
        series = [m.series for m in members_of([item], [key] if key else [])]
    except (InputError, UsageError) as error:
        raise error.at(candidate.path) from error
    averages = [s for s in series if s.role == "average"]
    chosen = averages or series or _anything(item)
    if len(chosen) != 1:
        keys = ", ".join(s.key for s in chosen)
        raise InputError(
            f"holds {len(chosen)} dicts of tensors" if chosen else "holds no dict of tensors",
            where=candidate.path,
            remedy=f"pass --key with one of {keys}" if chosen else "leave it out: --exclude",
        )
    one = chosen[0]
    return item.file.contents.checkpoint(one.tensors, one.place, unnamed=one.unnamed)


def _anything(item: Item) -> list[Series]:
    """The only tensors in a file, where none of them may be weights."""
    found = [Series(t, within=k) for k, t in item.file.everything.items()]
    if not found and item.file.contents.format == "safetensors":
        return [Series({})]
    return found


def _item(candidate: Candidate, *, keyed: bool) -> Item:
    """A file with what trainers know of it."""
    contents = read(candidate.path)
    stored = StoredFile(
        contents,
        contents.path,
        candidate.own_name,
        candidate.path.name,
        candidate.folders,
        candidate.beside,
    )
    return Item(candidate, stored, read_file(stored, keyed=keyed))


def read_all(
    found: Iterable[Candidate], said: Config, local: Config, seen: set[object]
) -> tuple[list[Item], list[Finding]]:
    """What the files hold that are meant, and what is to be said of the others."""
    config = said.over(local)
    select, exclude = matching(config.select), matching(config.exclude)
    pattern = PathPattern(config.pattern) if config.pattern else None
    items: list[Item] = []
    findings: list[Finding] = []
    for candidate in found:
        identity = _identity(candidate.path)
        if identity in seen:
            continue
        if candidate.matches(exclude) or (select and not candidate.matches(select)):
            continue
        try:
            item = _read(candidate, said, local, pattern, keyed=bool(config.keys))
        except SlowPatternError:
            raise
        except LeftOutError as error:
            findings.append(left_out(error, candidate))
        except PhemaError as error:
            findings.append(fault(error, candidate))
        else:
            # Not before: the file's other name may be the one that is selected.
            seen.add(identity)
            items.append(item)
    return items, findings


def _read(
    candidate: Candidate, said: Config, local: Config, pattern: PathPattern | None, *, keyed: bool
) -> Item:
    """What one file holds; raises what stands against it."""
    _check_usable(candidate)
    row = local.snapshots.get(candidate.relative.as_posix()) or local.snapshots.get(candidate.name)
    fields: dict[str, Said] = {k: (v, "phema.toml") for k, v in (row or {}).items()}
    if pattern is not None:
        matched = pattern(candidate.relative)
        if matched is None and row is None:
            raise LeftOutError("it does not match --pattern")
        by = (said if said.pattern else local).origin
        found: dict[str, Said] = {k: (v, by) for k, v in (matched or {}).items()}
        fields = _over(found, fields) if said.pattern else _over(fields, found)
    item = _item(candidate, keyed=keyed)
    if PROVENANCE_KEY in item.file.metadata:
        raise LeftOutError("it was synthesized by phema")
    if item.reading.left_out is not None:
        raise LeftOutError(item.reading.left_out)
    if not keyed and not item.reading.series:
        raise LeftOutError("it holds no weights")
    if candidate.is_part:
        raise InputError(
            "weights of one rank, or one part, of several",
            remedy="gather them with the tool of the trainer that wrote them",
        )
    return replace(item, said=fields)


def _over(first: Mapping[str, Said], second: Mapping[str, Said]) -> dict[str, Said]:
    """What is said of a file in two places: the average, and the time, by the first that does."""
    taken = {k for kind in (AVERAGES, TIMES) if not first.keys().isdisjoint(kind) for k in kind}
    return {k: v for k, v in second.items() if k not in taken} | dict(first)


def _check_usable(candidate: Candidate) -> None:
    """Refuse what its name alone rules out."""
    if candidate.unusable is not None:
        raise LeftOutError(candidate.unusable)
    if candidate.orphan:
        raise InputError(
            "a shard without its index",
            remedy="put the .index.json of its checkpoint beside it",
        )


def _identity(path: Path) -> object:
    """What is the same for two names of one file, be they links or hard links."""
    try:
        found = path.stat()
    except OSError:
        return path
    if is_remote(path):
        return str(path)
    return found.st_dev, found.st_ino


def left_out(error: PhemaError, candidate: Candidate) -> Finding:
    """The notice that a file is not used."""
    return notice(f"left out: {error.what}", candidate.name)


def fault(error: PhemaError, candidate: Candidate) -> Finding:
    """What stands against a file."""
    return Finding("error", error.at(candidate.name))


def notice(what: str, where: str | None = None) -> Finding:
    """Something that the user should know."""
    return Finding("notice", InputError(what, where=where))
