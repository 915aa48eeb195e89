"""Digests of sources: BLAKE2b over the values that were read, in blocks that workers share.

A block is 2^20 elements of a tensor in row-major order, little-endian as they are stored; the last
one may be shorter. A tensor's digest is that of its blocks' digests, one after the other. A
source's is that of the tensors which were read of it, as JSON. So neither tiles, workers, formats
nor shards show in it.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace

from phema_cli.formats.base import DType
from phema_cli.synthesis.provenance import with_digests
from phema_cli.synthesis.recipe import Recipe, with_origins
from phema_cli.synthesis.tensors import TensorPlan

#: elements of a block.
BLOCK_ELEMENTS = 1 << 20
_DIGEST_BYTES = 32
_BLANK = "0" * (2 * _DIGEST_BYTES)

#: digests of blocks, by source and name of the tensor, by number.
Leaves = dict[tuple[int, str], dict[int, bytes]]


def _blake2b() -> hashlib.blake2b:
    return hashlib.blake2b(digest_size=_DIGEST_BYTES)


class Hasher:
    """One worker's digests of blocks.

    Attributes:
        leaves: those that are complete.
    """

    def __init__(self) -> None:
        self.leaves: Leaves = {}
        self._open: dict[int, hashlib.blake2b] = {}

    def add(
        self, source: int, plan: TensorPlan, dtype: DType, start: int, data: memoryview
    ) -> None:
        """Take values of a source's tensor, those of a block in order and without others between.

        Args:
            source: its index in the recipe.
            plan: the tensor.
            dtype: its type there.
            start: index of the first element, which begins at a whole byte.
            data: a whole number of elements.
        """
        size = dtype.size_bytes(BLOCK_ELEMENTS)
        at, end = dtype.size_bytes(start), dtype.size_bytes(plan.elements)
        while data:
            number, inside = divmod(at, size)
            if inside == 0:
                self._open[source] = _blake2b()
            part, data = data[: size - inside], data[size - inside :]
            self._open[source].update(part)
            at += len(part)
            if at in {end, (number + 1) * size}:
                leaves = self.leaves.setdefault((source, plan.name), {})
                leaves[number] = self._open.pop(source).digest()


def prepared(recipe: Recipe) -> Recipe:
    """The recipe with digests of sources, whose places in the outputs are still blank."""
    blanks = [
        [_BLANK if _read(recipe, source, target) else None for source in range(len(recipe.sources))]
        for target in range(len(recipe.outputs))
    ]
    return replace(_recorded(recipe, blanks), digest=True)


def sealed(recipe: Recipe, leaves: Leaves) -> Recipe:
    """The recipe of :func:`prepared` with the digests in their places.

    Args:
        recipe: what was done.
        leaves: digests of all blocks that were read.
    """
    targets = range(len(recipe.outputs))
    return _recorded(recipe, [source_digests(recipe, leaves, target) for target in targets])


def _recorded(recipe: Recipe, digests: list[list[str | None]]) -> Recipe:
    """The recipe with other digests in its outputs."""
    pairs = zip(recipe.origins, digests, strict=True)
    return with_origins(recipe, [with_digests(origin, found) for origin, found in pairs])


def source_digests(recipe: Recipe, leaves: Leaves, target: int) -> list[str | None]:
    """The digest, in hexadecimal, of what a target was made of, by source; None of what was not."""
    return [_source_digest(recipe, leaves, i, target) for i in range(len(recipe.sources))]


def _source_digest(recipe: Recipe, leaves: Leaves, source: int, target: int) -> str | None:
    """One source's digest."""
    tensors = []
    for plan in sorted(_read(recipe, source, target), key=lambda plan: plan.name):
        told = _blake2b()
        for _, leaf in sorted(leaves.get((source, plan.name), {}).items()):
            told.update(leaf)
        stored = recipe.extent(source, plan.name).dtype.name
        tensors.append([plan.name, stored, list(plan.shape), told.hexdigest()])
    if not tensors:
        return None
    told = _blake2b()
    told.update(json.dumps(tensors, separators=(",", ":"), ensure_ascii=False).encode())
    return told.hexdigest()


def _read(recipe: Recipe, source: int, target: int) -> list[TensorPlan]:
    """Tensors of a source that a target is made of."""
    weighs = bool(recipe.weights[source, target] != 0)

    def is_read(plan: TensorPlan) -> bool:
        return weighs if plan.average else recipe.giver(target, plan.name) == source

    return [plan for plan in recipe.tensors if is_read(plan)]
