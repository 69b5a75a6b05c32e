"""The flow with located kinks: segments of smooth field, each ended by an event."""

from typing import Any, NamedTuple

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from gflow.flow.events import SLIDE_SCALE, Aim, Step
from gflow.flow.problem import first_step
from gflow.flow.stopping import Stop, stop_result
from gflow.nonsmooth.shallow.pattern import Event, Pattern
from gflow.nonsmooth.shallow.risk import SwitchedRisk
from gflow.results import RESULTS
from gflow.solvers.work import Work, is_counted, nothing_done, total, work_of_step


class Settings(eqx.Module):
    """How the flow is followed. `step_size` is None for adaptive steps."""

    solver: diffrax.AbstractSolver
    rtol: Float[Array, ""]
    atol: Float[Array, ""]
    step_size: Float[Array, ""] | None
    stop: Stop
    max_kinks: int = eqx.field(static=True)


class Log(NamedTuple):
    """The kinks met; the first `met` entries of each array are filled."""

    met: Int[Array, ""]
    time: Float[Array, " kinks"]
    unit: Int[Array, " kinks"]
    row: Int[Array, " kinks"]
    kind: Int[Array, " kinks"]


class Resolved(NamedTuple):
    """How many events were resolved, and whether the flow could have gone on to either side."""

    events: Int[Array, ""]
    repelled: Bool[Array, ""]


class State(NamedTuple):
    """Where the flow is, and what was saved."""

    t: Float[Array, ""]
    y: Float[Array, " size"]
    dt: Float[Array, ""]
    error: Float[Array, ""]
    aim: Aim
    solver_state: Any
    made_jump: Bool[Array, ""]
    pattern: Pattern
    saved: Int[Array, ""]
    ys: Float[Array, "times size"]
    speeds: Float[Array, " times"]
    log: Log
    steps: Int[Array, ""]
    rejected: Int[Array, ""]
    shortened: Int[Array, ""]
    work: Work | None
    repelled: Bool[Array, ""]
    result: RESULTS


