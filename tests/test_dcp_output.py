"""Outputs of torch.distributed.checkpoint: what torch writes, and what trainers load."""

import json
import os
import pickle
import shutil
import subprocess
import zipfile
from io import BytesIO
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp
from safetensors.torch import load_file, save_file
from torch.distributed.checkpoint.filesystem import CURRENT_DCP_VERSION
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save
from torch.distributed.checkpoint.metadata import MetadataIndex

from phema_cli.errors import CheckFailedError, InputError
from phema_cli.formats import writer
from phema_cli.formats.base import DTYPES, Checkpoint
from phema_cli.snapshots import scan
from phema_cli.snapshots.reading import read_checkpoint
from tests import warm
from tests.builders import phema, read_index, run, synthesize, write_run
from tests.dcp_files import box, edit, save
from tests.torch_files import raw_bytes, stored_bytes
from tests.verified import verify_output

# torch warns that it was asked for what it was asked for (no_dist).
pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")

STEPS = (100, 200, 300)
#: a mean of what is stored, whatever the trainer keeps.
MEAN = ("--profile", "uniform:last=0.9", "--raw", "--no-sample")


def net(step):
    """A model's tensors at a step: several types, a counter, one without elements."""
    torch.manual_seed(step)
    return {
        "layers.0.weight": torch.randn(7, 5),
        "layers.0.bias": torch.randn(7).bfloat16(),
        "layers.1.weight": torch.randn(3, 4, 2).half().mT,
        "scale": torch.randn(()).double(),
        "none": torch.zeros(0, 3),
        "count": torch.tensor(step),
    }


def prefixed(prefix, tensors):
    """The tensors under names with a prefix."""
    return {prefix + name: tensor for name, tensor in tensors.items()}


def moments(tensors):
    """What AdamW keeps of each parameter."""
    return {n: {"exp_avg": t * 0, "step": torch.tensor(1.0)} for n, t in tensors.items()}


def torchtitan(step):
    """What torchtitan saves: the model's own names, and its other parts beside them."""
    states = prefixed("optimizer.state.", {f"{n}.exp_avg": t for n, t in net(step).items()})
    return net(step) | states | {"train_state": {"step": torch.tensor(step)}, "dataloader": b"x"}


#: what trainers save at a step, what they load the model by, and what comes before its names.
LAYOUTS = {
    "flat": (net, lambda: net(0), ()),
    "nested": (
        lambda step: {
            "model": net(step),
            "optimizer": {"state": moments(net(step)), "param_groups": [{"lr": 0.1}]},
            "step": step,
        },
        lambda: {"model": net(0)},
        ("model",),
    ),
    "torchtitan": (torchtitan, lambda: net(0), ()),
    "wrapped": (
        lambda step: {"state": {"net": prefixed("module.", net(step))}, "step": step},
        lambda: {"state": {"net": prefixed("module.", net(0))}},
        ("state", "net"),
    ),
    "prefix": (
        lambda step: prefixed("model.", net(step)) | prefixed("optim.", net(step)),
        lambda: prefixed("model.", net(0)),
        (),
    ),
}


def write(folder, layout):
    """A run of a layout, and the options that make a mean of it."""
    for step in STEPS:
        saved = LAYOUTS[layout][0](step)
        inner = "model_and_optim" if layout == "prefix" else ""
        save(folder / f"step{step}" / inner if inner else folder / f"step-{step}", saved)
    return MEAN


def leaves(state):
    """The tensors of a nested state dict by their names joined with dots."""
    if isinstance(state, torch.Tensor):
        return {"": state}
    return {
        f"{name}.{rest}".rstrip("."): tensor
        for name, inside in state.items()
        for rest, tensor in leaves(inside).items()
    }


def check_loaded(state, expected):
    """Check that the tensors of a state dict are others', whose names have no prefix."""
    loaded = leaves(state)
    assert len(loaded) == len(expected)
    for name, tensor in loaded.items():
        (true,) = [t for n, t in expected.items() if f".{name}".endswith(f".{n}")]
        assert tensor.dtype == true.dtype
        assert torch.equal(tensor, true), name


