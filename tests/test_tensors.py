"""Small differences between the tensors of snapshots: settled and told, or refused by name."""

import itertools
import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from phema_cli.errors import CheckFailedError, InputError, UsageError
from phema_cli.estimate import sample as sampling
from phema_cli.estimate.solve import stored_noise
from phema_cli.snapshots import Config, scan, ties
from phema_cli.snapshots.reading import read_checkpoint
from phema_cli.snapshots.scan import Scan
from phema_cli.snapshots.tensors import averaged
from phema_cli.synthesis import Request, make_recipe
from phema_cli.synthesis.execute import execute
from phema_cli.synthesis.workers import count_nonfinite
from phema_cli.verify.check import verify
from phema_cli.verify.recipe import remake
from tests.builders import phema, recipe_of, run, synthesize, write_run
from tests.schemas import assert_fits
from tests.verified import verify_output

F64, F32, F16, BF16 = torch.float64, torch.float32, torch.float16, torch.bfloat16
E4, E5 = torch.float8_e4m3fn, torch.float8_e5m2


def put(folder, step, tensors, gamma=5.0):
    """A snapshot of these tensors, in a directory whose tags are to be trusted: all is made up."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "phema.toml").write_text("trust_tags = true\n")
    path = folder / f"step{step:07d}-gamma{gamma:g}.safetensors"
    save_file(tensors, path, {"gamma": str(gamma), "step": str(step)})
    return path


def recast(folder, types):
    """Give the float tensors of snapshots, oldest first, other types."""
    for path, dtype in zip(sorted(folder.iterdir()), itertools.cycle(types), strict=False):
        with safe_open(path, "pt") as file:
            metadata = file.metadata()
        tensors = {
            n: t.to(dtype) if t.is_floating_point() else t for n, t in load_file(path).items()
        }
        save_file(tensors, path, metadata)


def said(found, level):
    """What a scan says on a level."""
    return [f.error.what for f in found.findings if f.level == level]


def snapshots_of(folder, rows):
    """One snapshot for each dict of tensors."""
    for step, tensors in enumerate(rows, start=1):
        put(folder, step, tensors)
    return scan([folder]).require()


# --- float types that differ --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("types", "dtype"),
    [
        ((F32, BF16), None),
        ((BF16, F32), None),
        ((F32, BF16), "float32"),
        ((BF16, F32), "bf16"),
        ((F16, BF16), "float32"),
        ((F64, F16), None),
    ],
    ids=str,
)
def test_a_run_resumed_in_another_precision(tmp_path, types, dtype):
    """Outputs have the newest's type, or --dtype, and the values of either; that is told once."""
    walk = write_run(tmp_path / "in", shape=(40, 30))
    recast(tmp_path / "in", [t for t in types for _ in range(4)])
    more = [] if dtype is None else ["--dtype", dtype]
    out = tmp_path / "out.safetensors"
    done = run("synthesize", "-g", 7, tmp_path / "in", "-o", out, *more)
    notices = [line for line in done.err.splitlines() if line.startswith("notice: ")]
    assert len(notices) == 1
    assert "2 tensors (first " in notices[0]
    assert str(types[1]).removeprefix("torch.") in notices[0].rpartition(":")[2]
    written = load_file(out)
    expected = {None: types[1], "float32": F32, "bf16": BF16}[dtype]
    assert {written[n].dtype for n in ("w", "twin")} == {expected}
    truth = np.tensordot(_power_weights(7.0, 100), walk, axes=1)
    coarsest = 2.0 ** -(7 if BF16 in (*types, expected) else 10)
    assert np.abs(written["w"].double().numpy() - truth).max() < 2 * coarsest
    # Linear steps of a third have no exact value: of two types two values are averaged.
    assert torch.equal(written["twin"][::6], torch.tensor([-1.0, 1.0]).to(expected))


def _power_weights(gamma, steps):
    at = np.arange(steps + 1) / steps
    return np.diff(at ** (gamma + 1))


