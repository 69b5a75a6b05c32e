"""The risk on a box, against iterated one-dimensional Gauss rules split at every kink."""

import itertools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from hypothesis.extra.numpy import arrays

import gflow
from tests.helpers.derivatives import hessian_product, risk_and_gradient
from tests.helpers.gauss_rules import gauss
from tests.helpers.networks_as_vectors import inner, moved, stacked

TARGETS = {
    1: {(2,): 1.0, (0,): -0.5},
    2: {(2, 0): 1.0, (1, 1): -2.0, (0, 1): -3.0, (0, 0): 0.25},
    3: {(2, 0, 0): 1.0, (0, 1, 1): -2.0, (0, 0, 1): 0.5},
}
BOXES = {1: ([-1.0], [2.0]), 2: ([-1.0, 0.5], [1.0, 2.0]), 3: ([-1.0, 0.5, -2.0], [1.0, 2.0, -1.0])}


# Other targets have the same exponents, to save compilation.
def target(d: int, coefficients: dict) -> dict:
    return {es: coefficients.get(es, 0.0) for es in TARGETS[d]}


RISKS = {d: gflow.BoxRisk(TARGETS[d], *BOXES[d]) for d in TARGETS}


def vertices(planes: np.ndarray) -> np.ndarray:
    """First coordinates of the points where d of the planes (n, d + 1) meet."""
    d = planes.shape[1] - 1
    planes = planes / np.maximum(np.abs(planes).max(axis=1, keepdims=True), 1e-300)
    groups = planes[list(itertools.combinations(range(len(planes)), d))]
    good = np.abs(np.linalg.det(groups[:, :, :d])) > 1e-14
    return np.linalg.solve(groups[good, :, :d], -groups[good, :, d:])[:, 0, 0]


def box_rule(planes, low, high, count) -> tuple[np.ndarray, np.ndarray]:
    """Nodes (n, d) and weights of a rule that is exact for functions that are polynomials between
    the planes: in the first coordinate between the vertices, then in those that remain."""
    d = len(low)
    if d == 1:
        slopes = planes[:, 0]
        at = -planes[slopes != 0, 1] / slopes[slopes != 0]
    else:
        faces = np.eye(d)[np.repeat(np.arange(1, d), 2)]
        ends = np.stack([low[1:], high[1:]], axis=1).reshape(-1, 1)
        at = vertices(np.concatenate([planes, np.concatenate([faces, -ends], axis=1)]))
    inside = at[(at > low[0]) & (at < high[0])]
    x, w = gauss([low[0], *inside, high[0]], count)
    if d == 1:
        return x[:, None], w
    rules = []
    for first, weight in zip(x, w):
        rest = np.concatenate([planes[:, 1:d], planes[:, d:] + planes[:, :1] * first], axis=1)
        nodes, weights = box_rule(rest, low[1:], high[1:], count)
        rules.append((np.insert(nodes, 0, first, axis=1), weight * weights))
    nodes, weights = zip(*rules)
    return np.concatenate(nodes), np.concatenate(weights)


def parameters(net) -> dict[str, np.ndarray]:
    arrays = {name: getattr(net, name) for name in "wbvc"}
    return {name: np.asarray(a) for name, a in arrays.items() if a is not None}


