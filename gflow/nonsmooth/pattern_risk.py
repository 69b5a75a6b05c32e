r"""The risk of a network pattern by pattern: what the flow through kinks asks of it.

While the activation pattern stays, the risk is smooth. The loop over steps (`gflow.flow.loop`)
knows a network only by the methods below, which speak of pairs of a hidden unit, of any layer, and
a row of data.
"""

from abc import abstractmethod
from typing import Any, Generic, NamedTuple, TypeVar

import equinox as eqx
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from gflow.nonsmooth.pairs import Pair, Pairs
from gflow.nonsmooth.passages import Ends, Passed, Patience, Seen, Sight, Tangles
from gflow.nonsmooth.pattern import AbstractPattern, Event

Pattern = TypeVar("Pattern", bound=AbstractPattern)
Evaluated = TypeVar("Evaluated", bound="AbstractEvaluation")


class KinkResolution(NamedTuple):
    """How finely kinks are told apart.

    `scales` are what preactivations are measured by, `distance` the margin at which a kink counts
    as reached, and `slack` the tolerance of a pair whose slide has ended. Units up to the size
    `unresolved` are errors of the flow. `circling` says that events at this time lead to one
    another without end, so that the flow has to rest.
    """

    scales: Any
    distance: float
    slack: Float[Array, ""]
    unresolved: Float[Array, ""]
    circling: Bool[Array, ""]


class AbstractEvaluation(eqx.Module):
    """What forward and backward pass give at one θ: the preactivations `z` of all pairs, `field`,
    d/dt of (θ, ∫‖θ'‖²), and the `value` of the risk.
    """

    z: eqx.AbstractVar[Any]
    field: eqx.AbstractVar[Float[Array, " size_and_one"]]
    value: eqx.AbstractVar[Float[Array, ""]]

    @property
    @abstractmethod
    def grad_norm(self) -> Float[Array, ""]:
        """The norm of the gradient, along all kinks that the pattern slides on."""

    @abstractmethod
    def kept(self: Evaluated) -> Evaluated:
        """What of it is kept until the next step."""

    @abstractmethod
    def times(self: Evaluated, factor: Float[Array, ""]) -> Evaluated:
        """That of the risk times a positive number, without its value."""


class Transition(NamedTuple):
    """θ and the pattern after an event."""

    theta: Float[Array, " size"]
    pattern: AbstractPattern
    event: Event


class UnitPlaces(NamedTuple):
    """The layer of each unit, and its number within the layer."""

    layer: Int[np.ndarray, " units"]
    unit: Int[np.ndarray, " units"]


