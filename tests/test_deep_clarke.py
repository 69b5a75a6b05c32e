"""The minimal-norm Clarke subgradient of networks with ties in several layers."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

import gflow
from gflow.nonsmooth.deep import subdifferential
from gflow.nonsmooth.deep.risk import DeepPatternRisk
from gflow.nonsmooth.deep.subdifferential import minimal_element
from gflow.nonsmooth.minimal_norm import minimal_norm
from gflow.parameters import flat, split_trainable
from tests.helpers.deep_networks import deep_reference, on_kinks, random_own_network
from tests.helpers.kink_problems import data
from tests.helpers.networks_as_vectors import norm


class TwoKinks(eqx.Module):
    """relu(z₂) + p relu(z₁) + k z₁ + l z₂ with z₁ = b₁ and z₂ = w relu(z₁) + b₂, at any row."""

    b: jax.Array
    w: float
    p: float
    k: float
    l: float  # noqa: E741

    def __call__(self, x):
        z1 = self.b[0]
        a1 = jax.nn.relu(z1)
        # w a₁ + b₂ without the kink of a₁, so that l z₂ is smooth.
        z2 = self.w * a1 + self.b[1]
        return jax.nn.relu(z2) + self.p * a1 + self.k * z1 + self.l * self.b[1] + 0 * x[0]


def two_kinks(**constants: float) -> tuple[float, float]:
    """The element at b = 0, where ∂L/∂N is 1."""
    risk = gflow.EmpiricalRisk([[1.0]], [-0.5])
    g = gflow.clarke_gradient(risk, TwoKinks(b=jnp.zeros(2), **constants), trainable=("b",)).b
    return float(g[0]), float(g[1])


@pytest.mark.parametrize(
    ("constants", "element"),
    [
        # μ₂ in [0, 1] and μ₁ between 0 and p + w μ₂: inside, the element is 0.
        ({"w": 1.0, "p": 0.0, "k": -0.2, "l": -0.5}, (0.0, 0.0)),
        ({"w": 1.0, "p": 1.0, "k": -1.2, "l": -0.5}, (0.0, 0.0)),
        # Below the triangle (μ₁, μ₂) = (0, 0), (0, 1), (1, 1).
        ({"w": 1.0, "p": 0.0, "k": 0.3, "l": -0.5}, (0.3, 0.0)),
        # Beyond its edge μ₁ = μ₂, at (0.5, 0.5).
        ({"w": 1.0, "p": 0.0, "k": -1.0, "l": 0.0}, (-0.5, 0.5)),
        # At its corner (1, 1).
        ({"w": 1.0, "p": 0.0, "k": -3.0, "l": -2.0}, (-2.0, -1.0)),
        # q₁ = 1 − 2 λ₂ changes its sign. The gradients are those of a bow tie, their hull the
        # parallelogram of (0, 0), (1, 0), (0, 1), (−1, 1): it has (0.4, 0.5), which no weights do.
        ({"w": -2.0, "p": 1.0, "k": -0.4, "l": -0.5}, (0.0, 0.0)),
        ({"w": -2.0, "p": 1.0, "k": -1.0, "l": -1.0}, (-0.5, -0.5)),
    ],
)
def test_two_kinks_of_one_row(constants, element):
    np.testing.assert_allclose(two_kinks(**constants), element, atol=1e-14)


def test_what_a_dead_unit_feeds_has_no_kink_of_its_own():
    # z₁ = w x and z₂ = u relu(z₁) are 0: for w > 0 the slope of a₂ is u, for w < 0 it is 0.
    class Chain(eqx.Module):
        w: jax.Array
        u: float

        def __call__(self, x):
            return jax.nn.relu(self.u * jax.nn.relu(self.w * x[0]))

    at = lambda u, y: (
        gflow.clarke_gradient(
            gflow.EmpiricalRisk([[1.0], [-1.0]], y), Chain(jnp.zeros(()), u), trainable=("w",)
        ).w
    )
    # q of the rows 1 and −1 is −y: the sides are −y₁ u and y₂ u.
    assert float(at(2.0, [-1.0, 0.5])) == pytest.approx(1.0)
    assert float(at(2.0, [-1.0, -0.5])) == pytest.approx(0.0, abs=1e-14)
    # With u < 0 the second unit is never active.
    assert float(at(-2.0, [-1.0, 0.5])) == 0.0


# ---- one hidden layer ---------------------------------------------------------------------------


def shallow_at_ties(seed: int, kind: str):
    rng = np.random.default_rng(seed)
    x, y = rng.normal(size=(6, 2)), rng.normal(size=6)
    if kind == "opposite rows":
        x = np.concatenate([x[:3], -x[:3]])
    w, b, v = rng.normal(size=(3, 2)), rng.normal(size=3), rng.normal(size=3)
    if kind == "degenerate":
        # With a bias all rows could be inactive at once.
        w[1], b = 0, None
    elif kind == "opposite rows":
        w[0] -= (w[0] @ x[0]) / (x[0] @ x[0]) * x[0]
        b = None
    else:
        b[0], b[2] = -w[0] @ x[1], -w[2] @ x[4]
    activation = "leaky_relu(0.1)" if kind == "leaky" else "relu"
    net = gflow.ShallowNet.from_arrays(w, b, v, 0.1, activation=activation)
    return gflow.EmpiricalRisk(x, y), net


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["generic", "leaky", "degenerate", "opposite rows"])
def test_it_agrees_with_the_closed_form_of_one_layer(kind):
    from_generalized = []
    for seed in range(6):
        risk, net = shallow_at_ties(seed, kind)
        trained, frozen = split_trainable(net, None)
        known = DeepPatternRisk.of(risk, trained, frozen)
        ours = minimal_element(known, np.asarray(flat(trained)), 1e-9)
        theirs = ravel_pytree(gflow.clarke_gradient(risk, net))[0]
        np.testing.assert_allclose(ours, theirs, atol=1e-12)
        generalized = ravel_pytree(gflow.generalized_gradient(risk, net))[0]
        from_generalized.append(np.linalg.norm(ours - generalized))
    assert max(from_generalized) > 1e-2


# ---- the definition -----------------------------------------------------------------------------

TIES = [(0, 1, 0), (0, 2, 1), (1, 0, 0), (1, 2, 2), (1, 1, 0)]


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
def test_it_is_the_shortest_of_the_hull_of_gradients_nearby(seed):
    """Random points at a distance of 1e-9 have the gradients of all patterns."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(5, 2))
    risk = gflow.EmpiricalRisk(x, rng.normal(size=5))
    net = on_kinks(random_own_network([2, 3, 3, 1], seed), x, TIES)
    theta, unravel = ravel_pytree(net)
    near = jnp.asarray(np.asarray(theta) + 1e-9 * rng.normal(size=(4000, len(theta))))
    gradient = lambda p: jax.grad(lambda p: risk(unravel(p)))(p)
    found = np.asarray(jax.jit(jax.vmap(gradient))(near))
    vertices = found[np.unique(np.round(found, 6), axis=0, return_index=True)[1]]
    assert len(vertices) >= 8
    expected = minimal_norm(lambda p: vertices[np.argmin(vertices @ p)], vertices[0])
    ours = ravel_pytree(gflow.clarke_gradient(risk, net))[0]
    # The gradients nearby are off by some 1e-9, Wolfe's points by 1e-8.
    np.testing.assert_allclose(ours, expected, atol=1e-6)
    assert np.linalg.norm(ours) < np.linalg.norm(ravel_pytree(gradient(theta))[0]) - 1e-4


