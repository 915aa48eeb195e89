"""Combinations of snapshots as they are: plain means of checkpoints, and weights of the user's."""

import json
import re

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import phema_cli
from phema_cli.errors import UsageError
from tests.builders import phema
from tests.runs.diffusion import k_diffusion

STEPS = range(500, 5001, 500)


def states(count=10):
    """A walk of a small model, with an integer beside its weights."""
    torch.manual_seed(3)
    weights = {"a.weight": torch.randn(40, 30), "a.bias": torch.randn(40)}
    for number in range(count):
        weights = {k: v + 0.1 * torch.randn_like(v) for k, v in weights.items()}
        yield weights | {"seen": torch.tensor(number)}


@pytest.fixture
def checkpoints(tmp_path):
    """Ten raw checkpoints that don't say what they are, by step."""
    folder = tmp_path / "run"
    folder.mkdir()
    stored = dict(zip(STEPS, states(), strict=True))
    for step, state in stored.items():
        save_file(state, folder / f"model-step{step}.safetensors")
    return folder, stored


def assert_combination(path, parts):
    """The file holds the sum of states with weights, to float32's rounding."""
    made = load_file(path)
    for name in ("a.weight", "a.bias"):
        exact = sum(weight * state[name].double() for state, weight in parts)
        error = (made[name].double() - exact).abs().max()
        assert error <= 4 * torch.finfo(torch.float32).eps * exact.abs().max()


@pytest.mark.parametrize(
    ("said", "steps"),
    [
        ("last=5", STEPS[-5:]),
        ("first=3", STEPS[:3]),
        ("from=1500,to=3000", range(1500, 3001, 500)),
        ("to=1000", [500, 1000]),
        ("last=2,to=4000", [3500, 4000]),
        ("last=1", [5000]),
    ],
)
def test_mean_of_checkpoints(tmp_path, checkpoints, said, steps):
    """It is the mean in float64, of snapshots that need not say what they are."""
    folder, stored = checkpoints
    out = tmp_path / "out.safetensors"
    assert phema("synthesize", folder, "--profile", f"checkpoints:{said}", "-o", out).code == 0
    assert_combination(out, [(stored[step], 1 / len(steps)) for step in steps])
    assert load_file(out)["seen"] == stored[steps[-1]]["seen"]


def test_mean_up_to_a_step(tmp_path, checkpoints):
    """--step leaves later ones out."""
    folder, stored = checkpoints
    out = tmp_path / "out.safetensors"
    asked = ("--profile", "checkpoints:last=2", "--step", 3000)
    assert phema("synthesize", folder, *asked, "-o", out).code == 0
    assert_combination(out, [(stored[2500], 0.5), (stored[3000], 0.5)])


def test_mean_beside_a_solved_target(tmp_path, checkpoints):
    """Both in one pass; the mean has no verdict, and --max-error is about the other one."""
    folder, stored = checkpoints
    asked = ("--raw", "-g", 3, "--profile", "checkpoints:last=4")
    shown = phema("weights", folder, *asked, "--json").json["targets"]
    assert [t["verdict"] == "exact" for t in shown] == [False, True]
    assert shown[1]["expected_error"] == 0
    alone = phema("weights", folder, "--raw", "-g", 3, "--json").json["targets"]
    assert [s["weight"] for s in shown[0]["sources"]] == [s["weight"] for s in alone[0]["sources"]]
    done = phema("synthesize", folder, *asked, "--max-error", 1e-9, "-o", tmp_path)
    assert done.code == 1
    assert "gamma 3" in done.err
    done = phema("synthesize", folder, *asked, "-o", tmp_path)
    assert done.code == 0
    assert_combination(done.out.split()[1], [(stored[s], 0.25) for s in STEPS[-4:]])