class AbstractPatternRisk(eqx.Module, Generic[Pattern]):
    """The risk of a network with kinks, with the pattern of their sides as an argument.

    θ stands for the coordinates in which the flow follows the negative gradient: those of the time
    scales, θ/√τ, if there are any.
    `first_datum` is the datum that stands for each row in the log: the first of those that are
    equal.
    """

    first_datum: eqx.AbstractVar[Int[Array, " rows"]]

    @abstractmethod
    def start(self, theta: Float[Array, " size"]) -> Pattern:
        """The pattern of the generalized gradient at θ: z > 0 is active, nothing slides."""

    @abstractmethod
    def repels(self, theta: Float[Array, " size"], pattern: Pattern) -> Bool[Array, ""]:
        """Whether θ, where the pattern started, is within rounding of a kink that the flow could
        leave to either side: both lead away from it, or one does and the other rests."""

    def field(
        self, t: Any, y: Float[Array, " size_and_one"], pattern: Pattern
    ) -> Float[Array, " size_and_one"]:
        """d/dt of y = (θ, ∫‖θ'‖²) while the pattern stays, along all kinks that it slides on."""
        del t
        return self.evaluate(y[:-1], pattern).field

    @abstractmethod
    def jacobian(
        self, t: Any, y: Float[Array, " size_and_one"], pattern: Pattern
    ) -> Float[Array, "size_and_one size_and_one"]:
        """The Jacobian of `field` in y."""

    @abstractmethod
    def evaluate(self, theta: Float[Array, " size"], pattern: Pattern) -> AbstractEvaluation:
        """Forward and backward pass at θ, from which slides, jumps and transitions are computed."""

    @abstractmethod
    def preactivations(
        self, theta: Float[Array, " size"], pattern: Pattern
    ) -> Float[Array, "units rows"]:
        """z of all pairs at θ, if all lower layers are on the sides of the pattern."""

    @abstractmethod
    def scales(self, theta: Float[Array, " size"], pattern: Pattern, evaluation: Any) -> Any:
        """The scales by which preactivations are measured during a step that starts at θ, where the
        evaluation is what is kept."""

    @abstractmethod
    def heights(
        self, z: Float[Array, "units rows"], pattern: Pattern, scales: Any
    ) -> Float[Array, "units rows"]:
        """How far preactivations are from 0 on the side of the pattern, on their scales; linear in
        z."""

    def margins(
        self, z: Float[Array, "units rows"], pattern: Pattern, scales: Any
    ) -> Float[Array, "units rows"]:
        """A margin for each pair that is positive until the pair reaches its kink: its height, and
        the slack of the pattern."""
        return pattern.with_slack(self.heights(z, pattern, scales))

    @abstractmethod
    def kink_margin(
        self, theta: Float[Array, " size"], pattern: Pattern, scales: Any, pair: Pair
    ) -> Float[Array, ""]:
        """The margin of one pair, at the price of one preactivation."""

    @abstractmethod
    def slide_margins(self, evaluation: Any, pattern: Pattern) -> Float[Array, "..."]:
        """A margin for each slide that is positive until the slide ends; infinite where nothing
        slides."""

    @abstractmethod
    def on_kinks(
        self, theta: Float[Array, " size"], pattern: Pattern, evaluation: Any
    ) -> Float[Array, " size"]:
        """θ put back on the kinks that the pattern slides on, which a step leaves where they are
        curved."""

    # ---- kinks within a step ---------------------------------------------------------------------

    @abstractmethod
    def suspects(
        self,
        thetas: Float[Array, "3 size"],
        ends: Ends,
        pattern: Pattern,
        scales: Any,
        eps: float,
        patience: Patience,
    ) -> Bool[Array, "units rows"]:
        """The pairs that are past their kink at the end of a step, and those that were for so long
        in between that the tolerance may feel it; with θ at its start, middle and end."""

    @abstractmethod
    def sight(
        self,
        thetas: Float[Array, "3 size"],
        ends: Ends,
        pattern: Pattern,
        scales: Any,
        pairs: Pairs,
        tolerance: Float[Array, " size_and_one"],
    ) -> Sight:
        """What a step sees of some pairs, with θ at its start, middle and end."""

    @abstractmethod
    def slide_jumps(
        self, evaluation: Any, pattern: Pattern, tolerance: Float[Array, " size_and_one"]
    ) -> Float[Array, "..."]:
        """The jumps of the gradient across the kink of each slide, as in `Sight`."""

    @abstractmethod
    def tangles(self, pattern: Pattern, seen: Seen) -> Tangles:
        """The pairs and slides of a step that cannot be dealt with one by one."""

    @abstractmethod
    def with_passed(
        self,
        theta: Float[Array, " size"],
        pattern: Pattern,
        passed: Passed,
        back: Float[Array, ""],
        end: Any,
    ) -> tuple[Float[Array, " size"], Pattern]:
        """θ and the pattern at a time `back` before the end of a step, corrected to first order for
        the kinks that were passed until then."""

    @abstractmethod
    def jump_of_field(
        self,
        theta: Float[Array, " size"],
        before: Pattern,
        after: Pattern,
        passed: Passed,
        end: Any,
        now: Any,
    ) -> Float[Array, " size"]:
        """How much the field jumps at θ, where a step ended, from one pattern to another: at kinks
        that were crossed, and where slides begin. `end` and `now` are the evaluations before and
        after what was passed is made good."""

    @abstractmethod
    def within_step(
        self,
        theta: Float[Array, " size"],
        before: Pattern,
        after: Pattern,
        passed: Passed,
        back: Float[Array, ""],
        end: Any,
    ) -> tuple[Float[Array, " size"], Pattern]:
        """`with_passed` within a step from one pattern to another, with the units on their kinks
        that have begun to slide by then."""

    @abstractmethod
    def transition(
        self,
        theta: Float[Array, " size"],
        pattern: Pattern,
        evaluation: Any,
        resolution: KinkResolution,
    ) -> Transition:
        """θ and the pattern after the event that is most overdue: a crossing, the beginning of a
        slide, or the end of one. θ is put back on the kinks of a unit whose slides change."""

    @property
    @abstractmethod
    def num_units(self) -> int:
        """The number of hidden units, of all layers."""

    @property
    @abstractmethod
    def places(self) -> UnitPlaces:
        """Where the units are."""

    @property
    @abstractmethod
    def padding(self) -> Bool[Array, " size"] | None:
        """Which entries of θ are padding, left out of the norm of errors; None if there is none."""

    @property
    @abstractmethod
    def shares_kinks(self) -> bool:
        """Whether several rows can have one kink, so that one event has several members."""
