"""Units that become degenerate in finite time on exact risks, and stay so."""

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.integrate import quad

import gflow
from gflow import piecewise
from gflow.flow.collapse import WithCollapse
from gflow.flow.problem import FlowProblem, Method
from gflow.parameters import split_trainable
from gflow.piecewise import PiecewisePolynomial

pytestmark = pytest.mark.slow

NET = gflow.ShallowNet.from_arrays
times = np.linspace(0, 2, 101)
# The solver's tolerances are 1e-8 and 1e-10, its errors some tens of them.
ERROR = 1e-6


def follow(risk, net, **options):
    return gflow.solve_flow(risk, net, t1=2.0, ts=times, **options)


@pytest.mark.parametrize("solver", [None, gflow.BDF5()])
def test_oracle_of_a_degenerate_unit(solver):
    """O5: residuals r are equal everywhere; with dτ = 2 r dt, b = √¾ sinh(τ₀ − τ), c = 1 − τ."""
    risk = gflow.PopulationRisk(piecewise.constant(0.0), piecewise.uniform())
    flow = follow(risk, NET([[0.0]], [0.5], [1.0], 1.0), solver=solver)
    tau0, root = np.log(3) / 2, np.sqrt(0.75)
    r = lambda tau: 1 - tau + 0.375 * np.sinh(2 * (tau0 - tau))
    reached = quad(lambda tau: 0.5 / r(tau), 0, tau0)[0]
    after = times > reached + ERROR
    assert flow.stats["num_collapsed_units"] == 1
    np.testing.assert_array_equal(flow.params.w[after], 0)
    np.testing.assert_array_equal(flow.params.b[after], 0)
    assert np.all(np.asarray(flow.params.b[times < reached - ERROR]) > 0)
    np.testing.assert_allclose(flow.params.v[after], root, rtol=ERROR)
    c = (1 - tau0) * np.exp(-2 * (times[after] - reached))
    np.testing.assert_allclose(flow.params.c[after], c, rtol=ERROR)
    assert np.abs(flow.diagnostics.energy).max() <= ERROR


@pytest.mark.parametrize("slope", [1.0, -1.0], ids=["driven back", "led on"])
def test_what_lies_beyond_zero_does_not_count(slope):
    """f = −x on the right: with p = v w, p' = −(p + 1) √(Δ² + 4 p²)/3 until w = 0. On the left,
    the residual drives the unit back to zero, for ever, or on."""
    target = PiecewisePolynomial([-1.0, 0.0, 1.0], [[0.0, slope], [0.0, -1.0]])
    risk = gflow.PopulationRisk(target, piecewise.uniform())
    flow = follow(risk, NET([[0.5]], None, [1.5], None), max_steps=1000)
    surplus, start = 1.5**2 - 0.5**2, 0.75
    speed = lambda p: (1 + p) * np.sqrt(surplus**2 + 4 * p**2) / 3
    reached = quad(lambda p: 1 / speed(p), 0, start)[0]
    after = times > reached + ERROR
    w, v = np.asarray(flow.params.w[:, 0, 0]), np.asarray(flow.params.v[:, 0])
    assert np.all(w[times < reached - ERROR] > 0) and np.all(w[after] == 0)
    np.testing.assert_allclose(v[after], np.sqrt(surplus), rtol=ERROR)
    assert flow.stats["num_collapsed_units"] == 1
    assert np.abs(flow.diagnostics.energy).max() <= ERROR


def test_units_with_biases_collapse_along_a_fixed_direction():
    """f = −1 on [−3, 3]: while N is small, all directions near w = b/2 turn to it and shrink."""
    risk = gflow.PopulationRisk(piecewise.constant(-1.0, -3.0, 3.0), piecewise.uniform(-3, 3))
    solve = lambda net: gflow.solve_flow(risk, net, t1=0.2, throw=False)
    rng = np.random.default_rng(0)
    b = rng.uniform(0.02, 0.2, (8, 1))
    w = b * rng.uniform(0.4, 0.7, (8, 1))
    nets = jax.vmap(lambda w, b: NET(w[:, None], b, jnp.array([1.5]), None))(w, b)
    flows = jax.jit(jax.vmap(solve))(nets)
    np.testing.assert_array_equal(flows.stats["num_collapsed_units"], 1)
    last = lambda a: np.asarray(a[:, -1])
    assert not last(flows.params.w).any() and not last(flows.params.b).any()
    assert np.abs(flows.diagnostics.energy).max() <= ERROR
    assert np.abs(flows.diagnostics.balance).max() <= ERROR
    assert flows.stats["num_steps"].max() < 300


