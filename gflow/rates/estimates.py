"""Laws of decay fitted to logs of gaps, with intervals that allow for correlated deviations."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy.linalg import get_lapack_funcs
from scipy.special import stdtrit

from gflow.rates.laws import LINEAR, Law, LawParameters, at_ends

(_gesv,) = get_lapack_funcs(("gesv",))
_MAX_ITERATIONS = 20
# Correlations of neighbouring deviations that are averaged over, even in atanh.
_CORRELATIONS = np.tanh(np.linspace(-1.5, 4.0, 31))
_TAIL_PROBABILITY = 0.025
_ROUNDING = 4e-16
# Each nested tail has this fraction of the points of the one before, and at least so many points.
_NESTING, _MIN_TAIL = 0.7, 8
# Intervals of this fraction of the value are short enough: a longer tail is then worth more.
_SHORT_INTERVAL = 2e-4


def student_t(freedom: int) -> float:
    """The two-sided 95 % quantile of Student's distribution."""
    # As scipy.stats.t.ppf, whose import takes a fifth of the time of gflow's own.
    return float(stdtrit(freedom, 1 - _TAIL_PROBABILITY))


@dataclass(frozen=True)
class Estimate:
    """A law fitted to one tail, its forms averaged over.

    - `value`: that of the parameter `law.value_parameter`; `interval`: its 95 % interval.
    - `law`, `params`: the form of lowest information criterion `bic`, and its parameters.
    - `rms`: the root mean square deviation in log gap. `num_effective`: the number of independent
      deviations.
    """

    value: float
    interval: tuple[float, float]
    law: Law
    params: np.ndarray
    rms: float
    bic: float
    num_effective: float

    @property
    def half_width(self) -> float:
        """Half the length of the interval."""
        return (self.interval[1] - self.interval[0]) / 2

    @property
    def parameters(self) -> LawParameters:
        """`params` by name."""
        return self.law.named(self.params)


def _least_squares(law: Law, p, u, y, bounds) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Parameters, residuals and the derivatives of the law, by Levenberg and Marquardt's method.
    Parameters that would leave their bounds stay on them."""
    low, high = bounds
    value, slope = at_ends(law, p, u)
    residual, unit = y - value, np.eye(len(p))
    best = residual @ residual
    damping, exact = 1e-4, len(y) * (_ROUNDING * (1 + np.abs(y).max())) ** 2
    for _ in range(_MAX_ITERATIONS):
        scale = np.sqrt(np.sum(slope**2, axis=0)) + 1e-300
        a = slope / scale
        gram, force = a.T @ a, a.T @ residual
        while True:
            # As np.linalg.solve, whose checks take longer than such small systems.
            step = _gesv(gram + damping * unit, force)[2] / scale
            trial = np.minimum(np.maximum(p + step, low), high)
            value, trial_slope = at_ends(law, trial, u)
            trial_residual = y - value
            square = trial_residual @ trial_residual
            if square <= best or damping > 1e4:
                break
            damping *= 10
        if not square <= best:
            break
        change = best - square
        p, residual, slope, best = trial, trial_residual, trial_slope, square
        damping = max(damping / 12, 1e-8)
        if change <= 1e-5 * best or best <= exact:
            break
    return p, residual, slope


def _start(law: Law, u, y, bounds, known: np.ndarray | None) -> np.ndarray | None:
    """The best of the law's starts, or the parameters `known` from a longer tail."""
    best, smallest = None, np.inf
    candidates = [known] if known is not None else _starts(law, u, y)
    for p in candidates:
        p = np.clip(p, *bounds)
        square = np.sum((y - at_ends(law, p, u)[0]) ** 2)
        if square < smallest:
            best, smallest = p, square
    return best


def _starts(law: Law, u, y) -> list[np.ndarray]:
    shapes = law.shape_starts(float(u[0, 0]))
    return [np.append(_fitted_line(law, u, y, shape), shape) for shape in shapes]


def _fitted_line(law: Law, u, y, shape: list[float]) -> tuple[float, float]:
    """Level and slope of the law with its other parameters as given."""
    if u.shape[1] == 1:
        derivatives = law.curve(np.append([0.0, 0.0], shape), u)[1]
        level, slope = np.linalg.lstsq(derivatives[:, 0, LINEAR], y, rcond=None)[0]
        return level, slope
    # Between two times the law falls by its slope there, times the length.
    x = -law.curve(np.append([0.0, 1.0], shape), u)[0]
    sign = np.sign(x[0, 1] - x[0, 0])
    middle, length = x.mean(axis=1), np.abs(x[:, 1] - x[:, 0])
    fall = -np.polyfit(middle, y - np.log(length), 1)[0]
    slope = fall if fall * sign > 0 else 1e-2 * sign
    return np.mean(y - at_ends(law, np.append([0.0, slope], shape), u)[0]), slope