@pytest.mark.parametrize("layout", LAYOUTS)
def test_trainers_load_the_output(tmp_path, layout):
    """dcp.load fills the trainer's own state dict with the values of a safetensors output."""
    options = write(tmp_path / "run", layout)
    made = run("synthesize", "run", *options, "--format", "dcp", "-o", "out", cwd=tmp_path)
    run("synthesize", "run", *options, "-o", "o.safetensors", cwd=tmp_path)
    out = tmp_path / made.out.strip()
    assert out == tmp_path / "out"
    assert sorted(p.name for p in out.iterdir()) == [".metadata", "README.md", "__0_0.distcp"]
    expected = load_file(tmp_path / "o.safetensors")
    state = LAYOUTS[layout][1]()
    dcp.load(state, checkpoint_id=out, no_dist=True)
    check_loaded(state, expected)
    # Nothing else is in it, and it nests as the source does.
    dcp_to_torch_save(out, tmp_path / "o.pt")
    whole = torch.load(tmp_path / "o.pt")
    assert leaves(whole).keys() == leaves(state).keys()
    check_loaded(whole, expected)
    for key in LAYOUTS[layout][2]:
        assert list(whole) == [key]
        whole = whole[key]
    assert len(whole) == len(expected)


@pytest.mark.parametrize("key", [(), ("--key", "ema")])
def test_an_average_is_written_where_the_model_lies(tmp_path, key):
    """The average of a file that has the raw weights too becomes the model that it loads."""
    for step in STEPS:
        state = {"ema": net(step), "model": net(step + 1), "optimizer": {"state": {}}}
        save(tmp_path / f"run/step-{step}", state)
    options = ["--average", "exponential:beta=0.9", "--profile", "uniform:last=0.9", "--no-sample"]
    for more in (["--format", "dcp", "-o", "o-{step}"], ["-o", "o.safetensors"]):
        run("synthesize", "run", *options, *key, *more, cwd=tmp_path)
    state = {"model": net(0)}
    dcp.load(state, checkpoint_id=tmp_path / "o-300", no_dist=True)
    check_loaded(state, load_file(tmp_path / "o.safetensors"))


def test_torchtitans_average_is_written_under_the_models_names(tmp_path):
    """What its optimizer keeps of each name comes out as the model's tensors."""
    for step in STEPS:
        ema = prefixed("ema_optimizer.state.", {f"{n}.ema_params": t for n, t in net(step).items()})
        save(tmp_path / f"run/step-{step}", torchtitan(step + 1) | ema)
    for name in ("o-{step}", "o.safetensors"):
        form = ["--format", "dcp"] if name == "o-{step}" else []
        law = ["--average", "power:halflife=0.05", "-g", 20, "--no-sample"]
        run("synthesize", "run", *law, *form, "-o", name, cwd=tmp_path)
    state = net(0)
    dcp.load(state, checkpoint_id=tmp_path / "o-300", no_dist=True)
    check_loaded(state, load_file(tmp_path / "o.safetensors"))


def test_outputs_of_other_sources_are_flat(tmp_path):
    """From safetensors the names are the model's own, in the source's order, and nothing nests."""
    write_run(tmp_path / "c", steps=(25, 50))
    run("synthesize", "c", "-g", 7, "--format", "dcp", "-o", "o-{gamma}", cwd=tmp_path)
    run("synthesize", "c", "-g", 7, "-o", "o.safetensors", cwd=tmp_path)
    state = {n: torch.zeros_like(t) for n, t in load_file(tmp_path / "o.safetensors").items()}
    dcp.load(state, checkpoint_id=tmp_path / "o-7", no_dist=True)
    check_loaded(state, load_file(tmp_path / "o.safetensors"))
    metadata = pickle.loads((tmp_path / "o-7/.metadata").read_bytes())
    assert metadata.planner_data == {n: (n,) for n in state}


