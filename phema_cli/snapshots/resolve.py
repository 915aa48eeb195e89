"""From what files hold to tagged snapshots: which series, of which average, at which time.

What one file leaves open others of the run may settle: an index counts the averages of all of
them, a dict that lies beside an average is the raw weights elsewhere too.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from phema_cli.errors import InputError, PhemaError, UsageError
from phema_cli.formats.objects import refuse_beside, refuse_hidden
from phema_cli.profiles import Law
from phema_cli.snapshots.files import Candidate
from phema_cli.snapshots.tags import Origin
from phema_cli.trainers.base import Series, StoredFile, under
from phema_cli.trainers.nested import asked_for, by_path, is_state_key
from phema_cli.trainers.registry import FileReading

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
        untagged: whether that is only that nothing says what it is an average of.
    """

    item: Item
    series: Series
    law: Law | None = None
    origin: Origin = "content"
    overrules: str | None = None
    error: PhemaError | None = None
    untagged: bool = False

    @property
    def group(self) -> tuple[object, ...]:
        """What series of several files have in common that are one."""
        one = self.series
        return (one.role == "raw", one.key, one.index, one.law)

    @property
    def settled(self) -> bool:
        """Whether the user has said of this one file what it is."""
        return self.law is not None or self.error is not None


class LeftOutError(InputError):
    """Why a series is not used, which is no fault."""


def members_of(
    items: Sequence[Item], keys: Sequence[str], *, insists: bool = True
) -> Iterator[Member]:
    """The series that count: those that the user names, or all.

    Args:
        items: the files.
        keys: what the user names.
        insists: whether a name of nothing is an error; a phema.toml may speak of other files.

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
    if lost and items and insists:
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
        refuse_beside(node, path, is_state_key)
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
