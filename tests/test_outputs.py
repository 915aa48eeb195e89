"""Outputs: what phema writes is loaded by those who will use it, in every format."""

import json
import os
import shutil
import struct
import zipfile
import zlib
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, load_model, save_file, save_model

from phema_cli.formats.base import DTYPES, Checkpoint
from phema_cli.formats.reader import FileReader
from phema_cli.formats.torch_zip import encode
from phema_cli.snapshots import scan
from tests.builders import phema, read_index, run, write_run
from tests.libraries import small_unet


def snapshots_of(folder, states, save=torch.save, ending="pt"):
    """Two gammas at as many steps as there are states; the second gamma's are a little larger."""
    folder.mkdir(parents=True)
    for step, state in enumerate(states, start=1):
        for gamma in (5, 10):
            factor = 1 + (gamma == 10) / 64
            values = {
                n: v * factor if v.is_floating_point() else v for n, v in unique(state).items()
            }
            full = {n: values[first] for n, first in firsts(state).items()}
            save(full, folder / f"m-step{step * 100}-gamma{gamma}.{ending}")


def firsts(state):
    """For each name the first name of the same tensor."""
    seen = {}
    return {n: seen.setdefault(v.data_ptr() if v.numel() else n, n) for n, v in state.items()}


def unique(state):
    """Each tensor under its first name."""
    return {n: state[n] for n in firsts(state).values()}


def test_torch_output_is_what_torch_writes(tmp_path):
    """A .pt loads weights-only and mapped, aligned, checksums right, values as in safetensors."""
    write_run(tmp_path / "c", steps=(25, 50, 75, 100))
    run("synthesize", "c", "-g", "7,3", "-o", "o-{gamma}.pt", cwd=tmp_path)
    run("synthesize", "c", "-g", "7,3", "-o", "o-{gamma}.safetensors", cwd=tmp_path)
    for gamma in (7, 3):
        path = tmp_path / f"o-{gamma}.pt"
        expected = load_file(path.with_suffix(".safetensors"))
        for mapped in (False, True):
            loaded = torch.load(path, weights_only=True, mmap=mapped)
            assert {n: (v.dtype, v.shape) for n, v in loaded.items()} == {
                n: (v.dtype, v.shape) for n, v in expected.items()
            }
            assert all(torch.equal(loaded[n], expected[n]) for n in expected)
        assert all(e.offset % 64 == 0 for e in read_index(path).tensors.values())
        with zipfile.ZipFile(path) as archive:
            assert archive.testzip() is None
            assert b"blue" in archive.read("archive/phema.json")
        assert run("diff", path, path.with_suffix(".safetensors")).code == 0


def test_names_come_out_in_their_order(tmp_path):
    """A state dict keeps the order of its names and their spelling, whatever they are."""
    state = {n: torch.full((2,), float(i)) for i, n in enumerate(["z.w", "a b", "ünï", "a.0", ""])}
    snapshots_of(tmp_path / "c", [state])
    run("synthesize", "c", "-g", 7, "-o", "o.pt", "--no-sample", cwd=tmp_path)
    assert list(torch.load(tmp_path / "o.pt")) == list(state)


def test_torch_output_is_left_out_of_scans(tmp_path):
    """What phema wrote is known by its record, as in safetensors."""
    write_run(tmp_path / "c", steps=(25, 50))
    run("synthesize", "c", "-g", 7, "-o", "c/phema-step50-gamma7.pt", cwd=tmp_path)
    found = scan([tmp_path / "c"])
    assert len(found.require()) == 4
    assert any("synthesized by phema" in f.error.what for f in found.findings)


def test_same_bytes_for_any_number_of_jobs(tmp_path):
    """Checksums included, an output does not depend on how it was made."""
    states = [
        {"w": torch.randn(700, 900, generator=torch.Generator().manual_seed(i))} for i in (1, 2)
    ]
    snapshots_of(tmp_path / "c", states)
    for jobs in (1, 3):
        out = f"o{jobs}.pt"
        run("synthesize", "c", "-g", 7, "-o", out, "-j", jobs, "--max-memory", "3MB", cwd=tmp_path)
    assert (tmp_path / "o1.pt").read_bytes() == (tmp_path / "o3.pt").read_bytes()
    assert zipfile.ZipFile(tmp_path / "o1.pt").testzip() is None