def test_the_index_is_what_torch_writes(tmp_path):
    """The metadata object equals that of dcp.save, except where chunks lie."""
    for gamma in (5, 10):
        save(tmp_path / f"c/m-step100-gamma{gamma}", {"model": net(gamma)})
    (out,) = synthesize(tmp_path / "c", gamma=5, format="dcp", output=tmp_path / "o", sample=False)
    made = pickle.loads((out / ".metadata").read_bytes())
    saved = pickle.loads((tmp_path / "c/m-step100-gamma5/.metadata").read_bytes())
    assert made.state_dict_metadata == saved.state_dict_metadata
    assert list(made.state_dict_metadata) == list(saved.state_dict_metadata)
    assert made.planner_data == saved.planner_data
    assert made.storage_data.keys() == saved.storage_data.keys()
    assert [k.index for k in made.storage_data] == [0] * len(net(0))
    assert made.version == CURRENT_DCP_VERSION
    assert json.loads(made.phema)["schema"] == "phema/synthesis/1"
    # Each chunk is an archive of its own, one after the other, with right checksums.
    data, at = (out / "__0_0.distcp").read_bytes(), 0
    for place in sorted(made.storage_data.values(), key=lambda p: p.offset):
        assert place.offset == at
        at += place.length
        chunk = BytesIO(data[place.offset : at])
        assert zipfile.ZipFile(chunk).testzip() is None
        chunk.seek(0)
        assert isinstance(torch.load(chunk, weights_only=True), torch.Tensor)
    assert at == len(data)


def encoded(folder, shards, carried, ties=None, values=None):
    """Write what the format's module lays out."""
    image = writer("dcp").encode_folder(shards, {"phema": "{}"}, ties or {}, carried)
    folder.mkdir()
    for name, file in image.files.items():
        data = bytearray(file.size_bytes)
        for at, part in file.segments:
            data[at : at + len(part)] = part
        for tensor, at in file.offsets.items():
            value = (values or {}).get(tensor, b"")
            data[at : at + len(value)] = value
        (folder / name).write_bytes(data)
    (folder / image.index[0]).write_bytes(image.index[1])
    return folder


def nothing_carried(*names):
    """A checkpoint of another format, with these names."""
    return Checkpoint(Path(), "safetensors", (), dict.fromkeys(names))


SAVED = [d for d in DTYPES.values() if hasattr(torch, d.label) and d.bits >= 8]


@pytest.mark.parametrize("dtype", SAVED, ids=lambda d: d.name)
@pytest.mark.parametrize("shape", [(), (0, 3), (2, 3)])
def test_every_type_is_written(tmp_path, dtype, shape):
    """Tensors of all types and shapes that torch has are loaded by torch, and read back."""
    kind = getattr(torch, dtype.label)
    true = torch.arange(6).remainder(2)[: int(torch.Size(shape).numel())].reshape(shape).to(kind)
    data = {"x": raw_bytes(true)}
    out = encoded(tmp_path / "o", [{"x": (dtype, shape)}], nothing_carried("x"), values=data)
    loaded = {"x": torch.ones(shape).to(kind)}
    dcp.load(loaded, checkpoint_id=out, no_dist=True)
    assert raw_bytes(loaded["x"]) == raw_bytes(true)
    extent = read_index(out / ".metadata", ".").tensors["x"]
    assert (extent.dtype, extent.shape, stored_bytes(extent)) == (dtype, shape, raw_bytes(true))


def test_packed_floats_are_written(tmp_path):
    """Four-bit floats have torch's shape in the index, and their own when they are read back."""
    spec = {"x": (DTYPES["F4"], (2, 4))}
    out = encoded(tmp_path / "o", [spec], nothing_carried("x"), values={"x": b"abcd"})
    described = pickle.loads((out / ".metadata").read_bytes()).state_dict_metadata["x"]
    assert (described.size, described.properties.dtype) == ((2, 2), torch.float4_e2m1fn_x2)
    extent = read_index(out / ".metadata", ".").tensors["x"]
    assert (extent.dtype, extent.shape) == spec["x"]
    with pytest.raises(InputError, match="torch has no type"):
        encoded(tmp_path / "p", [{"x": (DTYPES["F6_E2M3"], (2, 4))}], nothing_carried("x"))


