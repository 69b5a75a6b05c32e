import subprocess
import sys
import warnings

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg

import gflow
from gflow.results import RESULT_NAMES, RESULTS
from tests.helpers.kink_problems import data
from tests.helpers.networks_as_vectors import inner, norm

KEY = jax.random.key(0)


class Product(eqx.Module):
    """x -> w2 w1 x."""

    w1: jax.Array
    w2: jax.Array

    def __call__(self, x):
        return self.w2 * self.w1 * x[0]


def test_logistic_growth_of_a_deep_linear_mode():
    # O10: with w1 = w2 = sqrt(u) and risk (u - s)², u' = 4 u (s - u).
    s, u0 = 2.0, 0.01
    net = Product(jnp.sqrt(u0), jnp.sqrt(u0))
    flow = gflow.solve_flow(data((1.0, s)), net, t1=3.0, rtol=1e-10, atol=1e-12)
    u = flow.params.w1 * flow.params.w2
    exact = s / (1 + (s / u0 - 1) * np.exp(-4 * s * np.asarray(flow.ts)))
    # The tolerance bounds the error of a step; some fifty of them add up, at growth e^{8}.
    np.testing.assert_allclose(u, exact, rtol=2e-7)


@pytest.mark.slow
def test_training_the_output_layer_is_a_linear_equation(wave):
    # O14: z' = -2 (M z - m) for z = (v, c) and features (relu(w x + b), 1).
    net = gflow.ShallowNet(1, 6, key=KEY, init="standard_normal")
    flow = gflow.solve_flow(wave, net, t1=20.0, rtol=1e-10, atol=1e-12, trainable=("v", "c"))
    features = np.maximum(np.asarray(wave.x) @ np.asarray(net.w).T + np.asarray(net.b), 0)
    phi = np.append(features, np.ones((len(features), 1)), axis=1)
    m_matrix, m_vector = phi.T @ phi / len(phi), phi.T @ np.asarray(wave.y) / len(phi)
    limit = np.linalg.lstsq(m_matrix, m_vector, rcond=None)[0]
    z0 = np.append(net.v, net.c)
    for k in (50, 120, 199):
        exact = limit + scipy.linalg.expm(-2 * m_matrix * float(flow.ts[k])) @ (z0 - limit)
        got = np.append(flow.params.v[k], flow.params.c[k])
        np.testing.assert_allclose(got, exact, rtol=1e-8, atol=1e-8)
    assert (np.asarray(flow.params.w) == np.asarray(net.w)).all()
    assert flow.diagnostics.balance is None


def test_dead_units_leave_the_output_bias_to_decay():
    # O9: c' = -2 (c - mean y), and the risk is the variance of y and the rest of c.
    x = np.linspace(0, 1, 9)
    y = x**2
    net = gflow.ShallowNet.from_arrays([[-1.0], [0.5]], [-0.1, -0.7], [1.0, 2.0], 3.0)
    flow = gflow.solve_flow(gflow.EmpiricalRisk(x[:, None], y), net, t1=4.0)
    t, m = np.asarray(flow.ts), y.mean()
    np.testing.assert_allclose(flow.params.c, m + (3 - m) * np.exp(-2 * t), rtol=1e-7)
    np.testing.assert_allclose(flow.risk, y.var() + (3 - m) ** 2 * np.exp(-4 * t), rtol=1e-7)
    assert (np.asarray(flow.params.w) == np.asarray(net.w)).all()


def test_three_eighths_of_standard_normal_units_are_dead_on_the_unit_interval():
    net = gflow.ShallowNet(1, 40_000, key=KEY, init="standard_normal")
    w, b = np.asarray(net.w[:, 0]), np.asarray(net.b)
    dead = (b <= 0) & (w + b <= 0)
    # Standard deviation of the share: 0.0024.
    assert np.mean(dead) == pytest.approx(3 / 8, abs=0.01)


@pytest.mark.slow
@pytest.mark.parametrize("activation", ["relu", "leaky_relu(0.3)"])
@pytest.mark.parametrize("out_size", ["scalar", 2])
def test_energy_and_balance_are_conserved(activation, out_size):
    x = jax.random.normal(KEY, (10, 3))
    y = x[:, 0] if out_size == "scalar" else x[:, :2]
    net = gflow.ShallowNet(3, 6, out_size, key=KEY, activation=activation)
    flow = gflow.solve_flow(gflow.EmpiricalRisk(x, y), net, t1=1.0, rtol=1e-6, atol=1e-8)
    # The errors of some thirty steps add up to 1.4e-7 and 3e-8, at kinks that are located.
    assert jnp.max(jnp.abs(flow.diagnostics.energy)) < 1e-6 * flow.risk[0]
    assert flow.diagnostics.balance.shape == (200, 6)
    assert jnp.max(jnp.abs(flow.diagnostics.balance)) < 2e-7
    assert (jnp.diff(flow.risk) <= 0).all()


