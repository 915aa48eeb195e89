"""Packed snapshots: what the last ones could not foretell of a snapshot, in few bits.

A keyframe K holds its float tensors whole, in float32. Each later snapshot of its chain holds, of
the same tensors, the residue of a linear prediction:

    theta_k = K + m_k,    m_k = sum_j c_kj m_j + d_k,    m of the keyframe itself is 0

with coefficients c_kj for the few snapshots j that it follows, in the metadata, and the residue d_k
in blocks of 64 elements that share a scale: ``d = integer * scale``. Whoever writes one predicts
from what readers have of the others, so the error of a stored value is that of its own residue.

docs/packing.md specifies the format. All numbers here are numpy's.
"""

import json
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from phema_cli.errors import InputError
from phema_cli.formats.base import DTYPES, DType, Part
from phema_cli.formats.checks import broken, parse_object

#: the entry of the metadata that says how a file is packed, and the one with the CRC-32 of its
#: tensors' bytes, by which others know it.
KEY = "phema_packing"
CHECKSUM_KEY = "phema_packed_crc32"
KEYS = (KEY, CHECKSUM_KEY)
SCHEMA = "phema/packed/1"
#: elements that share a scale.
BLOCK = 64
#: bits of an integer, with the type of the tensor that has them.
BITS: Mapping[int, DType] = {16: DTYPES["I16"], 8: DTYPES["I8"], 4: DTYPES["U8"]}
#: endings of the names of a tensor's integers and scales.
VALUES, SCALES = ".packed", ".scales"
#: bits of the first bfloat16 that is no scale.
INFINITE = 0x7F80
#: files that one follows where phema packs, and as many as one may follow.
FOLLOWED = 4
MOST_FOLLOWED = 16
#: files from a keyframe to one.
LONGEST_CHAIN = 256
#: files from one keyframe to the next, unless the user says it.
KEYFRAME_EVERY = 64

_LARGEST_COEFFICIENT = 1e9
_NIBBLES = 4

Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]
#: bits of bfloat16 numbers.
ScaleBits = NDArray[np.uint16]


@dataclass(frozen=True, slots=True)
class Followed:
    """A snapshot that another one is predicted from.

    Attributes:
        name: of its file, in the same directory.
        checksum: of its tensors' bytes.
        coefficient: of its movement since the keyframe.
    """

    name: str
    checksum: str
    coefficient: float


@dataclass(frozen=True, slots=True)
class Packing:
    """How a file is packed.

    Attributes:
        bits: of an integer; 0 for a keyframe, whose tensors are whole.
        keyframe: name and checksum of the chain's first file; None for a keyframe itself.
        follows: what it is predicted from; the keyframe is none of these.
    """

    bits: int = 0
    keyframe: tuple[str, str] | None = None
    follows: tuple[Followed, ...] = ()

    def text(self) -> str:
        """As it stands in the metadata: JSON, a space, and the CRC-32 of that."""
        entry: dict[str, object] = {"schema": SCHEMA}
        if self.keyframe is not None:
            follows = [[f.name, f.checksum, f.coefficient] for f in self.follows]
            entry |= {"bits": self.bits, "keyframe": list(self.keyframe), "follows": follows}
        text = json.dumps(entry, ensure_ascii=False)
        return f"{text} {zlib.crc32(text.encode()):08x}"


