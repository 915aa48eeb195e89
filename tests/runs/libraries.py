"""What real libraries leave: their own classes, given the weights of the run step by step."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from phema_cli.profiles import gamma_from_sigma_rel
from phema_cli.snapshots import Config
from tests.libraries import bare_timm, is_there, stand_ins
from tests.runs.base import (
    BETA,
    EVERY,
    FROM_RAW,
    IN_FLOAT16,
    RAW,
    STEPS,
    STORED,
    TIMES,
    Left,
    Net,
    adam,
    beside,
    leaves,
    load,
    raw,
    save,
)

WIDTHS = (0.05, 0.1)
CONSTANT = f"exponential:beta={BETA},start=1"


def replay(net: torch.nn.Module, stop: int = STEPS) -> Iterator[int]:
    """Each step, its weights in the network."""
    load(net, 0)
    for step in range(1, stop + 1):
        load(net, step)
        yield step


class Replay(torch.optim.Optimizer):
    """An optimizer whose steps lead along the run, each over as many of its steps."""

    def __init__(self, net: torch.nn.Module, stride: int = 1) -> None:
        super().__init__(net.parameters(), {"lr": 1e-3})
        self.net, self.stride, self.count = net, stride, 0

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Go to the weights of the next step."""
        loss = None if closure is None else closure()
        self.count += self.stride
        load(self.net, self.count)
        return loss


@leaves("phema")
def tracker(root: Path) -> Left:
    """Phema's own tracker."""
    from phema_cli import PowerEMA

    net, gammas = Net(), (5.0, 10.0)
    load(net, 0)
    ema = PowerEMA(net, gammas)
    for step in replay(net):
        ema.update()
        if step % EVERY == 0:
            ema.save(root)
    return Left(root, {f"power:gamma={gamma}": "." for gamma in gammas}, TIMES)


def _host(root: Path, average: Any, net: Net, **shape: Any) -> None:
    """A training loop of one's own that keeps ema_pytorch's state in its checkpoints."""
    for step in replay(net):
        average.update()
        if step % EVERY == 0:
            content = average.state_dict()
            content = {n: shape[n](t) if n in shape else t for n, t in content.items()}
            save({"step": step, "ema": content}, root / f"model_{step}.pt")


@leaves("ema-pytorch")
def ema_pytorch(root: Path) -> Left:
    """ema-pytorch, EMA with a raw copy."""
    from ema_pytorch import EMA

    net = Net()
    _host(root, EMA(net, beta=0.995, update_every=5, update_after_step=50), net)
    law = "ema-pytorch:beta=0.995,every=5,update_after=50"
    series = {law: "ema", "raw": "online_model"}
    hint = "ema-pytorch:beta=0.9999,every=10,update_after=100"
    return Left(root, series, TIMES, said=Config(average=law), hint=hint)


@leaves("ema-pytorch")
def ema_pytorch_of_2023(root: Path) -> Left:
    """ema-pytorch, EMA, its counters as version 0.2.3 has them: of one dimension."""
    from ema_pytorch import EMA

    net = Net()
    average = EMA(net, beta=0.995, update_every=5, update_after_step=50)
    old = {"initted": lambda t: t.float().reshape(1), "step": lambda t: t.reshape(1)}
    _host(root, average, net, **old)
    law = "ema-pytorch:beta=0.995,every=5,update_after=50"
    return Left(root, {law: "ema", "raw": "online_model"}, TIMES, said=Config(average=law))


@leaves("ema-pytorch")
def ema_pytorch_of_a_wrapped_model(root: Path) -> Left:
    """ema-pytorch, EMA of a model in DistributedDataParallel, the raw one stored without it."""
    from ema_pytorch import EMA

    net = Net()
    wrapped = torch.nn.Module()
    wrapped.module = net
    average = EMA(wrapped, beta=0.995, update_every=5, include_online_model=False)
    for step in replay(net):
        average.update()
        if step % EVERY == 0:
            content = {"step": step, "model": raw(step), "ema": average.state_dict()}
            save(content, root / f"model_{step}.pt")
    law = "ema-pytorch:beta=0.995,every=5"
    return Left(root, {law: "ema", "raw": "model"}, TIMES, said=Config(average=law))