@pytest.mark.parametrize("out", [F64, F32, F16, BF16, E5], ids=str)
@pytest.mark.parametrize(
    "types", [(F32, BF16), (BF16, F32), (F16, BF16), (E4, BF16, F16), (F64, F16, E5)], ids=str
)
@pytest.mark.parametrize("targets", [1, 2, 5])
def test_the_bits_of_values_that_were_wide_before(tmp_path, types, out, targets):
    """What is stored in several types is summed as if all were stored in the widest."""
    random = np.random.default_rng(len(types))
    values = [torch.from_numpy(random.uniform(0.5, 1.5, 70_000)).to(t) for t in types]
    wide = F64 if F64 in types else F32
    weights = random.uniform(-1, 1, (len(types), targets))
    weights += (1 - weights.sum(axis=0)) / len(types)
    label = str(out).removeprefix("torch.")
    made = []
    for name, rows in (("mixed", values), ("wide", [v.to(wide) for v in values])):
        snapshots = snapshots_of(tmp_path / name, [{"w": v} for v in rows])
        paths = [tmp_path / f"{name}{k}.safetensors" for k in range(targets)]
        recipe = recipe_of(snapshots, weights, paths, dtype=label)
        execute(recipe)
        made.append([load_file(path)["w"] for path in paths])
        assert {t.dtype for t in made[-1]} == {out}
    for a, b in zip(*made, strict=True):
        assert torch.equal(a.view(torch.uint8), b.view(torch.uint8))


@pytest.mark.parametrize("place", [0, 1, 2])
def test_a_stored_snapshot_comes_back_bit_for_bit(tmp_path, place):
    """Weight 1 on a source of the output's type gives its bits: zeros' signs, payloads of NaN."""
    odd = torch.tensor([-0.0, 0.0, 1e-40, 1.5, math.inf]).to(BF16)
    odd = torch.cat([odd, torch.tensor([0x7F91, -0x3F], dtype=torch.int16).view(BF16)])
    types = [F32, F32, F32]
    types[place] = BF16
    rows = [{"w": torch.ones(7).to(t)} for t in types]
    rows[place] = {"w": odd}
    snapshots = snapshots_of(tmp_path / "in", rows)
    weights = np.full((3, 2), 1 / 3)
    weights[:, 0] = np.eye(3)[place]
    paths = [tmp_path / "a.safetensors", tmp_path / "b.safetensors"]
    execute(
        recipe_of(snapshots, weights, paths, dtype="bfloat16", allow_nonfinite=True),
    )
    made = load_file(paths[0])["w"]
    assert torch.equal(made.view(torch.int16), odd.view(torch.int16))


def test_the_command_gives_a_stored_snapshot_back(tmp_path):
    """A target that is the newest snapshot has its bytes, whatever the others' type."""
    write_run(tmp_path / "in")
    recast(tmp_path / "in", [BF16, F32])
    newest = tmp_path / "in" / "ema-step0000100-gamma10.safetensors"
    recast_one = load_file(newest)
    (out,) = synthesize([tmp_path / "in"], gamma=10, output=tmp_path / "out.safetensors")
    made = load_file(out)
    assert made["w"].dtype == recast_one["w"].dtype
    assert torch.equal(made["w"], recast_one["w"])


def test_what_is_alike_everywhere_comes_out_as_it_is(tmp_path):
    """Values that both types hold and all snapshots share keep their bits, zeros their sign."""
    shared = torch.tensor([-0.0, 0.0, 0.5, -3.25, 1e4]).repeat(999)
    rows = [{"w": shared.to(t)} for t in (BF16, F32, F16, F32)]
    snapshots = snapshots_of(tmp_path / "in", rows)
    shared = rows[0]["w"].float()
    put(tmp_path / "in", 3, {"w": shared.to(F16)})
    recipe = recipe_of(
        [s for i, s in enumerate(snapshots) if i != 2],
        [[0.7], [-1.2], [1.5]],
        [tmp_path / "o.safetensors"],
    )
    put(tmp_path / "in", 1, {"w": shared.to(BF16)})
    put(tmp_path / "in", 2, {"w": shared})
    put(tmp_path / "in", 4, {"w": shared})
    found = scan([tmp_path / "in"], Config(exclude=("*3-*",))).require()
    recipe = recipe_of(found, [[0.7], [-1.2], [1.5]], [tmp_path / "o.safetensors"])
    execute(recipe)
    made = load_file(tmp_path / "o.safetensors")["w"]
    assert torch.equal(made.view(torch.int32), shared.view(torch.int32))


def test_same_bytes_for_any_jobs_tiles_and_shares(tmp_path):
    """Neither workers nor tiles show where types differ."""
    write_run(tmp_path / "in", shape=(300, 70))
    recast(tmp_path / "in", [F16, BF16, F32])
    made = []
    for jobs, tile in ((1, None), (3, 512), (2, 4096)):
        out = tmp_path / f"{jobs}.safetensors"
        request = Request(gamma=(7.0,), output=str(out), jobs=jobs)
        found = scan([tmp_path / "in"])
        recipe, _ = make_recipe(found, request)
        execute(recipe if tile is None else replace(recipe, tile_elements=tile))
        verify_output(out, found)
        made.append(out.read_bytes())
    assert len(set(made)) == 1


