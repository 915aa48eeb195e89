"""PowerEMA in long runs: nothing is lost, resuming changes nothing, states of phema 0.1 load."""

import numpy as np
import pytest
import torch
from torch import nn

from phema_cli import PowerEMA
from tests.builders import ema_weights

pytestmark = pytest.mark.slow


def plain_state(model, gammas, step):
    """A state as phema 0.1 left it: averages in float32, here of weights that never moved."""
    values = {
        n: t.detach().clone().float()
        for n, t in model.state_dict().items()
        if t.is_floating_point()
    }
    return {"step": step, "gammas": list(gammas), "averages": [dict(values) for _ in gammas]}


def test_states_of_the_first_version_load():
    """Its float32 averages go on as they are, and buffers that never changed are known by them."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
    ema = PowerEMA(model, (5.0,))
    ema.load_state_dict(plain_state(model, (5.0,), 1_000_000))
    assert ema.step == 1_000_000
    before = {n: t.clone() for n, t in ema.average(5).items()}
    assert torch.equal(before["0.weight"], model[0].weight)
    with torch.no_grad():
        model[0].weight.add_(1.0)
    for _ in range(200):
        ema.update()
    after = ema.average(5)
    share = ema_weights(5, 1_000_200, np.arange(1_000_001, 1_000_201)).sum()
    moved = (after["0.weight"] - before["0.weight"]).detach().numpy()
    np.testing.assert_allclose(moved, share, atol=2e-7)
    assert torch.equal(after["1.running_var"], model[1].running_var)


@pytest.mark.parametrize("step", [1000, 1023, 1024, 1100, 5000])
def test_resuming_is_not_stopping_wherever_it_happens(step, tmp_path):
    """Stored and loaded between any two steps, and saved at any time, the bits are the same."""
    torch.manual_seed(0)
    model = nn.Linear(40, 30)
    state = plain_state(model, (5.0, 10.0), step - 40)
    whole, saved = PowerEMA(model), PowerEMA(model)
    for ema in (whole, saved):
        ema.load_state_dict(state)
    for turn in range(300):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter), alpha=1e-3)
        whole.update()
        saved.update()
        if turn % 40 == 39:
            saved.save(tmp_path)
            torch.save(saved.state_dict(), tmp_path / "ema.pt")
            saved = PowerEMA(model)
            saved.load_state_dict(torch.load(tmp_path / "ema.pt", weights_only=True))
    for gamma in (5, 10):
        one, two = whole.average(gamma), saved.average(gamma)
        assert all(torch.equal(one[n], two[n]) for n in one)


@pytest.mark.parametrize("begin", [10_000, 1_000_000, 100_000_000])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("drift", [2e-7, -2e-7, 2e-8])
def test_long_runs_lose_nothing(begin, dtype, drift):
    """Weights near 1 that drift a little each step: the average moves as the exact one does."""
    random = np.random.default_rng(0)
    model = nn.BatchNorm1d(256, dtype=dtype)
    ema = PowerEMA(model, (5.0,))
    ema.load_state_dict(plain_state(model, (5.0,), begin))
    exact = torch.ones(256, dtype=torch.float64)
    for step in range(1, 4001):
        noise = torch.from_numpy(random.standard_normal(256)) * 1e-6
        with torch.no_grad():
            model.weight.copy_(1 + drift * step + noise)
        ema.update()
        now = begin + step
        exact.lerp_(model.weight.detach().double(), 1 - (1 - 1 / now) ** 6)
    moved = float((ema.average(5)["weight"].double() - 1).mean() / (exact - 1).mean())
    # Single precision itself can't tell movements below a unit in its last place.
    slack = 0.02 + 2**-24 / abs(float((exact - 1).mean()))
    assert moved == pytest.approx(1, abs=slack)


def test_an_average_at_a_million_steps_is_the_closed_form():
    """Of any size, sign and place, a trajectory's average is exact to float32's rounding."""
    random = np.random.default_rng(1)
    begin, steps = 1_000_000, 1500
    model = nn.Linear(300, 40, bias=False)
    first = random.standard_normal((40, 300)) * 10.0 ** random.uniform(-6, 3, (40, 300))
    with torch.no_grad():
        model.weight.copy_(torch.from_numpy(first))
    gammas = (-0.4, 5.0, 40.0)
    ema = PowerEMA(model, gammas)
    ema.load_state_dict(plain_state(model, gammas, begin))
    exact = [model.weight.detach().double().clone() for _ in gammas]
    speed = torch.from_numpy(random.standard_normal((40, 300))) * model.weight.detach().abs()
    for step in range(1, steps + 1):
        with torch.no_grad():
            model.weight.add_(speed, alpha=1e-3)
        ema.update()
        for gamma, average in zip(gammas, exact, strict=True):
            average.lerp_(
                model.weight.detach().double(), 1 - (1 - 1 / (begin + step)) ** (gamma + 1)
            )
    for gamma, average in zip(gammas, exact, strict=True):
        error = (ema.average(gamma)["weight"].double() - average).abs()
        scale = torch.maximum(average.abs(), 1e-3 * model.weight.detach().abs())
        assert (error / scale).max() < 2e-7


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_weights_of_two_bytes_are_averaged_in_more(dtype):
    """A 16-bit weight that moves by one unit moves its average by that, times its share."""
    model = nn.Linear(3, 2, dtype=dtype)
    ema = PowerEMA(model, (5.0,))
    ema.load_state_dict(plain_state(model, (5.0,), 1_000_000))
    before = ema.average(5)["weight"].clone()
    with torch.no_grad():
        model.weight.mul_(1.5)
    for _ in range(300):
        ema.update()
    share = 1 - (1 - 300 / 1_000_300) ** 6
    moved = ema.average(5)["weight"] - before
    expected = share * (model.weight.detach().float() - before)
    assert torch.allclose(moved, expected, rtol=0, atol=6e-8)
