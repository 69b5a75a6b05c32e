"""The tail of a gap that can be fitted: thinned, and cut where the gap reaches rounding error."""

import warnings
from typing import NamedTuple

import numpy as np

from gflow.arguments import ArgumentError, Described, RealScalar
from gflow.rates.gap_checks import MIN_POINTS, no_law_for

_MAX_POINTS = 150
# Numbers of decreases to try: decreases over short times are mostly differences of deviations.
_MAX_DECREASES = (60, 40, 25, 16)
# Gaps below this fraction of the largest gap, and decreases below a hundred times this fraction of
# the risk, count as rounding error.
_ROUNDING = 1e-12
# In a gap that is so many times larger, noise matters less than other deviations.
_CLEAR = 300.0


class Points(NamedTuple):
    """The points that are fitted.

    - `ends`: times, shape (points, 1), or first and last times of decreases, shape (points, 2).
    - `logs`, shape (points,): logs of the gaps or decreases.
    - `floor`: the size of the noise in which the gap ends; `closed`: the first time from which on
      the gap is there, None if there is none.
    """

    ends: np.ndarray
    logs: np.ndarray
    closed: float | None = None
    floor: float = 0.0


def _within(t, window) -> np.ndarray:
    return np.ones(len(t), bool) if window is None else (t >= window[0]) & (t <= window[1])


def of_gaps(t, g, window: tuple[RealScalar, RealScalar] | None) -> Points:
    """The positive gaps of known limit, up to their floor."""
    count, floor = _above_floor(g)
    if window is not None and np.sum(_within(t[:count], window) & (g[:count] > 0)) < MIN_POINTS:
        # What comes after the window may be no noise.
        t, g = t[t <= window[1]], g[t <= window[1]]
        count, floor = _above_floor(g)
    closed = float(t[count]) if count < len(t) else None
    inside, whole = _within(t, window), (t, g)
    t, g = t[:count][inside[:count]], g[:count][inside[:count]]
    if left_out := int(np.sum(g <= 0)):
        words = f"{left_out} of {len(g)} entries that are zero or negative"
        warnings.warn(
            f"`gap`: left out {words}, before it reaches its rounding error", stacklevel=3
        )
    t, first = np.unique(t[g > 0], return_index=True)
    g = g[g > 0][first]
    if len(t) < MIN_POINTS:
        raise no_law_for(*(a[inside] for a in whole))
    if window is not None and closed is not None and closed > window[1]:
        closed = None
    kept = _thinned(np.log(t), np.log(g), _MAX_POINTS)
    return Points(t[kept, None], np.log(g[kept]), closed, floor)


def of_decreases(t, risk, window: tuple[RealScalar, RealScalar] | None) -> Points:
    """The decreases between saved times, which do not depend on the limit."""
    inside = _within(t, window)
    t, first = np.unique(t[inside], return_index=True)
    risk = risk[inside][first]
    best: Points | None = None
    noise = _noise_of_decreases(-np.diff(risk))
    if len(t) > 1:
        fallen = risk - risk[-1]
        height = np.log(np.maximum(fallen, _ROUNDING * max(fallen.max(), np.finfo(float).tiny)))
        for max_decreases in _MAX_DECREASES:
            kept = _thinned(np.log(t), height, max_decreases)
            ends, fall = np.stack([t[kept][:-1], t[kept][1:]], axis=1), -np.diff(risk[kept])
            seen = np.maximum(100 * _ROUNDING * np.abs(risk[kept][1:]), 10 * noise)
            count = _before_noise(fall, seen)
            use = (fall > seen)[:count]
            points = Points(ends[:count][use], np.log(fall[:count][use]))
            if best is None or len(points.logs) >= MIN_POINTS:
                best = points
            if count and use.mean() > 0.9:
                break
    if best is None or len(best.logs) < MIN_POINTS:
        ends = f", from {risk[0]:.4g} to {risk[-1]:.4g}" if len(risk) else ""
        got = Described(f"{0 if best is None else len(best.logs)} decreases{ends}")
        raise ArgumentError("gap", got, f"a risk that falls at {MIN_POINTS} times or more after 0")
    return best


def _above_floor(g: np.ndarray) -> tuple[int, float]:
    """The number of gaps before the noise in which they end, and the size of the noise.

    The noise begins where all later gaps are below the rounding error of the largest, or at the
    first gap with two properties: a third of the gaps from there on are not positive, or a later
    one is larger by half; and the second half of these gaps is no smaller than half the first.
    """
    size = np.abs(g)
    top = float(size.max(initial=0.0))
    later = np.append(np.maximum.accumulate(size[::-1])[::-1][1:], 0.0)
    floor = _ROUNDING * top
    noisy = (g <= 0) | (later > 1.5 * size)
    fraction = np.cumsum(noisy[::-1])[::-1] / np.arange(len(g), 0, -1)
    for k in np.flatnonzero(noisy & (fraction > 1 / 3)):
        first, second = np.array_split(size[k:], 2)
        if len(second) == 0 or np.median(second) >= 0.5 * np.median(first):
            floor = max(floor, float(size[k:].max()))
            break
    for clear in (_CLEAR * floor, 10 * floor):
        if floor == _ROUNDING * top:
            clear = floor
        above = np.flatnonzero(g > clear)
        if len(above) >= 20:
            break
    return (int(above[-1]) + 1 if len(above) else 0), floor


def _noise_of_decreases(fall: np.ndarray) -> float:
    """The size of the noise in which the risk ends: of the decreases from the first one on from
    which a third are not positive, and the second half is no smaller than half the first."""
    missed = fall <= 0
    fraction = np.cumsum(missed[::-1])[::-1] / np.arange(len(fall), 0, -1)
    for k in np.flatnonzero(missed & (fraction > 1 / 3)):
        if len(fall) - k < MIN_POINTS:
            break
        first, second = np.array_split(np.abs(fall[k:]), 2)
        if np.median(second) >= 0.5 * np.median(first):
            return float(np.abs(fall[k:]).max())
    return 0.0


def _before_noise(fall: np.ndarray, seen: np.ndarray) -> int:
    """The number of decreases before the noise, and ten times larger than it. The noise begins
    where a third or more of the remaining decreases are not above `seen`."""
    missed = fall <= seen
    fraction = np.cumsum(missed[::-1])[::-1] / np.arange(len(fall), 0, -1)
    noise = np.flatnonzero(missed & (fraction >= 1 / 3))
    if not len(noise):
        return len(fall)
    first = int(noise[0])
    clear = np.flatnonzero(fall[:first] > 10 * np.abs(fall[first:]).max())
    return int(clear[-1]) + 1 if len(clear) else 0


def _thinned(x: np.ndarray, y: np.ndarray, max_points: int) -> np.ndarray:
    """Indices of at most `max_points` points, even along the curve of logs; the last is kept."""
    if len(x) <= max_points:
        return np.arange(len(x))
    falling = np.minimum.accumulate(y)
    length = np.append(0.0, np.cumsum(np.hypot(np.diff(x), np.diff(falling))))
    wanted = np.linspace(0, length[-1], max_points)
    return np.unique(np.minimum(np.searchsorted(length, wanted * (1 - 1e-12)), len(x) - 1))
