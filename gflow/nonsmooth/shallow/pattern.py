"""The pattern of one hidden layer: sides, slides, and the projectors that slides need."""

import dataclasses
from typing import Any, NamedTuple

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from gflow.nonsmooth.pairs import Pairs
from gflow.nonsmooth.pattern import AbstractPattern
from gflow.nonsmooth.pattern_risk import AbstractEvaluation
from gflow.rows import with_row


class Slides(NamedTuple):
    """The slides of a pattern, by unit and slot: the `weights` λ of their active sides, whether
    they are `pulled` towards their kinks (λ is −1 where not), and how far λ is from the ends of
    [0, 1], `margins`, infinite where nothing slides."""

    weights: Float[Array, "units slots"]
    pulled: Bool[Array, "units slots"]
    margins: Float[Array, "units slots"]


class Change(NamedTuple):
    """What changes at the kink of a unit at a row, for all `members` that have the same kink.

    They go to their `sides`, True where active. If a slide `begins` or `ends`, it is in a `slot`;
    pairs that are let go get some `slack`.
    """

    unit: Int[Array, ""]
    row: Int[Array, ""]
    members: Bool[Array, " rows"]
    sides: Bool[Array, " rows"]
    slot: Int[Array, ""]
    begins: Bool[Array, ""]
    ends: Bool[Array, ""]
    slack: Float[Array, ""]


class ShallowPattern(AbstractPattern):
    """The sides of all pairs of unit and row, and the slides of each unit.

    `slots` are the sliding rows of each unit, where `used`; one of them stands for all that have
    the same kink. With their normals M, zero elsewhere, `lift` is $(M M^\\top)^{-1} M$ and
    `projector` the projector $1 - M^\\top (M M^\\top)^{-1} M$ onto the directions in which the unit
    is free. `degenerate` units slide in all directions: w = b = 0. The `released` pairs of a unit
    may be past their kinks by its `slack`.
    """

    active: Bool[Array, "units rows"]
    sliding: Bool[Array, "units rows"]
    slots: Int[Array, "units slots"]
    used: Bool[Array, "units slots"]
    lift: Float[Array, "units slots dim"]
    projector: Float[Array, "units dim dim"]
    degenerate: Bool[Array, " units"]
    released: Bool[Array, "units rows"]
    slack: Float[Array, " units"]

    @classmethod
    def without_slides(
        cls, active: Bool[Array, "units rows"], dim: int, slots: int, dtype: Any
    ) -> "ShallowPattern":
        """The pattern of these sides, with as many slots and normals of this dimension."""
        units = active.shape[0]
        return cls(
            active=active,
            sliding=jnp.zeros_like(active),
            slots=jnp.zeros((units, slots), int),
            used=jnp.zeros((units, slots), bool),
            lift=jnp.zeros((units, slots, dim), dtype),
            projector=jnp.broadcast_to(jnp.eye(dim, dtype=dtype), (units, dim, dim)),
            degenerate=jnp.zeros(units, bool),
            released=jnp.zeros_like(active),
            slack=jnp.zeros(units, dtype),
        )

    def slides(self) -> Bool[Array, ""]:
        return jnp.any(self.used)

    @property
    def crowded(self) -> Bool[Array, ""]:
        return jnp.asarray(False)

    @property
    def room(self) -> int:
        return 0

    def with_room(self, room: int) -> "ShallowPattern":
        del room
        return self

    def with_slack(self, heights: Float[Array, "units rows"]) -> Float[Array, "units rows"]:
        slack = jnp.where(self.released, self.slack[:, None], 0.0)
        return heights + jnp.where(self.sliding, jnp.inf, slack)

    def slack_of(self, pairs: Pairs) -> Float[Array, "*pairs"]:
        place = pairs.unit, pairs.row
        slack = jnp.where(self.released[place], self.slack[pairs.unit], 0.0)
        return jnp.where(self.sliding[place], jnp.inf, slack)

    def any_released(self) -> Bool[Array, ""]:
        return jnp.any(self.slack > 0)

    def settled(self, heights: Float[Array, "units rows"]) -> "ShallowPattern":
        released = self.released & (heights <= self.slack[:, None])
        slack = jnp.where(jnp.any(released, axis=1), self.slack, 0.0)
        return eqx.tree_at(lambda p: (p.released, p.slack), self, (released, slack))

    def allowing(
        self, pairs: Pairs, flags: Bool[Array, " pairs"], slack: Float[Array, " pairs"]
    ) -> "ShallowPattern":
        unit = jnp.where(flags, pairs.unit, len(self.slack))
        return eqx.tree_at(
            lambda p: (p.released, p.slack),
            self,
            (
                self.released.at[unit, pairs.row].set(True, mode="drop"),
                self.slack.at[unit].max(slack, mode="drop"),
            ),
        )

    def changed(self, change: Change) -> "ShallowPattern":
        """After a change of one unit, before lift and projector are made anew."""
        unit, slot, members, begins, ends = (
            change.unit,
            change.slot,
            change.members,
            change.begins,
            change.ends,
        )
        of_unit = lambda rows, new: with_row(rows, unit, jnp.where(members, new, rows[unit]))
        here = jnp.arange(self.slots.shape[1]) == slot
        of_slot = lambda slots, new, wanted: with_row(
            slots, unit, jnp.where(here & wanted, new, slots[unit])
        )
        slack = jnp.maximum(self.slack[unit], jnp.where(ends, change.slack, 0.0))
        return eqx.tree_at(
            lambda p: (p.active, p.sliding, p.released, p.used, p.slots, p.slack),
            self,
            (
                of_unit(self.active, change.sides & ~begins),
                of_unit(self.sliding, begins),
                of_unit(self.released, ends),
                of_slot(self.used, begins, begins | ends),
                of_slot(self.slots, change.row, begins),
                with_row(self.slack, unit, slack),
            ),
        )

    def projected(self, unit, normals: Float[Array, "rows dim"], whole: Any) -> "ShallowPattern":
        """With lift and projector of one unit made from its slots.

        `whole` says that a unit that slides in all directions is zero, and stays so.
        """
        used, dim = self.used[unit], normals.shape[1]
        normals = jnp.where(used[:, None], normals[self.slots[unit]], 0.0)
        gram = normals @ normals.T + jnp.diag(jnp.where(used, 0.0, 1.0))
        lift = jnp.linalg.inv(gram) @ normals
        stuck = whole & (jnp.sum(used) == dim)
        projector = jnp.where(stuck, 0.0, jnp.eye(dim, dtype=normals.dtype) - normals.T @ lift)
        return eqx.tree_at(
            lambda p: (p.lift, p.projector, p.degenerate),
            self,
            (
                with_row(self.lift, unit, lift),
                with_row(self.projector, unit, projector),
                with_row(self.degenerate, unit, stuck),
            ),
        )


