"""How fast a gap closes: exponential and power laws fitted to the tail of a trajectory."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from gflow.arguments import ArgumentError, Described, RealScalar

_LEAST_POINTS = 6
# Residual sums of squares closer than this factor leave the law undecided.
_DECISIVE = 2.0


def student_t(freedom: int) -> float:
    """The two-sided 95 % quantile of Student's distribution."""
    from scipy.special import stdtrit

    return float(stdtrit(freedom, 0.975))


@dataclass(frozen=True)
class Fit:
    """One law fitted by least squares in log gap.

    - `value`: r of the exponential law gap ≈ C e^{−r t}, or p of the power law gap ≈ C t^{−p}.
    - `std_error`: its standard error; `interval`: the 95 % interval, from independent deviations.
    - `log_constant`: log C. `rms`: the root mean square deviation in log gap.
    """

    value: float
    std_error: float
    interval: tuple[float, float]
    log_constant: float
    rms: float


@dataclass(frozen=True)
class Rate:
    """How fast a gap closes.

    - `law`: "exponential", "power" or "undecided" (both fit about as well, or nothing decays;
      `value` is then that of the better fit, named in `better`).
    - `value`, `std_error`, `interval`, `constant`: of the better law: gap ≈ C e^{−value·t}, or
      gap ≈ C t^{−value}; the 95 % interval.
    - `window`: the times of the tail that was fitted, and `num_points` in it.
    - `limit`: the limit of the gap: 0, or its estimate with `known_limit=False`.
    - `exponential`, `power`: both fits.
    """

    law: str
    better: str
    window: tuple[float, float]
    num_points: int
    limit: float
    exponential: Fit
    power: Fit

    @property
    def best(self) -> Fit:
        return self.exponential if self.better == "exponential" else self.power

    @property
    def value(self) -> float:
        return self.best.value

    @property
    def std_error(self) -> float:
        return self.best.std_error

    @property
    def interval(self) -> tuple[float, float]:
        return self.best.interval

    @property
    def constant(self) -> float:
        return float(np.exp(self.best.log_constant))

    def __call__(self, t: Any) -> np.ndarray:
        """The fitted gap at times t."""
        t = np.asarray(t, dtype=float)
        decay = -self.value * (t if self.better == "exponential" else np.log(t))
        return np.exp(self.best.log_constant + decay)

    def formula(self) -> str:
        """The better law, its value rounded to its standard error."""
        digits = 9 if self.std_error <= 0 else -int(np.floor(np.log10(self.std_error)))
        digits = min(max(digits, 0), 9)
        number = f"{self.value:.{digits}f} ± {self.std_error:.1g}"
        return f"exp(-({number}) t)" if self.better == "exponential" else f"t^-({number})"

    def __repr__(self) -> str:
        start, end = self.window
        undecided = "" if self.law != "undecided" else " (undecided between the two laws)"
        return (
            f"Rate: gap ~ {self.formula()}{undecided}, "
            f"from {self.num_points} points, t = {start:.4g} to {end:.4g}"
        )


def fit_rate(
    ts: Any,
    gap: Any,
    *,
    window: tuple[RealScalar, RealScalar] | None = None,
    known_limit: bool = True,
) -> Rate:
    r"""Fits $C e^{-rt}$ and $C t^{-p}$ to the tail of a gap that closes, and says which fits.

    Least squares in log gap, on the same points for both laws. A law is called when its residual
    sum of squares is smaller than the other's by a factor of at least two and its rate is positive;
    otherwise it is "undecided".

    If the limit of the risk is not known (`known_limit=False`), pass the risk itself: the laws are
    then fitted to the decrease between saved times,
    $L(t_k) - L(t_{k+1}) = C (e^{-r t_k} - e^{-r t_{k+1}})$, or the same with $t^{-p}$, from which
    the limit drops out; it is estimated afterwards.

    **Arguments:**

    - `ts`, `gap`: shape (times,); for example `flow.ts` and `flow.risk - limit`. Only times after 0
      are used, and gaps (decreases) above the rounding of the largest value, 1e-14 of it.
    - `window`: times of the tail, (first, last); by default the last decade of the usable times,
      or more where it has too few points.
    - `known_limit`: whether the limit of `gap` is zero.

    **Returns:** a `Rate`. Its intervals take the deviations from the law for independent, which
    those of trajectories are not: read them as lower bounds of the uncertainty.

    **Raises:** `ArgumentError` for shapes that differ or fewer than 6 usable points.
    """
    t, g = _positive_times(ts, gap)
    ends, y = _tail(t, g, window, known_limit)
    logs = np.log(ends)
    fits = {"exponential": _fit(ends, y), "power": _fit(logs, y)}
    better = min(fits, key=lambda law: fits[law].rms)
    best, worse = fits[better], max(fits.values(), key=lambda fit: fit.rms)
    decided = worse.rms**2 >= _DECISIVE * best.rms**2 and best.interval[0] > 0
    limit = 0.0
    if not known_limit:
        last = ends[-1, -1] if better == "exponential" else logs[-1, -1]
        limit = float(g[t <= ends[-1, -1]][-1] - np.exp(best.log_constant - best.value * last))
    return Rate(
        law=better if decided else "undecided",
        better=better,
        window=(float(ends[0, 0]), float(ends[-1, -1])),
        num_points=len(y),
        limit=limit,
        exponential=fits["exponential"],
        power=fits["power"],
    )


