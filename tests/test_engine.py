"""The engine: against naive sums in float64, whatever the shapes, dtypes, chunks and jobs."""

import hashlib
import json
import math
import os
import resource
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import phema_cli
from phema_cli import scan
from phema_cli.errors import CheckFailedError, InputError, StorageError, UsageError
from phema_cli.formats.base import DTYPES
from phema_cli.profiles import PowerProfile
from phema_cli.solver import storage_noise
from phema_cli.synthesis import Request, find_dtype, make_recipe
from phema_cli.synthesis.layout import is_complete
from phema_cli.system.files import copy
from tests.builders import (
    ema_weights,
    execute,
    phema,
    read_index,
    recipe_of,
    synthesize,
    write_run,
)
from tests.verified import verify_output

FLOATS = {name: getattr(torch, d.label) for name, d in DTYPES.items() if d.kind == "float"}
#: distance between 1 and the next number, in which rounding is counted.
EPS = {name: 2.0 ** -DTYPES[name].mantissa_bits for name in FLOATS}


def write_snapshots(directory, tensors):
    """One snapshot for each dict of tensors, all of gamma 5."""
    directory.mkdir(exist_ok=True)
    for step, values in enumerate(tensors, start=1):
        metadata = {"gamma": "5.0", "step": str(step)}
        save_file(values, directory / f"s{step:02d}.safetensors", metadata)
    return scan([directory]).require()


shapes = st.lists(st.integers(1, 9), max_size=3).map(tuple)


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_sums_against_float64(tmp_path_factory, data):
    """Each output element is the weighted sum in float64, rounded once more at most."""
    folder = tmp_path_factory.mktemp("run")
    source = data.draw(st.sampled_from(sorted(FLOATS)))
    target = data.draw(st.sampled_from([None, *sorted(FLOATS)]))
    # Scalars alone are no model.
    names = {"w": (3,), **data.draw(st.dictionaries(st.sampled_from("abcdef"), shapes))}
    n, k = data.draw(st.integers(1, 5)), data.draw(st.integers(1, 3))
    random = np.random.default_rng(data.draw(st.integers(0, 99)))
    values = [
        {
            name: torch.from_numpy(random.uniform(0.5, 1.5, shape)).to(FLOATS[source])
            for name, shape in names.items()
        }
        for _ in range(n)
    ]
    snapshots = write_snapshots(folder, values)
    weights = random.uniform(-1, 1, (n, k))
    weights += (1 - weights.sum(axis=0)) / n
    outputs = [folder / "out" / f"{i}.safetensors" for i in range(k)]
    recipe = recipe_of(
        snapshots,
        weights,
        outputs,
        dtype=None if target is None else DTYPES[target].label,
        jobs=data.draw(st.integers(1, 3)),
    )
    recipe = replace(recipe, tile_elements=2 * data.draw(st.integers(1, 40)))
    execute(recipe)
    out = target or source
    for i, path in enumerate(outputs):
        written = load_file(path)
        assert set(written) == set(names)
        for name, shape in names.items():
            assert written[name].dtype == FLOATS[out]
            assert tuple(written[name].shape) == shape
            exact = sum(w * v[name].double() for w, v in zip(weights[:, i], values, strict=True))
            size = np.abs(weights[:, i]).sum() * 1.5
            slack = EPS[out] * exact.abs() + 2e-6 * size * (1 if source != "F64" else 1e-8)
            if out == "F64" and source == "F64":
                slack = 1e-14 * size
            slack += torch.finfo(FLOATS[out]).smallest_normal * torch.finfo(FLOATS[out]).eps
            assert bool(((written[name].double() - exact).abs() <= slack).all()), (
                name,
                written[name],
                exact,
            )


@pytest.mark.parametrize("dtype", sorted(FLOATS))
def test_stored_snapshot_comes_back_bit_for_bit(tmp_path, dtype):
    """A target with weight 1 on one source is that source, also next to other targets."""
    random = np.random.default_rng(0)
    values = [
        {"w": torch.from_numpy(random.standard_normal((33,)) * 3).to(FLOATS[dtype])}
        for _ in range(3)
    ]
    snapshots = write_snapshots(tmp_path / "in", values)
    paths = [tmp_path / "a.safetensors", tmp_path / "b.safetensors"]
    execute(recipe_of(snapshots, [[0, 0.3], [1, 0.3], [0, 0.4]], paths))
    assert torch.equal(load_file(paths[0])["w"].view(torch.uint8), values[1]["w"].view(torch.uint8))


