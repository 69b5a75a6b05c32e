"""The true risk on the line against 50-digit arithmetic, and the closed forms of the theory."""

import functools
from bisect import bisect_left
from itertools import accumulate

import equinox as eqx
import jax
import jax.numpy as jnp
import mpmath as mp
import numpy as np
import pytest
import scipy.integrate
import scipy.linalg
from hypothesis import given, settings, strategies as st
from jax.flatten_util import ravel_pytree

import gflow
from gflow import piecewise
from gflow.piecewise import PiecewisePolynomial

mp.mp.dps = 50
TENT_RISK = gflow.PopulationRisk(piecewise.tent(), piecewise.uniform())
risk_and_gradient = eqx.filter_jit(lambda risk, net: jax.value_and_grad(lambda n: risk(n))(net))
hessian_product = eqx.filter_jit(
    lambda risk, net, d: jax.jvp(jax.grad(lambda n: risk(n)), (net,), (d,))[1]
)


def from_arrays(w, b, v, c, **options) -> gflow.ShallowNet:
    return gflow.ShallowNet.from_arrays(jnp.reshape(jnp.asarray(w), (-1, 1)), b, v, c, **options)


def times(f, g):
    product = [mp.mpf(0)] * (len(f) + len(g) - 1)
    for i, a in enumerate(f):
        for j, b in enumerate(g):
            product[i + j] += a * b
    return product


def integral(f, left, right):
    return sum(a * (right ** (m + 1) - left ** (m + 1)) / (m + 1) for m, a in enumerate(f))


def exact(arrays, target, density, slope=0.0, scale=1.0):
    """Risk and G(θ) of a scalar net at 50 digits: the parameters as they are, cells between all
    kinks and breakpoints, polynomials integrated through their antiderivatives."""
    w, b, v, c = ([mp.mpf(x) for x in np.ravel(a)] for a in arrays)
    slope, scale = mp.mpf(slope), mp.mpf(scale)
    pieces = [
        ([mp.mpf(float(x)) for x in g.breakpoints], np.asarray(g.coefficients).tolist())
        for g in (target, density)
    ]
    first, last = (pieces[1][0][i] for i in (0, -1))
    kinks = [-y / x for x, y in zip(w, b) if x != 0]
    ends = sorted({x for x in [*kinks, *pieces[0][0], *pieces[1][0]] if first <= x <= last})
    cells, risk = [], mp.mpf(0)
    steps = sorted(((-y / x, i) for i, (x, y) in enumerate(zip(w, b)) if x), reverse=True)
    active = [x < 0 or (x == 0 and y > 0) for x, y in zip(w, b)]
    slopes = lambda on: mp.mpf(1) if on else slope
    rise = sum(scale * v[i] * slopes(on) * w[i] for i, on in enumerate(active))
    at_0 = c[0] + sum(scale * v[i] * slopes(on) * b[i] for i, on in enumerate(active))
    for left, right in zip(ends, ends[1:]):
        while steps and steps[-1][0] <= left:
            _, i = steps.pop()
            active[i] = not active[i]
            change = (slopes(active[i]) - slopes(not active[i])) * scale * v[i]
            rise, at_0 = rise + change * w[i], at_0 + change * b[i]
        f, p = (
            [mp.mpf(a) for a in rows[max(0, min(len(rows), sum(x <= left for x in s)) - 1)]]
            for s, rows in pieces
        )
        r = [-a for a in f] + [mp.mpf(0)] * (2 - len(f))
        r[0], r[1] = r[0] + at_0, r[1] + rise
        rp = times(r, p)
        risk += integral(times(r, rp), left, right)
        cells.append((left, integral(rp, left, right), integral([0, *rp], left, right)))
    starts = [cell[0] for cell in cells]
    left0, left1 = ([mp.mpf(0), *accumulate(cell[k] for cell in cells)] for k in (1, 2))
    total0, total1 = left0[-1], left1[-1]
    gradient = {"w": [], "b": [], "v": [], "c": [2 * total0]}
    for x, y, u in zip(w, b, v):
        k = bisect_left(starts, -y / x) if x else 0
        rightward = x > 0 or (x == 0 and y > 0)
        on0, on1 = (s[-1] - s[k] if rightward else s[k] for s in (left0, left1))
        m0, m1 = (on0 + slope * (total0 - on0), on1 + slope * (total1 - on1))
        gradient["w"].append(2 * scale * u * m1)
        gradient["b"].append(2 * scale * u * m0)
        gradient["v"].append(2 * scale * (x * m1 + y * m0))
    return risk, gradient


