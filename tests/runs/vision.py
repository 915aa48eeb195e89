"""What trainers of vision models and pickled networks leave, by the source of each."""

from __future__ import annotations

import json
import math
import pickle
from argparse import Namespace
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from phema_cli.profiles import gamma_from_sigma_rel
from phema_cli.snapshots import Config
from tests import edm2_files
from tests.runs.base import (
    A_STEP_BEHIND,
    BETA,
    FROM_RAW,
    IN_FLOAT16,
    STEPS,
    STORED,
    STORED_EXACTLY,
    Left,
    Net,
    State,
    adam,
    leaves,
    listed,
    load,
    named,
    raw,
    save,
    state,
    walk,
    write_json,
)

#: epochs of the runs that count these, and the steps of each.
EPOCHS, PER_EPOCH = 20, 50
BY_EPOCH = Config(steps_per_epoch=PER_EPOCH)
#: times of such a run in steps.
IN_STEPS = tuple(float(n) for n in STORED)


def epochs() -> Iterator[tuple[int, int]]:
    """The number of each epoch from 0, and the steps done after it."""
    yield from ((epoch, (epoch + 1) * PER_EPOCH) for epoch in range(EPOCHS))


def _network(row: Any, step: int) -> torch.nn.Module:
    """The network as an object that carries its source code when it is pickled."""
    net: torch.nn.Module = edm2_files.persistent(Net)()
    load(net, step)
    with torch.no_grad():
        for name, value in named(row).items():
            net.get_parameter(name).copy_(torch.tensor(value))
    return net.eval().requires_grad_(requires_grad=False)


@leaves("EDM2")
def edm2(root: Path) -> Left:
    """NVlabs/edm2, training/training_loop.py: two widths, fp16, and the initial weights at 0."""
    batch, widths = 1024, (0.05, 0.1)
    for width in widths:
        ema = walk().power(gamma_from_sigma_rel(width))
        for step in (0, *STORED):
            name = f"network-snapshot-{step * batch // 1000:07d}-{width:.3f}.pkl"
            edm2_files.write_edm2(root / name, _network(ema[step], step))
    for step in STORED[9::10]:
        content = {
            "state": {"cur_nimg": step * batch, "total_elapsed_time": 1.0},
            "net": raw(step),
            "loss_fn": {},
            "optimizer": adam(step),
            "ema": {"stds": list(widths), "emas": [raw(step), raw(step)]},
        }
        save(content, root / f"training-state-{step * batch // 1000:07d}.pt")
    write_json({"batch_size": batch, "total_nimg": STEPS * batch}, root / "training_options.json")
    (root / "log.txt").write_text("Finished\n")
    return Left(
        root,
        {"power:sigma_rel=0.05": "ema", "power:sigma_rel=0.1": "ema"},
        tuple(float(n * batch) for n in STORED),
        unit="images",
        origin="name",
        left_out=frozenset(
            {"training-state-0000512.pt", "training-state-0001024.pt"}
            | {f"network-snapshot-0000000-{width:.3f}.pkl" for width in widths}
        ),
        inexact=IN_FLOAT16,
    )


@leaves("EDM2")
def edm2_traditional(root: Path) -> Left:
    """NVlabs/edm2, training/phema.py, TraditionalEMA: no width in the name."""
    batch = 1024
    ema = walk().averages(lambda n: 0.5 ** (1 / (0.09 * n)))
    for step in STORED:
        name = f"network-snapshot-{step * batch // 1000:07d}.pkl"
        edm2_files.write_edm2(root / name, _network(ema[step], step))
    law = "power:halflife=0.09"
    times = tuple(float(n * batch) for n in STORED)
    said = Config(average=law)
    return Left(root, {law: "ema"}, times, "images", "name", said, law, inexact=IN_FLOAT16)


@leaves("EDM2")
def edm(root: Path) -> Left:
    """NVlabs/edm, training/training_loop.py: one average, its law in training_options.json."""
    batch, halflife_kimg = 1024, 256
    ema = walk().averages(
        lambda n: 0.5 ** (batch / max(min(halflife_kimg * 1e3, (n - 1) * batch * 0.05), 1e-8))
    )
    for step in STORED:
        nets = {"ema": _network(ema[step], step), "loss_fn": {}, "augment_pipe": None}
        content = {**nets, "dataset_kwargs": {"path": "data", "resolution": 64}}
        with (
            edm2_files.modules(),
            (root / f"network-snapshot-{step * batch // 1000:06d}.pkl").open("wb") as file,
        ):
            pickle.dump(content, file)
    options = {"batch_size": batch, "ema_halflife_kimg": halflife_kimg, "total_kimg": 200000}
    write_json(options, root / "training_options.json")
    law = f"rampup:halflife={halflife_kimg * 1000},batch={batch}"
    return Left(
        root,
        {law: "ema"},
        tuple(float(n * batch) for n in STORED),
        unit="images",
        origin="name",
    )


