"""Critical points of networks with active kinks in all layers."""

from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize
from jax.flatten_util import ravel_pytree

import gflow
from gflow.critical import ActiveKink
from tests.helpers.deep_networks import OwnNetwork, on_kinks, preactivations, random_own_network
from tests.helpers.networks_as_vectors import disturbed, norm

MINIMUM, SADDLE = gflow.CriticalKind.LOCAL_MINIMUM, gflow.CriticalKind.SADDLE

# ---- two kinks of one row, by hand --------------------------------------------------------------


class TwoKinks(eqx.Module):
    """(relu(z₂) + p relu(z₁) + k z₁ + l b₂, b₁, b₂) with z₁ = b₁ and z₂ = w relu(z₁) + b₂."""

    b: jax.Array
    w: float
    p: float
    k: float
    l: float  # noqa: E741

    def __call__(self, x):
        a1 = jax.nn.relu(self.b[0])
        a2 = jax.nn.relu(self.w * a1 + self.b[1])
        smooth = self.k * self.b[0] + self.l * self.b[1]
        return jnp.append(a2 + self.p * a1 + smooth, self.b) + 0 * x[0]


def two_kinks(b, **constants: float) -> gflow.CriticalPoint:
    """Next to b = 0, where ∂L/∂N₁ is 1: L = (N₁ + ½)² + b₁² + b₂²."""
    risk = gflow.EmpiricalRisk([[1.0]], [[-0.5, 0.0, 0.0]])
    net = TwoKinks(b=jnp.array(b), **constants)
    return gflow.refine(risk, net, trainable=("b",), radius=2.0, throw=False)


@pytest.mark.parametrize("start", [(1e-3, 2e-3), (-1e-3, 2e-3), (-2e-3, -1e-3), (0.0, 0.0)])
def test_both_slopes_of_a_minimum_on_two_kinks(start):
    # λ₂ = −l/q₂ with q₂ = 1, and λ₁ = −k/q₁ with q₁ = p + w λ₂ q₂.
    point = two_kinks(start, w=1.0, p=0.3, k=-0.2, l=-0.5)
    assert point.kind is MINIMUM and point.risk == 0.25
    np.testing.assert_allclose(point.net.b, 0, atol=1e-15)
    weights = {kink.layer: kink.weight for kink in point.active_kinks}
    assert weights == pytest.approx({0: 0.2 / 0.8, 1: 0.5})
    assert point.strictly_complementary and point.residual < 1e-15
    assert len(point.spectrum.eigenvalues) == 0


def test_a_slope_at_the_edge_of_its_range_is_weakly_active():
    point = two_kinks((0.0, 0.0), w=1.0, p=0.3, k=0.0, l=-0.5)
    assert point.kind is MINIMUM and not point.strictly_complementary
    assert [kink.layer for kink in point.active_kinks] == [1]
    assert point.weakly_active == (ActiveKink(unit=0, datum=0, weight=0.0, layer=0),)


def test_a_kink_that_repels_makes_a_saddle():
    # λ₁ = ½, but q₁ = −1: the risk falls to both sides, with z₂ on its kink.
    point = two_kinks((0.0, 0.0), w=0.0, p=-1.0, k=0.5, l=-0.5)
    assert point.kind is SADDLE and len(point.active_kinks) == 2
    risk = gflow.EmpiricalRisk([[1.0]], [[-0.5, 0.0, 0.0]])
    for direction in point.descent_directions:
        assert risk(eqx.tree_at(lambda n: n.b, point.net, 1e-3 * direction.b)) < point.risk


def test_a_weakly_active_kink_that_repels_makes_a_saddle():
    # λ₁ = 0 and q₁ = −½: the risk falls where z₁ > 0 and b₂ = −z₁ keeps z₂ on its kink.
    point = two_kinks((0.0, 0.0), w=1.0, p=-1.0, k=0.0, l=-0.5)
    assert point.kind is SADDLE and "weakly active" in point.message
    (direction,) = point.descent_directions
    np.testing.assert_allclose(direction.b, np.array([1.0, -1.0]) / np.sqrt(2), rtol=1e-12)