def arrays_of(net):
    return [np.asarray(a) for a in (net.w, net.b, net.v, net.c)]


def assert_exact(risk, net, rtol=1e-12, floor=0.0):
    """To `rtol` of the risk, and of each component's scale: what √L and the parameters allow."""
    arrays = arrays_of(net)
    slope, scale = net.activation.negative_slope, net.output_scale
    value, gradient = exact(arrays, risk.target, risk.density, slope, scale)
    got, got_gradient = risk_and_gradient(risk, net)
    assert abs(mp.mpf(float(got)) - value) <= rtol * value + floor
    reach = max(abs(x) for x in risk.density.interval)
    w, b, v, _ = (abs(np.ravel(a)) for a in arrays)
    scales = {"w": scale * v * reach, "b": scale * v, "v": scale * (w * reach + b), "c": np.ones(1)}
    for name, expected in gradient.items():
        error = [
            float(abs(mp.mpf(float(g)) - e))
            for g, e in zip(np.ravel(getattr(got_gradient, name)), expected)
        ]
        allowed = 2 * rtol * (float(mp.sqrt(value)) + floor**0.5) * scales[name]
        assert np.all(error <= allowed), (name, np.max(error / np.where(allowed > 0, allowed, 1)))


def random_problem(rng) -> gflow.PopulationRisk:
    """A cubic target in four pieces, a quadratic density in three."""
    a, length = rng.uniform(-3, 2), rng.uniform(0.5, 3)
    inner = lambda k: a + length * np.sort(rng.uniform(0.1, 0.9, k))
    breakpoints = [np.array([a, *inner(k), a + length]) for k in (3, 2)]
    target = PiecewisePolynomial(breakpoints[0], rng.normal(size=(4, 4)))
    root = PiecewisePolynomial(breakpoints[1], rng.normal(size=(3, 2)))
    square = root * root
    return gflow.PopulationRisk(target, square * (1 / square.integral()))


