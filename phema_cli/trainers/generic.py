"""What no trainer's module knows: state dicts, averages by the word for them, any clock."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace

from phema_cli.errors import InputError
from phema_cli.trainers.base import Clock, Series, StoredFile, Tensors, number, under, without
from phema_cli.trainers.names import clock_in, epoch_in
from phema_cli.trainers.nested import AVERAGE, AVERAGE_NAME, TOP, is_state

#: words for networks that follow another one, by an average or otherwise.
_FOLLOWS = re.compile(r"(teacher|target|mean|momentum|slow|old)(_\w+)?", re.I)
#: what wrappers put before the names of what they hold.
_WRAPPERS = ("module.", "_orig_mod.", "ema_model.", "ema.", "model.")
#: entries that count updates, the most exact first.
_STEPS = (
    *("global_step", "global_steps", "optimization_step", "step", "steps", "update", "updates"),
    *("num_updates", "iteration", "iter", "iter_num", "n_iter", "train_steps", "train_step"),
    *("current_step", "step_count", "total_steps_done"),
)
_OFFERED = 8


def series_of(
    file: StoredFile, known: Sequence[Series], passed: Collection[str] = ()
) -> tuple[Series, ...]:
    """The series in dicts and lists that no trainer's module has read.

    Args:
        file: what was found.
        known: the series that trainers' modules have read.
        passed: keys of dicts and lists that are of no use, as they know.

    Raises:
        InputError: several networks could be meant.
    """
    taken = {s.within for s in known} | set(passed)
    if weights := [s for s in known if s.role != "average"]:
        # What else there is belongs to the trainer whose weights these are, but their averages.
        found = (Series(t, "average", k) for k, t in file.dicts.items() if k not in taken)
        return tuple(
            s
            for s in found
            if _is_average(s.within) and any(align(s.tensors, w.tensors) for w in weights)
        )
    dicts = {k: _weights(k, t) for k, t in file.dicts.items() if k not in taken}
    lists = {k: t for k, t in file.lists.items() if k not in taken}
    averages = [Series(t, "average", k) for k, t in dicts.items() if _is_average(k)]
    averages += [Series(t, "average", k, unnamed=True) for k, t in lists.items() if _is_average(k)]
    plain = {k: t for k, t in dicts.items() if not _is_average(k)}
    if not (plain or averages or known):
        return _alone([Series(t, within=k, unnamed=True) for k, t in lists.items()])
    if TOP in plain and len(plain) > 1 and _is_beside(plain[TOP], averages):
        del plain[TOP]
    split = [s for k, t in plain.items() for s in _split(k, t)]
    averages += [s for s in split if s.role == "average"]
    networks = [s for s in split if s.role != "average"]
    if not (averages or known):
        return _alone(networks)
    return (*averages, *_fellows(networks, [*averages, *known]))


def _alone(networks: list[Series]) -> tuple[Series, ...]:
    """The only network in a file, which is whatever the user says.

    Raises:
        InputError: there are several.
    """
    if len(networks) > 1:
        raise _several(networks)
    return tuple(networks)


def _fellows(networks: list[Series], averages: list[Series]) -> list[Series]:
    """The raw weights that averages are of.

    Raises:
        InputError: there are several networks, or one that the averages don't fit.
    """
    for one in networks:
        fits = (a.unnamed or align(a.tensors, one.tensors) is not None for a in averages)
        if len(networks) > 1 or not any(fits):
            raise _several([*averages, *networks])
    return [replace(s, role="raw") for s in networks]


def _several(found: list[Series]) -> InputError:
    """The error for several networks."""
    keys = [s.key for s in found]
    more = f" and {len(keys) - _OFFERED} others" if len(keys) > _OFFERED else ""
    return InputError(
        f"holds {len(keys)} dicts of tensors",
        remedy=f"pass --key with one of {', '.join(keys[:_OFFERED])}{more}",
    )


def _weights(key: str, tensors: Tensors) -> Tensors:
    """A dict without what is an optimizer's, where the whole state lies in one."""
    if key != TOP or not any(is_state(n) for n in tensors):
        return tensors
    kept = {n: t for n, t in tensors.items() if not is_state(n)}
    return kept or tensors


def _is_average(key: str) -> bool:
    return key != TOP and AVERAGE.search(key) is not None


def _is_beside(top: Tensors, averages: list[Series]) -> bool:
    """Whether the top level's tensors are counters and schedules beside dicts of weights.

    They are the model's own where an average has some of them, and where one is a matrix.
    """
    own = any(not top.keys().isdisjoint(s.tensors) for s in averages)
    return not own and all(len(t.shape) <= 1 for t in top.values())


