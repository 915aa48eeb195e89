"""An average in a model: loaded into it, or swapped in for an evaluation."""

import math
import os
import subprocess
from contextlib import nullcontext

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from phema_cli import PowerEMA, average, load_into
from phema_cli.errors import InputError, UsageError
from phema_cli.integrations import swapped
from phema_cli.request import Config
from tests import warm
from tests.builders import synthesize
from tests.pages import ROOT
from tests.sharded_training import Net
from tests.torch_files import raw_bytes

pytestmark = pytest.mark.slow


def train(model, *emas, steps=1):
    """Take steps on batches of its own."""
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    for step in range(steps):
        x = torch.arange(8).mul(step + 3).remainder(5)
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), x).backward()
        optimizer.step()
        for ema in emas:
            ema.update()


def trained(folder, steps=12):
    """A trained model, its averages, and snapshots of them in ``folder``."""
    torch.manual_seed(0)
    model = Net()
    ema = PowerEMA(model, (5, 10))
    for _ in range(4):
        train(model, ema, steps=steps // 4)
        ema.save(folder)
    return model, ema


@pytest.fixture(scope="module")
def tracked(tmp_path_factory):
    """Snapshots, the model and its averages in memory, and what gamma 7 is."""
    folder = tmp_path_factory.mktemp("models") / "ckpts"
    model, ema = trained(folder)
    (path,) = synthesize(folder, gamma=7, output=folder.parent / "gamma7.safetensors")
    return folder, model, ema, load_file(path)


def bits(model):
    """The bytes of each tensor of a model's state dict, and where it lies."""
    return {n: (raw_bytes(t), t.data_ptr()) for n, t in model.state_dict().items()}


def assert_holds(model, expected):
    """Whether a model has an average's values, in types of its own."""
    state = model.state_dict()
    assert {*expected} <= state.keys()
    for name, value in expected.items():
        assert torch.equal(state[name].cpu(), value.to(state[name].dtype)), name
    assert torch.equal(state["embed.weight"], state["head.weight"])


# --- load_into ----------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_a_model_is_filled_in_place(dtype, tracked):
    """Each tensor keeps its place and type, and ties; the model itself comes back."""
    folder, _, _, expected = tracked
    model = Net().to(dtype)
    places = {n: t.data_ptr() for n, t in model.state_dict().items()}
    assert load_into(model, folder, gamma=7) is model
    assert_holds(model, expected)
    assert {n: t.data_ptr() for n, t in model.state_dict().items()} == places
    assert all(p.dtype == dtype for p in model.parameters())
    assert model.head.weight is model.embed.weight
    assert model.norm.num_batches_tracked.dtype == torch.int64
    assert model.embed.weight.requires_grad
    assert model.embed.weight.grad is None


@pytest.mark.parametrize(
    "wrap", [nn.DataParallel, torch.compile, lambda m: torch.compile(nn.DataParallel(m))]
)
def test_wrappers_of_a_model_do_not_matter(wrap, tracked):
    """Names are the model's own."""
    folder, _, _, expected = tracked
    model = Net()
    load_into(wrap(model), folder, gamma=7)
    assert_holds(model, expected)


def test_a_module_called_module_is_no_wrapper(tmp_path):
    """Nor are snapshots of it: names are compared with and without the prefix."""

    class Outer(nn.Module):
        def __init__(self):
            super().__init__()
            self.module = nn.Linear(2, 1)

    model = Outer()
    ema = PowerEMA(model, (5, 10))
    ema.update()
    ema.save(tmp_path / "in")
    expected = model.module.weight.detach().clone()
    nn.init.zeros_(model.module.weight)
    load_into(model, tmp_path / "in", gamma=7)
    assert torch.equal(model.module.weight, expected)


class More(Net):
    """With a layer that no snapshot has."""

    def __init__(self):
        super().__init__()
        self.extra = nn.Linear(2, 2)


class Fewer(Net):
    """Without a layer that snapshots have."""

    def __init__(self):
        super().__init__()
        self.norm = nn.Identity()


class Wider(Net):
    """With a layer of another shape."""

    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(4)


class Counting(Net):
    """With a whole number where the snapshots have others."""

    def __init__(self):
        super().__init__()
        self.frozen = nn.Parameter(torch.arange(3), requires_grad=False)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (More, r"the average has no extra.weight, extra.bias; make"),
        (Fewer, r"the model has no .*norm.*(, .*norm.*){4}; make"),
        (Wider, r"has the shape \[.*3.*\] in the average and \[.*4.*\] in the model"),
        (Counting, "frozen is torch.float32 in the average and torch.int64 in the model"),
        (lambda: Net().to("meta"), "is on the meta device and cannot be filled; give the model"),
    ],
)
def test_another_model_is_refused_and_stays_as_it_was(make, words, tracked):
    """Names, shapes and kinds are looked at before the first tensor is written."""
    folder, *_ = tracked
    model = make()
    before = model.state_dict() if model.embed.weight.is_meta else bits(model)
    with pytest.raises(UsageError, match=words):
        load_into(model, folder, gamma=7)
    if not model.embed.weight.is_meta:
        assert bits(model) == before


