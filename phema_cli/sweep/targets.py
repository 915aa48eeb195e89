"""What a sweep evaluates: its targets, their outputs, and the room that these may take."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from phema_cli.errors import InputError, UsageError
from phema_cli.estimate.solve import make_targets, solve_snapshots, target_step
from phema_cli.profiles import PowerProfile, Profile, ProfileSpec
from phema_cli.snapshots.scan import Scan
from phema_cli.solver import Figures
from phema_cli.solver.search import spread_out
from phema_cli.sweep.evaluation import Evaluator
from phema_cli.synthesis import Request, plan
from phema_cli.synthesis.layout import output_format
from phema_cli.synthesis.provenance import source_entry
from phema_cli.synthesis.recipe import Recipe
from phema_cli.synthesis.request import measured_for

Keep = Literal["best", "all", "none"]


@dataclass(frozen=True, slots=True)
class Sweep:
    """What to evaluate and how; each field is the option of its name.

    Attributes:
        request: the targets and how they are made; its output is the directory of the sweep.
        evaluator: what is run on each, and how its metric is read.
        maximize: whether the highest metric is the best, instead of the lowest.
        refine: how many further points are searched around the best.
        keep: which outputs stay.
        max_disk: bytes that outputs may take at a time; nine tenths of the free disk by default.
        retry_failed: whether evaluations that failed before are run again.
        overwrite: whether results of an earlier sweep are forgotten.
        candidates: sigma_rel among which the range of a grid is looked for, where the request has
            no targets.
        log: file for what evaluations say on stderr, instead of phema's.
    """

    request: Request
    evaluator: Evaluator
    maximize: bool = False
    refine: int = 0
    keep: Keep = "best"
    max_disk: int | None = None
    retry_failed: bool = False
    overwrite: bool = False
    candidates: tuple[float, ...] = ()
    log: Path | None = None


@dataclass(frozen=True, slots=True)
class Target:
    """A target that is to be evaluated.

    Attributes:
        profile: the target.
        spec: what the user wrote, where it is no power function.
        path: its output.
        size_bytes: bytes of that.
        figures: how good it is expected to be.
        refined: whether the search chose it.
    """

    profile: Profile
    spec: ProfileSpec | None
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


class Workshop:
    """What makes the outputs of a sweep.

    Args:
        found: the snapshots.
        asked: what to make of them.
    """

    def __init__(self, found: Scan, asked: Sweep) -> None:
        self.asked = asked
        self.folder = Path(asked.request.output or "")
        if "{" in str(self.folder):
            raise UsageError(f"-o {self.folder} is no directory", remedy="leave braces out")
        self.found = found
        self.snapshots = found.require()
        self.step = target_step(self.snapshots, asked.request.step)
        self._measured = measured_for(found, asked.request)
        self.tags = self._measured.tags

    def targets(self, request: Request, *, refined: bool = False) -> list[Target]:
        """The targets of a request, or the default grid where it has none."""
        if not (request.gammas or request.sigma_rels or request.profiles):
            request = replace(request, sigma_rels=self._reached())
        recipe = self.plan(request)
        powers = len(recipe.targets) - len(request.profiles)
        specs = [*[None] * powers, *request.profiles]
        return [
            Target(profile, spec, output.path, output.size_bytes, figures, refined)
            for profile, spec, output, figures in zip(
                recipe.targets, specs, recipe.outputs, recipe.solution.figures, strict=True
            )
        ]

    def plan(self, request: Request) -> Recipe:
        """The recipe of a request, all of whose outputs are made."""
        recipe, _ = plan(self.found, replace(request, skip_existing=False), self._measured)
        if recipe is None:
            raise AssertionError("nothing was to be skipped")
        return recipe

    def request(self, targets: Sequence[Target]) -> Request:
        """What asks for these targets."""
        return replace(
            self.asked.request,
            gammas=tuple(t.profile.exponent for t in targets if t.spec is None),
            sigma_rels=(),
            profiles=tuple(t.spec for t in targets if t.spec is not None),
        )

    def _reached(self) -> tuple[float, ...]:
        """A grid over the widest range of sigma_rel that can be reached fairly or well."""
        candidates = self.asked.candidates
        solution = solve_snapshots(
            self.snapshots,
            make_targets(self.snapshots, sigma_rels=candidates, step=self.step),
            self._measured,
            method=self.asked.request.method,
            together=True,
        )
        runs: list[list[float]] = [[]]
        for sigma_rel, figures in zip(candidates, solution.figures, strict=True):
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
        limit, total = self.asked.max_disk, len(targets) + self.asked.refine
        needed = {"all": total, "best": min(2, total), "none": 1}[self.asked.keep]
        size = max(t.size_bytes for t in targets)
        if limit is not None and needed * size > limit:
            raise UsageError(
                f"--max-disk {limit} has no room for {needed} outputs of {size} bytes",
                remedy=f"at least {needed * size} with --keep {self.asked.keep}",
            )

    def identity(self) -> dict[str, object]:
        """What results depend on, beside the targets."""
        request, evaluator = self.asked.request, self.asked.evaluator
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
            "copy": list(self.found.copy),
            **({"drop": list(self.found.drop)} if self.found.drop else {}),
            "dtype": None if request.dtype is None else request.dtype.label,
            "format": output_format(request.output, request.form),
        }


def _digest(value: object) -> str:
    """What tells a value from others, in hexadecimal."""
    return hashlib.blake2b(repr(value).encode(), digest_size=8).hexdigest()
