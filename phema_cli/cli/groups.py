"""Groups of options that go together, and what a command makes of them."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, is_dataclass
from functools import wraps
from typing import TYPE_CHECKING, Any, get_type_hints

import typer

from phema_cli.cli import options, parsing
from phema_cli.cli.threads import load_numpy
from phema_cli.errors import UsageError

if TYPE_CHECKING:
    from phema_cli.estimate.solve import Measured
    from phema_cli.profiles import Profile as TargetProfile
    from phema_cli.profiles import ProfileSpec
    from phema_cli.snapshots import Config, Scan, Snapshot
    from phema_cli.solver import Solution


@dataclass(frozen=True, slots=True)
class Sources:
    """How snapshots are found and read."""

    pattern: options.Pattern = None
    gammas: options.Gammas = None
    sigma_rels: options.SigmaRels = None
    average: options.Average = None
    raw: options.Raw = False
    trust_tags: options.TrustTags = False
    update_every: options.UpdateEvery = None
    steps_per_epoch: options.StepsPerEpoch = None
    key: options.Key = None
    names_from: options.NamesFrom = None
    select: options.Select = None
    exclude: options.Exclude = None

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
        from phema_cli.estimate.evidence import with_proposal

        return with_proposal(found)


@dataclass(frozen=True, slots=True)
class Targets:
    """What to build."""

    gamma: options.Gamma = None
    sigma_rel: options.SigmaRel = None
    profile: options.Profile = None

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

    step: options.Step = None
    method: options.Method = "blue"
    no_sample: options.NoSample = False

    def measure(self, found: Scan) -> Measured:
        """What a sample of the snapshots shows; nothing without one."""
        from phema_cli.estimate.solve import Measured, measure

        if self.no_sample:
            return Measured()
        return measure(found.snapshots, copy=found.copy, trust_tags=found.trust_tags)

    def solve(
        self,
        found: Scan,
        targets: Sequence[TargetProfile],
        measured: Measured | None = None,
        *,
        together: bool = False,
    ) -> Solution:
        """The weights of targets, or figures alone; errors as ``solve_snapshots`` has them.

        Raises:
            InputError: the snapshots contradict their tags, and ``measured`` was not given.
        """
        from phema_cli.estimate.solve import solve_snapshots

        if measured is None:
            measured = self.measure(found)
            measured.tags.require()
        return solve_snapshots(
            found.snapshots, targets, measured, method=self.method, together=together
        )


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