def test_a_dry_run_counts_what_is_read(tmp_path):
    """Each source counts with the bytes that it has, and progress comes to the same."""
    write_run(tmp_path / "in", shape=(100, 10))
    recast(tmp_path / "in", [BF16, F32])
    done = run("synthesize", "-g", 7, tmp_path / "in", "--dry-run", "--json", cwd=tmp_path)
    assert done.json["read_bytes"] == 4 * 1007 * (2 + 4) + 8
    recipe, _ = make_recipe(
        scan([tmp_path / "in"]), Request(gamma=(7.0,), output=str(tmp_path / "o"))
    )
    counts = []
    execute(recipe, progress=counts.append)
    body = sum(i.size_bytes - o for i, o in _headers(recipe))
    assert sum(counts) == recipe.read_bytes + body


def _headers(recipe):
    """Each file of the outputs, and where its tensors begin."""
    images = [f.image for o in recipe.outputs for f in o.files]
    return [(image, min(image.offsets.values())) for image in images]


@pytest.mark.parametrize("types", [(F16, F32), (F32, BF16), (F64, F16)], ids=str)
def test_what_is_not_finite_is_counted_in_each_type(tmp_path, types):
    """NaN and infinities are found in the wide and the narrow source, and nothing is written."""
    generator = torch.Generator().manual_seed(0)
    rows = [{"b": torch.randn(300_000, generator=generator).to(t)} for t in types * 2]
    rows[0]["b"][200_001] = math.nan
    rows[3]["b"][[7, 299_999]] = math.inf
    for row in rows:
        # A large number that a wide type holds is finite.
        if row["b"].dtype == F32:
            row["b"][3] = 1e30
    snapshots_of(tmp_path / "in", rows)
    done = phema("synthesize", "-g", 7, tmp_path / "in", "--no-sample", "-o", tmp_path / "o")
    assert done.code == 3
    assert "3 values are not finite: 1 in tensor b of step0000001" in done.err
    assert "2 in tensor b of step0000004" in done.err
    recipe, _ = make_recipe(scan([tmp_path / "in"]), Request(gamma=(7.0,), sample=False))
    assert "3 values are not finite" in str(count_nonfinite(recipe))


def test_a_sample_reads_each_type_and_counts_the_coarsest_unit(tmp_path):
    """Values are their own; the unit in the last place is that of the type with the largest."""
    values = torch.tensor([1.0, 3.0, -0.75, 1e-6, 0.0])
    rows = [values.to(t) * i for i, t in enumerate((F16, F32, BF16), start=1)]
    snapshots = snapshots_of(tmp_path, [{"w": row} for row in rows])
    found = sampling.sample(snapshots)
    for row, stored in zip(found.values, rows, strict=True):
        np.testing.assert_array_equal(row, stored.float().numpy())
    # Of small numbers float16 is coarser, of others bfloat16.
    units = [
        torch.nextafter(rows[2].abs().to(t), torch.tensor(math.inf).to(t)) - rows[2].abs().to(t)
        for t in (F16, BF16)
    ]
    np.testing.assert_array_equal(found.units, torch.stack(units).double().amax(0).numpy())
    alone = snapshots_of(tmp_path / "alone", [{"w": values.to(BF16)}] * 2)
    assert stored_noise(snapshots) == stored_noise(alone)


def test_a_sample_of_several_types_is_bounded(tmp_path, monkeypatch):
    """No more bytes are read than of snapshots of the widest type."""
    monkeypatch.setattr(sampling, "SAMPLE_BYTES", 12 * sampling.PAGE_BYTES)
    read = []
    original = sampling.FileReader.read_elements

    def counted_read(self, extent, start, out):
        read.append(len(out))
        original(self, extent, start, out)

    monkeypatch.setattr(sampling.FileReader, "read_elements", counted_read)
    snapshots = snapshots_of(tmp_path, [{"w": torch.randn(90_000).to(t)} for t in (F32, F32, BF16)])
    sampling.sample(snapshots)
    assert sum(read) == 10 * sampling.PAGE_BYTES


def test_verify_finds_a_changed_bit_of_each_source(tmp_path):
    """A value of the wide source and one of the narrow one count, as does the output's."""
    write_run(tmp_path / "in", shape=(50, 20), gammas=(5.0,))
    recast(tmp_path / "in", [F32, BF16])
    out = tmp_path / "out.safetensors"
    recipe, _ = make_recipe(
        scan([tmp_path / "in"]), Request(gamma=(7.0,), output=str(out), dtype="float32")
    )
    execute(recipe)
    verify_output(out, scan([tmp_path / "in"]))
    for path in [*sorted((tmp_path / "in").iterdir())[:2], out]:
        before = path.read_bytes()
        extent = read_checkpoint(path).tensors["w"]
        changed = bytearray(before)
        changed[extent.offset + 1] ^= 64
        path.write_bytes(changed)
        with pytest.raises(CheckFailedError):
            verify(remake(read_checkpoint(out), scan([tmp_path / "in"])), full=True)
        path.write_bytes(before)


