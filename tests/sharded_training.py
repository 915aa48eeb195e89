"""A program of two ranks: trains a model sharded by FSDP2, stores its averages and resumes."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.checkpoint import state_dict_loader, state_dict_saver
from torch.distributed.fsdp import fully_shard
from torch.multiprocessing.spawn import start_processes

from phema_cli import PowerEMA
from phema_cli.errors import StorageError, UsageError
from phema_cli.tracker.sharding import local as shard

STEPS = 6
#: the updates before the first one here: so late that averages are kept in two parts.
BEGIN = 2000


class Net(nn.Module):
    """Odd sizes, so that shards differ; tied, frozen and integer tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(5, 3)
        self.inner = nn.Linear(3, 3)
        self.norm = nn.BatchNorm1d(3)
        self.head = nn.Linear(3, 5, bias=False)
        self.head.weight = self.embed.weight
        self.frozen = nn.Parameter(torch.arange(3.0), requires_grad=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits."""
        result: torch.Tensor = self.head(self.norm(self.inner(self.embed(x))) + self.frozen)
        return result


def train(model: nn.Module, ema: PowerEMA, start: int, stop: int) -> None:
    """Take steps on batches that are the same on every rank."""
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    for step in range(start, stop):
        x = torch.arange(8).mul(step + 3).remainder(5)
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), x).backward()
        optimizer.step()
        # An evaluation leaves the gathered parameters in the place of the shards.
        model.eval()(x)
        model.train()
        ema.update()


def made(*, sharded: bool) -> tuple[nn.Module, PowerEMA]:
    """The model of every run here, and its averages."""
    torch.manual_seed(0)
    model = Net()
    names = PowerEMA(model).state_dict()["recent"][0]
    values = {n: t.clone() for n, t in model.state_dict().items() if n in names}
    if sharded:
        fully_shard(model.inner)
        fully_shard(model)
    ema = PowerEMA(model)
    # A state as phema 0.1 left it, in float32 alone.
    ema.load_state_dict({"step": BEGIN, "gammas": [5.0, 10.0], "averages": [values, values]})
    return model, ema


def plain(ema: PowerEMA) -> dict[str, Any]:
    """The sharded state of phema 0.1 with the same averages."""
    names = ema.state_dict(sharded=True)["recent"][0]
    averages = [{n: ema.average(g)[n] for n in names} for g in ema.gammas]
    return {"step": ema.step, "gammas": list(ema.gammas), "averages": averages}


def refusals(out: Path) -> None:
    """What a sharded run can't do is refused on every rank alike."""
    model = Net()
    late = PowerEMA(model)
    fully_shard(model)
    with pytest.raises(UsageError, match="after resizing, sharding"):
        late.update()
    _, ema = made(sharded=True)
    with pytest.raises(UsageError, match="rank 0"):
        ema.load_state_dict({"gammas": [5, 10], "recent": [{}, {}], "base": [{}, {}]})
    ema.update()
    # One rank alone holds the value that float16 can't.
    with torch.no_grad():
        large, ema = made(sharded=True)
        if dist.get_rank() == 1:
            shard(large.get_parameter("inner.weight")).fill_(1e9)
    ema.update()
    with pytest.raises(UsageError, match=r"inner\.weight holds .*above float16"):
        ema.save(out / "beyond", dtype=torch.float16)
    assert not (out / "beyond").exists()
    # What one rank's disk refuses is an error on all, and none is left waiting.
    with pytest.raises(StorageError, match="cannot write"):
        ema.save(out / "store" / "below a file")
    # Packed ones gather a sample first, which a keyframe takes none of: then the chain goes on.
    for directory in ("store/below", "more", "store/below", "more"):
        ema.update()
        if directory == "more":
            ema.save(out / directory, packing=8)
            continue
        with pytest.raises(StorageError, match="cannot write"):
            ema.save(out / directory, packing=8)
    with pytest.raises(UsageError, match="packing replaces dtype"):
        ema.save(out / "more", packing=8, dtype=torch.float16)


def run(rank: int, out: Path) -> None:
    """Train sharded, and go on from each kind of state."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{out}/store", rank=rank, world_size=2)
    model, ema = made(sharded=True)
    train(model, ema, 0, STEPS // 2)
    whole, shards = ema.state_dict(), ema.state_dict(sharded=True)
    state_dict_saver.save(shards, checkpoint_id=out / "dcp")
    state_dict_saver.save(plain(ema), checkpoint_id=out / "plain dcp")
    if rank == 0:
        torch.save(whole, out / "whole.pt")
    dist.barrier()
    ema.save(out / "sharded packed", packing=8, keyframe_every=3)
    train(model, ema, STEPS // 2, STEPS)
    ema.save(out / "sharded packed", packing=8, keyframe_every=3)
    ema.save(out / "sharded")
    ema.save(out / "half", dtype=torch.bfloat16)

    resumed = PowerEMA(model)
    resumed.load_state_dict(torch.load(out / "whole.pt", weights_only=True))
    again = PowerEMA(model)
    blank = again.state_dict(sharded=True)
    state_dict_loader.load(blank, checkpoint_id=out / "dcp")
    again.load_state_dict(blank)
    older = PowerEMA(model)
    recent = older.state_dict(sharded=True)["recent"]
    blank = {"step": 0, "gammas": [5.0, 10.0], "averages": recent}
    state_dict_loader.load(blank, checkpoint_id=out / "plain dcp")
    older.load_state_dict(blank)
    older.save(out / "from plain dcp")
    resumed.save(out / "from whole")
    resumed.load_state_dict(torch.load(out / "unsharded.pt", weights_only=True))
    resumed.save(out / "from one process")
    again.save(out / "from dcp")
    refusals(out)
    dist.destroy_process_group()


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    model, ema = made(sharded=False)
    train(model, ema, 0, STEPS // 2)
    ema.save(folder / "at half time")
    ema.save(folder / "unsharded packed", packing=8, keyframe_every=3)
    train(model, ema, STEPS // 2, STEPS)
    ema.save(folder / "unsharded packed", packing=8, keyframe_every=3)
    ema.save(folder / "unsharded")
    torch.save(ema.state_dict(), folder / "unsharded.pt")
    start_processes(run, (folder,), 2, start_method="fork")
    ema.load_state_dict(torch.load(folder / "whole.pt", weights_only=True))
    ema.save(folder / "in one process")
