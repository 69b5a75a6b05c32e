"""A flow whose field is taken to be smooth: plain adaptive integration by diffrax."""

from dataclasses import dataclass, field, replace
from functools import partial
from typing import NamedTuple

import diffrax
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from gflow.arguments import is_concrete
from gflow.dense import Steps
from gflow.flow import collapse
from gflow.flow.controller import step_size_controller, tolerance
from gflow.flow.output import FlowOutput, SavedStates, StepCounts
from gflow.flow.problem import FlowProblem, Method, first_step
from gflow.flow.run import MAX_PIECE_STEPS, AbstractRun, Snapshot
from gflow.flow.span import Span
from gflow.flow.stopping import FlowPoint, first_result
from gflow.flow.time_changed import TimeChanged, length, runs_out
from gflow.programs import program
from gflow.results import RESULTS, result_name
from gflow.solvers.stabilised import radius_at
from gflow.solvers.work import is_counted, nothing_done, total, work_of_solve

# Above this number of parameters steps are slow, and pauses negligible.
_LARGE = 2000
# The same above this number of parameters times data.
_MUCH_WORK = 2_000_000
# The smallest step, in roundings of the time ahead.
_MIN_STEP = 1e-3


class SmoothState(NamedTuple):
    """Where a smooth flow is, the size of its next step, and what it left on the way; the `steps`
    are those since the last pause, None if they are not kept."""

    t: Float[Array, ""]
    y: Float[Array, " size"]
    risk_at_start: Float[Array, ""]
    step_size: Float[Array, ""]
    saved: SavedStates
    counts: StepCounts
    result: RESULTS
    steps: Steps | None


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class SmoothRun(AbstractRun[SmoothState]):
    """A solve by `diffrax.diffeqsolve`, as a whole or piece by piece."""

    problem: FlowProblem
    method: Method
    span: Span
    phi0: Float[Array, " size"]
    keeps_steps: bool = field(metadata={"static": True})

    @property
    def locates_kinks(self) -> bool:
        return False

    @property
    def is_brief(self) -> bool:
        return self.problem.is_brief

    def init(self) -> SmoothState:
        return _begin(self, *self.problem.gradient(self.phi0))

    def advance(self, state: SmoothState, max_steps: int) -> SmoothState:
        # Traced states are those of the start: pauses are for known ones.
        done = int(state.counts.steps) if is_concrete(state) else 0
        after = _integrate(self, state, max_steps - done)
        if is_concrete(after) and result_name(after.result) != "step_size_underflow":
            return after
        return after._replace(result=_why_stuck(self, after))

    def output(self, state: SmoothState) -> FlowOutput:
        return FlowOutput(
            t=state.t,
            y=state.y,
            speed=None,
            ts=self.span.filled(state.saved.num_saved),
            saved=state.saved,
            counts=state.counts,
            num_kinks=None,
            result=state.result,
            risk_at_start=state.risk_at_start,
        )

    def kinks(self, state: SmoothState) -> None:
        return None

    def snapshot(self, state: SmoothState) -> Snapshot:
        counts = state.counts
        well = result_name(state.result) in ("successful", "max_steps_reached")
        return Snapshot(
            t=float(state.t),
            num_steps=int(counts.steps),
            num_saved=int(state.saved.num_saved),
            num_kinks=0,
            num_evaluations=0 if counts.work is None else int(counts.work.evaluations),
            step_size=float(state.step_size),
            unfinished=well and float(state.t) < float(self.span.t1),
        )

    def last_steps(self, state: SmoothState) -> Steps | None:
        return state.steps

    def piece_length(self, num_steps: int, seconds_per_step: float) -> int:
        """Always the same, as the program is compiled for it, and as each pause starts the
        controller anew: results must not depend on the time that steps take."""
        size = len(self.phi0)
        if size * getattr(self.problem.risk, "num_data", 1) > _MUCH_WORK:
            return MAX_PIECE_STEPS // 32
        return MAX_PIECE_STEPS // (2 if size < _LARGE else 8)

    def room(self, state: SmoothState) -> int:
        return 0

    def with_room(self, state: SmoothState, room: int) -> SmoothState:
        return state

    def spectral_radius(self, state: SmoothState) -> float:
        return float(_spectral_radius(self.problem, state.y))

    def with_solver(
        self, solver: diffrax.AbstractSolver, state: SmoothState
    ) -> tuple["SmoothRun", SmoothState]:
        return replace(self, method=self.method.with_solver(solver)), state


