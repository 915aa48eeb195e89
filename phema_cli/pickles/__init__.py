"""What a pickle holds, read without running it; ``machine.py`` reads it."""

from phema_cli.pickles.values import Inert, Span, StandIn, opened, stand_ins

__all__ = ["Inert", "Span", "StandIn", "opened", "stand_ins"]
