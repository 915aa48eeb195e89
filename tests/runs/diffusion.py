"""What trainers of diffusion models leave, by the source of each."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

from phema_cli.profiles import gamma_from_sigma_rel
from phema_cli.snapshots import Config
from tests.runs.base import (
    A_STEP_BEHIND,
    BETA,
    FROM_RAW,
    STEPS,
    STORED,
    TIMES,
    Left,
    State,
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
from tests.simulated import recursion

CONSTANT = f"exponential:beta={BETA}"


def lucid(
    every: int = 10, after: int = 100, beta: float = 0.9999, power: float = 2 / 3, behind: int = 0
) -> np.ndarray:
    """ema_pytorch.EMA as lucidrains/ema-pytorch, ema_pytorch.py, computes it.

    Args:
        every: its update_every.
        after: its update_after_step.
        beta: its cap.
        power: of its warm-up.
        behind: by how many steps the weights that it is given are older.
    """
    rows = walk().rows

    def decay(n: int) -> float | None:
        done = n - 1
        if done % every:
            return None
        return min(1 - (1 + done - after) ** -power, beta) if done > after else 0.0

    return recursion(np.vstack([rows[:1]] * behind + [rows])[: len(rows)], decay)


@leaves("karras-power-ema-tutorial")
def tutorial(root: Path) -> Left:
    """cloneofsimo/karras-power-ema-tutorial, README.md: file i after update i + 1, 0 too."""
    gammas = {1: 5.0, 2: 10.0}
    for index, gamma in gammas.items():
        ema = walk().power(gamma)
        for i in (0, *(n - 1 for n in STORED)):
            save(state(ema[i + 1], i + 1), root / f"model_ema_{index}_{i}.pth")
    return Left(
        root,
        {f"power:gamma={gamma}": "." for gamma in gammas.values()},
        (1.0, *TIMES),
        origin="name",
        said=Config(gammas=(5.0, 10.0)),
    )


@leaves("guided-diffusion")
def guided_diffusion(root: Path) -> Left:
    """openai/guided-diffusion, guided_diffusion/train_util.py, save: before the step counts."""
    rates = ("0.9999", "0.998", "0.99")
    steps = range(0, STEPS, 50)
    for rate in rates:
        ema = walk().constant(float(rate))
        for step in steps:
            save(state(ema[step + 1], step + 1), root / f"ema_{rate}_{step:06d}.pt")
    for step in steps:
        save(raw(step + 1), root / f"model{step:06d}.pt")
        save(adam(step), root / f"opt{step:06d}.pt")
    return Left(
        root,
        {"raw": "model"} | {f"exponential:beta={rate}": f"ema_{rate}" for rate in rates},
        tuple(float(n + 1) for n in steps),
        origin="name",
        left_out=frozenset(f"opt{n:06d}.pt" for n in steps),
        end=steps[-1] + 1,
    )


@leaves("guided-diffusion")
def consistency_models(root: Path) -> Left:
    """openai/consistency_models, cm/train_util.py, save: two more networks."""
    ema = walk().constant(0.998)
    steps = range(0, STEPS, 50)
    for step in steps:
        save(state(ema[step + 1], step + 1), root / f"ema_0.998_{step:06d}.pt")
        for name in ("model", "target_model", "teacher_model"):
            save(raw(step + 1), root / f"{name}{step:06d}.pt")
    return Left(
        root,
        {"raw": "model", "exponential:beta=0.998": "ema_0.998"},
        tuple(float(n + 1) for n in steps),
        origin="name",
        left_out=frozenset(f"{k}_model{n:06d}.pt" for k in ("target", "teacher") for n in steps),
        end=steps[-1] + 1,
    )


@leaves("DiT")
def repa(root: Path) -> Left:
    """sihyun-yu/REPA, train.py: the same with the step inside."""
    ema = walk().constant()
    for step in STORED:
        content: dict[str, Any] = {"model": raw(step), "ema": state(ema[step], step)}
        content |= {"opt": adam(step), "args": Namespace(model="SiT-XL/2"), "steps": step}
        save(content, root / "checkpoints" / f"{step:07d}.pt")
    series, said = {CONSTANT: "ema", "raw": "model"}, Config(average=CONSTANT)
    return Left(root, series, TIMES, said=said, hint="exponential:beta=0.9999")


@leaves("DiT")
def dit(root: Path) -> Left:
    """facebookresearch/DiT, train.py, main: raw weights, an average with a hard-coded decay."""
    ema = walk().constant()
    arguments = Namespace(model="DiT-XL/2", vae="ema", ckpt_every=50, results_dir="results")
    for step in STORED:
        content: dict[str, Any] = {"model": raw(step), "ema": state(ema[step], step)}
        content["opt"] = adam(step)
        content["args"] = arguments
        save(content, root / "000-DiT-XL-2" / "checkpoints" / f"{step:07d}.pt")
    (root / "000-DiT-XL-2" / "log.txt").write_text("(step=0000050) Train Loss: 0.1\n")
    series = {CONSTANT: "ema", "raw": "model"}
    said, hint = Config(average=CONSTANT), "exponential:beta=0.9999"
    return Left(root, series, TIMES, origin="name", said=said, hint=hint)


@leaves("k-diffusion")
def k_diffusion(root: Path) -> Left:
    """crowsonkb/k-diffusion, train.py, save, and utils.py: the whole law in ``ema_sched``."""
    ema = walk().averages(lambda n: min(0.9999, 1 - n**-0.75))
    for step in STORED:
        schedule = {"inv_gamma": 1.0, "power": 0.75, "min_value": 0.0, "max_value": 0.9999}
        content = {
            "config": {"model": {"type": "v1"}},
            "model": raw(step),
            "model_ema": state(ema[step], step),
            "opt": adam(step),
            "sched": {"last_epoch": step, "power": 1.0},
            "ema_sched": {**schedule, "start_at": 0, "last_epoch": step},
            "epoch": step // 300,
            "step": step,
            "gns_stats": None,
            "ema_stats": {"loss": 0.1},
            "demo_gen": torch.get_rng_state(),
            "elapsed": 1.5,
        }
        save(content, root / f"model_{step:08d}.pth")
    write_json({"latest_checkpoint": f"model_{STEPS:08d}.pth"}, root / "model_state.json")
    return Left(root, {"k-diffusion:power=0.75,beta=0.9999": "model_ema", "raw": "model"}, TIMES)


@leaves("denoising-diffusion-pytorch", "ema-pytorch")
def denoising_diffusion(root: Path) -> Left:
    """lucidrains/denoising-diffusion-pytorch, Trainer.save: milestones, the raw weights twice."""
    ema = lucid(beta=0.995)
    for milestone, step in enumerate(STORED, 1):
        average = State(initted=torch.tensor(data=True), step=torch.tensor(step))
        average.update(raw(step, "online_model.model."))
        average.update(state(ema[step], step, "ema_model.model."))
        content = {
            "step": step,
            "model": raw(step, "model."),
            "opt": adam(step),
            "ema": average,
            "scaler": None,
            "version": "2.2.5",
        }
        save(content, root / f"model-{milestone}.pt")
    law = "ema-pytorch:beta=0.995,every=10"
    series = {law: "ema", "raw": "model"}
    return Left(root, series, TIMES, said=Config(average=law), hint=law, prefix="model.")


@leaves("imagen-pytorch")
def imagen(root: Path) -> Left:
    """lucidrains/imagen-pytorch, trainer.py, save: a list of averages, one a network."""
    ema = lucid()
    for step in STORED:
        average = State({"0.initted": torch.tensor(data=True), "0.step": torch.tensor(step)})
        average.update(raw(step, "0.online_model."))
        average.update(state(ema[step], step, "0.ema_model."))
        content = {
            "model": raw(step, "unets.0."),
            "version": "2.1.0",
            "steps": torch.tensor([step]),
            "scaler0": {"scale": 1.0},
            "optim0": adam(step),
            "ema": average,
        }
        save(content, root / f"checkpoint.{step}.pt")
    law = "ema-pytorch:beta=0.9999"
    series = {law: "ema.0", "raw": "model"}
    said = Config(average=law)
    return Left(root, series, TIMES, said=said, hint=f"{law},every=10", prefix="unets.0.")


@leaves("F5-TTS", "ema-pytorch")
def f5_tts(root: Path) -> Left:
    """SWivid/F5-TTS, src/f5_tts/model/trainer.py, save_checkpoint: no raw copy in the average."""
    ema = lucid()
    for step in STORED:
        average = State(initted=torch.tensor(data=True), step=torch.tensor(step))
        average.update(state(ema[step], step, "ema_model."))
        content = {
            "model_state_dict": raw(step),
            "optimizer_state_dict": adam(step),
            "ema_model_state_dict": average,
            "scheduler_state_dict": {"last_epoch": step},
            "update": step,
        }
        save(content, root / f"model_{step}.pt")
    save(content, root / "model_last.pt")
    law = "ema-pytorch:beta=0.9999,every=10"
    return Left(
        root,
        {law: "ema_model_state_dict", "raw": "model_state_dict"},
        TIMES,
        said=Config(average=law),
        hint=law,
        left_out=frozenset({"model_last.pt"}),
    )


def _stable_audio(root: Path, old: str, averaged: str) -> Left:
    """A Lightning checkpoint of stable-audio-tools, with ema_pytorch 0.2.3's counters."""
    ema = lucid(every=1, after=1, power=0.75, behind=1)
    for step in STORED:
        content = raw(step, old)
        content[f"{averaged}.initted"] = torch.tensor([1.0])
        content[f"{averaged}.step"] = torch.tensor([step])
        content.update(state(ema[step], step, f"{averaged}.ema_model."))
        content["diffusion.pretransform.model.encoder.weight"] = torch.ones(4, 4)
        whole = {"epoch": 0, "global_step": step, "pytorch-lightning_version": "2.1.0"}
        whole |= {"state_dict": content, "optimizer_states": [adam(step)], "callbacks": {}}
        save({**whole, "model_config": {}}, root / "checkpoints" / f"epoch=0-step={step}.ckpt")
    law = "ema-pytorch:beta=0.9999,power=0.75,every=1,update_after=1"
    return Left(
        root,
        {law: averaged, "raw": "state_dict"},
        TIMES,
        said=Config(average=law),
        hint=law,
        inexact=A_STEP_BEHIND,
        also=frozenset({"diffusion.pretransform.model.encoder.weight"}),
        prefix=old,
    )


