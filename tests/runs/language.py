"""What trainers of language models, robots and speech leave, by the source of each."""

from __future__ import annotations

import logging
import warnings
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from phema_cli.snapshots import Config
from tests.runs.base import (
    BETA,
    FROM_RAW,
    RAW,
    STEPS,
    STORED,
    TIMES,
    Left,
    adam,
    beside,
    leaves,
    listed,
    parameters,
    raw,
    save,
    state,
    walk,
    write_json,
)

LIGHTNING = {"pytorch-lightning_version": "2.1.0", "lr_schedulers": [], "callbacks": {}}


def save_distributed(content: Mapping[str, Any], folder: Path) -> None:
    """A directory of ``torch.distributed.checkpoint``, written by one process."""
    from torch.distributed.checkpoint.state_dict_saver import save as save_sharded

    logging.getLogger("torch.distributed").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        save_sharded(dict(content), checkpoint_id=str(folder), no_dist=True)


def _moments(prefix: str, name: str) -> dict[str, torch.Tensor]:
    value = raw(0)[name]
    return {f"{prefix}exp_avg": value * 0, f"{prefix}exp_avg_sq": value * 0}


def _titan(step: int, ema: Any = None) -> dict[str, Any]:
    """The flat keys of torchtitan's checkpointer."""
    content: dict[str, Any] = dict(raw(step))
    for name in parameters():
        for moment, tensor in _moments("", name).items():
            content[f"optimizer.state.{name}.{moment}"] = tensor
        content[f"optimizer.state.{name}.step"] = torch.tensor(float(step))
        content[f"optimizer.param_groups.{name}.lr"] = 1e-4
    content |= {"lr_scheduler.last_epoch": step, "dataloader.dp_rank_0": b"state"}
    content |= {"train_state.step": step, "train_state.ntokens_seen": step * 1000}
    if ema is not None:
        averages = state(ema[step], step, only=parameters())
        content |= {f"ema_optimizer.state.{n}.ema_params": t for n, t in averages.items()}
    return content


@leaves("torchtitan")
def torchtitan(root: Path) -> Left:
    """pytorch/torchtitan, components/checkpointer/dcp.py, by PyTorch's own writer: raw weights."""
    for step in STORED[:-1]:
        save_distributed(_titan(step), root / "checkpoint" / f"step-{step}")
    # The last one has the model alone.
    save_distributed(raw(STEPS), root / "checkpoint" / f"step-{STEPS}")
    return Left(
        root,
        {"raw": "."},
        TIMES,
        origin="name",
        said=RAW,
        error=FROM_RAW,
        unmarked=frozenset({f"checkpoint/step-{STEPS}"}),
    )


@leaves("torchtitan")
def torchtitan_ema(root: Path) -> Left:
    """pytorch/torchtitan, components/ema.py of pull request 3985, by PyTorch's own writer."""
    ema = walk().averages(lambda n: 2 ** (-1 / (0.05 * n)))
    for step in STORED:
        save_distributed(_titan(step, ema), root / "checkpoint" / f"step-{step}")
    law = "power:halflife=0.05"
    return Left(
        root,
        {law: "ema_params", "raw": "."},
        TIMES,
        origin="name",
        said=Config(average=law),
        hint=law,
    )


def _megatron(root: Path, *, common: bool, master: str) -> Left:
    for step in STORED:
        inside = root / f"iter_{step:07d}"
        content: dict[str, Any] = dict(raw(step))
        for name in parameters():
            for moment, tensor in _moments("optimizer.state.", name).items():
                content[f"{moment}.{name}"] = tensor
            content[f"optimizer.state.{master}.{name}"] = raw(step)[name]
        content["rng_state/shard_0.0_1.1"] = [{"random_rng_state": 1}]
        content["blocks.0._extra_state/shard_0_1"] = b"fp8"
        about = {"args": Namespace(num_layers=2, iteration=step), "iteration": step}
        if not common:
            content["common_state/shard_0_1"] = [about]
        save_distributed(content, inside)
        if common:
            save({**about, "checkpoint_version": 3.0}, inside / "common.pt")
        backend = {"sharded_backend": "torch_dist", "sharded_backend_version": 1}
        write_json(backend, inside / "metadata.json")
    (root / "latest_checkpointed_iteration.txt").write_text(str(STEPS))
    left = beside("iter_{:07d}", "common.pt") if common else frozenset()
    return Left(root, {"raw": "."}, TIMES, origin="name", error=FROM_RAW, left_out=left)


