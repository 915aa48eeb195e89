"""A small language model that is really trained, for ``benchmarks/decay.py``.

A character-level transformer learns the source text of Python's standard library at a constant
learning rate. From the beginning of a window at the end, the learning rate is also really decayed,
over the same batches.
"""

from __future__ import annotations

import copy
import sys
import sysconfig
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional

from phema_cli import PowerEMA
from phema_cli.profiles import parse_profile

Vector = NDArray[np.float64]
SHAPES = ("linear", "cosine", "sqrt")
GAMMAS = (5.0, 10.0)
#: share of the steps over which the learning rate is decayed.
WINDOW = 0.2
#: snapshots of each average, over the run.
AVERAGES = 20
_RATE, _WARMUP, _BETAS, _WEIGHT_DECAY = 3e-3, 100, (0.9, 0.95), 0.1
_WIDTH, _HEADS, _LAYERS, _LENGTH, _BATCH = 64, 4, 2, 64, 32
#: of every so many files one is kept for validation.
_HELD = 20
#: printable characters and the line feed; all others are one.
_ALPHABET = "\n" + "".join(chr(c) for c in range(32, 127))
_SYMBOLS = len(_ALPHABET) + 1


@dataclass(frozen=True, slots=True)
class Trained:
    """What a run leaves; vectors are all parameters, float64.

    Attributes:
        steps: of the run.
        checkpoints: the raw weights as they were stored (float32), by step; 0 for the first ones.
        averages: the snapshots of each gamma, by gamma and step.
        sums: what the increments add up to when each counts by what a shape leaves, by shape.
        decayed: where the run ends with the learning rate decayed, by shape.
    """

    steps: int
    checkpoints: Mapping[int, Vector]
    averages: Mapping[tuple[float, int], Vector]
    sums: Mapping[str, Vector]
    decayed: Mapping[str, Vector]

    @property
    def last(self) -> Vector:
        """The weights at the end, whose learning rate was not decayed."""
        return self.checkpoints[self.steps]


