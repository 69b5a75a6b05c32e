"""Networks with several hidden layers, and their flows by an independent integrator."""

from itertools import pairwise
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

import gflow
from gflow.testsets.references import DATA, reference


class OwnNetwork(eqx.Module):
    """A ReLU network of one's own: a list of matrices, each with a last column of biases."""

    matrices: list[jax.Array]

    def __call__(self, x):
        *hidden, last = self.matrices
        for matrix in hidden:
            x = jnp.maximum(matrix @ jnp.append(x, 1.0), 0)
        return (last @ jnp.append(x, 1.0))[0]


class Kink(NamedTuple):
    time: float
    kind: str
    layer: int
    unit: int
    datum: int


class DeepReference(NamedTuple):
    """The risk, the matrices [W | b] at time 0, and at saved times the rows of `params`; the kinks
    in the order of time."""

    risk: gflow.EmpiricalRisk
    matrices: list[np.ndarray]
    ts: np.ndarray
    params: np.ndarray
    kinks: list[Kink]

    def at_end(self) -> "DeepReference":
        """The same from the last saved time on, where nothing is left to follow."""
        shapes = [m.shape for m in self.matrices]
        parts = np.split(self.params[-1], np.cumsum([a * b for a, b in shapes])[:-1])
        matrices = [part.reshape(shape) for part, shape in zip(parts, shapes)]
        return self._replace(matrices=matrices, ts=self.ts[-1:], params=self.params[-1:], kinks=[])

    def own_network(self) -> OwnNetwork:
        return OwnNetwork([jnp.asarray(m) for m in self.matrices])

    def mlp(self) -> eqx.nn.MLP:
        rows, columns = zip(*(m.shape for m in self.matrices))
        net = eqx.nn.MLP(columns[0] - 1, "scalar", rows[0], len(rows) - 1, key=jax.random.key(0))
        weights = lambda net: [layer.weight for layer in net.layers]
        biases = lambda net: [layer.bias for layer in net.layers]
        net = eqx.tree_at(weights, net, [jnp.asarray(m[:, :-1]) for m in self.matrices])
        return eqx.tree_at(biases, net, [jnp.asarray(m[:, -1]) for m in self.matrices])


def matrices_of(net) -> list[np.ndarray]:
    """The matrices [W | b] of an `OwnNetwork` or an `eqx.nn.MLP`."""
    if isinstance(net, OwnNetwork):
        return [np.asarray(m) for m in net.matrices]
    return [np.column_stack([layer.weight, layer.bias]) for layer in net.layers]


def as_vector(net) -> np.ndarray:
    return np.concatenate([m.ravel() for m in matrices_of(net)])


def deep_reference(name: str) -> DeepReference:
    with np.load(DATA / f"{name}.npz") as saved:
        sizes, theta = saved["sizes"].tolist(), saved["theta0"]
        ends = np.cumsum([b * (a + 1) for a, b in pairwise(sizes)])
        parts = np.split(theta, ends[:-1])
        matrices = [p.reshape(b, a + 1) for p, (a, b) in zip(parts, pairwise(sizes))]
        events = reference(name).events
        kinks = [Kink(e.time, e.kind, e.layer, e.unit, e.row) for e in events]
        risk = gflow.EmpiricalRisk(saved["X"], saved["y"])
        ts = np.append(0.0, saved["t"])
        return DeepReference(risk, matrices, ts, saved["theta"], kinks)


def logged(flow: gflow.Trajectory) -> list[Kink]:
    """The kinks that a flow met."""
    log = flow.kinks
    assert log is not None
    pairs = zip(log.layer.tolist(), log.unit.tolist(), log.datum.tolist())
    return [Kink(t, kind, *pair) for t, kind, pair in zip(log.time.tolist(), log.names, pairs)]


def preactivations(net: OwnNetwork, x) -> list[jax.Array]:
    """z of all units at one row, layer after layer."""
    found = []
    for matrix in net.matrices[:-1]:
        found.append(matrix @ jnp.append(x, 1.0))
        x = jnp.maximum(found[-1], 0)
    return found


def on_kinks(net: OwnNetwork, x, pairs: list[tuple[int, int, int]]) -> OwnNetwork:
    """A network near this one with z = 0 at some pairs of layer, unit and datum."""
    theta, unravel = jax.flatten_util.ravel_pytree(net)

    @jax.jit
    def heights(theta):
        z = [preactivations(unravel(theta), row) for row in np.asarray(x)]
        return jnp.stack([z[datum][layer][unit] for layer, unit, datum in pairs])

    jacobian = jax.jit(jax.jacrev(heights))
    for _ in range(30):
        theta = theta - jnp.linalg.pinv(jacobian(theta)) @ heights(theta)
    assert jnp.all(jnp.abs(heights(theta)) < 1e-14)
    return unravel(theta)


def random_own_network(sizes: list[int], seed: int) -> OwnNetwork:
    """Normal matrices, of the size that keeps activations."""
    rng = np.random.default_rng(seed)
    draw = lambda a, b: jnp.asarray(rng.normal(size=(b, a + 1)) * np.sqrt(2 / (a + 1)))
    return OwnNetwork([draw(a, b) for a, b in pairwise(sizes)])
