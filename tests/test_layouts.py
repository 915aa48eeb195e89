"""Layouts: what real training libraries leave on disk is found, tagged and put together rightly."""

import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed.checkpoint as dcp
from safetensors.torch import load_file, save_file

from phema_cli.errors import InputError
from phema_cli.profiles import ExponentialProfile, PowerProfile, gamma_from_sigma_rel
from phema_cli.snapshots import Config, scan
from phema_cli.trainers.registry import parse_law
from tests import trainers
from tests.builders import phema, run

# What the libraries themselves complain about is not ours.
pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
    pytest.mark.filterwarnings(
        "ignore::lightning.fabric.utilities.rank_zero.LightningDeprecationWarning"
    ),
]


def synthesized(folder, tmp_path, *options):
    """The one output of a synthesis, as a vector."""
    out = tmp_path / "out.safetensors"
    run("synthesize", folder, "-o", out, "--overwrite", "-q", *options)
    return trainers.flat(load_file(out))


def relative(a, b, scale=None):
    """Distance of a from b, relative to b or to another length."""
    return float((a - b).norm() / (b if scale is None else scale).norm())


def inspected(folder, *options):
    """The snapshots that inspect finds, and its findings but the notices."""
    found = run("inspect", folder, "--json", *options).json
    return found["snapshots"], [f for f in found["findings"] if f["level"] != "notice"]


@pytest.fixture(scope="module")
def every_step(tmp_path_factory):
    """ema-pytorch with update_every=1: directory, path, its own synthesis."""
    folder = tmp_path_factory.mktemp("lucid") / "ckpts"
    return folder, *trainers.ema_pytorch(folder, 200, 1, (0.05, 0.28))


@pytest.fixture(scope="module")
def every_tenth(tmp_path_factory):
    """ema-pytorch with update_every=10: directory, path, its own synthesis."""
    folder = tmp_path_factory.mktemp("lucid10") / "ckpts"
    return folder, *trainers.ema_pytorch(folder, 2000, 10, (0.05, 0.1))


def test_ema_pytorch_is_found(every_step):
    """Index and step come from the name, the time is one later, bookkeeping is no tensor."""
    folder, _, _ = every_step
    found, doubts = inspected(folder, "--sigma-rels", "0.05,0.28")
    assert len(found) == 40
    assert {s["layout"] for s in found} == {"ema-pytorch"}
    assert {(s["step"], s["time"]) for s in found} == {(t, t + 1) for t in range(10, 201, 10)}
    assert {s["gamma"] for s in found} == {gamma_from_sigma_rel(s) for s in (0.05, 0.28)}
    assert {s["tensors"] for s in found} == {9}
    assert [d["remedy"].split(",")[0] for d in doubts] == ["pass --update-every"]


def test_ema_pytorch_without_its_gammas(every_step):
    """One line says what is missing, for all files at once, and one how to go on."""
    folder, _, _ = every_step
    done = phema("inspect", folder)
    assert done.code == 3
    missing, way = done.out.splitlines()
    assert "and 39 others" in missing
    assert "--sigma-rels" in missing
    assert way == f"try: phema inspect {folder} --gammas G1,G2"


@pytest.mark.parametrize("gamma", [1.0, 4.0, 12.0])
def test_ema_pytorch_synthesizes_the_same(every_step, tmp_path, gamma):
    """With the times that ema-pytorch takes (n for n + 1) its projection comes out the same."""
    folder, _, synthesize = every_step
    shutil.copytree(folder, tmp_path / "ckpts")
    rows = [
        f"[snapshots.'{path.name}']\naverage = 'power:sigma_rel={(0.05, 0.28)[int(path.name[0])]}'"
        for path in folder.glob("*.pt")
    ]
    (tmp_path / "ckpts/phema.toml").write_text("\n".join(rows))
    options = ["--gamma", gamma, "--method", "projection"]
    made = synthesized(tmp_path / "ckpts", tmp_path, *options)
    assert relative(made, trainers.flat(synthesize(gamma))) < 1e-6