class _Block(nn.Module):
    """Attention to what came before, and a layer for each position by itself."""

    def __init__(self) -> None:
        super().__init__()
        self.before, self.between = nn.LayerNorm(_WIDTH), nn.LayerNorm(_WIDTH)
        self.attend = nn.Linear(_WIDTH, 3 * _WIDTH, bias=False)
        self.mix = nn.Linear(_WIDTH, _WIDTH, bias=False)
        self.think = nn.Sequential(
            nn.Linear(_WIDTH, 4 * _WIDTH), nn.GELU(), nn.Linear(4 * _WIDTH, _WIDTH)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        parts = self.attend(self.before(x)).unflatten(2, (3, _HEADS, -1)).permute(2, 0, 3, 1, 4)
        query, key, value = parts
        heard = functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        x = x + self.mix(heard.transpose(1, 2).flatten(2))
        thought: torch.Tensor = self.think(self.between(x))
        return x + thought


class LanguageModel(nn.Module):
    """The next character of each place in a text."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Embedding(_SYMBOLS, _WIDTH)
        self.places = nn.Embedding(_LENGTH, _WIDTH)
        self.blocks = nn.Sequential(*(_Block() for _ in range(_LAYERS)))
        self.norm = nn.LayerNorm(_WIDTH)
        for table in (self.tokens, self.places):
            nn.init.normal_(table.weight, std=0.02)

    def loss(self, text: torch.Tensor) -> torch.Tensor:
        """Mean cross-entropy in nats a character; ``text`` is (batch, length + 1) int64."""
        x = self.blocks(self.tokens(text[:, :-1]) + self.places.weight)
        logits = self.norm(x) @ self.tokens.weight.T
        return functional.cross_entropy(logits.flatten(0, 1), text[:, 1:].flatten())


@cache
def texts() -> tuple[torch.Tensor, torch.Tensor]:
    """The characters to learn and those to validate by, (n,) int64, of the standard library."""
    learned: list[NDArray[np.int64]] = []
    held: list[NDArray[np.int64]] = []
    files = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))
    number = np.full(sys.maxunicode + 1, len(_ALPHABET))
    number[[ord(character) for character in _ALPHABET]] = np.arange(len(_ALPHABET))
    for i, file in enumerate(files):
        text = file.read_text(encoding="utf-8", errors="replace")
        codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), "<u4")
        (held if i % _HELD == 0 else learned).append(number[codes])
    return torch.from_numpy(np.concatenate(learned)), torch.from_numpy(np.concatenate(held))


def _batch(text: torch.Tensor, random: torch.Generator) -> torch.Tensor:
    starts = torch.randint(len(text) - _LENGTH, (_BATCH, 1), generator=random)
    return text[starts + torch.arange(_LENGTH + 1)]


def validation_loss(weights: Vector, batches: int) -> float:
    """The loss of these weights on the files that were not learned, always the same batches."""
    model, random = LanguageModel(), torch.Generator().manual_seed(0)
    nn.utils.vector_to_parameters(torch.from_numpy(weights).float(), model.parameters())
    with torch.no_grad():
        losses = [float(model.loss(_batch(texts()[1], random))) for _ in range(batches)]
    return float(np.mean(losses))


def left(shape: str, window: int) -> Vector:
    """What a shape leaves of the learning rate, on average over each step of the window."""
    profile = parse_profile(f"decay:last=1,shape={shape}").ending_at(1.0)
    # The mean over each step by the midpoint rule of many parts.
    parts = (np.arange(window * 64) + 0.5) / (window * 64)
    survival: Vector = (1 - profile.cdf(parts)).reshape(window, 64).mean(axis=1)
    return survival


@dataclass(slots=True)
class _Training:
    """A model on its way."""

    model: LanguageModel
    optimizer: torch.optim.Optimizer

    @classmethod
    def begin(cls) -> _Training:
        model = LanguageModel()
        optimizer = torch.optim.AdamW(
            model.parameters(), lr=_RATE, betas=_BETAS, weight_decay=_WEIGHT_DECAY
        )
        return cls(model, optimizer)

    def branch(self) -> _Training:
        """The same from here on, by itself."""
        other = _Training.begin()
        other.model.load_state_dict(self.model.state_dict())
        other.optimizer.load_state_dict(copy.deepcopy(self.optimizer.state_dict()))
        return other

    def step(self, seed: int, step: int, share: float = 1.0) -> None:
        """One update by a share of the learning rate, with the batch of a step."""
        self.optimizer.param_groups[0]["lr"] = _RATE * min(1.0, step / _WARMUP) * share
        random = torch.Generator().manual_seed(1_000_003 * seed + step)
        loss = self.model.loss(_batch(texts()[0], random))
        self.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]  # torch has no types for it
        self.optimizer.step()

    @property
    def weights(self) -> Vector:
        with torch.no_grad():
            vector: Vector = nn.utils.parameters_to_vector(self.model.parameters()).double().numpy()
        return vector


def train(seed: int, steps: int, stored: Sequence[int]) -> Trained:
    """Train at a constant learning rate; then branch off and decay it really, by each shape.

    Args:
        seed: of the first weights and the batches.
        steps: of the whole run.
        stored: the steps at which raw weights are stored.
    """
    torch.manual_seed(seed)
    window = round(WINDOW * steps)
    run = _Training.begin()
    ema = PowerEMA(run.model, gammas=GAMMAS)
    checkpoints: dict[int, Vector] = {}
    averages: dict[tuple[float, int], Vector] = {}
    sums = {shape: np.empty(0) for shape in SHAPES}
    shares = {shape: left(shape, window) for shape in SHAPES}
    at_start, before = run, run.weights
    for step in range(1, steps + 1):
        run.step(seed, step)
        ema.update()
        now = run.weights
        if step == steps - window:
            at_start = run.branch()
            sums = {shape: now.copy() for shape in SHAPES}
        for shape in SHAPES if step > steps - window else ():
            sums[shape] += shares[shape][step - steps + window - 1] * (now - before)
        if step in stored:
            checkpoints[step] = now
        if step % (steps // AVERAGES) == 0:
            averages |= dict(_averages(ema, step))
        before = now
    decayed = {shape: _decayed(at_start, seed, steps, shares[shape]) for shape in SHAPES}
    return Trained(steps, checkpoints, averages, sums, decayed)


def _averages(ema: PowerEMA, step: int) -> Iterator[tuple[tuple[float, int], Vector]]:
    """The averages after a step, by gamma and step."""
    for gamma in GAMMAS:
        tensors = ema.average(gamma).values()
        yield (gamma, step), torch.cat([t.flatten() for t in tensors]).double().numpy()


def _decayed(start: _Training, seed: int, steps: int, shares: Vector) -> Vector:
    """The weights that a really decayed learning rate leads to."""
    run = start.branch()
    for i, share in enumerate(shares.tolist()):
        run.step(seed, steps - len(shares) + 1 + i, share)
    return run.weights