def hard_net(rng, risk, width: int, kind: int, **options) -> gflow.ShallowNet:
    w, b, v = rng.normal(size=(3, width))
    c = rng.normal()
    a, last = risk.density.interval
    if kind == 1:  # kinks on breakpoints of target and density, and on the ends
        b = -w * rng.choice(np.asarray(risk.pieces.breakpoints), width)
    elif kind == 2:  # kinks nearly equal, some of them equal
        b = -w * (rng.uniform(a, last) + rng.choice([0, 0, 1e-15, 1e-12, 1e-9], width))
    elif kind == 3:  # flat units: kinks far outside, or inside and badly conditioned
        w = w * rng.choice([1, 1e-8], width)
        b = np.where(rng.random(width) < 0.5, b, -w * rng.uniform(a, last, width))
    elif kind == 4:  # w = 0, w = b = 0, units twice, units without output
        w, b = (np.where(rng.random(width) < 0.3, 0, x) for x in (w, b))
        w[width // 2 :], b[width // 2 :] = w[: (width + 1) // 2], b[: (width + 1) // 2]
        v = np.where(rng.random(width) < 0.2, 0, v)
    elif kind == 5:  # steep spikes
        w = w * 1e6
        b = -w * rng.uniform(a, last, width)
    return from_arrays(w, b, v, c, **options)


@pytest.mark.parametrize(
    ("width", "cases", "options"),
    [
        (1, 36, {}),
        (8, 72, {}),
        (50, 60, {"activation": "leaky_relu(0.3)", "output_scale": 0.7}),
        (200, 32, {}),
    ],
)
def test_risk_and_gradient_against_50_digits(width, cases, options):
    rng = np.random.default_rng(width)
    for case in range(cases):
        risk = random_problem(rng)
        assert_exact(risk, hard_net(rng, risk, width, case % 6, **options))


PARAMETERS = st.floats(-9, 9) | st.sampled_from([0.0, 1e-8, -1e-8, 1.0, -1.0, 0.5])


@settings(max_examples=150, deadline=None)
@given(st.lists(PARAMETERS, min_size=25, max_size=25))
def test_no_parameters_break_it(theta):
    net = from_arrays(theta[:8], theta[8:16], theta[16:24], theta[24])
    # Kinks are rounded: where the fit is perfect, that leaves squares of (1e-16)^3.
    assert_exact(TENT_RISK, net, floor=1e-40)


def interpolating_net(seed: int, size: float) -> gflow.ShallowNet:
    """Eight units that make the tent exactly, moved by normal perturbations of that size."""
    w = [1.0, -1.0, 1.0, -1.0, 1.0, -1.0, 1.0, -1.0]
    b = [0.0, 0.0, -0.25, -0.25, 0.0, 0.0, -0.25, -0.25]
    v = [-0.5, -0.5, 0.75, 0.75, -0.5, -0.5, -0.75, -0.75]
    net = from_arrays(w, b, v, 1.0)
    theta, unravel = ravel_pytree(net)
    return unravel(theta + size * np.random.default_rng(seed).normal(size=theta.size))


def test_close_to_a_perfect_fit():
    assert risk_and_gradient(TENT_RISK, interpolating_net(0, 0.0))[0] == 0.0
    for seed in range(10):
        net = interpolating_net(seed, 1e-10)
        assert 1e-22 < risk_and_gradient(TENT_RISK, net)[0] < 1e-18
        assert_exact(TENT_RISK, net)


def test_risk_of_a_perfect_fit_with_rounded_parameters():
    """The risk is that of the floats, 50 digits of it known, not the noise of their sums."""
    t = np.array([1 / 3, -1 / 7, 0.1, 0.7])
    v = np.array([1.3, -0.4, 2.2, 0.6])
    s = np.array([-1.0, *np.sort(t), 1.0])
    net = from_arrays(np.ones(4), -t, v, 0.2)
    rows = [[0.2 - sum(v[t <= x] * t[t <= x]), sum(v[t <= x])] for x in s[:-1]]
    risk = gflow.PopulationRisk(PiecewisePolynomial(s, rows), piecewise.uniform())
    assert 0 < risk_and_gradient(risk, net)[0] < 1e-30
    assert_exact(risk, net, rtol=1e-9)


@pytest.mark.parametrize("activation", ["relu", "leaky_relu(0.3)"])
def test_second_derivatives_against_differences_at_50_digits(activation):
    rng = np.random.default_rng(3)
    slope = 0.3 if "leaky" in activation else 0.0
    h = mp.mpf(10) ** -17
    for _ in range(3):
        risk = random_problem(rng)
        net = hard_net(rng, risk, 8, 5, activation=activation, output_scale=0.7)
        net = eqx.tree_at(lambda n: (n.w, n.b), net, (net.w * 1e-6, net.b * 1e-6))
        d = jax.tree.map(lambda a: jnp.asarray(rng.normal(size=a.shape)), net)
        sides = []
        for sign in (1, -1):
            moved = [
                np.array([mp.mpf(x) + sign * h * mp.mpf(y) for x, y in zip(a.ravel(), e.ravel())])
                for a, e in zip(arrays_of(net), arrays_of(d))
            ]
            sides.append(exact(moved, risk.target, risk.density, slope, 0.7)[1])
        product = hessian_product(risk, net, d)
        for name in "wbvc":
            got = np.ravel(getattr(product, name))
            expected = [float((x - y) / (2 * h)) for x, y in zip(*(side[name] for side in sides))]
            np.testing.assert_allclose(got, expected, rtol=1e-11, atol=1e-11 * np.abs(got).max())


def test_all_ways_to_second_derivatives_agree():
    net = hard_net(np.random.default_rng(0), TENT_RISK, 8, 0)
    theta, unravel = ravel_pytree(net)
    risk = lambda t: TENT_RISK(unravel(t))

    @jax.jit
    def all_ways(t):
        gradient = jax.grad(risk)
        ways = jax.jacfwd(gradient), jax.jacrev(gradient), jax.jacfwd(jax.jacfwd(risk))
        return risk(t), jax.jvp(risk, (t,), (t,)), gradient(t), [hessian(t) for hessian in ways]

    value, (same, slope), gradient, hessians = all_ways(theta)
    for hessian in hessians:
        np.testing.assert_allclose(hessian, hessians[0].T, atol=1e-13)
    np.testing.assert_allclose(slope, gradient @ theta, rtol=1e-13)
    assert value == same


V = [1.0, -2.0, 3.0, 1.0, 1.0, -1.0, 2.0, 0.5]


@pytest.mark.parametrize(
    ("w", "b"),
    [
        ([0, 0, 0, 2, -3, 1, 1, 4], [1, -1, 0, -1, 1, 0, 0, 2]),
        ([1, 1, -1, 1, -1, 1, 2, -2], [-0.5, -0.5, 0.5, -0.5, 0.5, -0.5, -1, 1]),
        ([1, -1, 0, 2, 0, 0.5, -0.5, 1], [-5, -5, 0, -2, -1, -5, -5, -1]),
    ],
    ids=["flat and degenerate", "equal kinks", "dead"],
)
def test_nothing_is_nan_and_degenerate_units_stay(w, b):
    net = from_arrays(np.array(w, float), np.array(b, float), V, 0.5)
    gradient = risk_and_gradient(TENT_RISK, net)[1]
    product = hessian_product(TENT_RISK, net, net)
    assert all(np.isfinite(a).all() for a in jax.tree.leaves((gradient, product)))
    assert_exact(TENT_RISK, net)
    degenerate = (np.array(w) == 0) & (np.array(b) == 0)
    for part in (gradient.w[:, 0], gradient.b, gradient.v):
        assert not np.any(part[degenerate])
        if b[0] == -5:
            assert not np.any(part)


def test_outputs_without_biases_and_vector_valued():
    rng = np.random.default_rng(5)
    targets = [piecewise.tent(), piecewise.wave()]
    risk = gflow.PopulationRisk(targets, piecewise.triangular(-1, 1, 0.3))
    w, b, v = rng.normal(size=8), rng.normal(size=8), rng.normal(size=(8, 2))
    got, gradient = risk_and_gradient(risk, from_arrays(w, b, v, [0.2, -0.1]))
    alone = [exact((w, b, v[:, k], [[0.2, -0.1][k]]), targets[k], risk.density) for k in range(2)]
    np.testing.assert_allclose(got, float(alone[0][0] + alone[1][0]), rtol=1e-14)
    together = [float(x + y) for x, y in zip(*(g["w"] for _, g in alone))]
    np.testing.assert_allclose(gradient.w[:, 0], together, rtol=1e-13, atol=1e-14)
    for k in range(2):
        np.testing.assert_allclose(
            gradient.v[:, k], [float(x) for x in alone[k][1]["v"]], rtol=1e-13, atol=1e-14
        )
    none = from_arrays(w, None, v[:, 0], None)
    zeros = from_arrays(w, np.zeros(8), v[:, 0], 0.0)
    assert TENT_RISK(none) == TENT_RISK(zeros)
    assert jax.grad(TENT_RISK)(none).b is None


def test_many_networks_at_once_and_single_precision():
    rng = np.random.default_rng(6)
    nets = [hard_net(rng, TENT_RISK, 8, kind) for kind in range(4)]
    stacked = jax.tree.map(lambda *a: jnp.stack(a), *nets)
    values, gradients = jax.jit(jax.vmap(jax.value_and_grad(TENT_RISK)))(stacked)
    for k, net in enumerate(nets):
        value, gradient = risk_and_gradient(TENT_RISK, net)
        np.testing.assert_allclose(values[k], value, rtol=1e-15)
        np.testing.assert_allclose(gradients.w[k], gradient.w, rtol=1e-13, atol=1e-15)
    single = jax.tree.map(lambda a: a.astype(jnp.float32), nets[0])
    value, gradient = risk_and_gradient(TENT_RISK, single)
    assert value.dtype == gradient.w.dtype == jnp.float32
    double = jax.tree.map(lambda a: a.astype(jnp.float64), single)
    # A few units of rounding.
    np.testing.assert_allclose(value, TENT_RISK(double), rtol=1e-6)


def test_a_diverged_network_has_no_finite_risk():
    net = from_arrays([np.nan, 1.0], [0.0, 1.0], [1.0, 1.0], 0.0)
    value, gradient = risk_and_gradient(TENT_RISK, net)
    assert np.isnan(value) and all(np.isnan(a).all() for a in jax.tree.leaves(gradient))


def test_oracle_of_a_degenerate_unit():
    """O5: N = 3/2 at the start, so all residuals are 3/2; degenerate, only c moves."""
    risk = gflow.PopulationRisk(piecewise.constant(0.0), piecewise.uniform())
    value, gradient = risk_and_gradient(risk, from_arrays([0.0], [0.5], [1.0], 1.0))
    assert value == pytest.approx(2.25, rel=1e-15)
    np.testing.assert_allclose(
        [gradient.w[0, 0], gradient.b[0], gradient.v[0], gradient.c], [0, 3, 1.5, 3], atol=1e-15
    )
    v, c = 0.75**0.5, 1 - np.log(3) / 2
    value, gradient = risk_and_gradient(risk, from_arrays([0.0], [0.0], [v], c))
    assert value == pytest.approx(c**2, rel=1e-15) and gradient.c == pytest.approx(2 * c)
    assert gradient.w[0, 0] == gradient.b[0] == gradient.v[0] == 0


def test_oracle_of_the_parabola():
    """O6, against quadrature by mpmath as well."""
    target = piecewise.parabola().refined([0, 1])
    risk = gflow.PopulationRisk(target, piecewise.uniform(0, 1))
    net = from_arrays([1.0, -0.5], [-0.3, 0.4], [0.8, -0.6], 0.1)
    assert_exact(risk, net)
    relu = lambda x: max(x, mp.mpf(0))
    numbers = [mp.mpf(x) for x in (1.0, -0.3, 0.8, -0.5, 0.4, -0.6, 0.1)]
    w1, b1, v1, w2, b2, v2, c = numbers
    n = lambda x: v1 * relu(w1 * x + b1) + v2 * relu(w2 * x + b2) + c
    value = mp.quad(lambda x: (n(x) - x**2) ** 2, [0, -b1 / w1, -b2 / w2, 1])
    assert float(risk(net)) == pytest.approx(float(value), rel=1e-15)
    assert str(float(risk(net))).startswith("0.0212666")


@pytest.mark.parametrize("n", [0, 2, 4])
def test_critical_values_and_zigzag_saddles(n):
    """O7: f = αx + β on [T0, T1] has critical values α²(T1 − T0)²/(12 (n + 1)⁴), uniformly."""
    alpha, beta, first, last, width = 2.0, 0.3, -1.0, 2.0, 8
    target = PiecewisePolynomial([first, last], [[beta, alpha]])
    risk = gflow.PopulationRisk(target, piecewise.uniform(first, last))
    w, b, v = np.zeros(width), -np.ones(width), np.ones(width)
    for i in range(1, n + 1):
        w[i - 1] = (-1) ** (i + 1)
        b[i - 1] = -w[i - 1] * (first + i * (last - first) / (n + 1))
        v[i - 1] = 2 * alpha / (n + 1) / w[i - 1]
    net = from_arrays(w, b, v, beta + alpha * (first + last) / 2)
    value, gradient = risk_and_gradient(risk, net)
    expected = alpha**2 * (last - first) ** 2 / (12 * (n + 1) ** 4)
    assert value == pytest.approx(expected, rel=1e-14)
    assert max(np.abs(a).max() for a in jax.tree.leaves(gradient)) <= 1e-14


def test_identities_of_the_gradient():
    """O8: balance, and ⟨∇V, G⟩ = 8 L for V = ‖θ‖² + |c − 2ξ|² and a constant target ξ."""
    xi = 0.7
    risk = gflow.PopulationRisk(piecewise.constant(xi), piecewise.triangular(-1, 1, 0.2))
    net = hard_net(np.random.default_rng(1), risk, 8, 0)
    value, g = risk_and_gradient(risk, net)
    balance = net.w[:, 0] * g.w[:, 0] + net.b * g.b - net.v * g.v
    np.testing.assert_allclose(balance, 0, atol=1e-14)
    theta, gradient = ravel_pytree(net)[0], ravel_pytree(g)[0]
    slope = 2 * theta @ gradient + 2 * (net.c - 2 * xi) * g.c
    np.testing.assert_allclose(slope, 8 * value, rtol=1e-13)


@pytest.fixture(scope="module")
def constant_target() -> tuple[gflow.PopulationRisk, float]:
    return gflow.PopulationRisk(piecewise.constant(0.7), piecewise.triangular(-1, 1, 0.2)), 0.7


def solve(risk, net, **options):
    return gflow.solve_flow(risk, net, t1=2.0, rtol=1e-10, atol=1e-12, **options)


def test_invariants_along_the_flow(constant_target):
    """O8: energy, balance, and V(Θ_t) + 8 ∫ L = V(Θ_0), by the flow's own saved times."""
    risk, xi = constant_target
    flow = solve(risk, hard_net(np.random.default_rng(2), risk, 8, 0), ts=np.linspace(0, 2, 401))
    assert np.abs(flow.diagnostics.energy).max() < 1e-8
    assert np.abs(flow.diagnostics.balance).max() < 1e-8
    p = flow.params
    v = sum(np.sum(np.reshape(a, (401, -1)) ** 2, axis=1) for a in jax.tree.leaves(p))
    v = v + np.abs(p.c - 2 * xi) ** 2
    dissipated = scipy.integrate.cumulative_simpson(flow.risk, x=flow.ts, initial=0)
    # Simpson's rule with steps of 0.005; the risk's fourth derivative jumps at no time.
    np.testing.assert_allclose(v + 8 * dissipated, v[0], rtol=1e-6)


def test_flow_of_a_dead_network(constant_target):
    """O9: c − m decays like e^(−2t) with m = ∫ f p, the risk like Var f + (c0 − m)² e^(−4t)."""
    risk, xi = constant_target
    net = from_arrays([1.0, -1, 0, 0.5, 2, -2, -1, 1], np.full(8, -3.0), np.ones(8), 0.2)
    flow = solve(risk, net, ts=np.linspace(0, 2, 401))
    np.testing.assert_allclose(flow.params.c, xi + (0.2 - xi) * np.exp(-2 * flow.ts), rtol=1e-8)
    np.testing.assert_allclose(flow.risk, (0.2 - xi) ** 2 * np.exp(-4 * flow.ts), rtol=1e-7)
    np.testing.assert_array_equal(flow.params.w[-1], net.w)


def test_linear_flow_of_the_outer_layer():
    """O14: with (v, c) trained alone, z' = −2 (M z − m)."""
    net = hard_net(np.random.default_rng(4), TENT_RISK, 8, 0)
    rows = lambda x: np.append(np.maximum(np.asarray(net.w[:, 0]) * x + np.asarray(net.b), 0), 1.0)
    kinks = np.asarray(-net.b / net.w[:, 0])
    ends = np.unique(np.clip([-1, 0, 1, *kinks], -1, 1))
    nodes, weights = np.polynomial.legendre.leggauss(3)
    half, middle = np.diff(ends) / 2, (ends[1:] + ends[:-1]) / 2
    x = (middle[:, None] + half[:, None] * nodes).ravel()
    mu = (half[:, None] * weights).ravel() / 2
    a = np.stack([rows(t) for t in x])
    gram, m = a.T @ (mu[:, None] * a), a.T @ (mu * (1 - np.abs(x)))
    flow = solve(TENT_RISK, net, trainable=("v", "c"))
    fitted = np.linalg.lstsq(gram, m, rcond=None)[0]
    z0 = np.append(net.v, net.c)
    z = scipy.linalg.expm(-4 * gram) @ (z0 - fitted) + fitted
    np.testing.assert_allclose(np.append(flow.final.v, flow.final.c), z, atol=1e-8)


def test_samples_approach_the_population():
    """Equally spaced points: the gradients differ by O(1/n²); random points: by O(n^(-1/2))."""
    net = hard_net(np.random.default_rng(7), TENT_RISK, 8, 0)
    exact_gradient = ravel_pytree(risk_and_gradient(TENT_RISK, net)[1])[0]

    def gap(x):
        empirical = gflow.EmpiricalRisk(x[:, None], piecewise.tent()(x))
        gradient = jax.grad(empirical)(net)
        return np.linalg.norm(ravel_pytree(gradient)[0] - exact_gradient)

    middles = lambda n: (np.arange(n) + 0.5) * 2 / n - 1
    assert gap(middles(1000)) < 1e-4 and gap(middles(30000)) < gap(middles(1000)) / 100
    rng = np.random.default_rng(0)
    random = [np.mean([gap(rng.uniform(-1, 1, n)) for _ in range(20)]) for n in (400, 6400)]
    # A factor of 4 is expected; means of 20 norms scatter by some 15 %.
    assert 2.5 < random[0] / random[1] < 6.5


@functools.cache
def operations(width: int) -> float:
    net = gflow.ShallowNet(1, width, key=jax.random.key(0))
    lowered = jax.jit(jax.value_and_grad(TENT_RISK)).lower(net)
    return lowered.cost_analysis()["flops"]


def test_operations_grow_with_the_width_not_its_square():
    # Sorting, of which the estimate counts the comparisons, aside, all is linear.
    assert operations(10_000) / operations(1000) < 10 * 1.2


def test_what_has_no_derivative_says_so():
    net = interpolating_net(0, 0.1)
    with pytest.raises(NotImplementedError, match="third derivatives"):
        jax.jvp(lambda n: hessian_product(TENT_RISK, n, net), (net,), (net,))
    with pytest.raises(NotImplementedError, match="the target or the density"):
        eqx.filter_grad(lambda risk: risk(net))(TENT_RISK)


@pytest.mark.parametrize(
    ("target", "density", "message"),
    [
        (piecewise.tent(), piecewise.constant(0.6), r"`density`.*integral 1\.2.*off by 2\.00e-01"),
        (
            piecewise.tent(),
            PiecewisePolynomial([-1, 1], [[0.5, 1.0]]),
            r"`density`: got -0\.5 at x = -1, wanted a function that is nowhere negative",
        ),
        (
            piecewise.tent(),
            PiecewisePolynomial([-1, 1], [[-0.25, 0.0, 2.25]]),
            r"`density`: got -0\.25 at x = 0",
        ),
        (piecewise.tent(), piecewise.uniform(-1, 2), r"`target`.*on \[-1\.0, 1\.0\].*\[-1, 2\]"),
        (np.ones(3), piecewise.uniform(), "`target`"),
        ([], piecewise.uniform(), "`target`"),
        (piecewise.tent(), 0.5, "`density`"),
    ],
)
def test_misuse_is_named(target, density, message):
    with pytest.raises(gflow.ArgumentError, match=message):
        gflow.PopulationRisk(target, density)


@pytest.mark.parametrize(
    "net",
    [
        gflow.ShallowNet(2, 3, key=jax.random.key(0)),
        gflow.ShallowNet(1, 3, 1, key=jax.random.key(0)),
        gflow.ShallowNet(1, 3, key=jax.random.key(0), activation="tanh"),
        lambda x: x,
    ],
)
def test_other_networks_are_refused(net):
    with pytest.raises(gflow.ArgumentError, match="`net`"):
        TENT_RISK(net)
