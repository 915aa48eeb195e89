"""Pickles that would run code or fill the machine, by name, with the global that each asks for."""

from __future__ import annotations

import io
import os
import pickle
import struct
import subprocess
from typing import Any, NamedTuple

import torch

_MAGIC = 0x1950A86A20F9469CFC6C
_LOAD = "torch.storage", "_load_from_bytes"


class Hostile(NamedTuple):
    """A pickle, and the global that it is to be refused for; None where it asks for none."""

    data: bytes
    asked: str | None


class Call:
    """Pickled as a call of anything."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        """The call and its arguments."""
        return self.call


def text(value: str) -> bytes:
    """The opcodes that push a text."""
    raw = value.encode()
    return b"X" + struct.pack("<I", len(raw)) + raw


def span(value: bytes) -> bytes:
    """The opcodes that push a string of bytes."""
    return b"B" + struct.pack("<I", len(value)) + value


def put(index: int) -> bytes:
    """The opcodes that remember the value on top."""
    return b"r" + struct.pack("<I", index)


def get(index: int) -> bytes:
    """The opcodes that push a remembered value."""
    return b"j" + struct.pack("<I", index)


def plain(module: str, name: str) -> bytes:
    """The opcodes that push a global."""
    return f"c{module}\n{name}\n".encode()


def stacked(module: str, name: str) -> bytes:
    """The opcodes of protocol 4 that push a global."""
    return text(module) + text(name) + b"\x93"


def storage(
    *,
    before: bytes = b"",
    key: bytes | None = None,
    magic: int = _MAGIC,
    count: int = 3,
    size: int = 12,
) -> bytes:
    """A storage of three floats in torch's old format.

    Args:
        before: runs in its first pickle.
        key: what it names as its type.
        magic: what it begins with.
        count: how many elements it claims to have.
        size: bytes of its values.
    """
    first = pickle.dumps(magic, 2)[2:]
    rest = pickle.dumps(1001, 2) + pickle.dumps({"little_endian": True}, 2)
    described = key or plain("torch", "FloatStorage")
    pid = b"\x80\x02(" + text("storage") + described + text("0") + text("cpu") + b"K\x03NtQ."
    tail = pickle.dumps(["0"], 2) + struct.pack("<Q", count) + bytes(size)
    return b"\x80\x02" + before + first + rest + pid + tail


def hostile_pickles(command: str) -> dict[str, Hostile]:
    """Pickles that would run the shell command if anything in them were run."""
    shell = text(command) + b"\x85"
    python = text(f"__import__('os').system({command!r})") + b"\x85"
    system = plain("os", "system")
    module = plain("torch.nn.modules.module", "Module") + b")\x81"
    persistent = plain("torch_utils.persistence", "_reconstruct_persistent_obj")
    load = plain(*_LOAD)
    old = io.BytesIO()
    torch.save(Call(os.system, command), old, _use_new_zipfile_serialization=False)
    inner = pickle.dumps(Call(os.system, command))
    asks = {
        "a class that reduces to a call": (inner[2:-1], "posix.system"),
        "a call of Popen, reduced": (
            pickle.dumps(Call(subprocess.Popen, command), 4)[2:-1],
            "subprocess.Popen",
        ),
        "os.system": (system + shell + b"R", "os.system"),
        "eval": (stacked("builtins", "eval") + python + b"R", "builtins.eval"),
        "exec": (stacked("builtins", "exec") + python + b"R", "builtins.exec"),
        "eval of Python 2": (plain("__builtin__", "eval") + python + b"R", "__builtin__.eval"),
        "getattr of a module": (
            plain("builtins", "getattr")
            + plain("builtins", "__import__")
            + text("os")
            + b"\x85R"
            + text("system")
            + b"\x86R"
            + shell
            + b"R",
            "builtins.__import__",
        ),
        "getattr of a class": (
            plain("builtins", "getattr")
            + plain("some.library", "Thing")
            + text("os")
            + b"\x86R"
            + shell
            + b"R",
            "some.library.Thing.os",
        ),
        "getattr of a known class": (
            plain("builtins", "getattr") + plain("builtins", "dict") + text("keys") + b"\x86R",
            "builtins.getattr",
        ),
        "getattr of an object": (
            plain("builtins", "getattr")
            + plain("some.library", "Thing")
            + b")R"
            + text("close")
            + b"\x86R",
            "builtins.getattr",
        ),
        "Popen by NEWOBJ": (plain("subprocess", "Popen") + shell + b"\x81", "subprocess.Popen"),
        "Popen by OBJ": (
            b"(" + plain("subprocess", "Popen") + text(command) + b"o",
            "subprocess.Popen",
        ),
        "system by INST": (b"(" + text(command) + b"ios\nsystem\n", "os.system"),
        "system of Windows by INST": (b"(" + text(command) + b"int\nsystem\n", "nt.system"),
        "runpy": (plain("runpy", "run_path") + shell + b"R", "runpy.run_path"),
        "pickle.loads": (plain("pickle", "loads") + span(inner) + b"\x85R", "pickle.loads"),
        "a module": (stacked("importlib", "import_module"), "importlib.import_module"),
        "partial": (stacked("functools", "partial"), "functools.partial"),
        "attrgetter": (
            plain("operator", "attrgetter") + text("system") + b"\x85R",
            "operator.attrgetter",
        ),
        "torch.hub.load": (plain("torch.hub", "load") + shell + b"R", "torch.hub.load"),
        "torch.load": (plain("torch", "load") + shell + b"R", "torch.load"),
        "torch.serialization": (
            plain("torch.serialization", "load") + shell + b"R",
            "torch.serialization.load",
        ),
        "a path through torch._utils": (
            stacked("torch._utils", "os.system") + shell + b"R",
            "torch._utils.os.system",
        ),
        "a path through a module of layers": (
            stacked("torch.nn.modules.module", "torch.hub.load") + shell + b"R",
            "torch.nn.modules.module.torch.hub.load",
        ),
        "a module of torch's": (plain("torch", "os"), "torch.os"),
        "what makes an allowed class": (
            stacked("collections", "OrderedDict.__init__"),
            "collections.OrderedDict.__init__",
        ),
        "what an allowed class is made of": (
            stacked("collections", "OrderedDict.__reduce__"),
            "collections.OrderedDict.__reduce__",
        ),
        "what a method of an allowed class sees": (
            stacked("collections", "OrderedDict.__reduce__.__globals__"),
            "collections.OrderedDict.__reduce__.__globals__",
        ),
        "a module in another's": (
            stacked("phema_cli.pickles.opcodes", "pickle"),
            "phema_cli.pickles.opcodes.pickle",
        ),
        "as the state of a layer": (
            module + b"}" + text("__setstate__") + system + b"sb",
            "os.system",
        ),
        "as the state of a dict": (
            plain("collections", "OrderedDict")
            + b")R}"
            + text("__setstate__")
            + system
            + b"sb"
            + text(command)
            + b"b",
            "os.system",
        ),
        "as a storage": (
            b"(" + text("storage") + system + text("0") + text("cpu") + b"K\x04tQ",
            "os.system",
        ),
        "as the source of an object": (
            persistent + b"}" + text("state") + system + b"s\x85R",
            "os.system",
        ),
        "in a storage": (
            load + span(storage(before=system + shell + b"R0")) + b"\x85R",
            "os.system",
        ),
        "as the type of a storage": (load + span(storage(key=system)) + b"\x85R", "os.system"),
        "a storage inside a storage": (
            load + span(storage(before=load + b"0")) + b"\x85R",
            "torch.storage._load_from_bytes",
        ),
        "an object of torch's old format": (load + span(old.getvalue()) + b"\x85R", "posix.system"),
        "source that runs when it is rebuilt": (
            persistent
            + b"}("
            + text("module_src")
            + python[:-1]
            + text("class_name")
            + text("Net")
            + text("state")
            + b"}u\x85R",
            None,
        ),
        "a state that names its class": (
            module + b"}" + text("__class__") + text("os.system") + b"sb" + shell + b"R",
            None,
        ),
        "a state for a function": (load + b"}" + text("call") + text("os.system") + b"sb", None),
        "a persistent id of text": (b"Pos.system\n", None),
        "a persistent id of another kind": (text("os.system") + b"Q", None),
        "a global whose module is a number": (b"K\x01" + text("system") + b"\x93", None),
        "a number that is called": (b"K\x01" + shell + b"R", None),
        "an extension": (b"\x82\x01", None),
        "a buffer outside": (b"\x97", None),
    }
    return {case: Hostile(b"\x80\x04" + body + b".", asked) for case, (body, asked) in asks.items()}


def _doubled(first: bytes, double: bytes, times: int = 60) -> bytes:
    """Opcodes that double a value again and again; ``double`` makes one of two."""
    return first + b"".join(put(i) + b"0" + double % (get(i), get(i)) for i in range(times))


def _layers(content: bytes, times: int, first: bytes) -> bytes:
    """Opcodes of layers in one another; ``content`` is a layer's state around the one before."""
    layer = plain("torch.nn.modules.module", "Module") + b")\x81"
    made = layer + first
    for i in range(times):
        made += put(i) + b"0" + layer + b"}(" + content.replace(b"<inner>", get(i)) + b"ub"
    return made