@pytest.mark.parametrize("dtype", sorted(FLOATS))
def test_what_is_alike_everywhere_comes_out_alike(tmp_path, dtype):
    """A tensor with the same bits in every source has them in the output, for any weights."""
    same = torch.linspace(-2, 2, 50).to(FLOATS[dtype])
    snapshots = write_snapshots(tmp_path / "in", [{"w": same}] * 4)
    execute(recipe_of(snapshots, [[1e6], [-1e6], [0.25], [0.75]], [tmp_path / "o.safetensors"]))
    assert torch.equal(
        load_file(tmp_path / "o.safetensors")["w"].view(torch.uint8), same.view(torch.uint8)
    )


def test_weights_that_do_not_sum_to_one_are_kept(tmp_path):
    """Weights of ``projection`` are used as they are."""
    values = [{"w": torch.tensor([2.0, 4.0])}, {"w": torch.tensor([4.0, 8.0])}]
    snapshots = write_snapshots(tmp_path / "in", values)
    execute(recipe_of(snapshots, [[0.25], [0.5]], [tmp_path / "o.safetensors"]))
    assert load_file(tmp_path / "o.safetensors")["w"].tolist() == [2.5, 5.0]


def test_large_cancelling_weights_lose_little(tmp_path):
    """Sums of weights of 1e3 on nearly equal values keep float32 accuracy of the result."""
    random = np.random.default_rng(0)
    base = random.standard_normal(1000)
    values = [
        {"w": torch.from_numpy(base + 1e-3 * random.standard_normal(1000)).float()}
        for _ in range(40)
    ]
    weights = random.uniform(-50, 50, (40, 1))
    weights += (1 - weights.sum()) / 40
    snapshots = write_snapshots(tmp_path / "in", values)
    execute(recipe_of(snapshots, weights, [tmp_path / "o.safetensors"]))
    exact = sum(w * v["w"].double() for w, v in zip(weights[:, 0], values, strict=True))
    error = (load_file(tmp_path / "o.safetensors")["w"].double() - exact).norm() / exact.norm()
    assert error < 2e-7


def test_true_ema_is_met(tmp_path):
    """Synthesized from 2 x 20 snapshots, gamma 7 lies within the expected error of the true EMA."""
    steps = tuple(range(20, 401, 20))
    walk = write_run(tmp_path / "ckpts", steps=steps, shape=(200,))
    recipe, (path,) = make_recipe(
        scan([tmp_path / "ckpts"]), Request(gamma=(7.0,), output=str(tmp_path / "o.safetensors"))
    )
    execute(recipe)
    at = np.arange(1, 401)
    truth = ema_weights(7.0, 400, at) @ walk
    error = np.linalg.norm(load_file(path)["w"].double().numpy() - truth)
    moved = np.linalg.norm(walk[-1] - truth)
    assert error / moved < 5 * recipe.figures[0].expected_error
    assert error / moved < 1e-2


def test_integers_come_from_the_newest_source_not_after_the_target(ckpts, tmp_path):
    """Integers are copied: from the last snapshot, or for an earlier step the one before."""
    for step, count in ((None, 100), (60, 50), (10, 25)):
        path = tmp_path / f"{step}.safetensors"
        synthesize(ckpts, gamma=7, step=step, output=path)
        assert load_file(path)["count"].item() == count


def test_copied_tensors_are_not_averaged(ckpts, tmp_path):
    """--copy takes a float tensor from the newest snapshot, in its stored type."""
    found = scan([ckpts])
    recipe, (path,) = make_recipe(
        # What is left to be averaged is the same everywhere.
        replace(found, copy=("w",), trust_tags=True),
        Request(gamma=(7.0,), output=str(tmp_path / "o.safetensors"), dtype="float16"),
    )
    execute(recipe)
    newest = load_file(found.snapshots[-1].checkpoint.path)
    written = load_file(path)
    assert torch.equal(written["w"], newest["w"])
    assert written["twin"].dtype == torch.float16


