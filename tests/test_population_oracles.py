"""The closed forms of the theory (docs/theory.md, O5 to O9 and O14) on the true risk."""

import jax
import mpmath as mp
import numpy as np
import pytest
import scipy.integrate
import scipy.linalg
from jax.flatten_util import ravel_pytree

import gflow
from gflow import piecewise
from tests.helpers.affine_target import affine_risk, critical_value, zig_zag
from tests.helpers.derivatives import risk_and_gradient
from tests.helpers.gauss_rules import gauss
from tests.helpers.networks_as_vectors import norm
from tests.helpers.one_input_risks import TENT_RISK, assert_exact, from_arrays, hard_net


def test_oracle_of_a_degenerate_unit():
    """O5: N = 3/2 at the start, as are all residuals. If the unit is degenerate, only c moves."""
    risk = gflow.PopulationRisk(piecewise.constant(0.0), piecewise.uniform())
    value, gradient = risk_and_gradient(risk, from_arrays([0.0], [0.5], [1.0], 1.0))
    assert value == pytest.approx(2.25, rel=1e-15)
    np.testing.assert_allclose(
        [gradient.w[0, 0], gradient.b[0], gradient.v[0], gradient.c], [0, 3, 1.5, 3], atol=1e-15
    )
    v, c = 0.75**0.5, 1 - np.log(3) / 2
    value, gradient = risk_and_gradient(risk, from_arrays([0.0], [0.0], [v], c))
    assert value == pytest.approx(c**2, rel=1e-15) and gradient.c == pytest.approx(2 * c)
    assert gradient.w[0, 0] == gradient.b[0] == gradient.v[0] == 0


def test_oracle_of_the_parabola():
    """O6, against quadrature by mpmath as well."""
    target = piecewise.parabola().refined([0, 1])
    risk = gflow.PopulationRisk(target, piecewise.uniform(0, 1))
    net = from_arrays([1.0, -0.5], [-0.3, 0.4], [0.8, -0.6], 0.1)
    assert_exact(risk, net)
    relu = lambda x: max(x, mp.mpf(0))
    numbers = [mp.mpf(x) for x in (1.0, -0.3, 0.8, -0.5, 0.4, -0.6, 0.1)]
    w1, b1, v1, w2, b2, v2, c = numbers
    n = lambda x: v1 * relu(w1 * x + b1) + v2 * relu(w2 * x + b2) + c
    value = mp.quad(lambda x: (n(x) - x**2) ** 2, [0, -b1 / w1, -b2 / w2, 1])
    assert float(risk(net)) == pytest.approx(float(value), rel=1e-15)
    assert str(float(risk(net))).startswith("0.0212666")


@pytest.mark.parametrize("n", [0, 2, 4])
def test_critical_values_and_zigzag_saddles(n):
    """O7: f = αx + β on [T0, T1] has critical values α²(T1 − T0)²/(12 (n + 1)⁴), uniformly."""
    value, gradient = risk_and_gradient(affine_risk(), zig_zag(n, 8, 0))
    assert value == pytest.approx(critical_value(n), rel=1e-14)
    assert norm(gradient) <= 1e-14


def test_identities_of_the_gradient():
    """O8: balance, and ⟨∇V, G⟩ = 8 L for V = ‖θ‖² + |c − 2ξ|² and a constant target ξ."""
    xi = 0.7
    risk = gflow.PopulationRisk(piecewise.constant(xi), piecewise.triangular(-1, 1, 0.2))
    net = hard_net(np.random.default_rng(1), risk, 8, 0)
    value, g = risk_and_gradient(risk, net)
    balance = net.w[:, 0] * g.w[:, 0] + net.b * g.b - net.v * g.v
    np.testing.assert_allclose(balance, 0, atol=1e-14)
    theta, gradient = ravel_pytree(net)[0], ravel_pytree(g)[0]
    slope = 2 * theta @ gradient + 2 * (net.c - 2 * xi) * g.c
    np.testing.assert_allclose(slope, 8 * value, rtol=1e-13)


@pytest.fixture(scope="module")
def constant_target() -> tuple[gflow.PopulationRisk, float]:
    return gflow.PopulationRisk(piecewise.constant(0.7), piecewise.triangular(-1, 1, 0.2)), 0.7


def solve(risk, net, **options):
    return gflow.solve_flow(risk, net, t1=2.0, rtol=1e-10, atol=1e-12, **options)


@pytest.mark.slow
def test_invariants_along_the_flow(constant_target):
    """O8: energy, balance, and V(Θ_t) + 8 ∫ L = V(Θ_0), by the flow's own saved times."""
    risk, xi = constant_target
    flow = solve(risk, hard_net(np.random.default_rng(2), risk, 8, 0), ts=np.linspace(0, 2, 401))
    assert np.abs(flow.diagnostics.energy).max() < 1e-8
    assert np.abs(flow.diagnostics.balance).max() < 1e-8
    p = flow.params
    v = sum(np.sum(np.reshape(a, (401, -1)) ** 2, axis=1) for a in jax.tree.leaves(p))
    v = v + np.abs(p.c - 2 * xi) ** 2
    dissipated = scipy.integrate.cumulative_simpson(flow.risk, x=flow.ts, initial=0)
    # Simpson's rule with steps of 0.005; the fourth derivative of the risk does not jump.
    np.testing.assert_allclose(v + 8 * dissipated, v[0], rtol=1e-6)


