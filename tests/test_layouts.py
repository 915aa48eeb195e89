"""Layouts: what real training libraries leave on disk is found, tagged and put together rightly."""

import os
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.distributed.checkpoint as dcp
from safetensors.torch import load_file, save_file

from phema_cli.errors import InputError, UsageError
from phema_cli.profiles import PowerProfile, gamma_from_sigma_rel
from phema_cli.snapshots import Config, scan
from phema_cli.trainers.registry import parse_law
from tests.builders import phema, run
from tests.runs import base, libraries
from tests.runs.diffusion import dit

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
    return base.flat(load_file(out))


def inspected(folder, *options):
    """The snapshots that inspect finds, and its findings but the notices."""
    found = run("inspect", folder, "--json", *options).json
    return found["snapshots"], [f for f in found["findings"] if f["level"] != "notice"]


def ema_pytorch(folder, widths, every):
    """A run with ema-pytorch: its directory, and its own synthesis by gamma."""
    ema = libraries.run_post_hoc_ema(folder, widths, every, checkpoint_dtype=torch.float32)
    return folder, lambda gamma: base.flat(
        ema.synthesize_ema_model(gamma=gamma).ema_model.state_dict()
    )


@pytest.fixture(scope="module")
def every_step(tmp_path_factory):
    """A run with update_every=1."""
    return ema_pytorch(tmp_path_factory.mktemp("lucid") / "ckpts", (0.05, 0.28), 1)


@pytest.fixture(scope="module")
def every_tenth(tmp_path_factory):
    """A run with update_every=10."""
    return ema_pytorch(tmp_path_factory.mktemp("lucid10") / "ckpts", (0.05, 0.1), 10)


@pytest.mark.parametrize("widths", [(0.05, 0.28), (0.28, 0.05)])
def test_an_average_that_is_too_long_to_be_of_use(tmp_path, widths):
    """PostHocEMA's own widths with update_every=10: the messages lead to what can be averaged."""
    folder, _ = ema_pytorch(tmp_path / "ckpts", widths, 10)
    given = ("synthesize", folder, "-g", 1, "-o", tmp_path / "o.pt")
    short, long = widths.index(0.05), widths.index(0.28)
    lost = phema(*given, "--no-sample")
    assert "pass --gammas or --sigma-rels, as set in the trainer" in lost.err
    said = ("--sigma-rels", ",".join(map(str, widths)))
    assert "; pass --update-every, as the trainer was told; else" in phema(*given, *said).err
    done = phema(*given, *said, "--update-every", 10, verified=False)
    assert done.code == 0, done.err
    assert f"notice: {long}.100.pt and 19 others: left out: gamma 0.169344 averaged" in done.err
    assert phema("verify", tmp_path / "o.pt", folder, *said, "--update-every", 10).code == 0
    # The options are recorded.
    assert phema("verify", tmp_path / "o.pt", folder).code == 0
    # One value is that of the one index that is left.
    only = ("--select", f"{short}.*", "--sigma-rels", 0.05, "--update-every", 10)
    assert len(inspected(folder, *only)[0]) == 20
    alone = phema(*given, "--select", f"{long}.*", "--sigma-rels", 0.28, "--update-every", 10)
    assert alone.code == 3
    assert "too long to be of use (and 19 more: see phema inspect); check" in alone.err


@pytest.fixture(scope="module")
def lists(tmp_path_factory):
    """A run whose averages are lists without names."""
    folder = tmp_path_factory.mktemp("lists") / "run"
    return libraries.accelerate_list(folder).folder


def test_ema_pytorch_is_found(every_step):
    """Index and step come from the name, the time is one later, bookkeeping is no tensor."""
    folder, _ = every_step
    found, doubts = inspected(folder, "--sigma-rels", "0.05,0.28")
    assert len(found) == 40
    assert {s["layout"] for s in found} == {"ema-pytorch"}
    assert {(s["step"], s["time"]) for s in found} == {(t, t + 1) for t in base.STORED}
    assert {s["gamma"] for s in found} == {gamma_from_sigma_rel(s) for s in (0.05, 0.28)}
    assert {s["tensors"] for s in found} == {len(base.names())}
    assert [d["remedy"].split(",")[0] for d in doubts] == ["pass --update-every"]


