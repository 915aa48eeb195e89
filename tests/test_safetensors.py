"""Safetensors: headers and indexes are read as the library writes them, broken ones refused."""

import json
import math
import re
import struct
from pathlib import Path
from types import MappingProxyType

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from phema_cli.errors import InputError, PhemaError, StorageError, UsageError
from phema_cli.formats import safetensors
from phema_cli.formats.base import DTYPES, Checkpoint
from phema_cli.formats.reader import FileReader
from tests.builders import read_index
from tests.safetensors_files import MALFORMED, entry, write_index, write_raw

TORCH_DTYPES = [
    torch.float64,
    torch.float32,
    torch.float16,
    torch.bfloat16,
    torch.float8_e4m3fn,
    torch.float8_e5m2,
    torch.float8_e4m3fnuz,
    torch.float8_e5m2fnuz,
    torch.float8_e8m0fnu,
    torch.complex64,
    torch.int64,
    torch.int32,
    torch.int16,
    torch.int8,
    torch.uint64,
    torch.uint32,
    torch.uint16,
    torch.uint8,
    torch.bool,
]


def raw_bytes(tensor):
    """The bytes of a tensor's elements in row-major order."""
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def stored_bytes(extent):
    """The bytes that the reader finds at an extent."""
    out = bytearray(extent.length)
    with FileReader() as reader:
        reader.read_elements(extent, 0, memoryview(out))
    return bytes(out)


@pytest.mark.parametrize("dtype", TORCH_DTYPES, ids=str)
def test_every_dtype(tmp_path, dtype):
    """A tensor of any type is found with its name, type, shape and bytes."""
    tensor = torch.arange(6).reshape(2, 3).to(dtype)
    save_file({"x": tensor, "pad": torch.ones(1)}, tmp_path / "a.safetensors")
    extent = read_index(tmp_path / "a.safetensors").tensors["x"]
    assert f"torch.{extent.dtype.label}" == str(dtype)
    assert (extent.name, extent.shape, extent.strides) == ("x", (2, 3), None)
    assert stored_bytes(extent) == raw_bytes(tensor)


def test_packed_floats_count_two_to_a_byte(tmp_path):
    """A tensor of 4-bit floats has two elements in each of its bytes."""
    tensor = torch.arange(4, dtype=torch.uint8).view(torch.float4_e2m1fn_x2)
    save_file({"x": tensor}, tmp_path / "a.safetensors")
    extent = read_index(tmp_path / "a.safetensors").tensors["x"]
    assert (extent.dtype.name, extent.shape, extent.length) == ("F4", (8,), 4)


@pytest.mark.parametrize("shape", [(), (0,), (3, 0, 2), (1, 1), (5,)])
def test_odd_shapes(tmp_path, shape):
    """Scalars and tensors without elements are found beside others, with their bytes."""
    tensors = {"a": torch.rand(3), "x": torch.rand(shape), "y": torch.rand(shape)}
    save_file(tensors, tmp_path / "a.safetensors")
    found = read_index(tmp_path / "a.safetensors").tensors
    assert found["x"].shape == shape
    assert {n: stored_bytes(e) for n, e in found.items()} == {
        n: raw_bytes(t) for n, t in tensors.items()
    }


def test_single_file(tmp_path):
    """A checkpoint in one file has its metadata, counts and base name; its only key is the dot."""
    path = tmp_path / "ema-step5.safetensors"
    save_file({"w": torch.rand(4, 3), "n": torch.tensor(3)}, path, {"gamma": "5", "format": "pt"})
    found = read_index(path)
    assert read_index(path, ".").tensors == found.tensors
    with pytest.raises(UsageError, match="leave --key out: no dict is nested"):
        read_index(path, "anything")
    assert (found.path, found.files, found.format) == (path, (path,), "safetensors")
    assert found.metadata == {"gamma": "5", "format": "pt"}
    assert (found.parameters, found.size_bytes, found.base_name) == (12, 56, "ema-step5")


