"""Writes packed snapshots, chain by chain: each input is read once, and never touched.

A chain's files get their names together, in their order, when all of them are complete and on the
disk. A log beside them says which chains are done, so that a killed run resumes.
"""

import hashlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from phema_cli._version import __version__
from phema_cli.errors import ALL_WRITTEN, InputError, StorageError, UsageError
from phema_cli.formats import writer
from phema_cli.formats.base import PARTIAL, Extent
from phema_cli.formats.image import HASH_DIGITS, FileImage
from phema_cli.formats.packing import (
    BLOCK,
    CHECKSUM_KEY,
    FOLLOWED,
    KEY,
    SCALES,
    VALUES,
    Doubles,
    Floats,
    Followed,
    Packing,
    encode,
)
from phema_cli.formats.reader import FileReader, OpenFiles
from phema_cli.formats.stamps import refuse_changed
from phema_cli.pack.plan import PackPlan, laws_of, metadata_of
from phema_cli.snapshots.config import FILE_NAME
from phema_cli.system.files import (
    create,
    free_bytes,
    replace,
    sync,
    sync_folder,
    whole,
    write_at,
    writing,
)
from phema_cli.system.log import Log
from phema_cli.system.pools import Pool, Progress, threaded
from phema_cli.system.processes import files_of_each
from phema_cli.system.signals import held_signals, set_outcome

LOG_NAME = ".phema-pack"
_SCHEMA = "phema/packing-run/1"
#: bytes that a worker needs for an element: movements, values, and what the encoding takes.
_ELEMENT_BYTES = 160
_LARGEST_TILE = 1 << 18
_COPIED_BYTES = 1 << 20
_NO_CHECKSUM = "0" * HASH_DIGITS["crc32"]


@dataclass(frozen=True, slots=True)
class _Piece:
    """A part of a tensor that is packed, or copied, in all files of a chain.

    Attributes:
        name: the tensor's.
        start: its first element.
        count: elements.
        place: the only file that has it, of tensors that are copied.
    """

    name: str
    start: int
    count: int
    place: int | None = None


def write(plan: PackPlan, progress: Progress | None = None) -> list[Path]:
    """Write the files of a plan; returns their paths.

    Args:
        plan: what to write.
        progress: called with a number of bytes read, from one thread.

    Raises:
        InputError: a snapshot has changed since its header was read, or holds values that are not
            finite.
        StorageError: the operating system failed to read or write.
        UsageError: a file exists already.
    """
    folder = Path(plan.request.output)
    paths = [folder / file.name for file in plan.files]
    laws = laws_of(plan.files)
    table = [] if laws is None else [folder / FILE_NAME]
    with _log(plan, folder, [*paths, *table]) as log:
        done = {entry["chain"] for entry in log.entries()[1:]}
        _check_room(plan, folder, done)
        for number, chain in enumerate(plan.chains):
            if number not in done:
                _write_chain(plan, folder, chain, progress or (lambda _: None))
                log.append({"chain": number})
        if laws is not None:
            with whole(folder / FILE_NAME) as unfinished:
                unfinished.write_text(laws, encoding="utf-8", newline="\n")
    return paths


@contextmanager
def _log(plan: PackPlan, folder: Path, paths: Sequence[Path]) -> Iterator[Log]:
    """The locked log of a packing into a directory; it is gone when all is written.

    Raises:
        UsageError: another packing has left its work there.
        StorageError: another process packs there, or the operating system failed.
    """
    log = Log(folder / LOG_NAME, checksums=True)
    begun = {"schema": _SCHEMA, "plan": _fingerprint(plan)}
    try:
        with writing(folder):
            _begin(log, begun, paths)
        try:
            yield log
            with held_signals():
                log.unlock(remove=True)
                set_outcome(ALL_WRITTEN)
        except BaseException as error:
            with held_signals():
                _abandon(log, paths, error)
            raise
    finally:
        log.unlock()
        with suppress(OSError):
            folder.rmdir()


def _abandon(log: Log, paths: Sequence[Path], error: BaseException) -> None:
    """Leave the log where files have their names, since a run resumes by it; say what is there."""
    if not log.path.exists():
        return
    if any(map(os.path.lexists, paths)):
        error.add_note(f"the same command resumes in {log.path.parent}")
    else:
        log.unlock(remove=True)


