"""What a sample of the snapshots shows exactly, whatever their tags."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b

import numpy as np

from phema_cli.solver.calibration import Sample
from phema_cli.solver.evidence.laws import Series


@dataclass(frozen=True, slots=True)
class Findings:
    """Snapshots whose sampled elements are the same to the last bit.

    Attributes:
        still: series, by number, that hold the same values in all of their snapshots, two at least.
        copies: pairs of an average's series and a raw one that hold the same values at all times
            that they share, two at least, while these move.
        alike: groups of rows of the sample that are equal, the above apart: one file twice under
            two names, or weights that stood still.
    """

    still: tuple[int, ...] = ()
    copies: tuple[tuple[int, int], ...] = ()
    alike: tuple[tuple[int, ...], ...] = ()

    @property
    def contradict(self) -> bool:
        """Whether they contradict any tags: an average that is not one."""
        return bool(self.still or self.copies)


def look(series: Sequence[Series], sample: Sample) -> Findings:
    """Compare the snapshots bit by bit, in time linear in the sample.

    Args:
        series: all snapshots.
        sample: their elements.
    """
    rows = [row for s in series for row in s.rows]
    prints = {row: _print(sample, row) for row in rows}
    still = [k for k, s in enumerate(series) if len(s.rows) > 1 and _same(prints, s.rows)]
    copies = _copies(series, prints, still)
    explained = {row for k in (*still, *(k for k, _ in copies)) for row in series[k].rows}
    groups: dict[bytes, list[int]] = {}
    for row in rows:
        if row not in explained:
            groups.setdefault(prints[row], []).append(row)
    alike = tuple(tuple(sorted(group)) for group in groups.values() if len(group) > 1)
    return Findings(tuple(still), tuple(copies), alike)


def _print(sample: Sample, row: int) -> bytes:
    """A digest of one snapshot's elements."""
    return blake2b(np.ascontiguousarray(sample.values[row]).data, digest_size=16).digest()


def _same(prints: dict[int, bytes], rows: Sequence[int]) -> bool:
    """Whether all of the rows are equal."""
    return len({prints[row] for row in rows}) == 1


def _copies(
    series: Sequence[Series], prints: dict[int, bytes], still: Sequence[int]
) -> list[tuple[int, int]]:
    """Series of averages that equal a raw one."""
    found = []
    for raw, weights in enumerate(series):
        at = dict(zip(weights.times, weights.rows, strict=True))
        for k, other in enumerate(series):
            if weights.law.kind != "raw" or other.law.kind == "raw" or {raw, k} & set(still):
                continue
            shared = [
                (row, at[t]) for t, row in zip(other.times, other.rows, strict=True) if t in at
            ]
            moved = len({prints[row] for row, _ in shared}) > 1
            if moved and all(prints[a] == prints[b] for a, b in shared):
                found.append((k, raw))
    return found
