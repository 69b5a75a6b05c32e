"""The minimal-norm Clarke subgradient: closed forms, optimality, descent, and the sliding flow."""

from itertools import product
from math import comb

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize
from hypothesis import given, settings, strategies as st
from jax.flatten_util import ravel_pytree

import gflow
from gflow.nonsmooth.minimal_norm import box_constrained_weights, minimal_norm
from gflow.nonsmooth.shallow import subdifferential
from tests.helpers.kink_problems import data, single_unit
from tests.helpers.networks_as_vectors import flat, norm

KEY = jax.random.key(0)
# How far from a kink its sides are looked at; gradients move by about as much.
NEAR = 1e-9


def tied(seed: int, activation: str = "relu", out: int = 0, ties: int = 2):
    """Four units in three dimensions on six generic rows, two of them with `ties` <= 3 ties."""
    rng = np.random.default_rng(seed)
    x, y = rng.normal(size=(6, 3)), rng.normal(size=(6, out) if out else 6)
    u = rng.normal(size=(4, 4))
    rows = np.append(x, np.ones((6, 1)), axis=1)
    for unit in (0, 2):
        chosen = rows[rng.choice(6, ties, replace=False)]
        u[unit] -= np.linalg.pinv(chosen) @ (chosen @ u[unit])
    v = rng.normal(size=(4, out) if out else 4)
    c = rng.normal(size=out) if out else rng.normal()
    net = gflow.ShallowNet.from_arrays(u[:, :3], u[:, 3], v, c, activation=activation)
    return gflow.EmpiricalRisk(x, y, rng.uniform(0.1, 1, 6)), net


def blocks(tree) -> np.ndarray:
    """(w, b) of every unit, a row each."""
    return np.append(tree.w, np.asarray(tree.b)[:, None], axis=1)


def ties_of(risk, net) -> tuple[np.ndarray, np.ndarray]:
    """The rows with a one, and which of them are tied with which unit."""
    rows = np.append(risk.x, np.ones((risk.num_data, 1)), axis=1)
    return rows, np.abs(blocks(net) @ rows.T) < 1e-9


@eqx.filter_jit
def gradients_at(risk, net, units):
    """The gradient, flat, for each of several (w, b)."""
    moved = lambda u: eqx.tree_at(lambda n: (n.w, n.b), net, (u[:, :3], u[:, 3]))
    return jax.vmap(lambda u: ravel_pytree(gflow.generalized_gradient(risk, moved(u)))[0])(units)


def limits(risk, net) -> np.ndarray:
    """The gradients of the risk next to the network, on every side of every tie: an account of the
    subdifferential from its definition."""
    rows, ties = ties_of(risk, net)
    pairs = np.argwhere(ties)
    # Always 64, so that it is compiled once.
    sides = np.resize(list(product((-1.0, 1.0), repeat=len(pairs))), (64, len(pairs)))
    moved = np.tile(blocks(net), (64, 1, 1))
    for unit in set(pairs[:, 0]):
        mine = pairs[:, 0] == unit
        moved[:, unit] += NEAR * sides[:, mine] @ np.linalg.pinv(rows[pairs[mine, 1]]).T
    return np.asarray(gradients_at(risk, net, jnp.asarray(moved)))


# ---- closed forms ---------------------------------------------------------------------------


def test_at_rest_on_a_kink_the_element_is_zero():
    # The risk is ((|w| + 1)² + 1)/2, of which 0 is the minimum.
    risk = data((1, -1), (-1, -1))
    assert norm(gflow.clarke_gradient(risk, single_unit(0.0))) == 0
    away = gflow.clarke_gradient(risk, single_unit(0.5), trainable=("w",))
    np.testing.assert_allclose(away.w, 1.5)


def test_opposite_rows_are_not_on_every_side_at_once():
    # The risk is ((w − 1)² + 1)/2. Free weights on both rows would give 0.
    risk, net = data((1, 1), (-1, -1)), single_unit(0.0)
    assert gflow.generalized_gradient(risk, net).w == 0
    np.testing.assert_allclose(gflow.clarke_gradient(risk, net).w, [[-1.0]], rtol=1e-15)


