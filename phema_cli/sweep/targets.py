"""What a sweep evaluates: its targets, their outputs, and the room that these may take."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from phema_cli.errors import InputError, UsageError
from phema_cli.estimate.solve import measure, solve_snapshots
from phema_cli.estimate.targets import make_targets, target_step
from phema_cli.profiles import CheckpointsSpec, PowerProfile, Profile, ProfileSpec
from phema_cli.request import GRID, Request
from phema_cli.snapshots.base import reference
from phema_cli.snapshots.scan import Scan
from phema_cli.solver import Figures
from phema_cli.solver.search import FURTHER_POINTS, spread_out
from phema_cli.sweep.evaluation import Evaluator
from phema_cli.sweep.request import SweepRequest
from phema_cli.synthesis import find_dtype, make_recipe
from phema_cli.synthesis.names import output_format
from phema_cli.synthesis.provenance import CARD, source_entry
from phema_cli.synthesis.recipe import Recipe
from phema_cli.trainers.side_files import side_files


@dataclass(frozen=True, slots=True)
class Target:
    """A target that is to be evaluated.

    Attributes:
        profile: the target.
        spec: what asks for it, where it is no power function.
        path: its output.
        size_bytes: bytes of that.
        figures: how good it is expected to be.
        refined: whether the search chose it.
    """

    profile: Profile
    spec: str | ProfileSpec | CheckpointsSpec | None
    path: Path
    size_bytes: int
    figures: Figures
    refined: bool

    @property
    def name(self) -> str:
        """What tells it from others in the file of results, also where labels are the same."""
        if isinstance(self.profile, PowerProfile):
            return self.profile.label
        return f"{self.profile.label} {_digest(self.profile)}"


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
        self.folder = Path(asked.output)
        if "{" in asked.output:
            raise UsageError(f"-o {asked.output} is no directory", remedy="leave braces out")
        self.evaluator = Evaluator(asked.eval, asked.metric, asked.metric_key, asked.timeout)
        self.scan = scan
        self.snapshots = scan.require()
        # With the slash it is where outputs are put, however many of them a call makes.
        self.request = replace(asked.request, output=f"{asked.output}/", overwrite=True)
        self.step = target_step(self.snapshots, self.request.step)
        self._measured = measure(scan, self.request)
        self._measured.tags.require()
        self.tags = self._measured.tags
        folder = reference(self.snapshots).folder
        own = [] if folder is None else side_files(folder)[0]
        self.beside = {CARD, *(f.path.name for f in own)}

    @property
    def _has_targets(self) -> bool:
        """Whether the request says what to make."""
        return bool(self.request.gammas or self.request.sigma_rels or self.request.profiles)

    @property
    def refine(self) -> int:
        """How many further points are searched."""
        if self.asked.refine is not None:
            return self.asked.refine
        return 0 if self._has_targets else FURTHER_POINTS

    def targets(self) -> list[Target]:
        """The targets of the request, or the default grid where it has none."""
        if self._has_targets:
            return self._targets(self.request)
        return self._targets(replace(self.request, sigma_rel=self._reached()))

    def powers(self, gammas: Sequence[float]) -> list[Target]:
        """Targets that the search has chosen."""
        if not gammas:
            return []
        return self._targets(self._of(gammas, ()), refined=True)

    def _targets(self, request: Request, *, refined: bool = False) -> list[Target]:
        """The targets of a request."""
        recipe = self._recipe(request)
        powers = len(recipe.targets) - len(request.profiles)
        specs = [*[None] * powers, *request.profiles]
        return [
            Target(profile, spec, output.path, output.size_bytes, figures, refined)
            for profile, spec, output, figures in zip(
                recipe.targets, specs, recipe.outputs, recipe.solution.figures, strict=True
            )
        ]

    def recipe(self, targets: Sequence[Target]) -> Recipe:
        """The recipe of these targets."""
        gammas = [t.profile.exponent for t in targets if t.spec is None]
        return self._recipe(self._of(gammas, [t.spec for t in targets if t.spec is not None]))

    def _of(
        self, gammas: Sequence[float], specs: Sequence[str | ProfileSpec | CheckpointsSpec]
    ) -> Request:
        """The request with other targets."""
        return replace(self.request, gamma=tuple(gammas), sigma_rel=(), profile=tuple(specs))

    def _recipe(self, request: Request) -> Recipe:
        """The recipe of a request, all of whose outputs are made."""
        recipe, _ = make_recipe(self.scan, request, self._measured)
        if recipe is None:
            raise AssertionError("nothing was to be skipped")
        self.beside |= {b.path.name for output in recipe.outputs for b in output.beside}
        return recipe

    def _reached(self) -> tuple[float, ...]:
        """A grid over the widest range of sigma_rel that can be reached fairly or well."""
        solution = solve_snapshots(
            self.snapshots,
            make_targets(self.snapshots, Request(sigma_rel=GRID, step=self.step)),
            self._measured,
            method=self.request.method,
            together=True,
        )
        runs: list[list[float]] = [[]]
        for sigma_rel, figures in zip(GRID, solution.figures, strict=True):
            if figures.verdict == "poor":
                runs.append([])
            else:
                runs[-1].append(sigma_rel)
        widest = max(runs, key=len)
        if not widest:
            raise InputError(
                "the snapshots reach no sigma_rel even fairly",
                remedy="see phema inspect; pass --sigma-rel to sweep nevertheless",
            )
        return spread_out(widest[0], widest[-1])

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


def _digest(value: object) -> str:
    """What tells a value from others, in hexadecimal."""
    return hashlib.blake2b(repr(value).encode(), digest_size=8).hexdigest()
