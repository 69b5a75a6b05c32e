"""The field of a time-changed flow, pattern by pattern."""

from dataclasses import replace
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from gflow.flow.time_changed import TimeChanged, length
from gflow.nonsmooth.pairs import Pair, Pairs
from gflow.nonsmooth.passages import Ends, Passed, Patience, Seen, Sight, Tangles
from gflow.nonsmooth.pattern import AbstractPattern
from gflow.nonsmooth.pattern_risk import (
    AbstractEvaluation,
    AbstractPatternRisk,
    KinkResolution,
    Transition,
    UnitPlaces,
)


class TimeChangedEvaluation(AbstractEvaluation):
    """The `plain` evaluation of a risk, with the speed σ, and the `field` of the time-changed flow
    (`TimeChanged.field`)."""

    z: Any
    value: Float[Array, ""]
    plain: AbstractEvaluation
    speed: Float[Array, ""]
    field: Float[Array, " size_and_one"]

    @property
    def grad_norm(self) -> Float[Array, ""]:
        return length(self.plain.field[:-1])

    def kept(self) -> "TimeChangedEvaluation":
        plain = self.plain.kept()
        return replace(self, plain=plain, z=plain.z)

    def times(self, factor: Float[Array, ""]) -> "TimeChangedEvaluation":
        return replace(self, plain=self.plain.times(factor), field=factor * self.field)

    @property
    def in_this_time(self) -> AbstractEvaluation:
        """That of the risk times σ, whose flow moves as fast."""
        return self.plain.times(self.speed)