@pytest.mark.parametrize("scale", [1e-8, 0.5])
def test_other_units_are_left_alone(scale):
    """The same run through a function, in which nothing is known of units; also from a start with
    units of 1e-14 among the others, which lie below the tolerance."""
    risk = gflow.PopulationRisk(piecewise.tent(), piecewise.uniform())
    net = gflow.ShallowNet(1, 8, key=jax.random.key(0), init="standard_normal", scale=scale)
    sizes = jnp.where(jnp.arange(8) < 2, 1e-14 / scale, 1.0)
    net = NET(net.w * sizes[:, None], net.b * sizes, net.v * sizes, net.c)
    options = {"t1": 20.0, "atol": 1e-10 * min(scale, 1.0)}
    flow = gflow.solve_flow(risk, net, **options)
    wanted = gflow.solve_flow(lambda net: risk(net), net, **options)
    assert flow.stats["num_collapsed_units"] == 0
    assert "num_collapsed_units" not in wanted.stats
    assert flow.stats["num_steps"] == wanted.stats["num_steps"]
    for a, b in zip(jax.tree.leaves(flow.params), jax.tree.leaves(wanted.params)):
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12 * scale)


def test_only_where_units_can_collapse():
    risk = gflow.PopulationRisk(piecewise.constant(0.0), piecewise.uniform())
    net = NET([[0.0]], [0.5], [1.0], 1.0)
    leaky = NET([[0.0]], [0.5], [1.0], 1.0, activation="leaky_relu(0.1)")
    cases = [(leaky, {}), (net, {"trainable": ("w", "v")}), (net, {"step_size": 0.1})]
    for other, options in cases:
        solve = lambda net, options=options: gflow.solve_flow(risk, net, t1=0.2, **options).stats
        assert "num_collapsed_units" not in jax.eval_shape(solve, other)
    solve = lambda net: gflow.solve_flow(risk, net, t1=0.2).stats
    assert "num_collapsed_units" in jax.eval_shape(solve, net)


def test_implicit_solvers_and_frozen_outer_weights():
    """With v = c = 1 fixed and f = 0, b' = −2 (b + 1) until b = 0."""
    risk = gflow.PopulationRisk(piecewise.constant(0.0), piecewise.uniform())
    net = NET([[0.0]], [0.5], [1.0], 1.0)
    flow = follow(risk, net, solver=diffrax.Kvaerno3(), trainable=("w", "b"), rtol=1e-6)
    b = np.maximum(1.5 * np.exp(-2 * times) - 1, 0.0)
    np.testing.assert_allclose(flow.params.b[:, 0], b, atol=1e-4)
    assert flow.final.b[0] == 0 and flow.stats["num_collapsed_units"] == 1


def test_the_wrapped_solver_keeps_its_orders():
    """Step sizes follow from the order of the error, which for RKC2 is not that of the solver."""
    net = NET([[1.0]], [0.0], [2.0], 0.0)
    trained, frozen = split_trainable(net)
    risk = gflow.PopulationRisk(piecewise.constant(0.0), piecewise.uniform())
    one = jnp.asarray(1.0)
    for solver in (gflow.RKC2(), gflow.ROCK4(), diffrax.Tsit5()):
        method = Method(solver, one, one, None, gflow.Stop())
        wrapped = WithCollapse(solver, FlowProblem(risk, trained, frozen), method)
        terms = diffrax.ODETerm(lambda t, y, args: -y)
        assert wrapped.order(terms) == solver.order(terms)
        assert wrapped.error_order(terms) == solver.error_order(terms)
