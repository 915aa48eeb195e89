"""phema verify: passes on what phema wrote, and fails on anything that was changed since."""

import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from phema_cli.errors import PhemaError
from phema_cli.snapshots import scan
from phema_cli.snapshots.scan import read_checkpoint
from phema_cli.synthesis.remaking import remake
from phema_cli.synthesis.verifying import verify
from tests.builders import phema, write_run


@pytest.fixture
def sources(tmp_path):
    """Eight snapshots of a float16 and a float32 run's worth of tensors, some of them tied."""
    write_run(tmp_path / "in", dtype=torch.float16, shape=(300, 7))
    for path in (tmp_path / "in").iterdir():
        tensors = load_file(path)
        tensors["wide"] = tensors["w"].float() + 1e-4
        metadata = dict(zip(("step", "gamma"), path.stem[8:].split("-gamma"), strict=True))
        save_file(tensors, path, metadata)
    return tmp_path / "in"


def written(sources, folder, *options):
    """The outputs of a synthesis."""
    run = phema("synthesize", "-g", "7", *options, sources, "-q", "-o", folder)
    assert run.code == 0, run.err
    return [Path(line) for line in run.out.split()]


def check(out, *more):
    """Exit code and messages of phema verify."""
    run = phema("verify", out, *more)
    return run.code, run.out + run.err


def verdict(out, sources):
    """What the command does, without a process: None where the output passes, else the error."""
    try:
        verify(remake(read_checkpoint(out), scan([sources])), full=True)
    except PhemaError as error:
        return error
    return None


@pytest.mark.parametrize(
    "options",
    [
        [],
        ["--max-shard-size", "7KB"],
        ["--format", "torch"],
        ["--dtype", "bfloat16"],
        ["--copy", "wide"],
        ["-g", "5,6,8,9,10,11,12,13"],
        ["--profile", "uniform:last=0.25"],
        ["--method", "projection", "--step", "60", "--no-sample"],
    ],
)
def test_what_was_written_passes(sources, tmp_path, options):
    """Every kind of output, alone and among many targets, with and without its sources."""
    outputs = written(sources, tmp_path / "o", *options)
    for out in outputs:
        assert verdict(out, sources) is None
    for out in outputs[:2]:
        for more in ([sources, "--full"], []):
            code, text = check(out, *more)
            assert code == 0, text


def test_flipped_bits_are_found(sources, tmp_path):
    """Any bit of any part of the file: length, header, metadata, values."""
    (out,) = written(sources, tmp_path / "o", "--format", "safetensors")
    data = bytearray(out.read_bytes())
    random = np.random.default_rng(0)
    for position in [3, 9, *random.integers(8, len(data), 60)]:
        broken = bytearray(data)
        broken[position] ^= 1 << int(random.integers(8))
        (tmp_path / "broken.safetensors").write_bytes(broken)
        assert verdict(tmp_path / "broken.safetensors", sources) is not None, position
    code, text = check(tmp_path / "broken.safetensors", sources, "--full")
    assert (code, text.count("\n")) == (1, 1)


def test_flipped_bits_of_a_zip_are_found(sources, tmp_path):
    """A .pt file: its pickle, its checksums, its directory and its values."""
    (out,) = written(sources, tmp_path / "o", "--format", "torch")
    data = bytearray(out.read_bytes())
    random = np.random.default_rng(0)
    for position in random.integers(0, len(data), 60):
        broken = bytearray(data)
        broken[position] ^= 1 << int(random.integers(8))
        (tmp_path / "broken.pt").write_bytes(broken)
        assert verdict(tmp_path / "broken.pt", sources) is not None, position


def test_the_tensor_and_the_element_are_named(sources, tmp_path):
    """Tensors that lie one after the other are told apart."""
    (out,) = written(sources, tmp_path / "o")
    tensors = load_file(out)
    head = int.from_bytes(out.read_bytes()[:8], "little")
    entry = json.loads(out.read_bytes()[8 : 8 + head])["w"]
    at = 8 + head + entry["data_offsets"][0] + 2 * 77
    with out.open("r+b") as file:
        file.seek(at)
        file.write((tensors["w"].view(-1)[77] * 1.5).numpy().tobytes())
    code, text = check(out, sources, "--full")
    assert code == 1
    assert "tensor w differs" in text
    assert "element 77" in text


def test_a_changed_source_is_found(sources, tmp_path):
    """Other values, another size, another step, no source at all."""
    (out,) = written(sources, tmp_path / "o")
    for change in ("value", "size", "step", "gone"):
        folder = tmp_path / change
        shutil.copytree(sources, folder)
        path = sorted(folder.iterdir())[3]
        tensors = load_file(path)
        metadata = dict(zip(("step", "gamma"), path.stem[8:].split("-gamma"), strict=True))
        if change == "value":
            tensors["w"][5, 5] *= 2
        if change == "step":
            metadata["step"] = "51"
            path.unlink()
            path = path.with_name("ema.safetensors")
        path.unlink(missing_ok=True)
        if change == "size":
            for other in folder.iterdir():
                save_file(load_file(other) | {"more": torch.ones(1)}, other, {})
            tensors["more"] = torch.ones(1)
        if change != "gone":
            save_file(tensors, path, metadata)
        code, text = check(out, folder, "--full")
        assert code in {1, 3}, (change, text)
        assert text.count("\n") == 1


@pytest.mark.parametrize("digest", ["old", "new"])
def test_an_edited_weight_is_found(sources, tmp_path, digest):
    """The metadata say what was not done, also where somebody made their digest anew."""
    (out,) = written(sources, tmp_path / "o")
    data = out.read_bytes()
    head = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + head])
    record = json.loads(header["__metadata__"]["phema"])
    record["sources"][0]["weight"] = record["sources"][0]["weight"] * 1.001 + 1e-3
    if digest == "new":
        del record["digest"]
        text = json.dumps(record, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
        record["digest"] = hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
    tensors, metadata = load_file(out), header["__metadata__"]
    metadata["phema"] = json.dumps(record, sort_keys=True, separators=(",", ":"))
    save_file(tensors, tmp_path / "edited.safetensors", metadata)
    code, text = check(tmp_path / "edited.safetensors", sources, "--full")
    assert code == 1
    assert ("provenance was changed" in text) == (digest == "old")


def test_missing_shards_are_found(sources, tmp_path):
    """A shard, the index, or the provenance is not there."""
    (out,) = written(sources, tmp_path / "o", "--max-shard-size", "7KB")
    for path in sorted((tmp_path / "o").rglob("model*")):
        hidden = path.rename(tmp_path / "hidden")
        assert check(out, sources, "--full")[0] in {1, 3}, path.name
        hidden.rename(path)
    assert check(out, sources, "--full")[0] == 0
    save_file({"w": torch.ones(1)}, tmp_path / "plain.safetensors")
    code, text = check(tmp_path / "plain.safetensors")
    assert code == 1
    assert "records no provenance" in text


def test_the_document_says_what_was_checked(sources, tmp_path):
    """--json: bytes checked of all."""
    (out,) = written(sources, tmp_path / "o")
    document = phema("verify", out, sources, "--full", "--json").json
    assert document["schema"] == "phema/verify/1"
    assert document["checked"]["checked_bytes"] == document["checked"]["total_bytes"] > 0
    assert document["checked"]["sources"] == 8
    assert phema("verify", out, "--json").json["checked"] is None