def oracle(risk, net):
    """Risk, gradient, and the scales of their rounding errors."""
    theta = parameters(net)
    w, v = theta["w"], theta["v"].reshape(net.width, -1)
    b = theta.get("b", np.zeros(net.width))
    low, high = np.asarray(risk.low), np.asarray(risk.high)
    count = max(risk.degree, 1) + 1 + (risk.in_size - 1) // 2
    x, omega = box_rule(np.concatenate([w, b[:, None]], axis=1), low, high, count)
    omega = omega / np.prod(high - low)
    z, alpha, s = x @ w.T + b, net.activation.negative_slope, net.output_scale
    slope = np.where(z > 0, 1.0, alpha)
    target = np.zeros((len(x), v.shape[1]))
    for exponents, coefficient in zip(risk.exponents, np.asarray(risk.coefficients)):
        target += np.prod(x**exponents, axis=1)[:, None] * coefficient
    r = s * (slope * z) @ v + theta.get("c", np.zeros(())) - target
    back = s * slope * (r @ v.T) * omega[:, None]
    gradient = {
        "w": 2 * back.T @ x,
        "b": 2 * back.sum(axis=0),
        "v": 2 * s * (slope * z).T @ (omega[:, None] * r),
        "c": 2 * omega @ r,
    }
    size = np.abs(np.concatenate([low, high, [1.0]])).max()
    parts = s * np.abs(v).max(axis=1) * (np.abs(w).sum(axis=1) * size + np.abs(b))
    scale = parts.sum() + np.abs(target).max() + np.abs(theta.get("c", 0)).max()
    unit = 1 + np.abs(w).max() * size + np.abs(b).max() + s * np.abs(v).max()
    shaped = {name: gradient[name].reshape(a.shape) for name, a in theta.items()}
    return omega @ np.sum(r**2, axis=1), shaped, scale, unit * size


def check(risk, net):
    value, gradient = risk_and_gradient(risk, net)
    expected, expected_gradient, scale, unit = oracle(risk, net)
    assert abs(value - expected) <= 1e-14 * scale**2
    for name, array in expected_gradient.items():
        error = np.abs(np.asarray(getattr(gradient, name)) - array).max()
        assert error <= 1e-14 * scale * unit, name


def random_net(d, width, seed, **options):
    return gflow.ShallowNet(d, width, key=jax.random.key(seed), init="standard_normal", **options)


def as_net(w, b, v, c, **options):
    return gflow.ShallowNet.from_arrays(w, b, v, c, **options)


@pytest.mark.parametrize(
    ("d", "width", "options"),
    [
        (1, 7, {}),
        (2, 1, {}),
        (2, 9, {}),
        (2, 9, {"activation": "leaky_relu(0.2)", "output_scale": 0.5}),
        (2, 9, {"use_bias": False}),
        (3, 3, {}),
        (3, 3, {"activation": "leaky_relu(0.2)", "use_bias": False}),
    ],
)
def test_risk_and_gradient_are_the_integrals(d, width, options):
    for seed in range(5 if d < 3 else 1):
        check(RISKS[d], random_net(d, width, seed, **options))


def test_vector_output():
    target = {(3, 1): [1.0, 0.0], (0, 0): [-0.5, 2.0]}
    check(gflow.BoxRisk(target, -0.5, 1.0), random_net(2, 5, 0, out_size=2))


# Whole numbers give lines through corners, along edges and the diagonal, equal lines, units with
# w = 0 and degenerate units.
WHOLE = st.sampled_from([-2.0, -1.0, 0.0, 1.0, 2.0])
# XLA takes some subnormal numbers for 0, NumPy does not.
NORMAL = st.floats(-3, 3, allow_subnormal=False)
ANY = NORMAL | WHOLE | st.sampled_from([1e-8, -1e-8, 1e-150, -1e-17])


@pytest.mark.slow
@settings(max_examples=100, deadline=None)
@given(
    w=arrays(float, (4, 2), elements=WHOLE) | arrays(float, (4, 2), elements=ANY),
    b=arrays(float, 4, elements=WHOLE) | arrays(float, 4, elements=ANY),
    v=arrays(float, 4, elements=ANY),
    nudge=st.sampled_from([0.0, 1e-16, 1e-13, 1e-9]),
)
def test_lines_in_awkward_places(w, b, v, nudge):
    # The second line is almost on top of the first one, or on it, or equal and opposite.
    w[1], b[1] = w[0] * np.sign(b[1] + 0.5), b[0] * np.sign(b[1] + 0.5) + nudge
    net = as_net(w, b, v, 0.3)
    risk = gflow.BoxRisk(TARGETS[2], (-1.0, -1.0), (1.0, 1.0))
    check(risk, net)
    ones = jax.tree.map(jnp.ones_like, net)
    assert all(np.isfinite(a).all() for a in jax.tree.leaves(hessian_product(risk, net, ones)))


