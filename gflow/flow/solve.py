"""`solve_flow`: the gradient flow of a network as a trajectory."""

import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Literal

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from gflow.arguments import (
    ArgumentError,
    Described,
    PyTree,
    RealScalar,
    is_concrete,
    one_of,
    positive,
    positive_int,
)
from gflow.dense import DenseOutput, joined
from gflow.flow import collapse
from gflow.flow.advice import advice_for
from gflow.flow.checkpoint import Checkpoint, fingerprint
from gflow.flow.driver import Pauses, Solved, solve
from gflow.flow.located import LocatedRun
from gflow.flow.output import FlowOutput
from gflow.flow.problem import FlowProblem, Method
from gflow.flow.run import AbstractRun
from gflow.flow.smooth import SmoothRun
from gflow.flow.solver_setup import as_solver, with_tolerances
from gflow.flow.span import Span, span_of
from gflow.flow.stopping import Stop, as_stop
from gflow.flow.time_changed import TimeChanged, as_model, check_speed
from gflow.flow.time_changed_kinks import TimeChangedPatternRisk
from gflow.networks import ShallowNet
from gflow.nonsmooth.pattern_risk import AbstractPatternRisk
from gflow.nonsmooth.recognition import padded, pattern_risk_of, without_padding
from gflow.parameters import Net, TimeScales, flat, split_trainable
from gflow.programs import always, program
from gflow.recording import States, as_observations, finish, record, with_retry
from gflow.results import RESULTS
from gflow.risks.base import check_risk
from gflow.trajectory import Trajectory, first_saved

_SMALLEST_LOG = 1024


