"""``phema plot``: pictures and the data of the curves."""

import re
import sys
from xml.dom import minidom

import numpy as np
import pytest
import torch
from PIL import Image

from tests.builders import phema, write_run

pytestmark = pytest.mark.slow


def plot(*arguments, **options):
    """A run that reads no tensors: the pictures are the same with little less."""
    return phema("plot", *arguments, "--no-sample", **options)


@pytest.mark.parametrize("ending", ["png", "svg", "pdf"])
def test_pictures_are_valid_and_the_same_every_time(ending, ckpts, tmp_path):
    """The file is what its ending says; a second run makes the same bytes, and leaves no others."""
    paths = [tmp_path / name / f"p.{ending}" for name in ("one", "two")]
    for path in paths:
        path.parent.mkdir()
        run = plot(ckpts, "-g", 7, "-o", path)
        assert (run.code, run.out, run.err) == (0, f"{path}\n", "")
        assert list(path.parent.iterdir()) == [path]
    content = paths[0].read_bytes()
    assert content == paths[1].read_bytes()
    if ending == "png":
        with Image.open(paths[0]) as image:
            image.load()
            assert image.width == 7 * 300
            assert image.convert("RGBA").getpixel((2, 2)) == (255, 255, 255, 255)
    elif ending == "svg":
        parsed = minidom.parseString(content)  # noqa: S318 - made a moment ago
        assert parsed.documentElement.tagName == "svg"
        assert b"<dc:date>" not in content
    else:
        assert content.startswith(b"%PDF-")
        assert b"CreationDate" not in content


def test_an_existing_picture_is_kept(ckpts, tmp_path):
    """Without --overwrite the file stays as it is, and the message says what to do."""
    path = tmp_path / "p.svg"
    path.write_text("mine")
    run = plot(ckpts, "-g", 7, "-o", path)
    assert (run.code, run.err) == (2, f"phema: {path}: exists already; pass --overwrite\n")
    assert path.read_text() == "mine"
    assert plot(ckpts, "-g", 7, "-o", path, "--overwrite").code == 0
    assert path.read_text().startswith("<?xml")


@pytest.mark.parametrize(
    ("name", "code", "message"),
    [
        ("p.jpg", 2, "'.jpg' is not a picture format; use .pdf, .png, .svg"),
        ("p", 2, "has no ending; use .pdf, .png, .svg"),
        ("none/p.png", 5, "no such directory"),
    ],
)
def test_pictures_that_cannot_be_are_refused_first(name, code, message, tmp_path):
    """Ending and directory are looked at before any snapshot is."""
    run = plot(tmp_path / "nowhere", "-g", 7, "-o", tmp_path / name)
    assert run.code == code
    assert message in run.err


def test_without_matplotlib_the_message_says_what_to_install(ckpts, tmp_path):
    """A picture needs the extra; the curves as numbers do without."""
    stub = tmp_path / "stub" / "matplotlib"
    stub.mkdir(parents=True)
    (stub / "__init__.py").write_text("raise ImportError('no matplotlib here')")
    where = ":".join(p for p in (str(stub.parent), *sys.path) if p)
    run = plot(ckpts, "-g", 7, "-o", tmp_path / "p.png", process=True, PYTHONPATH=where)
    assert run.code == 2
    assert run.err.endswith('pictures need matplotlib; pip install "phema-cli[plot]"\n')
    assert not (tmp_path / "p.png").exists()
    assert plot(ckpts, "-g", 7, "--json", process=True, PYTHONPATH=where).code == 0


def test_without_a_file_the_message_says_what_to_pass(tmp_path):
    """A picture needs a file, which is said before any snapshot is looked at."""
    run = plot(tmp_path / "nowhere", "-g", 7)
    assert (run.code, run.out) == (2, "")
    assert run.err == (
        "phema: a picture needs a file; pass -o FILE, or --json for the curves as numbers\n"
    )


