"""What a sweep evaluates: its targets, what they are compared with, and their outputs."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from phema_cli.errors import InputError, PhemaError, UsageError
from phema_cli.estimate.given_weights import combined
from phema_cli.estimate.solve import measure, solve_snapshots
from phema_cli.estimate.targets import make_targets, target_step, time_of
from phema_cli.formats.image import PROVENANCE_KEY
from phema_cli.profiles import CheckpointsSpec, PowerProfile, Profile, ProfileSpec
from phema_cli.request import GRID, Request
from phema_cli.snapshots import Snapshot
from phema_cli.snapshots.base import Finding, reference
from phema_cli.snapshots.consistency import home_of
from phema_cli.snapshots.scan import Scan
from phema_cli.solver import Figures
from phema_cli.solver.search import FURTHER_POINTS, Limits, spread_out
from phema_cli.sweep import families
from phema_cli.sweep.evaluation import Evaluator
from phema_cli.sweep.families import SIGMA_REL, Family
from phema_cli.sweep.request import CHECKPOINTS, SweepRequest
from phema_cli.sweep.results import Record
from phema_cli.synthesis import find_dtype, make_recipe
from phema_cli.synthesis.layout import CARD
from phema_cli.synthesis.names import directory, output_format
from phema_cli.synthesis.provenance import command, source_entry
from phema_cli.synthesis.recipe import Recipe
from phema_cli.trainers.side_files import side_files

#: what asks for a target: the gamma of a power function, or another profile.
Spec = float | str | ProfileSpec | CheckpointsSpec
#: error in per cent up to which a search leaves what is reached fairly: with more, a target is
#: nearer to the next point of the search than to itself.
_ALLOWED = 25.0
Kind = Literal["last weights", "stored average", "last checkpoint"]
#: the mean of one checkpoint: what is last where nothing says what the snapshots are.
_LAST = f"{CHECKPOINTS}=1"


@dataclass(frozen=True, slots=True)
class Target:
    """A target that is to be evaluated.

    Attributes:
        profile: the target.
        spec: what asks for it.
        path: its output.
        size_bytes: bytes of that.
        figures: how good it is expected to be.
        refined: whether the search chose it.
        baseline: what it is where it is stored as it is: ``last weights``, ``stored average``.
    """

    profile: Profile
    spec: Spec
    path: Path
    size_bytes: int
    figures: Figures
    refined: bool
    baseline: str | None = None

    @property
    def power(self) -> PowerProfile | None:
        """Its profile, where that is a power function."""
        return self.profile if isinstance(self.profile, PowerProfile) else None

    @property
    def name(self) -> str:
        """What tells it from others in the file of results, also where labels are the same."""
        label = self.profile.label
        return label if self.power is not None else f"{label} {_digest(self.profile)}"


@dataclass(frozen=True, slots=True)
class Baseline:
    """A snapshot as it was stored.

    Attributes:
        kind: what it is.
        label: what users call it, one for each baseline.
        spec: what asks for it; a power function that ends with the targets is a point of the search
            too.
    """

    kind: Kind
    label: str
    spec: Spec


@dataclass(frozen=True, slots=True)
class Reach:
    """Which lengths of a family the snapshots allow.

    Attributes:
        grid: the first lengths to evaluate: over those that are reached fairly or well; none where
            there are none.
        limits: those that may be evaluated; None where none is known.
    """

    grid: tuple[float, ...]
    limits: Limits | None


class Planner:
    """Plans the outputs of a sweep.

    Args:
        scan: the snapshots.
        asked: what to make of them.

    Attributes:
        evaluator: what is run on each output.
        beside: names of the files that outputs have beside their weights.
    """

    def __init__(self, scan: Scan, asked: SweepRequest) -> None:
        self.asked = asked
        self.folder = directory(asked.output)
        if "{" in asked.output:
            raise UsageError(f"-o {asked.output} is no directory", remedy="leave braces out")
        self.evaluator = Evaluator(
            asked.eval, asked.metric, asked.metric_key, asked.timeout, asked.log
        )
        self.scan = scan
        self.snapshots = scan.require()
        # With the slash it is where outputs are put, however many of them a call makes.
        self.request = replace(asked.request, output=f"{asked.output}/", overwrite=True)
        self.step = target_step(self.snapshots, self.request.step)
        self.end = time_of(self.snapshots, self.step)
        self._reached: dict[Family, Reach] = {}
        self._measured = measure(scan, self.request)
        self._measured.tags.require()
        self._stored = _baselines(scan, self.step, self.end)
        folder = reference(self.snapshots).folder
        own = [] if folder is None else side_files(folder)[0]
        self.beside = {CARD, *(f.path.name for f in own)}

    @property
    def findings(self) -> tuple[Finding, ...]:
        """What the user should know of how the snapshots fit their tags."""
        return self._measured.tags.findings

    @property
    def searched(self) -> Family | None:
        """The family that a grid is evaluated of; None where the request says all targets."""
        if self.asked.search is not None:
            return families.find(self.asked.search, self.end)
        given = self.request.gammas or self.request.sigma_rels or self.request.profiles
        return None if given else Family(SIGMA_REL, self.end)

    @property
    def refine(self) -> int:
        """How many further points are searched."""
        if self.asked.refine is not None:
            return self.asked.refine
        return 0 if self.searched is None else FURTHER_POINTS

    def targets(self) -> list[Target]:
        """The baselines, the targets of the request and the grid of the family that is searched."""
        request, family = self.request, self.searched
        if family is not None:
            grid = self.reach(family).grid
            if not grid:
                raise InputError(
                    f"the snapshots reach no length of {family.name} even fairly",
                    remedy="see phema inspect, or pass lengths of your own",
                )
            request = self._with(request, family, grid)
        given = make_targets(self.snapshots, request)
        stored = self._stored if self.asked.baselines else []
        kinds = {one.label: one.kind for one in stored}
        labels = {target.label for target in given}
        more = self._of([one.spec for one in stored if one.label not in labels])
        gammas, profiles = (*more.gammas, *request.gammas), (*request.profiles, *more.profiles)
        made = self._targets(replace(request, gamma=gammas, profile=profiles))
        marked = [replace(t, baseline=kinds.get(t.profile.label)) for t in made]
        return sorted(marked, key=lambda t: t.baseline is None)

    def _with(self, request: Request, family: Family, scales: Sequence[float]) -> Request:
        """The request with lengths of a family too, but for those that it has."""
        if family.name == SIGMA_REL:
            there = {f"{s:.4g}" for s in request.sigma_rels}
            more = [s for s in scales if f"{s:.4g}" not in there]
            return replace(request, sigma_rel=(*request.sigma_rels, *more))
        texts = [family.text(scale) for scale in scales]
        there = {p if isinstance(p, str) else p.label for p in request.profiles}
        return replace(request, profile=(*request.profiles, *(t for t in texts if t not in there)))

    def of_lengths(self, family: Family, scales: Sequence[float]) -> list[Target]:
        """Targets that the search has chosen."""
        if not scales:
            return []
        return self._targets(self._with(self._of(()), family, scales), refined=True)

    def again(self, records: Sequence[Record]) -> list[Target]:
        """The targets of earlier results, without those that can't be made of what is recorded."""
        stored = {one.label: one.spec for one in self._stored}
        made = []
        for record in records:
            spec = stored.get(record.profile, record.profile)
            request = self._of([spec if record.gamma is None else record.gamma])
            try:
                (target,) = self._targets(request)
            except PhemaError:
                # A profile from a file, whose name alone is recorded.
                continue
            if target.name == record.target:
                made.append(replace(target, refined=record.refined, baseline=record.baseline))
        return made

    def _targets(self, request: Request, *, refined: bool = False) -> list[Target]:
        """The targets of a request."""
        recipe = self._recipe(request)
        powers = len(recipe.targets) - len(request.profiles)
        specs = [*(p.exponent for p in recipe.targets[:powers]), *request.profiles]
        return [
            Target(profile, spec, output.path, output.size_bytes, figures, refined)
            for profile, spec, output, figures in zip(
                recipe.targets, specs, recipe.outputs, recipe.figures, strict=True
            )
        ]

    def recipe(self, targets: Sequence[Target]) -> Recipe:
        """The recipe of these targets."""
        return self._recipe(self._of([t.spec for t in targets]))

    def _of(self, specs: Sequence[Spec]) -> Request:
        """The request with other targets."""
        gammas = tuple(s for s in specs if isinstance(s, int | float))
        profiles = tuple(s for s in specs if not isinstance(s, int | float))
        return replace(self.request, gamma=gammas, sigma_rel=(), profile=profiles)

    def _recipe(self, request: Request) -> Recipe:
        """The recipe of a request, all of whose outputs are made."""
        recipe, _ = make_recipe(self.scan, request, self._measured)
        if recipe is None:
            raise AssertionError("nothing was to be skipped")
        self.beside |= {b.path.name for output in recipe.outputs for b in output.beside}
        return recipe

    def reach(self, family: Family) -> Reach:
        """Which lengths of a family the snapshots allow."""
        if family not in self._reached:
            self._reached[family] = self._look(family)
        return self._reached[family]

    def _look(self, family: Family) -> Reach:
        """The widest range of lengths that can be reached, and what lies next to it."""
        scales = family.looked_at(len({s.tag.step for s in self.snapshots}))
        if family.name == CHECKPOINTS:
            return Reach(spread_out(scales[0], scales[-1], whole=True), family.limits(scales))
        figures = self._figures(family, scales)
        runs: list[list[int]] = [[]]
        for i, one in enumerate(figures):
            if one.verdict == "poor":
                runs.append([])
            elif family.name != SIGMA_REL or scales[i] in GRID:
                runs[-1].append(i)
        widest = max(runs, key=len)
        if not widest:
            return Reach((), None)
        first, last = widest[0], widest[-1]
        grid = spread_out(scales[first], scales[last])
        while first > 0 and _is_allowed(figures[first - 1]):
            first -= 1
        while last + 1 < len(scales) and _is_allowed(figures[last + 1]):
            last += 1
        return Reach(grid, family.limits(scales[first : last + 1]))

    def _figures(self, family: Family, scales: Sequence[float]) -> tuple[Figures, ...]:
        """How well targets of these lengths are met."""
        request = self._with(Request(step=self.step), family, scales)
        return solve_snapshots(
            self.snapshots,
            make_targets(self.snapshots, request),
            self._measured,
            method=self.request.method,
            together=True,
        ).figures

    def command(self, record: Record) -> str | None:
        """The command line that makes the output of a result; None where no options do."""
        try:
            request = self._of([record.profile if record.gamma is None else record.gamma])
            (profile,) = make_targets(self.snapshots, request)
        except PhemaError:
            return None
        return command(self.scan.roots, self.request, profile)

    def check_room(self, targets: Sequence[Target]) -> None:
        """Refuse a --max-disk that can't be kept."""
        limit, total = self.asked.max_disk, len(targets) + self.refine
        needed = {"all": total, "best": min(2, total), "none": 1}[self.asked.keep]
        size = max(t.size_bytes for t in targets)
        if limit is not None and needed * size > limit:
            raise UsageError(
                f"--max-disk {limit} has no room for {needed} outputs of {size} bytes",
                remedy=f"at least {needed * size} with --keep {self.asked.keep}",
            )

    def identity(self) -> dict[str, object]:
        """What results depend on, beside the targets."""
        request, evaluator = self.request, self.evaluator
        # Copies of the snapshots have other inodes, and are the same.
        sources = [
            (
                source_entry(s),
                s.checkpoint.key,
                [t[1:] for _, t in sorted(s.checkpoint.stamps.items())],
            )
            for s in self.snapshots
        ]
        return {
            "sources": _digest(sources),
            "eval": evaluator.command,
            "metric": evaluator.pattern,
            "metric_key": evaluator.key,
            "step": self.step,
            "method": request.method,
            "sample": request.sample,
            "copy": list(self.scan.copy),
            **({"drop": list(self.scan.drop)} if self.scan.drop else {}),
            "dtype": None if request.dtype is None else find_dtype(request.dtype).label,
            "format": output_format(self.asked.output, request.format),
        }