def test_mean_is_exact_whatever_the_limit(tmp_path, checkpoints):
    """--max-error passes."""
    folder, _ = checkpoints
    out = tmp_path / "out.safetensors"
    asked = ("--profile", "checkpoints:last=5", "--max-error", 1e-12)
    done = phema("synthesize", folder, *asked, "-o", out)
    assert done.code == 0
    assert "exact" in done.err


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ("last=11", "there are 10 checkpoints up to step 5000"),
        ("from=5500", "there are 0 checkpoints"),
        ("last=0.2", "uniform:last=0.2 is the average of a fraction"),
        ("last=2,first=3", "needs last, first, or from and to"),
        ("", "needs last, first"),
        ("last=0", "from 1 on"),
        ("last=nan", "from 1 on"),
        ("last=two", "'last=two' is not a parameter"),
        ("last=2,last=3", "given twice"),
        ("from=3,to=2", "no step is from 3 to 2"),
        ("every=2", "needs last, first"),
        ("last=5,", "'' is not a parameter"),
    ],
)
def test_means_that_there_are_not(checkpoints, said, words):
    """One line that says why."""
    done = phema("weights", checkpoints[0], "--profile", f"checkpoints:{said}")
    assert done.code == 2
    assert words in done.err
    assert len(done.err.splitlines()) == 1


def test_mean_needs_one_series(tmp_path, checkpoints):
    """Of raw weights and an average beside them the user says which."""
    folder, stored = checkpoints
    for step, state in stored.items():
        average = {f"average.{k}": v * 2 for k, v in state.items() if k != "seen"}
        path = folder / f"model-step{step}.safetensors"
        path.unlink()
        nested = {"state_dict": state, "ema": {k[8:]: v for k, v in average.items()}}
        torch.save(nested, path.with_suffix(".pt"))
    asked = ("--profile", "checkpoints:last=2")
    done = phema("synthesize", folder, *asked)
    assert done.code == 2
    assert "a mean of one series, and there are 2" in done.err
    out = tmp_path / "out.safetensors"
    assert phema("synthesize", folder, *asked, "--raw", "-o", out).code == 0
    assert_combination(out, [(stored[4500], 0.5), (stored[5000], 0.5)])
    asked = (*asked, "--key", "ema", "--overwrite")
    assert phema("synthesize", folder, *asked, "-o", out).code == 0
    assert_combination(out, [(stored[4500], 1.0), (stored[5000], 1.0)])


WEIGHTS = {5000: 0.75, 4500: 0.75, 4000: -0.25}


@pytest.mark.parametrize(
    "lines",
    [
        """snapshot,weight
model-step5000.safetensors,0.75
model-step4500.safetensors,0.75
model-step4000.safetensors,-0.25
""",
        "5000,0.75\n\n4500, 0.75\n4e3,-0.25\n500,0\n",
        '"run/model-step5000.safetensors",0.75\r\n4500,.75\r\n4000,-.25',
        "\ufeff" + json.dumps({f"model-step{s}.safetensors": w for s, w in WEIGHTS.items()}),
    ],
)
def test_weights_as_they_are(tmp_path, checkpoints, lines):
    """By name, by path or by step; of any sign and sum, which is shown."""
    folder, stored = checkpoints
    given = tmp_path / "mine.csv"
    given.write_text(lines, encoding="utf-8")
    out = tmp_path / "out.safetensors"
    done = phema("synthesize", folder, "--weights", given, "-o", out)
    assert done.code == 0
    assert "weights:mine" in done.err
    assert "1.250000" in done.err
    assert_combination(out, [(stored[s], w) for s, w in WEIGHTS.items()])
    assert phema("verify", out, folder, "--full").code == 0