# --- averages of a part of the model ------------------------------------------------------------


def parts_of(folder, **options):
    """A scan whose snapshots of gamma 10 are averages of a part of the model."""
    found = scan([folder], Config(**options))
    return marked(found, "gamma10")


def marked(found, word):
    """A scan with the snapshots of that name as parts of the model, all of them made up."""
    read = [replace(s, partial=word in s.name) for s in found.read.snapshots]
    made = Scan(tuple(read), found.read.findings, trust_tags=True)
    return made.settled(found.copy, found.drop)


def whole_and_parts(folder, steps=(1, 2, 3)):
    """Whole models of gamma 5; of gamma 10, averages of a part of them, of another type."""
    for step in steps:
        head = torch.full((6, 4), 10.0 + step).to(BF16)
        body = torch.linspace(0, step, 24).reshape(6, 4)
        whole = {"body": body.to(BF16), "head": head, "frozen": head + 1}
        put(folder, step, whole | {"count": torch.tensor([step])})
        put(folder, step, {"body": body + 1, "decay": torch.ones(1)}, gamma=10.0)
    return folder


def test_what_an_average_lacks_is_copied_from_the_whole_model(tmp_path):
    """The output has all names; what is told: one notice of what is copied, one of what is left."""
    found = parts_of(whole_and_parts(tmp_path / "in"))
    assert said(found, "error") == []
    told = said(found, "notice")
    assert [t for t in told if "copied" in t] == [
        "2 tensors (first frozen) are copied from the newest whole model: not in every average"
    ]
    assert [t for t in told if "left out" in t] == [
        "tensor decay is left out: only in averages of a part of the model"
    ]
    assert len(told) == 3
    assert averaged(found.snapshots, ()) == ["body"]
    out = tmp_path / "out.safetensors"
    recipe, _ = make_recipe(found, Request(gamma=(7.0,), output=str(out)))
    assert all(not recipe.sources[base].partial for base in recipe.bases)
    execute(recipe)
    verify_output(out, found)
    made, newest = load_file(out), load_file(tmp_path / "in" / "step0000003-gamma5.safetensors")
    assert set(made) == {"body", "head", "frozen", "count"}
    for name in ("head", "frozen", "count"):
        assert torch.equal(made[name], newest[name])
    assert made["body"].dtype == BF16
    assert not torch.equal(made["body"], newest["body"])


@pytest.mark.parametrize(("step", "source"), [(2, 2), (2.5, 2), (0.5, 1)])
def test_copies_are_of_the_targets_time(tmp_path, step, source):
    """What is copied is from the newest whole model at or before it, else from the oldest."""
    found = parts_of(whole_and_parts(tmp_path / "in"))
    out = tmp_path / "out.safetensors"
    recipe, _ = make_recipe(found, Request(gamma=(7.0,), step=step, output=str(out)))
    execute(recipe)
    verify_output(out, found)
    assert load_file(out)["head"][0, 0] == 10.0 + source


def test_parts_alone_are_refused(tmp_path):
    """Without a whole model beside them there is nothing to copy the rest from."""
    whole_and_parts(tmp_path / "in")
    found = parts_of(tmp_path / "in", select=("*gamma10*",))
    with pytest.raises(
        InputError, match="averages a part of the model, and no snapshot has the rest"
    ):
        found.require()


def test_a_part_of_another_shape_is_refused(tmp_path):
    """A tensor that the part has in another shape is of another model."""
    whole_and_parts(tmp_path / "in")
    put(tmp_path / "in", 2, {"body": torch.ones(4, 6)}, gamma=10.0)
    (error,) = said(parts_of(tmp_path / "in"), "error")
    assert "tensor body is float32 [4, 6] instead of bfloat16 [6, 4]" in error


def test_a_tie_is_not_torn_by_a_part_that_stores_it_once(tmp_path):
    """An average of parameters has tied ones once: both names are averaged, not one copied."""
    for step in (1, 2, 3):
        tied = torch.randn(6, 4)
        state = {"embed_tokens.weight": tied, "lm_head.weight": tied, "rest": torch.ones(2)}
        torch.save(state, tmp_path / f"step{step}-gamma5.pt")
        torch.save({"embed_tokens.weight": tied * 2}, tmp_path / f"step{step}-gamma10.pt")
    found = parts_of(tmp_path)
    assert said(found, "error") == []
    assert sorted(averaged(found.snapshots, ())) == ["embed_tokens.weight", "lm_head.weight"]
    out = tmp_path / "out" / "x.pt"
    recipe, _ = make_recipe(found, Request(gamma=(7.0,), output=str(out)))
    execute(recipe)
    verify_output(out, found)
    made = torch.load(out)
    assert made["lm_head.weight"].data_ptr() == made["embed_tokens.weight"].data_ptr()