@pytest.mark.slow
@settings(max_examples=10, deadline=None)
@given(
    w=arrays(float, (3, 3), elements=WHOLE),
    b=arrays(float, 3, elements=WHOLE),
    opposite=st.booleans(),
)
def test_planes_in_awkward_places(w, b, opposite):
    if opposite:
        w[1], b[1] = -w[0], -b[0]
    net = as_net(w, b, np.array([1.0, -2.0, 0.5]), 0.3)
    risk = gflow.BoxRisk(TARGETS[3], -1.0, 1.0)
    check(risk, net)
    ones = jax.tree.map(jnp.ones_like, net)
    assert all(np.isfinite(a).all() for a in jax.tree.leaves(hessian_product(risk, net, ones)))


def hessian_error(risk, net, step, seed=0):
    """The largest error of a Hessian-vector product against central differences of the gradient,
    relative to its largest entry."""
    keys = jax.random.split(jax.random.key(seed), 4)
    leaves, structure = jax.tree.flatten(net)
    direction = [jax.random.normal(key, a.shape) for key, a in zip(keys, leaves)]
    direction = jax.tree.unflatten(structure, direction)
    at = lambda t: risk_and_gradient(risk, moved(net, direction, t))[1]
    numeric = jax.tree.map(lambda p, m: (p - m) / (2 * step), at(step), at(-step))
    product = hessian_product(risk, net, direction)
    pairs = list(zip(jax.tree.leaves(product), jax.tree.leaves(numeric)))
    size = max(float(jnp.abs(n).max()) for _, n in pairs)
    return max(float(jnp.abs(p - n).max()) for p, n in pairs) / size


@pytest.mark.slow
@pytest.mark.parametrize(("d", "activation"), [(2, "relu"), (2, "leaky_relu(0.2)"), (3, "relu")])
def test_hessian_is_the_derivative_of_the_gradient(d, activation):
    net = random_net(d, 9 if d == 2 else 3, 3, activation=activation)
    # Truncation step² and rounding 1e-15 / step are both about 1e-10.
    assert hessian_error(RISKS[d], net, 1e-5) < 1e-8


@pytest.mark.parametrize(
    "lines",
    [
        [[1, 1, 0], [1, 1, 0], [-1, -1, 0], [2, 2, 0]],
        [[1, -1, 0], [1, 1, 0], [2, 1, -1], [-1, 1, 0]],
        [[1, 0.5, -0.5], [1, -3, -2], [0.5, 1, 1.5], [1, 0.5, 0.2]],
        [[1, 0, 0], [0, 1, 0], [1, 1, 0], [2, -1, 0]],
        [[1, 0, 0], [1, 1e-200, 0], [-1, 1e-17, 0], [1, 1e-9, 0]],
    ],
    ids=["on each other", "diagonals", "through corners", "through one point", "almost equal"],
)
def test_hessian_where_lines_meet(lines):
    lines = np.array(lines, float)
    net = as_net(lines[:, :2], lines[:, 2], [1.0, -0.7, 0.6, 0.5], 0.2)
    risk = gflow.BoxRisk(TARGETS[2], -1.0, 1.0)
    # The Hessian is continuous but not differentiable there: the error is of the order of the step.
    assert hessian_error(risk, net, 1e-6) < 1e-5


