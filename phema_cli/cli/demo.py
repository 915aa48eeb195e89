"""``phema demo``: trains a small real model, and stores snapshots and directly tracked EMAs."""

import shutil
import time
from pathlib import Path
from typing import Annotated

import typer

from phema_cli.cli import options, render
from phema_cli.errors import UsageError, reading, storage_errors

#: gammas that are stored as snapshots, and those to compare a synthesis with.
_TRACKED, _TRUTH = (5.0, 10.0), (3.0, 7.0, 14.0)
_BATCH = 64
#: the script that measures a checkpoint.
_OWN = Path(__file__).with_name("validate.py")

Directory = Annotated[Path, typer.Argument(help="Directory for all files.", metavar="DIR")]
Steps = Annotated[
    int,
    options.option(
        "--steps",
        help="Training steps.",
        min=20,
        max=1_000_000,
        metavar="N",
        variable="PHEMA_DEMO_STEPS",
    ),
]
Force = Annotated[bool, options.option("--force", help="Replace the files of an earlier demo.")]


def demo(
    directory: Directory, *, steps: Steps = 2000, force: Force = False, quiet: options.Quiet = False
) -> None:
    """Train a small flow-matching model for a few seconds and store its EMAs.

    DIR/ckpts gets 20 snapshots each of gamma 5 and 10, DIR/truth the directly tracked EMAs of other
    gammas at the last step, to compare a synthesis with, and DIR/validate.py measures a checkpoint.

    Examples:
      Snapshots to try phema with, and a synthesis compared with the truth:
        $ phema demo try/
        $ phema synthesize --gamma 7 try/ckpts/ -o try/ema.pt
        $ phema diff try/truth/*-gamma7.safetensors try/ema.pt --tolerance 1e-3

      The same directory again, with fewer steps:
        $ phema demo try/ --steps 200 --force
    """
    validate = directory / _OWN.name
    _check_validation(validate)
    for folder in (directory / "ckpts", directory / "truth"):
        _clear(folder, force=force)
    began = time.monotonic()
    loss = _train(directory, steps)
    with storage_errors(validate, "write"):
        shutil.copyfile(_OWN, validate)
    if not quiet:
        render.console(stderr=True).print(
            f"trained {steps} steps in {time.monotonic() - began:.1f} s, last loss {loss:.3f}"
        )
    render.line(directory / "ckpts")
    render.line(directory / "truth")
    render.line(validate)


def _check_validation(path: Path) -> None:
    """Refuse to replace a script that no demo has left there."""
    if not path.exists():
        return
    with reading(path):
        there = path.read_bytes().partition(b"\n")[0]
    if there.rstrip(b"\r") != _OWN.read_bytes().partition(b"\n")[0].rstrip(b"\r"):
        raise UsageError(
            "is not a demo's, and would be replaced", where=path, remedy="pass another DIR"
        )


def _clear(folder: Path, *, force: bool) -> None:
    """Remove an earlier demo's files, and nothing else."""
    old = sorted(folder.glob("demo-step*.safetensors"))
    if old and not force:
        raise UsageError("holds an earlier demo", where=folder, remedy="pass --force to replace it")
    with storage_errors(folder, "remove the earlier demo from"):
        for path in old:
            path.unlink()


def _train(directory: Path, steps: int) -> float:
    """Train with AdamW at a constant rate; returns the mean loss of the last tenth.

    The rate does not decay, so that averaging alone removes the noise of the weights and a best
    length shows.
    """
    import torch

    from phema_cli.cli.validate import flow_loss, make_model
    from phema_cli.tracker import PowerEMA

    # Layers this small are no faster with more threads, and far slower on a busy machine.
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = make_model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    tracked, truth = PowerEMA(model, _TRACKED), PowerEMA(model, _TRUTH)
    losses = []
    for step in range(1, steps + 1):
        loss = flow_loss(model, _BATCH)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        optimizer.step()
        tracked.update()
        truth.update()
        losses.append(loss.item())
        if step * 20 // steps > (step - 1) * 20 // steps:
            tracked.save(directory / "ckpts", name="demo")
    truth.save(directory / "truth", name="demo")
    last = losses[-max(1, steps // 10) :]
    return sum(last) / len(last)
