"""phema verify: passes on what phema wrote, and fails on anything that was changed since."""

import hashlib
import json
import shutil
import struct

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from phema_cli.errors import PhemaError
from phema_cli.formats.safetensors import encode, read_header
from phema_cli.profiles import gamma_from_sigma_rel
from phema_cli.snapshots import Config, scan
from phema_cli.snapshots.reading import read_checkpoint
from phema_cli.snapshots.scan import Scan
from phema_cli.synthesis.averaging import ways
from phema_cli.synthesis.digests import prepared
from phema_cli.synthesis.remaking import provenance_of, remake
from phema_cli.synthesis.verifying import near, verify
from tests.builders import execute, phema, recipe_of, synthesize, write_run
from tests.edm2_files import network, write_edm2
from tests.torch_files import raw_bytes

#: how an output of each kind is asked for.
KINDS = {
    "safetensors": {},
    "torch": {"format": "torch"},
    "edm2": {"format": "edm2"},
    "shards": {"max_shard_size": 7000},
}


def tags(path):
    """The metadata that a snapshot's name stands for."""
    return dict(zip(("step", "gamma"), path.stem[8:].split("-gamma"), strict=True))


@pytest.fixture
def sources(tmp_path):
    """Eight snapshots of a float16 and a float32 run's worth of tensors, some of them tied."""
    write_run(tmp_path / "in", dtype=torch.float16, shape=(300, 7))
    for path in (tmp_path / "in").iterdir():
        tensors = load_file(path)
        tensors["wide"] = tensors["w"].float() + 1e-4
        save_file(tensors, path, tags(path))
    return tmp_path / "in"


@pytest.fixture
def pickles(tmp_path):
    """Four snapshots as EDM2 stores them."""
    for kimg in (1000, 2000):
        for std in ("0.050", "0.100"):
            path = tmp_path / "pickles" / f"network-snapshot-{kimg:07d}-{std}.pkl"
            write_edm2(path, network(seed=kimg + int(std[2:])))
    return tmp_path / "pickles"


@pytest.fixture
def made(request, sources, pickles, tmp_path):
    """An output of the kind that the test asks for, its sources, and all of its files."""
    folder = pickles if request.param == "edm2" else sources
    (out,) = synthesize(folder, gamma=7, output=tmp_path / "o", **KINDS[request.param])
    return out, folder, sorted(out.iterdir()) if out.is_dir() else [out]


def verdict(out, sources):
    """What the command does, without a process: None where the output passes, else the error."""
    try:
        verify(remake(read_checkpoint(out), scan([sources])), full=True)
    except PhemaError as error:
        return error
    return None


def refused(out, sources):
    """The one line in which the console script fails."""
    run = phema("verify", out, sources, "--full")
    assert (run.code, run.out, run.err.count("\n")) == (1, "", 1)
    return run.err


def flip(path, at, bit=0):
    """Flip one bit of a file."""
    with path.open("r+b") as file:
        file.seek(at)
        (byte,) = file.read(1)
        file.seek(at)
        file.write(bytes([byte ^ 1 << bit]))


@pytest.mark.parametrize(
    "options",
    [
        {"max_shard_size": 7000, "digest": True},
        {"format": "torch", "digest": True},
        {"dtype": "bfloat16", "digest": True},
        {"config": Config(copy=("wide",))},
        {"gamma": [5, 6, 8, 9, 10, 11, 12, 13, 14]},
        {"profile": "uniform:last=0.25"},
        {"method": "projection", "step": 60, "sample": False},
    ],
)
def test_what_was_written_passes(sources, tmp_path, options):
    """Every kind of output, alone and among many targets; also when training has gone on."""
    outputs = synthesize(sources, output=tmp_path / "o", **{"gamma": 7, **options})
    newer = sources / "ema-step0000200-gamma5.safetensors"
    save_file(load_file(sorted(sources.iterdir())[0]), newer, {"step": "200", "gamma": "5"})
    for out in outputs:
        assert verdict(out, sources) is None


def test_outputs_of_edm2_pass(pickles, tmp_path):
    """Pickles with tied weights, with digests, of many targets."""
    gammas = [gamma_from_sigma_rel(0.06 + 0.004 * i) for i in range(9)]
    outputs = synthesize(
        pickles, gamma=gammas, output=tmp_path / "o", format="edm2", digest=True, sample=False
    )
    assert len(outputs) == 9


