"""When the pattern of a flow changes, and the tail after the last change."""

from typing import Any

import numpy as np

from gflow.arguments import real_array
from gflow.kink_log import KinkLog
from gflow.rates.slowest_mode import MIN_POINTS
from gflow.rates.tails import Points

# The gap falls at least so much after the last kink, in logs.
_MIN_FALL = np.log(2.0)


def pattern_changes(kinks: Any) -> np.ndarray:
    """The times at which the pattern changes, in order: those of a `KinkLog` that the tolerance can
    feel, ends of slides included, or times themselves. None where `kinks` is None.

    **Raises:** `ArgumentError` for what is neither.
    """
    if kinks is None:
        return np.zeros(0)
    if isinstance(kinks, KinkLog):
        times = np.asarray(kinks.time, dtype=float)[~np.asarray(kinks.passed)]
    else:
        times = real_array("kinks", kinks, "trajectory.kinks, or times")
    return np.unique(times[np.isfinite(times)])


def after_last(changes: np.ndarray, t: np.ndarray, points: Points) -> np.ndarray:
    """Which gaps lie after the last change and before the noise; none if too few are left, or if
    they fall by less than a factor of 2."""
    end = float(points.ends[-1, -1])
    before = changes[changes < end]
    none = np.zeros(len(t), bool)
    if not len(before) or before[-1] <= points.ends[0, 0]:
        return none
    kept = (t > before[-1]) & (t <= end)
    logs = points.logs[points.ends[:, 0] > before[-1]]
    if np.sum(kept) < MIN_POINTS or len(logs) < 2 or logs[0] - logs[-1] < _MIN_FALL:
        return none
    return kept