def _begin(log: Log, begun: dict[str, str], paths: Sequence[Path]) -> None:
    """Lock a log, and write its first line or find it there.

    Raises:
        UsageError: it is that of another packing, or files exist that no packing has left.
        StorageError: another process packs there.
    """
    log.path.parent.mkdir(parents=True, exist_ok=True)
    log.lock()
    log.truncate()
    entries = log.entries()
    if not entries:
        for path in paths:
            if os.path.lexists(path):
                log.unlock(remove=True)
                raise UsageError("exists already", where=path, remedy="choose another -o")
        # From here on what lies under these names was written by this packing.
        log.append(begun)
    elif entries[0] != begun:
        raise UsageError(
            "holds the unfinished files of another packing",
            where=log.path.parent,
            remedy="run its command again to finish it, or choose another -o",
        )


def _fingerprint(plan: PackPlan) -> str:
    """What is the same for two runs that write the same bytes, in hexadecimal."""
    facts = (
        (__version__, plan.request.bits, plan.request.keyframe_every, sorted(plan.tensors)),
        [(f.name, f.follows, f.coefficients, metadata_of(f)) for f in plan.files],
        [sorted((str(p), s) for p, s in f.snapshot.checkpoint.stamps.items()) for f in plan.files],
        [(f.snapshot.checkpoint.key, f.snapshot.checkpoint.home) for f in plan.files],
    )
    return hashlib.blake2b(
        repr(facts).encode(errors="backslashreplace"), digest_size=16
    ).hexdigest()


def _check_room(plan: PackPlan, folder: Path, done: set[int]) -> None:
    """Refuse a disk without room; raises ``StorageError``."""
    places = [p for n, chain in enumerate(plan.chains) if n not in done for p in chain]
    needed = plan.bytes_of(places)
    free = free_bytes(folder)
    if free is not None and needed > free:
        raise StorageError(
            f"needs {needed:,} bytes, and {free:,} are free",
            where=folder,
            remedy="free space there, or pass another -o",
        )


def _write_chain(plan: PackPlan, folder: Path, chain: Sequence[int], progress: Progress) -> None:
    """Write the files of a chain; none is left if that fails."""
    partial_paths = {p: folder / f"{plan.files[p].name}{PARTIAL}" for p in chain}
    images = {p: _image(plan, chain, p, {}) for p in chain}
    try:
        with writing(folder):
            for place, path in partial_paths.items():
                create(path, images[place].size_bytes, ())
        pieces = list(_pieces(plan, chain))
        work = partial(_work, plan, chain, partial_paths, images, pieces)
        threaded(work, len(pieces), plan.jobs, progress, lambda _: None)
        for place in chain:
            remedy = "run again when nothing writes to the snapshots"
            refuse_changed(plan.files[place].snapshot.checkpoint.stamps, remedy)
        _add_headers(plan, chain, partial_paths)
        with writing(folder):
            for path in partial_paths.values():
                sync(path)
            with held_signals():
                for place, path in partial_paths.items():
                    replace(path, folder / plan.files[place].name)
                sync_folder(folder)
    finally:
        for path in partial_paths.values():
            with suppress(OSError):
                path.unlink(missing_ok=True)


def _image(
    plan: PackPlan, chain: Sequence[int], place: int, checksums: Mapping[int, str]
) -> FileImage:
    """A file as it will be; checksums that are not known yet are as long as those that are."""
    file = plan.files[place]
    packing = Packing()
    if place != chain[0]:
        key = plan.files[chain[0]].name, checksums.get(chain[0], _NO_CHECKSUM)
        follows = (
            Followed(plan.files[other].name, checksums.get(other, _NO_CHECKSUM), coefficient)
            for other, coefficient in zip(file.follows, file.coefficients, strict=True)
        )
        packing = Packing(plan.request.bits, key, tuple(follows))
    metadata = {**metadata_of(file), KEY: packing.text(), CHECKSUM_KEY: ""}
    checkpoint = file.snapshot.checkpoint
    return writer("safetensors").encode(plan.specs(place), metadata, checkpoint.ties, checkpoint)