def test_types_that_cannot_be_averaged_are_refused_or_copied(tmp_path):
    """A complex tensor is an error that names the remedy, and the remedy works."""
    values = [{"w": torch.rand(3), "z": torch.ones(2, dtype=torch.complex64) * i} for i in (1, 2)]
    write_snapshots(tmp_path / "in", values)
    with pytest.raises(InputError, match="--copy 'z'"):
        synthesize(tmp_path / "in", gamma=7, output=tmp_path / "o.safetensors")
    recipe, (path,) = make_recipe(
        replace(scan([tmp_path / "in"]), copy=("z",)),
        Request(gamma=(7.0,), output=str(tmp_path / "o.safetensors")),
    )
    execute(recipe)
    assert torch.equal(load_file(path)["z"], values[1]["z"])


def test_strided_torch_tensors_are_averaged_and_copied(tmp_path):
    """Non-contiguous tensors of .pt files come out in row-major order."""
    (tmp_path / "in").mkdir()
    values = []
    for step in (1, 2):
        w = torch.arange(30.0).reshape(5, 6).t() * step
        counts = torch.arange(12)[::2] * step
        values.append((w, counts))
        content = {"w": w, "n": counts, "index": torch.arange(6).reshape(2, 3).t()}
        torch.save(content, tmp_path / "in" / f"x-step{step}-gamma5.pt")
    execute(
        recipe_of(scan([tmp_path / "in"]).require(), [[0.25], [0.75]], [tmp_path / "o.safetensors"])
    )
    written = load_file(tmp_path / "o.safetensors")
    torch.testing.assert_close(written["w"], 0.25 * values[0][0] + 0.75 * values[1][0])
    assert torch.equal(written["n"], values[1][1])
    assert torch.equal(written["index"], torch.arange(6).reshape(2, 3).t())


def test_zeros_and_infinities_alike_everywhere_keep_their_bits(tmp_path):
    """-0.0, and the infinities of masks, are no differences; beside them the rest is averaged."""
    one = torch.tensor([-math.inf, math.inf, -0.0, 0.0, 1.0])
    two = torch.tensor([-math.inf, math.inf, -0.0, 0.0, 2.0])
    snapshots = write_snapshots(tmp_path / "in", [{"w": one}, {"w": two}, {"w": one}])
    execute(recipe_of(snapshots, [[-7.0], [0.25], [7.75]], [tmp_path / "o.safetensors"]))
    written = load_file(tmp_path / "o.safetensors")["w"]
    assert torch.equal(written[:4].view(torch.int32), one[:4].view(torch.int32))
    assert written[4] == 1.25


@pytest.mark.parametrize("gamma", [5, 7])
def test_no_snapshot_is_replaced_or_removed(tmp_path, gamma):
    """Neither a snapshot of weight 0, nor the shards of one, fall to --overwrite."""
    write_run(tmp_path / "in", steps=(1, 2))
    folder = tmp_path / "in" / "step2-gamma5"
    folder.mkdir()
    (tmp_path / "in" / "ema-step0000002-gamma5.safetensors").rename(folder / "model.safetensors")
    before = digest(tmp_path / "in")
    other = tmp_path / "in" / "ema-step0000001-gamma10.safetensors"
    for output in (other, tmp_path / "in" / "step{step}-gamma5"):
        with pytest.raises(UsageError, match="is one of the snapshots"):
            synthesize(tmp_path / "in", gamma=gamma, output=output, overwrite=True)
    assert digest(tmp_path / "in") == before


def test_a_directory_in_the_way_stops_all_outputs(ckpts, tmp_path):
    """Where one output can't get its name, none of the others is written."""
    (tmp_path / "o-9.safetensors").mkdir()
    with pytest.raises(UsageError, match="is a directory"):
        synthesize(ckpts, gamma=[7, 9], output=tmp_path / "o-{gamma}.safetensors", overwrite=True)
    assert not (tmp_path / "o-7.safetensors").exists()