def test_weights_that_phema_prints(tmp_path, checkpoints):
    """What ``phema weights --json`` gives for one target makes the same file."""
    folder, _ = checkpoints
    solved = phema("weights", folder, "--raw", "-g", 5, "--json")
    (tmp_path / "w.json").write_text(solved.out, encoding="utf-8")
    one, other = tmp_path / "one.safetensors", tmp_path / "other.safetensors"
    assert phema("synthesize", folder, "--weights", tmp_path / "w.json", "-o", one).code == 0
    assert phema("synthesize", folder, "--raw", "-g", 5, "-o", other).code == 0
    made, wanted = load_file(one), load_file(other)
    assert all(torch.equal(made[name], wanted[name]) for name in wanted)
    several = phema("weights", folder, "--raw", "-g", "5,6", "--json")
    (tmp_path / "w.json").write_text(several.out, encoding="utf-8")
    done = phema("synthesize", folder, "--weights", tmp_path / "w.json")
    assert done.code == 3
    assert "several targets" in done.err


def test_published_weights_of_five(tmp_path, checkpoints):
    """Minus-sqrt of the last five, oldest first, as Megatron and WSM publish them."""
    folder, stored = checkpoints
    left = 1 - np.sqrt(np.arange(6) / 5)
    weights = left[:-1] - left[1:]
    assert weights.round(3).tolist() == [0.447, 0.185, 0.142, 0.12, 0.106]
    steps = STEPS[-5:]
    given = {f"model-step{s}.safetensors": float(w) for s, w in zip(steps, weights, strict=True)}
    out = tmp_path / "out.safetensors"
    phema_cli.synthesize(folder, weights=given, output=out)
    assert_combination(out, [(stored[s], w) for s, w in zip(steps, weights, strict=True)])


def test_a_soup_has_no_times(tmp_path):
    """Files of several runs, of any name, averaged by name; the output of phema among them."""
    for number, state in enumerate(states(3)):
        (tmp_path / "soup" / "abc"[number]).mkdir(parents=True)
        save_file(state, tmp_path / "soup" / "abc"[number] / "final.safetensors")
    given = tmp_path / "soup.csv"
    given.write_text("a/final.safetensors,0.5\nb/final.safetensors,0.5\n", encoding="utf-8")
    first = tmp_path / "soup" / "d.safetensors"
    assert phema("synthesize", tmp_path / "soup", "--weights", given, "-o", first).code == 0
    a, b, c = states(3)
    assert_combination(first, [(a, 0.5), (b, 0.5)])
    done = phema("synthesize", tmp_path / "soup", "--weights", given, cwd=tmp_path)
    assert done.out == "phema-weights-soup.safetensors\n"
    given.write_text("c/final.safetensors,0.25\nd.safetensors,0.75\n", encoding="utf-8")
    out = tmp_path / "out.safetensors"
    assert phema("synthesize", tmp_path / "soup", "--weights", given, "-o", out).code == 0
    assert_combination(out, [(a, 0.375), (b, 0.375), (c, 0.25)])


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        ("model-step5500.safetensors,1", "no snapshot is called 'model-step5500.safetensors'"),
        ("5000,1\nmodel-step5000.safetensors,1", "gives a weight to model-step5000.safetensors"),
        ("5000,1\n5000,1", "gives '5000' two weights"),
        ("5000,1\n4500,much", "'much' is not a weight"),
        ("5000,inf", "not finite"),
        ("5000,0", "gives no snapshot a weight"),
        ("", "gives no snapshot a weight"),
        ("5000", "not a line of snapshot,weight"),
        ('{"5000": true}', "not a weight"),
        ('{"5000": [1]}', "[1] is not a weight"),
        (f'{{"5000": 1{"0" * 400}}}', "not finite"),
        ("{", "does not hold weights"),
        ("[" * 100_000, "not a line of"),
        ('{"a": ' * 100_000, "does not hold weights"),
        ('{"targets": [{"sources": 3}]}', "does not hold weights"),
        ('{"5000": 1e999}', "not finite"),
        ("\x00,1", "no snapshot is called"),
    ],
)
def test_weights_that_are_none(tmp_path, checkpoints, lines, words):
    """One line that names the file, and nothing is written."""
    given = tmp_path / "w.csv"
    given.write_text(lines, encoding="utf-8")
    done = phema("synthesize", checkpoints[0], "--weights", given, cwd=tmp_path)
    assert done.code == 3
    assert words in done.err
    assert "w.csv" in done.err
    assert len(done.err.splitlines()) == 1
    assert sorted(p.name for p in tmp_path.iterdir()) == ["run", "w.csv"]


