"""What headers say is held once for all files that say the same."""

import json
import pickle
import tracemalloc

import numpy as np
import pytest
from safetensors.numpy import save_file

from phema_cli.errors import InputError
from phema_cli.formats.base import Checkpoint, Tensors
from phema_cli.formats.entries import alike, changed
from phema_cli.formats.safetensors import read_header
from phema_cli.snapshots import scan
from phema_cli.snapshots.base import distinct
from phema_cli.snapshots.reading import read_checkpoint


def put(path, tensors=None, **metadata):
    """A file of two tensors, or of these."""
    path.parent.mkdir(exist_ok=True)
    values = tensors or {"a.w": np.ones((2, 3), np.float32), "a.b": np.zeros(5, np.float16)}
    save_file(values, path, metadata or None)
    return path


def header(path, text, size=0):
    """A file of that header, and so many bytes behind it."""
    data = text.encode()
    path.write_bytes(len(data).to_bytes(8, "little") + data + bytes(size))
    return path


def test_files_that_say_the_same_share_their_entries(tmp_path):
    """Whatever their metadata, in any alphabet; each has extents of its own file."""
    one, long = (
        put(tmp_path / "1", step="1"),
        put(tmp_path / "2", step="2", note='é "ß" \u4f60' * 9),
    )
    first, second = checkpoint_of(one), checkpoint_of(long)
    assert alike(first.tensors, second.tensors)
    assert first.tensors != second.tensors
    assert (first.metadata, len(second.metadata)) == ({"step": "1"}, 2)
    for path, found in ((one, first), (long, second)):
        extent = found.tensors["a.b"]
        assert (extent.name, extent.file, extent.shape) == ("a.b", path, (5,))
        begin = path.stat().st_size - found.size_bytes
        assert sorted(e.offset - begin for e in found.tensors.values()) == [0, 24]
    assert first.ties == {}
    assert pickle.loads(pickle.dumps(first.tensors)) == first.tensors


def checkpoint_of(path):
    """The checkpoint of a file without an ending."""
    tensors, metadata = read_header(path)
    return Checkpoint(path, "safetensors", (path,), tensors, metadata)


@pytest.mark.parametrize(
    "other",
    [
        {"a.w": np.ones((3, 2), np.float32), "a.b": np.zeros(5, np.float16)},
        {"a.w": np.ones((2, 3), np.float32), "a.c": np.zeros(5, np.float16)},
        {"a.w": np.ones((2, 3), np.int32), "a.b": np.zeros(5, np.float16)},
    ],
)
def test_files_that_differ_share_nothing(other, tmp_path):
    """In a shape, a name or a type."""
    one, two = read_header(put(tmp_path / "1"))[0], read_header(put(tmp_path / "2", other))[0]
    assert not alike(one, two)


def test_what_is_shared_is_checked_for_each_file(tmp_path):
    """The length of the file, its metadata, and names that stand there twice."""
    entry = '"w":{"dtype":"U8","shape":[4],"data_offsets":[0,4]}'
    plain = header(tmp_path / "plain", "{" + entry + "}", 4)
    assert read_header(plain)[1] == {}
    whole = header(tmp_path / "whole", '{"__metadata__":{"a":"b"},' + entry + "}", 4)
    held = read_header(whole)
    assert held[1] == {"a": "b"}
    for number, (text, size, told) in enumerate(
        [
            ('{"__metadata__":{"a":"c"},' + entry + "}", 3, "cut short"),
            ('{"__metadata__":{"a":1},' + entry + "}", 4, "not text"),
            ('{"__metadata__":{"a":"b","a":"c"},' + entry + "}", 4, "'a' twice"),
            ('{"__metadata__":{},' + entry + ',"__metadata__":{}}', 4, "'__metadata__' twice"),
            ('{"__metadata__":{"\\ud800":"c"},' + entry + "}", 4, "not text"),
        ]
    ):
        with pytest.raises(InputError, match=told):
            read_header(header(tmp_path / str(number), text, size))
    late = "{" + entry + ',"__metadata__":{"late":"yes"}}'
    for name in ("late", "later"):
        assert read_header(header(tmp_path / name, late, 4))[1] == {"late": "yes"}


def test_shards_and_new_names_stay_shared(tmp_path):
    """Snapshots of several files, with a wrapper's prefix, are one layout to the whole scan."""
    for step in (1, 2, 3):
        folder = tmp_path / f"ema-step{step}-gamma5"
        folder.mkdir()
        weight_map = {}
        for number in (1, 2):
            file = f"model-{number:05d}-of-00002.safetensors"
            tensors = {f"module.{number}.w": np.full(4, step, np.float32)}
            put(folder / file, tensors, step=str(step))
            weight_map |= dict.fromkeys(tensors, file)
        index = {"metadata": {"total_size": 32}, "weight_map": weight_map}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    found = scan([tmp_path])
    assert len(found.snapshots) == 3
    assert len(distinct(found.snapshots)) == 1
    newest = found.snapshots[-1].checkpoint
    assert isinstance(newest.tensors, Tensors)
    assert list(newest.tensors) == ["1.w", "2.w"]
    for name, extent in newest.tensors.items():
        assert extent.file.name == f"model-0000{name[0]}-of-00002.safetensors"
        stored = np.fromfile(extent.file, np.float32, offset=extent.offset)
        np.testing.assert_array_equal(stored, np.full(4, 3, np.float32))
    kept = changed(
        [s.checkpoint.tensors for s in found.snapshots], lambda n: n if n > "2" else None
    )
    assert [list(t) for t in kept] == [["2.w"]] * 3
    assert alike(kept[0], kept[2])
    assert not alike(kept[0], newest.tensors)


def test_further_snapshots_take_little_memory(tmp_path):
    """Eight files of many tensors take no more than a tenth more than one of them."""
    tensors = {f"layers.{i}.weight": np.zeros(1, np.float16) for i in range(3_000)}
    for step in range(8):
        put(tmp_path / f"step{step}-gamma5.safetensors", tensors, step=str(step))
    held = []
    for count in (1, 8):
        paths = sorted(tmp_path.iterdir())[:count]
        tracemalloc.start()
        found = [read_checkpoint(path) for path in paths]
        held.append(tracemalloc.get_traced_memory()[0])
        tracemalloc.stop()
        del found
    assert held[1] < 1.1 * held[0]