@leaves("Megatron-core")
def megatron(root: Path) -> Left:
    """NVIDIA/Megatron-LM, training/checkpointing.py, before 2026: ``common.pt`` beside."""
    return _megatron(root, common=True, master="fp32_param")


@leaves("Megatron-core")
def megatron_of_2026(root: Path) -> Left:
    """NVIDIA/Megatron-LM, training/checkpointing.py, of 2026: what is common lies inside."""
    return _megatron(root, common=False, master="param")


@leaves("DeepSpeed")
def deepspeed(root: Path) -> Left:
    """deepspeedai/DeepSpeed, runtime/engine.py: ZeRO-2, fp32 in the optimizer's files."""
    for step in STORED:
        inside = root / f"global_step{step}"
        shapes = [{n: raw(step)[n].shape for n in sorted(parameters())}]
        content: dict[str, Any] = {
            "module": raw(step),
            "buffer_names": ["norm.running_mean"],
            "optimizer": None,
        }
        content |= {"param_shapes": shapes, "lr_scheduler": None, "skipped_steps": 0}
        content |= {"global_steps": step, "global_samples": 8 * step, "dp_world_size": 1}
        content |= {"mp_world_size": 1, "ds_config": {}, "ds_version": "0.19.8", "iteration": step}
        save(content, inside / "mp_rank_00_model_states.pt")
        flat = [torch.cat([t.flatten() for t in listed(walk().rows[step])])]
        groups = {"zero_stage": 2, "single_partition_of_fp32_groups": flat}
        save(
            {"optimizer_state_dict": groups, "ds_config": {}, "ds_version": "0.19.8"},
            inside / "bf16_zero_pp_rank_0_mp_rank_00_optim_states.pt",
        )
    (root / "latest").write_text(f"global_step{STEPS}")
    (root / "zero_to_fp32.py").write_text("# recovers the weights of a ZeRO checkpoint\n")
    file = "bf16_zero_pp_rank_0_mp_rank_00_optim_states.pt"
    left = beside("global_step{}", file)
    return Left(root, {"raw": "module"}, TIMES, error=FROM_RAW, left_out=left)


@leaves("NeMo", "Lightning")
def nemo(root: Path) -> Left:
    """NVIDIA/NeMo, common/callbacks/ema.py and nemo_model_checkpoint.py: pairs of files."""
    ema = walk().constant()
    for epoch, step in enumerate(STORED):
        name = f"gpt--val_loss={1 / step:.4f}-epoch={epoch}"
        content = {**LIGHTNING, "epoch": epoch, "global_step": step}
        save(
            {**content, "state_dict": raw(step), "optimizer_states": [adam(step)]},
            root / f"{name}.ckpt",
        )
        states: dict[str, Any] = {"opt": adam(step), "ema": listed(ema[step])}
        states["current_step"] = step
        states |= {"decay": BETA, "every_n_steps": 1}
        save(
            {**content, "state_dict": state(ema[step], step), "optimizer_states": [states]},
            root / f"{name}-EMA.ckpt",
        )
    series = {f"exponential:beta={BETA}": "EMA", "raw": "state_dict"}
    return Left(root, series, TIMES)


@leaves("NeMo", "Lightning")
def nemo_in_one_file(root: Path) -> Left:
    """NVIDIA/NeMo, common/callbacks/ema.py without its own ModelCheckpoint: a list beside."""
    ema = walk().averages(lambda n: BETA**10 if (n - 1) % 10 == 0 else None)
    for epoch, step in enumerate(STORED):
        states: dict[str, Any] = {
            "opt": adam(step),
            "ema": tuple(listed(ema[step])),
            "current_step": step,
        }
        states |= {"decay": BETA**10, "every_n_steps": 10}
        content = {**LIGHTNING, "epoch": epoch, "global_step": step, "state_dict": raw(step)}
        save({**content, "optimizer_states": [states]}, root / f"epoch={epoch}-step={step}.ckpt")
    law = f"exponential:beta={BETA**10!r},every=10,start=1"
    # It begins with the weights before the first step, and its law with those after it.
    return Left(root, {law: "ema", "raw": "state_dict"}, TIMES, inexact=0.3)