@partial(program, is_brief=lambda run, *_: run.is_brief)
def _begin(run: SmoothRun, risk: Float[Array, ""], gradient: Float[Array, " size"]) -> SmoothState:
    phi0, method, span = run.phi0, run.method, run.span
    y0 = jnp.append(run.problem.start(phi0), jnp.zeros((), phi0.dtype))
    # `jnp.asarray(0)` is weakly typed, sums are not: the second piece would be compiled anew.
    zero = jnp.zeros((), int)
    size = method.step_size
    if size is None:
        rate = 1.0 if (model := run.problem.model) is None else model.rate(risk, length(gradient))
        size = jnp.minimum(first_step(phi0, rate * length(gradient)), span.t1 - span.t0)
    terms = diffrax.ODETerm(run.problem.field)
    inner = method.solver.init(terms, span.t0, span.t1, y0, None)
    return SmoothState(
        t=span.t0,
        y=y0,
        risk_at_start=risk,
        step_size=size,
        saved=SavedStates(zero, jnp.zeros((len(span.ts), len(y0)), phi0.dtype), None),
        counts=StepCounts(
            zero, zero, zero, nothing_done() if is_counted(method.solver, inner) else None
        ),
        result=RESULTS.successful,
        steps=None,
    )


@partial(program, is_brief=lambda run, *_: run.is_brief)
def _integrate(run: SmoothRun, s: SmoothState, max_steps: int) -> SmoothState:
    method, (t1, ts) = run.method, (run.span.t1, run.span.ts)
    holds = [c.holds for c in method.stop.criteria]
    events = [lambda t, y, args, of=of, **_: of(_point(run, t, y)) for of in holds]
    if (model := run.problem.model) is not None:
        events += [lambda t, y, args, **_: _ends(run, model, y)]
    solver, collapses = method.solver, collapse.is_possible(run.problem, method)
    min_step = _smallest_step(t1 - s.t)
    solution = diffrax.diffeqsolve(
        diffrax.ODETerm(run.problem.field),
        collapse.WithCollapse(solver, run.problem, method) if collapses else solver,
        s.t,
        t1,
        s.step_size,
        s.y,
        # Times before the start were saved by the pieces before; slots after the end count as none.
        saveat=diffrax.SaveAt(
            subs=[diffrax.SubSaveAt(ts=jnp.clip(ts, s.t, t1)), diffrax.SubSaveAt(t1=True)],
            solver_state=True,
            dense=run.keeps_steps,
        ),
        stepsize_controller=step_size_controller(
            method, run.problem, damped=False, min_step=min_step
        ),
        event=diffrax.Event(events) if events else None,
        max_steps=max_steps,
        throw=False,
    )
    assert solution.ts is not None and solution.ys is not None
    (saved_ts, last_ts), (saved_ys, last_ys) = solution.ts, solution.ys
    if collapses:
        solution = collapse.of_inner(solution)
    t, y = last_ts[0], last_ys[0]
    old = jnp.arange(len(ts)) < s.saved.num_saved
    count = jnp.maximum(s.saved.num_saved, jnp.sum(jnp.isfinite(saved_ts) & jnp.isfinite(ts)))
    steps, rejected = solution.stats["num_steps"], solution.stats["num_rejected_steps"]
    kept = jnp.maximum(steps - rejected, 1)
    # Each step that is rejected is followed by one of at least a fifth.
    size = jnp.where(t > s.t, (t - s.t) / kept, s.step_size * 0.2**rejected)
    fixed = method.step_size is not None
    return SmoothState(
        t=t,
        y=y,
        risk_at_start=s.risk_at_start,
        step_size=s.step_size if fixed else jnp.minimum(size, t1 - t),
        saved=SavedStates(count, jnp.where(old[:, None], s.saved.ys, saved_ys), None),
        counts=StepCounts(
            s.counts.steps + steps,
            s.counts.rejected + rejected,
            s.counts.shortened,
            total(s.counts.work, work_of_solve(solver, solution)),
        ),
        result=_result(run, solution),
        steps=_steps(solution) if run.keeps_steps else None,
    )


