"""``phema plan`` through the real console script."""

import math
import re
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from phema_cli.cli import parsing
from phema_cli.errors import UsageError
from tests import warm
from tests.builders import phema, write_run
from tests.runs.diffusion import dit, k_diffusion
from tests.safetensors_files import write_index

#: movement that needs no run, and no notice.
WALKED = "--schedule walk"
WALK = WALKED.split()


def test_a_plan_agrees_with_inspect_of_the_snapshots(tmp_path):
    """Without a look at data, inspect says of the planned snapshots what the plan said, exactly."""
    plan = phema(
        "plan", "--steps", 50, "--snapshots", 8, "--gammas", "4,9", "--schedule", "walk", "--json"
    ).json
    times = (7, 14, 21, 28, 35, 42, 49, 50)
    assert (plan["plan"]["every"], plan["plan"]["snapshots"], plan["plan"]["files"]) == (7, 8, 16)
    write_run(tmp_path / "ckpts", gammas=(4.0, 9.0), steps=times, dtype=torch.float16)
    inspected = phema("inspect", tmp_path / "ckpts", "--no-sample", "--json").json
    assert plan["targets"] == inspected["targets"]


def test_a_plan_like_a_run_agrees_with_inspect_of_it(ckpts):
    """Planned as an earlier run was stored, a run has the figures that inspect measured there."""
    plan = phema(
        *("plan", "--steps", 100, "--gammas", "5,10", "--snapshots", 4, "--dtype", "float32"),
        *("--like", ckpts, "--json"),
    ).json
    inspected = phema("inspect", ckpts, "--json").json
    assert plan["assumed"] == {"schedule": None, "like": str(ckpts)}
    assert plan["parameters"] == inspected["snapshots"][0]["parameters"]
    assert plan["targets"] == inspected["targets"]
    assert plan["targets"][0]["expected_rms"] > 0


def test_a_plan_like_an_earlier_run_shows_its_errors(ckpts):
    """The table has the expected RMS error with --like only; a coarser type has larger errors."""
    arguments = ("plan", "--steps", 400, "--gammas", "5,10", "--snapshots", 4, "--like", ckpts)
    assert " rms " in phema(*arguments).out
    assert " rms " not in phema("plan", "--steps", 400, "--schedule", "cosine", "-q").out
    fine, coarse = (
        phema(*arguments, "--dtype", d, "--json").json["targets"][0] for d in ("fp32", "bf16")
    )
    assert coarse["expected_rms"] > fine["expected_rms"]


@pytest.mark.slow
def test_the_training_loop_stores_what_was_planned(tmp_path):
    """The shown code runs, and leaves the snapshots, in the type, that the plan counts."""
    run = phema("plan", "--steps", 10, "--snapshots", 4, "--gammas", "4,9", *WALK)
    code = textwrap.dedent(run.out.partition("In the training loop\n")[2])
    head = "import torch\nfrom phema_cli import PowerEMA\nmodel = torch.nn.Linear(2, 1)\n"
    warm.run([sys.executable, "-c", head + code], cwd=tmp_path, check=True)
    found = phema("inspect", tmp_path / "ckpts", "--json").json["snapshots"]
    assert {(s["gamma"], s["step"]) for s in found} == {
        (g, t) for g in (4, 9) for t in (3, 6, 9, 10)
    }
    assert {s["dtype"] for s in found} == {"float16"}


@pytest.mark.slow
@pytest.mark.parametrize("bits", [16, 8, 4])
def test_packed_snapshots_take_what_their_plan_counts(tmp_path, bits):
    """The shown code runs, and its files have the planned bytes beside their headers."""
    asked = ("plan", "--steps", 35, "--snapshots", 35, "--gammas", "4,9", "--packing", bits, *WALK)
    asked = (*asked, "--parameters", 4096 * 64)
    plan = phema(*asked, "--json").json["plan"]
    assert (plan["packing"], plan["files"]) == (bits, 70)
    code = textwrap.dedent(phema(*asked).out.partition("In the training loop\n")[2])
    head = "import torch\nfrom phema_cli import PowerEMA\n"
    head += "model = torch.nn.Linear(4096, 64, bias=False)\n"
    code = code.replace("...  #", "model.weight.data += torch.randn(64, 4096)  #")
    warm.run([sys.executable, "-c", head + code], cwd=tmp_path, check=True)
    sizes = sorted(p.stat().st_size for p in (tmp_path / "ckpts").iterdir())
    assert len(sizes) == 70
    assert sizes[0] == pytest.approx(plan["file_bytes"], abs=4096)
    assert sum(sizes) == pytest.approx(plan["disk_bytes"], abs=70 * 4096)


