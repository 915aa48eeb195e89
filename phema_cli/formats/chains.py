"""Chains of packed snapshots: what each file is a sum of, from the headers of those it follows."""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

from phema_cli.errors import InputError
from phema_cli.formats.base import Checkpoint, Extent, Link, Packed, Part, Tensors
from phema_cli.formats.checks import broken
from phema_cli.formats.packing import (
    CHECKSUM_KEY,
    LONGEST_CHAIN,
    SCALES,
    VALUES,
    Packing,
    packed_specs,
    parse,
)
from phema_cli.formats.sharded import file_beside
from phema_cli.formats.stamps import Stamp, known_stamp

#: extents and metadata of a file's header.
Header = tuple[Mapping[str, Extent], dict[str, str]]
ReadHeader = Callable[[Path], Header]


@dataclass(frozen=True, slots=True)
class _Known:
    """The link of a file that was read, and the stamps of all files that it came from."""

    link: Link
    stamps: Mapping[Path, Stamp | None]


#: what files that others follow are sums of: each is followed by several.
_KNOWN: dict[Path, _Known] = {}
_MOST_KNOWN = 1 << 14


def unpacked(path: Path, header: Header, read_header: ReadHeader) -> Mapping[str, Extent]:
    """The tensors of a safetensors file, packed ones under their own names.

    Raises:
        InputError: it is packed, and what it follows is missing, is not what it was, lies
            elsewhere, or follows this file in turn; or what it holds makes no sense.
        StorageError: the operating system failed to read.
    """
    packing = parse(header[1], path)
    if packing is None or packing.keyframe is None:
        return header[0]
    try:
        link = _Directory(path, read_header).known(path, header, packing, (path,)).link
    except InputError as error:
        if error.where in {None, str(path)}:
            raise
        # Each file that is lost with another one is named.
        what = f"needs {Path(str(error.where)).name}: {error.what}"
        raise InputError(what, where=path, remedy=error.remedy) from error
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


def link_of(checkpoint: Checkpoint) -> Link | None:
    """What the packed tensors of a checkpoint are sums of; None if it has none."""
    return next(_links(checkpoint.tensors), None)


def followed_files(extents: Mapping[str, Extent]) -> set[Path]:
    """Files, beside those that hold the extents themselves, that packed tensors are sums of."""
    links = set(_links(extents))
    files = {part.path for link in links for part in link.parts}
    return files | {e.file for link in links for e in link.keyframe.values()}


def _links(extents: Mapping[str, Extent]) -> Iterator[Link]:
    """What packed tensors are sums of, tensor by tensor."""
    packed = () if isinstance(extents, Tensors) else extents.values()
    return (e.packed.link for e in packed if e.packed is not None)


class _Directory:
    """The files beside a packed one, each looked at once."""

    def __init__(self, path: Path, read_header: ReadHeader) -> None:
        self._read_header = read_header
        self._files: dict[str, Path] = {path.name: path}
        #: the stamp that a file had when it was first asked for.
        self._stamp = cache(known_stamp)

    def known(
        self, path: Path, header: Header, packing: Packing, above: tuple[Path, ...]
    ) -> _Known:
        """What a file is a sum of.

        Args:
            path: the file; ``header`` and ``packing`` are its own.
            header: extents and metadata.
            packing: how it is packed.
            above: the files that led here, this one last.
        """
        stamps: dict[Path, Stamp | None] = {path: self._stamp(path)}
        checksum = header[1].get(CHECKSUM_KEY, "")
        if packing.keyframe is None:
            return _Known(Link(header[0], (), (), checksum), stamps)
        name, wanted = packing.keyframe
        base = self._follow(path, name, wanted, "its keyframe", above)
        if base.link.parts:
            raise _foreign(path, name)
        stamps |= base.stamps
        keyframe = base.link.keyframe
        own = _part(path, header[0], packing.bits, keyframe)
        sums: dict[Part, float] = {}
        for followed in packing.follows:
            other = self._follow(path, followed.name, followed.checksum, "its predecessor", above)
            _check_fit(own, other.link, followed.name, keyframe)
            stamps |= other.stamps
            for part, coefficient in zip(other.link.parts, other.link.coefficients, strict=True):
                sums[part] = sums.get(part, 0.0) + followed.coefficient * coefficient
        sums[own] = 1.0
        if len(sums) > LONGEST_CHAIN:
            raise broken("follows too many others", path)
        if not all(map(math.isfinite, sums.values())):
            raise broken("its coefficients have no finite sum", path)
        return _Known(Link(keyframe, tuple(sums), tuple(sums.values()), checksum), stamps)

    def _follow(
        self, path: Path, name: str, checksum: str, label: str, above: tuple[Path, ...]
    ) -> _Known:
        """What a file that another one follows is a sum of.

        Raises:
            InputError: it is missing, has other tensors than it had then, lies elsewhere, or
                follows that file.
        """
        if name not in self._files:
            remedy = "copy it back: all files up to the next keyframe need it"
            self._files[name] = file_beside(path, name, label, remedy)
        other = self._files[name]
        if other in above:
            raise broken(f"follows {name}, which follows it in turn", path)
        if len(above) > LONGEST_CHAIN:
            raise broken("follows too many others", path)
        known = self._remembered(other)
        if known is None:
            # From before its header is read: a file that is replaced meanwhile is read again.
            self._stamp(other)
            header = self._read_header(other)
            packing = parse(header[1], other)
            if packing is None or header[1].get(CHECKSUM_KEY) != checksum:
                raise _foreign(path, name)
            known = self.known(other, header, packing, (*above, other))
            if len(_KNOWN) >= _MOST_KNOWN:
                _KNOWN.clear()
            _KNOWN[other] = known
        if not checksum or known.link.checksum != checksum:
            raise _foreign(path, name)
        return known

    def _remembered(self, path: Path) -> _Known | None:
        """What was known of a file before, if all that it came from is what it was."""
        known = _KNOWN.get(path)
        same = known is not None and all(self._stamp(p) == s for p, s in known.stamps.items())
        return known if same else None


def _check_fit(own: Part, other: Link, name: str, keyframe: Mapping[str, Extent]) -> None:
    """Refuse to follow a file of another chain, or one that lacks a packed tensor."""
    same = other.keyframe is keyframe or other.keyframe == keyframe
    if not (same and other.parts):
        raise _foreign(own.path, name)
    if missing := own.tensors.keys() - other.parts[-1].tensors.keys():
        raise broken(f"tensor {min(missing)}: it is not packed in {name}", own.path)


def _foreign(path: Path, name: str) -> InputError:
    """The error for a file that is not the one that another followed."""
    what = f"follows another {name} than the one in its directory"
    return broken(what, path, "keep the files of each run in a directory of their own")


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
            raise broken(f"tensor {plain}: its keyframe has no such", path)
        specs = packed_specs(plain, whole.elements, bits)
        held = {e.name: (e.dtype, e.shape) for e in (extent, scales)}
        if held != specs:
            raise broken(f"tensor {plain}: its integers and scales don't fit its shape", path)
        tensors[plain] = extent, scales
    return Part(path, bits, tensors)
