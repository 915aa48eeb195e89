"""Directories of torch.distributed.checkpoint: whole tensors from many ranks' files, unexecuted."""

import io
import os
import pickle
import random
import subprocess
import tracemalloc
import zipfile
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.filesystem import (
    FileSystemReader,
    FileSystemWriter,
    SerializationFormat,
    _StorageInfo,
)
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)

from phema_cli.errors import InputError, PhemaError, StorageError, UnsafePickleError
from phema_cli.formats.base import DTYPES, Checkpoint
from phema_cli.formats.reader import FileReader
from tests import builders, warm
from tests.dcp_files import (
    EDITS,
    HOSTILE,
    NESTED,
    TRICKS,
    W,
    box,
    edit,
    entry,
    info,
    put,
    save,
)
from tests.hostile_pickles import Call
from tests.torch_files import raw_bytes, stored_bytes

# torch warns that it was asked for what it was asked for (no_dist).
pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")


def read_index(path: Path, key: str | None = None) -> Checkpoint:
    """The checkpoint that a directory, or the .metadata in it, is."""
    return builders.read_index(path if path.name == ".metadata" else path / ".metadata", key)


# Saves what a run of several ranks saves, and beside it what the tensors are as a whole.
RANKS = """
import os, sys, torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
import torch.multiprocessing as mp
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor

def module():
    torch.manual_seed(5)
    return torch.nn.Sequential(
        torch.nn.Linear(5, 10), torch.nn.BatchNorm1d(10), torch.nn.Linear(10, 3)
    )

def whole():
    torch.manual_seed(0)
    rows = lambda n: torch.rand(n, 6)
    return {
        "uneven": rows(10), "short": rows(3), "one": rows(1), "even": rows(8),
        "bf16": rows(7).bfloat16(), "fp16": rows(9).half(), "fp8": rows(5).to(torch.float8_e4m3fn),
        "double": rows(5).double(), "ints": torch.arange(11), "flags": torch.rand(13) > 0.5,
        "columns": torch.rand(3, 10), "deep": torch.rand(3, 5, 7), "vector": torch.rand(17),
        "grid": torch.rand(7, 9), "grid3": torch.rand(5, 4, 6), "hybrid": torch.rand(6, 5),
        "copies": torch.rand(4, 4), "scalar": torch.tensor(2.5), "count": torch.tensor(7),
        "plain": torch.rand(5, 3), "transposed": torch.rand(4, 6).t(), "strided": torch.rand(8, 6),
        "empty": torch.rand(0, 3), "no columns": torch.rand(8, 0),
        "wide": torch.rand(5, 700), "wide blocks": torch.rand(3, 10, 90),
    }

def sharded(rank, world):
    line = init_device_mesh("cpu", (world,))
    square = init_device_mesh("cpu", (2, world // 2))
    places = {
        "columns": (line, [Shard(1)]), "deep": (line, [Shard(2)]), "copies": (line, [Replicate()]),
        "grid": (square, [Shard(0), Shard(1)]), "grid3": (square, [Shard(2), Shard(0)]),
        "hybrid": (square, [Replicate(), Shard(0)]), "scalar": (line, [Replicate()]),
        "wide": (line, [Shard(1)]), "wide blocks": (line, [Shard(1)]),
    }
    local = {"plain", "transposed", "count"}
    state = {}
    for name, tensor in whole().items():
        if name == "strided":
            rows = tensor.chunk(world)[rank].t().contiguous().t()
            state[name] = DTensor.from_local(rows, line, [Shard(0)])
        elif name in local:
            state[name] = tensor
        else:
            mesh, split = places.get(name, (line, [Shard(0)]))
            # Every rank has the whole: nothing is sent, which gloo can't for all types.
            state[name] = distribute_tensor(tensor, mesh, split, src_data_rank=None)
    return state, line

def run(rank, world, out):
    torch.set_num_threads(1)
    store = f"file://{out}/store{world}"
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=world)
    ema, line = sharded(rank, world)
    model = module()
    fully_shard(model, mesh=line)
    state = {
        "ema": ema, "model": model.state_dict(), "step": 3,
        "optimizer": {"state": {0: {"m": ema["uneven"]}}, "param_groups": [{"lr": 0.1}]},
    }
    writer = dcp.FileSystemWriter(f"{out}/{world}", sync_files=False)
    dcp.save(state, storage_writer=writer)
    dist.destroy_process_group()

if __name__ == "__main__":
    out = sys.argv[1]
    torch.save({"ema": whole(), "model": module().state_dict()}, f"{out}/truth.pt")
    for world in (2, 4):
        mp.start_processes(run, (world, out), world, start_method="fork")
"""


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A directory with checkpoints of 2 and of 4 ranks, and what they hold."""
    out = tmp_path_factory.mktemp("runs")
    script = out / "ranks.py"
    script.write_text(RANKS)
    environment = os.environ | {"GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}
    subprocess.run([warm.python(), script, out], env=environment, check=True, timeout=100)
    return out, torch.load(out / "truth.pt")


def seeded(seed):
    """Chance that is the same in every run."""
    return random.Random(seed)  # noqa: S311


def read_ranges(extent, tensor, seed=0, count=12):
    """Check that random ranges of elements are those of the tensor."""
    true, itemsize = raw_bytes(tensor), extent.dtype.bits // 8
    chance = seeded(seed)
    with FileReader() as reader:
        for _ in range(count if extent.elements else 0):
            low, high = sorted(chance.randint(0, extent.elements) for _ in range(2))
            out = bytearray((high - low) * itemsize)
            reader.read_elements(extent, low, memoryview(out))
            assert out == true[low * itemsize : high * itemsize]


def check_same(found, truth):
    """Check names, types, shapes and every byte of tensors."""
    assert found.keys() == truth.keys()
    for name, tensor in truth.items():
        extent = found[name]
        assert (extent.name, extent.shape) == (name, tuple(tensor.shape))
        assert f"torch.{extent.dtype.label}" == str(tensor.dtype)
        assert stored_bytes(extent) == raw_bytes(tensor)
        read_ranges(extent, tensor)


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [2, 4])
@pytest.mark.parametrize("key", ["ema", "model"])
def test_tensors_of_many_ranks(runs, ranks, key):
    """Tensors split among ranks in any way are read whole, in any range, byte for byte."""
    out, truth = runs
    found = read_index(out / str(ranks) / ".metadata", key)
    assert (found.format, found.key, found.unnamed) == ("dcp", key, False)
    check_same(found.tensors, truth[key])


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [2, 4])
def test_files_of_many_ranks(runs, ranks):
    """The checkpoint is the directory with the files that hold its weights, sorted."""
    out, truth = runs
    found = read_index(out / str(ranks), "ema")
    assert (found.path, found.key, found.base_name) == (out / str(ranks), "ema", "model")
    assert [f.name for f in found.files] == [f"__{r}_0.distcp" for r in range(ranks)]
    assert found.size_bytes == sum(t.nbytes for t in truth["ema"].values())


@pytest.mark.slow
def test_pieces_are_those_of_the_ranks(runs):
    """A tensor split among ranks is in pieces, without those of no rows; others in one place."""
    out, _ = runs
    found = read_index(out / "4", "ema").tensors
    assert sorted(p.box.origin for p in found["uneven"].pieces) == [(0, 0), (3, 0), (6, 0), (9, 0)]
    assert len(found["short"].pieces) == 3
    assert len({p.extent.file for p in found["grid"].pieces}) == 4
    assert all(p.extent.strides for p in found["strided"].pieces)
    assert all(not found[n].pieces for n in ("one", "copies", "scalar", "plain", "empty"))


@pytest.mark.parametrize(("key", "taken"), [(None, "ema"), ("ema", "ema"), ("model", "model")])
@pytest.mark.parametrize("place", ["", ".metadata"])
def test_dict_of_weights(tmp_path, key, taken, place):
    """The averaged weights are taken, or those of the key; names in a dict may have dots."""
    found = read_index(save(tmp_path / "c", NESTED) / place, key)
    assert found.key == taken
    check_same(found.tensors, NESTED[taken])


@pytest.mark.parametrize(
    ("state", "key", "names"),
    [
        ({"w": W, "v": W}, None, ["w", "v"]),
        ({"layers.0.w": W, "optimizer": {"state.layers.0.w.m": W}}, None, ["layers.0.w"]),
        ({"model": {"w": W}, "optimizer": {"state": {"w": {"m": W}}}}, "model", ["w"]),
        ({"ema": {"shadow_params": [W, W + 1], "decay": 0.9}}, "ema.shadow_params", ["0", "1"]),
    ],
)
def test_layouts(tmp_path, state, key, names):
    """Flat states, torchtitan's and lists of averages are found without being told."""
    found = read_index(save(tmp_path / "c", state))
    assert (found.key, sorted(found.tensors)) == (key, sorted(names))


