"""The population risk for Gaussian input against quadrature, and its flow."""

import equinox as eqx
import jax
import jax.numpy as jnp
import mpmath as mp
import numpy as np
import optax
import pytest
import scipy.integrate
import scipy.special
from hypothesis import given, settings, strategies as st

import gflow
from benchmarks import exact_risks
from gflow.risks import gaussian_kernels as kernels
from tests.helpers.derivatives import hessian_product, risk_and_gradient
from tests.helpers.gauss_rules import gauss, phi
from tests.helpers.networks_as_vectors import flat, inner, moved

KEYS = jax.random.split(jax.random.key(0), 8)
VALUE, GRADIENT = (lambda *a: risk_and_gradient(*a)[0]), (lambda *a: risk_and_gradient(*a)[1])


def make(key, *sizes, **options) -> gflow.ShallowNet:
    return gflow.ShallowNet(*sizes, key=key, init="standard_normal", **options)


# ---- the risk against two-dimensional quadrature ------------------------------------------------


def layer(net):
    zeros = np.zeros(net.width)
    w, v = np.asarray(net.w), np.asarray(net.v).reshape(net.width, -1)
    b = zeros if net.b is None else np.asarray(net.b)
    c = np.zeros(v.shape[1]) if net.c is None else np.asarray(net.c).reshape(-1)
    return w, b, net.output_scale * v, c


def plane_rule(w, b):
    """Nodes and weights for N(0, I₂), split at the lines w·x + b = 0 and where these meet."""
    sloped = np.abs(w[:, 1]) > 1e-9
    upright = -b[~sloped & (w[:, 0] != 0)] / w[~sloped & (w[:, 0] != 0), 0]
    line = np.stack([-b[sloped], -w[sloped, 0]]) / w[sloped, 1]
    rise, tilt = (a[:, None] - a[None, :] for a in line)
    meet = rise[tilt != 0] / -tilt[tilt != 0]
    grid = np.arange(-10.0, 11.0)
    # Where a steep line passes, the integral over the second coordinate changes quickly.
    steep = -line[0] / np.where(line[1] == 0, np.inf, line[1])
    passing = steep + np.array([-12, -6, -3, -1, 0, 1, 3, 6, 12])[:, None] / np.maximum(
        abs(line[1]), 1e-9
    )
    x, weight = gauss(np.clip([*grid, *upright, *meet, *passing.ravel()], -10, 10))
    ends = np.clip(line[0] + line[1] * x[:, None], -10, 10)
    ends = np.sort(np.concatenate([ends, np.broadcast_to(grid, (len(x), len(grid)))], axis=1))
    y, u = np.polynomial.legendre.leggauss(20)
    middle, half = (ends[:, 1:] + ends[:, :-1]) / 2, np.diff(ends) / 2
    y, u = middle[..., None] + half[..., None] * y, half[..., None] * u
    x, weight = (np.broadcast_to(a[:, None, None], y.shape) for a in (x, weight))
    keep = half > 0
    points = np.stack([x[keep].ravel(), y[keep].ravel()], axis=1)
    return points, (weight * u)[keep].ravel() * phi(points[:, 0]) * phi(points[:, 1])


def integrated(net, teacher):
    """The risk, and G as a network, by quadrature."""
    activation, slope = {
        "erf": (scipy.special.erf, lambda z: 2 / np.sqrt(np.pi) * np.exp(-(z**2))),
    }.get(net.activation.name, (None, None))
    slopes = [getattr(n.activation, "negative_slope", 0.0) for n in (net, teacher)]
    functions = [activation or (lambda z, a=a: np.where(z > 0, z, a * z)) for a in slopes]
    slope = slope or (lambda z: np.where(z > 0, 1.0, slopes[0]))
    (w, b, a, c), (w2, b2, a2, c2) = layer(net), layer(teacher)
    x, weight = plane_rule(np.concatenate([w, w2]), np.concatenate([b, b2]))
    z = x @ w.T + b
    residual = functions[0](z) @ a + c - functions[1](x @ w2.T + b2) @ a2 - c2
    weighted = 2 * weight[:, None] * residual
    back = (weighted @ a.T) * slope(z)
    gradient = {
        "w": back.T @ x,
        "b": back.sum(axis=0),
        "v": net.output_scale * (functions[0](z).T @ weighted),
        "c": weighted.sum(axis=0),
    }
    return weight @ np.sum(residual**2, axis=1), gradient


