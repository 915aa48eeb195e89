"""The tests; their process has what the command's has: one thread for numpy's small matrices."""

from phema_cli.cli.threads import load_numpy

load_numpy()