def test_many_tensors_and_shards(tmp_path):
    """Thousands of tensors in a hundred files: names of files sort, torch and phema read all."""
    names = [f"layers.{i}.weight" for i in range(2500)]
    shards = [dict.fromkeys(names[i::100], (DTYPES["F32"], (1,))) for i in range(100)]
    out = encoded(tmp_path / "o", shards, nothing_carried(*names))
    files = [p.name for p in read_index(out / ".metadata").files]
    assert files == [f"__0_{i:02d}.distcp" for i in range(100)]
    state = {n: torch.ones(1) for n in names}
    dcp.load(state, checkpoint_id=out, no_dist=True)
    assert not any(map(torch.any, state.values()))
    # The index, which every rank of a trainer reads, is hardly larger than torch's.
    saved = save(tmp_path / "s", state) / ".metadata"
    assert (out / ".metadata").stat().st_size < 1.3 * saved.stat().st_size


class Tied(torch.nn.Module):
    """A model whose head is its embedding."""

    def __init__(self, scale):
        super().__init__()
        self.embed = torch.nn.Embedding(5, 3)
        self.head = torch.nn.Linear(3, 5, bias=False)
        self.head.weight = self.embed.weight
        with torch.no_grad():
            self.head.weight.copy_(torch.arange(15.0).reshape(5, 3) * scale)


def test_tied_tensors_stay_tied(tmp_path):
    """A tensor of two names is stored once, loads under both, and is read back as tied."""
    (tmp_path / "c").mkdir()
    for gamma in (5, 10):
        torch.save(Tied(gamma).state_dict(), tmp_path / f"c/m-step1-gamma{gamma}.pt")
    run("synthesize", "c", "-g", 5, "--format", "dcp", "-o", "o-{gamma}", cwd=tmp_path)
    model = Tied(0.0)
    state = model.state_dict()
    dcp.load(state, checkpoint_id=tmp_path / "o-5", no_dist=True)
    model.load_state_dict(state)
    assert torch.equal(model.embed.weight, Tied(5).embed.weight)
    found = read_checkpoint(tmp_path / "o-5")
    assert (len(found.tensors), len(found.ties), len(found.stored)) == (2, 1, 1)


def test_chunks_of_other_shape_share_nothing(tmp_path):
    """Only whole tensors may lie in one place; what is split may not be read again and again."""
    spec = {"x": (DTYPES["F32"], (2, 2)), "y": (DTYPES["F32"], (4,))}
    out = encoded(tmp_path / "o", [spec], nothing_carried("x", "y"))

    def share(metadata):
        x, y = metadata.storage_data
        metadata.storage_data[y] = metadata.storage_data[x]

    with pytest.raises(InputError, match="another type or shape"):
        read_index(edit(out, share) / ".metadata")

    def split(metadata):
        _, y = metadata.storage_data
        halves = [box((n,), (2,))[0] for n in (0, 2)]
        metadata.state_dict_metadata["y"].chunks = halves
        for half in halves:
            place = MetadataIndex("y", half.offsets)
            metadata.storage_data[place] = metadata.storage_data[y]

    with pytest.raises(InputError, match="overlaps that of another"):
        read_index(edit(out, split) / ".metadata")


@pytest.mark.parametrize(("dtype", "layout"), [("bf16", "prefix"), ("float64", "wrapped")])
def test_output_of_another_type(tmp_path, dtype, layout):
    """--dtype converts averaged tensors, and the output verifies whatever its names begin with."""
    options = [*write(tmp_path / "run", layout), "--dtype", dtype]
    run("synthesize", "run", *options, "--format", "dcp", "-o", "o-{step}", cwd=tmp_path)
    run("synthesize", "run", *options, "-o", "o.safetensors", cwd=tmp_path)
    dcp_to_torch_save(tmp_path / "o-300", tmp_path / "o.pt")
    check_loaded(torch.load(tmp_path / "o.pt"), load_file(tmp_path / "o.safetensors"))


@pytest.fixture
def large(tmp_path):
    """Two snapshots of tensors that take several tiles each."""
    (tmp_path / "c").mkdir()
    generator = torch.Generator().manual_seed(0)
    for gamma in (5, 10):
        state = {f"w{i}": torch.randn(300, 700, generator=generator) for i in range(12)}
        name = tmp_path / f"c/m-step1-gamma{gamma}.safetensors"
        save_file(state, name, {"gamma": str(gamma), "step": "1"})
    return tmp_path / "c"