def _arguments(**more: object) -> Namespace:
    return Namespace(model="tiny", epochs=EPOCHS, batch_size=64, lr=1e-4, **more)


@leaves("ConvNeXt and its kin")
def convnext(root: Path) -> Left:
    """facebookresearch/ConvNeXt, utils.py, save_model: epochs from 0, ``best`` as an epoch."""
    ema = walk().constant()
    names = {str(e): (e, n) for e, n in epochs()} | {"best": ("best", 900)}
    for name, (epoch, step) in names.items():
        content = {
            "model": raw(step),
            "optimizer": adam(step),
            "epoch": epoch,
            "scaler": {"scale": 65536.0, "growth_factor": 2.0, "_growth_tracker": 0},
            "args": _arguments(model_ema=True, model_ema_decay=BETA),
            "model_ema": state(ema[step], step),
        }
        save(content, root / f"checkpoint-{name}.pth")
    (root / "log.txt").write_text(json.dumps({"epoch": 0}) + "\n")
    return Left(
        root,
        {f"exponential:beta={BETA}": "model_ema", "raw": "model"},
        IN_STEPS,
        said=BY_EPOCH,
        left_out=frozenset({"checkpoint-best.pth"}),
    )


@leaves("ConvNeXt and its kin")
def mae(root: Path) -> Left:
    """facebookresearch/mae, util/misc.py, save_model: no average."""
    for epoch, step in epochs():
        content = {"model": raw(step), "optimizer": adam(step), "epoch": epoch}
        content |= {"scaler": {"scale": 65536.0}, "args": _arguments()}
        save(content, root / f"checkpoint-{epoch}.pth")
    times = tuple(float(epoch + 1) for epoch, _ in epochs())
    said = Config(raw=True)
    return Left(root, {"raw": "model"}, times, "epochs", said=said, error=FROM_RAW)


@leaves("ConvNeXt and its kin")
def mar(root: Path) -> Left:
    """LTH14/mar, util/misc.py, save_model: ``checkpoint-last.pth``, kept by hand for each epoch."""
    ema = walk().constant()
    for epoch, step in epochs():
        content = {
            "model": raw(step),
            "model_ema": state(ema[step], step),
            "optimizer": adam(step),
            "epoch": epoch,
            "scaler": {"scale": 65536.0},
            "args": _arguments(ema_rate=BETA, class_num=1000),
        }
        save(content, root / f"epoch{epoch}" / "checkpoint-last.pth")
    series = {f"exponential:beta={BETA}": "model_ema", "raw": "model"}
    return Left(root, series, IN_STEPS, said=BY_EPOCH)


@leaves("ConvNeXt and its kin")
def jit(root: Path) -> Left:
    """A copy of LTH14/JiT, main_jit.py and util/misc.py: two averages of two decays."""
    betas = {"model_ema1": 0.998, "model_ema2": 0.99}
    emas = {key: walk().constant(beta) for key, beta in betas.items()}
    for name, (epoch, step) in {str(e): (e, n) for e, n in epochs()}.items():
        content = {"model": raw(step, "net."), "optimizer": adam(step), "epoch": epoch}
        content["args"] = _arguments(ema_decay1=0.998, ema_decay2=0.99)
        content |= {key: state(ema[step], step, "net.") for key, ema in emas.items()}
        save(content, root / f"checkpoint-{name}.pth")
    series = {f"exponential:beta={beta}": key for key, beta in betas.items()}
    return Left(root, {**series, "raw": "model"}, IN_STEPS, said=BY_EPOCH, prefix="net.")


@leaves("ConvNeXt and its kin")
def rf_detr(root: Path) -> Left:
    """roboflow/rf-detr, rfdetr/main.py: the average's settings among the arguments."""
    ema = _growing(0.993, 100)
    for epoch, step in epochs():
        content: dict[str, Any] = {"model": raw(step), "optimizer": adam(step)}
        content |= {"epoch": epoch, "args": _arguments(ema_decay=0.993, ema_tau=100, use_ema=True)}
        save({**content, "ema_model": state(ema[step], step)}, root / f"checkpoint{epoch:04}.pth")
    save({**content, "model": state(ema[700], 700), "epoch": 13}, root / "checkpoint_best_ema.pth")
    return Left(
        root,
        {"yolo:beta=0.993,tau=100": "ema_model", "raw": "model"},
        IN_STEPS,
        said=BY_EPOCH,
        left_out=frozenset({"checkpoint_best_ema.pth"}),
    )