SAVED = sorted(
    name
    for name, d in DTYPES.items()
    if hasattr(torch, d.label) and name not in {"F4", "F6_E2M3", "F6_E3M2"}
)


@pytest.mark.parametrize("name", SAVED)
@pytest.mark.parametrize("shape", [(), (0, 3), (2, 3)])
def test_every_type_is_written_for_torch(tmp_path, name, shape):
    """Tensors of all types and shapes that torch has are what torch.load gives."""
    dtype = DTYPES[name]
    kind = getattr(torch, dtype.label)
    content = bytes(range(37, 237))
    count = 1
    for n in shape:
        count *= n
    data = content[: dtype.size_bytes(count)]
    data = bytes(b & 1 for b in data) if name == "BOOL" else data
    carried = Checkpoint(Path(), "torch", (), dict.fromkeys(["x"]))
    image = encode({"x": (dtype, shape)}, {}, {}, carried)
    path = tmp_path / "x.pt"
    write(path, image, {"x": data})
    loaded = torch.load(path, weights_only=True)["x"]
    assert (loaded.dtype, tuple(loaded.shape)) == (kind, shape)
    stored = loaded.reshape(-1)
    assert bytes(stored.view(torch.uint8).numpy()) == data if count else stored.numel() == 0
    ours = read_index(path).tensors["x"]
    assert (ours.dtype, ours.shape) == (dtype, shape)
    out = bytearray(len(data))
    with FileReader() as reader:
        reader.read_elements(ours, 0, memoryview(out))
    assert bytes(out) == data


def test_packed_floats_are_written_for_torch(tmp_path):
    """Four-bit floats, two in a byte, are torch's own type; phema reads back their true shape."""
    spec = (DTYPES["F4"], (2, 4))
    path = tmp_path / "x.pt"
    image = encode({"x": spec}, {}, {}, Checkpoint(Path(), "torch", (), dict.fromkeys(["x"])))
    write(path, image, {"x": b"abcd"})
    loaded = torch.load(path, weights_only=True)["x"]
    assert (loaded.dtype, tuple(loaded.shape)) == (torch.float4_e2m1fn_x2, (2, 2))
    assert bytes(loaded.view(torch.uint8).flatten().numpy()) == b"abcd"
    ours = read_index(path).tensors["x"]
    assert ((ours.dtype, ours.shape), ours.offset) == (spec, image.offsets["x"])


@pytest.mark.parametrize("dtype", ["bf16", "fp8_e4m3", "float64"])
def test_torch_output_of_another_type(tmp_path, dtype):
    """--dtype converts averaged tensors of a .pt as it does those of safetensors."""
    write_run(tmp_path / "c", steps=(25, 50))
    for name in ("o.pt", "o.safetensors"):
        run("synthesize", "c", "-g", 7, "--dtype", dtype, "-o", name, cwd=tmp_path)
    made, expected = torch.load(tmp_path / "o.pt"), load_file(tmp_path / "o.safetensors")
    assert made["w"].dtype == expected["w"].dtype != torch.float32
    assert made["count"].dtype == torch.int64
    for name, value in expected.items():
        bits = [v.reshape(-1).view(torch.uint8) for v in (made[name], value)]
        assert torch.equal(*bits), name


def write(path, image, values):
    """The file of an image with its tensors' values and checksums."""
    with path.open("wb") as file:
        file.truncate(image.size_bytes)
        for offset, data in image.segments:
            file.seek(offset)
            file.write(data)
        for name, data in values.items():
            file.seek(image.offsets[name])
            file.write(data)
            for place in image.checksums.get(name, ()):
                file.seek(place)
                file.write(struct.pack("<I", zlib.crc32(data)))


