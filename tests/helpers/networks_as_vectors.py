"""Arithmetic on networks, and on their gradients, as vectors of all their floats."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree


def flat(tree) -> np.ndarray:
    return np.asarray(ravel_pytree(eqx.filter(tree, eqx.is_inexact_array))[0])


def inner(one, two) -> float:
    return float(flat(one) @ flat(two))


def norm(tree) -> float:
    return float(np.linalg.norm(flat(tree)))


def distance(one, two) -> float:
    return float(np.linalg.norm(flat(one) - flat(two)))


def moved(net, direction, size):
    return jax.tree.map(lambda a, d: a + size * d, net, direction)


def disturbed(net, size: float, seed: int):
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda a: a + size * rng.normal(size=a.shape), net)


def stacked(trees):
    """One tree of all, with their arrays along a first axis; the rest is that of the first."""
    return jax.tree.map(lambda *a: jnp.stack(a) if eqx.is_array(a[0]) else a[0], *trees)
