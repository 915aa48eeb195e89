"""Packed snapshots while a model trains: each file holds what the last ones could not foretell.

``formats/packing.py`` has the format. Here are the files of a run, one chain after the other.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass, field
from io import BufferedRandom
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from phema_cli.errors import InputError, StorageError, UsageError, reading
from phema_cli.formats import writer
from phema_cli.formats.base import Checkpoint
from phema_cli.formats.image import FileImage
from phema_cli.formats.packing import (
    BITS,
    CHECKSUM_KEY,
    FOLLOWED,
    KEY,
    LONGEST_CHAIN,
    SCALES,
    VALUES,
    Doubles,
    Floats,
    Followed,
    Packing,
    ScaleBits,
    encode,
    fit,
    packed_specs,
)
from phema_cli.formats.safetensors import read_header
from phema_cli.formats.stamps import Stamp, stamp
from phema_cli.tracker import snapshot
from phema_cli.tracker.snapshot import Snapshot

if TYPE_CHECKING:
    import torch

_SHORTEST_CHAIN = 2
#: averages are packed up to this magnitude: their residues stay in float32's range whatever the
#: coefficients are.
LARGEST = 1e28
#: elements that coefficients are fitted to.
_SAMPLED = 1 << 18
#: elements that a thread packs at once: whole blocks, and many, since threads wait for one another
#: after each call.
_AT_ONCE = 1 << 17


def check(packing: int | None, keyframe_every: int, dtype: torch.dtype | None) -> None:
    """Refuse arguments of ``PowerEMA.save`` that say no way of storing averages.

    Raises:
        UsageError: bits or a length that packing does not have, a type that holds no averages, or
            packing and a type.
    """
    if dtype is not None:
        snapshot.check_type(dtype)
    if packing is None:
        return
    if packing not in BITS:
        raise UsageError(f"packing={packing} is unknown", remedy="pass packing=16, 8 or 4")
    if dtype is not None:
        raise UsageError(
            "packing replaces dtype: it stores averages in a way of its own",
            remedy="pass one of them",
        )
    if not _SHORTEST_CHAIN <= keyframe_every <= LONGEST_CHAIN:
        allowed = f"{_SHORTEST_CHAIN} to {LONGEST_CHAIN}"
        raise UsageError(f"keyframe_every={keyframe_every} is not from {allowed}")


class Way(NamedTuple):
    """How snapshots are packed, and what the files' names begin with: one chain has one way."""

    name: str
    bits: int
    keyframe_every: int


class _Stored(NamedTuple):
    """A file of the chain: name, checksum, stamp, and mean square error of its elements."""

    name: str
    checksum: str
    stamp: Stamp
    noise: float


@dataclass(slots=True)
class _State:
    """What the next file of a chain is packed with.

    Attributes:
        key: way, directory, and sizes of the averaged tensors.
        files: of the chain, oldest first.
        keyframe: the chain's first file, once it is written.
        recent: the last files after it, the newest first.
        values: the keyframe's values, by tensor.
        movements: since the keyframe, as readers have them, of the files in ``recent``.
    """

    key: tuple[Way, Path, dict[str, int]]
    files: list[Path] = field(default_factory=list)
    keyframe: _Stored | None = None
    recent: list[_Stored] = field(default_factory=list)
    values: dict[str, Floats] = field(default_factory=dict)
    movements: dict[str, list[Doubles]] = field(default_factory=dict)


