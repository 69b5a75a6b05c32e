"""How fast a gap closes: one fitted law, and the law that is called."""

import enum
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np

from gflow.display import Shown
from gflow.rates.estimates import Estimate
from gflow.rates.laws import LawName
from gflow.rates.local_slopes import LocalSlopes
from gflow.rates.slowest_mode import RESOLUTION

NOUNS: dict[LawName, str] = {
    "exponential": "an exponential",
    "power": "a power law",
    "finite time": "a finite time",
}


class RateStatus(enum.StrEnum):
    """Whether a law of decay is called, and why not."""

    CALLED = "called"
    UNDECIDED = "undecided"
    """Laws fit about equally well, or the tail shows too little of the better one."""
    NOT_YET_CONVERGED = "not yet converged"
    """The fitted limit of the risk is below zero: the times are too early for a rate."""
    MAY_NOT_DECAY = "may not decay"
    """The rate may be zero or negative."""
    NO_LAW_FITS = "no law fits"
    """The deviations from every law are systematic, or its value drifts along the gap."""


@dataclass(frozen=True, repr=False)
class Fit(Shown):
    """One law on its tail.

    - `law`: "exponential", C e^{−rt} (1 + c e^{−st}); "power", C z^{−p} (1 + c z^{−s}) with
      z = t + t0; or "finite time", C (T − t)^q (1 + c (T − t)). Forms with and without c and t0 are
      weighted by their information criteria.
    - `value`: r, p or T; `interval`: its 95 % interval.
    - `window`: the first and last time of the tail; `num_points`: the number of points in it;
      `num_effective`: the number of independent deviations that they amount to.
    - `rms`: root mean square deviation in log gap. `seen`: how much of the law the tail shows:
      r times its length, or the range of log(t + t0) or log(T − t).
    """

    law: LawName
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
    def is_positive(self) -> bool:
        """Whether the whole interval is: otherwise the tail says little of this law."""
        return self.interval[0] > 0

    @property
    def exponent(self) -> float | None:
        """p of a power law, q of a finite time; None for an exponential."""
        if self.law == "finite time":
            return self.estimate.parameters.slope
        return self.value if self.law == "power" else None

    @property
    def constant(self) -> float:
        """C."""
        return self.estimate.law.constant(self.estimate.params, self.window[1])

    def __call__(self, t: Any) -> np.ndarray:
        """The fitted gap at times t."""
        t = np.asarray(t, dtype=float)
        with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
            logs = self.estimate.law.curve(self.estimate.params, t / self.window[1])[0]
        return np.asarray(np.exp(logs))

    def summary(self) -> dict[str, str]:
        """The main facts in words, by name."""
        low, high = self.interval
        return {
            "law": self.formula(),
            "95 % interval": f"{low:.6g} to {high:.6g}",
            "tail": f"t = {self.window[0]:.4g} to {self.window[1]:.4g}, {self.num_points} points",
            "deviation": f"{self.rms:.2g} in log gap",
        }

    def formula(self) -> str:
        """The law, with its value rounded to its standard error."""
        number = _rounded(self.value, self.std_error)
        if self.law == "finite time":
            return f"(T - t)^{self.exponent:.3g} with T = {number}"
        return f"exp(-({number}) t)" if self.law == "exponential" else f"t^-({number})"


class AsymptoticRate(NamedTuple):
    """The rate −d log gap / dt for t → ∞, that of the slowest mode of a sum of exponentials.

    - `value`: that of the best sum; NaN if no sum fits.
    - `interval`: all rates whose slowest mode agrees with the tail. It starts at 0 where a mode
      that stays cannot be excluded, as for power laws, and ends at infinity if no sum fits.
    - `min_weight`: the fraction of the gap at the end that the slowest mode has to carry. Modes
      that carry less cannot be seen, and no interval can exclude them.
    - `rates`, `weights`, shape (modes,): the best sum; the weights are fractions of the gap at the
      end. Rates next to each other stand for one mode between them.
    """

    value: float
    interval: tuple[float, float]
    min_weight: float
    rates: np.ndarray
    weights: np.ndarray

    @property
    def at_end(self) -> float:
        """−d log gap / dt of the best sum at the end of the tail; NaN if no sum fits."""
        total = self.weights.sum()
        return float(self.rates @ self.weights / total) if total > 0 else np.nan


