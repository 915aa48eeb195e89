"""What a pickle holds, read without running it."""

from phema_cli.pickles.machine import Machine
from phema_cli.pickles.values import Inert, Kind, Span, dict_of, set_of

__all__ = ["Inert", "Kind", "Machine", "Span", "dict_of", "set_of"]