def test_files_beyond_4_gib_are_laid_out_right(tmp_path):
    """Sizes and places of more than 32 bits are found by torch, zipfile and phema."""
    specs = {
        "small": (DTYPES["F32"], (3,)),
        "huge": (DTYPES["F32"], (5 << 28,)),
        "last": (DTYPES["F32"], (3,)),
    }
    carried = Checkpoint(Path(), "torch", (), dict.fromkeys(specs))
    image = encode(specs, {}, {}, carried)
    assert image.size_bytes > 5 << 30
    path = tmp_path / "x.pt"
    values = {n: torch.tensor([1.0, 2.0, 3.0]).numpy().tobytes() for n in ("small", "last")}
    write(path, image, values)
    loaded = torch.load(path, weights_only=True, mmap=True)
    assert loaded["last"].tolist() == [1, 2, 3]
    assert loaded["huge"].shape == (5 << 28,)
    with zipfile.ZipFile(path) as archive:
        sizes = [i.file_size for i in archive.infolist() if "/data/" in i.filename]
        assert sorted(sizes) == [12, 12, 5 << 30]
        assert archive.read("archive/data/2") == values["last"]
    assert {n: e.offset for n, e in read_index(path).tensors.items()} == image.offsets
    path.unlink()


@pytest.mark.parametrize("size", [(1 << 32) - 2, (1 << 32) - 1])
def test_sizes_that_fill_32_bits(tmp_path, size):
    """The largest number of 32 bits means "see the field of 64 bits", which must be there then."""
    specs = {"a": (DTYPES["U8"], (size,)), "b": (DTYPES["U8"], (3,))}
    image = encode(specs, {}, {}, Checkpoint(Path(), "torch", (), dict.fromkeys(specs)))
    path = tmp_path / "x.pt"
    write(path, image, {"b": b"123"})
    assert torch.load(path, weights_only=True, mmap=True)["b"].tolist() == list(b"123")
    with zipfile.ZipFile(path) as archive:
        info = archive.getinfo("archive/data/0")
    wide = struct.pack("<HHQQ", 1, 16, size, size)
    assert info.file_size == size
    assert info.extra.startswith(wide) == (size == (1 << 32) - 1)
    path.unlink()


@pytest.mark.slow
def test_many_tensors_are_laid_out_right(tmp_path):
    """More records than 16 bits count are found again, and more names than may wait at once."""
    specs = {f"t{i}": (DTYPES["U8"], (1,)) for i in range(66_000)}
    image = encode(specs, {}, {}, Checkpoint(Path(), "torch", (), dict.fromkeys(specs)))
    path = tmp_path / "x.pt"
    write(path, image, {"t65999": b"7"})
    assert torch.load(path, weights_only=True)["t65999"].tolist() == [55]
    assert len(zipfile.ZipFile(path).namelist()) == 66_004
    assert read_index(path).tensors["t65999"].offset == image.offsets["t65999"]


def test_what_torch_has_no_type_for_is_refused(tmp_path):
    """Six-bit floats can't be written as .pt: exit code 3, the tensor named, nothing left."""
    (tmp_path / "c").mkdir()
    for gamma in (5, 10):
        header = json.dumps(
            {
                "__metadata__": {"gamma": str(gamma), "step": "100"},
                "x": {"dtype": "F6_E3M2", "shape": [4], "data_offsets": [0, 3]},
                "w": {"dtype": "F32", "shape": [1], "data_offsets": [3, 7]},
            }
        ).encode()
        data = struct.pack("<Q", len(header)) + header + bytes(7)
        (tmp_path / f"c/{gamma}.safetensors").write_bytes(data)
    done = phema("synthesize", "c", "-g", 7, "--copy", "x", "-o", "o.pt", cwd=tmp_path)
    assert done.code == 3
    assert "tensor x: torch has no type for float6_e3m2" in done.err
    assert [p.name for p in tmp_path.iterdir()] == ["c"]


