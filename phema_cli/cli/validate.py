"""Validation loss of a checkpoint of the demo's model: python validate.py CHECKPOINT.

`phema demo` trains this model for this task and copies this file beside its snapshots, as an
example for evaluations of your own. `phema sweep` takes the last number that a script prints.
"""

import math
import sys

import torch
from safetensors.torch import load_file
from torch import nn

#: held-out points, the same for every checkpoint, so that losses differ by the weights alone.
POINTS = 32768


def make_model(width: int = 128) -> nn.Sequential:
    """A velocity field for points in the plane: position and time in, velocity out."""
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


def flow_loss(model: nn.Module, points: int) -> torch.Tensor:
    """Loss of flow matching from noise to a two-armed spiral, at random points and times."""
    turn = torch.rand(points, 1).sqrt() * 3 * math.pi
    arm = torch.randint(0, 2, (points, 1)) * 2 - 1
    data = arm * turn * torch.cat([turn.cos(), turn.sin()], 1) / (3 * math.pi)
    noise, time = torch.randn(points, 2), torch.rand(points, 1)
    between = (1 - time) * noise + time * data
    velocity: torch.Tensor = model(torch.cat([between, time], 1))
    return (velocity - (data - noise)).square().mean()


def validate(checkpoint: str) -> float:
    """Loss of a checkpoint on held-out points."""
    model = make_model()
    model.load_state_dict(load_file(checkpoint))
    torch.manual_seed(1)
    with torch.no_grad():
        return flow_loss(model, POINTS).item()


if __name__ == "__main__":
    print(f"validation loss {validate(sys.argv[1]):.6f}")
