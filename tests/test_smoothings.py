"""Smoothings: their gradients, and what the generalized gradient is the limit of."""

import warnings

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

import gflow
from gflow.activations import PiecewiseLinear, SmoothActivation
from tests.helpers.networks_as_vectors import distance, flat, norm

KEY = jax.random.key(0)


def whole_mlp(seed: int = 0, depth: int = 2, **options) -> eqx.nn.MLP:
    """A deep network with parameters −1, 0, 1: with whole data, many kinks in every layer."""
    rng = np.random.default_rng(seed)
    net = eqx.nn.MLP(2, "scalar", 4, depth, key=KEY, **options)
    draw = lambda a: jnp.asarray(rng.integers(-1, 2, a.shape) + 0.0) if eqx.is_array(a) else a
    return jax.tree.map(draw, net)


def whole_data(seed: int = 0) -> gflow.EmpiricalRisk:
    rng = np.random.default_rng(seed)
    return gflow.EmpiricalRisk(rng.integers(-1, 2, (9, 2)) + 0.0, rng.normal(size=9))


def ties_by_layer(net: eqx.nn.MLP, x) -> list[int]:
    """How many preactivations are zero in each hidden layer."""
    counts = []
    for layer in net.layers[:-1]:
        z = jax.vmap(layer)(x)
        counts.append(int(jnp.sum(z == 0)))
        x = jax.nn.relu(z)
    return counts


# ---- the family -----------------------------------------------------------------------------


@pytest.mark.parametrize("slope", [0.0, 0.2])
@pytest.mark.parametrize("r", [0.5, 3.0, 1e6])
def test_exact_outside_and_hermite_between(slope, r):
    smoothing, kinked = gflow.EventuallyExact(r, slope), PiecewiseLinear(slope)
    outside = jnp.array([-5.0, -1e-3, 0.0, 0.5, 1.0, 2.0, 2.5, 90.0]) / r
    np.testing.assert_allclose(
        smoothing(outside[outside * r <= 1]), slope * outside[:5], rtol=1e-15
    )
    np.testing.assert_allclose(smoothing(outside[5:]), outside[5:], rtol=1e-15)
    np.testing.assert_array_equal(smoothing.slope(outside[:3]), kinked.slope(outside[:3]))
    # Value and slope at the ends of the middle, and C¹ there: differences of size of the step.
    inside = (1 + jnp.linspace(0, 1, 2001)) / r
    values, slopes = r * smoothing(inside), smoothing.slope(inside)
    np.testing.assert_allclose(
        jnp.diff(values) / jnp.diff(r * inside), (slopes[1:] + slopes[:-1]) / 2, atol=1e-5
    )
    np.testing.assert_allclose(slopes[jnp.array([0, -1])], [slope, 1.0], atol=1e-14)
    assert jnp.max(slopes) == pytest.approx(slope + (1 - slope) * 25 / 9, rel=1e-5)


@given(x=st.floats(-1e3, 1e3), power=st.integers(-3, 12))
@settings(max_examples=100, deadline=None)
def test_slope_is_the_derivative_and_exact_in_the_end(x, power):
    smoothing = gflow.EventuallyExact(10.0**power)
    value, slope = jax.jvp(smoothing, (jnp.asarray(x),), (jnp.asarray(1.0),))
    assert slope == pytest.approx(float(smoothing.slope(jnp.asarray(x))), rel=1e-12)
    if x <= 0 or 10.0**power * x > 2.001:
        assert value == max(x, 0.0) and slope == float(x > 0)


def test_a_smoothed_network_is_a_network(wave):
    net = gflow.ShallowNet(1, 5, key=KEY)
    smooth = gflow.smoothed(net, 20.0)
    assert smooth.activation.name == "smoothed relu, r = 20"
    direct = gflow.ShallowNet(1, 5, key=KEY, activation=gflow.EventuallyExact(20.0))
    assert wave(smooth) == wave(direct)
    # |R_r − relu| ≤ 1/r.
    bound = float(jnp.sum(jnp.abs(net.v))) / 20
    gap = jnp.abs(wave.predictions(smooth) - wave.predictions(net))
    assert 0 < jnp.max(gap) <= bound


