"""``phema pack``: snapshots of any trainer in fewer bytes, and the error foretold."""

import os
import random
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from phema_cli.errors import SignalError
from phema_cli.formats import packing
from phema_cli.formats.base import PARTIAL
from phema_cli.formats.reader import FileReader
from phema_cli.pack import request
from phema_cli.pack.plan import make_plan
from phema_cli.pack.write import LOG_NAME, write
from phema_cli.snapshots import scan
from phema_cli.system.log import Log
from tests import warm
from tests.builders import PHEMA, phema
from tests.injection import digests

STEPS = (100, 200, 300, 400, 500, 600)
KILLS = int(os.environ.get("PHEMA_KILLS", "5"))


def test_the_option_allows_what_the_format_does():
    """Help knows the longest chain without loading what reads one."""
    assert request.LONGEST_CHAIN == packing.LONGEST_CHAIN


def write_averages(folder, gammas=(5.0, 10.0), size=1003, dtype=torch.float32, **tensors):
    """Averages of one smooth run, with integers beside them."""
    generator = torch.Generator().manual_seed(0)
    start, pace = torch.randn(2, size, generator=generator)
    folder.mkdir(parents=True)
    for step in STEPS:
        for gamma in gammas:
            moved = start + 0.01 * pace * np.log(step / (gamma + 1))
            noise = 1e-5 * torch.randn(size, generator=generator)
            stored = {"w": (moved + noise).to(dtype), "seen": torch.tensor(step), **tensors}
            metadata = {"gamma": repr(gamma), "step": str(step)}
            save_file(stored, folder / f"s-step{step:07d}-gamma{gamma:g}.safetensors", metadata)
    return folder


def values(snapshot, name="w"):
    """A tensor of a snapshot as readers have it."""
    extent = snapshot.checkpoint.tensors[name]
    out = np.empty(extent.elements, np.float32)
    with FileReader() as reader:
        reader.read_elements(extent, 0, out.view(np.uint8).data)
    return out


@pytest.mark.parametrize(("bits", "worst"), [(16, 1e-6), (8, 2e-4), (4, 4e-3)])
def test_the_same_snapshots_in_fewer_bits(tmp_path, bits, worst):
    """Tags, integers and values stay what they were, within half a step; inputs are not touched."""
    source = write_averages(tmp_path / "in")
    before = digests(source)
    done = phema("pack", source, "-o", tmp_path / "out", "--bits", bits, "--keyframe-every", 5)
    assert done.code == 0, done.err
    assert digests(source) == before
    old, new = scan([source]).snapshots, scan([tmp_path / "out"]).snapshots
    assert [Path(line).name for line in done.out.splitlines()] == [s.name for s in new]
    assert [s.tag.profile for s in new] == [s.tag.profile for s in old]
    for one, other in zip(old, new, strict=True):
        np.testing.assert_allclose(values(other), values(one), rtol=0, atol=worst)
        assert load_file(tmp_path / "out" / other.name)["seen"] == one.tag.step
    keyframes = [s for s in new if s.checkpoint.tensors["w"].packed is None]
    assert [s.name for s in keyframes] == [new[i].name for i in (0, 5, 10)]
    assert all((values(s) == values(old[new.index(s)])).all() for s in keyframes)


def test_the_document_and_a_dry_run(tmp_path):
    """The error is foretold before anything is written, and grows as bits get fewer."""
    source = write_averages(tmp_path / "in")
    foretold = []
    for bits in (16, 8, 4):
        asked = ["--bits", bits, "--dry-run", "--json"]
        done = phema("pack", source, "-o", tmp_path / "out", *asked)
        assert done.code == 0, done.err
        assert not done.json["written"]
        foretold.append(done.json["expected_error"])
        stored = done.json["expected_error_stored"]
    assert stored <= foretold[0] < foretold[1] < foretold[2]
    assert not (tmp_path / "out").exists()
    shown = phema("pack", source, "-o", tmp_path / "out", "--dry-run", "-q")
    assert (shown.code, shown.err) == (0, "")
    assert shown.out.startswith("12 snapshots in 1 chain of 8 bits: ")