def _baselines(scan: Scan, step: float, end: float) -> list[Baseline]:
    """The newest snapshot of each series at a step; those that are older would not compare.

    Args:
        scan: the snapshots.
        step: of the targets, as the trainer counts.
        end: their time.
    """
    newest: dict[tuple[str, str, str], int] = {}
    for i, snapshot in enumerate(scan.snapshots):
        if snapshot.tag.step == step and PROVENANCE_KEY not in snapshot.checkpoint.metadata:
            newest[home_of(snapshot), snapshot.series, snapshot.tag.label] = i
    if scan.needs != "laws":
        last = CheckpointsSpec.read(_LAST)
        return [Baseline("last checkpoint", _LAST, last)] if len(newest) == 1 else []
    found: dict[str, Baseline] = {}
    for i in newest.values():
        one = _baseline(scan.snapshots, i, end)
        # Of several runs the newest of one kind stands for all.
        found.setdefault(one.label, one)
    return list(found.values())


def _baseline(snapshots: Sequence[Snapshot], place: int, end: float) -> Baseline:
    """The baseline of a snapshot."""
    tag = snapshots[place].tag
    kind: Kind = "last weights" if tag.label == "raw" else "stored average"
    profile = tag.profile
    if isinstance(profile, PowerProfile) and profile.end == end and profile.gamma >= 0:
        return Baseline(kind, profile.label, profile.gamma)

    def as_it_is(_end: float) -> Profile:
        return combined(snapshots, {place: 1.0}, tag.label, "mean")

    return Baseline(kind, tag.label, ProfileSpec(tag.label, as_it_is))


def _is_allowed(figures: Figures) -> bool:
    """Whether a target is met so well that its length means something."""
    error = figures.sigma_error
    per_cent = 100 * figures.expected_error if error is None else error
    return figures.verdict != "poor" or per_cent <= _ALLOWED


def _digest(value: object) -> str:
    """What tells a value from others, in hexadecimal."""
    return hashlib.blake2b(repr(value).encode(), digest_size=8).hexdigest()