def test_ema_pytorch_is_met_better(every_step, tmp_path):
    """With the right times phema is nearer to the true average than ema-pytorch itself."""
    folder, path, synthesize = every_step
    truth = trainers.average(PowerProfile(4.0, 200.0), path)
    options = ["--sigma-rels", "0.05,0.28", "--update-every", 1, "--gamma", 4]
    moved = path[-1] - truth
    mine = relative(synthesized(folder, tmp_path, *options), truth, moved)
    theirs = relative(trainers.flat(synthesize(4.0)), truth, moved)
    assert mine < 0.02
    assert mine < theirs


def test_sparse_updates_are_taken_for_what_they_are(every_tenth, tmp_path):
    """With update_every=10 phema meets the true average where ema-pytorch is far off."""
    folder, path, synthesize = every_tenth
    truth = trainers.average(PowerProfile(1.0, 2000.0), path)
    moved = path[-1] - truth
    options = ["--sigma-rels", "0.05,0.1", "--update-every", 10, "--gamma", 1]
    mine = relative(synthesized(folder, tmp_path, *options), truth, moved)
    theirs = relative(trainers.flat(synthesize(1.0)), truth, moved)
    assert mine < 0.1
    assert theirs > 5 * mine


def test_effective_gamma_is_shown(every_tenth):
    """Both are shown: the gamma that the trainer was told and the one that it came to."""
    folder, _, _ = every_tenth
    found, doubts = inspected(folder, "--sigma-rels", "0.05,0.1", "--update-every", 10)
    nominal = gamma_from_sigma_rel(0.05)
    assert {round(s["effective_gamma"] - ((s["gamma"] + 1) / 10 - 1), 12) for s in found} == {0}
    assert max(s["gamma"] for s in found) == nominal
    assert not doubts
    shown = run("inspect", folder, "--sigma-rels", "0.05,0.1", "--update-every", 10).out
    assert "effective" in shown
    assert "0.7972" in shown


def test_too_sparse_updates_are_refused(every_tenth):
    """An effective gamma of -0.5 or less is an error that names both gammas."""
    folder, _, _ = every_tenth
    done = phema("inspect", folder, "--sigma-rels", "0.05,0.1", "--update-every", 100)
    assert done.code == 3
    assert "averaged at every 100th step is gamma -0.8203 in effect" in done.out


@pytest.mark.parametrize("every", [1, 4, 10])
def test_sparse_profile_is_that_of_the_updates(every):
    """The profile of sparse updates is the product of their decays, up to the width of a step."""
    gamma, steps = 9.0, 4000
    times = np.arange(1, steps + 1)
    betas = np.where((times - 1) % every == 0, (1 - 1 / (times + 1.0)) ** (gamma + 1), 1.0)
    later = np.cumprod(betas[::-1])[::-1]
    profile = parse_law(f"ema-pytorch:gamma={gamma},every={every}").profile(float(steps))
    # F just before an averaging: half a period before its middle.
    at = times[::every].astype(float)
    expected = later[::every]
    ours = profile.cdf(at + 1 - every / 2 if every > 1 else at)
    late = at > steps / 4
    np.testing.assert_allclose(ours[late], expected[late], rtol=2e-3 if every > 1 else 1e-12)


def test_posthoc_ema_leaves_bare_names(every_tenth, tmp_path):
    """The same files without the wrapper's prefix, as posthoc-ema writes them, are taken alike."""
    folder, _, _ = every_tenth
    (tmp_path / "ckpts").mkdir()
    for path in folder.glob("*.pt"):
        state = {n.removeprefix("ema_model."): v for n, v in torch.load(path).items()}
        torch.save(state, tmp_path / "ckpts" / path.name)
    options = ["--sigma-rels", "0.05,0.1", "--update-every", 10]
    found, doubts = inspected(tmp_path / "ckpts", *options)
    assert not doubts
    assert found == inspected(folder, *options)[0]


