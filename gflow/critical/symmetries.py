"""Zero eigenvalues of the Hessian that symmetries of the network explain."""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from gflow.activations import PiecewiseLinear
from gflow.critical.newton import Eigensystem
from gflow.critical.point import Zeros
from gflow.critical.units import UnitGroups
from gflow.networks import ShallowNet
from gflow.parameters import ParameterLayout


class Symmetries(NamedTuple):
    """Directions of θ that leave the network as it is to first order, as columns: those of dead and
    degenerate units, and the rescaling of the others."""

    dead: Float[np.ndarray, "size dead"]
    rescaling: Float[np.ndarray, "size rescaled"]


def explained_zeros(now: Eigensystem, symmetries: Symmetries | None) -> Zeros:
    """Counts the zero eigenvalues, and those whose eigenvectors span symmetries of the network:
    changes of dead units, or the rescaling of homogeneous ones."""
    null = now.vectors[:, now.zero]
    total = null.shape[1]
    if symmetries is None or total == 0:
        return Zeros(total, 0, 0, total)
    by_dead = _dimension(null, symmetries.dead)
    both = _dimension(null, np.concatenate(symmetries, axis=1))
    return Zeros(total, by_dead, both - by_dead, total - both)


def _dimension(null: np.ndarray, directions: np.ndarray) -> int:
    """The dimension of the part of the directions' span that lies in the null space."""
    if directions.shape[1] == 0:
        return 0
    left, sizes, _ = np.linalg.svd(directions, full_matrices=False)
    span = left[:, sizes > 1e-9 * max(sizes[0], 1e-300)]
    return int(np.sum(np.linalg.svd(null.T @ span, compute_uv=False) > 0.999))


def symmetries_of_one_layer(
    net: ShallowNet, layout: ParameterLayout, units: UnitGroups
) -> Symmetries:
    """Those of a network with one hidden layer."""
    dead = set(units.dead)
    # A degenerate unit that is moved may become active, unless only its v is.
    free = layout.of_units(dead, ("w", "b", "v"))
    free |= layout.of_units(units.degenerate, ("v",))
    active = [unit for unit in range(net.width) if unit not in dead]
    return Symmetries(np.eye(layout.size)[:, free], _rescalings(net, layout, active))


def _rescalings(
    net: ShallowNet, layout: ParameterLayout, units: Iterable[int]
) -> Float[np.ndarray, "size rescaled"]:
    """The directions (w, b, −v) of units; none if the network is not homogeneous, or some of these
    are not trained."""
    places, made = layout.places, []
    whole = (
        places.w is not None and places.v is not None and (net.b is None or places.b is not None)
    )
    for unit in units if whole and isinstance(net.activation, PiecewiseLinear) else ():
        direction = np.zeros(layout.size)
        for name, sign in (("w", 1.0), ("b", 1.0), ("v", -1.0)):
            if getattr(places, name) is not None:
                values = np.asarray(getattr(net, name), float)
                direction[getattr(places, name)[unit]] = sign * values[unit]
        made.append(direction)
    return np.reshape(made, (-1, layout.size)).T
