"""`solve_flow`: the gradient flow of a network as a trajectory."""

import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, PyTree

from gflow.arguments import (
    ArgumentError,
    Described,
    RealScalar,
    finite,
    is_concrete,
    one_of,
    positive,
    positive_int,
)
from gflow.flow.solvers import as_solver, controller, num_field_evaluations
from gflow.flow.stop import Stop, as_stop, stop_result
from gflow.networks import split_trainable
from gflow.progress import progress_bar
from gflow.trajectory import RESULTS, Trajectory, finish, keep_first, record

# At most so many saved times, and steps, between pauses for the progress bar and Ctrl-C.
_PIECE = 16
_PIECE_STEPS = 2048


def solve_flow(
    risk: Callable[[Any], Array],
    net: PyTree,
    *,
    t1: RealScalar,
    t0: RealScalar = 0.0,
    ts: Any = None,
    rtol: RealScalar | None = None,
    atol: RealScalar | None = None,
    solver: diffrax.AbstractSolver | None = None,
    kinks: str = "ignore",
    stop: Stop | None = None,
    max_steps: int = 1_000_000,
    trainable: Sequence[str] | PyTree | None = None,
    progress: bool = False,
    throw: bool = True,
) -> Trajectory:
    r"""Follows the gradient flow of a risk from a network,

    $$\frac{d\theta}{dt} = -G(\theta), \qquad \theta(t_0) = \text{net},$$

    by an adaptive solver. The dissipation ∫‖G‖² is integrated with it, so that the trajectory
    checks itself by the energy identity (`Trajectory.diagnostics`).

    **Arguments:**

    - `risk`: any function of the network to a scalar, such as `EmpiricalRisk(x, y)`.
    - `net`: a `ShallowNet` or any equinox module.
    - `t1`, `t0`: the flow runs from t0 to t1. One gradient-descent step of size h is flow time h.
    - `ts`: times to save at, increasing, within [t0, t1]; by default 200, logarithmic, both ends
      in.
    - `rtol`, `atol`: tolerances of the error of a step, relative and absolute; by default 1e-8 and
      1e-10 for float64 parameters, 1e-4 and 1e-6 for float32.
    - `solver`: any adaptive diffrax solver; None for `diffrax.Tsit5()`.
    - `kinks`: "ignore": adaptive integration with ReLU'(0) = 0, across kinks as if the field were
      smooth. Where kinks are many the steps become small; a loose `rtol` (1e-4 to 1e-6) is then the
      better choice.
    - `stop`: a `Stop` that ends the flow early.
    - `max_steps`: the budget of steps, accepted and rejected; with `progress`, checked after each
      piece.
    - `trainable`: which parameters move: None (all), names of fields such as `("v", "c")`, or an
      equinox filter specification.
    - `progress`: shows a progress bar with the flow time reached. The flow is then solved in
      pieces, and Ctrl-C ends it with the result "interrupted".
    - `throw`: raise a `TrajectoryError` if the flow does not reach its end. It holds the
      trajectory until then; with False that is returned, its `result` saying what happened.

    **Returns:** a `Trajectory`. Can be used under `jax.jit` and `jax.vmap` (with `progress=False`);
    there the slots past an early end have time inf and hold NaN.

    **Raises:** `ArgumentError` (a `ValueError`) for arguments that cannot be used;
    `TrajectoryError` as above.
    """
    one_of("kinks", kinks, ("ignore",))
    max_steps = positive_int("max_steps", max_steps)
    solver, stop = as_solver(solver), as_stop(stop)
    trained, frozen = split_trainable(net, trainable)
    y0, _ = ravel_pytree(trained)
    _check_start(y0)
    start, end, times = _times(t0, t1, ts, y0.dtype)
    problem = _Problem(risk, trained, frozen, solver, stop, *_tolerances(rtol, atol, y0.dtype))

    solve = _solve_in_pieces if progress else _solve_whole
    piece = solve(problem, y0, start, end, times, max_steps).with_end()
    trajectory = _record(problem, piece, f"gradient flow, {type(solver).__name__}")
    if is_concrete(piece.count):
        trajectory = keep_first(trajectory, int(piece.count))
    return finish(trajectory, throw=throw)


