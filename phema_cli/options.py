"""Declarations of options: each stands once, at the field of the class that holds its value.

The command line is made from them (``phema_cli.cli.options``); from Python the same class takes the
same names.
"""

from collections.abc import Iterator
from dataclasses import Field, dataclass, field, fields
from functools import partial
from typing import Any

_KEY = "option"


@dataclass(frozen=True, slots=True)
class Option:
    """What the command line says of a field; its name is the field's, with dashes.

    Attributes:
        help: one sentence.
        group: the heading under which the help lists it.
        metavar: what stands for its value in the help. It says how the value is written: LIST,
            SIZE, TIME, COUNT, GLOB, PROFILE, LAW and LOW,HIGH have ways of their own.
        short: a second name of one letter, with its dash.
        flag: the name of a flag that is not ``--<field>``, such as ``--no-sample``.
        type: of its value as typed, where the metavar has no way of its own.
        least: the smallest number allowed.
        most: the largest number allowed.
        required: whether the command line has to give it.
        common: whether most people need it: the help lists it before all groups.
        variable: the environment variable, where PHEMA_<OPTION> has values of another kind.
    """

    help: str
    group: str = "General"
    metavar: str = ""
    short: str | None = None
    flag: str | None = None
    type: Any = str
    least: float | None = None
    most: float | None = None
    required: bool = False
    common: bool = False
    variable: str | None = None


@dataclass(frozen=True, slots=True)
class Part:
    """Options that stand in a class of their own.

    Attributes:
        kind: the dataclass.
        names: those that the command line has; None for all.
    """

    kind: type
    names: frozenset[str] | None


def option(help: str, *, default: Any = None, **more: Any) -> Any:  # noqa: A002, ANN401 - as dataclasses.field
    """A field of a dataclass that is an option; ``more`` is what :class:`Option` takes."""
    return field(default=default, metadata={_KEY: Option(help, **more)})


#: options under headings that several commands have.
source_option = partial(option, group="Sources")
target_option = partial(option, group="Targets")
output_option = partial(option, group="Output")


def part(kind: type, names: frozenset[str] | None = None) -> Any:  # noqa: ANN401 - as dataclasses.field
    """A field that is a dataclass of options itself, of which the command line has ``names``."""
    return field(default_factory=kind, metadata={_KEY: Part(kind, names)})


def declared(
    kind: type, names: frozenset[str] | None = None
) -> Iterator[tuple[Field[Any], Option | Part]]:
    """The fields of a dataclass that are options, or parts of some, and what they declare.

    Args:
        kind: the dataclass.
        names: options to give; all by default.
    """
    for each in fields(kind):
        says = each.metadata.get(_KEY)
        if isinstance(says, Part):
            yield each, Part(says.kind, names if says.names is None else says.names)
        elif says is not None and (names is None or each.name in names):
            yield each, says


def typed(given: object, names: frozenset[str]) -> list[str]:
    """The options that a command line needs to give an object, without those of its defaults.

    Args:
        given: an object of a dataclass of options.
        names: the options that count.
    """
    words: list[str] = []
    for each, says in declared(type(given), names):
        value = getattr(given, each.name)
        if isinstance(says, Part):
            words += typed(value, names)
            continue
        flag = says.flag or f"--{each.name.replace('_', '-')}"
        if value == each.default or value is None:
            continue
        if isinstance(value, bool):
            words.append(flag)
        elif says.metavar == "LIST":
            words += [flag, ",".join(map(number_text, value))]
        else:
            several = value if isinstance(value, tuple) else (value,)
            for one in several:
                words += [flag, number_text(one) if isinstance(one, float) else str(one)]
    return words


def number_text(value: float) -> str:
    """The text of a number with all its digits: ``5``, ``0.999``."""
    return str(int(value)) if float(value).is_integer() else repr(float(value))
