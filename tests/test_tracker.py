"""PowerEMA: the closed form, what is averaged, wrappers, ties, resuming, shards, changed models."""

import os
import resource
import subprocess

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, load_model
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper

from phema_cli import PowerEMA
from phema_cli.errors import StorageError, UsageError
from tests import warm
from tests.builders import ema_weights


class Net(nn.Module):
    """Tied, frozen, integer, float and non-persistent state in one module."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(5, 3)
        self.norm = nn.BatchNorm1d(3)
        self.head = nn.Linear(3, 5, bias=False)
        self.head.weight = self.embed.weight
        self.frozen = nn.Parameter(torch.ones(2), requires_grad=False)
        self.register_buffer("scratch", torch.zeros(2), persistent=False)

    def forward(self, x):
        return self.head(self.norm(self.embed(x)))


def train(model, *emas, steps=5):
    """A few real optimizer steps."""
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    for _ in range(steps):
        x = torch.randint(0, 5, (8,))
        loss = nn.functional.cross_entropy(model(x), x)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        for ema in emas:
            ema.update()


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 60), st.floats(-0.4, 40), st.sampled_from([torch.float32, torch.bfloat16]))
def test_average_is_the_closed_form(steps, gamma, dtype):
    """The EMA is the sum of the trajectory weighted by F(t) - F(t-1), to float32 rounding."""
    random = np.random.default_rng(steps)
    trajectory = random.standard_normal((steps, 6))
    model = nn.Linear(2, 3, bias=False, dtype=dtype)
    ema = PowerEMA(model, (gamma,))
    seen = []
    for values in trajectory:
        with torch.no_grad():
            model.weight.copy_(torch.from_numpy(values).reshape(3, 2))
        seen.append(model.weight.detach().double().numpy().ravel())
        ema.update()
    expected = ema_weights(gamma, steps, np.arange(1, steps + 1)) @ np.array(seen)
    stored = ema.average(gamma)["weight"]
    assert stored.dtype == torch.float32
    np.testing.assert_allclose(stored.double().numpy().ravel(), expected, atol=2e-6)


def test_what_is_averaged_and_what_is_not():
    """Trainable parameters and float buffers are averaged; the rest is stored as it is."""
    torch.manual_seed(0)
    model = Net()
    ema = PowerEMA(model, (5,))
    train(model, ema)
    state, average = model.state_dict(), ema.average(5)
    assert set(average) == set(state) - {"head.weight"}
    assert not torch.equal(average["embed.weight"], state["embed.weight"])
    assert not torch.equal(average["norm.running_mean"], state["norm.running_mean"])
    assert torch.equal(average["frozen"], state["frozen"])
    assert average["norm.num_batches_tracked"] == 5
    assert average["norm.num_batches_tracked"].dtype == torch.int64


def test_updating_leaves_the_graph_and_the_model_alone():
    """update() records nothing for autograd and changes no weight."""
    model = Net()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    ema = PowerEMA(model)
    ema.update()
    assert all(not t.requires_grad for t in ema.average(5).values())
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


@pytest.mark.parametrize("wrap", [nn.DataParallel, torch.compile])
def test_wrappers_leave_no_trace_in_the_names(wrap):
    """Averages of a wrapped model have the names of the model itself."""
    model = Net()
    ema = PowerEMA(wrap(model), (5,))
    ema.update()
    assert set(ema.average(5)) == set(model.state_dict()) - {"head.weight"}


def test_compiled_parts_leave_no_trace_in_the_names():
    """A compiled submodule's names are those without compilation."""
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1))
    names = set(model.state_dict())
    model[0] = torch.compile(model[0])
    ema = PowerEMA(model, (5,))
    ema.update()
    assert set(ema.average(5)) == names


def test_snapshots_load_back_with_ties(tmp_path):
    """A snapshot is tagged, and load_model restores it into the model, tied weights included."""
    model, fresh = Net(), Net()
    ema = PowerEMA(model, (5, 6.94))
    train(model, ema)
    paths = ema.save(tmp_path / "new" / "ckpts", name="run")
    assert [p.name for p in paths] == [
        "run-step0000005-gamma5.safetensors",
        "run-step0000005-gamma6.94.safetensors",
    ]
    with safe_open(paths[1], "pt") as file:
        metadata = file.metadata()
    assert (metadata["gamma"], metadata["step"], metadata["format"]) == ("6.94", "5", "pt")
    load_model(fresh, paths[0])
    assert torch.equal(fresh.head.weight, ema.average(5)["embed.weight"])
    assert sorted(p.name for p in (tmp_path / "new" / "ckpts").iterdir()) == sorted(
        p.name for p in paths
    )