def check_against_quadrature(net, teacher):
    risk = gflow.GaussianRisk(teacher)
    value, gradient = integrated(net, teacher)
    # Sizes of the terms that are summed.
    total = sum(
        np.sum(
            np.linalg.norm(np.column_stack(layer(n)[:2]), axis=1) * np.abs(layer(n)[2]).sum(axis=1)
        )
        + np.abs(layer(n)[3]).sum()
        for n in (net, teacher)
    )
    found, got = risk_and_gradient(risk, net)
    assert found == pytest.approx(value, abs=2e-14 * (1 + total**2))
    for name, wanted in gradient.items():
        if getattr(net, name) is not None:
            found = np.reshape(getattr(got, name), wanted.shape)
            np.testing.assert_allclose(
                found, wanted, rtol=0, atol=1e-13 * (1 + total**2), err_msg=name
            )


CASES = [
    ("relu", "relu", {}, {}, "scalar"),
    ("relu", "relu", {"use_bias": False, "output_scale": 0.3}, {"use_bias": False}, 2),
    ("leaky_relu(0.2)", "leaky_relu(-0.5)", {"use_bias": False}, {"output_scale": 0.5}, 2),
    ("erf", "erf", {"output_scale": 0.3}, {}, 2),
    ("erf", "erf", {"use_bias": False}, {"use_bias": False}, "scalar"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("activation", "activation2", "options", "options2", "out"), CASES)
def test_risk_and_gradient_are_integrals(activation, activation2, options, options2, out):
    net = make(KEYS[0], 2, 4, out, activation=activation, **options)
    teacher = make(KEYS[1], 2, 3, out, activation=activation2, **options2)
    check_against_quadrature(net, teacher)


@pytest.mark.slow
@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    scale=st.sampled_from([1e-3, 1.0, 5.0]),
    like_teacher=st.sampled_from([None, 1.0, -1.0, 1 + 1e-7]),
    no_weights=st.booleans(),
)
def test_risk_and_gradient_of_random_networks(seed, scale, like_teacher, no_weights):
    key, key2 = jax.random.split(jax.random.key(seed))
    net, teacher = make(key, 2, 4, scale=scale), make(key2, 2, 3)
    if like_teacher is not None:
        units = [
            a.at[:3].set(like_teacher * b) for a, b in zip((net.w, net.b), (teacher.w, teacher.b))
        ]
        net = eqx.tree_at(lambda n: (n.w, n.b), net, tuple(units))
    if no_weights:
        net = eqx.tree_at(lambda n: n.w, net, net.w.at[3].set(0.0))
    check_against_quadrature(net, teacher)
    assert VALUE(gflow.GaussianRisk(teacher), net) > -1e-14


@pytest.mark.slow
@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_symmetries(seed):
    rng = np.random.default_rng(seed)
    keys = jax.random.split(jax.random.key(seed))
    net, teacher = make(keys[0], 2, 4), make(keys[1], 2, 3)
    risk, order = gflow.GaussianRisk(teacher), rng.permutation(4)
    value, gradient = VALUE(risk, net), GRADIENT(risk, net)
    permuted = eqx.tree_at(
        lambda n: (n.w, n.b, n.v), net, tuple(np.asarray(a)[order] for a in (net.w, net.b, net.v))
    )
    assert VALUE(risk, permuted) == pytest.approx(float(value), rel=1e-13)
    np.testing.assert_allclose(
        GRADIENT(risk, permuted).w, np.asarray(gradient.w)[order], rtol=1e-10, atol=1e-13
    )
    turn = np.linalg.qr(rng.normal(size=(2, 2)))[0]
    turned, turned_teacher = (eqx.tree_at(lambda n: n.w, n, n.w @ turn) for n in (net, teacher))
    risk = gflow.GaussianRisk(turned_teacher)
    assert VALUE(risk, turned) == pytest.approx(float(value), rel=1e-12)
    np.testing.assert_allclose(
        GRADIENT(risk, turned).w, np.asarray(gradient.w) @ turn, rtol=1e-10, atol=1e-12
    )


