"""One-input data of any size: sorted rows against the plain evaluation and exact sums."""

from fractions import Fraction

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

import gflow
from gflow.risks.one_input import sorting_order
from gflow.risks.sorted_data import _rows_at, _rows_before

N, WIDTH = 600, 64


def plain(risk):
    return lambda net: (
        jnp.mean(risk.losses(net)) if risk.weights is None else risk.weights @ risk.losses(net)
    )


@eqx.filter_jit
def both_ways(risk, net, d):
    """Risk, gradient and Hessian product by sorted rows, and by the plain evaluation."""

    def all_of(function):
        gradient = lambda n: jax.grad(lambda m: function(m))(n)
        return function(net), gradient(net), jax.jvp(gradient, (net,), (d,))[1]

    return all_of(risk), all_of(plain(risk))


def assert_same(risk, net, rtol=1e-12):
    assert risk.rows_in_order is not None
    d = jax.tree.map(lambda a: jnp.cos(jnp.arange(a.size, dtype=a.dtype)).reshape(a.shape), net)
    (got, *derivatives), (wanted, *expected) = both_ways(risk, net, d)
    np.testing.assert_allclose(got, wanted, rtol=rtol, atol=1e-28)
    for a, b in zip(jax.tree.leaves(derivatives), jax.tree.leaves(expected)):
        np.testing.assert_allclose(a, b, rtol=0, atol=rtol * (1e-15 + np.abs(b).max()))


def data(seed: int, on_kinks: bool = False, out: tuple = (), n: int = N):
    rng = np.random.default_rng(seed)
    # Multiples of 1/16, each many times.
    x = rng.integers(-16, 17, n) / 16 if on_kinks else rng.uniform(-1, 1, n)
    return x[:, None], rng.normal(size=(n, *out))


def network(seed: int, on_kinks: bool = False, out: tuple = (), **options) -> gflow.ShallowNet:
    rng = np.random.default_rng(seed)
    w, b, v, c = (rng.normal(size=s) for s in ((WIDTH, 1), WIDTH, (WIDTH, *out), out))
    if on_kinks:
        # Preactivations do not round, so ties have z = 0. Some units are flat or degenerate.
        w, b = rng.integers(-2, 3, (WIDTH, 1)), rng.integers(-32, 33, WIDTH) / 16
        b = np.where(rng.random(WIDTH) < 0.2, 0.0, b)
    return gflow.ShallowNet.from_arrays(w, b, v, c, **options)


@pytest.mark.slow
@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.booleans(), st.booleans())
def test_risk_gradient_and_hessian_are_the_plain_ones(seed, on_kinks, tied):
    x, y = data(seed, on_kinks)
    assert_same(gflow.EmpiricalRisk(x, y), network(seed + 1, tied))


@pytest.mark.slow
def test_weights_outputs_slopes_and_scales():
    x, y = data(0, True, (2,))
    weights = np.random.default_rng(1).uniform(0, 1, N) * (np.arange(N) % 7 > 0)
    options = {"activation": "leaky_relu(0.2)", "output_scale": 0.37}
    assert_same(gflow.EmpiricalRisk(x, y, weights), network(2, True, (2,), **options))
    none = eqx.tree_at(lambda n: (n.b, n.c), network(3), (None, None), is_leaf=lambda a: a is None)
    assert_same(gflow.EmpiricalRisk(*data(3, True)), none)


