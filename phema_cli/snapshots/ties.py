"""Tied tensors that some snapshots store and others leave out.

A library that saves ``lm_head.weight`` beside the ``model.embed_tokens.weight`` that it shares its
values with may leave it out another time. Where a snapshot lacks a tensor, and every snapshot that
has it holds the same bits under another name, it is that other tensor there as well.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from phema_cli.errors import InputError
from phema_cli.formats.base import Checkpoint, Extent
from phema_cli.formats.reader import FileReader
from phema_cli.globs import matching
from phema_cli.snapshots.consistency import Finding, Snapshot, is_float, reference

#: bytes that are compared at a time: few at first, which tell most tensors apart.
_FIRST_BYTES, _CHUNK_BYTES = 1 << 12, 4 << 20
#: missing tensors up to which all others of their shape are looked at: models have few ties.
_MOST_MISSING = 32
#: how names of tensors that models tie end: input and output embeddings, and the latter's bias.
_KNOWN = (
    "embed_tokens.weight",
    "word_embeddings.weight",
    "tok_embeddings.weight",
    "token_embedding.weight",
    "wte.weight",
    "embed_in.weight",
    "shared.weight",
    "lm_head.weight",
    "embed_out.weight",
    "proj_out.weight",
    "output.weight",
    "decoder.weight",
    "predictions.bias",
    "decoder.bias",
)


def with_ties(
    snapshots: Sequence[Snapshot], copy: Sequence[str]
) -> tuple[list[Snapshot], list[Finding]]:
    """Snapshots with tied tensors where they left them out, and without those the newest lacks.

    Reads tensors, where it has to: they are compared bit for bit.

    Args:
        snapshots: oldest first, with one of the whole model at least.
        copy: globs of tensor names that are copied.
    """
    found = [s.checkpoint for s in snapshots]
    whole = [s.checkpoint for s in snapshots if not s.partial]
    newest = reference(snapshots).checkpoint
    missing = list(_missing(found, whole, copy))
    with FileReader() as reader:
        search = _Search(found, whole, missing, reader)
        partners = {n: p for n in missing if (p := search.partner(n)) is not None}
        alone = [n for n in missing if n not in partners]
        constants = {n: e for n in alone if (e := search.constant(n)) is not None}
    left = {n: p for n, p in partners.items() if n not in newest.tensors}
    left |= dict.fromkeys((n for n in constants if n not in newest.tensors), "")
    taken = {n: p for n, p in partners.items() if n in newest.tensors}
    kept = {n: e for n, e in constants.items() if n not in left}
    made = [
        replace(s, checkpoint=_settled(s.checkpoint, taken, left, {} if s.partial else kept))
        for s in snapshots
    ]
    told = []
    for name in constants:
        then = "left out, as in the newest" if name in left else "taken so everywhere"
        what = f"tensor {name} is the same wherever it is stored, and {then}"
        told.append(Finding("notice", InputError(what)))
    for name, partner in taken.items():
        count = sum(name in b.checkpoint.tensors for b in made) - sum(
            name in c.tensors for c in found
        )
        if count:
            told.append(_notice(name, partner, f"and is taken for it in {count} that leave it out"))
    told += [
        _notice(n, p, "and the newest leaves it out, as outputs do") for n, p in left.items() if p
    ]
    return made, told


def _notice(name: str, partner: str, then: str) -> Finding:
    """What was found of a tensor and done with it."""
    what = f"tensor {name} equals {partner} in every snapshot that has it, {then}"
    return Finding("notice", InputError(what))


def _missing(
    found: Sequence[Checkpoint], whole: Sequence[Checkpoint], copy: Sequence[str]
) -> Iterator[str]:
    """Floats that a checkpoint of the whole model has and another checkpoint lacks."""
    names = dict.fromkeys(n for c in reversed(whole) for n, e in c.tensors.items() if is_float(e))
    copied = matching(copy)
    for name in names:
        if not all(name in c.tensors for c in found) and not copied(name):
            yield name


def _settled(
    checkpoint: Checkpoint,
    taken: dict[str, str],
    left: dict[str, str],
    constants: dict[str, Extent],
) -> Checkpoint:
    """The checkpoint with its tied tensors under both names, or under one, and with constants."""
    tensors = {n: e for n, e in checkpoint.tensors.items() if n not in left}
    for name, partner in taken.items():
        if name not in tensors and partner in tensors:
            tensors[name] = replace(tensors[partner], name=name)
    tensors |= {n: e for n, e in constants.items() if n not in tensors}
    return replace(checkpoint, tensors=tensors)


class _Search:
    """The search for what tensors are tied to.

    Args:
        found: all checkpoints.
        whole: those of the whole model.
        missing: the tensors.
        reader: what reads them.
    """

    def __init__(
        self,
        found: Sequence[Checkpoint],
        whole: Sequence[Checkpoint],
        missing: Sequence[str],
        reader: FileReader,
    ) -> None:
        self._found = found
        self._whole = whole
        self._reader = reader
        # A part of the model lacks what is not averaged: no reason to read all tensors.
        lacking = {n for n in missing if any(n not in c.tensors for c in whole)}
        self._wide = lacking if len(lacking) <= _MOST_MISSING else set()
        self._places: dict[int, dict[object, list[str]]] = {}

    def partner(self, name: str) -> str | None:
        """The first tensor that has the same bits in every checkpoint that has this one."""
        having = [c for c in self._found if name in c.tensors]
        tried = (n for n in self._candidates(name) if self._may_be(name, n, having))
        return next((n for n in tried if self._is_tied(name, n, having)), None)

    def constant(self, name: str) -> Extent | None:
        """Where the newest of several whole checkpoints has a tensor whose bits never change."""
        stored = [c.tensors[name] for c in self._whole if name in c.tensors]
        last = stored[-1]
        if len(stored) == 1 or any(
            e.shape != last.shape or e.dtype != last.dtype for e in stored[:-1]
        ):
            return None
        same = all(_compare(e, last, self._reader) is not None for e in stored[:-1])
        return last if same else None

    def _candidates(self, name: str) -> list[str]:
        """Tensors that may be this one: in its place, known to be tied, then all others."""
        own = next(c for c in reversed(self._whole) if name in c.tensors)
        known = [n for n in own.tensors if _is_known(name, n)] if name.endswith(_KNOWN) else []
        others = list(own.tensors) if name in self._wide else []
        return list(dict.fromkeys([*self._beside(own, name), *known, *others]))

    def _beside(self, checkpoint: Checkpoint, name: str) -> list[str]:
        """Names of the tensor that lies in the place of this one."""
        places = self._places.setdefault(id(checkpoint), {})
        if not places:
            for other, extent in checkpoint.tensors.items():
                places.setdefault(_place(extent), []).append(other)
        return places[_place(checkpoint.tensors[name])]

    def _may_be(self, name: str, other: str, having: Sequence[Checkpoint]) -> bool:
        """Whether a tensor is like this one, by what headers say."""
        if other == name or not all(other in c.tensors for c in self._whole):
            return False
        shapes = {c.tensors[n].shape for c in self._found for n in (name, other) if n in c.tensors}
        return len(shapes) == 1 and all(
            c.tensors[other].dtype == c.tensors[name].dtype for c in having if other in c.tensors
        )

    def _is_tied(self, name: str, other: str, having: Sequence[Checkpoint]) -> bool:
        """Whether the bits are the same wherever both are, and say something."""
        telling = _is_known(name, other)
        for checkpoint in having:
            a, b = checkpoint.tensors[name], checkpoint.tensors.get(other)
            if b is None:
                continue
            same = _place(a) == _place(b)
            varied = same or _compare(a, b, self._reader)
            if varied is None:
                return False
            telling = telling or varied
        # Many biases are all zeros, and many scales all ones.
        return telling


def _is_known(name: str, other: str) -> bool:
    """Whether models tie tensors of the two names."""
    return name.endswith(_KNOWN) and other.endswith(_KNOWN)


def _place(extent: Extent) -> object:
    """What two names of one stored tensor have in common."""
    return extent.file, extent.offset, extent.strides, extent.pieces, extent.shape


def _compare(a: Extent, b: Extent, reader: FileReader) -> bool | None:
    """None where the bits of two tensors differ, else whether their elements do among themselves.

    Args:
        a: a tensor of floats.
        b: one of the same type and shape.
        reader: what reads them.
    """
    size = a.dtype.bits // 8
    start, room, varied = 0, _FIRST_BYTES, False
    first: NDArray[np.unsignedinteger] | None = None
    while start < a.elements:
        count = min(room // size, a.elements - start)
        pair = np.empty((2, count), dtype=f"u{size}")
        reader.read_many(
            [(e, start, row.view(np.uint8).data) for e, row in zip((a, b), pair, strict=True)]
        )
        if not np.array_equal(*pair):
            return None
        first = pair[0, :1].copy() if first is None else first
        varied = varied or bool((pair[0] != first).any())
        start, room = start + count, _CHUNK_BYTES
    return varied
