"""The run that all trainers are given, the averages of it, and what is true of what they leave."""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from phema_cli.profiles.laws import Law
from phema_cli.snapshots import Config
from tests.simulated import recursion
from tests.updates import schedule_of, updates_of

STEPS = 1000
EVERY = 50
#: the steps after which checkpoints are written.
STORED = range(EVERY, STEPS + 1, EVERY)
#: the same as times.
TIMES = tuple(float(n) for n in STORED)
#: what an average that forgets within the run decays by, where a trainer lets its users choose.
BETA = 0.996
GAMMA = 7.0

#: the largest error, as a share of what averaging moves, where averages are the sources.
FROM_AVERAGES = 0.03
#: the same where 20 raw checkpoints are: what lies between them is unknown.
FROM_RAW = 0.15
#: the largest error of what is stored, as a share of it, against its law: float32's, and float16's.
STORED_EXACTLY, IN_FLOAT16 = 2e-6, 5e-4
#: the same where an average lacks the last of the steps that it is said to have.
A_STEP_BEHIND = 0.05
#: what users say of weights that are no averages.
RAW = Config(raw=True)

State = OrderedDict[str, torch.Tensor]


class Net(nn.Module):
    """A network with nested names, parameters, float buffers and a counter."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(4, 16)
        self.blocks = nn.ModuleList([nn.Linear(16, 16), nn.Linear(16, 16, bias=False)])
        self.norm = nn.BatchNorm1d(16)
        self.head = nn.Linear(16, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Four numbers for each row."""
        x = self.stem(x)
        for block in self.blocks:
            x = x + block(x).tanh()
        result: torch.Tensor = self.head(self.norm(x))
        return result


@cache
def _shapes() -> tuple[tuple[str, torch.Size], ...]:
    return tuple((n, p.shape) for n, p in Net().named_parameters())


@cache
def parameters() -> frozenset[str]:
    """Names of the network's parameters."""
    return frozenset(n for n, _ in _shapes())


@cache
def _order() -> tuple[str, ...]:
    return tuple(Net().state_dict())


@cache
def names() -> frozenset[str]:
    """Names of everything in its state dict."""
    return frozenset(_order())


class Walk:
    """The weights of a run after every step, in float64; row 0 before the first.

    A walk at random from where the network was initialised to where it ends, in smaller steps as
    the learning rate falls: nothing is trained, and it is the same on every machine.
    """

    def __init__(self) -> None:
        random = np.random.default_rng(0)
        size = sum(shape.numel() for _, shape in _shapes())
        start, way = 0.1 * random.normal(size=size), random.normal(size=size)
        done = np.arange(1, STEPS + 1)
        rate = 0.5 * (1 + np.cos(0.9 * np.pi * (done - 1) / STEPS))
        kicks = 0.03 * rate[:, None] * random.normal(size=(STEPS, size))
        drift = way * (1 - np.exp(-done / (STEPS / 4)))[:, None]
        self.rows = np.vstack([start, start + np.cumsum(kicks, axis=0) + drift])

    def averages(self, decay: Callable[[int], float | None]) -> np.ndarray:
        """The average after every step, by the decay of step n; None where it is no update."""
        return recursion(self.rows, decay)

    def constant(self, beta: float = BETA) -> np.ndarray:
        """A constant decay, from a copy of the initial weights."""
        return self.averages(lambda _: beta)

    def power(self, gamma: float, begin: int = 0) -> np.ndarray:
        """The power function EMA of the steps after ``begin``, whose first update copies."""
        return self.averages(lambda n: (1 - 1 / max(n - begin, 1)) ** (gamma + 1))


@cache
def walk() -> Walk:
    """The run."""
    return Walk()


def named(row: np.ndarray) -> OrderedDict[str, np.ndarray]:
    """The parameters of one row by name."""
    result: OrderedDict[str, np.ndarray] = OrderedDict()
    at = 0
    for name, shape in _shapes():
        result[name] = row[at : at + shape.numel()].reshape(shape)
        at += shape.numel()
    return result


def load(net: nn.Module, step: int) -> None:
    """Put the weights and buffers of a step into a network."""
    with torch.no_grad():
        for name, value in _full(walk().rows[step], step).items():
            net.get_parameter(name).copy_(value) if name in parameters() else (
                net.get_buffer(name).copy_(value)
            )


def _full(row: np.ndarray, step: int) -> State:
    """A row and the buffers of its step in the order of a state dict."""
    values = named(row)
    buffers = {
        "norm.running_mean": torch.full((16,), step / STEPS),
        "norm.running_var": torch.full((16,), 1 + step / STEPS),
        "norm.num_batches_tracked": torch.tensor(step),
    }
    return OrderedDict(
        (n, buffers[n] if n in buffers else torch.tensor(values[n], dtype=torch.float32))
        for n in _order()
    )


def state(
    row: np.ndarray,
    step: int,
    prefix: str = "",
    *,
    rename: Callable[[str], str] = lambda name: name,
    dtype: torch.dtype | None = None,
    only: Iterable[str] | None = None,
) -> State:
    """A row as a state dict: names as ``prefix + rename(name)``, of these tensors only."""
    chosen = names() if only is None else set(only)
    return OrderedDict(
        (prefix + rename(n), t.to(dtype) if dtype and t.is_floating_point() else t)
        for n, t in _full(row, step).items()
        if n in chosen
    )


