"""The Łojasiewicz inequality along a trajectory, and the rates that it implies."""

from dataclasses import dataclass
from typing import Any

import equinox as eqx
import jax
import numpy as np

from gflow.arguments import ArgumentError, Described, RealScalar, finite
from gflow.rates import tails
from gflow.rates.estimates import longest_tail
from gflow.rates.fit import Rate, fit_rate
from gflow.rates.laws import LINES
from gflow.trajectory import Trajectory

# Exponents this close to 1/2 mean an exponential rate.
_HALF_WIDTH = 0.01


@dataclass(frozen=True)
class Bound:
    """The least constant of a bound C (1 + t)^−β over the saved times.

    - `exponent`: β; `constant`: C, the supremum of (1 + t)^β times what is bounded; `at`: the time
      where it is taken. `falling`: whether the product falls at the end, so that later times would
      not raise it if it went on so.
    """

    exponent: float
    constant: float
    at: float
    falling: bool


@dataclass(frozen=True)
class Lojasiewicz:
    r"""The inequality $|L - L_\infty|^\alpha \le C\,\|G\|$ along a trajectory.

    - `exponent`, `interval`: α, the slope of log ‖G‖ against log gap on the tail, and its 95 %
      interval. `constant`: the least C over the tail with that α.
    - `window`: the first and last time of the tail.
    - `implied_law`, `implied`: the rate that L' = −‖G‖² makes of it, with its interval: for α = 1/2
      (to 0.01) "exponential", with r = 1/C², C being that of α = 1/2; for 1/2 < α "power", with
      p = 1/(2α − 1); below "finite" time, and None.
    - `rate`: the `Rate` of the gap itself. `agree`: whether the two laws are one, and, of power
      laws, the intervals overlap or the exponents differ by a hundredth at most; of exponentials,
      whether r is at least the implied one, to a hundredth.
    - `risk_bound`: the `Bound` of the gap with β = 1 (Eberle, Jentzen, Riekert and Weiss, Electron.
      Res. Arch. 31, 2023: gap ≤ C (1 + t)^−1).
    - `distance_bound`: that of ‖Θ_t − ϑ‖, β being the exponent of its own power law, or 1 where it
      closes otherwise; None without `limit_net`. `distance_rate`: the `Rate` it comes from.
    """

    exponent: float
    interval: tuple[float, float]
    constant: float
    window: tuple[float, float]
    implied_law: str
    implied: tuple[float, tuple[float, float]] | None
    rate: Rate
    agree: bool
    risk_bound: Bound
    distance_bound: Bound | None
    distance_rate: Rate | None

    def __repr__(self) -> str:
        half = (self.interval[1] - self.interval[0]) / 2
        lines = [f"Lojasiewicz: gap^{self.exponent:.4g} ≤ {self.constant:.4g} ‖G‖ (α ± {half:.1g})"]
        implied = "finite time" if self.implied is None else f"{self.implied_law} rate"
        if self.implied is not None:
            implied += f" {self.implied[0]:.4g}"
        same = "agrees" if self.agree else "does not agree"
        lines.append(f"  implies {implied}, which {same} with the gap: {self.rate.verdict}")
        bounds = {"gap": self.risk_bound, "distance": self.distance_bound}
        for name, bound in bounds.items():
            if bound is not None:
                end = "falling" if bound.falling else "not falling"
                lines.append(
                    f"  {name} ≤ {bound.constant:.4g} (1 + t)^-{bound.exponent:.4g}, attained at "
                    f"t = {bound.at:.4g}, {end} at the end"
                )
        return "\n".join(lines)


