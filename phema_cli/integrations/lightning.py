"""A callback for PyTorch Lightning: ``pip install "phema-cli[lightning]"``."""

from __future__ import annotations

import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any

from phema_cli.errors import UsageError
from phema_cli.integrations.recorder import Recorder

if TYPE_CHECKING:
    import torch
    from lightning.pytorch import Callback, LightningModule, Trainer
    from torch.utils.hooks import RemovableHandle


def _callback() -> type:
    """The base class, from the package that was imported: the library has two names."""
    names = ["lightning.pytorch", "pytorch_lightning"]
    for name in sorted(names, key=lambda n: n not in sys.modules):
        try:
            callback: type = import_module(name).Callback
        except ModuleNotFoundError:
            continue
        return callback
    raise ModuleNotFoundError(
        'phema_cli.integrations.lightning needs Lightning; pip install "phema-cli[lightning]"'
    )


if not TYPE_CHECKING:
    Callback = _callback()


class PowerEMACallback(Recorder, Callback):
    """Keeps power-function averages of a LightningModule and stores snapshots of them.

    It updates the averages after each optimizer step: once for several batches of accumulated
    gradients, and not if a gradient scaler skipped the step. If several optimizers step in one
    batch, that is one update. The averages' state is in Lightning's checkpoints, so that a resumed
    run stores what an uninterrupted one does. Rank 0 alone writes. Names are those of the
    LightningModule.

    Arguments are those of :class:`phema_cli.integrations.recorder.Recorder`::

        import lightning, torch
        from phema_cli.integrations.lightning import PowerEMACallback


        class Module(lightning.LightningModule):
            def __init__(self):
                super().__init__()
                self.layer = torch.nn.Linear(8, 1)

            def training_step(self, batch, index):
                return (self.layer(batch) - batch.sum(1, keepdim=True)).square().mean()

            def configure_optimizers(self):
                return torch.optim.AdamW(self.parameters())


        keep = PowerEMACallback("ckpts", gammas=(5, 10), snapshots=20, dtype=torch.float16)
        trainer = lightning.Trainer(max_steps=200, callbacks=[keep])
        trainer.fit(Module(), torch.utils.data.DataLoader(torch.randn(6400, 8), 32))
    """

    _state: dict[str, Any] | None = None
    _stepped = False
    _hooks: tuple[RemovableHandle, ...] = ()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Make or restore the averages, when the model is on its devices and sharded."""
        total = trainer.estimated_stepping_batches
        self._begin(pl_module, total, trainer.global_step, self._state)
        self._state = None
        self._stepped = False
        self._unhook()
        for optimizer in trainer.optimizers:
            if not hasattr(optimizer, "register_step_post_hook"):
                raise UsageError(f"{type(optimizer).__name__} is not an optimizer of torch")
        self._hooks = tuple(o.register_step_post_hook(self._note_step) for o in trainer.optimizers)

    def _note_step(self, optimizer: torch.optim.Optimizer, *_: object) -> None:
        """Note that an optimizer stepped; a fused one is called even if a scaler skips the step."""
        overflow = getattr(optimizer, "found_inf", None)
        self._stepped |= overflow is None or not overflow.item()

    def on_train_batch_end(self, *_: object) -> None:
        """Update after a batch in which an optimizer stepped."""
        if self._stepped:
            self._stepped = False
            self._update()

    def on_train_end(self, *_: object) -> None:
        """Store the last snapshots."""
        self._unhook()
        self._end()

    def _unhook(self) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks = ()

    def state_dict(self) -> dict[str, Any]:
        """The averages' state, for a checkpoint."""
        return self._state or {} if self.ema is None else self.ema.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep a checkpoint's averages for the training that is about to start."""
        self._state = state_dict
