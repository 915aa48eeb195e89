"""An average without a file: the tensors that a synthesis writes, one after the other."""

import inspect
import math
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file, save_model
from torch import nn

import phema_cli
from phema_cli import average, load_into
from phema_cli.errors import InputError, UsageError
from phema_cli.request import Config, Request
from tests.builders import synthesize
from tests.torch_files import raw_bytes

MIB = 1 << 20


def write(folder, make, *, steps=(1, 2), gammas=(5, 10)):
    """Snapshots of what ``make`` gives, each with other values."""
    folder.mkdir()
    random = torch.Generator().manual_seed(0)
    for step in steps:
        for gamma in gammas:
            metadata = {"gamma": str(gamma), "step": str(step)}
            save_file(make(random, step), folder / f"s{step}-{gamma}.safetensors", metadata)
    return folder


def many_kinds(random, step):
    """Tensors of several types and sizes: neighbours that are read as one, and odd ones."""
    tensors = {f"small{i}": torch.randn(7, 3, generator=random) for i in range(30)}
    tensors |= {f"half{i}": torch.randn(501, generator=random).half() for i in range(5)}
    tensors |= {f"brain{i}": torch.randn(33, 3, generator=random).bfloat16() for i in range(3)}
    return tensors | {
        "large": torch.randn(300, 1001, generator=random),
        "wide": torch.randn(40, generator=random).double(),
        "eight": torch.randn(64, generator=random).to(torch.float8_e4m3fn),
        "scalar": torch.randn((), generator=random),
        "empty": torch.zeros(0, 4),
        "no_integers": torch.zeros(0, dtype=torch.int32),
        "count": torch.tensor(step),
        "mask": torch.arange(200_000) % 3 == 0,
        "places": torch.arange(300_000) * step,
    }


def same(got, expected):
    """Whether tensors have the same names, in that order, shapes, types and bits."""
    assert list(got) == list(expected)
    for name, tensor in expected.items():
        assert got[name].dtype == tensor.dtype, name
        assert got[name].shape == tensor.shape, name
        assert raw_bytes(got[name]) == raw_bytes(tensor), name


@pytest.mark.parametrize(
    "options",
    [
        {"gamma": 7},
        {"sigma_rel": 0.1, "max_memory": MIB},
        {"profile": "uniform:last=0.5", "dtype": "bf16"},
        {"gamma": 3, "step": 1.5, "config": Config(copy=("large",), drop=("small1*",))},
        {"gamma": 5, "sample": False, "method": "normalized"},
    ],
    ids=["plain", "little memory", "bfloat16", "copied and dropped", "a stored one"],
)
def test_tensors_are_those_of_the_file(options, tmp_path, monkeypatch):
    """Names in their order, shapes, types and bits, whatever is asked for; and no file is left."""
    folder = write(tmp_path / "in", many_kinds)
    (path,) = synthesize(folder, output=tmp_path / "out.safetensors", **options)
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    made = average(folder, **options)
    assert {n: (t.dtype, t.shape) for n, t in made.like.items()} == {
        n: (t.dtype, t.shape) for n, t in load_file(path).items()
    }
    same(dict(made), load_file(path))
    assert list(made.like) == list(load_file(path))
    assert not list((tmp_path / "empty").iterdir())


def test_tensors_of_other_formats(tmp_path):
    """Transposed tensors of a .pt file, and float types that differ between snapshots."""
    (tmp_path / "in").mkdir()
    for step in (1, 2):
        for gamma, dtype in ((5, torch.float16), (10, torch.float32)):
            state = {"w": torch.randn(50, 70).to(dtype).T, "b": torch.randn(70).to(dtype)}
            torch.save(state, tmp_path / "in" / f"ema-step{step}-gamma{gamma}.pt")
    (path,) = synthesize(tmp_path / "in", gamma=7, output=tmp_path / "out.safetensors")
    same(dict(average(tmp_path / "in", gamma=7)), load_file(path))


def test_torchs_threads_change_no_bit_and_are_given_back(tmp_path):
    """The program's own number of threads is there between two tensors."""
    folder = write(tmp_path / "in", lambda r, _: {"w": torch.randn(500, 999, generator=r).half()})
    (path,) = synthesize(folder, gamma=7, output=tmp_path / "out.safetensors")
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        made = {}
        for name, tensor in average(folder, gamma=7):
            assert torch.get_num_threads() == 2
            made[name] = tensor
    finally:
        torch.set_num_threads(before)
    same(made, load_file(path))


