import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

import gflow
from tests.helpers.networks_as_vectors import inner, moved


def formulas(net, x, y, omega):
    """The components of G for the squared loss, written out (docs/theory.md)."""
    w, b, v, c = (np.asarray(a) for a in (net.w, net.b, net.v, net.c))
    z = x @ w.T + b
    r = omega * (np.maximum(z, 0) @ v * net.output_scale + c - y)
    active, s = (z > 0).astype(float), net.output_scale
    return (
        2 * s * v[:, None] * ((active * r[:, None]).T @ x),
        2 * s * v * (active.T @ r),
        2 * s * (np.maximum(z, 0).T @ r),
        2 * r.sum(),
    )


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 1000),
    on_kinks=st.booleans(),
    weighted=st.booleans(),
    init=st.sampled_from(["standard_normal", "ntk"]),
)
def test_gradient_is_the_formula_also_on_kinks(seed, on_kinks, weighted, init):
    rng = np.random.default_rng(seed)
    x, y = rng.normal(size=(7, 3)), rng.normal(size=7)
    net = gflow.ShallowNet(3, 4, key=jax.random.key(seed), init=init)
    if on_kinks:
        # Whole numbers make preactivations that are exactly zero.
        x = rng.integers(-1, 2, size=(7, 3)).astype(float)
        whole = [jnp.round(a) for a in (net.w, net.b)]
        scale = net.output_scale
        net = gflow.ShallowNet.from_arrays(*whole, net.v, net.c, output_scale=scale)
    omega = rng.uniform(0.1, 1, 7) if weighted else np.ones(7)
    risk = gflow.EmpiricalRisk(x, y, omega)
    gradient = gflow.generalized_gradient(risk, net)
    for name, expected in zip("wbvc", formulas(net, x, y, omega / omega.sum())):
        got = getattr(gradient, name)
        np.testing.assert_allclose(got, expected, rtol=1e-12, atol=1e-13, err_msg=name)


@pytest.mark.parametrize("activation", ["tanh", "relu", "leaky_relu(0.2)", "gelu"])
@pytest.mark.parametrize("loss", ["squared", "logistic"])
def test_gradient_is_the_derivative(activation, loss):
    key = jax.random.key(3)
    x, y = jax.random.normal(key, (9, 2)), jnp.sign(jnp.arange(9) - 4.5)
    risk = gflow.EmpiricalRisk(x, y, loss=loss)
    net = gflow.ShallowNet(2, 5, key=key, activation=activation)
    direction = jax.tree.map(lambda a: jax.random.normal(key, a.shape), net)
    at = lambda t: risk(moved(net, direction, t))
    numeric = (at(1e-5) - at(-1e-5)) / 2e-5
    gradient = gflow.generalized_gradient(risk, net)
    # Central differences of step 1e-5: truncation and rounding are both about 1e-10.
    assert inner(gradient, direction) == pytest.approx(float(numeric), rel=1e-7)


def test_frozen_parameters_have_no_gradient():
    net = gflow.ShallowNet(1, 2, key=jax.random.key(0))
    risk = gflow.EmpiricalRisk(np.ones((2, 1)), np.ones(2))
    gradient = gflow.generalized_gradient(risk, net, ("v",))
    assert gradient.w is None and gradient.b is None and gradient.v.shape == (2,)
