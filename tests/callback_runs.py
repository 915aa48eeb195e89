"""Runs of Lightning, the Hugging Face Trainer and accelerate that keep averages as users do.

As a program under torchrun it makes each run with its ranks.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from phema_cli import PowerEMA
from tests.gloo import end_rank
from tests.runs.base import Net

STEPS = 10
EVERY = 4
GAMMAS = (5.0, 8.5)
#: what a run's weights were after each optimizer step that was made.
Trail = list[dict[str, torch.Tensor]]


class PowerCutError(Exception):
    """Training ends without a word to its callbacks."""


class Model(nn.Module):
    """A network that gives its loss, as the Hugging Face Trainer wants it."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = Net()
        self.crash_at = 0
        self.overflow = False
        self.path: Trail = []

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        """The loss of a batch."""
        if self.crash_at and len(self.path) == self.crash_at:
            raise PowerCutError
        loss = (self.net(x)[:, 0] - x.prod(dim=1)).square().mean()
        if self.overflow and len(self.path) == 5:
            self.overflow = False
            loss = loss * torch.inf
        return {"loss": loss}

    def optimizer(self, *, fused: bool = False) -> torch.optim.Optimizer:
        """An optimizer that notes the weights after each step that it is told to make."""
        model = self

        class Noting(torch.optim.Adam):
            def step(self, closure: Any = None) -> Any:
                before = nn.utils.parameters_to_vector(model.parameters())
                result = super().step(closure)
                # A fused optimizer is told of an overflow, and leaves the weights alone.
                if not torch.equal(before, nn.utils.parameters_to_vector(model.parameters())):
                    model.path.append({k: v.clone() for k, v in model.state_dict().items()})
                return result

        return Noting(self.parameters(), 3e-3, fused=fused)


def rows() -> torch.Tensor:
    """The data of every run."""
    return torch.randn(1024, 4, generator=torch.Generator().manual_seed(1))


def by_hand(path: Trail, folder: Path, prefix: str = "") -> None:
    """What a loop with PowerEMA stores of a run whose model has a prefix to its names."""
    model = Model()
    ema = PowerEMA(nn.ModuleDict({prefix[:-1]: model}) if prefix else model, GAMMAS)
    for step, state in enumerate(path, 1):
        model.load_state_dict(state)
        ema.update()
        if step % EVERY == 0 or step == len(path):
            ema.save(folder)


def scaler() -> torch.amp.GradScaler:
    """A gradient scaler as for float16; it skips the step of a batch that overflows."""
    return torch.amp.GradScaler("cpu", init_scale=1024.0)


def lightning(
    out: Path,
    *,
    accumulate: int = 1,
    amp: bool = False,
    fused: bool = False,
    crash_at: int = 0,
    resume: bool = False,
    package: str = "lightning.pytorch",
    **keep: Any,
) -> Trail:
    """A run of Lightning, which stores checkpoints every three steps."""
    from importlib import import_module

    pl = import_module(package)
    from phema_cli.integrations.lightning import PowerEMACallback

    assert issubclass(PowerEMACallback, pl.Callback)
    kind = import_module(f"{package}.plugins.precision").MixedPrecision
    checkpoints = import_module(f"{package}.callbacks").ModelCheckpoint(
        dirpath=out / "checkpoints", every_n_train_steps=3, save_top_k=-1, filename="{step}"
    )

    class Module(pl.LightningModule):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.model = Model()
            self.model.crash_at, self.model.overflow = crash_at, amp

        def training_step(self, batch: list[torch.Tensor], _: int) -> torch.Tensor:
            loss: torch.Tensor = self.model(batch[0])["loss"]
            return loss

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return self.model.optimizer(fused=fused)

    module = Module()
    trainer = pl.Trainer(
        max_steps=STEPS,
        accumulate_grad_batches=accumulate,
        plugins=[kind("16-mixed", "cpu", scaler())] if amp else None,
        callbacks=[PowerEMACallback(out / "ckpts", **keep), checkpoints],
        enable_progress_bar=False,
        enable_model_summary=False,
        logger=False,
        accelerator="cpu",
        default_root_dir=out,
    )
    # An epoch of three steps, so that a run goes on where its data begin.
    loader = DataLoader(TensorDataset(rows()[: 48 * accumulate]), 16)
    last = out / "checkpoints" / "step=3.ckpt"
    trainer.fit(module, loader, ckpt_path=last if resume else None, weights_only=True)
    return module.model.path


def transformers(
    out: Path,
    *,
    accumulate: int = 1,
    amp: bool = False,
    crash_at: int = 0,
    resume: bool = False,
    **keep: Any,
) -> Trail:
    """A run of the Hugging Face Trainer, which stores checkpoints every three steps."""
    from transformers import Trainer, TrainingArguments

    from phema_cli.integrations.transformers import PowerEMACallback

    model = Model()
    model.crash_at, model.overflow = crash_at, amp
    arguments = TrainingArguments(
        str(out / "checkpoints"),
        max_steps=STEPS,
        per_device_train_batch_size=16,
        gradient_accumulation_steps=accumulate,
        save_steps=3,
        use_cpu=True,
        disable_tqdm=True,
        report_to=[],
    )
    trainer = Trainer(
        model,
        arguments,
        train_dataset=[{"x": row} for row in rows()],
        optimizers=(model.optimizer(), None),
        callbacks=[PowerEMACallback(out / "ckpts", **keep)],
    )
    if amp:
        trainer.accelerator.scaler = scaler()
    trainer.train(resume_from_checkpoint=resume or None)
    return model.path


def accelerate(
    out: Path,
    *,
    accumulate: int = 1,
    amp: bool = False,
    crash_at: int = 0,
    resume: bool = False,
) -> Trail:
    """A loop with accelerate as docs/training.md shows it."""
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=accumulate)
    if amp:
        accelerator.scaler = scaler()
    raw = Model()
    raw.crash_at, raw.overflow = crash_at, amp
    loader = DataLoader(TensorDataset(rows()), 16)
    model, optimizer, loader = accelerator.prepare(raw, raw.optimizer(), loader)
    ema = PowerEMA(model, GAMMAS)
    accelerator.register_for_checkpointing(ema)
    if resume:
        accelerator.load_state(str(out / "checkpoints"))
        loader = accelerator.skip_first_batches(loader, ema.step)
    for (x,) in loader:
        with accelerator.accumulate(model):
            accelerator.backward(model(x)["loss"])
            optimizer.step()
            optimizer.zero_grad()
        if accelerator.sync_gradients and not accelerator.optimizer_step_was_skipped:
            ema.update()
            if ema.step % EVERY == 0 or ema.step == STEPS:
                ema.save(out / "ckpts")
            if ema.step == 3:
                accelerator.save_state(str(out / "checkpoints"))
        if ema.step == STEPS:
            break
    return raw.path


def main(out: Path) -> None:
    """Make each run, and on rank 0 what a loop by hand stores of it."""
    torch.set_num_threads(1)
    runs = {
        "accelerate": accelerate(out / "accelerate", accumulate=2),
        "transformers": transformers(out / "transformers", gammas=GAMMAS, every=EVERY),
        "lightning": lightning(
            out / "lightning", gammas=GAMMAS, every=EVERY, package="pytorch_lightning"
        ),
    }
    if torch.distributed.get_rank() == 0:
        for name, path in runs.items():
            by_hand(path, out / name / "by hand", "model." if name == "lightning" else "")
    torch.distributed.destroy_process_group()
    end_rank()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