@leaves("stable-audio-tools", "ema-pytorch", "Lightning")
def stable_audio(root: Path) -> Left:
    """Stability-AI/stable-audio-tools, training/diffusion.py: ``diffusion_ema.`` among the raw."""
    return _stable_audio(root, "diffusion.model.", "diffusion_ema")


@leaves("stable-audio-tools")
def stable_audio_autoencoder(root: Path) -> Left:
    """Stability-AI/stable-audio-tools, training/autoencoders.py: ``autoencoder_ema.``."""
    return _stable_audio(root, "autoencoder.", "autoencoder_ema")


_FLAT = {"decay": 0.995, "min_decay": 0.0, "update_after_step": 0, "warmup_steps": 0}
_FLAT |= {"use_ema_warmup": False, "inv_gamma": 1.0, "power": 2 / 3}


@leaves("SimpleTuner", "diffusers")
def simple_tuner(root: Path) -> Left:
    """bghira/SimpleTuner, training/ema.py and save_hooks.py: the average twice, once as a list."""
    ema = walk().averages(lambda n: min(0.995, n / (9 + n)) if n > 1 else 0.0)
    name = "diffusion_pytorch_model.safetensors"
    for step in STORED:
        here = root / f"checkpoint-{step}"
        for part, row in (("transformer", walk().rows[step]), ("transformer_ema", ema[step])):
            config = {"_class_name": "Tiny", "num_layers": 2}
            config |= {**_FLAT, "optimization_step": step} if part.endswith("_ema") else {}
            write_json(config, here / part / "config.json")
            save_file(state(row, step), here / part / name, metadata={"format": "pt"})
        shadow = {f"shadow_params.{i}": t for i, t in enumerate(listed(ema[step]))}
        save({**_FLAT, "optimization_step": step, **shadow}, here / "transformer_ema/ema_model.pt")
        write_json({"global_step": step, "exhausted_backends": []}, here / "training_state.json")
        save(adam(step), here / "optimizer.bin")
        save({"last_epoch": step}, here / "scheduler.bin")
    law = "diffusers:beta=0.995,power=2/3"
    left = ("transformer_ema/ema_model.pt", "optimizer.bin", "scheduler.bin")
    return Left(
        root,
        {law: "transformer_ema", "raw": "transformer"},
        TIMES,
        left_out=beside("checkpoint-{}", *left),
    )


