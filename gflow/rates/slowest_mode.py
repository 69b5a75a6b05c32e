"""Which rates the slowest mode of a gap can have.

A gap that falls along a gradient flow near a minimum is a sum of exponentials with positive
weights, ½ Σ λ a² e^{−2λt}. A rate agrees with the data if such a sum does in which no mode is
slower, and that one carries some weight at the end. What carries less cannot be seen.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from gflow.rates.misfit import is_noise
from gflow.rates.sums import Mixture, Sums

# The slowest mode carries at least this fraction of the gap at the end of the tail.
MIN_WEIGHT = 0.01
# Deviations in log gap up to this size are no evidence: errors of solvers are as large, and smooth.
SMALLEST_DEVIATION = 1e-5
# Fits stop here, in squares of deviations.
_ENOUGH = (0.1 * SMALLEST_DEVIATION) ** 2
# What a rate may lose in −2 log likelihood: above the 95 % quantile of χ² with one degree of
# freedom, 3.8, as the noise and its correlation are estimated too.
_MAX_LOSS = 8.0
# Slower modes do not change over the tail. Earlier points say nothing about slow ones.
_SLOWEST, _EARLIEST = 0.02, 0.01
MIN_POINTS, _NESTING = 13, 0.7
# A tail shows enough of a sum at so many times 1/rate; on shorter ones, any sum fits.
_ENOUGH_SEEN = 3.0
# Deviations of noise grow at most so much from a tail to one that holds it.
_MAX_GROWTH = 3.0
# In noise, modes of so many times its size count as seen.
_SEEN_ABOVE_NOISE = 8.0
# Beside negative modes, the slowest is searched for as one of at least the first weight; slow ones
# are seen from the second on.
_LEADING, _MIN_SIGNED = 0.5, 0.05
# Edges of intervals are found to this fraction; errors of solvers move rates by up to as much.
RESOLUTION = 2e-4
# Rates over that at the end to start from.
_NEAR_LOCAL = np.array([0.97, 0.99, 1.01, 1.03, 1.06, 1.1])


@dataclass(frozen=True)
class SlowestMode:
    """What a tail says about the slowest of its modes; rates are multiples of 1/(last time).

    - `value`, `interval`: its rate; the interval starts at 0 where nothing excludes a mode that
      does not change over the tail. `min_weight`: the fraction of the gap at the end that it has to
      carry.
    - `local`: −d log gap / dt at the end.
    - `rates`, `weights`: the modes of the best sum, and their fractions of the gap at the end.
    - `start`: the first time that was used, over the last one. `size`: root mean square of the
      deviations in log gap; `correlation`: that of neighbouring ones.
    """

    value: float
    interval: tuple[float, float]
    min_weight: float
    local: float
    rates: np.ndarray
    weights: np.ndarray
    start: float
    size: float
    correlation: float


class _ModeTail(NamedTuple):
    """A tail on which a sum of modes fits; `drift`: by how much errors that were given can move the
    rate."""

    u: np.ndarray
    logs: np.ndarray
    precision: np.ndarray
    deviations: np.ndarray
    num_modes: int
    drift: float
    signed: bool = False

    @property
    def noise(self) -> float:
        """The size of the deviations had no mode been fitted to them."""
        count = len(self.logs)
        return self.size * float(np.sqrt(count / max(count - 2 * self.num_modes, count / 2)))

    @property
    def size(self) -> float:
        return float(np.sqrt(np.mean(self.deviations**2)))

    @property
    def fits(self) -> bool:
        return self.size <= SMALLEST_DEVIATION or is_noise(self.deviations)


def slowest_mode(
    ends: np.ndarray, logs: np.ndarray, errors: np.ndarray | float = 0.0
) -> SlowestMode | None:
    """The rates that the slowest mode can have, from the longest of some nested tails on which a
    sum of modes fits: its deviations are no larger than `SMALLEST_DEVIATION`, or noise. Of the logs
    that have `errors`, these are allowed, too.

    Sums of positive modes come first. Near a minimum the terms of third order in the distance have
    either sign, and fall half as fast again as the slowest mode or faster: sums with such terms
    come second, if these are small at the end.

    **Returns:** None if no sum fits.
    """
    u = ends / ends[-1, -1]
    given = 1 / np.hypot(1.0, np.broadcast_to(errors, len(logs)) / SMALLEST_DEVIATION)
    first = int(np.searchsorted(u[:, 0], _EARLIEST))
    tails: list[tuple[_ModeTail, float]] = []
    while len(logs) - first >= MIN_POINTS:
        tails.append(_positive(u[first:], logs[first:], given[first:]))
        first += max(1, int((1 - _NESTING) * (len(logs) - first)))
    for k, (tail, local) in enumerate(tails):
        if _is_good(tail, [later for later, _ in tails[k + 1 :]]):
            if local * (1 - tail.u[0, 0]) >= _ENOUGH_SEEN:
                return _interval(tail)
            break
    else:
        tail = None
    # Sums with negative modes cost more: from the shortest tail on, as long as they fit.
    found: list[_ModeTail] = []
    for shorter, local in reversed(tails):
        longer = _signed(shorter.u, shorter.logs, local, given[-len(shorter.logs) :])
        if longer is None or not _is_good(longer, found):
            break
        found.append(longer)
    if found and (tail is None or len(found[-1].logs) > len(tail.logs)):
        tail = found[-1]
    return None if tail is None else _interval(tail)


def _is_good(tail: _ModeTail, within: list[_ModeTail]) -> bool:
    """Whether a sum fits, and no much better on the tails within: deviations that get smaller are
    not noise, but what the sum lacks."""
    smallest = min((other.noise for other in within), default=np.inf)
    return tail.fits and tail.noise <= max(_MAX_GROWTH * smallest, 2 * SMALLEST_DEVIATION)


def _positive(u: np.ndarray, y: np.ndarray, given: np.ndarray) -> tuple[_ModeTail, float]:
    """The best sum of positive modes, and its rate at the end."""
    sums = Sums(u, y, given)
    mixture = sums.best(_SLOWEST, 0.0, enough=_ENOUGH)
    found = _precision(given * sums.deviations(mixture), y)
    precision = given * found
    if found.min() < 1:
        sums = Sums(u, y, precision)
        mixture = sums.best(_SLOWEST, 0.0, enough=_ENOUGH)
    deviations = precision * sums.deviations(mixture)
    count = len(_merged(np.unique(mixture.rates)))
    return _ModeTail(u, y, precision, deviations, count, _drift(u, given)), _local(mixture)


def _signed(u: np.ndarray, y: np.ndarray, local: float, given: np.ndarray) -> _ModeTail | None:
    """The best sum with negative modes, around a rate at the end; None if none fits."""
    sums, precision = Sums(u, y, given), given
    for last in (False, True):
        square = lambda rate, sums=sums: (
            sums.best(rate, _LEADING, enough=_ENOUGH, signed=True).square
        )
        rate, _ = _least(square, local, _NEAR_LOCAL * local)
        mixture = sums.best(rate, _LEADING, enough=_ENOUGH, signed=True)
        deviations = sums.deviations(mixture)
        found = _precision(precision * deviations, y)
        if last or found.min() == 1:
            break
        precision = given * found
        sums = Sums(u, y, precision)
    count = len(_merged(np.unique(mixture.rates)))
    drift = _drift(u, given)
    tail = _ModeTail(u, y, precision, precision * deviations, count, drift, signed=True)
    small = -mixture.weights[mixture.signs < 0].sum() <= MIN_WEIGHT
    return tail if small and tail.fits else None


def _drift(u: np.ndarray, given: np.ndarray) -> float:
    """Errors at the end, over the length of the tail."""
    return SMALLEST_DEVIATION * float(np.sqrt(given[-1] ** -2 - 1) / (1 - u[0, 0]))


def _local(mixture: Mixture, u: float = 1.0) -> float:
    """−d log gap / du, at the end or before."""
    weights = mixture.weights * np.exp(np.minimum(mixture.rates * (1 - u), 700.0))
    return float(mixture.rates @ weights / weights.sum())


def _precision(deviations: np.ndarray, logs: np.ndarray) -> np.ndarray:
    """What to multiply deviations by where noise of one size in the gap adds to that in its log:
    its size is seen in the last quarter, that of the other in the first half."""
    if len(logs) < MIN_POINTS:
        return np.ones(len(logs))
    rough = np.diff(deviations, 2) ** 2 / 6
    quarter = len(rough) // 4
    early = max(float(np.mean(rough[: 2 * quarter])), (0.3 * SMALLEST_DEVIATION) ** 2)
    grown = np.exp(2 * (logs[-1] - logs))
    late = float((np.mean(rough[-quarter:]) - early) / np.mean(grown[-quarter:]))
    if late < 4 * early:
        return np.ones(len(logs))
    return 1 / np.sqrt(1 + late / early * grown)


def _interval(tail: _ModeTail) -> SlowestMode:
    """The rates that lose no more of the likelihood than allowed."""
    y, size = tail.logs, tail.size
    correlation = _correlation(tail.deviations) if size > SMALLEST_DEVIATION else 0.0
    sums = Sums(tail.u, y, tail.precision, correlation)
    noise = size * np.sqrt((1 + correlation) / (1 - correlation))
    weight = float(np.clip(_SEEN_ABOVE_NOISE * noise, MIN_WEIGHT, 0.5))
    if tail.signed:
        weight = max(weight, _MIN_SIGNED)
    profile = lambda rate, enough=0.0: sums.best(rate, weight, enough=enough, signed=tail.signed)
    mixture = sums.best(_SLOWEST, 0.0, enough=_ENOUGH)
    local = _local(mixture)
    seen = np.append(_merged(mixture.rates[mixture.weights >= weight]), local)
    if tail.signed:
        trials = _NEAR_LOCAL * local
        seen = np.array([_least(lambda rate: profile(rate, _ENOUGH).square, local, trials)[0]])
        mixture = profile(float(seen[0]), _ENOUGH)
    freedom = max(len(y) - 2 * len(_merged(np.unique(mixture.rates))), 3)
    largest = lambda square: max(
        square + _MAX_LOSS * max(square / freedom, SMALLEST_DEVIATION**2),
        len(y) * SMALLEST_DEVIATION**2,
    )
    limit = largest(mixture.square)
    agrees = lambda rate: profile(rate, 0.99 * limit / len(y)).square <= limit
    agreeing = [float(rate) for rate in seen if agrees(float(rate))]
    if not agreeing:
        trials = np.geomspace(0.3 * local, 1.1 * local, 14)
        start, square = _least(lambda rate: profile(rate).square, float(seen[0]), trials)
        limit, agreeing = largest(square), [start]
    high = _edge(agrees, max(agreeing), 1.5 * max(local, *agreeing))
    low = _edge(agrees, min(agreeing), _SLOWEST)
    # A rate that rises may go on for as much as it rose over the second half of the tail.
    middle = (1 + float(tail.u[0, 0])) / 2
    rise = max(_local(mixture) - _local(mixture, middle), 0.0) if tail.signed else 0.0
    return SlowestMode(
        value=min(agreeing),
        interval=(
            0.0 if low <= 1.01 * _SLOWEST else max(low * (1 - RESOLUTION) - tail.drift, 0.0),
            high * (1 + RESOLUTION) + tail.drift + rise,
        ),
        min_weight=weight,
        local=local,
        rates=mixture.rates,
        weights=mixture.weights,
        start=float(tail.u[0, 0]),
        size=size,
        correlation=correlation,
    )


def _least(
    square: Callable[[float], float], start: float, trials: np.ndarray
) -> tuple[float, float]:
    """The rate of the least square near the start, and that square."""
    found = {float(rate): square(float(rate)) for rate in np.append(trials, start)}
    for _ in range(4):
        rates = sorted(found)
        at = min(range(len(rates)), key=lambda k: found[rates[k]])
        for other in (at - 1, at + 1):
            if 0 <= other < len(rates):
                rate = float(np.sqrt(rates[at] * rates[other]))
                found[rate] = square(rate)
    best = min(found, key=lambda rate: found[rate])
    return best, found[best]


def _edge(agrees: Callable[[float], bool], inside: float, outside: float) -> float:
    """The last rate towards `outside` that agrees, to a fiftieth of the way in logs or to
    `RESOLUTION`."""
    # Steps that double find the scale of the interval, which can be a small part of the way.
    way, step = np.log(outside / inside), 1e-3
    while step < abs(way) and agrees(inside * np.exp(np.sign(way) * step)):
        step *= 3
    if step >= abs(way):
        if agrees(outside):
            return outside
        step = abs(way)
    good, bad = (step / 3 if step > 1e-3 else 0.0), step
    for _ in range(4):
        middle = (good + bad) / 2
        good, bad = (
            (middle, bad) if agrees(inside * np.exp(np.sign(way) * middle)) else (good, middle)
        )
    return float(inside * np.exp(np.sign(way) * bad))


def _correlation(deviations: np.ndarray) -> float:
    """That of neighbouring deviations, as if fitted ones were as alike as those of the noise."""
    e = deviations - deviations.mean()
    count = len(e)
    found = float(e[1:] @ e[:-1] / (e @ e))
    return float(np.clip((count * found + 1) / (count - 4), 0.0, 0.97))


def _merged(rates: np.ndarray) -> np.ndarray:
    """One of each group of rates closer than a lattice step."""
    return rates[np.append(True, np.diff(np.log(rates)) > 0.05)[: len(rates)]]
