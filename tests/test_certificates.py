"""Certificates against closed forms, and against what flows and descents then do."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from jax.flatten_util import ravel_pytree

import gflow
from gflow.certificates.bounds import network_bounds
from gflow.certificates.criterion import CriterionProblem
from tests.helpers.slope_bounds import SLOPES, identity_and_tanh

product = gflow.SumOfSquares(lambda x: x[0] * x[1] - 1, jacobian_lipschitz=1.0)


def deep(last: float, out_size="scalar", n=4, d=5, width=6, depth=3):
    """The paper's initialisation: first weights 0, hidden ones positive, last ones large."""
    keys = jax.random.split(jax.random.key(0), 3)
    x = jax.random.normal(keys[0], (n, d))
    y = jax.random.normal(keys[1], (n,) if out_size == "scalar" else (n, out_size))
    net = eqx.nn.MLP(d, out_size, width, depth, activation=identity_and_tanh, key=keys[2])
    weights = [jnp.abs(layer.weight) for layer in net.layers]
    weights = [jnp.zeros_like(weights[0]), *weights[1:-1], last * jnp.ones_like(weights[-1])]
    if out_size != "scalar":
        weights[-1] = last * jnp.eye(out_size, width)
    parameters = lambda net: [a.weight for a in net.layers] + [a.bias for a in net.layers]
    zeros = [jnp.zeros_like(layer.bias) for layer in net.layers]
    return gflow.EmpiricalRisk(x, y), eqx.tree_at(parameters, net, weights + zeros)


# ---------------------------------------------------------------- the exact case


@pytest.mark.parametrize("start", [(1.6, 1.2), (0.3, -2.0), (2.0, 0.1)])
@pytest.mark.parametrize("fraction", [0.1, 0.5, 0.9, 1.2])
def test_the_exact_alpha_is_bracketed(start, fraction):
    start = np.array(start)
    size = np.linalg.norm(start)
    radius = fraction * size
    exact = 4 * max(size - radius, 0.0) ** 2
    certificate = gflow.chatterjee(product, jnp.asarray(start), radius)
    assert certificate.alpha_lower <= exact <= certificate.alpha_upper * (1 + 1e-7)
    assert certificate.alpha_lower == pytest.approx(exact, rel=1e-10)
    # The search comes within 1e-4 of the infimum. If that is 0, it finds a point whose ratio 4 |x|²
    # is 1e-6 of the first.
    assert certificate.alpha_upper == pytest.approx(exact, rel=1e-4, abs=1e-5)
    value = (start[0] * start[1] - 1) ** 2
    assert certificate.verdict == ("certified" if 4 * value < radius**2 * exact else "refuted")


def test_the_same_as_a_network_with_bounds_of_its_own():
    # N(1) = v w with the identity as activation: the kernel is v² + w².
    risk = gflow.EmpiricalRisk([[1.0]], [1.0])
    net = gflow.ShallowNet.from_arrays([[1.6]], None, [1.2], None, activation="identity")
    for radius in (0.2, 1.0, 1.9):
        certificate = gflow.chatterjee(risk, net, radius)
        exact = 4 * (2 - radius) ** 2
        assert certificate.alpha_lower == pytest.approx(exact, rel=1e-9)
        assert certificate.alpha_lower <= exact


def test_best_and_smallest_radius():
    certificate = gflow.chatterjee(product, jnp.array([1.6, 1.2]))
    # r² (2 - r)² is largest at r = 1, which is located to 1e-3.
    assert certificate.radius == pytest.approx(1.0, abs=2e-3)
    assert certificate.ratio == pytest.approx(4 / 3.3856, rel=1e-5)
    assert certificate.alpha_upper == pytest.approx(4.0, rel=1e-2)
    # r (2 - r) = √f = 0.92 from the left, to 1e-4.
    assert certificate.min_radius == pytest.approx(1 - 0.08**0.5, rel=2e-4)
    smallest = gflow.chatterjee(product, jnp.array([1.6, 1.2]), certificate.min_radius)
    assert smallest.verdict == "certified"
    assert smallest.alpha_lower > 1.6 * certificate.alpha_lower
    assert "certified" in repr(certificate) and "<table>" in certificate._repr_html_()