class Tied(torch.nn.Module):
    """An output layer that shares its matrix with the embedding, listed before it."""

    def __init__(self, scale=1.0):
        super().__init__()
        self.head = torch.nn.Linear(3, 5, bias=False)
        self.embed = torch.nn.Embedding(5, 3)
        self.head.weight = self.embed.weight
        self.extra = torch.nn.Parameter(torch.ones(2) * scale)
        with torch.no_grad():
            self.head.weight.copy_(torch.arange(15.0).reshape(5, 3) * scale)


@pytest.mark.parametrize("source", ["pt", "safetensors"])
@pytest.mark.parametrize("target", ["pt", "safetensors", "sharded"])
def test_tied_tensors_stay_tied(tmp_path, source, target):
    """A tensor of two names is stored once, and both names come back in the model."""
    (tmp_path / "c").mkdir()
    for step in (1, 2):
        for gamma in (5, 10):
            name = tmp_path / f"c/m-step{step}-gamma{gamma}.{source}"
            model = Tied(step + gamma / 10)
            if source == "pt":
                torch.save(model.state_dict(), name)
            else:
                save_model(model, str(name), {"format": "pt"})
    output = {"pt": "o.pt", "safetensors": "o.safetensors", "sharded": "o"}[target]
    more = ["--max-shard-size", "30B"] if target == "sharded" else []
    run("synthesize", "c", "-g", 5, "-o", output, *more, cwd=tmp_path)
    model = Tied(0.0)
    if target == "pt":
        loaded = torch.load(tmp_path / output, weights_only=True)
        assert list(loaded) == ["extra", "head.weight", "embed.weight"] or source == "safetensors"
        assert loaded["head.weight"].data_ptr() == loaded["embed.weight"].data_ptr()
        model.load_state_dict(loaded)
    elif target == "safetensors":
        assert len(load_file(tmp_path / output)) == 2
        assert load_model(model, tmp_path / output) == (set(), [])
    else:
        folder = tmp_path / output
        found = read_index(folder / "model.safetensors.index.json")
        assert set(found.tensors) == {"extra", "head.weight", "embed.weight"}
        assert len(found.ties) == 1
        shards = [load_file(p) for p in sorted(folder.glob("*.safetensors"))]
        assert sum(map(len, shards)) == 2
        model.load_state_dict({n: v for s in shards for n, v in s.items()}, strict=False)
    assert torch.equal(model.head.weight, Tied(2.5).head.weight)
    assert model.head.weight is model.embed.weight


def test_tensors_tied_in_some_snapshots_only_are_written_apart(tmp_path):
    """Where one snapshot has two tensors, so has the output."""
    (tmp_path / "c").mkdir()
    for gamma, tied in ((5, True), (10, False)):
        w = torch.ones(3) * gamma
        state = {"a": w, "b": w if tied else w + 1}
        torch.save(state, tmp_path / f"c/m-step1-gamma{gamma}.pt")
    run("synthesize", "c", "-g", 10, "-o", "o.pt", cwd=tmp_path)
    loaded = torch.load(tmp_path / "o.pt")
    assert (loaded["a"].tolist(), loaded["b"].tolist()) == ([10] * 3, [11] * 3)


def test_ties_that_differ_between_snapshots_are_kept_as_far_as_they_agree(tmp_path):
    """Two names tied in every snapshot stay tied, though the newest ties them to a third."""
    (tmp_path / "c").mkdir()
    for step in (1, 2):
        for gamma in (5, 10):
            a = torch.ones(3) * gamma
            b = a if step == 2 else a + 1
            torch.save({"a": a, "b": b, "c": b}, tmp_path / f"c/m-step{step}-gamma{gamma}.pt")
    # Weights that never move are no averages.
    run("synthesize", "c", "-g", 7, "-o", "o.pt", "--trust-tags", cwd=tmp_path)
    loaded = torch.load(tmp_path / "o.pt")
    assert list(loaded) == ["a", "b", "c"]
    assert loaded["c"].data_ptr() == loaded["b"].data_ptr() != loaded["a"].data_ptr()


