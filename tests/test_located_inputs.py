"""Located kinks with awkward inputs, coinciding kinks, budgets, stops and what a run says."""

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gflow
from tests.helpers.kink_problems import KEY, data, kinks, sine, single_unit, small_problem, solve
from tests.helpers.networks_as_vectors import distance, norm

pytestmark = pytest.mark.slow

# ---- awkward inputs -------------------------------------------------------------------------


def test_equal_rows_are_one_kink():
    x, y = np.array([[-1.0], [0.2], [0.2], [1.0]]), np.array([1.0, -1.0, 0.0, 0.5])
    net = gflow.ShallowNet(1, 6, key=jax.random.key(2))
    repeated = solve(gflow.EmpiricalRisk(x, y), net, 20.0)
    merged = solve(
        gflow.EmpiricalRisk(x[[0, 1, 3]], y[[0, 1, 3]] + [0, 0.5, 0], [1, 2, 1]), net, 20.0
    )
    # The same gradient: the mean of two targets with twice the weight.
    np.testing.assert_allclose(repeated.params.w, merged.params.w, rtol=1e-8, atol=1e-8)
    assert 2 not in np.asarray(repeated.kinks.datum)


def zeros_and_ones(rng) -> np.ndarray:
    """Twenty rows of four columns, always twelve of them distinct, so that programs are shared."""
    distinct = rng.choice(16, 12, replace=False)
    drawn = rng.permutation(np.append(distinct, rng.choice(distinct, 8)))
    return (drawn[:, None] >> np.arange(4) & 1).astype(float)


@pytest.mark.parametrize("seed", range(4))
def test_whole_number_columns(seed):
    rng = np.random.default_rng(seed)
    risk = gflow.EmpiricalRisk(zeros_and_ones(rng), rng.normal(size=20))
    net = gflow.ShallowNet(4, 8, key=jax.random.key(seed))
    flow = solve(risk, net, 10.0)
    assert flow.succeeded and np.abs(flow.diagnostics.energy).max() < 1e-7
    assert (np.diff(flow.risk) <= 1e-12).all()


def test_units_that_are_zero_stay_zero():
    net = gflow.ShallowNet(4, 8, key=KEY)
    net = eqx.tree_at(lambda n: (n.w, n.b), net, (net.w.at[1].set(0), net.b.at[1].set(0)))
    x = zeros_and_ones(np.random.default_rng(0))
    flow = solve(gflow.EmpiricalRisk(x, x @ np.arange(4) - 3), net, 3.0)
    assert (flow.params.w[:, 1] == 0).all() and (flow.params.v[:, 1] == net.v[1]).all()


@pytest.mark.parametrize("use_bias", [False, True])
def test_a_datum_at_the_origin_one_datum_and_one_unit(use_bias):
    net = gflow.ShallowNet(2, 1, key=KEY, use_bias=use_bias)
    for risk in (data((0, 0, 1), (1, 2, -1)), data((1, 2, 3))):
        flow = solve(risk, net, 5.0)
        assert flow.succeeded and np.abs(flow.diagnostics.energy).max() < 1e-8


def test_a_start_on_kinks_takes_the_side_that_the_field_points_to():
    # At w = 0 the inactive side's field of the first datum's kink points to the active side.
    net = gflow.ShallowNet.from_arrays([[1.0], [-1.0]], [-0.5, 0.5], [1.0, 1.0], 0.0)
    risk = data((0.5, 2.0), (1.0, 2.0), (0.0, -1.0))
    flow = solve(risk, net, 10.0)
    assert flow.succeeded and np.abs(flow.diagnostics.energy).max() < 1e-8
    assert flow.risk[-1] < flow.risk[0]


# ---- kinks that coincide --------------------------------------------------------------------

CASES = [
    # Slope, biases, what is trained: x and −x, and x and 2x, have one kink wherever b is 0.
    (0.0, None, ("w", "v", "c")),
    (1.5, None, ("w", "c")),
    (0.3, "zero", ("w", "c")),
    (-0.5, "zero", ("b", "v", "c")),
    (0.0, "some", ("b", "c")),
]


