"""What is read and written together: segments of tensors, and runs of tiles in them."""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from phema_cli.formats.base import Extent, Link, Part
from phema_cli.formats.packing import places_of
from phema_cli.formats.reader import FileReader
from phema_cli.formats.strided import is_plain
from phema_cli.snapshots.base import distinct
from phema_cli.synthesis.packed import Terms
from phema_cli.synthesis.recipe import Recipe
from phema_cli.synthesis.tensors import TensorPlan


@dataclass(frozen=True, slots=True)
class Place:
    """Where a segment goes in an output.

    Attributes:
        path: the file that it is written to.
        offset: byte at which its first element lies.
        checksum: name of the tensor whose CRC-32 the file holds, if it holds one.
    """

    path: Path
    offset: int
    checksum: str | None


@dataclass(frozen=True, slots=True)
class Segment:
    """Tensors that are treated alike and lie one after the other everywhere, as one.

    Attributes:
        plan: the first tensor's treatment.
        plans: all of them.
        elements: number of elements of all.
        sources: where the first element lies in each source that is read, by the source's index,
            as an extent of all elements; newest first where they are averaged, and of packed
            tensors in each whole row, by its number.
        residues: of packed tensors, files with residues, and the tensor's name in them.
        places: where they go in each output.
    """

    plan: TensorPlan
    plans: tuple[TensorPlan, ...]
    elements: int
    sources: Mapping[int, Extent]
    places: tuple[Place, ...]
    residues: tuple[tuple[Part, str], ...] = ()

    def read(self, reader: FileReader, start: int, rows: Sequence[memoryview]) -> None:
        """Fill a row for each source with its elements from ``start`` on.

        Packed tensors have rows of their own: those of ``Terms``.
        """
        extents, count = list(self.sources.values()), len(self.residues)
        whole, integers = rows[: len(extents)], rows[len(extents) :]
        if self.plan.kind.stored:
            wanted = zip(extents, whole, strict=True)
            reader.read_many([(extent, start, row) for extent, row in wanted])
        else:
            reader.read_rows(extents, start, whole)
        for i, (part, name) in enumerate(self.residues):
            reader.read_packed(part, name, start, integers[i], integers[count + i])

    def stored(
        self, start: int, rows: Sequence[memoryview]
    ) -> Iterator[tuple[Path, int, memoryview]]:
        """The rows of packed tensors that hold bytes as a file has them: the file, the first byte.

        Args:
            start: index of the first element.
            rows: as :meth:`read` has filled them.
        """
        for extent, row in zip(self.sources.values(), rows, strict=False):
            if is_plain(extent):
                yield extent.file, extent.offset + extent.dtype.size_bytes(start), row
        integers, count = rows[len(self.sources) :], len(self.residues)
        for i, (part, name) in enumerate(self.residues):
            held = integers[i], integers[count + i]
            for place, row in zip(places_of(part, name, start), held, strict=True):
                yield part.path, place, row

    def parts(self, start: int, stop: int) -> Iterator[tuple[TensorPlan, int, int, int]]:
        """Tensors in a range of elements: where they begin and end in it, and their first there."""
        begin = 0
        for plan in self.plans:
            low, high = max(begin, start), min(begin + plan.elements, stop)
            if low < high:
                yield plan, low - start, high - start, low - begin
            begin += plan.elements


@dataclass(frozen=True, slots=True)
class Run:
    """A range of a segment's elements, the same on every rank and in every run of a recipe.

    Attributes:
        number: its place among all of them.
        segment: the segment.
        start: index of its first element.
        stop: index behind its last one.
    """

    number: int
    segment: Segment
    start: int
    stop: int

    @property
    def size_bytes(self) -> int:
        """Bytes in an output."""
        return self.segment.plan.kind.out.size_bytes(self.stop - self.start)


def runs(recipe: Recipe, elements: int) -> Iterator[Run]:
    """All elements of a recipe, at most so many at a time, in the order of the outputs."""
    numbers = itertools.count()
    for segment in segments(recipe):
        for start in range(0, segment.elements, elements):
            stop = min(start + elements, segment.elements)
            yield Run(next(numbers), segment, start, stop)


def segments(recipe: Recipe) -> Iterator[Segment]:
    """All tensors of a recipe, in the order in which they lie in the outputs."""
    neighbours: list[list[TensorPlan]] = []
    for plan in recipe.tensors:
        if neighbours and _continues(recipe, neighbours[-1][-1], plan):
            neighbours[-1].append(plan)
        else:
            neighbours.append([plan])
    for plans in neighbours:
        first = plans[0]
        elements = sum(plan.elements for plan in plans)
        residues: tuple[tuple[Part, str], ...] = ()
        if first.kind.packed and recipe.terms is not None:
            extents, residues = _packed(recipe, recipe.terms, first.name)
        else:
            extents = {i: recipe.extent(i, first.name) for i in _read(recipe, first)}
        if len(plans) > 1:
            extents = {source: replace(e, shape=(elements,)) for source, e in extents.items()}
        places = []
        for output in recipe.outputs:
            file = output.files[output.homes[first.name]]
            checksum = first.name if first.name in file.image.checksums else None
            offset = file.image.offsets[first.name]
            places.append(Place(output.staged(file.path), offset, checksum))
        yield Segment(first, tuple(plans), elements, extents, tuple(places), residues)


def _packed(
    recipe: Recipe, rows: Terms, name: str
) -> tuple[dict[int, Extent], tuple[tuple[Part, str], ...]]:
    """Where a packed tensor lies in whole rows, and what has its residues."""
    own = [recipe.extent(source, name) for source in recipe.used]
    (stored_as,) = {e.packed.name for e in own if e.packed is not None}
    whole = {
        row: of.keyframe[stored_as] if isinstance(of, Link) else recipe.extent(of, name)
        for row, of in enumerate(rows.whole)
    }
    return whole, tuple((part, stored_as) for part in rows.parts)


def _continues(recipe: Recipe, before: TensorPlan, plan: TensorPlan) -> bool:
    """Whether a tensor follows on another one in every source and output."""
    if (before.kind, before.average) != (plan.kind, plan.average):
        return False
    sources = _read(recipe, plan)
    if sources != _read(recipe, before):
        return False
    for output in recipe.outputs:
        image = output.files[output.homes[plan.name]].image
        if output.homes[before.name] != output.homes[plan.name] or image.checksums:
            return False
        end = image.offsets[before.name] + before.kind.out.size_bytes(before.elements)
        if image.offsets[plan.name] != end:
            return False
    return all(
        _follows(s.checkpoint.tensors[before.name], s.checkpoint.tensors[plan.name])
        for s in distinct(recipe.sources[source] for source in sources)
    )


def _read(recipe: Recipe, plan: TensorPlan) -> Sequence[int]:
    """The sources that a tensor is read of: those that weigh, or where it is copied give it."""
    if plan.average:
        return recipe.used
    return sorted({recipe.giver(target, plan.name) for target in range(len(recipe.outputs))})


def _follows(first: Extent, second: Extent) -> bool:
    """Whether both lie in one run, one after the other, and the second begins at a whole byte."""
    return (
        second.offset == first.offset + first.length
        and first.file == second.file
        and is_plain(first)
        and is_plain(second)
        and first.elements * first.dtype.bits % 8 == 0
    )
