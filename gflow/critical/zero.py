"""Units with w = b = 0, where the risk has a corner."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, PyTree

from gflow.critical.units import Units, units_at_zero
from gflow.networks import ShallowNet

_DIRECTIONS = 256
_STEP = 1e-3


def entries_at_zero(trained: PyTree, net: Any) -> np.ndarray:
    """Which entries of θ are w and b of such units of a `ShallowNet` with kinks."""
    flags = jax.tree.map(lambda a: np.zeros(a.shape, bool), trained)
    if isinstance(net, ShallowNet) and net.activation.kinked:
        rows = list(units_at_zero(net))
        for name in ("w", "b"):
            if getattr(flags, name) is not None:
                getattr(flags, name)[rows] = True
    return np.concatenate([np.ravel(a) for a in jax.tree.leaves(flags)])


def fall_at_zero(
    risk, trained: PyTree, frozen: PyTree, theta: np.ndarray, units: Units | None, least: float
) -> np.ndarray | None:
    """A direction of w, b and v of such units along which the risk falls by more than `least`
    within a small step; None if none was found."""
    if units is None or not units.degenerate:
        return None
    net = eqx.combine(trained, frozen)
    flags = jax.tree.map(lambda a: np.zeros(a.shape, bool), trained)
    for name in ("w", "b", "v"):
        if getattr(flags, name) is not None:
            getattr(flags, name)[list(units.degenerate)] = True
    moved = np.concatenate([np.ravel(a) for a in jax.tree.leaves(flags)])
    rng = np.random.default_rng(0)
    directions = rng.normal(size=(_DIRECTIONS, len(theta))) * moved
    sizes = np.linalg.norm(directions, axis=1, keepdims=True)
    if not moved.any() or not isinstance(net, ShallowNet):
        return None
    directions /= sizes
    step = _STEP * max(float(np.linalg.norm(theta)), np.finfo(float).tiny)
    values = np.asarray(_values(risk, trained, frozen, jnp.asarray(theta + step * directions)))
    start = float(_values(risk, trained, frozen, jnp.asarray(theta[None]))[0])
    best = int(np.nanargmin(values))
    return directions[best] if values[best] < start - least else None


@eqx.filter_jit
def _values(risk, trained, frozen, thetas: Array) -> Array:
    _, unravel = ravel_pytree(trained)
    return jax.lax.map(lambda theta: risk(eqx.combine(unravel(theta), frozen)), thetas)
