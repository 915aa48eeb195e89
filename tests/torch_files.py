"""Torch's checkpoints for tests: made by hand, broken, hostile, and what they hold."""

from __future__ import annotations

import io
import os
import pickle
import runpy
import zipfile

import torch

from phema_cli.formats.reader import FileReader


def raw_bytes(tensor):
    """The bytes of a tensor's elements in row-major order."""
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def stored_bytes(extent, piece=None):
    """The bytes that the reader finds for an extent, read so many elements at a time."""
    itemsize = extent.dtype.bits // 8
    piece = piece or max(1, extent.elements)
    got = b""
    with FileReader() as reader:
        for start in range(0, extent.elements, piece):
            out = bytearray(min(piece, extent.elements - start) * itemsize)
            reader.read_elements(extent, start, memoryview(out))
            got += bytes(out)
    return got


def craft(path, pickled, record=bytes(16)):
    """Write a zip like torch's around a pickle made by hand, with one record."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", pickled)
        archive.writestr("archive/data/0", record)
    return path


def opcodes(value):
    """The opcodes that push a plain value."""
    return pickle.dumps(value, 2)[2:-1]


def text(value):
    """The opcodes that push a text."""
    return opcodes(value)


def name(module, attribute):
    """The opcodes that push a global."""
    return f"c{module}\n{attribute}\n".encode()


STORAGE = (
    b"(" + text("storage") + name("torch", "FloatStorage") + text("0") + text("cpu") + b"K\x04tQ"
)


def tensor_pickle(offset, shape, strides, storage=STORAGE):
    """A pickle of {"w": tensor} over a record of four floats."""
    arguments = opcodes(offset) + opcodes(shape) + opcodes(strides) + b"\x89N"
    rebuild = name("torch._utils", "_rebuild_tensor_v2")
    return b"\x80\x02}" + text("w") + rebuild + b"(" + storage + arguments + b"tRs."


REBUILD_V3 = b"\x80\x02}" + text("w") + name("torch._utils", "_rebuild_tensor_v3")
FOUR = b"K\x00" + opcodes((4,)) + opcodes((1,)) + b"\x89N"
BROKEN_PICKLES = {
    "persistent id is a number": b"\x80\x02K\x01Q.",
    "persistent id of another kind": b"\x80\x02(" + text("module") + text("os") + b"tQ.",
    "persistent id too short": b"\x80\x02(" + text("storage") + b"tQ.",
    "storage type is text": b"\x80\x02("
    + b"".join(map(text, ("storage", "os.system", "0", "cpu")))
    + b"K\x04tQ.",
    "storage is None": tensor_pickle(0, (4,), (1,), b"N"),
    "typed storage is None": REBUILD_V3 + b"(N" + FOUR + name("torch", "float32") + b"tRs.",
    "type is None": REBUILD_V3 + b"(" + STORAGE + FOUR + b"NtRs.",
    "too few arguments": REBUILD_V3 + b"(" + STORAGE + b"tRs.",
    "dict within dicts, 5000 deep": b"\x80\x02" + b"}U\x01k" * 5000 + b"N" + b"s" * 5000 + b".",
    "dict that holds itself": b"\x80\x02}q\x00U\x01kh\x00s.",
    "extension code": b"\x80\x02\x82\x01.",
    "calls a type": b"\x80\x02" + name("torch", "float32") + b")R.",
    "calls a storage type": b"\x80\x02" + name("torch", "FloatStorage") + b")R.",
    "unhashable key": b"\x80\x02}]Ns.",
}


class Evil:
    """Pickles as a call."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        """What the pickle asks to call."""
        return self.call


def stack_global(module, attribute):
    """The opcodes of protocol 4 that push a global."""
    return b"\x80\x04" + text(module) + text(attribute) + b"\x93"


def hostile(command):
    """Pickles that would run the command, and the global that each is to be refused for."""
    shell = opcodes((command,))
    python = opcodes((f"__import__('os').system({command!r})",))
    inner = io.BytesIO()
    torch.save(Evil(os.system, command), inner)
    build = b"}" + text("__setstate__") + name("os", "system") + b"sb" + text(command) + b"b."
    return {
        "posix.system": pickle.dumps({"w": Evil(os.system, command)}),
        "os.system": b"cos\nsystem\n" + shell + b"R.",
        "builtins.eval": pickle.dumps(Evil(eval, python.decode("latin-1")), 4),
        "builtins.exec": stack_global("builtins", "exec") + python + b"R.",
        "__builtin__.eval": b"\x80\x02" + name("__builtin__", "eval") + python + b"R.",
        "builtins.getattr": b"\x80\x02"
        + name("builtins", "getattr")
        + name("collections", "OrderedDict")
        + text("clear")
        + b"\x86R.",
        "nt.system": b"(" + text(command) + b"int\nsystem\n.",
        "subprocess.Popen": name("subprocess", "Popen") + b"(" + text(command) + b"o.",
        "runpy.run_path": pickle.dumps(Evil(runpy.run_path, command)),
        "importlib.import_module": stack_global("importlib", "import_module") + b".",
        "torch.storage._load_from_bytes": b"\x80\x02"
        + name("torch.storage", "_load_from_bytes")
        + opcodes((inner.getvalue(),))
        + b"R.",
        "torch.load": b"\x80\x02" + name("torch", "load") + shell + b"R.",
        "torch._utils.os.system": stack_global("torch._utils", "os.system") + shell + b"R.",
        "torch.os": b"\x80\x02" + name("torch", "os") + b".",
        "collections.OrderedDict.__init__": stack_global("collections", "OrderedDict.__init__")
        + b".",
        "collections.OrderedDict.__reduce__.__globals__": stack_global(
            "collections", "OrderedDict.__reduce__.__globals__"
        )
        + b".",
        "phema_cli.pickles.opcodes.pickle": stack_global("phema_cli.pickles.opcodes", "pickle")
        + b".",
        "functools.partial": stack_global("functools", "partial") + b".",
        "os.system in BUILD": b"\x80\x02" + name("collections", "OrderedDict") + b")R" + build,
        "os.system as storage": b"\x80\x02("
        + text("storage")
        + name("os", "system")
        + text("0")
        + text("cpu")
        + b"K\x04tQ.",
    }


#: what hostile pickles ask for.
HOSTILE_NAMES = sorted(hostile(""))
