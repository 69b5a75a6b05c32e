"""Flows through the kinks of networks of any depth."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gflow
import gflow.nonsmooth.deep.risk as deep_risk
from gflow.nonsmooth.deep.risk import DeepPatternRisk
from gflow.nonsmooth.pairs import Pair
from gflow.parameters import flat, split_trainable
from tests.helpers.deep_networks import as_vector, deep_reference, logged, matrices_of
from tests.helpers.kink_problems import small_problem

KEY = jax.random.key(0)


def table(rows: int, columns: int, seed: int, *, mirrored: int = 0) -> gflow.EmpiricalRisk:
    """Random rows and targets, some rows also with the opposite sign."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(rows, columns))
    x = np.concatenate([x, -x[:mirrored]])
    return gflow.EmpiricalRisk(x, rng.normal(size=len(x)))


def plain_mlp(seed: int = 1) -> eqx.nn.MLP:
    return eqx.nn.MLP(2, "scalar", 6, 2, key=jax.random.key(seed))


def drift(flow: gflow.Trajectory) -> float:
    return float(np.max(np.abs(np.asarray(flow.diagnostics.energy))))


# ---- trusted trajectories -----------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("deep_1-12-12-1_n40", "mlp"),
        ("deep_1-12-12-1_n40", "own_network"),
        ("deep_2-6-5-1_n20", "own_network"),
    ],
)
def test_trusted_trajectories(name, kind):
    """The reference integrator agrees with itself to 2e-11 at two tolerances."""
    known = deep_reference(name)
    net = getattr(known, kind)()
    flow = gflow.solve_flow(known.risk, net, t1=known.ts[-1], ts=known.ts, rtol=1e-10)
    for k, params in enumerate(known.params, start=1):
        assert np.linalg.norm(as_vector(flow[k]) - params) < 1e-7 * np.linalg.norm(params)
    met = logged(flow)
    assert len(met) == len(known.kinks)
    for one, other in zip(met, known.kinks):
        assert one.kind.startswith(other.kind) and one[2:] == other[2:]
        assert abs(one.time - other.time) < 1e-6
    assert drift(flow) < 1e-9
    balance = np.stack([gflow.balance(pairs_of(net)) for net in flow])
    assert np.abs(balance - balance[0]).max() < 1e-9
    of_flow = flow.diagnostics.balance
    assert (of_flow is None) == (kind == "own_network")
    assert of_flow is None or np.abs(of_flow).max() < 1e-9


def pairs_of(net) -> list:
    return [(m[:, :-1], m[:, -1]) for m in matrices_of(net)]


@pytest.mark.slow
def test_the_solver_keeps_its_order_through_kinks_and_slides_of_all_layers():
    """Tsit5, of order 5, through some fifty crossings and three slides."""
    known = deep_reference("deep_2-6-5-1_n20")
    net, ends = known.own_network(), {"t1": 3.0, "ts": [0.0, 3.0]}
    exact = gflow.solve_flow(known.risk, net, rtol=1e-12, kinks="all", **ends)
    counts = exact.kinks.counts()
    assert counts["cross to active"] + counts["cross to inactive"] > 40
    assert counts["slide begins"] == 3
    solve = lambda steps: gflow.solve_flow(known.risk, net, step_size=3.0 / steps, **ends)
    errors = [np.linalg.norm(as_vector(solve(n).final) - as_vector(exact.final)) for n in (40, 160)]
    assert np.log(errors[0] / errors[1]) / np.log(4) > 4.9


@pytest.mark.slow
def test_descent_converges_to_the_flow_with_order_one():
    """Through some fifty crossings and four slides. Where in a step a kink is met is chance, so
    that distances over step sizes scatter by some 16 %, and a slope over two decades by 0.03."""
    known = deep_reference("deep_2-6-5-1_n20")
    net, ts = known.own_network(), np.arange(257) / 64
    flow = gflow.solve_flow(known.risk, net, t1=4.0, ts=ts, rtol=1e-9)
    each = np.unique(np.round(np.geomspace(4, 400, 18)).astype(int))

    def distance(steps):
        record = range(0, 256 * steps + 1, steps)
        options = {"step_size": 1 / (64 * steps), "num_steps": 256 * steps, "record": record}
        return np.median(gflow.compare(flow, gflow.descend(known.risk, net, **options)).distance)

    distances = [distance(int(steps)) for steps in each]
    slope = -np.polyfit(np.log(each), np.log(distances), 1)[0]
    assert abs(slope - 1) < 0.1


