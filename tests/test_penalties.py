"""Penalties beside the risk: through kinks, in all that reads a risk."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.linalg import expm

import gflow
import gflow.flow.solve
from gflow import PenalisedRisk, piecewise
from gflow.flow.checkpoint import fingerprint
from gflow.nonsmooth.deep.risk import DeepPatternRisk
from gflow.nonsmooth.pairs import Pair
from gflow.nonsmooth.recognition import padded, pattern_risk_of
from gflow.nonsmooth.shallow.risk import ShallowPatternRisk
from gflow.parameters import UNSCALED, TimeScales, flat, split_trainable
from gflow.risks import Penalty, without_penalty
from tests.helpers.kink_problems import data, drawn, kinks, single_unit, small_problem

DECAY = 0.02
NET = gflow.ShallowNet.from_arrays


def curved(net) -> jax.Array:
    """A smooth penalty that couples all parameters."""
    theta = jnp.concatenate([a.ravel() for a in jax.tree.leaves(eqx.filter(net, eqx.is_array))])
    return 0.01 * jnp.sum(theta**4) + 0.02 * jnp.sin(jnp.sum(theta))


def absolute(net) -> jax.Array:
    return 0.1 * jnp.sum(jnp.abs(net.w))


# ---- closed forms -------------------------------------------------------------------------------


@pytest.mark.parametrize("activation", ["identity", "relu"])
def test_the_output_layer_follows_ridge_regression(activation):
    """θ' = −A (θ − θ*) with A = 2 ΦᵀΦ/n + λ; all units are active."""
    rng = np.random.default_rng(0)
    w, x, y = rng.uniform(0.5, 1.5, (3, 2)), rng.uniform(0.1, 1, (9, 2)), rng.normal(size=9)
    net = NET(w, None, [1.0, -1.0, 0.5], 0.3, activation=activation)
    risk = PenalisedRisk(gflow.EmpiricalRisk(x, y), weight_decay=0.3)
    flow = gflow.solve_flow(risk, net, t1=4.0, ts=[0.5, 4.0], trainable=("v", "c"))
    features = np.column_stack([x @ w.T, np.ones(9)])
    a = 2 * features.T @ features / 9 + 0.3 * np.eye(4)
    ridge = np.linalg.solve(a, 2 * features.T @ y / 9)
    for k, t in enumerate((0.5, 4.0)):
        exact = ridge + expm(-a * t) @ (np.array([1.0, -1.0, 0.5, 0.3]) - ridge)
        np.testing.assert_allclose([*flow[k].v, flow[k].c], exact, atol=1e-7)
    found = gflow.refine(risk, flow.final, radius=1.0, trainable=("v", "c"))
    np.testing.assert_allclose([*found.net.v, found.net.c], ridge, rtol=1e-12)
    np.testing.assert_allclose(found.spectrum.eigenvalues, np.linalg.eigvalsh(a), rtol=1e-12)


def test_one_unit_passes_its_kink_when_it_should():
    """relu(w x), rows (1, 2) and (−1, −1): w' = 1 − (1 + λ) w below 0, and 2 − (1 + λ) w above."""
    rate = 1 + DECAY
    risk = PenalisedRisk(data((1, 2), (-1, -1)), weight_decay=DECAY)
    ts = np.array([0.2, 2.0])
    flow = gflow.solve_flow(risk, single_unit(-0.5), t1=2.0, ts=ts, trainable=("w",), rtol=1e-10)
    time = np.log(1 + 0.5 * rate) / rate
    assert sorted(kinks(flow)) == [("cross to active", 0, 0), ("cross to inactive", 0, 1)]
    np.testing.assert_allclose(flow.kinks.time, time, atol=1e-9)
    before = 1 / rate - (0.5 + 1 / rate) * np.exp(-rate * ts[0])
    after = 2 / rate * (1 - np.exp(-rate * (ts[1] - time)))
    np.testing.assert_allclose(flow.params.w[:, 0, 0], [before, after], atol=1e-9)


def test_dead_units_decay():
    net = NET([[1.0], [-2.0]], [0.5, -4.0], [1.0, 3.0], 0.0)
    risk = PenalisedRisk(data((1, 2), (0.5, 0)), weight_decay=DECAY)
    flow = gflow.solve_flow(risk, net, t1=40.0, rtol=1e-10)
    left = np.exp(-DECAY * np.asarray(flow.ts))
    np.testing.assert_allclose(flow.params.b[:, 1], -4.0 * left, rtol=1e-7)
    np.testing.assert_allclose(flow.params.v[:, 1], 3.0 * left, rtol=1e-7)