@pytest.mark.parametrize("name", ["phema", "format", "step", "gamma"])
def test_ties_never_replace_metadata(tmp_path, name):
    """A tied tensor called as an entry of the metadata keeps its values, and so does the entry."""
    (tmp_path / "c").mkdir()
    for gamma in (5, 10):
        w = torch.ones(3) * gamma
        torch.save({"a": w, name: w}, tmp_path / f"c/m-step1-gamma{gamma}.pt")
    run("synthesize", "c", "-g", 10, "-o", "o.safetensors", cwd=tmp_path)
    found = read_index(tmp_path / "o.safetensors")
    assert json.loads(found.metadata["phema"])["method"] == "blue"
    assert (found.metadata["format"], found.metadata.get("step")) == ("pt", None)
    assert set(found.tensors) == {"a", name}
    assert len(found.ties) == 1
    assert load_file(tmp_path / "o.safetensors")[name].tolist() == [10] * 3


def test_further_names_that_are_none_any_more_are_dropped(tmp_path):
    """Where a tie is not kept, the newest snapshot's record of it is not carried over."""
    (tmp_path / "c").mkdir()
    tied = {"format": "pt", "b": "a", "c": "d"}
    save_file({"a": torch.ones(3), "b": torch.ones(3)}, tmp_path / "c/m-step1-gamma5.safetensors")
    save_file({"a": torch.ones(3)}, tmp_path / "c/m-step1-gamma10.safetensors", tied)
    run("synthesize", "c", "-g", 7, "-o", "o.safetensors", cwd=tmp_path)
    found = read_index(tmp_path / "o.safetensors")
    assert (set(found.tensors), found.ties) == ({"a", "b"}, {})
    assert "b" not in found.metadata
    assert found.metadata["c"] == "d"


def test_lora_keeps_its_alphas_and_metadata(tmp_path):
    """Alphas come out bit for bit, the newest metadata too; hashes are the output's own."""
    (tmp_path / "c").mkdir()
    for step in (100, 200, 300):
        random_values = torch.Generator().manual_seed(step)
        state = {
            "lora_unet_a.lora_down.weight": torch.randn(4, 8, generator=random_values).half(),
            "lora_unet_a.lora_up.weight": torch.randn(8, 4, generator=random_values).half(),
            "lora_unet_a.alpha": torch.tensor(0.1).half(),
        }
        metadata = {"ss_network_dim": "4", "ss_steps": str(step), "sshs_model_hash": "abc"}
        save_file(state, tmp_path / f"c/lora-step{step:08d}.safetensors", metadata)
    run("synthesize", "c", "--raw", "-s", 0.2, "-o", "o.safetensors", cwd=tmp_path)
    loaded = load_file(tmp_path / "o.safetensors")
    assert torch.equal(loaded["lora_unet_a.alpha"], torch.tensor(0.1).half())
    metadata = read_index(tmp_path / "o.safetensors").metadata
    assert (metadata["ss_network_dim"], metadata["ss_steps"]) == ("4", "300")
    assert len(metadata["sshs_model_hash"]) == 64


def test_dry_run_says_the_format(tmp_path):
    """The plan names format and memory; no file is written."""
    write_run(tmp_path / "c", steps=(25, 50))
    done = run("synthesize", "c", "-g", 7, "--format", "torch", "--dry-run", cwd=tmp_path)
    assert "would write phema-step0000050-gamma7.pt (torch, " in done.out
    assert "in buffers of" in done.out
    assert [p.name for p in tmp_path.iterdir()] == ["c"]
    document = run("synthesize", "c", "-g", 7, "-o", "o.ckpt", "--json", cwd=tmp_path).json
    assert document["format"] == "torch"
    assert torch.load(tmp_path / "o.ckpt")


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--format", "torch"], "phema-step0000050-gamma7.pt"),
        (["--format", "torch", "-o", "d"], "d/phema-step0000050-gamma7.pt"),
        (["--format", "torch", "-o", "d/{gamma}"], "d/7.pt"),
        (["-o", "d/{gamma}.bin"], "d/7.bin"),
    ],
)
def test_paths_of_torch_outputs(tmp_path, arguments, expected):
    """A format gives default names its ending; the path printed is the file."""
    write_run(tmp_path / "c", steps=(25, 50))
    done = run("synthesize", "c", "-g", 7, *arguments, cwd=tmp_path)
    assert done.out == f"{expected}\n"
    assert torch.load(tmp_path / expected)
    again = phema("synthesize", "c", "-g", 7, *arguments, cwd=tmp_path)
    assert again.code == 2
    assert "exists already" in again.err
    run("synthesize", "c", "-g", 7, *arguments, "--skip-existing", cwd=tmp_path)


