"""The flow with located kinks: segments of smooth field, each ended by an event."""

from typing import Any

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from gflow.dense import Steps
from gflow.flow.behind import SLIDE_SCALE
from gflow.flow.controller import error_norm, step_size_controller, tolerance
from gflow.flow.events import SLIDES, Aim, EventAccuracy
from gflow.flow.kink_step import kink_step
from gflow.flow.located_state import EventLog, LocatedState, Stepping, Trial
from gflow.flow.loose import STRICTNESS, is_loose, next_turn, with_crossings
from gflow.flow.output import SavedStates, StepCounts
from gflow.flow.pace import Pace
from gflow.flow.problem import FlowProblem, Method, first_step
from gflow.flow.span import Span
from gflow.flow.stepper import Stepper
from gflow.flow.time_changed import runs_out
from gflow.flow.time_changed_kinks import TimeChangedPatternRisk
from gflow.nonsmooth.pairs import Pairs
from gflow.nonsmooth.passages import Ends, Passed, Patience
from gflow.nonsmooth.pattern import AbstractLoosePattern, AbstractPattern
from gflow.nonsmooth.pattern_risk import AbstractPatternRisk
from gflow.results import RESULTS
from gflow.rows import with_row
from gflow.solvers.work import Work, is_counted, nothing_done, total, work_of_step

# How many pairs one step can have behind it: so many, or one in some.
_FEW_PAIRS, _PAIRS_FOR_EACH = 256, 512
# The largest entry of θ, in tolerances, up to which no kinks are looked for.
_UNRESOLVED = 1e-2


