"""What averages are averages of: by the user's word first, then by the file's."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TypeVar

from phema_cli.errors import InputError, PhemaError, UsageError
from phema_cli.profiles import Law
from phema_cli.request import Config
from phema_cli.snapshots.base import Finding, LeftOutError, Origin
from phema_cli.snapshots.reading import Draft
from phema_cli.snapshots.spacing import space_by_count, spaced
from phema_cli.trainers.base import Role, Series
from phema_cli.trainers.nested import AVERAGE
from phema_cli.trainers.registry import parse_law

#: largest difference of cumulative weights up to which two laws count as one.
_ALIKE = 0.01
_DIGITS = 9
_Value = TypeVar("_Value")
#: the law that a group of a pattern, or a field of a row in phema.toml, gives.
_LAWS = {
    "gamma": "{power}gamma={0}",
    "sigma_rel": "{power}sigma_rel={0}",
    "beta": "exponential:beta={0}",
    "average": "{0}",
}
#: laws whose decay is the same from the first update on, or that have none.
_EVEN = {"exponential", "power", "uniform", "raw"}


def settle_laws(drafts: Sequence[Draft], config: Config) -> list[Finding]:
    """Set the law of each draft, or its error; returns what is assumed of them.

    Raises:
        UsageError: an option fits no average, or several.
    """
    _pair(drafts)
    for draft in drafts:
        _law_by_fields(draft, config)
    if config.averages:
        _laws_by_averages(drafts, config)
    if config.gammas:
        _laws_by_gammas(drafts, config)
    if config.is_raw:
        _raw_alone(drafts, config)
    _leave_out_odd(drafts)
    for draft in [d for d in drafts if not d.settled]:
        _law_by_file(draft, config)
    if config.update_every is None:
        return space_by_count(drafts, trusted=config.trust_tags)
    if drafts and all(d.law is not None and d.law.name == "raw" for d in drafts):
        raise UsageError("--update-every is about averages, and there are none")
    return []


def do_without_laws(drafts: Sequence[Draft]) -> None:
    """Take averages as they are, where what is made of them does not depend on their laws."""
    for draft in drafts:
        if draft.law is None and not isinstance(draft.error, LeftOutError):
            draft.law, draft.error = parse_law("raw"), None
            draft.law_unknown = True


def _says_average(draft: Draft) -> bool:
    """Whether a file's own name says that it is an average; that of a directory says nothing."""
    return AVERAGE.search(draft.file.stored.file_name.partition(".")[0]) is not None


def _pair(drafts: Sequence[Draft]) -> None:
    """Files that are named after an average are averages if others have the same times.

    The others are the raw weights then: ``ema.safetensors`` beside ``model/``.
    """
    unknown = [d for d in drafts if d.series.role == "unknown"]
    named = [d for d in unknown if _says_average(d)]
    others = [d for d in unknown if not _says_average(d)]
    if named and _times(named) == _times(others) and None not in _times(named):
        for draft in unknown:
            role: Role = "average" if _says_average(draft) else "raw"
            draft.series = replace(draft.series, role=role)


def _leave_out_odd(drafts: Sequence[Draft]) -> None:
    """Leave out the few that only their own names call averages, beside known raw weights."""
    raw = sum(d.series.role == "raw" for d in drafts)
    unknown = [d for d in drafts if d.series.role == "unknown" and not d.settled]
    named = [d for d in unknown if _says_average(d)]
    for draft in named if len(named) < raw else ():
        draft.error = LeftOutError(
            "its name says that it is an average, and nothing says which (pass --select to use it "
            "alone)"
        )


def _times(drafts: Sequence[Draft]) -> set[float | None]:
    clocks = (d.file.reading.clock for d in drafts)
    return {None if clock is None else clock.value for clock in clocks}


def _law_by_fields(draft: Draft, config: Config) -> None:
    """The law that the user gives for one file, in phema.toml or by the groups of a pattern."""
    fields, series = draft.file.fields, draft.series
    if "index" in fields:
        index = fields["index"][0]
        if index.isdecimal() and len(index) <= _DIGITS:
            draft.series = series = replace(series, index=int(index), first_index=None)
        else:
            draft.error = InputError(f"its index is {index!r:.80}, not a number")
    given = [name for name in _LAWS if name in fields]
    if len(given) > 1:
        what = f"the pattern finds {' and '.join(given)}, which say the same thing"
        draft.error = InputError(what, remedy="keep one of these groups")
    elif given:
        value, origin = fields[given[0]]
        try:
            law = parse_law(_LAWS[given[0]].format(value, power=_power(series)))
        except PhemaError as error:
            draft.error = InputError(error.what, remedy=error.remedy)
            return
        # An average is meant, and not the raw weights beside it.
        roles = {s.role for s in draft.file.reading.series}
        if law.name == "raw" or not (series.role == "raw" and "average" in roles):
            _take(draft, law, origin, config)