def test_the_element_of_a_sliding_point_is_minus_its_velocity():
    # ½Σ over four rows is twice the mean. In it w₂' = 10 − 2 w₂ while w slides on w₁ = 0.
    risk = data((1, 0, -1), (-1, 0, -1), (1, 1, 3), (0, 1, 7))
    for w2 in (2.5, 3.7):
        g = gflow.clarke_gradient(risk, single_unit(0.0, w2), trainable=("w",))
        np.testing.assert_allclose(2 * g.w, [[0.0, 2 * w2 - 10]], atol=1e-14)
    # Beyond w₂ = 4 the weights end at the sides: relu(−w₁) is active, and w₁ falls.
    g = gflow.clarke_gradient(risk, single_unit(0.0, 4.5), trainable=("w",))
    np.testing.assert_allclose(2 * g.w, [[0.5, -1.0]], atol=1e-14)


def test_leaky_units_weigh_between_their_two_slopes():
    # The sides of the row 1 have slopes 2 and 2 α, that of the row −1 is the other.
    net = gflow.ShallowNet.from_arrays([[0.0]], None, [1.0], None, activation="leaky_relu(0.2)")
    # ∂L/∂a = (1, −1): w > 0 gives 1 + 0.2, w < 0 gives 0.2 + 1.
    g = gflow.clarke_gradient(data((1, -1), (-1, 1)), net, trainable=("w",))
    np.testing.assert_allclose(g.w, [[1.2]], rtol=1e-14)
    # ∂L/∂a = (1, 0.5): 1 − 0.1 and 0.2 − 0.5 have 0 between them.
    g = gflow.clarke_gradient(data((1, -1), (-1, -0.5)), net, trainable=("w",))
    assert g.w == 0


def test_a_concave_kink_keeps_the_nearer_side():
    # ∂L/∂a = −1 at the tie and a slope of 3 from elsewhere in the same direction: 3 or 2.
    net = gflow.ShallowNet.from_arrays([[1.0]], [-1.0], [1.0], None)
    risk = data((1, 1), (2, -2), weights=[1.0, 1.0])
    g = gflow.clarke_gradient(risk, net, trainable=("b",))
    # Row 2 has r = 3, row 1 has r = −1.
    np.testing.assert_allclose(g.b, [2.0])
    np.testing.assert_allclose(gflow.generalized_gradient(risk, net, ("b",)).b, [3.0])


def test_equal_rows_are_one_kink():
    # The row 1 twice, pulling up and down: together as two rows at the mean of their targets.
    net = gflow.ShallowNet.from_arrays([[1.0]], [-1.0], [1.0], 0.0)
    risk, joint = data((1, -1), (1, 4), (2, 0)), data((1, 1.5), (1, 1.5), (2, 0))
    for names in (("w",), ("w", "b"), ("w", "v")):
        got = gflow.clarke_gradient(risk, net, trainable=names)
        expected = gflow.clarke_gradient(joint, net, trainable=names)
        np.testing.assert_allclose(got.w, expected.w, rtol=1e-14)
        assert norm(got) < norm(gflow.generalized_gradient(risk, net, names)) or names == ("w",)


def test_degenerate_unit_has_the_patterns_that_occur():
    # At w = 0 the risk is, to first order, Σ q_n relu(⟨w, x_n⟩): its gradients by brute force.
    x = np.array([[1.0, 0], [-1, 0], [0, 1], [0, -1], [1, 1], [-0.3, 0.8]])
    q = np.array([1.0, -1.5, 1.2, 0.7, 0.5, -0.3])
    risk, net = gflow.EmpiricalRisk(x, -3 * q), single_unit(0.0, 0.0)
    g = np.asarray(gflow.clarke_gradient(risk, net).w[0])
    angles = np.linspace(0, 2 * np.pi, 10_000) + 1e-3
    active = np.stack([np.cos(angles), np.sin(angles)], axis=1) @ x.T > 0
    vertices = np.unique(active, axis=0) * q @ x
    assert len(vertices) == 8
    best = minimal_norm(lambda p: vertices[np.argmin(vertices @ p)], vertices[0])
    np.testing.assert_allclose(g, best, atol=1e-14)
    # Free weights would reach 0, as ReLU'(0) = 0 does.
    assert np.linalg.norm(g) > 0.5