class Chain:
    """Writes packed snapshots, each of which follows the ones before.

    The files of all gammas are one chain. A new chain begins with a keyframe, that is with whole
    averages in float32: after so many files as the way says, if the way or the averaged tensors
    change, if averages can't be packed, if a file is written a second time or is no more what was
    written, and after an error.

    It keeps 36 bytes for each averaged element in main memory, whatever the number of gammas: the
    keyframe in float32, and what the last four files moved from it in float64.
    """

    def __init__(self) -> None:
        self._state: _State | None = None
        # The chain of each file that was written, oldest file first.
        self._chains: dict[Path, list[Path]] = {}

    def begin(self, paths: Iterable[Path]) -> None:
        """Say what a save is about to write: if it writes a file again, with a keyframe first.

        Else the first file could follow one that is replaced after it.
        """
        if any(path.absolute() in self._chains for path in paths):
            self._state = None

    def write(
        self,
        path: Path,
        way: Way,
        made: Snapshot,
        sample: Iterable[torch.Tensor],
        tensors: Iterable[torch.Tensor],
    ) -> None:
        """Write one snapshot: complete or not at all, after those that it follows.

        Args:
            path: the file; its directory is made if need be.
            way: how it is packed.
            made: what it holds; averages in float32.
            sample: the averaged tensors, in the order of ``made.shapes``; a keyframe takes none.
            tensors: all tensors in that order; one is in memory at a time.

        Raises:
            StorageError: the operating system failed; no file is left.
            UsageError: an element type can't be stored, or names of tensors clash.
        """
        _check_names(made)
        sizes = {n: math.prod(shape) for n, (_, shape) in made.shapes.items() if n in made.averaged}
        key = (way, path.parent.absolute(), sizes)
        path = key[1] / path.name
        replaced = self._following(path)
        # A write that fails leaves no state: some tensors have moved on by then.
        state, self._state = self._state, None
        if state is None or not made.packable or not self._continues(state, key, path):
            state = _State(key)
        coefficients = _foretell(state, sample)
        image = _image(state, made, coefficients)
        file = _File(state, made, image, coefficients)
        snapshot.store(path, image, lambda s: file.fill(s, tensors), replaced, in_order=True)
        state.files.append(path)
        self._chains[path] = state.files
        with reading(path):
            stored = _Stored(path.name, file.checksum, stamp(path), file.noise)
        if state.keyframe is None:
            state.keyframe = stored
        else:
            state.recent = [stored, *state.recent[: FOLLOWED - 1]]
        if made.packable:
            self._state = state

    def _continues(self, state: _State, key: tuple[Way, Path, dict[str, int]], path: Path) -> bool:
        """Whether a file may follow those of the chain."""
        return (
            state.key == key
            and state.keyframe is not None
            and len(state.files) < key[0].keyframe_every
            and path not in state.files
            and all(_is_there(path.parent, f) for f in (state.keyframe, *state.recent))
        )

    def _following(self, path: Path) -> list[Path]:
        """Files that nobody could read once this one is replaced; they are written again next.

        They were stored after it at the same step. The last one comes first: each follows others.
        """
        chain = self._chains.get(path, [path])
        later = chain[: chain.index(path) : -1]
        return [file for file in later if self._chains[file] is chain]


@dataclass(slots=True)
class _File:
    """Fills one file with tensors, and keeps in the state what later ones need of them."""

    state: _State
    made: Snapshot
    image: FileImage
    coefficients: tuple[float, ...]
    checksum: str = ""
    noise: float = 0.0

    def fill(self, stream: BufferedRandom, tensors: Iterable[torch.Tensor]) -> None:
        """Write the tensors one after the other, and the checksum of all."""
        import torch

        state, errors = self.state, [np.zeros(1)]
        places = _sampled(state.key[2])
        with ThreadPoolExecutor(torch.get_num_threads()) as pool:
            for name, tensor in zip(self.made.shapes, tensors, strict=True):
                flat = tensor.detach().cpu().contiguous().reshape(-1)
                if name in self.made.averaged and state.keyframe is not None:
                    errors.append(self._pack(stream, name, flat.numpy(), places[name], pool))
                    continue
                stream.seek(self.image.offsets[name])
                stream.write(flat.view(torch.uint8).numpy().data)
                if name in self.made.averaged and self.made.packable:
                    # The next update changes the tensor in place.
                    state.values[name] = flat.numpy().copy()
                    state.movements[name] = []
        self.noise = float(np.square(np.concatenate(errors)).mean())
        stream.flush()
        self.checksum = self.image.seal(stream)["crc32"]

    def _pack(
        self, stream: BufferedRandom, name: str, values: Floats, place: slice, pool: Executor
    ) -> Doubles:
        """Write the residues of a tensor; returns the errors of the elements at ``place``."""
        keyframe, movements = self.state.values[name], self.state.movements[name]
        # In the place of the oldest movement, each part of which is used before it is replaced.
        is_full = len(movements) == FOLLOWED
        moved = movements[-1] if is_full else np.empty(len(values))

        def pack(low: int) -> tuple[NDArray[np.generic], ScaleBits]:
            part = slice(low, low + _AT_ONCE)
            integers, scales, moved[part] = encode(
                values[part],
                keyframe[part],
                [m[part] for m in movements],
                self.coefficients,
                self.state.key[0].bits,
            )
            return integers, scales

        scales = []
        stream.seek(self.image.offsets[name + VALUES])
        for integers, some in pool.map(pack, range(0, len(values), _AT_ONCE)):
            stream.write(integers.data)
            scales.append(some)
        stream.seek(self.image.offsets[name + SCALES])
        stream.writelines(s.data for s in scales)
        movements[:] = [moved, *movements[: FOLLOWED - 1]]
        return values[place].astype(np.float64) - keyframe[place] - moved[place]


