"""What a trainer's module is given, and what it answers.

A trainer is a program that writes checkpoints, or a library that keeps averages in them. Each has a
module with the names of :class:`Trainer`, and a line in ``registry.py``. Its ``read`` gets a
:class:`StoredFile` and returns None if the file is not its own, else a :class:`Reading`: the
:class:`Series` of weights in the file, and the :class:`Clock`. ``dit.py`` is a short example.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, Protocol

from phema_cli.errors import reading
from phema_cli.formats.base import Checkpoint, Contents, StoredTensor
from phema_cli.formats.reader import value_of
from phema_cli.formats.remote import remote_errors
from phema_cli.globs import matching
from phema_cli.options import number_text
from phema_cli.trainers.nested import TOP, groups, inside

Role = Literal["raw", "average", "unknown"]
Unit = Literal["steps", "images", "epochs", "saves"]
#: where a trainer reads something: in the file or a file beside it, in the snapshot's own name, or
#: in the name of a directory above it.
Evidence = Literal["content", "name", "folder"]

#: tensors by name.
Tensors = Mapping[str, StoredTensor]

_MOST_JSON_BYTES = 4 << 20


class Trainer(Protocol):
    """What a trainer's module has.

    It may also have ``KEYS``: entries that all its files have at the top level, so that it is not
    asked about others; and ``LAW``: the decay law of this library, which ``--average`` takes too.
    """

    #: the trainer's name in messages, and in its row of docs/trainers.md.
    NAME: str
    #: the project, and the files in it, that show all this.
    SOURCE: str

    def read(self, file: StoredFile) -> Reading | None:
        """What a file holds; None if it is not a file of this trainer.

        Raises:
            InputError: it is, and can't be averaged: what it is, and the remedy.
        """
        ...


@dataclass(frozen=True, slots=True)
class Reading:
    """What one trainer's module knows of a file.

    Attributes:
        series: the weights in it; those without tensors count for nothing. No other module reads
            the dicts that they come from.
        clock: when it was stored.
        left_out: why the file is not used, for example because it holds no weights.
        notes: notices for the user.
        hint: the law to propose for averages in it that another module reads.
        ignored: keys of dicts and lists of tensors that are not used.
    """

    series: tuple[Series, ...] = ()
    clock: Clock | None = None
    left_out: str | None = None
    notes: tuple[str, ...] = ()
    hint: str | None = None
    ignored: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Series:
    """Weights of one kind in a file: the raw ones, or one average of them.

    Attributes:
        tensors: by the names that the trainer gave them, without a prefix that marks the series.
        role: ``raw``, ``average``, or ``unknown`` if only the user can say.
        within: dotted key of the dict that holds them; ``.`` for the top level.
        prefix: prefix of their names in that dict, with its dot.
        law: how the average weighs the steps, in the words of ``--average``; None if not known.
        evidence: where the law was read.
        grows: name of the law by which the decay of this library grows from 0; None if it is
            constant.
        power: name of the law that a gamma given by the user means here.
        spacing_warning: the warning if the user does not give the number of steps between updates.
        index: the number of the average, where names count the averages.
        first_index: the index of the first average.
        updates: how often the average was updated, if the file says so.
        updated: the step of the last update, if the file says so.
        unnamed: whether the tensors are a list, in the model's order.
        hint: the trainer's default law, to propose if the file does not give the law.
        label: what ``--key`` calls it, if it is neither the dict nor the prefix.
        doubt: how entries of the file contradict each other; the user's word settles it.
        part: whether it averages a part of the model, and the raw weights are in other files.
    """

    tensors: Tensors
    role: Role = "unknown"
    within: str = TOP
    prefix: str = ""
    law: str | None = None
    evidence: Evidence = "content"
    grows: str | None = None
    power: str = "power"
    spacing_warning: str | None = None
    index: int | None = None
    first_index: int | None = None
    updates: float | None = None
    updated: float | None = None
    unnamed: bool = False
    hint: str | None = None
    label: str | None = None
    doubt: str | None = None
    part: bool = False

    @property
    def key(self) -> str:
        """What ``--key`` calls it: its label, else the prefix of its names, else its dict."""
        if self.label is not None:
            return self.label
        return self.prefix.rstrip(".") if self.prefix else self.within


@dataclass(frozen=True, slots=True)
class Clock:
    """When a snapshot was stored.

    Attributes:
        value: how many of ``unit`` were done.
        unit: what the trainer counts.
        field: the entry, or the word in a name, that gives it; for messages.
        evidence: where it was read.
        weak: whether the word may count anything, as in ``checkpoint-7``.
        open: whether it is the number of an epoch, which may count from 0 or from 1.
        doubt: how entries or names contradict each other; the user's word settles it.
    """

    value: float
    unit: Unit = "steps"
    field: str = "name"
    evidence: Evidence = "content"
    weak: bool = False
    open: bool = False
    doubt: str | None = None


@dataclass(slots=True)
class StoredFile:
    """A checkpoint as a trainer's module sees it.

    Attributes:
        contents: the content, as the format's module returns it.
        name: the snapshot's own name without ending: the file's, or the directory's where the
            file's says nothing (``model.safetensors``).
        file_name: the file's own name.
        folders: names of the directories above the snapshot, innermost first.
        beside: names of the files in the same directory, if they are known.
        top: the dict at the top level; empty if there is none.
        metadata: the text metadata of formats that have some.
        dicts: dicts of a model's tensors by dotted key, ``.`` for the top level.
        lists: lists of a model's tensors by dotted key; the name of a tensor is its number.
        everything: all dicts and lists with tensors by dotted key, an optimizer's too.
    """

    contents: Contents
    name: str
    file_name: str
    folders: tuple[str, ...] = ()
    beside: frozenset[str] | None = None
    top: Mapping[object, Any] = field(init=False)
    metadata: Mapping[str, str] = field(init=False)
    dicts: Mapping[str, Tensors] = field(init=False)
    lists: Mapping[str, Tensors] = field(init=False)
    everything: Mapping[str, Tensors] = field(init=False)

    def __post_init__(self) -> None:
        """Find the tensors."""
        content = self.contents.content
        self.top = content if isinstance(content, Mapping) else {}
        self.metadata = self.contents.metadata
        self.dicts, self.lists, self.everything = groups(content)

    def get(self, *keys: str) -> Any:  # noqa: ANN401 - files hold anything
        """The value under nested keys, in dicts and in the fields of objects; else None."""
        node: object = self.contents.content
        for key in keys:
            node = inside(node, key)
        return node

    def number(self, *keys: str) -> float | None:
        """The number under nested keys: a plain one, or that of a tensor of one element."""
        return self.value(self.get(*keys))

    def value(self, entry: object) -> float | None:
        """A plain number, or that of a tensor of one element; None for anything else."""
        if isinstance(entry, StoredTensor):
            return value_of(entry, self.contents)
        return real(entry)

    def clock(self, *keys: str, unit: Unit = "steps") -> Clock | None:
        """The time by the number under nested keys; None if there is none."""
        count = self.number(*keys)
        return None if count is None else Clock(count, unit, ".".join(keys))

    def checkpoint(self, series: Series) -> Checkpoint:
        """The checkpoint that the tensors of a series are; a part of the file is named in it.

        Raises:
            InputError, StorageError: as :meth:`Contents.checkpoint` has them.
        """
        whole = series.within == TOP and not series.prefix
        return self.contents.checkpoint(
            series.tensors, None if whole else series.key, unnamed=series.unnamed
        )

    def matches(self, pattern: re.Pattern[str]) -> dict[str, str] | None:
        """Named groups of a pattern that must match the snapshot's whole own name."""
        match = pattern.fullmatch(self.name)
        return None if match is None else {k: v for k, v in match.groupdict().items() if v}

    def json(self, *parts: str) -> Mapping[str, Any]:
        """The JSON object in a file beside this one, ``..`` leads up; empty if there is none.

        Raises:
            StorageError: the operating system failed.
        """
        if len(parts) == 1 and self.beside is not None and parts[0] not in self.beside:
            return {}
        path = self._folder.joinpath(*parts)
        with reading(path), remote_errors(path):
            return read_object(path)

    def has_beside(self, glob: str) -> bool:
        """Whether a file of such a name is beside this one; ``..`` leads up."""
        if self.beside is not None and "/" not in glob:
            return _has(self.beside, glob)
        with remote_errors(self.contents.path):
            return any(True for _ in self._folder.glob(glob))

    @property
    def is_folder(self) -> bool:
        """Whether a directory of the snapshot's name holds the file."""
        return self._folder.name == self.name

    @property
    def _folder(self) -> Path:
        """The directory of the file that was read; in some formats it is the checkpoint."""
        path = self.contents.path
        return path.parent if path.name == self.file_name else path


