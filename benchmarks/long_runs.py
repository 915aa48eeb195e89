"""What averages lose in runs of millions of steps, and what it costs to lose nothing.

Ways of keeping an average are given the same weights, with the step counter begun late, and
compared with the average in float64. Prints the table; ``benchmarks/fidelity.py`` puts it into
``docs/fidelity.md``:

    python -m benchmarks.long_runs
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from benchmarks.long_run_methods import METHODS, Method, share
from phema_cli.cli.validate import flow_loss, make_model

GAMMAS = (5.0, 10.0)
#: a multiple of all lengths of blocks.
STEPS = 4096
#: step at which the counter begins, drift a step, noise.
CASES = ((102_400, 2e-7, 1e-6), (1_024_000, 2e-7, 1e-6), (1_024_000, 2e-8, 1e-6),
         (10_240_000, 2e-7, 1e-6))  # fmt: skip
_TRAINED_AT = 1_024_000
_ELEMENTS = 1024
_REPEATS, _UPDATES = 5, 64


@dataclass(frozen=True, slots=True)
class Row:
    """What one way of averaging costs and loses.

    Attributes:
        name: of the method.
        bytes_each: memory for a parameter and two gammas.
        times: of an update, over that of plain float32, by inputs.
        lost: share of the movement that is lost, by case.
        error: RMS error over the RMS movement of the average of a trained model.
    """

    name: str
    bytes_each: float
    times: list[float]
    lost: list[float]
    error: float


def lost(begin: int, drift: float, noise: float) -> list[float]:
    """The share of an average's movement that each method loses (gamma 5)."""
    random = torch.Generator().manual_seed(0)
    start = 0.9 + 0.2 * torch.rand(_ELEMENTS, generator=random)
    ways = [make([start], GAMMAS[:1], begin) for make in METHODS.values()]
    exact, first = start.double(), start.double()
    for step in range(1, STEPS + 1):
        jitter = noise * torch.randn(_ELEMENTS, generator=random, dtype=torch.float64)
        now = (first + drift * step + jitter).float()
        exact = torch.lerp(exact, now.double(), share(GAMMAS[0], begin + step - 1, begin + step))
        for way in ways:
            way.update([now])
    whole = (exact - first).mean()
    return [float(1 - (w.average(0)[0] - first).mean() / whole) for w in ways]


def trained() -> list[float]:
    """Errors of the average of a flow model at a late step, over the average's movement."""
    torch.manual_seed(0)
    model = make_model()
    parameters = list(model.parameters())
    optimizer = torch.optim.AdamW(parameters, lr=3e-3)

    def step() -> list[torch.Tensor]:
        optimizer.zero_grad()
        flow_loss(model, 64).backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        optimizer.step()
        return [p.detach() for p in parameters]

    for _ in range(500):
        step()
    # As at the end of a schedule.
    for group in optimizer.param_groups:
        group["lr"] = 3e-6
    first = [p.detach().clone() for p in parameters]
    ways = [make(first, GAMMAS[:1], _TRAINED_AT) for make in METHODS.values()]
    exact = [p.double() for p in first]
    for n in range(_TRAINED_AT + 1, _TRAINED_AT + STEPS // 4 + 1):
        now = step()
        torch._foreach_lerp_(exact, [p.double() for p in now], share(GAMMAS[0], n - 1, n))
        for way in ways:
            way.update(now)
    truth = _flat(exact)
    movement = _rms(truth - _flat(first))
    return [_rms(_flat(w.average(0)) - truth) / movement for w in ways]


def _flat(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    return torch.cat([t.flatten().double() for t in tensors])


def _rms(values: torch.Tensor) -> float:
    return float(values.square().mean().sqrt())


def times(shapes: Sequence[tuple[int, ...]]) -> list[float]:
    """Times of an update on one processor, over the first method's: the least of several turns.

    A busy machine does not count: it is the process's own time.
    """
    tensors = [torch.randn(shape) for shape in shapes]
    ways = [make(tensors, GAMMAS, 20_480) for make in METHODS.values()]
    least = [float("inf")] * len(ways)
    for _ in range(_REPEATS):
        for i, way in enumerate(ways):
            began = time.process_time()
            for _ in range(_UPDATES):
                way.update(tensors)
            least[i] = min(least[i], time.process_time() - began)
    return [t / least[0] for t in least]


def measure() -> list[Row]:
    """Every method's row."""
    torch.set_num_threads(1)
    small = [(64, 64)] * 60 + [(64,)] * 60
    took = [times(shapes) for shapes in (small, [(512, 1024)] * 2)]
    losses = [lost(*case) for case in CASES]
    errors = trained()
    return [
        Row(
            name,
            _bytes(make),
            [t[i] for t in took],
            [part[i] for part in losses],
            errors[i],
        )
        for i, (name, make) in enumerate(METHODS.items())
    ]


def _bytes(make: Callable[[Sequence[torch.Tensor], Sequence[float], int], Method]) -> float:
    """Bytes that a method keeps for a parameter and two gammas."""
    elements = 4096
    kept = make([torch.zeros(elements)], GAMMAS, 1).kept()
    return sum(t.numel() * t.element_size() for t in kept) / elements


_TEXT = f"""\
What an average loses late in a run, and what it costs not to. *Lost* is the share of the average's
movement that is missing, in percent (below 0 it moved too far): weights near 1 drift by 2e-7 or
2e-8 a step, with noise of 1e-6, for {STEPS:,} steps from the step named on (gamma 5). The last
column is the RMS error over the RMS movement, in percent, of a trained flow model after
{STEPS // 4:,} steps of AdamW at a learning rate of 3e-6 from step {_TRAINED_AT:,} on. Both are
taken before the average is rounded to be stored. Bytes are those of two gammas for each parameter.
Times of an update are the processor's, over those of plain float32, on 120 small tensors and on 2
of half a million elements. The anchor is the weights at the step named. `PowerEMA` keeps its
averages in the last way, phema 0.1 in the first."""


def section(rows: Sequence[Row]) -> str:
    """The text and the table."""
    cases = " | ".join(f"lost at {b:,}, drift {d:g}" for b, d, _ in CASES)
    head = f"| | bytes | time, small | time, large | {cases} | trained model |"
    lines = [head, "| --- |" + " ---: |" * (head.count("|") - 2)]
    for row in rows:
        spent = " | ".join(f"{t:.2f}" for t in row.times)
        share_lost = " | ".join(f"{100 * part:z.2f}" for part in row.lost)
        lines.append(
            f"| {row.name} | {row.bytes_each:g} | {spent} | {share_lost} | {100 * row.error:.4f} |"
        )
    return "\n\n".join(["## Long runs", _TEXT, "\n".join(lines)]) + "\n"


if __name__ == "__main__":
    print(section(measure()))
