"""What outputs are called: by a template, in a directory, or by names of their own."""

import os
import re
import string
from collections import Counter
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import NamedTuple

from phema_cli.errors import InputError, UnsafePickleError, UsageError
from phema_cli.formats import FORMATS, endings, read, writable
from phema_cli.formats.image import INDEX_NAME
from phema_cli.formats.safetensors import BASE_NAMES, INDEX_SUFFIX
from phema_cli.profiles import PowerProfile, Profile
from phema_cli.profiles.specs import step_of
from phema_cli.request import Request
from phema_cli.snapshots import Scan, Snapshot
from phema_cli.snapshots.base import reference, snapshot_name, step_name
from phema_cli.snapshots.tensors import averaged
from phema_cli.synthesis.layout import (
    DEFAULT_FORMAT,
    DEFAULT_MAX_SHARD_BYTES,
    ENDING,
    index_names,
    is_complete,
    is_folder,
)
from phema_cli.synthesis.provenance import otherwise
from phema_cli.synthesis.tensors import float_type

#: how alike an ending has to be to one that phema knows to be taken for a slip, from 0 to 1.
_ALIKE = 0.9
#: how a placeholder may be formatted: fill, sign, and at most two digits of width and precision.
_SPEC = re.compile(r"(?:[^{}/]?[<>=^])?[-+ ]?0?\d{0,2}(?:\.\d{1,2})?[sdeEfFgG]?")


def output_format(template: str, asked: str | None) -> str:
    """The format of the outputs: as asked for, or by the ending of the template.

    Raises:
        UsageError: phema does not write the format, or the ending is another one's.
    """
    names = writable()
    if asked is not None and asked not in names:
        raise UsageError(f"no output format {asked!r}", remedy=f"one of {', '.join(names)}")
    ending = next((f for f in names if template.endswith(FORMATS[f].endings)), None)
    if asked is None:
        return ending or DEFAULT_FORMAT
    if ending is not None and not template.endswith(FORMATS[asked].endings):
        raise UsageError(
            f"-o {template} has the ending of {ending}, not of {asked}",
            remedy="leave --format out, or change the ending",
        )
    return asked


def directory(output: str) -> Path:
    """The directory that ``-o`` names, of commands that write several files.

    Raises:
        UsageError: it is a file, or has the name of one.
    """
    path = Path(output)
    if not path.is_dir() and (path.exists() or path.name.endswith(endings())):
        raise UsageError(
            f"-o {output} is {'' if path.exists() else 'the name of '}a file, and several are "
            "written",
            remedy="pass -o DIRECTORY",
        )
    return path


class Placed(NamedTuple):
    """Where the outputs of a call go.

    Attributes:
        form: their format.
        paths: of all targets, in their order: files, or directories.
        kept: numbers of the targets that are to be made; others exist, and are skipped.
        max_shard_bytes: bytes a shard may have, or None for single files.
    """

    form: str
    paths: list[Path]
    kept: list[int]
    max_shard_bytes: int | None


def place_outputs(request: Request, targets: Sequence[Profile], step: float, scan: Scan) -> Placed:
    """Where each target goes, and which of them are to be made.

    Args:
        request: what was asked for.
        targets: the targets.
        step: their time as the trainer counts, but for combinations.
        scan: what they are made of.

    Raises:
        UsageError: as :func:`output_format` and :func:`output_paths` have it; a limit is asked for
            of a format that has no shards; what would be skipped is something else.
    """
    newest = reference(scan.snapshots)
    template = os.fspath(request.output or "")
    form = output_format(template, request.format)
    limit = _shard_limit(template, form, request, scan)
    # A directory whose weights loaders know by their name.
    is_model = newest.folder is not None and newest.checkpoint.base_name in BASE_NAMES
    like_model = is_model and form == DEFAULT_FORMAT and not template.endswith(ENDING)
    folder = limit is not None or like_model
    paths = output_paths(template, targets, step, form, folder=folder, split=limit is not None)
    kept = []
    for k, (path, target) in enumerate(zip(paths, targets, strict=True)):
        in_folder = is_folder(path, form)
        names = index_names(form, newest.checkpoint.base_name) if in_folder else ()
        if request.skip_existing and is_complete(path, names):
            _check_skipped(path, names, target, step, scan.snapshots)
        else:
            kept.append(k)
    return Placed(form, paths, kept, limit)


def _check_skipped(
    path: Path, names: Sequence[str], target: Profile, step: float, snapshots: Sequence[Snapshot]
) -> None:
    """Refuse to skip what is no checkpoint, and what says itself that it is another one.

    Raises:
        UsageError: it is not what would be written there.
        StorageError: it can't be read.
    """
    file = next((path / name for name in names if (path / name).exists()), path)
    try:
        what = otherwise(read(file).metadata, target, step, snapshots)
    except (InputError, UnsafePickleError) as error:
        what = f"can't be read: {error.what}"
    if what is not None:
        raise UsageError(
            f"exists already, and {what}",
            where=path,
            remedy="pass --overwrite in place of --skip-existing, or another -o",
        )