def test_tutorial_counts_from_0(tmp_path):
    """File i is of time i + 1, gamma by index; the synthesis meets the true average."""
    path = trainers.tutorial(tmp_path / "ckpts", 200, (5.0, 10.0))
    found, _ = inspected(tmp_path / "ckpts", "--gammas", "5,10")
    assert {s["layout"] for s in found} == {"karras-power-ema-tutorial"}
    assert {s["step"] for s in found} == set(range(1, 192, 10))
    made = synthesized(tmp_path / "ckpts", tmp_path, "--gammas", "5,10", "--gamma", 7)
    truth = trainers.average(PowerProfile(7.0, 191.0), path[:191])
    assert relative(made, truth, path[190] - truth) < 0.02


@pytest.mark.parametrize(
    ("settings", "law"),
    [
        (
            {"decay": 0.99, "use_ema_warmup": True, "inv_gamma": 2.0, "power": 0.75},
            "diffusers:beta=0.99,inv_gamma=2,power=0.75,warmup=1",
        ),
        ({"decay": 0.95}, "diffusers:beta=0.95"),
        (
            {"decay": 0.97, "update_after_step": 30, "min_decay": 0.5},
            "diffusers:beta=0.97,min=0.5,update_after=30",
        ),
    ],
)
def test_diffusers_average_is_exact(tmp_path, settings, law):
    """The profile read from config.json gives the stored average from the path, to rounding."""
    path = trainers.diffusers_ema(tmp_path / "run", 100, **settings)
    found = scan([tmp_path / "run"], Config(select=("*unet_ema*",))).require()
    assert len(found) == 10
    for s in found:
        assert s.tag.profile == parse_law(law).profile(s.tag.step)
        assert s.tag.profile_origin == s.tag.step_origin == "content"
        stored = load_file(s.checkpoint.files[0])
        stored = {n.removeprefix("inner."): v for n, v in stored.items()}
        exact = trainers.average(s.tag.profile, path[: int(s.tag.step)])
        assert relative(trainers.flat(stored), exact) < 1e-6


def test_diffusers_averages_and_raw_weights_are_sources(tmp_path):
    """EMAs of diffusers and the raw models beside them give the true power function average."""
    path = trainers.diffusers_ema(tmp_path / "run", 200, decay=0.98, use_ema_warmup=True)
    found, doubts = inspected(tmp_path / "run")
    assert {s["average"] for s in found} == {parse_law("diffusers:beta=0.98,warmup=1").label, "raw"}
    assert len(found) == 20
    assert not doubts
    raw, _ = inspected(tmp_path / "run", "--raw")
    assert [s["average"] for s in raw] == ["raw"] * 10
    out = tmp_path / "out.safetensors"
    run("synthesize", tmp_path / "run", "--sigma-rel", "0.15", "--copy", "*running*", "-o", out)
    made = {n.removeprefix("inner."): v for n, v in load_file(out).items()}
    truth = trainers.average(PowerProfile(gamma_from_sigma_rel(0.15), 200.0), path)
    assert relative(trainers.flat(made), truth, path[-1] - truth) < 0.1


def test_accelerate_lists_need_names(tmp_path):
    """Lists of tensors are refused in one line, and take their names from a state dict."""
    path = trainers.accelerate_ema(tmp_path / "run", 100, decay=0.95)
    done = phema("inspect", tmp_path / "run")
    assert done.code == 3
    (error,) = [line for line in done.out.splitlines() if line.startswith("error: ")]
    assert "without names; pass --names-from" in error
    named = ["--names-from", tmp_path / "names.pt"]
    found, _ = inspected(tmp_path / "run", *named)
    assert sorted(s["average"] for s in found).count("raw") == 10
    assert len(found) == 20
    # The buffers are in the raw weights alone: without these the averages are a part of a model.
    done = phema("inspect", tmp_path / "run", *named, "--exclude", "model.safetensors")
    assert done.code == 3
    assert "averages a part of the model, and no snapshot has the rest" in done.out
    shutil.copy(tmp_path / "names.pt", tmp_path / "run/checkpoint-10/names.pt")
    (tmp_path / "run/phema.toml").write_text(
        "names_from = 'checkpoint-10/names.pt'\nexclude = ['names.pt']\n"
    )
    assert len(inspected(tmp_path / "run")[0]) == 20
    found = scan(
        [tmp_path / "run"], Config(exclude=("names.pt",), names_from=tmp_path / "names.pt")
    )
    averages = [s for s in found.require() if s.tag.label != "raw"]
    assert len(averages) == 10
    for s in averages:
        profile = parse_law("diffusers:beta=0.95").profile(s.tag.step)
        assert s.tag.profile == profile
        shadow = torch.load(s.checkpoint.path)["shadow_params"]
        names = [n for n, _ in trainers.Net().named_parameters()]
        assert list(s.checkpoint.tensors) == names
        exact = trainers.average(profile, path[: int(s.tag.step)])
        assert relative(trainers.flat(dict(zip(names, shadow, strict=True))), exact) < 1e-6


