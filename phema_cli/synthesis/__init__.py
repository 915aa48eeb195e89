"""Synthesis: from snapshots and targets to written checkpoints."""

from phema_cli.request import Request
from phema_cli.synthesis.execute import Average, average, synthesize
from phema_cli.synthesis.recipe import find_dtype, make_recipe

__all__ = ["Average", "Request", "average", "find_dtype", "make_recipe", "synthesize"]