@pytest.mark.parametrize(
    ("profile", "words"),
    [
        ("uniform:last=5", "pass --profile checkpoints:last=5"),
        ("csv:steps.csv", "pass --weights with that file"),
        ("uniform:last=2000", None),
        ("uniform:last=0.2", None),
        ("csv:other.csv", None),
    ],
)
def test_a_window_of_steps_is_no_number_of_checkpoints(tmp_path, checkpoints, profile, words):
    """A warning where a profile over time looks like one over snapshots, else none."""
    (tmp_path / "steps.csv").write_text("".join(f"{s},1\n" for s in STEPS), encoding="utf-8")
    (tmp_path / "other.csv").write_text("0,0\n5000,1\n", encoding="utf-8")
    asked = (checkpoints[0], "--raw", "--profile", profile)
    for command in ("weights", "synthesize"):
        done = phema(command, *asked, cwd=tmp_path)
        assert done.code == 0
        assert ("warning:" in done.err) == (words is not None)
        assert words is None or words in " ".join(done.err.split())


def save(path, value):
    """A model of one tensor."""
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({"w": torch.full((3,), float(value))}, path)


def values(path):
    """Its value, the same in all elements."""
    (value,) = set(load_file(path)["w"].tolist())
    return value


def test_made_up_times_are_no_names(tmp_path):
    """Files without a time have an order, which nobody can ask for."""
    for number, seed in enumerate(("seed11", "seed12", "seed2", "seed1")):
        save(tmp_path / "soup" / seed / "model.safetensors", 10**number)
    given = tmp_path / "w.csv"
    given.write_text("2,1\n", encoding="utf-8")
    out = tmp_path / "o.safetensors"
    done = phema("synthesize", tmp_path / "soup", "--weights", given, "-o", out)
    assert done.code == 3
    assert "no snapshot is called '2'" in done.err
    given.write_text("seed2,1\n", encoding="utf-8")
    assert phema("synthesize", tmp_path / "soup", "--weights", given, "-o", out).code == 0
    assert values(out) == 100


@pytest.mark.parametrize("first", ["4500,50%", "4500,", "4500,1/3", "4500,wieght"])
def test_a_first_line_that_is_no_heading(tmp_path, checkpoints, first):
    """Only the word weight makes it one; a weight that is none is not passed over."""
    (tmp_path / "w.csv").write_text(f"{first}\n4000,0.5\n", encoding="utf-8")
    done = phema("weights", checkpoints[0], "--weights", tmp_path / "w.csv")
    assert done.code == 3
    assert "is not a weight" in done.err


def test_a_name_that_stands_twice_in_json(tmp_path, checkpoints):
    """JSON lets the last one win; a combination does not."""
    (tmp_path / "w.json").write_text('{"4000": 0.25, "4500": 0.25, "4000": 0.5}', encoding="utf-8")
    done = phema("weights", checkpoints[0], "--weights", tmp_path / "w.json")
    assert done.code == 3
    assert "two weights" in done.err


def test_a_mean_of_files_of_two_averages_is_chosen_by_their_names(ckpts):
    """No dict tells them apart, so that --key can't."""
    asked = ("weights", ckpts, "--profile", "checkpoints:last=2")
    done = phema(*asked)
    assert done.code == 2
    assert done.err.endswith("there are 2: gamma 10, gamma 5; pass --select with a glob of one\n")
    assert phema(*asked, "--select", "*gamma5*").code == 0