@pytest.mark.parametrize("bits", [16, 4])
def test_what_is_foretold_is_what_becomes(workplace, bits):
    """Before packing as after it; four bits cost ten times and more of what float32 gives."""
    asked = ["demo/ckpts", "-o", "packed", "--bits", bits]
    foretold = phema("pack", *asked, "--dry-run", "--json", cwd=workplace).json
    assert phema("pack", *asked, cwd=workplace).code == 0
    target = ["-g", repr(foretold["gamma"])]
    (made,) = phema("weights", "packed", *target, "--json", cwd=workplace).json["targets"]
    assert 0.7 < made["expected_error"] / foretold["expected_error"] < 1.4
    ratio = foretold["expected_error"] / foretold["expected_error_stored"]
    assert 10 < ratio < 1000 if bits == 4 else 1 <= ratio < 1.2


def test_an_error_above_the_limit(tmp_path):
    """Exit 1, and nothing is written."""
    source = write_averages(tmp_path / "in")
    asked = ["-o", tmp_path / "out", "--bits", 4, "--max-error", 1e-9]
    done = phema("pack", source, *asked)
    assert done.code == 1
    assert "would be above --max-error 1e-09" in done.err
    assert not (tmp_path / "out").exists()


def test_laws_that_metadata_cannot_say(tmp_path):
    """Raw weights and exponential averages keep their tags by a phema.toml beside the files."""
    folder = tmp_path / "in"
    folder.mkdir()
    generator = torch.Generator().manual_seed(0)
    for step in (10, 20, 30):
        torch.save({"w": torch.randn(99, generator=generator)}, folder / f"step_{step}.pt")
    for average in ("exponential:beta=0.99", "raw"):
        out = tmp_path / average[:3]
        asked = ["--average", average, "--trust-tags", "--keyframe-every", 2]
        done = phema("pack", folder, *asked, "-o", out)
        assert done.code == 0, done.err
        packed = scan([out]).require()
        assert [s.tag.step for s in packed] == [10, 20, 30]
        assert {s.tag.label for s in packed} == {average}


def test_what_belongs_to_the_weights_is_carried_or_named(tmp_path):
    """Metadata that loaders read go with the tensors; files beside them are named."""
    generator = torch.Generator().manual_seed(0)
    for step in (10, 20, 30):
        folder = tmp_path / "in" / f"checkpoint-{step}"
        folder.mkdir(parents=True)
        metadata = {"gamma": "5", "step": str(step), "ss_network_alpha": "8", "format": "pt"}
        weights = {"w": torch.randn(99, generator=generator)}
        save_file(weights, folder / "model.safetensors", metadata)
        (folder / "config.json").write_text('{"model_type": "llama"}')
    done = phema("pack", tmp_path / "in", "-o", tmp_path / "out", "--trust-tags")
    assert done.code == 0, done.err
    assert "not packed: config.json, which loaders of the weights need: keep these" in done.err
    out = tmp_path / "ema.safetensors"
    assert phema("synthesize", "-g", 7, tmp_path / "out", "--trust-tags", "-o", out).code == 0
    with safe_open(out, "pt") as file:
        assert file.metadata()["ss_network_alpha"] == "8"


def test_what_is_not_packed(tmp_path):
    """float64, and what --copy names, lie whole in each file; half types are packed."""
    wide = {"wide": torch.arange(7, dtype=torch.float64), "kept": torch.arange(5.0)}
    source = write_averages(tmp_path / "in", dtype=torch.bfloat16, **wide)
    done = phema("pack", source, "-o", tmp_path / "out", "--copy", "kept", "--trust-tags")
    assert done.code == 0, done.err
    with safe_open(sorted((tmp_path / "out").iterdir())[3], "pt") as file:
        assert set(file.keys()) == {"wide", "kept", "seen", "w.packed", "w.scales"}
        assert file.get_tensor("wide").tolist() == list(range(7))
    for one, other in zip(
        scan([source]).snapshots, scan([tmp_path / "out"]).snapshots, strict=True
    ):
        exact = load_file(source / one.name)["w"].float().numpy()
        np.testing.assert_allclose(values(other), exact, rtol=0, atol=1e-3)


