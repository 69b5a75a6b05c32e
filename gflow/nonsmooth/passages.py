"""What a step sees of the kinks behind it, and what it passed."""

from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from gflow.nonsmooth.pairs import Pairs

# A kink is passed if it costs less than this part of the tolerance.
_EACH = 0.25


class Ends(NamedTuple):
    """A step from one end to the other: its length, and the evaluations at both."""

    dt: Float[Array, ""]
    start: Any
    end: Any


class Pushes(NamedTuple):
    """By what multiples of their normals units move faster once pairs are past their kinks: at the
    start and the end of a step."""

    start: Float[Array, " pairs"]
    end: Float[Array, " pairs"]


class Sight(NamedTuple):
    """What a step sees of some pairs.

    - `sides`: their heights (`AbstractPatternRisk.heights`) divided by their preactivations.
    - `margins` at its start, middle and end, and the derivatives of the margins by time, `slopes`,
      at its start and end; `beyond`, the slope at the end of one that is on the other side.
    - `slack`, and `active`, the side of their kinks, in the pattern.
    - `jumps`: the norms of the jumps of the field in θ at their kinks, in units of the tolerance;
      `pushes`, their parts.
    """

    sides: Float[Array, " pairs"]
    margins: Float[Array, "3 pairs"]
    slopes: Float[Array, "2 pairs"]
    beyond: Float[Array, " pairs"]
    slack: Float[Array, " pairs"]
    active: Bool[Array, " pairs"]
    jumps: Float[Array, " pairs"]
    pushes: Pushes


class Patience(NamedTuple):
    """What a step may leave behind: `tolerance` of each entry of the state, the `rate` ρ, and the
    part of the tolerance that is for kinks, `budget`: 0 if each is to be located."""

    tolerance: Float[Array, " size_and_one"]
    rate: Float[Array, ""]
    budget: Float[Array | np.ndarray, ""]

    @property
    def each(self) -> Float[Array, ""]:
        """What one kink may cost, in units of the tolerance."""
        return _EACH * jnp.asarray(self.budget)


class Seen(NamedTuple):
    """What happens in a step: the pairs that are `past` their kinks, since which `age` of it; those
    of them that begin to slide; the slides that have `ended`; and the evaluation at its `end`."""

    pairs: Pairs
    past: Bool[Array, " pairs"]
    begins: Bool[Array, " pairs"]
    age: Float[Array, " pairs"]
    ended: Bool[Array, "..."]
    end: Any


class Tangles(NamedTuple):
    """What in a step cannot be dealt with one by one: `pairs` and `slides`, which are located.

    Of `rough` pairs not even the first order is known: all that they have done counts as an error.
    """

    pairs: Bool[Array, " pairs"]
    slides: Bool[Array, "..."]
    rough: Bool[Array, " pairs"]


class Returns(NamedTuple):
    """Whether margins fall below 0 and come back, by the parabola through three of them: the first
    root, where they are lowest, and how long they stay below, as fractions of the step."""

    found: Bool[Array, "..."]
    first: Float[Array, "..."]
    lowest: Float[Array, "..."]
    stay: Float[Array, "..."]

    @classmethod
    def of(
        cls,
        start: Float[Array, "*pairs"],
        half: Float[Array, "*pairs"],
        end: Float[Array, "*pairs"],
        eps: float,
    ) -> "Returns":
        """From the margins at the start, the middle and the end of a step."""
        curve = 2 * (start - 2 * half + end)
        slope = end - start - curve
        vertex = (curve > 0) & (slope < 0) & (slope > -2 * curve)
        touches = vertex & (slope**2 >= 4 * curve * (start + eps))
        below = half <= -eps
        width = jnp.sqrt(jnp.maximum(slope**2 - 4 * curve * start, 0.0))
        curve = jnp.where(touches, curve, 1.0)
        first = 2 * start / jnp.where(touches, width - slope, 1.0)
        return cls(
            found=touches | below,
            first=jnp.where(touches, jnp.clip(first, 0.0, 1.0), 0.5),
            lowest=jnp.where(below, 0.5, -slope / (2 * curve)),
            stay=jnp.where(touches, width / curve, 0.5),
        )


class Passed(NamedTuple):
    """The kinks that a step of length `dt` passed: which `pairs` have `crossed`, from which side
    they came (`was_active`), how long before the end of the step, their `age`, and how they push
    past their kinks."""

    pairs: Pairs
    crossed: Bool[Array, " pairs"]
    was_active: Bool[Array, " pairs"]
    age: Float[Array, " pairs"]
    dt: Float[Array, ""]
    pushes: Pushes

    @classmethod
    def none(cls, pairs: Pairs, dt: Float[Array, ""]) -> "Passed":
        """None of the pairs was passed."""
        zero = jnp.zeros(pairs.unit.shape, dt.dtype)
        no = zero.astype(bool)
        return cls(pairs, no, no, zero, dt, Pushes(zero, zero))