def test_storage_dtype_holds_for_averages_only(tmp_path):
    """save(dtype=...) rounds averages; what was not averaged keeps its type."""
    model = Net()
    ema = PowerEMA(model, (5,))
    ema.update()
    stored = load_file(ema.save(tmp_path, dtype=torch.bfloat16)[0])
    assert stored["embed.weight"].dtype == torch.bfloat16
    assert stored["frozen"].dtype == torch.float32
    assert stored["norm.num_batches_tracked"].dtype == torch.int64


def test_resuming_gives_what_an_unbroken_run_gives(tmp_path):
    """state_dict through torch.save with weights_only restores the averages bit for bit."""
    torch.manual_seed(0)
    model = Net()
    ema = PowerEMA(model)
    train(model, ema)
    torch.save(ema.state_dict(), tmp_path / "ema.pt")
    again = PowerEMA(model)
    again.load_state_dict(torch.load(tmp_path / "ema.pt", weights_only=True))
    train(model, ema, again)
    assert again.step == ema.step == 10
    for gamma in (5, 10):
        first, second = ema.average(gamma), again.average(gamma)
        assert all(torch.equal(first[k], second[k]) for k in first)


def test_replaced_parameters_are_followed():
    """What a model holds now under a name is averaged: another tensor, another module around it."""
    model = nn.Sequential(nn.BatchNorm1d(2), nn.Linear(2, 2))
    ema = PowerEMA(model, (5,))
    ema.update()
    model[0].running_mean = torch.full((2,), 3.0)
    model[1].bias = nn.Parameter(torch.full((2,), 5.0))
    model[1] = checkpoint_wrapper(model[1])
    model.double()
    ema.update()
    replaced = nn.Linear(2, 2)
    nn.init.constant_(replaced.bias, 7.0)
    model[1] = replaced
    ema.update()
    one, two, three = ema_weights(5, 3, np.arange(1, 4))
    assert ema.average(5)["0.running_mean"].tolist() == pytest.approx([3 * (two + three)] * 2)
    first = ema.average(5)["1.bias"] - (5 * two + 7 * three)
    assert first.abs().max() < 2 * one


def test_modules_may_change_their_order():
    """Each tensor keeps its name, where others of its shape come before it now."""
    model = nn.ModuleDict({"a": nn.Linear(2, 2), "b": nn.Linear(2, 2)})
    for name, value in (("a", 1.0), ("b", 2.0)):
        nn.init.constant_(model[name].bias, value)
    ema = PowerEMA(model, (5,))
    ema.update()
    model["a"] = model.pop("a")
    ema.update()
    averages = ema.average(5)
    assert [averages[f"{name}.bias"].tolist() for name in "ab"] == [[1.0, 1.0], [2.0, 2.0]]


def test_averages_may_live_elsewhere():
    """device= says where the averages are kept."""
    ema = PowerEMA(nn.Linear(2, 2), (5,), device="cpu")
    ema.update()
    assert ema.average(5)["weight"].device.type == "cpu"


def test_misuse_is_refused(tmp_path):
    """Each refusal says what is wrong."""
    model = Net()
    with pytest.raises(UsageError, match="at least one"):
        PowerEMA(model, ())
    with pytest.raises(UsageError, match="no two alike"):
        PowerEMA(model, (5, 5.0))
    with pytest.raises(UsageError, match=r"above -0\.5"):
        PowerEMA(model, (-1,))
    with pytest.raises(UsageError, match="nothing to average"):
        PowerEMA(nn.ReLU())
    ema = PowerEMA(model)
    with pytest.raises(UsageError, match="no update"):
        ema.save(tmp_path)
    ema.update()
    with pytest.raises(UsageError, match="not tracked"):
        ema.average(7)
    model.frozen.requires_grad_(True)
    with pytest.raises(UsageError, match="frozen was frozen"):
        ema.update()
    other = PowerEMA(nn.Linear(2, 2))
    with pytest.raises(UsageError, match="another model"):
        other.load_state_dict(ema.state_dict())
    with pytest.raises(UsageError, match="gammas"):
        PowerEMA(nn.Linear(2, 2), (5,)).load_state_dict(other.state_dict())


