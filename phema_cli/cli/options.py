"""Commands whose options are made from the declarations in ``phema_cli.request``."""

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import Field, is_dataclass, replace
from functools import wraps
from typing import Annotated, Any, get_args, get_type_hints

import typer

from phema_cli.cli import completing, parsing
from phema_cli.cli.process import load_numpy
from phema_cli.options import Option, Part, declared
from phema_cli.request import Config

GENERAL = "General"


def option(*names: str, help: str, panel: str | None = GENERAL, **more: Any) -> Any:  # noqa: A002, ANN401 - typer's own names and types
    """A typer option that also reads ``PHEMA_<OPTION>``, or a ``variable`` of its own."""
    long = next(n for n in names if n.startswith("--")).partition("/")[0]
    own = "PHEMA_" + long.removeprefix("--").replace("-", "_").upper()
    variable = more.pop("variable", None) or own
    return typer.Option(
        *names, help=help, rich_help_panel=panel, envvar=variable, show_envvar=False, **more
    )


def argument(help: str, metavar: str) -> Any:  # noqa: A002, ANN401 - as above
    """A typer argument that takes paths of snapshots or checkpoints."""
    return typer.Argument(help=help, metavar=metavar, autocompletion=completing.paths)


Paths = Annotated[
    list[str], argument("Snapshots, or directories that hold them; URLs too.", "PATH")
]
Json = Annotated[bool, option("--json", help="Print one JSON document.")]
Quiet = Annotated[bool, option("--quiet", "-q", help="No progress, tables or notices on stderr.")]
Verbose = Annotated[bool, option("--verbose", "-v", help="Show every snapshot or tensor.")]

#: what a shell offers for values, by the name of the field.
_OFFERED: Mapping[str, Callable[[], Sequence[str]]] = {
    "average": completing.averages,
    "dtype": completing.dtypes,
    "format": completing.formats,
    "method": completing.methods,
    "profile": completing.profiles,
}


#: typer's type of values, and what reads them, by the metavar that says how they are written.
_WRITTEN: Mapping[str, tuple[Any, Callable[[Any], Any]]] = {
    "LIST": (list[str] | None, parsing.numbers),
    "PROFILE": (list[str] | None, parsing.profiles),
    "GLOB": (list[str] | None, tuple),
    "LAW": (list[str] | None, lambda texts: tuple(texts) or None),
    "SIZE": (str | None, parsing.size),
    "TIME": (str | None, parsing.seconds),
    "COUNT": (str | None, parsing.count),
    "LOW,HIGH": (str, parsing.ends),
}


def _is_negated(says: Option) -> bool:
    """Whether a flag takes back what is so by default."""
    return says.flag is not None and says.flag.startswith("--no-")


def _read(each: Field[Any], says: Option, value: Any) -> Any:  # noqa: ANN401 - of any option
    """The value of an option, of what typer has read."""
    if value is None:
        return each.default
    if _is_negated(says):
        return not value
    return _WRITTEN[says.metavar][1](value) if says.metavar in _WRITTEN else value


def _parameter(each: Field[Any], says: Option) -> inspect.Parameter:
    """The typer parameter of a field; a flag ``--no-...`` is one that is off by default."""
    default: Any = each.default
    kind = says.type
    if isinstance(default, bool):
        kind, default = bool, default != _is_negated(says)
    elif says.metavar in _WRITTEN:
        kind, default = _WRITTEN[says.metavar][0], _written(says.metavar, default)
    elif says.required:
        default = inspect.Parameter.empty
    elif default is None:
        kind |= None
    typers = option(
        says.flag or f"--{each.name.replace('_', '-')}",
        *([says.short] if says.short else []),
        help=says.help,
        panel=None if says.common else says.group,
        variable=says.variable,
        min=says.least,
        max=says.most,
        autocompletion=_OFFERED.get(each.name),
        # Where there is none, typer says the choices of its own types.
        metavar=says.metavar or None,
    )
    named = inspect.Parameter.KEYWORD_ONLY
    return inspect.Parameter(each.name, named, default=default, annotation=Annotated[kind, typers])