def test_names_must_fit(tmp_path):
    """A reference of another model, or one whose order is lost, is refused with the remedy."""
    trainers.accelerate_ema(tmp_path / "run", 10, decay=0.95)
    torch.save({"a": torch.ones(3)}, tmp_path / "few.pt")
    other = {n: torch.ones(2) for n, _ in trainers.Net().named_parameters()}
    torch.save(other, tmp_path / "other.pt")
    for names, message in (
        ("few.pt", "but few.pt has names for 1"),
        ("other.pt", "first.weight in other.pt has"),
        (Path("run/checkpoint-1/model.safetensors"), "in the model's order"),
    ):
        options = ["--exclude", "model.safetensors", "--names-from", tmp_path / names]
        done = phema("inspect", tmp_path / "run", *options)
        assert done.code == 3
        assert message in done.out


def test_lightning_average_is_found(tmp_path):
    """``state_dict`` beside ``averaging_state`` is the average; its decay is the user's to say."""
    path = trainers.lightning(tmp_path / "run", 100, 0.95)
    done = phema("inspect", tmp_path / "run")
    assert done.code == 3
    assert "--average LAW, by default exponential:beta=0.999,start=1; or --raw" in done.out
    found, _ = inspected(tmp_path / "run", "--average", "exponential:beta=0.95")
    kinds = {("state_dict", "exponential:beta=0.95"), ("current_model_state", "raw")}
    assert {(s["key"], s["average"]) for s in found} == kinds
    assert {s["step"] for s in found} == set(range(10, 101, 10))
    assert len(found) == 20
    last = torch.load(tmp_path / "run/epoch=0-step=100.ckpt", weights_only=False)
    state = {n.removeprefix("net."): v for n, v in last["state_dict"].items()}
    exact = trainers.average(ExponentialProfile(-np.log(0.95), 100.0), path)
    assert relative(trainers.flat(state), exact) < 1e-6


