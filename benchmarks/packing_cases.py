"""The cases of the packing benchmark: averages synthesized from snapshots of every storage type."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.fidelity_cases import SIGMA_RELS, STORED, rms, rounded_to, units_of
from benchmarks.training import MOST_SNAPSHOTS, PAIRS, STEPS, Run, Tracked, train
from phema_cli.formats import packing
from phema_cli.formats.packing import FOLLOWED, Doubles, Floats
from phema_cli.pack.plan import ROUNDING
from phema_cli.pack.request import PackRequest
from phema_cli.profiles import PowerProfile, gamma_from_sigma_rel
from phema_cli.solver import Sample, calibrate, solve, storage_noise

COUNTS = (8, 16, 32, 128)
#: how snapshots are stored: a type of ``STORED``, or the bits of packed ones.
KINDS: dict[str, str | int] = {
    "float32": "fp32",
    "float16": "fp16",
    "bfloat16": "bf16",
    "packed 16": 16,
    "packed 8": 8,
    "packed 4": 4,
}
EVERY = PackRequest(output="").keyframe_every
_SAMPLED = 1 << 22
#: elements of a tensor so large that its last block does not count.
_LARGE = 1 << 20


@dataclass(frozen=True, slots=True)
class Case:
    """One target of one set of snapshots, stored in one way.

    Attributes:
        run: the training run.
        pair: index of the pair of gammas stored.
        stored: a key of ``KINDS``.
        count: snapshots per gamma.
        sigma_rel: of the target.
        error: RMS error per parameter.
        expected: what was foretold.
        distance: RMS distance from the final weights to the target.
        bytes_each: of an element of a snapshot, averaged over all of them.
    """

    run: str
    pair: int
    stored: str
    count: int
    sigma_rel: float
    error: float
    expected: float
    distance: float
    bytes_each: float


@dataclass(frozen=True, slots=True)
class Stored:
    """Snapshots as readers have them.

    Attributes:
        values: (n, e) float64.
        errors: (n,) mean square errors as readers know them; None where types say it all.
        bytes_each: of an element, averaged over the snapshots.
        integers: of each packed file, as they are stored.
    """

    values: Doubles
    errors: Doubles | None
    bytes_each: float
    integers: tuple[NDArray[np.generic], ...] = ()


@dataclass(frozen=True, slots=True)
class Problem:
    """Snapshots of a run, and the averages that are wanted.

    Attributes:
        sources: n profiles.
        targets: k profiles.
        exact: (n, e) the snapshots, not rounded.
        truth: (k, e) the averages wanted.
    """

    sources: Sequence[PowerProfile]
    targets: Sequence[PowerProfile]
    exact: Doubles
    truth: Doubles

    @property
    def order(self) -> list[int]:
        """Places of the snapshots as files lie: by time, then gamma, as the tracker writes them."""
        sources = self.sources
        return sorted(range(len(sources)), key=lambda i: (sources[i].end, sources[i].exponent))


def pack_all(
    values: Floats,
    order: Sequence[int],
    bits: int,
    *,
    followed: int = FOLLOWED,
    parts: Sequence[slice] = (slice(None),),
) -> Stored:
    """Pack snapshots as ``phema pack`` does.

    Args:
        values: (n, e) of the snapshots.
        order: of their files.
        bits: of an integer.
        followed: how many files one follows.
        parts: of the elements, each with coefficients of its own.
    """
    out, squares = np.empty(values.shape), np.zeros(len(values))
    integers: list[NDArray[np.generic]] = []
    for part, low in ((p, low) for p in parts for low in range(0, len(order), EVERY)):
        first, *others = order[low : low + EVERY]
        keyframe = np.ascontiguousarray(values[first, part])
        noise = float(np.square(keyframe, dtype=np.float64).mean()) * ROUNDING
        out[first, part] = keyframe
        movements: list[Doubles] = []
        for place in others:
            new = np.ascontiguousarray(values[place, part])
            wanted = np.subtract(new, keyframe, dtype=np.float64)
            coefficients = packing.fit(movements, wanted, noise)
            numbers, scales, movement = packing.encode(new, keyframe, movements, coefficients, bits)
            out[place, part] = keyframe + movement
            steps = np.repeat(packing.numbers_of(scales), packing.BLOCK)[: len(new)]
            squares[place] += np.square(steps, dtype=np.float64).sum() / 12
            integers.append(numbers)
            movements = [movement, *movements][:followed]
    return Stored(out, squares / values.shape[1], bytes_of(bits, len(order)), tuple(integers))


def bytes_of(bits: int, files: int) -> float:
    """Bytes of an element of so many packed files of large tensors."""
    specs = packing.packed_specs("", _LARGE, bits).values()
    each = sum(dtype.size_bytes(shape[0]) for dtype, shape in specs) / _LARGE
    keyframes = -(-files // EVERY)
    return (4 * keyframes + each * (files - keyframes)) / files


def store(problem: Problem, kind: str | int) -> Stored:
    """Snapshots as a type or packed files hold them; what is packed is float32."""
    if isinstance(kind, str):
        values = rounded_to(problem.exact, kind).astype(np.float64)
        return Stored(values, None, STORED[kind][0].itemsize)
    return pack_all(rounded_to(problem.exact, "fp32"), problem.order, kind)


def errors_of(problem: Problem, kept: Stored, kind: str = "fp32") -> tuple[Doubles, Doubles]:
    """(k,) RMS errors of synthesized averages, and (k,) what was foretold of them."""
    values = kept.values.astype(np.float32)
    sampled = values[:, :: max(1, values.size // _SAMPLED)]
    newest = sampled[problem.order[-1]]
    movement = calibrate(problem.sources, Sample(sampled, units_of(newest, kind), kept.errors))
    solution = solve(
        problem.sources,
        problem.targets,
        movement=movement,
        storage_noise=storage_noise(STORED[kind][1]),
    )
    made = solution.weights.T @ kept.values
    errors = np.sqrt(np.square(made - problem.truth).mean(axis=1))
    return errors, np.array([f.expected_rms or 0.0 for f in solution.figures])


def problem_of(tracked: Tracked, pair: Sequence[float], count: int) -> Problem:
    """So many snapshots of each gamma of a pair."""
    every = MOST_SNAPSHOTS // count
    chosen = np.arange(every - 1, MOST_SNAPSHOTS, every)
    gammas = [gamma_from_sigma_rel(s) for s in SIGMA_RELS]
    return Problem(
        [PowerProfile(g, float(tracked.steps[i])) for g in pair for i in chosen],
        [PowerProfile(g, float(STEPS)) for g in gammas],
        np.concatenate([tracked.snapshots[g][chosen] for g in pair]),
        np.stack([tracked.truth[STEPS, g] for g in gammas]),
    )


def train_for(run: Run) -> Tracked:
    """Train a run with all that the targets need."""
    torch.set_num_threads(1)
    return train(run, [(STEPS, gamma_from_sigma_rel(s)) for s in SIGMA_RELS])


def cases(run: Run, counts: Sequence[int] = COUNTS) -> list[Case]:
    """Every case of a run."""
    tracked = train_for(run)
    settings = [(pair, count) for pair in range(len(PAIRS)) for count in counts]
    return [case for pair, count in settings for case in _cases(run, tracked, pair, count)]


def _cases(run: Run, tracked: Tracked, pair: int, count: int) -> Iterator[Case]:
    """The cases of one set of snapshots."""
    problem = problem_of(tracked, PAIRS[pair], count)
    distances = [rms(tracked.raw[-1] - truth) for truth in problem.truth]
    for name, kind in KINDS.items():
        kept = store(problem, kind)
        errors, expected = errors_of(problem, kept, kind if isinstance(kind, str) else "fp32")
        case = partial(Case, run.name, pair, name, count)
        for sigma_rel, error, told, distance in zip(
            SIGMA_RELS, errors, expected, distances, strict=True
        ):
            yield case(sigma_rel, float(error), float(told), distance, kept.bytes_each)
