"""Which pairs of unit and row are active or slide, and what fields and events are made of."""

from typing import Any, NamedTuple

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int


class Pattern(eqx.Module):
    """Which pairs of unit and row are active, and which slide.

    `slots` are the sliding rows of each unit, where `used`. With their normals M, zero elsewhere,
    `lift` is $(M M^\top)^{-1} M$ and `projector` the projector $1 - M^\top (M M^\top)^{-1} M$ onto
    the directions in which the unit is free. `slack` is how far past its kink a pair may go:
    infinite for one that slides; the tolerance for one that slid until just now, as slides end with
    a speed of 0 across the kink, to which errors of the state add what may point back at it.
    """

    active: Bool[Array, "width rows"]
    sliding: Bool[Array, "width rows"]
    slots: Int[Array, "width slots"]
    used: Bool[Array, "width slots"]
    lift: Float[Array, "width slots dim"]
    projector: Float[Array, "width dim dim"]
    degenerate: Bool[Array, " width"]
    slack: Float[Array, "width rows"]


class Parts(NamedTuple):
    """What field and margins are made of, at one θ."""

    z: Float[Array, "width rows"]
    q: Float[Array, "width rows"]
    force: Float[Array, "width dim"]
    g_v: Array
    g_c: Array


class Event(NamedTuple):
    """What happened at the kink of a unit and some row, and of the `members` of its line that have
    the same kink. `kinds` are those of all rows, as indices into `KINK_KINDS`. `repelled` where the
    flow could have gone on to either side."""

    unit: Any
    row: Any
    members: Bool[Array, " rows"]
    kinds: Int[Array, " rows"]
    repelled: Any

    @property
    def slides(self) -> Bool[Array, ""]:
        """Whether a slide begins or ends."""
        return self.kinds[self.row] >= 2


def least_pair(margins: Float[Array, "width rows"]) -> tuple[Array, Array]:
    """Unit and row of the least margin: by units first, much faster than a flat `argmin` in XLA."""
    unit = jnp.argmin(jnp.min(margins, axis=1))
    return unit, jnp.argmin(margins[unit])