@pytest.mark.parametrize(("slope", "bias", "trainable"), CASES)
def test_the_speed_is_the_norm_of_the_clarke_gradient_and_descent_follows(slope, bias, trainable):
    rng, met = np.random.default_rng(7), 0
    for _ in range(4):
        x, y = rng.normal(size=(7, 2)), 2 * rng.normal(size=7)
        x[1], x[2], x[4] = -x[0], 2 * x[0], -x[3]
        b = {None: None, "zero": np.zeros(2), "some": rng.normal(size=2)}[bias]
        net = gflow.ShallowNet.from_arrays(
            rng.normal(size=(2, 2)), b, rng.normal(size=2), 0.1, activation=f"leaky_relu({slope})"
        )
        risk = gflow.EmpiricalRisk(x, y)
        options = {"ts": np.linspace(0.5, 4, 8), "trainable": trainable, "max_kinks": 200}
        flow = gflow.solve_flow(risk, net, t1=4.0, **options)
        met += len(flow.kinks)
        for k, speed in enumerate(np.asarray(flow.grad_norm)):
            clarke = gflow.clarke_gradient(risk, flow[k], trainable=trainable)
            assert speed == pytest.approx(norm(clarke), rel=1e-8, abs=1e-10)
        descent = gflow.descend(
            risk, net, step_size=1e-4, num_steps=40_000, record=2, trainable=trainable
        )
        assert distance(descent.final, flow.final) < 5e-3
    assert met > 0


def test_opposite_rows_without_biases_are_judged_together():
    # Alone, each row would hold the unit on its kink; together they let it through.
    risk = data((1, 0, -8), (-1, 0, -1), (0.3, 1, 0), (0, 0, -12))
    net = gflow.ShallowNet.from_arrays([[0.2, 1.0]], None, [1.0], 1.0)
    flow = solve(risk, net, 2.0, trainable=("w", "c"))
    descent = gflow.descend(risk, net, step_size=1e-4, num_steps=20_000, trainable=("w", "c"))
    assert distance(flow.final, descent.final) < 1e-3
    begun = [row for name, _, row in kinks(flow) if name == "slide begins"]
    assert begun == [0, 1] and flow.kinks.sliding_at(float(flow.kinks.time[0])) == {
        (0, 0, 0),
        (0, 0, 1),
    }


# ---- budgets and stops ----------------------------------------------------------------------


def test_spent_budgets_keep_what_was_computed():
    risk, net = small_problem()
    flow = solve(risk, net, 12.0, throw=False, max_steps=25)
    assert flow.result_name == "max_steps_reached" and 0 < flow.ts[-1] < 12
    assert np.isfinite(flow.risk).all() and np.isfinite(flow.grad_norm).all()
    with pytest.raises(gflow.TrajectoryError, match="budget.*`max_steps`"):
        solve(risk, net, 12.0, max_steps=25)


def test_a_full_log_ends_no_flow():
    risk, net = small_problem()
    whole, first = solve(risk, net, 12.0), solve(risk, net, 12.0, max_kinks=3)
    assert first.succeeded and len(first.kinks) == 3 < len(whole.kinks)
    assert first.stats["num_kinks"] == len(whole.kinks)
    np.testing.assert_array_equal(first.kinks.time, whole.kinks.time[:3])
    np.testing.assert_array_equal(first.risk, whole.risk)
    assert f"the first 3 of {len(whole.kinks)} kinks" in str(first.summary())


def test_stop_on_the_minimal_norm_subgradient():
    # O2 ends at a kink, where the subgradient of least norm is zero.
    risk, net = data((1, -1), (-1, -1)), single_unit(1.0)
    flow = solve(risk, net, 1e3, trainable=("w",), stop=gflow.Stop(grad_norm=1e-6))
    assert flow.result_name == "reached_grad_norm"
    assert flow.ts[-1] == pytest.approx(np.log(2), abs=1e-8)