def content(folder):
    """Bytes of all files in a directory."""
    return {p.name: p.read_bytes() for p in sorted(folder.iterdir())}


def test_same_bytes_for_any_number_of_jobs(large, tmp_path):
    """Several files, checksums included, do not depend on how they were made."""
    options = ["--format", "dcp", "--max-shard-size", "1MB", "--max-memory", "3MB", "--trust-tags"]
    options.append("--no-side-files")
    for jobs in (1, 3):
        run(
            "synthesize",
            large,
            "-g",
            7,
            *options,
            "-o",
            f"o{jobs}-{{gamma}}",
            "-j",
            jobs,
            cwd=tmp_path,
        )
    made = content(tmp_path / "o1-7")
    assert made == content(tmp_path / "o3-7")
    assert list(made) == [".metadata", *(f"__0_{i:02d}.distcp" for i in range(12))]


def test_outputs_that_exist(large, tmp_path):
    """They are refused, skipped or replaced as a whole, with files of any former number."""
    call = ["synthesize", large, "-g", 7, "--format", "dcp", "-o", "o-{gamma}", "--trust-tags"]
    call.append("--no-side-files")
    run(*call, "--max-shard-size", "1MB", cwd=tmp_path)
    out = tmp_path / "o-7"
    before = content(out)
    assert len(before) == 13
    refused = phema(*call, cwd=tmp_path)
    assert refused.code == 2
    assert "exists already" in refused.err
    assert run(*call, "--skip-existing", cwd=tmp_path).out == "o-7\n"
    assert content(out) == before
    (out / "notes.txt").write_text("mine")
    run(*call, "--overwrite", cwd=tmp_path)
    assert sorted(content(out)) == [".metadata", "__0_0.distcp", "notes.txt"]
    # Without its index it is not complete, and is made again.
    (out / ".metadata").unlink()
    refused = phema(*call, "--skip-existing", cwd=tmp_path)
    assert refused.code == 2
    assert "is not complete; pass --overwrite in place of --skip-existing" in refused.err
    run(*call, "--overwrite", cwd=tmp_path)
    assert (out / ".metadata").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--format", "dcp", "-o", "x.safetensors"], "has the ending of safetensors, not of dcp"),
        (["--format", "dcp", "-o", "x.pt"], "has the ending of torch, not of dcp"),
        (["--format", "torch", "-o", "x/.metadata"], "has the ending of dcp, not of torch"),
        (["-o", "x/.metadata"], "is the name of an index"),
        (["--format", "dcp", "-o", "x-{step}", "-g", "6"], "put {gamma} into -o"),
    ],
)
def test_wrong_names_are_refused(large, tmp_path, options, message):
    """A distributed checkpoint is a directory."""
    done = phema("synthesize", large, "-g", 7, *options, "--trust-tags", cwd=tmp_path)
    assert done.code == 2
    assert message in done.err


def test_a_source_is_not_replaced(tmp_path):
    """An output with the name of a snapshot, which is a directory, is refused."""
    for step in (1, 2):
        save(tmp_path / f"run/step-{step}", net(step))
    out = tmp_path / "run/step-{step}"
    done = phema("synthesize", tmp_path / "run", *MEAN, "--format", "dcp", "-o", out, "--overwrite")
    assert done.code == 2
    assert "is one of the snapshots" in done.err


def change(path, at):
    """Change a byte of a file."""
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("damage", ["value", "header", "checksum", "index", "file", "record"])
def test_damage_is_found(large, tmp_path, damage):
    """A byte that differs in any part of the directory is found."""
    (out,) = synthesize(large, gamma=7, format="dcp", output=tmp_path / "o", sample=False)
    metadata = pickle.loads((out / ".metadata").read_bytes())
    (place,) = (p for k, p in metadata.storage_data.items() if k.fqn == "w3")
    extent = read_checkpoint(out).tensors["w3"]
    file = out / place.relative_path
    if damage == "value":
        change(file, extent.offset + 100)
    elif damage == "header":
        change(file, place.offset + place.length - 1)
    elif damage == "checksum":
        change(file, file.read_bytes().index(b"PK\3\4", extent.offset - 200) + 14)
    elif damage == "index":
        edit(out, lambda m: m.planner_data.update({"w3": ("other", "w3")}))
    elif damage == "file":
        (out / "__3_0.distcp").write_bytes(b"")
    else:
        edit(out, lambda m: setattr(m, "phema", m.phema.replace("blue", "blut")))
    with pytest.raises((CheckFailedError, InputError)):
        verify_output(out, scan([large]))