class _Problem(eqx.Module):
    risk: Callable[[Any], Array]
    trained: PyTree
    frozen: PyTree
    solver: diffrax.AbstractSolver
    stop: Stop
    rtol: Array
    atol: Array

    def gradient(self, theta: Float[Array, " size"]) -> tuple[Array, Float[Array, " size"]]:
        """L(θ) and G(θ) for flat trained parameters."""
        _, unravel = ravel_pytree(self.trained)
        return jax.value_and_grad(lambda p: self.risk(eqx.combine(unravel(p), self.frozen)))(theta)

    def field(self, t, y, args):
        """d/dt of (θ, ∫‖θ'‖²)."""
        del t, args
        _, gradient = self.gradient(y[:-1])
        return jnp.append(-gradient, jnp.sum(gradient**2))

    def first_step(self, y):
        """The time in which θ moves by a hundredth of its norm; the solver corrects the guess."""
        gradient = self.gradient(y[:-1])[1]
        speed = jnp.sqrt(jnp.sum(gradient**2))
        size = jnp.maximum(jnp.sqrt(jnp.sum(y[:-1] ** 2)), 1e-3)
        return jnp.where(speed > 0, 1e-2 * size / jnp.where(speed > 0, speed, 1.0), jnp.inf)

    def risk_and_grad_norm(self, theta):
        value, gradient = self.gradient(theta)
        return value, jnp.sqrt(jnp.sum(gradient**2))


class _Piece(NamedTuple):
    """States (θ, dissipation) at saved times, the first `count` of them filled, and at the end."""

    ts: Float[Array, " times"]
    ys: Float[Array, "times size"]
    count: Any
    end: tuple[Array, Array]
    steps: Any
    rejected: Any
    result: RESULTS
    solves: int = 1

    def with_end(self) -> "_Piece":
        """With the state where an early end left off in the next slot."""
        t_end, y_end = self.end
        count = jnp.asarray(self.count)
        last = jnp.where(count > 0, self.ts[count - 1], -jnp.inf)
        early = (count < self.ts.shape[0]) & (t_end > last)
        slot = jnp.where(early, count, self.ts.shape[0])
        return self._replace(
            ts=self.ts.at[slot].set(t_end, mode="drop"),
            ys=self.ys.at[slot].set(y_end, mode="drop"),
            count=count + early.astype(count.dtype),
        )


@eqx.filter_jit
def _integrate(problem: _Problem, y0, t0, t1, dt0, ts, max_steps: int) -> _Piece:
    conditions = problem.stop.conditions(problem.risk_and_grad_norm)
    events = {
        name: lambda t, y, args, condition=condition, **_: condition(y[:-1])
        for name, condition in conditions.items()
    }
    solution = diffrax.diffeqsolve(
        diffrax.ODETerm(problem.field),
        problem.solver,
        t0,
        t1,
        jnp.minimum(jnp.where(dt0 > 0, dt0, problem.first_step(y0)), t1 - t0),
        y0,
        saveat=diffrax.SaveAt(subs=[diffrax.SubSaveAt(ts=ts), diffrax.SubSaveAt(t1=True)]),
        stepsize_controller=controller(problem.rtol, problem.atol, t1 - t0),
        event=diffrax.Event(events) if events else None,
        max_steps=max_steps,
        throw=False,
    )
    assert solution.ts is not None and solution.ys is not None
    (saved_ts, last_ts), (saved_ys, last_ys) = solution.ts, solution.ys
    y_end = last_ys[0]
    return _Piece(
        ts=saved_ts,
        ys=saved_ys,
        count=jnp.sum(jnp.isfinite(saved_ts)),
        end=(last_ts[0], y_end),
        steps=solution.stats["num_steps"],
        rejected=solution.stats["num_rejected_steps"],
        result=_translate(solution.result, solution.event_mask or {}, problem, y_end),
    )


def _translate(result, fired: dict[str, Array], problem: _Problem, y_end) -> RESULTS:
    """diffrax's result as ours."""
    finite = jnp.isfinite(problem.field(0.0, y_end, None)).all()
    stuck = RESULTS.where(finite, RESULTS.step_size_underflow, RESULTS.nonfinite)
    ours = RESULTS.where(result == diffrax.RESULTS.successful, RESULTS.successful, stuck)
    ours = RESULTS.where(
        result == diffrax.RESULTS.max_steps_reached, RESULTS.max_steps_reached, ours
    )
    return RESULTS.where(result == diffrax.RESULTS.event_occurred, stop_result(fired), ours)


def _solve_whole(problem: _Problem, theta0, t0, t1, ts, max_steps: int) -> _Piece:
    y0 = jnp.append(theta0, jnp.zeros((), theta0.dtype))
    return _integrate(problem, y0, t0, t1, jnp.zeros_like(t0), ts, max_steps)


def _solve_in_pieces(problem: _Problem, theta0, t0, t1, ts, max_steps: int) -> _Piece:
    """The same solve with a pause after some saved times or steps, to show where it is."""
    t, y = t0, jnp.append(theta0, jnp.zeros((), theta0.dtype))
    dt = jnp.zeros_like(t0)
    pieces, count, steps, result = [], 0, 0, RESULTS.successful
    with progress_bar(len(ts), "gradient flow") as bar:
        try:
            while t < t1:
                slots = ts[count : count + _PIECE]
                end = t1 if count + len(slots) == len(ts) else slots[-1]
                slots = jnp.append(slots, jnp.full(_PIECE - len(slots), end))
                piece = _integrate(problem, y, t, end, dt, slots, min(max_steps, _PIECE_STEPS))
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