@leaves("nanoGPT, litgpt, OLMo")
def nano_gpt(root: Path) -> Left:
    """karpathy/nanoGPT, train.py: names of a compiled model; numbered as users keep them."""
    for step in STORED:
        content: dict[str, Any] = {"model": raw(step, "_orig_mod."), "optimizer": adam(step)}
        content |= {"model_args": {"n_layer": 2}, "iter_num": step, "best_val_loss": 3.2}
        save({**content, "config": {"beta1": 0.9, "beta2": 0.95}}, root / f"ckpt_{step}.pt")
    return Left(root, {"raw": "model"}, TIMES, error=FROM_RAW)


@leaves("nanoGPT, litgpt, OLMo")
def litgpt(root: Path) -> Left:
    """Lightning-AI/litgpt, litgpt/pretrain.py, save_checkpoint: parts of batches beside steps."""
    for step in STORED:
        inside = root / f"step-{step:08d}"
        content: dict[str, Any] = {"model": raw(step), "optimizer": adam(step)}
        content["train_dataloader"] = {}
        content |= {"iter_num": 4 * step, "step_count": step}
        save(content, inside / "lit_model.pth")
        (inside / "model_config.yaml").write_text("n_layer: 2\n")
    save(content, root / "final" / "lit_model.pth")
    left = frozenset({"final"})
    return Left(root, {"raw": "model"}, TIMES, error=FROM_RAW, left_out=left)


@leaves("nanoGPT, litgpt, OLMo")
def olmo(root: Path) -> Left:
    """allenai/OLMo, olmo/checkpoint.py, the unsharded kind."""
    for step in STORED:
        inside = root / f"step{step}-unsharded"
        save(raw(step), inside / "model.pt")
        save(adam(step), inside / "optim.pt")
        about = {"epoch": 0, "global_step": step, "global_train_tokens_seen": step * 1000}
        save({**about, "unsharded_checkpoints": []}, inside / "train.pt")
        (inside / "config.yaml").write_text("model: {}\n")
    (root / "latest-unsharded").symlink_to(inside, target_is_directory=True)
    left = beside("step{}-unsharded", "optim.pt", "train.pt") | {"latest-unsharded"}
    return Left(root, {"raw": "."}, TIMES, origin="name", error=FROM_RAW, left_out=left)


def _distributed(root: Path, pattern: str) -> None:
    for step in STORED:
        inside = root / pattern.format(step)
        moments = {"state": {n: _moments("", n) for n in parameters()}}
        save_distributed({"model": raw(step), "optim": moments}, inside / "model_and_optim")
        save({"global_step": step, "epoch": 1}, inside / "train" / "rank0.pt")


@leaves("nanoGPT, litgpt, OLMo")
def olmo_sharded(root: Path) -> Left:
    """allenai/OLMo, olmo/checkpoint.py, ``torch_new``, by PyTorch's own writer."""
    _distributed(root, "step{}")
    left = beside("step{}", "train/rank0.pt")
    return Left(root, {"raw": "model"}, TIMES, origin="name", error=FROM_RAW, left_out=left)


@leaves("nanoGPT, litgpt, OLMo")
def olmo_core(root: Path) -> Left:
    """allenai/OLMo-core, train/checkpoint.py, by PyTorch's own writer."""
    _distributed(root, "step{}")
    for step in STORED:
        write_json({"ephemeral": False, "version": "2"}, root / f"step{step}" / ".metadata.json")
        write_json({"model": {}}, root / f"step{step}" / "config.json")
    left = beside("step{}", "train/rank0.pt")
    return Left(root, {"raw": "model"}, TIMES, origin="name", error=FROM_RAW, left_out=left)