@leaves("SimpleTuner")
def simple_tuner_lora(root: Path) -> Left:
    """bghira/SimpleTuner, save_hooks.py: a LoRA, its average in ``ema/``."""
    ema = walk().averages(lambda n: min(0.995, n / (9 + n)) if n > 1 else 0.0)
    for step in STORED:
        here = root / f"checkpoint-{step}"
        shadow = {f"shadow_params.{i}": t for i, t in enumerate(listed(ema[step]))}
        save({**_FLAT, "optimization_step": step, **shadow}, here / "transformer_ema/ema_model.pt")
        for place, row in ((here, walk().rows[step]), (here / "ema", ema[step])):
            place.mkdir(exist_ok=True)
            tensors = state(row, step, "transformer.")
            save_file(tensors, place / "pytorch_lora_weights.safetensors")
        write_json({"global_step": step, "exhausted_backends": []}, here / "training_state.json")
    law = "diffusers:beta=0.995"
    return Left(
        root,
        {law: "ema", "raw": "."},
        TIMES,
        said=Config(average=law),
        hint=law,
        left_out=beside("checkpoint-{}", "transformer_ema/ema_model.pt"),
        prefix="transformer.",
    )


@leaves("Cosmos")
def cosmos_predict2(root: Path) -> Left:
    """nvidia-cosmos/cosmos-predict2, checkpointer.py: ``net.`` and ``net_ema.`` in one dict."""
    ema = walk().power(gamma_from_sigma_rel(0.1))
    for step in STORED:
        name = f"iter_{step:09d}.pt"
        content = raw(step, "net.") | state(ema[step], step, "net_ema.")
        save(content, root / "checkpoints" / "model" / name)
        save(adam(step), root / "checkpoints" / "optim" / name)
        save({"last_epoch": step}, root / "checkpoints" / "scheduler" / name)
        save({"grad_scaler": {}, "iteration": step}, root / "checkpoints" / "trainer" / name)
    (root / "checkpoints" / "latest_checkpoint.txt").write_text(f"{name}\n")
    law = "power:sigma_rel=0.1"
    parts = ("optim", "scheduler", "trainer")
    return Left(
        root,
        {law: "net_ema", "raw": "net"},
        TIMES,
        origin="name",
        said=Config(average=law),
        hint=law,
        left_out=frozenset(f"checkpoints/{p}/iter_{n:09d}.pt" for p in parts for n in STORED),
        prefix="net.",
    )