def test_an_error_in_one_worker_stops_the_others(tmp_path):
    """After a failed chunk no worker takes many more."""
    snapshots = write_snapshots(tmp_path / "in", [{"w": torch.rand(4000)}, {"w": torch.rand(4000)}])
    recipe = recipe_of(snapshots, [[0.5], [0.5]], [tmp_path / "o.safetensors"], jobs=2)
    done = []

    def fail(count):
        done.append(count)
        if len(done) == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        execute(replace(recipe, tile_elements=8), progress=fail)
    assert len(done) < 400
    assert [p.name for p in tmp_path.iterdir()] == ["in"]


def test_copies_of_many_chunks_are_whole(tmp_path):
    """An integer tensor longer than a chunk is copied in its right order."""
    values = [{"n": torch.arange(100) * step, "w": torch.ones(1)} for step in (1, 2)]
    snapshots = write_snapshots(tmp_path / "in", values)
    recipe = recipe_of(snapshots, [[0.5], [0.5]], [tmp_path / "o.safetensors"])
    execute(replace(recipe, tile_elements=8))
    assert torch.equal(load_file(tmp_path / "o.safetensors")["n"], values[1]["n"])


def test_outputs_say_that_they_are_of_torch(tmp_path):
    """Also from sources without any format entry the output has format: pt."""
    write_snapshots(tmp_path / "in", [{"w": torch.rand(1)} for _ in range(2)])
    (path,) = synthesize(tmp_path / "in", gamma=7, output=tmp_path / "o.safetensors")
    assert read_index(path).metadata["format"] == "pt"


def test_names_that_safetensors_cannot_hold_are_refused(tmp_path):
    """A tensor called __metadata__, or named by half a character, is an error, not a bad file."""
    for number, name in enumerate(["__metadata__", "half \ud800"]):
        folder = tmp_path / str(number)
        folder.mkdir()
        torch.save({name: torch.ones(1)}, folder / "x-step1-gamma5.pt")
        with pytest.raises(InputError, match=r"can't store that name|is not text"):
            synthesize(folder, gamma=7, output=tmp_path / "o.safetensors")


def test_shards_are_counted_in_what_is_written(ckpts, tmp_path):
    """Copied tensors keep their type, and their size counts for the shards."""
    request = Request(gamma=(7.0,), dtype="float8_e5m2", max_shard_size=50, output=str(tmp_path))
    whole, _ = make_recipe(scan([ckpts]), request)
    split, _ = make_recipe(replace(scan([ckpts]), copy=("*",)), request)
    assert len(whole.outputs[0].files) == 1
    assert len(split.outputs[0].files) == 2


@pytest.mark.parametrize("most", [math.nan, 0.0, -1.0])
def test_max_error_that_nothing_passes(ckpts, tmp_path, most):
    """A limit that is no number is no licence."""
    with pytest.raises(CheckFailedError, match="--max-error"):
        synthesize(ckpts, gamma=7, output=tmp_path / "o.safetensors", max_error=most)


def digest(folder):
    """Name and hash of every file below a directory."""
    return {
        p.name: hashlib.sha256(p.read_bytes()).hexdigest()
        for p in sorted(folder.rglob("*"))
        if p.is_file()
    }


def test_same_bytes_for_any_jobs_and_chunks(ckpts, tmp_path):
    """Neither workers, chunk sizes nor repetition show in the outputs' bytes."""
    seen = []
    for number, (jobs, chunk) in enumerate([(1, None), (1, None), (4, None), (3, 2), (2, 10)]):
        out = tmp_path / str(number)
        recipe, _ = make_recipe(
            scan([ckpts]), Request(gamma=(7.0, 3.0), output=str(out), jobs=jobs)
        )
        execute(recipe if chunk is None else replace(recipe, tile_elements=chunk))
        seen.append(digest(out))
    assert all(s == seen[0] for s in seen)
    assert len(seen[0]) == 2


