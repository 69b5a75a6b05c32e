"""Checks of gaps, and what is wrong with those that no law can be fitted to."""

import warnings
from typing import Any

import numpy as np

from gflow.arguments import ArgumentError, Described, is_concrete, real_array

MIN_POINTS = 6
# Gaps above this fraction of the largest are no rounding errors.
_NO_ROUNDING = 1e-11


def checked_gap(ts: Any, gap: Any) -> tuple[np.ndarray, np.ndarray]:
    """The finite gaps at times after zero. Warns of entries that are not finite.

    **Raises:** `ArgumentError` for what is no real number, other shapes, and times out of order.
    """
    t, g = _numbers("ts", ts), _numbers("gap", gap)
    if t.ndim != 1 or t.shape != g.shape:
        got = Described(f"shapes {t.shape} and {g.shape}")
        one = ", those of one `trajectory.member(k)`" if t.ndim == 2 else ""
        raise ArgumentError("ts, gap", got, f"two arrays of one shape (times,){one}")
    if np.any(np.diff(t[np.isfinite(t)]) < 0):
        raise ArgumentError("ts", Described("times that go back"), "times in order")
    known = np.isfinite(t) & np.isfinite(g)
    missing = int(np.sum(~known))
    words = f"{missing} of {len(t)} entries that are NaN or infinite"
    if missing == len(t) and missing:
        raise ArgumentError("gap", Described(words), f"at least {MIN_POINTS} numbers")
    if missing:
        warnings.warn(f"`ts`, `gap`: left out {words}", stacklevel=3)
    keep = known & (t > 0)
    return t[keep], g[keep]


def _numbers(name: str, value: Any) -> np.ndarray:
    wanted = "real numbers, such as trajectory.ts and trajectory.risk - limit"
    if not is_concrete(value):
        raise ArgumentError(name, Described("traced numbers"), "known ones: outside jax.jit")
    if hasattr(value, "ts"):
        raise ArgumentError(name, Described(f"a {type(value).__name__}"), wanted)
    kind = getattr(getattr(value, "dtype", None), "kind", "")
    if kind in ("m", "M"):
        wanted = "numbers, such as (ts - ts[0]) / np.timedelta64(1, 's')"
    elif kind == "c":
        wanted = "real numbers, such as np.abs(gap)"
    return real_array(name, value, wanted)


def checked_window(window: Any, t: np.ndarray) -> tuple[float, float] | None:
    """The first and last time of a window. **Raises:** `ArgumentError` if it holds too few times
    of a gap."""
    if window is None:
        return None
    wanted = "two times, (first, last), first < last"
    try:
        first, last = (float(bound) for bound in window)
    except (TypeError, ValueError):
        raise ArgumentError("window", window, wanted) from None
    if not first < last:
        raise ArgumentError("window", window, wanted)
    count = int(np.sum((t >= first) & (t <= last)))
    if count < MIN_POINTS and len(t) >= MIN_POINTS:
        got = Described(f"({first:g}, {last:g}), which holds {count} of the times")
        span = f"at least {MIN_POINTS} of those from {t[0]:g} to {t[-1]:g}"
        raise ArgumentError("window", got, span)
    return first, last


def ends_at_itself(g: np.ndarray) -> bool:
    """Whether the last gap is 0 by construction, as that of `risk - risk[-1]`: it alone is 0, and
    the one before is no rounding error."""
    if len(g) < MIN_POINTS or g[-1] != 0:
        return False
    return bool(np.all(g[:-1] > 0) and g[-2] > _NO_ROUNDING * g.max())


def no_law_for(t: np.ndarray, g: np.ndarray) -> ArgumentError:
    """What is wrong with a gap of which too few points can be fitted."""
    wanted = f"at least {MIN_POINTS} with t > 0 and gap > 0"
    if len(t) < MIN_POINTS:
        return ArgumentError("gap", Described(f"{len(t)} points"), wanted)
    positive = g > 0
    others = int(np.sum(~positive))
    if others > len(g) / 3 or len(g) - others < MIN_POINTS:
        lowest = f", down to {g.min():.4g}" if g.min() < 0 else ""
        got = f"{others} of {len(g)} entries that are zero or negative{lowest}"
        return ArgumentError("gap", Described(got), f"{wanted}; a lower limit raises the gap")
    t, g = t[positive], g[positive]
    low = int(np.argmin(g))
    high = low + int(np.argmax(g[low:]))
    lowest, highest = f"{g[low]:.4g} at t = {t[low]:.4g}", f"{g[high]:.4g} at t = {t[high]:.4g}"
    if low < MIN_POINTS:
        got = f"a gap that grows, from {lowest} to {highest}"
        return ArgumentError("gap", Described(got), "one that falls")
    if g[high] > 2 * g[low]:
        got = f"a gap that falls to {lowest} and rises to {highest}"
        # What comes after the lowest point may be noise; the rise is not.
        before = high - 1 if high == len(g) - 1 else low
        option = f"window=({t[0]:.4g}, {t[before]:.4g}) leaves the rise out"
        return ArgumentError("gap", Described(got), f"one that falls; {option}")
    return ArgumentError("gap", Described("too few points above its rounding error"), wanted)
