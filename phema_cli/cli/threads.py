"""How many threads numpy's linear algebra has."""

from __future__ import annotations

import os
import sys

from phema_cli.system.processes import most_memory_bytes

#: what the libraries under numpy read once, when they are loaded.
_VARIABLES = ("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
#: what a process has to be allowed for numpy.
_LEAST_BYTES = 256 << 20


def load_numpy() -> None:
    """Load numpy with one thread, unless the environment says otherwise.

    phema's matrices are small: more threads take three times the processor time to wait for each
    other. What phema starts itself sees the environment as it was.

    Raises:
        MemoryError: the process may have too little to load it.
    """
    if "numpy" in sys.modules:
        return
    allowed = most_memory_bytes()
    if allowed is not None and allowed < _LEAST_BYTES:
        # OpenBLAS would end the process in its own way.
        raise MemoryError
    added = [name for name in _VARIABLES if name not in os.environ]
    os.environ.update(dict.fromkeys(added, "1"))
    try:
        import numpy  # noqa: F401 - this is what loads it
    finally:
        for name in added:
            del os.environ[name]