def test_weights_of_a_file_of_several_averages_come_back(tmp_path):
    """What ``phema weights`` prints makes the same average, whatever else lies in the files."""
    k_diffusion(tmp_path / "run")
    found = phema("weights", tmp_path / "run", "-g", 7, "--json").json
    (tmp_path / "w.json").write_text(json.dumps(found), encoding="utf-8")
    for name, target in (("solved", ("-g", 7)), ("given", ("--weights", tmp_path / "w.json"))):
        done = phema("synthesize", tmp_path / "run", *target, "-o", tmp_path / f"{name}.pt", "-q")
        assert done.code == 0, done.err
    same = phema("diff", tmp_path / "solved.pt", tmp_path / "given.pt", "--tolerance", 0)
    assert same.code == 0, same.out
    (tmp_path / "w.csv").write_text("model_00000500.pth,1\n", encoding="utf-8")
    done = phema("weights", tmp_path / "run", "--weights", tmp_path / "w.csv")
    assert done.code == 3
    (written,) = re.findall("write '(.*)', or pass --raw or --key", done.err)
    (tmp_path / "w.csv").write_text(f'"{written}",1\n', encoding="utf-8")
    assert phema("weights", tmp_path / "run", "--weights", tmp_path / "w.csv").code == 0


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (
            ["checkpoint-100/unet", "checkpoint-200/unet", "checkpoint-250/unet_ema"],
            "unet raw, unet_ema raw",
        ),
        (
            ["run1/checkpoint-100", "run1/checkpoint-200", "run2/checkpoint-250"],
            "run1 raw, run2 raw",
        ),
    ],
)
def test_a_mean_is_of_one_place(tmp_path, names, said):
    """Directories that are not times tell series apart."""
    for number, name in enumerate(names):
        save(tmp_path / "d" / name / "diffusion_pytorch_model.safetensors", number)
    asked = ("synthesize", tmp_path / "d", "--raw", "--profile", "checkpoints:last=2")
    done = phema(*asked)
    assert done.code == 2
    assert said in done.err
    out = tmp_path / "o.safetensors"
    chosen = ("--exclude", names[-1])
    assert phema(*asked, *chosen, "-o", out).code == 0
    assert values(out) == 0.5


def test_soups_of_directories_whose_files_have_the_same_names(tmp_path):
    """They are called by the directories given, in records, tables and weights."""
    for run, value in (("runA", 1), ("runB", 100)):
        for step in (10, 20):
            save(tmp_path / run / f"checkpoint-{step}.safetensors", value * step)
    given = tmp_path / "w.csv"
    given.write_text("runA/checkpoint-10.safetensors,0.5\nrunB/checkpoint-20.safetensors,0.5\n")
    out = tmp_path / "o.safetensors"
    runs = (tmp_path / "runB", tmp_path / "runA")
    assert phema("synthesize", *runs, "--weights", given, "-o", out).code == 0
    assert values(out) == 1005
    assert phema("verify", out, *runs[::-1], "--full").code == 0
    printed = phema("weights", *runs, "--weights", given, "--json")
    (tmp_path / "w.json").write_text(printed.out, encoding="utf-8")
    again = tmp_path / "again.safetensors"
    assert phema("synthesize", *runs, "--weights", tmp_path / "w.json", "-o", again).code == 0
    assert values(again) == 1005


def test_a_combination_inside_of_its_own_directory(tmp_path, checkpoints):
    """What was written before is no snapshot, unless it is named."""
    folder, stored = checkpoints
    given = tmp_path / "w.csv"
    given.write_text("4500,0.5\n5000,0.5\n", encoding="utf-8")
    asked = ("synthesize", folder, "--weights", given, "-o", f"{folder}/", "--overwrite")
    first, second = phema(*asked), phema(*asked)
    assert first.code == second.code == 0
    assert first.out == second.out == f"{folder}/phema-step0005000-weights-w.safetensors\n"
    assert_combination(second.out.strip(), [(stored[4500], 0.5), (stored[5000], 0.5)])


