"""What a step sees of the kinks behind it, and what it passed."""

from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from gflow.nonsmooth.pairs import Pairs


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
    - `jumps`: the norms of the jumps of the field in θ at their kinks; `pushes`, their parts.
    """

    sides: Float[Array, " pairs"]
    margins: Float[Array, "3 pairs"]
    slopes: Float[Array, "2 pairs"]
    beyond: Float[Array, " pairs"]
    slack: Float[Array, " pairs"]
    active: Bool[Array, " pairs"]
    jumps: Float[Array, " pairs"]
    pushes: Pushes


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
