"""Where a function of the fraction of a step falls through zero."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

# Ends of the bracket are tried first, and every fourth step halves it.
_MAX_STEPS, _HALVING = 100, 4
# Inside a step roots are located only coarsely, to this fraction of the bracket's heights.
_COARSE = 1e-4


def falling_root(
    height: Callable[[Array], Array],
    high: Float[Array, ""],
    *,
    eps: float,
    amid: Callable[[Array], Bool[Array, ""]],
) -> Float[Array, ""]:
    """The root in (0, high] at which `height` falls through 0; inf if it is positive at `high`.

    By the Illinois method (Dowell and Jarratt, BIT 11, 1971), to a height of `eps`/2, or to a few
    digits where the place is `amid` a step. The height at 0 is taken to be at least `eps`/2. One
    program for all roots of a loop, which the root finders of optimistix, with their own states and
    results for each call, do not give.
    """
    narrowest = 4 * jnp.finfo(high.dtype).eps

    def unfinished(c):
        low, high, _, f_high, _, count, near = c
        narrower = (high - low > narrowest * high) & (f_high < 0) & ~near
        return (count < 2) | (narrower & (count < _MAX_STEPS))

    def narrow(c):
        low, high, f_low, f_high, side, count, _ = c
        at = high - f_high * (high - low) / (f_high - f_low)
        halve = ~((at > low) & (at < high)) | (count % _HALVING == _HALVING - 1)
        at = jnp.where(halve, 0.5 * (low + high), at)
        # The ends come first, one after the other.
        at = jnp.where(count == 0, high, jnp.where(count == 1, low, at))
        f = height(at)
        near = jnp.abs(f) <= jnp.where(amid(at), _COARSE * (f_low - f_high), 0.5 * eps)
        near = near & (count > 1)
        below = (f <= 0) | near
        # Illinois: an end that stays twice has its value halved.
        f_low_next = jnp.where(below, jnp.where(side == 1, 0.5 * f_low, f_low), f)
        f_high_next = jnp.where(
            below, jnp.minimum(f, -0.1 * eps), jnp.where(side == -1, 0.5 * f_high, f_high)
        )
        inner = (
            jnp.where(below, low, at),
            jnp.where(below, at, high),
            f_low_next,
            f_high_next,
            jnp.where(below, 1, -1),
        )
        after_low = (low, high, jnp.maximum(f, 0.5 * eps), f_high, 0)
        after_high = (low, high, f_low, f, 0)
        pick = lambda *of: jnp.where(count == 0, of[0], jnp.where(count == 1, of[1], of[2]))
        return *map(pick, after_high, after_low, inner), count + 1, near

    start = (jnp.zeros_like(high), high, high, -high, 0, 0, jnp.asarray(False))
    found = jax.lax.while_loop(unfinished, narrow, start)
    return jnp.where(found[3] < 0, found[1], jnp.inf)
