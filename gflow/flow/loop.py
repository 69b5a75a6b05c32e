"""The flow with located kinks: segments of smooth field, each ended by an event."""

from typing import Any

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from gflow.dense import Steps
from gflow.flow.behind import (
    SLIDE_SCALE,
    Behind,
    Ends,
    Patience,
    nothing_behind,
    pairs_behind,
    what_is_behind,
)
from gflow.flow.controller import rms_norm, step_size_controller, tolerance
from gflow.flow.events import SLIDES, Aim, EventAccuracy, FirstEvent, Step
from gflow.flow.located_state import (
    Due,
    EventLog,
    Events,
    LocatedState,
    Resolved,
    Stepping,
    Trial,
)
from gflow.flow.output import SavedStates, StepCounts
from gflow.flow.problem import Method, Span, first_step
from gflow.flow.stepper import Stepper
from gflow.flow.stopping import FlowPoint
from gflow.nonsmooth.passages import Passed
from gflow.nonsmooth.pattern import AbstractPattern
from gflow.nonsmooth.pattern_risk import AbstractPatternRisk, KinkResolution
from gflow.parameters import TimeScales
from gflow.results import RESULTS
from gflow.solvers.work import is_counted, nothing_done, total, work_of_step

# The most events at one time, for each unit and row.
_MOST_AT_ONCE = 8
# How many pairs one step can have behind it: so many, or one in some.
_FEW_PAIRS, _PAIRS_FOR_EACH = 256, 512


