"""Output layout: names, shards, headers, provenance, and where each tensor goes."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from phema_cli._version import __version__
from phema_cli.errors import StorageError, UsageError
from phema_cli.formats.base import Checkpoint, DType
from phema_cli.formats.safetensors import INDEX_SUFFIX, encode_header, encode_index
from phema_cli.profiles import Array, PowerProfile, Profile, describe
from phema_cli.snapshots import Snapshot
from phema_cli.snapshots.scan import PROVENANCE_KEY
from phema_cli.snapshots.tags import METADATA_FIELDS, snapshot_name, step_name
from phema_cli.solver.diagnostics import Figures

ENDING = ".safetensors"
#: outputs larger than this are split unless the user names a single file.
DEFAULT_MAX_SHARD_BYTES = 5 * 10**9
#: endings that name a file of another kind, and surely no directory.
FOREIGN = (".pt", ".pth", ".ckpt", ".bin", ".pkl")
#: what Hugging Face libraries call the files of a checkpoint, without shard number and ending.
BASE_NAMES = ("model", "diffusion_pytorch_model")

Specs = Mapping[str, tuple[DType, tuple[int, ...]]]


@dataclass(frozen=True, slots=True)
class OutputFile:
    """A file to be written: its final path, the bytes before its data, its whole size."""

    path: Path
    head: bytes
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Output:
    """A checkpoint to be written.

    Attributes:
        path: what the user gets: the file, or the directory of a sharded checkpoint.
        files: files with tensor data.
        places: for each tensor its file, as an index into ``files``, and its offset there.
        index: path and bytes of the index of a sharded checkpoint.
    """

    path: Path
    files: tuple[OutputFile, ...]
    places: Mapping[str, tuple[int, int]]
    index: tuple[Path, bytes] | None = None

    @property
    def size_bytes(self) -> int:
        """Bytes of all its files."""
        return sum(f.size_bytes for f in self.files) + (len(self.index[1]) if self.index else 0)

    @property
    def finals(self) -> list[Path]:
        """All files that it will have."""
        return [f.path for f in self.files] + ([self.index[0]] if self.index else [])

    def present(self) -> list[Path]:
        """Files that exist and belong to a checkpoint of that name, in whatever shards."""
        if self.path == self.files[0].path:
            return [self.path] if self.path.exists() else []
        return _checkpoint_files(self.path)


def output_paths(template: str | None, targets: Sequence[Profile], split: bool) -> list[Path]:
    """Where each target goes.

    Args:
        template: a file, a directory, a name with ``{gamma}``, ``{sigma_rel}``, ``{profile}``,
            ``{step}``, or None for default names in the working directory.
        targets: the targets.
        split: whether the outputs are sharded, so that default names mean directories.

    Raises:
        UsageError: an unknown placeholder, a file name for shards, or one path for two targets.
    """
    paths = [_path(template, target, split) for target in targets]
    for path in paths:
        if paths.count(path) > 1:
            raise UsageError(
                f"several targets would be written to {path}", remedy="put {gamma} into -o"
            )
        if split and path.name.endswith(ENDING):
            raise UsageError(
                f"{path} names one file, but the output is split into shards",
                remedy="pass -o DIRECTORY, or a larger --max-shard-size",
            )
    return paths


def _path(template: str | None, target: Profile, split: bool) -> Path:
    """One target's path."""
    slug = re.sub(r"[^\w.]+", "-", target.label.replace("=", "").replace("gamma ", "gamma"))
    if isinstance(target, PowerProfile):
        name = snapshot_name("phema", target.end, target.gamma)
    else:
        name = f"{step_name('phema', target.end)}-{slug}"
    name += "" if split else ENDING
    if template is None:
        return Path(name)
    if "{" not in template:
        given = _own_kind(Path(template))
        return given if given.name.endswith(ENDING) else given / name
    step = int(target.end) if target.end.is_integer() else target.end
    fields = {"step": step, "profile": slug}
    if isinstance(target, PowerProfile):
        fields |= {"gamma": f"{target.gamma:.6g}", "sigma_rel": f"{target.sigma_rel:.6g}"}
    try:
        text = template.format(**fields)
    except (KeyError, IndexError, ValueError, AttributeError) as error:
        raise UsageError(
            f"-o {template!r} has an unknown placeholder or format",
            remedy="use {gamma}, {sigma_rel}, {profile} and {step}, plainly",
        ) from error
    return _own_kind(Path(text))