def _growing(beta: float, tau: float) -> Any:
    """The averages of YOLO after each step."""
    return walk().averages(lambda n: -beta * math.expm1(-n / tau))


def _module(row: Any, step: int) -> torch.nn.Module:
    """The network as an object, in float16."""
    net = Net()
    net.load_state_dict(state(row, step))
    return net.half()


@leaves("MMEngine")
def mmdetection(root: Path) -> Left:
    """open-mmlab/mmdetection, mmdet/models/layers/ema.py: the class stands in the configuration."""
    ema = walk().averages(lambda n: -0.9998 * math.expm1(-n / 2000) if n > 1 else 0.0)
    for epoch, step in epochs():
        meta = {"epoch": epoch + 1, "iter": step, "cfg": "ema_type='ExpMomentumEMA',\n"}
        content: dict[str, Any] = {"meta": meta, "state_dict": state(ema[step], step)}
        content["ema_state_dict"] = {**raw(step, "module."), "steps": torch.tensor(step)}
        content |= {"optimizer": adam(step), "message_hub": {}, "param_schedulers": []}
        save(content, root / f"epoch_{epoch + 1}.pth")
    law = "yolo:beta=0.9998"
    series, said = {law: "state_dict", "raw": "ema_state_dict"}, Config(average=law)
    return Left(root, series, IN_STEPS, said=said, hint=law, error=FROM_RAW)


@leaves("YOLO and its kin")
def ultralytics(root: Path) -> Left:
    """ultralytics, engine/trainer.py, save_model and final_eval: the last ones are stripped."""
    ema = _growing(0.9999, 2000)
    for epoch, step in epochs():
        content: dict[str, Any] = {"epoch": epoch, "best_fitness": 0.1, "model": None}
        content["updates"] = step
        content |= {"optimizer": adam(step), "train_args": {"epochs": EPOCHS}}
        save({**content, "ema": _module(ema[step], step)}, root / "weights" / f"epoch{epoch}.pt")
    stripped = {"epoch": -1, "best_fitness": None, "model": _module(ema[STEPS], STEPS)}
    for name in ("best", "last"):
        save({**stripped, "ema": None, "updates": None}, root / "weights" / f"{name}.pt")
    law = "yolo:beta=0.9999"
    return Left(
        root,
        {law: "ema"},
        IN_STEPS,
        said=Config(average=law),
        hint=law,
        left_out=frozenset({"weights/best.pt", "weights/last.pt"}),
        error=FROM_RAW,
        inexact=IN_FLOAT16,
    )


@leaves("YOLO and its kin")
def d_fine(root: Path) -> Left:
    """Peterande/D-FINE, src/solver/_solver.py, state_dict; src/optim/ema.py: no decay."""
    ema = _growing(0.9999, 1000)
    for epoch, step in epochs():
        content = {"date": "2025-01-01T00:00:00", "last_epoch": epoch, "model": raw(step)}
        content |= {"criterion": {}, "optimizer": adam(step), "lr_scheduler": {"last_epoch": epoch}}
        content["ema"] = {"module": state(ema[step], step), "updates": step}
        save(content, root / f"checkpoint{epoch:04}.pth")
    law = "yolo:beta=0.9999,tau=1000"
    said, series = Config(average=law), {law: "ema.module", "raw": "model"}
    return Left(root, series, IN_STEPS, said=said, hint="yolo:beta=0.9999", error=FROM_RAW)


@leaves("YOLO and its kin")
def yolox(root: Path) -> Left:
    """Megvii-BaseDetection/YOLOX, yolox/core/trainer.py, save_ckpt: ``model`` is the average."""
    ema = _growing(0.9998, 2000)
    for epoch, step in epochs():
        content = {"start_epoch": epoch + 1, "model": state(ema[step], step)}
        content |= {"optimizer": adam(step), "best_ap": 0.1, "curr_ap": 0.1}
        save(content, root / f"epoch_{epoch + 1}_ckpt.pth")
    law = "yolo:beta=0.9998"
    said = Config(average=law, steps_per_epoch=PER_EPOCH)
    return Left(root, {law: "model"}, IN_STEPS, said=said, hint=law, error=FROM_RAW)