def test_each_way_of_summing_is_known(tmp_path):
    """Halves that were averaged for many targets are not those made for one, and pass as well."""
    random = torch.Generator().manual_seed(0)
    (tmp_path / "in").mkdir()
    for step in range(1, 9):
        values = {"w": torch.randn(400, 400, generator=random).half()}
        metadata = {"gamma": "5", "step": str(step)}
        save_file(values, tmp_path / "in" / f"{step}.safetensors", metadata)
    (alone,) = synthesize(tmp_path / "in", gamma=7, output=tmp_path / "one")
    many = synthesize(tmp_path / "in", gamma=list(range(6, 16)), output=tmp_path / "many")
    first, second = load_file(alone)["w"], load_file(many[1])["w"]
    assert not torch.equal(first, second)
    # No single way makes what is mixed of two: not even differences within rounding pass.
    store(alone, metadata_of(alone), {"w": torch.cat([first[:200], second[200:]])})
    assert "tensor w differs" in str(verdict(alone, tmp_path / "in"))
    recipe = remake(read_checkpoint(many[0]), scan([tmp_path / "in"]))
    assert len(ways(recipe.tensors[0].kind, recipe.weights)) == 3


def store(path, metadata, tensors):
    """Write a file as phema lays it out."""
    found, _ = read_header(path)
    specs = {name: (e.dtype, e.shape) for name, e in found.items()}
    image = encode(specs, metadata, {}, read_checkpoint(path))
    data = bytearray(image.size_bytes)
    parts = [(image.offsets[name], raw_bytes(tensors[name])) for name in found]
    for offset, part in (*image.segments, *parts):
        data[offset : offset + len(part)] = part
    path.write_bytes(data)


def metadata_of(path):
    """The metadata of a safetensors file."""
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    return json.loads(data[8 : 8 + length])["__metadata__"]


