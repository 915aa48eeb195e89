"""Profiles: published pairs, round trips, and F as the integral of p."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from phema_cli.errors import UsageError
from phema_cli.profiles import (
    SIGMA_REL_LIMIT,
    PowerProfile,
    gamma_from_sigma_rel,
    sigma_rel_from_gamma,
)

#: sigma_rel and gamma of the paper's figure 24.
PUBLISHED = [(0.25, 0.72), (0.20, 1.83), (0.15, 3.56), (0.10, 6.94), (0.05, 16.97)]


@pytest.mark.parametrize(("sigma_rel", "gamma"), PUBLISHED)
def test_published_pairs(sigma_rel, gamma):
    """The pairs that the paper prints, to the digits that it prints."""
    assert round(gamma_from_sigma_rel(sigma_rel), 2) == gamma


@given(st.floats(1.1e-4, 0.2886))
def test_sigma_rel_to_gamma_and_back(sigma_rel):
    """The two conversions are inverse to each other."""
    gamma = gamma_from_sigma_rel(sigma_rel)
    assert math.isclose(sigma_rel_from_gamma(gamma), sigma_rel, rel_tol=1e-12)


def test_sigma_rel_is_the_relative_standard_deviation():
    """sigma_rel is what integration of the density gives."""
    profile = PowerProfile(6.94, 1000.0)
    t = (np.arange(1_000_000) + 0.5) * 1e-3
    p = profile.density(t) * 1e-3
    mean = (p * t).sum()
    assert math.isclose(
        math.sqrt((p * (t - mean) ** 2).sum()) / 1000, profile.sigma_rel, rel_tol=1e-6
    )


@pytest.mark.parametrize("sigma_rel", [SIGMA_REL_LIMIT, 0.2887, 0.5, 0.0, -0.1, math.nan])
def test_impossible_sigma_rel_is_refused(sigma_rel):
    """The error names the limit."""
    with pytest.raises(UsageError, match=r"0\.2887"):
        gamma_from_sigma_rel(sigma_rel)


@pytest.mark.parametrize(
    ("gamma", "end"), [(-0.5, 1.0), (math.nan, 1.0), (5.0, 0.0), (5.0, math.inf)]
)
def test_impossible_profiles_are_refused(gamma, end):
    """A profile outside the power functions that phema knows can't be made."""
    with pytest.raises(UsageError):
        PowerProfile(gamma, end)


@given(st.floats(-0.4, 50), st.floats(0.1, 1e6))
def test_cdf_is_the_integral_of_the_density(gamma, end):
    """F(b) - F(a) is the integral of p from a to b, and nothing lies outside (0, end]."""
    profile = PowerProfile(gamma, end)
    x, w = np.polynomial.legendre.leggauss(40)
    a, b = 0.4 * end, 0.9 * end
    t = a + (x + 1) / 2 * (b - a)
    integral = (profile.density(t) * w).sum() * (b - a) / 2
    low, high = profile.cdf(np.array([a, b]))
    assert math.isclose(integral, high - low, rel_tol=1e-9, abs_tol=1e-300)
    outside = np.array([-end, 0.0, end * 1.01])
    assert profile.density(outside).tolist() == [0, 0, 0]
    assert profile.cdf(outside).tolist() == [0, 0, 1]


def test_discrete_ema_weights_are_differences_of_f():
    """The product of the decays beta_t telescopes to F(s) - F(s-1), exactly."""
    gamma, steps = 6.94, 50
    weights = np.zeros(steps)
    for t in range(1, steps + 1):
        beta = (1 - 1 / t) ** (gamma + 1)
        weights *= beta
        weights[t - 1] = 1 - beta
    f = PowerProfile(gamma, steps).cdf(np.arange(steps + 1.0))
    np.testing.assert_allclose(weights, np.diff(f), atol=1e-15)