@leaves("Cosmos")
def cosmos_predict1(root: Path) -> Left:
    """nvidia-cosmos/cosmos-predict1, utils/checkpointer.py and ema.py: dashes for dots."""
    ema = walk().power(gamma_from_sigma_rel(0.1))
    for step in STORED:

        def dashed(name: str) -> str:
            return name.replace(".", "-")

        average = state(ema[step], step, only=parameters(), rename=dashed)
        content: dict[str, Any] = {"model": {"model": raw(step), "ema": average}}
        content["optimizer"] = adam(step)
        content |= {"scheduler": {"last_epoch": step}, "grad_scaler": {}, "iteration": step}
        save(content, root / "checkpoints" / f"iter_{step:09d}.pt")
    law = "power:sigma_rel=0.1"
    series, said = {law: "model.ema", "raw": "model.model"}, Config(average=law)
    return Left(root, series, TIMES, said=said, hint=law)


@leaves("Cosmos")
def cosmos_predict1_ranks(root: Path) -> Left:
    """nvidia-cosmos/cosmos-predict1, utils/ema.py: one width a rank, each half the one before."""
    widths = (0.1, 0.05, 0.025)
    for rank, width in enumerate(widths):
        ema = walk().power(gamma_from_sigma_rel(width))
        for step in STORED:
            average = state(
                ema[step], step, only=parameters(), rename=lambda name: name.replace(".", "-")
            )
            content = {"model": {"model": raw(step), "ema": average}, "iteration": step}
            ending = f"_RANK{rank}" if rank else ""
            save(content, root / "checkpoints" / f"iter_{step:09d}{ending}.pt")
    series = {f"power:sigma_rel={width}": "model.ema" for width in widths}
    said = Config(gammas=tuple(gamma_from_sigma_rel(width) for width in widths))
    return Left(root, {**series, "raw": "model.model"}, TIMES, said=said)


@leaves("Cosmos")
def cosmos_predict1_fsdp(root: Path) -> Left:
    """nvidia-cosmos/cosmos-predict1, utils/fsdp_checkpointer.py: a file for each part."""
    ema = walk().power(gamma_from_sigma_rel(0.1))
    for step in STORED:
        name = f"checkpoints/iter_{step:09d}"
        save(raw(step), root / f"{name}_reg_model.pt")
        save(state(ema[step], step), root / f"{name}_ema_model.pt")
        save(adam(step), root / f"{name}_optim.pt")
        save({"grad_scaler": {}, "iteration": step}, root / f"{name}.pt")
    law = "power:sigma_rel=0.1"
    return Left(
        root,
        {law: "ema_model", "raw": "reg_model"},
        TIMES,
        origin="name",
        said=Config(average=law),
        hint=law,
        left_out=frozenset(
            f"checkpoints/iter_{n:09d}{e}.pt" for e in ("", "_optim") for n in STORED
        ),
    )


def _lora(name: str) -> str:
    """A name as LoRA files for Stable Diffusion have them."""
    return f"lora_unet_{name.replace('.', '_')}.lora_down.weight"


