"""How a rank of a test ends."""

import os
import sys


def end_rank():
    """End this process without the interpreter's last steps.

    In these a thread of gloo that still holds the tensor of the last collective ends the process by
    SIGABRT, now and then.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)
