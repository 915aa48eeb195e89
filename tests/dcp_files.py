"""Distributed checkpoints for tests: saved, edited, and hostile ones."""

from __future__ import annotations

import os
import pickle
import subprocess

import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.filesystem import FileSystemWriter
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata

from tests.hostile_pickles import Call, plain


def save(path, state, **options):
    """Save from a single process and return the directory."""
    writer = FileSystemWriter(path, sync_files=False, **options)
    dcp.save(state, storage_writer=writer, no_dist=True)
    return path


W = torch.arange(3.0)
NESTED = {
    "ema": {"a.w": torch.rand(4, 5).t(), "a.n": torch.tensor(3), "a.b": W},
    "model": {"a.w": torch.rand(5, 4), "a.n": torch.tensor(4), "a.b": W + 1},
    "optimizer": {"state": {0: {"m": W}}, "param_groups": [{"lr": W, "betas": (0.9, 0.99)}]},
    "step": 3,
}


def edit(path, change):
    """Change the metadata of a checkpoint and write it anew."""
    metadata = pickle.loads((path / ".metadata").read_bytes())
    change(metadata)
    (path / ".metadata").write_bytes(pickle.dumps(metadata))
    return path


HOSTILE = {
    "posix.system": Call(os.system, "touch ran"),
    "builtins.eval": Call(eval, "open('ran', 'w')"),
    "builtins.getattr": Call(getattr, {}, "clear"),
    "subprocess.Popen": Call(subprocess.Popen, ["touch", "ran"]),
    "torch.serialization.load": Call(torch.load, "ran"),
}


HOME = "torch.distributed.checkpoint.metadata"
INDEX = plain(HOME, "MetadataIndex")
STATE = pickle.dumps({"call": len, "fqn": "x", "__class__": int}, 2)[2:-1].replace(
    b"c__builtin__\nlen\n", b"K\x01"
)
TRICKS = {
    "a class's state": INDEX + STATE + b"b.",
    "a class's slots": INDEX + b"N" + STATE + b"\x86b.",
    "a type's state": plain("torch", "float32") + STATE + b"b.",
    "a function's state": plain("torch.serialization", "_get_layout") + STATE + b"b.",
    "a class's entries": INDEX + b"U\x01aK\x01s.",
    "a record called": INDEX + b")R(K\x01K\x02tR.",
    "a record of arguments": INDEX + b"(K\x01t\x81.",
    "a record made of a record": INDEX + b")\x81)\x81.",
    "a type called": plain("torch", "float32") + b")R.",
    "a persistent id": b"(U\x07storagetQ.",
    "an attribute of a class": b"\x80\x04\x8c\x09" + b"torch.Siz" + b"\x8c\x01e\x93.",
    "a large memo": b"]r\x00\x00\x00\x01.",
    "many bytes": b"\x80\x04\x8e" + bytes([255] * 7) + b"\x00.",
    "nothing": b"",
    "only a stop": b".",
    "a number": b"K\x01.",
    "a record": INDEX + b")\x81.",
}


def info(metadata, name="ema.a.w"):
    """Where the metadata say that a tensor lies."""
    return next(v for k, v in metadata.storage_data.items() if k.fqn == name)


def entry(metadata, name="ema.a.w"):
    """What the metadata say of a tensor."""
    return metadata.state_dict_metadata[name]


def put(find, **values):
    """A change of fields."""

    def change(metadata):
        for field, value in values.items():
            setattr(find(metadata), field, value)

    return change


def box(origin, shape):
    """A list of one chunk."""
    return [ChunkStorageMetadata(torch.Size(origin), torch.Size(shape))]


