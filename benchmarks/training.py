"""Real training runs for the fidelity benchmark, with every average tracked in float64.

Small models, so that hundreds of snapshots fit in memory, but the real thing: gradients, optimizers
and schedules of torch on data generated on the fly. Large ones have a million parameters.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from typing import Literal, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

_Case = TypeVar("_Case")

STEPS = 4096
MOST_SNAPSHOTS = 256
#: the pairs of gammas that are stored: phema's own and EDM2's sigma_rel 0.05 and 0.10.
PAIRS = ((5.0, 10.0), (6.937196, 16.972163))
_BATCH = 64
#: when a rate drops, the steps from one spike of the loss to the next, and its size.
_DROP, _SPIKES, _SPIKE = 0.6, 300, 8.0
#: the decay of the update of a step, counted from 1.
Decay = Callable[[int], float]


@dataclass(frozen=True, slots=True)
class Run:
    """A training run: which model, optimizer and schedule, and how it computes.

    ``weights`` is the type of the live weights; ``autocast`` means float32 ones with bfloat16
    products. ``odd`` is what goes on in it that is not usual: ``drop`` to a tenth of the rate at 60
    % of the steps, four cosine ``restarts``, ``thaw`` of the first half of the layers half-way,
    ``spikes`` of the loss now and then, other ``data`` from half-way on.
    """

    model: str
    optimizer: str
    schedule: str
    weights: str = "float32"
    batch: int = _BATCH
    large: bool = False
    odd: Literal["", "drop", "restarts", "thaw", "spikes", "data"] = ""

    @property
    def name(self) -> str:
        """``mlp adamw cosine``; the type of the weights and the batch only where not the usual."""
        odd = f" {self.odd}" if self.odd else ""
        kind = "" if self.weights == "float32" else f" {self.weights}"
        size = "" if self.batch == _BATCH else f" batch {self.batch}"
        large = "large " if self.large else ""
        return f"{large}{self.model} {self.optimizer} {self.schedule}{kind}{size}{odd}"


@dataclass(frozen=True, slots=True)
class Tracked:
    """What a run leaves.

    Attributes:
        steps: (m,) steps at which averages were stored.
        snapshots: gamma to its (m, parameters) averages, float64.
        raw: (m, parameters) the weights themselves at those steps.
        truth: (step, gamma) of a target to its directly tracked average (parameters,), float64.
        others: the (m, parameters) averages of other decays, by name.
    """

    steps: NDArray[np.int64]
    snapshots: dict[float, NDArray[np.float64]]
    raw: NDArray[np.float64]
    truth: dict[tuple[int, float], NDArray[np.float64]]
    others: dict[str, NDArray[np.float64]] = field(default_factory=dict)


RUNS = (
    *(
        Run("mlp", optimizer, schedule)
        for optimizer in ("adam", "adamw", "sgd")
        for schedule in ("constant", "cosine", "wsd", "rsqrt")
    ),
    Run("flow", "adam", "rsqrt"),
    Run("flow", "adamw", "cosine"),
    Run("flow", "sgd", "cosine"),
    Run("transformer", "adamw", "cosine"),
    Run("transformer", "adamw", "wsd"),
    Run("transformer", "sgd", "constant"),
    Run("transformer", "adamw", "cosine", "autocast"),
    Run("transformer", "adamw", "cosine", "bfloat16"),
)


class _Mlp(nn.Module):
    """A velocity field for points in the plane."""

    def __init__(self, *, large: bool) -> None:
        super().__init__()
        width = 1000 if large else 64
        self.net = nn.Sequential(
            nn.Linear(3, width),
            nn.SiLU(),
            nn.Linear(width, width),
            nn.LayerNorm(width),
            nn.SiLU(),
            nn.Linear(width, 2),
        )

    def loss(self, batch: int, *, other: bool) -> torch.Tensor:
        """Flow matching from noise to a two-armed spiral, or to another one."""
        turn = torch.rand(batch, 1).sqrt() * 3 * math.pi
        arm = torch.randint(0, 2, (batch, 1)) * 2 - 1
        data = arm * turn * torch.cat([turn.cos(), turn.sin()], 1) / (3 * math.pi)
        if other:
            data = data.flip(1) * 0.5
        noise, time = torch.randn(batch, 2), torch.rand(batch, 1)
        velocity = self.net(torch.cat([(1 - time) * noise + time * data, time], 1))
        error: torch.Tensor = velocity - (data - noise)
        return error.square().mean()


class _Flow(nn.Module):
    """A convolutional velocity field for images of blobs."""

    def __init__(self, *, large: bool) -> None:
        super().__init__()
        width = 240 if large else 24
        self.enter = nn.Conv2d(2, width, 3, padding=1)
        self.middle = nn.ModuleList(
            nn.Sequential(nn.GroupNorm(4, width), nn.SiLU(), nn.Conv2d(width, width, 3, padding=1))
            for _ in range(2)
        )
        self.leave = nn.Conv2d(width, 1, 3, padding=1)

    def loss(self, batch: int, *, other: bool) -> torch.Tensor:
        """Flow matching from noise to one Gaussian blob per image, somewhere in 8 x 8 pixels.

        Other data are blobs that are dark.
        """
        at = torch.linspace(-1, 1, 8)
        centre = torch.rand(batch, 2) * 1.2 - 0.6
        along = torch.exp(-8 * (at - centre[:, :1]) ** 2), torch.exp(-8 * (at - centre[:, 1:]) ** 2)
        data = (along[0][:, :, None] * along[1][:, None, :])[:, None] * 2 - 0.5
        if other:
            data = -data
        noise, time = torch.randn_like(data), torch.rand(batch, 1, 1, 1)
        x = torch.cat([(1 - time) * noise + time * data, time.expand_as(data)], 1)
        x = self.enter(x)
        for block in self.middle:
            x = x + block(x)
        error: torch.Tensor = self.leave(x) - (data - noise)
        return error.square().mean()


class _Transformer(nn.Module):
    """A causal language model with learned positions and tied embeddings."""

    vocabulary, length = 32, 24

    def __init__(self, *, large: bool) -> None:
        super().__init__()
        width, inner, heads, layers = (128, 512, 4, 5) if large else (32, 64, 2, 2)
        self.tokens = nn.Embedding(self.vocabulary, width)
        self.positions = nn.Embedding(self.length, width)
        layer = nn.TransformerEncoderLayer(
            width, heads, inner, dropout=0.0, batch_first=True, norm_first=True
        )
        self.body = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
        self.norm = nn.LayerNorm(width)

    def loss(self, batch: int, *, other: bool) -> torch.Tensor:
        """Next-token loss on arithmetic progressions with noise in a tenth of the tokens.

        Other data are progressions modulo a smaller number.
        """
        start, stride = torch.randint(0, self.vocabulary, (2, batch // 2, 1))
        modulus = self.vocabulary - 9 if other else self.vocabulary
        text = (start + stride * torch.arange(self.length + 1)) % modulus
        odd = torch.rand(text.shape) < 0.1
        text = torch.where(odd, torch.randint_like(text, self.vocabulary), text)
        mask = nn.Transformer.generate_square_subsequent_mask(self.length)
        x = self.tokens(text[:, :-1]) + self.positions.weight
        x = self.norm(self.body(x, mask=mask.to(x.dtype), is_causal=True))
        logits = (x @ self.tokens.weight.T).float()
        return nn.functional.cross_entropy(logits.flatten(0, 1), text[:, 1:].flatten())


_MODELS: dict[str, type[_Mlp | _Flow | _Transformer]] = {
    "mlp": _Mlp,
    "flow": _Flow,
    "transformer": _Transformer,
}


def _optimizer(run: Run, model: nn.Module) -> torch.optim.Optimizer:
    if run.optimizer == "sgd":
        return torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    if run.optimizer == "adam":
        return torch.optim.Adam(model.parameters(), lr=2e-3)
    return torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.1)


def _schedule(run: Run, steps: int) -> Callable[[int], float]:
    """The learning rate at a step over its peak; a warm-up of 2 % begins every schedule."""
    warm = max(1, steps // 50)

    def rate(step: int) -> float:
        after = max(0, step - warm) / (steps - warm)
        if run.odd == "restarts":
            after = 4 * after % 1
        shape = {
            "constant": 1.0,
            "cosine": 0.5 * (1 + math.cos(math.pi * after)),
            "wsd": min(1.0, (1 - after) / 0.2),
            "rsqrt": 1 / math.sqrt(max(1.0, step / (steps / 16))),
        }[run.schedule]
        shape *= 0.1 if run.odd == "drop" and step > _DROP * steps else 1.0
        return min(1.0, (step + 1) / warm) * shape

    return rate


def train(
    run: Run,
    targets: list[tuple[int, float]],
    *,
    seed: int = 0,
    steps: int = STEPS,
    snapshots: int = MOST_SNAPSHOTS,
    others: Mapping[str, Decay] | None = None,
    elements: int | None = None,
) -> Tracked:
    """Train a model and track the averages of the stored and the target gammas in float64.

    Args:
        run: what to train.
        targets: (step, gamma) of the averages to compare with.
        seed: of the model and its data.
        steps: length of the run, a multiple of ``snapshots``.
        snapshots: how many times averages are stored, evenly over the run.
        others: decays of averages to store beside, which begin with the model's first weights.
        elements: how many parameters to track at most, evenly chosen; all if not said.
    """
    torch.manual_seed(seed)
    mixed = run.weights == "autocast"
    model = _MODELS[run.model](large=run.large).to(
        torch.float32 if mixed else getattr(torch, run.weights)
    )
    optimizer = _optimizer(run, model)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, _schedule(run, steps))
    stored = sorted({g for pair in PAIRS for g in pair})
    tracked = stored + sorted({g for _, g in targets} - set(stored))
    gammas = torch.tensor(tracked, dtype=torch.float64)
    decays = list((others or {}).values())
    parameters = sum(p.numel() for p in model.parameters())
    stride = 1 if elements is None else -(-parameters // elements)
    first = _weights(model)[::stride]
    averages = torch.zeros(len(gammas), len(first), dtype=torch.float64)
    beside = first.expand(len(decays), -1).clone()
    every = steps // snapshots
    kept: list[NDArray[np.float64]] = []
    kept_beside: list[NDArray[np.float64]] = []
    raw: list[NDArray[np.float64]] = []
    truth = {}
    for step in range(1, steps + 1):
        _update(run, model, optimizer, schedule, late=step > steps / 2, step=step)
        now = _weights(model)[::stride]
        beta = (1 - 1 / step) ** (gammas + 1)
        averages.lerp_(now.expand_as(averages), (1 - beta)[:, None])
        if decays:
            rest = torch.tensor([1 - decay(step) for decay in decays], dtype=torch.float64)
            beside.lerp_(now.expand_as(beside), rest[:, None])
        if step % every == 0:
            kept.append(averages[: len(stored)].numpy().copy())
            kept_beside.append(beside.numpy().copy())
            raw.append(now.numpy())
        for at, gamma in targets:
            if at == step:
                truth[at, gamma] = averages[tracked.index(gamma)].numpy().copy()
    stack, stack_beside = np.stack(kept), np.stack(kept_beside)
    return Tracked(
        np.arange(every, steps + 1, every),
        {g: stack[:, i] for i, g in enumerate(stored)},
        np.stack(raw),
        truth,
        {name: stack_beside[:, i] for i, name in enumerate(others or {})},
    )


def loss_of(run: Run, weights: NDArray[np.float64], *, batch: int = 1024) -> float:
    """The loss of a run's model with these weights, on data that are the same in every call."""
    model = _MODELS[run.model](large=run.large).double()
    values = torch.from_numpy(weights)
    with torch.no_grad():
        for parameter in model.parameters():
            own, values = values[: parameter.numel()], values[parameter.numel() :]
            parameter.copy_(own.view(parameter.shape))
        torch.manual_seed(1)
        kind = torch.get_default_dtype()
        torch.set_default_dtype(torch.float64)
        try:
            return float(model.loss(batch, other=run.odd == "data"))
        finally:
            torch.set_default_dtype(kind)