def read_object(path: Path) -> Mapping[str, Any]:
    """The JSON object in a file of up to 4 MiB; empty where there is none.

    Raises:
        OSError: the operating system failed.
    """
    if not path.is_file() or path.stat().st_size > _MOST_JSON_BYTES:
        return {}
    data = path.read_bytes()
    try:
        content = json.loads(data)
    except (ValueError, RecursionError):
        # The file of another tool.
        return {}
    return content if isinstance(content, dict) else {}


def under(tensors: Tensors, prefix: str) -> Tensors:
    """The tensors whose names begin with a prefix, without it."""
    return {n[len(prefix) :]: tensors[n] for n in tensors if n.startswith(prefix)}


def without(tensors: Tensors, *prefixes: str) -> Tensors:
    """The tensors whose names begin with none of the prefixes."""
    return {n: tensors[n] for n in tensors if not n.startswith(prefixes)}


def real(value: object) -> float | None:
    """A plain number as a float, infinite if it is too large for one; None for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        return float(value)
    except OverflowError:
        return math.inf if value > 0 else -math.inf


def shown(value: object) -> str:
    """The beginning of a value that should be a number, for a message."""
    try:
        return f"{value!r:.80}"
    except (ValueError, RecursionError):
        # Integers of thousands of digits, and lists nested a thousand deep.
        return f"a {type(value).__name__}"


def parsed(text: str) -> float:
    """The number in a text; NaN if it is none, which is an error only if the number is used."""
    try:
        return float(text)
    except ValueError:
        return math.nan


def law_text(name: str, **numbers: float | None) -> str:
    """A law in the words of ``--average``; None of a number leaves it to its default."""
    given = (f"{key}={number_text(n)}" for key, n in numbers.items() if n is not None)
    return f"{name}:{','.join(given)}"


@lru_cache(maxsize=64)
def _has(names: frozenset[str], glob: str) -> bool:
    """Whether a name fits; the files of a directory share their names, and may be many."""
    return any(map(matching((glob,)), names))