def _power(series: Series) -> str:
    """The beginning of the law of a gamma, in the words of ``--average``.

    A trainer that does not update at every step is taken to do so unless the user says otherwise.
    """
    return "power:" if series.power == "power" else f"{series.power}:every=1,"


def _laws_by_averages(drafts: Sequence[Draft], config: Config) -> None:
    """``--average``: a law for the one average that lacks it, or several by ``--key``."""
    laws = [parse_law(text) for text in config.averages]
    for draft, law in _assigned(drafts, laws, config, "--average", "leave --average out"):
        _take(draft, law, config.origin, config)
        _check_hidden(draft, config)


def _check_hidden(draft: Draft, config: Config) -> None:
    """Refuse a law for weights of unknown kind if state beside them may be the average."""
    if draft.series.role != "unknown" or config.keys or config.trust_tags:
        return
    stored = draft.file.stored
    hidden = [k for k in stored.everything if k not in stored.dicts and AVERAGE.search(k)]
    if hidden and hidden[0] not in stored.lists:
        draft.error = InputError(
            f"also has {hidden[0]}, which may be the average",
            remedy=f"pass --key {hidden[0]}, or --trust-tags to insist on {draft.series.key}",
        )


def _assigned(
    drafts: Sequence[Draft], values: Sequence[_Value], config: Config, option: str, instead: str
) -> Iterator[tuple[Draft, _Value]]:
    """The drafts that an option is about, each with its value.

    Args:
        drafts: all series.
        values: what it gives.
        config: the user's options.
        option: as messages call it.
        instead: what to do where it is about no average.

    Raises:
        UsageError: that is not clear.
    """
    free = [d for d in drafts if not d.settled]
    if len(values) > 1:
        if len(values) != len(config.keys):
            raise UsageError(
                f"{option} gives {len(values)} averages, and --key names {len(config.keys)} series",
                remedy=f"pass --key with as many names, in the order of {option}",
            )
        for key, value in zip(config.keys, values, strict=True):
            yield from ((d, value) for d in free if key in {d.series.key, d.series.within})
        return
    unknown = [d for d in free if d.series.role != "raw" and d.series.law is None]
    known = [d for d in free if d.series.role != "raw" and d.series.law is not None]
    # Raw weights are meant only where there is no average that another option is about.
    stated = any(d.law is not None and d.law.name != "raw" for d in drafts)
    meant = unknown or known or ([] if stated else free)
    if not unknown and not config.insists:
        return
    if not meant and any(d.error for d in drafts):
        # The errors of the files say more.
        return
    if len({d.group for d in meant}) != 1:
        names = ", ".join(sorted({_name(d.series) for d in meant}))
        by_key = len({d.series.key for d in meant}) > 1
        raise UsageError(
            f"{option} is about one average, and "
            + (f"there are several: {names}" if meant else "there is none"),
            remedy="pass --key with one of them" if by_key else instead,
        )
    yield from ((d, values[0]) for d in meant)


def _name(series: Series) -> str:
    """The name of a series for users."""
    if series.index is not None:
        return f"index {series.index}"
    if series.key != ".":
        return series.key
    return parse_law(series.law).label if series.law else "the files without a law"


def _laws_by_gammas(drafts: Sequence[Draft], config: Config) -> None:
    """``--gammas``: by the index in names, by the order of ``--key``, or one for all."""
    numbered = [d for d in drafts if d.series.index is not None and not d.settled]
    if numbered:
        _laws_by_index(numbered, config)
        return
    count = len(config.gammas)
    if count in {1, len(config.keys)}:
        instead = "leave it out; a target is --gamma or --sigma-rel"
        option = "--gammas (or --sigma-rels)"
        for draft, gamma in _assigned(drafts, config.gammas, config, option, instead):
            law = parse_law(f"{_power(draft.series)}gamma={gamma:.17g}")
            _take(draft, law, config.origin, config)
    elif config.insists:
        raise UsageError(
            f"{_given(config.gammas)}, and the names have no index to assign them by",
            remedy="pass --pattern with a group index, or --key with as many names",
        )


def _laws_by_index(numbered: Sequence[Draft], config: Config) -> None:
    """``--gammas`` for averages whose names have an index, in its order."""
    gammas, indices = config.gammas, {d.series.index for d in numbered}
    # Trainers know where they begin to count; otherwise the indices show it.
    first = next((d.series.first_index for d in numbered if d.series.first_index is not None), None)
    if len(gammas) == len(indices) == 1:
        # Others were left out, and their values too.
        first = numbered[0].series.index or 0
    elif first is None:
        first = 1 if indices == set(range(1, len(gammas) + 1)) else 0
    used: set[int] = set()
    for draft in numbered:
        place = (draft.series.index or 0) - first
        if 0 <= place < len(gammas):
            used.add(place)
            law = parse_law(f"{_power(draft.series)}gamma={gammas[place]:.17g}")
            _take(draft, law, config.origin, config)
        else:
            draft.error = InputError(
                f"its index is {draft.series.index}, but {_given(gammas)}",
                remedy="pass --gammas or --sigma-rels with one value for each average",
            )
    unused = [gamma for place, gamma in enumerate(gammas) if place not in used]
    if unused and config.insists and not any(d.error for d in numbered):
        raise UsageError(
            f"{_given(gammas)}, but the names count {len(used)}: gamma {unused[0]:.6g} is not used",
            remedy="pass one value for each average",
        )