def test_smooth_activations_pay_nothing(wave, smooth_net):
    flow = gflow.solve_flow(wave, smooth_net, t1=1.0)
    assert flow.kinks is None


def test_the_log_survives_storage(tmp_path):
    from gflow.app.run_directory import load_trajectory, save_trajectory

    risk, net = small_problem()
    flow = gflow.solve_flow(risk, net, t1=12.0, rtol=1e-6)
    save_trajectory(flow, tmp_path / "flow.zarr")
    again = load_trajectory(tmp_path / "flow.zarr")
    assert kinks(again) == kinks(flow)
    np.testing.assert_array_equal(again.kinks.time, flow.kinks.time)
    assert "crossings" in repr(flow)


def test_a_start_on_a_repelling_kink_is_said_to_be_one():
    # z = 2 − 2x is 0 at x = 1, where N is below the target: an active unit would be pulled up. The
    # datum at x = ½, where N is above, moves the kink away from the other side, too.
    risk = gflow.EmpiricalRisk(jnp.array([[1.0], [0.5]]), jnp.array([3.0, -1.0]))
    net = gflow.ShallowNet.from_arrays([[-2.0]], [2.0], [1.0], None)
    flow = gflow.solve_flow(risk, net, t1=0.1, trainable=("w", "b"))
    assert flow.succeeded and flow.result_name == "repelled"
    assert "inactive side" in flow.message
    assert float(flow.final.preactivations(risk.x[0])[0]) < 0
    raised = eqx.tree_at(lambda n: n.b, net, net.b + 1e-9)
    other = gflow.solve_flow(risk, raised, t1=0.1, trainable=("w", "b"))
    assert other.result_name == "successful"
    assert float(other.final.preactivations(risk.x[0])[0]) > 0


def test_ignored_kinks_say_how_many_steps_were_rejected():
    risk = sine(40)
    net = gflow.ShallowNet(1, 20, key=jax.random.key(0))
    with pytest.warns(UserWarning, match=r"of .* steps were rejected, on .*kinks=\"locate\""):
        flow = gflow.solve_flow(risk, net, t1=20.0, rtol=1e-7, kinks="ignore")
    assert f"{int(flow.stats['num_rejected_steps']):,} of" in flow.summary()["kinks"]
    located = gflow.solve_flow(risk, net, t1=20.0, rtol=1e-7)
    assert located.advice() is None and "crossings" in located.summary()["kinks"]


def test_small_starts_are_followed_to_the_relative_tolerance():
    # Units of size 1e-8 that grow to 1: kinks are located by the units' own sizes, and errors of
    # the start grow with the units.
    risk = sine(40)
    options = {"init": "standard_normal", "scale": 1e-8}
    net = gflow.ShallowNet(1, 20, key=jax.random.key(1), **options)
    flow = gflow.solve_flow(risk, net, t1=60.0)
    other = gflow.solve_flow(risk, net, t1=60.0, rtol=1e-10)
    assert flow.kinks.counts() == other.kinks.counts()
    # Atol is the rounding of the field, 2e-16, so 2e-8 of the start, and half the units matter.
    assert gflow.compare(flow, other).largest < 3e-6


def test_slides_of_biases_alone_end():
    # One row holds a unit whose bias alone is trained, and yet the unit is not degenerate.
    rng = np.random.default_rng(13)
    x, y = np.linspace(-1, 1, 6)[:, None], 2 * rng.normal(size=6)
    net = gflow.ShallowNet.from_arrays(
        rng.normal(size=(2, 1)), rng.normal(size=2), rng.normal(size=2), 0.0
    )
    risk, trainable = gflow.EmpiricalRisk(x, y), ("b",)
    flow = gflow.solve_flow(risk, net, t1=20.0, trainable=trainable)
    assert flow.kinks.counts()["slide ends to active"] == 1
    clarke = gflow.clarke_gradient(risk, flow.final, trainable=trainable).b
    assert float(flow.grad_norm[-1]) == pytest.approx(float(jnp.linalg.norm(clarke)), rel=1e-6)


