"""The pattern of a network of any depth: sides, and slides in slots that all units share."""

import dataclasses
from typing import Any

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from gflow.nonsmooth.deep.slides import Normals
from gflow.nonsmooth.pairs import Pair, Pairs
from gflow.nonsmooth.pattern import AbstractLoosePattern
from gflow.nonsmooth.pattern_risk import AbstractEvaluation
from gflow.rows import with_row


class DeepPattern(AbstractLoosePattern):
    """The sides of all pairs of unit and row, and the slides.

    Each of the `slots` that are `used` is for a slide, which one pair stands for. Other pairs can
    have the same kink: `slot` says to which slide a pair belongs, and its normal is `multiple`
    times that of the pair in the slot. Pairs may be past their kinks by their `slack`. It is `full`
    if another slide should have begun.
    """

    active: Bool[Array, "units rows"]
    sliding: Bool[Array, "units rows"]
    slot: Int[Array, "units rows"]
    multiple: Float[Array, "units rows"]
    slack: Float[Array, "units rows"]
    slots: Pair
    used: Bool[Array, " slots"]
    full: Bool[Array, ""]
    loose: Bool[Array, ""]

    @classmethod
    def without_slides(
        cls, active: Bool[Array, "units rows"], slots: int, dtype: Any
    ) -> "DeepPattern":
        """The pattern of these sides, with so many slots."""
        nothing, zero = jnp.zeros(active.shape, dtype), jnp.zeros(slots, int)
        return cls(
            active=active,
            sliding=jnp.zeros_like(active),
            slot=jnp.zeros(active.shape, int),
            multiple=nothing,
            slack=nothing,
            slots=Pair(zero, zero),
            used=zero.astype(bool),
            full=jnp.asarray(False),
            loose=jnp.asarray(False),
        )

    def loosened(self) -> "DeepPattern":
        none = DeepPattern.without_slides(self.active, self.room, self.slack.dtype)
        return eqx.tree_at(lambda p: p.loose, none, jnp.asarray(True))

    def held(self, z: Float[Array, "units rows"]) -> "DeepPattern":
        return DeepPattern.without_slides(z > 0, self.room, self.slack.dtype)

    @property
    def crowded(self) -> Bool[Array, ""]:
        return self.full

    def slides(self) -> Bool[Array, ""]:
        return jnp.any(self.used)

    def with_slack(self, heights: Float[Array, "units rows"]) -> Float[Array, "units rows"]:
        return heights + jnp.where(self.sliding, jnp.inf, self.slack)

    def slack_of(self, pairs: Pairs) -> Float[Array, "*pairs"]:
        """The slack of some pairs, infinite where they slide."""
        place = pairs.unit, pairs.row
        return jnp.where(self.sliding[place], jnp.inf, self.slack[place])

    def any_released(self) -> Bool[Array, ""]:
        return jnp.any(self.slack > 0)

    def settled(self, heights: Float[Array, "units rows"]) -> "DeepPattern":
        slack = jnp.where(heights <= self.slack, self.slack, 0.0)
        return eqx.tree_at(lambda p: p.slack, self, slack)

    def allowing(
        self, pairs: Pairs, flags: Bool[Array, " pairs"], slack: Float[Array, " pairs"]
    ) -> "DeepPattern":
        unit = jnp.where(flags, pairs.unit, self.slack.shape[0])
        slack = self.slack.at[unit, pairs.row].max(slack, mode="drop")
        return eqx.tree_at(lambda p: p.slack, self, slack)

    def open_sides(self) -> Bool[Array, "units rows"]:
        """The sides, inactive where pairs slide."""
        return self.active & ~self.sliding

    def with_sides(
        self, members: Bool[Array, "units rows"], sides: Bool[Array, "units rows"]
    ) -> "DeepPattern":
        """With some pairs on these sides."""
        return eqx.tree_at(lambda p: p.active, self, jnp.where(members, sides, self.active))

    def with_slide(
        self, pair: Pair, members: Bool[Array, "units rows"], multiple: Float[Array, "units rows"]
    ) -> "DeepPattern":
        """With a slide of pairs that have the kink of one; crowded if there is no slot for it."""
        slot, full = jnp.argmin(self.used), jnp.all(self.used)
        new = members & ~full
        place = jnp.where(full, len(self.used), slot)
        take = lambda slots, value: slots.at[place].set(value, mode="drop")
        return DeepPattern(
            active=self.active & ~new,
            sliding=self.sliding | new,
            slot=jnp.where(new, slot, self.slot),
            multiple=jnp.where(new, multiple, self.multiple),
            slack=jnp.where(new, 0.0, self.slack),
            slots=Pair(*map(take, self.slots, pair)),
            used=take(self.used, True),
            full=full,
            loose=self.loose,
        )

    def without_slide(
        self, slot: Int[Array, ""], active: Bool[Array, ""], slack: Float[Array, ""]
    ) -> "DeepPattern":
        """Without the slide in a slot, whose pair goes to the active side or the other, with some
        slack."""
        members = self.members(slot)
        sides = (self.multiple > 0) == active
        return eqx.tree_at(
            lambda p: (p.active, p.sliding, p.slack, p.used),
            self,
            (
                jnp.where(members, sides, self.active),
                self.sliding & ~members,
                jnp.where(members, slack, self.slack),
                with_row(self.used, slot, False),
            ),
        )

    def with_members(
        self,
        slot: Int[Array, ""],
        pair: Pair,
        members: Bool[Array, "units rows"],
        multiple: Float[Array, "units rows"],
    ) -> "DeepPattern":
        """With the slide in a slot for some of its pairs only, for which one stands."""
        old = self.members(slot)
        kept = old & members & self.used[slot]
        return eqx.tree_at(
            lambda p: (p.sliding, p.multiple, p.slots),
            self,
            (
                self.sliding & (kept | ~old),
                jnp.where(kept, multiple, self.multiple),
                Pair(*(with_row(a, slot, n) for a, n in zip(self.slots, pair))),
            ),
        )

    def shares(self) -> Bool[Array, ""]:
        """Whether several pairs slide on one kink."""
        return jnp.sum(self.sliding) > jnp.sum(self.used)

    def members(self, slot: Int[Array, ""]) -> Bool[Array, "units rows"]:
        """The pairs of the slide in a slot."""
        return self.sliding & (self.slot == slot)

    @property
    def room(self) -> int:
        return len(self.used)

    def with_room(self, room: int) -> "DeepPattern":
        pad = lambda a: jnp.pad(a, (0, room - self.room))
        return eqx.tree_at(
            lambda p: (p.slots, p.used, p.full),
            self,
            (Pair(*map(pad, self.slots)), pad(self.used), jnp.asarray(False)),
        )


class DeepEvaluation(AbstractEvaluation):
    """Forward and backward pass at one θ: preactivations z, q = ∂L/∂a times the jump of the slope
    for all pairs, normals and `multipliers` of the slides, the field and the value of the risk."""

    z: Float[Array, "units rows"]
    q: Float[Array, "units rows"]
    normals: Normals
    multipliers: Float[Array, " slots"]
    field: Float[Array, " size_and_one"]
    value: Float[Array, ""]

    @property
    def grad_norm(self) -> Float[Array, ""]:
        return jnp.sqrt(self.field[-1])

    def kept(self) -> "DeepEvaluation":
        return self

    def times(self, factor: Float[Array, ""]) -> "DeepEvaluation":
        field = (factor * self.field).at[-1].multiply(factor)
        q, multipliers = factor * self.q, factor * self.multipliers
        return dataclasses.replace(self, q=q, multipliers=multipliers, field=field)