@pytest.mark.parametrize("start", [(0.6, 0.2), (0.5, -0.5), (1.0, 3.0)])
def test_refuted_at_every_radius(start):
    u, v = start
    fails = abs(u * v - 1) >= (u**2 + v**2) / 4
    certificate = gflow.chatterjee(product, jnp.array(start), critical_point=jnp.zeros(2))
    assert certificate.verdict == ("refuted" if fails else "certified")
    if not fails:
        return
    assert certificate.rate is None and certificate.step_size is None
    for envelope in (certificate.flow_envelope, certificate.descent_envelope):
        with pytest.raises(
            gflow.ArgumentError, match="`verdict`: got 'refuted', wanted 'certified'"
        ):
            envelope(1.0)
    # Without the critical point nothing is known about radii beyond those of the search.
    certificate = gflow.chatterjee(product, jnp.array(start))
    assert certificate.verdict == "undecided" and "radii up to" in certificate.reason


def test_linear_least_squares_are_exact():
    rng = np.random.default_rng(0)
    a, y = rng.normal(size=(3, 5)), rng.normal(size=3)
    f = gflow.SumOfSquares(lambda x: a @ x - y, jacobian_lipschitz=0.0)
    certificate = gflow.chatterjee(f, jnp.zeros(5))
    sizes = np.linalg.svd(a, compute_uv=False)
    assert certificate.rate == pytest.approx(4 * sizes[-1] ** 2, rel=1e-9)
    assert certificate.alpha_upper == pytest.approx(4 * sizes[-1] ** 2, rel=1e-2)
    assert certificate.curvature == pytest.approx(2 * sizes[0] ** 2, rel=1e-9)
    # The same as a network without hidden layer.
    risk = gflow.EmpiricalRisk(a, y)
    net = eqx.nn.MLP(5, "scalar", 1, 0, use_final_bias=False, key=jax.random.key(0))
    net = eqx.tree_at(lambda n: n.layers[0].weight, net, jnp.zeros((1, 5)))
    certificate = gflow.chatterjee(risk, net, starts=0)
    assert certificate.rate == pytest.approx(4 / 3 * sizes[-1] ** 2, rel=1e-9)
    assert certificate.witness is None and certificate.alpha_upper == np.inf


# ---------------------------------------------------------------- bounds of networks


def shallow(seed, activation, out_size="scalar", trained=None, width=5, scale=1.0):
    rng = np.random.default_rng(seed)
    outs = () if out_size == "scalar" else (out_size,)
    risk = gflow.EmpiricalRisk(
        rng.normal(size=(3, 2)), rng.normal(size=(3, *outs)), rng.uniform(0.5, 2, 3)
    )
    net = gflow.ShallowNet(
        2, width, out_size, key=jax.random.key(seed), activation=activation, init="ntk", scale=scale
    )
    return risk, net, trained


def positive_relu():
    """ReLU units that are all active, by a margin."""
    risk, net, _ = shallow(3, "relu", scale=2.0)
    return risk, eqx.tree_at(lambda n: n.b, net, jnp.full(5, 12.0)), None