@pytest.mark.slow
def test_flow_of_a_dead_network(constant_target):
    """O9: c − m decays like e^(−2t) with m = ∫ f p, the risk like Var f + (c0 − m)² e^(−4t)."""
    risk, xi = constant_target
    net = from_arrays([1.0, -1, 0, 0.5, 2, -2, -1, 1], np.full(8, -3.0), np.ones(8), 0.2)
    flow = solve(risk, net, ts=np.linspace(0, 2, 401))
    np.testing.assert_allclose(flow.params.c, xi + (0.2 - xi) * np.exp(-2 * flow.ts), rtol=1e-8)
    np.testing.assert_allclose(flow.risk, (0.2 - xi) ** 2 * np.exp(-4 * flow.ts), rtol=1e-7)
    np.testing.assert_array_equal(flow.params.w[-1], net.w)


@pytest.mark.slow
def test_linear_flow_of_the_outer_layer():
    """O14: with (v, c) trained alone, z' = −2 (M z − m)."""
    net = hard_net(np.random.default_rng(4), TENT_RISK, 8, 0)
    rows = lambda x: np.append(np.maximum(np.asarray(net.w[:, 0]) * x + np.asarray(net.b), 0), 1.0)
    kinks = np.asarray(-net.b / net.w[:, 0])
    x, weights = gauss(np.clip([-1, 0, 1, *kinks], -1, 1), 3)
    mu = weights / 2
    a = np.stack([rows(t) for t in x])
    gram, m = a.T @ (mu[:, None] * a), a.T @ (mu * (1 - np.abs(x)))
    flow = solve(TENT_RISK, net, trainable=("v", "c"))
    fitted = np.linalg.lstsq(gram, m, rcond=None)[0]
    z0 = np.append(net.v, net.c)
    z = scipy.linalg.expm(-4 * gram) @ (z0 - fitted) + fitted
    np.testing.assert_allclose(np.append(flow.final.v, flow.final.c), z, atol=1e-8)


@pytest.mark.slow
def test_samples_approach_the_population():
    """The gradients differ by O(n^(-1/2)) for random points, O(1/n) for equally spaced ones."""
    net = hard_net(np.random.default_rng(7), TENT_RISK, 8, 0)
    exact_gradient = ravel_pytree(risk_and_gradient(TENT_RISK, net)[1])[0]

    def gap(x):
        empirical = gflow.EmpiricalRisk(x[:, None], piecewise.tent()(x))
        gradient = risk_and_gradient(empirical, net)[1]
        return np.linalg.norm(ravel_pytree(gradient)[0] - exact_gradient)

    rng, few, many = np.random.default_rng(0), 400, 6400
    at_random = lambda n: np.mean([gap(rng.uniform(-1, 1, n)) for _ in range(30)])
    # Means of 30 norms scatter by about 15 %.
    assert 2.7 < at_random(few) / at_random(many) < 6
    shifted = lambda n, shift: (np.arange(n) + shift) * 2 / n - 1
    equal = lambda n: np.mean([gap(shifted(n, shift)) for shift in np.linspace(0.05, 0.95, 10)])
    assert 10 < equal(few) / equal(many) < 24


@pytest.mark.slow
def test_flows_on_samples_approach_the_flow_on_the_population():
    net = gflow.ShallowNet(1, 4, key=jax.random.key(5), init="standard_normal")
    options = {"t1": 2.0, "ts": [2.0], "rtol": 1e-8, "kinks": "ignore"}
    end = lambda risk: ravel_pytree(gflow.solve_flow(risk, net, **options).final)[0]
    exact_end = end(TENT_RISK)

    def gap(x) -> float:
        empirical = gflow.EmpiricalRisk(x[:, None], piecewise.tent()(x))
        return float(np.linalg.norm(end(empirical) - exact_end))

    rng, few, many = np.random.default_rng(0), 64, 1024
    at_random = lambda n: np.sqrt(np.mean([gap(rng.uniform(-1, 1, n)) ** 2 for _ in range(12)]))
    # n^(-1/2) gives 4; root mean squares of 12 values scatter by about 20 % each.
    coarse, fine = at_random(few), at_random(many)
    assert 4 / 1.8 < coarse / fine < 4 * 1.8
    equal = [gap((np.arange(n) + 0.5) * 2 / n - 1) for n in (few, many)]
    assert equal[0] / equal[1] > 12 and equal[1] < 0.1 * fine
