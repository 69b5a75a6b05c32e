"""The balance of consecutive layers of homogeneous networks of any depth."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gflow
from tests.helpers.deep_networks import matrices_of

KEY = jax.random.key(0)
RELU = eqx.nn.Lambda(jax.nn.relu)


def linear(inputs, outputs, seed: int = 0) -> eqx.nn.Linear:
    return eqx.nn.Linear(inputs, outputs, key=jax.random.key(seed))


def as_sequence(mlp: eqx.nn.MLP) -> eqx.nn.Sequential:
    first, *others = mlp.layers
    return eqx.nn.Sequential([first, *(a for layer in others for a in (RELU, layer))])


def test_one_network_in_every_form_has_one_balance():
    mlp = eqx.nn.MLP(2, "scalar", 6, 3, key=KEY)
    pairs = [(m[:, :-1], m[:, -1]) for m in matrices_of(mlp)]
    one, two, three, last = (np.column_stack(pair) for pair in pairs)
    wanted = [
        np.sum(a**2, axis=1) - np.sum(b[:, :-1] ** 2, axis=0)
        for a, b in ((one, two), (two, three), (three, last))
    ]
    scanned = eqx.nn.MLP(2, "scalar", 6, 3, key=KEY, scan=True)
    for net in (mlp, scanned, as_sequence(mlp), pairs):
        np.testing.assert_allclose(gflow.balance(net), np.concatenate(wanted), rtol=1e-14)


@pytest.mark.parametrize(
    ("out_size", "bias"), [("scalar", True), ("scalar", False), (3, True), (3, False)]
)
def test_one_hidden_layer(out_size, bias):
    net = gflow.ShallowNet(2, 5, out_size, key=KEY, init="standard_normal", use_bias=bias)
    b = net.b if bias else 0.0
    wanted = jnp.sum(net.w**2, axis=1) + b**2 - jnp.sum(net.v.reshape(5, -1) ** 2, axis=1)
    np.testing.assert_allclose(gflow.balance(net), wanted, rtol=1e-14)


@pytest.mark.parametrize(
    ("net", "words"),
    [
        (eqx.nn.MLP(2, 2, 3, 2, jnp.tanh, key=KEY), "tanh between its layers"),
        (eqx.nn.MLP(2, 2, 3, 2, eqx.nn.PReLU(), key=KEY), "PReLU.* between its layers"),
        (eqx.nn.Sequential([linear(2, 3), eqx.nn.Dropout(), linear(3, 1)]), "Dropout.* between"),
        (eqx.nn.Sequential([RELU]), "a Sequential, in which no hidden layers"),
        (linear(2, 3), "a Linear, in which no hidden layers"),
        ([linear(2, 3), linear(3, 1)], "a list, in which no hidden layers"),
    ],
)
def test_networks_without_layers_or_homogeneous_activations_are_named(net, words):
    with pytest.raises(gflow.ArgumentError, match=words):
        gflow.balance(net)


def flow_of(net, **options) -> gflow.Trajectory:
    rng = np.random.default_rng(1)
    risk = gflow.EmpiricalRisk(rng.normal(size=(12, 2)), rng.normal(size=12))
    solve = {"t1": 3.0, "ts": [0.0, 1.0, 3.0], "rtol": 1e-9} | options
    return gflow.solve_flow(risk, net, **solve)


@pytest.mark.slow
def test_flows_conserve_it_and_say_so():
    net = as_sequence(eqx.nn.MLP(2, "scalar", 4, 2, key=KEY))
    flow = flow_of(net)
    assert len(flow.kinks) > 3
    drift = np.asarray(flow.diagnostics.balance)
    assert drift.shape == (3, 8) and 0 < np.abs(drift).max() < 1e-9
    np.testing.assert_allclose(
        drift[-1], gflow.balance(flow.final) - gflow.balance(net), atol=1e-14
    )
    assert "balance drift" in repr(flow) and flow.to_xarray()["balance"].shape == (3, 8)


@pytest.mark.parametrize("frozen", ["weight", "bias"])
def test_it_is_no_diagnostic_where_a_part_of_a_layer_is_not_trained(frozen):
    mlp = eqx.nn.MLP(2, "scalar", 4, 2, key=KEY)
    spec = jax.tree.map(eqx.is_inexact_array, mlp)
    part = lambda n, k: getattr(n.layers[k], frozen)
    drift = lambda spec: eqx.filter_eval_shape(
        lambda net: flow_of(net, trainable=spec, kinks="ignore").diagnostics.balance, mlp
    )
    assert drift(eqx.tree_at(lambda n: part(n, 1), spec, False)) is None
    # The bias of the last layer takes no part.
    last = drift(eqx.tree_at(lambda n: part(n, 2), spec, False))
    assert (last is None) == (frozen == "weight")


def test_descent_drifts_by_its_step_size():
    """By order h: halving the step halves the drift."""
    mlp = eqx.nn.MLP(2, "scalar", 4, 2, jax.nn.leaky_relu, key=KEY)
    risk = gflow.EmpiricalRisk(jnp.eye(2), jnp.array([1.0, -1.0]))
    runs = [gflow.descend(risk, mlp, step_size=0.4 / n, num_steps=5 * n) for n in (8, 16)]
    one, two = (np.abs(run.diagnostics.balance[-1]).max() for run in runs)
    assert 1.8 < one / two < 2.2
