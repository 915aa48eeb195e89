"""Safetensors files for tests: made by hand, and malformed ones."""

from __future__ import annotations

import json
import struct


def write_raw(path, header, data=b""):
    """Write a file with this header, JSON or bytes, and these data."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path


def entry(low=0, high=4, *, dtype="F32", shape=(1,)):
    """A header's entry of one tensor."""
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [low, high]}


def write_index(directory, weight_map, base="model"):
    """Write an index with this weight_map; the shards are the test's."""
    path = directory / f"{base}.safetensors.index.json"
    path.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": weight_map}))
    return path


ENTRY = b'{"dtype":"F32","shape":[1],"data_offsets":[0,4]}'
MALFORMED = {
    "no text in metadata": ({"__metadata__": {"step": 5}}, b"", "metadata"),
    "metadata is a list": ({"__metadata__": []}, b"", "metadata"),
    "not JSON": (b"{nonsense}", b"", "JSON"),
    "not text": (b'{"\xff": 1}', b"", "JSON"),
    "a list": ([1, 2], b"", "not an object"),
    "deep": (b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}", b"", "JSON"),
    "huge number": (b'{"a":' + b"9" * 10_000 + b"}", b"", "JSON"),
    "hole at the start": ({"a": entry(4, 8)}, bytes(8), "a: its data"),
    "hole between": ({"a": entry(), "b": entry(8, 12)}, bytes(12), "b: its data"),
    "overlap": ({"a": entry(), "b": entry()}, bytes(4), "b: its data"),
    "partial overlap": ({"a": entry(0, 8, shape=(2,)), "b": entry(4, 8)}, bytes(8), "b: its data"),
    "too few bytes for the shape": ({"a": entry(0, 4, shape=(2,))}, bytes(4), "a: 4 bytes"),
    "too many bytes for the shape": ({"a": entry(0, 8)}, bytes(8), "a: 8 bytes"),
    "a product beyond 64 bits": ({"a": entry(shape=(2**32, 2**32))}, bytes(4), "a: 4 bytes"),
    "offsets run backwards": ({"a": entry(4, 0)}, bytes(4), "a: -4 bytes"),
    "negative offset": ({"a": entry(-4, 0)}, bytes(4), "a: "),
    "boolean offset": ({"a": entry(low=False)}, bytes(4), "a: malformed"),
    "fractional offset": ({"a": entry(0.0, 4.0)}, bytes(4), "a: malformed"),
    "three offsets": ({"a": entry() | {"data_offsets": [0, 4, 4]}}, bytes(4), "a: malformed"),
    "negative shape": ({"a": entry(0, 4, shape=(-1, -1))}, bytes(4), "a: malformed"),
    "boolean shape": ({"a": entry(0, 4, shape=(True,))}, bytes(4), "a: malformed"),
    "fractional shape": ({"a": entry(0, 4, shape=(1.0,))}, bytes(4), "a: malformed"),
    "shape is a number": ({"a": entry() | {"shape": 1}}, bytes(4), "a: malformed"),
    "entry is a list": ({"a": [0, 4]}, bytes(4), "a: malformed"),
    "no dtype": ({"a": {"shape": [1], "data_offsets": [0, 4]}}, bytes(4), "a: malformed"),
    "dtype is a number": ({"a": entry(dtype=32)}, bytes(4), "a: malformed"),
    "unknown dtype": ({"a": entry(dtype="F31")}, bytes(4), "unknown dtype F31"),
    "truncated": ({"a": entry(0, 8, shape=(2,))}, bytes(7), "cut short"),
    "bytes behind the data": ({"a": entry()}, bytes(5), "5 bytes|has .* bytes"),
    "a name twice": (b'{"a":%b,"a":%b}' % (ENTRY, ENTRY), bytes(4), "has 'a' twice"),
    "a field twice": (
        b'{"a":{"dtype":"F32","shape":[1],"shape":[1],"data_offsets":[0,4]}}',
        bytes(4),
        "has 'shape' twice",
    ),
    "65 dimensions": ({"a": entry(shape=(1,) * 65)}, bytes(4), "65 dimensions"),
    "a name that is no text": (
        b'{"\\ud800":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}',
        b"",
        "not text",
    ),
}