def test_output_is_left_out_of_scans(large):
    """What phema wrote is known by its record, and a checkpoint of torch saved over it is not."""
    run("synthesize", large, "-g", 7, "--format", "dcp", "-o", f"{large}/", "--no-sample")
    found = scan([large])
    assert len(found.require()) == 2
    assert any("synthesized by phema" in f.error.what for f in found.findings)
    (large / "phema-step0000001-gamma7/.metadata").unlink()
    save(large / "phema-step0000001-gamma7", {"w": torch.ones(3)})
    assert read_checkpoint(large / "phema-step0000001-gamma7").metadata == {}


@pytest.mark.parametrize(("record", "read"), [(5, {}), (None, {}), ("text", {"phema": "text"})])
def test_records_of_strangers(tmp_path, record, read):
    """Only text is a record."""
    out = edit(save(tmp_path / "o", {"w": torch.ones(3)}), lambda m: setattr(m, "phema", record))
    assert read_checkpoint(out).metadata == read


# Trains a model that FSDP2 shards over two ranks, saves it as it goes, and loads an output.
SHARDED = """
import json, os, sys, torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
import torch.multiprocessing as mp
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions, get_model_state_dict, get_state_dict, set_model_state_dict
)
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

def module():
    torch.manual_seed(5)
    model = torch.nn.Sequential(torch.nn.Linear(5, 9), torch.nn.Linear(9, 3))
    return fully_shard(model, mesh=init_device_mesh("cpu", (2,)))

def train(out):
    model = module()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    for step in range(1, 7):
        optimizer.zero_grad()
        model(torch.randn(4, 5)).square().mean().backward()
        optimizer.step()
        if step % 2 == 0:
            weights, moments = get_state_dict(model, optimizer)
            state = {"model": weights, "optimizer": moments, "train_state": {"step": step}}
            writer = dcp.FileSystemWriter(f"{out}/run/step-{step}", sync_files=False)
            dcp.save(state, storage_writer=writer)

def load(out):
    model = module()
    state = {"model": get_model_state_dict(model)}
    dcp.load(state, checkpoint_id=f"{out}/made-6")
    set_model_state_dict(model, state["model"])
    full = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True))
    if dist.get_rank() == 0:
        torch.save(full, f"{out}/loaded.pt")

def start(rank, job, out):
    torch.set_num_threads(1)
    store = f"file://{out}/store-{job}"
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=2)
    {"train": train, "load": load}[job](out)
    dist.destroy_process_group()

if __name__ == "__main__":
    mp.start_processes(start, sys.argv[1:], 2, start_method="fork")
"""


@pytest.mark.slow
def test_fsdp_loads_the_output(tmp_path):
    """A model that FSDP2 shards over two ranks is averaged, and loads the result sharded again."""
    (tmp_path / "ranks.py").write_text(SHARDED)
    environment = os.environ | {"GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}

    def ranks(job):
        command = [warm.python(), tmp_path / "ranks.py", job, tmp_path]
        subprocess.run(command, env=environment, check=True, timeout=100)

    ranks("train")
    assert len(list((tmp_path / "run/step-6").glob("*.distcp"))) == 2
    run("synthesize", "run", *MEAN, "--format", "dcp", "-o", "made-{step}", cwd=tmp_path)
    run("synthesize", "run", *MEAN, "-o", "o.safetensors", cwd=tmp_path)
    shutil.rmtree(tmp_path / "run")
    ranks("load")
    expected = load_file(tmp_path / "o.safetensors")
    assert len(expected) == 4
    check_loaded(torch.load(tmp_path / "loaded.pt"), expected)