@leaves("ema-pytorch")
def karras_ema(root: Path) -> Left:
    """ema-pytorch, KarrasEMA, its state alone in files by step."""
    from ema_pytorch.post_hoc_ema import KarrasEMA

    net = Net()
    average = KarrasEMA(net, sigma_rel=0.1, update_every=1)
    for step in replay(net):
        average.update()
        if step % EVERY == 0:
            save(average.state_dict(), root / f"karras_step{step}.pt")
    law = "ema-pytorch:sigma_rel=0.1,every=1"
    said = Config(average=law)
    return Left(root, {law: "."}, TIMES, said=said)


def _counted(every: int) -> dict[str, str]:
    return {
        f"ema-pytorch:sigma_rel={w},every={every}": f"average {i}" for i, w in enumerate(WIDTHS)
    }


GAMMAS = tuple(gamma_from_sigma_rel(width) for width in WIDTHS)


def run_post_hoc_ema(root: Path, widths: tuple[float, ...], every: int, **settings: Any) -> Any:
    """A run with ``PostHocEMA``, which stores what it averages."""
    from ema_pytorch import PostHocEMA

    net = Net()
    average = PostHocEMA(
        net,
        sigma_rels=widths,
        update_every=every,
        checkpoint_every_num_steps=EVERY,
        checkpoint_folder=str(root),
        **settings,
    )
    for _ in replay(net):
        average.update()
    return average


@leaves("ema-pytorch")
def post_hoc_ema(root: Path) -> Left:
    """ema-pytorch, PostHocEMA: fp16, its counters too."""
    run_post_hoc_ema(root, WIDTHS, 2)
    said = Config(gammas=GAMMAS, update_every=2)
    return Left(root, _counted(2), TIMES, origin="name", said=said, inexact=IN_FLOAT16)


@leaves("ema-pytorch")
def post_hoc_ema_in_a_host(root: Path) -> Left:
    """ema-pytorch, PostHocEMA.state_dict() in a training loop's own checkpoints."""
    from ema_pytorch import PostHocEMA

    net = Net()
    average = PostHocEMA(
        net,
        sigma_rels=WIDTHS,
        update_every=1,
        checkpoint_every_num_steps="manual",
        checkpoint_folder=str(root),
    )
    for step in replay(net):
        average.update()
        if step % EVERY == 0:
            content = {"step": step, "model": raw(step), "ema": average.state_dict()}
            save(content, root / f"model_{step}.pt")
    series = {**_counted(1), "raw": "model"}
    return Left(root, series, TIMES, said=Config(gammas=GAMMAS, update_every=1))


@leaves("ema-pytorch")
def posthoc_ema(root: Path) -> Left:
    """pytorch-posthoc-ema, PostHocEMA: bare names, and updates from step 100 on."""
    package = pytest.importorskip("posthoc_ema")
    net = Net()
    average = package.PostHocEMA.from_model(
        net,
        checkpoint_dir=root,
        sigma_rels=WIDTHS,
        update_every=1,
        checkpoint_every=EVERY,
    )
    for _ in replay(net):
        average.update_(net)
    said = Config(gammas=GAMMAS, update_every=1)
    # The first call of its own update follows step 100.
    times = tuple(t - 99 for t in TIMES if t > 99)
    return Left(root, _counted(1), times, said=said, begin=99)