class Loop(eqx.Module):
    """The loop over steps, all in one compiled program.

    Steps that leave no kink behind them are taken one after the other; one that does is dealt with
    by `kink_step`. `kink_budget` is the part of the tolerance that may go to kinks which are
    passed; 0 if each is to be located.
    """

    risk: AbstractPatternRisk
    method: Method
    span: Span
    problem: FlowProblem
    accuracy: EventAccuracy
    kink_budget: Float[Array | np.ndarray, ""]
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
        return step_size_controller(self.method, self.problem, damped=True, padding=padding)

    def controller_start(self, y: Float[Array, " size"]) -> Any:
        """The state of the controller before the first step, whose size is known."""
        t0, t1 = self.span.t0, self.span.t1
        _, state = self.controller.init(
            self.stepper.terms, t0, t1, y, t1 - t0, None, self.method.solver.func, self.error_order
        )
        return jax.tree.map(jnp.asarray, state)

    # ---- steps ------------------------------------------------------------------------------

    def steps(self, s: LocatedState, max_steps) -> LocatedState:
        """Steps up to the next that leaves a kink behind it, or a time to save at, and that one."""

        def more(c):
            s, _, _, kinks = c
            goes_on = ~kinks & ~self.save_due(s) & self.unfinished(s, max_steps)
            return goes_on if s.pace is None else goes_on & ~s.pace.is_due

        def one(c):
            s, *_ = c
            (trial, pairs, kinks), pattern = self._look(s)
            after = self._after(s, trial, pattern, trial.good & ~kinks, ~kinks)
            return after, trial, pairs, kinks

        shapes, _ = eqx.filter_eval_shape(self._look, s)
        blank = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), shapes)
        s, trial, pairs, kinks = jax.lax.while_loop(more, one, (s, *blank))
        # A loop, entered once or not at all: a conditional would copy what it passes on.
        at_kinks = lambda c: (*kink_step(self, c[0], trial, pairs), jnp.asarray(False))
        start = s, Passed.none(pairs, trial.dt), jnp.asarray(False), kinks
        after, passed, some, _ = jax.lax.while_loop(lambda c: c[-1], at_kinks, start)
        after = after._replace(saved=self._save(after, trial, s.pattern, passed, some))
        return next_turn(self, after)

    def unfinished(self, s: LocatedState, max_steps) -> Bool[Array, ""]:
        t1, well = self.span.t1, s.result == RESULTS.successful
        return (s.t < t1) & (s.counts.steps < max_steps) & well & ~s.crowded

    def _look(
        self, s: LocatedState
    ) -> tuple[tuple[Trial, Pairs, Bool[Array, ""]], AbstractPattern]:
        """A step that is tried, the pairs it leaves behind, and whether it has to do with kinks;
        and the pattern without the slack of pairs that are well off their kinks at its end."""
        trial, end = self._try(s)
        eps, scales = self.accuracy.eps, self.risk.scales(s.y[:-1], s.pattern, s.now)
        ends = Ends(trial.dt, s.now, end)
        patience = Patience(trial.tolerance, trial.rate, self.kink_budget)
        thetas = trial.thetas(s.y)
        look = lambda: self.risk.suspects(thetas, ends, s.pattern, scales, eps, patience)
        if s.pace is None:
            suspects = look()
        else:
            none = jnp.zeros_like(s.pattern.active)
            suspects = jax.lax.cond(is_loose(s), lambda: none, look)
        # Where θ has decayed far below the tolerance, the sides of kinks are those of errors.
        resolved = jnp.max(jnp.abs(thetas[:, : self.problem.size])) > _UNRESOLVED * self.method.atol
        suspects = suspects & resolved
        pairs = Pairs.where(suspects, self.most_pairs)
        ended = jax.lax.cond(
            s.pattern.slides() & resolved,
            lambda: jnp.min(self.risk.slide_margins(end, s.pattern)) <= -eps / SLIDE_SCALE,
            lambda: jnp.asarray(False),
        )
        aimed = s.stepping.aim.time < jnp.inf
        kinks = trial.good & (jnp.any(pairs.filled) | ended | aimed)
        settled = trial.good & s.pattern.any_released()
        clear = lambda c: (c[0].settled(self.risk.heights(end.z, c[0], scales)), False)
        pattern, _ = jax.lax.while_loop(lambda c: c[1], clear, (s.pattern, settled))
        return (trial, pairs, kinks), pattern

    def _try(self, s: LocatedState) -> tuple[Trial, Any]:
        """One step to the event aimed at, to t1 if it is the last, or of the planned size; and the
        evaluation at its end."""
        stepping, solver = s.stepping, self.method.solver
        aimed = stepping.aim.time < jnp.inf
        last = ~aimed & (s.t + stepping.size >= self.span.t1)
        planned = jnp.where(last, self.span.t1, s.t + stepping.size)
        t_next = jnp.where(aimed, stepping.aim.time, planned)
        dt = t_next - s.t
        stepped = self.stepper.step(
            s.t, t_next, s.y, s.pattern, s.now, stepping.solver_state, stepping.made_jump
        )
        y = self.risk.on_kinks(stepped.y[:-1], s.pattern, stepped.end)
        y = stepped.y.at[:-1].set(y)
        good, size, controller_state = self._judge(s, stepped.y, stepped.error, dt, aimed | last)
        larger = jnp.maximum(jnp.abs(s.y), jnp.abs(stepped.y))
        trial = Trial(
            t=t_next,
            y=y,
            dense=solver.interpolation_cls(t0=jnp.zeros_like(dt), t1=dt, **stepped.dense),
            dt=dt,
            error=stepped.error,
            tolerance=tolerance(self.method, self.problem, larger),
            good=good,
            rate=self._rate(s, stepped.y, stepped.turn),
            next_size=size,
            controller_state=controller_state,
            solver_state=stepped.solver_state,
            end=stepped.end.kept(),
        )
        return jax.tree.map(jnp.asarray, trial), stepped.end

    def _judge(self, s: LocatedState, y, error, dt, short):
        """Whether the error of a step is within the tolerances, the size of the next step, and the
        state of the controller after it."""
        stepping, method = s.stepping, self.method
        if s.pace is not None:
            error = error * jnp.where(is_loose(s), STRICTNESS, 1.0)
        if method.step_size is not None:
            return jnp.asarray(True), stepping.size, stepping.controller_state
        # From 0, as a small step at a late time would be lost to rounding.
        good, start, end, _, state, _ = self.controller.adapt_step_size(
            jnp.zeros_like(dt), dt, s.y, y, None, error, self.error_order, stepping.controller_state
        )
        good, size = jnp.asarray(good), jnp.asarray(end - start)
        # A step that was cut short, by an event or by t1, does not reduce the planned size.
        size = jnp.where(good & short, jnp.maximum(size, stepping.size), size)
        fresh = lambda new, old: jnp.where(short, old, new)
        return good, size, jax.tree.map(fresh, state, stepping.controller_state)

    def _after(
        self, s: LocatedState, trial: Trial, pattern: AbstractPattern, keep, judged
    ) -> LocatedState:
        """The state after a step, if it is kept; or after one that is `judged` to be too long."""
        pick = lambda flag: (
            lambda new, old: jax.tree.map(lambda n, o: jnp.where(flag, n, o), new, old)
        )
        fresh, known, stepping = pick(keep), pick(judged), s.stepping
        aim = Aim(jnp.full_like(stepping.aim.time, jnp.inf), stepping.aim.which)
        after = s._replace(
            t=fresh(trial.t, s.t),
            y=fresh(trial.y, s.y),
            pattern=fresh(pattern, s.pattern),
            now=fresh(trial.end, s.now),
            stepping=Stepping(
                size=known(trial.next_size, stepping.size),
                controller_state=known(trial.controller_state, stepping.controller_state),
                aim=known(aim, stepping.aim),
                solver_state=fresh(trial.solver_state, stepping.solver_state),
                made_jump=fresh(jnp.asarray(False), stepping.made_jump),
                rate=stepping.rate,
            ),
            saved=s.saved,
            counts=StepCounts(
                s.counts.steps + judged,
                s.counts.rejected + (judged & ~keep),
                s.counts.shortened,
                total(s.counts.work, self.work(s, trial, judged)),
            ),
            steps=None if s.steps is None else s.steps.with_step(s.t, trial.t, trial.dense, keep),
        )
        after = after._replace(result=self.result(after, keep))
        if s.pace is None:
            return after
        pace = jax.tree.map(known, s.pace_after(jnp.asarray(False), jnp.asarray(0)), s.pace)
        return with_crossings(self, after._replace(pace=pace), s, trial, keep)

    # ---- what steps with and without kinks have in common ---------------------------------------

    @property
    def most_pairs(self) -> int:
        """How many pairs one step can have behind it."""
        units, rows = self.risk.num_units, len(self.risk.first_datum)
        return min(units * rows, max(_FEW_PAIRS, units * rows // _PAIRS_FOR_EACH))

    def _rate(self, s: LocatedState, y: Float[Array, " size"], turn) -> Float[Array, ""]:
        """The rate at which the field answers to a displacement: what was found at kinks before, or
        along a step, in which the field turned, if that is more."""
        size = lambda a: jnp.sqrt(jnp.sum(a[:-1] ** 2))
        moved = size(y - s.y)
        return jnp.maximum(s.stepping.rate, size(turn) / jnp.where(moved > 0, moved, 1.0))

    def norm(self, error: Float[Array, " size"]) -> Float[Array, ""]:
        return error_norm(self.risk.padding)(error)

    def work(self, s: LocatedState, trial: Trial, wanted) -> Work | None:
        """The work of a step, if it is wanted; None if it is unknown."""
        stepping, stepper = s.stepping, self.stepper
        if stepper.by_stages:
            work = nothing_done().plus(evaluations=stepper.evaluations)
        else:
            work = work_of_step(
                self.method.solver, stepping.solver_state, trial.solver_state, stepping.made_jump
            )
            work = None if work is None else work.plus(evaluations=1)
        return None if work is None else jax.tree.map(lambda n: n * wanted, work)

    def result(self, s: LocatedState, keep) -> RESULTS:
        """The result: a failure, or a stopping criterion met."""
        size, t1, eps = s.stepping.size, self.span.t1, jnp.finfo(s.t.dtype).eps
        stuck = size < 4 * eps * jnp.abs(s.t)
        stuck = (stuck | (size < 1e-3 * eps * t1)) & (s.t < t1)
        result = RESULTS.where(stuck, RESULTS.step_size_underflow, s.result)
        elapsed = self.problem.flow_time(s.t - self.span.t0, s.y)
        if isinstance(self.risk, TimeChangedPatternRisk):
            close = tolerance(self.method, self.problem, jnp.abs(s.y))
            ends = keep & self.risk.ends(s.y[:-1], s.pattern, s.now, close)
            ends |= stuck & runs_out(s.now.speed, size, elapsed)
            result = RESULTS.where(ends, RESULTS.changed_time_ended, result)
        result = RESULTS.where(jnp.isfinite(s.y).all(), result, RESULTS.nonfinite)
        point = self.problem.point(elapsed, s.y, s.now.value, s.now.grad_norm)
        fired = self.method.stop.fired(point)
        return RESULTS.where(keep & ~(fired == RESULTS.successful), fired, result)

    def save_due(self, s: LocatedState) -> Bool[Array, ""]:
        """Whether a time to save at has come."""
        ts, count = self.span.ts, s.saved.num_saved
        last = len(ts) - 1
        return (count <= last) & (ts[jnp.minimum(count, last)] <= s.t)

    def _save(
        self,
        s: LocatedState,
        trial: Trial,
        before: AbstractPattern,
        passed: Passed,
        some: Bool[Array, ""],
    ) -> SavedStates:
        """Fills the slots of the saved times within a step that is done, from its pattern `before`,
        with corrections if `some` kinks were passed."""

        def within(c):
            y, back = c
            theta, pattern = self.risk.within_step(
                y[:-1], before, s.pattern, passed, back, trial.end
            )
            return y.at[:-1].set(theta), pattern

        def fill(saved: SavedStates) -> SavedStates:
            count, ys, speeds = saved
            assert speeds is not None
            back = trial.t - self.span.ts[count]
            plain = trial.dense.evaluate(trial.dt - back)
            y, pattern = jax.lax.cond(some, within, lambda c: (c[0], before), (plain, back))
            now = self.risk.evaluate(y[:-1], pattern)
            y = y.at[-1].add(2 * (y - plain)[:-1] @ now.field[:-1])
            speeds = with_row(speeds, count, now.grad_norm)
            return SavedStates(count + 1, with_row(ys, count, y), speeds)

        due = lambda saved: self.save_due(s._replace(saved=saved))
        return jax.lax.while_loop(due, fill, s.saved)

    def no_steps(self, s: LocatedState) -> Steps | None:
        """Room for the steps up to the next pause, if they are to be kept."""
        if self.kept_steps == 0:
            return None
        trial, _ = eqx.filter_eval_shape(self._try, s)
        return Steps.none_of(trial.dense, self.kept_steps, s.t)


def begin(loop: Loop, theta: Float[Array, " size"]) -> LocatedState:
    """The state at the start, before its first saved time."""
    risk, method, (t0, t1, ts) = loop.risk, loop.method, (loop.span.t0, loop.span.t1, loop.span.ts)
    y = jnp.append(theta, jnp.zeros((), theta.dtype))
    pattern = risk.start(theta)
    now = risk.evaluate(theta, pattern)
    speed = jnp.sqrt(jnp.sum(now.field[: loop.problem.size] ** 2))
    size, adapts = method.step_size, method.step_size is None
    if size is None:
        size = jnp.minimum(first_step(theta, speed), t1 - t0)
    zero = jnp.asarray(0)
    at_start = jnp.arange(len(ts)) < (ts <= t0).astype(int).sum()
    solver_state = loop.stepper.init(t0, t1, y, pattern)
    counted = is_counted(method.solver, solver_state)
    state = LocatedState(
        t=t0,
        y=y,
        pattern=pattern,
        now=now.kept(),
        stepping=Stepping(
            size=size,
            controller_state=loop.controller_start(y),
            aim=Aim(jnp.full_like(t0, jnp.inf), jnp.asarray(SLIDES, int)),
            solver_state=solver_state,
            made_jump=jnp.asarray(False),
            rate=jnp.zeros_like(size),
        ),
        saved=SavedStates(
            num_saved=jnp.sum(at_start),
            ys=jnp.where(at_start[:, None], y[None, :], 0.0),
            speeds=jnp.where(at_start, now.grad_norm, 0.0),
        ),
        counts=StepCounts(
            zero, zero, zero, nothing_done().plus(evaluations=1) if counted else None
        ),
        log=EventLog.empty(loop.log_size, t0.dtype),
        repelled=risk.repels(theta, pattern),
        branched=jnp.asarray(False),
        crowded=jnp.asarray(False),
        result=RESULTS.successful,
        steps=None,
        pace=Pace.at(t0) if adapts and isinstance(pattern, AbstractLoosePattern) else None,
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
    return jax.lax.while_loop(
        lambda s: loop.unfinished(s, max_steps), lambda s: loop.steps(s, max_steps), state
    )


@_advance.def_jvp
def _no_derivative(primals, tangents):
    raise TypeError(
        "a flow with located kinks cannot be differentiated: its events are found by iteration. "
        "`solve_flow(..., kinks='ignore')` can, in reverse mode, too."
    )
