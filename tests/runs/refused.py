"""What trainers leave that holds no whole weights: each function gives what the error must name."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

import torch

from tests.runs.base import STORED, adam, raw, save

#: functions that write such files into an empty directory, and whose they are.
CASES: list[tuple[str, Callable[[Path], str]]] = []


def refuses(trainer: str) -> Callable[[Callable[[Path], str]], Callable[[Path], str]]:
    """Register what a trainer leaves, and phema is to refuse."""

    def register(write: Callable[[Path], str]) -> Callable[[Path], str]:
        CASES.append((trainer, write))
        return write

    return register


@refuses("DeepSpeed")
def deepspeed_zero3(root: Path) -> str:
    """deepspeedai/DeepSpeed, runtime/engine.py: empty tensors, the weights in the optimizer's."""
    for step in STORED:
        inside = root / f"global_step{step}"
        empty = {n: torch.empty(0) for n in raw(step)}
        shapes = [OrderedDict((n, t.shape) for n, t in raw(step).items())]
        content = {"module": empty, "param_shapes": shapes, "global_steps": step}
        content |= {"ds_version": "0.19.8", "ds_config": {}}
        save(content, inside / "zero_pp_rank_0_mp_rank_00_model_states.pt")
        groups = {"zero_stage": 3, "fp32_flat_groups": [torch.ones(10)]}
        states = {"optimizer_state_dict": groups, "ds_config": {}, "ds_version": "0.19.8"}
        save(states, inside / "zero_pp_rank_0_mp_rank_00_optim_states.pt")
    return "zero_to_fp32"


@refuses("DeepSpeed")
def deepspeed_ranks(root: Path) -> str:
    """deepspeedai/DeepSpeed, runtime/engine.py: a model cut up by tensor parallelism."""
    for rank in range(2):
        content = {"module": raw(50), "mp_world_size": 2, "global_steps": 50}
        content |= {"ds_version": "0.19.8", "ds_config": {}}
        save(content, root / "global_step50" / f"mp_rank_{rank:02d}_model_states.pt")
    return "universal"


@refuses("Megatron-core")
def megatron_ranks(root: Path) -> str:
    """NVIDIA/Megatron-LM, training/checkpointing.py: its older format, a file for each rank."""
    for rank in range(2):
        content = {"model": raw(50), "optimizer": adam(50), "iteration": 50}
        save(content, root / "iter_0000050" / f"mp_rank_{rank:02d}" / "model_optim_rng.pt")
    return "torch_dist"


@refuses("mmcv")
def mmcv(root: Path) -> str:
    """open-mmlab/mmcv 1.x, runner/hooks/ema.py, from memory: buffers beside the weights."""
    for step in STORED:
        content = raw(step) | {f"ema_{n.replace('.', '_')}": t for n, t in raw(step).items()}
        save({"meta": {"iter": step}, "state_dict": content}, root / f"iter_{step}.pth")
    return "mmcv"
