"""The flow across kinks: plain adaptive integration by diffrax."""

from typing import Any

import diffrax
import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from gflow.flow import collapse
from gflow.flow.problem import PIECE_STEPS, PIECE_TIMES, Piece, Problem, first_step
from gflow.flow.solvers import controller, work_of_solve
from gflow.flow.stop import stop_result
from gflow.progress import progress_bar
from gflow.results import RESULTS


@eqx.filter_jit
def _integrate(problem: Problem, y0, t0, t1, dt0, ts, max_steps: int) -> Piece:
    conditions = problem.stop.conditions(problem.risk_and_grad_norm)
    events = {
        name: lambda t, y, args, condition=condition, **_: condition(y[:-1])
        for name, condition in conditions.items()
    }
    solver, collapses = problem.solver, collapse.possible(problem)
    solution = diffrax.diffeqsolve(
        diffrax.ODETerm(problem.field),
        collapse.WithCollapse(solver, problem) if collapses else solver,
        t0,
        t1,
        _first_step(problem, y0, dt0, t1 - t0),
        y0,
        saveat=diffrax.SaveAt(
            subs=[diffrax.SubSaveAt(ts=ts), diffrax.SubSaveAt(t1=True)], solver_state=True
        ),
        stepsize_controller=controller(problem, t1 - t0),
        event=diffrax.Event(events) if events else None,
        max_steps=max_steps,
        throw=False,
    )
    assert solution.ts is not None and solution.ys is not None
    (saved_ts, last_ts), (saved_ys, last_ys) = solution.ts, solution.ys
    y_end = last_ys[0]
    if collapses:
        solution = collapse.of_inner(solution)
    evaluations, products = work_of_solve(solver, solution)
    return Piece(
        ts=saved_ts,
        ys=saved_ys,
        count=jnp.sum(jnp.isfinite(saved_ts)),
        end=(last_ts[0], y_end),
        steps=solution.stats["num_steps"],
        rejected=solution.stats["num_rejected_steps"],
        result=_translate(solution.result, solution.event_mask or {}, problem, y_end),
        evaluations=evaluations,
        products=products,
    )


def _first_step(problem: Problem, y0, dt0, span):
    if problem.step_size is not None:
        return problem.step_size
    guess = first_step(y0[:-1], problem.risk_and_grad_norm(y0[:-1])[1])
    return jnp.minimum(jnp.where(dt0 > 0, dt0, guess), span)


def _translate(result, fired: dict[str, Array], problem: Problem, y_end) -> RESULTS:
    """diffrax's result as ours."""
    finite = jnp.isfinite(problem.field(0.0, y_end, None)).all()
    stuck = RESULTS.where(finite, RESULTS.step_size_underflow, RESULTS.nonfinite)
    ours = RESULTS.where(result == diffrax.RESULTS.successful, RESULTS.successful, stuck)
    ours = RESULTS.where(
        result == diffrax.RESULTS.max_steps_reached, RESULTS.max_steps_reached, ours
    )
    return RESULTS.where(result == diffrax.RESULTS.event_occurred, stop_result(fired), ours)


def solve_whole(problem: Problem, theta0, t0, t1, ts, max_steps: int) -> Piece:
    y0 = jnp.append(theta0, jnp.zeros((), theta0.dtype))
    return _integrate(problem, y0, t0, t1, jnp.zeros_like(t0), ts, max_steps)


def solve_in_pieces(problem: Problem, theta0, t0, t1, ts, max_steps: int) -> Piece:
    """The same solve with a pause after some saved times or steps, to show where it is."""
    t, y = t0, jnp.append(theta0, jnp.zeros((), theta0.dtype))
    dt = jnp.zeros_like(t0)
    pieces, count, steps, result = [], 0, 0, RESULTS.successful
    with progress_bar(len(ts), "gradient flow") as bar:
        try:
            while t < t1:
                slots = ts[count : count + PIECE_TIMES]
                end = t1 if count + len(slots) == len(ts) else slots[-1]
                slots = jnp.append(slots, jnp.full(PIECE_TIMES - len(slots), end))
                piece = _integrate(problem, y, t, end, dt, slots, min(max_steps, PIECE_STEPS))
                new = min(int(piece.count), len(ts) - count)
                pieces.append(piece._replace(count=new))
                dt = (piece.end[0] - t) / jnp.maximum(piece.steps - piece.rejected, 1)
                t, y = piece.end
                count, steps, result = count + new, steps + int(piece.steps), piece.result
                bar.advance(new, f"t = {float(t):.4g}")
                paused = bool(result == RESULTS.max_steps_reached)
                if not (paused or bool(result == RESULTS.successful)):
                    break
                if steps >= max_steps and t < t1:
                    result = RESULTS.max_steps_reached
                    break
        except KeyboardInterrupt:
            result = RESULTS.interrupted
    return _join(pieces, ts, (t, y), result)


def _join(pieces: list[Piece], ts, end, result: RESULTS) -> Piece:
    saved_ts = np.full(len(ts), np.inf, ts.dtype)
    saved_ys = np.full((len(ts), len(end[1])), np.nan, ts.dtype)
    count = 0
    for piece in pieces:
        there = slice(count, count + piece.count)
        saved_ts[there], saved_ys[there] = piece.ts[: piece.count], piece.ys[: piece.count]
        count += piece.count
    return Piece(
        ts=jnp.asarray(saved_ts),
        ys=jnp.asarray(saved_ys),
        count=jnp.asarray(count),
        end=end,
        steps=jnp.asarray(sum(int(p.steps) for p in pieces)),
        rejected=jnp.asarray(sum(int(p.rejected) for p in pieces)),
        result=result,
        evaluations=_total([p.evaluations for p in pieces]),
        products=_total([p.products for p in pieces]),
    )


def _total(counts: list[Any]) -> Any:
    return None if None in counts else jnp.asarray(sum(int(n) for n in counts))
