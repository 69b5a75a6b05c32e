import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

import gflow
from gflow.activations import NAMED, PiecewiseLinear, as_activation
from gflow.parameters import split_trainable

KEY = jax.random.key(0)


def by_hand(net: gflow.ShallowNet, x: np.ndarray) -> np.ndarray:
    w, v = np.asarray(net.w), np.asarray(net.v)
    b = 0.0 if net.b is None else np.asarray(net.b)
    c = 0.0 if net.c is None else np.asarray(net.c)
    return np.maximum(w @ x + b, 0) @ (net.output_scale * v) + c


@pytest.mark.slow
@settings(max_examples=25, deadline=None)
@given(
    in_size=st.integers(1, 4),
    width=st.integers(1, 6),
    out_size=st.sampled_from(["scalar", 1, 3]),
    init=st.sampled_from(["he", "standard_normal", "ntk", "mean_field"]),
    use_bias=st.booleans(),
    seed=st.integers(0, 10),
)
def test_value_is_the_formula(in_size, width, out_size, init, use_bias, seed):
    net = gflow.ShallowNet(
        in_size, width, out_size, key=jax.random.key(seed), init=init, use_bias=use_bias
    )
    x = np.linspace(-1.0, 2.0, in_size)
    y = net(jnp.asarray(x))
    assert y.shape == (() if out_size == "scalar" else (out_size,))
    assert (net.in_size, net.width, net.out_size) == (in_size, width, out_size)
    np.testing.assert_allclose(y, by_hand(net, x), rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize(
    ("init", "stds", "output_scale"),
    [
        ("he", ((2 / 3) ** 0.5, 0.0, (2 / 20_000) ** 0.5, 0.0), 1.0),
        ("standard_normal", (1.0, 1.0, 1.0, 1.0), 1.0),
        ("ntk", (1.0, 1.0, 1.0, 0.0), 20_000**-0.5),
        ("mean_field", (1.0, 1.0, 1.0, 0.0), 1 / 20_000),
    ],
)
def test_initialisations_have_their_standard_deviations(init, stds, output_scale):
    net = gflow.ShallowNet(3, 20_000, key=KEY, init=init, scale=0.5)
    assert net.output_scale == pytest.approx(output_scale, rel=1e-15)
    for array, std in zip((net.w, net.b, net.v), stds[:3]):
        # The relative error of a sample deviation of n entries is 1/sqrt(2n), here below 0.5 %.
        assert jnp.std(array) == pytest.approx(0.5 * std, rel=0.03)
    assert (net.c == 0) == (stds[3] == 0)


def test_scale_of_ntk_keeps_outputs_of_order_one():
    draw = lambda key: gflow.ShallowNet(2, 4096, key=key, init="ntk")(jnp.array([0.6, 0.8]))
    outputs = jax.vmap(draw)(jax.random.split(KEY, 400))
    # E N² = E relu(z)², z = <w, x> + b of variance 2; the sample variance has deviation 7 %.
    assert jnp.var(outputs) == pytest.approx(1.0, rel=0.25)


def test_from_arrays_keeps_the_arrays_and_refuses_other_shapes():
    w, b, v, c = np.ones((3, 2)), np.zeros(3), np.arange(3.0), np.array(2.0)
    net = gflow.ShallowNet.from_arrays(w, b, v, c, activation="tanh", output_scale=0.5)
    assert net(jnp.zeros(2)) == 2.0
    assert net.output_scale == 0.5
    assert (net.w == w).all() and (net.v == v).all()
    assert gflow.ShallowNet.from_arrays(w, None, np.ones((3, 4)), None).out_size == 4
    for bad in [(w[0], b, v, c), (w, b[:2], v, c), (w, b, v[:2], c), (w, b, v, np.zeros(3))]:
        with pytest.raises(gflow.ArgumentError, match=r"`[wbvc]`"):
            gflow.ShallowNet.from_arrays(*bad)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"width": 0}, "width"),
        ({"in_size": -1}, "in_size"),
        ({"out_size": 0}, "out_size"),
        ({"init": "xavier"}, "init"),
        ({"scale": -1.0}, "scale"),
        ({"scale": float("nan")}, "scale"),
        ({"activation": "rleu"}, "activation"),
    ],
)
@pytest.mark.usefixtures("unchecked_annotations")
def test_bad_arguments_are_named(arguments, named):
    with pytest.raises(ValueError, match=f"`{named}`: got .* wanted"):
        gflow.ShallowNet(**({"in_size": 1, "width": 2, "key": KEY} | arguments))


@pytest.mark.parametrize("name", NAMED)
def test_slope_is_the_derivative(name):
    activation = NAMED[name]
    z = jnp.array([-2.0, -0.3, 0.4, 3.0])
    numeric = (activation(z + 1e-6) - activation(z - 1e-6)) / 2e-6
    np.testing.assert_allclose(activation.slope(z), numeric, atol=1e-8)
    automatic = jax.vmap(jax.grad(lambda x: activation(x)))(z)
    np.testing.assert_allclose(activation.slope(z), automatic, rtol=1e-13)


def test_slope_at_the_kink_is_that_of_the_inactive_side():
    for name, slope in (("relu", 0.0), ("leaky_relu", 0.01), ("leaky_relu(0.3)", 0.3)):
        activation = as_activation(name)
        assert activation.slope(jnp.zeros(())) == slope
        assert jax.grad(lambda z, f=activation: f(z))(0.0) == slope
        assert activation.name == name
    assert as_activation(jax.nn.relu) is NAMED["relu"]
    assert as_activation(jnp.sin)(jnp.array(0.5)) == jnp.sin(0.5)
    assert not PiecewiseLinear(1.0).kinked


def test_trainable_by_name_by_specification_and_its_errors():
    net = gflow.ShallowNet(1, 3, key=KEY)
    trained, frozen = split_trainable(net, ("v", "c"))
    assert trained.w is None and trained.v is net.v and frozen.w is net.w and frozen.c is None
    spec = eqx.tree_at(lambda n: n.b, jax.tree.map(lambda _: False, net), True)
    trained, _ = split_trainable(net, spec)
    assert trained.b is net.b and trained.w is None
    with pytest.raises(gflow.ArgumentError, match="`trainable`: got 'u', wanted fields"):
        split_trainable(net, ("u",))
    with pytest.raises(gflow.ArgumentError, match="at least one array"):
        split_trainable(net, jax.tree.map(lambda _: False, net))
    mixed = eqx.tree_at(lambda n: n.v, net, net.v.astype(jnp.float32))
    with pytest.raises(gflow.ArgumentError, match="one floating type"):
        split_trainable(mixed)