def test_no_point_is_called_critical_where_the_slopes_are_none():
    # 0 is in the subdifferential, but by no slopes: q₁ = 0 with λ₂ = ½. The risk falls from there.
    constants = {"w": -2.0, "p": 1.0, "k": -0.4, "l": -0.5}
    risk = gflow.EmpiricalRisk([[1.0]], [[-0.5, 0.0, 0.0]])
    net = TwoKinks(b=jnp.zeros(2), **constants)
    assert norm(gflow.clarke_gradient(risk, net, trainable=("b",))) < 1e-15
    point = two_kinks((0.0, 0.0), **constants)
    assert not point.found or point.risk < 0.25


# ---- manufactured points ------------------------------------------------------------------------

# Two pairs are in one row, one above the other.
TIES = [(0, 1, 0), (1, 0, 0), (1, 2, 1), (0, 2, 2)]
WEIGHTS = [0.3, 0.6, 0.5, 0.8]


class Manufactured(NamedTuple):
    risk: gflow.EmpiricalRisk
    net: OwnNetwork


def output(net: OwnNetwork, x, slopes) -> jax.Array:
    """The output at one row with the slopes of all units given."""
    for matrix, slope in zip(net.matrices[:-1], slopes):
        x = slope * (matrix @ jnp.append(x, 1.0))
    return (net.matrices[-1] @ jnp.append(x, 1.0))[0]


def manufactured(seed: int, rows: int = 120, size: float = 0.1) -> Manufactured:
    """A table for which a network on the kinks TIES is critical with the slopes WEIGHTS there.

    The residuals r solve Σ_n r_n ∇N_n = 0, with those slopes, and have ∂L/∂a = 2 r ∂N/∂a/n > 0 at
    the ties. They are small, so that the Hessian along the kinks is not negative.
    """
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(rows, 2))
    net = on_kinks(random_own_network([2, 3, 3, 1], seed), x, TIES)
    slopes = [np.stack([preactivations(net, row)[k] > 0 for row in x]) * 1.0 for k in range(2)]
    for (layer, unit, datum), weight in zip(TIES, WEIGHTS):
        slopes[layer][datum, unit] = weight
    theta, unravel = ravel_pytree(net)
    of = lambda p, row, *slopes: output(unravel(p), row, slopes)
    values = jax.jit(jax.vmap(of, (None, 0, 0, 0)))(theta, x, *slopes)
    jacobian = jax.jit(jax.vmap(jax.grad(of), (None, 0, 0, 0)))(theta, x, *slopes)
    # The derivative of N by a: that by the slope, at z = 1 in place of 0.
    last = np.asarray(net.matrices[2])[0, :3]
    upper = np.asarray(net.matrices[1])[:, :3]
    by_activation = [last @ (slopes[1][n][:, None] * upper) for n in range(rows)]
    bounds = np.tile([-1.0, 1.0], (rows, 1))
    for layer, unit, datum in TIES:
        sign = np.sign(last[unit] if layer else by_activation[datum][unit])
        assert sign != 0
        bounds[datum, 0 if sign > 0 else 1] = 0.1 * sign
    solved = scipy.optimize.linprog(
        rng.normal(size=rows), A_eq=np.asarray(jacobian).T, b_eq=np.zeros(len(theta)), bounds=bounds
    )
    assert solved.status == 0
    return Manufactured(gflow.EmpiricalRisk(x, np.asarray(values) - size * solved.x), net)


@pytest.fixture(scope="module", params=[49, 56])
def made(request) -> Manufactured:
    return manufactured(request.param)