# --- tied tensors -------------------------------------------------------------------------------

EMBED, HEAD = "model.embed_tokens.weight", "lm_head.weight"


def tied_run(folder, having, names=(EMBED, HEAD), dtype=F32):
    """Four snapshots, some of which store a second copy of a tensor."""
    for step in (1, 2, 3, 4):
        generator = torch.Generator().manual_seed(step)
        tensors = {
            names[0]: torch.randn(30, 7, generator=generator).to(dtype),
            "model.layer": torch.randn(30, 7, generator=generator).to(dtype),
        }
        if step in having:
            tensors[names[1]] = tensors[names[0]].clone()
        put(folder, step, tensors, gamma=(5.0, 10.0)[step % 2])
    return folder


@pytest.mark.parametrize("dtype", [F32, BF16, F64, E4], ids=str)
@pytest.mark.parametrize("names", [(EMBED, HEAD), ("a", "b"), ("b", "a")])
def test_a_tied_tensor_that_some_leave_out(tmp_path, names, dtype):
    """It is its partner where it is not stored, and comes out as its partner does."""
    tied_run(tmp_path / "in", {1, 4}, names, dtype)
    found = scan([tmp_path / "in"])
    assert said(found, "error") == []
    (told,) = said(found, "notice")
    assert told == (
        f"tensor {names[1]} equals {names[0]} in every snapshot that has it; 2 that lack it get "
        f"{names[0]} in its place"
    )
    (out,) = synthesize([tmp_path / "in"], gamma=7, output=tmp_path / "out.safetensors")
    made = load_file(out)
    assert set(made) == {*names, "model.layer"}
    assert torch.equal(*(made[n].float() for n in names))


def test_what_the_newest_leaves_out_is_left_out(tmp_path):
    """Where older ones store a tied tensor twice, outputs are like the newest."""
    tied_run(tmp_path / "in", {1, 2})
    done = run("synthesize", "-g", 7, tmp_path / "in", "-o", tmp_path / "o.safetensors")
    assert f"notice: tensor {HEAD} equals {EMBED}" in done.err
    assert set(load_file(tmp_path / "o.safetensors")) == {EMBED, "model.layer"}


@pytest.mark.parametrize(
    ("having", "broken"), [({1, 4}, 1), ({1, 4}, 4), ({1, 2}, 1), ({1, 2}, 2)], ids=str
)
def test_ties_that_are_none_are_refused(tmp_path, having, broken):
    """One bit that differs in one snapshot that has both, and the snapshots don't fit."""
    tied_run(tmp_path / "in", having)
    path = sorted((tmp_path / "in").glob("*.safetensors"))[broken - 1]
    tensors = load_file(path)
    tensors[HEAD].view(torch.int32)[29, 6] ^= 1
    put(tmp_path / "in", broken, tensors, gamma=(5.0, 10.0)[broken % 2])
    done = phema("synthesize", "-g", 7, tmp_path / "in", cwd=tmp_path)
    assert done.code == 3
    assert "does not fit" in done.err
    assert HEAD in done.err
    assert done.err.count("\n") == 1


def test_tensors_that_are_constant_prove_nothing(tmp_path):
    """Two biases of zeros are equal and not tied: what never moves is what it is, or left out."""
    for step in (1, 2, 3):
        tensors = {"a.bias": torch.zeros(5), "w": torch.randn(5)}
        put(tmp_path, step, tensors | ({"b.bias": torch.zeros(5)} if step < 3 else {}))
    found = scan([tmp_path])
    assert said(found, "error") == []
    told = "tensor b.bias is the same in every snapshot that has it; "
    assert f"{told}the newest lacks it, and so do outputs" in said(found, "notice")
    assert all(set(s.checkpoint.tensors) == {"a.bias", "w"} for s in found.snapshots)
    put(tmp_path, 4, {"a.bias": torch.zeros(5), "w": torch.randn(5), "b.bias": torch.zeros(5)})
    found = scan([tmp_path])
    assert said(found, "error") == []
    told = "tensor b.bias is the same in every snapshot that has it; others get it too"
    assert told in said(found, "notice")
    assert all(set(s.checkpoint.tensors) == {"a.bias", "b.bias", "w"} for s in found.snapshots)