@pytest.mark.parametrize("kinks", ["locate", "ignore"])
@pytest.mark.parametrize("step_size", [2.0, 20.0])
def test_fixed_steps_that_are_too_long_say_so(kinks, step_size):
    net = gflow.ShallowNet(1, 4, key=jax.random.key(0))
    options = {"t1": 40.0, "step_size": step_size, "kinks": kinks, "throw": False}
    options |= {"max_steps": 500}  # which kinks without end would spend, however many
    with pytest.warns(UserWarning, match=f"steps of size {step_size:g} are too long: step_size"):
        gflow.solve_flow(sine(20), net, **options)


def test_fixed_steps_that_are_short_enough_say_nothing(recwarn):
    net = gflow.ShallowNet(1, 4, key=jax.random.key(0))
    gflow.solve_flow(sine(20), net, t1=4.0, step_size=0.05)
    assert not recwarn


# Rows, targets, and what the unit does from the start b = −0.1 to either side of it.
BRANCHING_STARTS = [
    # Both sides lead away from the kink of the first row.
    (([0.1], [1.0]), [-2.0, 0.5]),
    # Inactive, the unit rests; active, it leaves.
    (([0.1], [-1.0]), [-1.0, 0.0]),
]


@pytest.mark.parametrize(("rows", "targets"), BRANCHING_STARTS)
@pytest.mark.parametrize("toward", [-1.0, None, 1.0])
def test_a_start_within_rounding_of_a_branching_is_said_to_be_one(rows, targets, toward):
    risk = gflow.EmpiricalRisk(np.array(rows), np.array(targets))
    bias = -0.1 if toward is None else np.nextafter(-0.1, toward)
    flow = gflow.solve_flow(
        risk, gflow.ShallowNet.from_arrays([[1.0]], [bias], [-1.0], 0.0), t1=1.0
    )
    assert flow.result_name == "repelled"
    away = gflow.ShallowNet.from_arrays([[1.0]], [-0.1 + 1e-9], [-1.0], 0.0)
    assert gflow.solve_flow(risk, away, t1=1.0).result_name == "successful"


def test_a_kink_that_turns_repelling_is_said_to():
    # On the kink of x = 0 the slide needs v > 0, and the other rows bring v down through 0.
    risk = gflow.EmpiricalRisk(jnp.array([[0.0], [1.0], [2.0]]), jnp.array([-2.0, 2.2, -1.5]))
    net = gflow.ShallowNet.from_arrays([[1.0]], [0.001], [0.1], None)
    flow = gflow.solve_flow(risk, net, t1=3.0)
    assert flow.kinks.names[:2] == ["slide begins", "slide branches"]
    ((time, _, unit),) = flow.kinks.branchings()
    assert time == float(flow.kinks.time[1]) and unit == 0
    assert f"unit 0 at t = {time:.6g}" in repr(flow)
    assert flow.kinks.sliding_at(3.0) == set()
    v = np.interp(float(flow.kinks.time[1]), flow.ts, flow.params.v[:, 0])
    assert abs(v) < 1e-3 and flow.result_name == "branched"
    assert "descent may take the other" in flow.message


def test_implicit_solvers_take_the_tolerances_of_the_steps():
    risk, net = small_problem()
    flow = gflow.solve_flow(risk, net, t1=5.0, rtol=1e-8, solver=diffrax.Kvaerno5())
    exact = gflow.solve_flow(risk, net, t1=5.0, rtol=1e-10)
    assert flow.kinks.counts() == exact.kinks.counts()
    assert gflow.compare(flow, exact).largest < 1e-7


def test_derivatives_of_located_flows_are_refused():
    risk, net = small_problem()
    end = lambda net: gflow.solve_flow(risk, net, t1=0.1).risk[-1]
    with pytest.raises(TypeError, match="cannot be differentiated"):
        eqx.filter_grad(end)(net)


