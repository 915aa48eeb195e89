"""Files, or parts of files, that no trainer's module knows: state dicts, averages by a word.

Averages are known by the word for them (``ema``, ``shadow``, ...) in the key of their dict or at
the beginning of their names, and by raw weights of the same names and shapes.
"""

import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace
from typing import Any

from phema_cli.errors import InputError
from phema_cli.trainers.base import Series, StoredFile, Tensors, under, without
from phema_cli.trainers.nested import AVERAGE, AVERAGE_NAME, TOP, is_state

#: words for networks that follow another one, by an average or otherwise.
_FOLLOWS = re.compile(r"(teacher|target|mean|momentum|slow|old)(_\w+)?", re.I)
#: such words anywhere in the name of a part, and the names that what they follow has instead.
_FOLLOWER = re.compile(r"(?:^|_)(?:teacher|target|momentum|ema|slow)(?=_|$)", re.I)
_FOLLOWED = ("", "student", "online")
#: MoCo's encoders of keys and of queries.
_KEYS = re.compile(r"(.*(?:encoder|backbone|net|model))_k", re.I)
#: float tensors from which on a part is a network, and no layer.
_NETWORK = 4
#: prefixes that wrappers put before the names of a model's tensors.
_WRAPPERS = ("module.", "_orig_mod.", "ema_model.", "ema.", "model.")
#: keys that a message lists.
_OFFERED = 8


def series_of(
    file: StoredFile, known: Sequence[Series], ignored: Collection[str]
) -> tuple[Series, ...]:
    """The series in dicts and lists that no trainer's module has read.

    Args:
        file: the file.
        known: the series that trainers' modules have read.
        ignored: keys of dicts and lists that are of no use, by these modules.

    Raises:
        InputError: several networks could be meant.
    """
    read = {s.within for s in known} | set(ignored)
    dicts = {k: t for k, t in file.dicts.items() if k not in read}
    if weights := [s for s in known if s.role != "average"]:
        # Of the other dicts only averages of these weights count.
        return tuple(
            Series(t, "average", k)
            for k, t in dicts.items()
            if _is_average(k) and any(align(t, w.tensors) for w in weights)
        )
    if TOP in dicts:
        # An optimizer's state may be in the same dict.
        dicts[TOP] = {n: t for n, t in dicts[TOP].items() if not is_state(n)} or dicts[TOP]
    lists = {k: t for k, t in file.lists.items() if k not in read}
    averages = [Series(t, "average", k) for k, t in dicts.items() if _is_average(k)]
    averages += [Series(t, "average", k, unnamed=True) for k, t in lists.items() if _is_average(k)]
    plain = {k: t for k, t in dicts.items() if not _is_average(k)}
    if not (plain or averages or known):
        return _only([Series(t, within=k, unnamed=True) for k, t in lists.items()])
    if TOP in plain and len(plain) > 1:
        # Counters and schedules may lie beside dicts of weights. The top level's tensors are the
        # model's own if an average has some of them, or if one is a matrix.
        top = plain[TOP]
        own = any(not top.keys().isdisjoint(s.tensors) for s in averages)
        if not own and all(len(t.shape) <= 1 for t in top.values()):
            del plain[TOP]
    split = [s for k, t in plain.items() for s in _split(k, t)]
    averages += [s for s in split if s.role == "average"]
    networks = [s for s in split if s.role != "average"]
    return (*averages, *_only(networks, [*averages, *known]))


def _only(networks: list[Series], averages: Sequence[Series] = ()) -> tuple[Series, ...]:
    """The only network beside averages, if any: the raw weights of these, if there are some.

    Raises:
        InputError: there are several networks, or one that the averages don't fit.
    """
    if not networks:
        return ()
    fits = any(a.unnamed or align(a.tensors, networks[0].tensors) for a in averages)
    if len(networks) == 1 and (fits or not averages):
        return (replace(networks[0], role="raw"),) if averages else tuple(networks)
    keys = [s.key for s in (*averages, *networks)]
    more = f" and {len(keys) - _OFFERED} others" if len(keys) > _OFFERED else ""
    raise InputError(
        f"holds {len(keys)} dicts of tensors",
        remedy=f"pass --key with one of {', '.join(keys[:_OFFERED])}{more}",
    )


