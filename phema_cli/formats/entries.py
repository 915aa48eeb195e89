"""Entries of headers that several files share: parsed once, joined once, changed once.

The snapshots of a run list the same tensors at the same places, and those of a large model are
hundreds of thousands. What is asked of one has the same answer for all that are :func:`alike`.
"""

import hashlib
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from weakref import WeakValueDictionary

from phema_cli.formats.base import Entries, Entry, Extent, Tensors

#: those that some checkpoint has now, by digest.
KNOWN: WeakValueDictionary[bytes, Entries] = WeakValueDictionary()


def digest_of(*parts: bytes) -> bytes:
    """A digest of all that says what tensors there are; nobody can make two that share it."""
    digest = hashlib.blake2b(digest_size=32)
    for part in parts:
        digest.update(b"%d " % len(part) + part)
    return digest.digest()


def joined(
    index: bytes, shards: Sequence[Mapping[str, Extent]], file_of: Callable[[str], int | None]
) -> Mapping[str, Extent]:
    """The tensors of several files.

    Args:
        index: what says which file has which tensor.
        shards: the tensors of each file.
        file_of: the number of the file that a tensor is taken from.
    """
    held = [shard for shard in shards if isinstance(shard, Tensors)]
    if len(held) < len(shards):
        return {
            name: extent
            for number, shard in enumerate(shards)
            for name, extent in shard.items()
            if file_of(name) == number
        }
    digest = digest_of(index, *(shard.entries.digest for shard in held))
    entries = KNOWN.get(digest)
    if entries is None:
        named = {
            name: entry._replace(file=number)
            for number, shard in enumerate(held)
            for name, entry in shard.entries.named.items()
            if file_of(name) == number
        }
        parts = tuple(shard.entries for shard in held)
        entries = KNOWN[digest] = Entries(named, _size(named.values()), digest, parts)
    return Tensors(entries, tuple(place for shard in held for place in shard.places))


def alike(one: Mapping[str, Extent], other: Mapping[str, Extent]) -> bool:
    """Whether two checkpoints surely have the same tensors, of the same shapes, types and order."""
    return layout_of(one) == layout_of(other)


def layout_of(tensors: Mapping[str, Extent]) -> object:
    """The same value for all that are :func:`alike`, to find them by."""
    return tensors.entries if isinstance(tensors, Tensors) else id(tensors)


def changed(
    lists: Iterable[Mapping[str, Extent]], name_of: Callable[[str], str | None]
) -> list[Mapping[str, Extent]]:
    """Tensors under other names, or without some; those that are alike stay so.

    Args:
        lists: of each checkpoint.
        name_of: a tensor's new name, None if it is left out.
    """
    made: dict[Entries, Entries] = {}
    result: list[Mapping[str, Extent]] = []
    for tensors in lists:
        names = {new: n for n in tensors if (new := name_of(n)) is not None}
        if not isinstance(tensors, Tensors):
            result.append({new: replace(tensors[n], name=new) for new, n in names.items()})
            continue
        before = tensors.entries
        if before not in made:
            named = {new: before.named[n] for new, n in names.items()}
            made[before] = Entries(named, _size(named.values()))
        result.append(Tensors(made[before], tensors.places))
    return result


def _size(entries: Iterable[Entry]) -> int:
    """Bytes of all tensors."""
    return sum(e.dtype.size_bytes(math.prod(e.shape)) for e in entries)
