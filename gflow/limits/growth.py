"""The growth of the norm: a power of time, a power of its logarithm, or none; and the direction."""

import enum
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from scipy.optimize import minimize_scalar

from gflow.limits.path import DECADE, Path

# Decades of time over which a law has to hold, and slower powers than are told from logarithms.
_DECADES, _MIN_POWER = 3.0, 0.02
# How far the local exponent of a power may change over decades, relatively.
_STEADY = 0.12
# Exponents of decades that belong to one power of time, which logarithms may change.
_ONE_POWER = 0.25
# Slopes of 1/(local exponent) in log t: 1/q of (log t)^q.
_MIN_SLOPE, _MAX_SLOPE, _SAME_SLOPE = 0.7, 6.5, 1.6
# Times so late that the logarithm itself spans decades.
_LATE = 1e50
# Powers 1/‖θ‖^m in which a direction is expanded.
_POWERS = (1, 2, 3, 4, 6)


class NormLaw(enum.StrEnum):
    """How ‖θ‖ grows."""

    POWER = "power"
    LOGARITHM = "logarithm"
    NONE = "none"
    """Neither law holds over the last decades; of a bounded norm, too."""


class Growth(NamedTuple):
    """The law of ‖θ‖: t^p, with the exponent p; or (log t + b)^q, with q and b; with an interval of
    p or q. `outward`: the cosine of the angle between velocity and θ."""

    law: NormLaw
    exponent: float
    interval: tuple[float, float]
    offset: float
    outward: float

    @property
    def norm_exponent(self) -> float:
        """p of ‖θ‖ ~ t^p; 0 for slower growth."""
        return self.exponent if self.law is NormLaw.POWER else 0.0

    def formula(self) -> str:
        """The law in a few letters."""
        low, high = self.interval
        number = f"{self.exponent:.4g} ± {max((high - low) / 2, 1e-5):.1g}"
        if self.law is NormLaw.POWER:
            return f"t^({number})"
        return f"(log t)^({number})" if self.law is NormLaw.LOGARITHM else "no growth to infinity"


def growth(path: Path) -> Growth:
    r"""The law of the norm at the end of a path.

    With $p(t) = d\log\|\theta\| / d\log t$, a power law has a constant p, and $(\log t + b)^q$ has
    $1/p = (\log t + b)/q$, a straight line in log t.
    """
    norm, none = path.norm, (0.0, 0.0)
    local = [path.slope(norm, (k + 1.0, float(k))) for k in (3, 2, 1, 0)]
    outward = _outward(path, local[-1])
    nothing = Growth(NormLaw.NONE, 0.0, none, 0.0, outward)
    if not all(p > 0 for p in local[1:]):
        return nothing
    changes = [abs(local[3] - local[k]) / local[3] for k in (1, 2)]
    steady = changes[0] <= 3 * _STEADY and changes[1] <= _STEADY / 2
    if steady and local[3] >= _MIN_POWER and not _is_logarithm(local):
        last = [path.slope(norm, (k + 0.5, k)) for k in (1.0, 0.5, 0.0)]
        value, error = _settled(last)
        error = max(error, 1.5 * abs(still_to_come(last, path.log_t[-1] / DECADE - 0.25, 0.5)))
        return Growth(NormLaw.POWER, value, (value - error, value + error), 0.0, outward)
    if not _is_logarithm(local):
        return nothing
    q, offset = _power_of_logarithm(path, 3.0)
    others = [_power_of_logarithm(path, decades)[0] for decades in (2.0, 4.0)]
    error = max(abs(q - other) for other in others)
    return Growth(NormLaw.LOGARITHM, q, (q - error, q + error), offset, outward)


def growth_of_logarithm(far: Path) -> Growth | None:
    """The law at times whose logarithms are in the hundreds; None if it is not that of a logarithm.

    There d log‖θ‖/d log log t is q up to some thousandths.
    """
    x, logs = far.log_t, np.log(far.norm)
    local = [
        float(np.polyfit(np.log(x[part]), logs[part], 1)[0])
        for part in (x < 0.5 * x[-1], (x >= 0.5 * x[-1]) & (x < 0.75 * x[-1]), x >= 0.75 * x[-1])
    ]
    if not (local[-1] > 1 / _MAX_SLOPE and abs(local[-1] - local[-2]) <= _STEADY * local[-1]):
        return None
    q, offset = _power_of_logarithm(far, x[-1] / DECADE / 2)
    error = abs(q - _power_of_logarithm(far, x[-1] / DECADE / 4)[0])
    return Growth(NormLaw.LOGARITHM, q, (q - error, q + error), offset, 0.0)


def decades_of_power(path: Path) -> float:
    """For how many decades at the end of a path its norm has grown by one power of time."""
    last, number = path.slope(path.norm, (1.0, 0.0)), 0
    while abs(path.slope(path.norm, (number + 1.0, float(number))) - last) <= _ONE_POWER * last:
        number += 1
    return float(number)


def _outward(path: Path, exponent: float) -> float:
    along = exponent * path.norm[-1] / path.end
    return float(along / path.speed[-1]) if path.speed[-1] > 0 and np.isfinite(along) else 0.0


def _is_logarithm(local: list[float]) -> bool:
    """Whether 1/p grows along a straight line, with the slope of a power of a logarithm."""
    if not all(p > 0 for p in local):
        return False
    slopes = np.diff(1 / np.array(local)) / DECADE
    if not np.all((slopes > _MIN_SLOPE) & (slopes < _MAX_SLOPE)):
        return False
    return bool(np.max(slopes) <= _SAME_SLOPE * np.min(slopes))


