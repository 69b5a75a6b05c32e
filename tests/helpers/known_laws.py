"""Forty gaps of known law: what `fit_rate` may never call by the other name.

Each case is the law's rate, a second term (share, further rate), an offset t0 of power laws, the
relative size and correlation of the deviations, the times, and whether the limit is known. The
deviations are an autoregressive process of order one in log gap, along the saved times.
"""

from typing import NamedTuple

import numpy as np


class Case(NamedTuple):
    law: str
    rate: float
    second: tuple[float, float] = (0.0, 1.0)
    offset: float = 0.0
    noise: float = 1e-6
    correlation: float = 0.5
    until: float = 10.0
    first: float = 1e-2
    points: int = 150
    known: bool = True

    @property
    def times(self) -> np.ndarray:
        """Logarithmic for power laws; even for exponentials, `until` times 1/rate long."""
        if self.law == "power":
            return np.geomspace(self.first, self.until, self.points)
        return np.linspace(self.first, self.until, self.points) / self.rate

    def gap(self, seed: int) -> np.ndarray:
        share, further = self.second
        if self.law == "power":
            z = self.times + self.offset
            logs = -self.rate * np.log(z) + np.log1p(share * z**-further)
        else:
            x = self.rate * self.times
            logs = -x + np.log1p(share * np.exp(-further * x))
        return np.exp(logs + self.noise * correlated(seed, self.points, self.correlation))


def correlated(seed: int, count: int, correlation: float) -> np.ndarray:
    """An autoregressive process of order one and variance one."""
    normal = np.random.default_rng(seed).normal(size=count)
    process = [normal[0]]
    for innovation in normal[1:]:
        process.append(correlation * process[-1] + np.sqrt(1 - correlation**2) * innovation)
    return np.array(process)


EXPONENTIALS = [
    Case("exponential", 1.0),
    Case("exponential", 0.01),
    Case("exponential", 30.0),
    Case("exponential", 1.0, noise=1e-4),
    Case("exponential", 1.0, noise=1e-3),
    Case("exponential", 1.0, noise=1e-2),
    Case("exponential", 1.0, noise=1e-2, correlation=0.9),
    Case("exponential", 0.1, second=(1.0, 1.0)),
    Case("exponential", 0.1, second=(5.0, 2.0)),
    Case("exponential", 0.1, second=(3.0, 0.5), until=20.0),
    Case("exponential", 0.1, second=(-0.5, 1.0)),
    Case("exponential", 0.1, second=(2.0, 1.0), noise=1e-3, correlation=0.9),
    Case("exponential", 0.1, second=(2.0, 1.0), noise=1e-2),
    Case("exponential", 1e-3, second=(10.0, 5.0), noise=1e-4),
    Case("exponential", 2.0, until=5.0, noise=1e-3),
    Case("exponential", 2.0, until=4.0, second=(1.0, 3.0), noise=1e-4),
    Case("exponential", 1.0, known=False),
    Case("exponential", 0.3, second=(2.0, 2.0), known=False, noise=1e-4),
    Case("exponential", 0.3, known=False, noise=1e-3, correlation=0.9),
    Case("exponential", 1.0, points=40, noise=1e-3),
]
POWERS = [
    Case("power", 1.0, until=1e4),
    Case("power", 2.0, until=1e4),
    Case("power", 4 / 3, until=1e6),
    Case("power", 0.3, until=1e4),
    Case("power", 0.1, until=1e4, noise=1e-4),
    Case("power", 4.0, until=1e3, noise=1e-3),
    Case("power", 1.0, until=1e4, noise=1e-4),
    Case("power", 1.0, until=1e4, noise=1e-3, correlation=0.9),
    Case("power", 1.0, until=1e4, noise=1e-2),
    Case("power", 1.5, offset=1.0, until=1e3),
    Case("power", 1.5, offset=30.0, until=1e4, noise=1e-4),
    Case("power", 3.0, offset=10.0, until=1e3, noise=1e-3),
    Case("power", 2.0, offset=1.0, second=(0.5, 1.0), until=1e4),
    Case("power", 2.0, offset=1.0, second=(-0.5, 0.5), until=1e5, noise=1e-4),
    Case("power", 1.0, offset=2.0, second=(1.0, 1.0), until=1e4, noise=1e-3),
    Case("power", 1.0, first=1.0, until=10.0, noise=1e-4),
    Case("power", 1.5, offset=1.0, until=1e4, known=False),
    Case("power", 1.0, offset=0.1, until=1e3, known=False, noise=1e-4),
    Case("power", 3.0, offset=1.0, until=1e3, known=False, noise=1e-3),
    Case("power", 1.0, offset=1.0, until=1e3, points=40, noise=1e-3),
]
CASES = EXPONENTIALS + POWERS