@pytest.mark.parametrize("room", [1 << 12, 1 << 20])
def test_ties_are_compared_to_their_last_element(tmp_path, monkeypatch, room):
    """In pieces of bounded size, of which the last counts too."""
    monkeypatch.setattr(ties, "_CHUNK_BYTES", room)
    values = torch.randn(70_001)
    other = values.clone()
    other[-1] += 1
    for second, errors in ((values.clone(), 0), (other, 1)):
        put(tmp_path, 1, {"a": values})
        put(tmp_path, 2, {"a": values, "b": second})
        assert len(said(scan([tmp_path]), "error")) == errors


def test_ties_of_pickles_need_no_reading(tmp_path, monkeypatch):
    """A tensor that lies in its partner's place is tied by what the header says."""
    for step in (1, 2):
        tied = torch.zeros(4, 3)
        state = {"x": tied, "y": torch.ones(1)} | ({"z": tied} if step == 1 else {})
        torch.save(state, tmp_path / f"step{step}-gamma5.pt")
    monkeypatch.setattr(ties.FileReader, "read_many", None)
    found = scan([tmp_path])
    assert said(found, "error") == []
    assert [sorted(s.checkpoint.tensors) for s in found.snapshots] == [["x", "y"]] * 2


# --- what can't be averaged ---------------------------------------------------------------------


@pytest.mark.parametrize("step", [None, 2])
def test_bytes_of_any_length_are_copied(tmp_path, step):
    """Buffers that differ in length, type or presence come from the newest at the target's time."""
    for i in (1, 2, 3):
        tensors = {
            "w": torch.randn(4),
            "l._extra_state": torch.arange(10 * i).to(torch.uint8),
            "table": torch.full((i, 2), i, dtype=torch.int64),
            "typed": torch.full((3,), i, dtype=torch.int32 if i < 3 else torch.int64),
            "averaged_counter": torch.tensor(float(i)) if i < 3 else torch.tensor(i),
        }
        if i == 3:
            tensors["late"] = torch.tensor([True, False])
        if i == 1:
            tensors["early"] = torch.tensor([1, 2])
        put(tmp_path / "in", i, tensors, gamma=(5.0, 10.0)[i % 2])
    out = tmp_path / "o.safetensors"
    more = [] if step is None else ["--step", step]
    done = run("synthesize", "-g", 7, tmp_path / "in", "-o", out, *more)
    notices = [n for n in done.err.splitlines() if n.startswith("notice: ")]
    assert len(notices) == 2
    assert any("tensor early is left out: not in the newest snapshot" in n for n in notices)
    assert any(n.startswith("notice: 5 tensors (first ") and "copied" in n for n in notices)
    at = step or 3
    made = load_file(out)
    stored = load_file(tmp_path / "in" / f"step{at:07d}-gamma{(5, 10)[at % 2]}.safetensors")
    for name in ("l._extra_state", "table", "typed", "averaged_counter"):
        assert torch.equal(made[name], stored[name])
        assert made[name].dtype == stored[name].dtype
    assert made["late"].tolist() == [True, False]
    assert "early" not in made


def test_a_weight_that_is_an_integer_elsewhere_is_refused(tmp_path):
    """A matrix is no counter: float in one snapshot and integer in another does not fit."""
    put(tmp_path, 1, {"w": torch.ones(2, 2, dtype=torch.int8), "v": torch.ones(2)})
    put(tmp_path, 2, {"w": torch.ones(2, 2), "v": torch.ones(2)})
    (error,) = said(scan([tmp_path]), "error")
    assert "tensor w is int8 [2, 2] instead of float32 [2, 2]" in error


def test_what_is_copied_by_wish_may_differ(tmp_path):
    """A float tensor that --copy chooses is from the newest, whatever the others have."""
    for i in (1, 2, 3):
        tensors = {"w": torch.randn(4), "queue": torch.full((i, 2), float(i))}
        put(tmp_path / "in", i, tensors if i != 2 else {"w": torch.randn(4)})
    assert phema("synthesize", "-g", 7, tmp_path / "in", cwd=tmp_path).code == 3
    out = tmp_path / "o.safetensors"
    run("synthesize", "-g", 7, tmp_path / "in", "--copy", "queue", "-o", out)
    assert torch.equal(load_file(out)["queue"], torch.full((3, 2), 3.0))
    run(
        "synthesize",
        "-g",
        7,
        tmp_path / "in",
        "--copy",
        "que*",
        "-o",
        out,
        "--overwrite",
        "--step",
        2,
    )
    assert torch.equal(load_file(out)["queue"], torch.full((3, 2), 3.0))


# --- quantized weights --------------------------------------------------------------------------

