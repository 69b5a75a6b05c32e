"""Flows to late times: the choice of the solver, what it costs, and when to stop."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gflow
from benchmarks.reference_flows import reference_flow
from gflow import piecewise
from gflow.flow import driver
from gflow.flow.solver_choice import RunProgress, better_solver
from tests.helpers.networks_as_vectors import distance


def sine() -> tuple[gflow.EmpiricalRisk, gflow.ShallowNet]:
    known = reference_flow("sine_d1_w20_n40")
    return known.risk, known.net


def tent() -> tuple[gflow.PopulationRisk, gflow.ShallowNet]:
    risk = gflow.PopulationRisk(piecewise.tent(), piecewise.uniform())
    return risk, gflow.ShallowNet(1, 16, key=jax.random.key(0))


# ---- the choice -----------------------------------------------------------------------------


def progress(**changes) -> RunProgress:
    # At the bound of stability at t = 100 on the way to 1e8.
    usual = RunProgress(
        t=100.0,
        t1=1e8,
        before=50.0,
        num_kinks=10,
        step_size=0.03,
        radius=lambda: 100.0,
        rtol=1e-8,
        num_params=60,
        located=True,
    )
    return usual._replace(**changes)


def test_the_choice_follows_stiffness_horizon_and_size():
    chosen = lambda **changes: type(better_solver(progress(**changes)))
    assert chosen() is gflow.BDF5
    # Not stiff: the steps are short for another reason.
    assert chosen(radius=lambda: 1.0) is type(None)
    # Near the end, whatever the stiffness.
    assert chosen(t1=150.0) is type(None)
    # A Jacobian of that size costs too much, or cannot be had.
    assert chosen(num_params=3_000, t1=1e3) is gflow.ROCK4
    assert chosen(num_params=100_000, t1=1e4, rtol=1e-4, located=False) is gflow.ROCK4
    # Which would meet the same kinks again and again.
    assert chosen(num_params=100_000, t1=1e4, rtol=3e-7) is gflow.ROCK4
    assert chosen(num_params=100_000, t1=1e4, rtol=1e-6) is type(None)
    # Steps of many parameters take long, so that few are worth a change.
    few = {"t1": 500.0, "step_size": 0.1, "radius": lambda: 30.0, "rtol": 1e-4, "located": False}
    assert chosen(num_params=100_000, **few) is gflow.ROCK4
    assert chosen(num_params=60, **few) is type(None)
    # So many kinks that every solver would take short steps, each of BDF5 at 16 times the price.
    assert chosen(num_params=300, t1=1e3, num_kinks=2_000) is type(None)


def test_rock4_hands_over_where_kinks_become_few():
    # Just measured: 30 evaluations a step, in steps of which a hundred make a tenth of a decade.
    now = progress(t=1e4, before=1e4 / 10**0.1, num_evaluations=3_000, num_params=353, t1=1e7)
    chosen = lambda **changes: type(better_solver(now._replace(**changes), after="ROCK4"))
    assert chosen(num_kinks=0, num_evaluations=100_000) is gflow.BDF5
    assert chosen(num_kinks=500, num_evaluations=100_000) is type(None)
    assert chosen(num_kinks=0, t1=1.01e4) is type(None)
    assert chosen(num_kinks=0, num_evaluations=100_000, num_params=100_000) is type(None)
    assert better_solver(now._replace(num_evaluations=100_000), after="BDF5") is None


@pytest.mark.slow
@pytest.mark.parametrize("problem", [sine, tent])
def test_default_flows_to_time_1e8(problem):
    risk, net = problem()
    early = gflow.solve_flow(risk, net, t1=1e4)
    flow = gflow.solve_flow(risk, net, t1=1e8)
    assert flow.method == "gradient flow, Tsit5, then BDF5"
    stats = {name: float(value) for name, value in flow.stats.items()}
    (switch,) = flow.switches
    assert switch.solver == "BDF5" and 0 < switch.time < 1e3
    assert switch.num_steps < stats["num_steps"]
    assert 0 < stats["num_factorisations"] < stats["num_field_evaluations"]
    # At most as many steps in each of the last four decades as on average before, and some.
    assert stats["num_steps"] < 1.6 * float(early.stats["num_steps"])
    assert np.abs(flow.diagnostics.energy).max() < 1e-7 * flow.risk[0]
    other = gflow.solve_flow(risk, net, t1=1e8, solver=gflow.Rodas5P(), rtol=1e-9)
    # On the flat floor of the valley, errors of the way there stay.
    assert distance(flow.final, other.final) < 1e-5
    assert (np.diff(flow.risk) <= 1e-12).all()


@pytest.mark.slow
def test_the_choice_does_not_depend_on_how_fast_the_machine_is(monkeypatch):
    risk, net = sine()
    fast = gflow.solve_flow(risk, net, t1=1e4)
    # Pieces of forty steps.
    slow_clock = lambda clock, num_steps: setattr(clock, "seconds_per_step", 0.05)
    monkeypatch.setattr(driver._Clock, "note", slow_clock)
    slow = gflow.solve_flow(risk, net, t1=1e4)
    (one,), (other,) = fast.switches, slow.switches
    assert (one.solver, one.num_steps) == (other.solver, other.num_steps)
    np.testing.assert_array_equal(slow.risk, fast.risk)


@pytest.mark.slow
def test_other_solvers_are_kept():
    risk, net = sine()
    flow = gflow.solve_flow(risk, net, t1=1e4, solver=gflow.Rodas5P(), progress=True)
    assert flow.method == "gradient flow, Rodas5P" and not flow.switches


@pytest.mark.slow
def test_single_precision_reaches_late_times():
    risk, net = sine()
    single = jax.tree.map(lambda a: a.astype(jnp.float32), net)
    with pytest.warns(UserWarning, match="float32"):
        flow = gflow.solve_flow(risk, single, t1=1e6, throw=False, max_steps=20_000)
    assert flow.succeeded and flow.ts[-1] == 1e6
    assert np.abs(flow.diagnostics.energy).max() < 1e-2 * flow.risk[0]


# ---- stops ----------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_stop_on_progress_ends_settled_flows_alone():
    risk, net = sine()
    flow = gflow.solve_flow(risk, net, t1=1e8, stop=gflow.Stop(progress=1e-3))
    assert flow.result_name == "reached_progress" and 1e2 < flow.ts[-1] < 1e7
    # A bound that is not reached, and the same program.
    decade = gflow.solve_flow(risk, net, t1=1e8, stop=gflow.Stop(progress=1e-12)).risk[-1]
    assert 0 < 1 - decade / flow.risk[-1] < 5e-3
    # L = c² of c alone falls to 0 like exp(−4t), and is never settled.
    net = gflow.ShallowNet.from_arrays([[1.0]], [0.0], [0.0], 1.0)
    risk = gflow.EmpiricalRisk(np.zeros((1, 1)), np.zeros(1))
    flow = gflow.solve_flow(risk, net, t1=5.0, trainable=("c",), stop=gflow.Stop(progress=1e-3))
    assert flow.result_name == "successful"


@pytest.mark.slow
def test_weights_that_diverge_show():
    # The logistic loss of separable data has no minimum: the weights grow like log t.
    x = jnp.linspace(-1, 1, 8)[:, None]
    risk = gflow.EmpiricalRisk(x, jnp.sign(x[:, 0]), loss="logistic")
    net = gflow.ShallowNet(1, 4, key=jax.random.key(0))
    flow = gflow.solve_flow(risk, net, t1=1e6)
    assert "in the last decade of time" in flow.summary()["parameter norm"]
    bound = gflow.Stop(param_norm=2 * float(jnp.linalg.norm(net.w)))
    stopped = gflow.solve_flow(risk, net, t1=1e6, stop=bound)
    assert stopped.result_name == "reached_param_norm" and "infinity" in stopped.message
