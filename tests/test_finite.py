"""Values that are not finite: counted and refused, or averaged where the user says so."""

import math

import pytest
import torch
from safetensors.torch import load_file, save_file

from phema_cli.errors import InputError
from tests.builders import phema, synthesize

F8 = torch.float8_e5m2


def write(folder, tensors):
    """One snapshot of each dict of tensors."""
    folder.mkdir()
    for number, values in enumerate(tensors):
        metadata = {"gamma": str((5.0, 10.0)[number % 2]), "step": str(number // 2 + 1)}
        save_file(values, folder / f"s{number}.safetensors", metadata)
    return folder


def four(dtype, elements=300_000):
    """Tensors of four snapshots, large enough that a sample does not see all of them."""
    generator = torch.Generator().manual_seed(0)
    return [
        {
            "a": torch.randn(elements, generator=generator).to(dtype),
            "b": torch.randn(elements, generator=generator).to(dtype),
        }
        for _ in range(4)
    ]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16, F8])
@pytest.mark.parametrize("gammas", ["7", "6,7,8,9"])
def test_they_are_counted_by_tensor_and_file(tmp_path, dtype, gammas):
    """NaN and infinities that not all sources have; nothing is written."""
    snapshots = four(dtype)
    snapshots[1]["b"][200_001] = math.nan
    snapshots[2]["b"][[7, 299_999]] = torch.tensor([math.inf, -math.inf]).to(dtype)
    folder = write(tmp_path / "in", snapshots)
    run = phema("synthesize", "-g", gammas, folder, "--no-sample", "-o", tmp_path / "o")
    assert run.code == 3
    assert "3 values are not finite: 1 in tensor b of s1" in run.err
    assert "2 in tensor b of s2" in run.err
    assert "--allow-nonfinite" in run.err
    assert not (tmp_path / "o").exists()


@pytest.mark.parametrize("sample", [[], ["--no-sample"]])
def test_they_can_be_allowed(tmp_path, sample):
    """With --allow-nonfinite they come out as arithmetic has them, and nothing else changes."""
    clean = four(torch.float16)
    odd = [{name: value.clone() for name, value in part.items()} for part in clean]
    for part in odd:
        part["b"][5] = math.nan
    options = ["-g", "7", "--allow-nonfinite", *sample]
    made = []
    for name, snapshots in (("clean", clean), ("odd", odd)):
        folder = write(tmp_path / name, snapshots)
        out = tmp_path / f"{name}.safetensors"
        assert phema("synthesize", folder, *options, "-o", out).code == 0
        made.append(load_file(out)["b"])
    assert made[1].isnan().sum() == 1
    if sample:
        made[1][5] = made[0][5]
        assert torch.equal(*made)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_infinities_that_all_share_are_no_harm(tmp_path, dtype):
    """A mask of -inf in every snapshot is written as it is."""
    snapshots = four(dtype)
    for part in snapshots:
        part["b"][::3] = -math.inf
    (out,) = synthesize(write(tmp_path / "in", snapshots), gamma=7, output=tmp_path / "o")
    assert bool((load_file(out)["b"][::3] == -math.inf).all())
    assert bool(load_file(out)["a"].isfinite().all())


@pytest.mark.parametrize(("dtype", "large"), [("float16", 70_000.0), ("float8_e5m2", 1e5)])
def test_an_average_too_large_for_its_type_is_an_error(tmp_path, dtype, large):
    """The tensor is named, also where another target is in range, and nothing is written."""
    snapshots = four(torch.float32, 3000)
    for part in snapshots:
        part["b"][2999] = large
    folder = write(tmp_path / "in", snapshots)
    with pytest.raises(InputError, match=rf"tensor b: an average is too large for {dtype}"):
        synthesize(folder, gamma=[7, 8], dtype=dtype, output=tmp_path / "o")
    assert not (tmp_path / "o").exists()
    assert synthesize(folder, gamma=[7, 8], dtype="bfloat16", output=tmp_path / "o")


def test_weights_of_both_signs_can_be_too_large(tmp_path):
    """Finite halves whose extrapolation is not: the same error, from sums that are direct."""
    snapshots = four(torch.float16, 3000)
    for number, part in enumerate(snapshots):
        part["a"][0] = (-1) ** number * 65_000.0
    folder = write(tmp_path / "in", snapshots)
    with pytest.raises(InputError, match="tensor a: an average is too large for float16"):
        synthesize(folder, gamma=3, sample=False, method="projection", output=tmp_path / "o")