def _given(gammas: Sequence[float]) -> str:
    """How many averages ``--gammas`` or ``--sigma-rels`` are about."""
    return "one average is given" if len(gammas) == 1 else f"{len(gammas)} averages are given"


def _raw_alone(drafts: Sequence[Draft], config: Config) -> None:
    """``--raw``: all that may be raw weights; if every series is an average by its file, all."""
    free = [d for d in drafts if not d.settled]
    plain = [d for d in free if d.series.role != "average" and d.series.law is None]
    # ``best_ema.pt`` among many others is none of them.
    named = [d for d in plain if _says_average(d)]
    if 2 * len(named) < len(plain):
        plain = [d for d in plain if not _says_average(d)]
    for draft in plain or free:
        draft.overrules = draft.series.law
        draft.law, draft.origin = parse_law("raw"), config.origin
    for draft in free:
        if not draft.settled:
            draft.error = LeftOutError("it is an average, and --raw takes the raw weights")


def _law_by_file(draft: Draft, config: Config) -> None:
    """The law in the file itself, or the error that there is none."""
    series = draft.series
    draft.origin = "content" if series.evidence == "content" else "name"
    if series.doubt is not None:
        draft.error = InputError(series.doubt, remedy="give the right one in phema.toml")
    elif series.role == "raw":
        draft.law = parse_law("raw")
    elif series.law is not None:
        try:
            draft.law = _spaced(parse_law(series.law), series, config)
        except PhemaError as error:
            remedy = error.remedy or "give the law of the average in phema.toml"
            draft.error = InputError(error.what, remedy=remedy)
    elif series.index is not None:
        draft.law_unknown = True
        draft.error = InputError(
            "its name has an index and no gamma",
            remedy="pass --gammas or --sigma-rels, as set in the trainer and in that order",
            option="--gammas G1,G2",
        )
    elif series.role == "average":
        draft.law_unknown = series.hint is None and series.grows is None
        draft.error = _no_law(draft)
    else:
        draft.error = InputError(
            "does not say whether it is an average or the raw weights",
            remedy="pass --raw if it is the raw weights, --gammas or --average LAW if it is an "
            "average",
            option="--raw",
        )


def _no_law(draft: Draft) -> InputError:
    """The error for an average whose decay is not in the file."""
    series = draft.series
    name = "its average" if series.key == "." else f"its average {series.key}"
    law = f"--average LAW, by default {series.hint}" if series.hint else "--average LAW"
    raw = any(s.role == "raw" for s in draft.file.reading.series)
    return InputError(
        f"does not say how {name} decays",
        remedy=f"pass {law}; or --raw to use the raw weights alone" if raw else f"pass {law}",
        option="--raw" if raw else "--average LAW",
    )


def _take(draft: Draft, law: Law, origin: Origin, config: Config) -> None:
    """Take the law that the user gives, unless the file's own kind of decay contradicts it."""
    series = draft.series
    try:
        own = None if series.law is None else parse_law(series.law)
    except PhemaError:
        own = None
    try:
        law = _spaced(law, series, config)
    except PhemaError as error:
        draft.error = InputError(error.what, remedy=error.remedy)
        draft.error.__cause__ = error
        return
    if law.name == "exponential" and not config.trust_tags:
        draft.error = _growth_error(draft, law, own) or draft.error
        if draft.error is not None:
            return
    if own is None or own.text != law.text:
        draft.overrules = series.law
    draft.law, draft.origin = law, origin


def _growth_error(draft: Draft, law: Law, own: Law | None) -> InputError | None:
    """The error for the user's constant decay if the file's own grows, and that matters."""
    series, clock = draft.series, draft.file.reading.clock
    beta = law.parameters.get("beta")
    if own is not None and own.name in _EVEN:
        own = None
    if beta is None or (series.grows is None and own is None):
        return None
    if own is None:
        every = law.parameters["every"]
        own = parse_law(series.hint or f"{series.grows}:beta={beta!r}")
        own = own.replace(beta=beta, **({} if every == 1 else {"every": every}))
    updates = series.updates or (None if clock is None else clock.value) or 1000.0
    if law.distance(own, updates) <= _ALIKE:
        return None
    return InputError(
        f"its average {series.key} warms up: its decay is not constant, but grows to {beta:.10g}",
        remedy=f"pass --average {own.text}, or --trust-tags to insist",
    )


def _spaced(law: Law, series: Series, config: Config) -> Law:
    """The law with the number of steps between updates."""
    if config.update_every is not None and law.name != "raw":
        return spaced(law, config.update_every, series.updated)
    if series.index is not None and law.name == series.power != "power":
        return law if "every" in law.parameters else law.replace(every=1.0)
    return law