I8, U8, I32, F8 = torch.int8, torch.uint8, torch.int32, E4
#: values and scales by names and types that libraries gave when they were run (the first five),
#: or that their sources and published checkpoints have.
QUANTIZED = {
    "optimum-quanto int8": {"0.weight._data": I8, "0.weight._scale": F32},
    "optimum-quanto int4": {"0.weight._data._data": U8, "0.weight._scale": F32},
    "torchao": {"0._weight_qdata": I8, "0._weight_scale": F32, "0._weight_zero_point": I8},
    "bitsandbytes int8": {"0.weight": I8, "0.SCB": F32},
    "bitsandbytes nf4": {"0.weight": U8, "0.weight.absmax": F32, "0.weight.quant_map": F32},
    "compressed-tensors int4": {"0.weight_packed": I32, "0.weight_scale": F32},
    "compressed-tensors float8": {"0.weight": F8, "0.weight_scale": F32},
    "torchao float8": {"0._weight_qdata": F8, "0._weight_scale": F32},
    "deepseek": {"0.weight": F8, "0.weight_scale_inv": F32},
    "comfyui": {"0.weight": F8, "0.scale_weight": F32},
    "gptq": {"0.qweight": I32, "0.scales": F16, "0.qzeros": I32},
    "hqq": {"0.W_q": U8, "0.scale": F16},
    "gpt-oss": {"0.up_proj_blocks": U8, "0.up_proj_scales": U8},
    "nf4 without absmax": {"0.weight": U8, "0.weight.quant_state.bitsandbytes__nf4": U8},
    "plain": {"weight": I8, "scale": F32},
}


def quantized(types):
    """Tensors of these types; beside them a layer that is not quantized."""
    tensors = {n: torch.ones(4, 8).to(t) for n, t in types.items()}
    return tensors | {"norm.weight": torch.ones(3)}


@pytest.mark.parametrize("family", QUANTIZED)
def test_quantized_weights_are_refused_by_name(tmp_path, family):
    """Values, their type and the scale beside them are named, with what to do instead."""
    tensors = quantized(QUANTIZED[family])
    for step in (1, 2):
        put(tmp_path / "in", step, tensors)
    (error,) = [f.error for f in scan([tmp_path / "in"]).findings if f.level == "error"]
    values, scale = list(QUANTIZED[family])[:2]
    label = str(tensors[values].dtype).removeprefix("torch.")
    expected = f"tensor {values}: {label} values with a scale beside them ({scale}) are quantized"
    assert error.what.startswith(expected)
    assert error.remedy == "use checkpoints that were saved before quantization"


def test_the_command_refuses_quantized_weights(tmp_path):
    """In one line, with a remedy that leads to no part of a model."""
    for step in (1, 2):
        put(tmp_path / "in", step, quantized(QUANTIZED["compressed-tensors int4"]))
    done = phema("synthesize", "-g", 7, tmp_path / "in", cwd=tmp_path)
    assert done.code == 3
    assert done.err.count("\n") == 1
    assert "--copy" not in done.err
    assert "checkpoints that were saved before quantization" in done.err


@pytest.mark.parametrize("newest", [True, False])
def test_one_quantized_snapshot_among_others_is_named(tmp_path, newest):
    """The first error says so, whichever of them is the newest."""
    plain = {"0.weight": torch.ones(4, 8), "norm.weight": torch.ones(3)}
    rows = [plain, quantized(QUANTIZED["bitsandbytes int8"])]
    snapshots = rows if newest else rows[::-1]
    for step, tensors in enumerate(snapshots, start=1):
        put(tmp_path, step, tensors)
    errors = said(scan([tmp_path]), "error")
    assert errors[0].startswith("tensor 0.weight: int8 values with a scale beside them (0.SCB)")


def test_integers_without_scales_are_buffers(tmp_path):
    """Position ids, counters, and the indices beside a model's logit_scale are copied as before."""
    for step in (1, 2, 3):
        tensors = {
            "embeddings.position_ids": torch.arange(8).reshape(1, 8),
            "attn.relative_position_index": torch.arange(16).reshape(4, 4),
            "seen": torch.arange(4) * step,
            "attn.logit_scale": torch.ones(3, 1, 1),
            "bn.num_batches_tracked": torch.ones(1, 1, dtype=torch.int64),
            "mask": torch.ones(2, 2, dtype=torch.bool),
            "mask_scale": torch.ones(2),
            "bins": torch.arange(5),
            "bins_scale": torch.ones(5),
        }
        put(tmp_path, step, tensors)
    found = scan([tmp_path])
    assert said(found, "error") == []
    assert averaged(found.snapshots, ()) == ["attn.logit_scale", "bins_scale", "mask_scale"]


