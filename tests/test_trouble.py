"""Flows and descents in trouble say what is wrong."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gflow
from gflow.flow.advice import kink_of_loss
from tests.helpers.kink_problems import sine, small_problem

ABSOLUTE = lambda output, target: jnp.abs(output - target)


@pytest.fixture
def debug_nans():
    jax.config.update("jax_debug_nans", True)
    yield
    jax.config.update("jax_debug_nans", False)


@pytest.mark.slow
def test_runs_make_no_nan_of_their_own(debug_nans):
    """With early ends and unfilled slots, too."""
    risk, net = small_problem()
    smooth = gflow.ShallowNet(1, 8, key=jax.random.key(4), activation="tanh")
    for start in (net, smooth):
        level = 0.8 * float(risk(start))
        for stop in (None, gflow.Stop(risk=level)):
            assert gflow.solve_flow(risk, start, t1=3.0, stop=stop).succeeded
    assert gflow.descend(risk, net, step_size=0.05, num_steps=20).succeeded


@pytest.mark.slow
def test_slots_past_an_early_end_repeat_the_last_state():
    risk, net = small_problem()
    stop = gflow.Stop(risk=0.5 * float(risk(net)))
    flow = gflow.solve_flow(risk, net, t1=50.0, stop=stop)
    traced = eqx.filter_jit(lambda n: gflow.solve_flow(risk, n, t1=50.0, stop=stop))(net)
    filled = np.isfinite(traced.ts)
    assert filled.sum() == len(flow) < 200
    np.testing.assert_allclose(traced.final.w, flow.final.w, rtol=1e-9)
    np.testing.assert_allclose(traced.risk[~filled], float(flow.risk[-1]), rtol=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("start", [jnp.zeros(3), jnp.full(3, 1e200)])
def test_a_risk_without_a_gradient_at_the_start(start):
    power = 2 if start[0] > 0 else 1
    risk = lambda theta: jnp.linalg.norm(theta) ** power
    for run in (
        lambda: gflow.descend(risk, start, step_size=0.1, num_steps=3),
        lambda: gflow.solve_flow(risk, start, t1=1.0),
    ):
        with pytest.raises(gflow.TrajectoryError, match="infinite or NaN at the start"):
            run()


@pytest.mark.slow
def test_times_to_save_at_may_be_beyond_the_end_by_a_rounding():
    risk, net = small_problem()
    flow = gflow.solve_flow(risk, net, t1=0.3, ts=np.arange(0, 0.31, 0.1))
    assert float(flow.ts[-1]) == 0.3
    beyond = 1e6 + np.array([0.1, 0.15, 0.2, 0.3 + 2e-10])
    late = gflow.solve_flow(risk, net, t0=1e6, t1=1e6 + 0.3, ts=beyond)
    assert float(late.ts[-1]) == 1e6 + 0.3
    with pytest.raises(gflow.ArgumentError, match=r"times 0\.1\d* to 0\.3000"):
        gflow.solve_flow(risk, net, t1=0.3, ts=[0.1, 0.3000001])


@pytest.mark.slow
@pytest.mark.parametrize("activation", ["relu", "tanh"])
def test_losses_with_kinks_are_named(activation):
    risk = gflow.EmpiricalRisk(sine(12).x, sine(12).y, loss=ABSOLUTE)
    net = gflow.ShallowNet(1, 4, key=jax.random.key(3), activation=activation)
    with pytest.warns(UserWarning, match="the loss is not differentiable where the flow is"):
        gflow.solve_flow(risk, net, t1=5.0, max_steps=5_000, throw=False)


@pytest.mark.parametrize("loss", ["squared", "logistic", "huber"])
def test_losses_without_kinks_are_not(loss):
    def huber(output, target):
        off = jnp.abs(output - target)
        return jnp.where(off < 0.1, off**2 / 2, 0.1 * (off - 0.05))

    targets = np.where(sine(12).y > 0, 1.0, -1.0)
    risk = gflow.EmpiricalRisk(sine(12).x, targets, loss=huber if loss == "huber" else loss)
    net = gflow.ShallowNet(1, 4, key=jax.random.key(3))
    assert kink_of_loss(risk, net) is None
    at_a_kink = gflow.EmpiricalRisk(risk.x, jax.vmap(net)(risk.x), loss=ABSOLUTE)
    assert kink_of_loss(at_a_kink, net) == 0


@pytest.mark.slow
def test_networks_with_kinks_that_are_not_located_say_so():
    net, data = eqx.nn.MLP(1, "scalar", 8, 2, key=jax.random.key(0)), sine(20)
    # No kinks are known of the risk of a user.
    with pytest.warns(UserWarning, match="jumps of the gradient that are not located"):
        gflow.solve_flow(lambda net: data(net), net, t1=5.0, max_steps=4_000, throw=False)


@pytest.mark.parametrize("make", [gflow.ShallowNet, eqx.nn.MLP])
def test_rows_that_nearly_agree_are_named_for_every_network(make):
    x = np.array([[0.2], [0.5], [0.5 + 1e-9], [0.9]])
    risk = gflow.EmpiricalRisk(x, np.array([0.0, 3.0, -1.0, 1.0]))
    key = jax.random.key(0)
    net = make(1, 2, key=key) if make is gflow.ShallowNet else make(1, "scalar", 2, 1, key=key)
    with pytest.warns(UserWarning, match="rows of x nearly agree and have other targets: 1 and 2"):
        gflow.solve_flow(risk, net, t1=1e-6, ts=[1e-6], rtol=1e-3)
