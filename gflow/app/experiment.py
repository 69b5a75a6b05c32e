"""The main job: gradient flow against gradient descent on a table."""

import dataclasses
import datetime
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from gflow import piecewise
from gflow.activations import as_activation
from gflow.app.analysis import divergence_time
from gflow.app.config import SOLVERS_BY_NAME, Config
from gflow.app.data import Table, load_table
from gflow.app.end_points import end_points
from gflow.app.provenance import provenance
from gflow.app.report import write_report
from gflow.app.run_directory import (
    FURTHER,
    Descent,
    Run,
    descent_label,
    new_directory,
    save_run,
)
from gflow.arguments import ArgumentError, Described
from gflow.descent import descend
from gflow.flow import solve_flow
from gflow.hessian.sharpness import sharpness
from gflow.networks import ShallowNet
from gflow.risks import EmpiricalRisk, PopulationRisk, Risk
from gflow.trajectory import Trajectory

_MAX_DESCENT_STEPS = 10**9
# The flow time of a run where none is given, unless its descents take more than so many products:
# about twenty seconds. A step of descent takes as long as at least _STEP_WORK products.
_DEFAULT_T1, _DESCENT_WORK, _STEP_WORK = 1000.0, 4e11, 7e4


def run(config: Config, *, say: Callable[[str], None] = lambda text: None) -> tuple[Run, Path]:
    """Runs the main job and writes its run directory.

    Loads the data, follows the gradient flow to `t1`, runs gradient descent over the same time with
    the step sizes of the configuration, and writes configuration, trajectories and report. After
    Ctrl-C or an error the directory holds the results so far.

    `say` is called with each message for the user.

    **Returns:** the run, and its directory.

    **Raises:** `ArgumentError` for a configuration or data that cannot be used.
    """
    config = config.validated()
    with jax.enable_x64(config.precision == "float64"):
        directory = Path(config.out) if config.out else _fresh_directory()
        table = load_table(
            config.data,
            config.target,
            standardise=config.standardise,
            num_points=config.num_points,
        )
        result = Run(config, table, provenance())
        with new_directory(directory, config.overwrite) as partial:
            try:
                compute(result, say)
            except KeyboardInterrupt:
                result.status = "interrupted"
            except BaseException:
                result.status = "failed"
                raise
            finally:
                if result.flow is not None or result.status == "interrupted":
                    _save(result, partial, say)
    return result, directory


def _save(run: Run, directory: Path, say: Callable[[str], None]) -> None:
    save_run(run, directory)
    try:
        write_report(directory)
    except Exception as error:
        # A failed figure must not cost the results.
        say(f"The report could not be written ({error}). `gflow report` tries again.")


def _fresh_directory() -> Path:
    stamp = datetime.datetime.now().strftime("%Y-%m-%d_%H%M%S")
    directory, again = Path("runs") / stamp, 1
    while directory.exists():
        again += 1
        directory = Path("runs") / f"{stamp}_{again}"
    return directory


def compute(run: Run, say: Callable[[str], None] = lambda text: None) -> None:
    """Fills in the trajectories of a run and their end points, one by one, so that an interrupt
    leaves the finished ones."""
    config = run.config
    risk = _risk(config, run.table)
    net = ShallowNet(
        run.table.x.shape[1],
        config.width,
        key=jax.random.key(config.seed),
        activation=config.activation,
        init=config.init,
        scale=config.scale,
        use_bias=config.bias,
        dtype=config.precision,
    )
    start = float(risk(net))
    if not np.isfinite(start):
        got = Described(f"{config.scale:g}, for which the risk at the start is {start}")
        raise ArgumentError("scale", got, "a smaller one")
    run.sharpness = sharpness(risk, net)
    t1 = final_time(run, say) if config.t1 is None else config.t1
    config = run.config = dataclasses.replace(config, t1=t1)
    plan = _plan(run, t1, say)
    with _timed(run, "flow"):
        run.flow = _flow(config, risk, net, 0.0, t1, _saved_times(config, t1, plan))
    _report_trouble(run, "The flow", run.flow, say)
    for planned in plan:
        if (descent := _descent(run, risk, net, planned)) is not None:
            run.descents.append(descent)
            _report_trouble(run, f"Gradient descent with {descent.label}", descent.trajectory, say)
    if config.follow is not None and run.flow.succeeded:
        with _timed(run, FURTHER):
            t0 = float(run.flow.ts[-1])
            ts = np.geomspace(t0, config.follow, config.num_times)
            run.further = _flow(config, risk, run.flow.final, t0, config.follow, ts)
        _report_trouble(run, "The flow, followed further,", run.further, say)
    with _timed(run, "end points"):
        run.ends = end_points(risk, _not_diverged(run), say)


def final_time(run: Run, say: Callable[[str], None]) -> float:
    """The final time where none is given: 1, 2 or 5 times a power of ten."""
    config, (rows, features) = run.config, run.table.x.shape
    rows = rows if config.risk == "empirical" else 1000
    work = max(3 * rows * config.width * (features + 2), _STEP_WORK)
    steps = sum(1 / fraction for fraction in config.step_fractions) * max(run.sharpness, 0.0) / 2
    longest = _DEFAULT_T1 if config.follow is None else min(_DEFAULT_T1, config.follow / 10)
    t1 = min(longest, _DESCENT_WORK / max(work * steps, 1.0))
    power = 10.0 ** np.floor(np.log10(t1) + 1e-9)
    t1 = float(power * max(d for d in (1, 2, 5) if d * power <= t1 * (1 + 1e-9)))
    if t1 < longest:
        text = (
            f"Flow and descents end at t = {t1:g}, so that the run is short; `--t1` sets the end."
        )
        run.notes.append(text)
        say(text)
    return t1