# ---- the limit of gradients -----------------------------------------------------------------


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 1000), activation=st.sampled_from(["relu", "leaky_relu(0.1)"]))
def test_shallow_gradients_become_exact(seed, activation):
    rng = np.random.default_rng(seed)
    whole = [rng.integers(-1, 2, shape) + 0.0 for shape in ((4, 2), (4,), (4,), ())]
    net = gflow.ShallowNet.from_arrays(*whole, activation=activation)
    risk = whole_data(seed)
    # Every positive preactivation is at least 1.
    smooth = gflow.smoothed_gradient(risk, net, 2.0)
    assert distance(smooth, gflow.generalized_gradient(risk, net)) < 1e-13


@pytest.mark.parametrize("depth", [1, 2, 3])
@pytest.mark.parametrize("seed", [1, 2])
def test_deep_gradients_become_exact_on_kinks_of_several_layers(seed, depth):
    net, risk = whole_mlp(seed, depth), whole_data(seed)
    assert min(ties_by_layer(net, risk.x)) > 0
    exact = gflow.generalized_gradient(risk, net)
    assert norm(exact) > 0
    assert distance(gflow.smoothed_gradient(risk, net, 2.0), exact) < 1e-12
    # Before, where preactivations of 1 are not yet at 2/r, it is another.
    assert distance(gflow.smoothed_gradient(risk, net, 1.2), exact) > 0.1


@pytest.mark.parametrize("slope", [0.0, 0.01])
@pytest.mark.parametrize("scan", [False, True])
def test_other_ways_to_hold_an_activation(slope, scan):
    held = lambda activation: whole_mlp(2, 2, activation=activation, scan=scan)
    risk, own = whole_data(2), held(PiecewiseLinear(slope))
    exact = gflow.generalized_gradient(risk, own)
    # JAX's leaky ReLU has slope 1 at 0; its smoothings have the slope α there.
    for net in (own, held(jax.nn.leaky_relu if slope else jax.nn.relu)):
        smooth = gflow.smoothed_gradient(risk, net, 1e6)
        np.testing.assert_allclose(flat(smooth), flat(exact), atol=1e-12)


def test_sequential_networks_and_frozen_parameters():
    first, second = eqx.nn.Linear(2, 3, key=KEY), eqx.nn.Linear(3, 1, key=KEY)
    last = eqx.nn.Lambda(lambda y: y[0])
    net = eqx.nn.Sequential([first, eqx.nn.Lambda(jax.nn.relu), second, last])
    risk = whole_data(0)
    exact = gflow.generalized_gradient(risk, net)
    assert distance(gflow.smoothed_gradient(risk, net, 1e6), exact) < 1e-12
    shallow = gflow.ShallowNet(2, 3, key=KEY)
    part = gflow.smoothed_gradient(risk, shallow, 10.0, ("v",))
    assert part.w is None and part.v.shape == (3,)


def test_flows_of_smoothed_networks_find_no_kinks_and_converge_to_the_slide():
    # Without smoothing w[0] reaches 0 at t = 0.23 and slides until 1.06; smoothed, it stays between
    # 1/r and 2/r.
    net = gflow.ShallowNet.from_arrays([[1.0, 1.0]], None, [1.0], None)
    risk = gflow.EmpiricalRisk([[1.0, 0.0], [1.0, 1.0], [0.0, 1.0]], [-8.0, 4.0, 6.0])
    with warnings.catch_warnings(action="error"):
        flow = gflow.solve_flow(risk, gflow.smoothed(net, 100.0), t1=0.6, trainable=("w",))
    assert flow.kinks is None or len(flow.kinks) == 0
    assert 0.01 < flow.final.w[0, 0] < 0.02


