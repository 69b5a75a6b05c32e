"""Optimisers that want to be called in a way of their own."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
import pytest

import gflow

CURVATURE = jnp.array([1.0, 5.0])
START = {"a": jnp.array([1.0, -2.0]), "b": jnp.asarray(0.5)}
STEPS = {"step_size": 0.05, "num_steps": 20, "record": 5}


def quadratic(net):
    return jnp.sum(CURVATURE * net["a"] ** 2) + net["b"] ** 2


GRADIENT = jax.grad(quadratic)


def by_hand(update, num_steps=20):
    """θ after so many steps of `update`."""
    theta = START
    for _ in range(num_steps):
        theta = jax.tree.map(jnp.add, theta, update(theta))
    return theta


def check(run, exact):
    for name, array in exact.items():
        np.testing.assert_allclose(run.final[name], array, rtol=1e-10)


@pytest.mark.parametrize("opaque", [True, False])
def test_sharpness_aware_minimisation(opaque):
    """Two gradients for each step, the second where the first one leads uphill."""
    sam = optax.contrib.sam(optax.sgd(0.05), optax.sgd(0.02), sync_period=2, opaque_mode=opaque)

    def update(theta):
        above = jax.tree.map(lambda p, g: p + 0.02 * g, theta, GRADIENT(theta))
        return jax.tree.map(lambda g: -0.05 * g, GRADIENT(above))

    run = gflow.descend(quadratic, START, sam, **STEPS)
    check(run, by_hand(update, 20 if opaque else 10))


def test_lookahead_records_the_fast_parameters():
    lookahead = optax.lookahead(optax.sgd(0.05), sync_period=3, slow_step_size=0.5)
    fast = slow = START
    for step in range(1, 21):
        fast = jax.tree.map(lambda p, g: p - 0.05 * g, fast, GRADIENT(fast))
        if step % 3 == 0:
            fast = slow = jax.tree.map(lambda s, f: s + 0.5 * (f - s), slow, fast)
    check(gflow.descend(quadratic, START, lookahead, **STEPS), fast)


def test_gradient_accumulation_as_an_object():
    steps = optax.MultiSteps(optax.sgd(0.05), every_k_schedule=2, accumulator_dtype=jnp.float64)
    run = gflow.descend(quadratic, START, steps, **STEPS)
    check(run, by_hand(lambda theta: jax.tree.map(lambda g: -0.05 * g, GRADIENT(theta)), 10))


@pytest.mark.slow
def test_labels_may_be_a_tree_like_the_network():
    risk = gflow.EmpiricalRisk(jnp.linspace(-1, 1, 6)[:, None], jnp.linspace(0, 1, 6))
    net = gflow.ShallowNet(1, 3, key=jax.random.key(0))
    groups = {"fast": optax.sgd(0.1), "still": optax.set_to_zero()}
    everywhere = eqx.tree_at(lambda n: n.v, jax.tree.map(lambda _: "still", net), "fast")
    of_trained = jax.tree.map(lambda _: "still", eqx.filter(net, eqx.is_inexact_array))
    of_trained = eqx.tree_at(lambda n: n.v, of_trained, "fast")
    by = lambda labels: optax.multi_transform(groups, lambda _: labels)
    run = gflow.descend(risk, net, by(everywhere), **STEPS)
    same = gflow.descend(risk, net, by(of_trained), **STEPS)
    with pytest.raises(gflow.ArgumentError, match="have to be wrapped, `lambda _: labels`"):
        gflow.descend(risk, net, optax.multi_transform(groups, everywhere), **STEPS)
    alone = gflow.descend(risk, net, optax.sgd(0.1), trainable=("v",), **STEPS)
    np.testing.assert_array_equal(run.final.w, net.w)
    for other in (same, alone):
        np.testing.assert_allclose(run.final.v, other.final.v, rtol=1e-14)


@pytest.mark.slow
def test_line_searches_alone_and_in_chains():
    for optimiser in (
        optax.chain(optax.sgd(0.1), optax.scale_by_backtracking_linesearch(10)),
        optax.lbfgs(),
        optax.contrib.momo(),
        optax.chain(optax.clip_by_global_norm(1.0), optax.adam(0.1)),
    ):
        run = gflow.descend(quadratic, START, optimiser, **STEPS)
        assert float(run.risk[-1]) < 0.5 * float(run.risk[0])


@pytest.mark.parametrize("given", [3.0, "sgd", lambda h: h])
def test_what_is_no_optimiser_is_refused(given, unchecked_annotations):
    with pytest.raises(gflow.ArgumentError, match="`optimiser`: .* wanted an optax transformation"):
        gflow.descend(quadratic, START, given, **STEPS)


def test_an_optimiser_that_fails_says_why():
    def broken(updates, state, params=None):
        raise RuntimeError("no such schedule")

    optimiser = optax.GradientTransformation(lambda params: (), broken)
    with pytest.raises(gflow.ArgumentError, match=r"`optimiser`: .*no such schedule"):
        gflow.descend(quadratic, START, optimiser, **STEPS)


def test_networks_that_are_dicts():
    """A choice of what is trained by the keys."""
    run = gflow.descend(quadratic, START, trainable=("a",), **STEPS)
    assert float(run.final["b"]) == 0.5
    flow = gflow.solve_flow(quadratic, START, t1=1.0, trainable=("a",))
    np.testing.assert_allclose(flow.final["a"], START["a"] * np.exp([-2.0, -10.0]), atol=1e-8)
    with pytest.raises(gflow.ArgumentError, match=r"got 'c', wanted fields .*\['a', 'b'\]"):
        gflow.solve_flow(quadratic, START, t1=1.0, trainable=("c",))


def test_complex_parameters_are_refused():
    risk = lambda p: jnp.sum(jnp.abs(p - (1 + 1j)) ** 2)
    for run in (
        lambda: gflow.descend(risk, jnp.zeros(3, complex), **STEPS),
        lambda: gflow.solve_flow(risk, jnp.zeros(3, complex), t1=1.0),
    ):
        with pytest.raises(gflow.ArgumentError, match="`net`: got complex parameters"):
            run()