EDITS = {
    "parent": (put(info, relative_path="../x.distcp"), "outside the directory"),
    "absolute": (put(info, relative_path="/etc/passwd"), "outside the directory"),
    "below": (put(info, relative_path="a/x.distcp"), "outside the directory"),
    "backslash": (put(info, relative_path="a\\x.distcp"), "outside the directory"),
    "dots": (put(info, relative_path=".."), "missing"),
    "no name": (put(info, relative_path=""), "missing"),
    "zero": (put(info, relative_path="a\0b"), "missing"),
    "long": (put(info, relative_path="a" * 5000), "is missing"),
    "half a pair": (put(info, relative_path="\ud800"), "missing"),
    "itself": (
        put(info, relative_path=".metadata", offset=0, length=500),
        "not stored by torch.save",
    ),
    "missing": (put(info, relative_path="__9_0.distcp"), "'__9_0.distcp' is missing"),
    "a list for a name": (put(info, relative_path=["x"]), "doesn't say where"),
    "beyond the file": (put(info, length=1 << 40), "overlaps that of another"),
    "far away": (put(info, offset=(1 << 62) - 1), "goes beyond"),
    "too far": (put(info, offset=1 << 70), "doesn't say where"),
    "huge": (put(info, offset=10**5000), "a number of 16610 bits"),
    "before the file": (put(info, offset=-4), "doesn't say where"),
    "no length": (put(info, length=0), "not stored by torch.save"),
    "short length": (put(info, length=100), "its chunk is broken"),
    "half": (put(info, offset=0.5), "doesn't say where"),
    "true": (put(info, length=True), "doesn't say where"),
    "compressed": (put(info, transform_descriptors=["zstd"]), "compressed"),
    "no places": (lambda m: setattr(m, "storage_data", None), "doesn't say where"),
    "no place": (lambda m: m.storage_data.clear(), "doesn't say where"),
    "place of text": (
        lambda m: setattr(m, "storage_data", dict.fromkeys(m.storage_data, "x")),
        "doesn't say where",
    ),
    "a name that is a list": (
        lambda m: object.__setattr__(key_of(m), "fqn", []),
        "doesn't say where",
    ),
    "another type": (
        put(lambda m: entry(m).properties, dtype=torch.float64),
        "another type or shape",
    ),
    "a shape turned round": (
        put(entry, size=torch.Size((4, 5)), chunks=box((0, 0), (4, 5))),
        "another type or shape",
    ),
    "no shape": (put(entry, size=None), "malformed entry"),
    "a negative shape": (put(entry, size=(-4, -5)), "malformed entry"),
    "no properties": (put(entry, properties=None), "malformed entry"),
    "no chunks": (put(entry, chunks=None), "malformed entry"),
    "a chunk of text": (put(entry, chunks=["x"]), "malformed chunk"),
    "a chunk without a shape": (put(lambda m: entry(m).chunks[0], sizes=None), "malformed chunk"),
    "split 9 ways": (
        put(entry, size=(2,) * 9, chunks=[]),
        "overlap",
    ),
    "split along 9 dimensions": (
        put(entry, size=(2,) * 9, chunks=box((0,) * 9, (1,) * 9)),
        "overlap",
    ),
    "split along 300 dimensions": (
        put(entry, size=(2,) * 300, chunks=box((0,) * 300, (1,) * 300)),
        "malformed entry",
    ),
    "an entry of text": (
        lambda m: m.state_dict_metadata.update({"ema.a.w": "x"}),
        "malformed entry",
    ),
    "a number for a name": (lambda m: m.state_dict_metadata.update({5: entry(m)}), "no tensors"),
    "half a pair for a name": (
        lambda m: (
            m.state_dict_metadata.update({"\ud800": entry(m)})
            or m.planner_data.update({"\ud800": ("ema", "x")})
        ),
        "not text",
    ),
    "no entries": (lambda m: setattr(m, "state_dict_metadata", None), "no tensors"),
    "nothing": (lambda m: m.state_dict_metadata.clear(), "holds no dict of tensors"),
    "no path": (lambda m: m.planner_data.update({"ema.a.w": ()}), "path"),
    "a path of dicts": (lambda m: m.planner_data.update({"ema.a.w": ({},)}), "path"),
    "a path of text": (lambda m: m.planner_data.update({"ema.a.w": "ab"}), "path"),
    "a long path": (lambda m: m.planner_data.update({"ema.a.w": ("a",) * 100_000}), "path"),
    "a path of huge numbers": (
        lambda m: m.planner_data.update({"ema.a.w": (10**5000,)}),
        "16610 bits",
    ),
    "half a pair in a path": (
        lambda m: m.planner_data.update({"ema.a.w": ("\ud800",)}),
        "not text",
    ),
    "a path through a tensor": (
        lambda m: m.planner_data.update({"ema.a.w": ("ema", "a.b", "x"), "ema.a.n": ("e", "a.b")}),
        "another entry",
    ),
    "a path twice": (
        lambda m: m.planner_data.update({"ema.a.w": ("ema", "a.b")}),
        "listed twice",
    ),
}


def key_of(metadata, name="ema.a.w"):
    """The key of a tensor's place."""
    return next(k for k in metadata.storage_data if k.fqn == name)
