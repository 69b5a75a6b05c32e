"""Pairs of a hidden unit and a row of data, one or several."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from gflow.rows import with_row


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

    def is_at(self, unit, row) -> Bool[Array, "..."]:
        """Which of them is a pair."""
        return self.filled & (self.unit == unit) & (self.row == row)
