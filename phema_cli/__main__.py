"""``python -m phema_cli`` is the console script ``phema``."""

import gc

from phema_cli.cli.app import main


def run() -> None:
    """The console script: ``main`` in a process of its own.

    Torch makes a million objects that all live to the end. To search them for garbage, while it is
    imported and again at the end, takes longer than what most commands do.
    """
    gc.disable()
    try:
        main()
    finally:
        gc.freeze()


if __name__ == "__main__":
    run()
