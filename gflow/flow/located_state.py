"""Where a flow with located kinks is: the records that its loop passes on."""

from typing import Any, NamedTuple

import diffrax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from gflow.dense import Steps
from gflow.flow.events import Aim
from gflow.flow.output import SavedStates, StepCounts
from gflow.nonsmooth.pattern import AbstractPattern, Event
from gflow.results import RESULTS


class EventLog(NamedTuple):
    """The kinks met; the first `num_logged` entries of each array are filled."""

    num_logged: Int[Array, ""]
    time: Float[Array, " kinks"]
    unit: Int[Array, " kinks"]
    row: Int[Array, " kinks"]
    kind: Int[Array, " kinks"]

    def with_event(self, t: Float[Array, ""], event: Event, shared: bool) -> "EventLog":
        """With the event of one row, or, if kinks can be `shared`, of all its members."""
        if shared:
            rows, count = jnp.arange(len(event.members)), jnp.sum(event.members)
            # Past the end, where nothing is written, for the others.
            after = self.num_logged + jnp.cumsum(event.members) - 1
            places, kinds = jnp.where(event.members, after, len(self.time)), event.kinds
        else:
            places, rows, kinds, count = self.num_logged, event.row, event.kinds[event.row], 1
        write = lambda array, entry: array.at[places].set(entry, mode="drop")
        return EventLog(
            self.num_logged + count,
            write(self.time, t),
            write(self.unit, event.unit),
            write(self.row, rows),
            write(self.kind, kinds),
        )


class Stepping(NamedTuple):
    """What one step hands to the next: its size, the states of step-size controller and solver,
    the event it is aimed at, and whether the field has just jumped."""

    size: Float[Array, ""]
    controller_state: Any
    aim: Aim
    solver_state: Any
    made_jump: Bool[Array, ""]


class LocatedState(NamedTuple):
    """Where a flow with located kinks is, and what it left on the way.

    It may have been `repelled` at the start, and have `branched` since. `steps` are those since the
    last pause, None if they are not kept.
    """

    t: Float[Array, ""]
    y: Float[Array, " size"]
    pattern: AbstractPattern
    stepping: Stepping
    saved: SavedStates
    counts: StepCounts
    log: EventLog
    repelled: Bool[Array, ""]
    branched: Bool[Array, ""]
    result: RESULTS
    steps: Steps | None


class Trial(NamedTuple):
    """A step that was tried: where it leads, its dense output from 0 on, whether its error is
    `good`, the size of the next step, and the states of controller and solver after it."""

    t: Float[Array, ""]
    y: Float[Array, " size"]
    dense: diffrax.AbstractLocalInterpolation
    dt: Float[Array, ""]
    good: Bool[Array, ""]
    next_size: Float[Array, ""]
    controller_state: Any
    solver_state: Any


class Resolved(NamedTuple):
    """What is left when all events at one time are dealt with, and how many there were."""

    y: Float[Array, " size"]
    pattern: AbstractPattern
    log: EventLog
    num_events: Int[Array, ""]
    branched: Bool[Array, ""]