@leaves("torch_ema")
def torch_ema(root: Path) -> Left:
    """torch_ema, ExponentialMovingAverage, in a training loop's own checkpoints."""
    package = pytest.importorskip("torch_ema")
    net = Net()
    load(net, 0)
    average = package.ExponentialMovingAverage(net.parameters(), decay=0.9999)
    for step in replay(net):
        average.update()
        if step % EVERY == 0:
            content = {"step": step, "model": raw(step), "ema": average.state_dict()}
            save(content, root / f"ckpt-{step}.pt")
    return Left(root, {"warmup:beta=0.9999": "ema", "raw": "model"}, TIMES)


@leaves("AveragedModel")
def averaged_model(root: Path) -> Left:
    """PyTorch's AveragedModel with a constant decay, alone in files by step."""
    from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

    net = Net()
    average = AveragedModel(net, multi_avg_fn=get_ema_multi_avg_fn(BETA))
    for step in replay(net):
        average.update_parameters(net)
        if step % EVERY == 0:
            save(average.state_dict(), root / f"step{step}.pt")
    hint = "exponential:beta=0.999,start=1"
    return Left(
        root, {CONSTANT: "."}, TIMES, origin="name", said=Config(average=CONSTANT), hint=hint
    )


@leaves("AveragedModel")
def averaged_model_in_a_host(root: Path) -> Left:
    """PyTorch's AveragedModel of a wrapped model, beside the raw weights."""
    from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

    net = Net()
    wrapped = torch.nn.Module()
    wrapped.module = net
    average = AveragedModel(wrapped, multi_avg_fn=get_ema_multi_avg_fn(BETA))
    for step in replay(net):
        average.update_parameters(wrapped)
        if step % EVERY == 0:
            content: dict[str, Any] = {"model_state_dict": raw(step)}
            content["optimizer_state_dict"] = adam(step)
            content |= {"ema_state_dict": average.state_dict(), "step": step}
            save(content, root / f"ckpt_{step}.pt")
    series = {CONSTANT: "ema_state_dict", "raw": "model_state_dict"}
    return Left(root, series, TIMES, said=Config(average=CONSTANT))


def tiny() -> Any:
    """A model of diffusers with the network's own names."""
    from diffusers.configuration_utils import ConfigMixin, register_to_config
    from diffusers.models.modeling_utils import ModelMixin

    class Tiny(ModelMixin, ConfigMixin):  # type: ignore[misc]
        @register_to_config
        def __init__(self) -> None:
            super().__init__()
            for name, child in Net().named_children():
                self.add_module(name, child)

    return Tiny


def _diffusers(root: Path, raw_name: str, average_name: str, **settings: Any) -> None:
    from diffusers.training_utils import EMAModel

    kind = tiny()
    model = kind()
    load(model, 0)
    ema = EMAModel(model.parameters(), model_cls=kind, model_config=model.config, **settings)
    for step in replay(model):
        ema.step(model.parameters())
        if step % EVERY == 0:
            where = root / f"checkpoint-{step}"
            ema.save_pretrained(where / average_name)
            model.save_pretrained(where / raw_name)
            save(adam(step), where / "optimizer.bin")
            save({"last_epoch": step}, where / "scheduler.bin")


@leaves("diffusers")
def diffusers(root: Path) -> Left:
    """diffusers, EMAModel.save_pretrained beside the model's own, as its examples call it."""
    settings = {"use_ema_warmup": True, "inv_gamma": 2.0, "power": 0.75}
    _diffusers(root, "unet", "unet_ema", decay=0.9999, **settings)
    law = "diffusers:beta=0.9999,warmup=1,inv_gamma=2,power=0.75"
    return Left(
        root,
        {law: "unet_ema", "raw": "unet"},
        TIMES,
        origin={law: "content", "raw": "name"},
        left_out=beside("checkpoint-{}", "optimizer.bin", "scheduler.bin"),
    )