@pytest.mark.parametrize("warmup", [True, False])
def test_timm_average_is_exact(tmp_path, warmup):
    """The decay in timm's arguments and its epochs give the stored average; copies are one file."""
    path = trainers.timm(tmp_path / "ckpts", 5, 20, 0.97, warmup=warmup)
    assert (tmp_path / "ckpts/last.pth.tar").exists()
    done = phema("inspect", tmp_path / "ckpts")
    assert done.code == 3
    assert "pass --steps-per-epoch" in done.out
    law = parse_law(f"timm:beta=0.97,warmup={int(warmup)}")
    found = scan([tmp_path / "ckpts"], Config(steps_per_epoch=20)).require()
    raw = [s for s in found if s.series == "state_dict"]
    averages = [s for s in found if s.series == "state_dict_ema"]
    assert len(found) == len(raw) + len(averages)
    assert {s.tag.label for s in raw} == {"raw"}
    assert [s.tag.step for s in averages] == [s.tag.step for s in raw] == [20, 40, 60, 80, 100]
    for s in averages:
        assert s.trainers == ("timm",)
        assert s.tag.profile == law.profile(s.tag.step)
        stored = torch.load(s.checkpoint.path, weights_only=False)["state_dict_ema"]
        exact = trainers.average(s.tag.profile, path[: int(s.tag.step)])
        assert relative(trainers.flat(stored), exact) < 1e-6


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
def test_distributed_checkpoints_are_sources(tmp_path):
    """Directories of torch.distributed.checkpoint give what the same in safetensors gives."""
    random = torch.Generator().manual_seed(0)
    for step in (100, 200, 300):
        for gamma in (5, 10):
            ema = {n: torch.randn(40, 30, generator=random) for n in ("a.w", "b.w")}
            state = {"model": dict(ema), "ema": ema, "optimizer": {"state": {0: ema["a.w"]}}}
            folder = tmp_path / f"dcp/step{step}-gamma{gamma}"
            dcp.save(state, checkpoint_id=folder, no_dist=True)
            name = tmp_path / f"st/step{step}-gamma{gamma}.safetensors"
            name.parent.mkdir(exist_ok=True)
            save_file(ema, name)
    (tmp_path / "dcp/step400-gamma5").mkdir()
    shutil.copy(folder / "__0_0.distcp", tmp_path / "dcp/step400-gamma5")
    averages = ["--key", "ema", "--pattern", r"step(?P<step>\d+)-gamma(?P<gamma>\d+)"]
    averages += ["--trust-tags"]
    document = run("inspect", "dcp", *averages, "--json", cwd=tmp_path).json
    found = document["snapshots"]
    kinds = {(s["format"], s["key"], s["average"]) for s in found}
    assert kinds == {("dcp", "ema", "gamma 5"), ("dcp", "ema", "gamma 10")}
    assert {s["name"] for s in found} == {f.name for f in (tmp_path / "dcp").iterdir()} - {
        "step400-gamma5"
    }
    assert "is not complete" in document["findings"][0]["what"]
    for source, options in (("dcp", averages), ("st", [])):
        out = f"{source}.safetensors"
        run("synthesize", source, "-g", "7", "--no-sample", "-o", out, *options, cwd=tmp_path)
    assert (tmp_path / "dcp.safetensors").read_bytes()[-9600:] == (
        tmp_path / "st.safetensors"
    ).read_bytes()[-9600:]
    assert "2 identical" in run("diff", "dcp.safetensors", "st.safetensors", cwd=tmp_path).out
    alone = run("inspect", folder, "--gammas", "10", "--key", "ema")
    assert alone.out.startswith("1 snapshot")


def test_timm_weights_that_are_no_average(tmp_path):
    """The decay in the arguments says nothing of the weights beside the average."""
    trainers.timm(tmp_path / "ckpts", 3, 10, 0.97, warmup=True)
    found = scan([tmp_path / "ckpts"], Config(key="state_dict", average="raw")).require()
    assert {s.tag.label for s in found} == {"raw"}
    assert [s.tag.step for s in found] == [1, 2, 3]


def test_epochs_count_where_nothing_else_does(tmp_path):
    """An epoch beside a step, in the file or in its name, is passed over."""
    w = {"w": torch.ones(2)}
    torch.save({"epoch": 4, "model": w}, tmp_path / "a-step100-gamma5.pt")
    torch.save({"epoch": 4, "global_step": 200, "model": w}, tmp_path / "b-gamma5.pt")
    found = scan([tmp_path], Config(gammas=(5.0,)))
    assert [(s.tag.step, s.tag.unit) for s in found.require()] == [(100, "steps"), (200, "steps")]
    (tmp_path / "b-gamma5.pt").unlink()
    torch.save({"epoch": 4, "model": w}, tmp_path / "a-step100-gamma5.pt")
    torch.save({"epoch": 4, "model": w}, tmp_path / "c-gamma5.pt")
    found = scan([tmp_path], Config(exclude=("a*",), gammas=(5.0,)))
    assert [(s.tag.step, s.tag.unit) for s in found.require()] == [(5, "epochs")]
    assert any("times are in epochs" in f.error.what for f in found.findings)


def test_raw_checkpoints_are_samples_of_the_path(tmp_path):
    """Where no average was kept, --raw builds one from the weights themselves."""
    path = []
    for step, net in trainers.train(200):
        path.append(trainers.flat(net))
        if step % 10 == 0:
            torch.save(net.state_dict(), tmp_path / f"model-step{step}.pt")
    path = torch.stack(path)
    truth = trainers.average(PowerProfile(4.0, 200.0), path)
    made = synthesized(tmp_path, tmp_path, "--raw", "--gamma", 4, "--select", "model-*")
    assert relative(made, truth, path[-1] - truth) < 0.2