def home_of(file: StoredFile, series: Series, others: Sequence[Series]) -> str:
    """What the file puts before the names of the model's own tensors.

    Args:
        file: the file.
        series: a series of it.
        others: the series that trainers' modules have read. Raw weights beside an average are the
            model; where the user has named the average, a dict that it fits is.
    """
    home = next((s for s in others if s.role == "raw"), None)
    if home is None and _is_average(series.within):
        fits = (
            Series(t, within=k)
            for k, t in file.dicts.items()
            if not _is_average(k) and align(series.tensors, t)
        )
        home = next(fits, None)
    home = home or series
    if home.unnamed:
        return ""
    return ("" if home.within == TOP else f"{home.within}.") + home.prefix


def _is_average(key: str) -> bool:
    return key != TOP and AVERAGE.search(key) is not None


def _split(key: str, tensors: Tensors) -> Iterator[Series]:
    """The series in one dict, by the first part of its names: ``ema.weight`` beside ``weight``.

    Raises:
        InputError: a second network of the same names follows the first, in an unknown way.
    """
    heads = dict.fromkeys(n.partition(".")[0] for n in tensors if "." in n)
    words = [h for h in heads if AVERAGE_NAME.fullmatch(h)]
    parts = [(f"{h}.", under(tensors, f"{h}.")) for h in words]
    rest: Tensors = {n: t for n, t in tensors.items() if n.partition(".")[0] not in words}
    if parts and not _floats(rest):
        if all(align(t, parts[0][1]) for _, t in parts):
            for prefix, average in parts:
                yield Series(_unwrapped(average), "average", key, prefix)
        else:
            yield Series(tensors, "average", key)
        return
    averages = [(p, t, False) for p, t in parts if align(t, rest)]
    # A ParameterList has numbers for names.
    averages += [(p, t, True) for p, t in parts if _is_list_of(t, rest)]
    # What only looks like an average by its name is a part of the network.
    rest = without(tensors, *(p for p, _, _ in averages)) if averages else tensors
    for head in (h for h in heads if _FOLLOWS.fullmatch(h)):
        if align(under(tensors, f"{head}."), without(rest, f"{head}.")):
            raise InputError(
                f"holds two networks of the same names, one below {head}.",
                remedy=f"pass --key {head}, or --key with the prefix of the other",
            )
    yield Series(rest, "raw" if averages else "unknown", key)
    for prefix, average, unnamed in averages:
        yield Series(average, "average", key, prefix, unnamed=unnamed)


def _led(head: str) -> list[str]:
    """What the part that another one follows may be called, by the other one's name."""
    if keys := _KEYS.fullmatch(head):
        return [f"{keys[1]}_q"]
    if not _FOLLOWER.search(head):
        return []
    names = (_FOLLOWER.sub(f"_{word}" if word else "", head, count=1) for word in _FOLLOWED)
    return [name.strip("_") for name in names]


def _is_list_of(numbered: Tensors, tensors: Tensors) -> bool:
    """Whether tensors with numbers for names are most of the others, in their order."""
    if not all(map(str.isdecimal, numbered)):
        return False
    shapes = [tensors[n].shape for n in _floats(tensors)]
    left = iter(shapes)
    # A list of parameters lacks the buffers between them.
    return 2 * len(numbered) > len(shapes) and all(t.shape in left for t in numbered.values())