def test_ema_pytorch_without_its_gammas(every_step):
    """One line says what is missing, for all files at once, and one how to go on.

    What the values look like is proposed only if it is a power function, which others can't be.
    """
    folder, _ = every_step
    done = phema("inspect", folder)
    assert done.code == 3
    missing, way = done.out.splitlines()
    assert "and 39 others" in missing
    assert "--sigma-rels" in missing
    assert way == f"try: phema inspect {folder} --gammas G1,G2"


@pytest.mark.parametrize("gamma", [1.0, 4.0, 12.0])
def test_ema_pytorch_synthesizes_the_same(every_step, tmp_path, gamma):
    """With the times that ema-pytorch takes (n for n + 1) its projection comes out the same."""
    folder, synthesize = every_step
    shutil.copytree(folder, tmp_path / "ckpts")
    rows = [
        f"[snapshots.'{path.name}']\naverage = 'power:sigma_rel={(0.05, 0.28)[int(path.name[0])]}'"
        for path in folder.glob("*.pt")
    ]
    (tmp_path / "ckpts/phema.toml").write_text("\n".join(rows))
    options = ["--gamma", gamma, "--method", "projection"]
    made = synthesized(tmp_path / "ckpts", tmp_path, *options)
    theirs = synthesize(gamma)
    assert np.linalg.norm(made - theirs) < 1e-6 * np.linalg.norm(theirs)


def test_ema_pytorch_is_met_better(every_step, tmp_path):
    """With the right times phema is nearer to the true average than ema-pytorch itself."""
    folder, synthesize = every_step
    truth = base.walk().power(4.0)[base.STEPS]
    options = ["--sigma-rels", "0.05,0.28", "--update-every", 1, "--gamma", 4]
    mine = base.missed(synthesized(folder, tmp_path, *options), truth)
    theirs = base.missed(synthesize(4.0), truth)
    assert mine < 0.02
    assert mine < theirs


def test_sparse_updates_are_taken_for_what_they_are(every_tenth, tmp_path):
    """With update_every=10 phema meets the true average where ema-pytorch is far off."""
    folder, synthesize = every_tenth
    truth = base.walk().power(1.0)[base.STEPS]
    options = ["--sigma-rels", "0.05,0.1", "--update-every", 10, "--gamma", 1]
    mine = base.missed(synthesized(folder, tmp_path, *options), truth)
    theirs = base.missed(synthesize(1.0), truth)
    assert mine < 0.1
    assert theirs > 5 * mine


def test_effective_gamma_is_shown(every_tenth):
    """Both are shown: the gamma that the trainer was told and the one that it came to."""
    folder, _ = every_tenth
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
    folder, _ = every_tenth
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
    folder, _ = every_tenth
    (tmp_path / "ckpts").mkdir()
    for path in folder.glob("*.pt"):
        state = {n.removeprefix("ema_model."): v for n, v in torch.load(path).items()}
        torch.save(state, tmp_path / "ckpts" / path.name)
    options = ["--sigma-rels", "0.05,0.1", "--update-every", 10]
    found, doubts = inspected(tmp_path / "ckpts", *options)
    assert not doubts
    assert found == inspected(folder, *options)[0]


def test_accelerate_lists_need_names(lists, tmp_path):
    """Lists of tensors are refused in one line, and take their names from a state dict."""
    done = phema("inspect", lists)
    assert done.code == 3
    (error,) = [line for line in done.out.splitlines() if line.startswith("error: ")]
    assert "without names; pass --names-from" in error
    named = ["--names-from", lists.with_name("names.pt")]
    found, _ = inspected(lists, *named)
    assert sorted(s["average"] for s in found).count("raw") == 20
    assert len(found) == 40
    # The buffers are in the raw weights alone: without these the averages are a part of a model.
    done = phema("inspect", lists, *named, "--exclude", "model.safetensors")
    assert done.code == 3
    assert "averages a part of the model, and no snapshot has the rest" in done.out
    shutil.copytree(lists, tmp_path / "run")
    shutil.copy(lists.with_name("names.pt"), tmp_path / "run/checkpoint-50/names.pt")
    (tmp_path / "run/phema.toml").write_text(
        "names_from = 'checkpoint-50/names.pt'\nexclude = ['names.pt']\n"
    )
    found = scan([tmp_path / "run"]).require()
    assert len(found) == 40
    for s in found:
        if s.tag.label != "raw":
            assert list(s.checkpoint.tensors) == list(base.named(base.walk().rows[0]))