def test_manufactured_points_are_found_with_their_slopes(made):
    start = on_kinks(disturbed(made.net, 1e-5, 0), made.risk.x, TIES)
    point = gflow.refine(made.risk, start)
    # The start is near: its gradient is some 1e4 roundings of the terms it is made of.
    assert point.residual < max(1e-11 * norm(gflow.generalized_gradient(made.risk, start)), 1e-14)
    assert point.risk == pytest.approx(float(made.risk(made.net)), rel=1e-9)
    found = {(k.layer, k.unit, k.datum): k.weight for k in point.active_kinks}
    assert found == pytest.approx(dict(zip(TIES, WEIGHTS)), abs=1e-9)
    assert point.kind is MINIMUM and point.strictly_complementary
    # All that leaves the function as it is: rescaling, and what leads into dead units and out.
    assert point.zeros.unexplained == 0
    assert point.zeros.rescaling == 6 - len(point.units.dead)
    assert norm(gflow.clarke_gradient(made.risk, point.net)) < 1e-14


@pytest.mark.slow
def test_the_spectrum_is_that_of_the_risk_along_curved_kinks():
    made = manufactured(49)
    point = gflow.refine(made.risk, made.net)
    theta, unravel = ravel_pytree(point.net)

    def heights(p):
        z = [preactivations(unravel(p), row) for row in made.risk.x[:3]]
        return jnp.stack([z[n][layer][unit] for layer, unit, n in TIES])

    normals = np.asarray(jax.jacrev(heights)(theta))
    along = np.linalg.svd(normals)[2][len(TIES) :]
    back = lambda p: p - jnp.linalg.pinv(jax.jacrev(heights)(p)) @ heights(p)

    @jax.jit
    @jax.vmap
    def risk_at(step):
        return made.risk(unravel(back(back(back(theta + step)))))

    # Second differences along curves on the kinks, in all directions v and v + w.
    h, pairs = 1e-4, [(i, j) for i in range(len(along)) for j in range(i + 1)]
    sums = np.array([along[i] + along[j] for i, j in pairs])
    at = np.asarray(risk_at(h * sums)) + np.asarray(risk_at(-h * sums)) - 2 * point.risk
    hessian = np.zeros((len(along), len(along)))
    for (i, j), value in zip(pairs, at / h**2):
        hessian[i, j] = hessian[j, i] = value
    diagonal = np.diag(hessian) / 4
    hessian = (hessian - diagonal[:, None] - diagonal[None]) / 2
    found = np.linalg.eigvalsh(hessian)
    np.testing.assert_allclose(found, point.spectrum.eigenvalues, atol=2e-6)
    # Without the curvature of the kinks it is another one.
    plain = np.asarray(jax.hessian(lambda p: made.risk(unravel(p)))(theta))
    flat = np.linalg.eigvalsh(along @ plain @ along.T)
    assert np.max(np.abs(flat - point.spectrum.eigenvalues)) > 2e-5


def test_the_risk_rises_around_a_manufactured_minimum(made):
    point = gflow.refine(made.risk, made.net)
    for seed in range(30):
        assert made.risk(disturbed(point.net, 1e-5, seed)) >= point.risk - 1e-17


# ---- one hidden layer ---------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 3])
def test_it_agrees_with_the_closed_form_of_one_layer(seed):
    rng = np.random.default_rng(seed)
    risk = gflow.EmpiricalRisk(rng.normal(size=(12, 2)), rng.normal(size=12))
    net = gflow.ShallowNet(2, 4, key=jax.random.key(seed))
    end = gflow.solve_flow(risk, net, t1=1e5).final
    deep = OwnNetwork(
        [jnp.column_stack([end.w, end.b]), jnp.append(end.output_scale * end.v, end.c)[None]]
    )
    one, two = gflow.refine(risk, end), gflow.refine(risk, deep)
    assert one.kind is two.kind and one.active_kinks
    assert one.risk == pytest.approx(two.risk, rel=1e-12) and two.residual < 1e-13
    weights = [{(k.unit, k.datum): k.weight for k in p.active_kinks} for p in (one, two)]
    assert weights[0] == pytest.approx(weights[1], abs=1e-9)
    if end.output_scale == 1:
        np.testing.assert_allclose(one.spectrum.eigenvalues, two.spectrum.eigenvalues, atol=1e-10)
        assert one.zeros == two.zeros
    assert one.units.dead == two.units.dead


