"""The value to which a risk falls, and the law by which it does, from its slope −‖∇L‖²."""

from typing import Any, NamedTuple

import numpy as np

from gflow.limits.growth import Growth, NormLaw, still_to_come
from gflow.limits.path import DECADE, Path
from gflow.risks import (
    BoxRisk,
    EmpiricalRisk,
    GaussianRisk,
    PopulationRisk,
    penalty_of,
    without_penalty,
)

# Gaps of up to so many roundings of the limit are lost in them.
_LOST = 1e4


class RiskLimit(NamedTuple):
    """The limit of the risk, and an interval of it."""

    value: float
    interval: tuple[float, float]

    @classmethod
    def at(cls, value: float, rounding: float, lowest: float) -> "RiskLimit":
        """A critical value that is known to rounding, which may have led below the lower bound."""
        low = max(value - rounding, lowest)
        high = max(value + rounding, low)
        return cls(min(max(value, low), high), (low, high))


def lower_bound(risk: Any) -> float:
    """0 for means of losses that are not negative, with weight decay or without; −∞ for functions
    of which no bound is known."""
    penalty, of_data = penalty_of(risk), without_penalty(risk)
    if penalty is not None and not penalty.only_decays:
        return -np.inf
    if isinstance(of_data, EmpiricalRisk):
        return 0.0 if of_data.has_known_loss else -np.inf
    return 0.0 if isinstance(of_data, (PopulationRisk, BoxRisk, GaussianRisk)) else -np.inf


def risk_limit(path: Path, lowest: float) -> RiskLimit:
    r"""The asymptotic critical value of a flow that has not come to its limit.

    Where the gap falls like $t^{-p}$, $-\dot L = \|\nabla L\|^2$ falls like $t^{-p-1}$, and the gap
    is $t\|\nabla L\|^2/p$. The interval is that of the values over the last two decades, with p
    from parts of these, and from its limit if it gets smaller like $p + a/\log t$. `lowest` is a
    lower bound of the risk.
    """
    last, values, exponents, gap = float(path.risk[-1]), [], [], np.inf
    # Where times span hundreds of decades, few are saved in each.
    long = 20.0 if path.end > 1e50 else 1.0
    for begin, end in np.array([(2.0, 1.5), (1.5, 1.0), (1.0, 0.5), (0.5, 0.0)]) * long:
        exponent = -2 * path.slope(path.speed, (begin, end)) - 1
        exponents.append(exponent)
        if not exponent > 0:
            values.append(lowest)
            continue
        # The exponent is that of the middle of its window.
        at = path.log_t[-1] - 0.5 * (begin + end) * np.log(10.0)
        speed = path.at(path.speed, at)
        gap = (np.exp(at) * speed) * speed / exponent
        values.append(path.at(path.risk, at) - gap)
    ahead = values[-1] + (values[-1] - values[-2])
    low, high = min(*values[1:], ahead), max(*values[1:], ahead)
    if np.isfinite(low):
        low, high = low - (high - low), high + (high - low)
    more = still_to_come(exponents, path.log_t[-1] / DECADE - 0.25 * long, 0.5 * long)
    if more < 0:
        # The last gap if p still gets smaller like p + a/log t.
        smaller = exponents[-1] + 1.5 * more
        at_last = values[-1] + gap - gap * exponents[-1] / smaller if smaller > 0 else lowest
        low = min(low, at_last)
    low, high = max(low, lowest), min(max(high, lowest), last)
    value = min(max(values[-1] if np.isfinite(values[-1]) else last, low), high)
    # A risk that may have fallen to its lower bound, and comes near it, does.
    near = low <= lowest and high - lowest < 0.2 * (last - lowest)
    if near or last - lowest < 1e-6 * (float(path.risk[0]) - lowest):
        low = lowest
        value = lowest
    return RiskLimit(float(value), (float(low), float(high)))


class RiskLaw(NamedTuple):
    """L − L∞ ~ t^−p (log t)^−c, with an interval of the exponent that is fitted: of p, with c = 0;
    or of c, with p = 1, where the norm grows like a power of the logarithm."""

    power: float
    logarithm: float
    interval: tuple[float, float]

    def formula(self) -> str:
        """The law in a few letters."""
        low, high = self.interval
        half = max((high - low) / 2, 1e-5)
        if self.logarithm == 0:
            return f"t^-({self.power:.4g} ± {half:.1g})"
        return f"t^-1 (log t)^-({self.logarithm:.3g} ± {half:.1g})"


def risk_law(path: Path, limit: RiskLimit, norm: Growth) -> RiskLaw:
    """The law of the gap beside a growing norm; where the gap is lost in roundings of the limit,
    from its slope."""
    gap = np.maximum(path.risk - limit.value, 0.0)
    resolved = _LOST * np.finfo(float).eps * abs(limit.value)
    lost = bool(np.any(path.last(4.0).risk - limit.value <= resolved))
    if lost:
        gap = path.t * path.speed * path.speed  # up to a factor
    if norm.law is not NormLaw.LOGARITHM:
        values = [-path.slope(gap, (k + 0.5, k)) for k in (1.0, 0.5, 0.0)]
        more = still_to_come(values, path.log_t[-1] / DECADE - 0.25, 0.5)
        # Lower limits leave larger gaps, whose exponents are smaller in proportion.
        below = limit.value - limit.interval[0]
        lowered = 0.0 if lost else values[2] * (1 - gap[-1] / (gap[-1] + below))
        half = max(abs(values[2] - values[1]), 1.5 * abs(more), lowered, 1e-5)
        return RiskLaw(values[2], 0.0, (values[2] - half, values[2] + half))
    fitted, all_decades = [], path.log_t[-1] / np.log(10.0)
    # Where the logarithm itself spans decades, over those.
    several = (2.0, 3.0, 4.0) if all_decades < 50 else np.array([0.5, 0.25, 0.75]) * all_decades
    for decades in several:
        tail = path.log_t >= path.log_t[-1] - decades * DECADE - 1e-9
        log_t = path.log_t[tail]
        left = np.log(np.maximum(gap[tail], np.finfo(float).tiny)) + log_t
        fitted.append(-float(np.polyfit(np.log(log_t + norm.offset), left, 1)[0]))
    half = max(abs(fitted[0] - other) for other in fitted[1:])
    return RiskLaw(1.0, fitted[0], (fitted[0] - half, fitted[0] + half))
