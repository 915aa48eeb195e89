"""Packed sources: what their averages are sums of, and a worker's buffers for residues.

Residues stay as they are stored from the read to the sum: their integers become wide numbers in the
processor's nearer caches, and a block's scale is part of its weight.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from phema_cli.formats.base import Link, Part
from phema_cli.formats.chains import link_of
from phema_cli.formats.packing import BLOCK
from phema_cli.profiles import Array
from phema_cli.snapshots import Snapshot
from phema_cli.synthesis.sums import add_blocks_up, consecutive

if TYPE_CHECKING:
    import torch

_NIBBLES, _BYTES = 4, 8
_SCALE_BITS = 16 / BLOCK
#: the number of a keyframe's row, which is no source's.
_KEYFRAME = -1
#: of a number in float32.
_WHOLE_BITS = 32


@dataclass(frozen=True, slots=True)
class Terms:
    """What packed sources are sums of: keyframes and other whole tensors, then residues.

    Their order is that of their files, so that a target's sum depends on no other target.

    Attributes:
        whole: n keyframes, or sources by index whose tensors are taken as readers have them.
        parts: m files with residues.
        weights: (n + m, k) float64 for each target.
    """

    whole: tuple[Link | int, ...]
    parts: tuple[Part, ...]
    weights: Array

    @property
    def bits(self) -> float:
        """Of all rows, for an element."""
        residues = sum(part.bits + _SCALE_BITS for part in self.parts)
        return _WHOLE_BITS * len(self.whole) + residues


def terms_of(sources: Sequence[Snapshot], weights: Array) -> Terms | None:
    """The rows whose sums are the averages of packed sources; None where no source is packed.

    With ``theta_i = K + sum_p c_ip d_p`` it is ``sum_i x_i theta_i = sum_i x_i K + sum_p y_p d_p``,
    where ``y_p = sum_i x_i c_ip``: no source is unpacked. A target that is one source is what
    readers have of it.

    Args:
        sources: n snapshots.
        weights: (n, k) float64.
    """
    links = [link_of(s.checkpoint) for s in sources]
    if not any(links):
        return None
    keyframes = {_keyframe_of(link): link for link in links if link is not None}
    single = ((weights != 0).sum(axis=0) == 1) & (weights == 1.0)
    none = np.zeros(weights.shape[1])
    # By path and number: several sources may lie in one file.
    whole: dict[tuple[str, int], tuple[Link | int, Array]] = {}
    parts: dict[str, tuple[Part, Array]] = {}
    for i, (source, link, alone) in enumerate(zip(sources, links, single, strict=True)):
        own = np.where(alone, 0.0, weights[i])
        path = f"{source.checkpoint.path}"
        if link is None and path in keyframes:
            # Its tensors are the keyframe's own.
            key = path, _KEYFRAME
            whole[key] = keyframes[path], whole.get(key, (i, none))[1] + weights[i]
            continue
        taken = weights[i] if link is None else weights[i] - own
        if taken.any():
            whole[path, i] = i, taken
        if link is not None and own.any():
            key = _keyframe_of(link), _KEYFRAME
            whole[key] = link, whole.get(key, (link, none))[1] + own
            for part, coefficient in zip(link.parts, link.coefficients, strict=True):
                name = str(part.path)
                parts[name] = part, parts.get(name, (part, none))[1] + coefficient * own
    # Newest first, as far as names tell: differences are taken from the first.
    ordered = [whole[key] for key in sorted(whole, reverse=True)]
    residues = [parts[path] for path in sorted(parts)]
    rows = [row for _, row in ordered + residues]
    return Terms(tuple(of for of, _ in ordered), tuple(of for of, _ in residues), np.array(rows))


def _keyframe_of(link: Link) -> str:
    """The path of the keyframe that a file's movement is since."""
    return f"{next(iter(link.keyframe.values())).file}"


class Residues:
    """A worker's buffers for the residues of a tile.

    Args:
        bits: of the integers of each of m files.
        width: elements of a tile, a multiple of ``BLOCK``.
    """

    def __init__(self, bits: Sequence[int], width: int) -> None:
        import torch

        self._bits = list(bits)
        size = max(self._bits, default=0) * width // 8
        self._raw = torch.empty((len(bits), size), dtype=torch.uint8)
        self._scales = torch.empty((len(bits), width // BLOCK), dtype=torch.bfloat16)
        self._wide = torch.empty(self._scales.shape)
        # The two numbers that each byte stands for, as one of 64 bits.
        pairs = np.arange(256)
        both = np.stack([pairs & 15, pairs >> 4], axis=1).astype(np.float32) - 8
        self._pairs = both.view(np.uint64)[:, 0].copy()

    def rows(self, count: int) -> list[memoryview]:
        """Where the stored integers of ``count`` elements go, then where their scales go."""
        import torch

        integers = [
            row.numpy().data[: -(-count * bits // 8)]
            for row, bits in zip(self._raw, self._bits, strict=True)
        ]
        blocks = -(-count // BLOCK)
        return integers + [row[:blocks].view(torch.uint8).numpy().data for row in self._scales]

    def filled(self) -> None:
        """Take note that ``rows`` hold another tile."""
        self._wide.copy_(self._scales)

    def add_up(
        self,
        numbers: list[int],
        weights: torch.Tensor,
        targets: int,
        start: int,
        held: torch.Tensor,
        out: torch.Tensor,
    ) -> torch.Tensor:
        """The sums of residues: chains of integers, with weights times scales.

        Args:
            numbers: n files, ascending.
            weights: (k, n), with zeros beyond the targets.
            targets: how many of the k are wanted.
            start: the first element, the first of its block.
            held: (n, count) for the integers, as wide numbers; count is a multiple of ``BLOCK``.
            out: memory for sums, k rows of count elements.

        Returns:
            (targets, blocks, ``BLOCK``).
        """
        blocks = held.shape[1] // BLOCK
        self._widen(numbers, start, held)
        first = start // BLOCK
        scales = self._wide[consecutive(numbers), first : first + blocks]
        return add_blocks_up(scales.t().contiguous()[:, None] * weights, targets, held, out)

    def values(self, count: int) -> torch.Tensor:
        """All residues of a tile (m, count), float32."""
        import torch

        numbers, blocks = list(range(len(self._bits))), -(-count // BLOCK)
        held = torch.empty(len(numbers), blocks * BLOCK)
        self._widen(numbers, 0, held)
        held.view(len(numbers), blocks, BLOCK).mul_(self._scales[:, :blocks, None])
        return held[:, :count]

    def _widen(self, numbers: list[int], start: int, out: torch.Tensor) -> None:
        """Put the integers of some files (n, count) into ``out``."""
        import torch

        if len({self._bits[number] for number in numbers}) > 1:
            for row, number in enumerate(numbers):
                self._widen([number], start, out[row : row + 1])
            return
        bits = self._bits[numbers[0]]
        low, high = start * bits // 8, (start + out.shape[1]) * bits // 8
        stored = self._raw[consecutive(numbers), low:high]
        if bits != _NIBBLES:
            out.copy_(stored.view(torch.int8 if bits == _BYTES else torch.int16))
            return
        for row, pairs in zip(out, stored, strict=True):
            row.copy_(torch.from_numpy(self._pairs.take(pairs.numpy()).view(np.float32)))