def test_a_directory_that_cannot_be_written_is_a_storage_error(tmp_path):
    """The error names the file, and nothing half is left."""
    (tmp_path / "file").write_text("")
    ema = PowerEMA(nn.Linear(2, 2))
    ema.update()
    with pytest.raises(StorageError, match="cannot write"):
        ema.save(tmp_path / "file")


def test_a_full_disk_leaves_nothing_half(tmp_path):
    """When a snapshot can't be written whole it is a storage error, and no file is left."""
    ema = PowerEMA(nn.Linear(100, 100))
    ema.update()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        with pytest.raises(StorageError, match="cannot write"):
            ema.save(tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list(tmp_path.iterdir()) == []


def test_complex_parameters_are_refused():
    """What would silently not be averaged is an error."""
    model = nn.Linear(2, 2)
    model.phase = nn.Parameter(torch.ones(2, dtype=torch.complex64))
    with pytest.raises(UsageError, match="phase is complex"):
        PowerEMA(model)


def test_buffers_that_share_storage_can_be_stored(tmp_path):
    """Views of one tensor are stored each for itself."""
    model, base = nn.Linear(2, 2), torch.arange(6)
    model.register_buffer("head", base[:2])
    model.register_buffer("tail", base[2:])
    ema = PowerEMA(model, (5,))
    ema.update()
    stored = load_file(ema.save(tmp_path)[0])
    assert stored["head"].tolist() == [0, 1]
    assert stored["tail"].tolist() == [2, 3, 4, 5]


@pytest.mark.slow
def test_shards_are_averaged_as_the_whole(tmp_path):
    """Two ranks of FSDP2 store what one process stores, bit for bit, and resume either state."""
    environment = os.environ | {"GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}
    command = [warm.python(), "-m", "tests.sharded_training", tmp_path]
    subprocess.run(command, env=environment, check=True, timeout=100)
    pairs = {
        "sharded": "unsharded",
        "from one process": "unsharded",
        "from whole": "at half time",
        "from dcp": "at half time",
        "from plain dcp": "at half time",
        "in one process": "at half time",
        "sharded packed": "unsharded packed",
    }
    for ours, truth in pairs.items():
        for path in (tmp_path / truth).iterdir():
            stored, expected = load_file(tmp_path / ours / path.name), load_file(path)
            assert stored.keys() == expected.keys()
            # What is not averaged is as the model has it when it is stored.
            averaged = stored.keys() - {"norm.num_batches_tracked"}
            assert all(torch.equal(stored[n], expected[n]) for n in averaged)
    packed = [load_file(p) for p in (tmp_path / "sharded packed").iterdir()]
    assert sum("inner.weight" in tensors for tensors in packed) == 2
    assert sum("inner.weight.packed" in tensors for tensors in packed) == 2
    half = load_file(tmp_path / "half" / "ema-step0002006-gamma5.safetensors")
    whole = load_file(tmp_path / "unsharded" / "ema-step0002006-gamma5.safetensors")
    assert torch.equal(half["inner.weight"], whole["inner.weight"].bfloat16())
    assert torch.equal(half["frozen"], whole["frozen"])


def marked(name):
    """A layer whose weight has the mark that a sharding library leaves on parameters."""
    layer = nn.Linear(2, 2)
    setattr(layer.weight, name, 0)
    return layer


@pytest.mark.filterwarnings("ignore:Lazy modules are a new feature")
@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: marked("ds_id"), "weight is sharded by DeepSpeed ZeRO-3"),
        (lambda: nn.Linear(2, 2, device="meta"), "weight is on the meta device"),
        (lambda: nn.LazyLinear(2), "weight has no shape yet"),
    ],
)
def test_tensors_that_are_not_there_are_refused(make, words):
    """What a rank doesn't hold can't be averaged on it, and the error says whose doing it is."""
    with pytest.raises(UsageError, match=words):
        PowerEMA(make())


FSDP1 = """
import torch, torch.distributed as dist
from torch.distributed.fsdp import FullyShardedDataParallel
from phema_cli import PowerEMA
from phema_cli.errors import UsageError
dist.init_process_group("gloo", init_method="file://{store}", rank=0, world_size=1)
for names in (False, True):
    model = FullyShardedDataParallel(
        torch.nn.Linear(3, 4), use_orig_params=names, device_id=torch.device("cpu")
    )
    try:
        PowerEMA(model)
    except UsageError as error:
        print(error)
dist.destroy_process_group()
"""