@pytest.mark.slow
@pytest.mark.parametrize("activation", ["relu", "erf"])
def test_hessian_products_are_derivatives_of_the_gradient(activation):
    net, teacher = (make(k, 2, w, activation=activation) for k, w in zip(KEYS[2:], (4, 3)))
    risk, move = gflow.GaussianRisk(teacher), make(KEYS[4], 2, 4, activation=activation)
    at = lambda t: flat(GRADIENT(risk, moved(net, move, t)))
    # Central differences of fourth order with steps of 1e-3: rounding 1e-12, truncation 1e-11.
    h = 1e-3
    numeric = (8 * (at(h) - at(-h)) - (at(2 * h) - at(-2 * h))) / (12 * h)
    np.testing.assert_allclose(
        flat(hessian_product(risk, net, move)), numeric, rtol=1e-8, atol=1e-8
    )


# ---- at and near the teacher --------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("activation", ["relu", "erf"])
def test_at_the_teacher(activation):
    net = make(KEYS[3], 2, 4, activation=activation)
    # Two opposite units, and one with output weight 0.
    w, v = net.w.at[1].set(-net.w[0]), net.v.at[3].set(0.0)
    net = eqx.tree_at(lambda n: (n.w, n.v), net, (w, v))
    three = [a[:3] for a in (net.w, net.b, net.v)]
    teacher = gflow.ShallowNet.from_arrays(*three, net.c, activation=activation)
    risk = gflow.GaussianRisk(teacher)
    assert abs(VALUE(risk, net)) < 3e-15
    assert np.max(np.abs(flat(GRADIENT(risk, net)))) < 3e-15
    move = jax.tree.map(jnp.ones_like, net)
    product = hessian_product(risk, net, move)
    # 2 E(⟨∇N, d⟩²), the second difference of the risk.
    curvature = inner(product, move)
    beside = moved(net, move, 1e-4)
    # The risk is about 1e-7 there, with an error of 1e-15; its third derivatives are of order 1.
    assert curvature == pytest.approx(2e8 * float(VALUE(risk, beside)), rel=1e-3)


@pytest.mark.parametrize("distance", [1e-2, 1e-5, 1e-8, 0.0])
def test_error_near_the_teacher_is_the_stated_one(distance):
    teacher, move = (make(k, 3, 3, use_bias=False) for k in KEYS[4:6])
    net = moved(teacher, move, distance)
    a = np.concatenate([net.v, teacher.v])
    w = jnp.concatenate([net.w, teacher.w])
    kernel = jax.jit(kernels.relu_pairs)(w, None, w, None)
    scale = float(np.abs(a) @ kernel @ np.abs(a))
    exact = exact_risks.gaussian(net, teacher)[0]
    error = mp.mpf(float(VALUE(gflow.GaussianRisk(teacher), net))) - exact
    assert abs(float(error)) < 1e-16 * scale


# ---- flows --------------------------------------------------------------------------------------


@pytest.mark.slow
def test_flow_of_a_single_unit_is_the_polar_equation():
    """O13: radius and angle of the unit follow an equation of their own, in half the time of the
    literature, whose risk has a factor ½."""
    teacher = gflow.ShallowNet.from_arrays([[1.0, 0.0, 0.0, 0.0]], None, [1.0], None)
    start = 0.5 * np.array([[np.cos(2.5), 0.0, np.sin(2.5), 0.0]])
    net = gflow.ShallowNet.from_arrays(start, None, [1.0], None)
    ts = np.linspace(0.0, 6.0, 13)
    flow = gflow.solve_flow(
        gflow.GaussianRisk(teacher), net, t1=6.0, ts=ts, rtol=1e-11, trainable=("w",)
    )

    def polar(t, y):
        r, angle = y
        pull = np.sin(angle) + (np.pi - angle) * np.cos(angle)
        rates = -r / 2 + pull / (2 * np.pi), -(np.pi - angle) * np.sin(angle) / (2 * np.pi * r)
        return 2 * np.array(rates)

    wanted = scipy.integrate.solve_ivp(
        polar, (0, 6), [0.5, 2.5], t_eval=ts, rtol=1e-12, atol=1e-13, method="DOP853"
    ).y
    w = np.asarray(flow.params.w)[:, 0]
    np.testing.assert_allclose(np.linalg.norm(w, axis=1), wanted[0], atol=1e-9)
    np.testing.assert_allclose(np.arctan2(w[:, 2], w[:, 0]), wanted[1], atol=1e-9)
    r, angle = wanted
    risk = r**2 / 2 + 0.5 - r / np.pi * (np.sin(angle) + (np.pi - angle) * np.cos(angle))
    np.testing.assert_allclose(flow.risk, risk, atol=1e-9)
    assert np.max(np.abs(flow.diagnostics.energy)) < 1e-9