@leaves("diffusers")
def diffusers_finished(root: Path) -> Left:
    """diffusers, the same with the finished pipeline beside it, whose model is the average."""
    _diffusers(root, "unet", "unet_ema", decay=0.995, min_decay=0.1, update_after_step=20)
    model = tiny()()
    load(model, STEPS)
    model.save_pretrained(root / "unet")
    law = "diffusers:beta=0.995,min=0.1,update_after=20"
    return Left(
        root,
        {law: "unet_ema", "raw": "unet"},
        TIMES,
        origin={law: "content", "raw": "name"},
        left_out=beside("checkpoint-{}", "optimizer.bin", "scheduler.bin") | {"unet"},
    )


def _accelerator(project: Path, net: Net) -> Any:
    from accelerate import Accelerator
    from accelerate.utils import ProjectConfiguration

    settings = ProjectConfiguration(project_dir=str(project), automatic_checkpoint_naming=True)
    accelerator = Accelerator(cpu=True, project_config=settings)
    accelerator.prepare(net, torch.optim.Adam(net.parameters()))
    return accelerator


@leaves("diffusers")
def accelerate_list(root: Path) -> Left:
    """accelerate, save_state with a registered EMAModel of diffusers: a list without names."""
    from accelerate import Accelerator
    from diffusers.training_utils import EMAModel

    net = Net()
    load(net, 0)
    accelerator = Accelerator(cpu=True)
    accelerator.prepare(net, torch.optim.Adam(net.parameters()))
    ema = EMAModel(net.parameters(), decay=0.995)
    accelerator.register_for_checkpointing(ema)
    for step in replay(net):
        ema.step(net.parameters())
        if step % EVERY == 0:
            accelerator.save_state(str(root / f"checkpoint-{step}"))
    save(net.state_dict(), root.with_name("names.pt"))
    law = "diffusers:beta=0.995"
    left = ("optimizer.bin", "random_states_0.pkl")
    return Left(
        root,
        {law: "shadow_params", "raw": "."},
        TIMES,
        origin={law: "content", "raw": "name"},
        said=Config(names_from=root.with_name("names.pt")),
        left_out=beside("checkpoint-{}", *left),
        unmarked=frozenset(f"checkpoint-{n}" for n in STORED),
    )


@leaves("Hugging Face")
def accelerate(root: Path) -> Left:
    """accelerate, save_state with its own names, which count saves from 0."""
    net = Net()
    accelerator = _accelerator(root, net)
    for step in replay(net):
        if step % EVERY == 0:
            accelerator.save_state()
    left = ("optimizer.bin", "random_states_0.pkl")
    saves = range(len(STORED))
    return Left(
        root,
        {"raw": "."},
        tuple(float(n + 1) for n in saves),
        unit="saves",
        origin="name",
        error=FROM_RAW,
        left_out=beside("checkpoints/checkpoint_{}", *left, times=saves),
    )


