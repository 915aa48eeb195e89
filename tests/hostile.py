"""The hostile files: every kind of every format, each with the exit codes that it may end with."""

from __future__ import annotations

import atexit
import functools
import json
import os
import shutil
import struct
import tempfile
import warnings
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import save_file

from tests import hostile_packing
from tests.builders import write_run
from tests.dcp_files import EDITS, HOSTILE, NESTED, TRICKS, edit, save
from tests.hostile_pickles import bombs, get, hostile_pickles, plain, put, text
from tests.safetensors_files import ENTRY, MALFORMED, entry, write_index, write_raw
from tests.torch_files import BROKEN_PICKLES, craft, tensor_pickle


class Case(NamedTuple):
    """A hostile file.

    Attributes:
        build: writes it into an empty directory; what it returns is added to the command line.
        codes: exit codes that the command may end with.
    """

    build: Callable[[Path], Any]
    codes: tuple[int, ...] = (3,)


#: bytes of the densest pickles and headers: what is small.
_SMALL = 300_000
_STEM = "step1-gamma5"
_NEVER = "touch was-here"


def _named_pipe(path: Path) -> None:
    os.mkfifo(path)


def _bytes(name: str, data: bytes) -> Case:
    """A case of one file of these bytes."""

    def build(folder: Path) -> None:
        (folder / name).write_bytes(data)

    return Case(build)


# --- safetensors ----------------------------------------------------------------------------------


def _header(header: Any, data: bytes = b"") -> Case:
    """A case of one file with this header."""

    def build(folder: Path) -> None:
        write_raw(folder / f"{_STEM}.safetensors", header, data)

    return Case(build)


def _sparse(name: str, start: bytes, size: int) -> Case:
    """A case of a file that is mostly a hole."""

    def build(folder: Path) -> None:
        with (folder / name).open("wb") as file:
            file.write(start)
            file.truncate(size)

    return Case(build)


def _raw(content: bytes) -> Case:
    return _bytes(f"{_STEM}.safetensors", content)


