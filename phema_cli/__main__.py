"""``python -m phema_cli`` is the console script ``phema``."""

import gc
import sys
import warnings

from phema_cli.cli import endings, streams
from phema_cli.errors import SignalError
from phema_cli.system.processes import ignore_signals, raise_on_signals


def run() -> None:
    """The console script: ``main`` in a process of its own, which signals end.

    Torch makes a million objects that all live to the end. To search them for garbage, while it is
    imported and again at the end, takes longer than what most commands do.
    """
    gc.disable()
    streams.prepare()
    if not sys.warnoptions:
        # What libraries warn of is no user's matter; what is, phema says itself.
        warnings.simplefilter("ignore")
    try:
        raise_on_signals()
        try:
            from phema_cli.cli.app import main
        except Exception as error:  # noqa: BLE001 - there may be too little memory to load it
            sys.exit(endings.ended(error))
        main()
    except SignalError as error:
        sys.exit(endings.ended(error))
    finally:
        ignore_signals()
        gc.freeze()


if __name__ == "__main__":
    run()