def _steps(solution: diffrax.Solution) -> Steps:
    dense = solution.interpolation
    assert isinstance(dense, diffrax.DenseInterpolation)
    starts, ends = dense.ts[:-1], dense.ts[1:]
    # From 0, as the fraction of a small step at a late time would be lost to rounding.
    of_step = lambda size, info: dense.interpolation_cls(t0=jnp.zeros_like(size), t1=size, **info)
    return Steps(
        starts, ends, jax.vmap(of_step)(ends - starts, dense.infos), jnp.asarray(dense.ts_size - 1)
    )


def _point(run: SmoothRun, t, y) -> FlowPoint:
    problem = run.problem
    value, gradient = problem.gradient(problem.phi(y))
    return problem.point(problem.flow_time(t - run.span.t0, y), y, value, length(gradient))


def _ends(run: SmoothRun, model: TimeChanged, y) -> Bool[Array, ""]:
    problem, phi = run.problem, run.problem.phi(y)
    value, gradient = problem.gradient(phi)
    close = problem.phi(jnp.broadcast_to(tolerance(run.method, problem, jnp.abs(y)), y.shape))
    return model.ends(value, -gradient, close, lambda by: -problem.gradient(phi + by)[1])


def _result(run: SmoothRun, solution: diffrax.Solution) -> RESULTS:
    """diffrax's result as ours."""
    result, ours = solution.result, RESULTS.step_size_underflow
    for name in ("successful", "max_steps_reached"):
        ours = RESULTS.where(result == getattr(diffrax.RESULTS, name), getattr(RESULTS, name), ours)
    criteria = [*(c.result for c in run.method.stop.criteria), RESULTS.changed_time_ended]
    fired = first_result(zip(criteria, solution.event_mask or []))
    return RESULTS.where(result == diffrax.RESULTS.event_occurred, fired, ours)


def _why_stuck(run: SmoothRun, state: SmoothState) -> RESULTS:
    """The result, if the steps became too small: that of a field that is not finite, or of a
    changed time that ended.

    Outside the solver's program, in which the field would stand once more."""
    problem, result = run.problem, state.result
    risk, gradient = problem.gradient(problem.phi(state.y))
    stuck, square = result == RESULTS.step_size_underflow, jnp.sum(gradient**2)
    if problem.model is not None:
        elapsed = problem.flow_time(state.t - run.span.t0, state.y)
        step = _smallest_step(run.span.t1 - state.t)
        ends = stuck & runs_out(problem.model.rate(risk, jnp.sqrt(square)), step, elapsed)
        result = RESULTS.where(ends, RESULTS.changed_time_ended, result)
    return RESULTS.where(stuck & ~jnp.isfinite(square), RESULTS.nonfinite, result)


def _smallest_step(ahead: Float[Array, ""]) -> Float[Array, ""]:
    return _MIN_STEP * jnp.finfo(ahead.dtype).eps * ahead


@partial(program, is_brief=lambda problem, theta: problem.is_brief)
def _spectral_radius(problem: FlowProblem, y: Float[Array, " size"]) -> Array:
    """Of the Jacobian of the field."""
    velocity = lambda phi: problem.phi(problem.field(0.0, y.at[: problem.size].set(phi), None))
    return radius_at(velocity, problem.phi(y))
