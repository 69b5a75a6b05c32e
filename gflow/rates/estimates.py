"""Laws of decay fitted to logs of gaps, with intervals that allow for correlated deviations."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from scipy.linalg import get_lapack_funcs
from scipy.special import stdtrit

from gflow.rates.laws import Law, at_ends

(_gesv,) = get_lapack_funcs(("gesv",))
_STEPS = 20
# Correlations of neighbouring deviations that are averaged over, even in atanh.
_PHI = np.tanh(np.linspace(-1.5, 4.0, 31))
_LEVEL = 0.025
_ROUNDING = 4e-16
# Nested tails: each has this share of the points of the one before, and at least so many points.
_SHARE, _LEAST = 0.7, 8
# Intervals of this share of the value are short enough: a longer tail is then worth more.
_FINE = 2e-4


def student_t(freedom: int) -> float:
    """The two-sided 95 % quantile of Student's distribution."""
    return float(stdtrit(freedom, 1 - _LEVEL))


@dataclass(frozen=True)
class Estimate:
    """What a law says about one tail.

    `interval` is the 95 % interval of `value`, `params` are those of its best form `law`, `rms` the
    root mean square deviation in log gap, `bic` the information criterion of the best form, and
    `num_effective` the number of independent deviations.
    """

    value: float
    interval: tuple[float, float]
    law: Law
    params: np.ndarray
    rms: float
    bic: float
    num_effective: float

    @property
    def half(self) -> float:
        return (self.interval[1] - self.interval[0]) / 2


def _least_squares(law: Law, p, u, y, bounds) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Levenberg and Marquardt's method; parameters that would leave their bounds stay on them."""
    low, high = bounds
    value, slope = at_ends(law, p, u)
    residual, unit = y - value, np.eye(len(p))
    best = residual @ residual
    damping, exact = 1e-4, len(y) * (_ROUNDING * (1 + np.abs(y).max())) ** 2
    for _ in range(_STEPS):
        scale = np.sqrt(np.sum(slope**2, axis=0)) + 1e-300
        a = slope / scale
        gram, force = a.T @ a, a.T @ residual
        while True:
            # As np.linalg.solve, whose checks take longer than such small systems.
            step = _gesv(gram + damping * unit, force)[2] / scale
            trial = np.minimum(np.maximum(p + step, low), high)
            value, slope_there = at_ends(law, trial, u)
            there = y - value
            square = there @ there
            if square <= best or damping > 1e4:
                break
            damping *= 10
        if not square <= best:
            break
        change = best - square
        p, residual, slope, best = trial, there, slope_there, square
        damping = max(damping / 12, 1e-8)
        if change <= 1e-5 * best or best <= exact:
            break
    return p, residual, slope


def _start(law: Law, u, y, known: np.ndarray | None) -> tuple[np.ndarray, Any] | None:
    """The best of the law's starts, or of the parameters `known` from a longer tail."""
    u0 = float(u[0, 0])
    low, high = law.bounds(u0)
    bounds = np.append([-np.inf, law.slopes[0]], low), np.append([np.inf, law.slopes[1]], high)
    found, least = None, np.inf
    for more in law.starts(u0) if known is None else [known]:
        p = np.append(_line_start(law, u, y, more), more) if known is None else known
        p = np.clip(p, *bounds)
        square = np.sum((y - at_ends(law, p, u)[0]) ** 2)
        if square < least:
            found, least = p, square
    return None if found is None else (found, bounds)


def _line_start(law: Law, u, y, more) -> np.ndarray:
    """Level and slope of the law with its other parameters as given."""
    unit = np.append([0.0, 1.0], more)
    if u.shape[1] == 1:
        at = law.curve(np.append([0.0, 0.0], more), u)[1][:, 0, :2]
        return np.linalg.lstsq(at, y, rcond=None)[0]
    # Between two times the law falls by its slope there, times the length.
    x = -law.curve(unit, u)[0]
    sign = np.sign(x[0, 1] - x[0, 0])
    middle, length = x.mean(axis=1), np.abs(x[:, 1] - x[:, 0])
    slope = np.polyfit(middle, y - np.log(length), 1)[0]
    p = np.append([0.0, -slope if -slope * sign > 0 else 1e-2 * sign], more)
    return np.array([np.mean(y - at_ends(law, p, u)[0]), p[1]])