def test_unclear_dict_of_weights(tmp_path):
    """Of several dicts of weights none is guessed."""
    path = save(tmp_path / "c", {"generator": {"w": W}, "critic": {"w": W}})
    with pytest.raises(InputError, match="2 dicts of tensors") as caught:
        read_index(path)
    assert caught.value.where == str(path / ".metadata")


def test_list_with_other_things(tmp_path):
    """A list that holds other things than tensors is no list of weights."""
    path = save(tmp_path / "c", {"model": {"w": W}, "ema": [W, 0.5, W]})
    assert read_index(path).key == "model"


def test_planner_that_does_not_flatten(tmp_path):
    """Without paths of its planner a checkpoint's names are taken as they are."""
    state = OrderedDict([("net.w", W), ("net.v", W + 1)])
    planner = dcp.DefaultSavePlanner(flatten_state_dict=False)
    dcp.save(state, storage_writer=FileSystemWriter(tmp_path / "c"), planner=planner, no_dist=True)
    found = read_index(tmp_path / "c")
    assert found.key is None
    check_same(found.tensors, state)


@pytest.mark.parametrize("options", [{"single_file_per_rank": False}, {"thread_count": 2}], ids=str)
def test_files_of_a_rank(tmp_path, options):
    """Tensors may lie in a file each, or in a file a thread; only those with weights are listed."""
    path = save(tmp_path / "c", NESTED, **options)
    found = read_index(path)
    assert len(list(path.glob("*.distcp"))) > 1
    assert list(found.files) == sorted({e.file for e in found.tensors.values()})
    check_same(found.tensors, NESTED["ema"])


