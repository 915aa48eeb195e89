"""Output layout: names, formats, shards, and where each tensor goes."""

from __future__ import annotations

import math
import os
import re
import string
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from phema_cli.errors import StorageError, UsageError
from phema_cli.formats import FORMATS, folder_writer, writable, writer
from phema_cli.formats.base import PARTIAL, Checkpoint, DType
from phema_cli.formats.dcp_write import INDEX_NAME
from phema_cli.formats.image import FileImage, Specs
from phema_cli.formats.safetensors import INDEX_SUFFIX, encode_index
from phema_cli.profiles import PowerProfile, Profile
from phema_cli.snapshots.base import Snapshot, snapshot_name, step_name

DEFAULT_FORMAT = "safetensors"
#: how a placeholder may be formatted: fill, sign, and at most two digits of width and precision.
_SPEC = re.compile(r"(?:[^{}/]?[<>=^])?[-+ ]?0?\d{0,2}(?:\.\d{1,2})?[sdeEfFgG]?")
ENDING = ".safetensors"
#: outputs larger than this are split unless the user names a single file.
DEFAULT_MAX_SHARD_BYTES = 5 * 10**9
#: what Hugging Face libraries call the weights in a directory, by what they are called there
#: before, without shard number and ending.
_BASE_NAMES = {
    "model": "model",
    "pytorch_model": "model",
    "diffusion_pytorch_model": "diffusion_pytorch_model",
    "adapter_model": "adapter_model",
    "pytorch_lora_weights": "pytorch_lora_weights",
}


@dataclass(frozen=True, slots=True)
class OutputFile:
    """A file to be written: its final path, and all of it but the tensors' values."""

    path: Path
    image: FileImage


@dataclass(frozen=True, slots=True)
class Beside:
    """A file beside the weights of an output.

    Attributes:
        path: its final path.
        size_bytes: its size.
        source: the file that it is a copy of; None where ``data`` is what it holds.
        data: its bytes.
    """

    path: Path
    size_bytes: int
    source: Path | None = None
    data: bytes = b""


@dataclass(frozen=True, slots=True)
class Output:
    """A checkpoint to be written.

    Attributes:
        path: what the user gets: the file, or the directory.
        files: files with tensor data.
        homes: for each tensor its file, as an index into ``files``.
        index: path and bytes of the index of a sharded checkpoint.
        beside: the files that a user needs with the weights.
    """

    path: Path
    files: tuple[OutputFile, ...]
    homes: Mapping[str, int]
    index: tuple[Path, bytes] | None = None
    beside: tuple[Beside, ...] = ()

    def __repr__(self) -> str:
        """``<Output emas/ema.safetensors: 1 file, 10 tensors>``."""
        count = len(self.files)
        files = f"{count} file{'' if count == 1 else 's'}"
        return f"<Output {self.path}: {files}, {len(self.homes)} tensors>"

    @property
    def size_bytes(self) -> int:
        """Bytes of all its files."""
        index = len(self.index[1]) if self.index else 0
        beside = sum(b.size_bytes for b in self.beside)
        return sum(f.image.size_bytes for f in self.files) + index + beside

    @property
    def finals(self) -> list[Path]:
        """All files that it will have, in the order in which they get their names."""
        files = [b.path for b in self.beside] + [f.path for f in self.files]
        return files + ([self.index[0]] if self.index else [])

    @property
    def staging(self) -> Path:
        """The directory beside it that its files are made in."""
        # Where a link leads to another disk a rename has to be there.
        path = self.path if self.path == self.files[0].path else Path(os.path.realpath(self.path))
        return path.with_name(path.name + PARTIAL)

    def staged(self, final: Path) -> Path:
        """Where one of ``finals`` is until it is complete."""
        return self.staging / final.name

    def stale(self) -> list[Path]:
        """Files of an earlier checkpoint of that name that this one does not replace."""
        return [p for p in self.present() if p != self.path and p not in self.finals]

    def present(self) -> list[Path]:
        """Files that exist and belong to a checkpoint of that name, in whatever shards."""
        if self.path == self.files[0].path:
            return [self.path] if self.path.exists() else []
        beside = [b.path for b in self.beside if b.path.exists()]
        return sorted({*_checkpoint_files(self.path), *beside})


def is_model_folder(snapshot: Snapshot) -> bool:
    """Whether it is a directory whose weights loaders know by their name."""
    return snapshot.folder is not None and snapshot.checkpoint.base_name in _BASE_NAMES


