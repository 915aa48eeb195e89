"""What no trainer's module knows: state dicts, averages by the word for them, any clock."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import replace

from phema_cli.errors import InputError
from phema_cli.trainers.base import Clock, Series, StoredFile, Tensors, number, under
from phema_cli.trainers.names import clock_in
from phema_cli.trainers.nested import TOP, is_state

#: words in the key of a dict, or in the prefix of names, that make an average of what lies there.
_AVERAGE = re.compile(r"(^|[._])(\w*ema\d*|averaged?|avg|shadow\w*|swa|polyak)([._]|$)", re.I)
#: entries that count updates, the most exact first.
_STEPS = (
    *("global_step", "global_steps", "optimization_step", "step", "steps", "update", "updates"),
    *("num_updates", "iteration", "iter", "iter_num", "n_iter", "train_steps", "train_step"),
    *("current_step", "step_count", "total_steps_done"),
)
_OFFERED = 8
#: what names begin with in a model that was wrapped for several devices, or compiled.
_WRAPPERS = ("module.", "_orig_mod.")


def series_of(file: StoredFile, known: Sequence[Series]) -> tuple[Series, ...]:
    """The series in dicts and lists that no trainer's module has read.

    Args:
        file: what was found.
        known: the series that trainers' modules have read.

    Raises:
        InputError: several networks could be meant.
    """
    taken = {s.within for s in known}
    if any(s.role != "average" for s in known):
        # What else there is belongs to the trainer whose weights these are.
        return ()
    dicts = {k: _weights(k, t) for k, t in file.dicts.items() if k not in taken}
    lists = {k: t for k, t in file.lists.items() if k not in taken}
    averages = [Series(t, "average", k) for k, t in dicts.items() if _is_average(k)]
    averages += [Series(t, "average", k, unnamed=True) for k, t in lists.items() if _is_average(k)]
    plain = {k: t for k, t in dicts.items() if not _is_average(k)}
    if not (plain or averages or known):
        return _alone([Series(t, within=k, unnamed=True) for k, t in lists.items()])
    if TOP in plain and len(plain) > 1 and not _is_whole(plain[TOP], averages):
        # Single tensors beside dicts of them are counters and schedules.
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
        InputError: there are several networks.
    """
    fitting = [
        s
        for s in networks
        if any(a.unnamed or align(a.tensors, s.tensors) is not None for a in averages)
    ]
    if len(networks) > 1:
        raise _several([*averages, *networks])
    return [replace(s, role="raw") for s in fitting]


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
    return key != TOP and _AVERAGE.search(key) is not None


def _is_whole(top: Tensors, averages: list[Series]) -> bool:
    """Whether the top level's tensors are the model's own: those of an average beside them."""
    return any(not top.keys().isdisjoint(s.tensors) for s in averages)


def _split(key: str, tensors: Tensors) -> Iterator[Series]:
    """A dict's series: an average among the raw weights goes by the first part of its names."""
    heads = dict.fromkeys(n.partition(".")[0] for n in tensors if "." in n)
    words = [h for h in heads if _AVERAGE.fullmatch(h)]
    parts = [(f"{h}.", under(tensors, f"{h}.")) for h in words]
    whole = [(p, t) for p, t in parts if len(t) == len(tensors)]
    if whole:
        yield Series(whole[0][1], "average", key, whole[0][0])
        return
    rest = {n: t for n, t in tensors.items() if n.partition(".")[0] not in words}
    averages = [(p, t) for p, t in parts if align(t, rest) is not None]
    if averages:
        rest = {n: t for n, t in tensors.items() if not n.startswith(tuple(p for p, _ in averages))}
    yield Series(rest if averages else tensors, "raw" if averages else "unknown", key)
    for prefix, found in averages:
        yield Series(found, "average", key, prefix)


def align(average: Tensors, raw: Tensors) -> dict[str, str] | None:
    """The raw weights' names of an average's tensors: equal, or behind one prefix.

    Either may have been wrapped, for several devices or by a compiler.

    Returns:
        The raw weights' name by the average's own, None where some float tensor has no fellow of
        its shape.
    """
    wrapped = ""
    while (found := _below(average, raw, wrapped)) is None:
        more = next((w for w in _WRAPPERS if all(n.startswith(wrapped + w) for n in average)), None)
        if more is None or not average:
            return None
        wrapped += more
    return found


def _below(average: Tensors, raw: Tensors, wrapped: str) -> dict[str, str] | None:
    """The raw weights' names of an average's tensors, whose own begin with what wraps them."""
    own = {n[len(wrapped) :]: n for n in average}
    floats = [n for n, given in own.items() if average[given].dtype.kind == "float"]
    if not floats:
        return None
    longest = max(floats, key=len)
    ends = [n[: -len(longest)] for n in raw if n == longest or n.endswith(f".{longest}")]
    for prefix in sorted(ends, key=len):
        if all(
            (fellow := raw.get(prefix + n)) is not None and fellow.shape == average[own[n]].shape
            for n in floats
        ):
            return {given: prefix + n for n, given in own.items() if prefix + n in raw}
    return None


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


def named_clock(file: StoredFile) -> Clock | None:
    """The time that the snapshot's own name says, or that of a directory above it."""
    if (own := clock_in(file.name)) is not None:
        return own
    return next((c for f in file.folders if (c := clock_in(f, whole=True)) is not None), None)