@leaves("Hugging Face")
def trainer(root: Path) -> Left:
    """transformers, Trainer: its checkpoints, and the final model in the directory itself."""
    from torch.optim.lr_scheduler import LambdaLR
    from transformers import Trainer, TrainingArguments

    class Model(Net):
        def forward(self, x: torch.Tensor) -> Any:
            return {"loss": super().forward(x).square().mean()}

    net = Model()
    load(net, 0)
    optimizer = Replay(net, 10)
    arguments = TrainingArguments(
        output_dir=str(root),
        max_steps=STEPS // 10,
        save_steps=EVERY // 10,
        per_device_train_batch_size=2,
        report_to=[],
        disable_tqdm=True,
        use_cpu=True,
        dataloader_pin_memory=False,
        logging_steps=STEPS,
    )
    data = [{"x": torch.randn(4)} for _ in range(64)]
    schedule = LambdaLR(optimizer, lambda _: 1.0)
    made = Trainer(net, arguments, train_dataset=data, optimizers=(optimizer, schedule))
    made.train()
    made.save_model()
    files = ("optimizer.pt", "scheduler.pt", "rng_state.pth", "training_args.bin")
    times = [n // 10 for n in STORED]
    left = beside("checkpoint-{}", *files, times=times) | {"run", "training_args.bin"}
    return Left(
        root, {"raw": "."}, tuple(map(float, times)), said=RAW, error=FROM_RAW, left_out=left
    )


def _lightning(root: Path, *callbacks: Any, stride: int = 1) -> None:
    """A run of Lightning's Trainer that stores every 50 steps."""
    import lightning
    from lightning.pytorch.callbacks import ModelCheckpoint

    class Module(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = Net()
            load(self.net, 0)

        def training_step(self, batch: list[torch.Tensor], _: int) -> torch.Tensor:
            loss: torch.Tensor = self.net(batch[0]).square().mean()
            return loss

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return Replay(self.net, stride)

    trainer = lightning.Trainer(
        max_steps=STEPS // stride,
        callbacks=[
            *callbacks,
            ModelCheckpoint(root, every_n_train_steps=EVERY // stride, save_top_k=-1),
        ],
        enable_progress_bar=False,
        enable_model_summary=False,
        logger=False,
        accelerator="cpu",
    )
    trainer.fit(Module(), DataLoader(TensorDataset(torch.randn(2 * STEPS, 4)), 2))


def _names(root: Path) -> Path:
    assert len(list(root.glob("*.ckpt"))) == len(STORED)
    return root


@leaves("Lightning")
def lightning(root: Path) -> Left:
    """Lightning's Trainer and ModelCheckpoint alone."""
    _lightning(root, stride=10)
    series, times = {"raw": "state_dict"}, tuple(t / 10 for t in TIMES)
    return Left(_names(root), series, times, said=RAW, error=FROM_RAW, prefix="net.")


#: of the run's steps, one of Lightning's where it averages.
STRIDE = 5
SHORTER = tuple(t / STRIDE for t in TIMES)


@leaves("Lightning")
def lightning_ema(root: Path) -> Left:
    """Lightning's EMAWeightAveraging: the average is ``state_dict``."""
    from lightning.pytorch.callbacks.weight_averaging import EMAWeightAveraging

    _lightning(root, EMAWeightAveraging(decay=0.98), stride=STRIDE)
    law = "exponential:beta=0.98,start=1"
    series, said = {law: "state_dict", "raw": "current_model_state"}, Config(average=law)
    hint = "--average LAW, by default exponential:beta=0.999,start=1; or --raw"
    return Left(_names(root), series, SHORTER, said=said, hint=hint, prefix="net.")


@leaves("Lightning")
def lightning_ema_every_second(root: Path) -> Left:
    """Lightning's EMAWeightAveraging at every 2nd step: after steps 1, 3, 5."""
    from lightning.pytorch.callbacks.weight_averaging import EMAWeightAveraging

    _lightning(root, EMAWeightAveraging(decay=0.984, update_every_n_steps=2), stride=2)
    law = "exponential:beta=0.984,every=2,start=1"
    series, said = {law: "state_dict", "raw": "current_model_state"}, Config(average=law)
    hint = "exponential:beta=0.999,every=2,start=1"
    times = tuple(t / 2 for t in TIMES)
    return Left(_names(root), series, times, said=said, hint=hint, prefix="net.")


@leaves("Lightning")
def lightning_mean(root: Path) -> Left:
    """Lightning's WeightAveraging: the plain mean of all steps, a power function of gamma 0."""
    from lightning.pytorch.callbacks.weight_averaging import WeightAveraging

    _lightning(root, WeightAveraging(), stride=STRIDE)
    law = "power:gamma=0"
    series, said = {law: "state_dict", "raw": "current_model_state"}, Config(average=law)
    return Left(_names(root), series, SHORTER, said=said, hint=law, prefix="net.")


@leaves("timm")
def timm(root: Path) -> Left:
    """timm, ModelEmaV3 and CheckpointSaver, as its train.py calls them."""
    return _timm(root, warmup=True)


@leaves("timm")
def timm_constant(root: Path) -> Left:
    """timm, the same without a warm-up of the decay."""
    return _timm(root, warmup=False)


def _timm(root: Path, *, warmup: bool) -> Left:
    with bare_timm():
        from timm.utils.checkpoint_saver import CheckpointSaver
        from timm.utils.model_ema import ModelEmaV3

        arguments = Namespace(
            model="tiny", model_ema=True, model_ema_decay=0.998, model_ema_warmup=warmup
        )
        net = Net()
        load(net, 0)
        ema = ModelEmaV3(net, decay=0.998, use_warmup=warmup)
        saver = CheckpointSaver(
            net,
            torch.optim.Adam(net.parameters()),
            args=arguments,
            model_ema=ema,
            checkpoint_dir=str(root),
            recovery_dir=str(root),
            max_history=len(STORED),
        )
        for step in replay(net):
            ema.update(net, step=step)
            if step % EVERY == 0:
                saver.save_checkpoint(step // EVERY - 1, metric=float(step))
        saver.save_recovery(20, batch_idx=7)
    assert (root / "last.pth.tar").exists()
    law = f"timm:beta=0.998,warmup={int(warmup)}"
    return Left(
        root,
        {law: "state_dict_ema", "raw": "state_dict"},
        TIMES,
        said=Config(steps_per_epoch=EVERY),
        hint="pass --steps-per-epoch",
        left_out=frozenset({"recovery-20-7.pth.tar"}),
    )


@leaves("MMEngine")
def mmengine(root: Path) -> Left:
    """MMEngine, its Runner with EMAHook: the average is ``state_dict``, by the step."""
    _mmengine(root, {"type": "EMAHook", "momentum": 1 - BETA})
    series = {CONSTANT: "state_dict", "raw": "ema_state_dict"}
    return Left(
        root,
        series,
        TIMES,
        said=Config(average=CONSTANT),
        hint="exponential:beta=0.9998,start=1",
    )


@leaves("MMEngine")
def mmengine_without_ema(root: Path) -> Left:
    """MMEngine, its Runner without an average."""
    _mmengine(root)
    return Left(root, {"raw": "state_dict"}, TIMES, said=RAW, error=FROM_RAW)


def _mmengine(root: Path, *hooks: dict[str, Any]) -> None:
    """A run of MMEngine's Runner; OpenCV, which only its pictures need, is made up."""
    if not is_there("mmengine"):
        pytest.skip("mmengine is not installed")
    with stand_ins("cv2", setNumThreads=lambda _: None, __version__="0"):
        from mmengine.model import BaseModel
        from mmengine.runner import Runner

        class Model(BaseModel):  # type: ignore[misc]
            def __init__(self) -> None:
                super().__init__()
                for name, child in Net().named_children():
                    self.add_module(name, child)
                load(self, 0)

            def forward(self, *_: Any, **__: Any) -> Any:
                return {"loss": self.head.weight.square().mean()}

        model = Model()
        runner = Runner(
            model,
            work_dir=str(root.parent / "work"),
            train_dataloader=DataLoader(TensorDataset(torch.zeros(STEPS, 1)), 1),
            train_cfg={"by_epoch": False, "max_iters": STEPS},
            optim_wrapper={"optimizer": Replay(model)},
            default_hooks={
                "checkpoint": {
                    "type": "CheckpointHook",
                    "interval": EVERY,
                    "by_epoch": False,
                    "out_dir": str(root),
                },
                "logger": None,
            },
            custom_hooks=list(hooks),
            log_level="ERROR",
            default_scope="mmengine",
            # Two runs of one name, by default the second that they begin in, share a
            # logger, which the first of them has closed.
            experiment_name=root.parent.name,
        )
        runner.train()
        for handler in runner.logger.handlers:
            handler.close()