def lojasiewicz(
    trajectory: Trajectory, limit_risk: RealScalar, limit_net: Any = None
) -> Lojasiewicz:
    r"""The exponent and the constant of the Łojasiewicz inequality from (‖G‖, gap) along a flow,

    $$|L(\Theta_t) - L_\infty|^\alpha \le C\,\|G(\Theta_t)\|,$$

    the rate that it implies, whether the gap closes at that rate, and the two claims of the theorem
    with their constants over the saved times: gap ≤ C (1 + t)^−1 and ‖Θ_t − ϑ‖ ≤ C (1 + t)^−β.

    **Arguments:**

    - `trajectory`: of `solve_flow`; `trajectory.grad_norm` is ‖G‖, or that of the minimal-norm
      subgradient where kinks were located.
    - `limit_risk`: L∞. `limit_net`: ϑ, a network like those of the trajectory.

    **Returns:** a `Lojasiewicz`.

    **Raises:** `ArgumentError` for fewer than 6 usable points, a limit that is not a number, or a
    network of other shapes.
    """
    limit = finite("limit_risk", limit_risk)
    t, gap = tails.checked(trajectory.ts, np.asarray(trajectory.risk, dtype=float) - limit)
    norm = np.interp(t, np.asarray(trajectory.ts), np.asarray(trajectory.grad_norm))
    rate = fit_rate(t, gap)
    points = tails.of_gaps(t, gap, None)
    norms = norm[np.searchsorted(t, points.ends[:, 0])]
    exponent, interval, start, constant, at_half = _inequality(points, norms)
    law, implied = _implied(exponent, interval, at_half)
    distance = None if limit_net is None else _distances(trajectory, limit_net)
    distance_rate = None if distance is None else _rate_of_distance(*distance)
    distance_bound = None
    if distance is not None:
        power = 1.0
        if distance_rate is not None and distance_rate.law == "power":
            power = distance_rate.value
        distance_bound = _bound(*distance, power)
    return Lojasiewicz(
        exponent=exponent,
        interval=interval,
        constant=constant,
        window=(start, float(points.ends[-1, 0])),
        implied_law=law,
        implied=implied,
        rate=rate,
        agree=_agree(law, implied, rate),
        risk_bound=_bound(*_risks(trajectory, limit), 1.0),
        distance_bound=distance_bound,
        distance_rate=distance_rate,
    )


def _inequality(
    points: tails.Points, norms: np.ndarray
) -> tuple[float, tuple[float, float], float, float, float]:
    """α and its interval, where its tail begins, C, and what C is for α = 1/2."""
    logs, speeds = points.logs, np.log(np.maximum(norms, np.finfo(float).tiny))
    # As time serves how far the gap has come, from a bit above 0 to 1: it has to grow.
    come = np.maximum.accumulate(-logs)
    kept = np.append(True, np.diff(come) > 0)
    come, speeds, logs, t = come[kept], speeds[kept], logs[kept], points.ends[kept, 0]
    if len(come) < tails.LEAST_POINTS:
        got = Described(f"{len(come)} gaps that fall")
        raise ArgumentError("trajectory", got, f"at least {tails.LEAST_POINTS}")
    span = come[-1] - come[0]
    u = 1 + (come - come[-1]) / (1.001 * span)
    tail = longest_tail(LINES, u[:, None], speeds)
    assert tail is not None
    scale = 1.001 * span
    alpha = tail.value / scale
    interval = (tail.interval[0] / scale, tail.interval[1] / scale)
    last = slice(-tail.count, None)
    constant = lambda a: float(np.exp(np.max(a * logs[last] - speeds[last])))
    return alpha, interval, float(t[-tail.count]), constant(alpha), constant(0.5)


def _implied(
    exponent: float, interval: tuple[float, float], at_half: float
) -> tuple[str, tuple[float, tuple[float, float]] | None]:
    if abs(exponent - 0.5) <= _HALF_WIDTH:
        # Not from the C of an α next to 1/2: of gaps of 1e-12, 3e-4 in α is 2 % in r.
        r = at_half**-2
        return "exponential", (r, (r, r))
    if exponent < 0.5:
        return "finite", None
    power = lambda a: 1 / (2 * a - 1) if a > 0.5 else np.inf
    return "power", (power(exponent), (power(interval[1]), power(interval[0])))


def _agree(law: str, implied: tuple[float, tuple[float, float]] | None, rate: Rate) -> bool:
    if law != rate.law:
        return False
    if implied is None:
        return True
    value, (low, high) = implied
    if law == "exponential":
        return rate.value >= 0.99 * value
    overlap = low <= rate.interval[1] and rate.interval[0] <= high
    return bool(overlap or abs(value / rate.value - 1) <= 0.01)


def _risks(trajectory: Trajectory, limit: float) -> tuple[np.ndarray, np.ndarray]:
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


def _rate_of_distance(t, distance) -> Rate | None:
    try:
        return fit_rate(t, distance)
    except ArgumentError:  # too few points: the limit is reached
        return None


def _bound(t: np.ndarray, values: np.ndarray, exponent: float) -> Bound:
    product = (1 + t) ** exponent * values
    at = int(np.argmax(product))
    before = int(np.searchsorted(t, t[-1] / 2))
    # To a thousandth: where β is the exponent itself, the product is level in the end.
    falling = bool(product[-1] <= 1.001 * product[min(before, len(t) - 2)])
    return Bound(float(exponent), float(product[at]), float(t[at]), falling)
