"""Units and symmetries of a network of any depth, found by trial in its own computation.

With all sides held fixed a network is a smooth function of θ. What changes nothing at random θ
changes nothing anywhere.
"""

from collections.abc import Iterator
from itertools import islice, product
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from gflow.critical.deep_landscape import DeepLandscape
from gflow.critical.marginal_units import MarginalUnit
from gflow.critical.symmetries import Symmetries
from gflow.critical.units import UnitGroups
from gflow.nonsmooth.deep.first_order import first_order, heights
from gflow.nonsmooth.deep.risk import DeepPatternRisk

# Outputs count as the same up to this, relative to the largest.
_SAME = 1e-9
# The most trials of how the units of two layers can be rescaled.
_MAX_TRIALS = 4000


def groups_of_units(land: DeepLandscape) -> UnitGroups:
    """The units of all layers, counted through, in groups. Those on active kinks count as neither
    dead nor always active."""
    held = np.zeros(len(land.active), bool)
    held[[kink.unit for kink in land.held]] = True
    degenerate = np.zeros(len(land.active), bool)
    degenerate[list(land.degenerate)] = True
    clipped = land.risk.network.clipped & ~held & ~degenerate
    of = lambda mask: tuple(np.flatnonzero(mask).tolist())
    return UnitGroups(
        dead=of(clipped & ~land.active.any(axis=1)),
        always_active=of(clipped & land.active.all(axis=1)),
        degenerate=land.degenerate,
        duplicates=(),
    )


def symmetries_of(land: DeepLandscape, theta: Float[np.ndarray, " size"]) -> Symmetries:
    """The directions of parameters without effect, and those that rescale units of one layer
    against those of the next."""
    free = ~_has_effect(land.risk, theta, land.active)
    rescaled = [
        direction for scaling in _scalings(land.risk, theta) for direction in scaling.along(theta)
    ]
    return Symmetries(np.eye(len(theta))[:, free], np.reshape(rescaled, (-1, len(theta))).T)


def marginal_units_of(land: DeepLandscape, theta: Float[np.ndarray, " size"]) -> list[MarginalUnit]:
    """The degenerate units, and the dead ones that touch the data."""
    risk, found = land.risk, []
    tied = heights(risk, theta, land.active).tied(risk, _SAME)
    for unit in (*land.degenerate, *groups_of_units(land).dead):
        rows = np.flatnonzero(tied[unit])
        if len(rows):
            normals = first_order(risk, theta, land.active, np.full_like(rows, unit), rows).normals
            active = land.active.copy()
            active[unit] = True
            outgoing = _has_effect(risk, theta, active) & ~_has_effect(risk, theta, land.active)
            found.append(MarginalUnit(unit, np.any(normals != 0, axis=0) | outgoing))
    return found


# ---- effects ------------------------------------------------------------------------------------


@eqx.filter_jit
def _values(risk: DeepPatternRisk, theta: Array, sides: Array) -> Array:
    """All outputs on all rows."""
    outputs = risk.outputs(theta, sides, None).output
    return jnp.concatenate([jnp.ravel(a) for a in jax.tree.leaves(outputs)])


@eqx.filter_jit
def _slopes(risk: DeepPatternRisk, theta: Array, sides: Array) -> Array:
    """The derivative of a weighted sum of all outputs."""

    def mixed(theta):
        values = _values(risk, theta, sides)
        weights = np.random.default_rng(0).normal(size=values.shape)
        return jnp.asarray(weights, values.dtype) @ values

    return jax.grad(mixed)(theta)


def _elsewhere(theta: Float[np.ndarray, " size"]) -> Float[np.ndarray, " size"]:
    """Another θ of this size."""
    size = float(np.sqrt(np.mean(theta**2))) or 1.0
    return size * np.random.default_rng(1).normal(size=len(theta))


