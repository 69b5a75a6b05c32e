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
from gflow.flow.pace import Pace
from gflow.nonsmooth.kink_kinds import KinkKind
from gflow.nonsmooth.pairs import Pairs
from gflow.nonsmooth.passages import Passed
from gflow.nonsmooth.pattern import AbstractPattern, Event
from gflow.results import RESULTS
from gflow.rows import with_row


class EventLog(NamedTuple):
    """The kinks met; the first `num_logged` rows are filled. Each has its `time`, and an entry of
    unit, row, kind, and whether it was passed. The last row is for what there is no room for."""

    num_logged: Int[Array, ""]
    time: Float[Array, " kinks"]
    entry: Int[Array, "kinks 4"]

    @classmethod
    def empty(cls, size: int, dtype: Any) -> "EventLog":
        """With room for so many."""
        rows = size + 1
        return cls(
            jnp.asarray(0, int), jnp.full(rows, jnp.inf, dtype), jnp.zeros((rows, 4), "int32")
        )

    @property
    def size(self) -> int:
        """For how many there is room."""
        return len(self.time) - 1

    def with_passed(
        self,
        passed: Passed,
        turned: Bool[Array, " pairs"],
        t_end: Float[Array, ""],
        located: Bool[Array, " pairs"],
    ) -> "EventLog":
        """With those crossings of a step to t_end that have `turned`, as passed or `located`."""
        cross = KinkKind
        kinds = jnp.where(passed.was_active, cross.CROSS_TO_INACTIVE, cross.CROSS_TO_ACTIVE)
        return self.with_pairs(passed.pairs, turned, t_end - passed.age, kinds, ~located)

    def with_pairs(
        self,
        pairs: Pairs,
        wanted: Bool[Array, " pairs"],
        times: Float[Array, " pairs"],
        kinds: Int[Array, " pairs"],
        passed: Bool[Array, " pairs"],
    ) -> "EventLog":
        """With an entry for each of those pairs that are `wanted`."""
        entries = _entries(pairs.unit, pairs.row, kinds, passed)

        def one(c):
            k, log = c
            return k + 1, log.with_entry(times[k], entries[k], wanted[k])

        number = jnp.sum(pairs.filled)
        return jax.lax.while_loop(lambda c: c[0] < number, one, (jnp.asarray(0), self))[1]

    def with_event(self, t: Float[Array, ""], event: Event, passed: Bool[Array, ""]) -> "EventLog":
        """With an event, for all its members."""
        entries = _entries(event.unit, jnp.arange(len(event.members)), event.kinds, passed)

        def one(c):
            left, log = c
            row = jnp.argmax(left)
            log = log.with_entry(t, entries[row], jnp.asarray(True))
            return left & (jnp.arange(len(left)) != row), log

        return jax.lax.while_loop(lambda c: jnp.any(c[0]), one, (event.members, self))[1]

    def with_entry(self, t, entry, wanted: Bool[Array, ""]) -> "EventLog":
        """With one more entry, if it is `wanted`. Rows past their number are no part of a log."""
        place = jnp.minimum(self.num_logged, self.size)
        return EventLog(
            self.num_logged + wanted,
            with_row(self.time, place, t),
            with_row(self.entry, place, entry),
        )


def _entries(unit, row, kind, passed) -> Int[Array, "*kinks 4"]:
    parts = (
        jnp.broadcast_to(jnp.asarray(a, "int32"), row.shape) for a in (unit, row, kind, passed)
    )
    return jnp.stack(list(parts), axis=-1)


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

    It may have been `repelled` at the start, and have `branched` since. A `crowded` one cannot go
    on, as its pattern has no room for another slide. `steps` are those since the last pause, None
    if they are not kept. `pace` is None if the pattern is always held.
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
    crowded: Bool[Array, ""]
    result: RESULTS
    steps: Steps | None
    pace: Pace | None

    def pace_after(self, at_kinks: Bool[Array, ""], pairs: Int[Array, ""]) -> Pace | None:
        """The pace after a step, at kinks or not, with so many pairs behind it."""
        return None if self.pace is None else self.pace.after_step(at_kinks, pairs)


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

    def thetas(self, y: Float[Array, " size_and_one"]) -> Float[Array, "3 size"]:
        """θ at its start, in state y, in its middle and at its end."""
        return jnp.stack([y, self.dense.evaluate(0.5 * self.dt), self.y])[:, :-1]


class Due(NamedTuple):
    """What is due at the end of a step: an `event` that was located, or `slides` that begin or end
    among the kinks that are passed; one ends at the fraction `slide_ends` of the step."""

    event: Bool[Array, ""]
    slides: Bool[Array, ""]
    slide_ends: Float[Array, ""]


class Events(NamedTuple):
    """What is known of the events at a time `t` in a step that was to end at `t_end`: what is
    behind, which of its pairs have `turned`, which the step was `aimed_at`, what preactivations are
    measured by, and at which fraction of the step a slide ends, if that is passed."""

    behind: Behind
    t_end: Float[Array, ""]
    dt: Float[Array, ""]
    t: Float[Array, ""]
    turned: Bool[Array, " pairs"]
    aimed_at: Bool[Array, " pairs"]
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
