"""What is passed by mistake is named, with what was wanted."""

import datetime
import warnings

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import gflow

KEY = jax.random.key(0)
NET = gflow.ShallowNet(1, 3, key=KEY)
X = np.linspace(-1, 1, 5)[:, None]
RISK = gflow.EmpiricalRisk(X, X[:, 0])
START = jnp.zeros(2)
pytestmark = pytest.mark.usefixtures("unchecked_annotations")


def quadratic(theta):
    return jnp.sum((theta - 1.0) ** 2)


def descend(risk=quadratic, net=START, **arguments):
    return gflow.descend(risk, net, **({"step_size": 0.1, "num_steps": 4, "record": 3} | arguments))


def refuses(name: str, message: str):
    return pytest.raises(gflow.ArgumentError, match=f"`{name}`: .*{message}")


@pytest.mark.parametrize("net", [None, 3, [0.0, 1.0], jnp.arange(3), lambda x: x])
def test_what_holds_no_floats_is_no_network(net):
    with refuses("net", "without arrays of floats"):
        descend(net=net)


def test_other_results_and_risks_are_no_networks():
    descent = descend()
    for use in (lambda net: descend(net=net), lambda net: gflow.sharpness(quadratic, net)):
        with refuses("net", "got a Trajectory, wanted a network: its `final`"):
            use(descent)
    with refuses("net", "got a EmpiricalRisk, wanted a network; the risk comes first"):
        gflow.solve_flow(NET, RISK, t1=1.0)
    point = gflow.refine(quadratic, jnp.ones(2))
    with refuses("net", "got a CriticalPoint, wanted a network: its `net`"):
        gflow.refine(quadratic, point)


def test_many_networks_at_once_are_refused():
    many = jax.vmap(lambda key: gflow.ShallowNet(1, 3, key=key))(jax.random.split(KEY, 2))
    for use in (gflow.sharpness, lambda risk, net: descend(risk, net)):
        with refuses("net", r"many networks, with leading axes of shape \(2,\)"):
            use(RISK, many)


def test_a_pytree_that_cannot_be_called_is_no_network_of_a_table():
    with refuses("net", "a dict, which cannot be called"):
        descend(RISK, {"w": START})


@pytest.mark.parametrize(
    "function",
    [
        lambda theta: float(jnp.sum(theta)),
        lambda theta: np.linalg.norm(theta),
        lambda theta: theta[0] if theta[0] > 0 else -theta[0],
    ],
)
def test_functions_that_jax_cannot_trace_are_named(function):
    with refuses("risk", "asks for the values of arrays, wanted one that JAX can trace"):
        descend(function)
    with refuses("observe", "'size', a function that asks for the values"):
        descend(observe={"size": function})


def test_text_is_no_quantity():
    with refuses("observe", "functions that return one array"):
        descend(observe={"name": lambda theta: "theta"})


@pytest.mark.parametrize(
    ("optimiser", "message"),
    [
        (lambda: optax.adam(0.1), "too many positional arguments"),
        (lambda h, momentum: optax.sgd(h, momentum), "missing a required argument: 'momentum'"),
        (optax.MultiSteps, "missing a required argument"),
    ],
)
def test_functions_of_other_arguments_make_no_optimiser(optimiser, message):
    with refuses("optimiser", f"called with one number .{message}"):
        descend(optimiser=optimiser)


@pytest.mark.parametrize("key", [0, None, jax.random.split(KEY, 3)])
def test_minibatches_are_drawn_with_one_key(key):
    with refuses("key", "one jax.random.key"):
        descend(RISK, NET, batch_size=2, key=key)


def test_records_of_several_lengths_and_failing_filters():
    with refuses("record", "wanted a number of records"):
        descend(record=[[1], [2, 3]])
    with refuses("trainable", "wanted names of fields"):
        descend(RISK, NET, trainable=lambda net: net.w)


@pytest.mark.parametrize(
    "ts",
    [["0", "1"], [False, True], np.array([0, 1j]), np.array(["2020", "2021"], "datetime64[Y]")],
)
def test_times_are_real_numbers(ts):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with refuses("ts", "wanted increasing finite times"):
            gflow.solve_flow(quadratic, START, t1=1.0, ts=ts)
        with refuses("t", "wanted a time, or times"):
            descend()(ts)