@pytest.mark.parametrize("dtype", [d for d in DTYPES.values() if d.bits >= 8], ids=lambda d: d.name)
def test_every_dtype(tmp_path, dtype):
    """A tensor of any type is found with its type and bytes."""
    state = {"x": torch.arange(6).reshape(2, 3).to(getattr(torch, dtype.label))}
    check_same(read_index(save(tmp_path / "c", state)).tensors, state)


def write(directory, tensors):
    """Write a checkpoint of tensors with the boxes they are split into, as many ranks would."""
    directory.mkdir()
    metadata = Metadata({}, {n: (n,) for n in tensors}, {})
    for name, (tensor, boxes) in tensors.items():
        chunks = [ChunkStorageMetadata(torch.Size(o), torch.Size(s)) for o, s in boxes]
        properties = TensorProperties.create_from_tensor(tensor)
        metadata.state_dict_metadata[name] = TensorStorageMetadata(properties, tensor.shape, chunks)
        for number, (origin, shape) in enumerate(boxes):
            inside = tuple(slice(o, o + n) for o, n in zip(origin, shape, strict=True))
            chunk = tensor[inside].clone()
            stored = io.BytesIO()
            # Every other one has its columns together, as chunks of transposed weights do.
            torch.save(chunk.mT.contiguous().mT if number % 2 and chunk.ndim > 1 else chunk, stored)
            file = directory / f"__{number % 3}_0.distcp"
            offset = file.stat().st_size if file.exists() else 0
            with file.open("ab") as out:
                out.write(stored.getvalue())
            place = _StorageInfo(file.name, offset, len(stored.getvalue()))
            metadata.storage_data[MetadataIndex(name, origin)] = place
    (directory / ".metadata").write_bytes(pickle.dumps(metadata))
    return directory


