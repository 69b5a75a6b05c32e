"""The flow with located kinks: segments of smooth field, each ended by an event."""

from typing import Any, NamedTuple

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from gflow.flow.kinks import Pattern, SwitchedRisk
from gflow.flow.problem import first_step
from gflow.flow.stop import Stop, stop_result
from gflow.trajectory import RESULTS


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


class State(NamedTuple):
    """Where the flow is, and what was saved."""

    t: Float[Array, ""]
    y: Float[Array, " size"]
    dt: Float[Array, ""]
    solver_state: Any
    made_jump: Bool[Array, ""]
    pattern: Pattern
    margins: Float[Array, "width rows"]
    saved: Int[Array, ""]
    ys: Float[Array, "times size"]
    speeds: Float[Array, " times"]
    log: Log
    steps: Int[Array, ""]
    rejected: Int[Array, ""]
    evaluations: Int[Array, ""]
    result: RESULTS


class Loop(eqx.Module):
    """The loop over steps, all in one compiled program."""

    risk: SwitchedRisk
    settings: Settings
    t1: Float[Array, ""]
    ts: Float[Array, " times"]
    eps: float = eqx.field(static=True)
    stages: int | None = eqx.field(static=True)

    @property
    def terms(self) -> diffrax.ODETerm:
        return diffrax.ODETerm(self.risk.field)

    # ---- margins: what is positive until the next event -------------------------------------

    def kink_margins(self, y, pattern: Pattern) -> Array:
        z = self.risk.preactivations(self.risk.net(y[:-1]))
        return self.risk.kink_margins(z, pattern)

    def slide_margin(self, y, pattern: Pattern) -> Array:
        """The least margin of the slides, on the scale of the kinks' margins."""

        def least(y):
            parts = self.risk.parts(y[:-1], pattern)
            return 1e-3 * jnp.min(self.risk.slide_margins(parts, pattern))

        nothing = lambda y: jnp.asarray(jnp.inf, y.dtype)
        return jax.lax.cond(jnp.any(pattern.used), least, nothing, y)

    def margin_of(self, due: tuple[Array, Array], y, pattern: Pattern) -> Array:
        """The least margin of the kinks, and of the slides, that are due."""
        kinks, slides = due
        kink = jnp.min(jnp.where(kinks, self.kink_margins(y, pattern), jnp.inf))
        return jnp.minimum(kink, jnp.where(slides, self.slide_margin(y, pattern), jnp.inf))

    def margin(self, y, pattern: Pattern) -> Array:
        return jnp.minimum(jnp.min(self.kink_margins(y, pattern)), self.slide_margin(y, pattern))

    # ---- one step ---------------------------------------------------------------------------

    def step(self, s: State) -> State:
        last = s.t + s.dt >= self.t1
        t_next = jnp.where(last, self.t1, s.t + s.dt)
        dt = t_next - s.t
        y_next, error, dense, solver_state, _ = self.settings.solver.step(
            self.terms, s.t, t_next, s.y, s.pattern, s.solver_state, s.made_jump
        )
        keep, factor = self._judge(s.y, y_next, error)
        inside = self.settings.solver.interpolation_cls(t0=s.t, t1=t_next, **dense)
        at = lambda share: inside.evaluate(s.t + share * dt)

        share, due, margins = self._first_event(s, y_next, at, keep)
        happens = share < jnp.inf
        t, y = jax.lax.cond(
            happens,
            lambda: self._to_event(s, at, due, jnp.minimum(share, 1.0), dt),
            lambda: (t_next, y_next),
        )
        y, t = jnp.where(keep, y, s.y), jnp.where(keep, t, s.t)
        old_margins = jnp.where(keep, margins, s.margins)
        s = self._save(s, t, inside)
        y, pattern, margins, log = self._resolve(t, y, s.pattern, old_margins, s.log, happens)
        fresh = lambda new, old: jnp.where(keep, new, old)
        size = s.dt if self.settings.step_size is not None else dt * factor
        # A step that t1 cut short says nothing against the size before it.
        size = jnp.where(last & keep, jnp.maximum(size, s.dt), size)
        s = s._replace(
            t=t,
            y=y,
            dt=size,
            solver_state=jax.tree.map(fresh, solver_state, s.solver_state),
            made_jump=jnp.where(keep, happens, s.made_jump),
            pattern=pattern,
            margins=margins,
            log=log,
            steps=s.steps + 1,
            rejected=s.rejected + ~keep,
            evaluations=s.evaluations + (self.stages or 0) * (1 + happens) + 3 * happens,
        )
        return s._replace(result=self._end(s, keep))

    def _judge(self, y0, y1, error):
        """Whether the error of a step is within the tolerances, and the factor to the next."""
        if self.settings.step_size is not None:
            return jnp.asarray(True), jnp.ones((), y0.dtype)
        size = jnp.maximum(jnp.abs(y0), jnp.abs(y1))
        scaled = error / (self.settings.atol + self.settings.rtol * size)
        norm = jnp.sqrt(jnp.mean(scaled**2))
        norm = jnp.where(jnp.isfinite(norm), jnp.maximum(norm, 1e-10), 1e10)
        order = self.settings.solver.error_order(self.terms)
        assert order is not None
        keep = norm < 1
        return keep, jnp.clip(0.9 * norm ** (-1 / order), jnp.where(keep, 1.0, 0.2), 10.0)

    def _end(self, s: State, keep) -> RESULTS:
        """Trouble, or a criterion to stop by."""
        stuck = s.dt < 4 * jnp.finfo(s.t.dtype).eps * jnp.abs(s.t)
        stuck = (stuck | (s.dt < 1e-3 * jnp.finfo(s.t.dtype).eps * self.t1)) & (s.t < self.t1)
        result = RESULTS.where(stuck, RESULTS.step_size_underflow, s.result)
        full = s.log.met >= self.settings.max_kinks
        result = RESULTS.where(full, RESULTS.max_kinks_reached, result)
        values = lambda theta: (self.risk.value(theta), self.speed(s.y, s.pattern))
        conditions = self.settings.stop.conditions(values)
        fired = {name: condition(s.y[:-1]) & keep for name, condition in conditions.items()}
        stopped = jnp.any(jnp.stack(list(fired.values()))) if fired else jnp.asarray(False)
        return RESULTS.where(stopped, stop_result(fired), result)

    # ---- the first event of a step ----------------------------------------------------------

    def _first_event(self, s: State, y_next, at, keep):
        """The share of the step at which the first margin ends, inf if none; which kinks, and
        whether slides, are due by the end of the step; the margins there."""
        m0, m1 = s.margins, self.kink_margins(y_next, s.pattern)
        half = self.kink_margins(at(jnp.asarray(0.5, y_next.dtype)), s.pattern)
        # The parabola through the three shows most pairs that cross and come back within the step.
        curve = 2 * (m0 - 2 * half + m1)
        slope = m1 - m0 - curve
        lowest = jnp.clip(-slope / jnp.where(curve > 0, 2 * curve, jnp.inf), 0.0, 1.0)
        dip = jnp.where(curve > 0, m0 + lowest * (slope + lowest * curve), jnp.inf)
        when = jnp.where(dip <= -self.eps, lowest, jnp.where(m1 <= -self.eps, 1.0, jnp.inf))
        when = jnp.where(half <= -self.eps, jnp.minimum(when, 0.5), when)
        when = jnp.where(jnp.isnan(when), jnp.inf, when)
        ends = self.slide_margin(y_next, s.pattern) <= -self.eps
        first = jnp.where(ends, jnp.minimum(jnp.min(when), 1.0), jnp.min(when))
        due = (when < jnp.inf, ends)
        return self._root(s, at, due, first, keep & (first < jnp.inf)), due, m1

    def _root(self, s: State, at, due, first, wanted):
        """The share at which the least margin of those due is −1.5 eps, by the Illinois method.

        Pairs that rest on their kink, as those of dead units may, have margin 0 throughout: with
        them the least margin would be flat up to the root.
        """
        target = 1.5 * self.eps
        kinks, _ = due
        height = lambda share: self.margin_of(due, at(share), s.pattern) + target
        one = jnp.ones_like(first)
        first = jnp.where(wanted, first, one)

        def ends(_):
            there, end = height(first), height(one)
            return jnp.where(there < 0, first, one), jnp.where(there < 0, there, end)

        high, f_high = jax.lax.cond(wanted, ends, lambda _: (one, one), None)
        wanted = wanted & (f_high < 0)
        at_start = jnp.min(jnp.where(kinks, s.margins, 1e-3))
        low, f_low = jnp.zeros_like(one), jnp.maximum(at_start, -self.eps) + target

        def unfinished(c):
            low, high, _, _, _, count, near = c
            wide = (high - low) > 4 * jnp.finfo(one.dtype).eps * high
            return wanted & wide & ~near & (count < 100)

        def narrow(c):
            low, high, f_low, f_high, side, count, near = c
            share = high - f_high * (high - low) / (f_high - f_low)
            halve = ~((share > low) & (share < high)) | (count % 4 == 3)
            share = jnp.where(halve, 0.5 * (low + high), share)
            f = height(share)
            near = jnp.abs(f) <= 0.5 * self.eps
            below = (f <= 0) | near
            # Illinois: an end that stays twice has its value halved.
            f_low_next = jnp.where(below, jnp.where(side == 1, 0.5 * f_low, f_low), f)
            f_high_next = jnp.where(below, f, jnp.where(side == -1, 0.5 * f_high, f_high))
            return (
                jnp.where(below, low, share),
                jnp.where(below, share, high),
                f_low_next,
                f_high_next,
                jnp.where(below, 1, -1),
                count + 1,
                near,
            )

        start = (low, high, f_low, f_high, 0, 0, jnp.asarray(False))
        found = jax.lax.while_loop(unfinished, narrow, start)
        return jnp.where(wanted, found[1], jnp.inf)

    def _to_event(self, s: State, at, due, share, dt) -> tuple[Array, Array]:
        """Time and state of the event whose share of the step the dense output gave.

        The dense output is of lower order than the solver. So the step is taken again up to there,
        and the margin that is left over or overshot made up for along the field.
        """
        height = lambda y: self.margin_of(due, y, s.pattern)
        before = share * (1 - 1e-3)
        rate = (height(at(share)) - height(at(before))) / ((share - before) * dt)
        t = s.t + share * dt
        y, *_ = self.settings.solver.step(
            self.terms, s.t, t, s.y, s.pattern, s.solver_state, s.made_jump
        )
        ahead = -(height(y) + 1.5 * self.eps) / jnp.where(rate < 0, rate, -jnp.inf)
        most = 0.05 * share * dt
        ahead = jnp.clip(jnp.nan_to_num(ahead), -most, jnp.minimum(most, self.t1 - t))
        return t + ahead, y + ahead * self.risk.field(t, y, s.pattern)

    # ---- events -----------------------------------------------------------------------------

    def _resolve(self, t, y, pattern, margins, log: Log, happens):
        """Deals with all kinks and slides that are due, one after the other."""

        def due(c):
            _, _, _, log, pending = c
            return pending & (log.met < self.settings.max_kinks)

        def one(c):
            y, pattern, _, log, _ = c
            parts = self.risk.parts(y[:-1], pattern)
            exit = lambda: (y[:-1], *self.risk.exit(pattern, parts))
            arrive = lambda: self.risk.arrive(y[:-1], pattern, parts, self.eps)
            # A slide that rests on the boundary of [0, 1] is not held there, and ends, too.
            over = jnp.min(self.risk.slide_margins(parts, pattern)) <= self.eps
            theta, pattern, event = jax.lax.cond(over, exit, arrive)
            y = y.at[:-1].set(theta)
            log = _logged(log, t, event)
            margins = self.kink_margins(y, pattern)
            least = jnp.minimum(jnp.min(margins), self.slide_margin(y, pattern))
            return y, pattern, margins, log, least <= -self.eps

        pending = happens & (self.margin(y, pattern) <= -self.eps)
        margins = jnp.where(happens, self.kink_margins(y, pattern), margins)
        start = (y, pattern, margins, log, pending)
        y, pattern, margins, log, _ = jax.lax.while_loop(due, one, start)
        return y, pattern, margins, log

    # ---- saving -----------------------------------------------------------------------------

    def _save(self, s: State, t, inside) -> State:
        """Fills the slots of the saved times up to t."""

        def due(c):
            saved, _, _ = c
            return (saved < self.ts.shape[0]) & (
                self.ts[jnp.minimum(saved, self.ts.shape[0] - 1)] <= t
            )

        def fill(c):
            saved, ys, speeds = c
            y = inside.evaluate(self.ts[saved])
            return saved + 1, ys.at[saved].set(y), speeds.at[saved].set(self.speed(y, s.pattern))

        saved, ys, speeds = jax.lax.while_loop(due, fill, (s.saved, s.ys, s.speeds))
        return s._replace(saved=saved, ys=ys, speeds=speeds)

    def speed(self, y, pattern: Pattern) -> Array:
        return jnp.sqrt(self.risk.field(0.0, y, pattern)[-1])


