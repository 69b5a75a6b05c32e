"""Sums of decaying exponentials, fitted to a gap by variable projection.

The weights are linear: they are found by least squares that are not negative. The rates are refined
around those with weight (Golub and Pereyra, SIAM J. Numer. Anal. 10, 1973).
"""

from typing import NamedTuple

import numpy as np

# Modes faster than this, over the last time, are gone at the first points.
_FASTEST = 2000.0
_LATTICE = np.concatenate(
    [
        np.geomspace(1e-2, 1.0, 20, endpoint=False),
        np.geomspace(1.0, 150.0, 420, endpoint=False),
        np.geomspace(150.0, _FASTEST, 60),
    ]
)
_MAX_ROUNDS = 50
# Terms of third order in the distance to a minimum fall as e^{−3λt}, where modes fall as e^{−2λt}:
# modes so much faster than the slowest one may be negative.
_NEGATIVE_FROM = 1.5
# Negative modes of the size of the gap cost as much as deviations of this size.
_PRICE = 3e-6


class Mixture(NamedTuple):
    """A sum of exponentials that was fitted: the sum of squared deviations, the rates times the
    last time, the logs of their fractions of the gap at the end, and the signs of these."""

    square: float
    rates: np.ndarray
    log_weights: np.ndarray
    signs: np.ndarray

    @property
    def weights(self) -> np.ndarray:
        return self.signs * np.exp(self.log_weights)


def log_mode(rate: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """Log of e^{−rate (u − 1)} at u = ends[:, 0], or of its decrease between both ends."""
    falls = -rate * (ends[:, :1] - 1)
    if ends.shape[1] == 1:
        return falls
    return falls + np.log(-np.expm1(-rate * (ends[:, 1:] - ends[:, :1])))


class Sums:
    """Fits sums of modes with positive weights to logs of gaps or of decreases.

    Deviations are relative to the gap, and an autoregressive process with the given correlation.
    The equations are projected onto what modes can span to 1e-10 of the largest.
    """

    def __init__(
        self,
        ends: np.ndarray,
        logs: np.ndarray,
        precision: np.ndarray | float = 1.0,
        correlation: float = 0.0,
    ):
        self.ends, self.logs, self.correlation = ends, logs, correlation
        self.precision = np.broadcast_to(precision, len(logs))[:, None]
        self.count = len(logs)
        columns = self._whitened(self._columns(_LATTICE)[0])
        one = self._whitened(np.ones((self.count, 1)))
        basis, sizes, _ = np.linalg.svd(np.hstack([columns[:, ::3], one]), full_matrices=False)
        self._basis = basis[:, sizes > 1e-10 * sizes[0]]
        self._target = self._basis.T @ one[:, 0]
        self._lattice = self._basis.T @ columns
        outside = one[:, 0] - self._basis @ self._target
        self._outside = float(outside @ outside)
        self._price = _PRICE * np.sqrt(self.count)

    def _whitened(self, columns: np.ndarray) -> np.ndarray:
        phi, columns = self.correlation, columns * self.precision
        if phi == 0:
            return columns
        rest = (columns[1:] - phi * columns[:-1]) / np.sqrt(1 - phi**2)
        return np.vstack([columns[:1], rest])

    def _columns(self, rates: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Modes over the gap, scaled to a maximum of one, and the logs of their scales."""
        logs = log_mode(rates, self.ends) - self.logs[:, None]
        # A weight is the fraction of the gap at the end.
        logs -= logs[-1:]
        top = logs.max(axis=0)
        return np.exp(logs - top), top

    def best(
        self, slowest: float, weight: float, *, enough: float = 0.0, signed: bool = False
    ) -> Mixture:
        """The best sum of which no mode is slower than `slowest`, and that one has the weight, or
        more. Stops where the mean square is `enough`. `signed`: modes half as fast again, and
        faster, may be negative."""
        from scipy.optimize import nnls

        allowed = slowest <= _LATTICE
        rates = np.append(slowest, _LATTICE[allowed][::12])
        negative_from = _NEGATIVE_FROM * slowest if signed else np.inf
        spacing, still = 0.25, 0
        found: Mixture | None = None
        for _ in range(_MAX_ROUNDS):
            one_sign = self._columns(rates)
            size = len(rates)
            flipped = np.flatnonzero(rates >= negative_from)
            rates, top = (
                np.append(rates, rates[flipped]),
                np.append(one_sign[1], one_sign[1][flipped]),
            )
            signs = np.where(np.arange(len(rates)) < size, 1.0, -1.0)
            matrix = self._basis.T @ self._whitened(one_sign[0])
            matrix = np.hstack([matrix, -matrix[:, flipped]])
            fixed = weight * np.exp(top[0]) * matrix[:, 0]
            # Negative modes cost as much as deviations: large ones that cancel are no terms of
            # higher order.
            price = np.where(signs < 0, self._price, 0.0)
            priced, target = np.vstack([matrix, price]), np.append(self._target - fixed, 0.0)
            scaled, _ = nnls(priced, target, maxiter=20 * len(rates))
            deviation = (target - priced @ scaled)[:-1]
            square = float(deviation @ deviation + (price @ scaled) ** 2) + self._outside
            used = scaled > 0
            if found is not None and square > 0.97 * found.square:
                still, spacing = still + 1, spacing / 2
            if found is None or square < found.square:
                logs = np.log(np.maximum(scaled, np.finfo(float).tiny)) - top
                logs[0] = np.log(scaled[0] * np.exp(-top[0]) + max(weight, 1e-300))
                kept = used.copy()
                kept[0] |= weight > 0
                found = Mixture(square, rates[kept], logs[kept], signs[kept])
            if still >= 6 or found.square <= enough * self.count:
                break
            rates = np.concatenate(
                [
                    _near(rates[used], spacing, slowest),
                    self._gaining(deviation, allowed, negative_from),
                ]
            )
            spacing *= 0.7
        assert found is not None
        return found

    def _gaining(self, deviation: np.ndarray, allowed: np.ndarray, negative_from: float):
        """Where on the lattice a further mode would reduce the square most."""
        gain = self._lattice.T @ deviation
        gain = np.where(negative_from <= _LATTICE, np.abs(gain), np.where(allowed, gain, -1.0))
        inner = gain[1:-1]
        peaks = (inner > gain[:-2]) & (inner >= gain[2:]) & (inner > 0)
        return _LATTICE[1:-1][peaks]

    def deviations(self, mixture: Mixture) -> np.ndarray:
        """Log gap less log of the sum, at each point."""
        columns, top = self._columns(mixture.rates)
        sums = columns @ (mixture.signs * np.exp(mixture.log_weights + top))
        return -np.log(np.maximum(sums, np.finfo(float).tiny))


def _near(rates: np.ndarray, spacing: float, slowest: float) -> np.ndarray:
    """The slowest rate, and the others with neighbours at this spacing in logs and a third."""
    steps = np.exp(spacing * np.array([-1.0, -1 / 3, 0.0, 1 / 3, 1.0]))
    near = np.outer(rates, steps).ravel()
    return np.append(slowest, np.unique(near[near > slowest]))