@pytest.mark.parametrize(
    ("target", "step"),
    [
        ("raw", 100),
        ("raw", 60),
        ("uniform:last=0.2", 60),
        ("exponential:halflife=20", 100),
        ("csv:shape$_.csv", 60),
    ],
)
def test_every_kind_of_target_is_drawn(target, step, ckpts, tmp_path):
    """Targets without a density, with edges, from a table, and between two snapshots."""
    (tmp_path / "shape$_.csv").write_text("0,0\n50,1\n100,0.2\n")
    arguments = ("plot", ckpts, "--profile", target, "--step", step, "--no-sample")
    run = phema(*arguments, "--json", "-o", "p.svg", cwd=tmp_path)
    assert run.code == 0, run.err
    (found,) = run.json["targets"]
    assert found["curves"]["quantity"] == ("cumulative" if target == "raw" else "density")
    assert run.json["output"] == "p.svg"
    assert (tmp_path / "p.svg").stat().st_size > 10_000


def test_raw_snapshots_are_drawn_by_their_cumulative_weight(tmp_path):
    """Sources that are single points have no density: the achieved profile is a staircase."""
    write_run(tmp_path / "raw", gammas=(5.0,))
    for path in sorted((tmp_path / "raw").iterdir()):
        step = re.search(r"step(\d+)", path.name)[1]
        torch.save({"w": torch.ones(3) * int(step)}, tmp_path / "raw" / f"model-step{step}.pt")
        path.unlink()
    run = plot(tmp_path / "raw", "--raw", "-g", 7, "--json")
    assert run.code == 0, run.err
    (found,) = run.json["targets"]
    assert found["curves"]["quantity"] == "cumulative"
    weights = [s["weight"] for s in found["sources"]]
    achieved = np.array(found["curves"]["achieved"])
    np.testing.assert_allclose(np.unique(achieved.round(12)), [0, *np.cumsum(weights)[:-1]])


def test_json_has_the_curves_and_the_range(ckpts):
    """Curves of one length, their difference, the range; figures and weights are those solved."""
    run = plot(ckpts, "-g", "7,40", "--json")
    solved = phema("weights", ckpts, "-g", "7,40", "--no-sample", "--json").json["targets"]
    for found, same in zip(run.json["targets"], solved, strict=True):
        curves = {k: np.array(v) for k, v in found["curves"].items() if k != "quantity"}
        assert {len(v) for v in curves.values()} == {len(curves["times"])}
        np.testing.assert_array_equal(curves["difference"], curves["achieved"] - curves["target"])
        assert found["sigma_error"] == pytest.approx(same["sigma_error"])
        assert [s["weight"] for s in found["sources"]] == pytest.approx(
            [s["weight"] for s in same["sources"]]
        )
    reach = run.json["reach"]
    assert (reach[0]["sigma_rel"], reach[-1]["sigma_rel"]) == (0.01, 0.2875)


def test_more_targets_than_a_picture_holds_are_refused(ckpts, tmp_path):
    """Nine are too many to see, not too many for a document."""
    run = plot(ckpts, "-g", "1,2,...,9", "-o", tmp_path / "p.svg")
    assert run.code == 2
    assert "9 targets do not fit into one picture; pass at most 8" in run.err
    assert len(plot(ckpts, "-g", "1,2,...,9", "--json").json["targets"]) == 9


def test_eight_targets_and_many_gammas_fit_a_narrow_picture(tmp_path):
    """The smallest picture of the most targets is drawn without a warning."""
    write_run(tmp_path / "ckpts", gammas=(1.0, 2.0, 4.0, 8.0, 16.0, 32.0))
    path = tmp_path / "p.pdf"
    run = plot(tmp_path / "ckpts", "-g", "3,5,...,17", "--width", 3, "-o", path)
    assert (run.code, run.err) == (0, "")
    assert path.read_bytes().startswith(b"%PDF-")
