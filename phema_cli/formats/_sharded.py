"""Checkpoints of several files: an index maps each tensor to the shard that holds it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from phema_cli.errors import InputError, StorageError
from phema_cli.formats._metadata import REMEDY, parse_object
from phema_cli.formats.base import Extent
from phema_cli.formats.locations import beside

_MAX_INDEX_BYTES = 1 << 30

#: extents and metadata of one shard.
ReadShard = Callable[[Path], tuple[Mapping[str, Extent], Mapping[str, str]]]


def read_sharded(
    path: Path, ending: str, read_shard: ReadShard
) -> tuple[dict[str, Extent], dict[str, str], tuple[Path, ...]]:
    """What an index and the shards beside it hold: extents, metadata, the shards.

    Args:
        path: the index.
        ending: of the names of its shards.
        read_shard: reads one.

    Raises:
        InputError: no index, or a shard or a tensor is missing.
        StorageError: the operating system failed.
    """
    weight_map = _weight_map(path)
    files = tuple(_shard(path, name, ending) for name in sorted(set(map(str, weight_map.values()))))
    tensors: dict[str, Extent] = {}
    metadata: dict[str, str] = {}
    for file in files:
        extents, said = read_shard(file)
        metadata = {**said, **metadata}
        tensors |= {n: e for n, e in extents.items() if weight_map.get(n) == file.name}
    lost = sorted(set(weight_map) - set(tensors))
    if lost:
        raise InputError(
            f"tensor {lost[0]} is not in its shard {weight_map[lost[0]]}",
            where=path,
            remedy=REMEDY,
        )
    return tensors, metadata, files


def _weight_map(path: Path) -> dict[str, object]:
    """The index's own table."""
    try:
        if path.stat().st_size > _MAX_INDEX_BYTES:
            raise InputError("too large for an index", where=path, remedy=REMEDY)
        raw = path.read_bytes()
    except OSError as error:
        raise StorageError.wrap(error, path, "read") from error
    weight_map = parse_object(raw, path).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise InputError("an index without a weight_map", where=path, remedy=REMEDY)
    return weight_map


def _shard(index: Path, name: str, ending: str) -> Path:
    """The shard beside the index; a name that leads elsewhere is refused."""
    if not name.endswith(ending):
        what = f"its shard {name[:200]!r} is outside the directory"
        raise InputError(what, where=index, remedy=f"shards are plain {ending} names")
    return beside(index, name, "its shard")