@pytest.mark.slow
def test_flow_and_descent():
    net, teacher = (make(k, 3, 3, use_bias=False) for k in KEYS[5:7])
    risk = gflow.GaussianRisk(teacher)
    flow = gflow.solve_flow(risk, net, t1=4.0)
    # A hundred times the tolerance of a step.
    assert np.max(np.abs(flow.diagnostics.energy)) < 1e-6 * flow.risk[0]
    assert np.max(np.abs(flow.diagnostics.balance)) < 1e-6
    assert flow.risk[-1] < 0.3 * flow.risk[0]
    gd = gflow.descend(risk, net, optax.sgd, step_size=1e-3, num_steps=4000)
    # Descent differs from the flow by O(step size).
    assert gd.risk[-1] == pytest.approx(float(flow.risk[-1]), rel=0.05)


@pytest.mark.slow
def test_flow_stays_at_the_teacher_and_degenerate_units_stay():
    teacher = make(KEYS[7], 3, 3, use_bias=False)
    teacher = eqx.tree_at(lambda n: n.v, teacher, teacher.v.at[2].set(0.0))
    w, v = teacher.w.at[2].set(0.0), teacher.v.at[2].set(0.5)
    net = eqx.tree_at(lambda n: (n.w, n.v), teacher, (w, v))
    flow = gflow.solve_flow(gflow.GaussianRisk(teacher), net, t1=10.0)
    # Steps grow until the explicit solver is unstable and rounding errors reach its tolerance.
    np.testing.assert_allclose(flow.final.w, w, rtol=0, atol=1e-7)
    np.testing.assert_array_equal(flow.final.w[2], 0.0)
    np.testing.assert_allclose(flow.final.v, v, rtol=0, atol=1e-7)


# ---- use ----------------------------------------------------------------------------------------


def test_under_vmap_and_in_float32():
    teacher = make(KEYS[0], 3, 3, use_bias=False)
    nets = eqx.filter_vmap(lambda key: make(key, 3, 3, use_bias=False))(KEYS[:3])
    risk = gflow.GaussianRisk(teacher)
    single = [VALUE(risk, jax.tree.map(lambda a, i=i: a[i], nets)) for i in range(3)]
    many = eqx.filter_jit(eqx.filter_vmap(lambda n: risk(n)))
    # The first is the teacher itself, where the terms, which are about 10, cancel.
    np.testing.assert_allclose(many(nets), single, rtol=1e-13, atol=1e-14)
    narrow = lambda net: jax.tree.map(lambda a: a.astype(jnp.float32), net)
    net = jax.tree.map(lambda a: a[0], nets)
    value, gradient = risk_and_gradient(gflow.GaussianRisk(narrow(teacher)), narrow(net))
    assert value.dtype == gradient.w.dtype == jnp.float32
    # 2⁻²⁴ times the terms of the sum, which are about 10.
    assert value == pytest.approx(float(single[0]), abs=1e-5)


@pytest.mark.parametrize(
    ("teacher", "message"),
    [
        (eqx.nn.MLP(2, "scalar", 3, 1, key=KEYS[0]), "`teacher`: got MLP, wanted a ShallowNet"),
        (make(KEYS[0], 2, 3, activation="tanh"), "`teacher`: got activation tanh, wanted relu"),
        (
            eqx.tree_at(lambda n: n.c, make(KEYS[0], 2, 3), jnp.asarray(np.nan)),
            "`teacher.c`: got nan",
        ),
    ],
)
def test_bad_teachers_are_named(teacher, message):
    with pytest.raises(gflow.ArgumentError, match=message):
        gflow.GaussianRisk(teacher)


@pytest.mark.parametrize(
    ("net", "message"),
    [
        (jnp.sin, "`net`: got .*, wanted a ShallowNet"),
        (make(KEYS[0], 2, 3, activation="softplus"), "`net`: got activation softplus"),
        (make(KEYS[0], 2, 3, activation="erf"), "`net`: got activation erf, .* teacher's relu"),
        (make(KEYS[0], 3, 3), "`net`: got a network of 3 inputs, wanted 2"),
        (make(KEYS[0], 2, 3, 1), "`net`: got out_size=1, wanted out_size='scalar'"),
    ],
)
def test_bad_networks_are_named(net, message):
    risk = gflow.GaussianRisk(make(KEYS[1], 2, 2))
    with pytest.raises(gflow.ArgumentError, match=message):
        risk(net)