def test_extents_come_in_the_order_of_their_data(tmp_path):
    """Tensors are listed as they lie in the file, whatever the order in its header."""
    header = {"b": entry(4, 8), "c": entry(0, 4), "a": entry(8, 8, shape=(0,))}
    path = write_raw(tmp_path / "a.safetensors", header, bytes(8))
    extents = list(read_index(path).tensors.values())
    assert [e.name for e in extents] == ["c", "b", "a"]
    assert extents[0].offset == path.stat().st_size - 8


def test_header_without_metadata_or_tensors(tmp_path):
    """The smallest file that the format allows has no tensors and no metadata."""
    found = read_index(write_raw(tmp_path / "a.safetensors", {}))
    assert (dict(found.tensors), found.metadata) == ({}, {})


@pytest.mark.parametrize("case", MALFORMED)
def test_malformed_header(tmp_path, case):
    """A header that contradicts itself or the file is refused; the file is named."""
    header, data, message = MALFORMED[case]
    path = write_raw(tmp_path / "bad.safetensors", header, data)
    with pytest.raises(InputError, match=message) as caught:
        read_index(path)
    assert caught.value.where == str(path)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"1234567",
        struct.pack("<Q", 0),
        struct.pack("<Q", 1) + b"{",
        struct.pack("<Q", 3) + b"{}",
        struct.pack("<Q", 2**63) + b"{}",
        struct.pack("<Q", 2**64 - 1) + b"{}",
        b"PK\x03\x04 a zip under the wrong name",
    ],
)
def test_not_safetensors_at_all(tmp_path, content):
    """A file too short, or with a header longer than itself, is refused before it is read."""
    path = tmp_path / "bad.safetensors"
    path.write_bytes(content)
    with pytest.raises(InputError, match="not a safetensors file") as caught:
        read_index(path)
    assert caught.value.where == str(path)


def test_header_length_bomb(tmp_path):
    """A header above 100 MB is refused unread, also in a sparse file that is large enough."""
    path = tmp_path / "bad.safetensors"
    with path.open("wb") as file:
        file.write(struct.pack("<Q", 100_000_001))
        file.truncate(8 + 100_000_001)
    with pytest.raises(InputError, match="not a safetensors file"):
        read_index(path)


def test_index_bomb(tmp_path):
    """An index above 1 GiB is refused unread."""
    path = tmp_path / "model.safetensors.index.json"
    with path.open("wb") as file:
        file.truncate((1 << 30) + 1)
    with pytest.raises(InputError, match="too large"):
        read_index(path)


@pytest.mark.parametrize("name", ["no.safetensors", "no.safetensors.index.json"])
def test_missing_file(tmp_path, name):
    """A file that cannot be read is the operating system's failure, and is named."""
    with pytest.raises(StorageError) as caught:
        read_index(tmp_path / name)
    assert caught.value.where == str(tmp_path / name)


def outcome(path):
    """The extents that reading the file gives, and the file that it or its refusal names."""
    try:
        found = read_index(path)
    except PhemaError as error:
        return [], error.where
    return list(found.tensors.values()), str(found.path)


def test_damaged_anywhere(tmp_path):
    """Whatever byte is flipped or missing, a file reads within its bounds or is refused."""
    path = tmp_path / "a.safetensors"
    save_file({"w": torch.rand(3), "b": torch.zeros(2, 2)}, path, {"gamma": "5"})
    whole = path.read_bytes()
    flipped = [
        whole[:i] + bytes([whole[i] ^ mask]) + whole[i + 1 :]
        for i in range(len(whole) - 28)
        for mask in (0x01, 0x80, 0xFF)
    ]
    for content in flipped:
        path.write_bytes(content)
        found, where = outcome(path)
        assert where == str(path)
        assert all(e.offset + e.length <= len(content) for e in found)
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(InputError):
            read_index(path)