class Evaluation(AbstractEvaluation):
    """Forward and backward pass at one θ: preactivations z, scaled output weights v and slopes
    r = ∂L/∂N of the loss, the gradient `force` of each (w_i, b_i) from the pairs that do not slide,
    the field and the value of the risk."""

    z: Any
    v: Float[Array, "units ..."]
    r: Float[Array, "rows ..."]
    force: Float[Array, "units dim"]
    field: Float[Array, " size_and_one"]
    value: Float[Array, ""]

    def kept(self) -> "Evaluation":
        """Without z, which only margins and transitions ask for."""
        return dataclasses.replace(self, z=None)

    @property
    def grad_norm(self) -> Float[Array, ""]:
        return jnp.sqrt(self.field[-1])

    def times(self, factor: Float[Array, ""]) -> "Evaluation":
        field = (factor * self.field).at[-1].multiply(factor)
        r, force = factor * self.r, factor * self.force
        return dataclasses.replace(self, r=r, force=force, field=field)

    @property
    def q(self) -> Float[Array, "units rows"]:
        """∂L/∂a of every pair."""
        return jnp.outer(self.v, self.r) if self.v.ndim == 1 else self.v @ self.r.T

    def q_of(self, pairs: Pairs) -> Float[Array, "*pairs"]:
        """∂L/∂a of some pairs."""
        v, r = self.v[pairs.unit], self.r[pairs.row]
        return v * r if self.v.ndim == 1 else jnp.sum(v * r, axis=-1)
