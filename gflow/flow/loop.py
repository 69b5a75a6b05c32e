"""The flow with located kinks: segments of smooth field, each ended by an event."""

from typing import Any

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from gflow.dense import Steps
from gflow.flow.controller import step_size_controller
from gflow.flow.events import SLIDE_SCALE, SLIDES, Aim, EventAccuracy, Step
from gflow.flow.located_state import EventLog, LocatedState, Resolved, Stepping, Trial
from gflow.flow.output import SavedStates, StepCounts
from gflow.flow.problem import Method, Span, first_step
from gflow.flow.stopping import FlowPoint
from gflow.nonsmooth.pattern import AbstractPattern
from gflow.nonsmooth.pattern_risk import AbstractPatternRisk, KinkResolution
from gflow.parameters import TimeScales
from gflow.results import RESULTS
from gflow.solvers.work import is_counted, nothing_done, total, work_of_step


class Loop(eqx.Module):
    """The loop over steps, all in one compiled program."""

    risk: AbstractPatternRisk
    method: Method
    span: Span
    time_scales: TimeScales
    accuracy: EventAccuracy
    max_kinks: int = eqx.field(static=True)
    kept_steps: int = eqx.field(static=True)

    @property
    def terms(self) -> diffrax.ODETerm:
        return diffrax.ODETerm(self.risk.field)

    @property
    def error_order(self) -> Any:
        return self.method.solver.error_order(self.terms)

    @property
    def controller(self) -> diffrax.AbstractStepSizeController:
        padding = self.risk.padding
        return step_size_controller(self.method, self.time_scales, damped=True, padding=padding)

    def controller_start(self, y: Float[Array, " size"]) -> Any:
        """The state of the controller before the first step, whose size is known."""
        t0, t1 = self.span.t0, self.span.t1
        _, state = self.controller.init(
            self.terms, t0, t1, y, t1 - t0, None, self.method.solver.func, self.error_order
        )
        return jax.tree.map(jnp.asarray, state)

    # ---- one step ---------------------------------------------------------------------------

    def step(self, s: LocatedState) -> LocatedState:
        aimed = s.stepping.aim.time < jnp.inf
        last = ~aimed & (s.t + s.stepping.size >= self.span.t1)
        trial = self._try(s, aimed, last)
        # From 0, as the fraction of a small step at a late time would be lost to rounding.
        at = lambda fraction: trial.dense.evaluate(fraction * trial.dt)
        scales = self.risk.scales(s.y[:-1])
        step = Step(
            risk=self.risk,
            pattern=s.pattern,
            scales=scales,
            y_start=s.y,
            y_end=trial.y,
            at=at,
            aimed=aimed,
            aim=s.stepping.aim,
            accuracy=self.accuracy,
        )
        found = step.first_event(trial.good)
        arrives = found.arrives
        cut = (found.fraction < jnp.inf) & ~arrives
        keep = trial.good & ~cut
        t = jnp.where(arrives, jnp.minimum(s.t + found.fraction * trial.dt, self.span.t1), trial.t)
        y = jnp.where(keep, jnp.where(arrives, found.y, trial.y), s.y)
        t = jnp.where(keep, t, s.t)
        aim = Aim(jnp.where(cut, s.t + found.fraction * trial.dt, jnp.inf), found.which)

        before = s._replace(pattern=step.without_slack(keep & ~arrives))
        saved, after = self._save_and_resolve(before, t, y, trial.dense, scales, arrives)
        work = work_of_step(
            self.method.solver, s.stepping.solver_state, trial.solver_state, s.stepping.made_jump
        )
        fresh = lambda new, old: jnp.where(keep, new, old)
        stepping = Stepping(
            size=trial.next_size,
            controller_state=trial.controller_state,
            aim=aim,
            solver_state=jax.tree.map(fresh, trial.solver_state, s.stepping.solver_state),
            made_jump=jnp.where(keep, arrives, s.stepping.made_jump),
        )
        counts = StepCounts(
            s.counts.steps + 1,
            s.counts.rejected + ~trial.good,
            s.counts.shortened + cut,
            total(s.counts.work, work, 2 * after.num_events),
        )
        after_step = LocatedState(
            t=t,
            y=after.y,
            pattern=after.pattern,
            stepping=stepping,
            saved=saved,
            counts=counts,
            log=after.log,
            repelled=s.repelled,
            branched=s.branched | after.branched,
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
        y_next, error, dense, solver_state, _ = solver.step(
            self.terms, s.t, t_next, s.y, s.pattern, stepping.solver_state, stepping.made_jump
        )
        good, size, controller_state = self._judge(s, y_next, error, dt)
        # A step that was cut short, by an event or by t1, does not reduce the planned size.
        short = aimed | last
        size = jnp.where(good & short, jnp.maximum(size, stepping.size), size)
        fresh = lambda new, old: jnp.where(short, old, new)
        controller_state = jax.tree.map(fresh, controller_state, stepping.controller_state)
        inside = solver.interpolation_cls(t0=jnp.zeros_like(dt), t1=dt, **dense)
        return Trial(
            t=t_next,
            y=y_next,
            dense=inside,
            dt=dt,
            good=good,
            next_size=size,
            controller_state=controller_state,
            solver_state=solver_state,
        )

    def _judge(self, s: LocatedState, y_next, error, dt):
        """Whether the error of a step is within the tolerances, the size of the next step, and the
        state of the controller after it."""
        stepping, method = s.stepping, self.method
        if method.step_size is not None:
            return jnp.asarray(True), stepping.size, stepping.controller_state
        # From 0, as a small step at a late time would be lost to rounding.
        good, start, end, _, state, _ = self.controller.adapt_step_size(
            jnp.zeros_like(dt),
            dt,
            s.y,
            y_next,
            None,
            error,
            self.error_order,
            stepping.controller_state,
        )
        return jnp.asarray(good), jnp.asarray(end - start), state

    def _result(self, s: LocatedState, keep) -> RESULTS:
        """The result: a failure, or a stopping criterion met."""
        size, t1, eps = s.stepping.size, self.span.t1, jnp.finfo(s.t.dtype).eps
        stuck = size < 4 * eps * jnp.abs(s.t)
        stuck = (stuck | (size < 1e-3 * eps * t1)) & (s.t < t1)
        result = RESULTS.where(stuck, RESULTS.step_size_underflow, s.result)
        result = RESULTS.where(jnp.isfinite(s.y).all(), result, RESULTS.nonfinite)
        full = s.log.num_logged > self.max_kinks
        result = RESULTS.where(full, RESULTS.max_kinks_reached, result)
        phi, speed = s.y[:-1], self.speed(s.y, s.pattern)
        point = FlowPoint(
            elapsed=s.t - self.span.t0,
            theta=self.time_scales.theta(phi),
            dissipated=s.y[-1],
            risk=self.risk.value(phi),
            grad_norm=speed,
        )
        fired = self.method.stop.fired(point)
        return RESULTS.where(keep & ~(fired == RESULTS.successful), fired, result)

    def no_steps(self, s: LocatedState) -> Steps | None:
        """Room for the steps up to the next pause, if they are to be kept."""
        if self.kept_steps == 0:
            return None
        trial = eqx.filter_eval_shape(self._try, s, jnp.asarray(False), jnp.asarray(False))
        return Steps.none_of(trial.dense, self.kept_steps, s.t)

    # ---- saved times and events -------------------------------------------------------------

    def _save_and_resolve(self, s: LocatedState, t, y, dense, scales, arrives):
        """Saves the states up to t, and deals with the event if the flow `arrives` at one."""

        def both(c):
            saved, after, _ = c
            saved = self._save(s, t, dense, saved)
            return saved, self._resolve(t, after, scales, arrives), jnp.asarray(False)

        after = Resolved(y, s.pattern, s.log, jnp.asarray(0), jnp.asarray(False))
        # One loop, entered once or not at all: a conditional would copy what it passes on.
        start = s.saved, after, arrives | self._save_due(s.saved.num_saved, t)
        return jax.lax.while_loop(lambda c: c[2], both, start)[:2]

    def _resolve(self, t, before: Resolved, scales, happens) -> Resolved:
        """Deals with all kinks and slides that are due, one after the other, until the budget is
        exceeded."""
        eps = self.accuracy.eps

        def unfinished(c):
            resolved, pending = c
            return pending & (resolved.log.num_logged <= self.max_kinks)

        def one(c):
            done, _ = c
            theta, pattern = done.y[:-1], done.pattern
            evaluation = self.risk.evaluate(theta, pattern)
            margins = self.risk.kink_margins(theta, pattern, scales)
            slide = SLIDE_SCALE * jnp.min(self.risk.slide_margins(evaluation, pattern))
            due = jnp.minimum(jnp.min(margins), slide) <= -eps

            def resolve(done: Resolved) -> Resolved:
                circling = done.num_events > 2 * sum(pattern.active.shape)
                resolution = KinkResolution(scales, eps, self.method.rtol, circling)
                theta, after, event = self.risk.transition(
                    done.y[:-1], done.pattern, evaluation, resolution
                )
                return Resolved(
                    done.y.at[:-1].set(theta),
                    after,
                    done.log.with_event(t, event, self.risk.shares_kinks),
                    done.num_events + 1,
                    done.branched | event.branches,
                )

            return jax.lax.cond(due, resolve, lambda done: done, done), due

        return jax.lax.while_loop(unfinished, one, (before, happens))[0]

    def _save_due(self, num_saved, t) -> Bool[Array, ""]:
        ts = self.span.ts
        last = len(ts) - 1
        return (num_saved <= last) & (ts[jnp.minimum(num_saved, last)] <= t)

    def _save(self, s: LocatedState, t, dense, saved: SavedStates) -> SavedStates:
        """Fills the slots of the saved times up to t."""

        def fill(saved: SavedStates) -> SavedStates:
            count, ys, speeds = saved
            assert speeds is not None
            y = dense.evaluate(self.span.ts[count] - s.t)
            speeds = speeds.at[count].set(self.speed(y, s.pattern))
            return SavedStates(count + 1, ys.at[count].set(y), speeds)

        return jax.lax.while_loop(lambda saved: self._save_due(saved.num_saved, t), fill, saved)

    def speed(self, y, pattern: AbstractPattern) -> Array:
        return jnp.sqrt(self.risk.field(0.0, y, pattern)[-1])


def begin(loop: Loop, theta: Float[Array, " size"]) -> LocatedState:
    """The state at the start, before its first saved time."""
    risk, method, (t0, t1, ts) = loop.risk, loop.method, (loop.span.t0, loop.span.t1, loop.span.ts)
    y = jnp.append(theta, jnp.zeros((), theta.dtype))
    pattern = risk.start(theta)
    speed = loop.speed(y, pattern)
    size = method.step_size
    if size is None:
        size = jnp.minimum(first_step(theta, speed), t1 - t0)
    zero, kinks = jnp.asarray(0), loop.max_kinks
    at_start = jnp.arange(len(ts)) < (ts <= t0).astype(int).sum()
    solver_state = method.solver.init(loop.terms, t0, t1, y, pattern)
    counted = is_counted(method.solver, solver_state)
    state = LocatedState(
        t=t0,
        y=y,
        pattern=pattern,
        stepping=Stepping(
            size=size,
            controller_state=loop.controller_start(y),
            aim=Aim(jnp.full_like(t0, jnp.inf), jnp.asarray(SLIDES)),
            solver_state=solver_state,
            made_jump=jnp.asarray(False),
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
            *(jnp.zeros(kinks, int) for _ in range(3)),
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
    inner = solver.init(loop.terms, state.t, loop.span.t1, state.y, state.pattern)
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
