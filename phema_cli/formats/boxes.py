"""Boxes that a tensor is split into."""

import math
from collections import Counter
from itertools import product
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

#: along so many dimensions a tensor is split at most.
_MAX_SPLIT = 4


class Box(NamedTuple):
    """A part of a tensor: the index of its first element, and its shape.

    Elements count in row-major order, those of the box and those of the tensor, so that a range of
    the tensor's has a range of the box's.
    """

    origin: tuple[int, ...]
    shape: tuple[int, ...]

    def elements_before(self, flat: int, shape: tuple[int, ...]) -> int:
        """How many elements of the box come before the tensor's element ``flat``.

        Args:
            flat: index in the flattened tensor, up to the number of its elements.
            shape: the tensor's shape.
        """
        count, block, inside = 0, math.prod(shape), math.prod(self.shape)
        for size, origin, length in zip(shape, self.origin, self.shape, strict=True):
            block //= size
            inside //= length
            digit, flat = divmod(flat, block)
            count += min(max(digit - origin, 0), length) * inside
            if not origin <= digit < origin + length:
                break
        return count

    def places(self, some: NDArray[np.int64], shape: tuple[int, ...]) -> NDArray[np.int64]:
        """Indices in the flattened tensor of some of the box's elements."""
        rest, flat, step = some, np.zeros_like(some), 1
        dimensions = zip(shape[::-1], self.origin[::-1], self.shape[::-1], strict=True)
        for size, origin, length in dimensions:
            rest, digit = np.divmod(rest, length)
            flat += (digit + origin) * step
            step *= size
        return flat

    def run(self, shape: tuple[int, ...]) -> int:
        """How many elements of the box follow on one another in the tensor."""
        count = 1
        for size, length in zip(shape[::-1], self.shape[::-1], strict=True):
            count *= length
            if length != size:
                break
        return count


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