@pytest.mark.slow
def test_collapse_on_a_true_risk_is_told_from_decay():
    """With v = c = 1 fixed and f = 0, b' = −2 (b + 1) − λ b until b = 0; a dead unit is never 0."""
    decay = 20.0
    risk = gflow.PopulationRisk(piecewise.constant(0.0), piecewise.uniform())
    net = NET([[0.0], [0.0]], [0.5, -1.0], [1.0, 1.0], 1.0)
    flow = gflow.solve_flow(
        PenalisedRisk(risk, weight_decay=decay), net, t1=2.0, trainable=("w", "b")
    )
    rest = 2 / (2 + decay)
    b = np.maximum((0.5 + rest) * np.exp(-(2 + decay) * np.asarray(flow.ts)) - rest, 0.0)
    np.testing.assert_allclose(flow.params.b[:, 0], b, atol=1e-7)
    assert flow.final.b[0] == 0 and flow.stats["num_collapsed_units"] == 1
    np.testing.assert_allclose(flow.params.b[:, 1], -np.exp(-decay * flow.ts), atol=1e-7)
    solve = lambda net: gflow.solve_flow(PenalisedRisk(risk, curved), net, t1=2.0).stats
    assert "num_collapsed_units" not in jax.eval_shape(solve, net)


# ---- identities through kinks -------------------------------------------------------------------


@pytest.fixture(scope="module")
def decaying():
    """Crossings and slides with weight decay."""
    risk, net = small_problem()
    risk = PenalisedRisk(risk, weight_decay=DECAY)
    return risk, net, gflow.solve_flow(risk, net, t1=30.0, rtol=1e-9)


def test_energy_and_decaying_balance_hold_through_kinks_and_slides(decaying):
    """‖w‖² + b² − v² = e^(−2λt) times its start, exactly."""
    risk, net, flow = decaying
    counts = flow.kinks.counts()
    assert counts["cross to inactive"] > 5 and counts["slide begins"] > 3
    assert np.abs(flow.diagnostics.energy).max() < 1e-8
    left = np.exp(-2 * DECAY * np.asarray(flow.ts))
    balance = np.stack([gflow.balance(n) for n in flow])
    np.testing.assert_allclose(balance, left[:, None] * gflow.balance(net)[None], atol=1e-9)
    np.testing.assert_allclose(
        balance - left[:, None] * gflow.balance(net)[None], flow.diagnostics.balance, atol=1e-14
    )
    np.testing.assert_allclose(flow.risk[-1], risk(flow.final), rtol=1e-12)


def test_the_clarke_element_is_the_field_of_the_slides(decaying):
    risk, _, flow = decaying
    assert flow.kinks.sliding_at(30.0)
    element = flat(gflow.clarke_gradient(risk, flow.final))
    np.testing.assert_allclose(np.linalg.norm(element), flow.grad_norm[-1], rtol=1e-6)
    assert np.linalg.norm(flat(gflow.generalized_gradient(risk, flow.final))) > 0.01


@pytest.mark.slow
def test_the_flow_leads_to_a_critical_point_on_kinks(decaying):
    risk, _, flow = decaying
    later = gflow.solve_flow(risk, flow.final, t0=30.0, t1=3000.0)
    point = gflow.refine(risk, later.final)
    assert point.is_minimum and point.active_kinks and point.distance < 1e-4
    np.testing.assert_allclose(point.risk, risk(point.net), rtol=1e-13)
    assert np.linalg.norm(flat(gflow.clarke_gradient(risk, point.net))) < 1e-10


@pytest.mark.slow
def test_any_smooth_penalty_in_closed_form_and_as_any_network(monkeypatch):
    risk, net = small_problem()
    risk = PenalisedRisk(risk, curved, weight_decay=0.01)
    closed = gflow.solve_flow(risk, net, t1=12.0, rtol=1e-9, dense=True)
    monkeypatch.setattr(gflow.flow.solve, "pattern_risk_of", DeepPatternRisk.of)
    found = gflow.solve_flow(risk, net, t1=12.0, rtol=1e-9, kinks="all")
    assert len(closed.kinks) > 10 and kinks(found) == kinks(closed)
    assert any(kind == "slide begins" for kind, _, _ in kinks(closed))
    np.testing.assert_allclose(found.kinks.time, closed.kinks.time, rtol=1e-6)
    for a, b in zip(jax.tree.leaves(closed.params), jax.tree.leaves(found.params)):
        np.testing.assert_allclose(a, b, atol=1e-7)
    assert np.abs(closed.diagnostics.energy).max() < 1e-8 and closed.diagnostics.balance is None
    middle = closed(7.3)
    np.testing.assert_allclose(risk(middle), np.interp(7.3, closed.ts, closed.risk), rtol=1e-2)


