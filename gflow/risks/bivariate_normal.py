"""The standard normal law in one and two variables."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

# The half of a 28-point Gauss rule: the integrand of Owen's T is even, its poles are at ±i. What is
# left out of T(h, a) is below 1e-18 for all h and |a| <= 1.
_NODES, _WEIGHTS = (half[14:].tolist() for half in np.polynomial.legendre.leggauss(28))


def density(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """The standard normal density."""
    return jnp.exp(-(x**2) / 2) / math.sqrt(2 * math.pi)


def distribution(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """The standard normal distribution function."""
    return jax.scipy.special.erfc(-x / math.sqrt(2)) / 2


def bivariate_normal_cdf(h: Any, k: Any, rho: Any) -> Float[Array, "..."]:
    """P(X ≤ h, Y ≤ k) for standard normal X and Y of correlation ρ in [−1, 1], elementwise.

    By Owen's T function (Owen, Ann. Math. Statist. 27, 1956). In float64 the error is a few 1e-16,
    for every ρ; h and k are finite.
    """
    h, k, rho = jnp.broadcast_arrays(jnp.asarray(h), jnp.asarray(k), jnp.asarray(rho))
    return orthant(h, k, 1 - rho, 1 + rho)


@jax.custom_jvp
def orthant(h: Array, k: Array, minus: Array, plus: Array) -> Array:
    """Φ₂(h, k; ρ) from 1 − ρ and 1 + ρ, which carry what ρ loses near 1 and −1.

    The four have one rank and broadcast.
    """
    # Both 0 if they are tiny, which costs no more than their size. The corner of the quadrant is
    # then seen halfway between its sides, as from h = k = 1.
    size = jnp.maximum(jnp.abs(h), jnp.abs(k))
    central = size < jnp.sqrt(jnp.finfo(size.dtype).tiny)
    h, k = (jnp.where(central, 0.0, a) for a in (h, k))
    h1, k1 = (jnp.where(central, 1.0, a) for a in (h, k))
    q = jnp.sqrt(minus * plus)
    tail_h, tail_k = distribution(-jnp.abs(h)), distribution(-jnp.abs(k))
    sectors = _sector(h, tail_h, conditional(h, k, minus, plus), h1 * q, above(h1, k1, minus, plus))
    sectors += _sector(
        k, tail_k, conditional(k, h, minus, plus), k1 * q, above(k1, h1, minus, plus)
    )
    margins = jnp.where(h < 0, tail_h, -tail_h) + jnp.where(k < 0, tail_k, -tail_k)
    return jnp.where((h >= 0) & (k >= 0), 1.0, 0.0) + margins / 2 - sectors


@orthant.defjvp
def _orthant_jvp(primals, tangents):
    h, k, minus, plus = primals
    dh, dk, dminus, dplus = tangents
    r_k, r_h = conditional(h, k, minus, plus), conditional(k, h, minus, plus)
    q = jnp.maximum(jnp.sqrt(minus * plus), jnp.finfo(minus.dtype).tiny)
    tangent = (
        density(h) * distribution(r_k) * dh
        + density(k) * distribution(r_h) * dk
        + density(h) * density(r_k) / q * (dplus - dminus) / 2
    )
    return orthant(h, k, minus, plus), tangent


def above(h: Array, k: Array, minus: Array, plus: Array) -> Array:
    """k − ρh, without loss where it is small."""
    return jnp.where(minus <= plus, (k - h) + minus * h, (k + h) - plus * h)


def conditional(h: Array, k: Array, minus: Array, plus: Array) -> Array:
    """(k − ρh)/√(1 − ρ²): P(Y ≤ k | X = h) is Φ of it. ±inf or, on the line, 0 for ρ = ±1."""
    q = jnp.sqrt(minus * plus)
    return above(h, k, minus, plus) / jnp.maximum(q, jnp.finfo(q.dtype).tiny)


def _sector(h: Array, tail: Array, reach: Array, x: Array, y: Array) -> Array:
    """Owen's T(h, reach/h) with reach/h = y/x, for tail = Φ(−|h|)."""
    near, far = jnp.abs(x), jnp.abs(y)
    steep = far > near
    largest = jnp.maximum(jnp.maximum(near, far), jnp.finfo(x.dtype).tiny)
    slope = jnp.minimum(near, far) / largest
    # T(h, a) = (p + p')/2 − pp' − T(ah, 1/a) for the tails p, p' of h and ah, with h, a > 0.
    other = distribution(-jnp.abs(reach))
    total = jnp.where(steep, (tail + other) / 2 - tail * other, 0.0)
    part = _owens_t(jnp.where(steep, reach, h), slope)
    return jnp.where(h < 0, -1.0, 1.0) * jnp.sign(y) * jnp.where(steep, total - part, part)


def _owens_t(h: Array, a: Array) -> Array:
    """(1/2π) ∫₀ᵃ exp(−h²(1 + t²)/2)/(1 + t²) dt for 0 ≤ a ≤ 1."""
    total = jnp.zeros_like(a)
    for node, weight in zip(_NODES, _WEIGHTS):
        square = 1 + (node * a) ** 2
        total = total + weight * jnp.exp(-(h**2) / 2 * square) / square
    return a * total / (2 * math.pi)
