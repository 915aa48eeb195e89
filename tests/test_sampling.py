"""The sample: which elements are read, how they are decoded, and what stands against using them."""

import math

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from phema_cli.errors import InputError
from phema_cli.estimate import sample as sampling
from phema_cli.estimate.sample import PAGE_BYTES, sample
from phema_cli.snapshots import scan
from tests.builders import phema, write_run

pytestmark = pytest.mark.slow

DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


def write(directory, snapshots):
    """Snapshots of gamma 5, each a dict of tensors."""
    directory.mkdir(exist_ok=True)
    for step, tensors in enumerate(snapshots, start=1):
        metadata = {"gamma": "5.0", "step": str(step)}
        save_file(tensors, directory / f"s{step:02d}.safetensors", metadata)
    return scan([directory]).require()


def test_small_snapshots_are_read_whole(tmp_path):
    """Every element of every averaged tensor is there, in its own value, and its unit with it."""
    torch.manual_seed(0)
    snapshots = [
        {str(d): torch.randn(7, 11).to(d) for d in DTYPES}
        | {"count": torch.tensor(step), "narrow": torch.ones(8).to(torch.float8_e4m3fn)}
        for step in (1, 2, 3)
    ]
    found = sample(write(tmp_path, snapshots))
    assert found.values.shape == (3, 4 * 77)
    assert found.values.dtype == np.float64
    for row, tensors in zip(found.values, snapshots, strict=True):
        expected = torch.cat([tensors[str(d)].double().flatten() for d in DTYPES])
        assert sorted(row) == sorted(expected.tolist())
    # A unit in the last place is the distance to the next value away from 0.
    measured = set(zip(found.values[-1].tolist(), found.units.tolist(), strict=True))
    for dtype in DTYPES:
        last = snapshots[-1][str(dtype)].flatten()
        beyond = torch.nextafter(last, torch.sign(last) * math.inf) - last
        for value, gap in zip(last.tolist(), beyond.abs().tolist(), strict=True):
            assert (value, gap) in measured


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_unit_of_zero_is_the_smallest_number(tmp_path, dtype):
    """A stored 0 is exact to the smallest number of its type, not to the unit of 1."""
    snapshots = [{"w": torch.zeros(8, dtype=dtype)} for _ in range(2)]
    found = sample(write(tmp_path, snapshots))
    smallest = torch.nextafter(torch.zeros((), dtype=dtype), torch.ones((), dtype=dtype))
    assert set(found.units) == {smallest.item()}


