"""From the profiles of the snapshots to the weights of a target: pure numpy, float64, no files."""

from phema_cli.solver.calibration import Sample, calibrate
from phema_cli.solver.movement import Movement
from phema_cli.solver.weights import METHODS, Figures, Solution, exact_figures, solve, storage_noise

__all__ = [
    "METHODS",
    "Figures",
    "Movement",
    "Sample",
    "Solution",
    "calibrate",
    "exact_figures",
    "solve",
    "storage_noise",
]
