"""Moments of pairs of units and their derivatives against one-dimensional quadrature."""

import functools

import jax
import mpmath as mp
import numpy as np
import pytest
import scipy.special

from gflow.risks import gaussian_kernels as kernels
from tests.helpers.gauss_rules import Phi, gauss, phi


def normal_rule(kinks=(), jumps=()):
    """A rule for the normal law, split at kinks and around jumps (place, width)."""
    near = [place + s * width for place, width in jumps for s in (-12, -8, -5, -2, 0, 2, 5, 8, 12)]
    x, w = gauss(np.clip([*np.arange(-12.0, 13.0), *kinks, *near], -12, 12))
    return x, w * phi(x)


def geometry(u, v):
    """‖u‖, ‖v‖, ρ, q, û and the unit vector orthogonal to û towards v, from 40 digits."""
    with mp.workdps(40):
        u, v = (mp.matrix(a.tolist()) for a in (u, v))
        sigma, tau = mp.norm(u), mp.norm(v)
        one = u / sigma if sigma else v / tau if tau else mp.matrix([1, 0])
        two = v / (tau or 1)
        rho = (one.T * two)[0]
        across = two - rho * one
        q = mp.norm(across)
        across = across / q if q > 1e-30 else mp.matrix([-one[1], one[0]])
        vectors = [np.array(a.tolist(), float)[:, 0] for a in (one, across)]
        return (*map(float, (sigma, tau, rho, q)), *vectors)


def relu_integrals(u, b, v, b2):
    """K and its derivatives E[1 z'₊ x̃], E[δ(z) z'₊ x̃x̃ᵀ], E[1 1' x̃x̃ᵀ], x̃ = (X, 1), in (u, b), twice
    (u, b), and (u, b) and (v, b').

    By quadrature over x = ⟨û, X⟩; the expectation over the direction ξ across is elementary.
    """
    sigma, tau, rho, q, one, across = geometry(u, v)
    s, slope = tau * q, tau * rho
    kinks = [-b / sigma] if sigma else []
    x, w = normal_rule(kinks, [(-b2 / slope, abs(s / slope))] if abs(slope) > 1e-12 else [])
    z, mu = b + sigma * x, b2 + slope * x
    r = mu / s if s > 0 else 1e3 * np.sign(mu)
    on = w * (z > 0)
    # E[ξᵐ; z' > 0] for m = 0, 1, 2, and E[z'₊], E[ξ z'₊].
    p0, p1, p2 = Phi(r), phi(r), Phi(r) - r * phi(r)
    relu = mu * p0 + s * p1
    # Rows: û, across, and the 1 of x̃.
    frame = np.zeros((3, len(u) + 1))
    frame[0, :-1], frame[1, :-1], frame[2, -1] = one, across, 1.0
    first = frame.T @ [on @ (x * relu), on @ (s * p0), on @ relu]
    both = [[x * x * p0, x * p1, x * p0], [x * p1, p2, p1], [x * p0, p1, p0]]
    mixed = frame.T @ (np.array(both) @ on) @ frame
    own = np.zeros_like(mixed)
    if sigma:
        kink = -b / sigma
        mu = b2 + slope * kink
        y, w = normal_rule([-mu / s] if s > 0 else [])
        line = np.stack([np.full_like(y, kink), y, np.ones_like(y)])
        w = w * np.maximum(mu + s * y, 0) * phi(kink) / sigma
        own = frame.T @ ((line * w) @ line.T) @ frame
    return on @ (z * relu), first, own, mixed


def erf_integrals(u, b, v, b2):
    """The same for erf, whose mean over ξ is erf again."""
    sigma, tau, rho, q, one, across = geometry(u, v)
    s, slope = tau * q, tau * rho
    n = np.sqrt(1 + 2 * s**2)
    jumps = [
        (-start / rise, abs(width / rise))
        for start, rise, width in ((b, sigma, 1), (b2, slope, n))
        if rise
    ]
    x, w = normal_rule((), jumps)
    z, mu = b + sigma * x, b2 + slope * x
    mean, slope = scipy.special.erf(mu / n), 2 / np.sqrt(np.pi) / n * np.exp(-((mu / n) ** 2))
    lift = 2 / np.sqrt(np.pi) * np.exp(-(z**2)) * w
    frame = np.stack([np.append(one, 0), np.append(across, 0), np.eye(len(u) + 1)[-1]])
    value = w @ (scipy.special.erf(z) * mean)
    return value, frame.T @ [lift @ (x * mean), lift @ (s * slope), lift @ mean]


def special_units():
    """Weights and biases in special positions to each other, all pairs of which are tested."""
    rng = np.random.default_rng(0)
    w, far = rng.normal(size=(2, 2))
    turn = lambda angle: (w[0] + 1j * w[1]) * np.exp(1j * angle)
    turned = [[z.real, z.imag] for z in map(turn, (1e-8, np.pi - 1e-8, 1e-3))]
    w = [w, 2.7 * w, -w, -0.3 * w, *turned, far, 1e-8 * far, 3 * far, far, 0 * far, 0 * far]
    b = [0.4, 1.08, -0.4, 0.2, 0.4 + 1e-9, 0.1, 0.4, -10.0, 1e-8, 10.0, 0.0, 0.7, -0.7]
    return np.array(w), np.array(b)