def test_the_step_of_a_combination_is_its_own(tmp_path, checkpoints):
    """Records and names have the time of its last snapshot; --step has no say."""
    folder, _ = checkpoints
    given = tmp_path / "w.csv"
    given.write_text("1000,0.5\n1500,0.5\n", encoding="utf-8")
    shown = phema("weights", folder, "--weights", given, "--json").json["targets"]
    assert [t["step"] for t in shown] == [1500]
    done = phema("weights", folder, "--weights", given, "--step", 1200)
    assert done.code == 2
    done = phema("synthesize", folder, "--profile", "checkpoints:from=1000,to=2000", cwd=tmp_path)
    assert done.out == "phema-step0002000-checkpoints-from1000-to2000.safetensors\n"


def test_a_sum_that_is_not_one_is_told(tmp_path, checkpoints):
    """A notice; what is asked for is made."""
    given = tmp_path / "w.csv"
    given.write_text("4500,0.5\n5000,0.4\n", encoding="utf-8")
    done = phema("weights", checkpoints[0], "--weights", given)
    assert "notice: weights:w: its weights sum to 0.9, not to 1" in done.err
    given.write_text("4500,0.333333\n5000,0.666666\n", encoding="utf-8")
    assert phema("weights", checkpoints[0], "--weights", given).err == ""


@pytest.mark.parametrize("given", [{"4500": "much"}, {"4500": None}, {4500: [1]}])
def test_weights_from_python_that_are_none(checkpoints, given):
    """An error of phema's."""
    with pytest.raises(UsageError, match="is not a weight"):
        phema_cli.synthesize(checkpoints[0], weights=given)


def test_a_snapshot_has_one_weight_from_python_too(tmp_path, checkpoints):
    """A step as a number and as a text are one name, as in a file."""
    given = {4500: 0.5, "4500": 0.5}
    with pytest.raises(UsageError, match="gives '4500' two weights"):
        phema_cli.synthesize(checkpoints[0], weights=given, output=tmp_path / "o.safetensors")


def test_weights_from_python_by_step_and_path(tmp_path, checkpoints):
    """Whatever the snapshots are called there."""
    folder, stored = checkpoints
    given = {4500: 0.5, folder / "model-step5000.safetensors": 0.5}
    (out,) = phema_cli.synthesize(folder, weights=given, output=tmp_path / "o.safetensors")
    assert_combination(out, [(stored[4500], 0.5), (stored[5000], 0.5)])


@pytest.mark.parametrize(
    ("profile", "told"),
    [
        ("uniform:last=6000", True),
        ("decay:last=6e3steps,shape=sqrt", True),
        ("uniform: last = 6000", True),
        ("decay:last=5000steps", False),
        ("uniform:last=1", False),
        ("cooldown:last=5E-1", False),
    ],
)
def test_a_window_longer_than_the_run(checkpoints, profile, told):
    """All of the run counts, and a notice says so."""
    done = phema("weights", checkpoints[0], "--raw", "--profile", profile)
    assert done.code == 0
    assert ("longer than the 5000 steps" in done.err) == told


def test_raw_weights_that_are_stored_are_exact(tmp_path):
    """A copy has no error, however few snapshots there are; between two of them is an estimate."""
    for step in (10, 20):
        save_file({"w": torch.randn(50)}, tmp_path / f"weights-step{step}.safetensors")
    asked = ("weights", tmp_path, "--raw", "--profile", "raw", "--trust-tags", "--json")
    for options, verdict in (
        ((), "exact"),
        (("--step", 10), "exact"),
        (("--select", "*20*"), "exact"),
        (("--step", 15), "poor"),
    ):
        (target,) = phema(*asked, *options).json["targets"]
        assert target["verdict"] == verdict
    out = tmp_path / "o.pt"
    made = ("synthesize", tmp_path, *asked[2:-1], "-o", out, "--max-error", 0.1)
    assert phema(*made).code == 0
    assert phema("diff", out, tmp_path / "weights-step20.safetensors").code == 0
    refused = phema(*made, "--step", 15, "--overwrite")
    assert (refused.code, "raw has no expected_error" in refused.err) == (2, True)