def test_closed_forms():
    # All units dead: N = c, and ∫ (c − x₁ x₂)² = c² − c / 2 + 1 / 9 over the unit square.
    dead = as_net(-np.ones((4, 2)), -np.ones(4), np.ones(4), 0.7)
    risk = gflow.BoxRisk(target(2, {(1, 1): 1.0}), 0.0, 1.0)
    expected = 0.7**2 - 0.35 + 1 / 9
    assert float(risk_and_gradient(risk, dead)[0]) == pytest.approx(expected, rel=1e-15)
    # ∫ max(x₁ + x₂ + x₃ − 5/2, 0)² over the unit cube: the corner simplex of edge 1/2.
    corner = as_net(np.ones((3, 3)), -np.array([2.5, 4, 4]), np.ones(3), 0.0)
    risk = gflow.BoxRisk(target(3, {}), 0.0, 1.0)
    assert float(risk_and_gradient(risk, corner)[0]) == pytest.approx(2 * 0.5**5 / 120, rel=1e-13)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 1000), xi=st.floats(-3, 3))
def test_lyapunov_identity_of_constant_targets(seed, xi):
    # <∇V, G> = 8 L for V = ‖θ‖² + (c − 2ξ)² (Cheridito et al., arXiv 2102.09924).
    net = random_net(2, 9, seed)
    value, gradient = risk_and_gradient(gflow.BoxRisk(target(2, {(0, 0): xi}), -1.0, 2.0), net)
    slope = float(2 * (inner(net, gradient) + (net.c - 2 * xi) * gradient.c))
    assert slope == pytest.approx(float(8 * value), rel=1e-11)


def test_order_of_units_does_not_matter():
    net, order = random_net(2, 9, 1), np.array([3, 1, 4, 0, 5, 8, 2, 6, 7])
    permuted = jax.tree.map(lambda a: a[order] if a.ndim else a, net)
    value, gradient = risk_and_gradient(RISKS[2], net)
    other, permuted_gradient = risk_and_gradient(RISKS[2], permuted)
    assert float(other) == pytest.approx(float(value), rel=1e-13)
    np.testing.assert_allclose(permuted_gradient.w, gradient.w[order], atol=1e-12)


def test_close_to_a_perfect_fit():
    # f = 1/4 − 3 x₂ by one unit whose kink is outside the box.
    risk = gflow.BoxRisk(target(2, {(0, 1): -3.0, (0, 0): 0.25}), -1.0, 1.0)
    w = np.array([[0.0, -3.0], [1.0, 1.0], [-1.0, 0.5], [0.0, 0.0]])
    b, v = np.array([5.0, -4.0, -3.0, 0.0]), np.array([1.0, 0.4, 2.0, 1.0])
    assert abs(risk_and_gradient(risk, as_net(w, b, v, -4.75))[0]) <= 1e-30
    near = w + 1e-10 * np.random.default_rng(0).normal(size=(4, 2))
    # N − f = <w − exact w, x> for that unit; its rounding is 1e-16 of N, or 1e-5 of this.
    expected = np.sum((near - w)[0] ** 2) / 3
    value = risk_and_gradient(risk, as_net(near, b, v, -4.75))[0]
    assert float(value) == pytest.approx(expected, rel=2e-5)
    # Kinks that cancel leave a floor of rounding: max(z, 0) − max(−z, 0) = z.
    folded = as_net([[0, -3.0], [0, 3.0], [0, 0], [0, 0]], [0.25, -0.25, 0, 0], [1.0, -1, 1, 1], 0)
    assert abs(risk_and_gradient(risk, folded)[0]) <= 1e-14


@pytest.mark.slow
def test_flow_checks_itself():
    net = random_net(2, 9, 5)
    net = eqx.tree_at(lambda n: (n.w, n.b), net, (net.w.at[0].set(0.0), net.b.at[0].set(0.0)))
    flow = gflow.solve_flow(RISKS[2], net, t1=2.0, rtol=1e-9)
    # Both drift by about the tolerance for each unit of time, on the scale of risk and parameters.
    assert np.abs(flow.diagnostics.energy).max() <= 1e-7 * flow.risk[0]
    assert np.abs(flow.diagnostics.balance).max() <= 1e-7
    assert flow.risk[-1] < 0.5 * flow.risk[0] and flow.kinks is None
    # A degenerate unit remains degenerate.
    assert np.all(flow.final.w[0] == 0) and flow.final.b[0] == 0
    assert flow.final.b[1] != net.b[1]