def special_pairs(biased: bool, degenerate: bool = True):
    """All pairs of special units (w, b), and pairs that are aligned or opposite up to rounding."""
    w, b = special_units()
    units = np.column_stack([w, b if biased else 0 * b])[: None if degenerate else -2]
    i, j = (a.ravel() for a in np.indices((len(units), len(units))))
    rng = np.random.default_rng(1)
    one = rng.normal(size=(200, 3)) * 10 ** rng.uniform(-2, 1, size=(200, 1))
    factor = rng.choice([1 + 1e-7, 3.3, 0.1, -0.7, -1 - 1e-9], size=(200, 1))
    two = one * factor * (1 + rng.choice([0, 2e-16, 1e-15, 1e-12], size=(200, 3)))
    one[:, 2] *= biased
    two[:, 2] *= biased
    return np.concatenate([units[i], one]), np.concatenate([units[j], two])


@functools.cache
def compiled(kernel, biased: bool):
    def of_pair(both):
        one, two = (unit[None] for unit in both)
        split = lambda unit: (unit[:, :-1], unit[:, -1]) if biased else (unit, None)
        return kernel(*split(one), *split(two))[0, 0]

    parts = lambda both: (of_pair(both), jax.grad(of_pair)(both), jax.hessian(of_pair)(both))
    return jax.jit(jax.vmap(parts))


def derivatives(kernel, biased: bool, one: np.ndarray, two: np.ndarray):
    """Value, gradient and Hessian of the kernel for pairs of units (w, b)."""
    n = 3 if biased else 2
    # All batches have the same size, to compile once.
    padded = tuple(np.resize(units[:, :n], (400, n)) for units in (one, two))
    return jax.tree.map(lambda a: a[: len(one)], compiled(kernel, biased)(padded))


@pytest.mark.slow
@pytest.mark.parametrize("biased", [True, False])
def test_relu_kernel_and_its_derivatives_are_integrals(biased):
    # Derivatives in degenerate units are a convention, which is tested below.
    one, two = special_pairs(biased, degenerate=biased)
    n = 3 if biased else 2
    got = derivatives(kernels.relu_pairs, biased, one, two)
    for case, (p, p2) in enumerate(zip(one, two)):
        value, first, own, mixed = relu_integrals(p[:-1], p[-1], p2[:-1], p2[-1])
        size, size2, weight = (np.linalg.norm(a) for a in (p, p2, p[:-1]))
        wanted = value, first[:n], own[:n, :n], mixed[:n, :n]
        found = got[0][case], got[1][0][case], got[2][0][0][case], got[2][0][1][case]
        scales = size * size2, size2, size2 / (weight or 1.0), 1.0
        for a, e, scale in zip(found, wanted, scales):
            np.testing.assert_allclose(a, e, rtol=0, atol=2e-14 * scale, err_msg=f"{p}, {p2}")


@pytest.mark.slow
@pytest.mark.parametrize("biased", [True, False])
def test_erf_kernel_and_its_gradient_are_integrals(biased):
    one, two = special_pairs(biased)
    n = 3 if biased else 2
    got = derivatives(kernels.erf_pairs, biased, one, two)
    for case, (p, p2) in enumerate(zip(one, two)):
        value, first = erf_integrals(p[:-1], p[-1], p2[:-1], p2[-1])
        assert got[0][case] == pytest.approx(value, abs=2e-15), (p, p2)
        np.testing.assert_allclose(got[1][0][case], first[:n], atol=1e-14, err_msg=f"{p}, {p2}")


def test_degenerate_units_have_no_derivatives():
    """ReLU'(0) = 0: h(u, v) has limits as u → 0 that depend on the direction, but G is 0."""
    zero, other = np.zeros((1, 3)), np.array([[0.6, -0.8, 0.5]])
    for biased in (True, False):
        value, gradient, hessian = derivatives(kernels.relu_pairs, biased, zero, other)
        assert value[0] == 0
        for a in (*gradient, hessian[0][0], hessian[0][1], hessian[1][1]):
            np.testing.assert_array_equal(a, 0.0)


def test_tiny_and_huge_weights():
    w = np.array([[3e-100, 4e-100], [3e100, -4e100], [3.0, 4.0]])
    value, gradient, hessian = derivatives(kernels.relu_pairs, False, w, w[[2, 2, 2]])
    np.testing.assert_allclose(value, [12.5e-100, gradient[0][1] @ w[1], 12.5], rtol=1e-14)
    np.testing.assert_allclose(gradient[0][0], w[2] / 2, rtol=1e-14)
    assert all(np.isfinite(a).all() for a in (*gradient, *hessian[0], *hessian[1]))
