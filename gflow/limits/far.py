"""A flow at times so late that powers of their logarithm can be told from their limits."""

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np

from gflow.flow import solve_flow
from gflow.limits.path import Path
from gflow.trajectory import Trajectory

# Slopes are about 1/t, and their squares must not underflow. One solve spans so many decades
# as float64 can tell times apart.
_LATEST, _STAGE = 1e140, 1e10
_TIMES_PER_STAGE, _MAX_STEPS = 20, 5_000


def far_path(
    risk: Callable[[Any], Any],
    flow: Trajectory,
    start: float,
    trained: Callable[[Any], Any],
    trainable: Any,
) -> Path | None:
    """The flow from its end to t = 1e140, at least; None if it does not get there.

    Where the norm grows like a power of log t, all else changes by fractions of itself from decade
    to decade, so that each takes a few steps only.
    """
    net, now, paths = flow.final, float(flow.ts[-1]) - start, []
    located = flow.kinks is not None or not flow.kinks_ignored
    while now < _LATEST:
        ts = now * np.geomspace(1.0, _STAGE, _TIMES_PER_STAGE + 1)[1:]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            more = solve_flow(
                risk,
                net,
                t0=now,
                t1=ts[-1],
                ts=ts,
                kinks="locate" if located else "ignore",
                trainable=trainable,
                max_steps=_MAX_STEPS,
                throw=False,
            )
        if not more.succeeded or len(more) < len(ts):
            return None
        net, now = more.final, float(ts[-1])
        paths.append(Path.of(more, 0.0, trained))
    columns = zip(*(vars(path).values() for path in paths))
    return Path(*map(np.concatenate, columns))