def test_one_file_under_two_names_is_one_snapshot(tmp_path):
    """Hard links, as timm makes for the best and the last, are not two snapshots."""
    torch.save({"w": torch.ones(2)}, tmp_path / "a-step1-gamma5.pt")
    os.link(tmp_path / "a-step1-gamma5.pt", tmp_path / "best.pt")
    assert [s.name for s in scan([tmp_path]).require()] == ["a-step1-gamma5.pt"]
    (tmp_path / "Best-step1-gamma5.pt").symlink_to(tmp_path / "a-step1-gamma5.pt")
    found = scan([tmp_path], Config(exclude=("B*", "b*"))).require()
    assert [s.name for s in found] == ["a-step1-gamma5.pt"]


def test_units_of_time_are_not_mixed(tmp_path):
    """Snapshots that count epochs and steps don't go together unless epochs have a length."""
    torch.save({"epoch": 1, "ema": {"w": torch.ones(2)}}, tmp_path / "a-gamma5.pt")
    torch.save({"global_step": 9, "ema": {"w": torch.ones(2)}}, tmp_path / "b-gamma5.pt")
    said = Config(gammas=(5.0,))
    errors = [f.error for f in scan([tmp_path], said).findings if f.level == "error"]
    assert len(errors) == 1
    assert "its time is in epochs, but that of b-gamma5.pt is in steps" in str(errors[0])
    found = scan([tmp_path], replace(said, steps_per_epoch=3)).require()
    assert [s.tag.step for s in found] == [6, 9]


def test_toml_says_all_of_it(tmp_path, every_tenth):
    """phema.toml may hold what the options say, the command line goes before it."""
    folder, _, _ = every_tenth
    shutil.copytree(folder, tmp_path / "ckpts")
    (tmp_path / "ckpts/phema.toml").write_text("sigma_rels = [0.05, 0.1]\nupdate_every = 10\n")
    found, doubts = inspected(tmp_path / "ckpts")
    assert not doubts
    assert {round(s["effective_gamma"], 4) for s in found} == {0.7972, -0.2063}
    done = phema("inspect", tmp_path / "ckpts", "--update-every", 5)
    assert done.code == 3
    assert "better as averages updated once in 10 steps" in done.out
    assert "; pass --update-every 10, or --trust-tags to insist" in done.out
    found, _ = inspected(tmp_path / "ckpts", "--update-every", 5, "--trust-tags")
    assert {round(s["effective_gamma"], 4) for s in found} == {2.5944, 0.5874}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("update_every = 0", "update_every must be a whole number from 1"),
        ("average = 'median'", "no average 'median'"),
        ("names_from = '../names.pt'", "names_from leads out of the directory"),
        ("names_from = '/names.pt'", "names_from leads out of the directory"),
        ("average = 3", "average must be a list of texts"),
        ("average = ['raw', 'median']", "no average 'median'"),
        ("raw = 1", "raw must be true or false"),
        ("[snapshots.a]\naverage = 'median'", "no average 'median'"),
        ("[snapshots.a]\ndecay = 3", "must be a table of gamma, sigma_rel or average"),
    ],
)
def test_toml_that_says_nonsense(tmp_path, text, message):
    """Entries that mean nothing are errors that name phema.toml."""
    (tmp_path / "phema.toml").write_text(text)
    with pytest.raises(InputError, match=message) as caught:
        scan([tmp_path])
    assert "phema.toml" in caught.value.where


