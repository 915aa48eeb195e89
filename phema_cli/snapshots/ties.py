"""Tied tensors that some snapshots store and others leave out.

A library that saves ``lm_head.weight`` beside the ``model.embed_tokens.weight`` that it shares its
values with may leave it out another time. Where a snapshot lacks a tensor, and every snapshot that
has it holds the same bits under another name, it is that other tensor there as well.

Snapshots come oldest first; ``copy`` are globs of the names of tensors that are copied.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from phema_cli.formats.base import Checkpoint, Extent
from phema_cli.formats.reader import FileReader
from phema_cli.globs import matching
from phema_cli.snapshots.base import Finding, Snapshot, is_float, notice, reference

#: bytes that are compared at a time: few at first, which are enough for most tensors.
_FIRST_BYTES, _CHUNK_BYTES = 1 << 12, 4 << 20
#: up to so many missing tensors all others of their shape are compared: models have few ties.
_MOST_MISSING = 32
#: endings of the names of tied tensors: input and output embeddings, and the output's bias.
_KNOWN = (
    *("embed_tokens.weight", "word_embeddings.weight", "tok_embeddings.weight"),
    *("token_embedding.weight", "wte.weight", "embed_in.weight", "shared.weight"),
    *("lm_head.weight", "embed_out.weight", "proj_out.weight", "output.weight", "decoder.weight"),
    *("predictions.bias", "decoder.bias"),
)


def with_ties(
    snapshots: Sequence[Snapshot], copy: Sequence[str]
) -> tuple[list[Snapshot], list[Finding]]:
    """Snapshots with the tied tensors that they lack, and without those that the newest lacks.

    Reads tensors if it has to: they are compared bit for bit. One snapshot at least has to be of
    the whole model.
    """
    with FileReader() as reader:
        search = _Search(snapshots, copy, reader)
        missing = search.missing
        partners = {n: p for n in missing if (p := search.partner(n)) is not None}
        alone = [n for n in missing if n not in partners]
        constants = {n: e for n in alone if (e := search.constant(n)) is not None}
    newest = reference(snapshots).checkpoint.tensors
    surplus = {n for n in missing if n not in newest and (n in partners or n in constants)}
    completed = [_completed(s, partners, constants, surplus) for s in snapshots]
    findings, lost = [], "the newest lacks it, and so do outputs"
    for name in constants:
        rest = lost if name in surplus else "others get it too"
        findings.append(notice(f"tensor {name} is the same in every snapshot that has it; {rest}"))
    for name, partner in partners.items():
        gained = sum(name in s.checkpoint.tensors for s in completed) - sum(
            name in s.checkpoint.tensors for s in snapshots
        )
        rest = lost if name in surplus else f"{gained} that lack it get {partner} in its place"
        if name in surplus or gained:
            what = f"tensor {name} equals {partner} in every snapshot that has it; {rest}"
            findings.append(notice(what))
    return completed, findings


def _completed(
    snapshot: Snapshot,
    partners: Mapping[str, str],
    constants: Mapping[str, Extent],
    surplus: Collection[str],
) -> Snapshot:
    """The snapshot with tied and constant tensors that it lacks, without those of no output."""
    tensors = {n: e for n, e in snapshot.checkpoint.tensors.items() if n not in surplus}
    for name, partner in partners.items():
        if name not in tensors and name not in surplus and partner in tensors:
            tensors[name] = replace(tensors[partner], name=name)
    for name, extent in constants.items() if not snapshot.partial else ():
        if name not in surplus:
            tensors.setdefault(name, extent)
    return replace(snapshot, checkpoint=replace(snapshot.checkpoint, tensors=tensors))


class _Search:
    """The search for the tensors that missing ones are tied to.

    Attributes:
        missing: floats that a snapshot of the whole model has and another snapshot lacks.
    """

    def __init__(
        self, snapshots: Sequence[Snapshot], copy: Sequence[str], reader: FileReader
    ) -> None:
        self._checkpoints = [s.checkpoint for s in snapshots]
        self._whole = whole = [s.checkpoint for s in snapshots if not s.partial]
        self._reader = reader
        copied = matching(copy)
        floats = (n for c in reversed(whole) for n, e in c.tensors.items() if is_float(e))
        self.missing = [
            name
            for name in dict.fromkeys(floats)
            if not all(name in c.tensors for c in self._checkpoints) and not copied(name)
        ]
        # An average of a part of the model lacks many: no reason to read all tensors.
        lacking = {n for n in self.missing if any(n not in c.tensors for c in whole)}
        self._wide = lacking if len(lacking) <= _MOST_MISSING else set()
        self._places: dict[int, dict[object, list[str]]] = {}

    def partner(self, name: str) -> str | None:
        """The first tensor that has the same bits in every checkpoint that has this one."""
        having = [c for c in self._checkpoints if name in c.tensors]
        tried = (n for n in self._candidates(name) if self._may_be(name, n, having))
        return next((n for n in tried if self._is_tied(name, n, having)), None)

    def constant(self, name: str) -> Extent | None:
        """The newest place of a tensor whose bits are the same in several whole checkpoints."""
        stored = [c.tensors[name] for c in self._whole if name in c.tensors]
        last = stored[-1]
        if len(stored) == 1 or any(
            e.shape != last.shape or e.dtype != last.dtype for e in stored[:-1]
        ):
            return None
        same = all(_compare(e, last, self._reader) is not None for e in stored[:-1])
        return last if same else None

    def _candidates(self, name: str) -> list[str]:
        """Tensors that may be tied to this one: of the same place, of a known name, then all."""
        own = next(c for c in reversed(self._whole) if name in c.tensors)
        known = [n for n in own.tensors if _is_known(name, n)] if name.endswith(_KNOWN) else []
        others = list(own.tensors) if name in self._wide else []
        return list(dict.fromkeys([*self._beside(own, name), *known, *others]))

    def _beside(self, checkpoint: Checkpoint, name: str) -> list[str]:
        """Names of the tensor at the place of this one."""
        places = self._places.setdefault(id(checkpoint), {})
        if not places:
            for other, extent in checkpoint.tensors.items():
                places.setdefault(_place(extent), []).append(other)
        return places[_place(checkpoint.tensors[name])]

    def _may_be(self, name: str, other: str, having: Sequence[Checkpoint]) -> bool:
        """Whether a tensor may be tied to this one, by the headers."""
        if other == name or not all(other in c.tensors for c in self._whole):
            return False
        both = (c.tensors.get(n) for c in self._checkpoints for n in (name, other))
        shapes = {e.shape for e in both if e is not None}
        return len(shapes) == 1 and all(
            c.tensors[other].dtype == c.tensors[name].dtype for c in having if other in c.tensors
        )

    def _is_tied(self, name: str, other: str, having: Sequence[Checkpoint]) -> bool:
        """Whether the bits are the same in all checkpoints with both, and not by chance."""
        enough = _is_known(name, other)
        for checkpoint in having:
            a, b = checkpoint.tensors[name], checkpoint.tensors.get(other)
            if b is None:
                continue
            same = _place(a) == _place(b)
            varied = same or _compare(a, b, self._reader)
            if varied is None:
                return False
            enough = enough or varied
        # Many biases are all zeros, and many scales all ones: they may be the same by chance.
        return enough


def _is_known(name: str, other: str) -> bool:
    """Whether models tie tensors of the two names."""
    return name.endswith(_KNOWN) and other.endswith(_KNOWN)


def _place(extent: Extent) -> object:
    """The same value for all names of one stored tensor."""
    return extent.file, extent.offset, extent.strides, extent.pieces, extent.shape


def _compare(a: Extent, b: Extent, reader: FileReader) -> bool | None:
    """None if the bits of two tensors differ; else whether the elements differ from each other.

    Both are of floats of one type and shape.
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