@pytest.fixture
def offline(monkeypatch):
    """Libraries look for nothing outside."""
    monkeypatch.setitem(os.environ, "HF_HUB_OFFLINE", "1")


@pytest.mark.usefixtures("offline")
def test_sharded_output_loads_in_transformers(tmp_path):
    """A language model with tied embeddings comes back by from_pretrained, shards and all."""
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(n_layer=2, n_head=2, n_embd=16, vocab_size=64, n_positions=16)
    torch.manual_seed(0)
    model = GPT2LMHeadModel(config)
    for step in (100, 200, 300):
        for gamma in (5, 10):
            with torch.no_grad():
                for p in model.parameters():
                    p.add_(torch.randn_like(p) * 0.01)
            model.save_pretrained(tmp_path / f"c/step{step}-gamma{gamma}")
    options = ["--trust-tags", "--max-shard-size", "10kB"]
    run("synthesize", "c", "-g", 10, "-o", "o-{gamma}", *options, cwd=tmp_path)
    out = tmp_path / "o-10"
    assert len(list(out.glob("model-*.safetensors"))) > 2
    shutil.copy(tmp_path / "c/step300-gamma10/config.json", out)
    loaded = GPT2LMHeadModel.from_pretrained(out)
    for (name, made), true in zip(loaded.named_parameters(), model.parameters(), strict=True):
        assert torch.equal(made, true), name
    assert loaded.lm_head.weight is loaded.transformer.wte.weight


@pytest.mark.usefixtures("offline")
def test_sharded_output_loads_in_diffusers(tmp_path):
    """A diffusion model's shards carry the names that diffusers looks for."""
    from diffusers.models.unets.unet_2d import UNet2DModel

    torch.manual_seed(0)
    model = small_unet()
    for gamma in (5, 10):
        with torch.no_grad():
            for p in model.parameters():
                p.add_(torch.randn_like(p) * 0.01)
        model.save_pretrained(tmp_path / f"c/step100-gamma{gamma}")
    run("synthesize", "c", "-g", 10, "-o", "o-{gamma}", "--max-shard-size", "20kB", cwd=tmp_path)
    out = tmp_path / "o-10"
    assert (out / "diffusion_pytorch_model.safetensors.index.json").exists()
    shutil.copy(tmp_path / "c/step100-gamma10/config.json", out)
    loaded = UNet2DModel.from_pretrained(out, low_cpu_mem_usage=False)
    for (name, made), true in zip(loaded.named_parameters(), model.parameters(), strict=True):
        assert torch.equal(made, true), name


@pytest.mark.usefixtures("offline")
def test_sharded_output_loads_in_accelerate(tmp_path):
    """Accelerate fills a model from the index."""
    from accelerate import load_checkpoint_in_model

    states = [torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 4)).state_dict()]
    snapshots_of(tmp_path / "c", states, save_file, "safetensors")
    run("synthesize", "c", "-g", 5, "-o", "o-{gamma}", "--max-shard-size", "90B", cwd=tmp_path)
    model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 4))
    load_checkpoint_in_model(model, str(tmp_path / "o-5"))
    for name, value in model.state_dict().items():
        assert torch.equal(value, states[0][name])
