"""The Łojasiewicz inequality along a trajectory, and the rate that it implies."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import equinox as eqx
import jax
import numpy as np

from gflow.arguments import ArgumentError, Described, RealScalar, finite
from gflow.display import Shown
from gflow.rates import tails
from gflow.rates.estimates import longest_tail
from gflow.rates.fit import fit_rate
from gflow.rates.gap_checks import MIN_POINTS, checked_gap
from gflow.rates.laws import FORMS, LawName
from gflow.rates.rate import Rate
from gflow.trajectory import Trajectory, single_trajectory

# Exponents this close to 1/2 count as 1/2, so that the rate is exponential.
_HALF_WIDTH = 0.01


@dataclass(frozen=True)
class Bound:
    """The smallest constant of a bound C (1 + t)^−β over the saved times.

    - `exponent`: β. `constant`: C, the maximum of (1 + t)^β times the bounded quantity; `at`: the
      time where it is attained.
    - `falling`: whether that product falls at the end; while it does, later times keep C.
    """

    exponent: float
    constant: float
    at: float
    falling: bool


class ImpliedRate(NamedTuple):
    """A rate r or p that follows from the inequality, with its 95 % interval."""

    value: float
    interval: tuple[float, float]


@dataclass(frozen=True, repr=False)
class Lojasiewicz(Shown):
    r"""The inequality $|L - L_\infty|^\alpha \le C\,\|G\|$ along a trajectory.

    - `exponent`, `interval`: α, the slope of log ‖G‖ against log gap on the tail, and its 95 %
      interval. `constant`: the smallest C over the tail with that α.
    - `window`: the first and last time of the tail.
    - `implied_law`, `implied`: the law and the rate that follow from L' = −‖G‖². For α = 1/2 (to
      0.01) "exponential", with r = 1/C² for the C of α = 1/2; for larger α "power", with
      p = 1/(2α − 1); for smaller α "finite time", and `implied` is None.
    - `rate`: the `Rate` of the gap itself. `agree`: whether both laws are the same, and for power
      laws, whether the intervals overlap or the exponents differ by at most a hundredth; for
      exponentials, whether r is at least the implied rate, to a hundredth.
    - `risk_bound`: the `Bound` of the gap with β = 1 (Eberle, Jentzen, Riekert and Weiss, Electron.
      Res. Arch. 31, 2023: gap ≤ C (1 + t)^−1).
    - `distance_bound`: the `Bound` of ‖Θ_t − ϑ‖, where β is the exponent of its own power law, or 1
      if it follows another law; None without `limit_net`. `distance_rate`: the `Rate` of ‖Θ_t − ϑ‖.
    """

    exponent: float
    interval: tuple[float, float]
    constant: float
    window: tuple[float, float]
    implied_law: LawName
    implied: ImpliedRate | None
    rate: Rate
    agree: bool
    risk_bound: Bound
    distance_bound: Bound | None
    distance_rate: Rate | None

    def title(self) -> str:
        """The inequality."""
        half = (self.interval[1] - self.interval[0]) / 2
        return f"Lojasiewicz: gap^{self.exponent:.4g} ≤ {self.constant:.4g} ‖G‖ (α ± {half:.1g})"

    def summary(self) -> dict[str, str]:
        """The main facts in words, by name."""
        implied = self.implied_law
        if self.implied is not None:
            implied = f"{self.implied_law} rate {self.implied.value:.4g}"
        same = "agrees" if self.agree else "does not agree"
        facts = {"implies": f"{implied}, which {same} with the gap: {self.rate.verdict}"}
        bounds = {"gap": self.risk_bound, "distance": self.distance_bound}
        for name, bound in bounds.items():
            if bound is not None:
                end = "falling" if bound.falling else "not falling"
                facts[f"{name} ≤"] = (
                    f"{bound.constant:.4g} (1 + t)^-{bound.exponent:.4g}, attained at "
                    f"t = {bound.at:.4g}, {end} at the end"
                )
        return facts


def lojasiewicz(
    trajectory: Trajectory, limit_risk: RealScalar, limit_net: Any = None
) -> Lojasiewicz:
    r"""The exponent and the constant of the Łojasiewicz inequality along a flow,

    $$|L(\Theta_t) - L_\infty|^\alpha \le C\,\|G(\Theta_t)\|,$$

    the rate that it implies, and whether the gap closes at that rate. Also the two bounds of the
    theorem with their constants over the saved times: gap ≤ C (1 + t)^−1 and
    ‖Θ_t − ϑ‖ ≤ C (1 + t)^−β.

    **Arguments:**

    - `trajectory`: of `solve_flow`. `trajectory.grad_norm` serves as ‖G‖; it is the norm of the
      minimal-norm subgradient if kinks were located.
    - `limit_risk`: L∞. `limit_net`: ϑ, a network like those of the trajectory.

    **Returns:** a `Lojasiewicz`.

    **Raises:** `ArgumentError` for fewer than 6 usable points, a limit that is not a number, or a
    network of other shapes.
    """
    trajectory = single_trajectory("trajectory", trajectory)
    limit = finite("limit_risk", limit_risk)
    t, gap = checked_gap(trajectory.ts, np.asarray(trajectory.risk, dtype=float) - limit)
    norm = np.interp(t, np.asarray(trajectory.ts), np.asarray(trajectory.grad_norm))
    rate = fit_rate(t, gap)
    points = tails.of_gaps(t, gap, None)
    norms = norm[np.searchsorted(t, points.ends[:, 0])]
    found = _inequality(points, norms)
    law, implied = _implied(found)
    distance = None if limit_net is None else _distances(trajectory, limit_net)
    distance_rate = None if distance is None else _rate_of_distance(*distance)
    distance_bound = None
    if distance is not None:
        power = 1.0
        if distance_rate is not None and distance_rate.law == "power":
            power = distance_rate.tail_value
        distance_bound = _bound(*distance, power)
    return Lojasiewicz(
        exponent=found.exponent,
        interval=found.interval,
        constant=found.constant,
        window=(found.start, float(points.ends[-1, 0])),
        implied_law=law,
        implied=implied,
        rate=rate,
        agree=_agree(law, implied, rate),
        risk_bound=_bound(*_gaps(trajectory, limit), 1.0),
        distance_bound=distance_bound,
        distance_rate=distance_rate,
    )


class _Inequality(NamedTuple):
    """α with its interval, the first time of the tail, C, and the C of α = 1/2."""

    exponent: float
    interval: tuple[float, float]
    start: float
    constant: float
    constant_at_half: float


def _inequality(points: tails.Points, norms: np.ndarray) -> _Inequality:
    """Fits log ‖G‖ against log gap on the tail."""
    logs, log_norms = points.logs, np.log(np.maximum(norms, np.finfo(float).tiny))
    # The fall of log gap, scaled to (0, 1], stands for time, which has to grow.
    fall = np.maximum.accumulate(-logs)
    kept = np.append(True, np.diff(fall) > 0)
    fall, log_norms, logs, t = fall[kept], log_norms[kept], logs[kept], points.ends[kept, 0]
    if len(fall) < MIN_POINTS:
        got = Described(f"{len(fall)} gaps that fall")
        raise ArgumentError("trajectory", got, f"at least {MIN_POINTS}")
    span = fall[-1] - fall[0]
    u = 1 + (fall - fall[-1]) / (1.001 * span)
    tail = longest_tail(FORMS["exponential"], u[:, None], log_norms)
    assert tail is not None
    scale = 1.001 * span
    alpha = tail.value / scale
    interval = (tail.interval[0] / scale, tail.interval[1] / scale)
    last = slice(-tail.count, None)
    constant = lambda a: float(np.exp(np.max(a * logs[last] - log_norms[last])))
    start = float(t[-tail.count])
    return _Inequality(alpha, interval, start, constant(alpha), constant(0.5))


def _implied(found: _Inequality) -> tuple[LawName, ImpliedRate | None]:
    if abs(found.exponent - 0.5) <= _HALF_WIDTH:
        # Not from the C of an α next to 1/2: for gaps of 1e-12, 3e-4 in α change r by 2 %.
        r = found.constant_at_half**-2
        return "exponential", ImpliedRate(r, (r, r))
    if found.exponent < 0.5:
        return "finite time", None
    power = lambda a: 1 / (2 * a - 1) if a > 0.5 else np.inf
    low, high = found.interval
    return "power", ImpliedRate(power(found.exponent), (power(high), power(low)))


def _agree(law: LawName, implied: ImpliedRate | None, rate: Rate) -> bool:
    if law != rate.law:
        return False
    if implied is None:
        return True
    value, (low, high) = implied
    if law == "exponential":
        return rate.tail_value >= 0.99 * value
    overlap = low <= rate.tail_interval[1] and rate.tail_interval[0] <= high
    return bool(overlap or abs(value / rate.tail_value - 1) <= 0.01)


def _gaps(trajectory: Trajectory, limit: float) -> tuple[np.ndarray, np.ndarray]:
    t = np.asarray(trajectory.ts, dtype=float)
    gap = np.abs(np.asarray(trajectory.risk, dtype=float) - limit)
    return t[np.isfinite(gap)], gap[np.isfinite(gap)]


def _distances(trajectory: Trajectory, limit_net: Any) -> tuple[np.ndarray, np.ndarray]:
    ours = jax.tree.leaves(eqx.filter(trajectory.params, eqx.is_array))
    theirs = jax.tree.leaves(eqx.filter(limit_net, eqx.is_array))
    if [a.shape[1:] for a in ours] != [b.shape for b in theirs]:
        got = Described("a network of other shapes")
        raise ArgumentError("limit_net", got, "one like those of the trajectory")
    t = np.asarray(trajectory.ts, dtype=float)
    squares = [
        np.sum((np.asarray(a) - np.asarray(b)).reshape(len(t), -1) ** 2, axis=1)
        for a, b in zip(ours, theirs)
    ]
    return t, np.sqrt(np.sum(squares, axis=0))


def _rate_of_distance(t: np.ndarray, distance: np.ndarray) -> Rate | None:
    # A flow that ends at its limit is at distance 0 from it.
    apart = distance > 0
    try:
        return fit_rate(t[apart], distance[apart])
    except ArgumentError:  # too few points, as the limit is reached
        return None


def _bound(t: np.ndarray, values: np.ndarray, exponent: float) -> Bound:
    product = (1 + t) ** exponent * values
    at = int(np.argmax(product))
    before = int(np.searchsorted(t, t[-1] / 2))
    # To a thousandth: if β is the exponent itself, the product is level at the end.
    falling = bool(product[-1] <= 1.001 * product[min(before, len(t) - 2)])
    return Bound(float(exponent), float(product[at]), float(t[at]), falling)
