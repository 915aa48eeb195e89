"""Chains of packed snapshots: what each file is a sum of, from the headers of those it follows."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

from phema_cli.errors import InputError
from phema_cli.formats.base import Extent, Link, Packed, Part, Stamp, stamp
from phema_cli.formats.checks import REMEDY
from phema_cli.formats.packing import (
    HASH_KEY,
    LONGEST_CHAIN,
    SCALES,
    VALUES,
    Packing,
    packed_specs,
    parse,
)
from phema_cli.formats.remote import is_remote

#: extents and metadata of a file's header.
Header = tuple[dict[str, Extent], dict[str, str]]
ReadHeader = Callable[[Path], Header]

#: stamps of local files.
Stamps = dict[Path, Stamp]

#: links of files that were read, by path and stamp, and the stamps of all files that they are of:
#: each follows several others.
_KNOWN: dict[tuple[Path, Stamp | None], tuple[Link, Stamps]] = {}
_MOST_KNOWN = 1 << 14


def unpacked(path: Path, header: Header, read_header: ReadHeader) -> dict[str, Extent]:
    """The tensors of a safetensors file, packed ones under their own names.

    Args:
        path: the file.
        header: its own.
        read_header: reads those of the files that it follows.

    Raises:
        InputError: it is packed, and what it follows is missing, is not what it was, or follows
            this file in turn; or what it holds makes no sense.
        StorageError: the operating system failed to read.
    """
    packing = parse(header[1], path)
    if packing is None or packing.keyframe is None:
        return header[0]
    link = _link(path, header, packing, read_header, (path,))
    own = link.parts[-1].tensors
    tensors: dict[str, Extent] = {}
    for name, extent in header[0].items():
        plain = name.removesuffix(VALUES)
        if name.endswith(VALUES) and plain in own:
            whole = link.keyframe[plain]
            tensors[plain] = replace(
                whole, file=path, offset=extent.offset, packed=Packed(link, plain)
            )
        elif not (name.endswith(SCALES) and name.removesuffix(SCALES) in own):
            tensors[name] = extent
    return tensors


def followed_files(extents: Mapping[str, Extent]) -> set[Path]:
    """Files, beside those that hold the extents themselves, that packed tensors are sums of."""
    links = {e.packed.link for e in extents.values() if e.packed is not None}
    files = {part.path for link in links for part in link.parts}
    return files | {e.file for link in links for e in link.keyframe.values()}


def _link(
    path: Path, header: Header, packing: Packing, read_header: ReadHeader, above: tuple[Path, ...]
) -> Link:
    """What a packed file is a sum of.

    Args:
        path: the file; ``header`` and ``packing`` are its own.
        header: extents and metadata.
        packing: how it is packed.
        read_header: reads the header of another one.
        above: the files that led here, this one last.
    """
    key = (path, None if is_remote(path) else stamp(path))
    if key in _KNOWN and _are_same(_KNOWN[key][1]):
        return _KNOWN[key][0]
    if packing.keyframe is None:
        link = Link(header[0], (), (), header[1].get(HASH_KEY, ""))
    else:
        base = _follow(path, *packing.keyframe, read_header, above)
        if base.parts:
            raise _foreign(path, packing.keyframe[0])
        own = _part(path, header[0], packing.bits, base.keyframe)
        sums: dict[Part, float] = {}
        for followed in packing.follows:
            other = _follow(path, followed.name, followed.sha256, read_header, above)
            _check_followed(own, base, followed.name, other)
            for part, coefficient in zip(other.parts, other.coefficients, strict=True):
                sums[part] = sums.get(part, 0.0) + followed.coefficient * coefficient
        sums[own] = 1.0
        link = Link(base.keyframe, tuple(sums), tuple(sums.values()), header[1].get(HASH_KEY, ""))
    if len(_KNOWN) >= _MOST_KNOWN:
        _KNOWN.clear()
    files = {part.path for part in link.parts} | {e.file for e in link.keyframe.values()}
    _KNOWN[key] = link, {file: stamp(file) for file in files if not is_remote(file)}
    return link


def _are_same(stamps: Stamps) -> bool:
    """Whether none of these files was replaced or removed."""
    try:
        return all(stamp(file) == before for file, before in stamps.items())
    except OSError:
        return False


def _follow(
    path: Path, name: str, sha256: str, read_header: ReadHeader, above: tuple[Path, ...]
) -> Link:
    """The link of a file that another one follows.

    Raises:
        InputError: it is missing, has other tensors than it had then, or follows that file.
    """
    other = path.parent / name
    if other in above:
        raise InputError(f"follows {name}, which follows it in turn", where=path, remedy=REMEDY)
    if len(above) > LONGEST_CHAIN:
        raise InputError("follows too many others", where=path, remedy=REMEDY)
    if not other.is_file():
        raise InputError(
            f"follows {name}, which is missing",
            where=path,
            remedy="copy it back: all files up to the next keyframe need it",
        )
    header = read_header(other)
    packing = parse(header[1], other)
    if packing is None or not sha256 or header[1].get(HASH_KEY) != sha256:
        raise _foreign(path, name)
    return _link(other, header, packing, read_header, (*above, other))


def _check_followed(own: Part, base: Link, name: str, other: Link) -> None:
    """Refuse a file that another one can't follow.

    Raises:
        InputError: it is of another chain, or lacks a tensor that is packed in the other one.
    """
    if other.keyframe is not base.keyframe or not other.parts:
        raise _foreign(own.path, name)
    # Those that it follows in turn have its tensors too.
    if missing := own.tensors.keys() - other.parts[-1].tensors.keys():
        what = f"tensor {min(missing)}: {name}, which it follows, has no such"
        raise InputError(what, where=own.path, remedy=REMEDY)


def _foreign(path: Path, name: str) -> InputError:
    """The error for a file that is not the one that another followed."""
    return InputError(
        f"follows another {name} than the one in its directory",
        where=path,
        remedy="keep the files of each run in a directory of their own",
    )


def _part(
    path: Path, extents: Mapping[str, Extent], bits: int, keyframe: Mapping[str, Extent]
) -> Part:
    """The residues of a file.

    Raises:
        InputError: integers or scales do not fit the tensor that they are of.
    """
    tensors: dict[str, tuple[Extent, Extent]] = {}
    for name, extent in extents.items():
        plain = name.removesuffix(VALUES)
        scales = extents.get(plain + SCALES)
        if plain == name or scales is None:
            continue
        whole = keyframe.get(plain)
        if whole is None or whole.dtype.name != "F32" or plain in extents:
            raise InputError(f"tensor {plain}: its keyframe has no such", where=path, remedy=REMEDY)
        specs = packed_specs(plain, whole.elements, bits)
        held = {e.name: (e.dtype, e.shape) for e in (extent, scales)}
        if held != specs:
            what = f"tensor {plain}: its integers and scales don't fit its shape"
            raise InputError(what, where=path, remedy=REMEDY)
        tensors[plain] = extent, scales
    return Part(path, bits, tensors)
