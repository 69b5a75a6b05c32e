"""Units with w = b = 0, where the risk has a corner, and those that only touch the data."""

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from gflow.critical.landscapes import FlatRisk
from gflow.critical.units import degenerate_units, marginal_units
from gflow.networks import ShallowNet
from gflow.parameters import ParameterLayout, unflat
from gflow.risks import penalty_of

_DIRECTIONS = 256
_STEP = 1e-3


def degenerate_entries(
    risk: FlatRisk, theta: Float[np.ndarray, " size"]
) -> Bool[np.ndarray, " size"]:
    """Which entries of θ are w and b of degenerate units of a `ShallowNet` with kinks, if nothing
    moves them."""
    layout, net = ParameterLayout(risk.trained), risk.net(theta)
    if not isinstance(net, ShallowNet) or not net.activation.kinked:
        return np.zeros(layout.size, bool)
    penalty = penalty_of(risk.risk)
    if penalty is not None and penalty.moves_zero_units(net):
        return np.zeros(layout.size, bool)
    return layout.of_units(degenerate_units(net))


class MarginalUnit(NamedTuple):
    """A unit that a small step can make active, and which entries of θ do that, or lead out of
    it."""

    number: int
    entries: Bool[np.ndarray, " size"]


def marginal_units_of_one_layer(risk: FlatRisk, net: Any) -> list[MarginalUnit]:
    """Those of a `ShallowNet`, none of other networks."""
    layout = ParameterLayout(risk.trained)
    return [
        MarginalUnit(unit, layout.of_units([unit], ("w", "b", "v")))
        for unit in marginal_units(risk.risk, net)
    ]


def descent_of_marginal_units(
    risk: FlatRisk, theta: Float[np.ndarray, " size"], units: list[MarginalUnit], decrease: float
) -> Float[np.ndarray, " size"] | None:
    """A direction of the entries of a marginal unit in which the risk falls by more than `decrease`
    within a small step; None if none was found."""
    if not units:
        return None
    start = float(_values(risk, jnp.asarray(theta[None]))[0])
    for number, moved in units:
        size = np.linalg.norm(theta[moved]) or np.linalg.norm(theta) or 1.0
        directions = np.zeros((_DIRECTIONS, len(theta)))
        directions[:, moved] = np.random.default_rng(number).normal(size=(_DIRECTIONS, moved.sum()))
        directions /= np.linalg.norm(directions, axis=1, keepdims=True)
        near = jnp.asarray(theta + _STEP * size * directions, theta.dtype)
        values = np.asarray(_values(risk, near))
        best = int(np.nanargmin(values))
        if values[best] < start - decrease:
            return directions[best]
    return None


@eqx.filter_jit
def _values(risk: FlatRisk, thetas: Array) -> Array:
    at = lambda theta: risk.risk(eqx.combine(unflat(risk.trained, theta), risk.frozen))
    return jax.lax.map(at, thetas)
