r"""Slides of a network of any depth: normals of kinks, multipliers, and the way back to a kink.

With normals $m_j = \nabla_\theta z_j$ in the rows of M, taken with sliding pairs on their inactive
sides, and g the gradient there, the field along the kinks is $-(g + M^\top \mu)$ with
$\mu = -(M M^\top)^{-1} M g$.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

_ROUNDINGS = 100


class Normals(NamedTuple):
    """Normals of kinks, in `rows`, of length 1, with their `lengths`; and the derivatives of their
    preactivations by the activations of the same row, `by_units`. Those of unused slots are 0."""

    rows: Float[Array, "slots size"]
    lengths: Float[Array, " slots"]
    by_units: Float[Array, "slots units"]

    @classmethod
    def none(cls, slots: int, size: int, units: int, dtype: Any) -> "Normals":
        """Those of so many slots that are not used."""
        zeros = lambda *shape: jnp.zeros(shape, dtype)
        return cls(zeros(slots, size), zeros(slots), zeros(slots, units))

    def solved(self, products: Float[Array, " slots"]) -> Float[Array, " slots"]:
        """The x with M Mᵀ x = products, for normals of length 1."""
        # Some roundings more on the diagonal: normals can be all but dependent.
        more = jnp.where(self.lengths > 0, _ROUNDINGS * jnp.finfo(products.dtype).eps, 1.0)
        gram = self.rows @ self.rows.T + jnp.diag(more)
        factor = jnp.linalg.cholesky(gram, symmetrize_input=False)
        half = jax.scipy.linalg.solve_triangular(factor, products, lower=True)
        return jax.scipy.linalg.solve_triangular(factor, half, lower=True, trans=1)

    def free(self, u: Float[Array, " size"]) -> Float[Array, " size"]:
        """The part of u along the kinks."""
        return u - self.solved(self.rows @ u) @ self.rows

    def multipliers(self, gradient: Float[Array, " size"]) -> Float[Array, " slots"]:
        """μ for the normals as they are."""
        return -self.solved(self.rows @ gradient) / self.divisors

    def back(self, z: Float[Array, " slots"]) -> Float[Array, " size"]:
        """The shortest way by which θ gets onto kinks with these preactivations."""
        return -self.solved(z / self.divisors) @ self.rows

    @property
    def divisors(self) -> Any:
        """The lengths, 1 in slots that are not used."""
        return jnp.where(self.lengths > 0, self.lengths, 1.0)


def normals_of(rows: Float[Array, "slots size"], by_units: Float[Array, "slots units"]) -> Normals:
    """From normals as they are."""
    squares = jnp.sum(rows**2, axis=1)
    # The root has no derivative at 0.
    lengths = jnp.sqrt(jnp.where(squares > 0, squares, 1.0))
    return Normals(rows / lengths[:, None], jnp.where(squares > 0, lengths, 0.0), by_units)