@pytest.fixture(scope="module")
def shallow_and_deep():
    """One hidden layer followed in closed form, and as any other network."""
    risk, net = small_problem()
    with pytest.MonkeyPatch.context() as patch:
        closed = gflow.solve_flow(risk, net, t1=12.0, rtol=1e-9)
        of = lambda risk, trained, frozen, scales: DeepPatternRisk.of(risk, trained, frozen, scales)
        patch.setattr("gflow.flow.solve.pattern_risk_of", of)
        found = gflow.solve_flow(risk, net, t1=12.0, rtol=1e-9)
    return closed, found


def test_one_hidden_layer_in_closed_form_and_as_any_network(shallow_and_deep):
    closed, found = shallow_and_deep
    met, known = logged(found), logged(closed)
    assert [kink[1:] for kink in met] == [kink[1:] for kink in known]
    # Times of kinks follow from the state, whose error is some 1e-9.
    np.testing.assert_allclose([k.time for k in met], [k.time for k in known], rtol=1e-6)
    for a, b in zip(jax.tree.leaves(closed.params), jax.tree.leaves(found.params)):
        np.testing.assert_allclose(a, b, atol=1e-7)
    steps = int(closed.stats["num_steps"])
    assert abs(int(found.stats["num_steps"]) - steps) <= 0.02 * steps


# ---- one network, several questions -------------------------------------------------------------


@pytest.fixture(scope="module")
def mlp_flow():
    """Crossings and slides in two hidden layers."""
    risk, net = table(16, 2, 1), plain_mlp()
    return risk, net, gflow.solve_flow(risk, net, t1=8.0, ts=np.linspace(0, 8, 9), rtol=1e-9)


def test_flows_of_deep_networks_meet_kinks_in_all_layers(mlp_flow):
    _, _, flow = mlp_flow
    met = logged(flow)
    assert {kink.layer for kink in met} == {0, 1}
    assert {kink.layer for kink in met if kink.kind == "slide begins"} == {0, 1}
    assert drift(flow) < 1e-8


def test_consecutive_layers_stay_balanced(mlp_flow):
    """‖W_k,i‖² + b_i² − ‖W_{k+1},·i‖² is conserved, through kinks and along slides."""
    _, _, flow = mlp_flow
    assert np.abs(flow.diagnostics.balance).max() < 1e-9


def test_the_flow_does_not_depend_on_the_room_for_slides(mlp_flow):
    risk, net, flow = mlp_flow
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(deep_risk, "_ROOM", 3)
        grown = gflow.solve_flow(risk, net, t1=8.0, ts=np.linspace(0, 8, 9), rtol=1e-9)
    assert [kink[1:] for kink in logged(grown)] == [kink[1:] for kink in logged(flow)]
    np.testing.assert_allclose(as_vector(grown.final), as_vector(flow.final), atol=1e-9)


def test_too_many_slides_under_jit_are_a_result(mlp_flow):
    risk, net, _ = mlp_flow
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(deep_risk, "_ROOM_IF_TRACED", 1)
        solve = eqx.filter_jit(lambda n: gflow.solve_flow(risk, n, t1=8.0, throw=False))
        flow = solve(net)
    times = np.asarray(flow.ts)
    assert flow.result_name == "too_many_slides" and 0 < times[np.isfinite(times)][-1] < 8


def test_each_kink_located_or_passed_where_it_may_be(mlp_flow):
    risk, net, flow = mlp_flow
    loose = gflow.solve_flow(risk, net, t1=8.0, ts=np.linspace(0, 8, 9), rtol=1e-4)
    assert np.asarray(loose.kinks.passed).any() and not np.asarray(flow.kinks.passed).all()
    size = np.linalg.norm(as_vector(flow.final))
    assert np.linalg.norm(as_vector(loose.final) - as_vector(flow.final)) < 1e-3 * size


# ---- kinks that several pairs share -------------------------------------------------------------


@pytest.mark.parametrize(
    ("seed", "t1"),
    [
        # A slide of rows x and −x, whose pairs part.
        (1, 12.0),
        # Rows on which all units below are inactive: units above have one kink.
        (11, 4.0),
    ],
)
def test_pairs_that_share_a_kink_go_together_and_part(seed, t1):
    key = jax.random.key(seed)
    net = eqx.nn.MLP(2, "scalar", 6, 2, use_bias=False, use_final_bias=False, key=key)
    flow = gflow.solve_flow(table(20, 2, seed, mirrored=8), net, t1=t1, rtol=1e-8, ts=[0.0, t1])
    together = np.diff(np.asarray(flow.kinks.time)) == 0
    assert together.any()
    assert drift(flow) < 1e-7


