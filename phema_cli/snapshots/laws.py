"""What averages are averages of: by the user's word, by the file's, in this order."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TypeVar

from phema_cli.errors import InputError, PhemaError, UsageError
from phema_cli.profiles import Law
from phema_cli.request import Config
from phema_cli.snapshots.resolve import LeftOutError, Member
from phema_cli.snapshots.tags import Origin
from phema_cli.trainers.base import Series
from phema_cli.trainers.nested import AVERAGE
from phema_cli.trainers.registry import parse_law

#: largest difference of cumulative weights up to which two laws are taken for one.
_ALIKE = 0.01
_DIGITS = 9
_Value = TypeVar("_Value")


def settle_laws(members: Sequence[Member], config: Config, said: Config) -> None:
    """Say of each series what it is an average of, or why it is left out.

    Args:
        members: all series.
        config: what the user says, the command line over phema.toml.
        said: the command line alone.

    Raises:
        UsageError: what the user says fits none of them, or more than one.
    """
    origin: Origin = "command line" if said.says_average else "phema.toml"
    _say_single(members, config)
    _say_laws(members, config, origin)
    if config.is_raw:
        _only_raw(members, origin)
    for member in members:
        if not member.settled:
            _say_known(member, config)
    _check_spacing(members, config)
    if config.update_every is None:
        _space_by_count(members)


def _say_single(members: Sequence[Member], config: Config) -> None:
    """What the user says of single files, in phema.toml or by the groups of a pattern."""
    for member in members:
        said = member.item.said
        if "index" in said:
            _say_index(member, said["index"][0])
        for name, (value, origin) in said.items():
            if name not in _LAWS:
                continue
            try:
                law = parse_law(_LAWS[name].format(value, power=_power(member.series)))
            except PhemaError as error:
                member.error = InputError(error.what, remedy=error.remedy)
                continue
            if law.name == "raw" or not _is_raw_beside(member):
                _give(member, law, origin, config)


def _is_raw_beside(member: Member) -> bool:
    """Whether it is the raw weights beside an average, of which the user speaks."""
    roles = {s.role for s in member.item.reading.series}
    return member.series.role == "raw" and "average" in roles


def _of_gamma(gamma: float, series: Series) -> Law:
    """The law of a series that is the average of a gamma."""
    return parse_law(f"{_power(series)}gamma={gamma:.17g}")


def _power(series: Series) -> str:
    """What an average of one gamma begins with in the words of ``--average``.

    Trainers that update now and then are taken to do so at every step until the user says more.
    """
    return "power:" if series.power == "power" else f"{series.power}:every=1,"


def _say_index(member: Member, text: str) -> None:
    """The place that a pattern finds, among the averages that ``--gammas`` lists."""
    if text.isdecimal() and len(text) <= _DIGITS:
        member.series = replace(member.series, index=int(text), first_index=None)
    else:
        member.error = InputError(f"its index is {text!r:.80}, not a number")


#: what a field of a pattern or of a row in phema.toml means, in the words of ``--average``.
_LAWS = {
    "gamma": "{power}gamma={0}",
    "sigma_rel": "{power}sigma_rel={0}",
    "beta": "exponential:beta={0}",
    "average": "{0}",
}


def _only_raw(members: Sequence[Member], origin: Origin) -> None:
    """The raw weights; where every series is an average by its file, the user knows better."""
    free = [m for m in members if not m.settled]
    plain = [m for m in free if m.series.role != "average" and m.series.law is None]
    chosen = plain or free
    for member in chosen:
        member.overrules = member.series.law
        member.law, member.origin = parse_law("raw"), origin
    for member in free:
        if not member.settled:
            member.error = LeftOutError("an average, and --raw takes the raw weights beside it")


def _say_laws(members: Sequence[Member], config: Config, origin: Origin) -> None:
    """What the user says of all files: ``--average`` and ``--gammas``."""
    if config.averages:
        laws = [parse_law(text) for text in config.averages]
        for member, law in _dealt(members, laws, config, "--average"):
            _give(member, law, origin, config)
            _check_alone(member, config)
    if config.gammas:
        _say_gammas(members, config, origin)


def _check_alone(member: Member, config: Config) -> None:
    """Refuse a law for weights that nothing is known of, where state beside them is an average."""
    if member.series.role != "unknown" or config.keys or config.trust_tags:
        return
    file = member.item.file
    hidden = [k for k in file.everything if k not in file.dicts and AVERAGE.search(k)]
    if hidden and hidden[0] not in file.lists:
        member.error = InputError(
            f"holds {hidden[0]} too, which may be the average",
            remedy=f"pass --key {hidden[0]}, or --trust-tags to insist on {member.series.key}",
        )


def _dealt(
    members: Sequence[Member], values: Sequence[_Value], config: Config, option: str
) -> Iterator[tuple[Member, _Value]]:
    """An option's values for the series that they are meant for.

    Raises:
        UsageError: that is not clear.
    """
    free = [m for m in members if not m.settled]
    if len(values) > 1:
        if len(values) != len(config.keys):
            raise UsageError(
                f"{option} gives {len(values)} averages, and --key names {len(config.keys)} series",
                remedy=f"pass --key with as many names, in the order of {option}",
            )
        for key, value in zip(config.keys, values, strict=True):
            yield from ((m, value) for m in free if key in {m.series.key, m.series.within})
        return
    unknown = [m for m in free if m.series.role != "raw" and m.series.law is None]
    known = [m for m in free if m.series.role != "raw" and m.series.law is not None]
    meant = unknown or known or free
    groups = dict.fromkeys(m.group for m in meant)
    if not unknown and not config.insists:
        return
    if not meant and any(m.error for m in members):
        # What stands against the files says more.
        return
    if len(groups) > 1 or not meant:
        names = sorted({_called(m) for m in meant})
        found = f"there are several: {', '.join(names)}" if meant else "there is none"
        by_key = len({m.series.key for m in meant}) > 1
        raise UsageError(
            f"{option} says what one average is, and {found}",
            remedy="pass --key with one of them" if by_key else f"leave {option} out",
        )
    yield from ((m, values[0]) for m in meant)


def _called(member: Member) -> str:
    """What users call a series."""
    one = member.series
    if one.index is not None:
        return f"index {one.index}"
    if one.key != ".":
        return one.key
    return parse_law(one.law).label if one.law else "the files that say nothing"


def _say_gammas(members: Sequence[Member], config: Config, origin: Origin) -> None:
    """``--gammas``: by the index in names, by the order of ``--key``, or one for all."""
    counted = [m for m in members if m.series.index is not None and not m.settled]
    if counted:
        _say_counted(counted, config, origin)
        return
    for gamma in config.gammas:
        # What can be no gamma is told, also where there is no average.
        parse_law(f"power:gamma={gamma:.17g}")
    given = len(config.gammas)
    if given == 1 or len(config.keys) == given:
        for member, gamma in _dealt(members, config.gammas, config, "--gammas"):
            _give(member, _of_gamma(gamma, member.series), origin, config)
    elif config.insists:
        raise UsageError(
            f"--gammas gives {given} values, and nothing in the names counts them",
            remedy="pass --pattern with a group index, or --key with as many names",
        )


def _say_counted(counted: Sequence[Member], config: Config, origin: Origin) -> None:
    """``--gammas`` for averages that names count, in that order."""
    first = _first_index(counted, len(config.gammas))
    seen: set[int] = set()
    for member in counted:
        place = (member.series.index or 0) - first
        if not 0 <= place < len(config.gammas):
            given = len(config.gammas)
            member.error = InputError(
                f"index {member.series.index}, but {given} gammas were given",
                remedy="pass --gammas with one value for each average",
            )
            continue
        seen.add(place)
        _give(member, _of_gamma(config.gammas[place], member.series), origin, config)
    unused = [g for place, g in enumerate(config.gammas) if place not in seen]
    if unused and config.insists and not any(m.error for m in counted):
        raise UsageError(
            f"--gammas gives {len(config.gammas)} values, and the names count {len(seen)} averages:"
            f" gamma {unused[0]:.6g} is not used",
            remedy="pass one value for each average",
        )


def _first_index(members: Sequence[Member], gammas: int) -> int:
    """What the first average's index is: as the trainer counts, else as the indices show."""
    told = [m.series.first_index for m in members if m.series.first_index is not None]
    if told:
        return told[0]
    found = {m.series.index for m in members}
    return 1 if found == set(range(1, gammas + 1)) else 0


