"""``python -m phema_cli`` is the console script ``phema``."""

from phema_cli.cli.app import main

if __name__ == "__main__":
    main()