def test_averages_of_single_snapshots(tmp_path):
    """A row of phema.toml, a gamma in a name, an average for the rest: each has its own."""
    for name in ("a-step1.pt", "b-step2-beta0.99.pt", "c-step3-gamma5.pt", "d-step4.pt"):
        torch.save({"w": torch.ones(2)}, tmp_path / name)
    (tmp_path / "phema.toml").write_text(
        "average = 'exponential:beta=0.9'\n"
        "[snapshots.'a-step1.pt']\naverage = 'uniform:last=0.5'\n"
        "[snapshots.'b-step2-beta0.99.pt']\naverage = 'exponential:beta=0.99'\n"
    )
    found = scan([tmp_path]).require()
    assert [s.tag.label for s in found] == [
        "uniform:last=0.5",
        "exponential:beta=0.99",
        "gamma 5",
        "exponential:beta=0.9",
    ]
    told = ["phema.toml", "phema.toml", "name", "phema.toml"]
    assert [s.tag.profile_origin for s in found] == told


@pytest.mark.parametrize("line", ["average = 'raw'", "raw = true"])
def test_raw_leaves_averages_out(tmp_path, line):
    """Where phema.toml says raw, averages beside the raw weights are left out with a notice."""
    for name in ("a-step1.pt", "b-step2-gamma5.pt", "c-step3.pt"):
        torch.save({"w": torch.ones(2)}, tmp_path / name)
    row = "[snapshots.'a-step1.pt']\naverage = 'uniform:last=0.5'\n"
    (tmp_path / "phema.toml").write_text(f"{line}\n{row}")
    found = scan([tmp_path])
    assert [s.tag.label for s in found.require()] == ["uniform:last=0.5", "raw"]
    (notice,) = [str(f.error) for f in found.findings if f.level == "notice"]
    assert notice.startswith("b-step2-gamma5.pt: left out: it is an average, and --raw takes")
    (tmp_path / "a-step1.pt").unlink()
    (tmp_path / "c-step3.pt").unlink()
    (only,) = scan([tmp_path]).require()
    assert (only.tag.label, only.tag.overrules) == ("raw", "power:gamma=5")


def test_two_averages_in_one_name_are_none(tmp_path):
    """A gamma and a beta in one name say no average; phema.toml does."""
    torch.save({"w": torch.ones(2)}, tmp_path / "a-step1-gamma5-beta0.9.pt")
    (error,) = [f.error for f in scan([tmp_path]).findings if f.level == "error"]
    assert "does not say whether it is an average" in str(error)
    (tmp_path / "phema.toml").write_text("[snapshots.'a-step1-gamma5-beta0.9.pt']\ngamma = 5\n")
    assert scan([tmp_path]).require()[0].tag.label == "gamma 5"


@pytest.mark.parametrize("key", [None, "ema"])
def test_a_gamma_of_one_file_is_its_averages(tmp_path, key):
    """What a row or a pattern says of a file is said of its average, not of the raw weights."""
    w = {"w": torch.ones(2)}
    for name in ("a3-step1.pt", "b4-step2.pt"):
        torch.save({"model": w, "ema": w}, tmp_path / name)
    (tmp_path / "phema.toml").write_text(
        "pattern = '^.(?P<gamma>.)'\n[snapshots.'a3-step1.pt']\ngamma = 5\n"
    )
    found = scan([tmp_path], Config(key=key)).require()
    averages = [s.tag.label for s in found if s.series == "ema"]
    assert averages == ["gamma 5", "gamma 4"]
    raw = [s.tag.label for s in found if s.series == "model"]
    assert raw == ([] if key else ["raw", "raw"])


def test_karras_average_of_one_gamma(tmp_path):
    """An average of ema-pytorch in a file is by --gammas one of its kind: its time is one later."""
    ema = {"initted": torch.tensor(True), "step": torch.tensor(7), "ema_model.w": torch.ones(2)}
    torch.save(ema, tmp_path / "a.pt")
    found = scan([tmp_path], Config(gammas=(5.0,)))
    (snapshot,) = found.require()
    assert snapshot.tag.profile == PowerProfile(5.0, 8.0)
    assert any("update_every is taken as 1" in f.error.what for f in found.findings)
    found = scan([tmp_path], Config(gammas=(5.0,), update_every=2))
    assert found.require()[0].tag.profile == parse_law("ema-pytorch:gamma=5,every=2").profile(7)
    assert [f.level for f in found.findings] == ["warning"]
