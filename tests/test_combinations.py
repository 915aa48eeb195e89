"""Combinations of snapshots as they are: plain means of checkpoints, and weights of the user's."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import phema_cli
from tests.builders import phema

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
