"""The files in a directory that may be snapshots, each with its names."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from phema_cli.errors import InputError, PhemaError, StorageError
from phema_cli.formats import endings
from phema_cli.formats.base import PARTIAL
from phema_cli.formats.remote import is_remote, no_such, remote_errors, to_path
from phema_cli.globs import matching
from phema_cli.snapshots.base import LeftOutError
from phema_cli.trainers.side_files import STATE_FILES

ENDINGS = endings()
_INDEX = ".index.json"
_SHARD = re.compile(r"^(?P<base>.*)-\d{5}-of-\d{5}(?P<ending>\.safetensors|\.bin)$")
_METADATA = ".metadata"
#: the number of a rank or of a part, in names of files and of directories.
_RANK = re.compile(r"(?<![a-z])(?:\w*rank|consolidated|part|shard|tp|pp)[-_.]?(\d+)(?!\d)")
_ENGINE = re.compile(r"global_step\d+|optimizer_\d+")
_OF = re.compile(r"\d+-of-\d+")
#: names of files that say nothing: the directory's name is that of the checkpoint.
_GENERIC = {
    *("", "model", "pytorch_model", "diffusion_pytorch_model", "adapter_model"),
    *("pytorch_lora_weights", "lit_model", "consolidated"),
}
_STATE = "a trainer's own state"
_LINK = "links to directories are not followed"
_UNFINISHED = "its torch.distributed.checkpoint has no .metadata, and is not complete"


@dataclass(frozen=True, slots=True)
class Candidate:
    """A file that may be a snapshot.

    Attributes:
        path: the file.
        relative: its path below the directory that was scanned.
        stem: the file's name without ending.
        name: the name for messages: the relative path, or that of its directory where the file's
            own name says nothing.
        own_name: the name of the checkpoint itself: the file's stem, or the directory's name.
        folders: the directories above the checkpoint, innermost first, the scanned one last.
        is_root: whether it is the checkpoint that the scanned directory itself is.
        fault: why it can't be a snapshot, if its name and the files beside it show that.
        beside: names of the files in its directory, if that was listed.
    """

    path: Path
    relative: PurePosixPath
    stem: str
    name: str
    own_name: str
    folders: tuple[str, ...]
    is_root: bool
    fault: PhemaError | None = None
    beside: frozenset[str] | None = None

    @classmethod
    def at(
        cls,
        path: Path,
        relative: PurePosixPath,
        root: str,
        *,
        fault: PhemaError | None = None,
        beside: frozenset[str] | None = None,
    ) -> Candidate:
        """The candidate at a path, below a scanned directory of the name ``root``."""
        stem = path.name
        for ending in ENDINGS:
            stem = stem.removesuffix(ending)
        name, own_name, folders = relative.as_posix(), stem, (*relative.parent.parts[::-1], root)
        is_root = stem in _GENERIC and len(relative.parts) == 1
        if is_root:
            name, own_name, folders = root or name, root, ()
        elif stem in _GENERIC:
            name, own_name, folders = relative.parent.as_posix(), folders[0], folders[1:]
        # Names go into messages and metadata, which are UTF-8; names of files may be any bytes.
        name = name.encode(errors="backslashreplace").decode()
        return cls(path, relative, stem, name, own_name, folders, is_root, fault, beside)

    @property
    def folder(self) -> Path | None:
        """The directory that is the checkpoint, by the name of the file in it; None of others."""
        return self.path.parent if self.stem in _GENERIC else None

    @property
    def texts(self) -> set[str]:
        """What globs are compared with: the relative path, the name and the file's own name."""
        return {self.relative.as_posix(), self.name, self.path.name}

    @property
    def is_part(self) -> bool:
        """Whether it is one of several ranks or parts, by the names of files beside it."""
        if _OF.search(self.stem):
            return True
        inner = (self.path.parent,) if len(self.relative.parts) > 1 else ()
        for path in (self.path, *inner):
            match = _RANK.search(path.name)
            if match is None:
                continue
            before, after = path.name[: match.start(1)], path.name[match.end(1) :]
            beside = (p.name for p in path.parent.iterdir())
            alike = (n for n in beside if n.startswith(before) and n.endswith(after))
            inside = (n[len(before) : len(n) - len(after)] for n in alike)
            numbers = sorted({int(number) for number in inside if number.isdecimal()})
            # All of them are there, from 0 or 1 on: the ranks of adapters, 8 and 16, are not.
            first = min(numbers[0], 1)
            if len(numbers) > 1 and numbers == list(range(first, first + len(numbers))):
                return True
        return False


