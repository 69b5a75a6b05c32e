"""The true risk for one input against 50-digit arithmetic: value, gradient, second derivatives."""

import equinox as eqx
import jax
import jax.numpy as jnp
import mpmath as mp
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from jax.flatten_util import ravel_pytree

import gflow
from benchmarks import exact_risks
from gflow import piecewise
from gflow.piecewise import PiecewisePolynomial
from tests.helpers.derivatives import hessian_product, risk_and_gradient
from tests.helpers.networks_as_vectors import stacked
from tests.helpers.one_input_risks import (
    TENT_RISK,
    assert_exact,
    from_arrays,
    hard_net,
    random_problem,
)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("width", "cases", "options"),
    [
        (1, 36, {}),
        (8, 72, {}),
        pytest.param(
            *(50, 60, {"activation": "leaky_relu(0.3)", "output_scale": 0.7}),
            marks=pytest.mark.slow,
        ),
        pytest.param(200, 32, {}, marks=pytest.mark.slow),
    ],
)
def test_risk_and_gradient_against_50_digits(width, cases, options):
    rng = np.random.default_rng(width)
    for case in range(cases):
        risk = random_problem(rng)
        assert_exact(risk, hard_net(rng, risk, width, case % 6, **options))


# Large enough that no product underflows: the low parts of pairs must stay above 1e-308.
PARAMETERS = st.floats(-9, 9).filter(lambda x: x == 0 or abs(x) > 1e-90) | st.sampled_from(
    [0.0, 1e-8, -1e-8, 1.0, -1.0, 0.5]
)


@settings(max_examples=150, deadline=None)
@given(st.lists(PARAMETERS, min_size=25, max_size=25))
def test_no_parameters_break_it(theta):
    net = from_arrays(theta[:8], theta[8:16], theta[16:24], theta[24])
    # Rounded kinks leave a risk of (1e-16)³ where the fit is perfect.
    assert_exact(TENT_RISK, net, floor=1e-40)


def interpolating_net(seed: int, size: float) -> gflow.ShallowNet:
    """Eight units that represent the tent exactly, with normal perturbations of this size."""
    w = [1.0, -1.0, 1.0, -1.0, 1.0, -1.0, 1.0, -1.0]
    b = [0.0, 0.0, -0.25, -0.25, 0.0, 0.0, -0.25, -0.25]
    v = [-0.5, -0.5, 0.75, 0.75, -0.5, -0.5, -0.75, -0.75]
    net = from_arrays(w, b, v, 1.0)
    theta, unravel = ravel_pytree(net)
    return unravel(theta + size * np.random.default_rng(seed).normal(size=theta.size))


def test_close_to_a_perfect_fit():
    assert risk_and_gradient(TENT_RISK, interpolating_net(0, 0.0))[0] == 0.0
    for seed in range(10):
        net = interpolating_net(seed, 1e-10)
        assert 1e-22 < risk_and_gradient(TENT_RISK, net)[0] < 1e-18
        assert_exact(TENT_RISK, net)


