"""The order of descent in its step size, from distances to the flow."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from scipy.special import ndtr

from gflow.arguments import ArgumentError, Described, positive
from gflow.comparison import Comparison
from gflow.display import Shown

__all__ = ["ConvergenceOrder", "Parting", "observed_order"]

# A descent has parted where its distance has grown this many times as much as that of the others.
_PARTED = 4.0
# Below this fraction of their largest value, distances are errors of the flow.
_TOGETHER = 1e-4
# At the start descent and flow are one, up to the rounding of this fraction of later distances.
_AT_START = 1e-3
# The standard deviations of the corrections in h and h² at the largest step size, before data are
# seen.
_CORRECTIONS = (0.2, 0.1)
# In the models of the noise, step sizes whose ratio is below one of these have similar noise, up to
# a fraction of its variance.
_RATIOS, _FRACTIONS = (2**0.5, 2.0, 8.0), (0.5, 0.9, 0.99, 0.999)


class Parting(NamedTuple):
    """A descent that leaves the flow: from `time` on, its distance from the flow, over what it was
    at first, stays above that of the descents that follow by a factor of four or more."""

    step_size: float
    time: float


@dataclass(frozen=True, repr=False)
class ConvergenceOrder(Shown):
    """The observed order p of a distance in the step size, distance ≈ C h^p.

    - `value`: p, the median of what the data leave possible; `interval`: the middle 95 % of it.
    - `step_sizes`, `distances`: the fitted data. Of comparisons, the distances are typical ones, at
      the median time.
    - `partings`: the descents that parted from the flow, and when. Their distances count up to that
      time. `until`: the last time that counts, None if distances were given as numbers.
    """

    value: float
    interval: tuple[float, float]
    step_sizes: tuple[float, ...]
    distances: tuple[float, ...]
    partings: tuple[Parting, ...] = ()
    until: float | None = None

    def summary(self) -> dict[str, str]:
        """The main facts in words, by name."""
        low, high = self.interval
        pairs = zip(self.step_sizes, self.distances)
        parted = [f"h = {p.step_size:.4g} at t = {p.time:.4g}" for p in self.partings]
        return {
            "order": f"{self.value:.3f} (95 % interval {low:.3f} to {high:.3f})",
            "distances": ", ".join(f"{d:.4g} at h = {h:.4g}" for h, d in pairs),
            **({"descents that part": ", ".join(parted)} if parted else {}),
        }

    def __repr__(self) -> str:
        return f"order {self.summary()['order']}"


def observed_order(step_sizes: Any, distances: Any) -> ConvergenceOrder:
    r"""The order p in the step size h, with a 95 % interval, from

    $$\log d(h) = \log C + p \log h + a h + b h^2 + \sigma\,\varepsilon(h).$$

    The terms in h and h² are the first corrections to $C h^p$. At the largest step size they are a
    priori normal with standard deviations 0.2 and 0.1; they are left out below four distinct step
    sizes. The noise ε is normal, and partly similar in similar step sizes:

    $$\mathrm{Cov}(\varepsilon(h), \varepsilon(h'))
        = (1 - w)\,\delta_{hh'} + w\,(1 + r)\,e^{-r}, \qquad r = \sqrt3\,|\log(h/h')| / \ell.$$

    The size σ, the fraction w and the length ℓ are not known. The interval allows for all of them,
    weighted by how well they explain the data: σ has density 1/σ a priori, w is from 0 to 0.999,
    and ℓ is half an octave, one or three. Nothing is presumed of p.

    Gradient descent follows gradient flow with order 1: the global error of Euler's method is at
    most h M (e^{ΛT} − 1)/(2Λ), with the Lipschitz constant Λ of ∇L and M = max ‖∇²L ∇L‖. At a kink,
    the distance depends also on where the steps fall, on t/h modulo 1 for a kink at time t. This is
    the noise. If many steps lead to the kink, it is independent in any two step sizes. If few do,
    it is nearly the same in similar ones, and looks like another order.

    From comparisons the order is that of typical distances, D(h), from the fit of
    log distance(t, h) = A(t) + log D(h) by medians over times and step sizes (Tukey's median
    polish). Some descents may come to another side of a kink and part from the flow. What a descent
    does after it has parted does not count, and nothing after half of them have.

    **Arguments:**

    - `step_sizes`: at least three. Seven or more, over a decade or more, give a useful interval.
    - `distances`: for each step size a positive number, or the `Comparison` with the flow.

    **Raises:** `ArgumentError` for fewer than three, unequal numbers, values that are not positive,
    comparisons without a common span, or with descents from another
    start, and distances that grow as step sizes fall.
    """
    if len(step_sizes) != len(distances) or len(step_sizes) < 3:
        got = Described(f"{len(step_sizes)} step sizes and {len(distances)} distances")
        raise ArgumentError("step_sizes", got, "at least three, one for each distance")
    h = np.array([positive("step_sizes", x) for x in step_sizes])
    if (distinct := _num_distinct(h)) < 3:
        got = Described(f"{len(h)} step sizes, {distinct} of them distinct")
        raise ArgumentError("step_sizes", got, "at least three distinct ones")
    if not all(isinstance(d, Comparison) for d in distances):
        d = np.array([positive("distances", x) for x in distances])
        return _checked(_fitted(h, d))
    if any(_starts_apart(c) for c in distances):
        got = Described("comparisons with descents that do not start where the flow does")
        raise ArgumentError("distances", got, "those of descents from the start of the flow")
    ts, logs = _matched(distances)
    parted = _parted(logs)
    following = np.sum(~parted, axis=0)
    end = int(np.sum(np.logical_and.accumulate(2 * following >= len(h))))
    typical = np.exp(_effects(np.where(parted, np.nan, logs)[:, :end]))
    partings = [Parting(float(x), float(ts[np.argmax(p)])) for x, p in zip(h, parted) if p.any()]
    return _checked(_fitted(h, typical, tuple(partings), float(ts[end - 1])))


def _starts_apart(comparison: Comparison) -> bool:
    """Whether there is a distance at the start already."""
    at_start, most = comparison.distance[0], np.max(comparison.distance)
    return bool(comparison.ts[0] == 0 and at_start > _AT_START * most)


def _checked(order: ConvergenceOrder) -> ConvergenceOrder:
    if order.interval[1] < 0:
        got = Described(f"distances that grow as step sizes fall ({order})")
        raise ArgumentError("distances", got, "one for each of the step sizes, in their order")
    return order


def _num_distinct(h: np.ndarray) -> int:
    """The number of step sizes, those counted once that differ by rounding only."""
    return 1 + int(np.sum(np.diff(np.sort(np.log(h))) > 1e-6))


def _matched(comparisons: Sequence[Comparison]) -> tuple[np.ndarray, np.ndarray]:
    """Times of the comparison with fewest, and log distances there, shape (descents, times)."""
    positive_times = [c.ts[(c.ts > 0) & (c.distance > 0)] for c in comparisons]
    ends = [ts[[0, -1]] for ts in positive_times if len(ts)]
    if len(ends) == len(comparisons):
        first, last = np.max(ends, axis=0)[0], np.min(ends, axis=0)[1] * (1 + 1e-12)
        ts = min(positive_times, key=len)
        ts = ts[(ts >= first) & (ts <= last)]
        if len(ts):
            rows = [
                np.interp(np.log(ts), np.log(times), np.log(c.distance[np.isin(c.ts, times)]))
                for times, c in zip(positive_times, comparisons)
            ]
            logs = np.stack(rows)
            middle = np.median(logs, axis=0)
            apart = middle >= middle.max() + np.log(_TOGETHER)
            return ts[apart], logs[:, apart]
    got = Described("comparisons without a common time at which every distance is positive")
    raise ArgumentError("distances", got, "comparisons of descents with one flow")


def _parted(logs: np.ndarray) -> np.ndarray:
    """Whether a descent has parted, from the logs of the distances, shape (descents, times)."""
    grown = logs - logs[:, :1]
    following = np.quantile(grown, 0.25, axis=0, method="lower")
    far = grown > following + np.log(_PARTED)
    for_good = np.logical_and.accumulate(far[:, ::-1], axis=1)
    return for_good[:, ::-1]


def _effects(logs: np.ndarray) -> np.ndarray:
    """The logs of the typical distances, by median polish; entries that are NaN do not count."""
    of_rows, of_times = np.zeros(len(logs)), np.zeros(logs.shape[1])
    for _ in range(30):
        of_times = np.nanmedian(logs - of_rows[:, None], axis=0)
        new = np.nanmedian(logs - of_times, axis=1)
        if np.max(np.abs(new - of_rows)) < 1e-10:
            break
        of_rows = new
    return of_rows + np.median(of_times)


def _fitted(
    h: np.ndarray, d: np.ndarray, partings: tuple[Parting, ...] = (), until: float | None = None
) -> ConvergenceOrder:
    """The median and the quantiles of p, a mixture of normal distributions: one for each model of
    the noise and each size."""
    x, y = np.log(h / h.max()), np.log(d)
    columns, precisions = [np.ones_like(x), x], [0.0, 0.0]
    if _num_distinct(h) >= 4:  # with corrections any three distances fit exactly
        columns += [(h / h.max()) ** k for k in (1, 2)]
        precisions += [1 / size for size in _CORRECTIONS]
    line, *_ = np.linalg.lstsq(np.stack(columns[:2], 1), y)
    residual = y - np.stack(columns[:2], 1) @ line
    floor = 1e-14 * (1 + np.abs(y).max())
    sizes = np.geomspace(floor, 1e4 * (floor + np.abs(residual).max()), 160)
    regressions = [
        _regression(np.stack(columns, 1), residual, np.diag(precisions), noise, sizes)
        for noise in _noises(x)
    ]
    log_odds, shifts, errors = (np.concatenate(a) for a in zip(*regressions))
    odds = np.exp(log_odds - log_odds.max())
    odds /= odds.sum()
    low, middle, high = (_quantile(q, odds, line[1] + shifts, errors) for q in (0.025, 0.5, 0.975))
    of_floats = lambda a: tuple(map(float, a))
    return ConvergenceOrder(middle, (low, high), of_floats(h), of_floats(d), partings, until)


class _Noise(NamedTuple):
    """The Cholesky factor of a covariance of the noise, and the log of its weight a priori."""

    factor: np.ndarray
    log_weight: float


def _noises(x: np.ndarray) -> list[_Noise]:
    """The models of the noise at these log step sizes: independent, or partly similar."""
    independent = np.eye(len(x))
    found = [_Noise(independent, 0.0)]
    for ratio in _RATIOS:
        r = np.sqrt(3) * np.abs(x[:, None] - x) / np.log(ratio)
        similar = (1 + r) * np.exp(-r)
        for w in _FRACTIONS:
            factor = np.linalg.cholesky((1 - w) * independent + w * similar)
            found.append(_Noise(factor, -np.log(len(_RATIOS))))
    return found


class _Regression(NamedTuple):
    """For each size of the noise: the log of its odds, and mean and standard error of the slope."""

    log_odds: np.ndarray
    slope: np.ndarray
    error: np.ndarray


def _regression(
    design: np.ndarray, y: np.ndarray, precision: np.ndarray, noise: _Noise, sizes: np.ndarray
) -> _Regression:
    """Linear regression with normal noise and normal coefficients; the second one is the slope.

    `precision` holds the inverse standard deviations of the coefficients, 0 where nothing is
    presumed.
    """
    count = design.shape[1]
    whitened = np.linalg.solve(noise.factor, np.column_stack([design, y]))
    scaled = whitened / sizes[:, None, None]
    prior = np.broadcast_to(
        np.column_stack([precision, np.zeros(count)]), (len(sizes), count, count + 1)
    )
    # The last column of the triangle holds the fit, and its last entry the misfit.
    triangle: Any = np.linalg.qr(np.concatenate([scaled, prior], axis=1), mode="r")
    upper, fit = triangle[:, :count, :count], triangle[:, :count, count]
    inverse = np.linalg.inv(upper)
    slope = np.einsum("sj,sj->s", inverse[:, 1], fit)
    log_det = np.sum(np.log(np.abs(np.diagonal(upper, axis1=1, axis2=2))), axis=1)
    log_odds = noise.log_weight - triangle[:, count, count] ** 2 / 2 - log_det
    log_odds -= np.sum(np.log(np.diag(noise.factor))) + len(y) * np.log(sizes)
    return _Regression(log_odds, slope, np.linalg.norm(inverse[:, 1], axis=1))


def _quantile(q: float, odds: np.ndarray, values: np.ndarray, errors: np.ndarray) -> float:
    """That of a mixture of normal distributions, by bisection."""
    low, high = np.min(values - 9 * errors), np.max(values + 9 * errors)
    for _ in range(100):
        middle = (low + high) / 2
        below = odds @ ndtr((middle - values) / errors) < q
        low, high = (middle, high) if below else (low, middle)
    return float((low + high) / 2)
