"""The flow with every kink located, crossed or slid along."""

import equinox as eqx
import jax.numpy as jnp

from gflow.flow.hessian import field_jacobian
from gflow.flow.kinks import SwitchedRisk
from gflow.flow.loop import Loop, Settings, State, advance, begin
from gflow.flow.problem import PIECE_STEPS, Piece, Problem
from gflow.flow.solvers import (
    accurate_share,
    evaluations_of_a_step,
    with_jacobian,
    work_done,
)
from gflow.progress import progress_bar
from gflow.results import RESULTS
from gflow.trajectory import Kinks


@eqx.filter_jit
def _start(loop: Loop, theta0, t0) -> State:
    return begin(loop, theta0, t0)


@eqx.filter_jit
def _advance(loop: Loop, state: State, max_steps) -> State:
    return advance(loop, state, max_steps)


@eqx.filter_jit
def _whole(loop: Loop, theta0, t0, max_steps) -> Piece:
    return _piece(loop, advance(loop, begin(loop, theta0, t0), max_steps))


def solve(
    problem: Problem,
    risk: SwitchedRisk,
    theta0,
    t0,
    t1,
    ts,
    *,
    max_steps: int,
    max_kinks: int,
    progress: bool,
) -> Piece:
    """Solves in one compiled program, or with pauses to show where it is."""
    solver = with_jacobian(problem.solver, eqx.Partial(field_jacobian, risk))
    settings = Settings(
        solver, problem.rtol, problem.atol, problem.step_size, problem.stop, max_kinks
    )
    # Kinks are located to this distance, relative to the size of the preactivations.
    eps = 1e-12 if theta0.dtype == jnp.float64 else 1e-5
    near, stages = accurate_share(problem.solver), evaluations_of_a_step(problem.solver)
    loop = Loop(risk, settings, t1, ts, eps, near, stages)
    if not progress:
        return _whole(loop, theta0, t0, jnp.asarray(max_steps))
    state, interrupted = _start(loop, theta0, t0), False
    with progress_bar(len(ts), "gradient flow") as bar:
        try:
            while _unfinished(state, t1, max_steps):
                before = int(state.saved)
                budget = min(int(state.steps) + PIECE_STEPS, max_steps)
                state = _advance(loop, state, jnp.asarray(budget))
                kinks = f"t = {float(state.t):.4g}, {int(state.log.met):,} kinks"
                bar.advance(int(state.saved) - before, kinks)
        except KeyboardInterrupt:
            interrupted = True
    piece = _piece(loop, state)
    return piece._replace(result=RESULTS.interrupted) if interrupted else piece


def _unfinished(state: State, t1, max_steps: int) -> bool:
    running = bool(state.result == RESULTS.successful)
    return running and bool(state.t < t1) and int(state.steps) < max_steps


@eqx.filter_jit
def _piece(loop: Loop, state: State) -> Piece:
    well = state.result == RESULTS.successful
    result = RESULTS.where(well & state.repelled, RESULTS.repelled, state.result)
    result = RESULTS.where(well & (state.t < loop.t1), RESULTS.max_steps_reached, result)
    log, counts_itself = state.log, work_done(state.solver_state) is not None
    return Piece(
        ts=jnp.where(jnp.arange(len(loop.ts)) < state.saved, loop.ts, jnp.inf),
        ys=state.ys,
        count=state.saved,
        end=(state.t, state.y),
        steps=state.steps,
        rejected=state.rejected,
        shortened=state.shortened,
        result=result,
        evaluations=None if loop.stages is None and not counts_itself else state.evaluations,
        products=state.products if counts_itself else None,
        speeds=(state.speeds, loop.speed(state.y, state.pattern)),
        kinks=Kinks(log.time, log.unit, loop.risk.first[log.row], log.kind),
    )