def test_risk_of_a_perfect_fit_with_rounded_parameters():
    """The result is the risk of the floats, known to 50 digits, and not the noise of their sums."""
    t = np.array([1 / 3, -1 / 7, 0.1, 0.7])
    v = np.array([1.3, -0.4, 2.2, 0.6])
    s = np.array([-1.0, *np.sort(t), 1.0])
    net = from_arrays(np.ones(4), -t, v, 0.2)
    rows = [[0.2 - sum(v[t <= x] * t[t <= x]), sum(v[t <= x])] for x in s[:-1]]
    risk = gflow.PopulationRisk(PiecewisePolynomial(s, rows), piecewise.uniform())
    assert 0 < risk_and_gradient(risk, net)[0] < 1e-30
    assert_exact(risk, net, rtol=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("activation", ["relu", "leaky_relu(0.3)"])
def test_second_derivatives_against_differences_at_50_digits(activation):
    rng = np.random.default_rng(3)
    slope = 0.3 if "leaky" in activation else 0.0
    h = mp.mpf(10) ** -17
    for _ in range(3):
        risk = random_problem(rng)
        net = hard_net(rng, risk, 8, 5, activation=activation, output_scale=0.7)
        net = eqx.tree_at(lambda n: (n.w, n.b), net, (net.w * 1e-6, net.b * 1e-6))
        d = jax.tree.map(lambda a: jnp.asarray(rng.normal(size=a.shape)), net)
        sides = []
        for sign in (1, -1):
            moved = [
                np.array([mp.mpf(x) + sign * h * mp.mpf(y) for x, y in zip(a.ravel(), e.ravel())])
                for a, e in zip(exact_risks.arrays_of(net), exact_risks.arrays_of(d))
            ]
            sides.append(exact_risks.one_input(moved, risk.target, risk.density, slope, 0.7)[1])
        product = hessian_product(risk, net, d)
        for name in "wbvc":
            got = np.ravel(getattr(product, name))
            expected = [float((x - y) / (2 * h)) for x, y in zip(*(side[name] for side in sides))]
            np.testing.assert_allclose(got, expected, rtol=1e-11, atol=1e-11 * np.abs(got).max())


@pytest.mark.slow
def test_all_ways_to_second_derivatives_agree():
    net = hard_net(np.random.default_rng(0), TENT_RISK, 8, 0)
    theta, unravel = ravel_pytree(net)
    risk = lambda t: TENT_RISK(unravel(t))

    @jax.jit
    def all_ways(t):
        gradient = jax.grad(risk)
        ways = jax.jacfwd(gradient), jax.jacrev(gradient), jax.jacfwd(jax.jacfwd(risk))
        return risk(t), jax.jvp(risk, (t,), (t,)), gradient(t), [hessian(t) for hessian in ways]

    value, (same, slope), gradient, hessians = all_ways(theta)
    for hessian in hessians:
        np.testing.assert_allclose(hessian, hessians[0].T, atol=1e-13)
    np.testing.assert_allclose(slope, gradient @ theta, rtol=1e-13)
    assert value == same


V = [1.0, -2.0, 3.0, 1.0, 1.0, -1.0, 2.0, 0.5]


@pytest.mark.parametrize(
    ("w", "b"),
    [
        ([0, 0, 0, 2, -3, 1, 1, 4], [1, -1, 0, -1, 1, 0, 0, 2]),
        ([1, 1, -1, 1, -1, 1, 2, -2], [-0.5, -0.5, 0.5, -0.5, 0.5, -0.5, -1, 1]),
        ([1, -1, 0, 2, 0, 0.5, -0.5, 1], [-5, -5, 0, -2, -1, -5, -5, -1]),
    ],
    ids=["flat and degenerate", "equal kinks", "dead"],
)
def test_nothing_is_nan_and_degenerate_units_stay(w, b):
    net = from_arrays(np.array(w, float), np.array(b, float), V, 0.5)
    gradient = risk_and_gradient(TENT_RISK, net)[1]
    product = hessian_product(TENT_RISK, net, net)
    assert all(np.isfinite(a).all() for a in jax.tree.leaves((gradient, product)))
    assert_exact(TENT_RISK, net)
    degenerate = (np.array(w) == 0) & (np.array(b) == 0)
    for part in (gradient.w[:, 0], gradient.b, gradient.v):
        assert not np.any(part[degenerate])
        if b[0] == -5:
            assert not np.any(part)


@pytest.mark.slow
def test_outputs_without_biases_and_vector_valued():
    rng = np.random.default_rng(5)
    targets = [piecewise.tent(), piecewise.wave()]
    risk = gflow.PopulationRisk(targets, piecewise.triangular(-1, 1, 0.3))
    w, b, v = rng.normal(size=8), rng.normal(size=8), rng.normal(size=(8, 2))
    got, gradient = risk_and_gradient(risk, from_arrays(w, b, v, [0.2, -0.1]))
    arrays = [(w, b, v[:, k], c) for k, c in enumerate((0.2, -0.1))]
    alone = [exact_risks.one_input(a, f, risk.density) for a, f in zip(arrays, targets)]
    np.testing.assert_allclose(got, float(alone[0][0] + alone[1][0]), rtol=1e-14)
    together = [float(x + y) for x, y in zip(*(g["w"] for _, g in alone))]
    np.testing.assert_allclose(gradient.w[:, 0], together, rtol=1e-13, atol=1e-14)
    for k in range(2):
        np.testing.assert_allclose(
            gradient.v[:, k], [float(x) for x in alone[k][1]["v"]], rtol=1e-13, atol=1e-14
        )
    none = from_arrays(w, None, v[:, 0], None)
    zeros = from_arrays(w, np.zeros(8), v[:, 0], 0.0)
    assert TENT_RISK(none) == TENT_RISK(zeros)
    assert jax.grad(TENT_RISK)(none).b is None


@pytest.mark.slow
def test_many_networks_at_once_and_single_precision():
    rng = np.random.default_rng(6)
    nets = [hard_net(rng, TENT_RISK, 8, kind) for kind in range(4)]
    values, gradients = jax.jit(jax.vmap(jax.value_and_grad(TENT_RISK)))(stacked(nets))
    for k, net in enumerate(nets):
        value, gradient = risk_and_gradient(TENT_RISK, net)
        np.testing.assert_allclose(values[k], value, rtol=1e-15)
        np.testing.assert_allclose(gradients.w[k], gradient.w, rtol=1e-13, atol=1e-15)
    single = jax.tree.map(lambda a: a.astype(jnp.float32), nets[0])
    value, gradient = risk_and_gradient(TENT_RISK, single)
    assert value.dtype == gradient.w.dtype == jnp.float32
    double = jax.tree.map(lambda a: a.astype(jnp.float64), single)
    # A few units of rounding.
    np.testing.assert_allclose(value, TENT_RISK(double), rtol=1e-6)


def test_a_diverged_network_has_no_finite_risk():
    net = from_arrays([np.nan, 1.0], [0.0, 1.0], [1.0, 1.0], 0.0)
    value, gradient = risk_and_gradient(TENT_RISK, net)
    assert np.isnan(value) and all(np.isnan(a).all() for a in jax.tree.leaves(gradient))


def test_operations_grow_with_the_width_not_its_square():
    def operations(width):
        net = gflow.ShallowNet(1, width, key=jax.random.key(0))
        cost = jax.jit(jax.value_and_grad(TENT_RISK)).lower(net).cost_analysis()
        assert cost is not None
        return cost["flops"]

    # Everything is linear except sorting, whose comparisons the estimate counts.
    assert operations(10_000) / operations(1000) < 10 * 1.2


def test_what_has_no_derivative_says_so():
    net = interpolating_net(0, 0.1)
    with pytest.raises(NotImplementedError, match="third derivatives"):
        jax.jvp(lambda n: hessian_product(TENT_RISK, n, net), (net,), (net,))
    with pytest.raises(NotImplementedError, match="the target or the density"):
        eqx.filter_grad(lambda risk: risk(net))(TENT_RISK)


@pytest.mark.parametrize(
    ("target", "density", "message"),
    [
        (piecewise.tent(), piecewise.constant(0.6), r"`density`.*integral 1\.2.*off by 2\.00e-01"),
        (
            piecewise.tent(),
            PiecewisePolynomial([-1, 1], [[0.5, 1.0]]),
            r"`density`: got -0\.5 at x = -1, wanted a function that is nowhere negative",
        ),
        (
            piecewise.tent(),
            PiecewisePolynomial([-1, 1], [[-0.25, 0.0, 2.25]]),
            r"`density`: got -0\.25 at x = 0",
        ),
        (piecewise.tent(), piecewise.uniform(-1, 2), r"`target`.*on \[-1\.0, 1\.0\].*\[-1, 2\]"),
        ([], piecewise.uniform(), "`target`"),
    ],
)
def test_misuse_is_named(target, density, message):
    with pytest.raises(gflow.ArgumentError, match=message):
        gflow.PopulationRisk(target, density)


def test_other_functions_are_refused():
    for target, density in ((np.ones(3), piecewise.uniform()), (piecewise.tent(), 0.5)):
        with pytest.raises((gflow.ArgumentError, TypeError), match="target|density"):
            gflow.PopulationRisk(target, density)


@pytest.mark.parametrize(
    "net",
    [
        gflow.ShallowNet(2, 3, key=jax.random.key(0)),
        gflow.ShallowNet(1, 3, 1, key=jax.random.key(0)),
        gflow.ShallowNet(1, 3, key=jax.random.key(0), activation="tanh"),
        lambda x: x,
    ],
)
def test_other_networks_are_refused(net):
    with pytest.raises(gflow.ArgumentError, match="`net`"):
        TENT_RISK(net)