def test_quantized_weights_may_be_copied_whole(tmp_path):
    """With its scale copied too a quantized layer stays what it is; without it that is refused."""
    for step in (1, 2):
        put(tmp_path / "in", step, quantized(QUANTIZED["bitsandbytes int8"]))
    half = phema("synthesize", "-g", 7, tmp_path / "in", "--copy", "0.weight", cwd=tmp_path)
    assert half.code == 3
    assert "quantized" in half.err
    run("synthesize", "-g", 7, tmp_path / "in", "--copy", "0.*", "-o", tmp_path / "o.safetensors")


# --- --drop and globs ---------------------------------------------------------------------------


def with_a_stranger(folder):
    """Snapshots that fit but for a tensor which one of them has in addition."""
    write_run(folder)
    path = min(folder.iterdir())
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    save_file(load_file(path) | {"loss_fn.weight": torch.ones(3)}, path, metadata)
    return folder


def test_drop_leaves_tensors_out(tmp_path):
    """Of outputs and of every check; it is told, recorded, and verified by what is recorded."""
    folder, out = with_a_stranger(tmp_path / "in"), tmp_path / "o.safetensors"
    assert phema("synthesize", "-g", 7, folder, "-o", out).code == 3
    done = run("synthesize", "-g", 7, folder, "-o", out, "--drop", "loss_fn.*", "--drop", "count")
    assert "notice: 2 tensors (first " in done.err
    assert set(load_file(out)) == {"w", "twin"}
    with safe_open(out, "pt") as file:
        record = json.loads(file.metadata()["phema"])
    assert record["drop"] == ["count", "loss_fn.*"]
    assert_fits(record)
    run("verify", out, folder, "--full")


def test_drop_by_itself_in_the_environment_and_in_the_toml(tmp_path):
    """PHEMA_DROP, phema.toml and Python's Config do the same."""
    folder = with_a_stranger(tmp_path / "in")
    a, b, c = (tmp_path / f"{name}.safetensors" for name in "abc")
    run("synthesize", "-g", 7, folder, "-o", a, PHEMA_DROP="loss*")
    synthesize([folder], gamma=7, output=b, config=Config(drop=("loss*",)))
    (folder / "phema.toml").write_text('drop = ["loss*"]')
    run("synthesize", "-g", 7, folder, "-o", c)
    assert a.read_bytes() == c.read_bytes()
    assert set(load_file(a)) == set(load_file(b)) == {"w", "twin", "count"}


def test_outputs_without_the_entry_are_as_they_were(ckpts, tmp_path):
    """Where nothing is dropped the provenance does not speak of it."""
    run("synthesize", "-g", 7, ckpts, "-o", tmp_path / "o.safetensors")
    with safe_open(tmp_path / "o.safetensors", "pt") as file:
        assert "drop" not in json.loads(file.metadata()["phema"])


@pytest.mark.parametrize("option", ["--copy", "--drop"])
@pytest.mark.parametrize(("glob", "like"), [("twim", "twin"), ("*coumt*", "count")])
def test_a_glob_that_was_typed_has_to_match(ckpts, tmp_path, option, glob, like):
    """It is an error that shows names like it; said elsewhere it is not."""
    done = phema("synthesize", "-g", 7, ckpts, option, glob, cwd=tmp_path)
    assert done.code == 2
    assert f"{option} '{glob}' matches no tensor; there are {like}" in done.err
    assert done.err.count("\n") == 1
    variable = f"PHEMA_{option[2:].upper()}"
    run("synthesize", "-g", 7, ckpts, "-q", "-o", tmp_path / "a.safetensors", **{variable: glob})
    (ckpts / "phema.toml").write_text(f'{option[2:]} = ["{glob}"]')
    run("synthesize", "-g", 7, ckpts, "-q", "-o", tmp_path / "b.safetensors")


def test_a_glob_that_was_typed_beside_one_that_matches(ckpts, tmp_path):
    """Each has to match by itself; names are those of any snapshot."""
    done = phema("synthesize", "-g", 7, ckpts, "--copy", "twin", "--copy", "x", cwd=tmp_path)
    assert done.code == 2
    with pytest.raises(UsageError, match="--drop 'x' matches no tensor"):
        scan([ckpts], Config(drop=("x",), typed=(("--drop", "x"),)))
    done = phema("sweep", ckpts, "-g", 7, "--eval", "echo 1", "--drop", "nope", cwd=tmp_path)
    assert done.code == 2


def test_all_tensors_dropped_is_an_error(ckpts):
    """Nothing is left to average."""
    (error,) = said(scan([ckpts], Config(drop=("*",))), "error")
    assert error == "no tensor is left"
