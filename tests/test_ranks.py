"""Ranks started by torchrun: one synthesis, the same bytes, and clean failures."""

import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tests import warm
from tests.builders import phema, write_run

pytestmark = pytest.mark.linux("killed processes, found in /proc")

TORCHRUN = Path(sys.executable).with_name("torchrun")


def launch(ranks, *arguments, launcher=None, **more):
    """Start phema's module on so many ranks of this machine."""
    launcher = launcher or warm.programs() / "torchrun"
    command = [launcher, "--standalone", "--nproc-per-node", str(ranks), "-m", "phema_cli"]
    return subprocess.Popen(
        [*map(str, command), *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        **more,
    )


def contents(folder):
    """Bytes of every file below a directory, by name."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.fixture
def large(tmp_path):
    """Four snapshots of tensors of several types and sizes."""
    folder = tmp_path / "ckpts"
    folder.mkdir()
    random = torch.Generator().manual_seed(0)
    for step in (1, 2):
        for gamma in (5, 10):
            tensors = {f"layer{i}": torch.randn(300, 400, generator=random) for i in range(20)}
            tensors |= {f"half{i}": torch.randn(999, generator=random).half() for i in range(9)}
            tensors["count"] = torch.arange(100_000) * step
            metadata = {"gamma": str(gamma), "step": str(step)}
            save_file(tensors, folder / f"s{step}-{gamma}.safetensors", metadata)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        ["--max-shard-size", "2MB"],
        ["--format", "torch"],
        ["--format", "dcp", "--max-shard-size", "2MB"],
    ],
)
def test_ranks_write_the_bytes_of_one_process(large, tmp_path, options):
    """Three ranks, two targets: shards and their index, the checksums of zip files."""
    arguments = ["synthesize", large, "-g", "6,7", *options]
    alone = phema(*arguments, "-o", tmp_path / "alone")
    assert alone.code == 0, alone.err
    running = launch(3, *arguments, "-o", tmp_path / "ranks")
    out, err = running.communicate(timeout=300)
    assert running.returncode == 0, err
    assert out == alone.out.replace(str(tmp_path / "alone"), str(tmp_path / "ranks"))
    assert contents(tmp_path / "ranks") == contents(tmp_path / "alone")
    assert len(contents(tmp_path / "ranks")) >= 2


@pytest.mark.slow
def test_one_message_for_all_ranks(ckpts, tmp_path):
    """What rank 0 finds wrong is said once, and no rank waits for it."""
    running = launch(2, "synthesize", ckpts, "-g", "7", "-o", tmp_path / "o", "--step", "1000")
    _, err = running.communicate(timeout=120)
    assert running.returncode != 0
    assert sum(line.startswith("phema: ") for line in err.splitlines()) == 1
    assert not (tmp_path / "o").exists()


@pytest.mark.slow
def test_a_failed_rank_fails_the_job_and_leaves_nothing(large, tmp_path):
    """A file-size limit in every rank stands for a full disk: no output, no partial file."""
    running = launch(
        2,
        *("synthesize", large, "-g", "7", "-o", tmp_path / "o", "--overwrite"),
        launcher=TORCHRUN,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20)),
    )
    _, err = running.communicate(timeout=120)
    assert running.returncode != 0
    assert "cannot write" in err
    assert not (tmp_path / "o").exists()


@pytest.mark.slow
def test_a_killed_rank_fails_the_job_and_leaves_no_output(tmp_path):
    """Rank 1 is killed while it writes: rank 0 ends too, and no file has the output's name."""
    folder, out = tmp_path / "in", tmp_path / "out.safetensors"
    folder.mkdir()
    tensor = torch.zeros(96 << 20, dtype=torch.float16)
    for step in (1, 2):
        metadata = {"gamma": "5.0", "step": str(step)}
        save_file({"w": tensor}, folder / f"s{step}.safetensors", metadata)
    # Zeros everywhere are no average that was ever updated.
    options = ["--max-memory", "1MB", "--trust-tags"]
    running = launch(2, "synthesize", folder, "-g", "7", "-o", out, *options, launcher=TORCHRUN)
    partial = tmp_path / "out.safetensors.partial"
    killed = False
    while running.poll() is None and not killed:
        time.sleep(0.001)
        if partial.exists():
            second = [p for p in ranks_of(running.pid) if environment(p).get("RANK") == "1"]
            for pid in second:
                os.kill(pid, signal.SIGKILL)
                killed = True
    running.communicate(timeout=120)
    assert killed
    assert running.returncode != 0
    assert not out.exists()
    noted = "".join(path.read_text() for path in partial.glob("journal*"))
    assert not partial.exists() or '"done"' in noted


def ranks_of(parent):
    """Process ids of a process's children."""
    text = Path(f"/proc/{parent}/task/{parent}/children").read_text(encoding="utf-8")
    return [int(pid) for pid in text.split()]


def environment(pid):
    """A process's environment."""
    entries = Path(f"/proc/{pid}/environ").read_bytes().decode().split("\0")
    return dict(entry.split("=", 1) for entry in entries if "=" in entry)


def test_the_console_script_of_a_rank_works_alone(tmp_path):
    """A training script's rank that calls phema means one process, not a team."""
    write_run(tmp_path / "ckpts")
    ranks = {"RANK": "1", "WORLD_SIZE": "4", "MASTER_ADDR": "localhost", "MASTER_PORT": "1"}
    done = phema("synthesize", tmp_path / "ckpts", "-g", "7", "-o", tmp_path / "o", **ranks)
    assert done.code == 0, done.err