def tensor_sizes(run: Run) -> list[int]:
    """Elements of each parameter of its model, in the order of what is tracked."""
    return [p.numel() for p in _MODELS[run.model](large=run.large).parameters()]


def _weights(model: nn.Module) -> torch.Tensor:
    """All parameters, (parameters,) float64."""
    with torch.no_grad():
        return torch.cat([p.flatten() for p in model.parameters()]).double()


def _update(
    run: Run,
    model: _Mlp | _Flow | _Transformer,
    optimizer: torch.optim.Optimizer,
    schedule: torch.optim.lr_scheduler.LRScheduler,
    *,
    step: int,
    late: bool,
) -> None:
    """One step of training."""
    with torch.autocast("cpu", torch.bfloat16, enabled=run.weights == "autocast"):
        loss = model.loss(run.batch, other=run.odd == "data" and late)
    if run.odd == "spikes" and step % _SPIKES == 0:
        loss = loss * _SPIKE
    optimizer.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]  # torch has no types for it
    if run.odd == "thaw" and not late:
        parameters = list(model.parameters())
        for parameter in parameters[: len(parameters) // 2]:
            parameter.grad = None
    optimizer.step()
    schedule.step()


def of_runs(
    cases: Callable[[Run, Sequence[int]], list[_Case]],
    runs: Sequence[Run],
    counts: Sequence[int],
    jobs: int,
) -> list[_Case]:
    """The cases of all runs, by their numbers of snapshots; so many runs at a time."""
    found: list[_Case] = []
    began = time.monotonic()
    with ProcessPoolExecutor(jobs) as pool:
        for run, some in zip(runs, pool.map(cases, runs, [counts] * len(runs)), strict=True):
            found += some
            print(f"{run.name}: {len(some)} cases after {time.monotonic() - began:.0f} s")
    return found