def _join(pieces: list[_Piece], ts, end, result: RESULTS) -> _Piece:
    saved_ts = np.full(len(ts), np.inf, ts.dtype)
    saved_ys = np.full((len(ts), len(end[1])), np.nan, ts.dtype)
    count = 0
    for piece in pieces:
        there = slice(count, count + piece.count)
        saved_ts[there], saved_ys[there] = piece.ts[: piece.count], piece.ys[: piece.count]
        count += piece.count
    return _Piece(
        ts=jnp.asarray(saved_ts),
        ys=jnp.asarray(saved_ys),
        count=count,
        end=end,
        steps=sum(int(p.steps) for p in pieces),
        rejected=sum(int(p.rejected) for p in pieces),
        result=result,
        solves=len(pieces),
    )


@eqx.filter_jit
def _record(problem: _Problem, piece: _Piece, method: str) -> Trajectory:
    _, unravel = ravel_pytree(problem.trained)
    stats = {
        "num_steps": piece.steps,
        "num_rejected_steps": piece.rejected,
        "rtol": problem.rtol,
        "atol": problem.atol,
    }
    evaluations = num_field_evaluations(problem.solver, piece.steps, piece.solves)
    if evaluations is not None:
        stats["num_field_evaluations"] = evaluations
    return record(
        problem.risk,
        problem.frozen,
        problem.trained,
        piece.ts,
        jax.vmap(unravel)(piece.ys[:, :-1]),
        piece.ys[:, -1],
        stats={name: jnp.asarray(value) for name, value in stats.items()},
        result=piece.result,
        kind="flow",
        method=method,
    )


def _check_start(theta: Array) -> None:
    if not is_concrete(theta):
        return
    if not np.isfinite(np.asarray(theta)).all():
        raise ArgumentError(
            "net", Described("parameters that are NaN or infinite"), "finite parameters"
        )
    if theta.dtype != jnp.float64:
        warnings.warn(
            f"gradient flow in {theta.dtype}: expect about 4 correct digits, and time that stops "
            "advancing past some 1e7 steps. jax.config.update('jax_enable_x64', True) before the "
            "network is made gives float64.",
            stacklevel=3,
        )


def _times(t0, t1, ts, dtype) -> tuple[Array, Array, Array]:
    if is_concrete(t0, t1):
        t0 = finite("t0", t0)
        if finite("t1", t1) <= t0:
            raise ArgumentError("t1", t1, f"a finite time after t0 = {t0:g}")
    if ts is None:
        span = t1 - t0
        # Ten roundings of short spans keep the first gaps distinct; 1e-3 is a natural first time.
        first = jnp.minimum(1e-3, 1e-5 * span)
        ts = t0 + jnp.append(0.0, first * (span / first) ** jnp.linspace(0.0, 1.0, 199))
        ts = ts.at[-1].set(t1)
    elif is_concrete(ts):
        ts = _given_times(ts, t0, t1)
    return jnp.asarray(t0, dtype), jnp.asarray(t1, dtype), jnp.asarray(ts, dtype)


def _given_times(ts, t0, t1) -> np.ndarray:
    wanted = f"increasing finite times within [t0, t1] = [{t0}, {t1}]"
    try:
        times = np.asarray(ts, dtype=float)
    except (TypeError, ValueError):
        raise ArgumentError("ts", ts, wanted) from None
    if times.ndim != 1 or len(times) == 0:
        raise ArgumentError("ts", Described(f"an array of shape {times.shape}"), wanted)
    if not np.isfinite(times).all() or (np.diff(times) <= 0).any():
        raise ArgumentError("ts", Described(f"{times}"), wanted)
    if is_concrete(t0, t1) and (times[0] < t0 or times[-1] > t1):
        raise ArgumentError("ts", Described(f"times {times[0]:g} to {times[-1]:g}"), wanted)
    return times


def _tolerances(rtol, atol, dtype) -> tuple[Array, Array]:
    defaults = (1e-8, 1e-10) if dtype == jnp.float64 else (1e-4, 1e-6)
    chosen = []
    for name, value, default in zip(("rtol", "atol"), (rtol, atol), defaults):
        if value is None:
            value = default
        elif is_concrete(value):
            value = positive(name, value)
        chosen.append(jnp.asarray(value, dtype))
    return chosen[0], chosen[1]
