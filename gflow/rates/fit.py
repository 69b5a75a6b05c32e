"""Fits laws of decay to the tail of a gap, and decides whether one of them is called."""

import dataclasses
import warnings
from typing import Any

import numpy as np

from gflow.arguments import RealScalar, finite, positive
from gflow.rates import tails
from gflow.rates.calls import MIN_SEEN, Call, Evidence, call, call_on_fall, is_sharp
from gflow.rates.estimates import Estimate, Tail, longest_tail
from gflow.rates.gap_checks import checked_gap, checked_window, ends_at_itself
from gflow.rates.laws import FORMS, MAX_POWER, LawName
from gflow.rates.local_slopes import local_slopes
from gflow.rates.misfit import deviations_from, drift, is_noise
from gflow.rates.patterns import after_last, pattern_changes
from gflow.rates.rate import AsymptoticRate, Fit, Rate, RateStatus
from gflow.rates.slowest_mode import SlowestMode, slowest_mode
from gflow.trajectory import Trajectory

# Smaller and larger powers of T − t imitate other laws.
_MIN_FINITE_POWER, _MAX_FINITE_POWER = 0.2, 12.0
_STEEP = 0.95 * MAX_POWER
# A flow to a tolerance rtol is off by some 0.3 rtol of its largest distance from the limit, so that
# log gap is off by as much times √(largest gap / gap). The tail ends where that passes the second.
_ERROR, _MOST_ERROR = 0.3, 1e-3
# Laws that fit to rounding do not drift.
_EXACT = 1e-9
_FEW = 20


