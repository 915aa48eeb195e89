"""Which sources a target is solved from where there are thousands of them.

Work grows with the cube of their number and memory with its square, while what more of them tell
shrinks: neighbours share their rounding errors, and those far from a target's end only have to
follow a smooth profile.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from phema_cli.profiles import Array

#: sources that a target is solved from, and movement is fitted to, about.
MOST_SOURCES = 1024


def selected(ends: Array, near: float, most: int = MOST_SOURCES) -> NDArray[np.intp]:
    """The sources of a target: all, or a quarter early ones, a quarter near ones, the rest evenly.

    Short averages need those near their end, long ones the earliest, before which nothing is known.
    docs/maths.md has what this loses. Sources of one time stay together: apart they are worth less.

    Args:
        ends: (n,) times of the sources.
        near: when the target ends.
        most: sources to select, about.

    Returns:
        (m,) their places, ascending.
    """
    times, which = np.unique(ends, return_inverse=True)
    count = len(times)
    keep = max(most * count // len(ends), 4)
    if len(ends) <= most or keep >= count:
        return np.arange(len(ends))
    quarter = keep // 4
    after = min(int(np.searchsorted(times, near, side="right")) + quarter // 2, count)
    chosen = np.zeros(count, np.bool_)
    chosen[:quarter] = True
    chosen[max(after - quarter, 0) : after] = True
    others = np.flatnonzero(~chosen)
    even = np.linspace(0, len(others) - 1, keep - int(chosen.sum()))
    chosen[others[even.round().astype(np.intp)]] = True
    return np.flatnonzero(chosen[which])
