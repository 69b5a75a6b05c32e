r"""The risk of a network to first order at pairs of unit and row that are at their kinks.

With the pairs j on their inactive sides the gradient is $g$, the normals are
$m_j = \nabla_\theta z_j$ and the derivatives of the risk by the activations, times the jumps of
their slopes, are $q^0_j$. If pair j has the weight $\lambda_j$ of its active side, the gradient is

$$g + \sum_j \mu_j m_j, \qquad \mu_j = \lambda_j q_j, \qquad
  q_j = q^0_j + \sum_k \mu_k \frac{\partial z_k}{\partial a_j},$$

where k are the pairs of the same row in higher layers: a polynomial in λ, linear in each.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Int

from gflow.nonsmooth.deep.pattern import DeepPattern
from gflow.nonsmooth.deep.risk import DeepPatternRisk
from gflow.nonsmooth.pairs import Pair
from gflow.programs import always, program

# Pairs fill lists of these lengths, and of powers of 2 beyond: each length is compiled once.
_SHORTEST = 8
# Products of so many directions with a Hessian are made at once.
_AT_ONCE = 128


class Heights(NamedTuple):
    """Preactivations of all pairs, on the sides in `active`, and the scales by which they are
    measured."""

    z: Float[np.ndarray, "units rows"]
    active: Bool[np.ndarray, "units rows"]
    scales: Float[np.ndarray, " units"]

    def tied(self, risk: DeepPatternRisk, tol: float) -> Bool[np.ndarray, "units rows"]:
        """The pairs at their kinks; two zeros that are compared have none."""
        near = np.abs(self.z) <= tol * self.scales[:, None]
        return near & ~(risk.network.ties[:, None] & (self.z == 0))


class FirstOrderAtPairs(NamedTuple):
    """The risk on given sides: its `value` and `gradient`; of all pairs the preactivations `z` and
    `q`, the derivatives of the risk by the activations times the jumps of their slopes; of some
    pairs the `normals`, and the derivatives of their z by the activations in their row, times the
    jumps, `by_units`."""

    value: float
    gradient: Float[np.ndarray, " size"]
    z: Float[np.ndarray, "units rows"]
    q: Float[np.ndarray, "units rows"]
    normals: Float[np.ndarray, "pairs size"]
    by_units: Float[np.ndarray, "pairs units"]


def heights(
    risk: DeepPatternRisk,
    theta: Float[np.ndarray, " size"],
    sides: Bool[np.ndarray, "units rows"] | None = None,
) -> Heights:
    """Where all pairs are at θ on given sides, or on those that the generalized gradient takes."""
    found = _heights(risk, theta, sides)
    return Heights(*(np.asarray(a) for a in found))


def first_order(
    risk: DeepPatternRisk,
    theta: Float[np.ndarray, " size"],
    sides: Bool[np.ndarray, "units rows"],
    units: Int[np.ndarray, " pairs"],
    rows: Int[np.ndarray, " pairs"],
    extra: Float[np.ndarray, "units rows"] | None = None,
) -> FirstOrderAtPairs:
    """The risk to first order on the given sides, with the normals of some pairs, and with `extra`
    added to the activations."""
    count = len(units)
    length = max(_SHORTEST, 1 << max(count - 1, 0).bit_length())
    pad: Any = lambda a: np.pad(np.asarray(a, int), (0, length - count))
    extra = np.zeros(sides.shape) if extra is None else extra
    pairs = Pair(pad(units), pad(rows))
    found = _first_order(risk, theta, sides, np.asarray(extra, theta.dtype), pairs)
    value, z, gradient, q, normals, by_units = (np.asarray(a, float) for a in found)
    return FirstOrderAtPairs(float(value), gradient, z, q, normals[:count], by_units[:count])


def second_order(
    risk: DeepPatternRisk,
    theta: Float[np.ndarray, " size"],
    sides: Bool[np.ndarray, "units rows"],
    multipliers: Float[np.ndarray, "units rows"],
) -> Float[np.ndarray, "size size"]:
    """The Hessian of the risk on the given sides, and of Σ μ z over all pairs."""
    return np.asarray(_second_order(risk, theta, sides, multipliers))


@partial(program, is_brief=always)
def _heights(risk: DeepPatternRisk, theta: Any, sides: Any):
    pattern = risk.start(theta)
    if sides is not None:
        pattern = DeepPattern.without_slides(sides, 1, theta.dtype)
    z = risk.preactivations(theta, pattern)
    return z, pattern.active, risk.scales_of(z)


@partial(program, is_brief=always)
def _first_order(risk: DeepPatternRisk, theta: Any, sides: Any, extra: Any, pairs: Pair):
    pattern = DeepPattern.without_slides(sides, 1, theta.dtype)
    now = risk.first_order(theta, sides, extra)
    normals = jax.vmap(lambda unit, row: risk.normal(theta, pattern, unit, row))(*pairs)
    return *now, *normals


@partial(program, is_brief=always)
def _second_order(risk: DeepPatternRisk, theta: Any, sides: Any, multipliers: Any):
    pattern = DeepPattern.without_slides(sides, 1, theta.dtype)
    z = lambda theta: jnp.sum(multipliers * risk.preactivations(theta, pattern))
    none = jnp.zeros(sides.shape, theta.dtype)
    gradient = lambda theta: risk.first_order(theta, sides, none).gradient + jax.grad(z)(theta)
    product = lambda v: jax.jvp(gradient, (theta,), (v,))[1]
    directions = jnp.eye(len(theta), dtype=theta.dtype)
    if len(theta) <= _AT_ONCE:
        found = jax.vmap(product)(directions)
    else:
        found = jax.lax.map(product, directions, batch_size=_AT_ONCE)
    return (found + found.T) / 2