class Prediction(NamedTuple):
    """Gaps at later times, shape (times,): the value, and the ends of its 95 % interval."""

    value: np.ndarray
    low: np.ndarray
    high: np.ndarray


@dataclass(frozen=True, repr=False)
class Rate(Shown):
    """How fast a gap closes.

    - `law`: "exponential", "power", "finite time" or "undecided". `status`: a `RateStatus`;
      `reason`: why no law is called, "" if one is. `better`: the law of the three that fits best,
      also if none is called.
    - `tail_value`, `tail_interval`, `std_error`, `constant`: those of the better law on its tail: r
      of C e^{−rt}, p of C (t + t0)^{−p}, or the time T of C (T − t)^q, whose q is `exponent`; the
      95 % interval.
    - `value`, `interval`: the same for t → ∞. For an exponential that is the rate of the slowest
      mode, in an interval as wide as modes require that cannot be seen yet, of `asymptotic`, an
      `AsymptoticRate`. The interval of a power is that of the tail and `still_open` on both sides:
      how far the exponent may be from its limit if it drifts like 1/log t, as that of
      t^{−p} log t. For a finite time it is that of the tail.
    - `window`: the times of the fitted tail; `num_points`: the number of points in it.
    - `patterns`: the number of patterns that the gap passes through on its tail, 1 if no kinks were
      given.
    - `limit`: the limit of the gap: 0, or its estimate with `known_limit=False`.
    - `fits`: the `Fit` of each law. `criterion`: the information criterion of each, less the
      smallest, on the tail of the law whose value is known best.
    - `slopes`: local slopes of the gap and their plateaus, a `LocalSlopes`.
    - `predicted`: the exponential rate that was passed in to compare with. `first`: the first time
      that could be fitted.
    """

    better: LawName
    status: RateStatus
    reason: str
    limit: float
    fits: dict[LawName, Fit]
    criterion: dict[LawName, float]
    slopes: LocalSlopes
    asymptotic: AsymptoticRate
    patterns: int = 1
    predicted: float | None = None
    first: float = np.nan

    @property
    def law(self) -> LawName | Literal["undecided"]:
        return self.better if self.status is RateStatus.CALLED else "undecided"

    @property
    def best(self) -> Fit:
        """The fit of the better law."""
        return self.fits[self.better]

    @property
    def value(self) -> float:
        low, high = self.interval
        # The better law says it to more digits, where it is that of the slowest mode.
        if low <= self.tail_value <= high or np.isnan(self.asymptotic.value):
            return self.tail_value
        return self.asymptotic.value

    @property
    def interval(self) -> tuple[float, float]:
        if self.better == "exponential":
            return self.asymptotic.interval
        low, high = self.tail_interval
        return (max(low - self.still_open, 0.0), high + self.still_open) if low > 0 else (low, high)

    @property
    def still_open(self) -> float:
        """How far the exponent of a power may be from its limit, if it drifts like 1/log t: that at
        the end changes by c s² per unit of log t, with the second term c z^{−s} of the fit."""
        if self.better != "power":
            return 0.0
        found = self.best.estimate.parameters
        return abs(found.second_term) * found.second_rate**2 * np.log(self.window[1] / self.first)

    @property
    def tail_value(self) -> float:
        return self.best.value

    @property
    def std_error(self) -> float:
        return self.best.std_error

    @property
    def tail_interval(self) -> tuple[float, float]:
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

    def predict(self, ts: Any) -> Prediction:
        """The gap at times after the tail, such as a decade ahead.

        The interval is that of the better law: of an exponential, with rates from the lowest for
        t → ∞ to the highest on the tail or at its end, below which the rate of a sum of modes with
        positive weights stays. If no law is called, it holds those of all laws that were fitted,
        and of a gap that stays.
        """
        t = np.atleast_1d(np.asarray(ts, dtype=float))
        value = self(t)
        called = self.status is RateStatus.CALLED
        fits = [self.best] if called else list(self.fits.values())
        ranges = [_predicted(fit, self.asymptotic, t) for fit in fits]
        low = np.min([low for low, _ in ranges], axis=0)
        high = np.max([high for _, high in ranges], axis=0)
        if not called:
            high = np.maximum(high, self(self.window[1]))
        return Prediction(value, np.exp(low), np.exp(high))

    def formula(self) -> str:
        """The better law, with its value rounded to its standard error."""
        return self.best.formula()

    @property
    def verdict(self) -> str:
        """What was found, as a sentence."""
        start, end = self.window
        where = f"from t = {start:.4g} to {end:.4g}"
        if self.status is not RateStatus.CALLED:
            best = f"; best {self.formula()}" if self.best.is_positive else ""
            return f"{self.status}: {self.reason}{best}, {where}"
        name = "power law" if self.better == "power" else self.better
        asymptotic = ""
        if self.better == "exponential":
            low, high = self.interval
            asymptotic = f"; for t → ∞ the rate is between {low:.5g} and {high:.5g}"
        ends = f"{asymptotic}{self._others()}{self._prediction()}"
        return f"{name} {self.formula()} {where}{ends}"

    def _others(self) -> str:
        rest: dict[LawName, float] = {
            law: c for law, c in self.criterion.items() if law != self.better
        }
        if not rest:
            return ""
        law = min(rest, key=lambda other: rest[other])
        if rest[law] <= self.criterion[self.better]:
            return ""
        if not np.isfinite(rest[law]):
            return f"; {NOUNS[law]} does not fit"
        # Deviations of equal likelihood, with the price of the parameters left out.
        return f"; {NOUNS[law]} is e^{rest[law] / 2:.0f} times less likely"

    def _prediction(self) -> str:
        if self.predicted is None or self.better != "exponential":
            return ""
        text = f"; the spectrum predicts {self.predicted:.6g}, "
        ranges = self.tail_interval, self.interval
        if any(low <= self.predicted <= high for low, high in ranges):
            return text + "inside the interval"
        percent = 100 * (self.predicted / self.value - 1)
        side = "above" if percent > 0 else "below"
        size = f"{abs(percent):.2g}" if abs(percent) < 99.5 else f"{abs(percent):.0f}"
        return text + f"{size} % {side} the fitted rate"

    def summary(self) -> dict[str, str]:
        """The main facts in words, by name."""
        facts = {"verdict": self.verdict, **self.best.summary()}
        if self.limit != 0:
            facts["limit"] = f"{self.limit:.6g}"
        others = [f"{fit.formula()}" for law, fit in self.fits.items() if law != self.better]
        return facts | ({"other laws": "; ".join(others)} if others else {})

    def __repr__(self) -> str:
        return f"Rate: {self.verdict}"


