"""What PowerEMA.save stores: element types, constant buffers, NaN, several writers."""

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from phema_cli import PowerEMA
from phema_cli.errors import UsageError
from tests.builders import ema_weights


def normed(*variances):
    """Averages of a model whose BatchNorm has these variances, of which the first was 0.999."""
    model = nn.Sequential(nn.Linear(2, len(variances)), nn.BatchNorm1d(len(variances)))
    ema = PowerEMA(model, (5, 10))
    for values in ((0.999, *variances[1:]), variances):
        model[1].running_var.copy_(torch.tensor(values))
        ema.update()
    return ema


@pytest.mark.parametrize(
    ("dtype", "largest", "remedy"),
    [
        (torch.float16, 65504, "torch.bfloat16 or torch.float32"),
        (torch.float8_e4m3fn, 448, "torch.bfloat16 or torch.float32"),
        (torch.float8_e5m2, 57344, "torch.bfloat16 or torch.float32"),
        (torch.bfloat16, float(torch.finfo(torch.bfloat16).max), "torch.float32"),
    ],
)
def test_values_beyond_the_storage_dtype_are_refused(dtype, largest, remedy, tmp_path):
    """The tensor is named, with its magnitude and a type that holds it."""
    normed(1.0, largest).save(tmp_path / "fits", dtype=dtype)
    above = 1.08 * largest if dtype is not torch.bfloat16 else 3.4e38
    ema = normed(1.0, above)
    with pytest.raises(UsageError) as caught:
        ema.save(tmp_path / "beyond", dtype=dtype)
    what = f"1.running_var holds {above:.6g}, above {str(dtype)[6:]}'s {largest:.6g}"
    assert str(caught.value) == f"{what}; save with dtype={remedy}"
    assert not (tmp_path / "beyond").exists()
    stored = load_file(ema.save(tmp_path / "wide", dtype=torch.float32)[1])
    assert stored["1.running_var"].tolist() == pytest.approx([1.0, above], rel=1e-5)


def test_every_tensor_beyond_the_storage_dtype_is_counted(tmp_path):
    """The largest is named, and how many others there are."""
    model = nn.Linear(2, 2)
    ema = PowerEMA(model)
    with torch.no_grad():
        model.weight.fill_(-2e5)
        model.bias.fill_(7e4)
    ema.update()
    with pytest.raises(UsageError, match=r"weight holds 200000.*as 1 more tensor\)"):
        ema.save(tmp_path, dtype=torch.float16)


def test_averages_that_are_not_finite_are_stored_and_named(tmp_path):
    """A NaN in a weight of one step stays in its average: each save warns, and writes the rest."""
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    ema = PowerEMA(model)
    ema.update()
    ema.save(tmp_path)
    with torch.no_grad():
        model[0].weight[1, 1] = float("nan")
        model[1].running_var[0] = float("inf")
        ema.update()
        model[0].weight[1, 1] = 0.0
    ema.update()
    words = r"at step 3 the averages of 0\.weight, 1\.running_var are not finite"
    with pytest.warns(RuntimeWarning, match=words):
        stored = load_file(ema.save(tmp_path, dtype=torch.float16)[0])
    assert stored["0.weight"].isnan().tolist() == [[False, False], [False, True]]
    assert stored["1.running_var"].isfinite().tolist() == [False, True]
    assert stored["0.bias"].isfinite().all()


class Fixed(nn.Module):
    """Float buffers that never change, and one that does."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(2, 2)
        self.register_buffer("features", torch.linspace(0.1, 1e6, 7))
        self.register_buffer("schedule", torch.linspace(0, 1, 5, dtype=torch.float64) ** 3)
        self.register_buffer("mask", torch.full((3, 3), float("-inf")).triu(1))
        self.register_buffer("third", torch.tensor([1 / 3], dtype=torch.bfloat16))
        self.register_buffer("mean", torch.zeros(2))


CONSTANT = ("features", "schedule", "mask", "third")


@pytest.mark.parametrize("dtype", [None, torch.float16, torch.bfloat16])
def test_buffers_that_never_change_are_stored_exactly(dtype, tmp_path):
    """Fourier features, noise schedules and masks keep their bits and type; across a resume too."""
    model = Fixed()
    ema = PowerEMA(model, (5, 10))
    for step in range(2000):
        model.mean.fill_(step)
        ema.update()
    again = PowerEMA(Fixed(), (5, 10))
    again.load_state_dict(ema.state_dict())
    again.update()
    for paths in (ema.save(tmp_path / "one", dtype=dtype), again.save(tmp_path / "two")):
        for path in paths:
            stored = load_file(path)
            for name in CONSTANT:
                held = getattr(model, name)
                assert stored[name].dtype == held.dtype
                assert torch.equal(stored[name], held)
    assert load_file(ema.save(tmp_path, dtype=dtype)[0])["mean"].dtype == (dtype or torch.float32)
    average = ema.average(5)
    assert all(torch.equal(average[n], getattr(model, n)) for n in CONSTANT)


def test_a_buffer_that_changed_and_came_back_is_averaged(tmp_path):
    """What a buffer holds now says nothing of what it held at the steps before."""
    model = nn.BatchNorm1d(1)
    ema = PowerEMA(model, (5,))
    for value in (0.0, 1.0, 0.0):
        model.running_mean.fill_(value)
        ema.update()
    stored = load_file(ema.save(tmp_path, dtype=torch.float16)[0])["running_mean"]
    weight = ema_weights(5, 3, np.arange(1, 4))[1]
    assert (stored.dtype, stored.item()) == (torch.float16, pytest.approx(weight, rel=1e-3))


@pytest.mark.parametrize("dtype", [torch.int8, torch.bool, torch.float8_e8m0fnu])
def test_storage_dtypes_that_hold_no_average_are_refused(dtype, tmp_path):
    """Integers have no fractions and a bare exponent no sign: nothing is written."""
    with pytest.raises(UsageError, match=f"can't be stored as {str(dtype)[6:]}; pass dtype="):
        normed(1.0).save(tmp_path / "out", dtype=dtype)
    assert not (tmp_path / "out").exists()


def test_ranks_without_a_process_group_may_save_the_same_names(tmp_path):
    """Writers that start together all end well, and leave what one of them alone leaves."""
    model = nn.Linear(100, 100)
    ranks = [PowerEMA(model) for _ in range(4)]
    for ema in ranks:
        ema.update()
    together = threading.Barrier(len(ranks))

    def save(ema):
        for turn in range(10):
            together.wait(timeout=20)
            ema.save(tmp_path / str(turn), dtype=torch.float16)

    with ThreadPoolExecutor(len(ranks)) as pool:
        list(pool.map(save, ranks))
    alone = ranks[0].save(tmp_path / "alone", dtype=torch.float16)
    for turn in range(10):
        written = sorted((tmp_path / str(turn)).iterdir())
        assert [p.name for p in written] == sorted(p.name for p in alone)
        assert {p.read_bytes() for p in written} == {p.read_bytes() for p in alone}
