"""Kinks found in the computation of a network: which operations have them, and how many."""

import warnings
from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gflow
from gflow.nonsmooth.deep.risk import DeepPatternRisk
from gflow.nonsmooth.deep.row_network import RowNetwork, row_network
from gflow.nonsmooth.smoothings import EventuallyExact
from gflow.parameters import split_trainable

KEY = jax.random.key(0)
X = jax.random.normal(jax.random.key(5), (7, 2))


class OneLayer(eqx.Module):
    """Four units with any function of their preactivations."""

    first: eqx.nn.Linear
    last: eqx.nn.Linear
    function: Callable

    def __init__(self, function):
        self.first = eqx.nn.Linear(2, 4, key=jax.random.key(1))
        self.last = eqx.nn.Linear(4, "scalar", key=jax.random.key(2))
        self.function = function

    def __call__(self, x):
        return self.last(self.function(self.first(x)))


def found_in(net, x=X) -> RowNetwork:
    return row_network(*split_trainable(net), x)


def jax_log_choice(z):
    return jnp.where(z > 0, z, jnp.log1p(-jnp.minimum(z, 0)))


def shifted(z):
    return jnp.where(z <= 0.3, 0.6, 2 * z)


KINKED = {
    "relu": (jax.nn.relu, 4),
    "maximum": (lambda z: jnp.maximum(0, z), 4),
    "minimum": (lambda z: jnp.minimum(z, 0.2), 4),
    "where": (lambda z: jnp.where(z > 0, z, 0), 4),
    "leaky_relu": (jax.nn.leaky_relu, 4),
    "gflow's leaky ReLU": (gflow.activations.PiecewiseLinear(0.1), 4),
    "a maximum of two": (lambda z: jnp.maximum(z, 0.1 * z), 4),
    "a trained slope": (eqx.nn.PReLU(0.2), 4),
    "abs": (jnp.abs, 4),
    "hard_tanh": (jax.nn.hard_tanh, 8),
    "relu6": (jax.nn.relu6, 8),
    "clip": (lambda z: jnp.clip(z, -0.5, 0.5), 8),
    "clamp": (lambda z: jax.lax.clamp(-0.5, z, 0.5), 8),
    "selu": (jax.nn.selu, 4),
    "hard_swish": (jax.nn.hard_swish, 8),
    "a choice between curves": (jax_log_choice, 8),
    "a threshold elsewhere": (shifted, 4),
    "relu twice": (lambda z: jax.nn.relu(jax.nn.relu(z)), 4),
    "the largest of all": (lambda z: z * jnp.max(z), 3),
    "relu squared": (lambda z: jax.nn.relu(z) ** 2, 4),
}


@pytest.mark.parametrize("name", KINKED)
def test_kinks_are_found_and_the_network_is_the_same(name):
    function, count = KINKED[name]
    net = OneLayer(function)
    trained, frozen = split_trainable(net)
    found = found_in(net)
    assert found.num_units == count and found.reasons == ()
    rows = lambda tree: jax.vmap(lambda x: found(tree, frozen, x, None).output)(X)
    np.testing.assert_allclose(rows(trained), jax.vmap(net)(X), rtol=1e-14)
    sides = jax.vmap(lambda x: found(trained, frozen, x, None).z)(X) > 0
    of_sides = lambda tree: jnp.sum(
        jax.vmap(lambda x, s: found(tree, frozen, x, s).output)(X, sides) ** 2
    )
    plain = lambda tree: jnp.sum(jax.vmap(eqx.combine(tree, frozen))(X) ** 2)
    for a, b in zip(*(jax.tree.leaves(jax.grad(f)(trained)) for f in (of_sides, plain))):
        np.testing.assert_allclose(a, b, atol=1e-13)


@pytest.mark.parametrize("name", KINKED)
def test_results_beyond_a_kink_go_on_as_before_it(name):
    """On fixed sides the network is smooth: far off, a difference quotient has its derivative."""
    function, count = KINKED[name]
    net = OneLayer(function)
    trained, frozen = split_trainable(net)
    found, x = found_in(net), X[0]
    sides = jnp.arange(count) % 2 == 0
    output = lambda s: found(jax.tree.map(lambda a: s * a, trained), frozen, x, sides).output
    curve = lambda s, h: (output(s + h) - 2 * output(s) + output(s - h)) / h**2
    coarse, fine = curve(0.3, 1e-2), curve(0.3, 5e-3)
    np.testing.assert_allclose(coarse, fine, rtol=1e-2, atol=1e-5)