def _predicted(fit: Fit, asymptotic: AsymptoticRate, t: np.ndarray) -> tuple[Any, Any]:
    """The logs of the lowest and highest gaps at times t by one law."""
    end, (low, high) = fit.window[1], fit.interval
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        level = np.log(fit(end))
        margin = 2 * fit.rms
        if fit.law == "exponential":
            # Logs of positive sums are convex: their slope at the end is the steepest ahead.
            steepest = asymptotic.at_end * (1 + RESOLUTION)
            fastest = np.fmax(max(asymptotic.interval[1], high), steepest)
            slowest = max(min(asymptotic.interval[0], low), 0.0)
            return level - fastest * (t - end) - margin, level - slowest * (t - end) + margin
        if fit.law == "power":
            offset = fit.estimate.parameters.offset * end
            reach = (high - low) / 2 * np.log((t + offset) / (end + offset)) + margin
            return np.log(fit(t)) - reach, np.log(fit(t)) + reach
        power = fit.estimate.parameters.slope
        left = lambda last: np.log(np.maximum(last - t, 0.0) / max(last - end, 1e-300))
        return level + power * left(low) - margin, level + power * left(high) + margin


def _rounded(value: float, error: float) -> str:
    """The value to the first digit of its error; very small and large ones by powers of ten."""
    if not 1e-4 <= abs(value) < 1e6 and value != 0:
        power = int(np.floor(np.log10(abs(value))))
        return f"({_rounded(value / 10.0**power, error / 10.0**power)})e{power}"
    digits = 9 if error <= 0 else -int(np.floor(np.log10(error)))
    digits = min(max(digits, 0), 12)
    return f"{value:.{digits}f} ± {error:.1g}"
