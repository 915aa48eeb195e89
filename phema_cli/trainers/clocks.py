"""When a file was stored: by its entries, by its name, in the words that trainers use.

A word may stand anywhere in a snapshot's own name. The name of a directory above it counts only if
it is words with a number each and nothing else.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

from phema_cli.trainers.base import Clock, Evidence, StoredFile, Unit, parsed

#: entries that count updates, the most exact first.
_STEPS = (
    *("global_step", "global_steps", "optimization_step", "step", "steps", "update", "updates"),
    *("num_updates", "iteration", "iter", "iter_num", "n_iter", "train_steps", "train_step"),
    *("current_step", "step_count", "total_steps_done", "it"),
)

_NUMBER = (
    r"(?P<number>\d{1,3}(?:,\d{3})+(?!\d)|\d+(?:\.\d+(?=[kKmMbB](?![a-zA-Z])))?)"
    r"(?P<scale>[kKmMbB]?)"
)
#: behind a number that counts; another number after "_" or "." would make it a part of one.
_END = r"(?![a-zA-Z\d])(?![.,_]\d)"
#: words for what a trainer counts, the clearest first. A weak one may count anything.
_WORDS: tuple[tuple[str, Unit, bool], ...] = (
    (r"k?img", "images", False),
    (r"(?:global[-_]?|train[-_]?|optim[-_]?)?steps?", "steps", False),
    (r"iter(?:ation)?s?", "steps", False),
    (r"updates?|ba", "steps", False),
    (r"epochs?|ep", "epochs", False),
    (r"checkpoint|ckpt|chkpt", "steps", True),
)
_ROWS = tuple(
    (re.compile(pattern + _END, re.IGNORECASE), unit, weak)
    for word, unit, weak in _WORDS
    for pattern in (
        rf"(?:^|(?<=[-_.=\s]))(?P<word>{word})[-_=.]?{_NUMBER}",
        rf"(?:^|(?<=[-_.\s])){_NUMBER}[-_]?(?P<word>{word})(?![-_.=]?\d)",
    )
)
#: a version, and the number of checkpoints that a mean is of.
_NO_TIME = re.compile(r"[-_.]v\d+$|(?:^|[-_.])(?:ave|avg|averaged?)[-_.]?\d+(?:best)?(?![^-_.])")
_BEST = re.compile(r"(?:^|[-_.])(?:best|last|latest|final)(?![^-_.])", re.IGNORECASE)
_SCALES = {"": 1.0, "k": 1e3, "m": 1e6, "b": 1e9}
#: units, the finest first.
_FINEST: tuple[Unit, ...] = ("steps", "images", "epochs")


def clocks_of(
    file: StoredFile, readings: Sequence[Clock]
) -> tuple[Clock | None, Clock | None, Clock | None]:
    """When a file was stored, its epoch, and the time by its name if ``clock`` is from its content.

    Content comes before names, and steps before epochs.

    Args:
        file: the file.
        readings: the clocks that trainers' modules read.
    """
    step = next((c for name in _STEPS if (c := _entry(file, name)) is not None), None)
    # An epoch counts from 0 unless the files show otherwise.
    epoch = _entry(file, "epoch", unit="epochs") or _entry(file, "last_epoch", unit="epochs")
    epoch = next((c for c in readings if c.unit == "epochs"), epoch) or _named(file, _epoch_in)
    named = _named(file, clock_in)
    strong = next((c for c in readings if not c.weak and c.unit != "epochs"), None)
    if step is not None and not step.value and epoch is not None and epoch.value:
        # Such a count begins at 0 in every epoch.
        step = None
    if strong is not None or step is not None:
        own = named if named is not None and named.evidence == "name" else None
        return strong or step, epoch, own
    if named is not None and named.unit != "epochs":
        # The number behind a word that may count anything may be the epoch.
        is_epoch = named.weak and epoch is not None and abs(named.value - epoch.value) <= 1
        if not is_epoch:
            return named, epoch, None
    weak = next((c for c in readings if c.weak), None)
    return epoch or named or weak, epoch, None


def _entry(file: StoredFile, name: str, unit: Unit = "steps") -> Clock | None:
    """The time that an entry at the top level, or in the metadata, gives."""
    value = file.number(name)
    if value is None and name in file.metadata:
        value = parsed(file.metadata[name])
    return None if value is None else Clock(value, unit, name, open=unit == "epochs")


def _named(file: StoredFile, search: Callable[[str, bool], Clock | None]) -> Clock | None:
    """What a search finds in the snapshot's own name, else in that of a directory above it."""
    above = (search(folder, True) for folder in file.folders)
    return search(file.name, False) or next((clock for clock in above if clock), None)


def clock_in(name: str, whole: bool = False) -> Clock | None:
    """The time in a name: of several units the finest.

    Args:
        name: without ending.
        whole: whether the name must be words and numbers, as those of directories must.
    """
    found: dict[Unit, Clock] = {}
    for clock in _clocks(name, whole):
        other = found.setdefault(clock.unit, clock)
        if other.weak and not clock.weak:
            found[clock.unit] = clock
        elif other.value != clock.value and not clock.weak:
            both = f"{other.value:.10g} and {clock.value:.10g} {clock.unit}"
            found[clock.unit] = replace(other, doubt=f"its name gives two times, {both}")
    # A weak word counts only if no other word is there.
    ordered = sorted(found.values(), key=lambda clock: (clock.weak, _FINEST.index(clock.unit)))
    return next(iter(ordered), None)


def _epoch_in(name: str, whole: bool) -> Clock | None:
    """The first epoch in a name, whatever else it counts."""
    return next((clock for clock in _clocks(name, whole) if clock.unit == "epochs"), None)


def _clocks(name: str, whole: bool) -> Iterator[Clock]:
    """Each time in a name."""
    evidence: Evidence = "folder" if whole else "name"
    if whole and not _is_whole(name):
        return
    for row, unit, weak in _ROWS:
        for match in row.finditer(name):
            value = float(match["number"].replace(",", "")) * _SCALES[match["scale"].lower()]
            word = match["word"].lower()
            if word == "kimg":
                value = images(int(value))
            yield Clock(value, unit, word, evidence, weak, unit == "epochs")


def _is_whole(name: str) -> bool:
    """Whether a name is words with a number each: ``step-1000``, ``epoch0-global_step1000``."""
    left = name
    for row, _, _ in _ROWS:
        left = row.sub("", left)
    return not left.strip("-_")


def has_number(name: str) -> bool:
    """Whether a name has a number that may be a time, which that in ``last-v1`` is not."""
    return any(character.isdigit() for character in _NO_TIME.sub("", name))


def is_numbered(name: str) -> bool:
    """Whether a name is that of one checkpoint among many; ``best_800`` may be a copy of one."""
    return has_number(name) and _BEST.search(name) is None


def images(kimg: int) -> float:
    """Images shown by EDM2's count of thousands: whole batches of 1024 (nimg // 1000)."""
    return float((kimg * 1000 + 999) // 1024 * 1024)
