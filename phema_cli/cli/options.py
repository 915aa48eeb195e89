"""The options that commands share, each declared once, and the groups that they come in."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, is_dataclass
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import typer

from phema_cli.cli import completing, parsing
from phema_cli.cli.threads import load_numpy
from phema_cli.errors import UsageError

if TYPE_CHECKING:
    from phema_cli.estimate.solve import Measured
    from phema_cli.profiles import Profile as TargetProfile
    from phema_cli.profiles import ProfileSpec
    from phema_cli.snapshots import Config, Scan, Snapshot
    from phema_cli.solver import Solution

_TARGETS, _SOURCES, _GENERAL, OUTPUT = "Targets", "Sources", "General", "Output"


def option(*names: str, help: str, panel: str = _GENERAL, **more: Any) -> Any:  # noqa: A002, ANN401 - typer's own names and types
    """A typer option that also reads ``PHEMA_<OPTION>``."""
    long = next(n for n in names if n.startswith("--")).partition("/")[0]
    variable = "PHEMA_" + long.removeprefix("--").replace("-", "_").upper()
    return typer.Option(
        *names, help=help, rich_help_panel=panel, envvar=variable, show_envvar=False, **more
    )


def flag(*names: str, help: str, panel: str = _GENERAL) -> Any:  # noqa: A002, ANN401 - as above
    """An option without a value; nothing stands for one in the help."""
    return option(*names, help=help, panel=panel, metavar="")


Paths = Annotated[
    list[str],
    typer.Argument(
        help="Snapshots, or directories that hold them; URLs too.",
        metavar="PATH",
        autocompletion=completing.paths,
    ),
]
Gamma = Annotated[
    list[str] | None,
    option(
        "--gamma",
        "-g",
        help="Target gammas: 7 or 5,7,9 or 4,5,...,10.",
        panel=_TARGETS,
        metavar="LIST",
    ),
]
SigmaRel = Annotated[
    list[str] | None,
    option(
        "--sigma-rel",
        "-s",
        help="Targets by sigma_rel: 0.10 or 0.05,0.06,...,0.15.",
        panel=_TARGETS,
        metavar="LIST",
    ),
]
Profile = Annotated[
    list[str] | None,
    option(
        "--profile",
        help="Target of another weighting: uniform:last=0.2, exponential:beta=0.999, "
        "exponential:halflife=2000, cooldown:last=0.2, raw, csv:FILE.",
        panel=_TARGETS,
        metavar="PROFILE",
        autocompletion=completing.profiles,
    ),
]
Step = Annotated[
    float | None,
    option(
        "--step",
        help="Time of the targets; the last snapshot's by default.",
        panel=_TARGETS,
        metavar="N",
    ),
]
Method = Annotated[
    str,
    option(
        "--method",
        help="How weights are solved: blue, normalized, projection.",
        panel=_TARGETS,
        metavar="NAME",
        autocompletion=completing.methods,
    ),
]
Pattern = Annotated[
    str | None,
    option(
        "--pattern",
        help="Regular expression searched in each path, with named groups gamma, sigma_rel, "
        "beta, index, step, kimg or epoch.",
        panel=_SOURCES,
        metavar="REGEX",
    ),
]
Gammas = Annotated[
    list[str] | None,
    option(
        "--gammas",
        help="Gammas that the index in a name counts, or the one gamma of all.",
        panel=_SOURCES,
        metavar="LIST",
    ),
]
SigmaRels = Annotated[
    list[str] | None,
    option("--sigma-rels", help="The same by sigma_rel.", panel=_SOURCES, metavar="LIST"),
]
UpdateEvery = Annotated[
    int | None,
    option(
        "--update-every",
        help="Steps between two updates of the averages, as the trainer was told.",
        panel=_SOURCES,
        min=1,
        metavar="N",
    ),
]
StepsPerEpoch = Annotated[
    int | None,
    option(
        "--steps-per-epoch",
        help="Steps of an epoch, for snapshots that count epochs.",
        panel=_SOURCES,
        min=1,
        metavar="N",
    ),
]
Average = Annotated[
    list[str] | None,
    option(
        "--average",
        help="What the average is, where the files don't say: exponential:beta=0.999, ...",
        panel=_SOURCES,
        metavar="LAW",
        autocompletion=completing.averages,
    ),
]
Raw = Annotated[
    bool,
    flag(
        "--raw",
        help="The snapshots are raw weights; averages beside them are left out.",
        panel=_SOURCES,
    ),
]
TrustTags = Annotated[
    bool,
    flag(
        "--trust-tags",
        help="What you say of the snapshots holds, whatever the files say.",
        panel=_SOURCES,
    ),
]
NamesFrom = Annotated[
    Path | None,
    option(
        "--names-from",
        help="State dict that names the tensors of snapshots that are lists.",
        panel=_SOURCES,
        metavar="FILE",
    ),
]
Key = Annotated[
    str | None,
    option(
        "--key",
        help="Dict of weights inside a nested checkpoint, dotted.",
        panel=_SOURCES,
        metavar="NAME",
    ),
]
Select = Annotated[
    list[str] | None,
    option("--select", help="Use only these snapshots.", panel=_SOURCES, metavar="GLOB"),
]
Exclude = Annotated[
    list[str] | None,
    option("--exclude", help="Leave these snapshots out.", panel=_SOURCES, metavar="GLOB"),
]
Copy = Annotated[
    list[str] | None,
    option(
        "--copy",
        help="Tensors to copy from the newest snapshot instead of averaging.",
        panel=_SOURCES,
        metavar="GLOB",
    ),
]
Drop = Annotated[
    list[str] | None,
    option("--drop", help="Tensors to leave out.", panel=_SOURCES, metavar="GLOB"),
]
NoSample = Annotated[
    bool,
    flag(
        "--no-sample",
        help="Read no tensors to learn how they move and round; assume a random walk in log time.",
        panel=_TARGETS,
    ),
]
Format = Annotated[
    str | None,
    option(
        "--format",
        help="safetensors, torch or edm2; by the ending of -o by default, else safetensors.",
        panel=OUTPUT,
        metavar="NAME",
        autocompletion=completing.formats,
    ),
]
Dtype = Annotated[
    str | None,
    option(
        "--dtype",
        help="Type of averaged tensors: float32, float16, bfloat16, ...; as stored by default.",
        panel=OUTPUT,
        metavar="TYPE",
        autocompletion=completing.dtypes,
    ),
]
Jobs = Annotated[
    int | None,
    option(
        "--jobs",
        "-j",
        help="Workers, up to 256; one per processor by default, at most 8.",
        min=1,
        max=256,
        metavar="N",
    ),
]
MaxMemory = Annotated[
    str,
    option("--max-memory", help="Memory to use above what torch itself takes.", metavar="SIZE"),
]
Json = Annotated[bool, flag("--json", help="Print one JSON document.")]
Quiet = Annotated[bool, flag("--quiet", "-q", help="No progress, tables or notices on stderr.")]
Verbose = Annotated[bool, flag("--verbose", "-v", help="Show every snapshot or tensor.")]


@dataclass(frozen=True, slots=True)
class Sources:
    """How snapshots are found and read."""

    pattern: Pattern = None
    gammas: Gammas = None
    sigma_rels: SigmaRels = None
    average: Average = None
    raw: Raw = False
    trust_tags: TrustTags = False
    update_every: UpdateEvery = None
    steps_per_epoch: StepsPerEpoch = None
    key: Key = None
    names_from: NamesFrom = None
    select: Select = None
    exclude: Exclude = None

    def config(
        self, copy: Sequence[str] | None = None, drop: Sequence[str] | None = None
    ) -> Config:
        """What the options say, and the tensors to copy and to leave out.

        Raises:
            UsageError: two of them say the same thing.
        """
        from phema_cli.profiles import gamma_from_sigma_rel
        from phema_cli.snapshots import Config
        from phema_cli.trainers.registry import parse_law

        if self.gammas and self.sigma_rels:
            raise UsageError(
                "--gammas and --sigma-rels say the same thing", remedy="pass one of them"
            )
        if self.average and self.raw:
            raise UsageError("--average and --raw say two things", remedy="pass one of them")
        for law in self.average or ():
            parse_law(law)
        return Config(
            pattern=self.pattern,
            gammas=parsing.numbers(self.gammas)
            or tuple(gamma_from_sigma_rel(s) for s in parsing.numbers(self.sigma_rels)),
            average=tuple(self.average or ()) or None,
            raw=self.raw,
            trust_tags=self.trust_tags,
            insists=any(
                isinstance(g, parsing.Typed) for g in (self.average, self.gammas, self.sigma_rels)
            ),
            update_every=self.update_every,
            steps_per_epoch=self.steps_per_epoch,
            key=self.key,
            names_from=self.names_from,
            select=tuple(self.select or ()),
            exclude=tuple(self.exclude or ()),
            copy=tuple(copy or ()),
            drop=tuple(drop or ()),
            typed=parsing.typed({"--copy": copy, "--drop": drop}),
            typed_files=parsing.typed({"--select": self.select, "--exclude": self.exclude}),
        )

    def scan(self, paths: Sequence[str], *, sampled: bool, **tensors: Sequence[str] | None) -> Scan:
        """The snapshots; where only their laws are missing, what these look like.

        Args:
            paths: files and directories.
            sampled: whether tensors may be looked at.
            **tensors: those to copy and to drop.

        Errors as ``phema_cli.snapshots.scan`` has them.
        """
        from phema_cli.snapshots import scan

        found = scan(paths, self.config(**tensors))
        if not (sampled and found.untagged):
            return found
        from phema_cli.estimate.proposal import with_proposal

        return with_proposal(found)


@dataclass(frozen=True, slots=True)
class Targets:
    """What to build."""

    gamma: Gamma = None
    sigma_rel: SigmaRel = None
    profile: Profile = None

    @property
    def gammas(self) -> tuple[float, ...]:
        """Exponents."""
        return parsing.numbers(self.gamma)

    @property
    def sigma_rels(self) -> tuple[float, ...]:
        """Relative standard deviations."""
        return parsing.numbers(self.sigma_rel)

    @property
    def profiles(self) -> tuple[ProfileSpec, ...]:
        """Other weightings."""
        return parsing.profiles(self.profile)

    def at(self, step: float | None, snapshots: Sequence[Snapshot]) -> list[TargetProfile]:
        """The targets at a step of these snapshots; errors as ``make_targets`` has them."""
        from phema_cli.estimate.solve import make_targets

        return make_targets(
            snapshots,
            gammas=self.gammas,
            sigma_rels=self.sigma_rels,
            profiles=self.profiles,
            step=step,
        )


@dataclass(frozen=True, slots=True)
class Solving:
    """How weights are solved, and for which time."""

    step: Step = None
    method: Method = "blue"
    no_sample: NoSample = False

    def measure(self, found: Scan) -> Measured:
        """What a sample of the snapshots shows; nothing without one."""
        from phema_cli.estimate.solve import Measured, measure

        if self.no_sample:
            return Measured()
        return measure(found.snapshots, copy=found.copy, trust_tags=found.trust_tags)

    def solve(
        self, found: Scan, targets: Sequence[TargetProfile], measured: Measured | None = None
    ) -> Solution:
        """The weights of targets; errors as ``solve_snapshots`` has them.

        Raises:
            InputError: the snapshots contradict their tags, and ``measured`` was not given.
        """
        from phema_cli.estimate.solve import solve_snapshots

        if measured is None:
            measured = self.measure(found)
            measured.tags.require()
        return solve_snapshots(found.snapshots, targets, measured, method=self.method)


#: the parameter that typer gives its context by.
_CONTEXT = "context"


def spread(command: Callable[..., None]) -> Callable[..., None]:
    """A command whose parameters that are groups of options are taken apart into the options.

    Typer knows options one by one only.
    """
    hints = get_type_hints(command, include_extras=True)
    taken: list[inspect.Parameter] = []
    groups: dict[str, Any] = {}
    for name, parameter in inspect.signature(command).parameters.items():
        if is_dataclass(hints[name]):
            groups[name] = hints[name]
            inner = get_type_hints(hints[name], include_extras=True)
            taken += [
                parameter.replace(name=f.name, annotation=inner[f.name], default=f.default)
                for f in fields(hints[name])
            ]
        else:
            taken.append(parameter.replace(annotation=hints[name]))
    asked = any(parameter.name == _CONTEXT for parameter in taken)
    if not asked:
        kind = inspect.Parameter.KEYWORD_ONLY
        taken.append(inspect.Parameter(_CONTEXT, kind, annotation=typer.Context))

    @wraps(command)
    def called(**given: Any) -> None:  # noqa: ANN401 - values of all options
        load_numpy()
        context = given[_CONTEXT] if asked else given.pop(_CONTEXT)
        parsing.mark_typed(given, context)
        for name, group in groups.items():
            given[name] = group(**{f.name: given.pop(f.name) for f in fields(group)})
        command(**given)

    called.__signature__ = inspect.Signature(taken)  # type: ignore[attr-defined]  # read by inspect
    return called