def _robot(here: Path, step: int, row: Any, config: object) -> None:
    here.mkdir(parents=True)
    save_file(state(row, step), here / "model.safetensors", metadata={"format": "pt"})
    write_json({"type": "diffusion"}, here / "config.json")
    write_json(config, here / "train_config.json")
    write_json({}, here / "policy_preprocessor.json")
    statistics = {"observation.state.mean": torch.zeros(4)}
    save_file(statistics, here / "policy_preprocessor_step_3_normalizer_processor.safetensors")


@leaves("LeRobot")
def lerobot(root: Path) -> Left:
    """huggingface/lerobot, common/train_utils.py and lerobot_train.py: two batches a step."""
    ema = walk().averages(lambda n: min(0.9999, 1 - n**-0.75))
    config = {"enable": True, "decay": None, "update_after_step": 0, "inv_gamma": 1.0}
    config |= {"power": 0.75, "min_decay": 0.0, "max_decay": 0.9999, "use_for_eval": True}
    accelerator = {"gradient_accumulation": {"steps": 2}}
    for step in STORED:
        here = root / "checkpoints" / f"{2 * step:06d}"
        told = {"ema": config, "accelerator": accelerator}
        _robot(here / "pretrained_model", step, walk().rows[step], told)
        _robot(here / "pretrained_model_ema", step, ema[step], told)
        inside = here / "training_state"
        about = {"step": 2 * step, "dp_world_size": 1, "batch_size": 8, "grad_accum_steps": 2}
        write_json(about, inside / "training_step.json")
        settings = {"decay": 0.9999, "min_decay": 0.0, "optimization_step": step}
        settings |= {"update_after_step": 0, "use_ema_warmup": True, "inv_gamma": 1.0}
        shadow = {"power": 0.75, "shadow_params": listed(ema[step])}
        save({**settings, **shadow}, inside / "ema_state.pt")
        save_file({"a": torch.ones(2, 2)}, inside / "optimizer_state.safetensors")
        save_file({"a": torch.ones(2, 2)}, inside / "rng_state.safetensors")
    (root / "checkpoints" / "last").symlink_to(here.name, target_is_directory=True)
    law = "diffusers:beta=0.9999,warmup=1,power=0.75,every=2"
    processor = "policy_preprocessor_step_3_normalizer_processor.safetensors"
    left = [f"{part}/{processor}" for part in ("pretrained_model", "pretrained_model_ema")]
    left += [f"training_state/{n}.safetensors" for n in ("optimizer_state", "rng_state")]
    return Left(
        root,
        {law: "pretrained_model_ema", "raw": "pretrained_model"},
        tuple(2 * t for t in TIMES),
        left_out=beside(
            "checkpoints/{:06d}",
            *left,
            "training_state/ema_state.pt",
            times=[2 * n for n in STORED],
        )
        | {"checkpoints/last"},
    )


