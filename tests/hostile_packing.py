"""Hostile chains of packed files: what is changed in a good one, and what the error says."""

from __future__ import annotations

import os
import shutil
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from phema_cli.formats import packing
from phema_cli.formats.base import DTYPES
from tests.packing import Tensors, edit_entry, edit_header, packed_chain, walk, write_tensors
from tests.safetensors_files import write_index

#: changes the files of a chain, of which the last one is read.
Change = Callable[[list[Path]], object]
_SHAPE = (5, 13)
_LAST = 5
#: where the last file's scales lie, from its end: ``w`` comes last.
_SCALES = 2 * -(-65 // packing.BLOCK)
_NONSENSE = "its entry phema_packing makes no sense"
_FOREIGN = "follows another ema-step"


def _pipe(path: Path) -> None:
    os.mkfifo(path)


def chain(folder: Path) -> list[Path]:
    """Six good files."""
    tags = [(10 * (i // 2 + 1), (5.0, 10.0)[i % 2]) for i in range(_LAST + 1)]
    return packed_chain(folder, walk(_LAST + 1, _SHAPE), tags, 8)


def crafted(folder: Path, count: int, coefficient: float) -> list[Path]:
    """A keyframe and so many files, each of which follows the one before."""
    folder.mkdir(parents=True, exist_ok=True)
    whole: Tensors = {"w": (DTYPES["F32"], np.ones(3, np.float32))}
    packed: Tensors = {
        "w.packed": (DTYPES["I8"], np.ones(3, np.int8)),
        "w.scales": (DTYPES["BF16"], np.full(1, 0x3F80, np.uint16)),
    }
    files: list[tuple[str, str]] = []
    paths: list[Path] = []
    for number in range(count + 1):
        path = folder / f"step{number + 1}-gamma5.safetensors"
        follows = tuple(packing.Followed(*file, coefficient) for file in files[1:][-1:])
        held = packing.Packing(8, files[0], follows) if files else packing.Packing()
        metadata = {packing.KEY: held.text(), packing.CHECKSUM_KEY: ""}
        files.append((path.name, write_tensors(path, packed if files else whole, metadata)))
        paths.append(path)
    return paths


def _entry(**fields: Any) -> Change:
    """Change fields of the last file's entry."""
    return lambda files: edit_entry(files[-1], lambda entry: entry.update(fields))


def _follows(*change: Any) -> Change:
    """Change the first of what the last file follows: name, checksum, coefficient."""

    def edit(entry: dict[str, Any]) -> None:
        followed = entry["follows"][0]
        entry["follows"][0] = [n if c is None else c for n, c in zip(followed, change, strict=True)]

    return lambda files: edit_entry(files[-1], edit)


def _checksum(path: Path) -> str:
    data = path.read_bytes()
    start = 8 + struct.unpack_from("<Q", data)[0]
    return f"{zlib.crc32(data[start:]):08x}"


def _turned(number: int) -> Change:
    """Let a file follow the last one."""

    def change(files: list[Path]) -> None:
        name, checksum = files[_LAST].name, _checksum(files[_LAST])
        edit_entry(files[number], lambda e: e["follows"].append([name, checksum, 0.5]))

    return change


def _keyframe(number: int) -> Change:
    """Give the last file another one as its keyframe."""
    return lambda files: _entry(keyframe=[files[number].name, _checksum(files[number])])(files)


def _another(number: int) -> Change:
    """Put the file of another chain into the place of one."""

    def change(files: list[Path]) -> None:
        tags = [(10 * (i // 2 + 1), (5.0, 10.0)[i % 2]) for i in range(_LAST + 1)]
        other = packed_chain(files[0].parent / "x", walk(_LAST + 1, _SHAPE, seed=1), tags, 8)
        shutil.move(other[number], files[number])
        shutil.rmtree(other[0].parent)

    return change


def _replaced(number: int, put: Callable[[Path], object]) -> Change:
    """Put something else into the place of a file."""

    def change(files: list[Path]) -> None:
        files[number].unlink()
        put(files[number])

    return change


def _moved_out(number: int) -> Change:
    """Leave a link in the place of a file."""

    def change(files: list[Path]) -> None:
        outside = files[number].parent.parent / "outside.safetensors"
        shutil.move(files[number], outside)
        files[number].symlink_to(outside)

    return change


def _tensor(number: int, name: str, **fields: Any) -> Change:
    """Change the header's entry of a tensor."""
    return lambda files: edit_header(files[number], lambda header: header[name].update(fields))


def _renamed(number: int, name: str, other: str) -> Change:
    """Give a tensor another name."""
    return lambda files: edit_header(
        files[number], lambda header: header.update({other: header.pop(name)})
    )


def _scale(number: int, bits: int) -> Change:
    """Put other bits into the second of a file's scales."""

    def change(files: list[Path]) -> None:
        with files[number].open("r+b") as file:
            file.seek(2 - _SCALES, os.SEEK_END)
            file.write(struct.pack("<H", bits))

    return change


def _entry_gone(files: list[Path]) -> None:
    edit_header(files[-1], lambda header: header["__metadata__"].pop(packing.KEY))


def _crafted(count: int, coefficient: float) -> Change:
    """Put a long chain into the place of the good one."""

    def change(files: list[Path]) -> None:
        folder = files[0].parent
        shutil.rmtree(folder)
        files[:] = crafted(folder, count, coefficient)

    return change


def _shards(files: list[Path]) -> None:
    """Name a packed file in an index, and leave no other file."""
    index = write_index(files[0].parent, {"w.packed": files[-1].name, "w.scales": files[-1].name})
    files.append(index)


_NAMES = {
    "above": "../x.safetensors",
    "absolute": "/etc/passwd",
    "below": "sub/x.safetensors",
    "here": "./x.safetensors",
    "a slash behind it": "x.safetensors/",
    "other separators": "..\\x.safetensors",
    "dots": "..",
    "a dot": ".",
    "nothing": "",
    "a number": 5,
    "a list": [],
}
_COEFFICIENTS = {
    "infinite": float("inf"),
    "infinite and negative": float("-inf"),
    "not a number": float("nan"),
    "huge": 1e300,
    "a text": "1.0",
    "an integer": 1,
    "a truth": True,
}

#: by name: the change, and what the error says.
HOSTILE: dict[str, tuple[Change, str]] = {
    "a predecessor is missing": (
        lambda files: files[3].unlink(),
        r"its predecessor 'ema-step0000020-gamma10.safetensors' is missing",
    ),
    "the keyframe is missing": (
        lambda files: files[0].unlink(),
        r"its keyframe 'ema-step0000010-gamma5.safetensors' is missing",
    ),
    "a predecessor of another chain": (_another(3), _FOREIGN),
    "a keyframe of another chain": (_another(0), _FOREIGN),
    "a predecessor that is not packed": (
        _replaced(3, lambda path: save_file({"w": np.ones(_SHAPE, np.float32)}, path)),
        _FOREIGN,
    ),
    "a packed keyframe": (_keyframe(1), _FOREIGN),
    "a keyframe among the predecessors": (
        lambda files: _follows(files[0].name, _checksum(files[0]), None)(files),
        _FOREIGN,
    ),
    "an empty checksum": (_follows(None, "", None), _FOREIGN),
    "itself": (_turned(_LAST), "follows it in turn|which follows"),
    "itself by another": (_turned(4), "which follows it in turn"),
    "itself by a far one": (_turned(1), "which follows it in turn"),
    **{f"a name, {case}": (_follows(name, None, None), _NONSENSE) for case, name in _NAMES.items()},
    "a keyframe above": (_entry(keyframe=["../x.safetensors", "0"]), _NONSENSE),
    "a name, a zero": (_follows("x\0.safetensors", None, None), "is missing"),
    "a name, half a pair": (_follows("\ud800.safetensors", None, None), "is missing"),
    "a name, long": (_follows("x" * 5000, None, None), "is missing"),
    "a device": (_replaced(3, lambda path: path.symlink_to("/dev/zero")), "is missing"),
    **{
        f"a coefficient, {case}": (_follows(None, None, value), _NONSENSE)
        for case, value in _COEFFICIENTS.items()
    },
    "five bits": (_entry(bits=5), _NONSENSE),
    "bits in a text": (_entry(bits="8"), _NONSENSE),
    "bits with a point": (_entry(bits=8.0), _NONSENSE),
    "other bits than they are": (_entry(bits=16), "don't fit its shape"),
    "another schema": (_entry(schema="phema/packed/2"), "is packed as 'phema/packed/2'"),
    "a schema that is a number": (_entry(schema=1), _NONSENSE),
    "further fields": (_entry(more=1), _NONSENSE),
    "no predecessors": (_entry(follows=None), _NONSENSE),
    "a keyframe that is nothing": (_entry(keyframe=None), _NONSENSE),
    "too many predecessors": (_entry(follows=[["x", "y", 1.0]] * 17), _NONSENSE),
    "a list": (lambda files: edit_entry(files[-1], lambda _: [1]), "not an object"),
    "no JSON": (lambda files: edit_entry(files[-1], lambda _: "{"), "not a JSON"),
    "deep": (lambda files: edit_entry(files[-1], lambda _: "[" * 100_000), "not a JSON"),
    "no entry": (_entry_gone, "its entry phema_packing is missing"),
    "integers of another shape": (_tensor(-1, "w.packed", shape=[5, 13]), "don't fit its shape"),
    "integers of another type": (_tensor(-1, "w.packed", dtype="U8"), "don't fit its shape"),
    "scales of another shape": (_tensor(-1, "w.scales", shape=[2, 1]), "don't fit its shape"),
    "scales of another type": (_tensor(-1, "w.scales", dtype="F16"), "don't fit its shape"),
    "a keyframe of integers": (_tensor(0, "w", dtype="I32"), "w: its keyframe has no such"),
    "a keyframe without it": (_renamed(0, "w", "v"), "w: its keyframe has no such"),
    "a predecessor without it": (_renamed(3, "w.packed", "v"), "w: it is not packed in"),
    "a predecessor's integers of another shape": (
        _tensor(3, "w.packed", shape=[65, 1]),
        "don't fit its shape",
    ),
    "an infinite scale": (_scale(-1, 0x7F80), "tensor w: a scale is negative or not finite"),
    "a scale that is NaN": (_scale(-1, 0x7FC0), "tensor w: a scale is negative or not finite"),
    "a negative NaN": (_scale(-1, 0xFFFF), "tensor w: a scale is negative or not finite"),
    "a negative scale": (_scale(-1, 0xBC00), "tensor w: a scale is negative or not finite"),
    "a negative scale of a predecessor": (
        _scale(2, 0xBC00),
        r"ema-step0000020-gamma5.safetensors: tensor w: a scale is",
    ),
    "a long chain": (_crafted(packing.LONGEST_CHAIN + 10, 1.0), "follows too many others"),
    "coefficients beyond numbers": (_crafted(40, 1e9), "no finite sum"),
    "a shard": (_shards, "a packed file cannot be a shard"),
    "a directory": (_replaced(3, Path.mkdir), "is missing"),
    "a named pipe": (_replaced(3, _pipe), "is missing"),
    "a link out of the directory": (_moved_out(3), "is outside the directory"),
    "a link to a keyframe out of it": (_moved_out(0), "is outside the directory"),
}
