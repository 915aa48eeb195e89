"""What a trainer's module is given, and what it answers with."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

from phema_cli.errors import StorageError
from phema_cli.formats.base import Contents, StoredTensor
from phema_cli.formats.reader import value_of
from phema_cli.formats.remote import remote_errors
from phema_cli.globs import matching
from phema_cli.trainers.nested import TOP, Groups, groups, inside

Role = Literal["raw", "average", "unknown"]
Unit = Literal["steps", "images", "epochs", "saves"]
#: where a trainer read something: in the file or a file beside it, in the snapshot's own name, in
#: that of a directory above it.
Evidence = Literal["content", "name", "folder"]

#: tensors by name.
Tensors = Mapping[str, StoredTensor]

_MOST_JSON_BYTES = 4 << 20


@dataclass(frozen=True, slots=True)
class Clock:
    """When a snapshot was stored.

    Attributes:
        value: how much of ``unit`` had been done.
        unit: what the trainer counts.
        field: the entry or name that says so, for people.
        evidence: where it was read.
        weak: whether the word may count anything, as ``checkpoint-7`` does.
        open: whether it is an epoch's number, which counts from 0 or from 1.
        doubt: how what says it contradicts itself; what the user says settles it.
    """

    value: float
    unit: Unit = "steps"
    field: str = "name"
    evidence: Evidence = "content"
    weak: bool = False
    open: bool = False
    doubt: str | None = None


@dataclass(frozen=True, slots=True)
class Series:
    """Weights of one kind in a file: the raw ones, or one average of them.

    Attributes:
        tensors: by the names that the trainer gave them, without what only marks the series.
        role: ``raw``, ``average``, or ``unknown`` where only the user can say.
        within: dotted key of the dict that holds them; ``.`` for the top level.
        prefix: what their names in that dict begin with, with its dot.
        law: how the average weighs the steps, in the words of ``--average``; None if not known.
        evidence: where the law was read.
        grows: name of the law by which this library's decay grows from 0; None if it never does.
        power: name of the law that a gamma given by the user means here.
        spacing: what to tell the user who does not say how many steps lie between two updates.
        index: what the name counts of the averages, where it does.
        first_index: the index of the first average.
        updates: how often the average was updated, if the file says so.
        unnamed: whether the tensors are a list, in the model's order.
        hint: the law that the trainer's code has by default, where the file says none.
        label: what ``--key`` calls it, where neither the dict nor the prefix tells it from others.
        doubt: how what the file says contradicts itself; what the user says settles it.
        part: whether it is of a part of the model, and the raw weights of all lie in other files.
    """

    tensors: Tensors
    role: Role = "unknown"
    within: str = "."
    prefix: str = ""
    law: str | None = None
    evidence: Evidence = "content"
    grows: str | None = None
    power: str = "power"
    spacing: str | None = None
    index: int | None = None
    first_index: int | None = None
    updates: float | None = None
    unnamed: bool = False
    hint: str | None = None
    label: str | None = None
    doubt: str | None = None
    part: bool = False

    @property
    def key(self) -> str:
        """What ``--key`` calls it: the prefix of its names, else the dict."""
        if self.label is not None:
            return self.label
        return self.prefix.rstrip(".") if self.prefix else self.within

    @property
    def place(self) -> str | None:
        """What ``--key`` calls it in a dict or below a prefix; None where it is all of a file."""
        return None if self.within == TOP and not self.prefix else self.key


@dataclass(frozen=True, slots=True)
class Reading:
    """What one trainer knows of a file.

    Attributes:
        series: the weights that it recognises; nobody else reads the dicts that they lie in.
        clock: when it was stored.
        left_out: why the file holds no weights, where that is so.
        notes: what the user should know.
        hint: what to pass for averages in it that another trainer's module reads.
        passed: keys of dicts and lists of tensors that are of no use here.
    """

    series: tuple[Series, ...] = ()
    clock: Clock | None = None
    left_out: str | None = None
    notes: tuple[str, ...] = ()
    hint: str | None = None
    passed: tuple[str, ...] = ()


@dataclass(slots=True)
class StoredFile:
    """A checkpoint as a trainer's module sees it.

    Attributes:
        contents: what the format found.
        path: the file that was read, or the directory that is the checkpoint.
        name: the snapshot's own name without ending: the file's, or its directory's where the
            file's says nothing (``model.safetensors``).
        file_name: the file's own name.
        folders: names of the directories above the snapshot, innermost first.
        beside: names of the files beside the one that was read, where they are known.
    """

    contents: Contents
    path: Path
    name: str
    file_name: str
    folders: tuple[str, ...] = ()
    beside: frozenset[str] | None = None
    _groups: Groups | None = field(default=None, repr=False)

    @property
    def top(self) -> Mapping[object, Any]:
        """The top level, empty where that is no dict."""
        content = self.contents.content
        return content if isinstance(content, dict) else {}

    @property
    def metadata(self) -> Mapping[str, str]:
        """The text metadata of formats that have some."""
        return self.contents.metadata

    @property
    def dicts(self) -> Mapping[str, Tensors]:
        """Dicts of a model's tensors by dotted key, ``.`` for the top level; no optimizer's."""
        return self._found.dicts

    @property
    def lists(self) -> Mapping[str, Tensors]:
        """Lists of tensors by dotted key, each tensor by its number."""
        return self._found.lists

    @property
    def everything(self) -> Mapping[str, Tensors]:
        """All dicts with tensors by dotted key, an optimizer's too."""
        return self._found.everything

    @property
    def state_only(self) -> bool:
        """Whether all tensors are a trainer's own state: an optimizer's, a random generator's."""
        return bool(self._found.everything) and not (self.dicts or self.lists)

    @property
    def _found(self) -> Groups:
        if self._groups is None:
            self._groups = groups(self.contents.content)
        return self._groups

    def get(self, *keys: str) -> Any:  # noqa: ANN401 - whatever a file holds
        """What lies under nested keys, in dicts and in the fields of objects; else None."""
        node: object = self.contents.content
        for key in keys:
            node = inside(node, key)
        return node

    def number(self, *keys: str) -> float | None:
        """The number under nested keys: a plain one, or the value of a tensor of one element."""
        return self.value(self.get(*keys))

    def value(self, found: object) -> float | None:
        """A plain number, or the one that a tensor of one element holds; else None."""
        if isinstance(found, StoredTensor):
            return value_of(found, self.contents)
        return real(found)

    def matches(self, pattern: re.Pattern[str]) -> dict[str, str] | None:
        """Named groups of a pattern that the snapshot's own name must match whole."""
        match = pattern.fullmatch(self.name)
        return None if match is None else {k: v for k, v in match.groupdict().items() if v}

    def json(self, *parts: str) -> Mapping[str, Any]:
        """A JSON object in a file beside this one, ``..`` leading up; empty where there is none.

        Raises:
            StorageError: the operating system failed.
        """
        if len(parts) == 1 and self.beside is not None and parts[0] not in self.beside:
            return {}
        path = self._folder.joinpath(*parts)
        try:
            with remote_errors(path):
                if not path.is_file() or path.stat().st_size > _MOST_JSON_BYTES:
                    return {}
                found = json.loads(path.read_bytes())
        except OSError as error:
            raise StorageError.wrap(error, path, "read") from error
        except (ValueError, RecursionError):
            # Some other tool's file.
            return {}
        return found if isinstance(found, dict) else {}

    def has_beside(self, glob: str) -> bool:
        """Whether a file of such a name lies beside this one; ``..`` leads up."""
        if self.beside is not None and "/" not in glob:
            return any(map(matching((glob,)), self.beside))
        with remote_errors(self.path):
            return any(True for _ in self._folder.glob(glob))

    @property
    def is_folder(self) -> bool:
        """Whether a directory of the snapshot's name holds the file."""
        return self._folder.name == self.name

    @property
    def _folder(self) -> Path:
        """The directory of the file that was read."""
        return self.path.parent if self.path.name == self.file_name else self.path


