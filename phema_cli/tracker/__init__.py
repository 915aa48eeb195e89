"""Power-function averages that a training loop keeps and stores."""

from phema_cli.tracker.power_ema import PowerEMA

__all__ = ["PowerEMA"]
