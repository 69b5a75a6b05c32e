import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import xarray

import gflow


def assert_same(one: gflow.Trajectory, two: gflow.Trajectory) -> None:
    assert (one.kind, one.method, one.result_name) == (two.kind, two.method, two.result_name)
    arrays = lambda t: (t.ts, t.params, t.risk, t.grad_norm, t.diagnostics, t.stats)
    assert jax.tree.structure(arrays(one)) == jax.tree.structure(arrays(two))
    for a, b in zip(jax.tree.leaves(arrays(one)), jax.tree.leaves(arrays(two))):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"out_size": 2, "activation": "leaky_relu(0.2)"},
        {"init": "ntk", "use_bias": False},
        {"activation": "tanh"},
    ],
)
def test_round_trip_through_zarr(options, tmp_path):
    net = gflow.ShallowNet(2, 3, key=jax.random.key(0), **options)
    x = jax.random.normal(jax.random.key(1), (5, 2))
    risk = gflow.EmpiricalRisk(x, x if options.get("out_size") == 2 else x[:, 0])
    flow = gflow.solve_flow(risk, net, t1=1.0, rtol=1e-5)
    gflow.save_trajectory(flow, tmp_path / "flow.zarr")
    again = gflow.load_trajectory(tmp_path / "flow.zarr")
    assert_same(flow, again)
    np.testing.assert_array_equal(again.final(x[0]), flow.final(x[0]))


def test_the_store_opens_in_xarray_with_names_and_units(wave, smooth_net, tmp_path):
    gd = gflow.descend(wave, smooth_net, step_size=0.1, num_steps=30, record=[0, 10, 30])
    gflow.save_trajectory(gd, tmp_path / "gd.zarr")
    data = xarray.open_zarr(tmp_path / "gd.zarr")
    assert dict(data.sizes) == {"time": 3, "unit": 8, "feature": 1}
    assert data["w"].dims == ("time", "unit", "feature") and data["v"].dims == ("time", "unit")
    assert data["c"].dims == ("time",)
    assert "flow time" in data["time"].attrs["units"] and data["risk"].attrs["long_name"] == "risk"
    np.testing.assert_allclose(data["risk"].sel(time=3.0), gd.risk[-1])
    assert data.attrs["kind"] == "descent" and data.attrs["stats_step_size"] == 0.1
    with pytest.raises(FileExistsError):
        gflow.save_trajectory(gd, tmp_path / "gd.zarr")


def test_other_networks_need_their_structure(wave, tmp_path):
    net = eqx.nn.MLP(1, "scalar", 3, 2, key=jax.random.key(0))
    flow = gflow.solve_flow(wave, net, t1=0.5, rtol=1e-4)
    gflow.save_trajectory(flow, tmp_path / "mlp.zarr")
    again = gflow.load_trajectory(tmp_path / "mlp.zarr", like=net)
    np.testing.assert_array_equal(flow.final(jnp.ones(1)), again.final(jnp.ones(1)))
    with pytest.raises(ValueError, match="`like`"):
        gflow.load_trajectory(tmp_path / "mlp.zarr")


def test_trajectories_read_well(smooth_flow, wave, smooth_net):
    text = repr(smooth_flow)
    for part in ("gradient flow, Tsit5", "200 saved, t = 0 to 10", "energy drift", "reached its"):
        assert part in text
    page = smooth_flow._repr_html_()
    assert page.startswith("<table>") and "gradient flow, Tsit5" in page
    gd = gflow.descend(wave, smooth_net, step_size=0.1, num_steps=3)
    assert "gradient descent" in repr(gd) and "energy drift" not in repr(gd)
    traced = []
    jax.jit(lambda t: traced.append(repr(t)) or t.risk)(gd)
    assert "Trajectory(" in traced[0]