@leaves("VAR")
def var(root: Path) -> Left:
    """FoundationVision/VAR, train.py: epochs from 1, no average, a frozen model beside."""
    for epoch, step in epochs():
        frozen = {
            "quantize.ema_vocab_hit_SV": torch.ones(10, 16),
            "decoder.conv.weight": torch.ones(4, 4),
        }
        trainer = {"config": {"depth": 16}, "var_wo_ddp": raw(step), "vae_local": frozen}
        trainer["var_opt"] = {"optimizer": adam(step), "scaler": {"scale": 1.0}}
        content = {"epoch": epoch + 1, "iter": 0, "trainer": trainer, "args": {"depth": 16}}
        save(content, root / f"kept{epoch + 1}" / "ar-ckpt-last.pth")
    times = tuple(float(epoch + 1) for epoch, _ in epochs())
    return Left(root, {"raw": "trainer.var_wo_ddp"}, times, "epochs", error=FROM_RAW)


@leaves("torch_ema")
def score_sde(root: Path) -> Left:
    """yang-song/score_sde_pytorch, utils.py and models/ema.py: milestones, and ``module.``."""
    ema = walk().averages(lambda n: min(0.9999, (1 + n) / (10 + n)))
    for milestone, step in enumerate(STORED, 1):
        content = {
            "optimizer": adam(step),
            "model": raw(step, "module."),
            "ema": {"decay": 0.9999, "num_updates": step, "shadow_params": listed(ema[step])},
            "step": step,
        }
        save(content, root / "checkpoints" / f"checkpoint_{milestone}.pth")
    save(content, root / "checkpoints-meta" / "checkpoint.pth")
    times = tuple(float(n) for n in STORED)
    return Left(
        root,
        {"warmup:beta=0.9999": "ema", "raw": "model"},
        times,
        left_out=frozenset({"checkpoints-meta/checkpoint.pth"}),
    )


def _lit(row: Any, step: int, updates: int, inner: str, tracked: str) -> State:
    """Raw weights below ``inner``, and LitEma's copy of those below ``tracked``, without dots."""
    content = State(betas=torch.linspace(1e-4, 2e-2, 1000))
    content.update(raw(step, inner))
    content["model_ema.decay"] = torch.tensor(0.9999)
    content["model_ema.num_updates"] = torch.tensor(updates, dtype=torch.int)

    def without_dots(name: str) -> str:
        return f"{inner.removeprefix(tracked)}{name}".replace(".", "")

    only = named(row)
    content.update(state(row, step, "model_ema.", rename=without_dots, only=only))
    content["first_stage_model.encoder.conv_in.weight"] = torch.ones(4, 3, 3, 3)
    return content


def _latent(root: Path, name: Callable[[int], str], behind: int, inner: str, tracked: str) -> Left:
    ema = walk().averages(lambda n: min(0.9999, (1 + n) / (10 + n)))
    for step in STORED:
        content = {"epoch": step // 500, "global_step": step, "pytorch-lightning_version": "1.4.2"}
        content["state_dict"] = _lit(ema[step - behind], step, step - behind, inner, tracked)
        content |= {"optimizer_states": [adam(step)], "lr_schedulers": [], "callbacks": {}}
        save(content, root / "checkpoints" / name(step))
    return Left(
        root,
        {"warmup:beta=0.9999": "model_ema", "raw": "state_dict"},
        tuple(float(n) for n in STORED),
        also=frozenset({"betas", "first_stage_model.encoder.conv_in.weight"}),
        inexact=A_STEP_BEHIND if behind else STORED_EXACTLY,
        prefix=inner,
    )


@leaves("LitEma", "Lightning")
def latent_diffusion(root: Path) -> Left:
    """CompVis/latent-diffusion, ldm/modules/ema.py: names without dots, one file an epoch."""
    return _latent(
        root, lambda n: f"epoch={n // 50 - 1:06d}.ckpt", 0, "model.diffusion_model.", "model."
    )


@leaves("LitEma", "Lightning")
def latent_diffusion_in_epochs(root: Path) -> Left:
    """The same within epochs: the name counts from 0, the average lacks the last update."""
    return _latent(
        root,
        lambda n: f"epoch=000000-step={n - 1:09d}.ckpt",
        1,
        "model.diffusion_model.",
        "model.",
    )


@leaves("LitEma")
def latent_autoencoder(root: Path) -> Left:
    """CompVis/latent-diffusion, ldm/models/autoencoder.py: ``LitEma(self)`` of a VQModel."""
    return _latent(root, lambda n: f"epoch={n // 50 - 1:06d}.ckpt", 0, "", "")
