"""Units with w = b = 0, where the risk has a corner, and those that only touch the data."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, PyTree

from gflow.critical.units import units_at_corners, units_at_zero
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


def fall_at_corners(
    risk, trained: PyTree, frozen: PyTree, theta: np.ndarray, least: float
) -> np.ndarray | None:
    """A direction of w, b and v of units at zero, or of dead ones that touch the data or the edge
    of the support, in which the risk falls by more than `least` within a small step; None if none
    was found."""
    net = _network(trained, frozen, theta)
    corners = list(units_at_corners(risk, net))
    if not corners:
        return None
    start = float(_values(risk, trained, frozen, jnp.asarray(theta[None]))[0])
    for unit in corners:
        moved = _entries_of(trained, unit)
        size = np.linalg.norm(theta[moved]) or np.linalg.norm(theta) or 1.0
        directions = np.zeros((_DIRECTIONS, len(theta)))
        directions[:, moved] = np.random.default_rng(unit).normal(size=(_DIRECTIONS, moved.sum()))
        directions /= np.linalg.norm(directions, axis=1, keepdims=True)
        near = jnp.asarray(theta + _STEP * size * directions, theta.dtype)
        values = np.asarray(_values(risk, trained, frozen, near))
        best = int(np.nanargmin(values))
        if values[best] < start - least:
            return directions[best]
    return None


def _entries_of(trained: PyTree, unit: int) -> np.ndarray:
    """Which entries of θ are those of w, b and v of a unit."""
    flags = jax.tree.map(lambda a: np.zeros(a.shape, bool), trained)
    for name in ("w", "b", "v"):
        if getattr(flags, name) is not None:
            getattr(flags, name)[unit] = True
    return np.concatenate([np.ravel(a) for a in jax.tree.leaves(flags)])


def _network(trained: PyTree, frozen: PyTree, theta: np.ndarray) -> Any:
    return eqx.combine(ravel_pytree(trained)[1](jnp.asarray(theta)), frozen)


@eqx.filter_jit
def _values(risk, trained, frozen, thetas: Array) -> Array:
    _, unravel = ravel_pytree(trained)
    return jax.lax.map(lambda theta: risk(eqx.combine(unravel(theta), frozen)), thetas)
