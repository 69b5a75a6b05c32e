"""Gaps of known future, drawn at random: of quadratics, sums of two exponentials, and no law."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

Curve = Callable[[np.ndarray], np.ndarray]
KINDS = ("stretched", "logarithm", "power log", "cutoff", "oscillating", "staircase")


class Gap(NamedTuple):
    """A gap at saved times, and what it does later.

    - `rate`: that of its slowest mode; None if it has none. `share`: the fraction of the gap that
      this mode carries at the last time. `curve`: the gap at any time.
    """

    ts: np.ndarray
    values: np.ndarray
    curve: Curve
    rate: float | None = None
    share: float = 1.0


def quadratic(rng: np.random.Generator, until: float) -> Gap:
    """A flow on a quadratic with 5 to 60 modes, to a time of `until` over the slowest rate: rates
    even in logs over one to four decades, even, or of a random Gram matrix."""
    modes = int(rng.integers(5, 61))
    drawn = rng.integers(3)
    if drawn == 0:
        rates = 10 ** rng.uniform(0, rng.uniform(1, 4), modes)
    elif drawn == 1:
        rates = rng.uniform(0.01, 1, modes)
    else:
        table = rng.normal(size=(modes, int(modes * rng.uniform(1.1, 3)) + 1))
        rates = np.linalg.eigvalsh(table @ table.T / table.shape[1])
    rates = rates / rates.min()
    return _saved(rng, rates, rates * rng.normal(size=modes) ** 2, until)


def two_exponentials(rng: np.random.Generator) -> Gap:
    """Rates 1 to 100 % apart, to a time of 10 to 30 over the slower one."""
    rates = np.array([1.0, 1.0 + 10 ** rng.uniform(-2, 0)])
    weights = np.array([1.0, 10 ** rng.uniform(-1.5, 1.5)])
    return _saved(rng, rates, weights, rng.uniform(10, 30))


def _saved(rng: np.random.Generator, rates: np.ndarray, weights: np.ndarray, until: float) -> Gap:
    """The sum at 60 to 400 times, even or even in logs, with its rounding errors."""
    count, unit = int(rng.integers(60, 401)), 10 ** rng.uniform(-3, 2)
    even = rng.random() < 0.5
    ts = np.linspace(0, until, count)
    ts = ts if even else np.append(0.0, np.geomspace(1e-4 * until, until, count))
    curve = lambda t: np.exp(-np.outer(unit * t, rates)) @ weights
    values = curve(ts / unit)
    at_end = weights * np.exp(-rates * until)
    share = float(at_end[np.argmin(rates)] / at_end.sum())
    noise = 1e-16 * values[0] * rng.normal(size=len(ts))
    return Gap(ts / unit, values + noise, curve, unit, share)


def lawless(rng: np.random.Generator, kind: str) -> Gap:
    """A gap of one of the `KINDS`, which no law of `fit_rate` describes."""
    count, unit = int(rng.integers(80, 301)), 10 ** rng.uniform(-2, 2)
    curve, ts = _DRAWN[kind](rng, count)
    return Gap(ts * unit, curve(ts), lambda t: curve(np.asarray(t) / unit))


def _stretched(rng: np.random.Generator, count: int) -> tuple[Curve, np.ndarray]:
    power = rng.uniform(0.2, 0.9) if rng.random() < 0.8 else rng.uniform(1.1, 2.0)
    end = rng.uniform(3, 30) ** (1 / power)
    even = rng.random() < 0.5
    ts = np.linspace(1e-3, 1, count) if even else np.geomspace(1e-4, 1, count)
    return lambda t: np.exp(-(t**power)), end * ts


def _logarithm(rng: np.random.Generator, count: int) -> tuple[Curve, np.ndarray]:
    power, offset, end = rng.uniform(0.5, 3), rng.uniform(2, 10), 10 ** rng.uniform(3, 8)
    return lambda t: np.log(t + offset) ** -power, np.geomspace(0.1, end, count)


def _power_log(rng: np.random.Generator, count: int) -> tuple[Curve, np.ndarray]:
    power, logs = rng.uniform(0.5, 3), float(rng.choice([-2, -1, 1, 2]))
    offset, end = rng.uniform(3, 10), 10 ** rng.uniform(3, 8)
    curve = lambda t: (t + 1.0) ** -power * np.log(t + offset) ** logs
    return curve, np.geomspace(0.1, end, count)


def _cutoff(rng: np.random.Generator, count: int) -> tuple[Curve, np.ndarray]:
    power, rate = rng.uniform(0.3, 3), 10 ** rng.uniform(-1, 1.4)
    return lambda t: (t + 1.0) ** -power * np.exp(-rate * t / 1e3), np.geomspace(0.1, 1e3, count)


def _oscillating(rng: np.random.Generator, count: int) -> tuple[Curve, np.ndarray]:
    size, frequency, phase = rng.uniform(0.05, 0.9), rng.uniform(0.5, 10), rng.uniform(0, 6)
    wave = lambda x: 1 + size * np.cos(frequency * x + phase)
    if rng.random() < 0.5:
        end = rng.uniform(5, 25)
        return lambda t: np.exp(-t) * wave(t), np.linspace(1e-3 * end, end, count)
    power = rng.uniform(0.5, 3)
    curve = lambda t: (1 + t) ** -power * wave(np.log1p(t))
    return curve, np.geomspace(1e-2, 1e4, count)


def _staircase(rng: np.random.Generator, count: int) -> tuple[Curve, np.ndarray]:
    steps = int(rng.integers(2, 7))
    at = 10 ** rng.uniform(0, 3.5, steps)
    heights = rng.uniform(0.3, 1, steps)
    steepness = 1 / rng.uniform(0.02, 0.3)

    def curve(t: np.ndarray) -> np.ndarray:
        over = np.minimum(np.asarray(t)[..., None] / at, 1e6)
        levels = heights / heights.sum() / (1 + over**steepness)
        return levels.sum(axis=-1) + 1e-3 * np.exp(-np.asarray(t) / 1e4)

    return curve, np.geomspace(0.1, 10 ** rng.uniform(1, 4), count)


_DRAWN = {
    "stretched": _stretched,
    "logarithm": _logarithm,
    "power log": _power_log,
    "cutoff": _cutoff,
    "oscillating": _oscillating,
    "staircase": _staircase,
}