@pytest.mark.parametrize("base", ["model", "diffusion_pytorch_model"])
def test_shards_have_hugging_face_names_and_load(tmp_path, base):
    """Sharded outputs keep the sources' base name, and the index finds every tensor once."""
    random = np.random.default_rng(0)
    for step in (1, 2):
        folder = tmp_path / "in" / f"step{step}-gamma5"
        folder.mkdir(parents=True)
        names = [f"layer{i}" for i in range(6)]
        tensors = {n: torch.from_numpy(random.standard_normal(100)).float() for n in names}
        tensors["big"] = torch.from_numpy(random.standard_normal(400)).float()
        shards = {
            f"{base}-00001-of-00002.safetensors": names[:4],
            f"{base}-00002-of-00002.safetensors": [*names[4:], "big"],
        }
        weight_map = {n: file for file, members in shards.items() for n in members}
        for file, members in shards.items():
            save_file({n: tensors[n] for n in members}, folder / file, {"format": "pt"})
        (folder / f"{base}.safetensors.index.json").write_text(
            json.dumps({"metadata": {}, "weight_map": weight_map})
        )
    whole = synthesize(tmp_path / "in", gamma=7, output=tmp_path / "whole.safetensors")[0]
    (out,) = synthesize(tmp_path / "in", gamma=7, output=tmp_path / "out", max_shard_size=1000)
    assert out == tmp_path / "out"
    index = json.loads((out / f"{base}.safetensors.index.json").read_text())
    files = sorted(set(index["weight_map"].values()))
    assert files == [f"{base}-{i:05d}-of-00004.safetensors" for i in range(1, 5)]
    assert index["metadata"]["total_size"] == 4000
    loaded = {}
    for file in files:
        part = load_file(out / file)
        assert all(index["weight_map"][n] == file for n in part)
        with safe_open(out / file, "pt") as handle:
            assert handle.metadata()["format"] == "pt"
        loaded |= part
    expected = load_file(whole)
    assert set(loaded) == set(expected) == set(index["weight_map"])
    assert all(torch.equal(loaded[n], expected[n]) for n in expected)
    assert sorted(p.name for p in out.iterdir()) == sorted(
        ["README.md", *files, f"{base}.safetensors.index.json"]
    )


def test_metadata_tells_how_an_output_was_made(ckpts, tmp_path):
    """Provenance names method, target, version, sources with weights, and the figures."""
    (path,) = synthesize(ckpts, gamma=7, output=tmp_path / "o.safetensors")
    metadata = read_index(path).metadata
    record = json.loads(metadata["phema"])
    assert metadata["format"] == "pt"
    assert record["schema"] == "phema/synthesis/1"
    assert record["target"]["gamma"] == 7
    assert record["target"]["step"] == 100
    assert len(record["sources"]) == 8
    assert sum(s["weight"] for s in record["sources"]) == pytest.approx(1, abs=1e-12)
    assert record["sources"][0] == {
        "name": "ema-step0000025-gamma5.safetensors",
        "average": "gamma 5",
        "gamma": 5.0,
        "step": 25.0,
        "time": 25.0,
        "size_bytes": 84,
        "weight": record["sources"][0]["weight"],
    }
    assert set(record["figures"]) >= {"expected_error", "profile_error", "noise_gain", "weight_sum"}


def test_metadata_of_the_newest_source_is_carried_over(tmp_path):
    """Foreign metadata survive; the sources' own tags do not."""
    (tmp_path / "in").mkdir()
    for step in (1, 2):
        metadata = {"gamma": "5.0", "step": str(step), "author": f"me{step}"}
        save_file({"w": torch.ones(2) * step}, tmp_path / "in" / f"{step}.safetensors", metadata)
    (path,) = synthesize(tmp_path / "in", gamma=7, output=tmp_path / "o.safetensors")
    metadata = read_index(path).metadata
    assert metadata["author"] == "me2"
    assert not {"gamma", "step"} & set(metadata)


def test_existing_outputs_are_kept_unless_told(ckpts, tmp_path):
    """An output that exists is refused, replaced with overwrite, and skipped with skip_existing."""
    path = tmp_path / "o.safetensors"
    path.write_text("mine")
    with pytest.raises(UsageError, match="exists already"):
        synthesize(ckpts, gamma=7, output=path)
    assert path.read_text() == "mine"
    request = Request(gamma=(7.0,), output=str(path), skip_existing=True)
    with pytest.raises(UsageError, match="can't be read"):
        make_recipe(scan([ckpts]), request)
    save_file({"w": torch.ones(3)}, path)
    assert make_recipe(scan([ckpts]), request) == (None, [path])
    synthesize(ckpts, gamma=7, output=path, overwrite=True)
    assert "w" in load_file(path)


