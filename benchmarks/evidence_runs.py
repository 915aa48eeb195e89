"""What real training runs leave for the evidence benchmark: many averages, and mistakes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.evidence_cases import ELEMENTS, TIMES, Trial, Wrong
from benchmarks.fidelity_cases import STORED as TYPES
from benchmarks.training import Tracked, train
from phema_cli.errors import InputError
from phema_cli.profiles import (
    ExponentialProfile,
    PowerProfile,
    Profile,
    gamma_from_sigma_rel,
)
from phema_cli.solver import Sample, calibrate, solve
from phema_cli.trainers.registry import parse_law

#: targets at which damage is measured.
TARGETS = tuple(gamma_from_sigma_rel(s) for s in (0.05, 0.1, 0.2))
#: numbers of the times at which a series is stored.
Places = Sequence[int] | NDArray[np.int64]
#: by how much the rate of a decay that changes half-way is larger from then on.
_FACTORS = {"d": 0.25, "e": 4.0}
_BESIDE: tuple[str, ...] = (
    "c10",
    "c20",
    "c40",
    "w",
    "u5",
    "u10",
    "u6.937196",
    "u16.972163",
    "k20",
    "k40",
)
_BESIDE += ("r5", "r10", "d40", "d20", "e10", "m40")


@dataclass(frozen=True, slots=True)
class Changing:
    """An average whose decay changes during training, by names as in ``evidence_cases``.

    Args:
        name: ``d``, ``e`` or ``m`` with a number.
        steps: of the run.
        end: time of the average.
    """

    name: str
    steps: int
    end: float
    square_integrable: ClassVar[bool] = True
    sparse: ClassVar[None] = None

    @property
    def label(self) -> str:
        """Its name."""
        return self.name

    @property
    def breaks(self) -> tuple[float, ...]:
        """Where it changes, and the end."""
        return (*(t for t in (self.steps / 2,) if t < self.end), self.end)

    @property
    def exponent(self) -> float:
        """Near its end it falls as ``(t/T)^(rate T)``."""
        return float(self.rate(np.array([self.end]))[0]) * self.end

    def rate(self, t: NDArray[np.float64]) -> NDArray[np.float64]:
        """``-ln`` of the decay of the update of a step."""
        u, first = t / self.steps, float(self.name[1:]) / self.steps
        if self.name[0] == "m":
            return first * (1 + np.cos(np.pi * u)) / 2
        return first * np.where(u > 0.5, _FACTORS[self.name[0]], 1.0)

    def _depth(self, t: NDArray[np.float64]) -> NDArray[np.float64]:
        """The integral of the rate up to t."""
        u, first = t / self.steps, float(self.name[1:])
        if self.name[0] == "m":
            return first * (u + np.sin(np.pi * u) / np.pi) / 2
        late = np.maximum(u - 0.5, 0.0)
        return first * (u + (_FACTORS[self.name[0]] - 1) * late)

    def cdf(self, t: NDArray[np.float64]) -> NDArray[np.float64]:
        """``exp(-(R(T) - R(t)))``, R the integral of the rate."""
        kept = np.exp(self._depth(np.clip(t, 0.0, self.end)) - self._depth(np.array([self.end])))
        return np.where(t < 0, 0.0, kept)

    def density(self, t: NDArray[np.float64]) -> NDArray[np.float64]:
        """F'(t) on (0, T], 0 elsewhere."""
        return np.where((t > 0) & (t <= self.end), self.rate(t) * self.cdf(t), 0.0)


def decay(name: str, steps: int, step: int) -> float:
    """The decay of the update of a step, of so many, of the average of a name."""
    kind, number = name[0], float(name[1:] or 0)
    late = step > steps // 4
    match kind:
        case "c" | "k":
            return float(np.exp(-number / steps)) if late or kind == "c" else 0.0
        case "d" | "e" | "m":
            return float(np.exp(-Changing(name, steps, steps).rate(np.array([float(step)])))[0])
        case "w":
            return min(0.9999, (1 + step) / (10 + step))
        case "u" if step % 10:
            return 1.0
        case "r" if step == steps // 4:
            return 0.0
        case _:
            return float((1 - 1 / step) ** (number + 1))


def profile(name: str, steps: int, end: float) -> Profile:
    """The profile of the average of a name at a time of a run of so many steps."""
    if name in ("raw", "w"):
        law = "raw" if name == "raw" else "warmup:beta=0.9999,start=1"
        return parse_law(law).profile(end)
    kind, number = name[0], float(name[1:])
    match kind:
        case "c":
            return ExponentialProfile(number / steps, end)
        case "b":
            return ExponentialProfile(-float(np.log(number)), end)
        case "d" | "e" | "m":
            return Changing(name, steps, end)
        case "k":
            beta = float(np.exp(-number / steps))
            return parse_law(f"timm:beta={beta!r},update_after={steps // 4}").profile(end)
        case _:
            gamma = (number + 1) / 10 - 1 if kind == "u" else number
            return PowerProfile(gamma, end)