def _written(metavar: str, default: Any) -> Any:  # noqa: ANN401 - a value as it would be typed
    """A default as it would be typed."""
    if metavar == "SIZE" and default is not None:
        return f"{default >> 20}MiB"
    return ",".join(f"{end:.2f}" for end in default) if metavar == "LOW,HIGH" else default or None


def _parameters(kind: type, names: frozenset[str] | None) -> Iterator[inspect.Parameter]:
    """The typer parameters of a class of options."""
    for each, says in declared(kind, names):
        if isinstance(says, Part):
            yield from _parameters(says.kind, says.names)
        else:
            yield _parameter(each, says)


def made(
    kind: type, names: frozenset[str] | None, given: dict[str, Any], typed: frozenset[str]
) -> Any:  # noqa: ANN401 - an object of that class
    """An object of a class of options, made of values that it takes out of what typer has read.

    Args:
        kind: the class.
        names: those of its options that the command has; None for all.
        given: values as they were typed.
        typed: names of options that were typed in this call, not read from a variable.
    """
    values = {}
    for each, says in declared(kind, names):
        if isinstance(says, Part):
            values[each.name] = made(says.kind, says.names, given, typed)
        else:
            values[each.name] = _read(each, says, given.pop(each.name))
    asked = kind(**values)
    return _insisting(asked, typed) if isinstance(asked, Config) else asked


def _insisting(config: Config, typed: frozenset[str]) -> Config:
    """What was typed in this call, and not read from a variable, has to fit something."""

    def globs(*names: str) -> tuple[tuple[str, str], ...]:
        return tuple((f"--{n}", v) for n in names if n in typed for v in getattr(config, n))

    return replace(
        config,
        insists=not typed.isdisjoint({"average", "gammas", "sigma_rels"}),
        typed=globs("copy", "drop"),
        typed_files=globs("select", "exclude"),
    )


def _is_general(parameter: inspect.Parameter) -> bool:
    """Whether it is one of the options that all commands have in common."""
    info = (get_args(parameter.annotation) or (None,))[-1]
    return getattr(info, "rich_help_panel", None) == GENERAL


#: the parameter that typer gives its context by.
_CONTEXT = "context"


def command(function: Callable[..., None]) -> Callable[..., None]:
    """A command whose parameters of classes of options become the options that these declare.

    ``Annotated[Request, names]`` has those of these names alone.
    """
    groups: dict[str, tuple[type, frozenset[str] | None]] = {}
    taken: list[inspect.Parameter] = []
    hints = get_type_hints(function, include_extras=True)
    for name, parameter in inspect.signature(function).parameters.items():
        kind, *extra = get_args(hints[name]) or (hints[name],)
        if isinstance(kind, type) and is_dataclass(kind):
            groups[name] = kind, next(iter(extra), None)
            taken += _parameters(*groups[name])
        else:
            taken.append(parameter.replace(annotation=hints[name]))
    # In the help the last group is that of all commands.
    taken.sort(key=_is_general)
    wants_context = any(parameter.name == _CONTEXT for parameter in taken)
    if not wants_context:
        kind = inspect.Parameter.KEYWORD_ONLY
        taken.append(inspect.Parameter(_CONTEXT, kind, annotation=typer.Context))

    @wraps(function)
    def called(**given: Any) -> None:  # noqa: ANN401 - values of all options
        load_numpy()
        context = given[_CONTEXT] if wants_context else given.pop(_CONTEXT)
        sources = {name: context.get_parameter_source(name) for name in given}
        typed = frozenset(n for n, s in sources.items() if s and s.name == "COMMANDLINE")
        for name, (kind, names) in groups.items():
            given[name] = made(kind, names, given, typed)
        function(**given)

    called.__signature__ = inspect.Signature(taken)  # type: ignore[attr-defined]  # read by inspect
    return called
