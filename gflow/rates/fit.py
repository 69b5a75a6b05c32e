"""How fast a gap closes: which law of decay its tail follows, and with which rate."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from gflow.arguments import RealScalar, finite
from gflow.rates import tails
from gflow.rates.estimates import Estimate, Tail, longest_tail
from gflow.rates.laws import LAWS, POWERS, SECOND
from gflow.rates.local_slopes import LocalSlopes, local_slopes

# Differences of the information criterion from here on are "very strong" (Kass and Raftery, 1995).
_DECISIVE = 10.0
# How much of a law has to be seen before it is called: two times 1/r, half a decade of t + t0, or a
# decade of T − t.
_SEEN = {"exponential": 2.0, "power": 0.5 * np.log(10.0), "finite": np.log(10.0)}
# And by which factor the gap has to fall over the tail.
_FALLS = {"exponential": 2.0, "power": 1.3, "finite": 10.0}
# Powers of T − t; smaller and larger ones imitate other laws.
_POWERS = 0.2, 12.0
_STEEP = 0.95 * POWERS[1]


@dataclass(frozen=True)
class Fit:
    """One law on its tail.

    - `law`: "exponential", C e^{−rt} (1 + c e^{−st}); "power", C z^{−p} (1 + c z^{−s}) with
      z = t + t0; or "finite", C (T − t)^q (1 + c (T − t)). Forms with and without c and t0 are
      weighted by their information criteria.
    - `value`: r, p or T; `interval`: its 95 % interval.
    - `window`: the first and last time of the tail, and `num_points` in it; `num_effective`: how
      many independent deviations they amount to.
    - `rms`: root mean square deviation in log gap. `seen`: how much of the law the tail shows:
      r times its length, or the range of log(t + t0) or log(T − t).
    """

    law: str
    value: float
    interval: tuple[float, float]
    window: tuple[float, float]
    num_points: int
    seen: float
    estimate: Estimate

    @property
    def rms(self) -> float:
        return self.estimate.rms

    @property
    def num_effective(self) -> float:
        return self.estimate.num_effective

    @property
    def std_error(self) -> float:
        """Half of the interval over 1.96."""
        return (self.interval[1] - self.interval[0]) / 3.92

    @property
    def exponent(self) -> float | None:
        """p of a power law, q of a finite time; None for an exponential."""
        if self.law == "finite":
            return float(self.estimate.params[1])
        return self.value if self.law == "power" else None

    @property
    def constant(self) -> float:
        """C."""
        form, p, end = self.estimate.law, self.estimate.params, self.window[1]
        if self.law == "exponential":
            return float(np.exp(p[0] + p[1]))
        if self.law == "finite":
            return float(np.exp(p[0] - p[1] * (p[2] + np.log(end))))
        return float(np.exp(p[0] + p[1] * np.log(end * (1 + form.offset(p)))))

    def __call__(self, t: Any) -> np.ndarray:
        """The fitted gap at times t."""
        t = np.asarray(t, dtype=float)
        with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
            logs = self.estimate.law.curve(self.estimate.params, t / self.window[1])[0]
        return np.asarray(np.exp(logs))

    def formula(self) -> str:
        """The law, its value rounded to its standard error."""
        number = _rounded(self.value, self.std_error)
        if self.law == "finite":
            return f"(T - t)^{self.exponent:.3g} with T = {number}"
        return f"exp(-({number}) t)" if self.law == "exponential" else f"t^-({number})"


@dataclass(frozen=True)
class Rate:
    """How fast a gap closes.

    - `law`: "exponential", "power", "finite" or "undecided"; `better`: the law of the three that
      fits best, also if undecided; `reason`: why it is undecided, "" if it is not.
    - `value`, `interval`, `std_error`, `constant`: of the better law: r of C e^{−rt}, p of
      C (t + t0)^{−p}, or the time T of C (T − t)^q, whose q is `exponent`; the 95 % interval.
    - `window`: the times of the tail that was fitted, and `num_points` in it.
    - `limit`: the limit of the gap: 0, or its estimate with `known_limit=False`.
    - `fits`: the `Fit` of each law; `criterion`: the information criterion of each, less the least,
      on the tail of the law whose value is known best.
    - `slopes`: local slopes of the gap and their plateaus, a `LocalSlopes`.
    - `predicted`: the exponential rate that was passed in to compare with.
    """

    law: str
    better: str
    reason: str
    limit: float
    fits: dict[str, Fit]
    criterion: dict[str, float]
    slopes: LocalSlopes
    predicted: float | None = None

    @property
    def best(self) -> Fit:
        return self.fits[self.better]

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
    def window(self) -> tuple[float, float]:
        return self.best.window

    @property
    def num_points(self) -> int:
        return self.best.num_points

    @property
    def constant(self) -> float:
        return self.best.constant

    @property
    def exponent(self) -> float | None:
        return self.best.exponent

    def __call__(self, t: Any) -> np.ndarray:
        """The gap of the better law at times t."""
        return self.best(t)

    def formula(self) -> str:
        """The better law, its value rounded to its standard error."""
        return self.best.formula()

    @property
    def verdict(self) -> str:
        """What was found, as a sentence."""
        start, end = self.window
        where = f"from t = {start:.4g} to {end:.4g}"
        if self.law == "undecided":
            return f"undecided: {self.reason}; best {self.formula()}, {where}"
        names = {"exponential": "exponential", "power": "power law", "finite": "finite time"}
        return f"{names[self.law]} {self.formula()} {where}{self._others()}{self._prediction()}"

    def _others(self) -> str:
        rest = {law: c for law, c in self.criterion.items() if law != self.law}
        if not rest:
            return ""
        law = min(rest, key=lambda other: rest[other])
        name = {"exponential": "an exponential", "power": "a power law", "finite": "a finite time"}
        if not np.isfinite(rest[law]):
            return f"; {name[law]} does not fit"
        # Deviations of equal likelihood, with the price of the parameters left out.
        return f"; {name[law]} is e^{rest[law] / 2:.0f} times less likely"

    def _prediction(self) -> str:
        if self.predicted is None or self.law != "exponential":
            return ""
        low, high = self.interval
        if low <= self.predicted <= high:
            return f"; the spectrum predicts {self.predicted:.6g}, inside the interval"
        apart = abs(self.value / self.predicted - 1)
        return f"; the spectrum predicts {self.predicted:.6g}, {apart:.2g} of it away"

    def __repr__(self) -> str:
        return f"Rate: {self.verdict}"


def fit_rate(
    ts: Any,
    gap: Any,
    *,
    window: tuple[RealScalar, RealScalar] | None = None,
    known_limit: bool = True,
    predicted: RealScalar | None = None,
) -> Rate:
    r"""Says by which law a gap closes, and fits it to the tail:

    $$C e^{-rt}, \qquad C\,(t + t_0)^{-p}, \qquad C\,(T - t)^q .$$

    Least squares in log gap. An exponential may have a second term $c\,e^{-(r+s)t}$ and a power law
    an offset t0 and a second term $c\,(t + t_0)^{-p-s}$, up to a third of the first at the end of
    the tail; forms are averaged over by their information criteria. Deviations from a law are taken
    for an autoregressive process along the points, whose correlation is averaged over by its
    restricted likelihood. The tail is the one of some nested ones whose interval is shortest, where
    tails whose deviations still get smaller towards the end are punished; the interval includes the
    spread over the tails within it, and the change if its last third is left out. It ends where the
    gap meets its rounding.

    **When a law is called.** Its information criterion, −2 log likelihood + (parameters) · log
    (independent deviations), is lower than that of the other laws by 10 or more, on the tail of the
    law whose value is known best; its rate is positive with its whole interval; its second term
    is below the third of the first that is allowed; the tail shows enough of it: two times 1/r,
    half a decade of t + t0, or a decade of T − t; and the gap, if its limit is known, falls over
    the tail by a factor of 2, 1.3, or 10. Otherwise it is "undecided". Powers of t above 11.4
    cannot be told from exponentials and are taken for these; powers of T − t lie between 0.2 and
    12.

    If the limit of the risk is not known (`known_limit=False`), pass the risk itself: the laws are
    then fitted to the decreases between saved times, from which the limit drops out; it is
    estimated afterwards.

    **Arguments:**

    - `ts`, `gap`: shape (times,); for example `flow.ts` and `flow.risk - limit`. Only times after 0
      are used, and of many at most 150, evenly along the curve in logs.
    - `window`: times of the tail, (first, last), instead of the tail that is found.
    - `known_limit`: whether the limit of `gap` is zero.
    - `predicted`: an exponential rate to compare with, as twice the least positive eigenvalue of
      the Hessian of the risk at the limit.

    **Returns:** a `Rate`. Over 200 synthetic trajectories with correlated deviations and further
    terms its 95 % intervals hold the truth for 90 to 99 % (`tests/test_rates.py`). Where the times
    of a finite one are coarse next to T − t, its interval is too short.

    **Raises:** `ArgumentError` for shapes that differ or fewer than 6 usable points.
    """
    prediction = None if predicted is None else finite("predicted", predicted)
    t, g = tails.checked(ts, gap)
    points = tails.of_gaps(t, g, window) if known_limit else tails.of_decreases(t, g, window)
    end = float(points.ends[-1, -1])
    u = points.ends / end
    whole = window is not None
    found = {
        law: tail
        for law, forms in LAWS.items()
        if (tail := longest_tail(forms, u, points.logs, enough=_enough(law), whole=whole))
    }
    fits = {law: _fit(law, tail, u, end) for law, tail in found.items()}
    better, criterion = _compare(found, _contradicted(fits, points))
    limit = 0.0
    if not known_limit:
        limit = float(g[t <= end][-1] - fits[better](end))
    reason = _doubt(better, fits[better], criterion)
    if known_limit and not reason:
        reason = _hardly_closes(better, fits[better], t, g)
    # A mean of squares has no limit below zero; rounding apart.
    if not known_limit and limit < -1e-9 * np.max(g) and np.min(g) >= 0:
        reason = "still travelling, the better law has a limit below zero"
    return Rate(
        law="undecided" if reason else better,
        better=better,
        reason=reason,
        limit=limit,
        fits=fits,
        criterion=criterion,
        slopes=local_slopes(points.ends, points.logs),
        predicted=prediction,
    )


def _fit(law: str, tail: Tail, u, end: float) -> Fit:
    value, interval, estimate = tail.value, tail.interval, tail.estimate
    first = float(u[-tail.count, 0])
    if law == "exponential":
        scale = lambda r: r / end
    elif law == "power":
        scale = lambda p: p
    else:
        scale = lambda log_left: end * (1 + np.exp(np.minimum(log_left, 500.0)))
    return Fit(
        law=law,
        value=float(scale(value)),
        interval=(float(scale(interval[0])), float(scale(interval[1]))),
        window=(first * end, end),
        num_points=tail.count,
        seen=_seen(law, estimate, first),
        estimate=estimate,
    )


def _seen(law: str, estimate: Estimate, first: float) -> float:
    """How much of a law a tail shows that begins at `first` times its end; see `Fit`."""
    p = estimate.params
    if law == "exponential":
        return float(p[1] * (1 - first))
    if law == "power":
        offset = estimate.law.offset(p)
        return float(np.log((1 + offset) / (first + offset)))
    return float(np.log1p((1 - first) * np.exp(-p[2])))


def _hardly_closes(law: str, fit: Fit, t: np.ndarray, g: np.ndarray) -> str:
    """Why a law is not called if the gap itself falls too little over its tail: on a plateau, as
    that of a wrong limit or of a saddle, any law fits."""
    within = g[(t >= fit.window[0]) & (t <= fit.window[1]) & (g > 0)]
    factor = float(within.max() / within.min()) if len(within) else 1.0
    if factor >= _FALLS[law]:
        return ""
    return (
        f"the gap falls by a factor of {factor:.3g} over the tail, and {_FALLS[law]:g} is asked "
        "for: it still travels, or the limit is wrong"
    )


def _enough(law: str) -> Callable[[Estimate, float], bool]:
    return lambda estimate, first: _seen(law, estimate, first) >= _SEEN[law]


def _contradicted(fits: dict[str, Fit], points: tails.Points) -> set[str]:
    """Laws that see a gap far above the floor at the time when it is there; powers too high to be
    told from exponentials; finite times with powers or times that are none."""
    out = {"finite"} if "finite" in fits and not _is_finite(fits["finite"]) else set()
    if "power" in fits and fits["power"].value > _STEEP:
        out.add("power")
    if "finite" in out or points.closed is None:
        return out
    high = 1e3 * max(points.floor, np.finfo(float).tiny)
    return out | {law for law in ("exponential", "power") if fits[law](points.closed) > high}


def _is_finite(fit: Fit) -> bool:
    """Whether the power is one, and the time is not at its bound, where a straight line has it."""
    low, high = _POWERS
    first = fit.window[0] / fit.window[1]
    _, most = fit.estimate.law.bounds(first)
    return bool(low < fit.estimate.params[1] < high and fit.estimate.params[2] < most[0] - 0.01)


def _compare(found: dict[str, Tail], contradicted: set[str]) -> tuple[str, dict[str, float]]:
    """The better law, and the information criteria less the least."""

    def blurred(law: str) -> float:
        low, high = found[law].interval
        # Of finite times it is log (T − t) that is known so well.
        size = 1.0 if law == "finite" else abs(found[law].value)
        return (high - low) / size if size > 0 else float("inf")

    allowed = [law for law in found if law not in contradicted] or list(found)
    count = found[min(allowed, key=blurred)].count
    values = dict.fromkeys(found, np.inf)
    for law in allowed:
        estimate = found[law].estimates.get(count)
        if estimate is not None and not (law == "power" and estimate.params[1] > _STEEP):
            values[law] = estimate.bic
    better = min(values, key=lambda law: values[law])
    least = values[better] if np.isfinite(values[better]) else 0.0
    return better, {law: value - least for law, value in values.items()}


def _doubt(law: str, fit: Fit, criterion: dict[str, float]) -> str:
    """Why the law is not called; empty if it is."""
    if law != "finite" and fit.interval[0] <= 0:
        return "not closing, the rate may be zero or negative"
    rivals = [other for other, c in criterion.items() if other != law and c < _DECISIVE]
    if rivals:
        return " and ".join([law, *rivals]) + " fit about as well"
    params = fit.estimate.params
    # As where one power law takes over from another: what is to come is not in the tail.
    if law != "finite" and len(params) > 3 and abs(params[2]) > 0.999 * SECOND:
        return "a second term is still a third of the first at the end, or more"
    if fit.seen < _SEEN[law] and law == "exponential":
        return f"the tail shows {fit.seen:.2g} times 1/r only"
    if fit.seen < _SEEN[law]:
        law = "a power law" if law == "power" else "a finite time"
        return f"the tail shows {fit.seen / np.log(10):.2g} decades of {law} only"
    return ""


def _rounded(value: float, error: float) -> str:
    """The value to the first digit of its error; very small and large ones by powers of ten."""
    if not 1e-4 <= abs(value) < 1e6 and value != 0:
        power = int(np.floor(np.log10(abs(value))))
        return f"({_rounded(value / 10.0**power, error / 10.0**power)})e{power}"
    digits = 9 if error <= 0 else -int(np.floor(np.log10(error)))
    digits = min(max(digits, 0), 12)
    return f"{value:.{digits}f} ± {error:.1g}"
