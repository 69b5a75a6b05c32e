"""What a run will do: its final time, the step sizes of its descents, and the times to save."""

from collections.abc import Callable
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from gflow.activations import as_activation
from gflow.app.config import Config
from gflow.app.run_directory import Run
from gflow.arguments import ArgumentError, Described

_MAX_DESCENT_STEPS = 10**9
# The step sizes of the descents where none are given. All divide the first, so that the times of
# larger steps are also times of the smaller steps.
_FRACTIONS = (0.8, 0.2, 0.1, 0.08, 0.05, 0.04, 0.025, 0.02, 0.0125)
_FINER_FRACTIONS = (0.008, 0.005, 0.004, 0.0025, 0.0016)
# The flow time of a run where none is given, unless its descents take more than so many products:
# about twenty seconds. The finer steps may take a tenth of that.
_DEFAULT_T1, _DESCENT_WORK, _FINER_WORK = 1000.0, 4e11, 5.6e10
# A step of descent takes as long as at least so many products.
_STEP_WORK = 7e4


def final_time(run: Run, say: Callable[[str], None]) -> float:
    """The final time where none is given: 1, 2 or 5 times a power of ten."""
    config = run.config
    fractions = _FRACTIONS if config.step_fractions is None else config.step_fractions
    longest = _DEFAULT_T1 if config.follow is None else min(_DEFAULT_T1, config.follow / 10)
    t1 = min(longest, _DESCENT_WORK / max(_work(run, fractions), 1.0))
    power = 10.0 ** np.floor(np.log10(t1) + 1e-9)
    t1 = float(power * max(d for d in (1, 2, 5) if d * power <= t1 * (1 + 1e-9)))
    if t1 < longest:
        text = (
            f"Flow and descents end at t = {t1:g}, so that the run is short; `--t1` sets the end."
        )
        run.note(text, say)
    return t1


def step_fractions(run: Run, t1: float) -> tuple[float, ...]:
    """The step sizes as fractions of 2/sharpness: those of the configuration, or the default ones.

    As long as they are cheap, finer ones are added, whose distances tell the order better at kinks.
    They need a flow whose own error is far smaller.
    """
    if run.config.step_fractions is not None:
        return run.config.step_fractions
    if not _follows_closely(run.config):
        return _FRACTIONS
    counts = range(len(_FINER_FRACTIONS) + 1)
    cheap = [n for n in counts if t1 * _work(run, _FINER_FRACTIONS[:n]) <= _FINER_WORK]
    return _FRACTIONS + _FINER_FRACTIONS[: max(cheap)]


def _follows_closely(config: Config) -> bool:
    """Whether the error of the flow is below the distances of the finest steps."""
    smooth = config.kinks != "ignore" or not as_activation(config.activation).kinked
    tight = config.rtol is None or config.rtol <= 1e-7
    return config.precision == "float64" and smooth and tight


def _work(run: Run, fractions: tuple[float, ...]) -> float:
    """How many products the descents take for each unit of time."""
    config, (rows, features) = run.config, run.table.x.shape
    rows = rows if config.risk == "empirical" else 1000
    products = sum(a * b for a, b in pairwise([features + 1, *config.widths, 1]))
    of_step = max(3 * rows * products, _STEP_WORK)
    return of_step * sum(1 / fraction for fraction in fractions) * max(run.sharpness, 0.0) / 2


class PlannedDescent(NamedTuple):
    """The step size of a descent, and the steps to record."""

    step_size: float
    recorded_steps: np.ndarray


def planned_descents(run: Run, t1: float, say: Callable[[str], None]) -> list[PlannedDescent]:
    """The descents with the step fractions of the configuration.

    Step sizes are a little smaller than requested, so that t1 is a whole number of steps. If the
    fractions allow it, the times of larger steps are also times of the smaller steps.

    **Raises:** `ArgumentError` for a time of more than a billion steps.
    """
    config, fractions = run.config, run.config.step_fractions
    if not fractions:
        return []
    if not run.sharpness > 0:
        text = (
            f"No descents: the largest Hessian eigenvalue at the start is {run.sharpness:g}, so "
            "that no step sizes can be chosen as fractions of 2/sharpness."
        )
        run.note(text, say)
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
        plan.append(PlannedDescent(step_size, recorded))
        if step_size >= limit:
            text = (
                f"The step size {step_size:.4g} is above 2/sharpness = {limit:.4g}: gradient "
                "descent is unstable at the start."
            )
            run.note(text, say)
    return plan


def saved_times(config: Config, t1: float, plan: list[PlannedDescent]) -> np.ndarray:
    """Logarithmically spaced times, and all times that the descents record."""
    first = min(1e-3, 1e-5 * t1)
    times = [np.append(0.0, np.geomspace(first, t1, config.num_times - 1))]
    times += [np.minimum(p.recorded_steps * p.step_size, t1) for p in plan]
    times = np.unique(np.concatenate(times).astype(config.precision))
    times[-1] = t1
    # Times that differ only by rounding count as one.
    apart = np.diff(times) > 4 * np.finfo(times.dtype).eps * times[1:]
    return times[np.append(apart, True)]
