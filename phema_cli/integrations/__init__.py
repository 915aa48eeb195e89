"""Averages in models, and callbacks that keep a PowerEMA for training libraries.

phema itself imports none of these libraries: each has one module, which alone imports it.
"""

from phema_cli.integrations.models import load_into, swapped

__all__ = ["load_into", "swapped"]
