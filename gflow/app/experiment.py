"""The main job: gradient flow against gradient descent on a table."""

import dataclasses
import pkgutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from gflow.activations import as_activation
from gflow.app.analysis import Analysis, divergence_time
from gflow.app.claim import claimed, has_results, locked
from gflow.app.config import SOLVERS_BY_NAME, Config
from gflow.app.end_points import end_points
from gflow.app.plan import (
    PlannedDescent,
    final_time,
    planned_descents,
    saved_times,
    step_fractions,
)
from gflow.app.problem import observed_by, read_table, risk_of, start_of, with_source
from gflow.app.provenance import provenance
from gflow.app.report import write_report
from gflow.app.run_directory import (
    CHECKPOINTS,
    FURTHER,
    Descent,
    Run,
    RunFiles,
    descent_label,
    load_run,
    stores,
)
from gflow.arguments import ArgumentError, Described, PyTree
from gflow.descent import descend
from gflow.flow import solve_flow
from gflow.hessian.sharpness import sharpness
from gflow.interrupts import noted_interrupts
from gflow.risks import Risk
from gflow.trajectory import Trajectory

Say = Callable[[str], None]


class Outcome(NamedTuple):
    """A run, the directory with its results (None if they could be written nowhere), whether there
    is a report in it, and the analysis if the report was just written."""

    run: Run
    directory: Path | None
    has_report: bool
    analysis: Analysis | None


def run(
    config: Config,
    *,
    say: Say = lambda text: None,
    interrupted: Callable[[], bool] = lambda: False,
) -> Outcome:
    """Runs the main job and writes its run directory.

    Loads the data, follows the gradient flow to `t1`, runs gradient descent over the same time with
    the step sizes of the configuration, and writes configuration, trajectories and report. Each
    trajectory is written when it is complete. After Ctrl-C or an error the directory holds the
    results so far.

    `say` is called with each message for the user. `interrupted` says whether Ctrl-C was pressed;
    the exception may have been lost on its way.

    **Raises:** `ArgumentError` for a configuration or data that cannot be used.
    """
    config = config.validated()
    out = Path(config.out) if config.out else None
    with (
        jax.enable_x64(config.precision == "float64"),
        claimed(out, overwrite=config.overwrite) as directory,
    ):
        table = read_table(config, say)
        config = with_source(config)
        result = Run(config, table, provenance(), status="interrupted")
        files = RunFiles(directory)
        return _carry_out(_Job(result, files, say, interrupted), files)


def resume(
    directory: Path,
    *,
    say: Say = lambda text: None,
    interrupted: Callable[[], bool] = lambda: False,
) -> Outcome:
    """Goes on with a run that was cut off, and ends as it would have ended.

    Complete trajectories are kept, the flow goes on from its checkpoint, and what is missing is
    computed. `say`, `interrupted` and errors are those of `run`.
    """
    with jax.enable_x64(True):
        result = load_run(directory)
    if result.status == "complete":
        say(f"{directory} is complete already.")
        return Outcome(result, directory, (directory / "report.html").is_file(), None)
    with jax.enable_x64(result.config.precision == "float64"), locked(directory):
        result.status = "interrupted"
        files = RunFiles(directory, stores(result))
        return _carry_out(_Job(result, files, say, interrupted), files)


class _Job(NamedTuple):
    """A run on its way: where it is written, if anywhere, and to whom its messages go."""

    run: Run
    files: RunFiles | None
    say: Say
    interrupted: Callable[[], bool]

    def check_interrupt(self) -> None:
        if self.interrupted():
            raise KeyboardInterrupt

    def checkpoint(self, label: str) -> Path | None:
        """Where the flow of that label keeps its state."""
        files, wanted = self.files, self.run.config.checkpoint
        if files is None or not wanted or files.trouble is not None:
            return None
        return files.directory / CHECKPOINTS / label

    def keep(self) -> None:
        """Writes the results so far."""
        if self.files is not None:
            self.files.keep(self.run, self.say)


def compute(run: Run, *, say: Say = lambda text: None) -> None:
    """Fills in the trajectories of a run and their end points, and writes nothing."""
    _compute(_Job(run, None, say, lambda: False))


def _carry_out(job: _Job, files: RunFiles) -> Outcome:
    run, failure = job.run, None
    try:
        job.keep()
        _compute(job)
        run.status = "complete"
    except KeyboardInterrupt:
        if not run.trajectories() and not has_results(files.directory):
            raise
    except Exception as error:
        if not run.trajectories():
            raise
        run.status, failure = "failed", error
    with noted_interrupts():
        directory = files.finish(run, job.say)
    analysis = None if directory is None else _write_report(directory, job.say)
    if failure is not None:
        job.say(f"The results so far are in {directory}.")
        raise failure
    return Outcome(run, directory, analysis is not None, analysis)


def _write_report(directory: Path, say: Say) -> Analysis | None:
    try:
        return write_report(directory).analysis
    except KeyboardInterrupt:
        reason = "interrupted"
    except Exception as error:  # a failed figure must not cost the results
        reason = str(error)
    say(f"The report could not be written ({reason}). `gflow report {directory}` tries again.")
    return None


