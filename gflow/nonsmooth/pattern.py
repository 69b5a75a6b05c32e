"""Patterns, pairs, and the record of an event."""

from abc import abstractmethod
from typing import NamedTuple

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from gflow.nonsmooth.kink_kinds import KinkKind


class Pair(NamedTuple):
    """A hidden unit and a row of data, with the kink where its preactivation is 0."""

    unit: Int[Array, ""]
    row: Int[Array, ""]


class AbstractPattern(eqx.Module):
    """The side of every kink, and which kinks the flow slides on.

    `active` and `sliding` say it for each pair of a hidden unit, of any layer, and a row of data.
    `slack` is how far past its kink a pair may go: infinite while it slides; a tolerance for a pair
    just released, which leaves its kink at zero speed, so that errors of the state could push it
    back.
    """

    active: eqx.AbstractVar[Bool[Array, "units rows"]]
    sliding: eqx.AbstractVar[Bool[Array, "units rows"]]
    slack: eqx.AbstractVar[Float[Array, "units rows"]]

    @abstractmethod
    def slides(self) -> Bool[Array, ""]:
        """Whether the flow slides on any kink."""


class Event(NamedTuple):
    """What happened at the kink of a unit at a row.

    `members` are all rows that have the same kink, `kinds` the `KinkKind` of each row as integers.
    """

    unit: Int[Array, ""]
    row: Int[Array, ""]
    members: Bool[Array, " rows"]
    kinds: Int[Array, " rows"]

    @property
    def branches(self) -> Bool[Array, ""]:
        """Whether the flow could have gone on to either side."""
        return self.kinds[self.row] == KinkKind.SLIDE_BRANCHES

    @property
    def changes_slides(self) -> Bool[Array, ""]:
        """Whether a slide begins or ends."""
        kind = self.kinds[self.row]
        return (kind != KinkKind.CROSS_TO_ACTIVE) & (kind != KinkKind.CROSS_TO_INACTIVE)


def pair_of_min(margins: Float[Array, "units rows"]) -> Pair:
    """The pair with the smallest margin: by units first, which XLA does much faster."""
    unit = jnp.argmin(jnp.min(margins, axis=1))
    return Pair(unit, jnp.argmin(margins[unit]))
