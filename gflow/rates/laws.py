"""Laws of decay of a gap, as curves of log gap with their derivatives by the parameters."""

import abc
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple, final

import numpy as np

LawName = Literal["exponential", "power", "finite time"]

# The second term may be this fraction of the first at the end of the tail: beyond, the first does
# not lead yet.
MAX_SECOND_TERM = 1 / 3
# Higher powers of t cannot be told from exponentials.
MIN_POWER, MAX_POWER = -1.0, 12.0
# Level and slope, the first two parameters of every law: log gap is linear in them.
LINEAR = slice(0, 2)
_LINE, _SECOND = ("level", "slope"), ("second_term", "second_rate")
_ANY = (-np.inf, np.inf)
# Rates s to start from, over the range of z.
_RATES = (2.0, 5.0, 15.0, 40.0)


class LawParameters(NamedTuple):
    """The parameters of a law by name. Those of terms that a law lacks are zero.

    - `level`: log of the first term at the end of the tail; `slope`: r · end, p or q.
    - `second_term`, `second_rate`: c and s of the second term, c e^{−s z}.
    - `offset`: t0 over the last time of the tail.
    - `log_left`: log (T/end − 1) of a finite time T. `correction`: c of its second term.
    """

    level: float
    slope: float
    second_term: float = 0.0
    second_rate: float = 0.0
    offset: float = 0.0
    log_left: float = 0.0
    correction: float = 0.0


