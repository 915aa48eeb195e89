"""``python -m phema_cli`` is the console script ``phema``."""

import gc
import sys
import warnings

from phema_cli.cli import process
from phema_cli.errors import SignalError
from phema_cli.system.signals import ignore_signals, raise_on_signals


def run() -> None:
    """The console script: ``main`` in a process of its own, which signals end.

    Torch makes a million objects that live to the end. Searching them for garbage, while torch is
    imported and again at the end, would take longer than most commands.
    """
    gc.disable()
    process.prepare_streams()
    if not sys.warnoptions:
        # Warnings of libraries do not help users; phema prints its own.
        warnings.simplefilter("ignore")
    try:
        raise_on_signals()
        try:
            from phema_cli.cli.app import main
        except Exception as error:  # noqa: BLE001 - there may be too little memory to load it
            sys.exit(process.report(error))
        main()
    except SignalError as error:
        sys.exit(process.report(error))
    finally:
        ignore_signals()
        gc.freeze()


if __name__ == "__main__":
    run()