@pytest.fixture
def sharded(tmp_path):
    """A checkpoint in two shards of the library's with an index; returns index and tensors."""
    one = {"a": torch.rand(3), "b": torch.rand(2, 2).half()}
    two = {"c": torch.rand(()), "d": torch.arange(4)}
    save_file(one, tmp_path / "model-00001-of-00002.safetensors", {"step": "5", "format": "pt"})
    save_file(two, tmp_path / "model-00002-of-00002.safetensors", {"step": "6", "gamma": "7"})
    weight_map = dict.fromkeys(one, "model-00001-of-00002.safetensors")
    weight_map |= dict.fromkeys(two, "model-00002-of-00002.safetensors")
    return write_index(tmp_path, weight_map), one | two


def test_sharded(sharded):
    """An index gives the tensors of all its shards; the first shard's metadata count."""
    index, tensors = sharded
    found = read_index(index)
    assert [f.name for f in found.files] == [
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
    ]
    assert (found.path, found.base_name) == (index, "model")
    assert found.metadata == {"step": "5", "gamma": "7", "format": "pt"}
    assert {n: stored_bytes(e) for n, e in found.tensors.items()} == {
        n: raw_bytes(t) for n, t in tensors.items()
    }


def test_shard_alone(sharded):
    """A shard read by itself is called as its checkpoint is."""
    index, _ = sharded
    found = read_index(index.with_name("model-00002-of-00002.safetensors"))
    assert (found.base_name, sorted(found.tensors)) == ("model", ["c", "d"])


def test_tensors_that_the_index_leaves_out(sharded):
    """Of a tensor in two shards the index's one counts; what it doesn't list is not there."""
    index, _ = sharded
    write_index(index.parent, {"c": "model-00002-of-00002.safetensors"})
    save_file({"c": torch.ones(9)}, index.with_name("model-00001-of-00002.safetensors"))
    assert {n: e.shape for n, e in read_index(index).tensors.items()} == {"c": ()}


@pytest.mark.parametrize(
    "content", ["{}", '{"weight_map": {}}', '{"weight_map": ["a"]}', '{"weight_map": null}']
)
def test_index_without_weight_map(tmp_path, content):
    """An index that names no shards is refused."""
    path = tmp_path / "model.safetensors.index.json"
    path.write_text(content)
    with pytest.raises(InputError, match="without a weight_map") as caught:
        read_index(path)
    assert caught.value.where == str(path)


@pytest.mark.parametrize("content", ["", "[1]", "[" * 100_000, "\ud800"])
def test_index_that_is_no_json_object(tmp_path, content):
    """An index that is not a JSON object is refused."""
    path = tmp_path / "model.safetensors.index.json"
    path.write_bytes(content.encode("utf-8", "surrogatepass"))
    with pytest.raises(InputError, match="JSON") as caught:
        read_index(path)
    assert caught.value.where == str(path)


@pytest.mark.parametrize(
    "shard",
    [
        "../x.safetensors",
        "sub/x.safetensors",
        "./x.safetensors",
        "{tmp}/x.safetensors",
        "..\\x.safetensors",
        "C:\\x.safetensors",
        "x.bin",
        "..",
        "",
        5,
        None,
        ["x.safetensors"],
    ],
)
def test_index_that_leads_elsewhere(tmp_path, shard):
    """A shard that is not a plain safetensors name is refused, even where the file exists."""
    save_file({"a": torch.ones(1)}, tmp_path / "x.safetensors")
    (tmp_path / "run" / "sub").mkdir(parents=True)
    for folder in ("run", "run/sub"):
        save_file({"a": torch.ones(1)}, tmp_path / folder / "x.safetensors")
    shard = shard.replace("{tmp}", str(tmp_path)) if isinstance(shard, str) else shard
    index = write_index(tmp_path / "run", {"a": shard})
    with pytest.raises(InputError, match=r"outside the directory|not a \.safetensors") as caught:
        read_index(index)
    assert caught.value.where == str(index)


def test_links_of_a_cache(sharded, tmp_path):
    """Where index and shards are links into one directory, as in caches, they are read."""
    index, tensors = sharded
    (tmp_path / "cache").mkdir()
    for file in (index, *index.parent.glob("*.safetensors")):
        (tmp_path / "cache" / file.name).symlink_to(file)
    assert set(read_index(tmp_path / "cache" / index.name).tensors) == set(tensors)


