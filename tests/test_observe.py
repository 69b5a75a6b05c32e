"""Quantities observed at the saved times."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import gflow
from tests.helpers.kink_problems import sine, small_problem

OTHER = sine(7)
OBSERVE = {
    "test_risk": OTHER,
    "outputs": lambda net: jax.vmap(net)(jnp.linspace(-1.0, 1.0, 5)[:, None]),
    "width": lambda net: net.v.shape[0],
}


def runs():
    risk, net = small_problem()
    yield gflow.solve_flow(risk, net, t1=2.0, observe=OBSERVE)
    yield gflow.solve_flow(risk, net, t1=2.0, observe=OBSERVE, kinks="ignore", rtol=1e-4)
    yield gflow.descend(
        risk, net, optax.adam, step_size=1e-2, num_steps=50, record=10, observe=OBSERVE
    )


@pytest.mark.parametrize("run", runs(), ids=["located", "smooth", "descent"])
def test_each_saved_network_is_observed(run):
    assert run.observed["outputs"].shape == (len(run), 5)
    for k in (0, len(run) // 2, -1):
        assert float(run.observed["test_risk"][k]) == pytest.approx(float(OTHER(run[k])))
        np.testing.assert_allclose(
            run.observed["outputs"][k], OBSERVE["outputs"](run[k]), rtol=1e-12
        )
    assert (run.observed["width"] == 8).all()


@pytest.mark.slow
def test_observed_quantities_in_tables_and_stores(tmp_path):
    risk, net = small_problem()
    flow = gflow.solve_flow(risk, net, t1=2.0, observe=OBSERVE)
    table = flow.to_xarray()
    assert table["observed_outputs"].dims == ("time", "observed_outputs_axis_0")
    assert "test_risk" in repr(flow)
    gflow.save_trajectory(flow, tmp_path / "flow.zarr")
    stored = gflow.load_trajectory(tmp_path / "flow.zarr")
    assert stored.observed.keys() == flow.observed.keys()
    np.testing.assert_array_equal(stored.observed["outputs"], flow.observed["outputs"])


@pytest.mark.slow
def test_observe_under_vmap_and_where_a_stop_ends_the_flow():
    risk, net = small_problem()
    nets = jax.vmap(lambda key: gflow.ShallowNet(1, 8, key=key))(
        jax.random.split(jax.random.key(0), 3)
    )
    solve = lambda net: gflow.solve_flow(risk, net, t1=1.0, observe={"test_risk": OTHER})
    observed = jax.vmap(lambda net: solve(net).observed["test_risk"])(nets)
    assert observed.shape == (3, 200)
    one = jax.tree.map(lambda a: a[1], nets)
    np.testing.assert_allclose(observed[1], solve(one).observed["test_risk"], atol=1e-7)
    stop = gflow.Stop(risk=0.5 * float(risk(net)))
    flow = gflow.solve_flow(risk, net, t1=50.0, stop=stop, observe={"risk": risk})
    assert flow.result_name == "reached_risk"
    np.testing.assert_allclose(flow.observed["risk"], flow.risk, rtol=1e-12)


@pytest.mark.parametrize(
    ("observe", "message"),
    [
        (OTHER, "wanted functions of a network by name"),
        ({"risk": 3.0}, "'risk': 3.0, wanted functions"),
        ({3: OTHER}, "wanted functions"),
        ({"pair": lambda net: (net.w, net.v)}, "'pair', which returns"),
    ],
)
def test_observe_is_checked(observe, message, unchecked_annotations):
    risk, net = small_problem()
    for run in (
        lambda: gflow.solve_flow(risk, net, t1=1.0, observe=observe),
        lambda: gflow.descend(risk, net, step_size=0.1, num_steps=2, observe=observe),
    ):
        with pytest.raises(gflow.ArgumentError, match=f"(?s)`observe`: got .*{message}"):
            run()