class _StudentMixture(NamedTuple):
    """A mixture of Student distributions, one for each correlation of the deviations."""

    weight: np.ndarray
    centre: np.ndarray
    scale: np.ndarray
    freedom: np.ndarray


class _FittedForm(NamedTuple):
    """One form of a law on one tail, with the distribution of its value."""

    law: Law
    params: np.ndarray
    residual: np.ndarray
    mixture: _StudentMixture
    bic: float
    num_effective: float


def _fitted(law: Law, p, residual, slope, y) -> _FittedForm:
    """The distribution of the value for deviations that are an autoregressive process of order one,
    by restricted maximum likelihood for each correlation φ in turn."""
    n, k = slope.shape
    at = law.index(law.value_parameter)
    size = np.linalg.norm(slope, axis=0) + np.finfo(float).tiny
    q, r = np.linalg.qr(slope / size)
    row = np.linalg.lstsq(r.T, np.eye(k)[at] / size, rcond=1e-18)[0]
    a = np.concatenate([q, residual[:, None]], axis=1)
    inner = a[1:-1].T @ a[1:-1] if n > 2 else 0.0
    cross = a[1:].T @ a[:-1]
    ends = np.outer(a[0], a[0]) + np.outer(a[-1], a[-1])
    phi = _CORRELATIONS[:, None, None]
    gram = (1 + phi**2) * inner + ends - phi * (cross + cross.T)
    qq, qr, rr = gram[:, :k, :k], gram[:, :k, k], gram[:, k, k]
    shift = np.linalg.solve(qq, qr[:, :, None])[:, :, 0]
    floor = n * (_ROUNDING * (1 + np.abs(y).max())) ** 2
    square = np.maximum(rr - np.sum(qr * shift, axis=1), 0.0) + floor
    stationary = np.log1p(-(_CORRELATIONS**2))
    likelihood = (stationary - np.linalg.slogdet(qq)[1] - (n - k) * np.log(square)) / 2
    weight = np.exp(likelihood - likelihood.max())
    variance = np.einsum("j,mjk,k->m", row, np.linalg.inv(qq), row) * square / (n - k)
    mixture = _StudentMixture(
        weight / weight.sum(),
        p[at] + shift @ row,
        np.sqrt(variance),
        np.full(len(_CORRELATIONS), float(n - k)),
    )
    deviance = n * np.log(square / n) - stationary
    best = int(np.argmin(deviance))
    num_effective = np.clip(n * (1 - _CORRELATIONS[best]) / (1 + _CORRELATIONS[best]), k + 1.0, n)
    bic = float(deviance[best] + (k + 1) * np.log(num_effective))
    return _FittedForm(law, p, residual, mixture, bic, float(num_effective))


def _mean_and_interval(mixture: _StudentMixture) -> tuple[float, tuple[float, float]]:
    """Mean, and the 95 % interval of the Student distribution with the variance of the mixture."""
    # Without the least likely ones, whose variance can be anything.
    order = np.argsort(mixture.weight)
    kept = order[np.cumsum(mixture.weight[order]) > 2 * _TAIL_PROBABILITY]
    mixture = _StudentMixture(*(column[kept] for column in mixture))
    weight = mixture.weight / mixture.weight.sum()
    mean = float(weight @ mixture.centre)
    freedom = float(mixture.freedom.min())
    inflation = freedom / (freedom - 2) if freedom > 2 else 3.0
    variance = weight @ (mixture.scale**2 * inflation + (mixture.centre - mean) ** 2)
    reach = student_t(max(1, int(freedom))) * float(np.sqrt(variance / inflation))
    return mean, (mean - reach, mean + reach)


def _average(fits: list[_FittedForm]) -> tuple[float, tuple[float, float]]:
    """The value over all forms, by their information criteria."""
    bic = np.array([fit.bic for fit in fits])
    odds = np.exp(-(bic - bic.min()) / 2)
    odds /= odds.sum()
    weighted = (fit.mixture._replace(weight=w * fit.mixture.weight) for fit, w in zip(fits, odds))
    return _mean_and_interval(_StudentMixture(*map(np.concatenate, zip(*weighted))))