class Law(abc.ABC):
    """A law for log gap as a function of u, the time over the last time of the tail.

    The parameters are a vector in the order of `parameter_names`, level and slope first. In the
    methods `first` is the first u of the tail, and `end` its last time.
    """

    name: ClassVar[LawName]
    # The parameter that the value of the law, r, p or T, is made of.
    value_parameter: ClassVar[str]

    @property
    @abc.abstractmethod
    def parameter_names(self) -> tuple[str, ...]:
        """Names of the parameters, fields of `LawParameters`."""

    @abc.abstractmethod
    def curve(self, p: np.ndarray, u: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Log gap at u, and its derivatives by the parameters in a last axis."""

    @abc.abstractmethod
    def shape_starts(self, first: float) -> list[list[float]]:
        """First values of the parameters after level and slope, to start a fit from."""

    @abc.abstractmethod
    def bounds(self, first: float) -> tuple[np.ndarray, np.ndarray]:
        """The smallest and the largest value of each parameter."""

    @abc.abstractmethod
    def value(self, parameter: float, end: float) -> float:
        """r, p or T, given the parameter that it is made of."""

    @abc.abstractmethod
    def constant(self, p: np.ndarray, end: float) -> float:
        """The constant C of the law."""

    @abc.abstractmethod
    def seen(self, p: np.ndarray, first: float) -> float:
        """How much of the law the tail shows: r times its length, or the range of log (t + t0) or
        log (T − t)."""

    def index(self, name: str) -> int:
        """The place of a parameter in the vector."""
        return self.parameter_names.index(name)

    def named(self, p: np.ndarray) -> LawParameters:
        """The parameters of a vector by name."""
        return LawParameters(**dict(zip(self.parameter_names, p.tolist())))


@final
@dataclass(frozen=True)
class ExponentialLaw(Law):
    """C e^{−r t}; with a second term, times 1 + c e^{−s t}."""

    second_term: bool = False

    name: ClassVar[LawName] = "exponential"
    value_parameter: ClassVar[str] = "slope"

    @property
    def parameter_names(self) -> tuple[str, ...]:
        return (*_LINE, *_SECOND) if self.second_term else _LINE

    def curve(self, p, u):
        log_gap, derivatives = _terms(p, u - 1, self.second_term)
        return log_gap, _side_by_side(u.shape, *derivatives)

    def shape_starts(self, first):
        return [[0.0, k / (1 - first)] for k in _RATES] if self.second_term else [[]]

    def bounds(self, first):
        second = _second_bounds(1 - first) if self.second_term else ()
        return _bounds(_ANY, _ANY, *second)

    def value(self, parameter, end):
        return parameter / end

    def constant(self, p, end):
        named = self.named(p)
        return float(np.exp(named.level + named.slope))

    def seen(self, p, first):
        return float(self.named(p).slope * (1 - first))


@final
@dataclass(frozen=True)
class PowerLaw(Law):
    """C z^{−p}; with a second term, times 1 + c z^{−s}. z is t, or t + t0 with an offset."""

    second_term: bool = False
    offset: bool = False

    name: ClassVar[LawName] = "power"
    value_parameter: ClassVar[str] = "slope"

    @property
    def parameter_names(self) -> tuple[str, ...]:
        names = (*_LINE, *_SECOND) if self.second_term else _LINE
        return (*names, "offset") if self.offset else names

    def curve(self, p, u):
        if not self.offset:
            log_gap, derivatives = _terms(p, np.log(u), self.second_term)
            return log_gap, _side_by_side(u.shape, *derivatives)
        t0 = p[-1]
        log_gap, derivatives = _terms(p, np.log((u + t0) / (1 + t0)), self.second_term)
        steepness = _steepness(p, derivatives, self.second_term)
        by_offset = -steepness * (1 / (u + t0) - 1 / (1 + t0))
        return log_gap, _side_by_side(u.shape, *derivatives, by_offset)

    def shape_starts(self, first):
        if not self.offset:
            return [[0.0, k / -np.log(first)] for k in _RATES] if self.second_term else [[]]
        if not self.second_term:
            return [[-0.6 * first], [0.2 * first], [min(first, 0.5)], [0.1], [0.5]]
        offsets = [k * first for k in (-0.5, 0.0, 1.0, 5.0)]
        return [[0.0, s, t0] for s in (0.5, 1.0, 2.0) for t0 in offsets]

    def bounds(self, first):
        line = _ANY, (MIN_POWER, MAX_POWER)
        if not self.offset:
            second = _second_bounds(-np.log(first)) if self.second_term else ()
            return _bounds(*line, *second)
        if not self.second_term:
            return _bounds(*line, (-0.95 * first, 1.0))
        second = (-MAX_SECOND_TERM, MAX_SECOND_TERM), (0.2, 4.0)
        return _bounds(*line, *second, (-0.95 * first, 0.5))

    def value(self, parameter, end):
        return parameter

    def constant(self, p, end):
        named = self.named(p)
        return float(np.exp(named.level + named.slope * np.log(end * (1 + named.offset))))

    def seen(self, p, first):
        offset = self.named(p).offset
        return float(np.log((1 + offset) / (first + offset)))


@final
@dataclass(frozen=True)
class FiniteTimeLaw(Law):
    """C (T − t)^q; with a second term, times 1 + c (T − t)."""

    second_term: bool = False

    name: ClassVar[LawName] = "finite time"
    value_parameter: ClassVar[str] = "log_left"

    @property
    def parameter_names(self) -> tuple[str, ...]:
        names = (*_LINE, "log_left")
        return (*names, "correction") if self.second_term else names

    def curve(self, p, u):
        level, power, log_left = p[0], p[1], p[2]
        at_end = np.exp(log_left)
        left = at_end + 1 - u
        z = np.log(left) - log_left
        log_gap, by_log_left = level + power * z, power * (at_end / left - 1)
        if not self.second_term:
            return log_gap, _side_by_side(u.shape, 1.0, z, by_log_left)
        correction = p[3]
        factor = 1 + correction * left
        by_log_left = by_log_left + correction * at_end / factor
        derivatives = _side_by_side(u.shape, 1.0, z, by_log_left, left / factor)
        return log_gap + np.log(factor), derivatives

    def shape_starts(self, first):
        corrections = [0.0] if self.second_term else []
        return [[np.log((1 - first) * k), *corrections] for k in (1e-4, 1e-2, 0.1, 0.4)]

    def bounds(self, first):
        log_left = np.log((1 - first) * 1e-12), np.log((1 - first) * 0.5)
        correction = ((-0.5 / (1 - first), 3 / (1 - first)),) if self.second_term else ()
        return _bounds(_ANY, _ANY, log_left, *correction)

    def value(self, parameter, end):
        return end * (1 + np.exp(np.minimum(parameter, 500.0)))

    def constant(self, p, end):
        named = self.named(p)
        return float(np.exp(named.level - named.slope * (named.log_left + np.log(end))))

    def seen(self, p, first):
        return float(np.log1p((1 - first) * np.exp(-self.named(p).log_left)))


# The laws that are fitted, each with the forms that are averaged over.
FORMS: dict[LawName, tuple[Law, ...]] = {
    "exponential": (ExponentialLaw(), ExponentialLaw(second_term=True)),
    "power": (
        PowerLaw(),
        PowerLaw(offset=True),
        PowerLaw(second_term=True),
        PowerLaw(second_term=True, offset=True),
    ),
    "finite time": (FiniteTimeLaw(), FiniteTimeLaw(second_term=True)),
}


def _bounds(*ranges: tuple[float, float]) -> tuple[np.ndarray, np.ndarray]:
    low, high = np.array(ranges, dtype=float).T
    return low, high


def _second_bounds(length: float) -> tuple[tuple[float, float], tuple[float, float]]:
    """Of c and s, for a tail of that length in z."""
    return (-MAX_SECOND_TERM, MAX_SECOND_TERM), (1.0 / length, 200.0 / length)


def _terms(p: np.ndarray, z: Any, second_term: bool) -> tuple[Any, tuple]:
    """level − slope z, and with a second term + log (1 + c e^{−s z}); and its derivatives."""
    log_gap = p[0] - p[1] * z
    if not second_term:
        return log_gap, (1.0, -z)
    c, s = p[2], p[3]
    grown = np.exp(-s * z)
    factor = 1 + c * grown
    fraction = grown / factor
    return log_gap + np.log(factor), (1.0, -z, fraction, -c * z * fraction)


def _steepness(p: np.ndarray, derivatives: tuple, second_term: bool) -> Any:
    """−∂/∂z of `_terms`."""
    if not second_term:
        return p[1]
    _, _, fraction, _ = derivatives
    return p[1] + p[2] * p[3] * fraction


def _side_by_side(shape: tuple[int, ...], *columns) -> np.ndarray:
    """Arrays or numbers in a last axis; several times faster than `np.stack`."""
    out = np.empty((*shape, len(columns)))
    for k, column in enumerate(columns):
        out[..., k] = column
    return out


def at_ends(law: Law, p: np.ndarray, u: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The law at times u (points, 1), or the log of its decrease between u[:, 0] and u[:, 1]."""
    value, slope = law.curve(p, u)
    if u.shape[1] == 1:
        return value[:, 0], slope[:, 0]
    ratio = np.exp(value[:, 1] - value[:, 0])
    decrease = value[:, 0] + np.log1p(-ratio)
    by = (slope[:, 0] - ratio[:, None] * slope[:, 1]) / (1 - ratio)[:, None]
    return decrease, by
