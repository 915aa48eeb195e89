"""Runs of real training libraries: each leaves on disk what its users have there."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from phema_cli.profiles import Profile


class Net(nn.Module):
    """A small network with a buffer of each kind, trained on noise."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 8)
        self.norm = nn.BatchNorm1d(8)
        self.last = nn.Linear(8, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """One number for each row."""
        result: torch.Tensor = self.last(self.norm(self.first(x)).tanh())
        return result


def train(steps: int, seed: int = 0) -> Iterator[tuple[int, Net]]:
    """Train, and give the network after each step."""
    torch.manual_seed(seed)
    net = Net()
    optimizer = torch.optim.Adam(net.parameters(), 3e-3)
    for step in range(1, steps + 1):
        x = torch.randn(16, 4)
        optimizer.zero_grad()
        (net(x)[:, 0] - x.prod(dim=1)).square().mean().backward()
        optimizer.step()
        yield step, net


def flat(tensors: dict[str, torch.Tensor] | nn.Module) -> torch.Tensor:
    """All parameters of the network in one vector of float64; other names are passed over."""
    state = tensors.state_dict() if isinstance(tensors, nn.Module) else tensors
    return torch.cat([state[n].double().flatten() for n, _ in Net().named_parameters()])


def average(profile: Profile, path: torch.Tensor) -> torch.Tensor:
    """The average of a profile over ``path``: (updates, parameters), summed directly."""
    times = torch.arange(len(path) + 1, dtype=torch.float64).numpy()
    weights = torch.from_numpy(profile.cdf(times))
    increments = weights.diff()
    # What weighs the beginning is the weights before the first update: here those after it.
    increments[0] += weights[0]
    return increments @ path


def ema_pytorch(
    folder: Path, steps: int, every: int, sigma_rels: tuple[float, ...]
) -> tuple[torch.Tensor, Callable[[float], nn.Module]]:
    """A run with ``PostHocEMA``: the path of the weights, and its own synthesis by gamma."""
    from ema_pytorch import PostHocEMA

    ema = PostHocEMA(
        Net(),
        sigma_rels=sigma_rels,
        update_every=every,
        checkpoint_every_num_steps=steps // 20,
        checkpoint_folder=str(folder),
        checkpoint_dtype=torch.float32,
    )
    path = []
    for _, net in train(steps):
        for ema_model in ema.ema_models:
            ema_model.online_model[0].load_state_dict(net.state_dict())
        ema.update()
        path.append(flat(net))
    return torch.stack(path), lambda gamma: ema.synthesize_ema_model(gamma=gamma).ema_model


def tutorial(folder: Path, steps: int, gammas: tuple[float, ...]) -> torch.Tensor:
    """A loop as the karras-power-ema tutorial has it: files are numbered by the update, from 0."""
    folder.mkdir(parents=True)
    averages: list[dict[str, torch.Tensor]] = [{} for _ in gammas]
    path = []
    for step, net in train(steps):
        i = step - 1
        path.append(flat(net))
        for index, (gamma, ema) in enumerate(zip(gammas, averages, strict=True)):
            beta = (1 - 1 / (i + 1)) ** (gamma + 1)
            for name, value in net.state_dict().items():
                old = ema.get(name, value)
                moved = old * beta + value * (1 - beta) if value.is_floating_point() else value
                ema[name] = moved.clone()
            if i % (steps // 20) == 0:
                torch.save(ema, folder / f"model_ema_{index + 1}_{i}.pth")
    return torch.stack(path)


def diffusers_ema(folder: Path, steps: int, **settings: Any) -> torch.Tensor:
    """A run with diffusers' ``EMAModel`` as its training scripts save it, beside the raw model."""
    from diffusers.configuration_utils import ConfigMixin, register_to_config
    from diffusers.models.modeling_utils import ModelMixin
    from diffusers.training_utils import EMAModel

    class Tiny(ModelMixin, ConfigMixin):  # type: ignore[misc]
        @register_to_config
        def __init__(self) -> None:
            super().__init__()
            self.inner = Net()

    model = Tiny()
    ema = EMAModel(model.parameters(), model_cls=Tiny, model_config=model.config, **settings)
    path = []
    for step, net in train(steps):
        model.inner.load_state_dict(net.state_dict())
        ema.step(model.parameters())
        path.append(flat(net))
        if step % (steps // 10) == 0:
            where = folder / f"checkpoint-{step}"
            ema.save_pretrained(where / "unet_ema")
            model.save_pretrained(where / "unet")
    return torch.stack(path)


def accelerate_ema(folder: Path, steps: int, **settings: Any) -> torch.Tensor:
    """A run whose ``Accelerator`` saves the model, the optimizer and a registered ``EMAModel``."""
    from accelerate import Accelerator
    from diffusers.training_utils import EMAModel

    accelerator = Accelerator(cpu=True)
    model = Net()
    optimizer = torch.optim.Adam(model.parameters())
    model, optimizer = accelerator.prepare(model, optimizer)
    ema = EMAModel(model.parameters(), **settings)
    accelerator.register_for_checkpointing(ema)
    path = []
    for step, net in train(steps):
        model.load_state_dict(net.state_dict())
        ema.step(model.parameters())
        path.append(flat(net))
        if step % (steps // 10) == 0:
            accelerator.save_state(str(folder / f"checkpoint-{step}"))
    torch.save(model.state_dict(), folder.with_name("names.pt"))
    return torch.stack(path)


def lightning(folder: Path, steps: int, decay: float) -> torch.Tensor:
    """A run of Lightning's ``Trainer`` with ``EMAWeightAveraging`` and ten checkpoints."""
    import lightning
    from lightning.pytorch.callbacks import ModelCheckpoint
    from lightning.pytorch.callbacks.weight_averaging import EMAWeightAveraging

    path = []

    class Module(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = Net()

        def training_step(self, batch: list[torch.Tensor], _: int) -> torch.Tensor:
            (x,) = batch
            loss: torch.Tensor = (self.net(x)[:, 0] - x.prod(dim=1)).square().mean()
            return loss

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.Adam(self.parameters(), 3e-3)

        def on_train_batch_end(self, *_: object) -> None:
            path.append(flat({k: v.clone() for k, v in self.net.state_dict().items()}))

    torch.manual_seed(0)
    trainer = lightning.Trainer(
        max_steps=steps,
        callbacks=[
            EMAWeightAveraging(decay=decay),
            ModelCheckpoint(dirpath=folder, every_n_train_steps=steps // 10, save_top_k=-1),
        ],
        enable_progress_bar=False,
        enable_model_summary=False,
        logger=False,
        accelerator="cpu",
    )
    trainer.fit(Module(), DataLoader(TensorDataset(torch.randn(16 * steps, 4)), 16))
    return torch.stack(path)


_TIMM = """
import argparse, importlib.util, sys, types
from pathlib import Path

# timm's utilities import torchvision, which has no wheel for torch's CPU build: a stand-in for the
# one class they look for, and timm's own modules without those of its models.
root = importlib.util.find_spec("timm").submodule_search_locations[0]
for name, place in (("timm", root), ("timm.utils", root + "/utils")):
    sys.modules[name] = types.ModuleType(name)
    sys.modules[name].__path__ = [place]
for name in ("torchvision", "torchvision.ops", "torchvision.ops.misc"):
    sys.modules[name] = types.ModuleType(name)
sys.modules["torchvision.ops.misc"].FrozenBatchNorm2d = type("FrozenBatchNorm2d", (), {})

import torch
from tests.trainers import flat, train
from timm.utils.checkpoint_saver import CheckpointSaver
from timm.utils.model_ema import ModelEmaV3

folder, epochs, per_epoch, decay, warmup = sys.argv[1:]
arguments = argparse.Namespace(
    model="tiny", model_ema=True, model_ema_decay=float(decay), model_ema_warmup=warmup == "yes",
    lr=1e-3, mean=(0.5, 0.5),
)
run = train(int(epochs) * int(per_epoch))
step, net = next(run)
ema = ModelEmaV3(net, decay=arguments.model_ema_decay, use_warmup=arguments.model_ema_warmup)
saver = CheckpointSaver(
    net, torch.optim.Adam(net.parameters()), args=arguments, model_ema=ema,
    checkpoint_dir=folder, recovery_dir=folder, max_history=int(epochs),
)
path = []
while step:
    ema.update(net, step=step)
    path.append(flat(net))
    if step % int(per_epoch) == 0:
        epoch = step // int(per_epoch) - 1
        saver.save_checkpoint(epoch, metric=float(epoch))
    step, net = next(run, (0, net))
torch.save(torch.stack(path), Path(folder).with_name("path.pt"))
"""


def timm(folder: Path, epochs: int, per_epoch: int, decay: float, *, warmup: bool) -> torch.Tensor:
    """A run with timm's ``ModelEmaV3`` and ``CheckpointSaver``."""
    folder.mkdir(parents=True)
    given = [str(folder), str(epochs), str(per_epoch), str(decay), "yes" if warmup else "no"]
    subprocess.run([sys.executable, "-c", _TIMM, *given], check=True, timeout=120)
    path: torch.Tensor = torch.load(folder.with_name("path.pt"))
    return path