def test_tensors_can_be_left_out(tracked):
    """``drop`` leaves what the model does not have."""
    folder, *_ = tracked
    load_into(Fewer(), folder, gamma=7, config=Config(drop=("norm.*",)))


def with_nan(folder, changed):
    """Four snapshots of two large tensors, one value of which is NaN in one of them."""
    folder.mkdir()
    for step in (1, 2):
        for gamma in (5, 10):
            tensors = {f"{i}.weight": torch.randn(1000, 1000) for i in range(2)}
            if (step, gamma) == (2, 5):
                tensors[changed][500, 7] = math.nan
            metadata = {"gamma": str(gamma), "step": str(step)}
            save_file(tensors, folder / f"s{step}-{gamma}.safetensors", metadata)
    return folder


def two_layers():
    """What these snapshots are of."""
    return nn.Sequential(*(nn.Linear(1000, 1000, bias=False) for _ in range(2)))


def test_a_model_that_is_filled_in_part_is_called_that(tmp_path):
    """What only the values show comes too late, and is said."""
    folder = with_nan(tmp_path / "in", "1.weight")
    with pytest.raises(InputError, match="1 value is not finite") as caught:
        load_into(two_layers(), folder, gamma=7, sample=False, max_memory=1 << 20)
    assert caught.value.__notes__ == ["the model now holds a part of the average: load it again"]


# --- swapped ------------------------------------------------------------------------------------


def forms(folder, expected):
    """An average in all the forms that it can have."""
    return {
        "average": average(folder, gamma=7),
        "state dict": expected,
        "pairs": iter(expected.items()),
        "file": dict(average(folder, gamma=7)),
    }


@pytest.mark.parametrize("form", ["average", "state dict", "pairs", "file"])
@pytest.mark.parametrize("ending", ["well", "badly"])
def test_a_model_has_the_average_inside_and_its_own_bits_afterwards(form, ending, tracked):
    """Whatever the form, also after an exception and a step of training inside; NaN's bits too."""
    folder, _, _, expected = tracked
    torch.manual_seed(1)
    model = Net()
    with torch.no_grad():
        odd = torch.tensor([0x7FC01234, -0x80000000], dtype=torch.int32).view(torch.float32)
        model.inner.bias[:2] = odd
    before = bits(model)
    given = forms(folder, expected)[form]
    outcome = nullcontext() if ending == "well" else pytest.raises(ZeroDivisionError)
    with outcome, swapped(model, given) as inside:
        assert inside is model
        assert_holds(model, expected)
        train(model)
        if ending == "badly":
            raise ZeroDivisionError
    assert bits(model) == before


def test_a_tracked_average_is_swapped_in(tracked):
    """``ema.average(5)``, and a PowerEMA that has one gamma; in float32 as it is tracked."""
    _, model, ema, _ = tracked
    before = bits(model)
    expected = {n: t.clone() for n, t in ema.average(5).items()}
    with swapped(model, ema.average(5)):
        assert_holds(model, expected)
        assert not torch.equal(model.inner.weight, ema.average(10)["inner.weight"])
    assert bits(model) == before
    with pytest.raises(UsageError, match=r"has 2 averages; pass one: its average\(5\)"):
        swapped(model, ema).__enter__()
    alone = PowerEMA(model, (3,))
    alone.update()
    with swapped(model, alone):
        assert torch.equal(model.inner.weight, alone.average(3)["inner.weight"])
    assert bits(model) == before


def test_a_model_may_be_swapped_again_inside(tracked):
    """The inner average goes, and the outer one is there again."""
    folder, model, ema, expected = tracked
    before = bits(model)
    with swapped(model, average(folder, gamma=7)):
        with swapped(model, ema.average(5)):
            assert torch.equal(model.inner.weight, ema.average(5)["inner.weight"])
        assert_holds(model, expected)
    assert bits(model) == before