class _Parts(NamedTuple):
    """A mixture of Student distributions, one for each correlation of the deviations."""

    weight: np.ndarray
    centre: np.ndarray
    scale: np.ndarray
    freedom: np.ndarray


def _spread(law: Law, p, residual, slope, y) -> tuple[_Parts, float, float]:
    """The distribution of the number of interest for deviations that are an autoregressive process
    of order one, by restricted maximum likelihood for each correlation φ in turn; the information
    criterion; the number of independent deviations."""
    n, k = slope.shape
    size = np.linalg.norm(slope, axis=0) + np.finfo(float).tiny
    q, r = np.linalg.qr(slope / size)
    row = np.linalg.lstsq(r.T, np.eye(k)[law.of] / size, rcond=1e-18)[0]
    a = np.concatenate([q, residual[:, None]], axis=1)
    inner = a[1:-1].T @ a[1:-1] if n > 2 else 0.0
    cross = a[1:].T @ a[:-1]
    ends = np.outer(a[0], a[0]) + np.outer(a[-1], a[-1])
    phi = _PHI[:, None, None]
    gram = (1 + phi**2) * inner + ends - phi * (cross + cross.T)
    qq, qr, rr = gram[:, :k, :k], gram[:, :k, k], gram[:, k, k]
    shift = np.linalg.solve(qq, qr[:, :, None])[:, :, 0]
    floor = n * (_ROUNDING * (1 + np.abs(y).max())) ** 2
    square = np.maximum(rr - np.sum(qr * shift, axis=1), 0.0) + floor
    stationary = np.log1p(-(_PHI**2))
    likelihood = (stationary - np.linalg.slogdet(qq)[1] - (n - k) * np.log(square)) / 2
    weight = np.exp(likelihood - likelihood.max())
    variance = np.einsum("j,mjk,k->m", row, np.linalg.inv(qq), row) * square / (n - k)
    parts = _Parts(
        weight / weight.sum(),
        p[law.of] + shift @ row,
        np.sqrt(variance),
        np.full(len(_PHI), float(n - k)),
    )
    deviance = n * np.log(square / n) - stationary
    best = int(np.argmin(deviance))
    effective = np.clip(n * (1 - _PHI[best]) / (1 + _PHI[best]), k + 1.0, n)
    return parts, float(deviance[best] + (k + 1) * np.log(effective)), float(effective)


def _interval(parts: _Parts) -> tuple[float, tuple[float, float]]:
    """Mean, and the 95 % interval of the Student distribution with the variance of the mixture."""
    # Without the least likely ones, whose variance can be anything.
    order = np.argsort(parts.weight)
    kept = order[np.cumsum(parts.weight[order]) > 2 * _LEVEL]
    parts = _Parts(*(column[kept] for column in parts))
    parts = parts._replace(weight=parts.weight / parts.weight.sum())
    mean = float(parts.weight @ parts.centre)
    freedom = float(parts.freedom.min())
    inflation = freedom / (freedom - 2) if freedom > 2 else 3.0
    variance = parts.weight @ (parts.scale**2 * inflation + (parts.centre - mean) ** 2)
    reach = student_t(max(1, int(freedom))) * float(np.sqrt(variance / inflation))
    return mean, (mean - reach, mean + reach)


@np.errstate(over="ignore", invalid="ignore", divide="ignore")
def estimate(
    laws: tuple[Law, ...], u: np.ndarray, y: np.ndarray, known: dict[int, np.ndarray] | None = None
) -> Estimate | None:
    """Fits the forms of a law to one tail, and averages over them by their information criteria.

    `u`: shape (points, 1), times over the last one, or (points, 2) for decreases; `y`: the logs.
    `known`: parameters to start from, by the number of the form; those found replace them. None if
    no form can be fitted.
    """
    known = {} if known is None else known
    fits: list[tuple[Any, ...]] = []
    for k, law in enumerate(laws):
        enough = len(y) >= 4 + len(law.starts(0.5)[0])
        start = _start(law, u, y, known.get(k)) if enough else None
        if start is None:
            continue
        p, residual, slope = _least_squares(law, start[0], u, y, start[1])
        if np.isfinite(slope).all() and np.isfinite(residual).all():
            known[k] = p
            fits.append((law, p, residual, *_spread(law, p, residual, slope, y)))
    if not fits:
        return None
    bic = np.array([fit[4] for fit in fits])
    odds = np.exp(-(bic - bic.min()) / 2)
    odds /= odds.sum()
    columns = zip(*(fit[3]._replace(weight=w * fit[3].weight) for fit, w in zip(fits, odds)))
    parts = _Parts(*map(np.concatenate, columns))
    law, p, residual, _, least, effective = fits[int(np.argmin(bic))]
    value, interval = _interval(parts)
    rms = float(np.sqrt(np.mean(residual**2)))
    return Estimate(value, interval, law, p, rms, float(least), effective)