@pytest.mark.slow
def test_few_and_many_look_ups_and_batches_find_the_same_rows():
    """Up to 500 are made one after the other, more at once, for one network or several."""
    table, x = (
        jnp.arange(36.0).reshape(12, 3),
        jnp.sort(jax.random.normal(jax.random.key(0), (11,))),
    )
    tables, xs = jnp.stack([table, -table]), jnp.stack([x, x + 0.3])
    w, b = jax.random.normal(jax.random.key(1), (2, 700))
    places = jnp.arange(700) % 12
    rightward = w > 0
    wanted = np.searchsorted(x, -b / w)
    for n in (300, 700):
        look_up = lambda *units: (_rows_at(table, units[0]), _rows_before(x, *units[1:]))
        units = tuple(a[:n] for a in (places, w, b, rightward))
        rows, before = jax.jit(look_up)(*units)
        np.testing.assert_array_equal(rows, table[places[:n]])
        np.testing.assert_array_equal(before, wanted[:n])
        few = tuple(a[: n // 100 * 100].reshape(n // 100, 100) for a in units)
        rows, before = jax.vmap(look_up)(*few)
        np.testing.assert_array_equal(rows.reshape(n, 3), table[places[:n]])
        np.testing.assert_array_equal(before.ravel(), wanted[:n])
    rows = jax.vmap(_rows_at, (0, None))(tables, places)
    np.testing.assert_array_equal(rows, tables[:, places])
    before = jax.vmap(_rows_before, (0, 0, None, None))(xs, jnp.stack([w, w]), b, rightward)
    np.testing.assert_array_equal(before, [wanted, np.searchsorted(x + 0.3, -b / w)])


def test_far_from_the_origin_and_on_one_point():
    x, y = data(4)
    net = network(4)
    moved = eqx.tree_at(lambda n: n.b, net, net.b - 1000 * net.w[:, 0])
    # The plain preactivations lose three digits.
    assert_same(gflow.EmpiricalRisk(x + 1000, y), moved, rtol=1e-10)
    assert_same(gflow.EmpiricalRisk(np.full((N, 1), 0.3), y), net)


def test_close_to_a_perfect_fit_it_is_the_exact_sum():
    """Against rational arithmetic, where the plain sum has only six digits."""
    rng = np.random.default_rng(5)
    x = rng.integers(-(2**20), 2**20, N) / 2**20
    y = 1 - np.abs(x)
    w = np.tile([1.0, -1.0], WIDTH // 2)
    v = np.append([-1.0, -1.0], np.zeros(WIDTH - 2))
    for size, rtol in ((0.0, 0.0), (1e-10, 1e-9), (1e-3, 1e-14)):
        moved = [a + size * rng.normal(size=np.shape(a)) for a in (w, np.zeros(WIDTH), v, 1.0)]
        net = gflow.ShallowNet.from_arrays(moved[0][:, None], *moved[1:])
        units = [[Fraction(float(a)) for a in row] for row in zip(*moved[:3])]
        exact = Fraction(0)
        for s, t in zip(x, y):
            s = Fraction(s)
            n = Fraction(float(moved[3])) + sum(u * max(a * s + b, 0) for a, b, u in units)
            exact += (n - Fraction(t)) ** 2 / N
        got = both_ways(gflow.EmpiricalRisk(x[:, None], y), net, net)[0][0]
        assert got >= 0
        assert abs(float(got) - float(exact)) <= rtol * float(exact) + 1e-29


def test_sorted_rows_are_used_only_if_they_are_faster():
    x, y = data(6)
    assert gflow.EmpiricalRisk(x, y).rows_in_order is not None
    others = [
        gflow.EmpiricalRisk(x[:100], y[:100]),
        gflow.EmpiricalRisk(np.hstack([x, x]), y),
        gflow.EmpiricalRisk(x, np.sign(y), loss="logistic"),
        gflow.EmpiricalRisk(x, y, loss=lambda p, t: jnp.abs(p - t)),
        gflow.EmpiricalRisk(np.where(x == x[0], 1e6, x), y),
        gflow.EmpiricalRisk(jnp.asarray(x, jnp.float32), jnp.asarray(y, jnp.float32)),
    ]
    assert all(risk.rows_in_order is None for risk in others)
    risk, net = gflow.EmpiricalRisk(x, y), network(6)
    inside = jax.jit(lambda x, y: gflow.EmpiricalRisk(x, y)(net))(x, y)
    np.testing.assert_allclose(inside, risk(net), rtol=1e-13)
    smooth = gflow.ShallowNet(1, WIDTH, key=jax.random.key(0), activation="tanh")
    assert risk(smooth) == plain(risk)(smooth)
    single = jax.tree.map(lambda a: a.astype(jnp.float32), net)
    assert risk(single) == plain(risk)(single)
    with pytest.raises(gflow.ArgumentError, match="`net`"):
        risk(network(6, out=(2,)))


def test_no_derivatives_in_the_data_and_a_way_out():
    x, y = data(7)
    net, risk = network(7), gflow.EmpiricalRisk(x, y)
    with pytest.raises(NotImplementedError, match="losses"):
        eqx.filter_grad(lambda risk: risk(net))(risk)
    gradient = eqx.filter_grad(lambda risk: jnp.mean(risk.losses(net)))(risk)
    residuals = jax.vmap(net)(risk.x) - risk.y
    np.testing.assert_allclose(gradient.y, -2 * residuals / N, rtol=1e-12, atol=1e-16)


@pytest.mark.slow
def test_operations_do_not_grow_with_the_rows():
    def operations(n):
        risk = gflow.EmpiricalRisk(*data(8, n=n))
        lowered = jax.jit(lambda risk, net: jax.value_and_grad(lambda m: risk(m))(net))
        cost = lowered.lower(risk, network(8)).cost_analysis()
        assert cost is not None
        return cost["flops"]

    assert operations(100_000) < 1.2 * operations(1000)


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.floats(-1e4, 1e4, allow_subnormal=False), min_size=33, max_size=33),
    st.integers(1, 33),
)
def test_sorting_is_numpys(keys, distinct):
    keys = np.array(keys)
    keys[distinct:] = keys[:distinct].repeat(33)[: 33 - distinct]
    for array in (keys, np.argsort(np.argsort(np.abs(keys)))):
        wanted = np.argsort(array, kind="stable")
        np.testing.assert_array_equal(sorting_order(jnp.asarray(array)), wanted)
    single = keys.astype(np.float16).astype(np.float32)
    np.testing.assert_array_equal(
        sorting_order(jnp.asarray(single)), np.argsort(single, kind="stable")
    )
