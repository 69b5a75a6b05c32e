import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gflow
from tests.helpers.derivatives import hessian


@pytest.mark.parametrize(("width", "activation"), [(5, "tanh"), (40, "tanh"), (40, "relu")])
def test_it_is_the_largest_eigenvalue(width, activation, wave):
    net = gflow.ShallowNet(1, width, key=jax.random.key(2), activation=activation)
    largest = np.linalg.eigvalsh(hessian(wave, net))[-1]
    assert gflow.sharpness(wave, net) == pytest.approx(largest, rel=1e-7)


def test_negative_eigenvalues_of_larger_size_do_not_count():
    risk = lambda net: 0.5 * jnp.sum(jnp.append(jnp.full(99, -5.0), 2.0) * net["theta"] ** 2)
    assert gflow.sharpness(risk, {"theta": jnp.ones(100)}) == pytest.approx(2.0, rel=1e-8)


def test_low_rank_and_zero_hessians():
    rank_one = lambda net: 0.5 * net["theta"][3] ** 2
    assert gflow.sharpness(rank_one, {"theta": jnp.ones(100)}) == pytest.approx(1.0, rel=1e-8)
    flat = lambda net: jnp.sum(net["theta"])
    assert gflow.sharpness(flat, {"theta": jnp.ones(100)}) == 0.0
    assert gflow.sharpness(flat, {"theta": jnp.ones(3)}) == 0.0


def test_trained_parameters_only(wave):
    net = gflow.ShallowNet(1, 5, key=jax.random.key(2))
    # The Hessian in c alone is 2.
    assert gflow.sharpness(wave, net, ("c",)) == pytest.approx(2.0, rel=1e-14)


def dense(values):
    """A quadratic function with these eigenvalues, in a random basis."""
    size = len(values)
    turn = np.linalg.qr(np.random.default_rng(1).normal(size=(size, size)))[0]
    matrix = jnp.asarray(turn * np.asarray(values) @ turn.T)
    return lambda p: 0.5 * p @ matrix @ p


@pytest.mark.slow
@pytest.mark.parametrize(
    "values",
    [
        np.append(np.full(99, -5.0), 2.0),
        np.append(np.zeros(99), 1.0),
        np.zeros(100),
        -np.linspace(1.0, 2.0, 100),
        np.linspace(-30.0, 1.0, 300),
        np.append(np.linspace(-1e3, 1.0, 199), 1.0 + 1e-5),
        np.linspace(-1.0, 1.0, 30),
    ],
    ids=["copies", "rank one", "zero", "negative", "inner", "close pair", "small"],
)
def test_traced_it_is_the_same_number(values):
    risk, net = dense(values), jnp.ones(len(values))
    known = gflow.sharpness(risk, net)
    traced = jax.jit(lambda net: gflow.sharpness(risk, net))(net)
    assert traced == pytest.approx(known, rel=1e-7, abs=1e-12 * np.abs(values).max())


@pytest.mark.slow
@pytest.mark.parametrize("width", [5, 40])
def test_it_can_be_mapped(width, wave):
    make = lambda key: gflow.ShallowNet(1, width, key=key, activation="tanh")
    keys = jax.random.split(jax.random.key(2), 4)
    known = [gflow.sharpness(wave, make(key)) for key in keys]
    of_key = lambda key: gflow.sharpness(wave, make(key))
    for mapped in (jax.vmap(of_key), jax.jit(jax.vmap(of_key)), lambda k: jax.lax.map(of_key, k)):
        np.testing.assert_allclose(mapped(keys), known, rtol=1e-7)
    # The risk is what is traced.
    scaled = jax.vmap(lambda a: gflow.sharpness(lambda net: a * wave(net), make(keys[0])))
    np.testing.assert_allclose(scaled(jnp.array([1.0, 2.0])), [known[0], 2 * known[0]], rtol=1e-7)


@pytest.mark.parametrize("size", [3, 100])
def test_hessians_that_are_not_finite_are_refused(size):
    with pytest.raises(ValueError, match="`net`: got .* NaN or infinite"):
        gflow.sharpness(lambda p: jnp.sum(jnp.sqrt(p)), jnp.zeros(size))