@pytest.mark.parametrize(("ties", "dim"), [(2, 1), (4, 2), (6, 3), (3, 3), (6, 4)])
@pytest.mark.parametrize("whole", [False, True])
def test_patterns_that_occur(ties, dim, whole):
    rng = np.random.default_rng(ties)
    # Whole numbers make normals that are dependent in groups.
    normals = rng.integers(-1, 2, (ties, dim)) + 0.0 if whole else rng.normal(size=(ties, dim))
    normals[:, 0] += ~normals.any(axis=1)
    listed = subdifferential.patterns(normals)
    # None is missing, and each has a direction: ±⟨d, m_n⟩ ≥ 1 can be solved.
    met = np.unique(rng.normal(size=(5000, dim)) @ normals.T > 0, axis=0)
    assert {tuple(p) for p in met} <= {tuple(p) for p in listed}
    for pattern in listed:
        sided = np.where(pattern, -1.0, 1.0)[:, None] * normals
        found = scipy.optimize.linprog(np.zeros(dim), sided, -np.ones(ties), bounds=(None, None))
        assert found.status == 0
    if not whole:
        # Schläfli's count of the cells of hyperplanes in general position.
        assert len(listed) == 2 * sum(comb(ties - 1, j) for j in range(dim))


@given(seed=st.integers(0, 10_000), points=st.integers(1, 12), dim=st.integers(1, 6))
@settings(max_examples=100, deadline=None)
def test_least_norm_in_a_polytope(seed, points, dim):
    rng = np.random.default_rng(seed)
    vertices = rng.normal(size=(points, dim)) + 0.5 * rng.normal(size=dim)
    vertices[rng.integers(points)] = vertices[0]
    p = minimal_norm(lambda p: vertices[np.argmin(vertices @ p)], vertices[0])
    assert np.min(vertices @ p) >= p @ p - 1e-14 * np.max(vertices**2) * dim
    # In the hull: nonnegative weights of sum one give it.
    system = np.append(vertices, np.ones((points, 1)), axis=1).T
    assert scipy.optimize.nnls(system, np.append(p, 1.0))[1] < 1e-12


@given(
    seed=st.integers(0, 10_000),
    kinks=st.integers(1, 6),
    dim=st.integers(1, 6),
    scale=st.sampled_from([1e-8, 1.0, 1e8]),
)
@settings(max_examples=100, deadline=None)
def test_weights_in_a_box_at_any_scale(seed, kinks, dim, scale):
    rng = np.random.default_rng(seed)
    jumps = rng.normal(size=(kinks, dim))
    # The minimum is 0 for some, with weights inside the box, and at its sides for others.
    start = -rng.uniform(-0.5, 1.5, kinks) @ jumps + rng.choice([0.0, 0.3]) * rng.normal(size=dim)
    weights = box_constrained_weights(scale * start, scale * jumps)
    assert np.all((weights >= 0) & (weights <= 1))
    # Optimal to rounding: ⟨p, h⟩ ≥ ‖p‖² at the minimum p for every h that weights can give.
    best = start + weights @ jumps
    size = np.linalg.norm(start) + np.linalg.norm(jumps)
    lowest = start + (jumps @ best < 0) @ jumps
    assert best @ (lowest - best) >= -1e-14 * size**2


@pytest.mark.parametrize("scale", [1e-8, 1.0, 1e8])
@pytest.mark.parametrize("apart", [1e-3, 1e-6, 1e-9])
def test_weights_of_nearly_dependent_jumps(scale, apart):
    # Both jumps are needed: the weights are 1/2 up to roundings of the small component.
    jumps = np.array([[1.0, apart, 0.0], [-1.0, apart, 0.0]])
    start = np.array([0.0, -apart, 2.0])
    weights = box_constrained_weights(scale * start, scale * jumps)
    np.testing.assert_allclose(weights, 0.5, atol=1e-15 / apart)
    np.testing.assert_allclose(start + weights @ jumps, [0.0, 0.0, 2.0], atol=1e-15)