def _shard_limit(template: str, form: str, request: Request, scan: Scan) -> int | None:
    """Bytes a shard may have, or None for a single file."""
    limit = request.max_shard_size
    if FORMATS[form].folder:
        return limit or DEFAULT_MAX_SHARD_BYTES
    if form != DEFAULT_FORMAT:
        if limit is not None:
            raise UsageError(
                f"an output of format {form} is one file", remedy="leave --max-shard-size out"
            )
        return None
    if limit is None:
        if template.endswith(ENDING):
            return None
        limit = DEFAULT_MAX_SHARD_BYTES
    means, dtype = set(averaged(scan.snapshots, scan.copy)), float_type(request)
    size = sum(
        (dtype if dtype is not None and e.name in means else e.dtype).size_bytes(e.elements)
        for e in reference(scan.snapshots).checkpoint.stored
    )
    return limit if size > limit else None


def output_paths(
    template: str,
    targets: Sequence[Profile],
    step: float,
    format_name: str = DEFAULT_FORMAT,
    *,
    folder: bool,
    split: bool = False,
) -> list[Path]:
    """Where each target goes.

    Args:
        template: a file, a directory, a name with ``{gamma}``, ``{sigma_rel}``, ``{profile}``,
            ``{step}``, or nothing for default names in the working directory.
        targets: the targets.
        step: their time as the trainer counts, but for combinations.
        format_name: the outputs' format.
        folder: whether outputs are directories, so that default names mean these.
        split: whether they are sharded, so that no file will do.

    Raises:
        UsageError: an unknown placeholder, a file name for shards, or one path for two targets.
    """
    if "://" in template:
        raise UsageError(
            f"-o {template} is a URL, and outputs are written to this machine",
            remedy="pass a local path, and copy what is there afterwards",
        )
    suffix = Path(template).suffix
    like = get_close_matches(suffix, endings(), 1, _ALIKE)
    meant = FORMATS[format_name].folder or template.endswith(("/", os.sep))
    if like and suffix not in endings() and not (meant or Path(template).is_dir()):
        raise UsageError(
            f"-o {template} would be a directory",
            remedy=f"did you mean {like[0]}? To have a directory, pass {template}/",
        )
    folder = folder or FORMATS[format_name].folder
    # One directory is what it is called; several are made inside of it.
    if folder and len(targets) == 1 and _names_folder(template, format_name):
        paths = [Path(template)]
    else:
        paths = [_path(template, t, step_of(t, step), format_name, folder=folder) for t in targets]
    counts = Counter(paths)
    for path in paths:
        if path.name.endswith((INDEX_SUFFIX, INDEX_NAME)):
            raise UsageError(
                f"{path} is the name of an index, which is written beside shards",
                remedy="pass -o DIRECTORY",
            )
        if counts[path] > 1:
            powers = all(isinstance(target, PowerProfile) for target in targets)
            raise UsageError(
                f"several targets would be written to {path}",
                remedy=f"put {'{gamma}' if powers else '{profile}'} into -o",
            )
        if split and path.name.endswith(ENDING):
            raise UsageError(
                f"{path} names one file, but the output is split into shards",
                remedy="pass -o DIRECTORY, or a larger --max-shard-size",
            )
    return paths


def _names_folder(template: str, format_name: str) -> bool:
    """Whether ``-o`` is the directory of an output, and not one that outputs are put into."""
    if "{" in template or template.endswith(("/", os.sep)):
        return False
    name = Path(template).name
    return name not in {"", ".."} and not name.endswith(FORMATS[format_name].endings)


def _path(
    template: str, target: Profile, step: float | None, format_name: str, *, folder: bool
) -> Path:
    """One target's path."""
    endings = FORMATS[format_name].endings
    slug = re.sub(r"[^\w.]+", "-", target.label.replace("=", "").replace("gamma ", "gamma"))
    if "{" in template:
        fields: dict[str, str | float] = {"profile": slug}
        if step is not None:
            fields["step"] = int(step) if float(step).is_integer() else step
        if isinstance(target, PowerProfile):
            fields |= {"gamma": _Number(target.gamma), "sigma_rel": _Number(target.sigma_rel)}
        path = Path(_filled(template, fields, target.label))
        single = not (folder or format_name == DEFAULT_FORMAT or path.name.endswith(endings))
        return path.with_name(path.name + endings[0]) if single else path
    parent = Path(template)
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


class _Number(float):
    """A number that has six digits where no format says how many."""

    def __format__(self, spec: str) -> str:
        if spec.endswith("s"):
            return format(super().__format__(".6g"), spec)
        if not spec[-1:].isalpha():
            spec += "g" if "." in spec else ".6g"
        return super().__format__(spec)


def _filled(template: str, fields: Mapping[str, str | float], label: str) -> str:
    """The template with its placeholders filled in; a format may pad or round, no more.

    Raises:
        UsageError: a placeholder or a format is none of these.
    """
    try:
        parts = [part[1:] for part in string.Formatter().parse(template) if part[1] is not None]
        wrong = (n for n, s, how in parts if n not in fields or how or not _SPEC.fullmatch(s or ""))
        bad = next((f"{{{name}}}" for name in wrong), None)
        if bad is None:
            return template.format(**fields)
    except ValueError:
        bad = "a single brace"
    raise UsageError(
        f"-o {template!r:.200} has an unknown placeholder or format for {label}: {bad:.200}",
        remedy=f"use {', '.join(f'{{{name}}}' for name in fields)}, without a format or as "
        "{step:07}",
    )