def test_smooth_flow_conserves_energy_to_its_tolerance(smooth_flow):
    assert jnp.max(jnp.abs(smooth_flow.diagnostics.energy)) < 1e-7
    assert smooth_flow.diagnostics.balance is None


@pytest.mark.parametrize("xi", [0.0, 0.7])
def test_lyapunov_function_of_constant_targets(xi):
    # <∇V, G> = 8 L for V = ‖θ‖² + |c − 2ξ|².
    net = gflow.ShallowNet(2, 5, key=KEY, init="standard_normal")
    risk = gflow.EmpiricalRisk(jax.random.normal(KEY, (11, 2)), np.full(11, xi))
    lyapunov = lambda n: sum(jnp.sum(a**2) for a in jax.tree.leaves(n)) + (n.c - 2 * xi) ** 2
    slope = jax.grad(lyapunov)(net)
    gradient = gflow.generalized_gradient(risk, net)
    assert inner(slope, gradient) == pytest.approx(8 * float(risk(net)))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("solver", "order"), [(diffrax.Bosh3(), 3), (diffrax.Tsit5(), 5), (diffrax.Dopri8(), 8)]
)
def test_tighter_tolerances_converge(solver, order, wave, smooth_net, smooth_flow):
    reference = gflow.solve_flow(wave, smooth_net, t1=10.0, ts=[10.0], rtol=1e-12, atol=1e-13)
    errors = []
    for rtol in (1e-5, 1e-8):
        flow = gflow.solve_flow(
            wave, smooth_net, t1=10.0, ts=[10.0], rtol=rtol, atol=1e-2 * rtol, solver=solver
        )
        assert type(solver).__name__ in flow.method
        errors.append(float(jnp.linalg.norm(flow.final.w - reference.final.w)))
    # The global error follows the tolerance, to the power order/(order + 1) at the least.
    assert errors[1] < errors[0] * (1e-3 ** (order / (order + 1))) * 20
    assert errors[1] < 1e-5


def test_saved_times_are_the_ones_asked_for(wave, smooth_net, smooth_flow):
    ts = np.array([0.0, 0.1, 0.5, 10.0])
    flow = gflow.solve_flow(wave, smooth_net, t1=10.0, ts=ts)
    assert (np.asarray(flow.ts) == ts).all()
    assert (flow[0].w == smooth_net.w).all()
    assert flow[0](jnp.array([0.3])) == smooth_net(jnp.array([0.3]))
    np.testing.assert_allclose(flow.final.w, smooth_flow.final.w, rtol=1e-12)
    assert len(smooth_flow) == 200
    assert smooth_flow.ts[0] == 0.0 and smooth_flow.ts[-1] == 10.0
    np.testing.assert_allclose(flow.risk[0], wave(smooth_net), rtol=1e-14)
    gradient = gflow.generalized_gradient(wave, smooth_net)
    np.testing.assert_allclose(flow.grad_norm[0], norm(gradient), rtol=1e-13)


def test_another_start_time_shifts_the_flow(wave, smooth_net, smooth_flow):
    shifted = gflow.solve_flow(wave, smooth_net, t0=5.0, t1=15.0)
    np.testing.assert_allclose(shifted.final.w, smooth_flow.final.w, rtol=1e-8)
    assert shifted.ts[0] == 5.0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stop", "result"),
    [
        (gflow.Stop(grad_norm=0.05, risk=1e-9), "reached_grad_norm"),
        (gflow.Stop(risk=0.05), "reached_risk"),
        (gflow.Stop(param_norm=5.0), "reached_param_norm"),
    ],
)
def test_stop_ends_early_where_asked(stop, result, wave, smooth_net):
    flow = gflow.solve_flow(wave, smooth_net, t1=1e4, stop=stop)
    assert flow.result_name == result and flow.succeeded
    assert 0 < flow.ts[-1] < 1e4 and (jnp.diff(flow.ts) > 0).all()
    reached = {
        "reached_grad_norm": (float(flow.grad_norm[-1]), 0.05),
        "reached_risk": (float(flow.risk[-1]), 0.05),
        "reached_param_norm": (5.0, norm(flow.final)),
    }[result]
    assert reached[0] <= reached[1]