class Loop(eqx.Module):
    """The loop over steps, all in one compiled program."""

    risk: SwitchedRisk
    settings: Settings
    t0: Float[Array, ""]
    t1: Float[Array, ""]
    ts: Float[Array, " times"]
    eps: float = eqx.field(static=True)
    near: float = eqx.field(static=True)

    @property
    def terms(self) -> diffrax.ODETerm:
        return diffrax.ODETerm(self.risk.field)

    # ---- one step ---------------------------------------------------------------------------

    def step(self, s: State) -> State:
        aimed = s.aim.time < jnp.inf
        last = ~aimed & (s.t + s.dt >= self.t1)
        t_next = jnp.where(aimed, s.aim.time, jnp.where(last, self.t1, s.t + s.dt))
        dt = t_next - s.t
        y_next, error, dense, solver_state, _ = self.settings.solver.step(
            self.terms, s.t, t_next, s.y, s.pattern, s.solver_state, s.made_jump
        )
        good, factor, error = self._judge(s, y_next, error)
        # From 0, as the share of a small step at a late time would be lost to rounding.
        inside = self.settings.solver.interpolation_cls(t0=jnp.zeros_like(dt), t1=dt, **dense)
        at = lambda share: inside.evaluate(share * dt)
        units = self.risk.unit_sizes(s.y[:-1])
        fixed = (self.eps, self.near)
        step = Step(self.risk, s.pattern, at, units, s.y, y_next, aimed, s.aim.which, *fixed)
        found = step.first_event(good)
        arrives = found.arrives
        cut = (found.share < jnp.inf) & ~arrives
        keep = good & ~cut
        t = jnp.where(arrives, jnp.minimum(s.t + found.share * dt, self.t1), t_next)
        y = jnp.where(keep, jnp.where(arrives, found.y, y_next), s.y)
        t = jnp.where(keep, t, s.t)
        aim = Aim(jnp.where(cut, s.t + found.share * dt, jnp.inf), found.which)

        s = s._replace(pattern=step.without_slack(keep & ~arrives))
        kept, (y, pattern, log, resolved) = self._save_and_resolve(s, t, y, inside, units, arrives)
        fresh = lambda new, old: jnp.where(keep, new, old)
        work = work_of_step(self.settings.solver, s.solver_state, solver_state, s.made_jump)
        s = s._replace(
            t=t,
            y=y,
            dt=self._next_size(s.dt, dt, factor, good, aimed | last),
            error=jnp.where(aimed | last, s.error, error),
            aim=aim,
            solver_state=jax.tree.map(fresh, solver_state, s.solver_state),
            made_jump=jnp.where(keep, arrives, s.made_jump),
            pattern=pattern,
            saved=kept[0],
            ys=kept[1],
            speeds=kept[2],
            log=log,
            steps=s.steps + 1,
            rejected=s.rejected + ~good,
            shortened=s.shortened + cut,
            work=total(s.work, work, 2 * resolved.events),
            repelled=s.repelled | resolved.repelled,
        )
        return s._replace(result=self._end(s, keep))

    def _judge(self, s: State, y_next, error):
        """Whether the error of a step is within the tolerances, the factor to the next step, and
        the error in their units.

        The factor is that of a proportional–integral controller (Gustafsson 1991), without which
        steps at the bound of stability would be rejected again and again.
        """
        if self.settings.step_size is not None:
            return jnp.asarray(True), jnp.ones((), s.y.dtype), s.error
        size = jnp.maximum(jnp.abs(s.y), jnp.abs(y_next))
        scaled = error / (self.settings.atol + self.settings.rtol * size)
        norm = jnp.sqrt(jnp.mean(scaled**2))
        norm = jnp.where(jnp.isfinite(norm), jnp.maximum(norm, 1e-10), 1e10)
        order = self.settings.solver.error_order(self.terms)
        assert order is not None
        good = norm < 1
        smooth = norm ** (-0.7 / order) * s.error ** (0.4 / order)
        factor = 0.9 * jnp.where(good, smooth, norm ** (-1 / order))
        factor = jnp.clip(factor, jnp.where(good, 1.0, 0.2), 10.0)
        return good, factor, jnp.where(good, norm, s.error)

    def _next_size(self, planned, taken, factor, good, short):
        """The size of the next step. A step that was cut short, by an event or by t1, says nothing
        against the size before it."""
        if self.settings.step_size is not None:
            return planned
        size = taken * factor
        return jnp.where(good & short, jnp.maximum(size, planned), size)

    def _end(self, s: State, keep) -> RESULTS:
        """Trouble, or a criterion to stop by."""
        stuck = s.dt < 4 * jnp.finfo(s.t.dtype).eps * jnp.abs(s.t)
        stuck = (stuck | (s.dt < 1e-3 * jnp.finfo(s.t.dtype).eps * self.t1)) & (s.t < self.t1)
        result = RESULTS.where(stuck, RESULTS.step_size_underflow, s.result)
        result = RESULTS.where(jnp.isfinite(s.y).all(), result, RESULTS.nonfinite)
        full = s.log.met > self.settings.max_kinks
        result = RESULTS.where(full, RESULTS.max_kinks_reached, result)
        values = lambda theta: (self.risk.value(theta), self.speed(s.y, s.pattern))
        conditions = self.settings.stop.conditions(values, self.t0)
        fired = {name: condition(s.t, s.y) & keep for name, condition in conditions.items()}
        stopped = jnp.any(jnp.stack(list(fired.values()))) if fired else jnp.asarray(False)
        return RESULTS.where(stopped, stop_result(fired), result)

    # ---- saved times and events -------------------------------------------------------------

    def _save_and_resolve(self, s: State, t, y, inside, units, arrives):
        """What was saved up to t, and what follows where the flow `arrives` at an event."""

        def both(c):
            kept, (y, pattern, log, _), _ = c
            kept = self._save(s, t, inside, kept)
            after = self._resolve(t, y, pattern, units, log, arrives)
            return kept, after, jnp.asarray(False)

        kept = s.saved, s.ys, s.speeds
        after = y, s.pattern, s.log, Resolved(jnp.asarray(0), jnp.asarray(False))
        # One loop, entered once or not at all: a conditional would copy what it passes on.
        start = kept, after, arrives | self._save_due(s.saved, t)
        return jax.lax.while_loop(lambda c: c[2], both, start)[:2]

    def _resolve(self, t, y, pattern, units, log: Log, happens):
        """Deals with all kinks and slides that are due, one after the other, until the budget is
        exceeded."""

        def unfinished(c):
            *_, log, _, pending = c
            return pending & (log.met <= self.settings.max_kinks)

        def one(c):
            y, pattern, log, resolved, _ = c
            parts = self.risk.parts(y[:-1], pattern)
            margins = self.risk.kink_margins(parts.z, pattern, units)
            slide = SLIDE_SCALE * jnp.min(self.risk.slide_margins(parts, pattern))
            due = jnp.minimum(jnp.min(margins), slide) <= -self.eps

            def resolve(y, pattern, log):
                circles = resolved.events > 2 * sum(pattern.active.shape)
                theta, pattern, event = self.risk.event(
                    y[:-1], pattern, parts, units, self.eps, self.settings.rtol, circles
                )
                log = _logged(log, t, event, self.risk.lines.line is None)
                after = Resolved(resolved.events + 1, resolved.repelled | event.repelled)
                return y.at[:-1].set(theta), pattern, log, after

            same = lambda y, pattern, log: (y, pattern, log, resolved)
            return *jax.lax.cond(due, resolve, same, y, pattern, log), due

        start = (y, pattern, log, Resolved(jnp.asarray(0), jnp.asarray(False)), happens)
        return jax.lax.while_loop(unfinished, one, start)[:4]

    def _save_due(self, saved, t) -> Bool[Array, ""]:
        last = len(self.ts) - 1
        return (saved <= last) & (self.ts[jnp.minimum(saved, last)] <= t)

    def _save(self, s: State, t, inside, kept):
        """Fills the slots of the saved times up to t."""

        def fill(c):
            saved, ys, speeds = c
            y = inside.evaluate(self.ts[saved] - s.t)
            return saved + 1, ys.at[saved].set(y), speeds.at[saved].set(self.speed(y, s.pattern))

        return jax.lax.while_loop(lambda c: self._save_due(c[0], t), fill, kept)

    def speed(self, y, pattern: Pattern) -> Array:
        return jnp.sqrt(self.risk.field(0.0, y, pattern)[-1])


