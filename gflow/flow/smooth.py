"""The flow of a smooth field, or across kinks: plain adaptive integration by diffrax."""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import diffrax
import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from gflow.flow import collapse
from gflow.flow.problem import PIECE_STEPS, Piece, Problem, first_step
from gflow.flow.solver_setup import controller
from gflow.flow.stopping import stop_result
from gflow.results import RESULTS
from gflow.solvers.stabilised import radius_at
from gflow.solvers.work import Work, is_counted, nothing_done, total, work_of_solve

# With so many parameters steps take long, and pauses no time.
_LARGE = 2000


class State(NamedTuple):
    """Where the flow is, and what was saved."""

    t: Float[Array, ""]
    y: Float[Array, " size"]
    dt: Float[Array, ""]
    saved: Int[Array, ""]
    ts: Float[Array, " times"]
    ys: Float[Array, "times size"]
    steps: Int[Array, ""]
    rejected: Int[Array, ""]
    work: Work | None
    result: RESULTS


@dataclasses.dataclass(frozen=True)
class Plain:
    """A solve by diffrax, as a whole or piece by piece."""

    problem: Problem
    theta0: Float[Array, " size"]
    t0: Float[Array, ""]
    t1: Float[Array, ""]
    ts: Float[Array, " times"]

    located = False

    def whole(self, max_steps: int) -> Piece:
        return _whole(self.problem, self.theta0, self.t0, self.t1, self.ts, max_steps)

    def start(self) -> State:
        return _start(self.problem, self.theta0, self.t0, self.t1, self.ts)

    def steps_of_piece(self, done: int) -> int:
        """Always the same, as the program is compiled for it."""
        return PIECE_STEPS // (2 if len(self.theta0) < _LARGE else 8)

    def advance(self, state: State, max_steps: int) -> State:
        """After some steps; `max_steps` counts from the start."""
        budget = max_steps - int(state.steps)
        return _advance(self.problem, state, self.t0, self.t1, self.ts, budget)

    def hand_over(self, state: State, solver: diffrax.AbstractSolver) -> tuple["Plain", State]:
        """The solve, and its state, with another solver from here on."""
        problem = eqx.tree_at(lambda p: p.solver, self.problem, solver)
        return dataclasses.replace(self, problem=problem), state

    def unfinished(self, state: State) -> bool:
        well = (state.result == RESULTS.successful) | (state.result == RESULTS.max_steps_reached)
        return bool(well) and bool(state.t < self.t1)

    def kinks_met(self, state: State) -> int:
        return 0

    def step_size(self, state: State) -> float:
        return float(state.dt)

    def spectral_radius(self, state: State) -> float:
        return float(_spectral_radius(self.problem, state.y[:-1]))

    def ending(self, state: State) -> Callable[[], Piece]:
        return eqx.Partial(_piece, state)


@eqx.filter_jit
def _start(problem: Problem, theta0, t0, t1, ts) -> State:
    y0, zero = jnp.append(theta0, jnp.zeros((), theta0.dtype)), jnp.asarray(0)
    dt = problem.step_size
    if dt is None:
        guess = first_step(theta0, problem.risk_and_grad_norm(theta0)[1])
        dt = jnp.minimum(guess, t1 - t0)
    inner = problem.solver.init(diffrax.ODETerm(problem.field), t0, t1, y0, None)
    return State(
        t=t0,
        y=y0,
        dt=dt,
        saved=zero,
        ts=jnp.full_like(ts, jnp.inf),
        ys=jnp.full((len(ts), len(y0)), jnp.nan, theta0.dtype),
        steps=zero,
        rejected=zero,
        work=nothing_done() if is_counted(problem.solver, inner) else None,
        result=RESULTS.successful,
    )


@eqx.filter_jit
def _advance(problem: Problem, s: State, t0, t1, ts, max_steps: int) -> State:
    return _integrate(problem, s, t0, t1, ts, max_steps)


@eqx.filter_jit
def _whole(problem: Problem, theta0, t0, t1, ts, max_steps: int) -> Piece:
    start = _start(problem, theta0, t0, t1, ts)
    return _piece(_integrate(problem, start, t0, t1, ts, max_steps))


def _integrate(problem: Problem, s: State, t0, t1, ts, max_steps: int) -> State:
    conditions = problem.stop.conditions(problem.risk_and_grad_norm, t0)
    events = {
        name: lambda t, y, args, condition=condition, **_: condition(t, y)
        for name, condition in conditions.items()
    }
    solver, collapses = problem.solver, collapse.possible(problem)
    solution = diffrax.diffeqsolve(
        diffrax.ODETerm(problem.field),
        collapse.WithCollapse(solver, problem) if collapses else solver,
        s.t,
        t1,
        s.dt,
        s.y,
        # Times before the start were saved by the pieces before.
        saveat=diffrax.SaveAt(
            subs=[diffrax.SubSaveAt(ts=jnp.maximum(ts, s.t)), diffrax.SubSaveAt(t1=True)],
            solver_state=True,
        ),
        stepsize_controller=controller(problem, t1 - s.t),
        event=diffrax.Event(events) if events else None,
        max_steps=max_steps,
        throw=False,
    )
    assert solution.ts is not None and solution.ys is not None
    (saved_ts, last_ts), (saved_ys, last_ys) = solution.ts, solution.ys
    if collapses:
        solution = collapse.of_inner(solution)
    t, y = last_ts[0], last_ys[0]
    old, steps = jnp.arange(len(ts)) < s.saved, solution.stats["num_steps"]
    saved = jnp.maximum(s.saved, jnp.sum(jnp.isfinite(saved_ts)))
    kept = jnp.maximum(steps - solution.stats["num_rejected_steps"], 1)
    return State(
        t=t,
        y=y,
        dt=s.dt if problem.step_size is not None else jnp.minimum((t - s.t) / kept, t1 - t),
        saved=saved,
        ts=jnp.where(old, s.ts, saved_ts),
        ys=jnp.where(old[:, None], s.ys, saved_ys),
        steps=s.steps + steps,
        rejected=s.rejected + solution.stats["num_rejected_steps"],
        work=total(s.work, work_of_solve(solver, solution)),
        result=_translate(solution.result, solution.event_mask or {}, problem, y),
    )


def _translate(result, fired: dict[str, Bool[Array, ""]], problem: Problem, y_end) -> RESULTS:
    """diffrax's result as ours."""
    finite = jnp.isfinite(problem.field(0.0, y_end, None)).all()
    stuck = RESULTS.where(finite, RESULTS.step_size_underflow, RESULTS.nonfinite)
    ours = RESULTS.where(result == diffrax.RESULTS.successful, RESULTS.successful, stuck)
    ours = RESULTS.where(
        result == diffrax.RESULTS.max_steps_reached, RESULTS.max_steps_reached, ours
    )
    return RESULTS.where(result == diffrax.RESULTS.event_occurred, stop_result(fired), ours)


@eqx.filter_jit
def _spectral_radius(problem: Problem, theta: Float[Array, " size"]) -> Array:
    """Of the Hessian."""
    return radius_at(lambda theta: problem.gradient(theta)[1], theta)


def _piece(s: State) -> Piece:
    return Piece(
        ts=s.ts,
        ys=s.ys,
        count=s.saved,
        end=(s.t, s.y),
        steps=s.steps,
        rejected=s.rejected,
        result=s.result,
        work=s.work,
    )