class Trainer(Protocol):
    """What a trainer's module provides.

    A module may also have ``LAWS``: its decay laws, by the name that ``--average`` takes.
    """

    #: what it is called in tables and messages.
    NAME: str
    #: how its files are called, and what to pass to phema: a row of docs/trainers.md.
    FILES: str
    CALL: str
    #: the project and the file in it that the facts come from.
    SOURCE: str

    def read(self, file: StoredFile) -> Reading | None:
        """What the trainer knows of a file; None where it is not its own.

        Raises:
            InputError: the trainer's own, and not to be averaged: what it is, and the remedy.
        """
        ...


def under(tensors: Tensors, prefix: str) -> Tensors:
    """The tensors whose names begin with a prefix, without it."""
    return {n[len(prefix) :]: t for n, t in tensors.items() if n.startswith(prefix)}


def without(tensors: Tensors, *prefixes: str) -> Tensors:
    """The tensors whose names begin with none of the prefixes."""
    return {n: t for n, t in tensors.items() if not n.startswith(prefixes)}


def real(found: object) -> float | None:
    """A plain number as a float, infinite where it is beyond all floats; None for what is none."""
    if isinstance(found, bool) or not isinstance(found, int | float):
        return None
    try:
        return float(found)
    except OverflowError:
        return math.inf if found > 0 else -math.inf


def shown(value: object) -> str:
    """The beginning of what was found in the place of a number, for a message."""
    try:
        return f"{value!r:.80}"
    except (ValueError, RecursionError):
        # Integers of thousands of digits, and lists that hold themselves a thousand deep.
        return f"a {type(value).__name__}"


def number(given: str) -> float:
    """A number of text metadata; what is none is NaN, and told when it is needed."""
    try:
        return float(given)
    except ValueError:
        return math.nan


def text(number: float) -> str:
    """A number as ``--average`` takes it, to the last digit that it has."""
    return str(int(number)) if float(number).is_integer() else repr(float(number))


def escaped(name: str) -> str:
    """A name as a glob that matches it alone."""
    return "".join(f"[{c}]" if c in "*?[" else c for c in name)