def _power_of_logarithm(path: Path, decades: float) -> tuple[float, float]:
    """q and b of ‖θ‖ ~ (log t + b)^q, by least squares over the last decades."""
    tail = path.last(decades)
    x, logs = tail.log_t, np.log(tail.norm)

    def line(log_shift: float) -> tuple[float, float]:
        """The misfit of the line of log‖θ‖ in log(log t + b), and its slope."""
        basis = np.log(x - x[0] + np.exp(log_shift))
        found, residuals, *_ = np.polyfit(basis, logs, 1, full=True)
        return float(residuals[0]) if len(residuals) else 0.0, float(found[0])

    bounds = np.log(0.02 * (x[-1] - x[0])), np.log(20 * x[-1])
    starts = np.linspace(*bounds, 60)
    best = int(np.argmin([line(shift)[0] for shift in starts]))
    near = starts[max(best - 1, 0)], starts[min(best + 1, 59)]
    shift = minimize_scalar(lambda s: line(s)[0], bounds=near, method="bounded").x
    return line(shift)[1], float(np.exp(shift) - x[0])


def _settled(values: list[float]) -> tuple[float, float]:
    """The limit of three values of a sequence by Aitken's rule, and how far it is open."""
    first, second, third = values
    before, after = second - first, third - second
    # No extrapolation where the differences do not shrink.
    more = after**2 / (before - after) if abs(after) < 0.8 * abs(before) else 0.0
    return third + more, abs(after) + abs(more) + 1e-7


def still_to_come(values: list[float], place: float, step: float) -> float:
    """How far the last of some local exponents is from their limit, if that is approached like
    1/log t or more slowly; 0 if it is approached faster.

    They are those at so many decades of time, the last one at `place`, `step` from one to the next.
    """
    before, after = np.diff(values[-3:])
    # Of p + a/x, differences have this ratio.
    ratio = max(place - 2 * step, 0.0) / place if place > 0 else 0.0
    if not before * after > 0 or abs(after) < 0.9 * ratio * abs(before):
        return 0.0
    return float(after * max(place - step, step) / step)


class Direction(NamedTuple):
    """The limit of θ/‖θ‖, the distance up to which it is known, how far the end of the path is from
    it, and the power m with which it is approached, ‖θ‖^−m."""

    limit: Float[np.ndarray, " size"]
    error: float
    distance: float
    power: float


def direction(path: Path, law: Growth, seen: Path) -> Direction:
    r"""The limit of θ/‖θ‖, extrapolated: the polynomial in $z = \|\theta\|^{-m}$ that fits
    $\theta/\|\theta\|$ over the last decades best, at z = 0. The distance to it is that of the end
    of the path that was `seen`."""
    tail = path.last(_DECADES)
    unit = tail.theta / tail.norm[:, None]
    fits = [_extrapolated(unit, tail.norm, m, 2) for m in _POWERS]
    if law.law is NormLaw.LOGARITHM:
        # Units that take no part in the growth are of order 1/‖θ‖, balances of order 1/‖θ‖².
        late = path.end > _LATE
        tail = path.last(0.5 * path.log_t[-1] / DECADE if late else 2 * _DECADES)
        unit = tail.theta / tail.norm[:, None]
        degrees = (3, 2) if late else (2, 1)
        fits = [_extrapolated(unit, tail.norm, 1, degree) for degree in degrees]
        (limit, misfit), other = fits[0], fits[1][0]
    else:
        best = min(range(len(fits)), key=lambda k: fits[k][1])
        (limit, misfit) = fits[best]
        other = _extrapolated(unit, tail.norm, _POWERS[best], 1)[0]
    off = np.linalg.norm(unit - limit, axis=1)
    error = float(np.linalg.norm(limit - other)) + misfit
    left = _what_is_left(unit, tail)
    if abs(left - off[-1]) > 0.5 * off[-1] + error:
        error = max(error, abs(left - off[-1]))
    near = off > 10 * max(misfit, 1e-15)
    power = (
        -float(np.polyfit(np.log(tail.norm[near]), np.log(off[near]), 1)[0])
        if (near.sum() > 3)
        else np.nan
    )
    now = float(np.linalg.norm(seen.theta[-1] / seen.norm[-1] - limit))
    return Direction(limit, error, now, power)


def _what_is_left(unit: np.ndarray, tail: Path) -> float:
    """The distance to the limit, if the distances over three equal ratios of the norm are a
    geometric sequence."""
    logs = np.log(tail.norm)
    places = [int(np.argmin(np.abs(logs - level))) for level in np.linspace(logs[0], logs[-1], 3)]
    before, after = (
        float(np.linalg.norm(unit[j] - unit[k])) for j, k in zip(places[1:], places[:-1])
    )
    return after**2 / (before - after) if 0 < after < before else (np.inf if after > 0 else 0.0)


def _extrapolated(
    unit: np.ndarray, norm: np.ndarray, power: int, degree: int
) -> tuple[np.ndarray, float]:
    """The unit vector at z = 0, and the root mean square of the misfit."""
    z = (norm[-1] / norm) ** power
    basis = np.vander(z, degree + 1, increasing=True)
    coefficients = np.linalg.lstsq(basis, unit)[0]
    misfit = np.sqrt(np.mean(np.sum((basis @ coefficients - unit) ** 2, axis=1)))
    return coefficients[0] / np.linalg.norm(coefficients[0]), float(misfit)
