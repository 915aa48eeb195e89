"""When snapshots were stored: one unit for all, epochs counted as the files count them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from phema_cli.errors import InputError, PhemaError
from phema_cli.profiles.grammar import MOST_EXACT
from phema_cli.request import Config
from phema_cli.snapshots.pattern import TIMES
from phema_cli.snapshots.resolve import Item, LeftOutError, Said
from phema_cli.snapshots.tags import Origin
from phema_cli.trainers.base import Clock, number
from phema_cli.trainers.names import has_number, images


@dataclass(frozen=True, slots=True)
class Time:
    """When a file was stored.

    Attributes:
        clock: how much had been done.
        origin: where that was read.
    """

    clock: Clock
    origin: Origin


def settle_times(items: Sequence[Item], config: Config) -> dict[int, Time | PhemaError]:
    """The time of each item, by its place; or why it has none.

    Raises:
        InputError: steps and epochs order the files differently.
    """
    told: dict[int, Time | PhemaError] = {}
    for place, item in enumerate(items):
        try:
            told[place] = _told(item)
        except PhemaError as error:
            told[place] = error
    if config.steps_per_epoch is not None:
        told = {p: _as_epoch(t) if isinstance(t, Time) else t for p, t in told.items()}
    first = _first_epoch(items, told)
    counted = {p: _counted(t, first) if isinstance(t, Time) else t for p, t in told.items()}
    counted = _within_epochs(items, counted, config, first)
    if config.steps_per_epoch is not None:
        counted = {p: _in_steps(t, config.steps_per_epoch) for p, t in counted.items()}
    timed = any(isinstance(t, Time) for t in counted.values())
    return {p: _checked(items[p], t, timed=timed) for p, t in counted.items()}


def _told(item: Item) -> Time:
    """The time that the user says, else what the file or its name does."""
    if (said := _by_user(item.said)) is not None:
        return Time(*said)
    clock, named = item.reading.clock, item.reading.named
    if clock is None:
        raise _NoTimeError(
            "says no step",
            remedy="pass --pattern with a group step, or say it in phema.toml",
            option=r"--pattern '(?P<step>\d+)'",
        )
    if clock.doubt is not None:
        raise InputError(clock.doubt, remedy="say which by --pattern with a group step")
    if not abs(clock.value) <= MOST_EXACT:
        what = f"its {clock.field} is {clock.value:.10g}: more than can be"
        if not math.isfinite(clock.value):
            what = f"its {clock.field} is not a number"
        raise InputError(what, remedy="say it in phema.toml")
    if named is not None and _contradicts(clock, named):
        raise InputError(
            f"its step is {clock.value:.10g} by its {clock.field} and {named.value:.10g} by its "
            "name",
            remedy="say which in phema.toml, or by --pattern with a group step",
        )
    return Time(clock, "content" if clock.evidence == "content" else "name")


def _as_epoch(time: Time) -> Time:
    """A number that may count anything, of which the user says that it counts epochs."""
    clock = time.clock
    if not clock.weak or time.origin != "name" or clock.unit != "steps":
        return time
    return replace(time, clock=replace(clock, unit="epochs", open=True))


class _NoTimeError(InputError):
    """Nothing says when a file was stored."""


def _by_user(said: Mapping[str, Said]) -> tuple[Clock, Origin] | None:
    """What a row of phema.toml or the groups of a pattern say; the most exact counts."""
    for name in TIMES:
        if name not in said:
            continue
        text, origin = said[name]
        value = number(text)
        if not abs(value) <= MOST_EXACT:
            raise InputError(f"its {name} is {text!r:.80}, no number up to {MOST_EXACT}")
        if name == "kimg":
            return Clock(images(int(value)), "images", name), origin
        if name == "epoch":
            return Clock(value, "epochs", name, open=True), origin
        return Clock(value, "steps", name), origin
    return None


def _contradicts(clock: Clock, named: Clock) -> bool:
    """Whether a name's step is another one than the content's; one more or less is a habit."""
    if named.weak or clock.weak or named.unit != clock.unit or clock.evidence != "content":
        return False
    return abs(named.value - clock.value) > 1 and clock.unit == "steps"


#: where trainers keep the number of epochs that they were asked for.
_PLANS = ("args", "config", "cfg", "hparams", "hyper_parameters", "opt", "train_args", "params")
_PLANNED = ("epochs", "num_epochs", "max_epochs", "n_epochs", "num_train_epochs", "max_epoch")


def _first_epoch(items: Sequence[Item], told: Mapping[int, Time | PhemaError]) -> int:
    """Whether the first epoch is 0 or 1.

    It is 1 where the last one is the number of epochs that the trainer was asked for; where files
    don't say that number, if the first of evenly spaced ones is as far from 0 as from the second.
    """
    clocks = [t.clock for t in told.values() if isinstance(t, Time)]
    clocks += [item.reading.epoch for item in items if item.reading.epoch is not None]
    numbers = sorted({c.value for c in clocks if c.unit == "epochs" and c.open})
    if not numbers or numbers[0] < 1:
        return 0
    planned = {
        n
        for item in items
        for n in (item.file.number(place, name) for place in _PLANS for name in _PLANNED)
        if n is not None
    }
    if planned:
        return 1 if planned == {numbers[-1]} else 0
    gaps = {b - a for a, b in pairwise(numbers)}
    return 1 if gaps == {numbers[0]} else 0


def _counted(time: Time, first: int) -> Time:
    """The time with the number of epochs that were complete."""
    clock = time.clock
    if not clock.open:
        return time
    return replace(time, clock=replace(clock, value=clock.value + 1 - first, open=False))


def _within_epochs(
    items: Sequence[Item],
    told: Mapping[int, Time | PhemaError],
    config: Config,
    first: int,
) -> dict[int, Time | PhemaError]:
    """Steps that begin anew in every epoch, counted through; refused without their number.

    Raises:
        InputError: a later epoch has an earlier step, and nothing says how long epochs are.
    """
    both = [
        (item.reading.epoch, time.clock, place)
        for place, item in enumerate(items)
        if item.reading.epoch is not None and isinstance(time := told[place], Time)
        if time.clock.unit == "steps" and time.origin in {"content", "name"}
    ]
    both.sort(key=lambda entry: (entry[0].value, entry[1].value))
    if not any(
        before.value < after.value and one.value >= other.value
        for (before, one, _), (after, other, _) in pairwise(both)
    ):
        return dict(told)
    per_epoch, result = config.steps_per_epoch, dict(told)
    for epoch, clock, place in both:
        if per_epoch is None or clock.value > per_epoch:
            raise InputError(
                "steps and epochs contradict each other: a later epoch has an earlier step, as "
                "where steps are counted from 0 in every epoch",
                where=items[place].candidate.name,
                remedy="pass --steps-per-epoch",
                option="--steps-per-epoch N",
            )
        before = epoch.value - (first if epoch.open else 1)
        time = result[place]
        if isinstance(time, Time):
            value = before * per_epoch + clock.value
            result[place] = replace(time, clock=replace(clock, value=value))
    return result


def _in_steps(time: Time | PhemaError, per_epoch: float) -> Time | PhemaError:
    """Epochs as steps."""
    if not isinstance(time, Time) or time.clock.unit != "epochs":
        return time
    clock = replace(time.clock, value=time.clock.value * per_epoch, unit="steps")
    return replace(time, clock=clock)


def _checked(item: Item, time: Time | PhemaError, *, timed: bool) -> Time | PhemaError:
    """The time, if something can have been stored then.

    A file without a number in its name, as the last one of a run, is left out where others have
    times.
    """
    if isinstance(time, _NoTimeError):
        if timed and (item.candidate.is_root or not has_number(item.file.name)):
            return LeftOutError("nothing says when it was stored")
        return time
    if not isinstance(time, Time):
        return time
    if time.clock.value > MOST_EXACT:
        return InputError(f"its {time.clock.field} is {time.clock.value:.10g}: more than can be")
    if time.clock.value <= 0:
        return LeftOutError("step 0 holds no average yet")
    return time


def are_counters(times: Sequence[Time]) -> bool:
    """Whether times are numbers without gaps, behind words that may count files or epochs."""
    numbers = sorted({t.clock.value for t in times if t.clock.weak and t.origin == "name"})
    many = len(numbers) > 2  # noqa: PLR2004 - two have one gap
    return many and all(b - a == 1 for a, b in pairwise(numbers))