@pytest.mark.slow
def test_a_budget_has_a_proposal_of_packed_snapshots():
    """What packed snapshots would reach is what the plan with --packing says of those gammas."""
    asked = ("plan", "--steps", "100k", "--parameters", "280M", "--schedule", "wsd")
    asked = (*asked, "--budget", "20GB", "--json")
    plain = phema(*asked).json
    best = min(plain["packed"], key=lambda p: p["worst_sigma_error"])
    assert best["worst_sigma_error"] < 0.5 * plain["plan"]["worst_sigma_error"]
    assert f"--packing {best['bits']}" in phema(*asked[:-1]).out
    gammas = ",".join(map(str, plain["plan"]["gammas"]))
    packed = phema(*asked, "--packing", best["bits"], "--gammas", gammas).json
    assert packed["packed"] == []
    assert packed["plan"]["files"] == best["files"]
    assert packed["plan"]["disk_bytes"] <= 20 * 10**9
    assert packed["plan"]["worst_sigma_error"] == best["worst_sigma_error"]


def test_a_plan_of_one_gamma_is_a_tuple_too():
    """One gamma is written as PowerEMA takes it."""
    run = phema("plan", "--steps", "1k", "--gammas", 7, "--dtype", "float32", *WALK)
    assert "PowerEMA(model, gammas=(7,))" in run.out
    assert 'ema.save("ckpts")' in run.out


@pytest.mark.slow
def test_budgets_are_kept():
    """A larger budget gives no worse plan, and none costs more than it may."""
    worst = float("inf")
    for budget in (10, 30):
        plan = phema(
            *("plan", "--steps", "100k", "--parameters", "280M", "--schedule", "wsd", "--json"),
            *("--budget", f"{budget}GB"),
        ).json["plan"]
        assert plan["disk_bytes"] == plan["files"] * 560_000_000 <= budget * 10**9
        assert plan["worst_sigma_error"] < worst
        worst = plan["worst_sigma_error"]


@pytest.mark.slow
def test_a_narrow_table_keeps_its_numbers():
    """Where there is no room for a number it goes beyond the edge: cut off it would be another."""
    arguments = ("plan", "--steps", 100, "--parameters", "1M", "--gammas", "8,24", *WALK)
    wide, narrow = (phema(*arguments, COLUMNS=str(n)).out.splitlines() for n in (80, 40))
    assert all(len(line) <= 80 for line in wide)
    figures = [line for line in wide if re.match(r" +0\.\d\d ", line)]
    assert len(figures) == 8
    assert set(figures) <= set(narrow)


def test_a_plan_says_what_its_figures_are_worth():
    """Nothing known is refused; a schedule has a notice; what --no-sample assumes is exact."""
    nothing = phema("plan", "--steps", 64)
    assert (nothing.code, nothing.out) == (2, "")
    assert "--like" in nothing.err
    assert "factor of 2" in phema("plan", "--steps", 64, "--schedule", "cosine").err
    assert phema("plan", "--steps", 64, "--schedule", "cosine", "-q").err == ""
    assert phema("plan", "--steps", 64, "--schedule", "walk").err == ""


@pytest.mark.slow
def test_what_may_go_is_named_and_stays(ckpts):
    """The error of those that stay is the one that inspect says, and nothing is removed."""
    before = sorted(ckpts.iterdir())
    asked = ("plan", "--like", ckpts, "--keep", 5, "--range", "0.06,0.2")
    told = phema(*asked, "--json").json
    assert len(told["keep"]) == 5
    assert sorted(told["keep"] + told["remove"]) == sorted(map(str, before))
    text = phema(*asked).out
    assert text.splitlines()[-3:] == told["remove"]
    assert sorted(ckpts.iterdir()) == before
    alone = phema("synthesize", *told["keep"], "--sigma-rel", "0.06,0.2", "--dry-run", "--json")
    errors = [t["sigma_error"] for t in alone.json["targets"]]
    assert told["worst_sigma_error"]["before"] <= told["worst_sigma_error"]["after"]
    assert max(errors) < 3 * told["worst_sigma_error"]["after"]