def followers(tensors: Tensors) -> list[str]:
    """The prefixes of parts that have the names of another part, and may be its average.

    Such are the momentum encoders of self-supervised learning: ``backbone_momentum.`` beside
    ``backbone.``, ``module.encoder_k.`` beside ``module.encoder_q.``.
    """
    prefix = ""
    while True:
        inside = [n[len(prefix) :] for n in tensors]
        heads = dict.fromkeys(n.partition(".")[0] for n in inside)
        if len(heads) != 1 or not all("." in n for n in inside):
            break
        prefix += f"{next(iter(heads))}."
    found = []
    for part in (f"{prefix}{head}." for head in heads if not heads.keys().isdisjoint(_led(head))):
        others = under(without(tensors, part), prefix) if prefix else without(tensors, part)
        own = under(tensors, part)
        if len(_floats(own)) >= _NETWORK and align(own, others):
            found.append(part)
    return found


def _floats(tensors: Tensors) -> list[str]:
    """Names of the tensors that are averaged: floats of at least one dimension."""
    return [n for n, t in tensors.items() if t.dtype.kind == "float" and t.shape]


def _unwrapped(tensors: Tensors) -> Tensors:
    """The tensors without the prefixes of wrappers, and without the wrappers' counters."""
    while True:
        floats = _floats(tensors)
        prefix = next((w for w in _WRAPPERS if floats and all(n.startswith(w) for n in floats)), "")
        # "model." may as well be the model's own, and wrappers hold that, too.
        if not prefix or prefix == "model.":
            return tensors
        tensors = under(tensors, prefix)


def align(average: Tensors, raw: Tensors) -> dict[str, str] | None:
    """The raw weights' names of an average's tensors: equal, or behind prefixes on both sides.

    Returns:
        The raw weights' name by the average's own; counters have none. None if a float tensor has
        no partner of its shape.
    """
    cut = ""
    while True:
        inner = under(average, cut) if cut else average
        floats = _floats(inner)
        if not floats:
            return None
        longest = max(floats, key=len)
        ends = [n[: -len(longest)] for n in raw if n == longest or n.endswith(f".{longest}")]
        for prefix in sorted(ends, key=len):
            partners = ((raw.get(prefix + n), inner[n]) for n in floats)
            if all(one is not None and one.shape == other.shape for one, other in partners):
                return {cut + n: prefix + n for n in inner if prefix + n in raw}
        more = next((w for w in _WRAPPERS if all(n.startswith(w) for n in floats)), None)
        if more is None:
            return None
        cut += more


def completed(file: StoredFile, series: Sequence[Series], hint: str | None) -> tuple[Series, ...]:
    """The series of a file, each with what the others and the file's name say of it.

    Weights of unknown kind are raw if an average of the same names lies beside them. Others, and an
    average that fills its file, are labelled by the word for an average in the file's own name:
    ``step100_ema.pt`` beside ``step100.pt`` is another series. Averages get the names of the raw
    weights.

    Args:
        file: the file.
        series: all series in it.
        hint: the law to propose for its averages, where a trainer's module knows better.
    """
    averages = [s.tensors for s in series if s.role == "average" and not s.unnamed]
    found = []
    for one in series:
        changes: dict[str, Any] = {}
        if one.role == "unknown" and any(align(a, one.tensors) for a in averages):
            changes["role"] = "raw"
        elif (one.role == "unknown" or (one.role == "average" and one.key == TOP)) and (
            one.law is None and one.index is None and one.label is None
        ):
            above = file.folders[:1] if one.key == TOP else ()
            words = (file.file_name.partition(".")[0], *above)
            word = next((w for w in words if AVERAGE.search(w)), None)
            changes["label"] = None if word is None else re.sub(r"\d+", "*", word)
        if hint is not None and one.role == "average":
            changes["hint"] = hint
        found.append(replace(one, **changes))
    raw = next((s.tensors for s in found if s.role == "raw" and not s.unnamed), None)
    if raw is not None:
        for place, one in enumerate(found):
            if one.role == "average" and not one.unnamed and (names := align(one.tensors, raw)):
                tensors = {names[n]: t for n, t in one.tensors.items() if n in names}
                found[place] = replace(one, tensors=tensors)
    return tuple(found)