def test_missing_shard(sharded):
    """A shard that is not there is named, with the index that wants it."""
    index, _ = sharded
    index.with_name("model-00002-of-00002.safetensors").unlink()
    with pytest.raises(InputError, match=r"shard 'model-00002-of-00002.*' is missing") as caught:
        read_index(index)
    assert caught.value.where == str(index)


def test_tensor_not_in_its_shard(sharded):
    """A tensor that lies in another shard than the index says is named."""
    index, _ = sharded
    write_index(index.parent, {"a": "model-00002-of-00002.safetensors"})
    with pytest.raises(InputError, match=r"a is not in its shard model-00002-of-00002") as caught:
        read_index(index)
    assert caught.value.where == str(index)


def test_broken_shard_is_named(sharded):
    """Of a checkpoint with a broken shard the shard is named, not the index."""
    index, _ = sharded
    shard = index.with_name("model-00002-of-00002.safetensors")
    shard.write_bytes(shard.read_bytes()[:-1])
    with pytest.raises(InputError, match="cut short") as caught:
        read_index(index)
    assert caught.value.where == str(shard)


NOTHING = Checkpoint(Path(), "safetensors", (), {})


def encoded(layout, metadata, ties=MappingProxyType({})):
    """The one segment of an encoded file, and the places of its tensors."""
    image = safetensors.encode(layout, metadata, ties, NOTHING)
    ((start, head),) = image.segments
    size = sum(dtype.size_bytes(math.prod(shape)) for dtype, shape in layout.values())
    assert (start, image.size_bytes) == (0, len(head) + size)
    assert not image.checksums
    return head, image.offsets


def test_encoded_header_loads(tmp_path):
    """The library loads a file that is laid out by encode, with its metadata."""
    tensors = {
        "w": torch.rand(3, 2).bfloat16(),
        "empty": torch.rand(0, 2),
        "n": torch.tensor(7),
        "ünï": torch.rand(5).to(torch.float8_e4m3fn),
    }
    layout = {
        n: (d, tuple(t.shape))
        for n, t in tensors.items()
        for d in DTYPES.values()
        if f"torch.{d.label}" == str(t.dtype)
    }
    head, offsets = encoded(layout, {"step": "5", "a": "é", "gamma": "7"})
    content = bytearray(head)
    for name, tensor in tensors.items():
        assert offsets[name] == len(content)
        content += raw_bytes(tensor)
    path = tmp_path / "a.safetensors"
    path.write_bytes(content)
    loaded = load_file(path)
    assert loaded.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert (loaded[name].dtype, loaded[name].shape) == (tensor.dtype, tensor.shape)
        assert raw_bytes(loaded[name]) == raw_bytes(tensor)
    with safe_open(path, "pt") as file:
        assert file.metadata() == {"a": "é", "gamma": "7", "step": "5"}


def test_encoded_header_is_canonical():
    """Equal input gives equal bytes: metadata sorted, the data on a multiple of 8 bytes."""
    layout = {"b": (DTYPES["U8"], (3,)), "a": (DTYPES["F32"], (2,))}
    head, offsets = encoded(layout, {"z": "1", "a": "2"})
    assert head == encoded(layout, {"a": "2", "z": "1"})[0]
    header = json.loads(head[8:])
    assert list(header) == ["__metadata__", "b", "a"]
    assert list(header["__metadata__"]) == ["a", "z"]
    assert len(head) % 8 == 0
    assert offsets == {"b": len(head), "a": len(head) + 3}


names = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
layouts = st.dictionaries(
    names.filter(lambda n: n != "__metadata__"),
    st.tuples(
        st.sampled_from(list(DTYPES.values())), st.lists(st.integers(0, 5), max_size=4).map(tuple)
    ),
    max_size=6,
)


@pytest.fixture(scope="module")
def scratch(tmp_path_factory):
    """A directory that the examples of a property share."""
    return tmp_path_factory.mktemp("scratch")


