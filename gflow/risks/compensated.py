r"""Sums and products with twice the digits of the floating type, in JAX and in NumPy.

A `FloatPair` is an unevaluated sum hi + lo, where |lo| is at most half a unit in the last place of
hi.
In float64 this gives about 32 digits (Dekker, Numer. Math. 18, 1971), unless something underflows.
No library does this under JAX: compilers may fuse a product and a sum into one rounding (FMA), and
may do so in only some of the places where they recompute it, which breaks the textbook product.
Here every product that enters a sum is either exact, so that fusion changes nothing, or has passed
through integers, which prevents fusion.

Pairs have no derivatives: code that uses them defines its own derivative rules.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

# Rows of up to this length are summed by a product with a triangular matrix.
_BLOCK = 32


class FloatPair(NamedTuple):
    """The number hi + lo, entry by entry."""

    hi: Any
    lo: Any

    def part(self, index: Any) -> "FloatPair":
        """Some of the entries, by an index into both arrays."""
        return FloatPair(self.hi[index], self.lo[index])


def two_sum(a: Any, b: Any) -> FloatPair:
    """a + b, exactly (Knuth)."""
    s = a + b
    d = s - a
    return FloatPair(s, (a - (s - d)) + (b - d))


def _ordered_sum(a: Any, b: Any) -> FloatPair:
    """a + b, exactly, for |a| ≥ |b| or a = 0."""
    s = a + b
    return FloatPair(s, b - (s - a))


def two_product(a: Any, b: Any) -> FloatPair:
    """a · b, with a relative error of at most 2^-105 for float64."""
    (a1, a2), (b1, b2) = _halves(a), _halves(b)
    # All products of halves are exact, except that of the lower halves.
    high = two_sum(a1 * b1, a1 * b2)
    both = two_sum(high.hi, a2 * b1)
    return _ordered_sum(both.hi, (high.lo + both.lo) + _rounded(a2 * b2))


def add(a: FloatPair, b: FloatPair | Any) -> FloatPair:
    """a + b, with a relative error of a few 2^-105 of |a| + |b|; b may be an array."""
    if not isinstance(b, FloatPair):
        s = two_sum(a.hi, b)
        return _ordered_sum(s.hi, s.lo + a.lo)
    s, t = two_sum(a.hi, b.hi), two_sum(a.lo, b.lo)
    s = _ordered_sum(s.hi, s.lo + t.hi)
    return _ordered_sum(s.hi, s.lo + t.lo)


def negative(a: FloatPair) -> FloatPair:
    """−a."""
    return FloatPair(-a.hi, -a.lo)


def subtract(a: FloatPair, b: FloatPair | Any) -> FloatPair:
    """a − b; b may be an array."""
    return add(a, negative(b) if isinstance(b, FloatPair) else -b)


def multiply(a: FloatPair, b: FloatPair | Any) -> FloatPair:
    """a · b, with a relative error of a few 2^-105; b may be an array."""
    if not isinstance(b, FloatPair):
        p = two_product(a.hi, b)
        return _ordered_sum(p.hi, p.lo + _rounded(a.lo * b))
    p = two_product(a.hi, b.hi)
    return _ordered_sum(p.hi, p.lo + (_rounded(a.hi * b.lo) + _rounded(a.lo * b.hi)))


def value(a: FloatPair) -> Any:
    """The pair, rounded to the floating type."""
    return a.hi + a.lo


def _masked(a: Any, cleared: int) -> Any:
    """`a` with this number of its last bits set to 0."""
    whole, bits = (np.uint64, 64) if a.dtype == np.float64 else (np.uint32, 32)
    mask = whole(2**bits - 2**cleared)
    if isinstance(a, (np.ndarray, np.generic)):
        return (a.view(whole) & mask).view(a.dtype)
    return jax.lax.bitcast_convert_type(jax.lax.bitcast_convert_type(a, whole) & mask, a.dtype)


def _halves(a: Any) -> tuple[Any, Any]:
    """The upper and the lower half of the digits."""
    digits = np.finfo(a.dtype).nmant + 1
    upper = _masked(a, (digits + 1) // 2)
    return upper, a - upper


def _rounded(product: Any) -> Any:
    """A product with its last bit set to 0, so that it is the same wherever it is computed."""
    return _masked(product, 1)


def exact_levels(a: FloatPair, count: int | None = None) -> tuple[Any, Any, Any]:
    """a as a sum of three arrays, the first two of which can be summed without rounding.

    Along the last axis, the entries of the first two are multiples of a power of two so large that
    all sums of up to `count` of them, in any order, are floats. The third is smaller than a by the
    factor 32 count² 2^-106 for float64 (Rump, Ogita and Oishi, SIAM J. Sci. Comput. 31, 2008).
    """
    xp = np if isinstance(a.hi, np.ndarray) else jnp
    digits = np.finfo(a.hi.dtype).nmant + 1
    spare = int(count or a.hi.shape[-1]).bit_length() + 1
    largest = xp.max(xp.abs(a.hi), axis=-1, keepdims=True)
    one = xp.ones_like(largest)
    grid = xp.ldexp(one, xp.frexp(largest)[1] + spare)
    first = (a.hi + grid) - grid
    rest = two_sum(a.hi - first, a.lo)
    finer = grid * 2.0 ** (spare + 1 - digits)
    second = (rest.hi + finer) - finer
    return first, second, (rest.hi - second) + rest.lo


def joined(first: Any, second: Any, rest: Any) -> FloatPair:
    """The sum of three arrays of decreasing size, as a pair."""
    s = two_sum(first, second)
    return _ordered_sum(s.hi, s.lo + rest)


def prefix_sums(a: Float[Array, "*rows n"]) -> Float[Array, "*rows n"]:
    """a_0 + … + a_k for each k along the last axis; exact if all sums of entries are floats."""
    n = a.shape[-1]
    if n <= _BLOCK:
        return jnp.matmul(a, jnp.triu(jnp.ones((n, n), a.dtype)), precision="highest")
    blocks = -(-n // _BLOCK)
    padding = [(0, 0)] * (a.ndim - 1) + [(0, blocks * _BLOCK - n)]
    within = prefix_sums(jnp.pad(a, padding).reshape(*a.shape[:-1], blocks, _BLOCK))
    before = prefix_sums(within[..., :-1, -1])
    offsets = jnp.concatenate([jnp.zeros_like(before[..., :1]), before], axis=-1)
    return (within + offsets[..., None]).reshape(*a.shape[:-1], blocks * _BLOCK)[..., :n]
