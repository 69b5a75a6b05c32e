"""Laws of decay of a gap, as curves of log gap with their derivatives by the parameters."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import numpy as np

# The second term of a law at the end of the tail, at most: beyond, the first does not lead yet.
SECOND = 1 / 3
# Higher powers of t cannot be told from exponentials.
POWERS = (-1.0, 12.0)


class Law(NamedTuple):
    """A law for log gap as a function of u, the time over the last time of the tail.

    `curve(p, u)` gives its values and their derivatives by the parameters p, in a last axis;
    p[`of`] is the number of interest, p[`offset_at`] an offset of time. `starts(u)` are first
    values of the parameters after the first two, level and slope, and `bounds(u)` their least and
    greatest ones, given the first u; `slopes` are those of the second.
    """

    curve: Callable[..., tuple[np.ndarray, np.ndarray]]
    of: int
    starts: Callable[[float], list[list[float]]]
    bounds: Callable[[float], tuple[list[float], list[float]]]
    slopes: tuple[float, float] = (-np.inf, np.inf)
    offset_at: int | None = None

    def offset(self, p: np.ndarray) -> float:
        """t0 over the last time of the tail."""
        return 0.0 if self.offset_at is None else float(p[self.offset_at])


def _columns(shape: tuple[int, ...], *columns) -> np.ndarray:
    """Arrays or numbers side by side in a last axis; several times faster than `np.stack`."""
    out = np.empty((*shape, len(columns)))
    for k, column in enumerate(columns):
        out[..., k] = column
    return out


def _line(p, u, *, x):
    z = x(u)
    return p[0] - p[1] * z, _columns(z.shape, 1.0, -z)


def _two_terms(p, u, *, x):
    """C e^{−r x} (1 + c e^{−s x})."""
    z = x(u)
    grown = np.exp(-p[3] * z)
    sum_ = 1 + p[2] * grown
    value = p[0] - p[1] * z + np.log(sum_)
    share = grown / sum_
    return value, _columns(z.shape, 1.0, -z, share, -p[2] * z * share)


def _offset(p, u):
    """C (t + t0)^{−p}."""
    z = np.log((u + p[2]) / (1 + p[2]))
    by_offset = -p[1] * (1 / (u + p[2]) - 1 / (1 + p[2]))
    return p[0] - p[1] * z, _columns(z.shape, 1.0, -z, by_offset)


def _offset_two_terms(p, u):
    """C z^{−p} (1 + c z^{−s}) with z = t + t0."""
    z = np.log((u + p[4]) / (1 + p[4]))
    grown = np.exp(-p[3] * z)
    sum_ = 1 + p[2] * grown
    share = grown / sum_
    by_offset = -(p[1] + p[2] * p[3] * share) * (1 / (u + p[4]) - 1 / (1 + p[4]))
    value = p[0] - p[1] * z + np.log(sum_)
    return value, _columns(z.shape, 1.0, -z, share, -p[2] * z * share, by_offset)


def _finite(p, u):
    """C (T − t)^q with T = 1 + e^{p2}."""
    left = np.exp(p[2]) + 1 - u
    z = np.log(left) - p[2]
    by_log = p[1] * (np.exp(p[2]) / left - 1)
    return p[0] + p[1] * z, _columns(z.shape, 1.0, z, by_log)


def _finite_two_terms(p, u):
    """C (T − t)^q (1 + c (T − t))."""
    left = np.exp(p[2]) + 1 - u
    value, slope = _finite(p, u)
    sum_ = 1 + p[3] * left
    value = value + np.log(sum_)
    by_log = slope[..., 2] + p[3] * np.exp(p[2]) / sum_
    return value, _columns(u.shape, 1.0, slope[..., 1], by_log, left / sum_)


def _from_end(u):
    return u - 1


def _second_starts(x, u0):
    return [[0.0, k / -x(u0)] for k in (2.0, 5.0, 15.0, 40.0)]


def _second_bounds(x, u0):
    return [-SECOND, 1.0 / -x(u0)], [SECOND, 200.0 / -x(u0)]


def _two(x, **rest) -> Law:
    starts, bounds = partial(_second_starts, x), partial(_second_bounds, x)
    return Law(partial(_two_terms, x=x), 1, starts, bounds, **rest)


def _one(x, **rest) -> Law:
    return Law(partial(_line, x=x), 1, lambda u0: [[]], lambda u0: ([], []), **rest)


LAWS: dict[str, tuple[Law, ...]] = {
    "exponential": (_one(_from_end), _two(_from_end)),
    "power": (
        _one(np.log, slopes=POWERS),
        Law(
            _offset,
            1,
            lambda u0: [[-0.6 * u0], [0.2 * u0], [min(u0, 0.5)], [0.1], [0.5]],
            lambda u0: ([-0.95 * u0], [1.0]),
            slopes=POWERS,
            offset_at=2,
        ),
        _two(np.log, slopes=POWERS),
        Law(
            _offset_two_terms,
            1,
            lambda u0: [[0.0, s, k * u0] for s in (0.5, 1.0, 2.0) for k in (-0.5, 0.0, 1.0, 5.0)],
            lambda u0: ([-SECOND, 0.2, -0.95 * u0], [SECOND, 4.0, 0.5]),
            slopes=POWERS,
            offset_at=4,
        ),
    ),
    "finite": (
        Law(
            _finite,
            2,
            lambda u0: [[np.log((1 - u0) * k)] for k in (1e-4, 1e-2, 0.1, 0.4)],
            lambda u0: ([np.log((1 - u0) * 1e-12)], [np.log((1 - u0) * 0.5)]),
        ),
        Law(
            _finite_two_terms,
            2,
            lambda u0: [[np.log((1 - u0) * k), 0.0] for k in (1e-4, 1e-2, 0.1, 0.4)],
            lambda u0: (
                [np.log((1 - u0) * 1e-12), -0.5 / (1 - u0)],
                [np.log((1 - u0) * 0.5), 3 / (1 - u0)],
            ),
        ),
    ),
}
LINES: tuple[Law, ...] = LAWS["exponential"]


def at_ends(law: Law, p, u) -> tuple[np.ndarray, np.ndarray]:
    """The law at times u (points, 1), or the log of its decrease between u[:, 0] and u[:, 1]."""
    value, slope = law.curve(p, u)
    if u.shape[1] == 1:
        return value[:, 0], slope[:, 0]
    ratio = np.exp(value[:, 1] - value[:, 0])
    decrease = value[:, 0] + np.log1p(-ratio)
    by = (slope[:, 0] - ratio[:, None] * slope[:, 1]) / (1 - ratio)[:, None]
    return decrease, by