def _say_known(member: Member, config: Config) -> None:
    """What the file itself says, or that it says nothing."""
    one = member.series
    if one.doubt is not None:
        member.error = InputError(one.doubt, remedy="say which in phema.toml")
    elif one.role == "raw":
        member.law = parse_law("raw")
    elif one.law is not None:
        try:
            member.law = _spaced(parse_law(one.law), one, config)
        except PhemaError as error:
            remedy = "say what the average is in phema.toml"
            member.error = InputError(error.what, remedy=error.remedy or remedy)
    elif one.index is not None:
        member.untagged = True
        member.error = InputError(
            "its name counts gammas, but says none",
            remedy="pass --gammas or --sigma-rels as the trainer had them, in that order",
            option="--gammas G1,G2",
        )
    elif one.role == "average":
        member.untagged = one.hint is None and one.grows is None
        member.error = _unknown(member)
    else:
        member.error = InputError(
            "does not say whether it is an average or the raw weights",
            remedy="pass --raw if these are the weights themselves, --gammas or --average LAW if "
            "they are averages",
            option="--raw",
        )
    member.origin = "content" if one.evidence == "content" else "name"


def _unknown(member: Member) -> InputError:
    """The error for an average whose decay the file does not say."""
    one = member.series
    what = "its average" if one.key == "." else f"its average {one.key}"
    law = f"--average LAW, by default {one.hint}" if one.hint else "--average LAW"
    raw = any(s.role == "raw" for s in member.item.reading.series)
    return InputError(
        f"does not say how {what} decays",
        remedy=f"pass {law}; or --raw to use the raw weights alone" if raw else f"pass {law}",
        option="--raw" if raw else "--average LAW",
    )