def _positive_times(ts, gap) -> tuple[np.ndarray, np.ndarray]:
    t, g = np.asarray(ts, dtype=float), np.asarray(gap, dtype=float)
    if t.ndim != 1 or t.shape != g.shape:
        got = Described(f"shapes {t.shape} and {g.shape}")
        raise ArgumentError("ts, gap", got, "two arrays of one shape (times,)")
    keep = np.isfinite(t) & np.isfinite(g) & (t > 0)
    return t[keep], g[keep]


def _tail(t, g, window, known_limit: bool) -> tuple[np.ndarray, np.ndarray]:
    """The times and logs of what is fitted: times (points, 1) of gaps, or (points, 2) of the
    first and last time of decreases."""
    if known_limit:
        ends, amount = t[:, None], g
    else:
        ends, amount = np.stack([t[:-1], t[1:]], axis=1), g[:-1] - g[1:]
    keep = amount > 1e-14 * np.max(np.abs(g), initial=0.0)
    if window is not None:
        keep &= (ends[:, 0] >= window[0]) & (ends[:, -1] <= window[1])
    ends, amount = ends[keep], amount[keep]
    if len(np.unique(ends[:, 0])) < _LEAST_POINTS:
        got = Described(f"{len(np.unique(ends[:, 0]))} usable points")
        what = "gap > 0" if known_limit else "a decreasing gap"
        raise ArgumentError("gap", got, f"at least {_LEAST_POINTS} with t > 0 and {what}")
    if window is None:
        first = min(np.searchsorted(ends[:, 0], ends[-1, -1] / 10), len(ends) - _LEAST_POINTS)
        ends, amount = ends[first:], amount[first:]
    return ends, np.log(amount)


def _fit(x: np.ndarray, y: np.ndarray) -> Fit:
    """Fits log C − r x to logs of gaps, or log(C (e^{−r x0} − e^{−r x1})) to logs of decreases."""
    middle, half = x.mean(axis=1), (x[:, -1] - x[:, 0]) / 2
    differences = x.shape[1] == 2
    # The decrease is 2 r half C e^{−r middle} sinhc(r half): a straight line but for the last.
    known = np.log(2 * half) if differences else 0.0
    slope = -np.polyfit(middle - middle.mean(), y - known, 1)[0]
    tangent = middle - middle.mean()
    for _ in range(50 if differences else 1):
        tangent = half * _log_sinhc_slope(slope * half) - middle
        tangent = tangent - tangent.mean()
        residual = y - (known + _log_sinhc(slope * half) - slope * middle)
        change = tangent @ (residual - residual.mean()) / (tangent @ tangent)
        slope += change
        if abs(change) <= 1e-14 * abs(slope):
            break
    residual = y - (known + _log_sinhc(slope * half) - slope * middle)
    constant = residual.mean()
    residual = residual - constant
    freedom = len(y) - 2
    error = float(np.sqrt(residual @ residual / freedom / (tangent @ tangent)))
    reach = student_t(freedom) * error
    with np.errstate(divide="ignore", invalid="ignore"):
        log_constant = float(constant - (np.log(slope) if differences else 0.0))
    value = float(slope)
    return Fit(value, error, (value - reach, value + reach), log_constant, _rms(residual))


def _rms(x: np.ndarray) -> float:
    return float(np.sqrt(np.mean(x**2)))


def _log_sinhc(u: np.ndarray) -> np.ndarray:
    """log(sinh(u)/u), also at 0 and where sinh overflows."""
    a = np.maximum(np.abs(u), 1e-4)
    large = a + np.log1p(-np.exp(-2 * a)) - np.log(2 * a)
    return np.where(np.abs(u) < 1e-4, u**2 / 6, large)


def _log_sinhc_slope(u: np.ndarray) -> np.ndarray:
    """coth(u) − 1/u, also at 0."""
    a = np.where(np.abs(u) < 1e-4, 1.0, u)
    return np.where(np.abs(u) < 1e-4, u / 3, 1 / np.tanh(a) - 1 / a)
