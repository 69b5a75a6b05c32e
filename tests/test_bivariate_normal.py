"""The bivariate normal distribution against mpmath."""

import itertools

import jax
import jax.numpy as jnp
import mpmath as mp
import numpy as np
import pytest
import scipy.special
import scipy.stats
from hypothesis import given, settings, strategies as st

from gflow.risks.bivariate_normal import bivariate_normal_cdf, orthant

CDF, ORTHANT = jax.jit(bivariate_normal_cdf), jax.jit(lambda *a: orthant(*a))


def exact(h, k, minus, plus):
    """∫ φ(x) Φ((k − ρx)/q) dx up to h, with 25 digits, from the smaller of 1 − ρ and 1 + ρ."""
    with mp.workdps(25):
        h, k, minus, plus = map(mp.mpf, (h, k, minus, plus))
        rho = 1 - minus if minus <= plus else plus - 1
        q = mp.sqrt(minus * (1 + rho) if minus <= plus else plus * (1 - rho))
        if q == 0:
            below = mp.ncdf(min(h, k)) if rho > 0 else max(mp.mpf(0), mp.ncdf(h) - mp.ncdf(-k))
            return below
        # Nodes around the jump of width q/ρ, however narrow.
        jump = [] if rho == 0 else [(k + s * q) / rho for s in (-12, -6, -2, 0, 2, 6, 12)]
        inside = {x for x in [*jump, -12, -6, -3, 0, 3, 6] if -14 < x < h}
        nodes = [mp.mpf(-14), *sorted(inside), max(h, mp.mpf(-14))]
        return mp.quad(lambda x: mp.npdf(x) * mp.ncdf((k - rho * x) / q), nodes)


def close(got, cases, atol):
    for value, case in zip(np.asarray(got), cases):
        assert abs(float(mp.mpf(float(value)) - exact(*case))) < atol, case


# The errors that occur are below 2e-16.
@pytest.mark.slow
def test_random_correlations():
    rng = np.random.default_rng(0)
    cases = [(*rng.normal(size=2) * rng.choice([0.1, 1, 3]), rng.uniform(-1, 1)) for _ in range(40)]
    got = CDF(*map(jnp.asarray, zip(*cases)))
    close(got, [(h, k, 1 - mp.mpf(r), 1 + mp.mpf(r)) for h, k, r in cases], 4e-16)


@pytest.mark.slow
def test_nearly_aligned_and_opposite():
    rng = np.random.default_rng(1)
    cases = []
    # At 1e-16 the rounding of h decides on which side of the corner the origin lies.
    angles, shifts = (1e-1, 1e-4, 1e-8, 1e-12, 1e-16, 0.0), (0, 3e-16, 1e-15, 1e-8, 1e-3)
    for angle, shift in itertools.product(angles, shifts):
        h = rng.normal()
        small = 2 * np.sin(angle / 2) ** 2
        cases += [(h, h * (1 + shift), small, 2 - small), (h, -h * (1 + shift), 2 - small, small)]
    close(ORTHANT(*map(jnp.asarray, zip(*cases))), cases, 4e-16)


@pytest.mark.slow
def test_special_places():
    values = (-10.0, -1e-200, 0.0, 0.3, 10.0)
    cases = [
        (h, k, 1 - r, 1 + r)
        for (h, k), r in itertools.product(
            itertools.product(values, values), (-1.0, -0.5, 0.0, 0.9, 1.0)
        )
    ]
    close(ORTHANT(*map(jnp.asarray, zip(*cases))), cases, 4e-16)


finite = st.floats(-40, 40)


@settings(max_examples=100, deadline=None)
@given(h=finite, k=finite, rho=st.floats(-1, 1))
def test_identities(h, k, rho):
    p, swapped, reflected = (
        CDF(*map(jnp.asarray, a)) for a in ((h, k, rho), (k, h, rho), (h, -k, -rho))
    )
    assert p == pytest.approx(float(swapped), abs=4e-16)
    # P(X ≤ h, Y ≤ k) + P(X ≤ h, −Y ≤ −k) = P(X ≤ h).
    assert p + reflected == pytest.approx(scipy.special.ndtr(h), abs=6e-16)
    assert -4e-16 < p < 1 + 4e-16


def test_small_probabilities_have_a_small_error():
    # It is relative to the larger tail, whose relative rounding error is about k²/2 units.
    h, k, rho = -6.0, -5.0, 0.3
    got = float(CDF(jnp.asarray(h), jnp.asarray(k), jnp.asarray(rho)))
    want = exact(h, k, 1 - mp.mpf(rho), 1 + mp.mpf(rho))
    assert abs(float(mp.mpf(got) - want)) < 1e-14 * scipy.special.ndtr(k)


def test_derivatives():
    h, k, rho = 0.3, -0.7, 0.6
    gradient = jax.jit(jax.grad(bivariate_normal_cdf, (0, 1, 2)))(h, k, rho)
    q = np.sqrt(1 - rho**2)
    phi, cdf = scipy.stats.norm.pdf, scipy.special.ndtr
    joint = scipy.stats.multivariate_normal.pdf([h, k], cov=[[1, rho], [rho, 1]])
    wanted = phi(h) * cdf((k - rho * h) / q), phi(k) * cdf((h - rho * k) / q), joint
    np.testing.assert_allclose(gradient, wanted, rtol=1e-13)


def test_broadcasts_and_keeps_float32():
    h, rho = jnp.asarray([0.1, 0.2], jnp.float32), jnp.asarray([[0.5], [-0.5], [1.0]], jnp.float32)
    got = CDF(h[None, :], h[None, :], rho)
    assert got.shape == (3, 2) and got.dtype == jnp.float32
    wide = CDF(*(a.astype(float) for a in (h[None, :], h[None, :], rho)))
    np.testing.assert_allclose(got, wide, atol=3e-7)