class Loop(eqx.Module):
    """The loop over steps, all in one compiled program.

    `kink_budget` is the part of the tolerance that may go to kinks which are passed; 0 if each is
    to be located.
    """

    risk: AbstractPatternRisk
    method: Method
    span: Span
    time_scales: TimeScales
    accuracy: EventAccuracy
    kink_budget: Float[Array, ""]
    log_size: int = eqx.field(static=True)
    kept_steps: int = eqx.field(static=True)

    @property
    def stepper(self) -> Stepper:
        return Stepper(self.risk, self.method.solver)

    @property
    def error_order(self) -> Any:
        return self.method.solver.error_order(self.stepper.terms)

    @property
    def controller(self) -> diffrax.AbstractStepSizeController:
        padding = self.risk.padding
        return step_size_controller(self.method, self.time_scales, damped=True, padding=padding)

    def controller_start(self, y: Float[Array, " size"]) -> Any:
        """The state of the controller before the first step, whose size is known."""
        t0, t1 = self.span.t0, self.span.t1
        _, state = self.controller.init(
            self.stepper.terms, t0, t1, y, t1 - t0, None, self.method.solver.func, self.error_order
        )
        return jax.tree.map(jnp.asarray, state)

    # ---- one step ---------------------------------------------------------------------------

    def step(self, s: LocatedState) -> LocatedState:
        aimed = s.stepping.aim.time < jnp.inf
        last = ~aimed & (s.t + s.stepping.size >= self.span.t1)
        trial = self._try(s, aimed, last)
        # From 0, as the fraction of a small step at a late time would be lost to rounding.
        at = lambda fraction: trial.dense.evaluate(fraction * trial.dt)
        step = Step(
            risk=self.risk,
            pattern=s.pattern,
            scales=self.risk.scales(s.y[:-1]),
            y_end=trial.y,
            at=at,
            aimed=aimed,
            aim=s.stepping.aim,
            accuracy=self.accuracy,
        )
        behind, found = self._look_back(s, trial, step)
        too_long = behind.shorter > 1
        arrives = found.arrives & ~too_long
        cut = (found.fraction < jnp.inf) & ~found.arrives & ~too_long
        fraction = jnp.where(arrives, found.fraction, 1.0)
        t = jnp.where(arrives, jnp.minimum(s.t + fraction * trial.dt, self.span.t1), trial.t)
        y = jnp.where(arrives, found.y, trial.y)

        tried = self._within_tolerance(trial) & ~cut & ~too_long
        before = s._replace(pattern=self._settled(s, trial, step.scales, tried & ~arrives))
        passed = Passed(
            behind.pairs, behind.crosses & tried, behind.age * trial.dt, trial.dt, s.now, trial.end
        )
        due = Due(tried & arrives, tried & ~arrives & behind.passes_slides, found.slide_ends)
        after = self._settle(before, t, y, trial, step.scales, behind, passed, due)
        at_kinks, rate = self._error_at_kinks(s, trial, behind, passed, after, tried & ~arrives)
        good, size, controller_state = self._judge(s, trial, at_kinks, aimed | last)
        keep = tried & good
        size = jnp.where(too_long, 0.9 * trial.dt / behind.shorter, size)

        aim = Aim(jnp.where(cut, s.t + found.fraction * trial.dt, jnp.inf), found.which)
        saved = self._save(before, t, trial, passed, after, keep)
        fresh = lambda new, old: jax.tree.map(lambda n, o: jnp.where(keep, n, o), new, old)
        stepping = Stepping(
            size=size,
            controller_state=controller_state,
            aim=aim,
            solver_state=fresh(trial.solver_state, s.stepping.solver_state),
            made_jump=jnp.where(keep, after.changed, s.stepping.made_jump),
            rate=rate,
        )
        after_step = LocatedState(
            t=jnp.where(keep, t, s.t),
            y=jnp.where(keep, after.y, s.y),
            pattern=fresh(after.pattern, s.pattern),
            now=fresh(after.now, s.now),
            stepping=stepping,
            saved=saved,
            counts=self._counted(s, trial, keep, cut, after),
            # Entries past their number are no part of a log.
            log=after.log._replace(
                num_logged=jnp.where(keep, after.log.num_logged, s.log.num_logged)
            ),
            repelled=s.repelled,
            branched=s.branched | (keep & after.branched),
            result=s.result,
            steps=None if s.steps is None else s.steps.with_step(s.t, t, trial.dense, keep),
        )
        return after_step._replace(result=self._result(after_step, keep))

    def _try(self, s: LocatedState, aimed, last) -> Trial:
        """One step to the event aimed at, to t1 if it is the `last`, or of the planned size."""
        stepping, solver = s.stepping, self.method.solver
        planned = jnp.where(last, self.span.t1, s.t + stepping.size)
        t_next = jnp.where(aimed, stepping.aim.time, planned)
        dt = t_next - s.t
        stepped = self.stepper.step(
            s.t, t_next, s.y, s.pattern, s.now, stepping.solver_state, stepping.made_jump
        )
        larger = jnp.maximum(jnp.abs(s.y), jnp.abs(stepped.y))
        return Trial(
            t=t_next,
            y=stepped.y,
            dense=solver.interpolation_cls(t0=jnp.zeros_like(dt), t1=dt, **stepped.dense),
            dt=dt,
            error=stepped.error,
            tolerance=tolerance(self.method, self.time_scales, larger),
            solver_state=stepped.solver_state,
            end=stepped.end,
        )

    def _within_tolerance(self, trial: Trial) -> Bool[Array, ""]:
        if self.method.step_size is not None:
            return jnp.asarray(True)
        return self._norm(trial.error / trial.tolerance) <= 1.0

    def _norm(self, error: Float[Array, " size"]) -> Float[Array, ""]:
        return rms_norm(self.risk.padding)(error)

    def _look_back(self, s: LocatedState, trial: Trial, step: Step) -> tuple[Behind, FirstEvent]:
        """What the step left behind it, and the first event that it has to end at."""
        eps, most = self.accuracy.eps, self.most_pairs
        patience = Patience(trial.tolerance, self._rate(s, trial), self.kink_budget)
        ends = Ends(trial.dt, s.y[:-1], trial.y[:-1], s.now, trial.end)
        pairs = pairs_behind(self.risk, s.pattern, step.scales, ends, eps, patience, most)
        ended = jnp.min(self.risk.slide_margins(trial.end, s.pattern)) <= -eps / SLIDE_SCALE
        there = jnp.any(pairs.filled) | ended | step.aimed

        def look():
            behind = what_is_behind(self.risk, s.pattern, step.scales, ends, eps, patience, pairs)
            return behind, step.first_event(behind)

        nothing = lambda: (nothing_behind(s.pattern, most, trial.y.dtype), step.nothing())
        return jax.lax.cond(self._within_tolerance(trial) & there, look, nothing)

    @property
    def most_pairs(self) -> int:
        """How many pairs one step can have behind it."""
        units, rows = self.risk.num_units, len(self.risk.first_datum)
        return min(units * rows, max(_FEW_PAIRS, units * rows // _PAIRS_FOR_EACH))

    def _rate(self, s: LocatedState, trial: Trial) -> Float[Array, ""]:
        """The rate at which the field answers to a displacement: what was found at kinks before,
        or along the step, if that is more."""
        first, last = (self.risk.field_of(now, s.pattern)[:-1] for now in (s.now, trial.end))
        size = lambda a: jnp.sqrt(jnp.sum(a**2))
        moved = size(trial.y[:-1] - s.y[:-1])
        along = size(last - first) / jnp.where(moved > 0, moved, 1.0)
        return jnp.maximum(s.stepping.rate, along)

    def _error_at_kinks(
        self, s: LocatedState, trial: Trial, behind: Behind, passed: Passed, after: Resolved, wanted
    ) -> tuple[Float[Array, " size"], Float[Array, ""]]:
        """What the kinks that a step passed may have cost beyond what was made good, and the rate
        at which the field answers to a displacement.

        Half the mean time since the kinks, times the part of the change of the field that is not
        its jump.
        """

        def measure():
            first = self.risk.field_of(trial.end, s.pattern)
            last = self.risk.field_of(after.now, after.pattern)
            pairs = behind.pairs
            jump = self.risk.jump_of_field(trial.end, s.pattern, after.pattern, pairs)
            turned = first[:-1] + jump
            jump = jnp.append(jump, turned @ turned - first[-1])
            error = 0.5 * trial.dt * behind.mean_age() * (last - first - jump)
            expected = behind.second_order(trial.dt)
            telling = expected * self._rate(s, trial) > 1e-3
            found = self._norm(error / trial.tolerance) / jnp.where(telling, expected, 1.0)
            rate = jnp.where(telling, jnp.maximum(found, 0.3 * s.stepping.rate), s.stepping.rate)
            # What crossed, but was not made good.
            place = pairs.unit, pairs.row
            stray = after.pattern.active[place] ^ s.pattern.active[place]
            stray &= ~passed.crossed & ~after.pattern.sliding[place]
            lost = jnp.sqrt(jnp.sum(jnp.where(stray, behind.impulse, 0.0) ** 2))
            return jnp.abs(error) + lost * trial.tolerance, rate

        nothing = lambda: (jnp.zeros_like(trial.y), s.stepping.rate)
        return jax.lax.cond(wanted & after.changed, measure, nothing)

    def _judge(self, s: LocatedState, trial: Trial, at_kinks, short):
        """Whether the error of a step is within the tolerances, the size of the next step, and the
        state of the controller after it."""
        stepping, method = s.stepping, self.method
        if method.step_size is not None:
            return jnp.asarray(True), stepping.size, stepping.controller_state
        # From 0, as a small step at a late time would be lost to rounding.
        good, start, end, _, state, _ = self.controller.adapt_step_size(
            jnp.zeros_like(trial.dt),
            trial.dt,
            s.y,
            trial.y,
            None,
            jnp.abs(trial.error) + at_kinks,
            self.error_order,
            stepping.controller_state,
        )
        good, size = jnp.asarray(good), jnp.asarray(end - start)
        # A step that was cut short, by an event or by t1, does not reduce the planned size.
        size = jnp.where(good & short, jnp.maximum(size, stepping.size), size)
        fresh = lambda new, old: jnp.where(short, old, new)
        return good, size, jax.tree.map(fresh, state, stepping.controller_state)

    def _counted(self, s: LocatedState, trial: Trial, keep, cut, after: Resolved) -> StepCounts:
        stepping, stepper = s.stepping, self.stepper
        if stepper.by_stages:
            work = nothing_done().plus(evaluations=stepper.evaluations)
        else:
            work = work_of_step(
                self.method.solver, stepping.solver_state, trial.solver_state, stepping.made_jump
            )
            work = None if work is None else work.plus(evaluations=1)
        return StepCounts(
            s.counts.steps + 1,
            s.counts.rejected + (~keep & ~cut),
            s.counts.shortened + cut,
            total(s.counts.work, work, after.num_evaluations),
        )

    def _result(self, s: LocatedState, keep) -> RESULTS:
        """The result: a failure, or a stopping criterion met."""
        size, t1, eps = s.stepping.size, self.span.t1, jnp.finfo(s.t.dtype).eps
        stuck = size < 4 * eps * jnp.abs(s.t)
        stuck = (stuck | (size < 1e-3 * eps * t1)) & (s.t < t1)
        result = RESULTS.where(stuck, RESULTS.step_size_underflow, s.result)
        result = RESULTS.where(jnp.isfinite(s.y).all(), result, RESULTS.nonfinite)
        phi = s.y[:-1]
        point = FlowPoint(
            elapsed=s.t - self.span.t0,
            theta=self.time_scales.theta(phi),
            dissipated=s.y[-1],
            risk=self.risk.value(phi),
            grad_norm=self.speed(s),
        )
        fired = self.method.stop.fired(point)
        return RESULTS.where(keep & ~(fired == RESULTS.successful), fired, result)

    def no_steps(self, s: LocatedState) -> Steps | None:
        """Room for the steps up to the next pause, if they are to be kept."""
        if self.kept_steps == 0:
            return None
        trial = eqx.filter_eval_shape(self._try, s, jnp.asarray(False), jnp.asarray(False))
        return Steps.none_of(trial.dense, self.kept_steps, s.t)

    # ---- kinks and saved times ----------------------------------------------------------------

    def _settled(self, s: LocatedState, trial: Trial, scales, wanted) -> AbstractPattern:
        """The pattern; if `wanted`, without the slack of pairs that are well off their kinks."""

        def clear(pattern):
            return pattern.settled(self.risk.heights(trial.end.z, pattern, scales))

        wanted = wanted & s.pattern.any_released()
        return jax.lax.cond(wanted, clear, lambda pattern: pattern, s.pattern)

    def _settle(
        self, s: LocatedState, t, y, trial: Trial, scales, behind: Behind, passed: Passed, due: Due
    ) -> Resolved:
        """Makes good what was passed up to t, and deals with what is due there."""
        back = trial.t - t
        turned = passed.crossed & (passed.age > back)
        some = jnp.any(turned)
        after = Resolved(
            y=y,
            pattern=s.pattern,
            now=trial.end._replace(z=None),
            log=s.log,
            num_events=jnp.asarray(0),
            num_evaluations=jnp.asarray(0),
            branched=jnp.asarray(False),
            changed=due.event | some,
            passed=some | due.slides,
        )

        def make_good(after: Resolved) -> Resolved:
            theta, pattern = self.risk.with_passed(y[:-1], s.pattern, passed, back)
            place = passed.pairs.unit, passed.pairs.row
            log = after.log.with_passed(
                passed.pairs, turned, s.pattern.active[place], trial.t - passed.age
            )
            return after._replace(y=y.at[:-1].set(theta), pattern=pattern, log=log)

        after = jax.lax.cond(some, make_good, lambda after: after, after)
        passes_end = behind.slides_end & ~behind.locates_ends
        events = Events(behind, trial.t, trial.dt, t, turned, scales, due.slide_ends, passes_end)
        after = self._resolve(after, events, due.event | due.slides | some)
        moved = after.y[:-1] - y[:-1]
        first = self.risk.field_of(trial.end, s.pattern)
        last = self.risk.field_of(after.now, after.pattern)
        dissipated = jnp.where(after.passed, moved @ (first + last)[:-1], 0.0)
        return after._replace(y=after.y.at[-1].add(dissipated))

    def _resolve(self, before: Resolved, events: Events, happens) -> Resolved:
        """Deals with all kinks and slides that are due, one after the other.

        Pairs that have turned lead away from their kinks, however little they are past them.
        """
        eps, behind, scales = self.accuracy.eps, events.behind, events.scales
        pairs = behind.pairs
        most = _MOST_AT_ONCE * sum(before.pattern.active.shape)

        def one(c):
            done, _, first = c
            evaluation = self.risk.evaluate(done.y[:-1], done.pattern)
            z = evaluation.z[pairs.unit, pairs.row]
            short = -self.risk.heights_of(z, done.pattern, scales, pairs)
            pattern = done.pattern.allowing(pairs, events.turned & first & (short > 0), 2 * short)
            margins = self.risk.margins(evaluation.z, pattern, scales)
            slide = SLIDE_SCALE * jnp.min(self.risk.slide_margins(evaluation, pattern))
            due = jnp.minimum(jnp.min(margins), slide) <= -eps
            # At a crossing slides end that rest on the boundary of [0, 1].
            due |= first & jnp.any(events.turned) & (slide <= SLIDE_SCALE * eps)
            due &= done.num_events <= most
            done = done._replace(
                pattern=pattern,
                now=evaluation._replace(z=None),
                num_evaluations=done.num_evaluations + 1,
            )

            def resolve(done: Resolved) -> Resolved:
                circling = done.num_events > 2 * sum(pattern.active.shape)
                resolution = KinkResolution(scales, eps, self.method.rtol, circling)
                theta, after, event = self.risk.transition(
                    done.y[:-1], done.pattern, evaluation, resolution
                )
                ends = event.ends_slide & events.passes_end
                age = jnp.where(ends, 1 - events.slide_ends, behind.age_of(event.unit, event.row))
                time = jnp.where(age > 0, events.t_end - age * events.dt, events.t)
                return done._replace(
                    y=done.y.at[:-1].set(theta),
                    pattern=after,
                    log=done.log.with_event(time, event, self.risk.shares_kinks, age > 0),
                    num_events=done.num_events + 1,
                    branched=done.branched | event.branches,
                    changed=jnp.asarray(True),
                )

            return jax.lax.cond(due, resolve, lambda done: done, done), due, jnp.asarray(False)

        return jax.lax.while_loop(lambda c: c[1], one, (before, happens, jnp.asarray(True)))[0]

    def _save_due(self, num_saved, t) -> Bool[Array, ""]:
        ts = self.span.ts
        last = len(ts) - 1
        return (num_saved <= last) & (ts[jnp.minimum(num_saved, last)] <= t)

    def _save(self, s: LocatedState, t, trial: Trial, passed, after: Resolved, keep) -> SavedStates:
        """Fills the slots of the saved times up to t, if the step is kept."""

        def within(c):
            y, back = c
            theta, pattern = self.risk.within_step(y[:-1], s.pattern, after.pattern, passed, back)
            return y.at[:-1].set(theta), pattern

        def fill(saved: SavedStates) -> SavedStates:
            count, ys, speeds = saved
            assert speeds is not None
            since = self.span.ts[count] - s.t
            plain = trial.dense.evaluate(since)
            y, pattern = jax.lax.cond(
                after.passed, within, lambda c: (c[0], s.pattern), (plain, trial.dt - since)
            )
            field = self.risk.field(0.0, y, pattern)
            y = y.at[-1].add(2 * (y - plain)[:-1] @ field[:-1])
            speeds = speeds.at[count].set(jnp.sqrt(field[-1]))
            return SavedStates(count + 1, ys.at[count].set(y), speeds)

        due = lambda saved: keep & self._save_due(saved.num_saved, t)
        return jax.lax.while_loop(due, fill, s.saved)

    def speed(self, s: LocatedState) -> Array:
        return jnp.sqrt(self.risk.field_of(s.now, s.pattern)[-1])


def begin(loop: Loop, theta: Float[Array, " size"]) -> LocatedState:
    """The state at the start, before its first saved time."""
    risk, method, (t0, t1, ts) = loop.risk, loop.method, (loop.span.t0, loop.span.t1, loop.span.ts)
    y = jnp.append(theta, jnp.zeros((), theta.dtype))
    pattern = risk.start(theta)
    now = risk.evaluate(theta, pattern)
    speed = jnp.sqrt(risk.field_of(now, pattern)[-1])
    size = method.step_size
    if size is None:
        size = jnp.minimum(first_step(theta, speed), t1 - t0)
    zero, kinks = jnp.asarray(0), loop.log_size
    at_start = jnp.arange(len(ts)) < (ts <= t0).astype(int).sum()
    solver_state = loop.stepper.init(t0, t1, y, pattern)
    counted = is_counted(method.solver, solver_state)
    state = LocatedState(
        t=t0,
        y=y,
        pattern=pattern,
        now=now._replace(z=None),
        stepping=Stepping(
            size=size,
            controller_state=loop.controller_start(y),
            aim=Aim(jnp.full_like(t0, jnp.inf), jnp.asarray(SLIDES)),
            solver_state=solver_state,
            made_jump=jnp.asarray(False),
            rate=jnp.zeros_like(size),
        ),
        saved=SavedStates(
            num_saved=jnp.sum(at_start),
            ys=jnp.where(at_start[:, None], y[None, :], 0.0),
            speeds=jnp.where(at_start, speed, 0.0),
        ),
        counts=StepCounts(
            zero, zero, zero, nothing_done().plus(evaluations=1) if counted else None
        ),
        log=EventLog(
            zero,
            jnp.full(kinks, jnp.inf, t0.dtype),
            *(jnp.zeros(kinks, kind) for kind in ("int32", "int32", "uint8", bool)),
        ),
        repelled=risk.repels(theta, pattern),
        branched=jnp.asarray(False),
        result=RESULTS.successful,
        steps=None,
    )
    return state._replace(steps=loop.no_steps(state))


def handed_over(loop: Loop, state: LocatedState) -> LocatedState:
    """The state of another loop's solver as one that this loop's can go on from."""
    solver, stepping = loop.method.solver, state.stepping
    inner = loop.stepper.init(state.t, loop.span.t1, state.y, state.pattern)
    stepping = stepping._replace(
        solver_state=inner,
        made_jump=jnp.asarray(False),
        controller_state=loop.controller_start(state.y),
    )
    work = state.counts.work if is_counted(solver, inner) else None
    state = state._replace(stepping=stepping, counts=state.counts._replace(work=work))
    return state._replace(steps=loop.no_steps(state))


def advance(loop: Loop, state: LocatedState, max_steps) -> LocatedState:
    """The state at t1, or where a budget or a failure ended the flow; see `AbstractRun.advance`."""
    if state.steps is not None:
        state = state._replace(steps=state.steps._replace(num_filled=jnp.asarray(0)))
    return _advance(loop, state, max_steps)


@eqx.filter_custom_jvp
def _advance(loop: Loop, state: LocatedState, max_steps) -> LocatedState:
    def unfinished(s: LocatedState):
        return (
            (s.t < loop.span.t1) & (s.counts.steps < max_steps) & (s.result == RESULTS.successful)
        )

    return jax.lax.while_loop(unfinished, lambda s: loop.step(s), state)


@_advance.def_jvp
def _no_derivative(primals, tangents):
    raise TypeError(
        "a flow with located kinks cannot be differentiated: its events are found by iteration. "
        "`solve_flow(..., kinks='ignore')` can, in reverse mode, too."
    )
