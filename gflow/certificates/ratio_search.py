"""A search for small ‖∇f‖²/f in a ball, which bounds its infimum from above."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, PRNGKeyArray

from gflow.arguments import PyTree

_STEPS = 120
# Sizes of the first and the last step, as fractions of the radius.
_FIRST, _LAST = 0.5, 1e-4


def ratio_accuracy(dtype: Any) -> float:
    """The relative accuracy of computed ratios, √eps.

    It is also the fraction of its value at the centre below which f is too close to its rounding
    error to divide by.
    """
    return float(jnp.finfo(dtype).eps) ** 0.5


@eqx.filter_jit
def smallest_ratios(
    risk: Any,
    trained: PyTree,
    frozen: PyTree,
    radii: Float[Array, " radii"],
    starts: int,
    key: PRNGKeyArray,
) -> tuple[Float[Array, " radii"], Float[Array, "radii parameters"]]:
    """The smallest ‖∇f‖²/f found in balls of increasing radii about the start, and its points.

    By normalised gradient descent of log ‖∇f‖² − log f with projection onto the ball, and steps
    from half the radius to 1e-4 of it. Descents start from the centre, the best point of the
    previous ball, and `starts` random points on the sphere. Only points with f above √eps of its
    value at the centre count.
    """
    theta, unravel = ravel_pytree(trained)
    value = lambda p: risk(eqx.combine(unravel(p), frozen))
    floor = ratio_accuracy(theta.dtype) * value(theta)
    tiny = jnp.finfo(theta.dtype).tiny

    def objective(p):
        f, gradient = jax.value_and_grad(value)(p)
        allowed = f > floor
        f = jnp.where(allowed, f, 1.0)
        ratio = jnp.where(allowed, jnp.sum(gradient**2) / f, jnp.inf)
        return jnp.log(jnp.sum(gradient**2) + tiny) - jnp.log(f), ratio

    slope = jax.grad(lambda p: objective(p), has_aux=True)
    sizes = jnp.asarray(_FIRST * (_LAST / _FIRST) ** (jnp.arange(_STEPS) / (_STEPS - 1)))
    sizes = sizes.astype(theta.dtype)

    def descend(start, radius):
        def step(state, size):
            p, best, smallest = state
            direction, ratio = slope(p)
            better = ratio < smallest
            best, smallest = jnp.where(better, p, best), jnp.where(better, ratio, smallest)
            unit = direction / (jnp.linalg.norm(direction) + tiny)
            p = p - size * radius * jnp.where(jnp.isfinite(unit), unit, 0.0)
            off = p - theta
            away = jnp.linalg.norm(off)
            p = theta + off * jnp.minimum(1.0, radius / jnp.where(away > 0, away, 1.0))
            return (p, best, smallest), None

        first = (start, start, jnp.asarray(jnp.inf, theta.dtype))
        (_, best, smallest), _ = jax.lax.scan(step, first, sizes)
        return smallest, best

    def in_ball(state, radius_and_key):
        before, point = state
        radius, key = radius_and_key
        random = jax.random.normal(key, (starts, theta.size), theta.dtype)
        random = radius * random / jnp.linalg.norm(random, axis=1, keepdims=True)
        inside = jnp.concatenate([point[None], theta[None], theta[None] + random])
        found, points = jax.vmap(descend, (0, None))(inside, radius)
        k = jnp.argmin(found)
        better = found[k] < before
        state = jnp.where(better, found[k], before), jnp.where(better, points[k], point)
        return state, state

    keys = jax.random.split(key, radii.shape[0])
    first = (jnp.asarray(jnp.inf, theta.dtype), theta)
    return jax.lax.scan(in_ball, first, (radii, keys))[1]