def raw(step: int, prefix: str = "", **more: Any) -> State:
    """The raw weights after a step."""
    return state(walk().rows[step], step, prefix, **more)


def listed(row: np.ndarray) -> list[torch.Tensor]:
    """The parameters of a row as a list, in the model's order."""
    return [torch.tensor(v, dtype=torch.float32) for v in named(row).values()]


def adam(step: int) -> dict[str, Any]:
    """What ``torch.optim.AdamW(...).state_dict()`` holds after some steps."""
    moments = {
        i: {
            "step": torch.tensor(float(step)),
            "exp_avg": torch.full(shape, 1e-3),
            "exp_avg_sq": torch.full(shape, 1e-6),
        }
        for i, (_, shape) in enumerate(_shapes())
    }
    group = {"lr": 1e-4, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.01}
    return {"state": moments, "param_groups": [{**group, "params": list(range(len(moments)))}]}


def write_json(content: object, path: Path) -> None:
    """Write a JSON file, its directory too."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=2), encoding="utf-8")


def save(content: object, path: Path) -> None:
    """``torch.save``, its directory too."""
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(content, path)


@dataclass(frozen=True)
class Left:
    """What a trainer left, and what is true of it.

    Attributes:
        folder: what phema is given.
        series: what ``--key`` calls each series, by the law that phema is to find for it.
        times: when its snapshots were stored, as the trainer counts.
        unit: of these times.
        origin: where they are read, of all series or of each by its law.
        said: what the user has to say.
        hint: what phema names where the user does not say it.
        left_out: names of files that hold no weights.
        error: the largest error that a synthesis may have.
        inexact: the largest error of what is stored against its law, as a share of it.
        end: updates made by the time of the last snapshot.
        begin: steps of the run before the time begins that its snapshots count.
        also: names in its snapshots beside the network's.
        prefix: what stands before the network's names in all of the trainer's files.
        rename: what the trainer makes of the network's own names.
        unmarked: snapshots in which nothing says whose they are.
        whole: whether its raw weights have all of these, and not the parameters alone.
    """

    folder: Path
    series: Mapping[str, str]
    times: tuple[float, ...]
    unit: str = "steps"
    origin: str | Mapping[str, str] = "content"
    said: Config = field(default_factory=Config)
    hint: str | None = None
    left_out: frozenset[str] = frozenset()
    error: float = FROM_AVERAGES
    inexact: float = STORED_EXACTLY
    end: int = STEPS
    begin: int = 0
    also: frozenset[str] = frozenset()
    prefix: str = ""
    rename: Callable[[str], str] = str
    unmarked: frozenset[str] = frozenset()
    whole: bool = True

    def called(self, own: Iterable[str]) -> set[str]:
        """What the trainer calls tensors of the network."""
        return {self.prefix + self.rename(n) for n in own}


Write = Callable[[Path], Left]
#: functions that write what a trainer leaves into an empty directory, and whose it is.
FIXTURES: list[tuple[frozenset[str], Write]] = []


def leaves(*trainers: str) -> Callable[[Write], Write]:
    """Register what these trainers, all of whom phema must see in it, leave on disk."""

    def register(write: Write) -> Write:
        FIXTURES.append((frozenset(trainers), write))
        return write

    return register


def beside(pattern: str, *files: str, times: Iterable[int] = STORED) -> frozenset[str]:
    """Names of files beside the weights: ``checkpoint-{}`` and what lies in each."""
    return frozenset(f"{pattern.format(t)}/{file}" for t in times for file in files)


def flat(tensors: Mapping[str, torch.Tensor]) -> np.ndarray:
    """The parameters of a state dict as a row."""
    return np.concatenate([tensors[n].double().numpy().ravel() for n, _ in _shapes()])


def inexact(tensors: Mapping[str, torch.Tensor], law: Law, time: float, left: Left) -> float:
    """How far stored weights are from what their law makes of the run, as a share of them."""
    stored = flat({n: tensors[called] for n in parameters() for called in left.called([n])})
    scale = left.times[-1] / (left.end - left.begin)
    # What counts images has an update a batch.
    each = scale if left.unit == "images" else 1.0
    schedule = schedule_of(law)
    unit = 1.0 if schedule is None else schedule.unit
    times, weights = updates_of(law, time / each * unit)
    steps = left.begin + np.rint(times / unit * each / scale).astype(int)
    off = stored - weights @ walk().rows[steps]
    return float(np.linalg.norm(off) / np.linalg.norm(stored))


def error(tensors: Mapping[str, torch.Tensor], left: Left) -> float:
    """How far a result is from the true average, as a share of what averaging moves."""
    made = flat({n: tensors[called] for n in parameters() for called in left.called([n])})
    return missed(made, walk().power(GAMMA, left.begin)[left.end], left.end)


def missed(made: np.ndarray, truth: np.ndarray, end: int = STEPS) -> float:
    """The same of rows."""
    return float(np.linalg.norm(made - truth) / np.linalg.norm(walk().rows[end] - truth))
