"""Checkpoints of several files: an index says which of the files beside it holds each tensor."""

from collections.abc import Callable, Mapping
from pathlib import Path

from phema_cli.errors import reading
from phema_cli.formats.base import Extent
from phema_cli.formats.checks import REMEDY, broken, parse_object
from phema_cli.formats.entries import joined
from phema_cli.formats.remote import is_remote

_MAX_INDEX_BYTES = 1 << 30
_BESIDE = "what a file names must lie beside it"

#: reads the extents and metadata of one shard.
ReadShard = Callable[[Path], tuple[Mapping[str, Extent], Mapping[str, str]]]


def read_sharded(
    path: Path, ending: str, read_shard: ReadShard
) -> tuple[Mapping[str, Extent], dict[str, str], tuple[Path, ...]]:
    """The extents and metadata of an index and the shards beside it, and the shards.

    Raises:
        InputError: no index, or a shard or a tensor is missing.
        StorageError: the operating system failed.
    """
    weight_map, index = _weight_map(path)
    names = sorted(set(map(str, weight_map.values())))
    for name in names:
        if not name.endswith(ending):
            raise broken(f"its shard {name[:200]!r} is not a {ending} file", path, _BESIDE)
    file_of = {name: number for number, name in enumerate(names)}
    files = tuple(file_beside(path, name, "its shard") for name in names)
    metadata: dict[str, str] = {}
    shards = []
    for file in files:
        extents, shard_metadata = read_shard(file)
        metadata = {**shard_metadata, **metadata}
        shards.append(extents)
    tensors = joined(index, shards, lambda name: file_of.get(str(weight_map.get(name))))
    missing = sorted(set(weight_map) - set(tensors))
    if missing:
        name = missing[0]
        raise broken(f"tensor {name} is not in its shard {weight_map[name]}", path)
    return tensors, metadata, files


def _weight_map(path: Path) -> tuple[dict[str, object], bytes]:
    """The names of shards by tensor, as the index has them, and the index."""
    with reading(path):
        if path.stat().st_size > _MAX_INDEX_BYTES:
            raise broken("too large for an index", path)
        raw = path.read_bytes()
    weight_map = parse_object(raw, path).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise broken("an index without a weight_map", path)
    return weight_map, raw


def file_beside(index: Path, name: str, label: str, remedy: str = REMEDY) -> Path:
    """The file of that name in the directory of an index, or of another file that names it.

    Args:
        index: the file that names it.
        name: what the index says; a path or a link that leads elsewhere is refused.
        label: what the file is to the index, for messages.
        remedy: what to do if it is missing.

    Raises:
        InputError: it lies outside the directory, or is missing.
    """
    shown = f"{label} {name[:200]!r}"
    if Path(name).name != name or "\\" in name:
        raise broken(f"{shown} is outside the directory", index, _BESIDE)
    file = index.parent / name
    try:
        exists = file.is_file()
    except OSError:
        # A name that no file system takes.
        exists = False
    if not exists:
        raise broken(f"{shown} is missing", index, remedy)
    # In caches links stand for all the files, and lead to one directory.
    if not is_remote(index) and file.resolve().parent not in (
        index.parent.resolve(),
        index.resolve().parent,
    ):
        raise broken(f"{shown} is outside the directory", index, _BESIDE)
    return file
