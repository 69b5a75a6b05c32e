"""The main job: gradient flow against gradient descent on a table."""

import datetime
import time
from collections.abc import Callable
from pathlib import Path

import diffrax
import jax
import numpy as np

from gflow import piecewise, solvers
from gflow.activations import as_activation
from gflow.app.config import SOLVERS, Config
from gflow.app.data import Table, load_table
from gflow.app.end_points import end_points
from gflow.app.provenance import provenance
from gflow.app.report import write_report
from gflow.app.run_directory import FURTHER, Descent, Run, new_directory, save_run
from gflow.app.tables import blown_up
from gflow.arguments import ArgumentError, Described
from gflow.descent import descend
from gflow.flow import solve_flow
from gflow.hessian.sharpness import sharpness
from gflow.networks import ShallowNet
from gflow.risks import EmpiricalRisk, PopulationRisk, Risk
from gflow.trajectory import Trajectory

_MOST_STEPS = 10**9


def run(config: Config, *, say: Callable[[str], None] = lambda text: None) -> tuple[Run, Path]:
    """Runs the main job and writes its run directory.

    Loads the data, follows the gradient flow to `t1`, runs gradient descent at step sizes given as
    fractions of 2/sharpness over the same span, and writes configuration, trajectories and report.
    Ctrl-C, or an error on the way, leaves what was computed until then in the same form.

    **Arguments:**

    - `config`: what to run.
    - `say`: is called with each thing the user should know at once.

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
                _compute(result, say)
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
        # What was computed is worth more than its picture.
        say(f"The report could not be written ({error}); `gflow report` tries again.")


def _fresh_directory() -> Path:
    stamp = datetime.datetime.now().strftime("%Y-%m-%d_%H%M%S")
    directory, again = Path("runs") / stamp, 1
    while directory.exists():
        again += 1
        directory = Path("runs") / f"{stamp}_{again}"
    return directory


def _compute(run: Run, say: Callable[[str], None]) -> None:
    """Fills in the trajectories, one after the other, so that an interrupt leaves those done."""
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
        got = Described(f"{config.scale:g}, with which the risk at the start is {start}")
        raise ArgumentError("scale", got, "a smaller one")
    run.sharpness = sharpness(risk, net)
    plan = _plan(run, say)
    with _timed(run, "flow"):
        run.flow = _flow(config, risk, net, 0.0, config.t1, _saved_times(config, plan))
    _report_trouble(run, "The flow", run.flow, say)
    for step_size, marks in plan:
        # Where the flow ended early there is nothing further to compare with.
        marks = marks[marks * step_size <= float(run.flow.ts[-1]) * (1 + 1e-12)]
        if len(marks) < 2:
            continue
        descent = Descent(step_size * run.sharpness / 2, step_size, run.flow)
        with _timed(run, descent.label):
            descent.trajectory = descend(
                risk,
                net,
                step_size=step_size,
                num_steps=int(marks[-1]),
                record=marks,
                progress=True,
                throw=False,
            )
        run.descents.append(descent)
        _report_trouble(run, f"Gradient descent with {descent.label}", descent.trajectory, say)
    if config.follow is not None and run.flow.succeeded:
        with _timed(run, FURTHER):
            t0 = float(run.flow.ts[-1])
            ts = np.geomspace(t0, config.follow, config.num_times)
            run.further = _flow(config, risk, run.flow.final, t0, config.follow, ts)
        _report_trouble(run, "The flow, followed further,", run.further, say)
    with _timed(run, "end points"):
        run.ends = end_points(risk, _sound(run), say)


def _flow(config: Config, risk: Risk, net: ShallowNet, t0: float, t1: float, ts) -> Trajectory:
    return solve_flow(
        risk,
        net,
        t0=t0,
        t1=t1,
        ts=ts,
        rtol=_rtol(config),
        atol=config.atol,
        solver=_solver(config),
        kinks=config.kinks,
        max_steps=config.max_steps,
        max_kinks=config.max_kinks,
        progress=True,
        throw=False,
    )


def _sound(run: Run) -> dict[str, Trajectory]:
    """The trajectories that did not diverge."""
    return {label: t for label, t in run.trajectories().items() if blown_up(t) is None}


def _risk(config: Config, table: Table) -> Risk:
    if config.risk == "population":
        target = piecewise.named(config.data)
        return PopulationRisk(target, piecewise.named_density(config.density, *target.interval))
    x, y = (np.asarray(a, config.precision) for a in (table.x, table.y))
    return EmpiricalRisk(x, y)


class _timed:
    def __init__(self, run: Run, label: str):
        self.run, self.label = run, label

    def __enter__(self):
        self.start = time.perf_counter()

    def __exit__(self, *_):
        self.run.seconds[self.label] = time.perf_counter() - self.start


def _report_trouble(run: Run, who: str, trajectory, say) -> None:
    if trajectory.result_name == "interrupted":
        raise KeyboardInterrupt
    if not trajectory.succeeded:
        text = f"{who} got to t = {float(trajectory.ts[-1]):.4g}: {trajectory.message}."
        run.notes.append(text)
        say(text)
    elif (since := blown_up(trajectory)) is not None:
        text = f"{who} diverges: from t = {since:.4g} on its risk is above ten times its start."
        run.notes.append(text)
        say(text)


def _solver(config: Config) -> diffrax.AbstractSolver | None:
    name = SOLVERS[config.solver]
    if name is None:
        return None
    return getattr(solvers, name)() if hasattr(solvers, name) else getattr(diffrax, name)()


def _rtol(config: Config) -> float | None:
    ignored = config.kinks == "ignore" and as_activation(config.activation).kinked
    if config.rtol is None and ignored and config.precision == "float64":
        # Across ignored kinks a tighter tolerance costs many more steps and gains few digits.
        return 1e-6
    return config.rtol


def _plan(run: Run, say) -> list[tuple[float, np.ndarray]]:
    """For each descent the step size and the steps to record.

    Step sizes are made a little smaller than asked for, so that t1 is a whole number of steps and,
    where the fractions allow it, the times of the larger steps are times of the smaller ones, too.
    """
    config, fractions = run.config, run.config.step_fractions
    if not fractions:
        return []
    if not run.sharpness > 0:
        text = (
            f"No descents: the largest Hessian eigenvalue at the start is {run.sharpness:g}, so "
            "there is no 2/sharpness to choose step sizes by."
        )
        run.notes.append(text)
        say(f"Warning: {text}")
        return []
    limit = 2 / run.sharpness
    if config.t1 / (fractions[-1] * limit) > _MOST_STEPS:
        got = Described(f"{config.t1:g}, at a smallest step size of {fractions[-1] * limit:.3g}")
        raise ArgumentError("t1", got, f"at most {_MOST_STEPS:,} steps")
    coarsest = max(1, int(np.ceil(config.t1 / (fractions[0] * limit) - 1e-9)))
    log_times = np.geomspace(1, coarsest, config.num_times)
    plan = []
    for fraction in fractions:
        ratio = fractions[0] / fraction
        nested = abs(ratio - round(ratio)) < 1e-9 * ratio
        num_steps = round(ratio) * coarsest if nested else int(np.ceil(coarsest * ratio - 1e-9))
        early = np.geomspace(1, max(1, num_steps // coarsest), 12)
        late = np.round(log_times) * (num_steps / coarsest)
        marks = np.unique(np.round(np.concatenate([[0], early, late])).astype(int))
        step_size = config.t1 / num_steps
        plan.append((step_size, marks))
        if step_size >= limit:
            text = (
                f"The step size {step_size:.4g} is beyond 2/sharpness = {limit:.4g}: gradient "
                "descent is unstable at the start."
            )
            run.notes.append(text)
            say(f"Warning: {text}")
    return plan


def _saved_times(config: Config, plan) -> np.ndarray:
    """Logarithmic times together with all times that the descents record."""
    first = min(1e-3, 1e-5 * config.t1)
    times = [np.append(0.0, np.geomspace(first, config.t1, config.num_times - 1))]
    times += [np.minimum(marks * step_size, config.t1) for step_size, marks in plan]
    times = np.unique(np.concatenate(times).astype(config.precision))
    times[-1] = config.t1
    # Times that differ by rounding only are one.
    apart = np.diff(times) > 4 * np.finfo(times.dtype).eps * times[1:]
    return times[np.append(apart, True)]