def split(origin, shape, chance, depth):
    """Boxes that make up a box, cut again and again at random."""
    wide = [d for d, n in enumerate(shape) if n > 1]
    if not depth or not wide or chance.random() < 0.1:
        return [(origin, shape)]
    d = chance.choice(wide)
    cut = chance.randrange(1, shape[d])
    low, high = ((*shape[:d], n, *shape[d + 1 :]) for n in (cut, shape[d] - cut))
    beyond = (*origin[:d], origin[d] + cut, *origin[d + 1 :])
    return split(origin, low, chance, depth - 1) + split(beyond, high, chance, depth - 1)


@pytest.mark.parametrize("seed", range(12))
def test_random_boxes(tmp_path, seed):
    """A tensor split into any boxes, stored in any order, is read as the whole that it is."""
    chance = seeded(seed)
    shape = tuple(chance.randint(1, 9) for _ in range(chance.randint(1, 4)))
    tensor = torch.rand(shape).to(chance.choice([torch.float32, torch.bfloat16, torch.float64]))
    boxes = split((0,) * len(shape), shape, chance, 5)
    chance.shuffle(boxes)
    extent = read_index(write(tmp_path / "c", {"x": (tensor, boxes)})).tensors["x"]
    assert stored_bytes(extent) == stored_bytes(extent, 7) == raw_bytes(tensor)
    read_ranges(extent, tensor, seed, 60)


def test_pinwheel(tmp_path):
    """Boxes that no straight cut parts are a split too."""
    boxes = [
        ((0, 0), (1, 2)),
        ((0, 2), (2, 1)),
        ((2, 1), (1, 2)),
        ((1, 0), (2, 1)),
        ((1, 1), (1, 1)),
    ]
    tensor = torch.rand(3, 3)
    check_same(read_index(write(tmp_path / "c", {"x": (tensor, boxes)})).tensors, {"x": tensor})


WRONG = {
    "overlap": [((0, 0), (3, 3)), ((2, 0), (2, 3))],
    "hole": [((0, 0), (1, 3)), ((2, 0), (2, 3))],
    "overlap as large as the hole": [((0, 0), (2, 3)), ((1, 0), (2, 3))],
    "overlap inside": [((0, 0), (4, 3)), ((1, 1), (1, 1))],
    "beyond the end": [((0, 0), (2, 3)), ((2, 0), (3, 3))],
    "elsewhere": [((4, 0), (4, 3))],
    "nothing": [],
    "another dimension": [((0,), (4,))],
    "empty": [((0, 0), (0, 3))],
}


@pytest.mark.parametrize("wrong", WRONG)
def test_chunks_that_are_no_split(tmp_path, wrong):
    """Chunks that overlap, leave a hole or lie outside are refused."""
    path = write(tmp_path / "c", {"x": (torch.rand(4, 3), [((0, 0), (4, 3))])})
    chunks = [ChunkStorageMetadata(torch.Size(o), torch.Size(s)) for o, s in WRONG[wrong]]
    edit(path, lambda m: setattr(m.state_dict_metadata["x"], "chunks", chunks))
    with pytest.raises(InputError, match=r"x: (its chunks overlap|malformed chunk)") as caught:
        read_index(path)
    assert caught.value.where == str(path / ".metadata")


def test_replicas_listed_twice(tmp_path):
    """A chunk that two ranks stored at one place is read once."""
    tensor = torch.rand(4, 3)
    boxes = [((0, 0), (2, 3)), ((2, 0), (2, 3)), ((0, 0), (2, 3))]
    found = read_index(write(tmp_path / "c", {"x": (tensor, boxes)})).tensors
    check_same(found, {"x": tensor})


def test_older_metadata(tmp_path):
    """What torch 2.1 wrote, with fewer fields and the properties in another module, is read."""
    path = save(tmp_path / "c", NESTED)
    metadata = pickle.loads((path / ".metadata").read_bytes())
    del metadata.version, metadata.storage_meta
    old = pickle.dumps(metadata, 2)
    home = b"ctorch.distributed.checkpoint.metadata\n"
    former = b"ctorch.distributed._shard.sharded_tensor.metadata\n"
    for name, before in [(b"TensorProperties", b"TensorProperties"), (b"_MEM_", b"MEM_")]:
        assert home + name in old
        old = old.replace(home + name, former + before)
    (path / ".metadata").write_bytes(old)
    check_same(read_index(path).tensors, NESTED["ema"])


