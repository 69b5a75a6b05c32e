r"""The risk of a network to first order at pairs of unit and row that are at their kinks.

With the pairs j on their inactive sides the gradient is $g$, the normals are
$m_j = \nabla_\theta z_j$ and the derivatives of the risk by the activations, times the jumps of
their slopes, are $q^0_j$. If pair j has the weight $\lambda_j$ of its active side, the gradient is

$$g + \sum_j \mu_j m_j, \qquad \mu_j = \lambda_j q_j, \qquad
  q_j = q^0_j + \sum_k \mu_k \frac{\partial z_k}{\partial a_j},$$

where k are the pairs of the same row in higher layers: a polynomial in λ, linear in each.
"""

from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from gflow.nonsmooth.deep.pattern import DeepPattern
from gflow.nonsmooth.deep.risk import DeepPatternRisk
from gflow.nonsmooth.pairs import Pair

# Pairs fill lists of these lengths, and of powers of 2 beyond: each length is compiled once.
_SHORTEST = 8


class Located(NamedTuple):
    """Preactivations of all pairs, the sides that the generalized gradient takes, and the scales by
    which preactivations are measured."""

    z: Float[np.ndarray, "units rows"]
    active: Bool[np.ndarray, "units rows"]
    scales: Float[np.ndarray, " units"]

    def tied(self, risk: DeepPatternRisk, tol: float) -> Bool[np.ndarray, "units rows"]:
        """The pairs at their kinks; two zeros that are compared have none."""
        near = np.abs(self.z) <= tol * self.scales[:, None]
        return near & ~(risk.network.ties[:, None] & (self.z == 0))


class FirstOrder(NamedTuple):
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


def located(risk: DeepPatternRisk, theta: Float[np.ndarray, " size"]) -> Located:
    """Where all pairs are at θ."""
    found = _located(risk, jnp.asarray(theta))
    return Located(*(np.asarray(a) for a in found))


def first_order(
    risk: DeepPatternRisk,
    theta: Float[np.ndarray, " size"],
    sides: Bool[np.ndarray, "units rows"],
    units: Int[np.ndarray, " pairs"],
    rows: Int[np.ndarray, " pairs"],
) -> FirstOrder:
    """The risk to first order on the given sides, with the normals of some pairs."""
    count = len(units)
    length = max(_SHORTEST, 1 << max(count - 1, 0).bit_length())
    pad = lambda a: jnp.asarray(np.pad(np.asarray(a, int), (0, length - count)))
    found = _first_order(risk, jnp.asarray(theta), jnp.asarray(sides), Pair(pad(units), pad(rows)))
    value, gradient, z, q, normals, by_units = (np.asarray(a, float) for a in found)
    return FirstOrder(float(value), gradient, z, q, normals[:count], by_units[:count])


@eqx.filter_jit
def _located(risk: DeepPatternRisk, theta: Array):
    pattern = risk.start(theta)
    return risk.preactivations(theta, pattern), pattern.active, risk.scales(theta, pattern)


@eqx.filter_jit
def _first_order(risk: DeepPatternRisk, theta: Array, sides: Array, pairs: Pair):
    pattern = DeepPattern.without_slides(sides, 1, theta.dtype)
    now = risk.evaluate(theta, pattern)
    normals = jax.vmap(lambda unit, row: risk.normal(theta, pattern, unit, row))(*pairs)
    return now.value, -now.field[:-1], now.z, now.q, *normals