@np.errstate(over="ignore", invalid="ignore", divide="ignore")
def estimate(
    forms: tuple[Law, ...], u: np.ndarray, y: np.ndarray, known: dict[Law, np.ndarray] | None = None
) -> Estimate | None:
    """Fits the forms of a law to one tail, and averages over them by their information criteria.

    **Arguments:** `u`: shape (points, 1), times over the last one, or (points, 2) for decreases.
    `y`: the logs. `known`: parameters to start from; those found replace them.

    **Returns:** None if no form can be fitted.
    """
    known = {} if known is None else known
    fits: list[_FittedForm] = []
    for law in forms:
        if len(y) < 2 + len(law.parameter_names):
            continue
        bounds = law.bounds(float(u[0, 0]))
        start = _start(law, u, y, bounds, known.get(law))
        if start is None:
            continue
        p, residual, slope = _least_squares(law, start, u, y, bounds)
        if np.isfinite(slope).all() and np.isfinite(residual).all():
            known[law] = p
            fits.append(_fitted(law, p, residual, slope, y))
    if not fits:
        return None
    value, interval = _average(fits)
    best = fits[int(np.argmin([fit.bic for fit in fits]))]
    rms = float(np.sqrt(np.mean(best.residual**2)))
    return Estimate(value, interval, best.law, best.params, rms, best.bic, best.num_effective)


@dataclass(frozen=True)
class Tail:
    """A law on its most informative tail.

    - `value`, `interval`: averaged over that tail and the later ones within it.
    - `count`: number of points of the tail; `estimate`: on that tail alone.
    - `estimates`: on all nested tails, by their number of points.
    """

    value: float
    interval: tuple[float, float]
    count: int
    estimate: Estimate
    estimates: dict[int, Estimate]


def longest_tail(
    forms: tuple[Law, ...],
    u: np.ndarray,
    y: np.ndarray,
    *,
    enough: Callable[[Estimate, float], bool] = lambda estimate, first: True,
    whole: bool = False,
) -> Tail | None:
    """Fits a law to nested tails, chooses one, and averages over it and the later ones.

    The chosen tail is the longest one with an interval of at most 2e-4 of the value, otherwise the
    one with the shortest interval; with `whole`, all points. Tails that do not show `enough` of the
    law, given their estimate and their first time over the last, are chosen only where none does.

    The interval of a tail is widened by the square of the factor by which deviations get smaller in
    the two tails next within it: deviations that get smaller are not noise, but terms that the law
    lacks.
    """
    counts, count = [], len(y)
    while count >= _MIN_TAIL or not counts:
        counts.append(count)
        count = int(_NESTING * count)
    found: dict[int, Estimate] = {}
    known: dict[Law, np.ndarray] = {}
    for k, m in enumerate(counts):
        # The fit of the longer tail is the start for the next one; every third tail starts afresh.
        known = {} if k % 3 == 0 else known
        if (e := estimate(forms, u[-m:], y[-m:], known)) is not None:
            found[m] = e
    if not found or (whole and counts[0] not in found):
        return None
    fitted, estimates = np.array(list(found)), list(found.values())
    half = _penalised_half_widths(fitted, estimates, y)
    values = np.array([e.value for e in estimates])
    shown = np.array([enough(e, float(u[-m, 0])) for m, e in found.items()])
    shown = shown if shown.any() else ~shown
    best = int(np.argmin(np.where(shown, half, np.inf)))
    good = np.maximum(half[best], _SHORT_INTERVAL * np.abs(values[best]))
    first = 0 if whole else int(np.argmax(shown & (half <= good)))
    half, values = half[first:], values[first:]
    # Odds between those of independent estimates, half^-2, and the choice of the best alone.
    odds = np.maximum(half / good, 1.0) ** -3
    odds /= odds.sum()
    mean = float(odds @ values)
    reach = float(np.sqrt(odds @ (half**2 + (values - mean) ** 2)))
    count = int(fitted[first])
    reach = float(np.hypot(reach, _drift(forms, u[-count:], y[-count:], mean)))
    return Tail(mean, (mean - reach, mean + reach), count, estimates[first], found)


def _drift(forms: tuple[Law, ...], u, y, value: float) -> float:
    """The change of the value if the last third of the tail is left out.

    Near the tolerance of a solver all tails end in its errors. Zero where the change is within the
    interval of the shortened tail, or above a tenth of the value.
    """
    early = len(y) - len(y) // 3
    if early < _MIN_TAIL:
        return 0.0
    before = estimate(forms, u[:early], y[:early])
    if before is None or not before.half_width < abs(before.value - value) < 0.1 * abs(value):
        return 0.0
    return abs(before.value - value)


def _penalised_half_widths(counts: np.ndarray, estimates: list[Estimate], y) -> np.ndarray:
    """Half the intervals, times the square of the factor by which deviations fall in the two tails
    next within."""
    sizes = np.array([len(e.params) for e in estimates])
    rms = np.array([e.rms for e in estimates]) * np.sqrt(counts / (counts - sizes))
    rms = np.maximum(rms, _ROUNDING * (1 + np.abs(y).max()))
    within = [
        [rms[j] for j in (k + 1, k + 2) if j < len(rms) and counts[j] >= 2 * sizes[j]]
        for k in range(len(rms))
    ]
    excess = np.array([max([1.0, *(r / other for other in w)]) for r, w in zip(rms, within)])
    return np.array([e.half_width for e in estimates]) * excess**2 + np.finfo(float).tiny
