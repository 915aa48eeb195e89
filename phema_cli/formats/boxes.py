"""Boxes that a tensor is split into."""

from __future__ import annotations

import math
from collections import Counter
from itertools import product
from typing import NamedTuple

#: along so many dimensions a tensor is split at most.
_MAX_SPLIT = 4


class Box(NamedTuple):
    """A part of a tensor: the index of its first element, and its shape."""

    origin: tuple[int, ...]
    shape: tuple[int, ...]


def covers(boxes: tuple[Box, ...], shape: tuple[int, ...]) -> bool:
    """Whether boxes cover a shape, each element once.

    A box is the signed sum of the orthants at its corners, and orthants are linearly independent:
    boxes make up the whole exactly if all corners except those of the whole cancel. Dimensions
    that no box splits are left out, so that rows split among ranks have two corners each.
    """
    if 0 in shape:
        return bool(boxes)
    whole = Box((0,) * len(shape), shape)
    sides = [{(box.origin[d], box.shape[d]) for box in boxes} for d in range(len(shape))]
    split = [d for d, n in enumerate(shape) if sides[d] != {(0, n)}]
    if len(split) > _MAX_SPLIT:
        return False
    corners: Counter[tuple[int, ...]] = Counter()
    for box, sign in (*((box, 1) for box in boxes), (whole, -1)):
        ends = [((box.origin[d], 1), (box.origin[d] + box.shape[d], -1)) for d in split]
        for corner in product(*ends):
            corners[tuple(at for at, _ in corner)] += sign * math.prod(s for _, s in corner)
    return bool(boxes) and not any(corners.values())
