"""The decay laws that are no single library's, and how the user writes any law.

Every law is made of updates, ``average = decay * average + (1 - decay) * weights``, or has a
profile of its own. The libraries' own laws are in ``phema_cli.trainers``.
"""

import math
from collections.abc import Mapping

from phema_cli.errors import UsageError
from phema_cli.profiles.base import GAMMA, SIGMA_REL, Profile
from phema_cli.profiles.grammar import (
    BETA,
    EVERY,
    POSITIVE,
    START,
    Key,
    Law,
    LawForm,
    Numbers,
    effective_power,
    gamma_of,
)
from phema_cli.profiles.schedules import (
    SLACK,
    Rates,
    Schedule,
    constant,
    power_function,
    ratio,
    share,
)
from phema_cli.profiles.shapes import ExponentialProfile, RawProfile, WindowProfile

__all__ = ["LAWS", "Key", "Law", "LawForm", "parse_law"]


#: gamma from which on an average by ``halflife`` has forgotten the weights it began with.
_SHORT = 1.0


def parse_law(text: str, extra: Mapping[str, LawForm] | None = None) -> Law:
    """The law that ``NAME:key=value,...`` means.

    Args:
        text: as ``--average`` takes it and :attr:`Law.text` gives it.
        extra: forms beside ``LAWS``, by name.

    Raises:
        UsageError: an unknown name or key, a key twice or missing, or a number out of its range.
    """
    name, _, numbers = text.partition(":")
    forms = {**LAWS, **(extra or {})}
    if name.strip() not in forms:
        *most, last = (form.example for form in forms.values())
        raise UsageError(
            f"no average {name.strip()!r}", remedy=f"write {', '.join(most)} or {last}"
        )
    return forms[name.strip()].read(numbers)


def _power(numbers: Numbers) -> Schedule:
    """Time counts from ``start``. The first decay is 0 where every step is an update."""
    every, start = int(numbers["every"]), int(numbers["start"])
    exponent = _gamma(numbers) + 1
    if "halflife" in numbers:
        return Schedule(Rates(share, (exponent,), stride=every), every, start)
    copies = every == 1
    rates = Rates(power_function, (exponent,), offset=float(copies), stride=every)
    return Schedule(rates, every, start + copies)


def _power_profile(numbers: Numbers, step: float, _: str) -> Profile | None:
    """A power function, which a half-life is too: up to 0.25/T where it is not too long."""
    every, gamma = int(numbers["every"]), _gamma(numbers)
    profile = effective_power(gamma, (step + SLACK) // every * every, every, step)
    exact = "halflife" not in numbers or gamma >= _SHORT
    return profile if exact and not numbers["start"] else None


def _gamma(numbers: Numbers) -> float:
    gamma = gamma_of(numbers) or 0.0
    if not GAMMA.holds(gamma):
        raise UsageError(
            f"power: gamma must be {GAMMA.words}, not {gamma:.6g}", remedy="give a smaller halflife"
        )
    return gamma


def _exponential(numbers: Numbers) -> Schedule:
    every, start = int(numbers["every"]), int(numbers["start"])
    return Schedule(Rates(constant, least=_rate(numbers)), every, start)


def _exponential_profile(numbers: Numbers, step: float, name: str) -> Profile | None:
    if numbers["every"] > 1 or numbers["start"]:
        return None
    return ExponentialProfile(_rate(numbers), step, name)


def _rate(numbers: Numbers) -> float:
    """Of an update."""
    if "beta" in numbers:
        return -math.log(numbers["beta"])
    return math.log(2) * numbers["every"] / numbers["halflife"]


def _warmup(numbers: Numbers) -> Schedule:
    rates = Rates(ratio, least=-math.log(numbers["beta"]))
    return Schedule(rates, int(numbers["every"]), int(numbers["start"]))


def _rampup(numbers: Numbers) -> Schedule:
    """Time so far is that before the step, so the first step copies."""
    every, start, batch = int(numbers["every"]), int(numbers["start"]), numbers["batch"]
    copies = every == 1
    rates = Rates(
        share,
        (math.log(2) / numbers["ratio"],),
        offset=0.0 if copies else -1.0,
        stride=every,
        least=math.log(2) * batch / numbers["halflife"],
    )
    return Schedule(rates, every, start + copies, unit=batch)


def _uniform_profile(numbers: Numbers, step: float, name: str) -> Profile:
    return WindowProfile.of_last(numbers["last"], step, name)


def _raw_profile(_: Numbers, step: float, __: str) -> Profile:
    return RawProfile(step)


_FORMS = (
    LawForm(
        "power",
        "decay (1 - 1/t)^(gamma + 1) at step t; by halflife f, 2^(-1/(f t)), gamma = ln 2/f - 1",
        "arXiv:2312.02696, Eq. 127; halflife: torchtitan, components/ema.py",
        "power:gamma=5",
        (
            Key("gamma", "exponent of the power function", GAMMA),
            Key("sigma_rel", "width of the average relative to the time so far", SIGMA_REL),
            Key("halflife", "half-life as a fraction of the time so far", POSITIVE),
            EVERY,
            START,
        ),
        _power,
        one_of=("gamma", "sigma_rel", "halflife"),
        closed=_power_profile,
    ),
    LawForm(
        "exponential",
        "decay beta, from a copy of the initial weights; start=1 where the first update copies",
        "torch.optim.swa_utils; timm ModelEma and ModelEmaV2; most training loops",
        "exponential:beta=0.999",
        (
            Key("beta", "decay of an update", BETA),
            Key("halflife", "half-life in steps", POSITIVE),
            EVERY,
            START,
        ),
        _exponential,
        one_of=("beta", "halflife"),
        closed=_exponential_profile,
    ),
    LawForm(
        "warmup",
        "decay min(beta, (1 + n)/(10 + n)) at the n-th update, from a copy of the initial weights",
        "torch_ema, ema.py; LitEma of latent-diffusion; tf.train.ExponentialMovingAverage",
        "warmup:beta=0.9999",
        (Key("beta", "the greatest decay", BETA), EVERY, START),
        _warmup,
        one_of=("beta",),
    ),
    LawForm(
        "rampup",
        "half-life min(halflife, ratio * t), t the time before the step; the first step copies",
        "NVlabs/edm, training/training_loop.py, where time counts images",
        "rampup:halflife=500000,ratio=0.05,batch=512",
        (
            Key("halflife", "the longest half-life, in steps, or images with batch", POSITIVE),
            Key("ratio", "half-life as a fraction of the time so far", POSITIVE, 0.05),
            Key("batch", "images of a step, where time counts images", POSITIVE, 1),
            EVERY,
            START,
        ),
        _rampup,
        one_of=("halflife",),
    ),
    LawForm(
        "uniform",
        "the plain mean over a window that ends now",
        "stochastic weight averaging",
        "uniform:last=0.2",
        (Key("last", "the window: up to 1 a fraction of the run, above 1 steps", POSITIVE),),
        one_of=("last",),
        closed=_uniform_profile,
    ),
    LawForm(
        "raw",
        "the weights as they are, not averaged",
        "every trainer",
        "raw",
        (),
        closed=_raw_profile,
    ),
)

#: the laws by name.
LAWS: Mapping[str, LawForm] = {form.name: form for form in _FORMS}
