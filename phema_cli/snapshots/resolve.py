"""From what files hold to tagged snapshots: which series, of which average, at which time.

What one file leaves open others of the run may settle: an index counts the averages of all of
them, a dict that lies beside an average is the raw weights elsewhere too.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from phema_cli.errors import InputError, PhemaError, UsageError
from phema_cli.formats.base import StoredTensor
from phema_cli.formats.hidden import refuse_beside, refuse_hidden
from phema_cli.profiles import Law
from phema_cli.snapshots.config import Config
from phema_cli.snapshots.files import Candidate
from phema_cli.snapshots.tags import Origin
from phema_cli.trainers.base import Series, StoredFile, under
from phema_cli.trainers.nested import asked_for, by_path, is_state_key
from phema_cli.trainers.registry import FileReading, parse_law

#: largest difference of cumulative weights up to which two laws are taken for one.
_ALIKE = 0.01
_DIGITS = 9
#: what the user says of one file, and where.
Said = tuple[str, Origin]


@dataclass(frozen=True, slots=True)
class Item:
    """A file that was read.

    Attributes:
        candidate: the file.
        file: what it holds.
        reading: what trainers know of it.
        said: what the user says of this one file, in phema.toml or by the groups of a pattern.
    """

    candidate: Candidate
    file: StoredFile
    reading: FileReading
    said: Mapping[str, Said] = field(default_factory=dict)


@dataclass(slots=True)
class Member:
    """A series of a file, on its way to become a snapshot.

    Attributes:
        item: the file.
        series: its weights.
        law: what it is an average of; None until that is known.
        origin: where that was read.
        overrules: what the file says instead.
        error: why it can't be a snapshot.
    """

    item: Item
    series: Series
    law: Law | None = None
    origin: Origin = "content"
    overrules: str | None = None
    error: PhemaError | None = None

    @property
    def group(self) -> tuple[object, ...]:
        """What series of several files have in common that are one."""
        one = self.series
        return (one.role == "raw", one.key, one.index, one.law)

    @property
    def settled(self) -> bool:
        """Whether the user has said of this one file what it is."""
        return self.law is not None or self.error is not None


def members_of(items: Sequence[Item], keys: Sequence[str]) -> Iterator[Member]:
    """The series that count: those that the user names, or all.

    Raises:
        UsageError: the user names one that no file holds.
    """
    used: set[str] = set()
    for item in items:
        if not keys:
            yield from (Member(item, s) for s in item.reading.series)
        for key in keys:
            found = _keyed(item, key)
            if found is not None:
                used.add(key)
                yield Member(item, found)
    lost = [key for key in keys if key not in used]
    if lost and items:
        known = dict.fromkeys(s.key for item in items for s in item.reading.series)
        known |= dict.fromkeys(k for item in items for k in item.file.dicts)
        listed = ", ".join([k for k in known if k != "."][:8])
        raise UsageError(
            f"no dict of tensors, and no prefix of their names, is {lost[0]!r}",
            remedy=f"there are {listed}" if listed else "leave --key out: no dict is nested",
        )


def _keyed(item: Item, key: str) -> Series | None:
    """The series that a key names in a file: a trainer's, any dict, or a prefix of names."""
    file = item.file
    for one in item.reading.series:
        if one.key == key:
            return one
    if (found := asked_for(file.contents.content, key)) is not None:
        path, node = file.contents.path, by_path(file.contents.content, key)
        refuse_hidden(node, path)
        refuse_beside(node, path, StoredTensor, is_state_key)
        tensors, named = found
        return Series(tensors, within=key, unnamed=not named)
    prefix = f"{key.rstrip('.')}."
    for one in item.reading.series:
        # A part of an average is the same average.
        if not one.prefix and (part := under(one.tensors, prefix)):
            return replace(one, tensors=part, prefix=prefix, label=None)
    for within, tensors in file.dicts.items():
        if part := under(tensors, prefix):
            return Series(part, within=within, prefix=prefix)
    return None


def settle_roles(members: Sequence[Member]) -> None:
    """Give series that only say what they are called the role that they have in other files."""
    known = {
        m.series.key: m.series.role
        for m in members
        if m.series.role != "unknown" and m.series.law is None
    }
    for member in members:
        role = known.get(member.series.key)
        if member.series.role == "unknown" and role is not None:
            member.series = replace(member.series, role=role)


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
                law = parse_law(_LAWS[name].format(value, power=member.series.power))
                _give(member, law, origin, config)
            except PhemaError as error:
                member.error = InputError(error.what, remedy=error.remedy)


