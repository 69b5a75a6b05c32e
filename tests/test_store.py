from dataclasses import replace

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import xarray

import gflow


def assert_same(one: gflow.Trajectory, two: gflow.Trajectory) -> None:
    assert (one.kind, one.method, one.result_name) == (two.kind, two.method, two.result_name)
    assert jax.tree.structure(one) == jax.tree.structure(two)
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(two)):
        if not eqx.is_array(a):
            assert a is b
            continue
        assert a.dtype == b.dtype
        if jnp.issubdtype(a.dtype, jax.dtypes.prng_key):
            a, b = jax.random.key_data(a), jax.random.key_data(b)
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()


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
    with pytest.raises(FileExistsError, match=r"save under a new path.*gd\.zarr"):
        gflow.save_trajectory(gd, tmp_path / "gd.zarr")


@pytest.mark.slow
def test_other_networks_need_their_structure(wave, tmp_path):
    net = eqx.nn.MLP(1, "scalar", 3, 2, key=jax.random.key(0))
    flow = gflow.solve_flow(wave, net, t1=0.5, rtol=1e-4)
    gflow.save_trajectory(flow, tmp_path / "mlp.zarr")
    again = gflow.load_trajectory(tmp_path / "mlp.zarr", like=net)
    np.testing.assert_array_equal(flow.final(jnp.ones(1)), again.final(jnp.ones(1)))
    with pytest.raises(ValueError, match="`like`"):
        gflow.load_trajectory(tmp_path / "mlp.zarr")


def short_descent(net, risk, **options) -> gflow.Trajectory:
    return gflow.descend(risk, net, step_size=0.1, num_steps=3, **options)


def stored(trajectory, path, **options) -> gflow.Trajectory:
    gflow.save_trajectory(trajectory, path)
    return gflow.load_trajectory(path, **options)


ONES = jnp.ones(2)


@pytest.mark.parametrize(
    "leaf",
    [
        jnp.array([1.5, -0.0, jnp.nan], jnp.float16),
        jnp.array([1.5, 1e30, jnp.inf], jnp.bfloat16),
        jnp.array([0.1, 0.2], jnp.float32),
        jnp.array([1 + 2j, -0.5j]),
        jnp.array([1 + 2j], jnp.complex64),
        jnp.array([-3, 7]),
        jnp.array([-3, 7], jnp.int4),
        jnp.array([3, 2**32 - 1], jnp.uint32),
        jnp.array([[True, False]]),
        jax.random.split(jax.random.key(5), 2),
    ],
    ids=lambda leaf: str(leaf.dtype),
)
def test_leaves_of_all_types_come_back(leaf, tmp_path):
    net = {"w": ONES, "fixed": leaf, "f": jnp.tanh, "risk": ONES, "a/b": ONES}
    descent = short_descent(net, lambda net: jnp.sum(net["w"] ** 2), trainable=("w",))
    assert_same(descent, stored(descent, tmp_path / "d.zarr", like=net))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_trajectories_in_short_types_come_back(dtype, tmp_path):
    x = jnp.linspace(-1, 1, 5, dtype=dtype)
    net = gflow.ShallowNet(1, 3, key=jax.random.key(0), dtype=dtype)
    descent = short_descent(net, lambda net: jnp.mean((jax.vmap(net)(x[:, None]) - x) ** 2))
    assert_same(descent, stored(descent, tmp_path / "d.zarr"))


def test_observed_quantities_and_bare_arrays_come_back(tmp_path):
    observe = {"a/b": lambda p: p[0], "z": lambda p: p + 1j, "n": lambda p: p > 0}
    descent = short_descent(ONES, lambda p: jnp.sum(p**2), observe=observe, time_scales=0.5)
    assert_same(descent, stored(descent, tmp_path / "d.zarr", like=ONES))


@pytest.mark.slow
def test_switches_and_kinks_come_back(wave, tmp_path):
    flow = gflow.solve_flow(wave, gflow.ShallowNet(1, 4, key=jax.random.key(2)), t1=1.0, rtol=1e-4)
    switches = tuple(
        gflow.Switch(s, jnp.array(t), jnp.array(9)) for s, t in (("A", 0.1), ("B", 2.0))
    )
    flow = replace(flow, switches=switches)
    assert_same(flow, stored(flow, tmp_path / "flow.zarr"))


def gelu(x):
    """Not JAX's."""
    return x**2


def test_activations_of_ones_own_are_asked_for(wave, tmp_path):
    net = gflow.ShallowNet(1, 3, key=jax.random.key(0), activation=gelu)
    descent = short_descent(net, wave)
    gflow.save_trajectory(descent, tmp_path / "own.zarr")
    with pytest.raises(ValueError, match="`like`: got None, .* activation of one's own, gelu"):
        gflow.load_trajectory(tmp_path / "own.zarr")
    assert_same(descent, gflow.load_trajectory(tmp_path / "own.zarr", like=net))
    jaxs = gflow.ShallowNet(1, 3, key=jax.random.key(0), activation="gelu")
    with pytest.raises(ValueError, match=r"activation\.function: jax\.gelu.*function: gelu"):
        gflow.load_trajectory(tmp_path / "own.zarr", like=jaxs)
    assert stored(short_descent(jaxs, wave), tmp_path / "jax.zarr").final.activation.name == "gelu"


def mlp(width=3, depth=1, activation=jax.nn.tanh, dtype=None):
    return eqx.nn.MLP(
        1,
        "scalar",
        width,
        depth,
        activation,
        key=jax.random.key(0),
        dtype=dtype,
        use_final_bias=True,
    )


