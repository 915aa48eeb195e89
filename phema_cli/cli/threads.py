"""numpy's linear algebra with one thread."""

from __future__ import annotations

import os
import sys

from phema_cli.system.processes import most_memory_bytes

#: variables that the libraries under numpy read once, when they are loaded.
_VARIABLES = ("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
#: memory that a process needs for numpy.
_LEAST_BYTES = 256 << 20


def load_numpy() -> None:
    """Load numpy with one thread, unless the environment says otherwise.

    phema's matrices are small: more threads would wait for each other and take three times the
    processor time. Programs that phema starts get the environment unchanged.

    Raises:
        MemoryError: the process is allowed too little memory to load it.
    """
    if "numpy" in sys.modules:
        return
    allowed = most_memory_bytes()
    if allowed is not None and allowed < _LEAST_BYTES:
        # OpenBLAS would end the process itself, with its own message.
        raise MemoryError
    added = [name for name in _VARIABLES if name not in os.environ]
    os.environ.update(dict.fromkeys(added, "1"))
    try:
        import numpy  # noqa: F401 - this is what loads it
    finally:
        for name in added:
            del os.environ[name]