def test_a_file_of_several_series_stays_or_goes_whole(tmp_path):
    """Raw weights and their average lie in one file, which no list has twice."""
    k_diffusion(tmp_path)
    told = phema("plan", "--like", tmp_path, "--keep", 5, "--json").json
    assert len(told["keep"]) == 5
    assert sorted(told["keep"] + told["remove"]) == sorted(map(str, tmp_path.glob("*.pth")))
    text = phema("plan", "--like", tmp_path, "--keep", 5).out
    assert f"5 of {len(told['keep'] + told['remove'])} checkpoints" in text


def test_all_files_of_what_may_go_are_named(tmp_path):
    """Shards go with their index: what is left of the run can be read."""
    made = tmp_path / "made"
    write_run(made)
    for path in made.iterdir():
        folder = tmp_path / "run" / path.stem
        folder.mkdir(parents=True)
        tensors = load_file(path)
        with safe_open(path, "pt") as file:
            metadata = file.metadata()
        shards = {f"model-{i:05d}-of-00003.safetensors": n for i, n in enumerate(tensors, start=1)}
        for shard, name in shards.items():
            save_file({name: tensors[name]}, folder / shard, metadata)
        write_index(folder, {name: shard for shard, name in shards.items()})
    run = ("plan", "--like", tmp_path / "run", "--keep", 5)
    told = phema(*run, "--json").json
    files = [path for path in (tmp_path / "run").rglob("*") if path.is_file()]
    assert sorted(told["keep"] + told["remove"]) == sorted(map(str, files))
    going = phema(*run).out.splitlines()[-12:]
    assert going == told["remove"]
    assert "Keep   5 of 8 checkpoints" in phema(*run).out
    for path in going:
        Path(path).unlink()
    assert len(phema("inspect", tmp_path / "run", "--json").json["snapshots"]) == 5


def test_keep_plans_nothing(ckpts):
    """An option that would not count is refused."""
    run = phema("plan", "--like", ckpts, "--keep", 5, "--budget", "1GB", "--gammas", 5)
    assert (run.code, run.out) == (2, "")
    assert run.err == "phema: --keep plans nothing; leave --gammas out\n"


def test_what_a_run_does_not_say_is_asked_for_where_plan_reads_it(tmp_path):
    """Plan lacks --average: the remedy is a phema.toml, and works."""
    (tmp_path / "run").mkdir()
    left = dit(tmp_path / "run")
    run = phema("plan", "--like", "run", cwd=tmp_path)
    assert run.code == 3
    assert "; phema inspect run says what to pass: write it into a phema.toml there" in run.err
    law = next(law for law in left.series if law != "raw")
    (tmp_path / "run" / "phema.toml").write_text(f'average = "{law}"\n')
    assert phema("plan", "--like", "run", cwd=tmp_path).code == 0


def test_a_run_that_cannot_be_measured_is_mended_where_plan_reads_it(ckpts):
    """Plan lacks --exclude and --copy: a phema.toml has them, and inspect takes both."""
    path = max(ckpts.iterdir())
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    tensors = load_file(path)
    tensors["w"].view(-1)[0] = math.nan
    save_file(tensors, path, metadata)
    run = phema("plan", "--like", ckpts)
    assert (run.code, "says what to pass: write it into a phema.toml" in run.err) == (3, True)
    told = phema("inspect", ckpts)
    assert "leave the snapshot out with --exclude, or the tensor with --copy" in told.out
    assert phema("inspect", ckpts, "--exclude", path.name).code == 0
    (ckpts / "phema.toml").write_text(f'exclude = ["{path.name}"]\n')
    assert phema("plan", "--like", ckpts).code == 0