def rounded(values: NDArray[np.float64], stored: str) -> Sample:
    """Values as a type stores them, and the units of the newest."""
    dtype, mantissa, smallest = TYPES[stored]
    kept = torch.from_numpy(values).to(dtype).float().numpy()
    exponent = np.where(kept[-1] == 0, smallest, np.frexp(kept[-1])[1] - 1.0)
    return Sample(kept, np.exp2(np.maximum(exponent, smallest) - mantissa))


@dataclass(frozen=True, slots=True)
class Kept:
    """What a run and another one of the same kind left.

    Attributes:
        trial: the run.
        averages: by name, (times, elements) float64; ``raw`` among them.
        other: the same of the other run.
        times: (times,) when they were stored.
        truth: (targets, elements) averages of ``TARGETS`` at the end.
    """

    trial: Trial
    averages: dict[str, NDArray[np.float64]]
    other: dict[str, NDArray[np.float64]]
    times: NDArray[np.float64]
    truth: NDArray[np.float64]

    def profiles(self, names: Sequence[str], at: Sequence[Places]) -> list[Profile]:
        """The profiles of averages at times by number, series after series."""
        pairs = zip(names, at, strict=True)
        return [profile(n, self.trial.steps, t) for n, rows in pairs for t in self.times[rows]]

    def stored(self, names: Sequence[str], at: Sequence[Places]) -> NDArray[np.float64]:
        """(n, elements) these averages, series after series."""
        pairs = zip(names, at, strict=True)
        return np.concatenate([self.averages[name][rows] for name, rows in pairs])

    def made(self, profiles: Sequence[Profile], sample: Sample) -> NDArray[np.float64]:
        """(targets, elements) what is made of a sample under some tags; NaN if nothing can be."""
        last = max(p.end for p in profiles)
        targets = [PowerProfile(gamma, last) for gamma in TARGETS]
        try:
            found = solve(profiles, targets, movement=calibrate(profiles, sample))
        except InputError:
            return np.full_like(self.truth, np.nan)
        result: NDArray[np.float64] = found.weights.T @ sample.values
        return result

    def damage(self, made: NDArray[np.float64], wanted: NDArray[np.float64]) -> float:
        """How far two results are apart, over the averaging distance, at the worst target."""
        distance = np.linalg.norm(self.truth - self.averages["raw"][-1], axis=1)
        return float((np.linalg.norm(made - wanted, axis=1) / distance).max())


def collect(trial: Trial) -> Kept:
    """Train a run, and one of another seed beside it where wrong tags are tried."""
    torch.set_num_threads(1)
    training = partial(
        train,
        trial.run,
        steps=trial.steps,
        snapshots=TIMES,
        elements=ELEMENTS,
        others={name: partial(decay, name, trial.steps) for name in _BESIDE},
    )
    tracked = training([(trial.steps, gamma) for gamma in TARGETS], seed=trial.seed)
    other = training([], seed=trial.seed + 1000) if trial.wrong else tracked
    return Kept(
        trial,
        _averages(tracked),
        _averages(other),
        tracked.steps.astype(float),
        np.stack([tracked.truth[trial.steps, gamma] for gamma in TARGETS]),
    )


def _averages(tracked: Tracked) -> dict[str, NDArray[np.float64]]:
    """All averages of a run by name."""
    powers = {f"g{gamma:.8g}": average for gamma, average in tracked.snapshots.items()}
    return {"raw": tracked.raw, **powers, **tracked.others}


def mixed(wrong: Wrong, kept: Kept, at: NDArray[np.int64]) -> NDArray[np.float64]:
    """The snapshots of a mistake, one series after the other."""
    names, n = wrong.stored.split(), len(at)
    series = [kept.averages[name][at].copy() for name in names]
    each, half, late = range(len(names)), np.arange(n) % 2 == 0, np.arange(n) >= n // 2
    middle = n // 2
    which: dict[str, tuple[Sequence[int], NDArray[np.bool_]]] = {
        "early raw": (each, ~late),
        "late raw": (each, late),
        "first alternates": ((0,), half),
        "all alternate": (each, half),
        "second of another run": ((1,), late | ~late),
        "late of another run": (each, late),
        "one of another run": ((0,), np.arange(n) == middle),
        "three of another run": ((0,), np.isin(np.arange(n), (n // 4, middle, n - 2))),
    }
    if wrong.mix == "second frozen":
        series[1][:] = kept.averages["raw"][0]
    elif wrong.mix == "two exchanged":
        series[0][[middle - 1, middle]] = series[0][[middle, middle - 1]]
    elif wrong.mix.endswith("one late"):
        for k in each if "all" in wrong.mix else (0,):
            series[k][1:] = series[k][:-1].copy()
    elif wrong.mix:
        for k in which[wrong.mix][0]:
            rows = which[wrong.mix][1]
            foreign = kept.other[names[k]] if "another" in wrong.mix else kept.averages["raw"]
            series[k][rows] = foreign[at][rows]
    return np.concatenate(series)