def test_budgets_are_exact_and_all_steps_are_counted():
    risk, net = small_problem()
    flow = gflow.solve_flow(risk, net, t1=12.0)
    met, steps = len(flow.kinks), int(flow.stats["num_steps"])
    assert flow.stats["num_shortened_steps"] > 0
    assert gflow.solve_flow(risk, net, t1=12.0, max_kinks=met).succeeded
    assert gflow.solve_flow(risk, net, t1=12.0, max_steps=steps).succeeded
    short = gflow.solve_flow(risk, net, t1=12.0, max_steps=steps - 1, throw=False)
    assert short.result_name == "max_steps_reached"


# ---- units that reach zero ------------------------------------------------------------------


def test_single_weights_leave_zero_when_the_clarke_gradient_does():
    # Without biases all kinks of one input are at w = 0, where unit 1 waits from 0.1 to 3.
    rng = np.random.default_rng(3)
    x = rng.normal(size=(7, 1))
    x[1], x[3] = -x[0], -x[2]
    risk = gflow.EmpiricalRisk(x, 2 * rng.normal(size=7), rng.uniform(0.5, 1.5, 7) / 7)
    net = gflow.ShallowNet.from_arrays(
        rng.normal(size=(4, 1)), None, rng.normal(size=4), None, activation="leaky_relu(-0.5)"
    )
    flow = gflow.solve_flow(risk, net, t1=6.0, ts=np.linspace(0.5, 6, 12), trainable=("w",))
    held = np.abs(flow.params.w[:, 1, 0]) < 1e-12
    assert held[2] and not held[-1]
    for k, speed in enumerate(np.asarray(flow.grad_norm)):
        clarke = gflow.clarke_gradient(risk, flow[k], trainable=("w",)).w
        assert speed == pytest.approx(float(jnp.linalg.norm(clarke)), rel=1e-8)
    descent = gflow.descend(risk, net, step_size=1e-4, num_steps=60_000, record=2, trainable=("w",))
    assert distance(descent.final, flow.final) < 1e-3


def test_a_unit_that_slides_to_zero_stays_there():
    # It comes along the kink of one datum; its field on the far side of zero would take it on.
    rng = np.random.default_rng(38)
    x, y = rng.normal(size=(6, 1)), 2 * rng.normal(size=6)
    risk = gflow.EmpiricalRisk(x, y, rng.uniform(0.5, 1.5, 6) / 6)
    net = gflow.ShallowNet.from_arrays(
        rng.normal(size=(4, 1)), rng.normal(size=4), rng.normal(size=4), rng.normal()
    )
    flow = gflow.solve_flow(risk, net, t1=10.0, trainable=("w", "b"))
    (unit,) = (u for name, u, _ in kinks(flow) if name == "unit degenerates")
    assert np.hypot(flow.final.w[unit, 0], flow.final.b[unit]) < 1e-11
    descent = gflow.descend(
        risk, net, step_size=1e-4, num_steps=100_000, record=2, trainable=("w", "b")
    )
    assert distance(descent.final, flow.final) < 1e-2


def test_kinks_at_zero_that_lead_to_one_another_end():
    rng = np.random.default_rng(34)
    x = rng.normal(size=(8, 2))
    x[1], x[2], x[4], x[5] = -x[0], 2 * x[0], -3 * x[3], 0.5 * x[3]
    risk = gflow.EmpiricalRisk(x, 2 * rng.normal(size=(8, 2)), rng.uniform(0.5, 1.5, 8) / 8)
    net = gflow.ShallowNet.from_arrays(rng.normal(size=(4, 2)), None, rng.normal(size=(4, 2)), None)
    flow = gflow.solve_flow(risk, net, t1=5.0, trainable=("w",), max_kinks=300)
    zero = [row for name, unit, row in kinks(flow) if (name, unit) == ("unit degenerates", 2)]
    assert flow.succeeded and zero and np.abs(flow.final.w[2]).max() < 1e-12
