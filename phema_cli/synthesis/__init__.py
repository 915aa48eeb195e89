"""Synthesis: from snapshots and targets to written checkpoints."""

from phema_cli.request import Request
from phema_cli.synthesis.recipe import make_recipe
from phema_cli.synthesis.tensors import find_dtype

__all__ = ["Request", "find_dtype", "make_recipe"]
