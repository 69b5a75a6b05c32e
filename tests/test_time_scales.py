"""Flows with time scales, dθ/dt = −τ ⊙ G(θ)."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import gflow
from tests.helpers.kink_problems import sine, small_problem
from tests.helpers.networks_as_vectors import flat

SCALES = {"w": 0.5, "b": 2.0, "v": 0.05}


def test_quadratic_risks():
    """Σ a θ² with a number for each entry of a dict: θ(0) exp(−2 a τ t)."""
    curvature = {"slow": 0.5, "fast": 3.0}
    risk = lambda net: sum(curvature[k] * net[k] ** 2 for k in net)
    start = {"slow": jnp.asarray(1.0), "fast": jnp.asarray(-2.0)}
    scales = {"slow": 0.1, "fast": 4.0}
    flow = gflow.solve_flow(risk, start, t1=2.0, time_scales=scales)
    for name, tau in scales.items():
        exact = start[name] * np.exp(-2 * curvature[name] * tau * flow.ts)
        np.testing.assert_allclose(flow.params[name], exact, atol=1e-8)
    assert np.abs(flow.diagnostics.energy).max() < 1e-8 * flow.risk[0]
    # −dL/dt = Σ τ (∂L/∂θ)².
    square = sum(tau * (2 * curvature[k] * flow.params[k]) ** 2 for k, tau in scales.items())
    np.testing.assert_allclose(flow.grad_norm**2, square, rtol=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("kinks", ["locate", "ignore"])
def test_kinks_and_slides_in_the_metric_of_the_time_scales(kinks):
    """Scaled data make the same flow: with biases as a feature, φ = θ/√τ follows the plain flow of
    s √τ_v Σ φ_v relu(⟨φ_w, √τ_w x⟩ + √τ_b φ_b)."""
    data, net = small_problem()
    net = eqx.tree_at(lambda n: n.c, net, None, is_leaf=lambda a: a is None)
    scaled_x = np.concatenate(
        [np.sqrt(SCALES["w"]) * data.x, np.full((12, 1), np.sqrt(SCALES["b"]))], axis=1
    )
    inputs = np.concatenate(
        [net.w / np.sqrt(SCALES["w"]), net.b[:, None] / np.sqrt(SCALES["b"])], axis=1
    )
    root = float(np.sqrt(SCALES["v"]))
    plain = gflow.ShallowNet.from_arrays(inputs, None, net.v / root, None, output_scale=root)
    options = {"t1": 8.0, "kinks": kinks, "rtol": 1e-9 if kinks == "locate" else 1e-4}
    flow = gflow.solve_flow(data, net, time_scales=SCALES, **options)
    same = gflow.solve_flow(gflow.EmpiricalRisk(scaled_x, data.y), plain, **options)
    tolerance = 1e-7 if kinks == "locate" else 1e-2
    np.testing.assert_allclose(flow.risk, same.risk, atol=tolerance)
    np.testing.assert_allclose(flow.params.v, root * same.params.v, atol=tolerance)
    np.testing.assert_allclose(flow.grad_norm[-1], same.grad_norm[-1], rtol=10 * tolerance)
    if kinks == "locate":
        assert flow.kinks is not None and same.kinks is not None
        assert flow.kinks.counts()["slide begins"] > 0
        np.testing.assert_array_equal(flow.kinks.kind, same.kinks.kind)
        np.testing.assert_allclose(flow.kinks.time, same.kinks.time, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("solver", [None, gflow.BDF5()])
def test_energy_and_balance_are_those_of_the_metric(solver):
    flow = gflow.solve_flow(*small_problem(), t1=12.0, time_scales=SCALES, solver=solver)
    assert np.abs(flow.diagnostics.energy).max() < 1e-7
    assert flow.diagnostics.balance is not None
    assert np.abs(flow.diagnostics.balance).max() < 1e-7
    net, start = flow.final, flow[0]
    weighed = lambda n: n.w[:, 0] ** 2 / 0.5 + n.b**2 / 2.0 - n.v**2 / 0.05
    np.testing.assert_allclose(weighed(net), weighed(start), atol=1e-6)
    assert float(flow.stats["time_scale_v"]) == pytest.approx(0.05)


@pytest.mark.slow
def test_descent_follows_the_flow_with_order_one():
    risk, net = sine(12), gflow.ShallowNet(1, 4, key=jax.random.key(0), activation="tanh")
    flow = gflow.solve_flow(risk, net, t1=2.0, time_scales=SCALES)
    errors = []
    for h in (4e-3, 2e-3):
        descent = gflow.descend(
            risk, net, optax.sgd, step_size=h, num_steps=round(2 / h), time_scales=SCALES
        )
        errors.append(np.linalg.norm(flat(descent.final) - flat(flow.final)))
        assert np.abs(descent.diagnostics.energy).max() < 1.0 * h
    assert errors[0] / errors[1] == pytest.approx(2.0, rel=0.05)


def test_a_prefix_of_the_network_and_one_number():
    risk, net = sine(12), gflow.ShallowNet(1, 4, key=jax.random.key(0), activation="tanh")
    by_field = gflow.solve_flow(risk, net, t1=1.0, time_scales=dict.fromkeys("wbvc", 3.0))
    by_number = gflow.solve_flow(risk, net, t1=1.0, time_scales=3.0)
    ones = jax.tree.map(lambda _: 3.0, net)
    by_prefix = gflow.solve_flow(risk, net, t1=1.0, time_scales=ones)
    later = gflow.solve_flow(risk, net, t1=3.0)
    for flow in (by_number, by_prefix):
        np.testing.assert_array_equal(flat(by_field.final), flat(flow.final))
    np.testing.assert_allclose(flat(by_field.final), flat(later.final), atol=1e-7)


def test_a_field_takes_a_prefix_of_itself():
    net = {"hidden": {"w": jnp.ones(2), "b": jnp.ones(1)}, "out": jnp.ones(3), "fixed": None}
    risk = lambda net: jnp.sum(net["hidden"]["w"]) + jnp.sum(net["hidden"]["b"] + net["out"])
    moved = lambda given: gflow.descend(
        risk, net, step_size=0.1, num_steps=1, time_scales=given
    ).final["hidden"]
    hidden = moved({"hidden": {"w": 2.0, "b": 0.5}})
    # The derivatives by w and b are 1 and 3.
    np.testing.assert_allclose(hidden["w"], 1 - 0.1 * 2.0)
    np.testing.assert_allclose(hidden["b"], 1 - 0.1 * 0.5 * 3)
    np.testing.assert_allclose(moved({"hidden": 2.0})["b"], 1 - 0.1 * 2.0 * 3)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"u": 1.0}, r"got 'u', wanted fields of the network: \['w', 'b', 'v', 'c'\]"),
        ({"w": -1.0}, "got -1.0, wanted a finite positive number"),
        ({"w": 0.0}, "finite positive number"),
        (float("nan"), "finite positive number"),
        ((1.0, 2.0), "wanted a number, numbers by field"),
        ({"v": None}, "wanted a number, numbers by field"),
    ],
)
def test_time_scales_are_checked(given, message):
    risk, net = small_problem()
    with pytest.raises(gflow.ArgumentError, match=f"`time_scales`: .*{message}"):
        gflow.solve_flow(risk, net, t1=1.0, time_scales=given)