def test_faults_leave_nothing(tmp_path):
    """Values that are not finite, bits that there are not, files in the way."""
    source = write_averages(tmp_path / "in")
    out = tmp_path / "out"
    path = source / "s-step0000300-gamma5.safetensors"
    good = path.read_bytes()
    bad = load_file(path)
    bad["w"][77] = torch.inf
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    save_file(bad, path, metadata)
    done = phema("pack", source, "-o", out)
    assert (done.code, done.err.count("\n")) == (3, 1)
    assert "tensor w holds" in done.err
    path.write_bytes(good)
    done = phema("pack", source, "-o", out, "--bits", 5)
    assert (done.code, "--bits must be 16, 8 or 4, not 5" in done.err) == (2, True)
    assert not out.exists()
    assert phema("pack", source, "-o", out).code == 0
    before = digests(out)
    done = phema("pack", source, "-o", out, "--bits", 4)
    assert (done.code, "exists already; choose another -o" in done.err) == (2, True)
    assert digests(out) == before


def test_no_directory_gets_each_snapshot_twice(tmp_path):
    """Among the snapshots themselves nothing is packed, however they and the place are named."""
    source = write_averages(tmp_path / "in")
    (tmp_path / "link").symlink_to(source)
    files = sorted(source.iterdir())
    for paths in ([source], files, [tmp_path / "link"]):
        for out in (source, source / "packed", tmp_path / "link/deep/packed"):
            done = phema("pack", *paths, "-o", out, "--dry-run")
            assert done.code == 2
            assert "pass -o with a directory outside of it" in done.err
    assert phema("pack", ".", "-o", "packed", cwd=source).code == 2
    refused = phema("pack", source, "-o", tmp_path / "all.safetensors")
    assert refused.code == 2
    assert "all.safetensors is the name of a file, and several are written" in refused.err
    assert sorted(source.iterdir()) == files
    assert phema("pack", *files, "-o", tmp_path / "in-packed", "-q").code == 0


def test_workers_and_memory_show_in_no_byte(tmp_path):
    """The same files for any number of workers and any memory."""
    source = write_averages(tmp_path / "in", size=40_000)
    for name, way in {"a": ["-j", 1], "b": ["-j", 5, "--max-memory", "1MB"]}.items():
        assert phema("pack", source, "-o", tmp_path / name, *way).code == 0
    assert digests(tmp_path / "a") == digests(tmp_path / "b")


@pytest.mark.usefixtures("_signals_end_it")
@pytest.mark.parametrize("when", ["before the log says so", "before the log goes", "after it"])
def test_an_end_beside_the_names_is_told(tmp_path, monkeypatch, when):
    """A signal when files have their names says that a run resumes, or that all are written."""
    found = scan([write_averages(tmp_path / "in")])
    out = tmp_path / "out"
    plan = make_plan(found, request.PackRequest(output=str(out), keyframe_every=3))
    append, unlock = Log.append, Log.unlock

    def appended(log, entry):
        if "chain" in entry and when == "before the log says so":
            raise SignalError(signal.SIGTERM)
        append(log, entry)

    def unlocked(log, *, remove=False):
        if remove and when == "before the log goes":
            monkeypatch.undo()
            raise SignalError(signal.SIGTERM)
        unlock(log, remove=remove)
        if remove and when == "after it":
            signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(Log, "append", appended)
    monkeypatch.setattr(Log, "unlock", unlocked)
    with pytest.raises(SignalError) as caught:
        write(plan)
    monkeypatch.undo()
    if when == "after it":
        assert caught.value.outcome == "all outputs are written"
    else:
        assert caught.value.__notes__ == [f"the same command resumes in {out}"]
        write(plan)
    assert len(scan([out]).require()) == 2 * len(STEPS)
    assert not (out / LOG_NAME).exists()


