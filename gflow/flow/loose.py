"""Steps with a loose pattern: across kinks, which are not looked for."""

from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from gflow.flow.events import SLIDES, Aim
from gflow.flow.located_state import EventLog, LocatedState, Trial
from gflow.nonsmooth.kink_kinds import KinkKind
from gflow.nonsmooth.pairs import Pairs
from gflow.nonsmooth.passages import Passed
from gflow.nonsmooth.pattern import AbstractLoosePattern

if TYPE_CHECKING:
    from gflow.flow.loop import Loop

# The estimate of the error of a step counts so many times where the field jumps within it.
STRICTNESS = 10.0


def with_crossings(
    loop: "Loop", s: LocatedState, before: LocatedState, trial: Trial, keep: Bool[Array, ""]
) -> LocatedState:
    """The state with the pairs in its log that are on other sides than before a loose step, as far
    as there is room for them."""
    turned = (before.now.z > 0) != (trial.end.z > 0)
    number = jnp.sum(turned) * (keep & is_loose(before))
    room = before.log.num_logged < before.log.size

    def logged(c):
        log, _ = c
        pairs = Pairs.where(turned, loop.most_pairs)
        first, last = (e.z[pairs.unit, pairs.row] for e in (before.now, trial.end))
        some = pairs.filled & (first != last)
        age = trial.dt * jnp.where(some, last / jnp.where(some, last - first, 1.0), 0.0)
        none = Passed.none(pairs, trial.dt)
        passed = none._replace(crossed=pairs.filled, was_active=first > 0, age=age)
        return log.with_passed(passed, pairs.filled, trial.t, none.crossed), jnp.asarray(False)

    log, _ = jax.lax.while_loop(lambda c: c[1], logged, (s.log, room & (number > 0)))
    # Those for which there is no room are counted.
    return s._replace(log=log._replace(num_logged=before.log.num_logged + number))


def _without_slides(loop: "Loop", s: LocatedState, z: Float[Array, "units rows"]) -> EventLog:
    """The log with the ends of all slides, to the sides that their pairs are on."""
    pairs = Pairs.where(s.pattern.sliding, loop.most_pairs)
    active = z[pairs.unit, pairs.row] > 0
    ends = KinkKind.SLIDE_ENDS_TO_ACTIVE, KinkKind.SLIDE_ENDS_TO_INACTIVE
    times = jnp.broadcast_to(s.t, active.shape)
    return s.log.with_pairs(pairs, pairs.filled, times, jnp.where(active, *ends), pairs.filled)


def is_loose(s: LocatedState) -> Bool[Array, ""]:
    """Whether the pattern is loose."""
    pattern = s.pattern
    return pattern.loose if isinstance(pattern, AbstractLoosePattern) else jnp.asarray(False)


def next_turn(loop: "Loop", s: LocatedState) -> LocatedState:
    """The state at the beginning of another turn, with a pattern that is loose, or is held."""
    pattern, pace = s.pattern, s.pace
    if pace is None or not isinstance(pattern, AbstractLoosePattern):
        return s
    due = pace.is_due
    after, changes = pace.decided(s.t, pattern.loose)
    changes &= due & (loop.kink_budget > 0)
    pace = jax.tree.map(lambda new, old: jnp.where(due, new, old), after, pace)

    def changed(c):
        s, _ = c
        held, loose = s.pattern.held(s.now.z), s.pattern.loosened()
        after = jax.tree.map(lambda a, b: jnp.where(s.pattern.loose, a, b), held, loose)
        none = Aim(jnp.full_like(s.t, jnp.inf), jnp.asarray(SLIDES, int))
        stepping = s.stepping._replace(aim=none, made_jump=jnp.asarray(True))
        now = loop.risk.evaluate(s.y[:-1], after).kept()
        s = s._replace(log=_without_slides(loop, s, now.z))
        return s._replace(pattern=after, now=now, stepping=stepping), jnp.asarray(False)

    s, _ = jax.lax.while_loop(lambda c: c[1], changed, (s, changes))
    return s._replace(pace=pace)