@pytest.mark.parametrize(
    "output", ["o.safetensors", "o.pt", "{gamma}", "a/{gamma}.pt", "d/", "{gamma}/"]
)
def test_what_is_there_is_skipped_whatever_it_is(ckpts, tmp_path, monkeypatch, output):
    """A file or a directory, by a name of its own or by a template."""
    monkeypatch.chdir(tmp_path)
    request = Request(gamma=(7.0,), output=output, skip_existing=True, sample=False)
    recipe, (path,) = make_recipe(scan([ckpts]), request)
    execute(recipe)
    assert path.exists()
    assert make_recipe(scan([ckpts]), request) == (None, [path])


def test_a_directory_behind_a_link_is_whole_when_its_work_is_done(tmp_path):
    """Its files are made beside what the link leads to, until all are there."""
    real, link = tmp_path / "real", tmp_path / "link"
    real.mkdir()
    (real / "model.safetensors").touch()
    link.symlink_to(real)
    assert is_complete(link)
    assert is_complete(real)
    (tmp_path / "real.partial").mkdir()
    assert not is_complete(link)
    assert not is_complete(real)


@pytest.mark.linux("a file that opens and can't be read")
def test_a_side_file_that_cannot_be_read_is_named(tmp_path):
    """The first page of a process's memory opens, and gives an input/output error."""
    with pytest.raises(OSError, match="/proc/self/mem") as caught:
        copy(Path("/proc/self/mem"), tmp_path / "out", 10)
    assert caught.value.filename == "/proc/self/mem"


def test_a_source_is_never_overwritten(ckpts):
    """Even --overwrite does not let an output replace one of its own sources."""
    source = next(ckpts.iterdir())
    before = source.read_bytes()
    with pytest.raises(UsageError, match="is one of the snapshots"):
        synthesize(ckpts, gamma=7, output=source, overwrite=True)
    assert source.read_bytes() == before


def test_overwriting_a_sharded_output_replaces_it_whole(ckpts, tmp_path):
    """After an overwrite with other shards the index is the new one and every shard it names is."""
    for size in (20, 40):
        (out,) = synthesize(
            ckpts, gamma=7, output=tmp_path / "out", max_shard_size=size, overwrite=True
        )
    checkpoint = read_index(out / "model.safetensors.index.json")
    assert set(checkpoint.tensors) == {"w", "twin", "count"}
    assert {p.name for p in out.glob("*.safetensors")} == {p.name for p in checkpoint.files}


def test_a_source_that_shrinks_leaves_no_output(ckpts, tmp_path):
    """A source cut off after the scan is an error that names it, and nothing half is left."""
    recipe, _ = make_recipe(
        scan([ckpts]), Request(gamma=(7.0,), output=str(tmp_path / "new" / "o.safetensors"))
    )
    victim = recipe.sources[3].checkpoint.path
    os.truncate(victim, victim.stat().st_size - 60)
    with pytest.raises(InputError, match=victim.name):
        execute(recipe)
    assert not (tmp_path / "new").exists()


def test_a_full_disk_leaves_no_output(ckpts, tmp_path):
    """When the space can't be had the error says so, and nothing half is left."""
    recipe, _ = make_recipe(
        scan([ckpts]), Request(gamma=(7.0,), output=str(tmp_path / "new" / "o.safetensors"))
    )
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))
    try:
        with pytest.raises(StorageError, match="cannot write: File too large"):
            execute(recipe)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not (tmp_path / "new").exists()


@pytest.mark.linux("forked workers")
def test_a_worker_that_dies_leaves_the_command_alive(tmp_path, monkeypatch):
    """Where all work is a single run, too, a process of its own does it."""
    write_run(tmp_path / "ckpts")
    process = os.getpid()

    def dies(*_):
        assert os.getpid() != process
        os._exit(9)

    monkeypatch.setattr("phema_cli.synthesis.workers.write_at", dies)
    given = ("-g", "7", "-j", "2", "--drop", "count", "-o", tmp_path / "x.safetensors")
    done = phema("synthesize", tmp_path / "ckpts", *given)
    assert done.code == 5
    assert "a worker process was killed" in done.err
    assert [p.name for p in tmp_path.iterdir()] == ["ckpts"]