@pytest.mark.parametrize("made", KINDS, indirect=True)
def test_flipped_bits_are_found(made):
    """Any bit of any part of any file: lengths, headers, paddings, checksums, index, values."""
    out, sources, files = made
    random = np.random.default_rng(0)
    for path in files:
        size = path.stat().st_size
        for position in {0, 3, 9, size - 1, *random.integers(0, size, 100 // len(files)).tolist()}:
            bit = int(random.integers(8))
            flip(path, position, bit)
            try:
                failed = verdict(out, sources)
            except PhemaError as error:
                failed = error
            assert failed is not None, (path.name, position)
            flip(path, position, bit)
    assert verdict(out, sources) is None


@pytest.mark.parametrize("made", KINDS, indirect=True)
def test_what_was_changed_fails_the_command(made):
    """A flipped bit of a value, an edited weight and a changed source: one line each."""
    out, sources, files = made
    checkpoint = read_checkpoint(out)
    extent = next(e for e in checkpoint.tensors.values() if e.dtype.kind == "float")
    flip(extent.file, extent.offset + 3 * extent.dtype.bits // 8)
    assert f"tensor {extent.name} differs" in (line := refused(out, sources))
    assert "element 3" in line
    flip(extent.file, extent.offset + 3 * extent.dtype.bits // 8)
    data = files[0].read_bytes()
    at = data.index(b"weight") + data[data.index(b"weight") :].index(b"0.") + 3
    flip(files[0], at)
    refused(out, sources)
    flip(files[0], at)
    source = sorted(sources.iterdir())[-1]
    extent = next(e for e in read_checkpoint(source).tensors.values() if e.dtype.bits == 16)
    flip(source, extent.offset + 1, 4)
    assert f"tensor {extent.name} differs" in refused(out, sources)


@pytest.mark.parametrize("made", ["shards"], indirect=True)
def test_wrong_shards_are_found(made):
    """A shard or the index missing, cut, of another output, or one too many; an index of others."""
    out, sources, files = made
    index = files[-1]
    (other,) = synthesize(sources, gamma=8, output=out.parent / "other", max_shard_size=7000)
    for path in files:
        kept = path.read_bytes()
        for found in (None, kept[:-1], (other / path.name).read_bytes()):
            path.unlink()
            if found is not None:
                path.write_bytes(found)
            assert fails(out, sources), path.name
            path.write_bytes(kept)
    more = files[0].with_name("model-00009-of-00009.safetensors")
    shutil.copy(files[0], more)
    assert "is no file of this output" in str(fails(out, sources))
    more.unlink()
    text = index.read_text()
    index.write_text(text.replace("00001-of", "00002-of"))
    assert fails(out, sources)
    renamed = files[0].rename(files[0].with_name("model-00009-of-00009.safetensors"))
    index.write_text(text.replace(files[0].name, renamed.name))
    assert "its files should be" in str(fails(out, sources))
    renamed.rename(files[0])
    index.write_text(text)
    assert fails(out, sources) is None
    files[1].unlink()
    assert files[1].name in refused(out, sources)


def fails(out, sources):
    """The error of an output that may be too broken to be read."""
    try:
        return verdict(out, sources)
    except PhemaError as error:
        return error


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("value", "tensor w differs from what its sources make, first in element 40"),
        ("size", "had size_bytes"),
        ("replaced", "differs from what its sources make, first in element 0"),
        ("tag", "its gamma is 10 by its entry gamma and 5 by its name"),
        ("name", "is not among the snapshots; pass the paths"),
        ("cut", "where its header says"),
        ("gone", "is not among the snapshots; pass the paths"),
    ],
)
def test_a_changed_source_is_found(sources, tmp_path, change, message):
    """Other values, another tensor, another snapshot, step or name, half a file, none at all."""
    (out,) = synthesize(sources, gamma=7, output=tmp_path / "o")
    before, path, after = sorted(sources.iterdir())[2:5]
    tensors = load_file(path)
    if change == "value":
        tensors["w"][5, 5] *= 2
        save_file(tensors, path, tags(path))
    elif change == "size":
        for other in sources.iterdir():
            save_file(load_file(other) | {"more": torch.ones(1)}, other, tags(other))
    elif change == "replaced":
        save_file(load_file(after), path, tags(path))
    elif change == "tag":
        save_file(tensors, path, tags(before))
    elif change == "name":
        path.rename(path.with_name(f"other-{path.name}"))
    elif change == "cut":
        path.write_bytes(path.read_bytes()[:-1])
    else:
        path.unlink()
    error = fails(out, sources)
    assert message in str(error)
    assert error.exit_code == 1


def rewritten(out, change):
    """An output whose provenance was edited by somebody who made its digest anew."""
    metadata = metadata_of(out)
    record = json.loads(metadata["phema"])
    del record["digest"]
    change(record)
    text = json.dumps(record, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    record["digest"] = hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
    metadata["phema"] = json.dumps(record, sort_keys=True, separators=(",", ":"))
    store(out, metadata, load_file(out))


def edit_weight(record):
    """Another weight than that of the sum."""
    record["sources"][0]["weight"] = record["sources"][0]["weight"] * 1.001 + 1e-3


@pytest.mark.parametrize("digest", ["old", "new"])
def test_an_edited_weight_is_found(sources, tmp_path, digest):
    """The metadata say what was not done, also where somebody made their digest anew."""
    (out,) = synthesize(sources, gamma=7, output=tmp_path / "o")
    kept = json.loads(metadata_of(out)["phema"])["digest"]
    rewritten(out, edit_weight)
    if digest == "old":
        metadata = metadata_of(out)
        record = json.loads(metadata["phema"]) | {"digest": kept}
        metadata["phema"] = json.dumps(record, sort_keys=True, separators=(",", ":"))
        store(out, metadata, load_file(out))
    line = refused(out, sources)
    expected = "provenance was changed" if digest == "old" else "differs from what its sources make"
    assert expected in line


ENTRIES = ("version", "method", "device", "target", "sources", "figures", "copy")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        *((lambda r, e=e: r.pop(e), f"lacks its {e}") for e in ENTRIES),
        (lambda r: r["sources"][0].pop("step"), "lacks the step of a source"),
        (lambda r: r["sources"].clear(), "that phema does not write"),
        (lambda r: r["sources"].append(7), "that phema does not write"),
        (lambda r: r["sources"][0].update(weight="1"), "a weight that is no number"),
        (lambda r: r["sources"][0].update(weight=float("nan")), "a weight that is no number"),
        (lambda r: r["sources"].pop(0), "differs from what its sources make"),
        (lambda r: r["target"].update(step=float("inf")), "that phema does not write"),
        (lambda r: r.update(copy=[1]), "that phema does not write"),
        (lambda r: r.update(schema="phema/synthesis/9"), "another schema"),
    ],
)
def test_incomplete_provenance_is_found(ckpts, tmp_path, change, message):
    """An entry is missing, or not what phema writes, though the digest is right."""
    (out,) = synthesize(ckpts, gamma=7, output=tmp_path / "o")
    rewritten(out, change)
    assert message in str(fails(out, ckpts))


@pytest.mark.parametrize("text", [None, "{", "[]", "7", '{"schema": "\\ud800"}', "[" * 100_000])
def test_what_records_no_provenance_is_refused(tmp_path, text):
    """Nothing, or nothing that is a record, whatever it is."""
    save_file({"w": torch.ones(1)}, tmp_path / "o.safetensors", text and {"phema": text})
    with pytest.raises(PhemaError, match="records no provenance"):
        provenance_of(read_checkpoint(tmp_path / "o.safetensors"))


def test_sources_of_one_name(tmp_path):
    """Snapshots of two directories that are called the same are told apart by their tags."""
    folders = [tmp_path / "a", tmp_path / "b"]
    for step, folder in enumerate(folders, start=1):
        for gamma in ("5", "10"):
            folder.mkdir(exist_ok=True)
            values = {"w": torch.rand(9)}
            save_file(values, folder / f"{gamma}.safetensors", {"step": str(step), "gamma": gamma})
    (out,) = synthesize(folders, gamma=7, output=tmp_path / "o")
    with pytest.raises(PhemaError, match="had step"):
        remake(read_checkpoint(out), scan(folders[:1]))


def test_a_digest_tells_what_rounding_hides(tmp_path):
    """A change of a source that weighs next to nothing shows in its digest alone."""
    (tmp_path / "in").mkdir()
    paths = [tmp_path / "in" / f"{step}.safetensors" for step in (1, 2)]
    for step, path in enumerate(paths, start=1):
        values = {"w": torch.ones(50).half(), "n": torch.arange(5) * step}
        save_file(values, path, {"gamma": "5", "step": str(step)})
    snapshots = scan([tmp_path / "in"]).require()
    outputs = [tmp_path / f"{name}.safetensors" for name in ("plain", "digest")]
    for out in outputs:
        recipe = recipe_of(snapshots, [[1e-9], [1 - 1e-9]], [out])
        execute(prepared(recipe) if out == outputs[1] else recipe)
    save_file(
        load_file(paths[0]) | {"w": torch.full((50,), 1.5).half()},
        paths[0],
        {"gamma": "5", "step": "1"},
    )
    assert verdict(outputs[0], tmp_path / "in") is None
    assert "the values of its source 1.safetensors have the digest" in str(
        verdict(outputs[1], tmp_path / "in")
    )
    recipe = remake(read_checkpoint(outputs[1]), scan([tmp_path / "in"]))
    assert verify(recipe).digests == 0
    rewritten(outputs[1], lambda record: record["sources"][0].pop("digest"))
    assert "not None" in str(verdict(outputs[1], tmp_path / "in"))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.float64])