@pytest.mark.slow
def test_deep_networks_decay_through_their_kinks():
    rng = np.random.default_rng(1)
    risk = gflow.EmpiricalRisk(rng.normal(size=(16, 2)), rng.normal(size=16))
    net = eqx.nn.MLP(2, "scalar", 6, 2, key=jax.random.key(1))
    flow = gflow.solve_flow(PenalisedRisk(risk, weight_decay=DECAY), net, t1=8.0, rtol=1e-9)
    counts = flow.kinks.counts()
    assert counts["cross to active"] > 1 and counts["slide begins"] > 1
    assert np.abs(flow.diagnostics.energy).max() < 1e-8
    left = np.exp(-2 * DECAY * 8.0)
    np.testing.assert_allclose(gflow.balance(flow.final), left * gflow.balance(net), atol=1e-9)
    assert np.abs(flow.diagnostics.balance).max() < 1e-9


# ---- field and Jacobian -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "scales"),
    [
        ({"activation": "leaky_relu(0.2)", "out_size": 2}, {"v": 0.3, "w": 2.0}),
        ({"trainable": ("b", "v"), "output_scale": 0.5}, None),
    ],
)
def test_field_and_jacobian_of_a_pattern(options, scales):
    """Without slides minus the gradient; with them the Jacobian along the kinks, by differences."""
    plain, net, trainable = drawn(**options)
    risk = PenalisedRisk(plain, curved)
    trained, frozen = split_trainable(net, trainable)
    known = ShallowPatternRisk.of(risk, trained, frozen, TimeScales.of(scales, net, trained))
    assert known is not None
    theta = known.time_scales.phi(flat(trained))
    pattern, y = known.start(theta), jnp.append(theta, 0.0)
    gradient = known.time_scales.of_gradient(gflow.generalized_gradient(risk, net, trainable))
    field = known.field(0.0, y, pattern)
    np.testing.assert_allclose(field[:-1], -flat(gradient), atol=1e-13)
    np.testing.assert_allclose(known.evaluate(theta, pattern).value, risk(net), rtol=1e-13)

    sliding = pattern.sliding.at[1, 3].set(True)
    slots = pattern.slots.at[1, 0].set(3), pattern.used.at[1, 0].set(True)
    pattern = eqx.tree_at(lambda p: (p.sliding, p.slots, p.used), pattern, (sliding, *slots))
    pattern = pattern.projected(jnp.asarray(1), known.normals, known.whole)
    now = known.evaluate(theta, pattern)
    y = y.at[:-1].set(known.put_on_kinks(theta, pattern, now, jnp.asarray(1)))
    direction = jnp.append(jnp.sin(jnp.arange(len(theta), dtype=float)), 0.0)
    free = direction.at[:-1].set(_along(known, pattern, direction[:-1]))
    ahead, behind = (known.field(0.0, y + h * free, pattern) for h in (1e-6, -1e-6))
    product = known.jacobian(0.0, y, pattern) @ free
    np.testing.assert_allclose(product, (ahead - behind) / 2e-6, atol=1e-7)


def _along(known, pattern, direction):
    u = known.by_units(jnp.append(direction, 0.0))
    return direction + known.moved(jnp.sum(pattern.projector * u[:, None, :], axis=-1) - u)


def test_the_field_of_any_network_has_the_penalty():
    rng = np.random.default_rng(1)
    risk = PenalisedRisk(gflow.EmpiricalRisk(rng.normal(size=(6, 2)), rng.normal(size=6)), curved)
    net = eqx.nn.MLP(2, "scalar", 4, 2, key=jax.random.key(1))
    trained, frozen = split_trainable(net)
    known = pattern_risk_of(risk, trained, frozen, UNSCALED)
    assert isinstance(known, DeepPatternRisk)
    theta = flat(trained)
    found = known.evaluate(theta, known.start(theta))
    np.testing.assert_allclose(found.value, risk(net), rtol=1e-13)
    gradient = flat(gflow.generalized_gradient(risk, net))
    np.testing.assert_allclose(found.field[:-1], -gradient, atol=1e-14)
    pattern = known.start(theta)
    alone = jnp.zeros_like(pattern.active).at[5, 3].set(True)
    slide = pattern.with_slide(Pair(jnp.asarray(5), jnp.asarray(3)), alone, alone.astype(float))
    normal, _ = known.normal(theta, slide, jnp.asarray(5), jnp.asarray(3))
    assert abs(normal @ known.evaluate(theta, slide).field[:-1]) < 1e-14


