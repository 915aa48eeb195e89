"""Packed snapshots for tests: chains of given arrays, and files whose metadata are edited."""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from phema_cli.formats import packing, read, writer
from phema_cli.formats.base import DTYPES, Checkpoint, DType
from phema_cli.formats.reader import FileReader
from phema_cli.snapshots.base import snapshot_name

_KINDS = {"f": "F", "i": "I", "u": "U"}

Array = np.ndarray[Any, np.dtype[Any]]
#: a file's tensors, with types that numpy lacks.
Tensors = Mapping[str, tuple[DType, Array]]


def dtype_of(array: Array) -> DType:
    """The element type of an array."""
    kind, bits = array.dtype.kind, 8 * array.dtype.itemsize
    return DTYPES["BOOL" if kind == "b" else f"{_KINDS[kind]}{bits}"]


def write_tensors(path: Path, tensors: Tensors, metadata: Mapping[str, str]) -> str:
    """Write a file as phema does; returns the CRC-32 of its tensors' bytes."""
    specs = {name: (dtype, array.shape) for name, (dtype, array) in tensors.items()}
    image = writer("safetensors").encode(specs, metadata, {}, Checkpoint(path, "", (), {}))
    with path.open("w+b") as file:
        for _, head in image.segments:
            file.write(head)
        for _, array in tensors.values():
            file.write(array.tobytes())
        return image.seal(file)["crc32"]


def packed_chain(
    folder: Path,
    snapshots: Sequence[Mapping[str, Array]],
    tags: Sequence[tuple[float, float]],
    bits: int,
    keyframe_every: int = 64,
) -> list[Path]:
    """Write arrays as packed snapshots, named as the tracker names them.

    What is float32 and not the same everywhere is packed; all else lies in each file.

    Args:
        folder: made if need be.
        snapshots: arrays by name, in the order of writing.
        tags: step and gamma of each.
        bits: of an integer.
        keyframe_every: of so many files the first is whole.
    """
    folder.mkdir(parents=True, exist_ok=True)
    first = snapshots[0]
    moving = [
        name
        for name, array in first.items()
        if array.dtype == np.float32 and any((s[name] != array).any() for s in snapshots)
    ]
    files: list[Path] = []
    written: list[tuple[str, str, Array]] = []
    for number, (arrays, (step, gamma)) in enumerate(zip(snapshots, tags, strict=True)):
        path = folder / f"{snapshot_name('ema', step, gamma)}.safetensors"
        values = _flat(arrays, moving)
        tensors = {n: (dtype_of(a), a) for n, a in arrays.items() if n not in moving}
        entry, movement = packing.Packing(), np.zeros(len(values))
        if number % keyframe_every == 0:
            keyframe, written = values, []
            tensors |= {name: (DTYPES["F32"], arrays[name]) for name in moving}
        else:
            followed = written[: -packing.FOLLOWED - 1 : -1][: len(written) - 1]
            movements = [moved for _, _, moved in followed]
            wanted = np.subtract(values, keyframe, dtype=np.float64)
            found = packing.fit(movements, wanted, 1e-14)
            entry = packing.Packing(
                bits,
                written[0][:2],
                tuple(
                    packing.Followed(name, checksum, c)
                    for (name, checksum, _), c in zip(followed, found, strict=True)
                ),
            )
            for name, inside in _places(arrays, moving):
                integers, scales, movement[inside] = packing.encode(
                    values[inside], keyframe[inside], [m[inside] for m in movements], found, bits
                )
                specs = packing.packed_specs(name, len(values[inside]), bits)
                held = zip(specs.items(), (integers, scales), strict=True)
                tensors |= {n: (dtype, array) for (n, (dtype, _)), array in held}
        metadata = {"gamma": f"{gamma!r}", "step": f"{step!r}", "format": "pt"}
        metadata |= {packing.KEY: entry.text(), packing.CHECKSUM_KEY: ""}
        written.append((path.name, write_tensors(path, tensors, metadata), movement))
        files.append(path)
    return files


def _flat(arrays: Mapping[str, Array], names: Sequence[str]) -> Array:
    """The elements of the arrays of these names, one after the other."""
    return np.concatenate([np.zeros(0, np.float32), *(arrays[name].reshape(-1) for name in names)])


def _places(arrays: Mapping[str, Array], names: Sequence[str]) -> Iterator[tuple[str, slice]]:
    """Where each array's elements lie in :func:`_flat`."""
    end = 0
    for name in names:
        start, end = end, end + arrays[name].size
        yield name, slice(start, end)


def tensor_of(path: Path, name: str, start: int = 0, stop: int | None = None) -> Array:
    """Elements of a float32 tensor as phema reads them."""
    extent = read(path).content[name]  # type: ignore[index]
    out = np.empty((extent.elements if stop is None else stop) - start, np.float32)
    with FileReader() as reader:
        reader.read_elements(extent, start, out.view(np.uint8).data)
    return out if stop is not None or start else out.reshape(extent.shape)


def edit_header(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Write a file again with a header that was changed, and the same data."""
    data = path.read_bytes()
    (length,) = struct.unpack_from("<Q", data)
    header = json.loads(data[8 : 8 + length])
    change(header)
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data[8 + length :])


def sealed(entry: object) -> str:
    """An entry's text with its checksum; JSON unless it is text already."""
    text = entry if isinstance(entry, str) else json.dumps(entry)
    return f"{text} {zlib.crc32(text.encode(errors='surrogatepass')):08x}"


def edit_entry(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change how a file says that it is packed, with a checksum that fits."""

    def change_header(header: dict[str, Any]) -> None:
        metadata = header["__metadata__"]
        entry = json.loads(metadata[packing.KEY].rpartition(" ")[0])
        made = change(entry)
        metadata[packing.KEY] = sealed(entry if made is None else made)

    edit_header(path, change_header)


def walk(count: int, shape: tuple[int, ...], seed: int = 0) -> list[dict[str, Array]]:
    """Arrays of so many snapshots: ``w`` moves, ``twin`` stays, ``count`` is an integer."""
    random = np.random.default_rng(seed)
    start = random.standard_normal(shape)
    moves = 1e-3 * random.standard_normal((count, *shape)).cumsum(axis=0)
    return [
        {
            "w": (start + move).astype(np.float32),
            "twin": np.linspace(-1, 1, 7, dtype=np.float32),
            "count": np.asarray(number),
        }
        for number, move in enumerate(moves)
    ]