def test_weights_of_jumps_of_different_lengths():
    # Each jump cancels one component, from 1e-8 to 1e8.
    lengths = 10.0 ** np.arange(-8, 9, 4)
    weights = box_constrained_weights(-0.25 * lengths, np.diag(lengths))
    np.testing.assert_allclose(weights, 0.25, rtol=1e-14)
    # Without jumps, the weights do not matter.
    assert box_constrained_weights(np.ones(2), np.zeros((0, 2))).shape == (0,)
    assert np.all(np.isfinite(box_constrained_weights(np.ones(2), np.zeros((3, 2)))))


def test_too_many_patterns_warn():
    rng = np.random.default_rng(0)
    risk = gflow.EmpiricalRisk(rng.normal(size=(40, 4)), rng.normal(size=40))
    net = gflow.ShallowNet.from_arrays(np.zeros((1, 4)), [0.0], [1.0], None)
    with pytest.warns(UserWarning, match="unit 0 has 40 ties"):
        gflow.clarke_gradient(risk, net)


# ---- properties -----------------------------------------------------------------------------


CASES = {
    "seed": st.integers(0, 10_000),
    "kind": st.sampled_from([("relu", 0), ("leaky_relu(0.3)", 2)]),
    "ties": st.integers(1, 3),
}


@settings(max_examples=25, deadline=None)
@given(**CASES)
def test_least_norm_in_the_hull_of_the_gradients_nearby(seed, kind, ties):
    risk, net = tied(seed, *kind, ties)
    g, vertices = flat(gflow.clarke_gradient(risk, net)), limits(risk, net)
    scale = np.max(np.linalg.norm(vertices, axis=1))
    assert np.linalg.norm(g) <= norm(gflow.generalized_gradient(risk, net)) * (1 + 1e-12)
    # Optimality over the hull: ⟨g, h⟩ ≥ ‖g‖² for every h in it.
    assert np.min(vertices @ g) >= g @ g - 1e-5 * scale**2
    # In the hull: its nearest point to g is g.
    shifted = vertices - g
    nearest = minimal_norm(lambda p: shifted[np.argmin(shifted @ p)], shifted[0])
    assert np.linalg.norm(nearest) <= 1e-5 * scale


def slopes(risk, net) -> np.ndarray:
    """∂L/∂a of every unit and row."""

    def of(a):
        outputs = a @ net.v + jnp.broadcast_to(net.c, (a.shape[0], *net.c.shape))
        return risk.weights @ jax.vmap(risk.loss)(outputs, risk.y)

    return np.asarray(jax.grad(of)(net.activation(jax.vmap(net.preactivations)(risk.x)))).T


@settings(max_examples=25, deadline=None)
@given(**CASES)
def test_weights_of_the_sides_solve_the_box_problem(seed, kind, ties):
    risk, net = tied(seed, *kind, ties)
    slope, (rows, tied_pairs) = net.activation.negative_slope, ties_of(risk, net)
    got, q = blocks(gflow.clarke_gradient(risk, net)), slopes(risk, net)
    active = blocks(net) @ rows.T > 0
    for unit in (0, 2):
        on = tied_pairs[unit]
        inactive = (q[unit] * np.where(active[unit] & ~on, 1.0, slope)) @ rows
        jumps = (1 - slope) * q[unit, on, None] * rows[on]
        # Wolfe's algorithm on all sides. It compares squared norms, to 1e-15: norms to 3e-8.
        lowest = lambda p, start=inactive, jumps=jumps: start + (jumps @ p < 0) @ jumps
        scale = np.linalg.norm(inactive) + np.linalg.norm(jumps)
        expected = minimal_norm(lowest, inactive)
        np.testing.assert_allclose(got[unit], expected, atol=1e-7 * scale)
        # Optimal to rounding: ⟨g, h⟩ ≥ ‖g‖² for every h of the subdifferential.
        assert got[unit] @ (lowest(got[unit]) - got[unit]) >= -1e-14 * scale**2


