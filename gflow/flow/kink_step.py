"""A step that leaves kinks behind it, or that was aimed at one."""

from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from gflow.flow.behind import SLIDE_SCALE, Behind, what_is_behind
from gflow.flow.events import Aim, FirstEvent, Step
from gflow.flow.located_state import Due, Events, LocatedState, Resolved, Stepping, Trial
from gflow.flow.output import StepCounts
from gflow.nonsmooth.pairs import Pairs
from gflow.nonsmooth.passages import Ends, Passed, Patience
from gflow.nonsmooth.pattern import no_event
from gflow.nonsmooth.pattern_risk import KinkResolution, Transition
from gflow.solvers.work import total

if TYPE_CHECKING:
    from gflow.flow.loop import Loop

# The most events at one time, for each unit and row.
_MOST_AT_ONCE = 8


class Place(NamedTuple):
    """Where a step ends: a time, the state there before kinks are dealt with, and what
    preactivations are measured by."""

    t: Float[Array, ""]
    y: Float[Array, " size"]
    scales: Any


def kink_step(
    loop: "Loop", s: LocatedState, trial: Trial, pairs: Pairs
) -> tuple[LocatedState, Passed, Bool[Array, ""]]:
    """The state after a step with these pairs behind it: at its end, at the first event that has
    to be located, or where it began, if it has to be shorter.

    With the kinks that it passed, and whether it passed any.
    """
    scales = loop.risk.scales(s.y[:-1], s.pattern, s.now)
    behind, found = _look_back(loop, s, trial, pairs, scales)
    too_long = behind.shorter > 1
    arrives = found.arrives & ~too_long
    cut = (found.fraction < jnp.inf) & ~found.arrives & ~too_long
    fraction = jnp.where(arrives, found.fraction, 1.0)
    t = jnp.where(arrives, jnp.minimum(s.t + fraction * trial.dt, loop.span.t1), trial.t)
    y = jnp.where(arrives, found.y, trial.y)

    tried = ~cut & ~too_long
    sight = behind.sight
    crossed = behind.crosses & tried
    age = behind.age * trial.dt
    passed = Passed(pairs, crossed, sight.active, age, trial.dt, sight.pushes)
    due = Due(arrives, tried & ~arrives & behind.passes_slides, found.slide_ends)
    after = _settle(loop, s, trial, behind, passed, due, Place(t, y, scales))
    error, rate = _error_at_kinks(loop, s, trial, behind, passed, after, tried & ~arrives)
    total_error = loop.norm((jnp.abs(trial.error) + error) / trial.tolerance)
    bad = tried & (total_error > 1) & ~arrives & (loop.method.step_size is None)
    keep = tried & ~bad & ~after.pattern.crowded
    # The error at kinks falls with the third power of the step.
    shorter = jnp.where(bad, jnp.maximum(1.0 / 0.9, jnp.cbrt(total_error)), behind.shorter)
    size = jnp.where(too_long | bad, 0.9 * trial.dt / jnp.minimum(shorter, 5.0), trial.next_size)

    fresh = lambda new, old: jax.tree.map(lambda n, o: jnp.where(keep, n, o), new, old)
    stepping = Stepping(
        size=size,
        controller_state=fresh(trial.controller_state, s.stepping.controller_state),
        aim=Aim(jnp.where(cut, s.t + found.fraction * trial.dt, jnp.inf), found.which),
        solver_state=fresh(trial.solver_state, s.stepping.solver_state),
        made_jump=jnp.where(keep, after.changed, s.stepping.made_jump),
        rate=rate,
    )
    state = s._replace(
        t=jnp.where(keep, t, s.t),
        y=jnp.where(keep, after.y, s.y),
        pattern=fresh(after.pattern, s.pattern),
        now=fresh(after.now, s.now),
        stepping=stepping,
        counts=_counted(loop, s, trial, after, keep, cut),
        # Entries past their number are no part of a log.
        log=after.log._replace(num_logged=jnp.where(keep, after.log.num_logged, s.log.num_logged)),
        branched=s.branched | (keep & after.branched),
        crowded=after.pattern.crowded,
        steps=None if s.steps is None else s.steps.with_step(s.t, t, trial.dense, keep),
        pace=s.pace_after(jnp.asarray(True), jnp.sum(pairs.filled)),
    )
    return state._replace(result=loop.result(state, keep)), passed, after.passed


