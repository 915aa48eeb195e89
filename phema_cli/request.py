"""What can be asked of phema: the options of the command line, and of the calls from Python.

Each option is declared here, once. Nothing is loaded for it: ``phema --help`` reads this module.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from phema_cli.errors import UsageError
from phema_cli.options import option, output_option, part, source_option, target_option

if TYPE_CHECKING:
    from phema_cli.profiles import CheckpointsSpec, ProfileSpec

#: where a fact of a tag was said.
SaidIn = Literal["command line", "phema.toml"]

DEFAULT_METHOD = "blue"
DEFAULT_MAX_MEMORY = 256 << 20
#: workers of one process: far more than help, few enough to be started and ended at once.
MOST_JOBS = 256
#: sigma_rel of the targets that are looked at where none are given: 0.010, 0.015, ..., 0.285.
GRID = tuple(round(0.005 * i, 3) for i in range(2, 58))


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """How snapshots are found and read; None or empty where nothing was said.

    Attributes:
        pattern: regular expression with named groups, searched in a snapshot's relative path.
        gammas: what the ``index`` of a name counts; a single one holds for every snapshot that
            says none itself.
        sigma_rels: the same by sigma_rel; a scan turns them into gammas.
        average: what averages are, as ``--average`` writes it: one for the only average whose law
            is not known, or several in the order of ``keys``. ``raw`` is the same as ``raw=True``.
        raw: whether the snapshots are raw weights; where files hold averages too, these are left
            out.
        trust_tags: whether what the user says holds, whatever the files say.
        update_every: N, where the trainer averaged at every N-th step only.
        steps_per_epoch: steps of an epoch, where snapshots count these.
        key: dotted name of the dict of weights inside a nested checkpoint, or a prefix of names;
            several, with commas, are several series.
        names_from: checkpoint that names the tensors of snapshots that don't.
        select: globs of relative paths; others are left out.
        exclude: globs of relative paths to leave out.
        copy: globs of tensor names to copy instead of average.
        drop: globs of tensor names to leave out.
        typed: options with a glob of tensor names each that has to match some.
        typed_files: options with a glob of files each that has to match some.
        snapshots: tags by relative path (phema.toml only).
        insists: whether it is an error where what it says of averages fits none; a variable or a
            phema.toml may speak of other directories and files.
        origin: where it was said.
    """

    pattern: str | None = source_option(
        "Regular expression searched in each path, with named groups gamma, sigma_rel, beta, "
        "index, step, kimg or epoch.",
        metavar="REGEX",
    )
    gammas: tuple[float, ...] = source_option(
        "Gammas that the index in a name counts, or the one gamma of all.",
        default=(),
        metavar="LIST",
    )
    sigma_rels: tuple[float, ...] = source_option(
        "The same by sigma_rel.", default=(), metavar="LIST"
    )
    average: str | tuple[str, ...] | None = source_option(
        "What the average is, where the files don't say: exponential:beta=0.999, ...", metavar="LAW"
    )
    raw: bool = source_option(
        "The snapshots are raw weights; averages beside them are left out.", default=False
    )
    trust_tags: bool = source_option(
        "What you say of the snapshots holds, whatever the files say.", default=False
    )
    update_every: int | None = source_option(
        "Steps between two updates of the averages, as the trainer was told.",
        metavar="N",
        type=int,
        least=1,
    )
    steps_per_epoch: float | None = source_option(
        "Steps of an epoch, for snapshots that count epochs.", metavar="N", type=int, least=1
    )
    key: str | None = source_option(
        "Dict of weights inside a nested checkpoint, dotted.", metavar="NAME"
    )
    names_from: Path | None = source_option(
        "State dict that names the tensors of snapshots that are lists.", metavar="FILE", type=Path
    )
    select: tuple[str, ...] = source_option("Use only these snapshots.", default=(), metavar="GLOB")
    exclude: tuple[str, ...] = source_option(
        "Leave these snapshots out.", default=(), metavar="GLOB"
    )
    copy: tuple[str, ...] = source_option(
        "Tensors to copy from the newest snapshot instead of averaging.", default=(), metavar="GLOB"
    )
    drop: tuple[str, ...] = source_option("Tensors to leave out.", default=(), metavar="GLOB")
    typed: tuple[tuple[str, str], ...] = ()
    typed_files: tuple[tuple[str, str], ...] = ()
    snapshots: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    insists: bool = True
    origin: SaidIn = "command line"

    @property
    def keys(self) -> tuple[str, ...]:
        """The series that the user names."""
        given = (k.strip() for k in (self.key or "").split(","))
        return tuple(k if k == "." else k.rstrip(".") for k in given if k)

    @property
    def averages(self) -> tuple[str, ...]:
        """The laws that the user names; ``raw`` is one of several, and none by itself."""
        given = (self.average,) if isinstance(self.average, str) else tuple(self.average or ())
        return () if given == ("raw",) else given

    @property
    def is_raw(self) -> bool:
        """Whether the user says that snapshots are raw weights."""
        return self.raw or self.average in {"raw", ("raw",)}

    @property
    def says_average(self) -> bool:
        """Whether it says what the averages are."""
        return bool(self.gammas or self.average or self.raw)

    def over(self, other: Config) -> Config:
        """This, with what it leaves open taken from ``other``."""
        said = {
            f.name: getattr(self, f.name)
            for f in fields(self)
            if getattr(self, f.name) and f.name not in {"origin", "insists", "typed", "typed_files"}
        }
        if self.says_average:
            # One statement of what the averages are takes the place of another.
            other = replace(
                other,
                gammas=(),
                average=None,
                raw=False,
                insists=self.insists,
                origin=self.origin,
            )
        return replace(other, **said)


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What to synthesize and how.

    Attributes:
        gamma: target exponents.
        sigma_rel: target relative standard deviations.
        profile: targets of other profiles, as ``--profile`` writes them, or as specs.
        weights: a combination of snapshots as it is: a file of ``snapshot,weight`` lines, or what
            ``phema weights --json`` prints; from Python also weights by snapshot.
        step: target time; the last snapshot's by default.
        method: one of ``phema_cli.solver.METHODS``.
        sample: whether a sample of the tensors is read to learn how they move and round.
        output: a file, a directory or a template with ``{gamma} {sigma_rel} {profile} {step}``.
        format: the outputs' format; by the ending of ``output``, else safetensors.
        dtype: float type of averaged tensors, as safetensors, torch or people call it; as stored
            by default.
        max_shard_size: split outputs into shards of at most so many bytes of tensors; by default
            5 GB where ``output`` does not name a single file.
        max_error: refuse to write where ``expected_error`` is above this.
        dry_run: whether all is decided and nothing is written.
        overwrite: whether existing outputs are replaced.
        skip_existing: whether targets whose output exists are left out; one that says itself that
            it is something else is refused.
        side_files: whether an output that is a directory gets what its newest source has beside the
            weights (settings, tokenizer, ...), and a model card.
        config: how snapshots are found and read.
        jobs: workers; one per processor by default.
        allow_nonfinite: whether sources may hold infinities and NaN, which averages then do too.
        max_memory: bytes that phema may take above what torch takes.

    Raises:
        UsageError: more jobs than 256, or fewer than one; overwrite with skip_existing.
    """

    gamma: float | Sequence[float] = target_option(
        "Target gammas: 7 or 5,7,9 or 4,5,...,10.",
        default=(),
        metavar="LIST",
        short="-g",
        common=True,
    )
    sigma_rel: float | Sequence[float] = target_option(
        "Targets by sigma_rel: 0.10 or 0.05,0.06,...,0.15.",
        default=(),
        metavar="LIST",
        short="-s",
        common=True,
    )
    profile: str | Sequence[str | ProfileSpec | CheckpointsSpec] = target_option(
        "Target of another weighting: uniform:last=0.2 (or last=2000steps), "
        "decay:last=0.2,shape=linear (or cosine, sqrt), exponential:beta=0.999, "
        "exponential:halflife=2000, raw, csv:FILE; checkpoints:last=5 is the plain mean of "
        "snapshots.",
        default=(),
        metavar="PROFILE",
    )
    weights: str | os.PathLike[str] | Mapping[str, float] | None = target_option(
        "These weights, as they are: lines of snapshot,weight, or phema weights --json.",
        metavar="FILE",
        type=Path,
    )
    step: float | None = target_option(
        "Time of the targets; the last snapshot's by default.", metavar="N", type=float
    )
    method: str = target_option(
        "How weights are solved: blue, normalized, projection.",
        default=DEFAULT_METHOD,
        metavar="NAME",
    )
    sample: bool = target_option(
        "Read no tensors to learn how they move and round; assume a random walk in log time.",
        default=True,
        flag="--no-sample",
    )
    output: str | os.PathLike[str] | None = output_option(
        "A file, a directory, or a name with {gamma}, {sigma_rel}, {profile}, {step}.",
        metavar="PATH",
        short="-o",
        common=True,
    )
    format: str | None = output_option(
        "safetensors, torch, edm2 or dcp; by the ending of -o by default, else safetensors.",
        metavar="NAME",
    )
    dtype: str | None = output_option(
        "Type of averaged tensors: float32, float16, bfloat16, ...; as stored by default.",
        metavar="TYPE",
        common=True,
    )
    max_shard_size: int | None = output_option(
        "Split outputs into shards of at most this size; 5GB by default.", metavar="SIZE"
    )
    max_error: float | None = output_option(
        "Exit with 1 before writing when expected_error is above this.", metavar="X", type=float
    )
    dry_run: bool = output_option("Show what would be done, write nothing.", default=False)
    overwrite: bool = output_option("Replace outputs that exist.", default=False)
    skip_existing: bool = output_option("Leave outputs that exist alone.", default=False)
    side_files: bool = output_option(
        "Write weights alone: no config, tokenizer or model card beside them.",
        default=True,
        flag="--no-side-files",
    )
    config: Config = part(Config)
    jobs: int | None = option(
        "Workers, up to 256; one per processor by default, at most 8.",
        metavar="N",
        type=int,
        short="-j",
        least=1,
        most=MOST_JOBS,
    )
    allow_nonfinite: bool = option("Average infinities and NaN instead of refusing.", default=False)
    max_memory: int = option(
        "Memory to use above what torch itself takes.", default=DEFAULT_MAX_MEMORY, metavar="SIZE"
    )

    @property
    def gammas(self) -> tuple[float, ...]:
        """Target exponents, one or several."""
        return _several(self.gamma)

    @property
    def sigma_rels(self) -> tuple[float, ...]:
        """Target relative standard deviations, one or several."""
        return _several(self.sigma_rel)

    @property
    def profiles(self) -> tuple[str | ProfileSpec | CheckpointsSpec, ...]:
        """Targets of other profiles, one or several."""
        return (self.profile,) if isinstance(self.profile, str) else tuple(self.profile)

    def __post_init__(self) -> None:
        if self.jobs is not None and not 1 <= self.jobs <= MOST_JOBS:
            raise UsageError(f"{self.jobs} jobs are not from 1 to {MOST_JOBS}")
        if self.overwrite and self.skip_existing:
            raise UsageError(
                "overwrite and skip_existing exclude each other", remedy="keep one of them"
            )


def _several(numbers: float | Sequence[float]) -> tuple[float, ...]:
    """One number, or several."""
    return (numbers,) if isinstance(numbers, int | float) else tuple(numbers)


#: the options of Config that say which snapshots there are and what they are, with their tensors.
SOURCES = frozenset(f.name for f in fields(Config))
#: those of Request that other commands than ``synthesize`` have too.
TARGETS = frozenset({"gamma", "sigma_rel", "profile", "weights"})
SOLVING = frozenset({"step", "method", "sample"})