CASES = {
    "tanh": lambda: shallow(0, "tanh"),
    "softplus, two outputs": lambda: shallow(1, "softplus", 2, width=7),
    "erf, first weights": lambda: shallow(2, "erf", trained=("w", "b"), width=9),
    "sigmoid, last weights": lambda: shallow(3, "sigmoid", trained=("v", "c")),
    "arctan": lambda: shallow(4, jnp.arctan, scale=2.0),
    "active relu": positive_relu,
    "deep": lambda: (*deep(0.7, n=3, d=3, width=4, depth=2), None),
    "deep, two outputs": lambda: (*deep(1.0, 2, n=3, d=3, width=4, depth=2), None),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_bounds_hold_at_points_of_the_ball(name):
    risk, net, trainable = CASES[name]()
    bounds = network_bounds(risk, net, trainable, SLOPES)
    problem = CriterionProblem.of(risk, net, trainable, lambda: bounds)
    theta, unravel = ravel_pytree(problem.trained)
    value = lambda p: risk(eqx.combine(unravel(p), problem.frozen))

    @jax.jit
    @jax.vmap
    def measure(p):
        f, gradient = jax.value_and_grad(value)(p)
        return f, jnp.sum(gradient**2) / f, jax.hessian(value)(p)

    # A radius at which the bounds are useful: half of the kernel remains.
    radius, start = 1.0, bounds.alpha(0.0)
    assert start > 0
    while bounds.alpha(radius) < start / 2:
        radius /= 2
    rng = np.random.default_rng(0)
    for factor in (1.0, 2.0):
        r = factor * radius
        off = rng.normal(size=(100, theta.size))
        off /= np.linalg.norm(off, axis=1, keepdims=True)
        # Also the directions in which single parameters move.
        off = np.concatenate([off, np.eye(theta.size), -np.eye(theta.size)])
        values, ratios, hessians = measure(np.asarray(theta)[None] + r * off)
        curvatures = np.linalg.norm(hessians, ord=2, axis=(1, 2))
        assert bounds.alpha(r) <= ratios.min()
        highest = float(values.max())
        assert curvatures.max() <= bounds.curvature(r, highest)
        # Not too large: within a factor of the largest curvature at these points.
        assert bounds.curvature(r, highest) < 60 * curvatures.max()
    if name in ("tanh", "deep"):
        # A search for the worst point of the ball beats random points.
        found = problem.search([2 * radius], 4, jax.random.key(0))[0]
        assert bounds.alpha(2 * radius) <= found.ratio < ratios.min()
    # At the start the bound of the kernel is exact up to rounding.
    weights = np.full(3, 1 / 3) if risk.weights is None else np.asarray(risk.weights)
    outputs = np.repeat(weights, risk.y.size // 3)
    kernel = np.asarray(gflow.tangent_kernel(risk, net, trainable))
    kernel = np.sqrt(outputs)[:, None] * kernel * np.sqrt(outputs)
    assert start == pytest.approx(4 * np.linalg.eigvalsh(kernel)[0], rel=1e-6)
    assert bounds.value() == pytest.approx(float(risk(net)), rel=1e-9)
    assert bounds.value() >= float(risk(net)) * (1 - 1e-15)


def test_slopes_are_enclosed():
    from gflow.certificates.activation_bounds import KNOWN

    z = np.linspace(-9, 9, 20001)
    for function, host in KNOWN.items():
        slope = np.asarray(jax.vmap(jax.grad(function))(z))
        np.testing.assert_allclose(host.value(z), function(z), rtol=1e-13, atol=1e-16)
        np.testing.assert_allclose(host.slope(z), slope, rtol=1e-9, atol=1e-13)
        second = np.abs(np.asarray(jax.vmap(jax.grad(jax.grad(function)))(z))).max()
        assert second <= host.bounds.curvature * (1 + 1e-12)
        assert second == pytest.approx(host.bounds.curvature, rel=1e-5)


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from([jnp.tanh, jax.nn.sigmoid, jax.nn.softplus, identity_and_tanh, "relu"]),
    st.floats(-4, 4),
    st.floats(0, 3),
    st.floats(0, 3),
)
def test_slopes_over_intervals(function, centre, below, above):
    from gflow.certificates.activation_bounds import host_activation

    host = host_activation(function, SLOPES)
    low, high = np.array([centre - below]), np.array([centre + above])
    lower, _, upper = host.slopes(low, np.array([centre]), high)
    inside = host.slope(np.linspace(low[0], high[0], 101))
    assert lower[0] <= inside.min() * (1 + 1e-12) and upper[0] >= inside.max() * (1 - 1e-12)


# ---------------------------------------------------------------- deep networks


def deep_certificate(last, out_size="scalar"):
    risk, net = deep(last, out_size)
    return gflow.chatterjee(risk, net, slopes=SLOPES, starts=0)


@pytest.mark.slow
@pytest.mark.parametrize(("out_size", "last"), [("scalar", 1e2), (2, 1e5)])
def test_deep_networks_are_certified_at_large_last_layers(out_size, last):
    assert deep_certificate(0.03, out_size).verdict != "certified"
    certificate, large = (deep_certificate(a, out_size) for a in (last, 10 * last))
    assert certificate.verdict == large.verdict == "certified"
    assert certificate.rate and large.rate
    # The risk at the start does not depend on the last layer, and the kernel grows like its square.
    assert large.initial_risk == pytest.approx(certificate.initial_risk, rel=1e-9)
    assert large.rate == pytest.approx(100 * certificate.rate, rel=0.1)


@pytest.mark.slow
def test_flow_and_descent_keep_the_promises():
    risk, net = deep(1e2)
    certificate = deep_certificate(1e2)
    assert certificate.rate
    flow = gflow.solve_flow(risk, net, t1=20 / certificate.rate)
    envelope = certificate.flow_envelope(flow.ts)
    # The flow is solved to 1e-8 of the risk.
    assert (flow.risk <= envelope.risk * (1 + 1e-6)).all()
    steps = 400
    options = {"step_size": certificate.step_size, "num_steps": steps, "record": range(steps + 1)}
    gd = gflow.descend(risk, net, **options)
    promised = certificate.descent_envelope(np.arange(steps + 1))
    assert (gd.risk <= promised.risk).all()


# ---------------------------------------------------------------- ReLU


def test_relu_is_certified_only_with_a_fixed_pattern_and_no_dead_unit():
    risk, net, _ = positive_relu()
    risk = gflow.EmpiricalRisk(risk.x, risk.predictions(net) + 0.01)
    assert gflow.chatterjee(risk, net, starts=0).verdict == "certified"
    dead = eqx.tree_at(lambda n: n.b, net, net.b.at[2].set(-12.0))
    risk = gflow.EmpiricalRisk(risk.x, risk.predictions(dead) + 0.01)
    certificate = gflow.chatterjee(risk, dead, starts=0)
    assert certificate.verdict == "undecided" and "unit 2 of hidden layer 1 is dead" in (
        certificate.reason
    )
    near = eqx.tree_at(lambda n: n.b, net, net.b.at[2].set(2.0))
    certificate = gflow.chatterjee(risk, near, 2.0, starts=0)
    assert certificate.alpha_lower == 0 and "kink" in certificate.reason


@pytest.mark.parametrize("seed", range(6))
def test_relu_networks_with_dead_units_are_never_certified(seed):
    rng = np.random.default_rng(seed)
    net = gflow.ShallowNet(3, 12, key=jax.random.key(seed), init="standard_normal", scale=3.0)
    net = eqx.tree_at(lambda n: n.b, net, net.b.at[:4].set(-100.0))
    x = rng.normal(size=(2, 3))
    close = jax.vmap(net)(x) + 1e-3 * rng.normal(size=2)
    certificate = gflow.chatterjee(gflow.EmpiricalRisk(x, close), net, starts=0)
    assert certificate.verdict != "certified"


@pytest.mark.slow
def test_the_constant_network_refutes():
    """All radii fail: small ones by search, large ones as the constant network is critical."""
    rng = np.random.default_rng(0)
    risk = gflow.EmpiricalRisk(rng.normal(size=(6, 1)), 10 * rng.normal(size=6))
    for activation in ("tanh", "relu"):
        net = gflow.ShallowNet(1, 3, key=jax.random.key(0), activation=activation, scale=0.3)
        certificate = gflow.chatterjee(risk, net)
        assert certificate.verdict == "refuted"
    mean = eqx.tree_at(lambda n: (n.w, n.v, n.c), net, (0 * net.w, 0 * net.v, jnp.mean(risk.y)))
    bounds = network_bounds(risk, net, None, None)
    assert gflow.sharpness(risk, mean) > 0
    off = ravel_pytree(jax.tree.map(lambda a, b: a - b, net, mean))[0]
    assert bounds.critical() == pytest.approx(float(jnp.linalg.norm(off)), rel=1e-9)
    gradient = ravel_pytree(gflow.generalized_gradient(risk, mean))[0]
    assert jnp.abs(gradient).max() < 1e-14 and risk(mean) > 1
    distance = bounds.critical()
    assert distance is not None
    beyond = gflow.chatterjee(risk, net, 1.01 * distance, starts=0)
    assert beyond.verdict == "refuted" and "critical point" in beyond.reason


# ---------------------------------------------------------------- other functions, and misuse


def test_bounds_of_the_user():
    f = lambda x: jnp.sum((x**2 - 1) ** 2)
    start = jnp.array([1.1, 0.9])
    # (∂f/∂x)²/f ≥ 16 min x², and the second derivative 12 x² - 4.
    alpha = lambda r: 16 * max(0.9 - r, 0.0) ** 2
    certificate = gflow.chatterjee(f, start, alpha_bound=alpha)
    assert certificate.verdict == "certified"
    assert certificate.step_size is None and "Hessian" in repr(certificate)
    with pytest.raises(gflow.ArgumentError, match="`curvature_bound`: .* a step size"):
        certificate.descent_envelope(1)
    assert certificate.alpha_lower <= certificate.alpha_upper
    curvature = lambda r: 12 * (1.1 + r) ** 2 - 4
    certificate = gflow.chatterjee(f, start, alpha_bound=alpha, curvature_bound=curvature)
    steps = np.arange(101)
    gd = gflow.descend(f, start, step_size=certificate.step_size, num_steps=100, record=range(101))
    promised = certificate.descent_envelope(steps)
    assert (gd.risk <= promised.risk * (1 + 1e-12) + 1e-30).all()
    distance = np.linalg.norm(np.asarray(gd.params) - 1, axis=1)
    assert (distance <= promised.distance).all()


def test_what_has_no_bounds_is_undecided():
    risk = gflow.PopulationRisk(gflow.piecewise.wave(), gflow.piecewise.uniform(-1, 1))
    net = gflow.ShallowNet(1, 4, key=jax.random.key(0))
    certificate = gflow.chatterjee(risk, net, 0.1, starts=0)
    assert certificate.verdict == "undecided" and "PopulationRisk" in certificate.reason
    risk, net = deep(1.0)
    certificate = gflow.chatterjee(risk, net, 0.1, starts=0)
    assert certificate.verdict == "undecided" and "`slopes`" in certificate.reason


def test_misuse():
    risk, net = deep(1.0)
    wrong = gflow.SlopeBounds(1.0, 1.5, 0.77, "bump")
    with pytest.raises(gflow.ArgumentError, match="slopes"):
        gflow.chatterjee(risk, net, slopes=wrong)
    with pytest.raises(gflow.ArgumentError, match="`min_slope`"):
        gflow.SlopeBounds(2.0, 1.0, 0.77)
    with pytest.raises(gflow.ArgumentError, match="at least 0"):
        gflow.chatterjee(lambda x: jnp.sum(x) - 5.0, jnp.ones(2))
    with pytest.raises(gflow.ArgumentError, match="at least 0"):
        gflow.chatterjee(product, jnp.array([jnp.nan, 1.0]))
    with pytest.raises(gflow.ArgumentError, match="radius"):
        gflow.chatterjee(product, jnp.array([2.0, 0.5]))
    assert gflow.chatterjee(product, jnp.array([2.0, 0.5]), 1.0).verdict == "certified"
    with pytest.raises(gflow.ArgumentError, match="critical_point"):
        gflow.chatterjee(product, jnp.array([0.6, 0.2]), critical_point=jnp.ones(2) / 2)
    with pytest.raises(gflow.ArgumentError, match="traced"):
        jax.jit(lambda x: gflow.chatterjee(product, x).radius)(jnp.ones(2))
    start = gflow.chatterjee(lambda x: 1 + jnp.sum(x**2), jnp.zeros(2))
    assert start.verdict == "refuted" and "critical" in start.reason


def test_bounds_that_the_search_disproves():
    f = lambda x: jnp.sum(x**2) + 1
    with pytest.raises(gflow.ArgumentError, match="alpha_bound"):
        gflow.chatterjee(f, jnp.array([1.0]), alpha_bound=lambda r: 100.0)
    with pytest.raises(gflow.ArgumentError, match="jacobian_lipschitz"):
        gflow.chatterjee(gflow.SumOfSquares(f, 0.0), jnp.array([1.0]))
