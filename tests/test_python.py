"""phema from Python: paths as people pass them, and what objects look like when they are shown."""

import json
from pathlib import Path

import pytest
import torch

from phema_cli import PowerEMA, scan
from phema_cli.estimate.solve import measure, solve_snapshots
from phema_cli.request import Request
from phema_cli.synthesis import make_recipe
from tests import notebook
from tests.builders import phema, synthesize, write_run
from tests.pages import ROOT, blocks, python, without_measured

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("kind", [str, Path])
def test_one_path_is_a_sequence_of_one(kind, ckpts, tmp_path):
    """A directory as it stands, a string or a Path, is what a list of it is."""
    one = scan(kind(ckpts))
    assert one == scan([ckpts])
    assert len(one.snapshots) == 8
    (made,) = synthesize(kind(ckpts), gamma=7, output=tmp_path / "ema.pt")
    assert made == tmp_path / "ema.pt"
    assert len(scan(kind(ckpts / one.snapshots[0].name)).snapshots) == 1


def test_a_scan_shows_what_it_has(ckpts):
    """Averages and steps, or how many averages; errors are counted."""
    assert repr(scan(ckpts)) == "<Scan of 8 snapshots: gamma 5, gamma 10; steps 25 to 100>"
    one = scan(ckpts / "ema-step0000025-gamma5.safetensors")
    assert repr(one) == "<Scan of 1 snapshot: gamma 5; step 25>"
    write_run(ckpts / "more", gammas=(6, 7, 8), steps=(100,))
    assert repr(scan(ckpts)).startswith("<Scan of 11 snapshots: 5 averages; steps")
    (ckpts / "ema-step0000125-gamma5.safetensors").write_bytes(b"broken")
    assert repr(scan(ckpts)).endswith("; 1 error>")


def test_objects_are_shown_in_a_line(ckpts, tmp_path):
    """Whatever tensors, headers or arrays they hold."""
    found = scan(ckpts)
    request = Request(gamma=7, output=tmp_path / "x.safetensors")
    recipe, _ = make_recipe(found, request)
    measured = measure(found, request)
    ema = PowerEMA(torch.nn.Linear(2, 1), (5, 10))
    shown = [
        (found.snapshots[0], "<Snapshot ema-step0000025-gamma5.safetensors: gamma 5 at step 25>"),
        (found.snapshots[0].tag, "<Tag gamma 5 at step 25>"),
        (found.snapshots[0].checkpoint, "3 tensors, safetensors>"),
        (recipe, "<Recipe of 8 sources: gamma 7 at step 100; 3 tensors>"),
        (recipe.outputs[0], "x.safetensors: 1 file, 3 tensors>"),
        (recipe.outputs[0].files[0].image, "<FileImage of 3 tensors, "),
        (
            solve_snapshots(found.snapshots, recipe.targets, measured),
            "<Solution of 8 sources for 1 target: 1 ",
        ),
        (recipe.figures[0], ": expected_error "),
        (recipe.tags, "<TagCheck "),
        (measured, "movement=<Movement measured at "),
        (ema, "<PowerEMA of gamma 5, 10 after 0 updates>"),
    ]
    for thing, text in shown:
        line = repr(thing)
        assert text in line
        assert "\n" not in line
        assert len(line) < 150 + len(str(tmp_path))


def test_the_notebook_shows_what_it_gives(tmp_path):
    """Its cells, run in a new Python, show what is stored in it, but for measured digits."""
    cells = notebook.cells()
    shown = notebook.run(["".join(cell["source"]) for cell in cells], tmp_path)
    for number, (cell, (printed, result)) in enumerate(zip(cells, shown, strict=True), 1):
        stored, now = cell["outputs"], notebook.outputs(printed, result, number)
        assert without_measured(json.dumps(stored)) == without_measured(json.dumps(now))
    assert (tmp_path / "best.safetensors").exists()
    assert len(cells) < 10


# --- BatchNorm ----------------------------------------------------------------------------------

NOTICE = (
    "notice: BatchNorm statistics (1.running_mean and 1 more) are not those of the averaged "
    "weights; load the result and call torch.optim.swa_utils.update_bn(loader, model)"
)


def normed(*layers):
    """A model with these layers after a linear one."""
    return torch.nn.Sequential(torch.nn.Linear(2, 2), *layers)


def tracked(model, folder):
    """Snapshots of a model that walks at random."""
    torch.manual_seed(0)
    ema = PowerEMA(model, (5, 10))
    for _ in range(4):
        for _ in range(10):
            model(torch.randn(8, 2))
            for parameter in model.parameters():
                parameter.data += 0.1 * torch.randn_like(parameter)
            ema.update()
        ema.save(folder)
    return folder


def run_in(place, *arguments):
    """Phema in a directory; it ends well."""
    run = phema(*arguments, cwd=place)
    assert run.code == 0, run.err
    return run


@pytest.mark.parametrize("command", ["synthesize", "sweep"])
def test_statistics_that_do_not_fit_are_said_once(command, tmp_path):
    """What they are and what to do, in one line on stderr, whatever the targets; not with -q."""
    layers = [torch.nn.BatchNorm1d(2), torch.nn.BatchNorm1d(2)]
    folder = tracked(normed(*layers), tmp_path / "in")
    how = ["-g", "6,7", "-o", "out"] + ["--eval", "echo {gamma}"] * (command == "sweep")
    run = run_in(tmp_path, command, folder, *how)
    assert [line for line in run.err.splitlines() if "BatchNorm" in line] == [NOTICE]
    assert "BatchNorm" not in run.out
    assert "BatchNorm" not in run_in(tmp_path, command, folder, *how, "-q", "--overwrite").err


def test_statistics_that_fit_are_not_mentioned(tmp_path):
    """Of models without any, with others by such a name, and of raw weights that are copied."""
    plain = tracked(normed(torch.nn.LayerNorm(2)), tmp_path / "plain")
    assert "BatchNorm" not in run_in(tmp_path, "synthesize", plain, "-g", "7").err
    alone = normed(torch.nn.Identity())
    alone.register_buffer("running_mean", torch.ones(2))
    alone = tracked(alone, tmp_path / "alone")
    assert "BatchNorm" not in run_in(tmp_path, "synthesize", alone, "-g", "7", "-o", "a.pt").err
    (tmp_path / "raw").mkdir()
    for step in (1, 2, 3):
        state = normed(torch.nn.BatchNorm1d(2)).state_dict()
        torch.save(state, tmp_path / "raw" / f"model-step{step}.pt")
    asked = ["synthesize", tmp_path / "raw", "--raw", "--no-sample", "--profile"]
    assert "BatchNorm" not in run_in(tmp_path, *asked, "raw", "-o", "b.pt").err
    assert "BatchNorm" in run_in(tmp_path, *asked, "uniform:last=0.9", "-o", "c.pt").err


def test_the_page_updates_statistics_for_the_better(tmp_path):
    """The loss of the page's model falls by what it says; no block of it is made up."""
    (code,) = (b.text for b in blocks(ROOT / "docs" / "api.md", "python") if "update_bn" in b.text)
    space = {"__name__": "__main__"}
    python(code, tmp_path, space)
    before, after = float(space["as_averaged"]), float(space["updated"])
    assert after < before
    with torch.no_grad():
        last = torch.nn.functional.cross_entropy(space["model"].eval()(space["x"]), space["label"])
    assert before < float(last)
    told = "from 0.24 to 0.22, where the last weights have 0.44"
    assert told in " ".join((ROOT / "docs" / "api.md").read_text().split())
