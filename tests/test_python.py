"""phema from Python: paths as people pass them, and what objects look like when they are shown."""

from pathlib import Path

import pytest
import torch

from phema_cli import PowerEMA, scan
from phema_cli.estimate.solve import measure
from phema_cli.request import Request
from phema_cli.synthesis import make_recipe
from tests.builders import synthesize, write_run


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
        (recipe.solution, "<Solution of 8 sources for 1 target: 1 "),
        (recipe.solution.figures[0], ": expected_error "),
        (recipe.tags, "<TagCheck "),
        (measured, "movement=<Movement measured at "),
        (ema, "<PowerEMA of gamma 5, 10 after 0 updates>"),
    ]
    for thing, text in shown:
        line = repr(thing)
        assert text in line
        assert "\n" not in line
        assert len(line) < 150 + len(str(tmp_path))