def _split(key: str, tensors: Tensors) -> Iterator[Series]:
    """A dict's series: an average among the raw weights goes by the first part of its names.

    Raises:
        InputError: a second network of the same names follows the first, by who knows what.
    """
    heads = dict.fromkeys(n.partition(".")[0] for n in tensors if "." in n)
    words = [h for h in heads if AVERAGE_NAME.fullmatch(h)]
    parts = [(f"{h}.", under(tensors, f"{h}.")) for h in words]
    rest: Tensors = {n: t for n, t in tensors.items() if n.partition(".")[0] not in words}
    if not any(_floats(rest)) and len(parts) == 1:
        yield Series(unwrapped(parts[0][1]), "average", key, parts[0][0])
        return
    averages = [(p, t) for p, t in parts if align(t, rest) is not None]
    if averages:
        rest = without(tensors, *(p for p, _ in averages))
    for head in (h for h in heads if _FOLLOWS.fullmatch(h)):
        if align(under(tensors, f"{head}."), without(rest, f"{head}.")) is not None:
            raise InputError(
                f"holds two networks of the same names, one below {head}.",
                remedy=f"pass --key {head}, or --key with the prefix of the other",
            )
    yield Series(rest, "raw" if averages else "unknown", key)
    for prefix, found in averages:
        yield Series(found, "average", key, prefix)


def _floats(tensors: Tensors) -> Iterator[str]:
    """Names of what is averaged: floats of at least one dimension."""
    return (n for n, t in tensors.items() if t.dtype.kind == "float" and t.shape)


def unwrapped(tensors: Tensors) -> Tensors:
    """The tensors without what wrappers put before all their names, and without their counters."""
    while True:
        floats = list(_floats(tensors))
        prefix = next((w for w in _WRAPPERS if floats and all(n.startswith(w) for n in floats)), "")
        # A model's own first part may be called so; wrappers hold that, too.
        if not prefix or prefix == "model.":
            return tensors
        tensors = under(tensors, prefix)


def align(average: Tensors, raw: Tensors) -> dict[str, str] | None:
    """The raw weights' names of an average's tensors: equal, or behind prefixes on both sides.

    Returns:
        The raw weights' name by the average's own, None where some float tensor has no fellow of
        its shape. Counters have none.
    """
    cut = ""
    while True:
        inner = under(average, cut) if cut else average
        floats = list(_floats(inner))
        if not floats:
            return None
        prefix = _prefix(inner, floats, raw)
        if prefix is not None:
            return {cut + n: prefix + n for n in inner if prefix + n in raw}
        more = next((w for w in _WRAPPERS if all(n.startswith(w) for n in floats)), None)
        if more is None:
            return None
        cut += more


def _prefix(average: Tensors, floats: list[str], raw: Tensors) -> str | None:
    """What stands before all names of an average in those of the raw weights, None if nothing."""
    longest = max(floats, key=len)
    ends = [n[: -len(longest)] for n in raw if n == longest or n.endswith(f".{longest}")]
    for prefix in sorted(ends, key=len):
        fellows = ((raw.get(prefix + n), average[n]) for n in floats)
        if all(one is not None and one.shape == other.shape for one, other in fellows):
            return prefix
    return None


def labelled(file: StoredFile, one: Series) -> Series:
    """A series that fills its file, called by the word for an average in the file's own name.

    ``step100_ema.pt`` beside ``step100.pt`` is another series, whatever it is.
    """
    said = one.label is not None or one.law is not None or one.index is not None
    if said or one.key != TOP or one.role == "raw":
        return one
    stem = file.file_name.partition(".")[0]
    for name in (stem, *file.folders[:1]):
        if AVERAGE.search(name):
            return replace(one, label=re.sub(r"\d+", "*", name))
    return one


def clock_of(file: StoredFile) -> tuple[Clock | None, Clock | None]:
    """The step and the epoch that a file's own entries say."""
    return _step(file), _epoch(file)


def _step(file: StoredFile) -> Clock | None:
    """The most exact entry that counts updates."""
    for name in _STEPS:
        value = file.number(name)
        if value is None and name in file.metadata:
            value = number(file.metadata[name])
        if value is not None:
            return Clock(value, "steps", name)
    return None


def _epoch(file: StoredFile) -> Clock | None:
    """An epoch, which counts from 0 unless the files show otherwise."""
    value = file.number("epoch")
    if value is None and "epoch" in file.metadata:
        value = number(file.metadata["epoch"])
    return None if value is None else Clock(value, "epochs", "epoch", open=True)


def named_epoch(file: StoredFile) -> Clock | None:
    """The epoch that the snapshot's own name says beside a step, or a directory above it."""
    if (own := epoch_in(file.name)) is not None:
        return own
    return next((c for f in file.folders if (c := epoch_in(f, whole=True)) is not None), None)


def named_clock(file: StoredFile) -> Clock | None:
    """The time that the snapshot's own name says, or that of a directory above it."""
    if (own := clock_in(file.name)) is not None:
        return own
    return next((c for f in file.folders if (c := clock_in(f, whole=True)) is not None), None)