def _say_index(member: Member, text: str) -> None:
    """The place that a pattern finds, among the averages that ``--gammas`` lists."""
    if text.isdecimal() and len(text) <= _DIGITS:
        member.series = replace(member.series, index=int(text), first_index=None)
    else:
        member.error = InputError(f"its index is {text!r:.80}, not a number")


#: what a field of a pattern or of a row in phema.toml means, in the words of ``--average``.
_LAWS = {
    "gamma": "{power}:gamma={0}",
    "sigma_rel": "{power}:sigma_rel={0}",
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


class LeftOutError(InputError):
    """Why a series is not used, which is no fault."""


def _say_laws(members: Sequence[Member], config: Config, origin: Origin) -> None:
    """What the user says of all files: ``--average`` and ``--gammas``."""
    if config.averages:
        laws = [parse_law(text) for text in config.averages]
        for member, law in _dealt(members, laws, config, "--average"):
            _give(member, law, origin, config)
    if config.gammas:
        _say_gammas(members, config, origin)


def _dealt(
    members: Sequence[Member], laws: Sequence[Law], config: Config, option: str
) -> Iterator[tuple[Member, Law]]:
    """The laws for the series that they are meant for.

    Raises:
        UsageError: that is not clear.
    """
    free = [m for m in members if not m.settled]
    if len(laws) > 1:
        if len(laws) != len(config.keys):
            raise UsageError(
                f"{option} gives {len(laws)} averages, and --key names {len(config.keys)} series",
                remedy=f"pass --key with as many names, in the order of {option}",
            )
        for key, law in zip(config.keys, laws, strict=True):
            yield from ((m, law) for m in free if key in {m.series.key, m.series.within})
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
    yield from ((m, laws[0]) for m in meant)


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
    if not counted:
        laws = [parse_law(f"power:gamma={gamma:.17g}") for gamma in config.gammas]
        if len(laws) > 1 and len(config.keys) != len(laws):
            if not config.insists:
                return
            raise UsageError(
                f"--gammas gives {len(laws)} values, and nothing in the names counts them",
                remedy="pass --pattern with a group index, or --key with as many names",
            )
        for member, law in _dealt(members, laws, config, "--gammas"):
            own = member.series.power
            _give(member, law if own == "power" else _renamed(law, own), origin, config)
        return
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
        text = f"{member.series.power}:gamma={config.gammas[place]:.17g}"
        _give(member, parse_law(text), origin, config)
    unused = [g for place, g in enumerate(config.gammas) if place not in seen]
    if unused and config.insists and not any(m.error for m in counted):
        raise UsageError(
            f"--gammas gives {len(config.gammas)} values, and the names count {len(seen)} averages:"
            f" gamma {unused[0]:.6g} is not used",
            remedy="pass one value for each average",
        )


def _renamed(law: Law, name: str) -> Law:
    """The power function of a gamma as a trainer applies it."""
    return parse_law(f"{name}:gamma={law.gamma:.17g}")


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
        member.error = InputError(
            "its name counts gammas, but says none",
            remedy="pass --gammas or --sigma-rels as the trainer had them, in that order",
            option="--gammas G1,G2",
        )
    elif one.role == "average":
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
    law = _spaced(law, one, config)
    if law.name == "exponential" and not config.trust_tags:
        _check_growth(member, law)
        if member.error is not None:
            return
    if one.law is not None and _text(one.law) != law.text:
        member.overrules = one.law
    member.law, member.origin = law, origin


def _text(law: str) -> str:
    """The law that a file says, as it is always written; unchanged where it is none."""
    try:
        return parse_law(law).text
    except PhemaError:
        return law


#: laws whose decay is the same from the first update on, or that have none.
_EVEN = {"exponential", "power", "uniform", "raw"}


def _check_growth(member: Member, law: Law) -> None:
    """Refuse a constant decay where the library's grows, and that differs at the file's time."""
    one, clock = member.series, member.item.reading.clock
    beta = law.parameters.get("beta")
    own = None if one.law is None else parse_law(one.law)
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
