"""Piecewise polynomials against SciPy and rational arithmetic; densities."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from scipy import integrate, interpolate

import gflow
from gflow import piecewise
from gflow.piecewise import PiecewisePolynomial


def random_function(rng, pieces: int, degree: int, a: float = -1.0, b: float = 2.0):
    inner = np.sort(rng.uniform(a, b, pieces - 1))
    return PiecewisePolynomial([a, *inner, b], rng.normal(size=(pieces, degree + 1)))


@pytest.mark.slow
@settings(max_examples=25, deadline=None)
@given(st.integers(1, 4), st.integers(1, 4), st.integers(0, 3), st.integers(0, 3), st.integers(0))
def test_arithmetic_is_that_of_the_values(pieces, others, degree, other_degree, seed):
    rng = np.random.default_rng(seed)
    f, g = random_function(rng, pieces, degree), random_function(rng, others, other_degree)
    x = rng.uniform(-1, 2, 20)
    a, b = np.asarray(f(x)), np.asarray(g(x))
    pairs = [
        *((f + g, a + b), (f - g, a - b), (f * g, a * b)),
        *((f + 2, a + 2), (2 - f, 2 - a), (-f, -a), (3 * f, 3 * a), (f - 0.5, a - 0.5)),
    ]
    for function, values in pairs:
        np.testing.assert_allclose(function(x), values, rtol=1e-12, atol=1e-13)
    assert len((f * g).breakpoints) == pieces + others and (f * g).degree == degree + other_degree


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 4), st.integers(0, 4), st.integers(0))
def test_calculus_is_scipys(pieces, degree, seed):
    rng = np.random.default_rng(seed)
    f = random_function(rng, pieces, degree)
    peer, x = f.ppoly(), rng.uniform(-1, 2, 20)
    close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-11, atol=1e-12)
    close(f(x), peer(x))
    close(f.derivative()(x), peer.derivative()(x))
    close(f.antiderivative()(x), peer.antiderivative()(x))
    close(f.integral(), peer.integrate(-1, 2))
    back = piecewise.from_ppoly(peer)
    close(back(x), f(x))
    np.testing.assert_array_equal(back.breakpoints, f.breakpoints)


def test_moments_are_correctly_rounded():
    a, b, c = 0.1, 1000.1, 1000.3
    f = PiecewisePolynomial([b, c], [[-b * a, a, 0.3]])
    rows = [Fraction(float(x)) for x in np.asarray(f.coefficients)[0]]
    for m in range(3):
        exact = sum(
            r * (Fraction(c) ** (k + m + 1) - Fraction(b) ** (k + m + 1)) / (k + m + 1)
            for k, r in enumerate(rows)
        )
        assert f.moment(m) == float(exact)


def test_refined():
    f = piecewise.tent()
    x = np.linspace(-1, 1, 21)
    np.testing.assert_array_equal(f.refined([-1, -0.3, 0, 0.2, 1])(x), f(x))
    assert f.refined([-1, -0.5]).interval == (-1, -0.5)
    with pytest.raises(gflow.ArgumentError, match=r"`breakpoints`: got none at 0"):
        f.refined([-1, 0.2, 1])


def test_through_points():
    x = np.array([0.0, 0.5, 2.0, 2.5, 4.0])
    y = np.array([1.0, -1.0, 0.0, 3.0, 3.5])
    at = np.linspace(0, 4, 57)
    peers = {
        "linear": lambda at: np.interp(at, x, y),
        "cubic": interpolate.CubicSpline(x, y),
        "monotone": interpolate.PchipInterpolator(x, y),
    }
    for kind, peer in peers.items():
        np.testing.assert_allclose(piecewise.through(x, y, kind)(at), peer(at), atol=1e-13)
    with pytest.raises(gflow.ArgumentError, match="`x`"):
        piecewise.through([0, 0], [1, 2])
    with pytest.raises(gflow.ArgumentError, match="`y`"):
        piecewise.through([0, 1], [1, 2, 3])
    with pytest.raises(gflow.ArgumentError, match="`ppoly`"):
        piecewise.from_ppoly(interpolate.CubicSpline(x, np.stack([y, y], axis=1)))


@settings(max_examples=40, deadline=None)
@given(st.floats(-50, 50), st.floats(0.01, 20), st.floats(0, 1), st.sampled_from("utp"))
def test_densities_are_densities(a, length, where, kind):
    b = a + length
    mode = min(max(a + where * length, a), b)
    if 0 < mode - a < 1e-6 or 0 < b - mode < 1e-6:
        mode = a
    density = {
        "u": lambda: piecewise.uniform(a, b),
        "t": lambda: piecewise.triangular(a, b, mode),
        "p": lambda: piecewise.parabolic(a, b),
    }[kind]()
    piecewise.check_density(density)
    assert density.interval == (a, b)


def test_shapes_of_densities():
    x = np.array([0.0, 0.25, 0.5, 1.0])
    np.testing.assert_allclose(piecewise.uniform(0, 2)(x), 0.5)
    np.testing.assert_allclose(piecewise.triangular(0, 1, 0.5)(x), [0, 1, 2, 0], atol=1e-15)
    np.testing.assert_allclose(piecewise.triangular(0, 1, 0.0)(x), 2 - 2 * x, atol=1e-15)
    np.testing.assert_allclose(piecewise.triangular(0, 1, 1)(x), 2 * x, atol=1e-15)
    np.testing.assert_allclose(piecewise.parabolic(0, 1)(x), 6 * x * (1 - x), atol=1e-15)
    steps = piecewise.histogram([0, 0.5, 2], [3, 1])
    np.testing.assert_allclose(steps(x), [1.5, 1.5, 1 / 6, 1 / 6])
    assert piecewise.triangular(0, 1).moment(1) == pytest.approx(0.5)
    p = piecewise.named_density("parabolic", -2, 1)
    second = integrate.quad(lambda t: t**2 * float(p(t)), -2, 1)[0]
    assert p.moment(2) == pytest.approx(second)
    for name in piecewise.DENSITIES:
        piecewise.check_density(piecewise.named_density(name))


@pytest.mark.parametrize(
    ("call", "named"),
    [
        (lambda: piecewise.uniform(1, 1), "b"),
        (lambda: piecewise.triangular(0, 1, 2), "mode"),
        (lambda: piecewise.histogram([0, 1], [-1]), "masses"),
        (lambda: piecewise.histogram([0, 1], [1, 2]), "breakpoints"),
        (lambda: piecewise.named_density("normal"), "density"),
        (lambda: piecewise.tent() + piecewise.uniform(0, 1), "other"),
        (lambda: piecewise.check_density(piecewise.tent() * 1.0000001), "density"),
        (lambda: piecewise.check_density(piecewise.uniform() * (1 + 1e-11)), "density"),
        (lambda: piecewise.check_density(piecewise.affine() + 0.5), "density"),
    ],
)
def test_misuse_is_named(call, named):
    with pytest.raises(gflow.ArgumentError, match=f"`{named}`"):
        call()