def _pieces(plan: PackPlan, chain: Sequence[int]) -> Iterator[_Piece]:
    """All that is written of a chain, in pieces that need no more memory than allowed."""
    size = plan.request.max_memory // 2 // plan.jobs // _ELEMENT_BYTES // BLOCK * BLOCK
    size = min(max(size, BLOCK), _LARGEST_TILE)
    for extent in plan.files[chain[0]].snapshot.checkpoint.stored:
        if extent.name in plan.tensors:
            for start in range(0, extent.elements, size):
                yield _Piece(extent.name, start, min(size, extent.elements - start))
    for place in chain:
        for extent in plan.files[place].snapshot.checkpoint.stored:
            if extent.name not in plan.tensors:
                step = _COPIED_BYTES // extent.dtype.bits * 8
                for start in range(0, extent.elements, step):
                    count = min(step, extent.elements - start)
                    yield _Piece(extent.name, start, count, place)


def _work(
    plan: PackPlan,
    chain: Sequence[int],
    paths: Mapping[int, Path],
    images: Mapping[int, FileImage],
    pieces: Sequence[_Piece],
    pool: Pool,
) -> None:
    """One worker: take pieces until none is left."""
    limit = files_of_each(plan.jobs)
    with FileReader(limit) as reader, OpenFiles(limit, os.O_WRONLY) as files:

        def put(place: int, name: str, offset: int, data: memoryview) -> None:
            with writing(paths[place]):
                at = images[place].offsets[name] + offset
                write_at(files.descriptor(paths[place]), data, at)

        for number in iter(pool.take, len(pieces)):
            piece = pieces[number]
            if piece.place is None:
                done = _pack_piece(plan, chain, piece, reader, put)
            else:
                extent = plan.files[piece.place].snapshot.checkpoint.tensors[piece.name]
                data = memoryview(bytearray(extent.dtype.size_bytes(piece.count)))
                reader.read_elements(extent, piece.start, data)
                put(piece.place, piece.name, extent.dtype.size_bytes(piece.start), data)
                done = len(data)
            pool.report(done)
            if pool.stopped():
                return


#: writes bytes of a tensor into a file, from an offset in the tensor on.
_Put = Callable[[int, str, int, memoryview], None]


def _pack_piece(
    plan: PackPlan, chain: Sequence[int], piece: _Piece, reader: FileReader, put: _Put
) -> int:
    """Pack elements of a tensor in all files of a chain, one after the other; bytes read."""
    bits, read = plan.request.bits, 0
    keyframe: Floats = np.empty(0, np.float32)
    movements: dict[int, Doubles] = {}
    for place in chain:
        file = plan.files[place]
        extent = file.snapshot.checkpoint.tensors[piece.name]
        values = _values(reader, extent, piece)
        read += extent.dtype.size_bytes(piece.count)
        if not np.isfinite(values).all():
            raise InputError(
                f"tensor {piece.name} holds values that are not finite",
                where=file.snapshot.name,
                remedy="leave out the snapshot with --exclude, or keep the tensor with --copy",
            )
        if place == chain[0]:
            keyframe = values
            put(place, piece.name, 4 * piece.start, _bytes(values))
            continue
        known = [movements[other] for other in file.follows]
        integers, scales, movements[place] = encode(
            values, keyframe, known, file.coefficients, bits
        )
        put(place, piece.name + VALUES, piece.start * bits // 8, _bytes(integers))
        put(place, piece.name + SCALES, piece.start // BLOCK * 2, _bytes(scales))
        movements.pop(place - FOLLOWED, None)
    return read


def _bytes(array: np.ndarray) -> memoryview:
    """The bytes of an array."""
    return np.ascontiguousarray(array).view(np.uint8).data


def _values(reader: FileReader, extent: Extent, piece: _Piece) -> Floats:
    """Elements of a tensor of any float type, in float32."""
    import torch

    stored = torch.empty(piece.count, dtype=getattr(torch, extent.dtype.label))
    reader.read_elements(extent, piece.start, stored.view(torch.uint8).numpy().data)
    values: Floats = stored.float().numpy()
    return values


def _add_headers(plan: PackPlan, chain: Sequence[int], paths: Mapping[int, Path]) -> None:
    """Write the headers, each with the checksums of the files before it, and its own."""
    checksums: dict[int, str] = {}
    for place, path in paths.items():
        image = _image(plan, chain, place, checksums)
        with writing(path), path.open("r+b") as stream:
            for offset, data in image.segments:
                stream.seek(offset)
                stream.write(data)
            checksums[place] = image.seal(stream)["crc32"]