def _logged(log: Log, t, event: Event, alone: bool) -> Log:
    """With the event of one row, if it is always `alone`, or of all its members."""
    if alone:
        places, entries, count = log.met, (event.row, event.kinds[event.row]), 1
    else:
        rows, count = jnp.arange(len(event.members)), jnp.sum(event.members)
        # Past the end, where nothing is written, for the others.
        places = jnp.where(event.members, log.met + jnp.cumsum(event.members) - 1, len(log.time))
        entries = (rows, event.kinds)
    write = lambda array, entry: array.at[places].set(entry, mode="drop")
    return Log(
        log.met + count,
        write(log.time, t),
        write(log.unit, event.unit),
        *map(write, (log.row, log.kind), entries),
    )


def begin(loop: Loop, theta: Float[Array, " size"]) -> State:
    """The state at the start, before its first saved time."""
    risk, settings, t0 = loop.risk, loop.settings, loop.t0
    y = jnp.append(theta, jnp.zeros((), theta.dtype))
    pattern = risk.start(theta)
    speed = loop.speed(y, pattern)
    dt = first_step(theta, speed) if settings.step_size is None else settings.step_size
    times, zero = loop.ts.shape[0], jnp.asarray(0)
    kinks = settings.max_kinks
    at_start = (loop.ts <= t0).astype(int).sum()
    inner = settings.solver.init(loop.terms, t0, loop.t1, y, pattern)
    return State(
        t=t0,
        y=y,
        dt=jnp.minimum(dt, loop.t1 - t0) if settings.step_size is None else dt,
        error=jnp.ones((), theta.dtype),
        aim=Aim(jnp.full_like(t0, jnp.inf), jnp.asarray(-1)),
        solver_state=inner,
        made_jump=jnp.asarray(False),
        pattern=pattern,
        saved=at_start,
        ys=jnp.where((jnp.arange(times) < at_start)[:, None], y[None, :], jnp.nan),
        speeds=jnp.where(jnp.arange(times) < at_start, speed, jnp.nan),
        log=Log(
            zero,
            jnp.full(kinks, jnp.inf, t0.dtype),
            *(jnp.zeros(kinks, int) for _ in range(3)),
        ),
        steps=zero,
        rejected=zero,
        shortened=zero,
        work=nothing_done().plus(evaluations=1) if is_counted(settings.solver, inner) else None,
        repelled=risk.repels(theta, pattern),
        result=RESULTS.successful,
    )


def handed_over(loop: Loop, state: State) -> State:
    """The state of another loop's solver as one that this loop's can go on from."""
    solver = loop.settings.solver
    inner = solver.init(loop.terms, state.t, loop.t1, state.y, state.pattern)
    return state._replace(
        solver_state=inner,
        made_jump=jnp.asarray(False),
        error=jnp.ones_like(state.error),
        work=state.work if is_counted(solver, inner) else None,
    )


@eqx.filter_custom_jvp
def advance(loop: Loop, state: State, max_steps) -> State:
    """The state at t1, or where a budget or trouble ended it; `max_steps` counts from the start."""

    def unfinished(s: State):
        return (s.t < loop.t1) & (s.steps < max_steps) & (s.result == RESULTS.successful)

    return jax.lax.while_loop(unfinished, lambda s: loop.step(s), state)


@advance.def_jvp
def _no_derivative(primals, tangents):
    raise TypeError(
        "a flow with located kinks cannot be differentiated: its events are found by iteration. "
        "`solve_flow(..., kinks='ignore')` can, in reverse mode, too."
    )
