"""Flows of deep networks with every option of `solve_flow`."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gflow
from tests.helpers.deep_networks import as_vector
from tests.helpers.networks_as_vectors import stacked

T1 = 3.0
OPTIONS = {"t1": T1, "rtol": 1e-6}


def table(rows: int = 15, classes: int = 3, seed: int = 0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(rows, 2)), rng.integers(classes, size=rows)


def mlp(seed: int = 1) -> eqx.nn.MLP:
    return eqx.nn.MLP(2, 3, 5, 2, key=jax.random.key(seed))


RISK = gflow.EmpiricalRisk(*table(), loss="cross-entropy")


@pytest.fixture(scope="module")
def flow() -> gflow.Trajectory:
    return gflow.solve_flow(RISK, mlp(), ts=np.linspace(0.0, T1, 7), **OPTIONS)


def states(flow: gflow.Trajectory) -> np.ndarray:
    """θ at all saved times."""
    return np.stack([as_vector(flow[k]) for k in range(len(flow.ts))])


def pairs_met(flow: gflow.Trajectory) -> list[tuple[int, int, int]]:
    assert flow.kinks is not None
    return [(kink.layer, kink.unit, kink.datum) for kink in flow.kinks]


def test_cross_entropy_with_three_classes(flow):
    assert {layer for layer, *_ in pairs_met(flow)} == {0, 1}
    assert np.max(np.abs(flow.diagnostics.energy)) < 1e-5
    closer = gflow.solve_flow(RISK, mlp(), ts=flow.ts, **(OPTIONS | {"rtol": 1e-9}))
    np.testing.assert_allclose(states(flow), states(closer), atol=3e-5)


@pytest.mark.slow
def test_many_flows_at_once_within_jit(flow):
    nets = [mlp(1), mlp(2)]
    solve = eqx.filter_jit(
        eqx.filter_vmap(lambda net: gflow.solve_flow(RISK, net, ts=flow.ts, **OPTIONS))
    )
    both = solve(stacked(nets))
    other = gflow.solve_flow(RISK, nets[1], ts=flow.ts, **OPTIONS)
    for k, alone in enumerate((flow, other)):
        member = both.member(k)
        np.testing.assert_allclose(states(member), states(alone), rtol=1e-9, atol=1e-12)
        assert pairs_met(member) == pairs_met(alone)


def test_a_flow_goes_on_from_its_checkpoint(flow, tmp_path):
    solve = lambda **options: gflow.solve_flow(
        RISK, mlp(), ts=flow.ts, checkpoint=tmp_path, **OPTIONS, **options
    )
    begun = solve(max_steps=20, throw=False)
    assert begun.result_name == "max_steps_reached"
    np.testing.assert_array_equal(states(solve()), states(flow))


@pytest.mark.slow
def test_stop_and_observe(flow):
    stop = gflow.Stop(risk=float(flow.risk[3]))
    error = lambda net: jnp.mean(jnp.argmax(RISK.predictions(net), axis=1) != RISK.y)
    stopped = gflow.solve_flow(
        RISK, mlp(), ts=flow.ts, stop=stop, observe={"error": error}, **OPTIONS
    )
    assert flow.ts[2] < stopped.ts[-1] < flow.ts[4] and stopped.risk[-1] <= stop.risk
    assert stopped.observed["error"].shape == stopped.ts.shape
    np.testing.assert_array_equal(stopped.observed["error"][-1], error(stopped[-1]))


@pytest.mark.slow
def test_time_scales(flow):
    """A common one is another clock; with one of a layer's own slides are in its metric."""
    net = mlp()
    solve = lambda scales, factor, rtol: gflow.solve_flow(
        RISK, net, t1=T1 / factor, ts=flow.ts / factor, rtol=rtol, time_scales=scales
    )
    common = jax.tree.map(lambda _: 2.0, net)
    np.testing.assert_allclose(states(solve(common, 2, 1e-6)), states(flow), atol=1e-5)
    by_layer = eqx.tree_at(lambda net: net.layers[1].weight, common, 0.1)
    loose, close = (solve(by_layer, 1, rtol) for rtol in (1e-6, 1e-9))
    assert np.max(np.abs(close.diagnostics.energy)) < 1e-8
    np.testing.assert_allclose(as_vector(loose[-1]), as_vector(close[-1]), atol=1e-5)


@pytest.mark.slow
def test_weights_are_repeated_rows():
    x, y = table()
    repeats = np.where(np.arange(15) % 5 == 0, 3, 1)
    flows = [
        gflow.solve_flow(gflow.EmpiricalRisk(*data, loss="cross-entropy"), mlp(), **OPTIONS)
        for data in ((x, y, repeats), (np.repeat(x, repeats, 0), np.repeat(y, repeats)))
    ]
    weighted, repeated = flows
    np.testing.assert_allclose(as_vector(weighted[-1]), as_vector(repeated[-1]), atol=1e-5)
    first = np.cumsum(repeats) - repeats
    met = [(layer, unit, first[datum]) for layer, unit, datum in pairs_met(weighted)]
    assert met == pairs_met(repeated)


@pytest.mark.slow
def test_frozen_layers_stay_and_dense_output_is_accurate():
    net = mlp()
    trainable = eqx.tree_at(
        lambda net: (net.layers[0].weight, net.layers[0].bias),
        jax.tree.map(eqx.is_inexact_array, net),
        (False, False),
    )
    flow = gflow.solve_flow(RISK, net, trainable=trainable, dense=True, **OPTIONS)
    np.testing.assert_array_equal(flow[-1].layers[0].weight, net.layers[0].weight)
    assert {layer for layer, *_ in pairs_met(flow)} == {1}
    assert np.max(np.abs(flow.diagnostics.energy)) < 1e-5
    for k in (120, 190):
        between = as_vector(flow(float(flow.ts[k])))
        np.testing.assert_allclose(between, as_vector(flow[k]), atol=1e-6)
