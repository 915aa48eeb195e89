"""What a pickle holds, read without running it."""

from phema_cli.pickles.globals import dict_of
from phema_cli.pickles.machine import Machine
from phema_cli.pickles.values import Inert, Span, StandIn, opened, stand_ins

__all__ = ["Inert", "Machine", "Span", "StandIn", "dict_of", "opened", "stand_ins"]