@pytest.mark.parametrize(
    "function",
    [
        jnp.tanh,
        jax.nn.gelu,
        jax.nn.elu,
        jax.nn.celu,
        jax.nn.softplus,
        jax.nn.softmax,
        lambda z: z * jax.nn.logsumexp(z),
        EventuallyExact(10.0),
        EventuallyExact(3.0, 0.1),
        eqx.nn.LayerNorm(4),
        lambda z: jax.nn.relu(jnp.exp(z)),
        lambda z: z + jax.lax.stop_gradient(jax.nn.relu(z)),
        lambda z: z + jax.nn.relu(jnp.arange(4) - 1.5),
    ],
)
def test_smooth_networks_have_no_kinks(function):
    net = OneLayer(function)
    found = found_in(net)
    assert found.num_units == 0 and found.reasons == ()
    assert DeepPatternRisk.of(gflow.EmpiricalRisk(X, X[:, 0]), *split_trainable(net)) is None


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        (jnp.sort, "sort"),
        (jnp.round, "round"),
        (lambda z: jnp.where(z > 0, z, 1.0), "jumps"),
        (lambda z: z * (z > 0), "comparison"),
        (lambda z: jnp.where((z > 0) & (z < 1), z, 0.0), "no comparison"),
        (lambda z: jax.lax.cond(z[0] > 0, jax.nn.relu, jnp.negative, z), "cond"),
    ],
)
def test_what_cannot_be_followed_is_named_in_one_warning(function, reason):
    net = OneLayer(function)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        DeepPatternRisk.of(gflow.EmpiricalRisk(X, X[:, 0]), *split_trainable(net))
    (warning,) = caught
    assert reason in str(warning.message) and "in many small steps" in str(warning.message)


class Convolutional(eqx.Module):
    """A convolution with max-pooling and a residual connection, the same weights twice."""

    first: eqx.nn.Conv2d
    second: eqx.nn.Conv2d
    pool: eqx.nn.MaxPool2d
    last: eqx.nn.Linear

    def __init__(self):
        keys = jax.random.split(KEY, 3)
        self.first = eqx.nn.Conv2d(1, 2, 3, padding=1, key=keys[0])
        self.second = eqx.nn.Conv2d(2, 2, 3, padding=1, key=keys[1])
        self.pool = eqx.nn.MaxPool2d(2, 2)
        self.last = eqx.nn.Linear(8, 3, key=keys[2])

    def __call__(self, x):
        h = jax.nn.relu(self.first(x.reshape(1, 4, 4)))
        for _ in range(2):
            h = jax.nn.relu(h + self.second(h))
        return self.last(self.pool(h).ravel())


class Looped(eqx.Module):
    """A loop over layers, and parameters that are not trained."""

    matrices: jax.Array
    last: np.ndarray

    def __call__(self, x):
        layer = lambda h, matrix: (jax.nn.relu(matrix @ h), None)
        h, _ = jax.lax.scan(layer, x, self.matrices)
        return self.last @ h


@pytest.mark.parametrize(
    ("net", "columns", "sizes"),
    [
        (eqx.nn.MLP(2, 3, 5, 3, key=KEY), 2, [5, 5, 5]),
        (Convolutional(), 16, [32, 32, 32, 8, 8, 8]),
        (Looped(jax.random.normal(KEY, (3, 2, 2)), np.ones(2)), 2, [2, 2, 2]),
        (gflow.ShallowNet(2, 5, key=KEY), 2, [5]),
    ],
)
def test_layers_of_networks(net, columns, sizes):
    x = jax.random.normal(KEY, (3, columns))
    found = found_in(net, x)
    assert np.bincount(found.places.layer).tolist() == sizes and found.reasons == ()
    trained, frozen = split_trainable(net)
    outputs = jax.vmap(lambda row: found(trained, frozen, row, None).output)(x)
    np.testing.assert_allclose(outputs, jax.vmap(net)(x), atol=1e-13)


def test_kinks_below_all_that_is_trained_are_none():
    net = eqx.nn.MLP(2, "scalar", 5, 2, key=KEY)
    spec = jax.tree.map(lambda _: False, net)
    spec = eqx.tree_at(lambda n: n.layers[-2].weight, spec, True)
    found = row_network(*split_trainable(net, spec), X)
    assert np.bincount(found.places.layer).tolist() == [0, 5]


def test_a_network_is_looked_into_once():
    one, two = (eqx.nn.MLP(2, "scalar", 5, 2, key=jax.random.key(k)) for k in (1, 2))
    assert found_in(one) is found_in(two)
    assert found_in(one) is not found_in(eqx.nn.MLP(2, "scalar", 6, 2, key=KEY))
