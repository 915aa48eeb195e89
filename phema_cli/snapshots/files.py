"""Files that may be snapshots: what a directory holds, and how the user knows each."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from phema_cli.errors import InputError, StorageError
from phema_cli.formats import endings
from phema_cli.formats.base import PARTIAL
from phema_cli.formats.remote import is_remote, to_path
from phema_cli.globs import Globs, matching

ENDINGS = endings()
_INDEX = ".index.json"
_SHARD = re.compile(r"^(?P<base>.*)-\d{5}-of-\d{5}(?P<ending>\.safetensors|\.bin)$")
_METADATA = ".metadata"
#: the number of a rank or of a part, in names of files and directories that hold a part each.
_RANK = re.compile(r"(?<![a-z])(?:\w*rank|consolidated|part|shard|tp|pp)[-_.]?(\d+)(?!\d)")
_ENGINE = re.compile(r"global_step\d+|optimizer_\d+")
_OF = re.compile(r"\d+-of-\d+")
#: names of files that say nothing: the directory is the checkpoint.
_GENERIC = {
    *("", "model", "pytorch_model", "diffusion_pytorch_model", "adapter_model"),
    *("pytorch_lora_weights", "lit_model", "consolidated"),
}
#: what trainers store beside the weights.
_TRAINER_FILES = (
    "optimizer*",
    "scheduler*",
    "rng_state*",
    "random_states*",
    "scaler*",
    "training_args*",
    "training-state-*",
)
_STATE = "a trainer's own state"
_LINK = "links to directories are not followed"
_UNFINISHED = "a torch.distributed.checkpoint without .metadata, not finished"


@dataclass(frozen=True, slots=True)
class Candidate:
    """A file that may be a snapshot.

    Attributes:
        path: the file.
        relative: its path below what was scanned.
        root: the name of the directory that was scanned.
        orphan: whether it is a shard and has no index beside it.
        unusable: why it is left out, where that is clear from its name.
        beside: names of the files in its directory, where that was listed.
    """

    path: Path
    relative: PurePosixPath
    root: str
    orphan: bool = False
    unusable: str | None = None
    beside: frozenset[str] | None = None

    @property
    def stem(self) -> str:
        """The file's name without ending."""
        stem = self.path.name
        for ending in ENDINGS:
            stem = stem.removesuffix(ending)
        return stem

    @property
    def is_root(self) -> bool:
        """Whether it is the checkpoint that the scanned directory itself is."""
        return self.stem in _GENERIC and self.relative.parent == PurePosixPath()

    @property
    def own_name(self) -> str:
        """What the checkpoint itself is called: the file, or the directory that is one."""
        if self.stem not in _GENERIC:
            return self.stem
        return self.root if self.is_root else self.relative.parent.name

    @property
    def is_part(self) -> bool:
        """Whether its name counts ranks or parts, and other ones of them lie beside it."""
        if _OF.search(self.stem):
            return True
        inner = self.path.parent if len(self.relative.parts) > 1 else None
        return _has_fellows(self.path) or (inner is not None and _has_fellows(inner))

    @property
    def name(self) -> str:
        """How the user knows it: by its directory where the file's own name says nothing."""
        name = self.relative.as_posix()
        if self.stem in _GENERIC:
            parent = self.relative.parent
            name = parent.as_posix() if parent != PurePosixPath() else self.root or name
        # Names go into messages and metadata, which are UTF-8; names of files may be any bytes.
        return name.encode(errors="backslashreplace").decode()

    @property
    def folders(self) -> tuple[str, ...]:
        """The directories above the checkpoint, innermost first, the root last."""
        above = self.relative.parent.parts[::-1]
        if self.stem in _GENERIC:
            above = above[1:] if above else ()
            return above if self.is_root else (*above, self.root)
        return (*above, self.root)

    @property
    def texts(self) -> set[str]:
        """What globs are held against: the relative path, the name and the file's own name."""
        return {self.relative.as_posix(), self.name, self.path.name}

    def matches(self, globs: Globs) -> bool:
        """Whether any glob matches one of the texts."""
        return any(map(globs, self.texts))


def _has_fellows(path: Path) -> bool:
    """Whether a name has the number of a rank, and names of other ranks lie beside it."""
    match = _RANK.search(path.name)
    if match is None:
        return False
    before, after = path.name[: match.start(1)], path.name[match.end(1) :]
    return any(
        name != path.name and name[len(before) : len(name) - len(after)].isdigit()
        for name in (p.name for p in path.parent.iterdir())
        if name.startswith(before) and name.endswith(after)
    )


def candidates(root: Path) -> Iterator[Candidate]:
    """Files that may be snapshots, in sorted order; shards are left to their index."""
    if not _is_there(root):
        raise InputError("no such file or directory", where=root)
    # Servers may give a directory's listing as a file.
    if root.is_file() and not (is_remote(root) and root.is_dir()):
        yield Candidate(root, PurePosixPath(root.name), root.absolute().parent.name)
        return

    def fail(error: OSError) -> None:
        raise StorageError.wrap(error, error.filename, "list") from error

    remote = is_remote(root)
    outer = root.name if remote else Path(os.path.realpath(root)).name
    found = root.walk(on_error=fail) if remote else os.walk(root, onerror=fail)  # type: ignore[attr-defined]
    for folder, folders, files in found:
        folders[:] = sorted(f for f in folders if not f.startswith(".") and not f.endswith(PARTIAL))
        here = to_path(folder)
        if any(f.partition(".")[0] in _GENERIC and _may_be_read(here / f) for f in files):
            # What DeepSpeed and FSDP keep there of a model that lies here whole.
            folders[:] = [f for f in folders if not _ENGINE.fullmatch(f)]
        beside = frozenset(files)
        for name, orphan, unusable in _named_here(here, folders, files):
            relative = PurePosixPath(str(here / name).removeprefix(str(root)).lstrip("/"))
            yield Candidate(here / name, relative, outer, orphan, unusable, beside)


def _named_here(
    folder: Path, folders: Sequence[str], files: Sequence[str]
) -> Iterator[tuple[str, bool, str | None]]:
    """Names in a directory that may be snapshots, whether a shard without index, why unusable."""
    yield from ((f, False, _LINK) for f in folders if (folder / f).is_symlink())
    if _METADATA in files:
        yield _METADATA, False, None
    else:
        yield from ((f, False, _UNFINISHED) for f in sorted(files) if f.endswith(".distcp"))
    indexed = {f.removesuffix(_INDEX) for f in files if f.endswith(_INDEX)}
    state = matching(_TRAINER_FILES)
    for file in sorted(f for f in files if _may_be_read(folder / f)):
        shard = _SHARD.match(file)
        if not (shard and f"{shard['base']}{shard['ending']}" in indexed):
            yield file, shard is not None, _STATE if state(file) else None


def _may_be_read(path: Path) -> bool:
    """Whether a name is a checkpoint's; a named pipe would wait for a writer that never comes.

    A link that leads nowhere is one: that it can't be read is to be said.
    """
    named = path.name.endswith(ENDINGS) and not path.name.endswith(_METADATA)
    return named and not path.name.startswith(".") and (path.is_file() or not path.exists())


def is_folder(path: Path) -> bool:
    """Whether a directory is there; names that no file system takes are none."""
    try:
        return path.is_dir()
    except (OSError, ValueError):
        return False


def _is_there(path: Path) -> bool:
    """Whether a path exists; names that no file system takes don't."""
    try:
        return path.exists()
    except OSError:
        return False