def test_softplus_is_not_admissible():
    # Its slope at 0 is ½ for every β, so that its gradients have another limit on kinks.
    net, risk = whole_mlp(0), whole_data(0)
    exact = gflow.generalized_gradient(risk, net)
    errors = []
    for beta in (1e2, 1e4):
        softplus = SmoothActivation(lambda z, beta=beta: jax.nn.softplus(beta * z) / beta)
        smooth = eqx.tree_at(lambda n: n.activation, net, softplus)
        gradient = gflow.generalized_gradient(risk, smooth)
        errors.append(float(np.max(np.abs(flat(gradient) - flat(exact)))))
    assert min(errors) > 0.3
    assert errors[1] == pytest.approx(errors[0], rel=0.1)
    # On one kink the limit is half of the active side.
    unit = gflow.ShallowNet.from_arrays([[1.0]], [-1.0], [1.0], None, activation=softplus)
    gradient = gflow.generalized_gradient(gflow.EmpiricalRisk([[1.0]], [3.0]), unit)
    np.testing.assert_allclose(gradient.b, [-3.0], rtol=1e-4)


# ---- a limit of gradients at points nearby --------------------------------------------------


@pytest.mark.parametrize(("depth", "scan"), [(1, False), (2, False), (3, False), (3, True)])
def test_gradients_at_lowered_biases_converge(depth, scan):
    net, risk = whole_mlp(1, depth, scan=scan), whole_data(1)
    exact = gflow.generalized_gradient(risk, net)
    errors = []
    for eps in (1e-2, 1e-3):
        near = gflow.lowered_biases(net, eps)
        errors.append(distance(gflow.generalized_gradient(risk, near), exact))
        if not near.scan:
            # No kinks nearby: an ordinary gradient.
            assert max(ties_by_layer(near, risk.x)) == 0
    assert errors[1] == pytest.approx(0.1 * errors[0], rel=0.1)


def test_biases_are_lowered_less_in_the_layers_before():
    net = whole_mlp(0, 3)
    near = gflow.lowered_biases(net, 0.1)
    steps = [np.asarray(a.bias - b.bias) for a, b in zip(net.layers, near.layers)]
    for got, expected in zip(steps, (1e-3, 1e-2, 1e-1, 0.0)):
        np.testing.assert_allclose(got, expected, atol=1e-15)
    shallow = gflow.ShallowNet(2, 3, key=KEY)
    np.testing.assert_allclose(shallow.b - gflow.lowered_biases(shallow, 0.01).b, 0.01)


def test_without_biases_it_can_be_no_limit_of_gradients():
    # The risk is ((w − 1)² + 1)/2. Its slopes near 0 are near −1, and G(0) = 0.
    risk = gflow.EmpiricalRisk([[1.0], [-1.0]], [1.0, -1.0])
    unit = lambda w, b=None: gflow.ShallowNet.from_arrays([[w]], b, [1.0], None)
    for w in (-1e-6, 1e-6):
        assert gflow.generalized_gradient(risk, unit(w), ("w",)).w == pytest.approx(-1.0, abs=1e-5)
    assert gflow.generalized_gradient(risk, unit(0.0), ("w",)).w == 0
    with pytest.raises(gflow.ArgumentError, match="biases in its hidden layers"):
        gflow.lowered_biases(unit(0.0), 0.1)
    # With a bias it is one: both rows become inactive.
    near = gflow.lowered_biases(unit(0.0, [0.0]), 1e-6)
    assert gflow.generalized_gradient(risk, near, ("w", "b")).w == 0
    # The smoothed gradients agree with G in either case.
    assert gflow.smoothed_gradient(risk, unit(0.0), 1.0, ("w",)).w == 0


def test_what_cannot_be_used():
    net, risk = whole_mlp(), whole_data()
    with pytest.raises(gflow.ArgumentError, match="`net`: got a MLP without a ReLU"):
        gflow.smoothed(eqx.nn.MLP(2, 1, 3, 1, activation=jnp.tanh, key=KEY), 10.0)
    for r in (0.0, -1.0, np.inf):
        with pytest.raises(gflow.ArgumentError, match="`r`"):
            gflow.smoothed_gradient(risk, net, r)
    with pytest.raises(gflow.ArgumentError, match="between 0 and 1"):
        gflow.lowered_biases(net, 1.5)
    with pytest.raises(gflow.ArgumentError, match="a ShallowNet or an eqx.nn.MLP"):
        gflow.lowered_biases(eqx.nn.Linear(2, 1, key=KEY), 0.1)
    with pytest.raises(gflow.ArgumentError, match="biases in its hidden layers"):
        gflow.lowered_biases(eqx.nn.MLP(2, 1, 3, 1, use_bias=False, key=KEY), 0.1)