def _counted(loop: "Loop", s: LocatedState, trial: Trial, after: Resolved, keep, cut) -> StepCounts:
    return StepCounts(
        s.counts.steps + 1,
        s.counts.rejected + (~keep & ~cut),
        s.counts.shortened + cut,
        total(s.counts.work, loop.work(s, trial, True), after.num_evaluations),
    )


def _look_back(
    loop: "Loop", s: LocatedState, trial: Trial, pairs: Pairs, scales
) -> tuple[Behind, FirstEvent]:
    """What the step left behind it, and the first event that it has to end at."""
    ends = Ends(trial.dt, s.now, trial.end)
    patience = Patience(trial.tolerance, trial.rate, loop.kink_budget)
    eps = loop.accuracy.eps
    behind = what_is_behind(
        loop.risk, s.pattern, scales, trial.thetas(s.y), ends, eps, patience, pairs
    )
    step = Step(
        risk=loop.risk,
        pattern=s.pattern,
        scales=scales,
        y_end=trial.y,
        # From 0, as the fraction of a small step at a late time would be lost to rounding.
        at=lambda fraction: trial.dense.evaluate(fraction * trial.dt),
        aimed=s.stepping.aim.time < jnp.inf,
        aim=s.stepping.aim,
        accuracy=loop.accuracy,
    )
    return behind, step.first_event(behind)


def _error_at_kinks(
    loop: "Loop",
    s: LocatedState,
    trial: Trial,
    behind: Behind,
    passed: Passed,
    after: Resolved,
    wanted,
) -> tuple[Float[Array, " size"], Float[Array, ""]]:
    """What the kinks that a step passed may have cost beyond what was made good, and the rate
    at which the field answers to a displacement.

    Half the mean time since the kinks, times the part of the change of the field that is not
    its jump.
    """

    def measure():
        first, last, pairs = trial.end.field, after.now.field, behind.pairs
        jump = loop.risk.jump_of_field(
            trial.y[:-1], s.pattern, after.pattern, passed, trial.end, after.now
        )
        turned = first[:-1] + jump
        jump = jnp.append(jump, turned @ turned - first[-1])
        # What is passed can send pairs of higher layers past their kinks, no one knows when.
        unseen = (after.pattern.active ^ s.pattern.active) & ~after.pattern.sliding
        unseen = unseen.at[pairs.unit, pairs.row].min(~pairs.filled)
        age = jnp.where(jnp.any(unseen), 2 * behind.max_age(), behind.mean_age())
        error = 0.5 * trial.dt * age * (last - first - jump)
        expected = behind.second_order(trial.dt)
        telling = expected * trial.rate > 1e-3
        of_theta = loop.norm((error / trial.tolerance).at[-1].set(0.0))
        found = of_theta / jnp.where(telling, expected, 1.0)
        rate = jnp.where(telling, jnp.maximum(found, 0.3 * s.stepping.rate), s.stepping.rate)
        # What crossed, but was not made good.
        place = pairs.unit, pairs.row
        stray = after.pattern.active[place] ^ passed.was_active
        stray &= ~passed.crossed & ~after.pattern.sliding[place]
        lost = jnp.sqrt(jnp.sum(jnp.where(stray, behind.impulse, 0.0) ** 2))
        return jnp.abs(error) + lost * trial.tolerance, rate

    nothing = lambda: (jnp.zeros_like(trial.y), s.stepping.rate)
    return jax.lax.cond(wanted & after.changed, measure, nothing)


