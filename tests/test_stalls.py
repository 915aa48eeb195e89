"""Averages that are kept in 16 bits while training, and lose their small updates."""

import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from phema_cli.profiles import ExponentialProfile, RawProfile
from phema_cli.solver import Sample
from phema_cli.solver.evidence import series_of
from phema_cli.solver.evidence.stalls import find_stalled
from tests.builders import phema

pytestmark = pytest.mark.slow

STEPS, STORED = 1280, 16
BETA = 0.995
LAW = ("--average", f"exponential:beta={BETA},start=1")
HALVES = (torch.float16, torch.bfloat16)


class Words(nn.Module):
    """Texts of words of which most are rare, as rows of a table or columns of a matrix."""

    def __init__(self, *, rows):
        super().__init__()
        self.rows = rows
        self.table = nn.Embedding(1000, 16) if rows else nn.Linear(1000, 16)
        self.head = nn.Linear(16, 20)

    def loss(self):
        odds = 1 / torch.arange(1, 1001.0) ** 1.1
        words = torch.multinomial(odds, 64, replacement=True).view(16, 4)
        if self.rows:
            hidden = self.table(words).mean(1)
        else:
            hidden = self.table(torch.zeros(16, 1000).scatter_(1, words, 0.25))
        return nn.functional.cross_entropy(self.head(hidden.relu()), words[:, 0] % 20)


class Curve(nn.Sequential):
    """A function of the plane."""

    def __init__(self):
        super().__init__(
            nn.Linear(2, 64), nn.SiLU(), nn.Linear(64, 64), nn.SiLU(), nn.Linear(64, 1)
        )

    def loss(self):
        at = torch.randn(32, 2).to(self[0].weight.dtype)
        return (self(at)[:, 0] - torch.sin(3 * at[:, 0]) * at[:, 1]).square().mean()


class Average:
    """An average of a model's weights, updated in a type of its own."""

    def __init__(self, model, dtype):
        self.dtype = dtype
        self.values = {n: v.detach().to(dtype).clone() for n, v in model.state_dict().items()}

    def update_parameters(self, model):
        """Update it as ``torch.optim.swa_utils.get_ema_multi_avg_fn`` does."""
        for name, value in model.state_dict().items():
            self.values[name].lerp_(value.to(self.dtype), 1 - BETA)

    def flat(self):
        """All elements, (e,) float64."""
        return torch.cat([v.flatten() for v in self.values.values()]).double()


def train(model, averages, turn=None):
    """Train a model, update averages of it at every step, and yield the steps to store.

    With ``turn`` each parameter is trained for so many steps, and then stands still.
    """
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    parameters = list(model.parameters())
    for step in range(1, STEPS + 1):
        optimizer.zero_grad()
        model.loss().backward()
        for i, parameter in enumerate(parameters):
            if turn is not None and step // turn % len(parameters) != i:
                parameter.grad = None
        optimizer.step()
        for average in averages:
            average.update_parameters(model)
        if step % (STEPS // STORED) == 0:
            yield step


@pytest.fixture(scope="module", params=HALVES, ids=str)
def runs(request, tmp_path_factory):
    """A run with its average kept in 16 bits, and the same in float32, stored in 16 bits."""
    torch.manual_seed(0)
    root = tmp_path_factory.mktemp("runs")
    model = Curve()
    right, kept = Average(model, torch.float32), Average(model, request.param)
    for name in ("kept", "right"):
        (root / name).mkdir()
    for step in train(model, [right, kept]):
        for name, average in (("kept", kept), ("right", right)):
            state = {n: v.to(request.param) for n, v in average.values.items()}
            content = {"step": step, "ema": state, "model": model.state_dict()}
            torch.save(content, root / name / f"ckpt_{step}.pt")
    return root


def test_an_average_kept_in_16_bits_is_refused(runs):
    """Alone, where nothing else can be compared, as beside raw weights."""
    for options in ((), ("--key", "ema")):
        done = phema("inspect", runs / "kept", *LAW, *options)
        assert done.code == 3
        assert "is kept in 16 bits during training" in done.out.replace("\n", " ")
    assert phema("inspect", runs / "kept", *LAW, "--trust-tags").code == 0


def test_an_average_stored_in_16_bits_is_right(runs):
    """Whatever it was kept in, rounding alone is no contradiction."""
    assert phema("inspect", runs / "right", *LAW).code == 0
    assert phema("inspect", runs / "right", *LAW, "--key", "ema").code == 0


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_the_average_of_a_model_in_bfloat16_is_refused(tmp_path):
    """``AveragedModel`` copies the model, and keeps what it copies in the model's type."""
    torch.manual_seed(0)
    model = Curve().bfloat16()
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(BETA))
    for step in train(model, [average]):
        content = {"step": step, "swa": average.state_dict(), "model": model.state_dict()}
        torch.save(content, tmp_path / f"ckpt_{step}.pt")
    done = phema("inspect", tmp_path, *LAW)
    assert done.code == 3
    assert "is kept in 16 bits" in done.out.replace("\n", " ")


def test_types_are_known_by_the_values(runs, tmp_path):
    """Tools store what was kept in bfloat16 as float32."""
    for path in (runs / "kept").iterdir():
        content = torch.load(path)
        content["ema"] = {n: v.float() for n, v in content["ema"].items()}
        torch.save(content, tmp_path / path.name)
    assert "is kept in 16 bits" in phema("inspect", tmp_path, *LAW).out.replace("\n", " ")


def stalled(rows, stored):
    """Whether snapshots of a float64 average are taken for one that is kept in 16 bits."""
    mask = torch.tensor([math.inf, -math.inf])
    values = torch.stack([torch.cat([row, mask]) for row in rows]).to(stored).float().numpy()
    times = np.arange(1, len(rows) + 1) * (STEPS / STORED)
    profiles = [ExponentialProfile(-math.log(BETA), t) for t in times]
    sample = Sample(values, np.zeros(values.shape[1]))
    raw = series_of([RawProfile(t) for t in times])
    assert find_stalled(raw, sample) == ()
    return find_stalled(series_of(profiles), sample) == (0,)


def both(model, stored, turn=None):
    """Whether the right average of a model, and the one kept in a type, are taken for stalled."""
    right, kept = Average(model, torch.float64), Average(model, stored)
    found = [(right.flat(), kept.flat()) for _ in train(model, [right, kept], turn)]
    rights, others = zip(*found, strict=True)
    return stalled(rights, stored), stalled(others, stored)


@pytest.mark.parametrize("stored", HALVES, ids=str)
@pytest.mark.parametrize("rows", [True, False])
def test_rare_words_are_not_taken_for_it(rows, stored):
    """What moves now and then in the weights moves all the time in their average."""
    torch.manual_seed(1)
    assert both(Words(rows=rows), stored) == (False, True)


@pytest.mark.parametrize("stored", HALVES, ids=str)
def test_weights_in_bfloat16_are_not_taken_for_it(stored):
    """These stand still themselves, and their average on them."""
    torch.manual_seed(2)
    assert both(Curve().bfloat16(), stored) == (False, True)


@pytest.mark.parametrize("stored", HALVES, ids=str)
def test_layers_that_are_trained_in_turn_are_not_taken_for_it(stored):
    """They stand still while others are trained, and their average soon after them."""
    torch.manual_seed(3)
    assert not both(Curve(), stored, turn=80)[0]
