"""Local slopes of a gap, and where they stay level."""

from dataclasses import dataclass

import numpy as np

# A slope is level where it stays within this share of its middle value.
_LEVEL = 0.05
_POINTS = 7


@dataclass(frozen=True)
class Plateau:
    """Where a local slope stays within 5 % of `value`, the middle of its values from the time
    `start` to `end`; `length` is measured in decades of t for exponents, and in multiples of
    1/value for rates."""

    value: float
    start: float
    end: float
    length: float


@dataclass(frozen=True)
class LocalSlopes:
    """Slopes of log gap around times `ts`, each over seven points.

    - `rate`, shape (times,): −d log gap / dt, level where the gap falls exponentially.
    - `exponent`, shape (times,): −d log gap / d log t, level where it falls as a power of t.
    - `gap`, shape (times,): the gap, or the speed −dL/dt if only decreases are known; the exponent
      is then that of the gap, one less.
    - `rate_plateau`, `exponent_plateau`: the longest `Plateau` of each; None where it is
      nowhere level for half a decade of t, or two times 1/rate.
    """

    ts: np.ndarray
    gap: np.ndarray
    rate: np.ndarray
    exponent: np.ndarray
    rate_plateau: Plateau | None
    exponent_plateau: Plateau | None


def local_slopes(ends: np.ndarray, logs: np.ndarray) -> LocalSlopes:
    """The slopes of logs of gaps at times `ends` (points, 1), or of decreases (points, 2)."""
    t, y, less = ends[:, 0], logs, 0.0
    if ends.shape[1] == 2:
        t, y, less = np.sqrt(ends[:, 0] * ends[:, 1]), logs - np.log(ends[:, 1] - ends[:, 0]), 1.0
    window = min(_POINTS, len(t))
    frames = lambda x: np.lib.stride_tricks.sliding_window_view(x, window)
    log_t = np.log(t)
    exponent = -_slopes(frames(log_t), frames(y)) - less
    rate = -_slopes(frames(t), frames(y))
    middle = window // 2
    at = t[middle : middle + len(rate)]
    along = np.append(0.0, np.cumsum(np.diff(at) * (rate[1:] + rate[:-1]) / 2))
    return LocalSlopes(
        at,
        np.exp(y[middle : middle + len(rate)]),
        rate,
        exponent,
        _plateau(at, rate, along, 2.0),
        _plateau(at, exponent, np.log10(at), 0.5),
    )


def _slopes(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    x = x - x.mean(axis=1, keepdims=True)
    return np.sum(x * y, axis=1) / np.sum(x**2, axis=1)


def _plateau(t: np.ndarray, slope: np.ndarray, along: np.ndarray, least: float) -> Plateau | None:
    """The stretch, longest in `along` and at least so long, on which positive slopes differ by 10 %
    at most."""
    best: tuple[float, int, int] | None = None
    for first in range(len(t)):
        low = np.minimum.accumulate(slope[first:])
        high = np.maximum.accumulate(slope[first:])
        level = (low > 0) & (high - low <= _LEVEL * (high + low))
        count = len(level) if level.all() else int(np.argmin(level))
        if count and (best is None or along[first + count - 1] - along[first] > best[0]):
            last = first + count - 1
            best = (float(along[last] - along[first]), first, last)
    if best is None or best[0] < least:
        return None
    length, first, last = best
    value = float(np.median(slope[first : last + 1]))
    return Plateau(value, float(t[first]), float(t[last]), length)
