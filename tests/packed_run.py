"""A program that saves packed snapshots in a loop, is killed again and again, and resumes."""

from __future__ import annotations

import os
import random
import signal
import sys
import time
import zlib
from pathlib import Path

import numpy as np
import torch
from torch import nn

from phema_cli import PowerEMA
from phema_cli.formats.packing import CHECKSUM_KEY, KEY
from phema_cli.formats.reader import FileReader
from phema_cli.snapshots.reading import read_checkpoint

GAMMAS = (5.0, 10.0, 3.0)
EVERY = 16


def values(path: Path) -> dict[str, np.ndarray]:
    """All tensors of a snapshot, as every reader has them."""
    found = {}
    with FileReader() as reader:
        for name, extent in read_checkpoint(path).tensors.items():
            out = np.empty(extent.length, np.uint8)
            reader.read_elements(extent, 0, out.data)
            kind = (
                extent.dtype.label if extent.dtype.kind == "float" else f"u{extent.dtype.bits // 8}"
            )
            kind = kind.replace("bfloat16", "u2")
            found[name] = out.view(kind).reshape(extent.shape)
    return found


def is_keyframe(path: Path) -> bool:
    """Whether a packed snapshot holds whole averages."""
    return "keyframe" not in read_checkpoint(path).metadata[KEY]


def is_intact(path: Path) -> bool:
    """Whether the checksum in a packed snapshot is that of its tensors' bytes."""
    data = path.read_bytes()
    body = data[8 + int.from_bytes(data[:8], "little") :]
    return f"{zlib.crc32(body):08x}" == read_checkpoint(path).metadata[CHECKSUM_KEY]


def made() -> tuple[nn.Module, PowerEMA]:
    """A model whose weights follow a known path, and its averages."""
    torch.manual_seed(0)
    model = nn.Sequential(*[nn.Linear(150, 151) for _ in range(4)])
    return model, PowerEMA(model, GAMMAS)


def move(model: nn.Module, step: int) -> None:
    """Weights of a step, whatever the ones before were."""
    with torch.no_grad():
        for number, parameter in enumerate(model.parameters()):
            flat = torch.arange(parameter.numel()).remainder(13).reshape(parameter.shape)
            parameter.copy_(flat * np.sin(number + step / 40) + np.cos(step / 9))


def train(folder: Path) -> None:
    """Save each step until somebody kills it; some steps twice."""
    torch.set_num_threads(1)
    model, ema = made()
    state = folder / "state.pt"
    if state.exists():
        ema.load_state_dict(torch.load(state, weights_only=True))
    while True:
        move(model, ema.step + 1)
        ema.update()
        # The state first, so that a resumed run writes no file of an earlier step.
        torch.save(ema.state_dict(), folder / "state.new")
        (folder / "state.new").replace(state)
        for _ in range(1 + (ema.step % 3 == 0)):
            ema.save(folder / "ckpts", packing=8, keyframe_every=EVERY)


def main(folder: Path, kills: int) -> None:
    """Start it and kill it, so many times; all that the directory holds is read after each."""
    ckpts = folder / "ckpts"
    ckpts.mkdir()
    chance = random.Random(kills)  # noqa: S311 - any moments will do
    for kill in range(kills):
        before = len(list(ckpts.glob("*.safetensors")))
        child = os.fork()
        if child == 0:
            train(folder)
        # Each life stores the averages of a step at least.
        while len(list(ckpts.glob("*.safetensors"))) < before + 4:
            assert os.waitpid(child, os.WNOHANG) == (0, 0)
            time.sleep(0.001)
        time.sleep(chance.random() * 0.1)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        paths = sorted(ckpts.glob("*.safetensors"))
        for path in paths:
            assert is_intact(path), path
            assert all(np.isfinite(v).all() for v in values(path).values()), path
        others = len(list(ckpts.iterdir())) - len(paths)
        assert others <= kill + 1
        print(f"{len(paths)} files, {sum(map(is_keyframe, paths))} keyframes")  # noqa: T201


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