@pytest.mark.parametrize("progress", [False, True])
def test_a_spent_budget_is_reported_and_keeps_what_was_computed(progress, wave, smooth_net):
    options = {"t1": 10.0, "max_steps": 40, "progress": progress}
    flow = gflow.solve_flow(wave, smooth_net, **options, throw=False)
    assert flow.result_name == "max_steps_reached" and not flow.succeeded
    assert 0 < flow.ts[-1] < 10 and jnp.isfinite(flow.risk).all() and len(flow) > 10
    with pytest.raises(gflow.TrajectoryError, match="Raise it, loosen") as caught:
        gflow.solve_flow(wave, smooth_net, **options)
    assert len(caught.value.trajectory) == len(flow)


def test_a_field_that_ends_is_reported():
    # y' = 1/(2 sqrt(1 - y)): the field is NaN past y = 1, which it reaches at t = 4/3.
    risk = lambda net: jnp.sqrt(1 - net["y"])
    flow = gflow.solve_flow(risk, {"y": jnp.zeros(())}, t1=5.0, throw=False)
    assert flow.result_name == "step_size_underflow"
    assert flow.ts[-1] == pytest.approx(4 / 3, abs=1e-3)
    assert jnp.isfinite(flow.risk).all()


def test_a_risk_that_is_nan_from_the_start_is_no_success(smooth_net):
    risk = lambda net: jnp.log(-jnp.sum(net.w**2))
    flow = gflow.solve_flow(risk, smooth_net, t1=0.1, throw=False)
    assert flow.result_name == "nonfinite_start"


def test_data_of_another_width_are_refused(smooth_net):
    risk = gflow.EmpiricalRisk(np.ones((3, 2)), np.ones(3))
    for call in (risk, lambda net: gflow.solve_flow(risk, net, t1=1.0)):
        with pytest.raises(ValueError, match="`net`: got a network of 1 inputs, wanted 2"):
            call(smooth_net)


def test_the_same_flow_in_pieces(wave, smooth_net, smooth_flow):
    flow = gflow.solve_flow(wave, smooth_net, t1=10.0, progress=True)
    assert (flow.ts == smooth_flow.ts).all() and flow.result_name == "successful"
    np.testing.assert_allclose(flow.params.w, smooth_flow.params.w, rtol=1e-6, atol=1e-7)
    assert jnp.max(jnp.abs(flow.diagnostics.energy)) < 1e-7


def test_saved_times_need_not_reach_the_end_in_pieces(wave, smooth_net):
    ts = np.linspace(0.5, 2.0, 20)
    flow = gflow.solve_flow(wave, smooth_net, t1=3.0, ts=ts, progress=True)
    assert (np.asarray(flow.ts) == ts).all() and flow.succeeded


@pytest.mark.slow
def test_vmap_and_jit_give_the_single_runs(wave):
    def end(key):
        net = gflow.ShallowNet(1, 8, key=key, activation="tanh")
        return gflow.solve_flow(wave, net, t1=2.0)

    keys = jax.random.split(KEY, 3)
    many = eqx.filter_jit(eqx.filter_vmap(end))(keys)
    assert many.risk.shape == (3, 200)
    for k in range(3):
        single = end(keys[k])
        np.testing.assert_allclose(many.risk[k], single.risk, rtol=1e-7)
        np.testing.assert_allclose(many.params.w[k], single.params.w, rtol=1e-6, atol=1e-7)
    assert repr(many).startswith("Trajectories")


@pytest.mark.slow
def test_field_evaluations_are_counted(wave, smooth_net):
    calls = []

    def counting(net):
        jax.debug.callback(lambda: calls.append(1))
        return wave(net)

    for solver in (None, diffrax.Bosh3(), diffrax.Heun()):
        calls.clear()
        flow = gflow.solve_flow(counting, smooth_net, t1=1.0, ts=[1.0], rtol=1e-5, solver=solver)
        jax.effects_barrier()
        # Two more for the slots of saved times.
        uncounted = len(calls) - int(flow.stats["num_field_evaluations"]) - 2
        assert 0 <= uncounted <= (3 if flow.stats["num_rejected_steps"] else 0)


