"""Whether a law of decay is called, and if not, why."""

from typing import NamedTuple

import numpy as np

from gflow.rates.laws import MAX_SECOND_TERM, LawName
from gflow.rates.misfit import is_noise
from gflow.rates.rate import NOUNS, AsymptoticRate, Fit, RateStatus
from gflow.rates.slowest_mode import SMALLEST_DEVIATION, SlowestMode

# Differences of the information criterion from here on are "very strong" (Kass and Raftery, 1995).
_DECISIVE = 10.0
# How much of a law has to be seen before it is called: two times 1/r, half a decade of t + t0, or a
# decade of T − t.
MIN_SEEN: dict[LawName, float] = {
    "exponential": 2.0,
    "power": 0.5 * np.log(10.0),
    "finite time": np.log(10.0),
}
# The factor by which the gap has to fall over the tail.
_MIN_FALL: dict[LawName, float] = {"exponential": 2.0, "power": 1.3, "finite time": 10.0}
# Intervals of a called rate reach from its low end to at most twice of it.
_MAX_RATIO = 2.0
# A called law has so many points, and deviates by less than this from them in log gap.
_MIN_POINTS, _MAX_DEVIATION = 13, 0.2
# Systematic deviations that matter: in log gap, and in the value of the law at earlier times.
_MAX_MISFIT, _MAX_DRIFT = 1e-3, 5e-3


class Call(NamedTuple):
    """Whether a law is called, and if not, why."""

    status: RateStatus
    reason: str = ""


class Evidence(NamedTuple):
    """What a call is made from.

    - `better`: the better law of those fitted, `fits`; `criterion`: the information criteria less
      the smallest.
    - `deviations`: from the better law on its tail. `drift`: how much its value differs at earlier
      times.
    - `mode`: what the tail says about its slowest mode; None if no sum of modes fits.
      `asymptotic`: the rate that follows.
    - `patterns`: how many the gap passes through on its tail. `last_change`: when the last begins.
    """

    better: LawName
    fits: dict[LawName, Fit]
    criterion: dict[LawName, float]
    deviations: np.ndarray
    drift: float
    mode: SlowestMode | None
    asymptotic: AsymptoticRate
    patterns: int
    last_change: float

    @property
    def fit(self) -> Fit:
        return self.fits[self.better]


CALLED = Call(RateStatus.CALLED)


def is_sharp(mode: SlowestMode | None) -> bool:
    """Whether the slowest mode is known well enough for an exponential: its interval is short, and
    the tail shows it for two times 1/rate."""
    if mode is None or not mode.interval[0] > 0:
        return False
    low, high = mode.interval
    return low * (1 - mode.start) >= MIN_SEEN["exponential"] and high <= _MAX_RATIO * low


def call(found: Evidence) -> Call:
    """The better law is called unless something leaves a doubt."""
    fit = found.fit
    low, high = fit.interval
    if fit.law != "finite time" and low <= 0:
        return Call(RateStatus.MAY_NOT_DECAY, "the rate may be zero or negative")
    undecided = RateStatus.UNDECIDED
    if found.patterns > 1:
        return Call(undecided, _patterns(found))
    if fit.law == "exponential" and is_sharp(found.mode):
        return CALLED
    for doubt in (_rivals, _second_term, _seen):
        if (reason := doubt(found)) is not None:
            return Call(undecided, reason)
    if fit.law != "finite time" and fit.num_points < _MIN_POINTS:
        reason = f"the law fits on {fit.num_points} saved times only, fewer than {_MIN_POINTS}"
        return Call(undecided, reason)
    if (reason := _misfit(found)) is not None:
        return Call(RateStatus.NO_LAW_FITS, reason)
    if fit.law == "exponential":
        return Call(undecided, _open(found))
    if fit.law == "power" and high > _MAX_RATIO * low:
        reason = f"the exponent is only known to be between {low:.3g} and {high:.3g}"
        return Call(undecided, reason)
    return CALLED


def _patterns(found: Evidence) -> str:
    start, end = found.fit.window
    return (
        f"the gap passes through {found.patterns} patterns from t = {start:.4g} to {end:.4g}, and "
        f"too little of it is left after the last kink, at t = {found.last_change:.4g}: fewer than "
        f"{_MIN_POINTS} saved times, or no fall by a factor of 2"
    )


def _rivals(found: Evidence) -> str | None:
    law, criterion = found.fit.law, found.criterion
    rivals: list[LawName] = [
        other for other, c in criterion.items() if other != law and c < _DECISIVE
    ]
    if not rivals:
        return None
    likely = " and ".join(NOUNS[other] for other in rivals)
    return f"{likely} fits about as well as {NOUNS[law]}"


def _second_term(found: Evidence) -> str | None:
    if abs(found.fit.estimate.parameters.second_term) < 0.99 * MAX_SECOND_TERM:
        return None
    return "a second term is still a third of the first at the end, or more"


def _seen(found: Evidence) -> str | None:
    law, seen = found.fit.law, found.fit.seen
    if seen >= MIN_SEEN[law]:
        return None
    if law == "exponential":
        return f"the tail shows only {seen:.2g} times 1/r"
    return f"the tail shows only {seen / np.log(10):.2g} decades of {NOUNS[law]}"


def _misfit(found: Evidence) -> str | None:
    fit = found.fit
    size = fit.rms
    if size > _MAX_DEVIATION:
        return f"the gap deviates from {NOUNS[fit.law]} by {size:.2g} in its log"
    if fit.law == "exponential" and found.mode is None:
        return "no sum of decaying exponentials fits either"
    if fit.law == "exponential" or is_noise(found.deviations) or size <= SMALLEST_DEVIATION / 10:
        return _drifts(found)
    if size > _MAX_MISFIT:
        return f"deviations of {size:.2g} in log gap are systematic, not noise"
    return _drifts(found)


def _drifts(found: Evidence) -> str | None:
    low, high = found.fit.interval
    # Twice the drift is in the interval.
    if found.drift <= max(_MAX_DRIFT, (high - low) / (high + low) - 2 * found.drift):
        return None
    return f"the exponent at earlier times differs by {100 * found.drift:.2g} %: it drifts"


def _open(found: Evidence) -> str:
    low, high = found.asymptotic.interval
    return (
        f"slower modes cannot be excluded yet: the rate for t → ∞ is between {low:.3g} "
        f"and {high:.3g}"
    )


def call_on_fall(fit: Fit, t: np.ndarray, g: np.ndarray) -> Call:
    """A law is not called if the gap falls too little over its tail: any law fits on a plateau,
    such as that of a saddle or of a wrong limit."""
    within = g[(t >= fit.window[0]) & (t <= fit.window[1]) & (g > 0)]
    factor = float(within.max() / within.min()) if len(within) else 1.0
    if factor >= _MIN_FALL[fit.law]:
        return CALLED
    reason = (
        f"the gap falls only by a factor of {factor:.3g} over the tail, less than "
        f"{_MIN_FALL[fit.law]:g}: the flow has not yet converged, or the limit is wrong"
    )
    return Call(RateStatus.UNDECIDED, reason)