def test_path_of_another_python(tmp_path):
    """The directory's former name, which Python 3.13 pickles in its own way, does no harm."""
    path = save(tmp_path / "c", NESTED)
    data = pickle.dumps(pickle.loads((path / ".metadata").read_bytes()), 2)
    assert b"cpathlib\nPosixPath" in data
    (path / ".metadata").write_bytes(data.replace(b"cpathlib\nPosix", b"cpathlib._local\nPosix"))
    check_same(read_index(path).tensors, NESTED["ema"])


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.parametrize("field", ["storage_meta", "planner_data", "storage_data"])
def test_hostile_metadata(tmp_path, monkeypatch, name, field):
    """What could do harm is refused by name, wherever metadata ask for it, and not run."""
    monkeypatch.chdir(tmp_path)
    path = edit(save(tmp_path / "c", NESTED), lambda m: setattr(m, field, HOSTILE[name]))
    with pytest.raises(UnsafePickleError, match=f"asks for {name}") as caught:
        read_index(path)
    assert caught.value.where == str(path / ".metadata")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("field", ["storage_meta", "planner_data"])
def test_unknown_classes_in_metadata(tmp_path, field):
    """What metadata hold of other classes does no harm where it is not needed."""
    path = edit(save(tmp_path / "c", {"w": W}), lambda m: setattr(m, field, FileSystemReader))
    check_same(read_index(path).tensors, {"w": W})


@pytest.mark.parametrize("trick", TRICKS)
def test_tricks_of_metadata(tmp_path, trick):
    """No pickle changes what the next one is given, fills the memory, or raises anything else."""
    path = save(tmp_path / "c", NESTED)
    good = (path / ".metadata").read_bytes()
    (path / ".metadata").write_bytes(TRICKS[trick])
    tracemalloc.start()
    with pytest.raises((InputError, UnsafePickleError)) as caught:
        read_index(path)
    assert tracemalloc.get_traced_memory()[1] < 1 << 20
    tracemalloc.stop()
    assert caught.value.where == str(path / ".metadata")
    (path / ".metadata").write_bytes(good)
    check_same(read_index(path).tensors, NESTED["ema"])


@pytest.mark.parametrize("change", EDITS)
def test_metadata_that_make_no_sense(tmp_path, change):
    """Metadata that lead out of the directory or disagree with the files are refused in a line."""
    path = save(tmp_path / "c", NESTED)
    change, message = EDITS[change]
    with pytest.raises((InputError, StorageError), match=message) as caught:
        read_index(edit(path, change), None if change is EDITS["nothing"][0] else "ema")
    assert Path(caught.value.where).parent in {path, path.parent}


def test_large_metadata(tmp_path):
    """Metadata of more than 256 MiB are refused unread."""
    path = save(tmp_path / "c", {"w": W})
    os.truncate(path / ".metadata", (256 << 20) + 1)
    with pytest.raises(InputError, match="larger than 256 MiB"):
        read_index(path)


def test_unfinished(tmp_path):
    """A directory without .metadata, which torch writes last, was not finished."""
    path = save(tmp_path / "c", {"w": W})
    (path / ".metadata").unlink()
    with pytest.raises(InputError, match=r"not finished: no \.metadata") as caught:
        read_index(path / ".metadata")
    assert caught.value.where == str(path)


def test_other_directory(tmp_path):
    """A directory without any of the files is said to be something else."""
    with pytest.raises(InputError, match=r"not of torch\.distributed\.checkpoint"):
        read_index(tmp_path)


def test_metadata_of_each_rank(tmp_path):
    """Metadata that each rank kept to itself are refused with the remedy."""
    path = save(tmp_path / "c", {"w": W})
    (path / ".metadata").rename(path / "__0.metadata")
    with pytest.raises(InputError, match="each rank") as caught:
        read_index(path)
    assert "use_collectives" in caught.value.remedy


def test_missing_file(tmp_path):
    """A missing file is named, and so is the tensor."""
    path = save(tmp_path / "c", {"w": W})
    (path / "__0_0.distcp").unlink()
    with pytest.raises(InputError, match=r"tensor w: its file '__0_0\.distcp' is missing"):
        read_index(path)