def test_single_precision_says_what_to_expect(wave):
    net = gflow.ShallowNet(1, 8, key=KEY, activation="tanh", dtype=jnp.float32)
    risk = gflow.EmpiricalRisk(wave.x.astype(jnp.float32), wave.y.astype(jnp.float32))
    with pytest.warns(UserWarning, match="float32: expect about 4 correct digits"):
        flow = gflow.solve_flow(risk, net, t1=1.0)
    assert flow.params.w.dtype == jnp.float32
    assert flow.stats["rtol"] == jnp.float32(1e-4)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        gflow.solve_flow(wave, gflow.ShallowNet(1, 8, key=KEY, activation="tanh"), t1=1.0)


@pytest.mark.usefixtures("unchecked_annotations")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"t1": 0.0}, "`t1`: got 0.0, wanted a finite time after t0 = 0"),
        ({"t1": -1.0}, "`t1`"),
        ({"t1": float("inf")}, "`t1`"),
        ({"t0": float("nan")}, "`t0`"),
        ({"ts": [0.0, 2.0, 1.0]}, "`ts`: got .* wanted increasing"),
        ({"ts": [0.0, 99.0]}, r"`ts`: got times 0 to 99, wanted .* \[0.0, 1.0\]"),
        ({"ts": []}, "`ts`"),
        ({"rtol": 0.0}, "`rtol`: got 0.0"),
        ({"atol": -1e-3}, "`atol`"),
        ({"solver": diffrax.Euler()}, "`solver`: got .* error estimate"),
        ({"kinks": "locate "}, "`kinks`"),
        ({"max_steps": 0}, "`max_steps`"),
        ({"trainable": ("u",)}, "`trainable`"),
    ],
)
def test_bad_arguments_are_named(arguments, message, wave, smooth_net):
    with pytest.raises(ValueError, match=message):
        gflow.solve_flow(wave, smooth_net, **({"t1": 1.0} | arguments))


def test_bad_networks_and_stops_are_named(wave, smooth_net):
    broken = eqx.tree_at(lambda n: n.b, smooth_net, smooth_net.b * jnp.nan)
    with pytest.raises(ValueError, match="`net`: got parameters that are NaN"):
        gflow.solve_flow(wave, broken, t1=1.0)
    with pytest.raises(ValueError, match=r"`stop.risk`: got -1.0"):
        gflow.Stop(risk=-1.0)


def test_every_result_has_a_name():
    assert len(RESULTS) == len(RESULT_NAMES)
    assert all(RESULTS[getattr(RESULTS, name)] for name in RESULT_NAMES)


@pytest.mark.slow
def test_arguments_of_another_type_are_named():
    # Without the type checker of these tests, which would object first.
    script = """
import gflow, jax
net = gflow.ShallowNet(1, 2, key=jax.random.key(0))
risk = gflow.EmpiricalRisk([[1.0]], [1.0])
cases = {
    "solver": lambda: gflow.solve_flow(risk, net, t1=1.0, solver="tsit5"),
    "stop": lambda: gflow.solve_flow(risk, net, t1=1.0, stop=1e-3),
    "width": lambda: gflow.ShallowNet(1, 2.5, key=jax.random.key(0)),
    "step_size": lambda: gflow.descend(risk, net, step_size="h", num_steps=3),
    "optimiser": lambda: gflow.descend(risk, net, 0.1, step_size=0.1, num_steps=3),
    "num_steps": lambda: gflow.descend(risk, net, step_size=0.1, num_steps=3.5),
}
for name, case in cases.items():
    try:
        case()
    except gflow.ArgumentError as error:
        assert str(error).startswith(f"`{name}`: got"), error
    else:
        raise AssertionError(name)
"""
    subprocess.run([sys.executable, "-c", script], check=True)


@pytest.mark.slow
def test_risks_that_hold_traced_arrays(wave, smooth_net):
    def end(decay):
        risk = lambda net: wave(net) + decay * jnp.sum(net.w**2)
        return gflow.solve_flow(risk, smooth_net, t1=1.0, ts=[1.0]).risk[-1]

    decay, step = 0.1, 1e-4
    together = jax.vmap(end)(jnp.array([decay, decay + step, decay - step]))
    np.testing.assert_allclose(together[0], end(decay), rtol=1e-7)
    slope = (together[1] - together[2]) / (2 * step)
    np.testing.assert_allclose(jax.grad(end)(decay), slope, rtol=1e-4)
    with pytest.raises(gflow.ArgumentError, match="`progress`: got arrays that JAX traces"):
        jax.grad(
            lambda c: gflow.solve_flow(
                lambda net: c * wave(net), smooth_net, t1=1.0, progress=True
            ).risk[-1]
        )(1.0)
