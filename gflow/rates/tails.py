"""The tail of a gap that can be fitted: thinned, and cut where the gap meets its rounding."""

from typing import Any, NamedTuple

import numpy as np

from gflow.arguments import ArgumentError, Described, RealScalar

LEAST_POINTS = 6
_MOST_POINTS = 150
# Decreases that are too close together are differences of deviations.
_MOST_DECREASES = (60, 40, 25, 16)
# Below this share of the largest gap, and of the risk for decreases a hundred times it, gaps are
# taken for rounding.
_ROUNDING = 1e-12
# Noise deviates from a gap that is so many times larger by less than other things do.
_CLEAR = 300.0


class Points(NamedTuple):
    """What is fitted.

    `ends`: times, shape (points, 1), or first and last times of decreases, (points, 2); `logs`: of
    the gaps or decreases. `closed`: the first time from which on the gap is at its floor, `floor`;
    None if there is none.
    """

    ends: np.ndarray
    logs: np.ndarray
    closed: float | None = None
    floor: float = 0.0


def checked(ts: Any, gap: Any) -> tuple[np.ndarray, np.ndarray]:
    """Finite gaps at times after zero."""
    t, g = np.asarray(ts, dtype=float), np.asarray(gap, dtype=float)
    if t.ndim != 1 or t.shape != g.shape:
        got = Described(f"shapes {t.shape} and {g.shape}")
        raise ArgumentError("ts, gap", got, "two arrays of one shape (times,)")
    if np.any(np.diff(t[np.isfinite(t)]) < 0):
        raise ArgumentError("ts", Described("times that go back"), "times in order")
    keep = np.isfinite(t) & np.isfinite(g) & (t > 0)
    return t[keep], g[keep]


def _within(t, window) -> np.ndarray:
    return np.ones(len(t), bool) if window is None else (t >= window[0]) & (t <= window[1])


def of_gaps(t, g, window: tuple[RealScalar, RealScalar] | None) -> Points:
    """The positive gaps of known limit, up to their floor."""
    count, floor = _above_floor(g)
    closed = float(t[count]) if count < len(t) else None
    inside = _within(t[:count], window)
    t, g = t[:count][inside], g[:count][inside]
    t, first = np.unique(t[g > 0], return_index=True)
    g = g[g > 0][first]
    _enough(len(t), "gap > 0")
    if window is not None and closed is not None and closed > window[1]:
        closed = None
    kept = _thinned(np.log(t), np.log(g), _MOST_POINTS)
    return Points(t[kept, None], np.log(g[kept]), closed, floor)


def of_decreases(t, risk, window: tuple[RealScalar, RealScalar] | None) -> Points:
    """The decreases between saved times, from which the limit drops out."""
    inside = _within(t, window)
    t, first = np.unique(t[inside], return_index=True)
    risk = risk[inside][first]
    best: Points | None = None
    if len(t) > 1:
        fallen = risk - risk[-1]
        height = np.log(np.maximum(fallen, _ROUNDING * max(fallen.max(), np.finfo(float).tiny)))
        for most in _MOST_DECREASES:
            kept = _thinned(np.log(t), height, most)
            ends, fall = np.stack([t[kept][:-1], t[kept][1:]], axis=1), -np.diff(risk[kept])
            seen = 100 * _ROUNDING * np.abs(risk[kept][1:])
            count = _before_noise(fall, seen)
            use = (fall > seen)[:count]
            points = Points(ends[:count][use], np.log(fall[:count][use]))
            if best is None or len(points.logs) >= LEAST_POINTS:
                best = points
            if count and use.mean() > 0.9:
                break
    _enough(0 if best is None else len(best.logs), "a decreasing gap")
    assert best is not None
    return best


def _enough(count: int, what: str) -> None:
    if count < LEAST_POINTS:
        got = Described(f"{count} usable points")
        raise ArgumentError("gap", got, f"at least {LEAST_POINTS} with t > 0 and {what}")


def _above_floor(g: np.ndarray) -> tuple[int, float]:
    """How many gaps from the first on stand clear of the noise in which they end, and its size.

    The noise begins where all later gaps are below the rounding of the largest, or at the first gap
    from which on a third of the gaps are not positive, or exceeded by half by later ones, and the
    second half of them is no smaller than half the first.
    """
    size = np.abs(g)
    top = float(size.max(initial=0.0))
    later = np.append(np.maximum.accumulate(size[::-1])[::-1][1:], 0.0)
    floor = _ROUNDING * top
    noisy = (g <= 0) | (later > 1.5 * size)
    share = np.cumsum(noisy[::-1])[::-1] / np.arange(len(g), 0, -1)
    for k in np.flatnonzero(noisy & (share > 1 / 3)):
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


def _before_noise(fall: np.ndarray, seen: np.ndarray) -> int:
    """How many decreases there are before those of which a third or more are not seen, and which
    are ten times larger than these."""
    missed = fall <= seen
    share = np.cumsum(missed[::-1])[::-1] / np.arange(len(fall), 0, -1)
    noise = np.flatnonzero(missed & (share >= 1 / 3))
    if not len(noise):
        return len(fall)
    first = int(noise[0])
    clear = np.flatnonzero(fall[:first] > 10 * np.abs(fall[first:]).max())
    return int(clear[-1]) + 1 if len(clear) else 0


def _thinned(x: np.ndarray, y: np.ndarray, most: int) -> np.ndarray:
    """Indices of at most so many points, even along the curve of logs (x, y), the last one in."""
    if len(x) <= most:
        return np.arange(len(x))
    falling = np.minimum.accumulate(y)
    length = np.append(0.0, np.cumsum(np.hypot(np.diff(x), np.diff(falling))))
    wanted = np.linspace(0, length[-1], most)
    return np.unique(np.minimum(np.searchsorted(length, wanted * (1 - 1e-12)), len(x) - 1))