def _logged(log: Log, t, event) -> Log:
    k = log.met
    return Log(
        k + 1,
        log.time.at[k].set(t, mode="drop"),
        log.unit.at[k].set(event.unit, mode="drop"),
        log.row.at[k].set(event.row, mode="drop"),
        log.kind.at[k].set(event.kind, mode="drop"),
    )


def begin(loop: Loop, theta: Float[Array, " size"], t0: Float[Array, ""]) -> State:
    """The state at the start, before its first saved time."""
    risk, settings = loop.risk, loop.settings
    y = jnp.append(theta, jnp.zeros((), theta.dtype))
    pattern = risk.start(theta)
    speed = loop.speed(y, pattern)
    dt = first_step(theta, speed) if settings.step_size is None else settings.step_size
    times, zero = loop.ts.shape[0], jnp.asarray(0)
    kinks = settings.max_kinks
    at_start = (loop.ts <= t0).astype(int).sum()
    return State(
        t=t0,
        y=y,
        dt=jnp.minimum(dt, loop.t1 - t0) if settings.step_size is None else dt,
        solver_state=settings.solver.init(loop.terms, t0, loop.t1, y, pattern),
        made_jump=jnp.asarray(False),
        pattern=pattern,
        margins=loop.kink_margins(y, pattern),
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
        evaluations=jnp.asarray(1),
        result=RESULTS.successful,
    )


def advance(loop: Loop, state: State, max_steps) -> State:
    """The state at t1, or where a budget or trouble ended it; `max_steps` counts from the start."""

    def unfinished(s: State):
        return (s.t < loop.t1) & (s.steps < max_steps) & (s.result == RESULTS.successful)

    return jax.lax.while_loop(unfinished, lambda s: loop.step(s), state)