# ---- derivatives --------------------------------------------------------------------------------


def pattern_risk(net, risk):
    trained, frozen = split_trainable(net)
    known = DeepPatternRisk.of(risk, trained, frozen)
    assert known is not None
    return known, flat(trained)


def test_the_field_is_minus_the_gradient_where_nothing_slides():
    risk, net = table(16, 2, 1), plain_mlp()
    known, theta = pattern_risk(net, risk)
    field = known.field(0.0, jnp.append(theta, 0.0), known.start(theta))
    gradient = flat(gflow.generalized_gradient(risk, net))
    np.testing.assert_allclose(field[:-1], -gradient, atol=1e-14)
    np.testing.assert_allclose(field[-1], gradient @ gradient, rtol=1e-12)


@pytest.mark.parametrize("slides", [(), ((1, 3), (7, 3), (8, 5))])
def test_the_jacobian_is_that_of_the_field(slides):
    """Also on slides, two of them in one row."""
    known, theta = pattern_risk(plain_mlp(), table(16, 2, 1))
    pattern, y = known.start(theta), jnp.append(theta, 0.0)
    for unit, row in slides:
        pair = Pair(jnp.asarray(unit), jnp.asarray(row))
        alone = jnp.zeros_like(pattern.active).at[pair].set(True)
        pattern = pattern.with_slide(pair, alone, alone.astype(theta.dtype))
    direction = jnp.sin(jnp.arange(len(y), dtype=y.dtype))
    ahead = known.field(0.0, y + 1e-6 * direction, pattern)
    behind = known.field(0.0, y - 1e-6 * direction, pattern)
    product = known.jacobian(0.0, y, pattern) @ direction
    np.testing.assert_allclose(product, (ahead - behind) / 2e-6, atol=1e-8)


@pytest.mark.slow
@pytest.mark.parametrize("solver", [gflow.BDF5(), gflow.ROCK4()])
def test_stiff_solvers_go_through_kinks_and_along_slides(mlp_flow, solver):
    risk, net, flow = mlp_flow
    stiff = gflow.solve_flow(risk, net, t1=8.0, ts=np.linspace(0, 8, 9), solver=solver, rtol=1e-8)
    assert [kink[2:] for kink in logged(stiff)] == [kink[2:] for kink in logged(flow)]
    np.testing.assert_allclose(as_vector(stiff.final), as_vector(flow.final), atol=1e-5)


# ---- across kinks that are not looked for -------------------------------------------------------


def test_where_kinks_are_many_the_flow_goes_across_them(mlp_flow):
    """Its error remains of the size of the tolerance, and its log says on which sides pairs end."""
    risk, net, exact = mlp_flow
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("gflow.flow.pace._MANY", 0)
        flow = gflow.solve_flow(risk, net, t1=8.0, ts=[0.0, 4.0, 8.0], rtol=1e-5, atol=1e-7)
    reached = as_vector(exact.final)
    assert 1e-9 < np.linalg.norm(as_vector(flow.final) - reached) < 1e-3 * np.linalg.norm(reached)
    assert drift(flow) < 1e-3

    known, _ = pattern_risk(net, risk)
    sides = lambda net: np.array(known.start(flat(split_trainable(net)[0])).active)
    numbers = enumerate(zip(known.places.layer.tolist(), known.places.unit.tolist()))
    unit_of = {place: number for number, place in numbers}
    now, open_slides = sides(net), set()
    for kink in logged(flow):
        pair = unit_of[kink.layer, kink.unit], kink.datum
        if kink.kind == "slide begins":
            open_slides.add(pair)
            continue
        open_slides -= {pair} if kink.kind.startswith("slide ends") else set()
        now[pair] = kink.kind.endswith(" active")
    settled = np.ones_like(now)
    for pair in open_slides:
        settled[pair] = False
    np.testing.assert_array_equal(now[settled], sides(flow.final)[settled])


def test_with_each_kink_located_none_is_gone_across(mlp_flow):
    risk, net, _ = mlp_flow
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("gflow.flow.pace._MANY", 0)
        flow = gflow.solve_flow(risk, net, t1=1.0, rtol=1e-4, kinks="all")
    assert not np.any(flow.kinks.passed)