@settings(max_examples=25, deadline=None)
@given(**CASES)
def test_descends_at_the_rate_of_its_norm(seed, kind, ties):
    risk, net = tied(seed, *kind, ties)
    theta, unravel = ravel_pytree(net)
    g = flat(gflow.clarke_gradient(risk, net))
    size = np.linalg.norm(g)
    at = lambda h: float(risk(unravel(theta - h * g / size)))
    # One-sided, with one extrapolation: the rest is O(h²).
    h = 1e-5
    rate = (4 * at(h) - at(2 * h) - 3 * at(0.0)) / (2 * h)
    assert rate <= -size + 1e-4 * (1 + size)


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10_000), activation=st.sampled_from(["relu", "leaky_relu(0.3)"]))
def test_away_from_kinks_it_is_the_gradient(seed, activation):
    risk, net = tied(seed, activation=activation, ties=1)
    net = eqx.tree_at(lambda n: n.b, net, net.b + 1e-3)
    assert (
        flat(gflow.clarke_gradient(risk, net)) == flat(gflow.generalized_gradient(risk, net))
    ).all()


def test_logistic_loss_and_frozen_parameters():
    risk, net = tied(3, ties=3)
    risk = gflow.EmpiricalRisk(risk.x, jnp.sign(risk.y), risk.weights, loss="logistic")
    whole = gflow.clarke_gradient(risk, net)
    assert norm(whole) < norm(gflow.generalized_gradient(risk, net))
    for names in (("w",), ("b",), ("b", "v")):
        g = gflow.clarke_gradient(risk, net, trainable=names)
        assert [n for n in "wbvc" if getattr(g, n) is not None] == list(names)
        # Less to move leaves less of the norm.
        assert norm(g) <= norm(whole)
    # Without w and b there are no kinks.
    g = gflow.clarke_gradient(risk, net, trainable=("v", "c"))
    expected = gflow.generalized_gradient(risk, net, ("v", "c"))
    assert (flat(g) == flat(expected)).all()


def test_smooth_activations_have_their_gradient():
    risk, net = tied(1, activation="tanh")
    assert (
        flat(gflow.clarke_gradient(risk, net)) == flat(gflow.generalized_gradient(risk, net))
    ).all()


def test_tolerance():
    # z = −1e-6, of size ‖(1, 1)‖ ‖(1, −1)‖ = 2; ∂L/∂a = 1 there, and −½ from the other row.
    net = gflow.ShallowNet.from_arrays([[1.0]], [-1.0 - 1e-6], [1.0], None)
    risk = data((1, -1), (2, 1.5))
    b = lambda tol: gflow.clarke_gradient(risk, net, tol=tol, trainable=("b",)).b[0]
    assert b(4e-7) == pytest.approx(-0.5, abs=1e-5)
    assert b(6e-7) == pytest.approx(0.0, abs=1e-15)


def test_what_cannot_be_used():
    risk, net = tied(0)
    with pytest.raises(gflow.ArgumentError, match="`risk`: got"):
        gflow.clarke_gradient(lambda n: risk(n), net)
    with pytest.raises(gflow.ArgumentError, match="`net`: got dict"):
        gflow.clarke_gradient(risk, {"w": jnp.ones(3)})
    with pytest.raises(gflow.ArgumentError, match="`tol`"):
        gflow.clarke_gradient(risk, net, tol=-1.0)
    with pytest.raises(gflow.ArgumentError, match="outside jax.jit"):
        eqx.filter_jit(gflow.clarke_gradient)(risk, net)


# ---- the field that the flow follows --------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 3, 4])
def test_the_sliding_flow_follows_it(seed):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(12, 2))
    risk = gflow.EmpiricalRisk(x, np.sin(2 * x[:, 0]) + 0.5 * rng.normal(size=12))
    net = gflow.ShallowNet(2, 6, key=jax.random.key(seed))
    flow = gflow.solve_flow(risk, net, t1=30.0)
    assert flow.kinks.sliding_at(30.0)
    speed = float(flow.grad_norm[-1])
    # The flow keeps sliding pairs within 1e-12 of their kinks.
    assert norm(gflow.clarke_gradient(risk, flow.final)) == pytest.approx(speed, rel=1e-9)
    assert norm(gflow.generalized_gradient(risk, flow.final)) > 2 * speed
