"""Where a flow with located kinks is: the records that its loop passes on."""

from typing import Any, NamedTuple

import diffrax
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from gflow.dense import Steps
from gflow.flow.behind import Behind
from gflow.flow.events import Aim
from gflow.flow.output import SavedStates, StepCounts
from gflow.nonsmooth.kink_kinds import KinkKind
from gflow.nonsmooth.pairs import Pairs
from gflow.nonsmooth.pattern import AbstractPattern, Event
from gflow.results import RESULTS


class EventLog(NamedTuple):
    """The kinks met; the first `num_logged` entries of each array are filled."""

    num_logged: Int[Array, ""]
    time: Float[Array, " kinks"]
    unit: Int[Array, " kinks"]
    row: Int[Array, " kinks"]
    kind: Int[Array, " kinks"]
    passed: Bool[Array, " kinks"]

    def with_passed(
        self,
        pairs: Pairs,
        turned: Bool[Array, " pairs"],
        was_active: Bool[Array, " pairs"],
        times: Float[Array, " pairs"],
    ) -> "EventLog":
        """With crossings of pairs, from these sides and at these times, that were passed."""
        kinds = jnp.where(was_active, KinkKind.CROSS_TO_INACTIVE, KinkKind.CROSS_TO_ACTIVE)

        def one(c):
            k, log = c
            place = jnp.where(turned[k], log.num_logged, len(log.time))
            log = log.with_entry(place, times[k], pairs.unit[k], pairs.row[k], kinds[k], True)
            return k + 1, log._replace(num_logged=log.num_logged + turned[k])

        number = jnp.sum(pairs.filled)
        return jax.lax.while_loop(lambda c: c[0] < number, one, (jnp.asarray(0), self))[1]

    def with_event(
        self, t: Float[Array, ""], event: Event, shared: bool, passed: Bool[Array, ""]
    ) -> "EventLog":
        """With the event of one row, or, if kinks can be `shared`, of all its members."""
        if shared:
            rows, count = jnp.arange(len(event.members)), jnp.sum(event.members)
            # Past the end, where nothing is written, for the others.
            after = self.num_logged + jnp.cumsum(event.members) - 1
            places, kinds = jnp.where(event.members, after, len(self.time)), event.kinds
        else:
            rows, kinds, count = event.row, event.kinds[event.row], event.members[event.row]
            places = jnp.where(count, self.num_logged, len(self.time))
        log = self.with_entry(places, t, event.unit, rows, kinds, passed)
        return log._replace(num_logged=self.num_logged + count)

    def with_entry(self, places, t, unit, row, kind, passed) -> "EventLog":
        """With entries written at these places, past the end nowhere."""
        write = lambda array, entry: array.at[places].set(
            jnp.asarray(entry).astype(array.dtype), mode="drop"
        )
        return EventLog(
            self.num_logged,
            write(self.time, t),
            write(self.unit, unit),
            write(self.row, row),
            write(self.kind, kind),
            write(self.passed, passed),
        )


class Stepping(NamedTuple):
    """What one step hands to the next: its size, the states of step-size controller and solver,
    the event it is aimed at, whether the field has just jumped, and the rate at which the field
    answers to a displacement."""

    size: Float[Array, ""]
    controller_state: Any
    aim: Aim
    solver_state: Any
    made_jump: Bool[Array, ""]
    rate: Float[Array, ""]


class LocatedState(NamedTuple):
    """Where a flow with located kinks is, with the evaluation of its risk there, and what it left
    on the way.

    It may have been `repelled` at the start, and have `branched` since. `steps` are those since the
    last pause, None if they are not kept.
    """

    t: Float[Array, ""]
    y: Float[Array, " size"]
    pattern: AbstractPattern
    now: Any
    stepping: Stepping
    saved: SavedStates
    counts: StepCounts
    log: EventLog
    repelled: Bool[Array, ""]
    branched: Bool[Array, ""]
    result: RESULTS
    steps: Steps | None


class Trial(NamedTuple):
    """A step that was tried: where it leads, its dense output from 0 on, the estimate of its error
    and what that may be, whether it is `good`, the rate at which the field answers to a
    displacement, the size of the next step, the states of controller
    and solver after it, and the evaluation at its end."""

    t: Float[Array, ""]
    y: Float[Array, " size"]
    dense: diffrax.AbstractLocalInterpolation
    dt: Float[Array, ""]
    error: Float[Array, " size"]
    tolerance: Float[Array, " size"]
    good: Bool[Array, ""]
    rate: Float[Array, ""]
    next_size: Float[Array, ""]
    controller_state: Any
    solver_state: Any
    end: Any


class Due(NamedTuple):
    """What is due at the end of a step: an `event` that was located, or `slides` that begin or end
    among the kinks that are passed; one ends at the fraction `slide_ends` of the step."""

    event: Bool[Array, ""]
    slides: Bool[Array, ""]
    slide_ends: Float[Array, ""]


class Events(NamedTuple):
    """What is known of the events at a time `t` in a step that was to end at `t_end`: what is
    behind, which of its pairs have `turned`, what preactivations are measured by, and at
    which fraction of the step a slide ends, if that is passed."""

    behind: Behind
    t_end: Float[Array, ""]
    dt: Float[Array, ""]
    t: Float[Array, ""]
    turned: Bool[Array, " pairs"]
    scales: Any
    slide_ends: Float[Array, ""]
    passes_end: Bool[Array, ""]


class Resolved(NamedTuple):
    """What is left when all events at one time are dealt with, how many there were, and how many
    evaluations it took.

    `changed` says whether the pattern has changed, `passed` whether kinks were passed.
    """

    y: Float[Array, " size"]
    pattern: AbstractPattern
    now: Any
    log: EventLog
    num_events: Int[Array, ""]
    num_evaluations: Int[Array, ""]
    branched: Bool[Array, ""]
    changed: Bool[Array, ""]
    passed: Bool[Array, ""]