@pytest.mark.parametrize("bound", ["0.1", -1.0, np.float32(-1), jnp.array(-1.0), np.nan, True])
def test_bounds_of_a_stop_are_checked_in_every_type(bound):
    with refuses(r"stop\.risk", "wanted a finite number, zero or more"):
        gflow.Stop(risk=bound)


def test_times_of_a_stop_are_seconds():
    with refuses(r"stop\.seconds", "wanted a finite number"):
        gflow.Stop(seconds=datetime.timedelta(seconds=3))  # pyright: ignore[reportArgumentType]
    with refuses(r"stop\.risk", "wanted one number; jax.vmap takes one for each flow"):
        gflow.solve_flow(quadratic, START, t1=1.0, stop=gflow.Stop(risk=jnp.array([0.1, 0.2])))


@pytest.mark.parametrize("short", [jnp.float16, jnp.bfloat16])
def test_flows_are_in_float32_or_float64(short):
    with refuses("net", f"parameters in {short.__name__}, wanted float32 or float64"):
        gflow.solve_flow(quadratic, START.astype(short), t1=1.0)


def test_complex_tables_are_refused():
    with refuses("x", "wanted real numbers"):
        gflow.EmpiricalRisk(X * 1j, X[:, 0])


def test_lists_of_trajectories_are_drawn_by_label():
    with refuses("trajectories", "several by label"):
        gflow.plots.risk([descend()])  # pyright: ignore[reportArgumentType]


def test_a_member_has_a_whole_number():
    batch = jax.vmap(lambda start: descend(net=start))(jnp.zeros((2, 2)))
    with refuses("index", "whole numbers"):
        batch.member(1.0)  # pyright: ignore[reportArgumentType]


@pytest.mark.slow
def test_arrays_of_numpy_are_those_of_jax():
    """In the precision that JAX runs in, without a word of JAX."""
    linear = eqx.nn.Linear(1, "scalar", key=KEY)
    with jax.enable_x64(False), warnings.catch_warnings():
        warnings.simplefilter("error")
        assert descend(net=np.zeros(2)).params.dtype == jnp.float32
        mixed = {"a": np.ones(2), "b": jnp.ones(2, jnp.float32)}
        assert descend(lambda p: jnp.sum(p["a"] * p["b"]), mixed).succeeded
    of_numpy = eqx.tree_at(lambda net: net.weight, linear, np.ones((1, 1)))
    assert descend(RISK, of_numpy).params.weight.shape == (3, 1, 1)


def test_times_in_float32_are_those_of_float64():
    """0.3 is 0.30000001 in float32, beyond t1 = 0.3."""
    times = np.linspace(0, 0.3, 4, dtype=np.float32)
    assert float(times[-1]) > 0.3
    flow = gflow.solve_flow(quadratic, START, t1=0.3, ts=times, rtol=1e-4)
    assert float(flow.ts[-1]) == 0.3
    with refuses("ts", "within"):
        gflow.solve_flow(quadratic, START, t1=0.3, ts=times + np.float32(1e-6))
    with jax.enable_x64(False):
        descent = descend(net=jnp.zeros(2, jnp.float32))
        assert float(descent.ts[1]) != 0.1
        np.testing.assert_array_equal(descent(0.1), descent[1])
        with refuses("t", "saved times"):
            descent(0.1001)


def test_one_time_and_a_list_of_them():
    descent = descend()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert descent([0.0, 0.1]).shape == (2, 2)
    assert descent(0.1).shape == (2,)


@pytest.mark.slow
def test_strict_promotion_of_types_is_for_the_code_of_users():
    jax.config.update("jax_numpy_dtype_promotion", "strict")
    try:
        assert gflow.solve_flow(RISK, NET, t1=0.1, rtol=1e-3).succeeded
        with pytest.raises(ValueError, match="promotion"):
            descend(lambda theta: jnp.sum(theta * jnp.arange(2)))
    finally:
        jax.config.update("jax_numpy_dtype_promotion", "standard")
