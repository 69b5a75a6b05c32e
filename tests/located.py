"""Small problems with kinks, and what is asked of their flows."""

import jax
import jax.numpy as jnp
import numpy as np

import gflow

KEY = jax.random.key(0)


def single_unit(w0: float) -> gflow.ShallowNet:
    """relu(w x), of which w is trained."""
    return gflow.ShallowNet.from_arrays([[w0]], None, [1.0], None)


def data(*pairs) -> gflow.EmpiricalRisk:
    x, y = zip(*pairs)
    return gflow.EmpiricalRisk(np.array(x, dtype=float).reshape(len(pairs), -1), np.array(y, float))


def solve(risk, net, t1, **options):
    return gflow.solve_flow(risk, net, t1=t1, **({"rtol": 1e-10} | options))


def kinks(flow) -> list[tuple[str, int, int]]:
    log = flow.kinks
    return list(zip(log.names, np.asarray(log.unit).tolist(), np.asarray(log.datum).tolist()))


def small_problem():
    x = np.linspace(-1, 1, 12)
    risk = gflow.EmpiricalRisk(x[:, None], np.sin(3 * x))
    return risk, gflow.ShallowNet(1, 8, key=jax.random.key(4))


def distance(one, two) -> float:
    pairs = zip(jax.tree.leaves(one), jax.tree.leaves(two))
    return float(jnp.sqrt(sum(jnp.sum((a - b) ** 2) for a, b in pairs)))
