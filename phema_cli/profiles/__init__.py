"""Averaging profiles: how much each moment of training weighs in an average."""

from phema_cli.profiles.base import (
    SIGMA_REL_LIMIT,
    Array,
    PowerProfile,
    Profile,
    Sparse,
    gamma_from_sigma_rel,
    sigma_rel_from_gamma,
    stored_at,
)
from phema_cli.profiles.laws import LAWS, Law, LawForm, parse_law
from phema_cli.profiles.shapes import (
    CombinationProfile,
    DecayProfile,
    ExponentialProfile,
    RawProfile,
    TableProfile,
    WindowProfile,
)
from phema_cli.profiles.specs import (
    HELP,
    PROFILES,
    CheckpointsSpec,
    ProfileSpec,
    describe,
    parse_profile,
)

__all__ = [
    "HELP",
    "LAWS",
    "PROFILES",
    "SIGMA_REL_LIMIT",
    "Array",
    "CheckpointsSpec",
    "CombinationProfile",
    "DecayProfile",
    "ExponentialProfile",
    "Law",
    "LawForm",
    "PowerProfile",
    "Profile",
    "ProfileSpec",
    "RawProfile",
    "Sparse",
    "TableProfile",
    "WindowProfile",
    "describe",
    "gamma_from_sigma_rel",
    "parse_law",
    "parse_profile",
    "sigma_rel_from_gamma",
    "stored_at",
]