def output_format(template: str | None, asked: str | None) -> str:
    """The format of the outputs: as asked for, or by the ending of the name given.

    Raises:
        UsageError: phema does not write the format, or the ending is another one's.
    """
    names = writable()
    if asked is not None and asked not in names:
        raise UsageError(f"no output format {asked!r}", remedy=f"one of {', '.join(names)}")
    ending = next((f for f in names if template and template.endswith(FORMATS[f].endings)), None)
    if asked is None:
        return ending or DEFAULT_FORMAT
    if ending is not None and template and not template.endswith(FORMATS[asked].endings):
        raise UsageError(
            f"-o {template} has the ending of {ending}, not of {asked}",
            remedy="leave --format out, or change the ending",
        )
    return asked


def output_paths(
    template: str | None,
    targets: Sequence[Profile],
    step: float | None,
    format_name: str = DEFAULT_FORMAT,
    *,
    folder: bool,
    split: bool = False,
) -> list[Path]:
    """Where each target goes.

    Args:
        template: a file, a directory, a name with ``{gamma}``, ``{sigma_rel}``, ``{profile}``,
            ``{step}``, or None for default names in the working directory.
        targets: the targets.
        step: their time as the trainer counts; None where nothing says it.
        format_name: the outputs' format.
        folder: whether outputs are directories, so that default names mean these.
        split: whether they are sharded, so that no file will do.

    Raises:
        UsageError: an unknown placeholder, a file name for shards, or one path for two targets.
    """
    if template is not None and "://" in template:
        raise UsageError(
            f"-o {template} is a URL, and outputs are written to this machine",
            remedy="pass a local path, and copy what is there afterwards",
        )
    folder = folder or FORMATS[format_name].folder
    # One directory is what it is called; several are made inside of it.
    alone = folder and len(targets) == 1 and _names_folder(template, format_name)
    paths = (
        [Path(template or "")]
        if alone
        else [_path(template, target, step, format_name, folder=folder) for target in targets]
    )
    counts = Counter(paths)
    for path in paths:
        if path.name.endswith((INDEX_SUFFIX, INDEX_NAME)):
            raise UsageError(
                f"{path} is the name of an index, which is written beside shards",
                remedy="pass -o DIRECTORY",
            )
        if counts[path] > 1:
            raise UsageError(
                f"several targets would be written to {path}", remedy="put {gamma} into -o"
            )
        if split and path.name.endswith(ENDING):
            raise UsageError(
                f"{path} names one file, but the output is split into shards",
                remedy="pass -o DIRECTORY, or a larger --max-shard-size",
            )
    return paths


def _names_folder(template: str | None, format_name: str) -> bool:
    """Whether ``-o`` is the directory of an output, and not one that outputs are put into."""
    if template is None or "{" in template or template.endswith(("/", os.sep)):
        return False
    name = Path(template).name
    return name not in {"", ".."} and not name.endswith(FORMATS[format_name].endings)


def _path(
    template: str | None, target: Profile, step: float | None, format_name: str, *, folder: bool
) -> Path:
    """One target's path."""
    endings = FORMATS[format_name].endings
    slug = re.sub(r"[^\w.]+", "-", target.label.replace("=", "").replace("gamma ", "gamma"))
    if template is not None and "{" in template:
        fields: dict[str, str | float] = {"profile": slug}
        if step is not None:
            fields["step"] = int(step) if float(step).is_integer() else step
        if isinstance(target, PowerProfile):
            fields |= {"gamma": f"{target.gamma:.6g}", "sigma_rel": f"{target.sigma_rel:.6g}"}
        path = Path(_filled(template, fields))
        single = not (folder or format_name == DEFAULT_FORMAT or path.name.endswith(endings))
        return path.with_name(path.name + endings[0]) if single else path
    parent = Path(template or "")
    if parent.name.endswith(endings):
        return parent
    if step is None:
        name = f"phema-{slug}"
    elif not isinstance(target, PowerProfile):
        name = f"{step_name('phema', step)}-{slug}"
    elif format_name == "edm2":
        # EDM2's scripts know files by their names.
        name = f"phema-{int(step) // 1000:07d}-{target.sigma_rel:.3f}"
    else:
        name = snapshot_name("phema", step, target.gamma)
    return parent / (name + ("" if folder else endings[0]))


def _filled(template: str, fields: Mapping[str, str | float]) -> str:
    """The template with its placeholders filled in; a format may pad or round, no more.

    Raises:
        UsageError: a placeholder or a format is none of these.
    """
    try:
        parts = [part for part in string.Formatter().parse(template) if part[1] is not None]
        if all(n in fields and not how and _SPEC.fullmatch(s or "") for _, n, s, how in parts):
            return template.format(**fields)
    except ValueError:
        # A single brace, or a format of numbers for a text.
        pass
    raise UsageError(
        f"-o {template!r:.200} has an unknown placeholder or format",
        remedy="use {gamma}, {sigma_rel}, {profile} and {step}, without a format or as {step:07}",
    )


