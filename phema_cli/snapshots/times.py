"""When files were stored: one unit for all, epochs counted as the files count them."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise

from phema_cli.errors import InputError, PhemaError
from phema_cli.profiles.grammar import MOST_EXACT
from phema_cli.request import Config
from phema_cli.snapshots.base import Finding, LeftOutError, Origin, notice, unused
from phema_cli.snapshots.pattern import TIMES
from phema_cli.snapshots.reading import InputFile, UserField
from phema_cli.trainers.base import Clock, parsed
from phema_cli.trainers.clocks import has_number, images

#: entries in which trainers store their settings, and names of the number of epochs among these.
_SETTINGS = ("args", "config", "cfg", "hparams", "hyper_parameters", "opt", "train_args", "params")
_EPOCHS = ("epochs", "num_epochs", "max_epochs", "n_epochs", "num_train_epochs", "max_epoch")
#: updates of an average for each step from which on a law can't count steps.
_MORE_UPDATES = 1.5


class _NoTimeError(InputError):
    """Nothing says when a file was stored."""


def settle_times(files: Sequence[InputFile], config: Config) -> list[Finding]:
    """Set the time of each file, or its error; returns what the user should know of them.

    Raises:
        InputError: steps and epochs order the files differently.
    """
    for file in files:
        try:
            file.time, file.time_origin = _time_of(file, config)
        except PhemaError as error:
            file.time_error = error
    first = _first_epoch(files)
    for file in files:
        if file.time is not None and file.time.open:
            # From here on the value is the number of epochs that are complete.
            file.time = replace(file.time, value=file.time.value + 1 - first, open=False)
    through = _count_through(files, config, first)
    found = _count_updates(files)
    _check_folders(files)
    timed = any(file.time is not None for file in files)
    by_epoch = any(file.time is not None and file.time.unit == "epochs" for file in files)
    if config.steps_per_epoch is not None and not (through or by_epoch):
        found.append(unused("steps_per_epoch", "no snapshot counts epochs"))
    for file in files:
        clock = file.time
        if clock is not None and clock.unit == "epochs" and config.steps_per_epoch is not None:
            steps = clock.value * config.steps_per_epoch
            file.time = replace(clock, value=steps, unit="steps")
        _check(file, timed=timed)
    return found


def _time_of(file: InputFile, config: Config) -> tuple[Clock, Origin]:
    """The time that the user gives, else the one in the file or in its name."""
    if (given := _user_time(file.fields)) is not None:
        return given
    clock, named = file.reading.clock, file.reading.named
    if clock is None:
        raise _NoTimeError(
            "does not say at which step it was stored",
            remedy="pass --pattern with a group step, or give the step in phema.toml",
            option=r"--pattern '(?P<step>\d+)'",
        )
    if clock.doubt is not None:
        raise InputError(clock.doubt, remedy="choose one by --pattern with a group step")
    if not abs(clock.value) <= MOST_EXACT:
        large = f"{clock.value:.10g}, above the limit of {MOST_EXACT}"
        what = large if math.isfinite(clock.value) else "not a number"
        raise InputError(f"its {clock.field} is {what}", remedy="give the step in phema.toml")
    if clock.evidence == "content":
        if named is not None and _contradicts(clock, named):
            raise InputError(
                f"its step is {clock.value:.10g} by its {clock.field} and {named.value:.10g} by "
                "its name",
                remedy="give the right one in phema.toml, or by --pattern with a group step",
            )
        return clock, "content"
    if config.steps_per_epoch is not None and clock.weak and clock.unit == "steps":
        # The number may count anything, and the user says that it counts epochs.
        clock = replace(clock, unit="epochs", open=True)
    return clock, "name"


def _user_time(fields: Mapping[str, UserField]) -> tuple[Clock, Origin] | None:
    """The time in a row of phema.toml or in the groups of a pattern; the most exact counts."""
    name = next((name for name in TIMES if name in fields), None)
    if name is None:
        return None
    text, origin = fields[name]
    value = parsed(text)
    if not abs(value) <= MOST_EXACT:
        raise InputError(f"its {name} is {text!r:.80}, not a number up to {MOST_EXACT}")
    if name == "kimg":
        return Clock(images(int(value)), "images", name), origin
    if name == "epoch":
        return Clock(value, "epochs", name, open=True), origin
    return Clock(value, "steps", name), origin


def _contradicts(clock: Clock, named: Clock) -> bool:
    """Whether a name's step is not that of the content; many trainers differ by one."""
    if named.weak or clock.weak or named.unit != clock.unit:
        return False
    return abs(named.value - clock.value) > 1 and clock.unit == "steps"


def _first_epoch(files: Sequence[InputFile]) -> int:
    """Whether the first epoch is 0 or 1.

    It is 1 if the last one is the number of epochs in the trainer's settings, and 0 if that is one
    more. Else it is 1 if the first of evenly spaced ones is as far from 0 as from the second.
    """
    clocks = [file.time for file in files] + [file.reading.epoch for file in files]
    numbers = sorted({c.value for c in clocks if c is not None and c.unit == "epochs" and c.open})
    if not numbers or numbers[0] < 1:
        return 0
    planned = {
        count
        for file in files
        for count in (file.stored.number(entry, name) for entry in _SETTINGS for name in _EPOCHS)
        if count is not None
    }
    if len(planned) == 1 and (last := planned.pop() - numbers[-1]) in {0, 1}:
        return 0 if last else 1
    gaps = {b - a for a, b in pairwise(numbers)}
    return 1 if gaps == {numbers[0]} else 0


