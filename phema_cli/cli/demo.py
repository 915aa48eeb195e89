"""``phema demo``: trains a small real model with the tracker and leaves snapshots and the truth."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from phema_cli.cli import options, render
from phema_cli.errors import StorageError, UsageError

if TYPE_CHECKING:
    import torch

TRACKED = (5.0, 10.0)
TRUTH = (3.0, 7.0, 14.0)
_BATCH = 128

Directory = Annotated[Path, typer.Argument(help="Where to put ckpts/ and truth/.", metavar="DIR")]
Steps = Annotated[
    int, options.option("--steps", help="Training steps.", min=20, max=1_000_000, metavar="N")
]
Force = Annotated[bool, options.flag("--force", help="Replace the files of an earlier demo.")]


def demo(
    directory: Directory, *, steps: Steps = 2000, force: Force = False, quiet: options.Quiet = False
) -> None:
    """Train a small flow-matching model for a few seconds and store its EMAs.

    DIR/ckpts gets 20 snapshots each of gamma 5 and 10, DIR/truth the directly tracked EMAs of other
    gammas at the last step, to compare a synthesis with.

    Example: [bold]phema demo demo/ && phema inspect demo/ckpts[/]
    """
    for folder in (directory / "ckpts", directory / "truth"):
        _clear(folder, force=force)
    began = time.monotonic()
    loss = _train(directory, steps)
    if not quiet:
        render.console(stderr=True).print(
            f"trained {steps} steps in {time.monotonic() - began:.1f} s, last loss {loss:.3f}"
        )
    render.line(directory / "ckpts")
    render.line(directory / "truth")


def _clear(folder: Path, *, force: bool) -> None:
    """Remove an earlier demo's files, and nothing else."""
    old = sorted(folder.glob("demo-step*.safetensors"))
    if old and not force:
        raise UsageError("holds an earlier demo", where=folder, remedy="pass --force to replace it")
    try:
        for path in old:
            path.unlink()
    except OSError as error:
        raise StorageError.wrap(error, folder, "remove the earlier demo from") from error


def _train(directory: Path, steps: int) -> float:
    """Train with AdamW under a cosine schedule; returns the mean loss of the last tenth."""
    import torch

    from phema_cli.tracker import PowerEMA

    torch.manual_seed(0)
    model = _model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps, eta_min=3e-4)
    kept, truth = PowerEMA(model, TRACKED), PowerEMA(model, TRUTH)
    losses = []
    for step in range(1, steps + 1):
        loss = _loss(model)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        optimizer.step()
        schedule.step()
        kept.update()
        truth.update()
        losses.append(loss.item())
        if step * 20 // steps > (step - 1) * 20 // steps:
            kept.save(directory / "ckpts", name="demo")
    truth.save(directory / "truth", name="demo")
    last = losses[-max(1, steps // 10) :]
    return sum(last) / len(last)


def _model() -> torch.nn.Module:
    """A velocity field for points in the plane: position and time in, velocity out."""
    from torch import nn

    width = 128
    return nn.Sequential(
        nn.Linear(3, width),
        nn.SiLU(),
        nn.Linear(width, width),
        nn.LayerNorm(width),
        nn.SiLU(),
        nn.Linear(width, width),
        nn.SiLU(),
        nn.Linear(width, 2),
    )


def _loss(model: torch.nn.Module) -> torch.Tensor:
    """Flow matching from noise to a two-armed spiral."""
    import torch

    turn = torch.rand(_BATCH, 1).sqrt() * 3 * math.pi
    arm = torch.randint(0, 2, (_BATCH, 1)) * 2 - 1
    data = arm * turn * torch.cat([turn.cos(), turn.sin()], 1) / (3 * math.pi)
    noise, time = torch.randn(_BATCH, 2), torch.rand(_BATCH, 1)
    between = (1 - time) * noise + time * data
    velocity: torch.Tensor = model(torch.cat([between, time], 1))
    return (velocity - (data - noise)).square().mean()
