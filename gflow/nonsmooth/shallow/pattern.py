"""The pattern of one hidden layer: sides, slides, and the projectors that slides need."""

from typing import Any, NamedTuple

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from gflow.nonsmooth.pairs import Pairs
from gflow.nonsmooth.pattern import AbstractPattern


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

    def crossed(
        self, unit, members: Bool[Array, " rows"], active: Bool[Array, " rows"]
    ) -> "ShallowPattern":
        """With the kinks of some rows of a unit on the sides of `active`."""
        sides = jnp.where(members, active, self.active[unit])
        return eqx.tree_at(
            lambda p: (p.active, p.released),
            self,
            (
                self.active.at[unit].set(sides),
                self.released.at[unit].set(self.released[unit] & ~members),
            ),
        )

    def with_slide(
        self, unit, row, members: Bool[Array, " rows"], wanted: Bool[Array, ""]
    ) -> "ShallowPattern":
        """If `wanted`, with a slide of a unit along the kink of a row, and of its members."""
        joining, slot = members & wanted, jnp.argmin(self.used[unit])
        return eqx.tree_at(
            lambda p: (p.active, p.sliding, p.released, p.used, p.slots),
            self,
            (
                self.active.at[unit].set(self.active[unit] & ~joining),
                self.sliding.at[unit].set(self.sliding[unit] | joining),
                self.released.at[unit].set(self.released[unit] & ~joining),
                self.used.at[unit, slot].set(wanted | self.used[unit, slot]),
                self.slots.at[unit, slot].set(jnp.where(wanted, row, self.slots[unit, slot])),
            ),
        )

    def without_slide(
        self, unit, slot, members: Bool[Array, " rows"], slack: Float[Array, ""]
    ) -> "ShallowPattern":
        """Without the slide in one slot of a unit, whose members get some slack."""
        return eqx.tree_at(
            lambda p: (p.sliding, p.used, p.released, p.slack),
            self,
            (
                self.sliding.at[unit].set(self.sliding[unit] & ~members),
                self.used.at[unit, slot].set(False),
                self.released.at[unit].set(self.released[unit] | members),
                self.slack.at[unit].max(slack),
            ),
        )

    def projected(self, unit, normals: Float[Array, "rows dim"], whole: bool) -> "ShallowPattern":
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
                self.lift.at[unit].set(lift),
                self.projector.at[unit].set(projector),
                self.degenerate.at[unit].set(stuck),
            ),
        )


class Evaluation(NamedTuple):
    """Forward and backward pass at one θ: preactivations z, scaled output weights v and slopes
    r = ∂L/∂N of the loss, the gradient `force` of each (w_i, b_i) from the pairs that do not slide,
    and the gradients of v and c."""

    z: Float[Array, "units rows"]
    v: Float[Array, "units ..."]
    r: Float[Array, "rows ..."]
    force: Float[Array, "units dim"]
    by_v: Array
    by_c: Array

    @property
    def q(self) -> Float[Array, "units rows"]:
        """∂L/∂a of every pair."""
        return jnp.outer(self.v, self.r) if self.v.ndim == 1 else self.v @ self.r.T

    def q_of(self, pairs: Pairs) -> Float[Array, "*pairs"]:
        """∂L/∂a of some pairs."""
        v, r = self.v[pairs.unit], self.r[pairs.row]
        return v * r if self.v.ndim == 1 else jnp.sum(v * r, axis=-1)
