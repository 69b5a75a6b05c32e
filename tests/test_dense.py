"""Flows at any time: `trajectory(t)`."""

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gflow
from tests.helpers.kink_problems import small_problem
from tests.helpers.networks_as_vectors import flat

END = 12.0
TIMES = np.sort(np.random.default_rng(5).uniform(0.0, END, 200))
RTOL = 1e-8


def states(net, times: int) -> np.ndarray:
    leaves = [np.asarray(a).reshape(times, -1) for a in jax.tree.leaves(net)]
    return np.concatenate(leaves, axis=1)


@pytest.fixture(scope="module")
def dense() -> gflow.Trajectory:
    return gflow.solve_flow(*small_problem(), t1=END, rtol=RTOL, dense=True)


def relative_errors(found, exact) -> np.ndarray:
    return np.linalg.norm(found - exact, axis=1) / np.linalg.norm(exact, axis=1)


@pytest.fixture(scope="module")
def exact() -> gflow.Trajectory:
    return gflow.solve_flow(*small_problem(), t1=END, ts=TIMES, rtol=1e-12, atol=1e-14)


@pytest.mark.slow
@pytest.mark.parametrize("solver", [None, gflow.BDF5(), gflow.ROCK4(), diffrax.Kvaerno5()])
def test_dense_output_is_as_accurate_as_the_flow(solver, exact):
    """Through crossings and slides: at most ten times rtol at random times."""
    risk, net = small_problem()
    flow = gflow.solve_flow(risk, net, t1=END, rtol=RTOL, solver=solver, dense=True)
    assert exact.kinks is not None and exact.kinks.counts()["slide begins"] > 0
    errors = relative_errors(states(flow(TIMES), 200), states(exact.params, 200))
    assert errors.max() <= 10 * RTOL


def test_dense_output_of_a_smooth_flow():
    """A quadratic risk, Σ a θ², whose flow is θ(0) exp(−2 a t)."""
    curvature, start = jnp.array([0.5, 3.0]), jnp.array([1.0, -2.0])
    quadratic = lambda theta: jnp.sum(curvature * theta**2)
    flow = gflow.solve_flow(quadratic, start, t1=END, rtol=RTOL, dense=True)
    exact = np.asarray(start) * np.exp(-2 * np.asarray(curvature) * TIMES[:, None])
    np.testing.assert_allclose(flow(TIMES), exact, atol=10 * RTOL)


@pytest.mark.slow
def test_dense_output_passes_a_change_of_solver():
    quadratic = lambda theta: jnp.sum(jnp.array([1e4, 0.1]) * theta**2)
    flow = gflow.solve_flow(quadratic, jnp.ones(2), t1=100.0, dense=True)
    assert flow.switches
    times = np.sort(np.random.default_rng(2).uniform(0, 100.0, 50))
    np.testing.assert_allclose(flow(times)[:, 1], np.exp(-0.2 * times), atol=1e-6)


def test_dense_output_and_saved_states_agree(dense):
    """One time gives one network; the saved states are those of the dense output."""
    for k in (0, 57, 199):
        np.testing.assert_allclose(flat(dense(dense.ts[k])), flat(dense[k]), rtol=1e-13, atol=1e-13)
    assert dense(1.0).w.shape == dense.final.w.shape
    traced = jax.jit(lambda t: dense(t))(jnp.asarray(1.25))
    np.testing.assert_allclose(flat(traced), flat(dense(1.25)), rtol=1e-13)


def test_dense_output_needs_times_of_the_flow(dense):
    with pytest.raises(gflow.ArgumentError, match="wanted times of the flow, 0 to 12"):
        dense(12.5)


@pytest.mark.parametrize("t", ["a", None, float("nan"), [[1.0]]])
def test_times_are_numbers(dense, t):
    with pytest.raises(gflow.ArgumentError, match="`t`: got .*wanted a time, or times of shape"):
        dense(t)


def test_without_dense_output_only_saved_times_are_known():
    risk, net = small_problem()
    flow = gflow.solve_flow(risk, net, t1=END)
    np.testing.assert_array_equal(flat(flow(flow.ts[3])), flat(flow[3]))
    assert flow(flow.ts[2:5]).w.shape == (3, 8, 1)
    with pytest.raises(gflow.ArgumentError, match=r"dense=True"):
        flow(2.5)
    descent = gflow.descend(risk, net, step_size=0.01, num_steps=30, record=[0, 10, 30])
    np.testing.assert_array_equal(flat(descent(0.1)), flat(descent[1]))
    with pytest.raises(gflow.ArgumentError, match="wanted saved times$"):
        descent(0.05)


def test_dense_output_cannot_be_kept_under_a_trace_or_with_a_checkpoint(tmp_path):
    risk, net = small_problem()
    with pytest.raises(gflow.ArgumentError, match="`dense`: got arrays that JAX traces"):
        jax.jit(lambda v: gflow.solve_flow(risk, v, t1=1.0, dense=True).risk)(net)
    with pytest.raises(gflow.ArgumentError, match="`dense`"):
        gflow.solve_flow(risk, net, t1=1.0, dense=True, checkpoint=tmp_path)


@pytest.mark.parametrize("kinks", ["locate", "ignore"])
def test_a_flow_ends_when_its_seconds_are_over(kinks):
    risk, net = small_problem()
    stop = gflow.Stop(seconds=1e-9)
    flow = gflow.solve_flow(risk, net, t1=END, stop=stop, kinks=kinks)
    assert flow.result_name == "reached_seconds" and flow.succeeded
    assert float(flow.ts[-1]) < END
    with pytest.raises(gflow.ArgumentError, match=r"`stop\.seconds`"):
        gflow.Stop(seconds=-1.0)
    with pytest.raises(gflow.ArgumentError, match=r"`stop\.seconds`: got arrays that JAX traces"):
        jax.jit(lambda v: gflow.solve_flow(risk, v, t1=1.0, stop=stop).risk)(net)


def test_a_flow_that_ended_for_its_seconds_goes_on_from_its_checkpoint(tmp_path):
    risk, net = small_problem()
    options = {"t1": END, "checkpoint": tmp_path}
    part = gflow.solve_flow(risk, net, stop=gflow.Stop(seconds=0.05), **options)
    whole = gflow.solve_flow(risk, net, **options)
    assert float(part.ts[-1]) <= float(whole.ts[-1]) == END
    np.testing.assert_array_equal(
        flat(whole.final), flat(gflow.solve_flow(risk, net, t1=END).final)
    )


def test_times_beyond_an_end_by_a_rounding_are_that_end():
    """As the last of np.arange(0, 0.31, 0.1) is."""
    flow = gflow.solve_flow(lambda p: jnp.sum(p**2), jnp.ones(2), t1=0.3, rtol=1e-4, dense=True)
    times = np.arange(0, 0.31, 0.1)
    assert times[-1] > 0.3
    np.testing.assert_allclose(flow(times)[-1], flow.final, rtol=1e-15)  # up to a rounding
    with pytest.raises(gflow.ArgumentError, match="times of the flow, 0 to 0.3"):
        flow(0.3 + 1e-9)