def _kohya(root: Path, mark: dict[str, str]) -> Left:
    alphas = {_lora(n).replace("lora_down.weight", "alpha") for n in parameters()}
    for epoch, step in enumerate(STORED, 1):
        content = raw(step, rename=_lora, only=parameters())
        content.update({name: torch.tensor(2.0) for name in alphas})
        number = f"-{epoch:06d}" if step < STEPS else ""
        metadata = {"ss_steps": str(step), "ss_epoch": str(epoch), "ss_min_snr_gamma": "5.0"}
        metadata |= {"ss_output_name": "mychar", "ss_network_module": "networks.lora", **mark}
        root.mkdir(exist_ok=True)
        save_file(content, root / f"mychar{number}.safetensors", metadata=metadata)
    return Left(
        root,
        {"raw": "."},
        TIMES,
        error=FROM_RAW,
        also=frozenset(alphas | {_lora(n) for n in ("norm.running_mean", "norm.running_var")}),
        rename=_lora,
        whole=False,
    )


@leaves("kohya")
def kohya(root: Path) -> Left:
    """kohya-ss/sd-scripts, train_network.py: epochs from 1, the last file without a number."""
    return _kohya(root, {"ss_sd_scripts_commit_hash": "48d368f", "sshs_model_hash": "0"})


@leaves("kohya")
def musubi(root: Path) -> Left:
    """kohya-ss/musubi-tuner, training/trainer_base.py: names by step, epochs from 0 inside."""
    for step in STORED:
        metadata = {"ss_steps": str(step), "ss_epoch": str(step // 100), "sshs_model_hash": "0"}
        root.mkdir(exist_ok=True)
        content = raw(step, rename=_lora, only=parameters())
        save_file(content, root / f"mychar-step{step:08d}.safetensors", metadata=metadata)
        inside = root / f"mychar-step{step:08d}-state"
        inside.mkdir()
        save_file(content, inside / "model.safetensors")
        save(adam(step), inside / "optimizer.bin")
        write_json({"current_epoch": 0, "current_step": step}, inside / "train_state.json")
    return Left(
        root,
        {"raw": "."},
        TIMES,
        error=FROM_RAW,
        left_out=beside("mychar-step{:08d}-state", "optimizer.bin")
        | frozenset(f"mychar-step{n:08d}-state" for n in STORED),
        rename=_lora,
        whole=False,
    )


def _one_trainer(root: Path, config: dict[str, str], average: Callable[..., Any]) -> None:
    for i, step in enumerate(STORED):
        name = f"2026-01-02_03-{i:02d}-00-save-{step - 1}-0-{step - 1}.safetensors"
        metadata = {"ot_revision": "23df383", "ot_branch": "master", **config}
        content = state(average(step - 1), step, rename=_lora, only=parameters())
        save_file(content, root / name, metadata=metadata)


@leaves("OneTrainer")
def onetrainer(root: Path) -> Left:
    """Nerogar/OneTrainer, GenericTrainer.py and EMAModule.py: saved files are the average."""
    ema = walk().averages(lambda n: None if n % 5 else min(0.999, n / (9 + n)))
    _one_trainer(root, {}, lambda step: ema[step])
    law = "onetrainer:beta=0.999,every=5"
    times, said = tuple(t - 1 for t in TIMES), Config(average=law)
    return Left(root, {law: "."}, times, origin="name", said=said, end=STEPS - 1, rename=_lora)


@leaves("OneTrainer")
def onetrainer_with_its_config(root: Path) -> Left:
    """Nerogar/OneTrainer, the same with ``ot_config`` in the metadata, which says the law."""
    ema = walk().averages(lambda n: None if n % 5 else min(0.999, n / (9 + n)))
    config = '{"ema": "GPU", "ema_decay": 0.999, "ema_update_step_interval": 5}'
    _one_trainer(root, {"ot_config": config}, lambda step: ema[step])
    times = tuple(t - 1 for t in TIMES)
    law = "onetrainer:beta=0.999,every=5"
    return Left(root, {law: "."}, times, origin="name", end=STEPS - 1, rename=_lora)


@leaves("OneTrainer")
def onetrainer_without_ema(root: Path) -> Left:
    """Nerogar/OneTrainer, the same with its EMA off: raw weights."""
    _one_trainer(root, {"ot_config": '{"ema": "OFF"}'}, lambda step: walk().rows[step])
    times = tuple(t - 1 for t in TIMES)
    return Left(
        root,
        {"raw": "."},
        times,
        origin="name",
        error=FROM_RAW,
        end=STEPS - 1,
        rename=_lora,
        whole=False,
    )
