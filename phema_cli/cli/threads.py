"""How many threads numpy's linear algebra has."""

from __future__ import annotations

import os
import sys

#: what the libraries under numpy read once, when they are loaded.
_VARIABLES = ("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


def load_numpy() -> None:
    """Load numpy with one thread, unless the environment says otherwise.

    phema's matrices are small: more threads take three times the processor time to wait for each
    other. What phema starts itself sees the environment as it was.
    """
    if "numpy" in sys.modules:
        return
    added = [name for name in _VARIABLES if name not in os.environ]
    os.environ.update(dict.fromkeys(added, "1"))
    try:
        import numpy  # noqa: F401 - this is what loads it
    finally:
        for name in added:
            del os.environ[name]
