"""Tensors of an average that its trainer copies from the raw weights."""

from collections.abc import Container, Sequence

import numpy as np
from numpy.typing import NDArray

from phema_cli.snapshots import Snapshot

#: times from which on tensors of an average that equal the raw weights are copies of these.
_LEAST_PAIRS = 3


def copied_in(
    snapshots: Sequence[Snapshot],
    parts: Sequence[tuple[str, int]],
    values: NDArray[np.floating],
    names: Container[str],
) -> tuple[str, ...]:
    """Which tensors of these names move, and are in an average what they are in the raw weights.

    Some trainers copy the parameters of batch norms. None where it is so of all tensors: that is no
    average.

    Args:
        snapshots: n, oldest first.
        parts: a tensor's name and how many of its elements come next, for all of the sample.
        values: (n, e) the sample.
        names: of the tensors that count.
    """
    raw = {s.tag.step: row for row, s in enumerate(snapshots) if s.tag.law == "raw"}
    pairs: dict[str, list[tuple[int, int]]] = {}
    for row, one in enumerate(snapshots):
        if one.tag.law != "raw" and one.tag.step in raw:
            pairs.setdefault(one.series, []).append((row, raw[one.tag.step]))
    found: dict[str, None] = {}
    for own, theirs in (zip(*p, strict=True) for p in pairs.values() if len(p) >= _LEAST_PAIRS):
        alike: dict[str, bool] = {}
        done = 0
        for name, count in parts:
            span = slice(done, done + count)
            done = span.stop
            weights = values[list(theirs), span]
            if (weights != weights[0]).any():
                same = np.array_equal(values[list(own), span], weights)
                alike[name] = same and alike.get(name, True)
        if not all(alike.values()):
            found |= dict.fromkeys(n for n, same in alike.items() if same and n in names)
    return tuple(found)