def fit_rate(
    ts: Any,
    gap: Any,
    *,
    window: tuple[RealScalar, RealScalar] | None = None,
    known_limit: bool = True,
    predicted: RealScalar | None = None,
    since: RealScalar | None = None,
    kinks: Any = None,
    rtol: RealScalar | None = None,
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

    **The rate for t → ∞.** Near a minimum a gap is a sum of exponentials with positive weights, and
    the rate on the tail is above that of the slowest one. `Rate.asymptotic` has the rates that the
    slowest mode can have: those for which a sum agrees with the tail in which no mode is slower and
    that one carries 1 % of the gap at the end, or more in noise. Such sums are fitted by variable
    projection (Golub and Pereyra, SIAM J. Numer. Anal. 10, 1973), with no negative weights.

    **When a law is called.** Exponentials: the ends of the interval for t → ∞ differ by a factor of
    at most 2, and the tail shows two times 1/r. Other laws: the information criterion, −2 log
    likelihood + (parameters) · log (independent deviations), is lower than that of the other laws
    by 10 or more, on the tail of the law whose value is known best; the second term is below the
    third of the first that is allowed; the tail has 13 points and shows half a decade of t + t0, or
    a decade of T − t; deviations are noise or small, and the value at earlier times is the same to
    half a percent or within its interval, to which twice the change is added. In each case the rate
    is positive with its whole interval, and the gap, if its limit is known, falls over the tail by
    a factor of 2, 1.3, or 10. Otherwise `Rate.law` is
    "undecided", and `Rate.status` and `Rate.reason` say why. Powers of t above 11.4 cannot be told
    from exponentials and count as such; powers of T − t lie between 0.2 and 12.

    If the limit of the risk is not known (`known_limit=False`), pass the risk itself: the laws are
    then fitted to the decreases between saved times, from which the limit drops out; it is
    estimated afterwards. A gap whose last entry alone is zero, as that of `risk - risk[-1]`, is
    treated so, with a warning.

    **Arguments:**

    - `ts`, `gap`: shape (times,); for example `flow.ts` and `flow.risk - limit`. Only times after 0
      are used, and of many at most 150, evenly along the curve in logs. `ts` may be a trajectory:
      its times, with its kinks and its tolerance.
    - `window`: times of the tail, (first, last), instead of the tail that is found.
    - `known_limit`: whether the limit of `gap` is zero.
    - `predicted`: an exponential rate to compare with, such as twice the smallest positive
      eigenvalue of the Hessian of the risk at the limit.
    - `since`: the tail begins at this time or later.
    - `kinks`: `trajectory.kinks`, or times at which the pattern of a flow changes: the tail begins
      after the last one, where the risk is analytic. If too little of the gap is left there, all of
      it is used, and no law is called where the tail passes through several patterns.

    - `rtol`: the tolerance of the flow that the gap is of. Near its limit ϑ, θ is off by some 0.3
      rtol ‖θ(0) − ϑ‖, so that log gap is off by 0.3 rtol √(largest gap / gap); this is allowed for.
      Without a trajectory, 0: gaps are exact, as those of descent.

    **Returns:** a `Rate`. Over 120 synthetic trajectories with correlated deviations and further
    terms its 95 % intervals hold the truth for 90 to 99 % (`tests/test_rates.py`). If the saved
    times are coarse next to T − t, the interval of a finite time is too short.

    Entries that are NaN or infinite, and those that are zero or negative before the gap reaches its
    rounding error, are left out, with a warning that counts them.

    **Raises:** `ArgumentError` for what is no real number, shapes that differ, a window that holds
    fewer than 6 times, and a gap with fewer than 6 usable points, such as one that grows.
    """
    prediction = None if predicted is None else finite("predicted", predicted)
    ts, kinks, rtol = _of_trajectory(ts, kinks, rtol)
    t, g = checked_gap(ts, gap)
    if since is not None:
        later = t >= finite("since", since)
        t, g = t[later], g[later]
    window, changes = checked_window(window, t), pattern_changes(kinks)
    scale = _ERROR * positive("rtol", rtol, or_zero=True) * np.sqrt(np.ptp(g))
    zeroed = known_limit and ends_at_itself(g)
    if zeroed:
        warnings.warn(
            "`gap`: the last entry is 0 by construction; laws are fitted to decreases, as with "
            "`known_limit=False`",
            stacklevel=2,
        )
    known_limit = known_limit and not zeroed
    find = tails.of_gaps if known_limit else tails.of_decreases
    points = find(t, g, window)
    if (kept := after_last(changes, t, points)).any():
        t, g = t[kept], g[kept]
        points = find(t, g, window)
    points, errors = _before_errors(points, scale * np.exp(-points.logs / 2))
    found = _evidence(points, errors, changes, whole=window is not None)
    fit = found.fits[found.better]
    limit = 0.0 if known_limit else float(g[t <= fit.window[1]][-1] - fit(fit.window[1]))
    decision = call(found)
    if known_limit and decision.status is not RateStatus.MAY_NOT_DECAY:
        fallen = call_on_fall(fit, t, g)
        decision = decision if fallen.status is RateStatus.CALLED else fallen
    # A mean of squares has no limit below zero; rounding apart.
    negative = not known_limit and limit < -1e-9 * np.max(g) and np.min(g) >= 0
    if negative and not zeroed:
        reason = "the limit of the better law is below zero"
        decision = Call(RateStatus.NOT_YET_CONVERGED, reason)
    return Rate(
        better=found.better,
        status=decision.status,
        reason=decision.reason,
        limit=limit,
        fits=found.fits,
        criterion=found.criterion,
        slopes=local_slopes(points.ends, points.logs),
        asymptotic=found.asymptotic,
        patterns=found.patterns,
        predicted=prediction,
        first=float(points.ends[0, 0]),
    )


def _of_trajectory(ts: Any, kinks: Any, rtol: Any) -> tuple[Any, Any, Any]:
    """Times, kinks and tolerance, those of a trajectory where it is given for the times."""
    if isinstance(ts, Trajectory):
        kinks = ts.kinks if kinks is None else kinks
        rtol = ts.stats.get("rtol") if rtol is None else rtol
        ts = ts.ts
    return ts, kinks, 0.0 if rtol is None else rtol


def _before_errors(points: tails.Points, errors: np.ndarray) -> tuple[tails.Points, np.ndarray]:
    """The points before errors hide modes that carry 1 % of the gap, if these are enough."""
    count = int(np.argmax(np.append(errors, np.inf) > _MOST_ERROR))
    if count < _FEW:
        return points, errors
    return points._replace(ends=points.ends[:count], logs=points.logs[:count]), errors[:count]


def _evidence(
    points: tails.Points, errors: np.ndarray, changes: np.ndarray, *, whole: bool
) -> Evidence:
    """The fitted laws, the better one, and what speaks for and against it."""
    end = float(points.ends[-1, -1])
    u = points.ends / end
    found: dict[LawName, Tail] = {
        name: tail
        for name, forms in FORMS.items()
        if (tail := longest_tail(forms, u, points.logs, enough=_shows_enough, whole=whole))
    }
    fits: dict[LawName, Fit] = {name: _fit(tail, u, end) for name, tail in found.items()}
    better, criterion = _compare(found, _contradicted(fits, points))
    mode = slowest_mode(points.ends, points.logs, errors)
    if mode is not None and np.any((changes > mode.start * end) & (changes < end)):
        mode = None  # Each pattern has its own modes.
    if is_sharp(mode) and "exponential" in fits:
        # No power of t and no finite time has a slowest mode that can be told from zero.
        better = "exponential"
    fit = fits[better]
    tail = slice(-fit.num_points, None)
    law, params = fit.estimate.law, fit.estimate.params
    deviations = deviations_from(law, params, u[tail], points.logs[tail])
    uneven = better == "exponential" and fit.rms > _EXACT and not is_noise(deviations)
    if mode is not None and uneven and (fit.interval[0] > 0 or is_sharp(mode)):
        fits[better] = fit = _with_local_rates(fit, mode, end)
    drifting = 0.0
    if better == "power" and fit.rms > _EXACT and fit.value > 0:
        drifting = _drift(fit, points, deviations)
        reach = min(2 * drifting * fit.value, max(fit.interval[0], 0.0) / 2)
        interval = (fit.interval[0] - reach, fit.interval[1] + reach)
        fits[better] = dataclasses.replace(fit, interval=interval)
    inside = changes[(changes > fit.window[0]) & (changes < fit.window[1])]
    return Evidence(
        better=better,
        fits=fits,
        criterion=criterion,
        deviations=deviations,
        drift=drifting,
        mode=mode,
        asymptotic=_asymptotic(mode, fit, end, is_noise(deviations), exact=not errors.any()),
        patterns=1 + len(inside),
        last_change=float(inside[-1]) if len(inside) else 0.0,
    )


def _with_local_rates(fit: Fit, mode: SlowestMode, end: float) -> Fit:
    """The fit of an exponential where the rate changes along its tail: its interval holds the rates
    at both ends of the tail."""
    back = 1 - fit.window[0] / end
    grown = mode.weights * np.exp(np.minimum(mode.rates * back, 700.0))
    at_start = float(mode.rates @ grown / grown.sum()) / end
    value, (low, high) = fit.value, fit.interval
    if not high - low < value:
        # The sum says more than this.
        value = low = high = mode.value / end
    at_end = mode.local / end
    interval = (min(low, at_start, at_end), max(high, at_start, at_end))
    if not np.isfinite(interval).all():
        return fit
    return dataclasses.replace(fit, value=value, interval=interval)


def _drift(fit: Fit, points: tails.Points, deviations: np.ndarray) -> float:
    """How much the exponent at earlier times differs, relatively. Zero where deviations are noise,
    which takes some points to tell."""
    if len(deviations) >= _FEW and is_noise(deviations):
        return 0.0
    return drift(FORMS[fit.law], points.ends, points.logs, fit.value) / fit.value


def _asymptotic(
    mode: SlowestMode | None, fit: Fit, end: float, fits: bool, *, exact: bool
) -> AsymptoticRate:
    """The rates for t → ∞. Where an exponential fits its tail up to noise, or the rate is
    approached from below, its own interval, if it overlaps, is part of theirs. Where gaps are not
    exact, it always is: what makes the rate fall at the end may be their error."""
    if mode is None:
        return AsymptoticRate(np.nan, (0.0, np.inf), 0.0, np.zeros(0), np.zeros(0))
    low, high = mode.interval[0] / end, mode.interval[1] / end
    own = fits or bool(np.any(mode.weights < 0))
    overlaps = fit.interval[0] <= high and low <= fit.interval[1]
    if fit.law == "exponential" and ((own and overlaps) or not exact):
        low, high = min(low, fit.interval[0]), max(high, fit.interval[1])
    return AsymptoticRate(
        value=mode.value / end,
        interval=(low, high),
        min_weight=mode.min_weight,
        rates=mode.rates / end,
        weights=mode.weights,
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
    return bool(law.seen(estimate.params, first) >= MIN_SEEN[law.name])


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