def candidates(root: Path) -> Iterator[Candidate]:
    """Files that may be snapshots, in sorted order; of shards only the index.

    Args:
        root: a file, or a directory that is searched with all directories below it.

    Raises:
        InputError: there is no such file or directory.
        StorageError: a directory can't be listed.
    """
    with remote_errors(root):
        if not is_there(root):
            raise no_such(root)
        remote = is_remote(root)
        # Servers may give a directory's listing as a file.
        if root.is_file() and not (remote and root.is_dir()):
            yield Candidate.at(root, PurePosixPath(root.name), root.absolute().parent.name)
            return

        def fail(error: OSError) -> None:
            raise StorageError.wrap(error, error.filename, "list") from error

        outer = root.name if remote else Path(os.path.realpath(root)).name
        walk = root.walk(on_error=fail) if remote else os.walk(root, onerror=fail)  # type: ignore[attr-defined]
        for folder, folders, files in walk:
            folders[:] = sorted(
                f for f in folders if not f.startswith(".") and not f.endswith(PARTIAL)
            )
            here = to_path(folder)
            if any(f.partition(".")[0] in _GENERIC and _is_checkpoint(here / f) for f in files):
                # DeepSpeed and FSDP keep parts of the model there that is here as a whole.
                folders[:] = [f for f in folders if not _ENGINE.fullmatch(f)]
            beside = frozenset(files)
            for name, fault in _in_folder(here, folders, files):
                inside = (here / name).as_posix().removeprefix(root.as_posix())
                relative = PurePosixPath(inside.lstrip("/"))
                yield Candidate.at(here / name, relative, outer, fault=fault, beside=beside)


def _in_folder(
    folder: Path, folders: Sequence[str], files: Sequence[str]
) -> Iterator[tuple[str, PhemaError | None]]:
    """Names in a directory that may be snapshots, each with the reason why it can't be one."""
    yield from ((f, LeftOutError(_LINK)) for f in folders if (folder / f).is_symlink())
    if _METADATA in files:
        yield _METADATA, None
    else:
        unfinished = (f for f in sorted(files) if f.endswith(".distcp"))
        yield from ((f, LeftOutError(_UNFINISHED)) for f in unfinished)
    indexed = {f.removesuffix(_INDEX) for f in files if f.endswith(_INDEX)}
    is_state = matching(STATE_FILES)
    for file in sorted(f for f in files if _is_checkpoint(folder / f)):
        shard = _SHARD.match(file)
        if not (shard and f"{shard['base']}{shard['ending']}" in indexed):
            yield file, LeftOutError(_STATE) if is_state(file) else _orphan() if shard else None


def _orphan() -> InputError:
    """The error for a shard that no index names."""
    return InputError(
        "is a shard, and its index is missing",
        remedy="put the .index.json of its checkpoint beside it",
    )


def _is_checkpoint(path: Path) -> bool:
    """Whether a file may be a checkpoint, by its name.

    A named pipe would wait for a writer that never comes. A link that leads nowhere counts: the
    user has to know that it can't be read.
    """
    named = path.name.endswith(ENDINGS) and not path.name.endswith(_METADATA)
    return named and not path.name.startswith(".") and (path.is_file() or not path.exists())


def is_there(path: Path) -> bool:
    """Whether there is such a file or directory; no file system takes some names."""
    with remote_errors(path):
        try:
            return path.exists()
        except OSError:
            return False


def is_folder(path: Path) -> bool:
    """Whether there is a directory; no file system takes some names."""
    try:
        with remote_errors(path):
            return path.is_dir()
    except (OSError, ValueError):
        return False
