"""Memory: a synthesis larger than the limit runs under the limit."""

import json
import os
import pickle
import resource
import shutil
import subprocess
import sys
from functools import cache

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.numpy import save_file

from phema_cli.snapshots import scan
from phema_cli.snapshots.reading import read_checkpoint
from tests import warm
from tests.builders import PHEMA
from tests.verified import verify_output

pytestmark = [pytest.mark.slow, pytest.mark.linux("a hard limit of memory")]

MIB = 1 << 20
LIMIT = 256 * MIB
#: bytes of a snapshot, which is larger than the limit.
SNAPSHOT = 272 * MIB

MEASURE = """
import resource, sys, torch
if len(sys.argv) > 1:
    sys.argv = sys.argv[1:]
    from phema_cli.cli.app import main
    try:
        main()
    except SystemExit as done:
        assert not done.code, done.code
def data():
    with open("/proc/self/status") as file:
        return next(int(l.split()[1]) for l in file if l.startswith("VmData")) * 1024
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024, data(), file=sys.stderr)
"""


def run(*arguments, limit=None):
    """Peak RSS and private memory of a process that imports torch and runs phema, in bytes."""
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=True,
        preexec_fn=None
        if limit is None
        else lambda: resource.setrlimit(resource.RLIMIT_DATA, (limit, limit)),
    )
    return [int(n) for n in done.stderr.split()[-2:]]


@cache
def bare():
    """What a process takes that imports torch and runs nothing."""
    return run()


