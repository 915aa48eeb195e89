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
from phema_cli.verify import check
from phema_cli.verify.check import verify
from phema_cli.verify.recipe import provenance_of, remake
from tests.builders import phema, synthesize, write_run
from tests.edm2_files import network, write_edm2
from tests.schemas import assert_fits
from tests.torch_files import raw_bytes

#: how an output of each kind is asked for.
KINDS = {
    "safetensors": {},
    "torch": {"format": "torch"},
    "edm2": {"format": "edm2"},
    "shards": {"max_shard_size": 7000, "side_files": False},
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
        {"max_shard_size": 7000},
        {"format": "torch"},
        {"dtype": "bfloat16"},
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
    """Pickles with tied weights, of many targets."""
    gammas = [gamma_from_sigma_rel(0.06 + 0.004 * i) for i in range(9)]
    outputs = synthesize(pickles, gamma=gammas, output=tmp_path / "o", format="edm2", sample=False)
    assert len(outputs) == 9


def test_averages_of_the_first_version_may_be_neighbours():
    """Floats one unit apart pass where bits may differ, across zero too; two units do not."""
    near = [(1.0, np.nextafter(np.float16(1), np.float16(2))), (0.0, -6e-8), (-1.0, -1.0)]
    far = [(1.0, 1.0 + 2**-9), (6e-8, -6e-8), (0.0, 1.2e-7), (1.0, -1.0), (1.0, np.inf)]
    for pairs, least in ((near, 0), (far, len(far))):
        one, other = (np.array(half, np.float16) for half in zip(*pairs, strict=True))
        places = check._far_apart(bytearray(one.tobytes()), bytearray(other.tobytes()), 16)  # noqa: SLF001
        assert len(places) == least, pairs


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
    assert "synthesize it again" in line
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
    assert "does not belong to this output" in str(fails(out, sources))
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


ENTRIES = ("version", "method", "target", "sources", "figures", "copy")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        *((lambda r, e=e: r.pop(e), f"lacks its {e}") for e in ENTRIES),
        (lambda r: r["sources"][0].pop("step"), "lacks the step of a source"),
        (lambda r: r["sources"].clear(), "that phema does not write"),
        (lambda r: r["sources"].append(7), "that phema does not write"),
        (lambda r: r["sources"][0].update(weight="1"), "a weight that is not a number"),
        (lambda r: r["sources"][0].update(weight=float("nan")), "a weight that is not a number"),
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
    with pytest.raises(PhemaError, match="has no provenance"):
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


#: an output of ``phema synthesize --digest`` of 0.1, header and values.
RELEASED = (
    rb'{"__metadata__":{"format":"pt","phema":"{\"copy\":[],\"device\":\"cpu\",'
    rb"\"digest\":\"bde1e1c37d0434bf613eede4ea621805\","
    rb"\"figures\":{\"expected_error\":0.018014951959348643,\"expected_rms\":null,"
    rb"\"noise_gain\":0.7174369486815956,\"profile_error\":0.03219590576389233,"
    rb"\"sigma_error\":1.9406731851368717,\"weight_sum\":1.0},\"method\":\"blue\","
    rb"\"schema\":\"phema/synthesis/1\",\"sources\":[{\"average\":\"gamma 5\","
    rb"\"digest\":\"902d9114bcb0ec5ee13928e7771150d47623fdba7385dc53dfa50ab9e1b40a8a\","
    rb"\"gamma\":5.0,\"name\":\"1-5.safetensors\",\"size_bytes\":32,\"step\":1.0,\"time\":1.0,"
    rb"\"weight\":-0.0019816578352362946},{\"average\":\"gamma 10\","
    rb"\"digest\":\"6c30b5b737682ad2a5ea39a9e458ad3d064ec09783d100c84587a55843902859\","
    rb"\"gamma\":10.0,\"name\":\"1-10.safetensors\",\"size_bytes\":32,\"step\":1.0,\"time\":1.0,"
    rb"\"weight\":-0.008844622176334749},{\"average\":\"gamma 5\","
    rb"\"digest\":\"1167c78590d81b34fd7c16e96f768f0d19145d7e82a8b89211d1504142ca2e6c\","
    rb"\"gamma\":5.0,\"name\":\"2-5.safetensors\",\"size_bytes\":32,\"step\":2.0,\"time\":2.0,"
    rb"\"weight\":0.5487071167423065},{\"average\":\"gamma 10\","
    rb"\"digest\":\"56e916565e423ed5786a875127b43850ba606449f11d1515b3423d44a80f63b1\","
    rb"\"gamma\":10.0,\"name\":\"2-10.safetensors\",\"size_bytes\":32,\"step\":2.0,\"time\":2.0,"
    rb"\"weight\":0.4621191632692645}],\"target\":{\"gamma\":7,\"profile\":\"gamma 7\","
    rb'\"sigma_rel\":0.09938079899999065,\"step\":2.0},\"version\":\"0.1.0\"}"},'
    rb'"n":{"dtype":"I64","shape":[1],"data_offsets":[0,8]},'
    rb'"w":{"dtype":"F32","shape":[6],"data_offsets":[8,32]}}      '
)
RELEASED_VALUES = bytes.fromhex("02000000000000005c0a9f3e97c2a73fa6f0894053f814412a7c82412a7cca41")


def test_outputs_of_the_released_version_verify(tmp_path):
    """An output as 0.1 wrote it, with digests of its sources: they are ignored."""
    for step in (1, 2):
        for gamma in (5, 10):
            values = {"w": torch.arange(6.0).square() + step / gamma, "n": torch.tensor([step])}
            path = tmp_path / "in" / f"{step}-{gamma}.safetensors"
            path.parent.mkdir(exist_ok=True)
            save_file(values, path, {"gamma": str(gamma), "step": str(step)})
    out = tmp_path / "out.safetensors"
    out.write_bytes(struct.pack("<Q", len(RELEASED)) + RELEASED + RELEASED_VALUES)
    assert_fits(json.loads(metadata_of(out)["phema"]))
    assert verdict(out, tmp_path / "in") is None
    flip(out, 8 + len(RELEASED) + 8 + 4)
    assert "tensor w differs from what its sources make, first in element 1" in str(
        verdict(out, tmp_path / "in")
    )


@pytest.mark.parametrize("ending", ["safetensors", "pt"])
def test_a_broken_output_is_copied_or_made_again(sources, tmp_path, ending):
    """No remedy names an option that leaves out one of the files that the command is about."""
    out = tmp_path / f"out.{ending}"
    synthesize(sources, gamma=7, output=out)
    for size in (out.stat().st_size - 20, 50, 0):
        with out.open("r+b") as file:
            file.truncate(size)
        done = phema("verify", out, sources)
        assert done.code == 1
        assert done.err.endswith("; copy it again, or synthesize it again\n")
        for pair in ((out, sources / "ema-step0000025-gamma5.safetensors"), (out, out)):
            done = phema("diff", *pair)
            assert done.code == 3
            assert done.err.endswith("; copy it again\n")


@pytest.mark.parametrize(
    "said",
    [
        ("--raw",),
        ("--gammas", 5, "--update-every", 3, "--copy", "b"),
        ("--average", "exponential:beta=0.9", "--exclude", "*20.pt", "--pattern", r"(?P<step>\d+)"),
        ("--key", "w", "--raw", "--select", "*.pt"),
    ],
)
def test_options_of_the_synthesis_are_recorded(tmp_path, said):
    """What was said of the snapshots needs not be said again; what is said now goes before."""
    (tmp_path / "in").mkdir()
    for step in (10, 20, 30, 40):
        state = {"w": {"a": torch.randn(4, 5), "b": torch.randn(3)}}
        state = state if "--key" in said else state["w"]
        torch.save(state, tmp_path / f"in/weights-step{step}.pt")
    asked = ("synthesize", tmp_path / "in", "-g", 3, *said, "--trust-tags", "--no-sample")
    for name in ("o.safetensors", "p.safetensors"):
        done = phema(*asked, "-o", tmp_path / name)
        assert done.code == 0, done.err
    out = tmp_path / "o.safetensors"
    assert out.read_bytes() == (tmp_path / "p.safetensors").read_bytes()
    assert phema("verify", out, tmp_path / "in", "--full").code == 0
    assert phema("verify", out, tmp_path / "in", *said[:2], "--gammas", 7).code != 0
    record = provenance_of(read_checkpoint(out))
    assert_fits(record)
    config = said[0].removeprefix("--").replace("-", "_")
    assert config in record["options"]
    # What is no value of an option counts as if it were not there.
    rewritten(out, lambda record: record["options"].update(dict.fromkeys(record["options"], 1.5)))
    assert phema("verify", out, tmp_path / "in").code == 1


def test_an_output_of_a_gpu_is_refused(sources, tmp_path):
    """0.1 could average on a GPU: its bits are not made again, and the message says so."""
    (out,) = synthesize(sources, gamma=7, output=tmp_path / "o")
    rewritten(out, lambda record: record.update(device="cuda"))
    assert "was averaged on a GPU" in refused(out, sources)


def test_the_command_without_sources(sources, tmp_path):
    """Without PATH what the output says of itself is checked; --json says what was checked."""
    (out,) = synthesize(sources, gamma=7, output=tmp_path / "o")
    assert phema("verify", out, "--json").json["checked"] is None
    document = phema("verify", out, sources, "--full", "--json").json
    assert document["schema"] == "phema/verify/1"
    assert document["checked"]["checked_bytes"] == document["checked"]["total_bytes"] > 0
    assert document["checked"]["sources"] == 8