def test_links(tmp_path):
    """A file that is a link out of the directory is refused, a cache of nothing but links read."""
    path = save(tmp_path / "c", {"w": W})
    cache = tmp_path / "cache"
    cache.mkdir()
    for file in path.iterdir():
        (cache / file.name).symlink_to(file)
    check_same(read_index(cache).tensors, {"w": W})
    (tmp_path / "out.distcp").write_bytes((path / "__0_0.distcp").read_bytes())
    (path / "__0_0.distcp").unlink()
    (path / "__0_0.distcp").symlink_to(tmp_path / "out.distcp")
    with pytest.raises(InputError, match="outside the directory"):
        read_index(path)


def test_unreadable(tmp_path):
    """What the operating system refuses is an error of storage."""
    path = save(tmp_path / "c", {"w": W})
    (path / ".metadata").unlink()
    (path / ".metadata").symlink_to(".metadata")
    with pytest.raises(PhemaError):
        read_index(path)


def replace_chunk(path, data):
    """Put other bytes in place of the file of a checkpoint of one tensor."""
    (path / "__0_0.distcp").write_bytes(data)
    edit(path, put(lambda m: info(m, "w"), offset=0, length=len(data)))
    return path


def archived(content):
    """What torch.save writes."""
    out = io.BytesIO()
    torch.save(content, out)
    return out.getvalue()


def zipped(entries, method=zipfile.ZIP_STORED):
    """A zip of entries."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", method) as archive:
        for name, content in entries.items():
            archive.writestr(name, content)
    return out.getvalue()


def entries(data):
    """The entries of a zip."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        return {n: archive.read(n) for n in archive.namelist()}


def test_hostile_chunk(tmp_path, monkeypatch):
    """What a chunk's own pickle asks for is refused by name, with its file, and not run."""
    monkeypatch.chdir(tmp_path)
    pickled = pickle.dumps(Call(os.system, "touch ran"))
    path = replace_chunk(save(tmp_path / "c", {"w": W}), zipped({"archive/data.pkl": pickled}))
    with pytest.raises(UnsafePickleError, match=r"asks for posix\.system") as caught:
        read_index(path)
    assert caught.value.where == str(path / "__0_0.distcp")
    assert not (tmp_path / "ran").exists()


CHUNKS = {
    "another shape": (archived(torch.rand(4)), "another type or shape"),
    "another type": (archived(W.double()), "another type or shape"),
    "a dict": (archived({"w": W}), "no tensor"),
    "a number": (archived(3), "no tensor"),
    "not torch's": (zipped({"a": b""}), "not one of torch.save"),
    "deflated": (zipped(entries(archived(W)), zipfile.ZIP_DEFLATED), "compressed"),
    "no record": (
        zipped({n: c for n, c in entries(archived(W)).items() if not n.endswith("data/0")}),
        "broken",
    ),
    "a short record": (zipped(entries(archived(W)) | {"archive/data/0": b"abcd"}), "outside"),
    "no zip": (b"PK\x03\x04" + bytes(500), "broken"),
    "empty": (b"", "not stored by torch.save"),
    "legacy": (pickle.dumps(1), "not stored by torch.save"),
}


@pytest.mark.parametrize("chunk", CHUNKS)
def test_chunks_that_make_no_sense(tmp_path, chunk):
    """A chunk that is not the tensor that it should be is refused, with its tensor and file."""
    data, message = CHUNKS[chunk]
    path = replace_chunk(save(tmp_path / "c", {"w": W}), data)
    with pytest.raises(InputError, match=rf"tensor w: .*{message}") as caught:
        read_index(path)
    assert caught.value.where == str(path / "__0_0.distcp")


def test_record_that_leaves_its_chunk(tmp_path):
    """A record that would reach into what follows its chunk is refused."""
    data = archived(torch.rand(3))
    at = data.index(b"PK\x01\x02")
    for _ in range(20):
        if data[at + 46 :].startswith(b"archive/data/0"):
            break
        at = data.index(b"PK\x01\x02", at + 1)
    sizes = (1 << 20).to_bytes(4, "little") * 2
    path = replace_chunk(save(tmp_path / "c", {"w": W}), data[: at + 20] + sizes + data[at + 28 :])
    with pytest.raises(InputError, match="goes beyond the file"):
        read_index(path)