def _has_effect(
    risk: DeepPatternRisk, theta: Float[np.ndarray, " size"], sides: Bool[np.ndarray, "units rows"]
) -> Bool[np.ndarray, " size"]:
    """Which parameters change outputs on these sides."""
    return np.asarray(_slopes(risk, jnp.asarray(_elsewhere(theta)), jnp.asarray(sides))) != 0


# ---- rescaling ----------------------------------------------------------------------------------


class _Scaling(NamedTuple):
    """Entries of θ that belong to unit n of a layer: `incoming` and `outgoing`, n or −1."""

    incoming: Int[np.ndarray, " size"]
    outgoing: Int[np.ndarray, " size"]

    @property
    def num_units(self) -> int:
        return int(np.max(self.incoming)) + 1

    def along(self, theta: Float[np.ndarray, " size"]) -> Float[np.ndarray, "units size"]:
        """The directions in which each unit is rescaled."""
        units = np.arange(self.num_units)[:, None]
        return np.where(self.incoming == units, theta, 0) - np.where(
            self.outgoing == units, theta, 0
        )

    def scaled(
        self, theta: Float[np.ndarray, " size"], factors: Float[np.ndarray, " units"]
    ) -> Float[np.ndarray, " size"]:
        """θ with all units rescaled."""
        into = np.where(self.incoming >= 0, factors[self.incoming], 1.0)
        return theta * into / np.where(self.outgoing >= 0, factors[self.outgoing], 1.0)


def _scalings(risk: DeepPatternRisk, theta: Float[np.ndarray, " size"]) -> list[_Scaling]:
    """The pairs of layers of which one can be rescaled against the other: at random θ and sides
    this changes no output."""
    rng, there = np.random.default_rng(2), _elsewhere(theta)
    sides = jnp.asarray(rng.random((risk.num_units, len(risk.rows))) < 0.5)
    values = lambda theta: np.asarray(_values(risk, jnp.asarray(theta), sides))
    start, found = values(there), []
    size = np.max(np.abs(start), initial=0.0)
    seen: set[bytes] = set()
    for scaling in islice(_candidates(risk), _MAX_TRIALS):
        one = scaling.outgoing.tobytes()
        if one in seen:
            continue
        factors = np.exp(rng.uniform(-1, 1, scaling.num_units))
        apart = np.max(np.abs(values(scaling.scaled(there, factors)) - start), initial=0.0)
        if size > 0 and apart <= _SAME * size:
            found.append(scaling)
            seen.add(one)
    return found


def _candidates(risk: DeepPatternRisk) -> Iterator[_Scaling]:
    """The arrays that could be weights into a layer, with or without biases, and out of it."""
    shapes = [a.shape for a in jax.tree.leaves(risk.trained)]
    ends = np.cumsum([0, *(int(np.prod(shape)) for shape in shapes)])
    nothing = np.full(int(ends[-1]), -1)

    def numbered(made: np.ndarray, leaf: int, axis: int, count: int) -> np.ndarray:
        """With the number of the unit at the first `count` places along an axis of an array."""
        made, shape = made.copy(), shapes[leaf]
        number = np.arange(shape[axis])
        number = np.where(number < count, number, -1)
        along = [1] * len(shape)
        along[axis] = shape[axis]
        spread = np.broadcast_to(number.reshape(along), shape)
        made[ends[leaf] : ends[leaf + 1]] = spread.ravel()
        return made

    axes = [(leaf, axis) for leaf, shape in enumerate(shapes) for axis in range(min(len(shape), 2))]
    for (into, axis), (out, other) in product(axes, axes):
        count = shapes[into][axis]
        # A last column can hold biases.
        if out == into or shapes[out][other] not in (count, count + 1) or len(shapes[into]) < 2:
            continue
        incoming = numbered(nothing, into, axis, count)
        outgoing = numbered(nothing, out, other, count)
        yield _Scaling(incoming, outgoing)
        for bias, shape in enumerate(shapes):
            if bias not in (into, out) and shape and int(np.prod(shape)) == count == shape[0]:
                yield _Scaling(numbered(incoming, bias, 0, count), outgoing)
