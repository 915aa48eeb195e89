"""Synthesis: from snapshots and targets to written checkpoints."""

from phema_cli.synthesis.request import Request, find_dtype, plan, synthesize

__all__ = ["Request", "find_dtype", "plan", "synthesize"]
