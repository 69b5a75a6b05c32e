"""Patterns, pairs, and the record of an event."""

from abc import abstractmethod
from typing import NamedTuple

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from gflow.nonsmooth.kink_kinds import KinkKind
from gflow.nonsmooth.pairs import Pair, Pairs


class AbstractPattern(eqx.Module):
    """The side of every kink, and which kinks the flow slides on.

    `active` and `sliding` say it for each pair of a hidden unit, of any layer, and a row of data.

    A pair that was released from its kink, and leaves it at zero speed, may be past it by some
    slack, so that errors of the state do not push it back.
    """

    active: eqx.AbstractVar[Bool[Array, "units rows"]]
    sliding: eqx.AbstractVar[Bool[Array, "units rows"]]

    @abstractmethod
    def slides(self) -> Bool[Array, ""]:
        """Whether the flow slides on any kink."""

    @property
    @abstractmethod
    def crowded(self) -> Bool[Array, ""]:
        """Whether a slide should have begun for which there was no room."""

    @property
    @abstractmethod
    def room(self) -> int:
        """For how many slides at a time there is room; 0 if there always is."""

    @abstractmethod
    def with_room(self, room: int) -> "AbstractPattern":
        """With room for so many."""

    @abstractmethod
    def with_slack(self, heights: Float[Array, "units rows"]) -> Float[Array, "units rows"]:
        """How much farther pairs may go that are at these heights on the sides of the pattern:
        infinitely while they slide."""

    @abstractmethod
    def any_released(self) -> Bool[Array, ""]:
        """Whether any pair has slack, and does not slide."""

    @abstractmethod
    def settled(self, heights: Float[Array, "units rows"]) -> "AbstractPattern":
        """Without the slack of pairs that are off their kinks by more."""

    @abstractmethod
    def allowing(
        self, pairs: Pairs, flags: Bool[Array, " pairs"], slack: Float[Array, " pairs"]
    ) -> "AbstractPattern":
        """With slack for the flagged pairs, at least so much."""


class AbstractLoosePattern(AbstractPattern):
    """A pattern that can be `loose`: then nothing slides, and all pairs are on the sides of their
    preactivations, whichever these are."""

    loose: eqx.AbstractVar[Bool[Array, ""]]

    @abstractmethod
    def loosened(self) -> "AbstractLoosePattern":
        """The loose pattern."""

    @abstractmethod
    def held(self, z: Float[Array, "units rows"]) -> "AbstractLoosePattern":
        """The pattern that holds pairs on the sides that they are on with these preactivations."""


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
    def ends_slide(self) -> Bool[Array, ""]:
        """Whether a slide ends."""
        kind = self.kinds[self.row]
        return (
            self.changes_slides
            & (kind != KinkKind.SLIDE_BEGINS)
            & (kind != KinkKind.UNIT_DEGENERATES)
        )

    @property
    def changes_slides(self) -> Bool[Array, ""]:
        """Whether a slide begins or ends."""
        kind = self.kinds[self.row]
        return (kind != KinkKind.CROSS_TO_ACTIVE) & (kind != KinkKind.CROSS_TO_INACTIVE)


def no_event(rows: int) -> Event:
    """Nothing happened."""
    zero, kinds = jnp.asarray(0), jnp.zeros(rows, int)
    return Event(zero, zero, kinds.astype(bool), kinds)


def pair_of_min(margins: Float[Array, "units rows"]) -> Pair:
    """The pair with the smallest margin: by units first, which XLA does much faster."""
    unit = jnp.argmin(jnp.min(margins, axis=1))
    return Pair(unit, jnp.argmin(margins[unit]))