def parse(metadata: Mapping[str, str], path: Path) -> Packing | None:
    """How a file is packed; None if it is not.

    Raises:
        InputError: what it says makes no sense, or was damaged.
    """
    if KEY not in metadata:
        if CHECKSUM_KEY not in metadata:
            return None
        raise broken(f"its entry {KEY} is missing", path)
    text, _, checksum = metadata[KEY].rpartition(" ")
    if checksum != f"{zlib.crc32(text.encode()):08x}":
        raise broken(f"its entry {KEY} is damaged", path)
    match parse_object(text.encode(), path):
        case {"schema": str(schema)} if schema != SCHEMA:
            remedy = "a newer phema may know it"
            raise InputError(f"is packed as {schema!r:.50}", where=path, remedy=remedy)
        case {
            "schema": str(),
            "bits": int(bits),
            "keyframe": [name, checksum],
            "follows": [*entries],
            **others,
        } if not others and bits in BITS and len(entries) <= MOST_FOLLOWED:
            follows = tuple(_followed(entry, path) for entry in entries)
            keyframe = _followed([name, checksum, 1.0], path)
            return Packing(bits, (keyframe.name, keyframe.checksum), follows)
        case {"schema": str(), **others} if not others:
            return Packing()
        case _:
            raise broken(f"its entry {KEY} makes no sense", path)


def _followed(entry: object, path: Path) -> Followed:
    """An entry of what a file follows.

    Raises:
        InputError: it is malformed, or leads out of the directory.
    """
    match entry:
        case [str(name), str(checksum), float(coefficient)]:
            plain = name == Path(name).name and name not in {"", ".", ".."} and "\\" not in name
            if plain and abs(coefficient) <= _LARGEST_COEFFICIENT:
                return Followed(name, checksum, coefficient)
        case _:
            pass
    raise broken(f"its entry {KEY} makes no sense", path)