def test_plan_tells_what_it_left_out_of_a_run(ckpts):
    """Files without a tag are no part of the run, and are named."""
    (ckpts / "notes.safetensors").write_bytes((ckpts / min(ckpts.iterdir()).name).read_bytes())
    told = phema("inspect", ckpts)
    run = phema("plan", "--like", ckpts)
    assert (run.code, "notes" in run.err) == (told.code, True), (run, told)


@pytest.mark.slow
def test_what_cannot_be_thinned_is_refused(ckpts):
    """Too few, all, no run, and packed snapshots."""
    assert "cannot be kept" in phema("plan", "--like", ckpts, "--keep", 8).err
    assert "pass --like RUN" in phema("plan", "--steps", 9, "--keep", 8).err
    assert phema("pack", ckpts, "-o", ckpts.parent / "packed", "-q").code == 0
    packed = phema("plan", "--like", ckpts.parent / "packed", "--keep", 5)
    assert (packed.code, "read together" in packed.err) == (3, True)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("", "--steps"),
        ("--steps 0", "not a whole number from 1"),
        ("--steps 1.5", "not a whole number from 1"),
        (f"--steps 9 {WALKED} --parameters many", "not a whole number from 1"),
        (f"--steps 9 {WALKED} --snapshots 3 --every 5", "pass one of them"),
        (f"--steps 9 {WALKED} --gammas 5 --sigma-rels 0.1", "pass one of them"),
        (f"--steps 9 {WALKED} --gammas 5,5", "given twice"),
        (f"--steps 9 {WALKED} --gammas 5,5 --every 3", "given twice"),
        (f"--steps 9 {WALKED} --gammas=-3", "10000, not -3"),
        (f"--steps 9 {WALKED} --range 0.1", "not a range"),
        (f"--steps 9 {WALKED} --range 0.2,0.1", "not a range"),
        (f"--steps 9 {WALKED} --range 0.1,0.4", "0.2887, not 0.4"),
        (f"--steps 9 {WALKED} --every 10", "gives 0 snapshots"),
        (f"--steps 1M {WALKED} --every 10", "gives 100000 snapshots"),
        (f"--steps 9 {WALKED} --budget 5GB", "pass --parameters"),
        (f"--steps 9 {WALKED} --budget 5MB --parameters 1M", "too few"),
        (f"--steps 9 {WALKED} --dtype int8", "no float type"),
        (f"--steps 9 {WALKED} --packing 7", "pass 16, 8 or 4"),
        (f"--steps 9 {WALKED} --packing 8 --dtype float16", "pass one of them"),
        ("--steps 9", "--like"),
        ("--steps 9 --schedule cos", "no schedule"),
        ("--steps 9 --schedule cosine --like ckpts", "pass one of them"),
    ],
)
def test_arguments_that_make_no_sense(arguments, message):
    """Each is one line on stderr, with exit code 2."""
    run = phema("plan", *arguments.split())
    assert run.code == 2
    assert message in run.err
    assert len(run.err.splitlines()) == 1


def test_snapshots_that_say_nothing_are_refused(tmp_path):
    """--like of snapshots that never move is an error with a remedy, like one of no snapshots."""
    write_run(tmp_path / "one", gammas=(5.0,), steps=(10,))
    run = phema("plan", "--steps", 9, "--like", tmp_path / "one")
    assert run.code == 3
    assert "pass --schedule" in run.err
    assert phema("plan", "--steps", 9, "--like", tmp_path / "none").code == 3


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("400000", 400_000),
        ("400k", 400_000),
        ("1.2B", 1_200_000_000),
        ("2 M", 2e6),
        ("1e6", 1e6),
        ("2.5E+3k", 2.5e6),
    ],
)
def test_counts_are_read(text, value):
    """Steps and parameters may be written with k, M, B and T."""
    assert parsing.count(text) == value


@pytest.mark.parametrize("text", ["", "k", "0.5", "-3", "1e-5", "1e99", "0", "3Q"])
def test_what_is_no_count_is_refused(text):
    """What is no whole number above 0 is an error."""
    with pytest.raises(UsageError, match="not a whole number"):
        parsing.count(text)
