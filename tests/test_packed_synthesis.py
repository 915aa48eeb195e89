"""Averages of packed snapshots: sums of keyframes and residues, no snapshot unpacked on the way."""

import os
import subprocess
from dataclasses import replace
from pathlib import Path

import fsspec
import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from phema_cli import average
from phema_cli.errors import InputError
from phema_cli.estimate.sample import sample
from phema_cli.formats.chains import link_of
from phema_cli.request import Config, Request
from phema_cli.snapshots import scan
from phema_cli.synthesis import make_recipe, staging
from phema_cli.synthesis.execute import execute
from tests import warm
from tests.builders import phema, read_index
from tests.packing import packed_chain, tensor_of

TAGS = [(100.0 * step, gamma) for step in range(1, 9) for gamma in (5.0, 10.0)]


def run_of(seed=0, tags=TAGS, **fixed):
    """Smooth movement and a little noise; odd sizes, a scalar, integers, what never changes."""
    random = np.random.default_rng(seed)
    shapes = {"matrix": (70, 31), "vector": (129,), "scalar": (), "empty": (0, 3)}
    base = {n: random.standard_normal(s).astype(np.float32) for n, s in shapes.items()}
    pace = {n: random.standard_normal(s) for n, s in shapes.items()}
    return [
        {
            **{
                n: np.asarray(
                    base[n]
                    + 1e-2 * pace[n] * np.log(step / (gamma + 1))
                    + 1e-5 * random.standard_normal(s),
                    np.float32,
                )
                for n, s in shapes.items()
            },
            "steps": np.array(int(step)),
            "mask": np.array([True, False]),
            "constant": np.arange(5, dtype=np.float32),
            **fixed,
        }
        for step, gamma in tags
    ]


@pytest.fixture(params=[16, 8, 4])
def chain(request, tmp_path):
    """Packed snapshots in three chains."""
    return packed_chain(tmp_path / "in", run_of(), TAGS, request.param, keyframe_every=6)


def weights_file(path, rows):
    """A csv for ``--weights``."""
    path.write_text("snapshot,weight\n" + "".join(f"{n},{w!r}\n" for n, w in rows.items()))
    return path


@pytest.mark.parametrize("total", [1.0, 0.0, -3.0])
def test_any_weights(chain, tmp_path, total):
    """Sums of what readers have, in float64, whatever the weights and the chains sum to."""
    random = np.random.default_rng(1)
    given = random.standard_normal(len(chain))
    given[3] = 0.0
    given[-1] += total - given.sum()
    rows = {p.name: float(w) for p, w in zip(chain, given, strict=True)}
    file = weights_file(tmp_path / "w.csv", rows)
    out = tmp_path / "out.safetensors"
    assert phema("synthesize", tmp_path / "in", "--weights", file, "-o", out).code == 0
    made = load_file(out)
    for name in ("matrix", "vector", "scalar", "empty", "constant"):
        stored = np.array([tensor_of(path, name) for path in chain], np.float64)
        wanted = np.tensordot(given, stored, 1)
        size = np.abs(given).sum() * np.abs(stored).max(initial=0.0)
        np.testing.assert_allclose(made[name], wanted, rtol=0, atol=4e-7 * size)
    assert made["steps"] == 800
    assert made["mask"].tolist() == [True, False]
    assert phema("verify", out, tmp_path / "in", "--full").code == 0


def test_keyframes_that_cancel_each_other(tmp_path):
    """The difference of two snapshots of a chain is one of residues alone."""
    chain = packed_chain(tmp_path / "in", run_of(), TAGS, 8)
    rows = {chain[3].name: 1.0, chain[9].name: -1.0}
    file = weights_file(tmp_path / "w.csv", rows)
    out = tmp_path / "out.safetensors"
    assert phema("synthesize", tmp_path / "in", "--weights", file, "-o", out).code == 0
    wanted = tensor_of(chain[3], "matrix").astype(float) - tensor_of(chain[9], "matrix")
    moved = np.abs(wanted).max()
    np.testing.assert_allclose(load_file(out)["matrix"], wanted, rtol=0, atol=3e-7 + 1e-6 * moved)