@given(layout=layouts, metadata=st.dictionaries(names, names, max_size=4))
def test_encoded_header_round_trip(scratch, layout, metadata):
    """What encode lays out is read back: names, types, shapes, offsets and metadata."""
    head, offsets = encoded(layout, metadata)
    size = sum(dtype.size_bytes(math.prod(shape)) for dtype, shape in layout.values())
    path = scratch / "a.safetensors"
    path.write_bytes(head + bytes(size))
    found = safetensors.read(path)
    assert {n: (e.dtype, e.shape, e.offset) for n, e in found.content.items() if n in layout} == {
        n: (*layout[n], offsets[n]) for n in layout
    }
    assert found.metadata == metadata


def test_further_names_are_kept(tmp_path):
    """Names of one tensor are recorded as safetensors.torch does, and read back as tensors."""
    head, _ = encoded({"a": (DTYPES["U8"], (3,))}, {"format": "pt"}, {"b": "a", "c": "a"})
    (tmp_path / "a.safetensors").write_bytes(head + b"123")
    found = read_index(tmp_path / "a.safetensors")
    assert list(found.tensors) == ["a", "b", "c"]
    assert found.ties == {"b": "a", "c": "a"}
    assert found.size_bytes == 3


def test_encoded_index(tmp_path):
    """An encoded index is sorted JSON with the total size, and reads back with its shards."""
    save_file({"a": torch.ones(1)}, tmp_path / "m-00001-of-00002.safetensors")
    save_file({"b": torch.ones(2)}, tmp_path / "m-00002-of-00002.safetensors")
    weight_map = {"b": "m-00002-of-00002.safetensors", "a": "m-00001-of-00002.safetensors"}
    content = safetensors.encode_index(weight_map, 12, {"step": "5"})
    parsed = json.loads(content)
    assert parsed["metadata"] == {"total_size": 12, "step": "5"}
    assert list(parsed["weight_map"]) == ["a", "b"]
    assert content == safetensors.encode_index(dict(sorted(weight_map.items())), 12, {"step": "5"})
    (tmp_path / "m.safetensors.index.json").write_bytes(content)
    assert sorted(read_index(tmp_path / "m.safetensors.index.json").tensors) == ["a", "b"]


def test_ending_that_no_format_reads(tmp_path):
    """A file of another ending is refused, and the known endings are listed."""
    (tmp_path / "a.txt").touch()
    with pytest.raises(InputError, match=re.escape(".safetensors")) as caught:
        read_index(tmp_path / "a.txt")
    assert caught.value.where == str(tmp_path / "a.txt")


def test_file_that_ends_early(tmp_path):
    """A file that shrinks after its header was read is named when its data are read."""
    path = tmp_path / "a.safetensors"
    save_file({"a": torch.ones(4)}, path)
    extent = read_index(path).tensors["a"]
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(InputError, match="before its tensors do") as caught:
        stored_bytes(extent)
    assert caught.value.where == str(path)


def test_file_that_vanishes(tmp_path):
    """A file that is gone when its data are read is the operating system's failure."""
    path = tmp_path / "a.safetensors"
    save_file({"a": torch.ones(4)}, path)
    extent = read_index(path).tensors["a"]
    path.unlink()
    with pytest.raises(StorageError, match="cannot read") as caught:
        stored_bytes(extent)
    assert caught.value.where == str(path)


def test_reader_keeps_few_files_open(tmp_path):
    """A reader with a limit of one file still reads several in turn, the last one reopened."""
    for n in range(3):
        save_file({"a": torch.full((2,), float(n))}, tmp_path / f"{n}.safetensors")
    extents = [read_index(tmp_path / f"{n}.safetensors").tensors["a"] for n in range(3)]
    got = []
    with FileReader(limit=1) as reader:
        for extent in [*extents, extents[0], extents[0]]:
            out = bytearray(4)
            reader.read_elements(extent, 1, memoryview(out))
            got.append(struct.unpack("<f", out)[0])
    assert got == [0, 1, 2, 0, 0]