def test_other_serialization(tmp_path):
    """Chunks as safetensors are refused with what to do instead."""
    path = save(tmp_path / "c", {"w": W}, serialization_format=SerializationFormat.SAFETENSORS)
    with pytest.raises(InputError, match=r"tensor w: not stored by torch\.save") as caught:
        read_index(path)
    assert "dcp_to_torch_save" in caught.value.remedy


def test_packed_floats(tmp_path):
    """4-bit floats are read from one place and refused in several."""
    tensor = torch.arange(4, dtype=torch.uint8).reshape(2, 2).view(torch.float4_e2m1fn_x2)
    whole = read_index(save(tmp_path / "a", {"x": tensor})).tensors["x"]
    assert (whole.shape, whole.length) == ((2, 4), 4)
    path = save(tmp_path / "b", {"x": tensor[:1].clone()})
    edit(
        path,
        put(
            lambda m: entry(m, "x"),
            size=(2, 2),
            chunks=[*box((0, 0), (1, 2)), *box((1, 0), (1, 2))],
        ),
    )
    edit(path, lambda m: m.storage_data.update({MetadataIndex("x", (1, 0)): info(m, "x")}))
    with pytest.raises(InputError, match="x: float4_e2m1fn_x2 in several chunks"):
        read_index(path)


def test_truncated(tmp_path):
    """A file cut anywhere is an error that names a tensor and the file."""
    path = save(tmp_path / "c", {"w": W, "v": torch.rand(20, 3)})
    file = path / "__0_0.distcp"
    data = file.read_bytes()
    for length in range(0, len(data), 37):
        file.write_bytes(data[:length])
        with pytest.raises(InputError, match=r"tensor [wv]: .*cut short") as caught:
            read_index(path)
        assert caught.value.where == str(file)


@pytest.mark.parametrize("name", [".metadata", "__0_0.distcp"])
def test_flipped_bits(tmp_path, name):
    """A file with a bit flipped is read, or refused as any other; nothing else is raised."""
    path = save(tmp_path / "c", {"ema": {"w": W, "v": torch.rand(4, 3).t()}, "step": 3})
    file = path / name
    good = file.read_bytes()
    chance = seeded(0)
    refused = []
    for _ in range(1500):
        data = bytearray(good)
        data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
        file.write_bytes(data)
        try:
            read_index(path)
        except PhemaError as error:
            refused.append(str(error))
    assert len(refused) > 100
    assert not any("\n" in line for line in refused)


def test_no_values_are_read(tmp_path):
    """Looking a large checkpoint up takes little memory, however much it holds."""
    state = {f"layers.{i}.w": torch.zeros(1 << 20) for i in range(16)}
    path = save(tmp_path / "c", state)
    read_index(path)
    tracemalloc.start()
    found = read_index(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert found.size_bytes == 64 << 20
    assert peak < 1 << 20


def test_many_chunks_take_little_memory(tmp_path):
    """A thousand chunks are looked up in a few kilobytes each, and in order."""
    rows = 1000
    boxes = [((i, 0), (1, 4)) for i in range(rows)]
    tensor = torch.rand(rows, 4)
    path = write(tmp_path / "c", {"x": (tensor, boxes)})
    tracemalloc.start()
    extent = read_index(path).tensors["x"]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert stored_bytes(extent) == raw_bytes(tensor)
    assert peak < rows * 8192


def test_torch_reads_the_same(tmp_path):
    """What torch itself loads from a checkpoint cut at random is what is found there."""
    chance = seeded(1)
    truth = {n: torch.rand(8, 6, 5) for n in "ab"}
    cuts = {n: (t, split((0, 0, 0), (8, 6, 5), chance, 4)) for n, t in truth.items()}
    path = write(tmp_path / "c", cuts)
    loaded = {n: torch.zeros(8, 6, 5) for n in truth}
    dcp.load(loaded, storage_reader=FileSystemReader(path), no_dist=True)
    check_same(read_index(path).tensors, loaded)
    assert all(torch.equal(a, b) for a, b in zip(truth.values(), loaded.values(), strict=True))