def _compute(job: _Job) -> None:
    """Computes what the run lacks, part by part, so that an interrupt leaves the finished ones."""
    run, config = job.run, job.run.config
    risk = risk_of(config, run.table)
    net = start_of(config, run.table)
    start = float(risk(net))
    if not np.isfinite(start):
        got = Described(f"{config.scale:g}, for which the risk at the start is {start}")
        raise ArgumentError("scale", got, "a smaller one")
    if np.isnan(run.sharpness):
        run.sharpness = float(sharpness(risk, net))
    t1 = final_time(run, job.say) if config.t1 is None else config.t1
    fractions = step_fractions(run, t1)
    config = run.config = dataclasses.replace(config, t1=t1, step_fractions=fractions)
    plan = planned_descents(run, t1, job.say)
    if _is_missing(run.flow):
        job.say(f"The flow is compiled, and then followed to t = {t1:g} ...")
        with _part(job, "flow", "The flow", t1):
            run.flow = _flow(job, risk, net, 0.0, t1, saved_times(config, t1, plan))
            _report_trouble(run, "The flow", run.flow, job.say)
    flow = run.flow
    assert flow is not None
    _compute_descents(job, risk, net, plan)
    if config.follow is not None and flow.succeeded and _is_missing(run.further):
        with _part(job, FURTHER, "The flow, followed further,", config.follow):
            t0 = float(flow.ts[-1])
            ts = np.geomspace(t0, config.follow, config.num_times)
            run.further = _flow(job, risk, flow.final, t0, config.follow, ts)
            _report_trouble(run, "The flow, followed further,", run.further, job.say)
    job.say("Looking for the critical points at the ends ...")
    with _timed(run, "end points"):
        run.ends = end_points(risk, _not_diverged(run), job.say)


def _is_missing(trajectory: Trajectory | None) -> bool:
    return trajectory is None or trajectory.result_name == "interrupted"


@contextmanager
def _part(job: _Job, label: str, who: str, end: float) -> Iterator[None]:
    """A part of the run: says how long it took, and writes its results."""
    job.check_interrupt()
    before = job.run.seconds.get(label, 0.0)
    try:
        with _timed(job.run, label):
            yield
    finally:
        job.run.seconds[label] += before
    job.keep()
    job.say(f"{who} to t = {end:g}: {job.run.seconds[label]:.1f} s")


def _flow(job: _Job, risk: Risk, net: PyTree, t0: float, t1: float, ts: np.ndarray) -> Trajectory:
    config = job.run.config
    place = SOLVERS_BY_NAME[config.solver]
    return solve_flow(
        risk,
        net,
        t0=t0,
        t1=t1,
        ts=ts,
        rtol=_rtol(config),
        atol=config.atol,
        solver=None if place is None else pkgutil.resolve_name(place)(),
        kinks=config.kinks,
        max_steps=config.max_steps,
        max_kinks=config.max_kinks,
        progress=True,
        checkpoint=job.checkpoint("flow" if t0 == 0 else "further"),
        observe=observed_by(config, job.run.table),
        throw=False,
    )


def _compute_descents(job: _Job, risk: Risk, net: PyTree, plan: list[PlannedDescent]) -> None:
    run = job.run
    run.descents = [d for d in run.descents if not _is_missing(d.trajectory)]
    complete = {d.step_size for d in run.descents}
    for planned in plan:
        if planned.step_size in complete or (steps := _steps(run, planned)) is None:
            continue
        label = descent_label(planned.step_size)
        who = f"Gradient descent with {label}"
        with _part(job, label, who, steps[-1] * planned.step_size):
            trajectory = descend(
                risk,
                net,
                step_size=planned.step_size,
                num_steps=int(steps[-1]),
                record=steps,
                observe=observed_by(run.config, run.table),
                progress=True,
                throw=False,
            )
            fraction = planned.step_size * run.sharpness / 2
            run.descents.append(Descent(fraction, planned.step_size, trajectory))
            _report_trouble(run, who, trajectory, job.say)


def _steps(run: Run, planned: PlannedDescent) -> np.ndarray | None:
    """The recorded steps up to the end of the flow; None if the flow ended before the first."""
    assert run.flow is not None
    times = planned.recorded_steps * planned.step_size
    steps = planned.recorded_steps[times <= float(run.flow.ts[-1]) * (1 + 1e-12)]
    return None if len(steps) < 2 else steps


def _not_diverged(run: Run) -> dict[str, Trajectory]:
    return {label: t for label, t in run.trajectories().items() if divergence_time(t) is None}


@contextmanager
def _timed(run: Run, label: str) -> Iterator[None]:
    start = time.perf_counter()
    try:
        yield
    finally:
        run.seconds[label] = time.perf_counter() - start


def _report_trouble(run: Run, who: str, trajectory: Trajectory, say: Say) -> None:
    """Notes an early end or a divergence. Raises `KeyboardInterrupt` after Ctrl-C."""
    if trajectory.result_name == "interrupted":
        raise KeyboardInterrupt
    if not trajectory.succeeded:
        text = f"{who} stopped at t = {float(trajectory.ts[-1]):.4g}: {trajectory.message}."
    elif (since := divergence_time(trajectory)) is not None:
        text = f"{who} diverges: from t = {since:.4g} on the risk is above ten times its start."
    else:
        return
    run.note(text, say)


def _rtol(config: Config) -> float | None:
    ignored = config.kinks == "ignore" and as_activation(config.activation).kinked
    if config.rtol is None and ignored and config.precision == "float64":
        # If kinks are ignored, a tighter tolerance costs many more steps and gains few digits.
        return 1e-6
    return config.rtol