def bombs() -> dict[str, bytes]:
    """Short pickles that would hang, fill any memory, or end the process."""
    deep = b"K\x01" + b"\x85" * 200_000
    load = plain(*_LOAD)
    twice = storage()
    for _ in range(40):
        again = plain(*_LOAD) + get(0) + b"\x85R0"
        twice = storage(before=span(twice) + put(0) + b"0" + again + again)
    wide = b"}(" + b"".join(text(str(i)) + b"N" for i in range(20_000)) + b"u" + put(99) + b"0"
    pair = text("_modules") + b"}(" + text("a") + b"<inner>" + text("b") + b"<inner>u"
    wide_state = text("_parameters") + get(99)
    path = plain("pathlib", "PosixPath")
    bodies = {
        "a key nested deeply": b"}" + deep + b"Ns",
        "a key of doubled tuples": b"}" + _doubled(b")", b"%s%s\x86") + b"Ns",
        "a set of what is nested deeply": plain("builtins", "set") + b"]" + deep + b"a\x85R",
        "a set of Python 2": plain("__builtin__", "set") + b"]" + deep + b"a\x85R",
        "a frozen set": b"(" + deep + b"\x91",
        "a module name of doubled tuples": _doubled(b")", b"%s%s\x86") + text("x") + b"\x93",
        "a path of doubled tuples": path + _doubled(b")", b"%s%s\x86") + b"\x85R",
        "a path that doubles": _doubled(text("aaaa"), path + b"%s%s\x86R"),
        "storages in storages": b"}" + text("e") + load + span(twice) + b"\x85Rs",
        "a storage again and again": load
        + put(0)
        + span(storage())
        + put(1)
        + (b"h\x00h\x01\x85R0") * 100_000,
        "layers twice in one another": b"}" + text("ema") + _layers(pair, 60, b"") + b"s",
        "wide layers twice in one another": wide
        + b"}"
        + text("ema")
        + _layers(wide_state + pair, 16, b"}" + wide_state + b"sb")
        + b"s",
        "layers of long names": text("a" * (8 << 20))
        + put(999)
        + b"0}"
        + text("ema")
        + _layers(text("_modules") + b"}" + get(999) + b"<inner>s", 90, b"")
        + b"s",
        "a memo without end": b"}r\xff\xff\xff\x7f",
        "a text longer than the file": b"X\xff\xff\xff\x7f",
        "bytes longer than the file": b"\x8e" + b"\xff" * 8,
        "a number as a name": b"}\x8b" + struct.pack("<I", 5000) + b"\x01" * 5000 + b"}s",
        "a name of a global without end": b"c" + b"a" * (8 << 20) + b"\nb\n",
        "dicts in dicts": b"}" + (text("a") + b"}") * 100_000 + b"s" * 100_000,
    }
    return {case: b"\x80\x04" + body + b"." for case, body in bodies.items()}


#: names of those that would run code.
HOSTILE_CASES = sorted(hostile_pickles(""))