def _flow(
    config: Config, risk: Risk, net: ShallowNet, t0: float, t1: float, ts: np.ndarray
) -> Trajectory:
    solver = SOLVERS_BY_NAME[config.solver]
    return solve_flow(
        risk,
        net,
        t0=t0,
        t1=t1,
        ts=ts,
        rtol=_rtol(config),
        atol=config.atol,
        solver=None if solver is None else solver(),
        kinks=config.kinks,
        max_steps=config.max_steps,
        max_kinks=config.max_kinks,
        progress=True,
        throw=False,
    )


def _descent(run: Run, risk: Risk, net: ShallowNet, planned: "_PlannedDescent") -> Descent | None:
    """The descent up to the end of the flow; None if the flow ended before its first step."""
    assert run.flow is not None
    step_size, steps = planned.step_size, planned.recorded_steps
    steps = steps[steps * step_size <= float(run.flow.ts[-1]) * (1 + 1e-12)]
    if len(steps) < 2:
        return None
    with _timed(run, descent_label(step_size)):
        trajectory = descend(
            risk,
            net,
            step_size=step_size,
            num_steps=int(steps[-1]),
            record=steps,
            progress=True,
            throw=False,
        )
    return Descent(step_size * run.sharpness / 2, step_size, trajectory)


def _not_diverged(run: Run) -> dict[str, Trajectory]:
    return {label: t for label, t in run.trajectories().items() if divergence_time(t) is None}


def _risk(config: Config, table: Table) -> Risk:
    if config.risk == "population":
        target = piecewise.named(config.data)
        return PopulationRisk(target, piecewise.named_density(config.density, *target.interval))
    x, y = (np.asarray(a, config.precision) for a in (table.x, table.y))
    return EmpiricalRisk(x, y)


@contextmanager
def _timed(run: Run, label: str) -> Iterator[None]:
    start = time.perf_counter()
    try:
        yield
    finally:
        run.seconds[label] = time.perf_counter() - start


def _report_trouble(run: Run, who: str, trajectory: Trajectory, say: Callable[[str], None]) -> None:
    """Notes an early end or a divergence. Raises `KeyboardInterrupt` after Ctrl-C."""
    if trajectory.result_name == "interrupted":
        raise KeyboardInterrupt
    if not trajectory.succeeded:
        text = f"{who} stopped at t = {float(trajectory.ts[-1]):.4g}: {trajectory.message}."
    elif (since := divergence_time(trajectory)) is not None:
        text = f"{who} diverges: from t = {since:.4g} on the risk is above ten times its start."
    else:
        return
    run.notes.append(text)
    say(text)


def _rtol(config: Config) -> float | None:
    ignored = config.kinks == "ignore" and as_activation(config.activation).kinked
    if config.rtol is None and ignored and config.precision == "float64":
        # If kinks are ignored, a tighter tolerance costs many more steps and gains few digits.
        return 1e-6
    return config.rtol


class _PlannedDescent(NamedTuple):
    step_size: float
    recorded_steps: np.ndarray


def _plan(run: Run, t1: float, say: Callable[[str], None]) -> list[_PlannedDescent]:
    """The step size of each descent, and the steps to record.

    Step sizes are a little smaller than requested, so that t1 is a whole number of steps. If the
    fractions allow it, the times of larger steps are also times of the smaller steps.
    """
    config, fractions = run.config, run.config.step_fractions
    if not fractions:
        return []
    if not run.sharpness > 0:
        text = (
            f"No descents: the largest Hessian eigenvalue at the start is {run.sharpness:g}, so "
            "that no step sizes can be chosen as fractions of 2/sharpness."
        )
        run.notes.append(text)
        say(f"Warning: {text}")
        return []
    limit = 2 / run.sharpness
    if t1 / (fractions[-1] * limit) > _MAX_DESCENT_STEPS:
        got = Described(f"{t1:g}, at a smallest step size of {fractions[-1] * limit:.3g}")
        raise ArgumentError("t1", got, f"at most {_MAX_DESCENT_STEPS:,} steps")
    coarsest = max(1, int(np.ceil(t1 / (fractions[0] * limit) - 1e-9)))
    log_times = np.geomspace(1, coarsest, config.num_times)
    plan = []
    for fraction in fractions:
        ratio = fractions[0] / fraction
        nested = abs(ratio - round(ratio)) < 1e-9 * ratio
        num_steps = round(ratio) * coarsest if nested else int(np.ceil(coarsest * ratio - 1e-9))
        early = np.geomspace(1, max(1, num_steps // coarsest), 12)
        late = np.round(log_times) * (num_steps / coarsest)
        recorded = np.unique(np.round(np.concatenate([[0], early, late])).astype(int))
        step_size = t1 / num_steps
        plan.append(_PlannedDescent(step_size, recorded))
        if step_size >= limit:
            text = (
                f"The step size {step_size:.4g} is above 2/sharpness = {limit:.4g}: gradient "
                "descent is unstable at the start."
            )
            run.notes.append(text)
            say(f"Warning: {text}")
    return plan


def _saved_times(config: Config, t1: float, plan: list[_PlannedDescent]) -> np.ndarray:
    """Logarithmically spaced times, and all times that the descents record."""
    first = min(1e-3, 1e-5 * t1)
    times = [np.append(0.0, np.geomspace(first, t1, config.num_times - 1))]
    times += [np.minimum(p.recorded_steps * p.step_size, t1) for p in plan]
    times = np.unique(np.concatenate(times).astype(config.precision))
    times[-1] = t1
    # Times that differ only by rounding count as one.
    apart = np.diff(times) > 4 * np.finfo(times.dtype).eps * times[1:]
    return times[np.append(apart, True)]