def _checkpoint_files(folder: Path) -> list[Path]:
    """Files in a directory that carry a name of a checkpoint there: single, shards, index."""
    names = "|".join(_BASE_NAMES.values())
    pattern = re.compile(
        rf"({names})(-\d{{5}}-of-\d{{5}})?\.safetensors(\.index\.json)?"
        rf"|__\d+_\d+\.distcp|{re.escape(INDEX_NAME)}"
    )
    return sorted(p for p in folder.glob("*") if pattern.fullmatch(p.name))


def is_complete(path: Path) -> bool:
    """Whether a path that ``output_paths`` gave holds a whole checkpoint."""
    bases = _BASE_NAMES.values()
    whole = {f"{base}{ending}" for base in bases for ending in (ENDING, INDEX_SUFFIX)}
    whole.add(INDEX_NAME)
    try:
        return path.is_file() or any(p.name in whole for p in _checkpoint_files(path))
    except OSError as error:
        raise StorageError.wrap(error, path, "write") from error


def remove_checkpoint(path: Path, beside: Collection[str] = ()) -> None:
    """Remove the checkpoint that a path of ``output_paths`` holds, if there is one.

    Args:
        path: a file or a directory.
        beside: names of files that a directory was given with the weights.

    Raises:
        StorageError: the operating system failed.
    """
    try:
        if not path.is_dir() or path.is_symlink():
            path.unlink(missing_ok=True)
            return
        for file in [*_checkpoint_files(path), *(path / name for name in beside)]:
            file.unlink(missing_ok=True)
        # What else lies there is not phema's, and stays.
        with suppress(OSError):
            path.rmdir()
    except OSError as error:
        raise StorageError.wrap(error, path, "remove") from error


def lay_out(
    path: Path,
    format_name: str,
    specs: Specs,
    ties: Mapping[str, str],
    carried: Checkpoint,
    metadata: Mapping[str, str],
    max_shard_bytes: int | None,
) -> Output:
    """Split tensors into files and place each.

    Args:
        path: a file if it has an ending of the format's, else a directory.
        format_name: the outputs' format.
        specs: dtype and shape of each tensor, in the order to write.
        ties: further names of these tensors.
        carried: the checkpoint that the output continues.
        metadata: what is recorded in it.
        max_shard_bytes: the most bytes of tensors in a file, or None for one file.

    Raises:
        InputError: the format can't hold the tensors.
    """
    if FORMATS[format_name].folder:
        return _folder(path, format_name, specs, ties, carried, metadata, max_shard_bytes)
    encode = writer(format_name).encode
    if path.name.endswith(FORMATS[format_name].endings):
        image = encode(specs, metadata, ties, carried)
        return Output(path, (OutputFile(path, image),), dict.fromkeys(specs, 0))
    base = _BASE_NAMES.get(carried.base_name, "model")
    shards = split_shards(specs, max_shard_bytes)
    files: list[OutputFile] = []
    homes: dict[str, int] = {}
    for number, names in enumerate(shards):
        suffix = f"-{number + 1:05d}-of-{len(shards):05d}" if len(shards) > 1 else ""
        tied = {alias: name for alias, name in ties.items() if name in names}
        image = encode({n: specs[n] for n in names}, metadata, tied, carried)
        files.append(OutputFile(path / f"{base}{suffix}{ENDING}", image))
        homes |= dict.fromkeys(names, number)
    if len(files) == 1:
        return Output(path, tuple(files), homes)
    weight_map = {name: files[number].path.name for name, number in homes.items()}
    data = encode_index(weight_map, sum(map(_size, specs.values())), {**metadata, **ties})
    return Output(path, tuple(files), homes, (path / f"{base}{INDEX_SUFFIX}", data))


def _folder(
    path: Path,
    format_name: str,
    specs: Specs,
    ties: Mapping[str, str],
    carried: Checkpoint,
    metadata: Mapping[str, str],
    max_shard_bytes: int | None,
) -> Output:
    """The output of a format whose checkpoints are directories; as :func:`lay_out` says."""
    shards = split_shards(specs, max_shard_bytes)
    parts = [{name: specs[name] for name in names} for names in shards]
    image = folder_writer(format_name).encode_folder(parts, metadata, ties, carried)
    files = tuple(OutputFile(path / name, file) for name, file in image.files.items())
    homes = {name: number for number, names in enumerate(shards) for name in names}
    name, data = image.index
    return Output(path, files, homes, (path / name, data))


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