def test_averages_of_a_gpu_are_compared_within_rounding(tmp_path, dtype):
    """Its sums have other bits: neighbours pass, and nothing that is further away."""
    write_run(tmp_path / "in", dtype=dtype, shape=(50, 20))
    (out,) = synthesize(tmp_path / "in", gamma=7, output=tmp_path / "o")
    tensors, metadata = load_file(out), metadata_of(out)
    rewritten(out, lambda record: record.update(device="cuda"))
    metadata = metadata_of(out)
    wide = {torch.float16: torch.int16, torch.float32: torch.int32, torch.float64: torch.int64}
    for units, passes in ((0, True), (1, dtype != torch.float16), (1000, False)):
        bits = tensors["w"].view(wide[dtype]).clone()
        bits[7, 3] += units
        store(out, metadata, tensors | {"w": bits.view(dtype)})
        assert (verdict(out, tmp_path / "in") is None) == passes, units


def test_what_is_near_to_a_sum():
    """Neighbours at a tie, numbers below the smallest normal one, infinities and NaN."""
    stored = torch.tensor([[1.0, 6e-8, torch.inf, torch.nan], [1.0009765625, 0, 1, 1]]).half()
    weights = np.array([0.5, 0.5])
    for held, expected in (
        ([1.0, 6e-8, torch.inf, torch.nan], [True, True, True, True]),
        ([1.001, 0, 1, 1], [True, True, False, False]),
        ([1.002, 1.2e-7, -torch.inf, torch.inf], [False, False, False, False]),
    ):
        assert near(torch.tensor(held).half(), stored, weights).tolist() == expected


def test_the_command_without_sources(sources, tmp_path):
    """Without PATH what the output says of itself is checked; --json says what was checked."""
    (out,) = synthesize(sources, gamma=7, output=tmp_path / "o", digest=True)
    assert phema("verify", out, "--json").json["checked"] is None
    document = phema("verify", out, sources, "--full", "--json").json
    assert document["schema"] == "phema/verify/1"
    assert document["checked"]["checked_bytes"] == document["checked"]["total_bytes"] > 0
    assert document["checked"]["sources"] == document["checked"]["digests"] == 8
    found = scan([sources])
    assert verify(remake(read_checkpoint(out), Scan(found.snapshots, ()))).digests == 0
