"""Fits laws of decay to the tail of a gap, and decides whether one of them is called."""

from typing import Any, NamedTuple

import numpy as np

from gflow.arguments import RealScalar, finite
from gflow.rates import tails
from gflow.rates.estimates import Estimate, Tail, longest_tail
from gflow.rates.gap_checks import checked_gap, checked_window
from gflow.rates.laws import FORMS, MAX_POWER, MAX_SECOND_TERM, LawName
from gflow.rates.local_slopes import local_slopes
from gflow.rates.rate import NOUNS, Fit, Rate, RateStatus

# Differences of the information criterion from here on are "very strong" (Kass and Raftery, 1995).
_DECISIVE = 10.0
# How much of a law has to be seen before it is called: two times 1/r, half a decade of t + t0, or a
# decade of T − t.
_MIN_SEEN: dict[LawName, float] = {
    "exponential": 2.0,
    "power": 0.5 * np.log(10.0),
    "finite time": np.log(10.0),
}
# The factor by which the gap has to fall over the tail.
_MIN_FALL: dict[LawName, float] = {"exponential": 2.0, "power": 1.3, "finite time": 10.0}
# Smaller and larger powers of T − t imitate other laws.
_MIN_FINITE_POWER, _MAX_FINITE_POWER = 0.2, 12.0
_STEEP = 0.95 * MAX_POWER


def fit_rate(
    ts: Any,
    gap: Any,
    *,
    window: tuple[RealScalar, RealScalar] | None = None,
    known_limit: bool = True,
    predicted: RealScalar | None = None,
) -> Rate:
    r"""Decides by which law a gap closes, and fits the law to the tail:

    $$C e^{-rt}, \qquad C\,(t + t_0)^{-p}, \qquad C\,(T - t)^q .$$

    Least squares in log gap. An exponential may have a second term $c\,e^{-(r+s)t}$ and a power law
    an offset t0 and a second term $c\,(t + t_0)^{-p-s}$, up to a third of the first at the end of
    the tail; forms are averaged over by their information criteria. Deviations from a law are
    modelled as an autoregressive process along the points, whose correlation is averaged over by
    its restricted likelihood. Of some nested tails, the one with the shortest interval is chosen;
    tails whose deviations still get smaller towards the end are penalised. The interval includes
    the spread over the tails within it, and the change if its last third is left out. The tail ends
    where the gap reaches rounding error.

    **When a law is called.** Its information criterion, −2 log likelihood + (parameters) · log
    (independent deviations), is lower than that of the other laws by 10 or more, on the tail of the
    law whose value is known best; its rate is positive with its whole interval; its second term
    is below the third of the first that is allowed; the tail shows enough of it: two times 1/r,
    half a decade of t + t0, or a decade of T − t; and the gap, if its limit is known, falls over
    the tail by a factor of 2, 1.3, or 10. Otherwise `Rate.law` is "undecided", and `Rate.status`
    says why. Powers of t above 11.4 cannot be told from exponentials and count as such; powers of
    T − t lie between 0.2 and 12.

    If the limit of the risk is not known (`known_limit=False`), pass the risk itself: the laws are
    then fitted to the decreases between saved times, from which the limit drops out; it is
    estimated afterwards.

    **Arguments:**

    - `ts`, `gap`: shape (times,); for example `flow.ts` and `flow.risk - limit`. Only times after 0
      are used, and of many at most 150, evenly along the curve in logs.
    - `window`: times of the tail, (first, last), instead of the tail that is found.
    - `known_limit`: whether the limit of `gap` is zero.
    - `predicted`: an exponential rate to compare with, such as twice the smallest positive
      eigenvalue of the Hessian of the risk at the limit.

    **Returns:** a `Rate`. Over 200 synthetic trajectories with correlated deviations and further
    terms its 95 % intervals hold the truth for 90 to 99 % (`tests/test_rates.py`). If the saved
    times are coarse next to T − t, the interval of a finite time is too short.

    Entries that are NaN or infinite, and those that are zero or negative before the gap reaches its
    rounding error, are left out, with a warning that counts them.

    **Raises:** `ArgumentError` for what is no real number, shapes that differ, a window that holds
    fewer than 6 times, and a gap with fewer than 6 usable points, such as one that grows.
    """
    prediction = None if predicted is None else finite("predicted", predicted)
    t, g = checked_gap(ts, gap)
    window = checked_window(window, t)
    points = tails.of_gaps(t, g, window) if known_limit else tails.of_decreases(t, g, window)
    end = float(points.ends[-1, -1])
    u = points.ends / end
    whole = window is not None
    found: dict[LawName, Tail] = {
        name: tail
        for name, forms in FORMS.items()
        if (tail := longest_tail(forms, u, points.logs, enough=_shows_enough, whole=whole))
    }
    fits: dict[LawName, Fit] = {name: _fit(tail, u, end) for name, tail in found.items()}
    better, criterion = _compare(found, _contradicted(fits, points))
    limit = 0.0 if known_limit else float(g[t <= end][-1] - fits[better](end))
    call = _call(fits[better], criterion)
    if known_limit and call.status is RateStatus.CALLED:
        call = _call_on_fall(fits[better], t, g)
    # A mean of squares has no limit below zero; rounding apart.
    if not known_limit and limit < -1e-9 * np.max(g) and np.min(g) >= 0:
        reason = "the limit of the better law is below zero"
        call = _Call(RateStatus.NOT_YET_CONVERGED, reason)
    return Rate(
        better=better,
        status=call.status,
        reason=call.reason,
        limit=limit,
        fits=fits,
        criterion=criterion,
        slopes=local_slopes(points.ends, points.logs),
        predicted=prediction,
    )


