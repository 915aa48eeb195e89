"""A callback for the Hugging Face Trainer: ``pip install "phema-cli[transformers]"``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from phema_cli.integrations.recorder import Recorder
from phema_cli.system.files import whole

try:
    from transformers import TrainerCallback
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        "phema_cli.integrations.transformers needs transformers and accelerate; "
        'pip install "phema-cli[transformers]"'
    ) from error

if TYPE_CHECKING:
    from transformers import TrainerState, TrainingArguments

#: the averages' state in a directory checkpoint-N.
STATE_NAME = "power_ema.pt"


class PowerEMACallback(Recorder, TrainerCallback):
    """Keeps power-function averages of a Trainer's model and stores snapshots of them.

    It updates the averages after each optimizer step: once for several batches of accumulated
    gradients, and not if a gradient scaler skipped the step. The averages' state is stored in each
    directory ``checkpoint-N`` of the Trainer, as ``power_ema.pt``, so that a resumed run stores
    what an uninterrupted one does. Rank 0 alone writes.

    A run that resumes from a checkpoint outside its ``output_dir`` has to name it in its arguments:
    ``TrainingArguments(resume_from_checkpoint=...)``, as the library's own scripts do.

    Arguments are those of :class:`phema_cli.integrations.recorder.Recorder`::

        import torch
        from phema_cli.integrations.transformers import PowerEMACallback
        from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments

        model = GPT2LMHeadModel(GPT2Config(vocab_size=64, n_embd=16, n_layer=1, n_head=2))
        rows = torch.randint(64, (256, 8))
        data = [{"input_ids": row, "labels": row} for row in rows]
        keep = PowerEMACallback("ckpts", gammas=(5, 10), snapshots=20, dtype=torch.float16)
        Trainer(model, TrainingArguments("out"), train_dataset=data, callbacks=[keep]).train()
    """

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        *_: object,
        **kwargs: Any,  # noqa: ANN401 - the library's own
    ) -> None:
        """Make or restore the averages, when the model is on its devices and sharded."""
        import torch

        path = Path(args.resume_from_checkpoint or _checkpoint(args, state)) / STATE_NAME
        averages = None
        if state.global_step and path.is_file():
            averages = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
        self._begin(kwargs["model"], state.max_steps, state.global_step, averages)

    def on_step_end(self, *_: object, **kwargs: Any) -> None:  # noqa: ANN401 - as above
        """Update after an optimizer step, which accelerate may have skipped."""
        if not getattr(kwargs["optimizer"], "step_was_skipped", False):
            self._update()

    def on_save(
        self, args: TrainingArguments, state: TrainerState, *_: object, **__: object
    ) -> None:
        """Put the averages' state into the checkpoint that was just stored."""
        import torch

        if self.ema is None or state.is_hyper_param_search:
            return
        averages = self.ema.state_dict()
        if args.should_save:
            path = _checkpoint(args, state) / STATE_NAME
            with whole(path) as unfinished, unfinished.open("wb") as stream:
                torch.save(averages, stream)

    def on_train_end(self, *_: object, **__: object) -> None:
        """Store the last snapshots."""
        self._end()


def _checkpoint(args: TrainingArguments, state: TrainerState) -> Path:
    """The directory of the Trainer's checkpoint of this step."""
    return Path(args.output_dir or ".") / f"checkpoint-{state.global_step}"