def test_names_must_fit(lists, tmp_path):
    """A reference of another model, or one whose order is lost, is refused with the remedy."""
    torch.save({"a": torch.ones(3)}, tmp_path / "few.pt")
    other = {n: torch.ones(2) for n in base.named(base.walk().rows[0])}
    torch.save(other, tmp_path / "other.pt")
    for names, message in (
        ("few.pt", "but few.pt has names for 1"),
        ("other.pt", "stem.weight in other.pt has"),
        (lists / "checkpoint-50/model.safetensors", "in the model's order"),
    ):
        options = ["--exclude", "model.safetensors", "--names-from", tmp_path / names]
        done = phema("inspect", lists, *options)
        assert done.code == 3
        assert message in done.out


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
    left = libraries.timm(tmp_path)
    found = scan([left.folder], Config(key="state_dict", average="raw")).require()
    assert {(s.tag.label, s.trainers) for s in found} == {("raw", ("timm",))}
    assert [(s.tag.step, s.tag.unit) for s in found] == [(n, "epochs") for n in range(1, 21)]


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
    for step in base.STORED:
        torch.save(base.raw(step), tmp_path / f"model-step{step}.pt")
    made = synthesized(tmp_path, tmp_path, "--raw", "--gamma", 4, "--select", "model-*")
    assert base.missed(made, base.walk().power(4.0)[base.STEPS]) < 0.2


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


def test_options_that_nothing_needs(tmp_path):
    """A file that is not there is an error, and what changes nothing a notice, if no path needs it.

    A phema.toml may be about other files.
    """
    for name, time in (("steps", {"global_step": 10}), ("epochs", {"epoch": 2})):
        (tmp_path / name).mkdir()
        torch.save({**time, "ema": {"w": torch.ones(2)}}, tmp_path / name / "a-gamma5.pt")
    steps, epochs, names = tmp_path / "steps", tmp_path / "epochs", tmp_path / "names.pt"
    idle = "notice: --names-from is not used: all tensors have names\n"
    alone = "notice: --steps-per-epoch is not used: no snapshot counts epochs\n"
    given = ("--gammas", 5, "--trust-tags")
    done = phema("weights", steps, "-g", 5, *given, "--names-from", names)
    assert (done.code, done.err) == (3, f"phema: {names}: no such file or directory\n")
    torch.save({"w": torch.ones(2)}, names)
    done = phema("weights", steps, "-g", 5, *given, "--names-from", names, "--steps-per-epoch", 3)
    assert done.code == 0
    assert idle in done.err
    assert alone in done.err
    done = phema("weights", steps, epochs, "-g", 5, *given, "--steps-per-epoch", 3)
    assert done.code == 0
    assert alone not in done.err
    (steps / "phema.toml").write_text("steps_per_epoch = 3\nnames_from = 'a-gamma5.pt'\n")
    assert "is not used" not in phema("weights", steps, "-g", 5, *given).err


def test_toml_says_all_of_it(tmp_path, every_tenth):
    """phema.toml may hold what the options say, the command line goes before it."""
    folder, _ = every_tenth
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


def test_raw_is_one_of_several_averages(tmp_path):
    """Several laws go to the series that --key names, and ``raw`` is one."""
    dit(tmp_path)
    config = Config(key="ema,model", average=("exponential:beta=0.996", "raw"))
    found = {s.series: s.tag.label for s in scan([tmp_path], config).require()}
    assert found == {"ema": "exponential:beta=0.996", "model": "raw"}
    both = ("exponential:beta=0.996", "exponential:beta=0.9", "raw")
    with pytest.raises(UsageError, match="gives 3 averages, and --key names 2 series"):
        scan([tmp_path], Config(key="ema,model", average=both))