@pytest.mark.parametrize(
    ("like", "words"),
    [
        (mlp(width=7), r"layers\.0\.weight: float64\[7, 1\].* saved, .*float64\[3, 1\]"),
        (mlp(depth=2), r"layers\.1\.weight: float64\[3, 3\].* and 2 more, wanted what was saved"),
        (mlp(activation=jax.nn.relu), "activation: jax.relu, wanted .* activation: jax.tanh"),
        (mlp(dtype=jnp.float32), r"weight: float32\[3, 1\].* float64\[3, 1\]"),
        ({"layers": ONES}, "the whole: dict, wanted .* MLP"),
        (gflow.ShallowNet(1, 3, key=jax.random.key(0)), "the whole: ShallowNet, wanted .* MLP"),
    ],
    ids=["width", "depth", "activation", "type", "dict", "class"],
)
def test_networks_unlike_the_one_that_was_saved_are_refused(like, words, mlp_store):
    with pytest.raises(ValueError, match=f"`like`: got .*{words}"):
        gflow.load_trajectory(mlp_store, like=like)


@pytest.fixture(scope="module")
def mlp_store(wave, tmp_path_factory):
    path = tmp_path_factory.mktemp("store") / "mlp.zarr"
    gflow.save_trajectory(short_descent(mlp(), wave), path)
    return path


def test_a_store_in_float64_is_rounded_with_one_warning(wave, tmp_path):
    net = gflow.ShallowNet(1, 3, key=jax.random.key(0))
    gflow.save_trajectory(short_descent(net, wave), tmp_path / "d.zarr")
    with jax.enable_x64(False), pytest.warns(UserWarning, match="in float32.*rounded") as caught:
        assert gflow.load_trajectory(tmp_path / "d.zarr").risk.dtype == jnp.float32
    assert len(caught) == 1


def test_paths_without_a_trajectory_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        gflow.load_trajectory(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="`path`: got .*cannot be read"):
        gflow.load_trajectory(tmp_path)
    xarray.Dataset({"a": ("n", [1.0])}).to_zarr(tmp_path / "other", zarr_format=2)
    with pytest.raises(ValueError, match="`path`: got .*other', which holds something else"):
        gflow.load_trajectory(tmp_path / "other")


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["scipy", "h5netcdf", "netcdf4"])
def test_data_are_written_to_netcdf(engine, wave, tmp_path):
    if engine not in xarray.backends.list_engines():
        pytest.skip(f"{engine} is not installed")
    observe = {"flag": lambda net: net.c > 0, "z": lambda net: net.c + 1j}
    net = gflow.ShallowNet(1, 4, key=jax.random.key(2))
    flow = gflow.solve_flow(wave, net, t1=1.0, rtol=1e-4, observe=observe)
    switch = gflow.Switch("BDF5", jnp.array(0.5), jnp.array(9))
    for kept in (
        flow,
        flow[:2],
        replace(flow, switches=(switch,)),
    ):
        data = kept.to_xarray()
        data.to_netcdf(tmp_path / "flow.nc", engine=engine)
        again = xarray.load_dataset(tmp_path / "flow.nc", engine=engine)
        for name in data.variables:
            np.testing.assert_array_equal(again[name], data[name])
        meanings = again["kink_kind"].attrs["flag_meanings"].split()
        assert meanings[gflow.KinkKind.SLIDE_BEGINS] == "slide_begins"
        assert len(meanings) == len(again["kink_kind"].attrs["flag_values"])
        assert {"w", "kink_time"} <= set(map(str, again))
        assert len(data[["risk", "w"]].to_dataframe()) == len(kept) * 4


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


def test_observed_quantities_keep_their_names(tmp_path):
    """Of "a/b" and "a_b" files can hold one name only."""
    first, both = lambda p: p[0], lambda p: 1j * p
    descent = gflow.descend(
        lambda p: jnp.sum(p**2),
        jnp.ones(2),
        step_size=0.1,
        num_steps=3,
        observe={"a/b": first, "a_b": both, "a_b_": first, "": both},
    )
    gflow.save_trajectory(descent, tmp_path / "s")
    again = gflow.load_trajectory(tmp_path / "s", like=jnp.ones(2)).observed
    assert again.keys() == descent.observed.keys()
    for name, values in descent.observed.items():
        np.testing.assert_array_equal(again[name], values)


def test_a_store_says_what_it_does_not_hold(tmp_path):
    flow = gflow.solve_flow(lambda p: jnp.sum(p**2), jnp.ones(2), t1=0.3, rtol=1e-4, dense=True)
    with pytest.warns(UserWarning, match="does not hold the interpolants"):
        gflow.save_trajectory(flow, tmp_path / "s")


def power_of(exponent):
    return lambda z: jnp.tanh(z) ** exponent


def test_another_function_of_the_same_name_is_refused(tmp_path):
    x = np.linspace(-1, 1, 5)
    risk = gflow.EmpiricalRisk(x[:, None], x**2)
    make = lambda activation: gflow.ShallowNet(1, 2, key=jax.random.key(0), activation=activation)
    net = make(power_of(3.0))
    flow = gflow.solve_flow(risk, net, t1=0.1, rtol=1e-3)
    gflow.save_trajectory(flow, tmp_path / "s.zarr")
    again = gflow.load_trajectory(tmp_path / "s.zarr", like=make(power_of(3.0)))
    assert again.risk[-1] == risk(again.final)
    for other in (make(power_of(2.0)), make(lambda z: jnp.sin(z))):
        with pytest.raises(ValueError, match="`like`: got .*activation"):
            gflow.load_trajectory(tmp_path / "s.zarr", like=other)
