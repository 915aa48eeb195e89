"""Torch's checkpoints for tests: made by hand, broken, and what they hold."""

from __future__ import annotations

import pickle
import zipfile

import torch

from phema_cli.formats.reader import FileReader
from tests.hostile_pickles import plain, text


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


STORAGE = (
    b"(" + text("storage") + plain("torch", "FloatStorage") + text("0") + text("cpu") + b"K\x04tQ"
)


def tensor_pickle(offset, shape, strides, storage=STORAGE):
    """A pickle of {"w": tensor} over a record of four floats."""
    arguments = opcodes(offset) + opcodes(shape) + opcodes(strides) + b"\x89N"
    rebuild = plain("torch._utils", "_rebuild_tensor_v2")
    return b"\x80\x02}" + text("w") + rebuild + b"(" + storage + arguments + b"tRs."


REBUILD_V3 = b"\x80\x02}" + text("w") + plain("torch._utils", "_rebuild_tensor_v3")
FOUR = b"K\x00" + opcodes((4,)) + opcodes((1,)) + b"\x89N"
BROKEN_PICKLES = {
    "persistent id is a number": b"\x80\x02K\x01Q.",
    "persistent id of another kind": b"\x80\x02(" + text("module") + text("os") + b"tQ.",
    "persistent id too short": b"\x80\x02(" + text("storage") + b"tQ.",
    "storage type is text": b"\x80\x02("
    + b"".join(map(text, ("storage", "os.system", "0", "cpu")))
    + b"K\x04tQ.",
    "storage is None": tensor_pickle(0, (4,), (1,), b"N"),
    "typed storage is None": REBUILD_V3 + b"(N" + FOUR + plain("torch", "float32") + b"tRs.",
    "type is None": REBUILD_V3 + b"(" + STORAGE + FOUR + b"NtRs.",
    "too few arguments": REBUILD_V3 + b"(" + STORAGE + b"tRs.",
    "dict within dicts, 5000 deep": b"\x80\x02" + b"}U\x01k" * 5000 + b"N" + b"s" * 5000 + b".",
    "dict that holds itself": b"\x80\x02}q\x00U\x01kh\x00s.",
    "extension code": b"\x80\x02\x82\x01.",
    "calls a type": b"\x80\x02" + plain("torch", "float32") + b")R.",
    "calls a storage type": b"\x80\x02" + plain("torch", "FloatStorage") + b")R.",
    "unhashable key": b"\x80\x02}]Ns.",
}