@leaves("Composer")
def composer(root: Path) -> Left:
    """mosaicml/composer, algorithms/ema/ema.py and core/state.py: a list of pairs, swapped."""
    halflife = 200
    ema = walk().averages(lambda n: 2 ** (-1 / halflife) if n > 1 else 0.0)
    for step in STORED:
        kept = {
            "named_parameters_dict": dict(raw(step, only=parameters())),
            "named_buffers_dict": {n: t for n, t in raw(step).items() if n not in parameters()},
        }
        algorithm: dict[str, Any] = {
            "repr": "<composer.algorithms.ema.ema.EMA object>",
            "ema_model": kept,
        }
        algorithm |= {"ema_weights_active": True, "ema_started": True}
        inside = {
            "model": state(ema[step], step),
            "optimizers": {"AdamW": adam(step)},
            "algorithms": [("LabelSmoothing", {"repr": ""}), ("EMA", algorithm)],
            "callbacks": [],
            "timestamp": {"Timestamp": {"epoch": step // 100, "batch": step, "sample": 8 * step}},
            "rank_zero_seed": 17,
            "metadata": {"composer_env_info": {"composer_version": "0.32.1"}},
        }
        save({"state": inside, "rng": []}, root / f"ep{step // 100}-ba{step}-rank0.pt")
    (root / "latest-rank0.pt").symlink_to(f"ep{step // 100}-ba{step}-rank0.pt")
    law = f"exponential:halflife={halflife},start=1"
    return Left(
        root,
        {law: "state.model", "raw": "state.algorithms"},
        TIMES,
        said=Config(average=law),
        hint="exponential:halflife=1000,start=1",
    )


@leaves("Composer")
def composer_without_ema(root: Path) -> Left:
    """mosaicml/composer, callbacks/checkpoint_saver.py: no algorithm that averages."""
    for step in STORED:
        inside = {"model": raw(step), "optimizers": {"AdamW": adam(step)}, "algorithms": []}
        inside |= {"timestamp": {"Timestamp": {"epoch": 0, "batch": step}}, "run_name": "a"}
        save({"state": inside, "rng": []}, root / f"ep0-ba{step}-rank0.pt")
    return Left(root, {"raw": "state.model"}, TIMES, said=RAW, error=FROM_RAW)


@leaves("fairseq")
def fairseq(root: Path) -> Left:
    """facebookresearch/fairseq 0.12.2, trainer.py and models/ema/ema.py: copies up to a step."""
    start = 101
    ema = walk().averages(lambda n: BETA if n >= start else 0.0)
    for epoch, step in enumerate(STORED, 1):
        settings = {"_name": None, "store_ema": True, "ema_decay": BETA}
        settings |= {"ema_start_update": start, "ema_update_freq": 1, "ema_fp32": False}
        content = {
            "args": None,
            "cfg": {"ema": settings, "model": Namespace(arch="transformer"), "task": {}},
            "model": raw(step),
            "criterion": None,
            "optimizer_history": [{"optimizer_name": "FairseqAdam", "num_updates": step}],
            "task_state": {},
            "extra_state": {
                "train_iterator": {"epoch": epoch, "iterations_in_epoch": 0},
                "val_loss": 1.0,
                "ema": state(ema[step], step),
            },
            "last_optimizer_state": adam(step),
        }
        save(content, root / f"checkpoint_{epoch}_{step}.pt")
    for name in ("best", "last"):
        save(content, root / f"checkpoint_{name}.pt")
    return Left(
        root,
        {f"exponential:beta={BETA},start={start - 1}": "extra_state.ema", "raw": "model"},
        TIMES,
        left_out=frozenset({"checkpoint_best.pt", "checkpoint_last.pt"}),
    )


@leaves("fairseq")
def fairseq_without_ema(root: Path) -> Left:
    """facebookresearch/fairseq 0.12.2, the same without an average, and one file an epoch."""
    for epoch, step in enumerate(STORED, 1):
        history = [{"optimizer_name": "FairseqAdam", "num_updates": step}]
        content: dict[str, Any] = {"args": Namespace(arch="transformer"), "cfg": None}
        content["model"] = raw(step)
        content |= {"optimizer_history": history, "extra_state": {"val_loss": 1.0}}
        save({**content, "last_optimizer_state": adam(step)}, root / f"checkpoint{epoch}.pt")
    return Left(root, {"raw": "model"}, TIMES, said=RAW, error=FROM_RAW)


@leaves("icefall")
def icefall(root: Path) -> Left:
    """k2-fsa/icefall, icefall/checkpoint.py: a plain mean, kept in float64, of every tenth step."""
    period = 10
    mean = walk().averages(lambda n: None if n % period else 1 - period / n)
    for number, step in enumerate(STORED, start=1):
        content: dict[str, Any] = {"model": raw(step), "model_avg": state(mean[step], step)}
        content |= {"optimizer": adam(step), "scheduler": {"epoch": 0, "batch": step}}
        content |= {
            "grad_scaler": {"scale": 1.0},
            "sampler": {"epoch": number},
            "cur_epoch": number,
        }
        content |= {"average_period": period, "batch_idx_train": step}
        save(content, root / "exp" / f"epoch-{number}.pt")
    law = f"k-diffusion:power=1,every={period}"
    return Left(root, {law: "model_avg", "raw": "model"}, TIMES)