def _count_through(files: Sequence[InputFile], config: Config, first: int) -> bool:
    """Count steps through all epochs where the trainer counts them from 0 in each, if it does.

    Raises:
        InputError: a later epoch has an earlier step, and the length of epochs is not known.
    """
    both = [
        (file.reading.epoch, file.time, file)
        for file in files
        if file.reading.epoch is not None and file.time is not None
        if file.time.unit == "steps" and file.time_origin in {"content", "name"}
    ]
    both.sort(key=lambda entry: (entry[0].value, entry[1].value))
    falls = any(one.value > other.value for (_, one, _), (_, other, _) in pairwise(both))
    # What is stored when training has ended may have its last step and one epoch more.
    alike = len({one.value for _, one, _ in both}) == 1 < len({e.value for e, _, _ in both})
    if not (falls or alike):
        return False
    per_epoch = config.steps_per_epoch
    for epoch, clock, file in both:
        if per_epoch is None or clock.value > per_epoch:
            raise InputError(
                "steps and epochs contradict each other: a later epoch has an earlier step, as if "
                "steps were counted from 0 in every epoch",
                where=file.candidate.name,
                remedy="pass --steps-per-epoch",
                option="--steps-per-epoch N",
            )
        before = epoch.value - (first if epoch.open else 1)
        file.time = replace(clock, value=before * per_epoch + clock.value)
    return True


def _count_updates(files: Sequence[InputFile]) -> list[Finding]:
    """Take the updates of averages as the time where trainers made more of them than steps.

    So it is where gradients are accumulated and an average is updated with every batch: its law
    counts updates.
    """
    steps = [
        (file, file.time, {s.updates for s in file.reading.series if s.updates})
        for file in files
        if file.time is not None and file.time.unit == "steps"
    ]
    more = [
        (file, clock, max(counts))
        for file, clock, counts in steps
        if counts
        and file.time_origin in {"content", "name"}
        and max(counts) > _MORE_UPDATES * clock.value + 1
    ]
    if not more:
        return []
    what = "its average counts {:.10g} updates at step {:.10g}"
    if any(len(counts) != 1 for _, _, counts in steps):
        for file, clock, count in more:
            file.time_error = InputError(
                f"{what.format(count, clock.value)}, and other files count no updates",
                remedy="leave the others out with --exclude, or give all steps in phema.toml as "
                "averages count them",
            )
        return []
    for each, own, (updates,) in steps:
        each.time = replace(own, value=updates, field="number of updates")
    file, clock, count = max(more, key=lambda each: each[2])
    told = f"{what.format(count, clock.value)}: times are these updates"
    return [notice(told, file.candidate.name)]


def _check_folders(files: Sequence[InputFile]) -> None:
    """Set errors of averages that count more updates than the steps of the directory they are in.

    The weights beside them have its steps: ``checkpoint-1000/unet``, beside ``unet_ema``.
    """
    steps = {
        file.candidate.path.parent.parent: file.time.value
        for file in files
        if file.time is not None and file.time.evidence == "folder" and file.time.unit == "steps"
    }
    for file in files:
        clock, step = file.time, steps.get(file.candidate.path.parent.parent)
        if clock is None or step is None or file.time_origin != "content":
            continue
        if clock.value > _MORE_UPDATES * step + 1:
            file.time_error = InputError(
                f"its {clock.field} counts {clock.value:.10g} updates, and the weights beside it "
                f"are of step {step:.10g}",
                remedy="leave these out with --exclude, or take them alone by --raw",
            )


def _check(file: InputFile, *, timed: bool) -> None:
    """Set the error of a time at which nothing can have been stored.

    Where others are ``timed``, a file without a number in its name, as a run's last, is left out.
    """
    clock = file.time
    if clock is not None and clock.value > MOST_EXACT:
        what = f"its {clock.field} is {clock.value:.10g}, above the limit of {MOST_EXACT}"
        file.time_error = InputError(what)
    elif clock is not None and clock.value <= 0:
        file.time_error = LeftOutError("at step 0 there is no average yet")
    elif timed and isinstance(file.time_error, _NoTimeError):
        unnumbered = file.candidate.is_root or not has_number(file.stored.name)
        if unnumbered:
            file.time_error = LeftOutError("nothing says when it was stored")


def in_order(files: Sequence[InputFile]) -> None:
    """Give files without a time one after all others, in their order, where only names count."""
    known = (f.time.value for f in files if f.time is not None and f.time_error is None)
    last = max(known, default=0.0)
    for number, file in enumerate(f for f in files if f.time is None or f.time_error is not None):
        file.time, file.time_error = Clock(last + 1 + number, "steps", "order"), None
        file.time_origin = "order"


def are_counters(files: Sequence[InputFile]) -> bool:
    """Whether the times are numbers without gaps, behind words that may count files or epochs."""
    times = [f.time for f in files if f.time_error is None and f.time_origin == "name"]
    numbers = sorted({t.value for t in times if t is not None and t.weak})
    many = len(numbers) > 2  # noqa: PLR2004 - two have one gap
    return many and all(b - a == 1 for a, b in pairwise(numbers))