@pytest.mark.slow
def test_parameters_that_fsdp1_has_flattened_are_refused(tmp_path):
    """By FSDP1 itself, whether it shows its flat parameters or views by the model's names."""
    code = FSDP1.replace("{store}", str(tmp_path / "store"))
    done = subprocess.run(
        [warm.python(), "-W", "ignore", "-c", code], capture_output=True, text=True, check=True
    )
    told = done.stdout.splitlines()
    assert ["_flat_param" in told[0], "weight" in told[1]] == [True, True]
    assert all("is flattened by FSDP1 and cannot be averaged; use FSDP2" in line for line in told)


def test_a_changed_model_is_refused(tmp_path):
    """Added, removed, resized, tied and offloaded parameters are errors at the next update."""

    def after(change):
        model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
        ema = PowerEMA(model, (5,))
        ema.update()
        change(model)
        return ema

    cases = (
        (lambda m: m.append(nn.Linear(2, 2)), r"2\.bias was added .*\(as 1 more\); make PowerEMA"),
        (
            lambda m: m[0].register_parameter("scale", nn.Parameter(torch.ones(1))),
            "scale was added",
        ),
        (lambda m: m[1].register_buffer("count", torch.ones(1)), "1.count was added"),
        (lambda m: m.__setitem__(1, nn.Linear(2, 2, bias=False)), "1.bias was removed"),
        (lambda m: m.pop(1), "1.bias was removed"),
        (lambda m: delattr(m[0], "bias"), "0.bias was removed"),
        (lambda m: setattr(m[0], "bias", None), "no longer has bias"),
        (lambda m: setattr(m[1], "weight", m[0].weight), "1.weight is tied to 0.weight"),
        (lambda m: setattr(m[0], "weight", nn.Parameter(torch.ones(3, 2))), r"\[3, 2\]"),
        (lambda m: m.__setitem__(0, nn.Linear(2, 3)), r"\[3, 2\]"),
        (lambda m: m.to("meta"), "on meta"),
    )
    for change, words in cases:
        ema = after(change)
        with pytest.raises(UsageError, match=words):
            ema.update()
        assert ema.step == 1
    model = Net()
    ema = PowerEMA(model)
    ema.update()
    model.head.weight = nn.Parameter(model.embed.weight.detach().clone())
    with pytest.raises(UsageError, match=r"head\.weight is no longer tied to embed\.weight"):
        ema.update()
    with pytest.raises(UsageError, match="no longer tied"):
        ema.save(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_what_is_not_in_the_state_dict_may_come_and_go():
    """A module without weights and a buffer that is not persistent are no changes."""
    model = nn.Sequential(nn.Linear(2, 2))
    ema = PowerEMA(model, (5,))
    ema.update()
    model.append(nn.ReLU())
    model[0].register_buffer("cache", torch.ones(2), persistent=False)
    ema.update()
    ema.update()
    assert set(ema.average(5)) == {"0.weight", "0.bias"}


def test_activation_checkpointing_leaves_no_trace_in_the_names():
    """A wrapped part's names are those of the model's state dict."""
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1))
    model[0] = checkpoint_wrapper(model[0])
    ema = PowerEMA(model, (5,))
    ema.update()
    assert set(ema.average(5)) == set(model.state_dict()) == {
        "0.weight", "0.bias", "1.weight", "1.bias"
    }  # fmt: skip


@pytest.mark.parametrize(
    "dtype", [torch.float64, torch.complex64, torch.bool, torch.float8_e4m3fn, torch.int16]
)
def test_stored_tensors_are_those_of_the_model(dtype, tmp_path):
    """Whatever is not averaged comes back bit for bit: of any type, size and order in memory."""
    model = nn.Linear(2, 2)
    values = torch.arange(12).remainder(5).reshape(3, 4)
    for name, tensor in (("t", values.t()), ("scalar", values[1, 2]), ("none", values[:0])):
        parameter = nn.Parameter(tensor.to(dtype), requires_grad=False)
        model.register_parameter(name, parameter)
    ema = PowerEMA(model, (5,))
    ema.update()
    stored = load_file(ema.save(tmp_path)[0])
    for name in ("t", "scalar", "none"):
        held = getattr(model, name)
        assert stored[name].dtype == dtype
        assert stored[name].tolist() == held.tolist()
