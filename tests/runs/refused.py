"""What trainers leave that holds no whole weights."""

from phema_cli.snapshots import Config

RAW = Config(raw=True)
CASES = []