# ---- shapes, programs, derivatives --------------------------------------------------------------


def test_padded_shapes_change_nothing_under_weight_decay_and_are_kept_under_other_penalties():
    plain, net, _ = drawn(use_bias=False, output_scale=0.5)
    trained, frozen = split_trainable(net)
    risk = PenalisedRisk(plain, weight_decay=DECAY)
    known = pattern_risk_of(risk, trained, frozen, UNSCALED)
    wide = padded(risk, known)
    assert wide is not None
    assert np.isclose(wide.risk(eqx.combine(*wide.parts)), risk(net), rtol=1e-14)
    theta, wide_theta = flat(trained), flat(wide.parts[0])
    added = np.asarray(wide.pattern_risk.padding)
    field = wide.pattern_risk.field(
        0.0, jnp.append(wide_theta, 0.0), wide.pattern_risk.start(wide_theta)
    )
    own = known.field(0.0, jnp.append(theta, 0.0), known.start(theta))
    np.testing.assert_allclose(field[np.append(~added, True)], own, rtol=1e-12, atol=1e-15)
    assert not np.asarray(field[:-1])[added].any()
    risk = PenalisedRisk(plain, curved)
    assert padded(risk, pattern_risk_of(risk, trained, frozen, UNSCALED)) is None


def test_another_weight_decay_compiles_nothing(compilations):
    risk, net = small_problem()
    solve = lambda decay: gflow.solve_flow(
        PenalisedRisk(risk, weight_decay=decay), net, t1=0.2, ts=[0.1, 0.2], rtol=1e-4
    )
    first = solve(0.1)
    with compilations() as names:
        second = solve(0.2)
    assert not names and not np.allclose(first.final.w, second.final.w)


@pytest.mark.slow
def test_batches_and_derivatives_over_weight_decays():
    risk = gflow.EmpiricalRisk([[1.0], [0.5]], [1.0, -1.0])
    smooth = gflow.ShallowNet(1, 8, key=jax.random.key(4), activation="tanh")
    end = lambda decay: gflow.solve_flow(
        PenalisedRisk(risk, weight_decay=decay), smooth, t1=1.0, ts=[1.0], rtol=1e-9
    ).risk[-1]
    decays = jnp.array([0.1, 0.1 + 1e-4, 0.1 - 1e-4])
    middle, ahead, behind = jax.jit(jax.vmap(end))(decays)
    np.testing.assert_allclose(middle, end(0.1), rtol=1e-9)
    np.testing.assert_allclose(jax.grad(end)(jnp.asarray(0.1)), (ahead - behind) / 2e-4, rtol=1e-5)


def test_minibatches_of_all_rows_give_the_risk():
    plain, net, _ = drawn()
    risk = PenalisedRisk(plain, curved, weight_decay=DECAY)
    rows = jnp.arange(risk.num_data)
    np.testing.assert_allclose(risk.minibatch(net, rows), risk(net), rtol=1e-14)
    true = PenalisedRisk(gflow.PopulationRisk(piecewise.tent(), piecewise.uniform()))
    with pytest.raises(gflow.ArgumentError, match="PenalisedRisk"):
        gflow.descend(true, net, step_size=0.1, num_steps=2, batch_size=2, key=jax.random.key(0))


def test_descent_decays_by_its_steps():
    """Without data, θ_k = (1 − λh)^k θ₀, and the penalty is the risk."""
    net = drawn().net
    run = gflow.descend(
        PenalisedRisk(lambda net: jnp.zeros(()), weight_decay=0.5), net, step_size=0.1, num_steps=20
    )
    np.testing.assert_allclose(run.final.w, 0.95**20 * net.w, rtol=1e-12)
    size = sum(jnp.sum(a**2) for a in jax.tree.leaves(eqx.filter(net, eqx.is_array)))
    np.testing.assert_allclose(run.risk[0], 0.25 * size, rtol=1e-12)


# ---- ends ---------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_flow_that_ends_at_zero_arrives_there_and_branches_at_no_rounding():
    risk, net = small_problem()
    risk = PenalisedRisk(risk, weight_decay=1.0)
    flow = gflow.solve_flow(risk, net, t1=1e4)
    assert flow.result == gflow.RESULTS.successful
    assert not flow.kinks.branchings() and np.abs(flow.final.w).max() < 1e-12
    stopped = gflow.solve_flow(risk, net, t1=1e4, stop=gflow.Stop(grad_norm=1e-6))
    assert stopped.result_name == "reached_grad_norm" and stopped.ts[-1] < 40


