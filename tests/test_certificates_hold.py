"""A thousand random problems: no certificate is contradicted by a long flow."""

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gflow
from tests.helpers.networks_as_vectors import stacked
from tests.helpers.slope_bounds import SLOPES, identity_and_tanh

pytestmark = pytest.mark.slow

LENGTH = 12.0


class Quadratics(eqx.Module):
    """Residuals e_i(x) = x·Q_i x/2 + a_i·x − y_i, with a 1-Lipschitz Jacobian."""

    q: jax.Array
    a: jax.Array
    y: jax.Array

    def __call__(self, x):
        return 0.5 * jnp.einsum("ijk,j,k->i", self.q, x, x) + self.a @ x - self.y


class Slowed(eqx.Module):
    """The risk divided by α, which certificates promise to fall like e^{−t}."""

    risk: gflow.EmpiricalRisk | gflow.SumOfSquares
    alpha: jax.Array

    def __call__(self, net):
        return self.risk(net) / self.alpha


def quadratics(seed):
    rng = np.random.default_rng(seed)
    q, a = rng.normal(size=(2, 4, 4)), rng.normal(size=(2, 4))
    q += np.swapaxes(q, 1, 2)
    # If the matrix of all rows of the Q_i has norm 1, then ‖(Q_i u)_i‖ ≤ |u|.
    q /= np.linalg.norm(q.reshape(8, 4), 2)
    y = rng.normal(size=2) * 10 ** rng.uniform(-1.5, 0.5)
    risk = gflow.SumOfSquares(Quadratics(*map(jnp.asarray, (q, 2 * a, y))), 1.0)
    return risk, jnp.asarray(0.3 * rng.normal(size=4)), None


@eqx.filter_jit
def predictions(net, x):
    return jax.vmap(net)(x)


def shallow(seed):
    rng = np.random.default_rng(seed)
    key = jax.random.key(seed)
    net = gflow.ShallowNet(3, 8, key=key, activation="tanh", init="standard_normal")
    x = rng.normal(size=(3, 3))
    y = predictions(net, x) + rng.normal(size=3) * 10 ** rng.uniform(-2.5, 0.5)
    return gflow.EmpiricalRisk(x, y), net, None


START = eqx.nn.MLP(6, "scalar", 4, 2, activation=identity_and_tanh, key=jax.random.key(0))


def deep(seed):
    rng = np.random.default_rng(seed)
    shapes = [a.weight.shape for a in START.layers]
    weights = [rng.uniform(0.2, 1, shape) for shape in shapes]
    weights[0] = 0.1 * rng.normal(size=shapes[0]) * rng.integers(2)
    weights[2] *= 10 ** rng.uniform(0, 2)
    parameters = lambda m: [a.weight for a in m.layers] + [a.bias for a in m.layers]
    biases = [np.zeros(len(w)) for w in weights]
    net = eqx.tree_at(parameters, START, [*map(jnp.asarray, weights + biases)])
    x = rng.normal(size=(3, 6))
    y = predictions(net, x) + rng.normal(size=3) * 10 ** rng.uniform(-2, 1.5)
    return gflow.EmpiricalRisk(x, y), net, SLOPES


@eqx.filter_jit
@eqx.filter_vmap(in_axes=(eqx.if_array(0), eqx.if_array(0), eqx.if_array(0), None))
def long_flow(risk, net, alpha, ts):
    """Risks along the flow, distances to its last point and to its start."""
    solver = diffrax.Tsit5()
    flow = gflow.solve_flow(Slowed(risk, alpha), net, t1=ts[-1], ts=ts, solver=solver, throw=False)
    arrays = jax.tree.leaves(eqx.filter(flow.params, eqx.is_inexact_array))
    flat = jnp.concatenate([a.reshape(len(ts), -1) for a in arrays], axis=1)
    distances = [jnp.linalg.norm(flat - flat[k][None], axis=1) for k in (-1, 0)]
    return alpha * flow.risk, *distances, flow.ts[-1]


def check(make, count):
    certified = []
    for seed in range(count):
        risk, net, slopes = make(seed)
        certificate = gflow.chatterjee(risk, net, slopes=slopes, starts=0)
        if certificate.verdict == "certified":
            certified.append((risk, net, jnp.asarray(certificate.rate), certificate))
    *batch, certificates = zip(*certified)
    ts = jnp.linspace(0, LENGTH, 25)
    risk, distance, away, ends = map(np.asarray, long_flow(*map(stacked, batch), ts))
    assert (ends == LENGTH).all()
    for k, c in enumerate(certificates):
        envelope = c.flow_envelope(np.asarray(ts) / c.rate)
        # The flow has relative errors of 1e-8 a step, and the residuals have rounding errors.
        assert (risk[k] <= envelope.risk * (1 + 1e-5) + 1e-14 * c.initial_risk).all()
        # The limit is known up to the remaining distance at the end.
        assert (distance[k] <= envelope.distance * (1 + 1e-5) + envelope.distance[-1]).all()
        assert away[k].max() < c.radius
    return len(certified)


def test_quadratics_in_four_parameters():
    assert 200 < check(quadratics, 880) < 880


def test_shallow_networks():
    assert 15 < check(shallow, 60) < 60


def test_deep_networks():
    assert 25 < check(deep, 60) < 60