def test_a_stored_snapshot_is_what_readers_have(chain, tmp_path):
    """The target that is a source comes out bit for bit, beside others too."""
    out = tmp_path / "out"
    asked = ["-g", "5,7", "--step", "500", "--trust-tags", "-o", f"{out}/"]
    done = phema("synthesize", tmp_path / "in", *asked)
    assert done.code == 0, done.err
    stored = next(p for p in chain if "step0000500-gamma5" in p.name)
    made = load_file(next(out.glob("*gamma5.safetensors")))
    for name in ("matrix", "vector", "scalar"):
        assert made[name].tobytes() == tensor_of(stored, name).tobytes()


def test_the_same_bytes_however_they_are_made(chain, tmp_path):
    """Workers, memory and other targets show in no byte."""
    source = chain[0].parent
    ways = {
        "alone": ("-g", "7"),
        "workers": ("-g", "7", "-j", "5", "--max-memory", "300KB"),
        "beside": ("-g", "3,7,14", "-j", "2"),
    }
    made = {}
    for name, way in ways.items():
        done = phema("synthesize", source, *way, "--trust-tags", "-o", f"{tmp_path / name}/")
        assert done.code == 0, done.err
        made[name] = next((tmp_path / name).glob("*gamma7.*")).read_bytes()
    assert made["workers"] == made["alone"] == made["beside"]


@pytest.mark.parametrize("bits", [16, 8, 4])
def test_targets_of_other_files_beside_each_other(tmp_path, bits):
    """One target takes the first and the last chain, others all: each as if it were alone."""
    chain = packed_chain(tmp_path / "in", run_of(), TAGS, bits, keyframe_every=5)
    rows = {chain[3].name: 0.25, chain[13].name: 0.75}
    file = weights_file(tmp_path / "w.csv", rows)
    made = []
    for beside in ([], ["-g", "7"]):
        out = tmp_path / f"out{len(made)}"
        asked = ["--weights", file, *beside, "--trust-tags", "-o", f"{out}/"]
        done = phema("synthesize", tmp_path / "in", *asked)
        assert done.code == 0, done.err
        made.append(sorted(out.glob("*.safetensors"), key=lambda p: "gamma" in p.name)[0])
    assert made[0].read_bytes() == made[1].read_bytes()
    wanted = sum(
        w * tensor_of(tmp_path / "in" / n, "matrix").astype(float) for n, w in rows.items()
    )
    np.testing.assert_allclose(load_file(made[0])["matrix"], wanted, rtol=0, atol=2e-6)


def test_packed_beside_plain_ones(tmp_path):
    """Snapshots of float16 and packed ones in one directory are averaged as numbers."""
    arrays = run_of()
    chain = packed_chain(tmp_path / "in", arrays[:10], TAGS[:10], 8)
    stored = {path.name: tensor_of(path, "matrix").astype(float) for path in chain}
    for (step, gamma), tensors in zip(TAGS[10:], arrays[10:], strict=True):
        narrow = {n: a.astype("f2") if a.dtype == np.float32 else a for n, a in tensors.items()}
        name = f"ema-step{int(step):07d}-gamma{gamma:g}.safetensors"
        save_file(narrow, tmp_path / "in" / name, {"gamma": repr(gamma), "step": repr(step)})
        stored[name] = narrow["matrix"].astype(float)
    out = tmp_path / "out.safetensors"
    asked = ["-g", "7", "--trust-tags", "--dtype", "float32", "-o", out]
    done = phema("synthesize", tmp_path / "in", *asked)
    assert done.code == 0, done.err
    document = phema("weights", tmp_path / "in", "-g", "7", "--trust-tags", "--json").json
    weights = {s["name"]: s["weight"] for s in document["targets"][0]["sources"]}
    wanted = sum(weight * stored[name] for name, weight in weights.items())
    np.testing.assert_allclose(load_file(out)["matrix"], wanted, rtol=0, atol=3e-6)