# ---- smooth cases -------------------------------------------------------------------------------


def test_the_last_layer_alone_is_least_squares():
    rng = np.random.default_rng(0)
    net = eqx.nn.MLP(2, "scalar", 5, 2, key=jax.random.key(1))
    risk = gflow.EmpiricalRisk(rng.normal(size=(30, 2)), rng.normal(size=30))
    last = jax.tree.map(lambda _: False, net)
    last = eqx.tree_at(lambda n: (n.layers[2].weight, n.layers[2].bias), last, (True, True))
    point = gflow.refine(risk, net, trainable=last, radius=100.0)
    hidden = eqx.tree_at(lambda n: n.layers[2], net, eqx.nn.Identity())
    features = np.column_stack([jax.vmap(lambda x: activations(hidden, x))(risk.x), np.ones(30)])
    best = features @ np.linalg.lstsq(features, np.asarray(risk.y))[0]
    expected = float(np.mean((best - np.asarray(risk.y)) ** 2))
    assert point.kind is MINIMUM and point.risk == pytest.approx(expected, rel=1e-12)


def activations(net, x):
    for layer in net.layers[:2]:
        x = jax.nn.relu(layer(x))
    return x


def test_students_near_a_deep_teacher():
    teacher = random_own_network([2, 3, 3, 1], 3)
    x = np.random.default_rng(0).normal(size=(80, 2))
    risk = gflow.EmpiricalRisk(x, jax.vmap(teacher)(x))
    point = gflow.refine(risk, disturbed(teacher, 1e-4, 0))
    assert point.kind is gflow.CriticalKind.GLOBAL_MINIMUM and point.risk < 1e-27
    assert point.zeros.rescaling == 6 and point.zeros.unexplained == 0


def test_dead_units_are_named():
    net = random_own_network([2, 3, 3, 1], 3)
    net = eqx.tree_at(lambda n: n.matrices[0], net, net.matrices[0].at[1, 2].set(-100.0))
    x = np.random.default_rng(0).normal(size=(80, 2))
    risk = gflow.EmpiricalRisk(x, jax.vmap(net)(x))
    point = gflow.refine(risk, net)
    assert point.units.dead == (1,)
    # Its own three parameters, and three that lead out of it.
    assert point.zeros == (11, 6, 5, 0)


@pytest.mark.slow
def test_the_start_of_a_flow_is_near_no_critical_point():
    rng = np.random.default_rng(0)
    risk = gflow.EmpiricalRisk(rng.normal(size=(30, 2)), rng.normal(size=30))
    for seed in range(5):
        with pytest.raises(gflow.NotFoundError, match="no critical point"):
            gflow.refine(risk, random_own_network([2, 3, 3, 1], seed), radius=0.01)


def test_a_degenerate_unit_of_a_higher_layer_stays():
    net = random_own_network([2, 3, 3, 1], 3)
    net = eqx.tree_at(lambda n: n.matrices[1], net, net.matrices[1].at[1].set(0.0))
    x = np.random.default_rng(0).normal(size=(80, 2))
    risk = gflow.EmpiricalRisk(x, jax.vmap(net)(x))
    apart = eqx.tree_at(lambda n: n.matrices[0], net, net.matrices[0] + 1e-4)
    point = gflow.refine(risk, apart)
    assert point.kind is gflow.CriticalKind.GLOBAL_MINIMUM and point.distance > 1e-5
    assert point.units.degenerate == (4,)
    np.testing.assert_allclose(point.net.matrices[1][1], 0, atol=1e-15)
    # Its four incoming parameters do not move. The one that leads out of it has no effect.
    assert len(point.spectrum.eigenvalues) == 21 and point.zeros == (6, 1, 5, 0)