@pytest.mark.linux("signals to processes")
@pytest.mark.slow
def test_kills_at_any_moment(tmp_path):
    """What has its name is whole, and the same command goes on to the same bytes."""
    source = write_averages(tmp_path / "in", size=2_000_000)
    command = [PHEMA, "pack", source, "--keyframe-every", "3", "-q", "-o"]
    whole, out = tmp_path / "whole", tmp_path / "out"
    warm.run([*command, whole], check=True)
    expected = digests(whole)
    chance = random.Random(0)  # noqa: S311 - no secret
    resumed = 0
    for _ in range(KILLS):
        process = warm.popen([*command, out], stdout=subprocess.DEVNULL)
        chains = chance.randrange(4)
        while process.poll() is None and len(list(out.glob("*.safetensors"))) < 3 * chains:
            time.sleep(0.002)
        time.sleep(chance.uniform(0, 0.1))
        process.send_signal(chance.choice([signal.SIGKILL, signal.SIGTERM]))
        process.wait()
        complete = {p.name for p in out.glob("*.safetensors")} if out.exists() else set()
        if complete:
            found = digests(out)
            assert all(found[name] == expected[name] for name in complete)
            assert len(scan([out]).require()) == len(complete)
        resumed += 0 < len(complete) < len(expected)
        ended = complete == expected.keys() and not (out / LOG_NAME).exists()
        warm.run([*command, out], check=not ended)
        assert digests(out) == expected
        assert not list(out.glob(f"*{PARTIAL}"))
        for path in out.iterdir():
            path.unlink()
    assert resumed


def test_a_table_of_laws_that_is_there_is_kept(tmp_path):
    """Averages without a gamma need a phema.toml, which replaces none."""
    source = tmp_path / "in"
    source.mkdir()
    for step in STEPS:
        torch.save({"w": torch.randn(64)}, source / f"model-step{step}.pt")
    given = ("pack", source, "-o", tmp_path / "out", "--average", "exponential:beta=0.99", "-q")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "phema.toml").write_text("# mine\n")
    run = phema(*given)
    assert (run.code, run.err) == (
        2,
        f"phema: {tmp_path / 'out' / 'phema.toml'}: exists already; choose another -o\n",
    )
    assert [(p.name, p.read_text()) for p in (tmp_path / "out").iterdir()] == [
        ("phema.toml", "# mine\n")
    ]
    (tmp_path / "out" / "phema.toml").unlink()
    assert phema(*given).code == 0
    assert phema("inspect", tmp_path / "out", "-q", "--trust-tags").code == 0


@pytest.mark.parametrize("tied", [0, 2, 5])
def test_tensors_tied_in_some_snapshots_only(tmp_path, tied):
    """Whichever snapshot ties them: each file has both tensors as they were."""
    stored = []
    for i, step in enumerate(STEPS):
        a, b = torch.randn(2, 300)
        tensors = {"a": a, "b": a if i == tied else b}
        folder = tmp_path / "in"
        folder.mkdir(exist_ok=True)
        torch.save({"ema": tensors, "gamma": 5.0}, folder / f"s-step{step}-gamma5.pt")
        stored.append(tensors)
    done = phema("pack", folder, "-o", tmp_path / "out", "--key", "ema", "-q", "--trust-tags")
    assert done.code == 0, done.err
    found = scan([tmp_path / "out"]).require()
    for snapshot, tensors in zip(found, stored, strict=True):
        for name, value in tensors.items():
            np.testing.assert_allclose(values(snapshot, name), value.numpy(), atol=0.05)
