"""What a step left behind it: kinks that were passed."""

from typing import Any, NamedTuple

from jaxtyping import Array, Bool, Float

from gflow.nonsmooth.pairs import Pairs


class Passed(NamedTuple):
    """The kinks that a step of length `dt` passed: which `pairs` have `crossed`, and how long
    before the end of the step, their `age`; with the evaluations at its start and end."""

    pairs: Pairs
    crossed: Bool[Array, " pairs"]
    age: Float[Array, " pairs"]
    dt: Float[Array, ""]
    start: Any
    end: Any