class Tied(nn.Module):
    """An embedding that is the head too."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(5, 3)
        self.middle = nn.Linear(3, 3)
        self.head = nn.Linear(3, 5, bias=False)
        self.head.weight = self.embed.weight


@pytest.mark.linux("memory, measured in /proc")
def test_a_tied_tensor_comes_under_each_name(tmp_path):
    """One right after the other, and both are one tensor."""
    for step in (1, 2):
        for gamma in (5, 10):
            name = f"ema-step{step}-gamma{gamma}.safetensors"
            (tmp_path / "in").mkdir(exist_ok=True)
            save_model(Tied(), str(tmp_path / "in" / name))
    (path,) = synthesize(tmp_path / "in", gamma=7, output=tmp_path / "out.safetensors")
    pairs = list(average(tmp_path / "in", gamma=7))
    names = [name for name, _ in pairs]
    one, other = (names.index(name) for name in ("embed.weight", "head.weight"))
    assert abs(one - other) == 1
    assert pairs[one][1].data_ptr() == pairs[other][1].data_ptr()
    written = load_file(path)
    assert sorted(names) == sorted({*written, "embed.weight", "head.weight"})
    assert all(torch.equal(tensor, written[name]) for name, tensor in pairs if name in written)


_MEASURE = """
import sys, torch
from phema_cli import average
from phema_cli.snapshots import scan
# Not what the parent took at its peak, which ru_maxrss begins with.
peak = lambda: int(open("/proc/self/status").read().split("VmHWM:")[1].split()[0]) * 1024
before = peak()
total = 0
for _, tensor in average(sys.argv[1], gamma=7, sample=False, max_memory=16 << 20):
    total += tensor.numel()
    del tensor
print(total, peak() - before)
"""


@pytest.mark.slow
def test_one_tensor_is_held_at_a_time(tmp_path):
    """Of 4 snapshots of two tensors of 64 MiB: one, and the buffers, if the caller keeps none."""

    def large(_, step):
        return {n: torch.full((16 * MIB,), float(step)) for n in "ab"}

    folder = write(tmp_path / "in", large)
    done = subprocess.run(
        [sys.executable, "-c", _MEASURE, folder], capture_output=True, text=True, check=True
    )
    total, more = map(int, done.stdout.split())
    assert total == 2 * 16 * MIB
    assert more < (64 + 48) * MIB


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"gamma": (7, 8)}, "2 targets are not one"),
        ({"gamma": 7, "sigma_rel": 0.1}, "2 targets are not one"),
        ({}, "no target given"),
        ({"gamma": 7, "output": "x.pt"}, "takes no output"),
        ({"gamma": 7, "format": "torch", "overwrite": True}, "takes no format, overwrite"),
        ({"gamma": 7, "skip_existing": True}, "takes no skip_existing"),
        ({"gamma": 7, "dry_run": True}, "takes no dry_run"),
        ({"gamma": 7, "max_shard_size": 1000}, "takes no max_shard_size"),
        ({"gamma": 7, "jobs": 2}, "takes no jobs"),
        ({"gamma": 7, "step": 1000}, "later than the last snapshot"),
    ],
)
def test_what_makes_no_sense_is_refused_at_once(options, words, ckpts):
    """Before the first tensor is asked for."""
    with pytest.raises(UsageError, match=words):
        average(ckpts, **options)


def test_values_that_are_not_finite_are_refused(tmp_path):
    """As a synthesis refuses them: counted, by tensor and file; or they are allowed."""

    def with_nan(random, step):
        tensors = {n: torch.randn(300_000, generator=random) for n in "ab"}
        if step == 2:
            tensors["b"][200_001] = math.nan
        return tensors

    folder = write(tmp_path / "in", with_nan)
    made = average(folder, gamma=7, sample=False)
    with pytest.raises(InputError, match="2 values are not finite: 1 in tensor b of s2"):
        dict(made)
    allowed = dict(average(folder, gamma=7, sample=False, allow_nonfinite=True))
    assert int(allowed["b"].isnan().sum()) == 1


def test_sources_that_change_meanwhile_are_an_error(ckpts):
    """A stream that ends without an error was read from what was scanned."""
    made = average(ckpts, gamma=7)
    next(made)
    path = ckpts / "ema-step0000025-gamma5.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(InputError, match="changed while it was read"):
        list(made)


def test_it_says_what_it_is(ckpts):
    """Its target, how good it is, and the options in its signature."""
    made = average(ckpts, gamma=7)
    assert repr(made) == "<Average gamma 7 at step 100: 3 tensors, good>"
    assert made.figures.expected_error < 0.1
    files = {"output", "format", "max_shard_size", "dry_run", "overwrite", "skip_existing", "jobs"}
    files.add("side_files")
    every = set(inspect.signature(Request).parameters)
    assert set(inspect.signature(phema_cli.synthesize).parameters) == {"paths", *every}
    assert set(inspect.signature(average).parameters) == {"paths", *every} - files
    assert set(inspect.signature(load_into).parameters) == {"model", "paths", *every} - files