def test_trained_parameters_and_batches():
    nets = [random_net(2, 9, seed) for seed in range(3)]
    single = lambda n: gflow.generalized_gradient(RISKS[2], n, ("v", "c"))
    some = eqx.filter_jit(eqx.filter_vmap(single))(stacked(nets))
    assert some.w is None
    for k, net in enumerate(nets):
        gradient = risk_and_gradient(RISKS[2], net)[1]
        np.testing.assert_allclose(some.v[k], gradient.v, atol=1e-11)
        np.testing.assert_allclose(some.c[k], gradient.c, atol=1e-11)


def test_derivatives_in_target_and_box():
    net, risk = random_net(2, 9, 0), RISKS[2]
    gradient = eqx.filter_jit(eqx.filter_grad(lambda r: r(net)))(risk)
    shift = jax.tree.map(lambda a: jnp.cos(jnp.arange(1.0, a.size + 1)), risk)
    up, down = (risk_and_gradient(moved(risk, shift, t), net)[0] for t in (1e-5, -1e-5))
    assert inner(gradient, shift) == pytest.approx(float(up - down) / 2e-5, rel=1e-7)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("x", 0.0, 1.0), "`target`: got 'x', wanted a mapping"),
        (({}, 0.0, 1.0), "`target`: got {}, wanted a mapping"),
        (({2: 1.0}, 0.0, 1.0), "`target`: got exponents"),
        (({(2, 0): 1.0, (1,): 1.0}, 0.0, 1.0), "one exponent for each of at most 3 inputs"),
        (({(0,) * 4: 1.0}, 0.0, 1.0), "one exponent for each of at most 3 inputs"),
        (({(-1, 0): 1.0}, 0.0, 1.0), "whole numbers, zero or more"),
        (({(0.5, 0): 1.0}, 0.0, 1.0), "whole numbers, zero or more"),
        (({(1, 0): np.nan}, 0.0, 1.0), "finite numbers only"),
        (({(1, 0): 1.0, (0, 1): [1.0, 2.0]}, 0.0, 1.0), "all of one shape"),
        (({(1, 0): np.ones((2, 2))}, 0.0, 1.0), "all of one shape"),
        (({(1, 0): 1.0}, (0.0, 0.0, 0.0), 1.0), r"`low`: got shape \(3,\)"),
        (({(1, 0): 1.0}, 0.0, np.inf), "`high`: got inf"),
        (({(1, 0): 1.0}, "left", 1.0), "`low`: got 'left'"),
        (({(1, 0): 1.0}, (0.0, 1.0), (1.0, 1.0)), "each entry above that of low"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(gflow.ArgumentError, match=message):
        gflow.BoxRisk(*arguments)


def test_networks_that_do_not_fit_are_refused():
    risk, key = RISKS[2], jax.random.key(0)
    with pytest.raises(gflow.ArgumentError, match="got activation tanh, wanted a ShallowNet"):
        risk(gflow.ShallowNet(2, 3, key=key, activation="tanh"))
    with pytest.raises(gflow.ArgumentError, match="got MLP, wanted a ShallowNet"):
        risk(eqx.nn.MLP(2, "scalar", 3, 1, key=key))
    with pytest.raises(gflow.ArgumentError, match="a network of 3 inputs, wanted 2"):
        risk(random_net(3, 3, 0))
    with pytest.raises(gflow.ArgumentError, match=r"output of shape \(2,\)"):
        risk(random_net(2, 3, 0, out_size=2))