def solve_flow(
    risk: Callable[[Any], Array],
    net: Net,
    *,
    t1: RealScalar,
    t0: RealScalar = 0.0,
    ts: Any = None,
    rtol: RealScalar | None = None,
    atol: RealScalar | None = None,
    solver: diffrax.AbstractSolver[Any] | None = None,
    kinks: Literal["locate", "all", "ignore"] = "locate",
    stop: Stop | None = None,
    max_steps: int = 1_000_000,
    max_kinks: int = 50_000,
    step_size: RealScalar | None = None,
    trainable: Sequence[str] | PyTree | None = None,
    time_scales: PyTree | None = None,
    model: TimeChanged | None = None,
    observe: Mapping[str, Callable[[Any], Any]] | None = None,
    progress: bool = False,
    checkpoint: str | os.PathLike[str] | None = None,
    dense: bool = False,
    throw: bool = True,
) -> Trajectory[Net]:
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
    - `rtol`, `atol`: relative and absolute tolerance of the error of a step. By default `rtol` is
      1e-8 for float64 parameters and 1e-4 for float32; `atol` is `rtol`/100, times the root mean
      square of the trained parameters at the start if that is below 1.
    - `solver`: any adaptive diffrax solver, such as `gflow.BDF5()`; or None, to start with
      `diffrax.Tsit5()` and change to `gflow.BDF5()` or `gflow.ROCK4()` where the flow is stiff
      (`Trajectory.switches` says when).
    - `kinks`: "locate" finds each kink of a network with ReLU, leaky ReLU, maxima and the like on
      the rows of an `EmpiricalRisk`, with a penalty or without, in the network's own computation,
      and crosses it, or slides along it if the field points at it from both sides.
      G is then the minimal-norm element of the Clarke subdifferential; units with w = b = 0 stay
      so. Kinks that the tolerance cannot feel are passed within a step, and what they do to the
      flow is made good to first order (docs/theory.md, section 5). "all" ends a step at each, and
      so do `dense` and `step_size`. "ignore" integrates as if the field were smooth, with
      ReLU'(0) = 0, as is done for all other risks.
    - `stop`: a `Stop` that ends the flow early.
    - `max_steps`: the budget of steps: accepted, rejected, and shortened to end at a kink.
    - `max_kinks`: how many kinks the log holds, the first ones; those beyond are counted in
      `stats["num_kinks"]`. With `step_size`, some more steps than these end the flow.
    - `step_size`: fixed steps of this size instead of adaptive ones, for studies of convergence.
    - `trainable`: which parameters move: None (all), names of fields such as `("v", "c")`, or an
      equinox filter specification.
    - `time_scales`: positive numbers τ of the flow dθ/dt = −τ ⊙ G(θ): by field, such as
      `{"v": 0.01}` (1 for the others), or a pytree of numbers that is a prefix of `net`; for a
      field, too, a prefix of it. Slides are projected in the metric 1/τ.
    - `model`: `TimeChanged(speed)` follows the same orbit in another time s, dθ/ds = −σ G(θ), with
      a speed σ of risk and gradient norm. All times, t0, t1 and `ts` among them, are s then;
      `Trajectory.observed["flow_time"]` is the flow time t = t0 + ∫σ ds. Each kink ends a step.
    - `observe`: functions of a network by name, each to one array, such as `{"test_risk":
      test_risk}`; they are evaluated at the saved times (`Trajectory.observed`).
    - `progress`: shows a progress bar. Ctrl-C then ends the flow with the result "interrupted".
    - `checkpoint`: a directory where the state is kept from time to time. An interrupted flow
      continues from there when it is solved again with the same arguments, and comes to the same
      result; `max_steps`, `progress` and `throw` may differ.
    - `dense`: keeps the interpolants of all steps, so that `trajectory(t)` is as accurate as the
      flow at any time t; some ten times the size of θ for each step. Not with `checkpoint`.
    - `throw`: raise a `TrajectoryError`, which holds the trajectory, if the flow does not reach its
      end; if False, return the trajectory, with a `result` that says what happened.

    **Returns:** a `Trajectory`. Can be used under `jax.jit` and `jax.vmap`, without `progress`,
    `checkpoint`, `dense` and `Stop(seconds=...)`. There the slots past an early end have time inf
    and repeat the last state, and the solver stays that of the start. Derivatives (`jax.grad`) are
    for flows without located kinks only.

    **Raises:** `ArgumentError` (a `ValueError`) for arguments that cannot be used;
    `TrajectoryError` as above.

    Which solver, tolerance and treatment of kinks to choose: docs/solvers.md. What a slide is:
    docs/theory.md, section 5.
    """
    one_of("kinks", kinks, ("locate", "all", "ignore"))
    max_steps = positive_int("max_steps", max_steps)
    max_kinks = positive_int("max_kinks", max_kinks)
    trained, frozen = split_trainable(net, trainable)
    scales = TimeScales.of(time_scales, net, trained)
    tolerances = _given_tolerances(trained, rtol, atol)
    check_risk(risk, net)
    observations = as_observations(observe, net)
    problem = FlowProblem(risk, trained, frozen, scales, as_model(model, observations))
    pattern_risk = pattern_risk_of(risk, trained, frozen, scales)
    keeps_shapes = bool(observations) or dense or kinks == "ignore" or step_size is not None
    if (wide := None if keeps_shapes else padded(risk, pattern_risk)) is not None:
        problem, pattern_risk = FlowProblem(wide.risk, *wide.parts, model=model), wide.pattern_risk
    theta0, phi0, rtol, atol = _prepared(problem.trained, scales, *tolerances)
    _check_start(theta0)
    span = span_of(t0, t1, ts, theta0.dtype)
    step_size, stopping = _step_size(step_size, theta0.dtype), as_stop(stop, theta0.dtype)
    method = Method(with_tolerances(as_solver(solver), rtol, atol), rtol, atol, step_size, stopping)
    known = is_concrete(problem, method, span)
    # What is observed may take long, and what is traced keeps its shape.
    span = span.padded() if known and ts is not None and not observations else span
    parts = {"problem": problem, "method": method, "span": span, "phi0": phi0, "keeps_steps": dense}
    run = _run(parts, pattern_risk, kinks, max_kinks)
    # What is traced is solved in one program, where nothing can be chosen on the way.
    choose = solver is None and step_size is None and known
    kept = _checkpoint(checkpoint, run, kinks, choose, max_kinks)
    pauses = Pauses(choose, progress, kept, dense, None if stop is None else stop.seconds)
    # diffrax and the loops here mix number types, which a user's strict promotion would refuse.
    with jax.numpy_dtype_promotion("standard"):
        solved = solve(run, _enough_steps(max_steps, span, step_size, max_kinks), pauses)
        like = None if wide is None else eqx.combine(trained, frozen)
        trajectory = _trajectory(solved, method, pattern_risk, observations, like, max_kinks)
    if is_concrete(trajectory.ts) and (advice := advice_for(trajectory, solved.run, risk)):
        warnings.warn(advice, stacklevel=2)
    return finish(trajectory, throw=throw)


def _trajectory(
    solved: Solved,
    method: Method,
    risk: AbstractPatternRisk | None,
    observe: dict[str, Callable[[Any], Any]],
    like: ShallowNet | None,
    max_kinks: int,
) -> Trajectory:
    """The trajectory of a run, in the shapes of a network if it was padded."""
    names = [type(method.solver).__name__, *(switch.solver for switch in solved.switches)]
    model = solved.run.problem.model
    words = "" if model is None else "time-changed "
    words += "gradient flow, " + ", then ".join(names)
    steps, solved = joined(list(solved.steps)), solved._replace(steps=())
    ignored = risk is not None and not solved.run.locates_kinks
    trajectory = with_retry(lambda: _record(solved, words, ignored, observe))
    if model is not None:
        check_speed(model, trajectory)
    if (log := solved.run.kinks(solved.state)) is not None:
        trajectory = replace(trajectory, kinks=log)
    if is_concrete(trajectory.ts):
        count = int(np.isfinite(np.asarray(trajectory.ts)).sum())
        trajectory = trajectory if like is None else _in_shapes_of(like, trajectory)
        trajectory = first_saved(trajectory, count, max_kinks)
    if not steps:
        return trajectory
    problem = solved.run.problem
    return replace(trajectory, dense=DenseOutput(steps, problem.trained, problem.time_scales))


def _in_shapes_of(net: ShallowNet, trajectory: Trajectory) -> Trajectory:
    """A trajectory in the shapes of the network."""
    balance = trajectory.diagnostics.balance
    balance = None if balance is None else np.asarray(balance)[:, : net.width]
    params, balance = jax.device_put((without_padding(trajectory.params, net), balance))
    diagnostics = replace(trajectory.diagnostics, balance=balance)
    return replace(trajectory, params=params, diagnostics=diagnostics)


def _checkpoint(
    directory: Any, run: AbstractRun, kinks: str, choose: bool, max_kinks: int
) -> Checkpoint | None:
    if directory is None:
        return None
    if run.keeps_steps:
        raise ArgumentError("dense", True, "False with a checkpoint, which does not hold the steps")
    parts = run.problem, run.method, run.phi0, run.span, kinks, choose
    if not is_concrete(parts):
        raise ArgumentError("checkpoint", Described("traced arrays"), "known ones: no jax.jit")
    log_size = _log_size(max_kinks) if run.locates_kinks else None
    return Checkpoint(directory, fingerprint(*parts, log_size))


@partial(program, is_brief=lambda solved, _, __, observe: not observe and solved.run.is_brief)
def _record(
    solved: Solved, method: str, kinks_ignored: bool, observe: dict[str, Callable]
) -> Trajectory:
    run = solved.run
    problem, output = run.problem, run.output(solved.state)
    output = output.with_end(run.span.num_times).without_gaps()
    result = output.result if solved.ended is None else solved.ended
    lost_at_start = (result == RESULTS.nonfinite) & (output.t == run.span.t0)
    result = RESULTS.where(lost_at_start, RESULTS.nonfinite_start, result)
    dissipated = output.saved.ys[:, -1]
    trained = jax.vmap(lambda y: problem.params(problem.phi(y)))(output.saved.ys)
    since = jax.vmap(problem.flow_time)(output.ts - run.span.t0, output.saved.ys)
    flow_times = run.span.t0 + since
    stats = _stats(run, output)
    trajectory = record(
        problem.risk,
        problem.trained,
        problem.frozen,
        States(
            output.ts,
            trained,
            dissipated,
            output.saved.speeds,
            risk_at_start=output.risk_at_start,
            t0=run.span.t0,
            flow_times=flow_times,
        ),
        observe=observe,
        time_scales=problem.time_scales,
        stats={name: jnp.asarray(value) for name, value in stats.items()},
        result=result,
        kind="flow",
        method=method,
        kinks_ignored=kinks_ignored,
        switches=solved.switches,
    )
    if problem.model is None:
        return trajectory
    return replace(trajectory, observed={"flow_time": flow_times} | trajectory.observed)


def _stats(run: AbstractRun, output: FlowOutput) -> dict[str, Any]:
    counts = output.counts
    stats: dict[str, Any] = {
        "num_steps": counts.steps,
        "num_rejected_steps": counts.rejected,
        "rtol": run.method.rtol,
        "atol": run.method.atol,
    }
    if counts.work is not None:
        stats["num_field_evaluations"] = counts.work.evaluations
        stats["num_hessian_products"] = counts.work.products
        stats["num_factorisations"] = counts.work.factorisations
    if output.num_kinks is not None:
        stats["num_shortened_steps"] = counts.shortened
        stats["num_kinks"] = output.num_kinks
        stats["num_segments"] = 1 + output.num_kinks
    stats |= run.problem.time_scales.stats(run.problem.trained)
    if collapse.is_possible(run.problem, run.method):
        stats["num_collapsed_units"] = collapse.num_collapsed(
            run.problem, run.problem.phi(output.y)
        )
    return stats


def _run(
    parts: dict[str, Any], risk: AbstractPatternRisk | None, kinks: str, max_kinks: int
) -> AbstractRun:
    """A run as if the field were smooth, or one that ends a step at each kink, or at those that the
    tolerance can feel."""
    if risk is None or kinks == "ignore":
        return SmoothRun(**parts)
    # Interpolants know nothing of kinks within a step, and fixed steps of no tolerance. Rows that
    # share kinks are judged together, at the kink, where the speed of a model may jump.
    fixed, model = parts["method"].step_size is not None, parts["problem"].model
    each = kinks == "all" or parts["keeps_steps"] or fixed or risk.shares_kinks
    each = each or model is not None
    risk = risk if model is None else TimeChangedPatternRisk.of(risk, model)
    budget = np.asarray(0.0 if each else 1.0, parts["phi0"].dtype)
    return LocatedRun(**parts, risk=risk, kink_budget=budget, log_size=_log_size(max_kinks))


def _step_size(step_size: Any, dtype: Any) -> Array | None:
    if step_size is None:
        return None
    return jnp.asarray(_known("step_size", step_size, dtype), dtype)


def _enough_steps(max_steps: int, span: Span, step_size: Any, max_kinks: int) -> int:
    """No more steps of a fixed size than some times the span, and the kinks that the log can hold:
    beyond the bound of stability a flow is thrown from kink to kink without end."""
    if step_size is None or not is_concrete(span, step_size):
        return max_steps
    return min(max_steps, 10 * int((span.t1 - span.t0) / step_size) + max_kinks)


def _log_size(max_kinks: int) -> int:
    """Few sizes, so that another number compiles nothing."""
    size = _SMALLEST_LOG
    while size < max_kinks:
        size *= 4
    return size


def _check_start(theta: Array) -> None:
    if not is_concrete(theta):
        return
    if theta.dtype not in (jnp.float32, jnp.float64):
        raise ArgumentError("net", Described(f"parameters in {theta.dtype}"), "float32 or float64")
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


def _known(name: str, value: Any, dtype: Any) -> Any:
    """A positive number as an array, None, or what JAX traces."""
    if value is None or not is_concrete(value):
        return value
    return np.asarray(positive(name, value), dtype)


def _given_tolerances(trained: PyTree, rtol: Any, atol: Any) -> tuple[Any, Any, Any]:
    """Tolerances as arrays, with the number of trained parameters."""
    leaves = jax.tree.leaves(trained)
    size, dtype = np.asarray(sum(a.size for a in leaves)), leaves[0].dtype
    if rtol is None:
        rtol = 1e-8 if dtype == jnp.float64 else 1e-4
    return size.astype(dtype), _known("rtol", rtol, dtype), _known("atol", atol, dtype)


@partial(program, is_brief=always)
def _prepared(
    trained: PyTree, scales: TimeScales, size: Any, rtol: Any, atol: Any
) -> tuple[Array, Array, Array, Array]:
    """θ at the start, φ there, and the tolerances; `size` entries of θ count."""
    theta0 = flat(trained)
    dtype = theta0.dtype
    if atol is None:
        # From a small start the flow grows exponentially, and its errors with it. The rounding of
        # the field, whose residuals are not small, bounds what can be asked for.
        typical = jnp.sqrt(jnp.sum(theta0**2) / size)
        atol = 1e-2 * rtol * jnp.where(typical > 0, jnp.minimum(typical, 1.0), 1.0)
        atol = jnp.maximum(atol, jnp.finfo(dtype).eps)
    return theta0, scales.phi(theta0), jnp.asarray(rtol, dtype), jnp.asarray(atol, dtype)
