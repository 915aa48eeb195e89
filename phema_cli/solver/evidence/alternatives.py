"""Which other tags are tried: what people do wrong, and what lies next to a hypothesis."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import combinations

from phema_cli.solver.evidence.laws import RATIO, RAW, Hypothesis, Law, power

#: pairs of gammas in wide use: phema's and the tutorial's, EDM2's sigma_rel 0.05 and 0.10.
PRESETS = ((5.0, 10.0), (6.937196, 16.972163))
#: caps of warm-ups in wide use, as rates per update.
CAPS = (-math.log(0.999), -math.log(0.9999))
#: factors of all scales, of each, and along the valley.
_FACTORS = (0.5, 0.8, 1.25, 2.0)
#: steps between updates where not each one updates: ema-pytorch's default, and a usual number.
EVERY = (10, 100)
#: rates of constant decays that a power function is taken for, and the other way round, as
#: multiples of its retention at the last snapshot.
_RETENTIONS = (1.0, 2.0, 4.0)
#: offsets of the counter of steps: as fractions of the first snapshot's time, and of the last's.
_FIRST_OFFSETS, _LAST_OFFSETS = (-0.4,), (-0.5, -0.2, 0.2, 0.5, 1.0, 2.0)
#: growth of the decay of a warm-up ``(1 + n)/(10 + n)``, as the exponent of a power function.
_RATIO_SCALE = 9.0


@dataclass(frozen=True, slots=True)
class Span:
    """The first and the last time of a run's snapshots, in steps."""

    first: float
    last: float


def _replaced(told: Hypothesis, changes: dict[int, Law]) -> Hypothesis:
    """A hypothesis with the laws of some series changed."""
    laws = tuple(changes.get(i, law) for i, law in enumerate(told.laws))
    return replace(told, laws=laws)


def _mapped(told: Hypothesis, change: Callable[[Law], Law]) -> Hypothesis:
    """A hypothesis with the laws of all averages changed."""
    laws = tuple(change(law) if law.averages else law for law in told.laws)
    return replace(told, laws=laws)


def near(h: Hypothesis, factor: float) -> Iterator[Hypothesis]:
    """All scales times a factor, each one, and the first along the valley.

    If all weights glide as t^p, an average of scale A lags by ``A/(A + p)``, and two of them fix
    one number only, nearly ``1/A - 1/B``: along that the data say least.
    """
    averages = [i for i, law in enumerate(h.laws) if law.averages]
    yield _mapped(h, lambda law: law.scaled(factor))
    for i in averages:
        yield _replaced(h, {i: h.laws[i].scaled(factor)})
    match averages:
        case [i, j] if h.laws[i].kind == h.laws[j].kind:
            a, b = h.laws[i], h.laws[j]
            inverse = 1 / (factor * a.scale) - 1 / a.scale + 1 / b.scale
            if inverse > 0:
                yield _replaced(h, {i: a.scaled(factor), j: replace(b, scale=1 / inverse)})


def shifted(h: Hypothesis, span: Span) -> Iterator[Hypothesis]:
    """The counter of steps off by fractions of the first and of the last time."""
    for offset in (
        *(f * span.first for f in _FIRST_OFFSETS),
        *(f * span.last for f in _LAST_OFFSETS),
    ):
        yield replace(h, offset=offset)


def mistakes(h: Hypothesis, span: Span) -> Iterator[Hypothesis]:
    """What mistakes make of tags, the counter of steps apart.

    Args:
        h: the tags as told.
        span: of all snapshots.
    """
    for every in EVERY:
        yield _mapped(h, lambda law, every=every: law.slowed(every))  # type: ignore[misc]
        averages = [i for i, law in enumerate(h.laws) if law.averages]
        yield from (_replaced(h, {i: h.laws[i].slowed(every)}) for i in averages)
    for factor in _FACTORS:
        yield from near(h, factor)
    for i, j in combinations(range(len(h.laws)), 2):
        yield _replaced(h, {i: h.laws[j], j: h.laws[i]})
    yield from _other_kinds(h, span)
    yield from _presets(h)


def _other_kinds(h: Hypothesis, span: Span) -> Iterator[Hypothesis]:
    """Constant decays for power functions and back, warm-ups, raw weights."""
    for retention in _RETENTIONS:
        yield _mapped(h, lambda law, f=retention: _constant(law, f, span.last))  # type: ignore[misc]
        yield _mapped(h, lambda law, f=retention: _power(law, f, span.last))  # type: ignore[misc]
    yield _mapped(h, lambda law: law if law.kind == "power" else _warm(law.scale))
    for i, law in enumerate(h.laws):
        if law.averages:
            yield _replaced(h, {i: RAW})
            yield from (_replaced(h, {i: _warm(cap)}) for cap in CAPS)
        elif law.kind == "raw":
            yield from (_replaced(h, {i: power(gamma)}) for gamma in PRESETS[0])
            yield _replaced(h, {i: Law("exponential", 20 / span.last)})


def _constant(law: Law, retention: float, last: float) -> Law:
    """The constant decay that a power function or a warm-up is taken for."""
    if law.kind == "power":
        return Law("exponential", retention * law.scale / last)
    return Law("exponential", law.scale) if law.kind == "warmup" else law


def _power(law: Law, retention: float, last: float) -> Law:
    """The power function that a constant decay or a warm-up is taken for."""
    if law.kind == "exponential":
        return Law("power", law.scale * last / retention)
    return Law("power", _RATIO_SCALE) if law.kind == "warmup" else law


def _warm(rate: float) -> Law:
    """``min(exp(-rate), (1 + n)/(10 + n))``."""
    return Law("warmup", rate, RATIO)


def _presets(h: Hypothesis) -> Iterator[Hypothesis]:
    """Gammas in wide use, both ways round, or of a single average; two warm-ups in wide use."""
    averages = [i for i, law in enumerate(h.laws) if law.averages]
    match averages:
        case [i]:
            yield from (_replaced(h, {i: power(gamma)}) for preset in PRESETS for gamma in preset)
        case [i, j]:
            pairs = [(power(a), power(b)) for a, b in PRESETS]
            for a, b in [*pairs, (_warm(CAPS[0]), _warm(CAPS[1]))]:
                yield _replaced(h, {i: a, j: b})
                yield _replaced(h, {i: b, j: a})
        case _:
            pass
