"""``python -m phema_cli`` is the console script ``phema``."""

import gc
import sys

from phema_cli.errors import SignalError
from phema_cli.system.signals import raise_on_signals


def run() -> None:
    """The console script: ``main`` in a process of its own.

    Torch makes a million objects that all live to the end. To search them for garbage, while it is
    imported and again at the end, takes longer than what most commands do.
    """
    gc.disable()
    try:
        raise_on_signals()
        from phema_cli.cli.app import main
    except SignalError as error:
        sys.stderr.write("phema: ended before it began\n")
        sys.exit(error.exit_code)
    try:
        main()
    finally:
        gc.freeze()


if __name__ == "__main__":
    run()