def test_patterns_that_are_too_many_make_a_superset(monkeypatch):
    risk = gflow.EmpiricalRisk([[1.0]], [-0.5])
    net = TwoKinks(b=jnp.zeros(2), w=-2.0, p=1.0, k=-1.0, l=-1.0)
    monkeypatch.setattr(subdifferential, "_MOST_PATTERNS", 2)
    with pytest.warns(UserWarning, match="2 ties depend on each other"):
        g = gflow.clarke_gradient(risk, net, trainable=("b",)).b
    # μ₁ in [−1, 1], μ₂ in [0, 1].
    np.testing.assert_allclose(g, [0.0, 0.0], atol=1e-14)


def test_a_smooth_network_and_one_away_from_kinks_have_their_gradient():
    risk = data((1, -1), (-1, 1))
    for activation in (jnp.tanh, jax.nn.relu):
        net = eqx.nn.MLP(1, "scalar", 3, 2, activation=activation, key=jax.random.key(0))
        got, expected = gflow.clarke_gradient(risk, net), gflow.generalized_gradient(risk, net)
        assert norm(got) > 0 and eqx.tree_equal(got, expected)


@pytest.mark.slow
def test_the_flow_follows_it_while_units_of_both_layers_slide():
    known = deep_reference("deep_1-12-12-1_n40")
    begun = [kink for kink in known.kinks if kink.kind == "slide begins"]
    assert {kink.layer for kink in begun} == {0, 1}
    flow = gflow.solve_flow(known.risk, known.own_network(), t1=known.ts[-1])
    assert flow.kinks.sliding_at(known.ts[-1])
    speed = float(flow.grad_norm[-1])
    assert norm(gflow.clarke_gradient(known.risk, flow.final)) == pytest.approx(speed, rel=1e-9)
    assert norm(gflow.generalized_gradient(known.risk, flow.final)) > 1.01 * speed
