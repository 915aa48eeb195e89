"""Do the snapshots fit their tags? A test on their sample: docs/evidence.md."""

from phema_cli.solver.evidence.laws import Law, Series, law_of, series_of
from phema_cli.solver.evidence.proposal import propose
from phema_cli.solver.evidence.verdict import LIMITS, Alternative, Evidence, State, limits_of, weigh

__all__ = [
    "LIMITS",
    "Alternative",
    "Evidence",
    "Law",
    "Series",
    "State",
    "law_of",
    "limits_of",
    "propose",
    "series_of",
    "weigh",
]