@pytest.mark.slow
def test_what_has_decayed_far_below_the_tolerance_has_no_kinks():
    """The stiff solver takes all parameters of a deep network to 1e-17, with errors of any sign."""
    net = eqx.nn.MLP(1, "scalar", 6, 2, key=jax.random.key(1))
    risk = PenalisedRisk(small_problem()[0], weight_decay=1.0)
    flow = gflow.solve_flow(risk, net, t1=1e4, ts=[1e4], max_steps=1000)
    assert flow.switches and flow.kinks.time[-1] < 100
    size = max(np.abs(a).max() for a in jax.tree.leaves(eqx.filter(flow.final, eqx.is_array)))
    assert size < 1e-12 and flow.stats["num_shortened_steps"] < 50


def test_units_at_zero_stay_unless_the_penalty_moves_them():
    """Away from (1, 0.5) nothing pulls, and the row is inactive on one side and fitted there."""
    net = NET([[0.0, 0.0]], None, [1.0], None)
    plain = data((-1, -1, 0), (-1, 0, 0))
    shifted = lambda net: jnp.sum((net.w - jnp.array([[1.0, 0.5]])) ** 2) / 2
    flow = gflow.solve_flow(PenalisedRisk(plain, shifted), net, t1=2.0, ts=[2.0], trainable=("w",))
    np.testing.assert_allclose(flow.final.w[0], (1 - np.exp(-2)) * np.array([1, 0.5]), atol=1e-7)
    still = gflow.solve_flow(PenalisedRisk(plain, weight_decay=1.0), net, t1=2.0, ts=[2.0])
    assert not still.final.w.any()
    at_zero = Penalty((shifted,), jnp.asarray(0.0)).moves_zero_units(net)
    assert at_zero and Penalty((), jnp.asarray(1.0)).moves_zero_units(net) is None


@pytest.mark.slow
def test_a_kink_of_the_penalty_is_named():
    plain, net, _ = drawn()
    with pytest.warns(UserWarning, match="penalty is not differentiable"):
        gflow.solve_flow(PenalisedRisk(plain, absolute), net, t1=100.0, max_steps=3000, throw=False)


# ---- what it is made of -------------------------------------------------------------------------


def test_penalties_of_penalties_add_up():
    plain, net, _ = drawn()
    one = PenalisedRisk(plain, curved, weight_decay=0.1)
    two = PenalisedRisk(one, lambda net: jnp.sum(net.v), weight_decay=0.2)
    assert two.risk is plain and without_penalty(two) is plain
    size = sum(jnp.sum(a**2) for a in jax.tree.leaves(eqx.filter(net, eqx.is_array)))
    wanted = plain(net) + curved(net) + jnp.sum(net.v) + 0.15 * size
    np.testing.assert_allclose(two(net), wanted, rtol=1e-14)
    np.testing.assert_allclose(two.penalty(net), two(net) - plain(net), rtol=1e-12)


def test_penalties_of_one_name_are_told_apart():
    plain, net, _ = drawn()
    made = lambda function: fingerprint(PenalisedRisk(plain, function), net)
    powers = [lambda net, p=p: jnp.sum(jnp.abs(net.w) ** p) for p in (2, 4)]
    others = [lambda net: jnp.sum(net.w), lambda net: jnp.sum(net.v)]
    marks = {made(function) for function in (*others, *powers)}
    assert len(marks) == 4 and made(others[0]) == made(others[0])


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"weight_decay": -1.0}, "weight_decay"),
        ({"weight_decay": np.nan}, "weight_decay"),
        ({"penalty": 3.0}, "penalty"),
        ({"penalty": lambda net: net.b}, "penalty"),
        ({"penalty": lambda net: "no number"}, "penalty"),
    ],
)
def test_what_is_no_penalty_is_named(options, named, unchecked_annotations):
    plain, net, _ = drawn()
    with pytest.raises(gflow.ArgumentError, match=f"`{named}`"):
        gflow.solve_flow(PenalisedRisk(plain, **options), net, t1=1.0)


def test_certificates_of_the_data_are_none_of_the_penalised_risk():
    plain, net, _ = drawn()
    risk = PenalisedRisk(plain, weight_decay=DECAY)
    with pytest.raises(gflow.ArgumentError, match=r"`risk.risk` is the one without"):
        gflow.tangent_kernel(risk, net)
    assert (
        "no bounds are known for a PenalisedRisk"
        in gflow.chatterjee(risk, net, 1.0, starts=0).reason
    )
