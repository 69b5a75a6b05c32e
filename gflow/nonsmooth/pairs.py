"""Pairs of a hidden unit and a row of data, one or several."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int, UInt32

from gflow.rows import with_row

# A mask of more than so many pairs is searched all at once, in words of so many bits.
_SMALL, _BITS = 2**16, 32


class Pair(NamedTuple):
    """A hidden unit and a row of data, with the kink where its preactivation is 0."""

    unit: Int[Array, ""]
    row: Int[Array, ""]


class Pairs(NamedTuple):
    """A list of pairs, those `filled`. `overflows` says that there were more than it can hold."""

    unit: Int[Array, "..."]
    row: Int[Array, "..."]
    filled: Bool[Array, "..."]
    overflows: Bool[Array, ""]

    @classmethod
    def none(cls, most: int) -> "Pairs":
        """An empty list that can hold so many."""
        zero = jnp.zeros(most, int)
        return cls(zero, zero, zero.astype(bool), jnp.asarray(False))

    @classmethod
    def all_of(cls, unit: Int[Array, "..."], row: Int[Array, "..."]) -> "Pairs":
        """Known pairs."""
        return cls(unit, row, jnp.ones(unit.shape, bool), jnp.asarray(False))

    @classmethod
    def where(cls, mask: Bool[Array, "units rows"], most: int) -> "Pairs":
        """The pairs in a mask, where at most so many are few among all."""
        return cls._one_by_one(mask, most) if mask.size <= _SMALL else cls._at_once(mask, most)

    @classmethod
    def _one_by_one(cls, mask: Bool[Array, "units rows"], most: int) -> "Pairs":
        def one(c):
            found, left, counts, number = c
            unit = jnp.argmax(counts > 0)
            row = jnp.argmax(left[unit])
            found = Pairs(
                with_row(found.unit, number, unit),
                with_row(found.row, number, row),
                with_row(found.filled, number, True),
                found.overflows,
            )
            left = with_row(left, unit, left[unit] & (jnp.arange(left.shape[1]) != row))
            return found, left, with_row(counts, unit, counts[unit] - 1), number + 1

        more = lambda c: jnp.any(c[2] > 0) & (c[3] < most)
        start = cls.none(most), mask, jnp.sum(mask, axis=1), jnp.asarray(0)
        found, _, counts, _ = jax.lax.while_loop(more, one, start)
        return found._replace(overflows=jnp.any(counts > 0))

    @classmethod
    def _at_once(cls, mask: Bool[Array, "units rows"], most: int) -> "Pairs":
        """The mask as words of bits: set bits are counted, then found in those that have some."""
        bits = jnp.pad(mask, ((0, 0), (0, -mask.shape[1] % _BITS))).reshape(len(mask), -1, _BITS)
        powers = jnp.left_shift(jnp.uint32(1), jnp.arange(_BITS, dtype=jnp.uint32))
        words = jnp.sum(jnp.where(bits, powers, jnp.uint32(0)), axis=2, dtype=jnp.uint32)
        counts = jax.lax.population_count(words.ravel()).astype(int)
        ends = jnp.cumsum(counts)
        k = jnp.arange(most)
        at = jnp.repeat(jnp.arange(len(counts)), counts, total_repeat_length=most)
        unit, word = jnp.divmod(at, words.shape[1])
        filled = k < ends[-1]
        row = word * _BITS + _set_bit(words.ravel()[at], k - (ends - counts)[at])
        pick = lambda a: jnp.where(filled, a, 0)
        return cls(pick(unit), pick(row), filled, ends[-1] > most)

    def is_at(self, unit, row) -> Bool[Array, "..."]:
        """Which of them is a pair."""
        return self.filled & (self.unit == unit) & (self.row == row)


def _set_bit(words: UInt32[Array, " words"], number: Int[Array, " words"]) -> Int[Array, " words"]:
    """The place of that set bit of each word, both counted from 0."""
    place = jnp.zeros_like(number)
    for half in (16, 8, 4, 2, 1):
        low = jax.lax.population_count(words & jnp.uint32(2**half - 1)).astype(int)
        above = number >= low
        number = number - jnp.where(above, low, 0)
        place = place + jnp.where(above, half, 0)
        words = jnp.where(above, words >> half, words)
    return place