def test_packed_beside_two_averages_of_one_file(tmp_path):
    """Raw weights and their average share a file, and each weighs what it should."""
    random = np.random.default_rng(0)
    chain = packed_chain(tmp_path / "in", run_of(), TAGS, 8)
    values = {name: random.standard_normal((70, 31)).astype("f4") for name in ("model", "ema")}
    rest = {k: torch.from_numpy(v) for k, v in run_of()[-1].items()}
    both = {k: rest | {"matrix": torch.from_numpy(v)} for k, v in values.items()}
    torch.save(both | {"step": 900}, tmp_path / "in" / "both-step0000900.pt")
    stored = {path.name: tensor_of(path, "matrix").astype(float) for path in chain}
    config = Config(average="exponential:beta=0.99", trust_tags=True)
    asked = Request(gamma=9, output=tmp_path / "o.safetensors", sample=False, config=config)
    recipe, _ = make_recipe(scan([tmp_path / "in"], config), asked)
    keys = [source.checkpoint.key for source in recipe.sources]
    assert sorted(filter(None, keys)) == ["ema", "model"]
    wanted = sum(
        weight * (values[key].astype(float) if key else stored[source.checkpoint.path.name])
        for key, source, weight in zip(keys, recipe.sources, recipe.weights[:, 0], strict=True)
    )
    execute(recipe)
    np.testing.assert_allclose(
        load_file(tmp_path / "o.safetensors")["matrix"], wanted, rtol=0, atol=3e-6
    )


def test_the_sample_knows_how_residues_are_rounded(chain):
    """The error of a snapshot is a uniform one within the steps of its own blocks."""
    snapshots = scan([chain[0].parent]).snapshots
    found = sample(snapshots)
    float32 = 1e-15
    truth = {(step, gamma): arrays for (step, gamma), arrays in zip(TAGS, run_of(), strict=True)}
    for row, (snapshot, foretold) in enumerate(zip(snapshots, found.errors, strict=True)):
        if link_of(snapshot.checkpoint) is None:
            assert foretold == 0.0
            continue
        exact = truth[snapshot.tag.step, snapshot.tag.gamma]
        differences = [
            tensor_of(chain[0].parent / snapshot.name, n) - exact[n].astype(float)
            for n in ("matrix", "vector")
        ]
        true = np.mean(np.concatenate([d.ravel() for d in differences]) ** 2)
        # Steps below float32's do not show in what is read.
        below = foretold < float32 and true < float32
        assert below or 0.5 < foretold / true < 2, row


def test_inspect_says_how_files_are_packed(tmp_path):
    """Bits, keyframes and what a file follows stand in the table and in the document."""
    packed_chain(tmp_path / "in", run_of(), TAGS, 8, keyframe_every=4)
    document = phema("inspect", tmp_path / "in", "--json", "--trust-tags").json
    packing = [snapshot["packing"] for snapshot in document["snapshots"]]
    assert packing[0] == {"bits": None, "keyframe": None, "follows": []}
    assert packing[3]["bits"] == 8
    assert packing[3]["keyframe"] == document["snapshots"][0]["name"]
    assert packing[3]["follows"] == [document["snapshots"][i]["name"] for i in (2, 1)]
    assert {s["files"] for s in document["snapshots"]} == {1}
    assert document["snapshots"][0]["size_bytes"] > 2 * document["snapshots"][1]["size_bytes"]
    shown = phema("inspect", tmp_path / "in", "-v", "--trust-tags", COLUMNS="120").out
    assert "keyframe" in shown
    assert "8 bits, follows 3" in shown


def test_a_missing_file_takes_those_that_need_it_along(tmp_path):
    """Each file up to the next keyframe is named, with the one that it lacks."""
    chain = packed_chain(tmp_path / "in", run_of(), TAGS, 8, keyframe_every=6)
    chain[2].unlink()
    done = phema("inspect", tmp_path / "in", "--trust-tags", "--json")
    assert done.code == 3
    errors = [f for f in done.json["findings"] if f["level"] == "error"]
    assert [Path(f["where"]).name for f in errors] == sorted(path.name for path in chain[3:6])
    assert all("is missing" in f["what"] for f in errors)


@pytest.mark.parametrize("place", [-1, -700, -3000])
def test_a_flipped_bit_in_the_data(tmp_path, place):
    """Whichever it is, of a file that is followed too: exit 3, one line, no output."""
    chain = packed_chain(tmp_path / "in", run_of(), TAGS, 16)
    damaged = chain[3]
    data = bytearray(damaged.read_bytes())
    data[place] ^= 1
    damaged.write_bytes(data)
    asked = ["synthesize", tmp_path / "in", "-g", "7", "--trust-tags", "-q"]
    done = phema(*asked, "-o", tmp_path / "out.safetensors")
    assert (done.code, done.err.count("\n")) == (3, 1)
    assert f"{damaged.name}: its tensors have other bytes than when it was written" in done.err
    assert [p.name for p in tmp_path.iterdir()] == ["in"]
    with pytest.raises(InputError, match="other bytes"):
        dict(average(tmp_path / "in", gamma=7, config=Config(trust_tags=True)))