@pytest.mark.linux("open files, counted in /proc")
def test_more_sources_than_open_files(tmp_path):
    """With few file descriptors allowed a synthesis of many sources still works."""
    write_run(tmp_path / "in", steps=tuple(range(1, 61)))
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    few = max(80, 90 + len(list(Path("/proc/self/fd").iterdir())))
    resource.setrlimit(resource.RLIMIT_NOFILE, (few, hard))
    try:
        (path,) = phema_cli.synthesize(tmp_path / "in", gamma=7, output=tmp_path / "o.safetensors")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    # Tests hold files open too: what is written is verified without the limit.
    verify_output(path, scan([tmp_path / "in"]))
    assert "w" in load_file(path)


def test_progress_counts_all_bytes(ckpts, tmp_path):
    """The bytes reported add up to those that the plan promised, headers excepted."""
    recipe, _ = make_recipe(scan([ckpts]), Request(gamma=(7.0, 3.0), output=str(tmp_path)))
    done = []
    execute(recipe, progress=done.append)
    heads = sum(len(h) for o in recipe.outputs for f in o.files for _, h in f.image.segments)
    assert sum(done) == recipe.read_bytes + recipe.write_bytes - heads


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("fp16", "F16"),
        ("float16", "F16"),
        ("half", "F16"),
        ("bf16", "BF16"),
        ("bfloat16", "BF16"),
        ("torch.float32", "F32"),
        ("fp32", "F32"),
        ("F64", "F64"),
        ("float8_e4m3fn", "F8_E4M3"),
        ("fp8_e5m2", "F8_E5M2"),
        ("F8_E4M3FNUZ", "F8_E4M3FNUZ"),
    ],
)
def test_dtype_names(name, expected):
    """Types are known by the names that safetensors, torch and people give them."""
    assert find_dtype(name).name == expected


@pytest.mark.parametrize("name", ["int8", "float", "bool", "fp17", ""])
def test_unknown_dtype_names(name):
    """Other names are refused with the list of those known."""
    with pytest.raises(UsageError, match="bfloat16"):
        find_dtype(name)


@pytest.mark.parametrize(
    ("output", "expected"),
    [
        (None, "phema-step0000100-gamma7.safetensors"),
        ("dir", "dir/phema-step0000100-gamma7.safetensors"),
        ("dir/a.safetensors", "dir/a.safetensors"),
        ("x-{gamma}-{step}.safetensors", "x-7-100.safetensors"),
        ("{sigma_rel}", "0.0993808"),
    ],
)
def test_output_paths(ckpts, output, expected):
    """-o is a file, a directory, or a name with placeholders."""
    _, (path,) = make_recipe(scan([ckpts]), Request(gamma=(7.0,), output=output))
    assert str(path) == expected