def _fit(tail: Tail, u: np.ndarray, end: float) -> Fit:
    estimate, law = tail.estimate, tail.estimate.law
    low, high = tail.interval
    first = float(u[-tail.count, 0])
    return Fit(
        law=law.name,
        value=float(law.value(tail.value, end)),
        interval=(float(law.value(low, end)), float(law.value(high, end))),
        window=(first * end, end),
        num_points=tail.count,
        seen=law.seen(estimate.params, first),
        estimate=estimate,
    )


def _shows_enough(estimate: Estimate, first: float) -> bool:
    law = estimate.law
    return bool(law.seen(estimate.params, first) >= _MIN_SEEN[law.name])


def _contradicted(fits: dict[LawName, Fit], points: tails.Points) -> set[LawName]:
    """The laws that are ruled out: those that are far above the floor when the gap reaches it;
    powers too high to be told from exponentials; finite times at their bounds."""
    out: set[LawName] = set()
    if "finite time" in fits and not _is_finite(fits["finite time"]):
        out.add("finite time")
    if "power" in fits and fits["power"].value > _STEEP:
        out.add("power")
    if "finite time" in out or points.closed is None:
        return out
    high = 1e3 * max(points.floor, np.finfo(float).tiny)
    unending: tuple[LawName, ...] = ("exponential", "power")
    out.update(law for law in unending if fits[law](points.closed) > high)
    return out


def _is_finite(fit: Fit) -> bool:
    """Whether power and time of a finite time are within their bounds; a straight line has its time
    at the bound."""
    law, found = fit.estimate.law, fit.estimate.parameters
    latest = law.named(law.bounds(fit.window[0] / fit.window[1])[1]).log_left
    return _MIN_FINITE_POWER < found.slope < _MAX_FINITE_POWER and found.log_left < latest - 0.01


def _compare(
    found: dict[LawName, Tail], contradicted: set[LawName]
) -> tuple[LawName, dict[LawName, float]]:
    """The better law, and the information criteria less the smallest."""

    def uncertainty(law: LawName) -> float:
        low, high = found[law].interval
        # The interval of a finite time is that of log (T − t), a relative one already.
        size = 1.0 if law == "finite time" else abs(found[law].value)
        return (high - low) / size if size > 0 else float("inf")

    allowed: list[LawName] = [law for law in found if law not in contradicted] or list(found)
    count = found[min(allowed, key=uncertainty)].count
    values: dict[LawName, float] = dict.fromkeys(found, np.inf)
    for law in allowed:
        estimate = found[law].estimates.get(count)
        if estimate is not None and not (law == "power" and estimate.parameters.slope > _STEEP):
            values[law] = estimate.bic
    better = min(values, key=lambda law: values[law])
    smallest = values[better] if np.isfinite(values[better]) else 0.0
    return better, {law: value - smallest for law, value in values.items()}


class _Call(NamedTuple):
    """Whether a law is called, and if not, why."""

    status: RateStatus
    reason: str = ""


def _call(fit: Fit, criterion: dict[LawName, float]) -> _Call:
    """The better law is called unless its fit leaves a doubt."""
    law = fit.law
    if law != "finite time" and fit.interval[0] <= 0:
        return _Call(RateStatus.NOT_DECREASING, "the rate may be zero or negative")
    undecided = RateStatus.UNDECIDED
    rivals: list[LawName] = [
        other for other, c in criterion.items() if other != law and c < _DECISIVE
    ]
    if rivals:
        laws = " and ".join(NOUNS[name] for name in (law, *rivals))
        return _Call(undecided, f"{laws} fit about equally well")
    # One power law may be taking over from another, and the tail does not show the later one.
    if abs(fit.estimate.parameters.second_term) > 0.999 * MAX_SECOND_TERM:
        reason = "a second term is still a third of the first at the end, or more"
        return _Call(undecided, reason)
    if fit.seen >= _MIN_SEEN[law]:
        return _Call(RateStatus.CALLED)
    if law == "exponential":
        return _Call(undecided, f"the tail shows only {fit.seen:.2g} times 1/r")
    decades = f"{fit.seen / np.log(10):.2g} decades"
    return _Call(undecided, f"the tail shows only {decades} of {NOUNS[law]}")


def _call_on_fall(fit: Fit, t: np.ndarray, g: np.ndarray) -> _Call:
    """A law is not called if the gap falls too little over its tail: any law fits on a plateau,
    such as that of a saddle or of a wrong limit."""
    within = g[(t >= fit.window[0]) & (t <= fit.window[1]) & (g > 0)]
    factor = float(within.max() / within.min()) if len(within) else 1.0
    if factor >= _MIN_FALL[fit.law]:
        return _Call(RateStatus.CALLED)
    reason = (
        f"the gap falls only by a factor of {factor:.3g} over the tail, less than "
        f"{_MIN_FALL[fit.law]:g}: the flow has not yet converged, or the limit is wrong"
    )
    return _Call(RateStatus.UNDECIDED, reason)