SAFETENSORS = {
    **{case: _header(header, data) for case, (header, data, _) in MALFORMED.items()},
    "empty": _raw(b""),
    "seven bytes": _raw(b"1234567"),
    "header of no bytes": _raw(struct.pack("<Q", 0)),
    "header longer than the file": _raw(struct.pack("<Q", 3) + b"{}"),
    "header of 2^63 bytes": _raw(struct.pack("<Q", 2**63) + b"{}"),
    "header of 2^64 - 1 bytes": _raw(struct.pack("<Q", 2**64 - 1) + b"{}"),
    "header above 100 MB": _sparse(
        f"{_STEM}.safetensors", struct.pack("<Q", 100_000_001), 100_000_009
    ),
    "metadata twice": _header(
        b'{"__metadata__":{"a":"1"},"__metadata__":{"a":"2"},"a":%b}' % ENTRY, bytes(4)
    ),
    "an entry of metadata twice": _header(
        b'{"__metadata__":{"a":"1","a":"2"},"a":%b}' % ENTRY, bytes(4)
    ),
    "offset beyond the file": _header({"a": entry(0, 1 << 40, shape=(1 << 38,))}, bytes(4)),
    "offset beyond 64 bits": _header({"a": entry(1 << 64, 1 << 64, shape=(0,))}),
    "no elements along 2^70": _header({"a": entry(0, 0, shape=(0, 2**70))}),
    "half of an element": _header({"a": entry(0, 2)}, bytes(2)),
    "a double in four bytes": _header({"a": entry(dtype="F64")}, bytes(4)),
    "product of many small numbers": _header({"a": entry(shape=(9,) * 300_000)}, bytes(4)),
    "product of a few long numbers": _header({"a": entry(shape=(10**4000,) * 200)}, bytes(4)),
    "dicts in dicts": _header(b'{"a":' * 100_000 + b"1" + b"}" * 100_000),
    "many empty lists": _header(b'{"a":[' + b"[]," * (_SMALL // 3) + b"1]}"),
    "many small dicts": _header(b'{"a":[' + b'{"":0},' * (_SMALL // 7) + b"1]}"),
    "a name of a megabyte": _header({"a" * _SMALL: entry(dtype="F31")}, bytes(4)),
    "a type of a megabyte": _header({"a": entry(dtype="F" * _SMALL)}, bytes(4)),
    "not a number": _header(b'{"a":{"dtype":"F32","shape":[NaN],"data_offsets":[0,Infinity]}}'),
    "another encoding": _header(json.dumps({"a": entry()}).encode("utf-16"), bytes(4)),
    "lines in a name": _header(b'{"a\\n\\u2028\\u0085\\u001b[2J":' + ENTRY + b"}", bytes(3)),
}


# --- indexes --------------------------------------------------------------------------------------


# Shards by their names, so that they are no snapshots of their own.
_X, _Y = (f"{_STEM}-0000{i}-of-00002.safetensors" for i in (1, 2))


def _shard(folder: Path, name: str = _X) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    save_file({"w": torch.ones(2)}, folder / name, {"gamma": "5", "step": "1"})
    return folder / name


def _names(shard: Any, prepare: Callable[[Path], object] = _shard) -> Case:
    """A case of an index that names this shard; what ``prepare`` makes is there."""

    def build(folder: Path) -> list[Any]:
        run = folder / "run"
        run.mkdir()
        _shard(folder)
        prepare(run)
        name = shard.replace("{here}", str(folder)) if isinstance(shard, str) else shard
        write_index(run, {"w": name}, _STEM)
        return [run]

    return Case(build)


def _linked(folder: Path) -> None:
    (folder / _X).symlink_to(folder.parent / _X)


def _linked_twice(folder: Path) -> None:
    _linked(folder)
    (folder / _Y).symlink_to(_X)


def _index(text_of_it: bytes) -> Case:
    def build(folder: Path) -> None:
        _shard(folder)
        (folder / f"{_STEM}.safetensors.index.json").write_bytes(text_of_it)

    return Case(build)


INDEX = {
    "above": _names(f"../{_X}"),
    "absolute": _names("{here}/" + _X),
    "below": _names(f"sub/{_X}", lambda run: _shard(run / "sub")),
    "here": _names(f"./{_X}"),
    "other separators": _names(f"..\\{_X}"),
    "a drive": _names("C:\\x.safetensors"),
    "dots": _names(".."),
    "nothing": _names(""),
    "a number": _names(5),
    "a list": _names([_X]),
    "a zero": _names("x\0.safetensors"),
    "a long name": _names("x" * 5000 + ".safetensors"),
    "a megabyte": _names("x" * _SMALL),
    "a link out of the directory": _names(_X, _linked),
    "a link to a link out of it": _names(_Y, _linked_twice),
    "a named pipe": _names(_X, lambda run: os.mkfifo(run / _X)),
    "a directory": _names(_X, lambda run: (run / _X).mkdir()),
    "a device": _names(_X, lambda run: (run / _X).symlink_to("/dev/zero")),
    "a broken shard": _names(_X, lambda run: (run / _X).write_bytes(b"{}")),
    "not there": _names(_Y),
    "an entry twice": _index(b'{"weight_map":{"w":"y","w":"%b"}}' % _X.encode()),
    "two maps": _index(b'{"weight_map":{},"weight_map":{"w":"%b"}}' % _X.encode()),
    "no map": _index(b"{}"),
    "an empty map": _index(b'{"weight_map":{}}'),
    "a tensor that is not there": _index(b'{"weight_map":{"v":"%b"}}' % _X.encode()),
    "deep": _index(b'{"weight_map":' + b"[" * 100_000),
    "many empty lists": _index(b'{"weight_map":[' + b"[]," * (_SMALL // 3) + b"1]}"),
    "above 1 GiB": _sparse(f"{_STEM}.safetensors.index.json", b"{", (1 << 30) + 1),
}


# --- pickles of all formats -----------------------------------------------------------------------


def dense() -> dict[str, bytes]:
    """Pickles of a megabyte, each as dense as can be in what takes time or memory."""
    half = _SMALL // 2
    wide = b"](" + b"N" * (half // 2) + b"e" + put(0)
    size = plain("torch", "Size") + put(1)
    space = plain("argparse", "Namespace") + put(1)
    keys = b"}(" + b"".join(text(str(i)) + b"N" for i in range(20_000)) + b"u" + put(0)
    bodies = {
        "sets": b"\x8f" * _SMALL,
        "sets in a list": b"]" + b"\x8fa" * half,
        "dicts": b"}" * _SMALL,
        "lists": b"]" * _SMALL,
        "marks": b"(" * _SMALL,
        "nothing": b"N" * _SMALL,
        "one dropped again and again": b"N0" * half,
        "tuples in tuples": b")" + b"\x85" * _SMALL,
        "dicts in tuples": b"N" + b"}\x86" * half,
        "dicts in a list": b"]" + b"}a" * half,
        "sets in tuples": b"N" + b"\x8f\x86" * half,
        "a memo of one value": b"N" + b"\x94" * _SMALL,
        "a memo with gaps": b"N" + b"".join(put(i * 1000) for i in range(_SMALL // 5)),
        "copies of a list": size + wide + b"0" + (b"h\x01h\x00\x85R0" * (half // 7)),
        "sets of a list": plain("builtins", "set")
        + put(1)
        + wide
        + b"0"
        + (b"h\x01h\x00\x85R0" * (half // 7)),
        "calls with many things": size
        + b"("
        + b"N" * half
        + b"t"
        + put(0)
        + b"0"
        + b"h\x01h\x00R0" * (half // 6),
        "a state again and again": keys + space + b")\x81" + b"h\x00b" * half,
        "states of one dict": keys + space + b"0]" + b"h\x01)\x81h\x00ba" * (half // 8),
        "long numbers": b"\x8a\xff" + b"\x7f" * 255 + b"0" + b"\x8a\x40" * 10_000,
        "a float of many digits": b"F" + b"1" * half + b"\n",
        "lines without an end": b"c" + b"a" * half,
        "a long name of a global": b"c" + b"a" * 60_000 + b"\n" + b"b" * 60_000 + b"\n",
        "a name of lines": text("os\n\n\x1b[2J") + text("system\u2028x") + b"\x93",
        "a dict in itself by many names": b"}"
        + put(0)
        + b"("
        + b"".join(text(f"k{i}") + get(0) for i in range(30_000))
        + b"u",
        "a list under many names": wide
        + b"}("
        + b"".join(text(f"k{i}") + get(0) for i in range(20_000))
        + b"u",
        "a dict under many names": keys
        + b"}("
        + b"".join(text(f"k{i}") + get(0) for i in range(20_000))
        + b"u",
        **dense_objects(),
        "long names in one another": text("a" * half)
        + put(0)
        + b"0}"
        + (get(0) + b"}") * 200
        + b"s" * 200,
    }
    return {case: b"\x80\x04" + body + b"." for case, body in bodies.items()}


def dense_objects() -> dict[str, bytes]:
    """The same for objects of unknown classes, and for keys."""
    thing = plain("some.library", "Thing") + put(1)
    number = (2**61 - 1).bit_length() // 8 + 3
    same_hash = b"".join(
        b"\x8a" + bytes([number]) + (i * (2**61 - 1)).to_bytes(number, "little") + b"N"
        for i in range(_SMALL // (number + 3))
    )
    return {
        "objects": thing + b"0]" + b"h\x01)\x81a" * (_SMALL // 5),
        "objects of items": thing + b"0]" + b"h\x01)\x81NNsa" * (_SMALL // 7),
        "objects in objects": thing + b")R" + (put(3) + b"0h\x01" + get(3) + b"\x85R") * 20_000,
        "lists in objects": (thing + b")R") * (_SMALL // 30) + b"a" * (_SMALL // 30 - 1),
        "objects made from a growing list": thing
        + b"]"
        + put(0)
        + b"0"
        + b"h\x00Na0h\x01h\x00\x85\x85\x85R0" * (_SMALL // 13),
        "keys of one hash": b"}(" + same_hash + b"u",
        "tuples as keys": b"}" + b")" + put(0) + b"0" + b"h\x00Ns" * (_SMALL // 4),
        "a long name again and again": text("a" * _SMALL)
        + put(0)
        + b"0"
        + b"h\x00h\x00\x93" * (_SMALL // 5),
        "long names of classes": text("a." * 25 + "a" * 900)
        + put(0)
        + b"0"
        + b"".join(b"h\x00" + text(str(i)) + b"\x930" for i in range(_SMALL // 13)),
    }


@functools.cache
def _pickles() -> Mapping[str, tuple[bytes, tuple[int, ...]]]:
    """Pickles that no format takes, by name, and their exit codes."""
    asking = hostile_pickles(_NEVER)
    found = {case: (made.data, (3, 4)) for case, made in asking.items()}
    found |= {case: (data, (3, 4)) for case, data in (bombs() | dense() | BROKEN_PICKLES).items()}
    return found


def _pickled(write: Callable[[Path, bytes], object]) -> dict[str, Case]:
    """A case of each pickle, as ``write`` puts it into a directory."""

    def case(name: str) -> Case:
        def build(folder: Path) -> None:
            write(folder, _pickles()[name][0])

        return Case(build, _pickles()[name][1])

    return {name: case(name) for name in _pickles()}


# --- torch's zip ----------------------------------------------------------------------------------

_PT = f"{_STEM}.pt"
_GOOD = tensor_pickle(0, (4,), (1,))


def _zipped(edit_bytes: Callable[[bytes], bytes] = bytes, **options: Any) -> Case:
    """A case of a checkpoint whose bytes are changed."""

    def build(folder: Path) -> None:
        path = craft(folder / _PT, options.get("pickled", _GOOD), options.get("record", bytes(16)))
        path.write_bytes(edit_bytes(path.read_bytes()))

    return Case(build)


def _central(name: bytes, at: int, value: bytes) -> Callable[[bytes], bytes]:
    """A change of a field in the central directory's entry of that name."""

    def change(data: bytes) -> bytes:
        start = data.index(name, data.index(b"PK\x01\x02")) - 46
        return data[: start + at] + value + data[start + at + len(value) :]

    return change


def _ending(at: int, value: bytes) -> Callable[[bytes], bytes]:
    """A change of a field in the zip's last record."""

    def change(data: bytes) -> bytes:
        start = data.rindex(b"PK\x05\x06")
        return data[: start + at] + value + data[start + at + len(value) :]

    return change


def _archive(write: Callable[[zipfile.ZipFile], object]) -> Case:
    """A case of an archive made by hand."""

    def build(folder: Path) -> None:
        with zipfile.ZipFile(folder / _PT, "w") as archive:
            write(archive)

    return Case(build)


def _entries(pickled: bytes, **records: bytes) -> Callable[[zipfile.ZipFile], None]:
    def write(archive: zipfile.ZipFile) -> None:
        archive.writestr("archive/data.pkl", pickled)
        for name, data in records.items():
            archive.writestr(f"archive/{name}", data)

    return write


def _deflated(name: str) -> Callable[[zipfile.ZipFile], None]:
    """Writes 200 MB of zeros in 200 kB."""

    def write(archive: zipfile.ZipFile) -> None:
        for entry_name in ("archive/data.pkl", "archive/data/0"):
            packed = entry_name == name
            method = zipfile.ZIP_DEFLATED if packed else zipfile.ZIP_STORED
            content = bytes(200_000_000) if packed else _GOOD
            archive.writestr(entry_name, content, method, compresslevel=1)

    return write


def _many(archive: zipfile.ZipFile) -> None:
    _entries(b"N.")(archive)
    for i in range(8000):
        archive.writestr(f"archive/data/{i}", b"")


def _twice(archive: zipfile.ZipFile) -> None:
    _entries(_GOOD)(archive)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for record in (bytes(16), bytes(range(16))):
            archive.writestr("archive/data/0", record)


_HUGE = b"\xfe\xff\xff\xff"
TORCH = {
    **_pickled(lambda folder, data: craft(folder / _PT, data)),
    **{
        f"tensor of {what}": _zipped(pickled=tensor_pickle(offset, shape, strides))
        for what, offset, shape, strides in (
            ("a place beyond its record", 1, (4,), (1,)),
            ("a place beyond 64 bits", 2**70, (1,), (1,)),
            ("a negative place", -1, (4,), (1,)),
            ("2^40 elements in four bytes", 0, (2**40,), (0,)),
            ("2^200 elements in four bytes", 0, (2**50,) * 4, (0,) * 4),
            ("65 dimensions", 0, (1,) * 65, (0,) * 65),
            ("a stride beyond 64 bits", 0, (2,), (2**70,)),
        )
    },
    "a legacy file": Case(
        lambda folder: torch.save(
            {"w": torch.ones(2)}, folder / _PT, _use_new_zipfile_serialization=False
        )
    ),
    "a bomb of a pickle": _archive(_deflated("archive/data.pkl")),
    "a bomb of a record": _archive(_deflated("archive/data/0")),
    "a pickle larger than it is": _zipped(_central(b"archive/data.pkl", 24, _HUGE)),
    "a pickle larger and packed": _zipped(_central(b"archive/data.pkl", 20, _HUGE * 2)),
    "a record larger than it is": _zipped(_central(b"archive/data/0", 24, _HUGE)),
    "a record larger than the file": _zipped(_central(b"archive/data/0", 20, _HUGE * 2)),
    "a record beyond the file": _zipped(_central(b"archive/data/0", 42, _HUGE)),
    "a pickle beyond the file": _zipped(_central(b"archive/data.pkl", 42, _HUGE)),
    "a record with the header of none": _zipped(_central(b"archive/data/0", 42, b"\1\0\0\0")),
    "an encrypted pickle": _zipped(_central(b"archive/data.pkl", 8, b"\1\0")),
    "an unknown method": _zipped(_central(b"archive/data.pkl", 10, b"\x63\0")),
    "a directory larger than the file": _zipped(_ending(12, _HUGE)),
    "a directory beyond the file": _zipped(_ending(16, _HUGE)),
    "no directory": _zipped(lambda data: data[: data.index(b"PK\x01\x02")]),
    "many entries": _archive(_many),
    "a record twice": _archive(_twice),
    "two roots": _archive(_entries(b"N.", **{"../data.pkl": b"N."})),
    "metadata twice in JSON": _archive(
        _entries(_GOOD, **{"data/0": bytes(16), "phema.json": b'{"a":"1","a":"2"}'})
    ),
    "deep metadata": _archive(
        _entries(_GOOD, **{"data/0": bytes(16), "phema.json": b"[" * 100_000})
    ),
    "big-endian": _archive(_entries(_GOOD, **{"data/0": bytes(16), "byteorder": b"big"})),
}


# --- EDM2's pickles -------------------------------------------------------------------------------

EDM2 = {
    **_pickled(lambda folder, data: (folder / f"{_STEM}.pkl").write_bytes(data)),
    "cut short": _bytes(f"{_STEM}.pkl", b"\x80\x04\x95"),
    "only an opcode": _bytes(f"{_STEM}.pkl", b"\x80"),
    "a hole of 1 TB": _sparse(
        f"{_STEM}.pkl", b"\x80\x04\x8e" + struct.pack("<Q", 1 << 39), 1 << 40
    ),
}

# --- torch.distributed.checkpoint -----------------------------------------------------------------


@functools.cache
def _checkpoint() -> Path:
    """A good checkpoint, made once."""
    folder = Path(tempfile.mkdtemp())
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    made: Path = save(folder / "c", NESTED)
    return made


def _edited(change: Callable[[Any], object], codes: tuple[int, ...] = (3,)) -> Case:
    """A case of a checkpoint whose metadata are changed."""

    def build(folder: Path) -> None:
        shutil.copytree(_checkpoint(), folder / _STEM)
        edit(folder / _STEM, change)

    return Case(build, codes)


def _metadata(data: bytes, codes: tuple[int, ...] = (3, 4)) -> Case:
    """A case of a checkpoint with this pickle."""

    def build(folder: Path) -> None:
        shutil.copytree(_checkpoint(), folder / _STEM)
        (folder / _STEM / ".metadata").write_bytes(data)

    return Case(build, codes)


def _ask(field: str, name: str, metadata: Any) -> None:
    """Put what asks for a global into a field."""
    setattr(metadata, field, HOSTILE[name])


def _around(change: Callable[[Path], object]) -> Case:
    """A case of a checkpoint whose files are changed."""

    def build(folder: Path) -> None:
        shutil.copytree(_checkpoint(), folder / _STEM)
        change(folder / _STEM)

    return Case(build)


def _move_out(run: Path) -> None:
    """Leave a link where the file was."""
    file = run / "__0_0.distcp"
    file.rename(run.parent / "x")
    file.symlink_to(run.parent / "x")


def _pipe(path: Path) -> None:
    """Put a named pipe in a file's place."""
    path.unlink()
    os.mkfifo(path)


def _one_list(metadata: Any) -> None:
    """Give 3,000 tensors one list of 1,000 chunks."""
    first = next(iter(metadata.state_dict_metadata.values()))
    for entry_of_it in metadata.state_dict_metadata.values():
        if hasattr(entry_of_it, "chunks"):
            first = entry_of_it
            break
    first.chunks = first.chunks * 1000
    for i in range(3000):
        metadata.state_dict_metadata[f"x{i}"] = first
        metadata.planner_data[f"x{i}"] = ("x", str(i))


def _one_place(metadata: Any) -> None:
    """Let all chunks lie at one place."""
    places = metadata.storage_data
    first = next(iter(places.values()))
    metadata.storage_data = dict.fromkeys(places, first)


DCP = {
    **{case: _edited(change) for case, (change, _) in EDITS.items()},
    **{
        f"{field} asks for {name}": _edited(functools.partial(_ask, field, name), (4,))
        for name in HOSTILE
        for field in ("storage_meta", "planner_data")
    },
    **{case: _metadata(data) for case, data in TRICKS.items()},
    **{case: _metadata(_pickles()[case][0]) for case in _pickles()},
    "a list of chunks of many tensors": _edited(_one_list),
    "chunks at one place": _edited(_one_place),
    "a link out of the directory": _around(_move_out),
    "a named pipe": _around(lambda run: _pipe(run / "__0_0.distcp")),
    "metadata that are a named pipe": _around(lambda run: _pipe(run / ".metadata")),
    "an empty file": _around(lambda run: (run / "__0_0.distcp").write_bytes(b"")),
    "not finished": _around(lambda run: (run / ".metadata").unlink()),
}

# --- phema.toml, tables of weights, names ---------------------------------------------------------


def _run(folder: Path) -> Path:
    """A run of two snapshots."""
    write_run(folder / "run", gammas=(5.0,), steps=(50, 100))
    return folder / "run"


def _toml(content: bytes | str, beside: Callable[[Path], object] = lambda _: None) -> Case:
    """A case of a run with this phema.toml."""

    def build(folder: Path) -> list[Any]:
        run = _run(folder)
        beside(run)
        raw = content if isinstance(content, bytes) else content.encode()
        (run / "phema.toml").write_bytes(raw)
        return [run]

    return Case(build)


def _unusual(make: Callable[[Path], object]) -> Case:
    """A case of a run whose phema.toml is no plain file."""

    def build(folder: Path) -> list[Any]:
        run = _run(folder)
        make(run / "phema.toml")
        return [run]

    return Case(build)


def _own(path: Path) -> None:
    """Write a checkpoint that holds itself under a name."""
    name = text("a") + put(0)
    craft(path / "step1-gamma5.pt", b"\x80\x02}" + put(1) + name + get(1) + b"s.")


_ROW = '[snapshots."ema-step0000050-gamma5.safetensors"]\n'
TOML = {
    "not text": _toml(b"\xff\xfe"),
    "not TOML": _toml("gammas = = 5"),
    "an entry twice": _toml("gammas = [5]\ngammas = [6]"),
    "a table twice": _toml(_ROW + _ROW),
    "an unknown entry": _toml("command = 'touch was-here'"),
    "a key of many parts": _toml("a." * 100_000 + "a = 1"),
    "a table of many parts": _toml("[" + "a." * 100_000 + "a]"),
    "tables in tables": _toml(
        "\n".join("[a%d.%s]" % (i, "a." * 7 + "b") for i in range(6000))  # noqa: UP031
    ),
    "deep lists": _toml("gammas = " + "[" * 100_000),
    "deep tables": _toml("gammas = " + "{a=" * 100_000),
    "many lists": _toml("gammas = [" + "[]," * 80_000 + "]"),
    "a number of many digits": _toml("gammas = [" + "9" * 200_000 + "]"),
    "a large number": _toml("gammas = [1" + "0" * 400 + "]"),
    "a large hexadecimal number": _toml("gammas = [0x" + "f" * 100_000 + "]"),
    "not a number": _toml("gammas = [nan]"),
    "infinite": _toml("gammas = [inf]"),
    "a count beyond numbers": _toml("update_every = 1" + "0" * 400),
    "epochs beyond numbers": _toml("steps_per_epoch = 1" + "0" * 400),
    "a step beyond numbers": _toml(_ROW + "step = 1" + "0" * 400),
    "a hexadecimal step beyond numbers": _toml(_ROW + "step = 0x1" + "0" * 5000),
    "an infinite step": _toml(_ROW + "step = inf"),
    "a step that is no number": _toml(_ROW + "step = nan"),
    "a step before all": _toml(_ROW + "step = -1e308\ngamma = 1e308"),
    "an average of nonsense": _toml("average = 'exponential:beta=nan'"),
    "an average without end": _toml("average = 'uniform:last=inf'"),
    "a pattern that is none": _toml("pattern = '('"),
    "a pattern of deep groups": _toml("pattern = '" + "(" * 50_000 + "'"),
    "a pattern of large counts": _toml("pattern = '(?P<step>a{99999999999})'"),
    "a pattern that takes for ever": _toml(
        "pattern = '(?P<step>(.|.)*)#'", lambda run: _shard(run / ("a" * 60))
    ),
    "a pattern of many stars": _toml(
        "pattern = '(?P<step>.*.*.*.*.*.*.*.*.*)#'", lambda run: _shard(run / ("a" * 200))
    ),
    "a key in what holds itself": _toml('key = "' + "a." * 8 + 'b"', _own),
    "names from above": _toml("names_from = '../x.pt'"),
    "names from elsewhere": _toml("names_from = '/etc/passwd'"),
    "names from a link": _toml(
        "names_from = 'x.pt'", lambda run: (run / "x.pt").symlink_to("/etc/passwd")
    ),
    "names from a circle": _toml(
        "names_from = 'x.pt'", lambda run: (run / "x.pt").symlink_to(run / "x.pt")
    ),
    "names from a zero": _toml('names_from = "x\\u0000.pt"'),
    "too long": _toml("# " + "x" * (256 << 10)),
    "a named pipe": _unusual(_named_pipe),
    "a device": _unusual(lambda path: path.symlink_to("/dev/zero")),
}


def _table(content: bytes | str) -> Case:
    """A case of a profile from this table."""

    def build(folder: Path) -> list[Any]:
        raw = content if isinstance(content, bytes) else content.encode()
        (folder / "p.csv").write_bytes(raw)
        return [_run(folder), "--profile", f"csv:{folder / 'p.csv'}"]

    return Case(build)


CSV = {
    "empty": _table(""),
    "not text": _table(b"\xff\xfe0\0"),
    "zeros": _table(bytes(1000)),
    "three numbers": _table("0,1,2\n1,2,3\n"),
    "one number": _table("0\n1\n"),
    "one line": _table("1,1"),
    "words": _table("0,1\none,two\n"),
    "not numbers": _table("0,1\n1,nan\n"),
    "infinite": _table("0,1\n1,inf\n"),
    "times beyond numbers": _table("0,1\n1e999,1\n"),
    "negative weights": _table("0,1\n1,-1\n"),
    "no weight": _table("0,0\n1,0\n"),
    "times that fall": _table("1,1\n0,1\n"),
    "a time twice": _table("0,1\n1,1\n1,2\n"),
    "a time before all": _table("-1,1\n1,1\n"),
    "a long line": _table("0," + "1" * _SMALL),
    "many commas": _table("," * _SMALL),
    "many lines": _table("0,1\n" * (_SMALL // 4)),
    "above 1 MiB": _table("\n" * ((1 << 20) + 1)),
}


def _named(reference: Case) -> Case:
    """A case of snapshots that are lists, with a hostile file to name their tensors."""

    def build(folder: Path) -> list[Any]:
        (folder / "run").mkdir()
        (folder / "names").mkdir()
        torch.save({"shadow_params": [torch.ones(4)]}, folder / "run" / _PT)
        reference.build(folder / "names")
        (found,) = (folder / "names").iterdir()
        return [folder / "run", "--names-from", found]

    return Case(build, reference.codes)


_REFERENCES = [
    *("os.system", "a persistent id is a number", "sets in a list", "dicts in tuples"),
    *("a key nested deeply", "a memo without end", "a bomb of a pickle", "a legacy file"),
    *("tensor of 2^40 elements in four bytes", "a record beyond the file", "a record twice"),
]
NAMES = {name: _named(TORCH[name]) for name in _REFERENCES if name in TORCH}

# --- packed files ---------------------------------------------------------------------------------


def _chained(change: Callable[[list[Path]], object]) -> Case:
    """A case of a chain that is changed."""

    def build(folder: Path) -> list[Any]:
        change(hostile_packing.chain(folder / "run"))
        return [folder / "run"]

    return Case(build)


PACKED = {case: _chained(change) for case, (change, _) in hostile_packing.HOSTILE.items()}

#: all, by format and kind.
CORPUS = {
    f"{form}: {case}": made
    for form, cases in {
        "safetensors": SAFETENSORS,
        "index": INDEX,
        "torch": TORCH,
        "edm2": EDM2,
        "dcp": DCP,
        "phema.toml": TOML,
        "csv": CSV,
        "names": NAMES,
        "packed": PACKED,
    }.items()
    for case, made in cases.items()
}