class TimeChangedPatternRisk(AbstractPatternRisk[AbstractPattern]):
    """The pattern risk of a time-changed flow. The last entry of its θ is the clock, log(1 + t).

    The orbit, and with it all that happens at a kink, is that of the risk. Each kink has to be
    located: across one that is passed within a step the speed would jump.
    """

    first_datum: Int[Array, " rows"]
    risk: AbstractPatternRisk
    model: TimeChanged

    @classmethod
    def of(cls, risk: AbstractPatternRisk, model: TimeChanged) -> "TimeChangedPatternRisk":
        """That of the flow of a risk at the speed of a model."""
        return cls(risk.first_datum, risk, model)

    def start(self, theta: Float[Array, " size"]) -> AbstractPattern:
        return self.risk.start(theta[:-1])

    def repels(self, theta: Float[Array, " size"], pattern: AbstractPattern) -> Bool[Array, ""]:
        return self.risk.repels(theta[:-1], pattern)

    def jacobian(
        self, t: Any, y: Float[Array, " size_and_one"], pattern: AbstractPattern
    ) -> Float[Array, "size_and_one size_and_one"]:
        now = self.risk.evaluate(y[:-2], pattern)
        of_velocity = self.risk.jacobian(t, _without_clock(y), pattern)[:-1, :-1]
        return self.model.jacobian(now.value, now.field[:-1], of_velocity, y[-2])

    def evaluate(
        self, theta: Float[Array, " size"], pattern: AbstractPattern
    ) -> TimeChangedEvaluation:
        plain = self.risk.evaluate(theta[:-1], pattern)
        velocity = plain.field[:-1]
        speed = self.model.rate(plain.value, length(velocity))
        field = self.model.field(plain.value, velocity, theta[-1])
        return TimeChangedEvaluation(
            z=plain.z, value=plain.value, plain=plain, speed=speed, field=field
        )

    def ends(
        self,
        theta: Float[Array, " size"],
        pattern: AbstractPattern,
        now: TimeChangedEvaluation,
        tolerance: Float[Array, " size_and_one"],
    ) -> Bool[Array, ""]:
        """Whether the changed time ends at θ (`TimeChanged.ends`)."""
        velocity = now.plain.field[:-1]
        after = lambda by: self.risk.evaluate(theta[:-1] + by, pattern).field[:-1]
        return self.model.ends(now.value, velocity, tolerance[:-2], after)

    def preactivations(
        self, theta: Float[Array, " size"], pattern: AbstractPattern
    ) -> Float[Array, "units rows"]:
        return self.risk.preactivations(theta[:-1], pattern)

    def scales(
        self,
        theta: Float[Array, " size"],
        pattern: AbstractPattern,
        evaluation: TimeChangedEvaluation,
    ) -> Any:
        return self.risk.scales(theta[:-1], pattern, evaluation.plain)

    def heights(
        self, z: Float[Array, "units rows"], pattern: AbstractPattern, scales: Any
    ) -> Float[Array, "units rows"]:
        return self.risk.heights(z, pattern, scales)

    def kink_margin(
        self, theta: Float[Array, " size"], pattern: AbstractPattern, scales: Any, pair: Pair
    ) -> Float[Array, ""]:
        return self.risk.kink_margin(theta[:-1], pattern, scales, pair)

    def slide_margins(
        self, evaluation: TimeChangedEvaluation, pattern: AbstractPattern
    ) -> Float[Array, "..."]:
        return self.risk.slide_margins(evaluation.plain, pattern)

    def on_kinks(
        self,
        theta: Float[Array, " size"],
        pattern: AbstractPattern,
        evaluation: TimeChangedEvaluation,
    ) -> Float[Array, " size"]:
        return theta.at[:-1].set(self.risk.on_kinks(theta[:-1], pattern, evaluation.plain))

    def suspects(
        self,
        thetas: Float[Array, "3 size"],
        ends: Ends,
        pattern: AbstractPattern,
        scales: Any,
        eps: float,
        patience: Patience,
    ) -> Bool[Array, "units rows"]:
        patience = patience._replace(tolerance=_without_clock(patience.tolerance))
        return self.risk.suspects(thetas[:, :-1], _of_plain(ends), pattern, scales, eps, patience)

    def sight(
        self,
        thetas: Float[Array, "3 size"],
        ends: Ends,
        pattern: AbstractPattern,
        scales: Any,
        pairs: Pairs,
        tolerance: Float[Array, " size_and_one"],
    ) -> Sight:
        tolerance = _without_clock(tolerance)
        return self.risk.sight(thetas[:, :-1], _of_plain(ends), pattern, scales, pairs, tolerance)

    def slide_jumps(
        self,
        evaluation: TimeChangedEvaluation,
        pattern: AbstractPattern,
        tolerance: Float[Array, " size_and_one"],
    ) -> Float[Array, "..."]:
        tolerance = _without_clock(tolerance)
        return self.risk.slide_jumps(evaluation.in_this_time, pattern, tolerance)

    def tangles(self, pattern: AbstractPattern, seen: Seen) -> Tangles:
        return self.risk.tangles(pattern, seen)

    def with_passed(
        self,
        theta: Float[Array, " size"],
        pattern: AbstractPattern,
        passed: Passed,
        back: Float[Array, ""],
        end: TimeChangedEvaluation,
    ) -> tuple[Float[Array, " size"], AbstractPattern]:
        at = theta[:-1]
        at, pattern = self.risk.with_passed(at, pattern, passed, back, end.in_this_time)
        return theta.at[:-1].set(at), pattern

    def jump_of_field(
        self,
        theta: Float[Array, " size"],
        before: AbstractPattern,
        after: AbstractPattern,
        passed: Passed,
        end: TimeChangedEvaluation,
        now: TimeChangedEvaluation,
    ) -> Float[Array, " size"]:
        both = end.in_this_time, now.in_this_time
        jump = self.risk.jump_of_field(theta[:-1], before, after, passed, *both)
        return jnp.append(jump, now.field[-2] - end.field[-2])

    def within_step(
        self,
        theta: Float[Array, " size"],
        before: AbstractPattern,
        after: AbstractPattern,
        passed: Passed,
        back: Float[Array, ""],
        end: TimeChangedEvaluation,
    ) -> tuple[Float[Array, " size"], AbstractPattern]:
        at = theta[:-1]
        at, pattern = self.risk.within_step(at, before, after, passed, back, end.in_this_time)
        return theta.at[:-1].set(at), pattern

    def transition(
        self,
        theta: Float[Array, " size"],
        pattern: AbstractPattern,
        evaluation: TimeChangedEvaluation,
        resolution: KinkResolution,
    ) -> Transition:
        after = self.risk.transition(theta[:-1], pattern, evaluation.plain, resolution)
        return after._replace(theta=theta.at[:-1].set(after.theta))

    @property
    def num_units(self) -> int:
        return self.risk.num_units

    @property
    def places(self) -> UnitPlaces:
        return self.risk.places

    @property
    def padding(self) -> Bool[Array, " size"] | None:
        padding = self.risk.padding
        return None if padding is None else jnp.append(padding, False)

    @property
    def shares_kinks(self) -> bool:
        return self.risk.shares_kinks


def _without_clock(y: Float[Array, " size_and_one"]) -> Float[Array, " size"]:
    """The entries of a state, or of a tolerance, without that of the clock."""
    return jnp.append(y[:-2], y[-1])


def _of_plain(ends: Ends) -> Ends:
    return Ends(ends.dt, ends.start.in_this_time, ends.end.in_this_time)