def _image(state: _State, made: Snapshot, coefficients: tuple[float, ...]) -> FileImage:
    """Lay out a file: wide elements first, as safetensors does, so that each tensor is aligned."""
    packing, laid = Packing(), made.specs()
    if state.keyframe is not None:
        bits = state.key[0].bits
        follows = zip(state.recent, coefficients, strict=True)
        packing = Packing(
            bits,
            (state.keyframe.name, state.keyframe.checksum),
            tuple(Followed(f.name, f.checksum, c) for f, c in follows),
        )
        for name in made.averaged:
            del laid[name]
            laid |= packed_specs(name, state.key[2][name], bits)
        laid = dict(sorted(laid.items(), key=lambda item: (-item[1][0].bits, item[0])))
    metadata = {**made.metadata, KEY: packing.text(), CHECKSUM_KEY: ""}
    return writer("safetensors").encode(laid, metadata, {}, Checkpoint(Path(), "", (), {}))


def _check_names(made: Snapshot) -> None:
    """Refuse names that readers would take for those of integers and scales.

    Raises:
        UsageError: there are such.
    """
    whole = made.shapes.keys() - made.averaged
    pairs = {n: {n + VALUES, n + SCALES} for n in made.averaged}
    clashing = [n for n, pair in pairs.items() if pair & made.shapes.keys()]
    ends = {n.removesuffix(VALUES) for n in whole if n.endswith(VALUES)}
    clashing += [n for n in ends if n + SCALES in whole]
    if clashing:
        name = min(clashing)
        raise UsageError(
            f"{name}{VALUES} and {name}{SCALES} are names that packing gives, and the model has",
            remedy="save without packing",
        )


def _foretell(state: _State, sample: Iterable[torch.Tensor]) -> tuple[float, ...]:
    """Coefficients with which the chain's last files foretell the averages that are to be stored.

    Args:
        state: of the chain; the tensors of a keyframe, and of the file after it, are not looked at.
        sample: the averaged tensors, one after the other.
    """
    if not state.recent:
        return ()
    places = _sampled(state.key[2])
    wanted = []
    for name, tensor in zip(places, sample, strict=True):
        values = tensor.detach().reshape(-1)[places[name]].cpu().numpy()
        wanted.append(values.astype(np.float64) - state.values[name][places[name]])
    movements = [
        np.concatenate([state.movements[n][j][place] for n, place in places.items()])
        for j in range(len(state.recent))
    ]
    noise = sum(f.noise for f in state.recent) / len(state.recent)
    return fit(movements, np.concatenate(wanted), noise)


def _sampled(sizes: Mapping[str, int]) -> dict[str, slice]:
    """Which elements of each tensor are sampled: evenly over all of them."""
    # An odd stride: an even one would meet the same columns in each row of most matrices.
    stride = -(-sum(sizes.values()) // _SAMPLED) | 1
    places, begin = {}, 0
    for name, size in sizes.items():
        places[name] = slice(-begin % stride, None, stride)
        begin += size
    return places


def _is_there(directory: Path, stored: _Stored) -> bool:
    """Whether a file still holds what was written: another process may have written the same."""
    path = directory / stored.name
    try:
        if stamp(path) == stored.stamp:
            return True
        return read_header(path)[1].get(CHECKSUM_KEY) == stored.checksum
    except (OSError, InputError, StorageError):
        return False