@dataclass(frozen=True)
class Tail:
    """A law on the tail that says most about it.

    `value`, `interval`: over that tail and the later ones within it. `estimate`: on the tail, which
    has `count` points. `estimates`: on all nested tails, by their number of points.
    """

    value: float
    interval: tuple[float, float]
    count: int
    estimate: Estimate
    estimates: dict[int, Estimate]


def longest_tail(
    laws: tuple[Law, ...],
    u: np.ndarray,
    y: np.ndarray,
    *,
    enough: Callable[[Estimate, float], bool] = lambda estimate, first: True,
    whole: bool = False,
) -> Tail | None:
    """Fits a law to nested tails, takes the longest one with an interval of 2e-4 of the value, or
    the shortest of all (all points if `whole`), and averages over the later ones. Tails that do not
    show `enough` of the law, given their estimate and their first time over the last, are chosen
    only where none does.

    The interval of a tail is widened by the square of the factor by which deviations get smaller in
    the two tails next within it: where they do, they are not noise, but terms that the law lacks.
    """
    counts, count = [], len(y)
    while count >= _LEAST or not counts:
        counts.append(count)
        count = int(_SHARE * count)
    found: dict[int, Estimate] = {}
    known: dict[int, np.ndarray] = {}
    for k, m in enumerate(counts):
        # Along with what fitted the longer tail, from time to time the starts again.
        known = {} if k % 3 == 0 else known
        if (e := estimate(laws, u[-m:], y[-m:], known)) is not None:
            found[m] = e
    if not found or (whole and counts[0] not in found):
        return None
    kept, estimates = np.array(list(found)), list(found.values())
    half = _punished(kept, estimates, y)
    values = np.array([e.value for e in estimates])
    shown = np.array([enough(e, float(u[-m, 0])) for m, e in found.items()])
    shown = shown if shown.any() else ~shown
    best = int(np.argmin(np.where(shown, half, np.inf)))
    good = np.maximum(half[best], _FINE * np.abs(values[best]))
    first = 0 if whole else int(np.argmax(shown & (half <= good)))
    half, values = half[first:], values[first:]
    # Odds between those of independent estimates, half^-2, and the choice of the best alone.
    odds = np.maximum(half / good, 1.0) ** -3
    odds /= odds.sum()
    mean = float(odds @ values)
    reach = float(np.sqrt(odds @ (half**2 + (values - mean) ** 2)))
    count = int(kept[first])
    reach = float(np.hypot(reach, _drift(laws, u[-count:], y[-count:], mean)))
    return Tail(mean, (mean - reach, mean + reach), count, estimates[first], found)


def _drift(laws: tuple[Law, ...], u, y, value: float) -> float:
    """How far the value is from that of the tail without its last third, where that is outside the
    interval there but no more than a tenth off: near the tolerance of a solver all tails end in its
    errors."""
    early = len(y) - len(y) // 3
    if early < _LEAST:
        return 0.0
    before = estimate(laws, u[:early], y[:early])
    if before is None or not before.half < abs(before.value - value) < 0.1 * abs(value):
        return 0.0
    return abs(before.value - value)


def _punished(counts: np.ndarray, estimates: list[Estimate], y) -> np.ndarray:
    """Half the intervals, times the square of what the deviations fall by in tails within."""
    sizes = np.array([len(e.params) for e in estimates])
    rms = np.array([e.rms for e in estimates]) * np.sqrt(counts / (counts - sizes))
    rms = np.maximum(rms, _ROUNDING * (1 + np.abs(y).max()))
    within = [
        [rms[j] for j in (k + 1, k + 2) if j < len(rms) and counts[j] >= 2 * sizes[j]]
        for k in range(len(rms))
    ]
    excess = np.array([max([1.0, *(r / other for other in w)]) for r, w in zip(rms, within)])
    return np.array([e.half for e in estimates]) * excess**2 + np.finfo(float).tiny