def packed_specs(name: str, elements: int, bits: int) -> dict[str, tuple[DType, tuple[int, ...]]]:
    """Types and shapes of the tensors that hold a packed one."""
    count = -(-elements // 2) if bits == _NIBBLES else elements
    return {
        name + VALUES: (BITS[bits], (count,)),
        name + SCALES: (DTYPES["BF16"], (-(-elements // BLOCK),)),
    }


def pack(residue: Floats, bits: int) -> tuple[NDArray[np.generic], ScaleBits, Floats]:
    """Round residues to integers in blocks.

    The scale is the largest magnitude of a block over the largest integer, 2^(bits-1) - 1, rounded
    up to a bfloat16 so that nothing is clipped. A product that float32 cannot hold gets a smaller
    integer.

    Args:
        residue: (n,) float32, finite; n is a multiple of ``BLOCK`` but in a tensor's last part.
        bits: a key of ``BITS``.

    Returns:
        The integers as they are stored, (ceil(n / BLOCK),) bits of the scales, and (n,) what
        readers have of the residues, exactly.
    """
    count = len(residue)
    if count % BLOCK:
        padded = np.zeros(-(-count // BLOCK) * BLOCK, np.float32)
        padded[:count] = residue
        residue = padded
    blocks = residue.reshape(-1, BLOCK)
    most = float(2 ** (bits - 1) - 1)
    # Rounded up twice: to float32, and to bfloat16.
    largest = np.abs(np.maximum(blocks.max(axis=1), -blocks.min(axis=1)))
    scales = largest / np.float32(most)
    np.nextafter(scales, np.float32(np.inf), where=largest > 0, out=scales)
    raw = ((scales.view(np.uint32) + np.uint32(0xFFFF)) >> 16).astype(np.uint16)
    wide = numbers_of(raw)[:, None]
    divisors = np.where(wide > 0, wide, np.float32(1))
    with np.errstate(over="ignore"):
        held = np.minimum(np.floor(np.finfo(np.float32).max / divisors), np.float32(most))
    # In place from here on: memory that is new takes as long as the sums.
    integers = np.divide(blocks, divisors, dtype=np.float32)
    np.rint(integers, out=integers)
    np.clip(integers, -held, held, out=integers)
    stored = _stored(integers.reshape(-1)[:count], bits)
    integers *= wide
    return stored, raw, integers.reshape(-1)[:count]


def _stored(integers: Floats, bits: int) -> NDArray[np.generic]:
    """Integers as a file holds them."""
    if bits != _NIBBLES:
        return integers.astype(f"<i{bits // 8}")
    nibbles = np.full(2 * -(-len(integers) // 2), 8, np.uint8)
    nibbles[: len(integers)] = integers + 8
    return nibbles[::2] | nibbles[1::2] << 4


def places_of(part: Part, name: str, start: int) -> tuple[int, int]:
    """Where integers, and scales, of a packed tensor's elements from ``start`` on lie in the file.

    Args:
        part: the file.
        name: the tensor's.
        start: index of the first element, which is the first of its block.
    """
    values, steps = part.tensors[name]
    return values.offset + start * part.bits // 8, steps.offset + 2 * (start // BLOCK)


def unpack(values: NDArray[np.uint8], scales: Floats, bits: int, out: NDArray[np.floating]) -> None:
    """What readers have of residues.

    Args:
        values: bytes of stored integers, from a block's first one on.
        scales: (blocks,) float32.
        bits: of an integer.
        out: (n,) float32 or float64, filled.
    """
    if bits == _NIBBLES:
        integers = np.empty((len(values), 2), np.int8)
        np.bitwise_and(values, 15, out=integers[:, 0], casting="unsafe")
        np.right_shift(values, 4, out=integers[:, 1], casting="unsafe")
        np.subtract(integers.reshape(-1)[: len(out)], np.float32(8), out=out)
    else:
        out[:] = values.view(f"<i{bits // 8}")
    whole = len(out) // BLOCK
    with np.errstate(over="ignore"):
        out[: whole * BLOCK].reshape(whole, BLOCK)[:] *= scales[:whole, None]
        out[whole * BLOCK :] *= scales[whole:]


def numbers_of(raw: ScaleBits) -> Floats:
    """The numbers that bfloat16 bits stand for."""
    return (raw.astype(np.uint32) << 16).view(np.float32)


def encode(
    values: Floats,
    keyframe: Floats,
    movements: Sequence[Doubles],
    coefficients: Sequence[float],
    bits: int,
) -> tuple[NDArray[np.generic], ScaleBits, Doubles]:
    """Pack a part of a tensor.

    Args:
        values: (n,) float32, finite; n as in :func:`pack`.
        keyframe: (n,) float32.
        movements: (n,) each, float64: since the keyframe, as readers have them, of the snapshots
            that this one follows.
        coefficients: of each.
        bits: of an integer.

    Returns:
        Integers and scales as :func:`pack` has them, and (n,) float64 this snapshot's own movement
        as readers have it.
    """
    foretold, step = np.zeros(len(values)), np.empty(len(values))
    for movement, coefficient in zip(movements, coefficients, strict=True):
        np.multiply(movement, coefficient, out=step)
        foretold += step
    np.subtract(values, keyframe, out=step, dtype=np.float64)
    step -= foretold
    integers, scales, made = pack(step.astype(np.float32), bits)
    foretold += made
    return integers, scales, foretold


def fit(movements: Sequence[Doubles], wanted: Doubles, noise: float) -> tuple[float, ...]:
    """Coefficients with which movements foretell another one: least squares over the elements.

    Args:
        movements: (e,) each, what readers have of earlier snapshots less the keyframe.
        wanted: (e,) the snapshot's own.
        noise: mean square error of a movement's elements: keeps coefficients from growing where
            movements are alike.

    Returns:
        A coefficient for each; zeros where nothing can be foretold.
    """
    if not movements or not len(wanted):
        return (0.0,) * len(movements)
    rows = np.asarray(movements, np.float64)
    gram = rows @ rows.T / len(wanted)
    right = rows @ wanted / len(wanted)
    size = np.sqrt(np.maximum(np.diag(gram), max(noise, np.finfo(np.float64).tiny)))
    ridge = noise / size**2 + 1e-12
    solution = np.linalg.solve(gram / size[:, None] / size + np.diag(ridge), right / size) / size
    found = [float(c) for c in solution]
    usable = all(abs(c) <= _LARGEST_COEFFICIENT for c in found)
    return tuple(found) if usable else (0.0,) * len(movements)