@pytest.mark.parametrize("count", [2, 5])
def test_a_sample_is_bounded_and_spread_over_all_tensors(tmp_path, monkeypatch, count):
    """At most the given bytes of all snapshots together, in whole pages, of every tensor."""
    monkeypatch.setattr(sampling, "SAMPLE_BYTES", 40 * PAGE_BYTES * count)
    read = []
    original = sampling.FileReader.read_elements

    def counted(self, extent, start, out):
        read.append((extent.name, len(out)))
        original(self, extent, start, out)

    monkeypatch.setattr(sampling.FileReader, "read_elements", counted)
    tensors = {f"t{i:02d}": torch.randn(8 * PAGE_BYTES // 4 + i) for i in range(20)}
    snapshots = write(tmp_path, [tensors] * (count - 1) + [{k: v + 1 for k, v in tensors.items()}])
    found = sample(snapshots)
    assert sum(length for _, length in read) == 40 * PAGE_BYTES * count
    assert found.values.nbytes == 40 * PAGE_BYTES * count
    assert {name for name, _ in read} == set(tensors)
    again = sample(snapshots)
    np.testing.assert_array_equal(found.values, again.values)


def test_the_same_elements_of_every_snapshot(tmp_path, monkeypatch):
    """However the tensors lie in the files, a column is one element."""
    monkeypatch.setattr(sampling, "SAMPLE_BYTES", 30 * PAGE_BYTES)
    numbers = {n: torch.arange(20_000.0) + 1e5 * k for k, n in enumerate("abcd")}
    numbers["half"] = torch.arange(1000).half()
    backwards = dict(reversed(numbers.items()))
    found = sample(write(tmp_path, [numbers, backwards, numbers]))
    assert (found.values == found.values[0]).all()
    assert len(np.unique(found.values[0])) > 5000


def test_what_moves_beside_frozen_weights_is_found(tmp_path, monkeypatch):
    """A head that no page covers: its beginning is read, and the snapshots are not all alike."""
    monkeypatch.setattr(sampling, "SAMPLE_BYTES", 64 * PAGE_BYTES)
    write_run(tmp_path / "run")
    for path in (tmp_path / "run").iterdir():
        with safe_open(path, "pt") as file:
            metadata = file.metadata()
        rest = torch.linspace(-1, 1, 1 << 19)
        save_file(load_file(path) | {"a.frozen": rest, "z.frozen": rest[:9999] + 1}, path, metadata)
    found = sample(scan([tmp_path / "run"]).require())
    assert (found.values != found.values[-1]).any(axis=0).sum() == 4 * 3
    out = tmp_path / "o.safetensors"
    run = phema("synthesize", "-g", "7", tmp_path / "run", "-o", out, "--json")
    assert run.code == 0, run.err
    assert run.json["targets"][0]["verdict"] == "good"


def test_a_head_that_moves_far_more_is_found(tmp_path, monkeypatch):
    """Of weights that glide a little, and a few that walk far: the error is that of the few."""
    monkeypatch.setattr(sampling, "SAMPLE_BYTES", 128 * PAGE_BYTES)
    random = np.random.default_rng(0)
    walk = random.standard_normal((400, 500)).cumsum(axis=0)
    rest, glide = random.standard_normal((2, 1 << 18))
    means = {gamma: np.zeros(501) for gamma in (5, 7, 10)}
    folder = tmp_path / "run"
    folder.mkdir()
    for step, now in enumerate(walk, start=1):
        for gamma, mean in means.items():
            np.add(mean, (1 - (1 - 1 / step) ** (gamma + 1)) * (np.append(now, step) - mean), mean)
            if step % 25 == 0 and gamma != 7:
                backbone = torch.from_numpy(rest + 1e-6 * glide * mean[-1]).float()
                head = torch.from_numpy(mean[:-1]).float().view(10, 50)
                # What counts moves most of all, and is no weight.
                counts = torch.full((3,), 1e3 * step**2)
                # So does what averages copy.
                copied = torch.full((2, 300), float(walk[step - 1].sum()))
                tensors = {"a.backbone": backbone, "b.head": head}
                tensors |= {"c.counts": counts, "d.copied": copied}
                save_file(tensors, folder / f"step{step}-gamma{gamma}.safetensors")
    out = tmp_path / "out.safetensors"
    done = phema("synthesize", "-g", 7, folder, "-o", out, "--json")
    assert done.code == 0, done.err
    missed = load_file(out)["b.head"].flatten().double().numpy() - means[7][:-1]
    error = np.linalg.norm(missed) / np.linalg.norm(walk[-1] - means[7][:-1])
    assert error / 2 < done.json["targets"][0]["expected_error"] < error * 2


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_what_is_no_number_is_refused(tmp_path, bad):
    """An element that is not finite in one snapshot is an error that names tensor and file."""
    tensors = {"good": torch.ones(10), "layer.weight": torch.ones(10)}
    wrong = {
        "good": torch.ones(10),
        "layer.weight": torch.ones(10).index_fill(0, torch.tensor(3), bad),
    }
    snapshots = write(tmp_path, [tensors, wrong, tensors])
    with pytest.raises(InputError, match=r"tensor layer\.weight holds") as caught:
        sample(snapshots)
    assert "s02" in str(caught.value.where)
    run = phema("synthesize", "-g", 7, tmp_path, cwd=tmp_path)
    assert run.code == 3
    assert "layer.weight" in run.err
    assert "s02.safetensors" in run.err
    assert len(run.err.splitlines()) == 1
    inspected = phema("inspect", tmp_path)
    assert inspected.code == 3
    assert "layer.weight" in inspected.out
    assert sample(snapshots, copy=["layer.*"]) is not None


def test_infinities_alike_everywhere_are_masks(tmp_path):
    """They are left out of the sample and stand against nothing."""
    mask = torch.zeros(4, 4).masked_fill(torch.ones(4, 4).triu(1).bool(), -math.inf)
    snapshots = [{"mask": mask, "w": torch.randn(50)} for _ in range(4)]
    found = sample(write(tmp_path, snapshots))
    assert np.isfinite(found.values).all()
    assert found.values.shape[1] == 50 + 10
    run = phema(
        "synthesize", "-g", 7, tmp_path, "-o", tmp_path / "o" / "x.safetensors", cwd=tmp_path
    )
    assert run.code == 0, run.err


def test_nothing_to_sample_is_none(tmp_path):
    """Types narrower than 16 bits, or tensors that are copied, leave the assumed movement."""
    narrow = {"w": torch.ones(16).to(torch.float8_e5m2)}
    assert sample(write(tmp_path / "a", [narrow, narrow])) is None
    mixed = narrow | {"norm": torch.ones(15)}
    assert sample(write(tmp_path / "c", [mixed, mixed])) is None
    copied = write(tmp_path / "b", [{"w": torch.ones(3)}] * 2)
    assert sample(copied, copy=["w"]) is None


def test_no_sample_reads_no_tensor(tmp_path):
    """With --no-sample the figures are the assumed ones, and a NaN is not seen."""
    write_run(tmp_path)
    seen = phema("weights", "-g", 7, tmp_path, "--json").json["targets"][0]
    blind = phema("weights", "-g", 7, tmp_path, "--json", "--no-sample").json["targets"][0]
    assert seen["expected_rms"] > 0
    assert blind["expected_rms"] is None
    assert seen["sources"] != blind["sources"]
    movement = phema("inspect", tmp_path, "--json", "--no-sample").json["movement"]
    assert movement["measured"] is False


def test_movement_is_shown(tmp_path):
    """``inspect -v`` shows the drift of a walk of constant steps of 0.01, flat; and JSON has it."""
    write_run(tmp_path, shape=(40, 40), steps=tuple(range(25, 401, 25)))
    document = phema("inspect", tmp_path, "--json").json["movement"]
    assert document["measured"] is True
    late = [q for step, q in zip(document["steps"], document["drift"], strict=True) if step > 100]
    assert all(0.6e-4 < q < 1.6e-4 for q in late)
    shown = phema("inspect", tmp_path, "-v").out
    assert "Movement measured from a sample" in shown
    assert "rounding of stored values" in shown
    assert "assumed" in phema("inspect", tmp_path, "-v", "--no-sample").out


def test_synthesized_error_is_the_expected_one(tmp_path):
    """From files to file: the error of the written tensor is what was foretold."""
    walk = write_run(tmp_path / "run", shape=(40, 40), steps=tuple(range(25, 401, 25)))
    out = tmp_path / "out.safetensors"
    run = phema("synthesize", "-g", 20, tmp_path / "run", "-o", out, "--json")
    expected = run.json["targets"][0]["expected_rms"]
    from safetensors.torch import load_file

    from tests.builders import ema_weights

    truth = np.tensordot(ema_weights(20.0, 400, np.arange(1, 401)), walk, axes=1)
    error = np.sqrt(np.mean((load_file(out)["w"].numpy() - truth) ** 2))
    # Seven of the elements are a tensor that never moves, and count in the mean.
    assert error == pytest.approx(expected, rel=0.25)
    again = phema("synthesize", "-g", 20, tmp_path / "run", "-o", tmp_path / "b.safetensors", "-q")
    assert again.code == 0
    assert (tmp_path / "b.safetensors").read_bytes() == out.read_bytes()


def test_max_error_is_checked_against_the_measured_error(tmp_path):
    """A limit between two targets' errors stops before anything is written."""
    write_run(tmp_path / "run")
    good = phema("synthesize", "-g", 7, tmp_path / "run", "--max-error", 0.5, "-q", cwd=tmp_path)
    assert good.code == 0
    bad = phema("synthesize", "-g", 900, tmp_path / "run", "--max-error", 0.1, cwd=tmp_path)
    assert bad.code == 1
    assert "expected_error" in bad.err
    assert not list(tmp_path.glob("*gamma900*"))