def _settle(
    loop: "Loop",
    s: LocatedState,
    trial: Trial,
    behind: Behind,
    passed: Passed,
    due: Due,
    place: Place,
) -> Resolved:
    """Makes good what was passed up to a place, and deals with what is due there."""
    t, y, scales = place
    back = trial.t - t
    turned = passed.crossed & (passed.age > back)
    some = jnp.any(turned)
    which = behind.pairs.unit * s.pattern.active.shape[1] + behind.pairs.row
    aimed_at = (s.stepping.aim.time < jnp.inf) & (which == s.stepping.aim.which)
    # Not where some have turned: a conditional would copy what it passes on.
    theta, pattern = loop.risk.with_passed(y[:-1], s.pattern, passed, back, trial.end)
    after = Resolved(
        y=y.at[:-1].set(theta),
        pattern=pattern,
        now=trial.end,
        log=s.log.with_passed(passed, turned, trial.t, aimed_at),
        num_events=jnp.asarray(0),
        num_evaluations=jnp.asarray(0),
        branched=jnp.asarray(False),
        changed=due.event | some,
        passed=some | due.slides,
    )

    passes_end = behind.slides_end & ~behind.locates_ends
    # Where the step ends at a kink, nobody has looked for the end of the slide.
    about = 1 - jnp.max(behind.slides.age)
    ends = jnp.where(due.slide_ends < 1, due.slide_ends, about), passes_end
    events = Events(behind, trial.t, trial.dt, t, turned, aimed_at, scales, *ends)
    after = _resolve(loop, after, events, due.event | due.slides | some)
    moved = after.y[:-1] - y[:-1]
    both = trial.end.field + after.now.field
    dissipated = jnp.where(after.passed, moved @ both[:-1], 0.0)
    return after._replace(y=after.y.at[-1].add(dissipated))


def _resolve(loop: "Loop", before: Resolved, events: Events, happens) -> Resolved:
    """Deals with all kinks and slides that are due, one after the other.

    Pairs that have turned lead away from their kinks, however little they are past them.
    """
    eps, behind, scales = loop.accuracy.eps, events.behind, events.scales
    pairs = behind.pairs
    most = _MOST_AT_ONCE * sum(before.pattern.active.shape)

    def one(c):
        done, _, first = c
        evaluation = loop.risk.evaluate(done.y[:-1], done.pattern)
        heights = lambda pattern: loop.risk.heights(evaluation.z, pattern, scales)
        clear = lambda c: (c[0].settled(heights(c[0])), False)
        start = done.pattern, done.pattern.any_released()
        pattern, _ = jax.lax.while_loop(lambda c: c[1], clear, start)
        # Those that have turned were on the other side.
        short = behind.sight.sides * evaluation.z[pairs.unit, pairs.row]
        pattern = pattern.allowing(pairs, events.turned & first & (short > 0), 2 * short)
        margins = pattern.with_slack(heights(pattern))
        slide = SLIDE_SCALE * jnp.min(loop.risk.slide_margins(evaluation, pattern))
        due = jnp.minimum(jnp.min(margins), slide) <= -eps
        # At a crossing slides end that rest on the boundary of [0, 1].
        due |= first & jnp.any(events.turned) & (slide <= SLIDE_SCALE * eps)
        due &= (done.num_events <= most) & ~pattern.crowded
        theta = loop.risk.on_kinks(done.y[:-1], pattern, evaluation)
        done = done._replace(
            y=done.y.at[:-1].set(theta),
            pattern=pattern,
            now=evaluation.kept(),
            num_evaluations=done.num_evaluations + 1,
        )

        def resolve(theta, pattern):
            circling = done.num_events > 2 * sum(pattern.active.shape)
            method = loop.method
            resolution = KinkResolution(scales, eps, method.rtol, method.atol, circling)
            return loop.risk.transition(theta, pattern, evaluation, resolution)

        def nothing(theta, pattern):
            return Transition(theta, pattern, no_event(pattern.active.shape[1]))

        theta, pattern, event = jax.lax.cond(due, resolve, nothing, done.y[:-1], pattern)
        ends = event.ends_slide & events.passes_end
        age = jnp.where(ends, 1 - events.slide_ends, behind.age_of(event.unit, event.row))
        time = jnp.where(age > 0, events.t_end - age * events.dt, events.t)
        located = jnp.any(events.aimed_at & pairs.is_at(event.unit, event.row))
        done = done._replace(
            y=done.y.at[:-1].set(theta),
            pattern=pattern,
            log=done.log.with_event(time, event, (age > 0) & ~located),
            num_events=done.num_events + due,
            branched=done.branched | (due & event.branches),
            changed=done.changed | due,
        )
        return done, due, jnp.asarray(False)

    return jax.lax.while_loop(lambda c: c[1], one, (before, happens, jnp.asarray(True)))[0]
