"""Local slopes of a gap, and where they stay level."""

from dataclasses import dataclass

import numpy as np

# A slope is level where it stays within this fraction of its middle value.
_LEVEL = 0.05
# Points for each slope.
_POINTS = 7
# A plateau is at least so long: in multiples of 1/rate, and in decades of t.
_MIN_RATE_LENGTH, _MIN_EXPONENT_LENGTH = 2.0, 0.5


@dataclass(frozen=True)
class Plateau:
    """Where a local slope stays within 5 % of a value.

    - `value`: the median of the slopes between the times `start` and `end`.
    - `length`: in decades of t for exponents, in multiples of 1/value for rates.
    """

    value: float
    start: float
    end: float
    length: float


@dataclass(frozen=True)
class LocalSlopes:
    """Slopes of log gap around times `ts`, each over seven points.

    - `rate`, shape (times,): −d log gap / dt, level where the gap falls exponentially.
    - `exponent`, shape (times,): −d log gap / d log t, level where it falls as a power of t.
    - `gap`, shape (times,): the gap, or the speed −dL/dt if only decreases are known. The exponent
      is that of the gap in both cases; that of the speed is larger by one.
    - `rate_plateau`, `exponent_plateau`: the longest `Plateau` of each; None if the slope is
      nowhere level for two times 1/rate, or for half a decade of t.
    """

    ts: np.ndarray
    gap: np.ndarray
    rate: np.ndarray
    exponent: np.ndarray
    rate_plateau: Plateau | None
    exponent_plateau: Plateau | None


def local_slopes(ends: np.ndarray, logs: np.ndarray) -> LocalSlopes:
    """The slopes of logs of gaps at times `ends` (points, 1), or of decreases (points, 2)."""
    t, y, extra = ends[:, 0], logs, 0.0
    if ends.shape[1] == 2:
        t, y, extra = np.sqrt(ends[:, 0] * ends[:, 1]), logs - np.log(ends[:, 1] - ends[:, 0]), 1.0
    window = min(_POINTS, len(t))
    frames = lambda x: np.lib.stride_tricks.sliding_window_view(x, window)
    log_t = np.log(t)
    exponent = -_slopes(frames(log_t), frames(y)) - extra
    rate = -_slopes(frames(t), frames(y))
    middle = window // 2
    at = t[middle : middle + len(rate)]
    along = np.append(0.0, np.cumsum(np.diff(at) * (rate[1:] + rate[:-1]) / 2))
    return LocalSlopes(
        at,
        np.exp(y[middle : middle + len(rate)]),
        rate,
        exponent,
        _plateau(at, rate, along, _MIN_RATE_LENGTH),
        _plateau(at, exponent, np.log10(at), _MIN_EXPONENT_LENGTH),
    )


def _slopes(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Slopes of least squares lines through each row of points."""
    x = x - x.mean(axis=1, keepdims=True)
    return np.sum(x * y, axis=1) / np.sum(x**2, axis=1)


def _plateau(
    t: np.ndarray, slope: np.ndarray, along: np.ndarray, min_length: float
) -> Plateau | None:
    """The stretch, longest in `along`, on which positive slopes differ by at most 10 %; None if it
    is shorter than `min_length`."""
    best: tuple[float, int, int] | None = None
    for first in range(len(t)):
        low = np.minimum.accumulate(slope[first:])
        high = np.maximum.accumulate(slope[first:])
        level = (low > 0) & (high - low <= _LEVEL * (high + low))
        count = len(level) if level.all() else int(np.argmin(level))
        if count and (best is None or along[first + count - 1] - along[first] > best[0]):
            last = first + count - 1
            best = (float(along[last] - along[first]), first, last)
    if best is None or best[0] < min_length:
        return None
    length, first, last = best
    value = float(np.median(slope[first : last + 1]))
    return Plateau(value, float(t[first]), float(t[last]), length)