def _give(member: Member, law: Law, origin: Origin, config: Config) -> None:
    """Take what the user says, unless the file's own kind of decay contradicts it."""
    one = member.series
    try:
        law = _spaced(law, one, config)
    except PhemaError as error:
        member.error = InputError(error.what, remedy=error.remedy)
        return
    if law.name == "exponential" and not config.trust_tags:
        _check_growth(member, law)
        if member.error is not None:
            return
    own = _own(one)
    if own is None or own.text != law.text:
        member.overrules = one.law
    member.law, member.origin = law, origin


def _own(series: Series) -> Law | None:
    """The law that the file says; None where it says none, or what can't be one."""
    try:
        return None if series.law is None else parse_law(series.law)
    except PhemaError:
        return None


#: laws whose decay is the same from the first update on, or that have none.
_EVEN = {"exponential", "power", "uniform", "raw"}


def _check_growth(member: Member, law: Law) -> None:
    """Refuse a constant decay where the library's grows, and that differs at the file's time."""
    one, clock = member.series, member.item.reading.clock
    beta = law.parameters.get("beta")
    own = _own(one)
    if beta is None or (one.grows is None and (own is None or own.name in _EVEN)):
        return
    if own is None or own.name in _EVEN:
        given = {} if law.parameters["every"] == 1 else {"every": law.parameters["every"]}
        own = parse_law(one.hint or f"{one.grows}:beta={beta!r}").replace(beta=beta, **given)
    done = one.updates or (None if clock is None else clock.value) or 1000.0
    if law.distance(own, done) > _ALIKE:
        member.error = InputError(
            f"its average {one.key} warms up: its decay grows to {beta:.10g}, and is not constant",
            remedy=f"pass --average {own.text}, or --trust-tags to insist",
        )


def _spaced(law: Law, series: Series, config: Config) -> Law:
    """The law with the number of steps between updates."""
    if config.update_every is not None and law.name != "raw":
        return law.replace(every=float(config.update_every))
    if series.index is not None and law.name == series.power != "power":
        return law if "every" in law.parameters else law.replace(every=1.0)
    return law


def _check_spacing(members: Sequence[Member], config: Config) -> None:
    """Refuse ``--update-every`` where nothing is an average."""
    averages = [m for m in members if m.law is None or m.law.name != "raw"]
    if members and config.update_every is not None and not averages:
        raise UsageError("--update-every says of averages, and there are none")


def _space_by_count(members: Sequence[Member]) -> None:
    """Give averages that count their updates the number of steps between these, if all agree."""
    groups: dict[tuple[object, ...], list[tuple[Member, float, float]]] = {}
    for member in members:
        clock, updates = member.item.reading.clock, member.series.updates
        if clock is not None and clock.unit == "steps" and updates and member.law is not None:
            groups.setdefault(member.group, []).append((member, clock.value, updates))
    for counted in groups.values():
        every = round(max(step / updates for _, step, updates in counted))
        if every > 1 and all(abs(step / every - updates) <= 1 for _, step, updates in counted):
            for member, _, _ in counted:
                law = member.law
                if law is not None and law.parameters.get("every") == 1:
                    member.law = law.replace(every=float(every))