def write_large(path, step, gamma, dtype=np.float16, elements=SNAPSHOT // 2):
    """A snapshot of one tensor, written piece by piece."""
    kind, size = np.dtype(dtype), elements * np.dtype(dtype).itemsize
    head = {
        "__metadata__": {"gamma": str(gamma), "step": str(step)},
        "w": {"dtype": f"F{8 * kind.itemsize}", "shape": [elements], "data_offsets": [0, size]},
    }
    text = json.dumps(head)
    text += " " * (-len(text) % 8)
    piece = (np.arange(MIB // 2) % 512 + step).astype(kind).tobytes()
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text.encode())
        for _ in range(size // len(piece)):
            file.write(piece)


def test_thousands_of_snapshots_take_no_more_than_their_selection(tmp_path):
    """All of 2,000 would take gigabytes to solve for; they take what some of them take."""
    random, weights, averages = np.random.default_rng(0), np.zeros(256), np.zeros((2, 256))
    (tmp_path / "in").mkdir()
    for step in range(1, 10_001):
        weights = weights + random.standard_normal(256) / step**0.5
        for i, gamma in enumerate((5, 10)):
            beta = (1 - 1 / step) ** (gamma + 1)
            averages[i] = beta * averages[i] + (1 - beta) * weights
            if step % 10 == 0:
                path = tmp_path / "in" / f"ema-step{step:07d}-gamma{gamma}.safetensors"
                save_file({"w": averages[i].astype(np.float16)}, path)
    least, _ = bare()
    program = (sys.executable, "-c", MEASURE.replace(", torch", ""), "phema")
    for command in (("inspect",), ("synthesize", "-g", "7", "-o", tmp_path / "out")):
        done = subprocess.run(
            [*program, *command, tmp_path / "in", "-q", "--trust-tags"],
            capture_output=True,
            text=True,
            check=True,
        )
        assert int(done.stderr.split()[-2]) - least < LIMIT


def test_peak_memory_is_bounded_whatever_the_size(tmp_path):
    """Four snapshots of 272 MiB, three targets: within 256 MiB above torch, by a hard limit."""
    (tmp_path / "in").mkdir()
    for step in (1, 2):
        for gamma in (5, 10):
            write_large(tmp_path / "in" / f"{step}-{gamma}.safetensors", step, gamma)
    given = tmp_path / "mine.csv"
    given.write_text("1-5.safetensors,0.25\n2-5.safetensors,0.75\n", encoding="utf-8")
    rss, data = bare()
    asked = ("-g", "7,8", "--weights", given)
    arguments = (PHEMA, "synthesize", tmp_path / "in", *asked, "-o", tmp_path / "out", "-q")
    peak, _ = run(*arguments, limit=data + LIMIT)
    assert peak < rss + LIMIT
    outputs = sorted((tmp_path / "out").iterdir())
    verified, _ = run(PHEMA, "verify", outputs[1], tmp_path / "in", "--full", limit=data + LIMIT)
    assert verified < rss + LIMIT
    verify_output(outputs[0], scan([tmp_path / "in"]))
    assert [p.stat().st_size > SNAPSHOT for p in outputs] == [True, True, True]
    expected = np.arange(MIB // 2) % 512 + 1.75
    np.testing.assert_allclose(tail_of(outputs[2]).astype(float), expected, rtol=2.0**-11)
    # The walk 1, 2 of the gammas' snapshots: an element is its place plus the weighted step.
    with safe_open(outputs[0], "np") as file:
        sources = json.loads(file.metadata()["phema"])["sources"]
    step = sum(s["weight"] * s["step"] for s in sources)
    expected = np.arange(MIB // 2) % 512 + step
    np.testing.assert_allclose(tail_of(outputs[0]).astype(float), expected, rtol=2.0**-11)


def test_types_that_differ_are_streamed(tmp_path):
    """Float16 snapshots beside float32 ones of 272 MiB are averaged within the limit."""
    (tmp_path / "in").mkdir()
    for step in (1, 2):
        for gamma, dtype in ((5, np.float16), (10, np.float32)):
            path = tmp_path / "in" / f"{step}-{gamma:02d}.safetensors"
            write_large(path, step, gamma, dtype, SNAPSHOT // 4)
    out = tmp_path / "out.safetensors"
    synthesize_within(tmp_path / "in", out, "-g", "7", "--dtype", "float16")
    with safe_open(out, "np") as file:
        sources = json.loads(file.metadata()["phema"])["sources"]
    step = sum(s["weight"] * s["step"] for s in sources)
    expected = np.arange(MIB // 2) % 512 + step
    np.testing.assert_allclose(tail_of(out).astype(float), expected, rtol=2.0**-11)


def test_packing_is_streamed(tmp_path):
    """Snapshots of 272 MiB are packed, and packed ones averaged, within the limit.

    They are few, so that much of each is in the sample.
    """
    (tmp_path / "in").mkdir()
    for step, gamma in ((1, 5), (2, 5), (2, 10)):
        write_large(tmp_path / "in" / f"{step}-{gamma:02d}.safetensors", step, gamma)
    rss, data = bare()
    packed = tmp_path / "packed"
    arguments = (PHEMA, "pack", tmp_path / "in", "-o", packed, "-q", "--trust-tags")
    peak, _ = run(*arguments, limit=data + LIMIT)
    assert peak < rss + LIMIT
    assert len(list(packed.iterdir())) == 3
    out = tmp_path / "out.safetensors"
    synthesize_within(packed, out, "-g", "7", "--dtype", "float16", "--trust-tags")


def synthesize_within(folder, out, *options, made=None):
    """Run phema with a hard limit of 256 MiB above what torch takes; its peak must be below too.

    Args:
        folder: the snapshots.
        out: what is passed to -o.
        options: of the command.
        made: the output, if it is not ``out``.
    """
    rss, data = bare()
    peak, _ = run(PHEMA, "synthesize", folder, "-o", out, "-q", *options, limit=data + LIMIT)
    assert peak < rss + LIMIT
    verify_output(made or out, scan([folder]))


def tail_of(path):
    """The last values of a file of float16."""
    return np.fromfile(path, dtype=np.float16, offset=path.stat().st_size - MIB)


def test_large_pickles_are_streamed(tmp_path):
    """EDM2 pickles larger than the limit are read and written within it."""
    (tmp_path / "in").mkdir()
    values = torch.arange(512).half().repeat(SNAPSHOT // 1024)
    for kimg, std in ((8388, "0.050"), (16777, "0.050"), (16777, "0.100")):
        with (tmp_path / f"in/net-{kimg:07d}-{std}.pkl").open("wb") as file:
            pickle.dump({"ema": {"w": values + kimg // 8000}}, file, 4)
    out = tmp_path / "out.pkl"
    synthesize_within(tmp_path / "in", out, "-s", "0.07")
    with out.open("rb") as file:
        made = pickle.load(file)["ema"]["w"]
    assert made.shape == values.shape
    moved = made - values
    assert 1 < float(moved.min()) <= float(moved.max()) < 2.5


RANKS = """
import sys, torch, torch.distributed as dist, torch.distributed.checkpoint as dcp
import torch.multiprocessing as mp
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard

def save(rank, folder):
    dist.init_process_group("gloo", init_method=f"file://{folder}.store", rank=rank, world_size=2)
    mesh = init_device_mesh("cpu", (2,))
    local = torch.arange(8192, dtype=torch.int32).remainder(512).half() + 512 * rank
    local = local.repeat(8704, 1)
    w = DTensor.from_local(local, mesh, [Shard(1)], run_check=False)
    dcp.save({"ema": {"w": w}}, checkpoint_id=folder)
    dist.destroy_process_group()

if __name__ == "__main__":
    mp.start_processes(save, (sys.argv[1],), nprocs=2, start_method="fork")
"""


def test_large_distributed_checkpoints_are_streamed(tmp_path):
    """A tensor split along its columns over ranks is put together within the limit.

    So it is where the output is a distributed checkpoint too.
    """
    (tmp_path / "ranks.py").write_text(RANKS)
    first = tmp_path / "in/ema-step1-gamma5"
    first.parent.mkdir()
    warm.run([sys.executable, tmp_path / "ranks.py", first], check=True, timeout=120)
    assert sum(path.stat().st_size for path in first.iterdir()) > SNAPSHOT
    second = first.with_name("ema-step2-gamma10")
    second.mkdir()
    shutil.copy(first / ".metadata", second)
    for file in first.glob("*.distcp"):
        os.link(file, second / file.name)
    out = tmp_path / "out.safetensors"
    synthesize_within(tmp_path / "in", out, "-g", "7", "--no-sample")
    row = np.concatenate([np.arange(8192) % 512, np.arange(8192) % 512 + 512])
    np.testing.assert_array_equal(tail_of(out).reshape(-1, 16384), np.tile(row, (32, 1)))
    made = tmp_path / "out-7"
    options = ("-g", "7", "--no-sample", "--format", "dcp")
    synthesize_within(tmp_path / "in", tmp_path / "out-{gamma}", *options, made=made)
    extent = read_checkpoint(made).tensors["w"]
    values = np.memmap(extent.file, np.float16, "r", extent.offset, extent.shape)
    np.testing.assert_array_equal(values[-32:], np.tile(row, (32, 1)))