def _own_kind(path: Path) -> Path:
    """The path, unless its ending promises a file that phema does not write."""
    if path.suffix in FOREIGN:
        raise UsageError(f"-o {path}: outputs are {ENDING} files", remedy="name it so")
    return path


def _checkpoint_files(folder: Path) -> list[Path]:
    """Files in a directory that carry a name of a checkpoint there: single, shards, index."""
    names = "|".join(BASE_NAMES)
    pattern = re.compile(rf"({names})(-\d{{5}}-of-\d{{5}})?\.safetensors(\.index\.json)?")
    return sorted(p for p in folder.glob("*") if pattern.fullmatch(p.name))


def is_complete(path: Path) -> bool:
    """Whether a path that ``output_paths`` gave holds a whole checkpoint."""
    whole = {f"{base}{ending}" for base in BASE_NAMES for ending in (ENDING, INDEX_SUFFIX)}
    try:
        return path.is_file() or any(p.name in whole for p in _checkpoint_files(path))
    except OSError as error:
        raise StorageError.wrap(error, path, "write") from error


def provenance(
    sources: Sequence[Snapshot],
    weights: Array,
    target: Profile,
    figures: Figures,
    method: str,
    copy: Sequence[str],
) -> str:
    """What an output records of how it was made: JSON with sorted keys, no time, no path."""
    found: dict[str, float | None] = asdict(figures)
    record = {
        "schema": "phema/synthesis/1",
        "version": __version__,
        "method": method,
        "target": describe(target),
        "sources": [
            {"name": s.name, "gamma": s.tag.gamma, "step": s.tag.step, "weight": float(w)}
            for s, w in zip(sources, weights, strict=True)
        ],
        "figures": {k: v if v is None or math.isfinite(v) else None for k, v in found.items()},
        "copy": sorted(copy),
    }
    return json.dumps(record, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def lay_out(
    path: Path, specs: Specs, carried: Checkpoint, origin: str, max_shard_bytes: int | None
) -> Output:
    """Split tensors into files and place each.

    Args:
        path: a file if it ends in ``.safetensors``, else a directory.
        specs: dtype and shape of each tensor, in the order to write.
        carried: the checkpoint whose metadata and base name are taken over.
        origin: the provenance record.
        max_shard_bytes: the most bytes of tensors in a file, or None for one file.
    """
    own = {*METADATA_FIELDS, PROVENANCE_KEY}
    kept = carried.metadata if carried.format == "safetensors" else {}
    metadata = {k: v for k, v in kept.items() if k not in own}
    metadata |= {"format": "pt", PROVENANCE_KEY: origin}
    if path.name.endswith(ENDING):
        folder, base, shards = path.parent, path.name.removesuffix(ENDING), [list(specs)]
    else:
        folder = path
        base = carried.base_name if carried.base_name in BASE_NAMES else BASE_NAMES[0]
        shards = split_shards(specs, max_shard_bytes)
    files: list[OutputFile] = []
    places: dict[str, tuple[int, int]] = {}
    for number, names in enumerate(shards):
        suffix = f"-{number + 1:05d}-of-{len(shards):05d}" if len(shards) > 1 else ""
        head, offsets = encode_header({n: specs[n] for n in names}, metadata)
        size = len(head) + sum(_size(specs[n]) for n in names)
        files.append(OutputFile(folder / f"{base}{suffix}{ENDING}", head, size))
        places |= {n: (number, offset) for n, offset in offsets.items()}
    index = None
    if len(files) > 1:
        weight_map = {name: files[number].path.name for name, (number, _) in places.items()}
        data = encode_index(weight_map, sum(map(_size, specs.values())), metadata)
        index = (folder / f"{base}{INDEX_SUFFIX}", data)
    return Output(path, tuple(files), places, index)


def split_shards(specs: Specs, max_shard_bytes: int | None) -> list[list[str]]:
    """Names by shard: greedily in order; a tensor larger than a shard gets one of its own."""
    shards: list[list[str]] = [[]]
    filled = 0
    for name, spec in specs.items():
        size = _size(spec)
        if shards[-1] and max_shard_bytes is not None and filled + size > max_shard_bytes:
            shards.append([])
            filled = 0
        shards[-1].append(name)
        filled += size
    return shards


def _size(spec: tuple[DType, tuple[int, ...]]) -> int:
    """Bytes of a tensor."""
    dtype, shape = spec
    return dtype.size_bytes(math.prod(shape))
