"""What a pickle holds, read without running it."""

from phema_cli.pickles.machine import Machine
from phema_cli.pickles.plain import dict_of, set_of
from phema_cli.pickles.values import Inert, Kind, Span, opened

__all__ = ["Inert", "Kind", "Machine", "Span", "dict_of", "opened", "set_of"]