@pytest.mark.linux("it tells how much a process has read")
@pytest.mark.parametrize("jobs", [1, 3])
def test_packed_files_are_read_once(tmp_path, jobs):
    """They are checked by what is read for the sums, but for what is in none of them."""
    random = np.random.default_rng(0)
    walk = random.standard_normal((len(TAGS), 300_000)).astype(np.float32).cumsum(axis=0)
    states = [{"w": row, "steps": np.array(i)} for i, row in enumerate(walk)]
    packed_chain(tmp_path / "in", states, TAGS, 8)
    found = scan([tmp_path / "in"], Config(trust_tags=True))
    request = Request(gamma=(7.0,), output=str(tmp_path / "out.safetensors"), jobs=jobs)
    recipe, _ = make_recipe(found, request)
    before = read_bytes()
    execute(recipe)
    taken = read_bytes() - before
    stored = sum(path.stat().st_size for path in (tmp_path / "in").iterdir())
    assert stored <= taken < 1.1 * stored


def read_bytes():
    """How many bytes this process has read from files."""
    return int(Path("/proc/self/io").read_text(encoding="utf-8").split()[1])


@pytest.mark.parametrize("jobs", [1, 2])
def test_damage_before_and_after_an_interruption(tmp_path, monkeypatch, jobs):
    """What an earlier run has read is read again, so that damage to it does not go unseen."""
    chain = packed_chain(tmp_path / "in", run_of(), TAGS, 8)
    found = scan([tmp_path / "in"], Config(trust_tags=True))
    request = Request(gamma=(7.0,), output=str(tmp_path / "out.safetensors"), jobs=jobs)
    recipe, _ = make_recipe(found, request)
    recipe = replace(recipe, tile_elements=32)
    plan = next(t for t in recipe.tensors if t.kind.packed)
    first = read_index(chain[3]).tensors[plan.name]
    monkeypatch.setattr(staging, "_RECORDED_BYTES", 1000)
    monkeypatch.setattr("phema_cli.system.pools._REPORT_SECONDS", 0.001)

    def stop(_):
        if any('"done"' in p.read_text() for p in tmp_path.glob("*.partial/journal")):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        execute(recipe, progress=stop)
    flip(chain[3], first.offset)
    with pytest.raises(InputError, match="other bytes"):
        execute(recipe)
    flip(chain[3], first.offset)
    execute(recipe)


def flip(path, place):
    """Flip a bit as a disk does it: no time of a change is noted."""
    status = path.stat()
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def test_packed_files_behind_a_url(tmp_path):
    """What a file follows is found beside it, wherever that is; the same bytes."""
    chain = packed_chain(tmp_path / "in", run_of(), TAGS, 8, keyframe_every=6)
    system = fsspec.filesystem("memory")
    for path in chain:
        system.pipe_file(f"/packed-run/{path.name}", path.read_bytes())
    made = [
        dict(average(place, gamma=7, config=Config(trust_tags=True)))
        for place in (tmp_path / "in", "memory://packed-run")
    ]
    system.rm("/packed-run", recursive=True)
    assert made[0].keys() == made[1].keys()
    assert all(torch.equal(made[0][name], made[1][name]) for name in made[0])


@pytest.mark.slow
def test_packed_files_on_two_ranks(tmp_path):
    """Each rank reads its share of the residues; the same bytes as in one process."""
    packed_chain(tmp_path / "in", run_of(), TAGS, 4, keyframe_every=6)
    asked = ["synthesize", str(tmp_path / "in"), "-g", "7", "--trust-tags", "-q", "-o"]
    assert phema(*asked, tmp_path / "one.safetensors").code == 0
    launcher = [warm.python(), "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    command = [*launcher, "-m", "phema_cli", *asked, str(tmp_path / "two.safetensors")]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    subprocess.run(command, check=True, env=environment, capture_output=True, timeout=300)
    one, two = (tmp_path / f"{name}.safetensors" for name in ("one", "two"))
    assert one.read_bytes() == two.read_bytes()