def test_training_continues_as_if_nothing_had_happened(tmp_path):
    """Optimizers, gradients and averages are those of a run without evaluations."""
    ends = []
    for evaluates in (False, True):
        torch.manual_seed(0)
        model = Net()
        ema = PowerEMA(model, (5, 10))
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad])
        for step in range(6):
            x = torch.arange(8).mul(step + 3).remainder(5)
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x), x).backward()
            optimizer.step()
            ema.update()
            ema.save(tmp_path / "ckpts")
            if evaluates and step > 2:
                with swapped(model, average(tmp_path / "ckpts", gamma=7)):
                    model.eval()(x)
                model.train()
        ends.append({n: raw_bytes(t) for n, t in model.state_dict().items()})
    assert ends[0] == ends[1]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda s: s.pop("inner.bias"), "the average has no inner.bias"),
        (lambda s: s.update(other=torch.ones(1)), "the model has no other"),
        (lambda s: s.update({"inner.bias": torch.ones(1)}), r"inner.bias has the shape \[1\]"),
    ],
)
@pytest.mark.parametrize("lazily", [False, True])
def test_what_does_not_fit_is_refused(change, words, lazily, tracked):
    """Also where that shows only as the pairs come; the model is as it was."""
    _, model, _, expected = tracked
    given = dict(expected)
    change(given)
    before = bits(model)
    with pytest.raises(UsageError, match=words):
        swapped(model, iter(given.items()) if lazily else given).__enter__()
    assert bits(model) == before


def test_an_average_that_fails_part_way_leaves_the_model_as_it_was(tmp_path):
    """Values that are not finite come to light while the first tensors are in their places."""
    folder = with_nan(tmp_path / "in", "1.weight")
    model = two_layers()
    before = bits(model)
    given = average(folder, gamma=7, sample=False, max_memory=1 << 20)
    with pytest.raises(InputError, match="not finite"), swapped(model, given):
        pytest.fail("it is not put in")
    assert bits(model) == before


_SHARDED = """
import sys
import torch
from safetensors.torch import load_file
from torch import distributed
from torch.distributed.fsdp import fully_shard
from phema_cli import average, load_into
from phema_cli.integrations import swapped
from tests.gloo import end_rank
from tests.sharded_training import Net

distributed.init_process_group("gloo")
torch.manual_seed(0)
model = Net().eval()
fully_shard(model)
own, x = Net().eval(), torch.arange(5)
whole = lambda t: t.full_tensor() if hasattr(t, "full_tensor") else t
own.load_state_dict({n: whole(t) for n, t in model.state_dict().items()})
with torch.no_grad():
    before = model(x)
    with swapped(model, average(sys.argv[1], gamma=7)):
        inside = model(x)
    after = model(x)
    own_still = {n: whole(t) for n, t in model.state_dict().items()}
    plain = load_into(Net().eval(), sys.argv[1], gamma=7)
    torch.testing.assert_close(plain(x), inside)
assert torch.equal(after, before) and not torch.allclose(before, inside)
assert all(torch.equal(own_still[n], t) for n, t in own.state_dict().items())
load_into(model, sys.argv[1], gamma=7)
filled = {n: whole(t) for n, t in model.state_dict().items()}
assert all(torch.equal(filled[n], t) for n, t in load_file(sys.argv[2]).items())
distributed.destroy_process_group()
end_rank()
"""


def test_shards_are_filled_and_restored(tmp_path, tracked):
    """Of a model that FSDP2 shards over two ranks; an evaluation leaves gathered parameters."""
    folder, *_ = tracked
    (tmp_path / "sharded.py").write_text(_SHARDED)
    ranks = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = {"GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    subprocess.run(
        [warm.python(), *ranks, "sharded.py", folder, folder.parent / "gamma7.safetensors"],
        cwd=tmp_path,
        env=os.environ | environment,
        check=True,
        timeout=200,
    )


def test_values_that_the_model_cannot_hold(tmp_path):
    """An average that its type has no numbers for is an error, not infinity."""
    for step in (1, 2):
        state = {"weight": torch.full((2, 2), 1e5), "bias": torch.zeros(2)}
        save_file(state, tmp_path / f"model-step{step}.safetensors")
    with pytest.raises(UsageError, match="weight has values that are too large for the model"):
        load_into(nn.Linear(2, 2).half(), tmp_path, profile="checkpoints:last=2")
    model = load_into(nn.Linear(2, 2), tmp_path, profile="checkpoints:last=2")
    assert model.weight[0, 0].item() == 1e5


def test_a_path_is_no_average(tmp_path):
    """The error says what to pass."""
    with pytest.raises(UsageError, match="average"), swapped(nn.Linear(2, 2), str(tmp_path)):
        pass