@pytest.mark.parametrize("output", ["b.ckpts/", "there.ckpts"])
def test_a_directory_may_be_called_nearly_like_a_file(ckpts, tmp_path, monkeypatch, output):
    """With a slash, or where it is there."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there.ckpts").mkdir()
    _, (path,) = make_recipe(scan([ckpts]), Request(gamma=(7.0,), output=output, sample=False))
    assert path.parent.name == output.strip("/")


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (Request(gamma=(7.0, 8.0), output="a.safetensors"), "several targets"),
        (Request(gamma=(7.0,), output="{nope}"), "unknown placeholder.*: {nope}"),
        (Request(gamma=(7.0,), output="{gamma"), "a single brace"),
        (Request(gamma=(7.0,), output="a.safetensor"), "did you mean .safetensors"),
        (Request(gamma=(7.0,), output="{gamma}.safetensros"), "did you mean .safetensors"),
        (Request(profile=("raw", "uniform:last=0.5"), output="a-{step}"), "put {profile} into"),
        (Request(gamma=(7.0,), output="a.pt", format="safetensors"), "has the ending of torch"),
        (Request(gamma=(7.0,), format="gguf"), "no output format 'gguf'"),
        (Request(gamma=(7.0,), output="a.pt", max_shard_size=10), "torch is one file"),
        (Request(gamma=(7.0,), output="a.safetensors.index.json"), "name of an index"),
        (Request(gamma=(7.0,), output="{gamma.real}"), "unknown placeholder.*: {gamma.real}"),
        (Request(gamma=(7.0,), output="a.safetensors", max_shard_size=10), "one file"),
        (Request(gamma=(7.0, 7.0)), "given twice"),
        (Request(gamma=(-0.2,)), "below 0"),
        (Request(), "no target"),
        (Request(gamma=(7.0,), step=101.0), "later than the last"),
        (Request(gamma=(7.0,), step=0.0), "not above 0"),
        (Request(sigma_rel=(0.2887,)), "0.2887"),
    ],
)
def test_requests_that_make_no_sense(ckpts, request_, message):
    """Each is refused before anything is written."""
    with pytest.raises(UsageError, match=message):
        make_recipe(scan([ckpts]), request_)


def test_memory_bound_shrinks_the_chunks(ckpts):
    """max_memory bounds the buffers of all workers together."""
    for limit in (8 << 20, 64 << 20):
        request = Request(gamma=(7.0, 3.0), max_memory=limit, jobs=4)
        recipe, _ = make_recipe(scan([ckpts]), request)
        assert limit / 4 < recipe.peak_bytes <= limit / 2


@pytest.mark.parametrize("method", ["blue", "normalized"])
def test_far_targets_of_500_snapshots_are_summed_to_rounding(tmp_path, method):
    """Gamma 97 from 2 x 250 snapshots, weights of L1 norm 715: float32 sums lose little.

    What is lost against float64 is a few units in the last place.
    """
    write_run(tmp_path / "run", steps=tuple(range(4, 1001, 4)), shape=(30, 30))
    out = tmp_path / "out.safetensors"
    request = Request(gamma=(97.0,), output=str(out), method=method, sample=False)
    recipe, _ = make_recipe(scan([tmp_path / "run"]), request)
    execute(recipe)
    weights = recipe.weights[:, 0]
    assert np.abs(weights).sum() > 700
    exact = sum(
        w * load_file(s.checkpoint.path)["w"].double()
        for w, s in zip(weights, recipe.sources, strict=True)
    )
    made = load_file(out)["w"].double()
    error = ((made - exact).norm() / exact.norm()).item()
    assert error < 4 * EPS["F32"]
    # The rounding of the stored values themselves weighs several times more.
    assert error < 0.3 * np.linalg.norm(weights) * storage_noise(23)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_an_output_depends_on_its_own_target_alone(tmp_path, dtype):
    """Alone, beside another one or among ten, by any number of workers: the same file."""
    (tmp_path / "in").mkdir()
    random = torch.Generator().manual_seed(0)
    walk = torch.randn(40, 30_000, generator=random).cumsum(dim=0)
    for step in range(5, 41, 5):
        for gamma in (5.0, 10.0):
            weights = torch.from_numpy(np.diff(PowerProfile(gamma, step).cdf(np.arange(41.0))))
            tensors = {"w": (weights @ walk.double()).to(dtype), "n": torch.tensor(step)}
            metadata = {"gamma": str(gamma), "step": str(step)}
            save_file(tensors, tmp_path / "in" / f"s{step}-{gamma}.safetensors", metadata)
    given = {"sigma_rel": (), "profile": "uniform:last=0.3"}
    made = {}
    for name, gammas, jobs in (
        ("alone", [7], 1),
        ("beside", [8, 7], 2),
        ("among", [*range(3, 13)], 5),
        ("with a stored one and another shape", [5, 7], 3),
    ):
        more = given if "shape" in name else {}
        out = tmp_path / name
        synthesize(tmp_path / "in", gamma=gammas, output=out, jobs=jobs, **more)
        (path,) = out.glob("*gamma7*")
        made[name] = path.read_bytes()
    assert len(set(made.values())) == 1, {name: len(data) for name, data in made.items()}
