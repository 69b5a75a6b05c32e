"""Distances of the descents of a run from its flow, their order in the step size, and rates."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from gflow.app.end_points import EndPoint
from gflow.app.run_directory import FURTHER, Descent, Run
from gflow.arguments import ArgumentError
from gflow.comparison import Comparison, compare
from gflow.convergence import ConvergenceOrder, observed_order
from gflow.rates import Rate, fit_rate
from gflow.trajectory import Trajectory

# Beyond this fraction h λ/2 of the stability limit the error of descent is not proportional to h.
MAX_ORDER_FRACTION = 0.125
# An interval of an order that is longer tells no two whole orders apart.
OPEN_ORDER_LENGTH = 1.0
# Recorded steps at the end of a descent that show whether it hovers.
_LAST_RECORDS = 20


@dataclass(frozen=True)
class Analysis:
    """Comparisons of the descents with the flow, their order in h, and the rates of all risks.

    `comparisons` and `rates` are by label; `order` is None if too few step sizes are small.
    """

    comparisons: dict[str, Comparison]
    order: ConvergenceOrder | None
    rates: dict[str, Rate]

    def facts(self) -> dict[str, Any]:
        """The numbers, as JSON can hold them."""
        order = self.order
        return {
            "comparisons": {
                label: {
                    "largest_distance": comparison.largest,
                    "final_distance": float(comparison.distance[-1]),
                    "final_risk_gap": float(comparison.risk_difference[-1]),
                }
                for label, comparison in self.comparisons.items()
            },
            "order": order
            and {
                "value": order.value,
                "interval": list(order.interval),
                "until": order.until,
                "partings": [parting._asdict() for parting in order.partings],
            },
            "rates": {
                label: {
                    "law": rate.law,
                    "status": rate.status,
                    "better": rate.better,
                    "verdict": rate.verdict,
                    "tail_value": rate.tail_value,
                    "tail_interval": list(rate.tail_interval),
                    "value": rate.value,
                    "interval": [_finite(x) for x in rate.interval],
                    "window": list(rate.window),
                    "limit": rate.limit,
                }
                for label, rate in self.rates.items()
            },
        }


def _finite(x: float) -> float | None:
    """JSON has no infinity."""
    return x if np.isfinite(x) else None


def analyse(run: Run) -> Analysis:
    """The analysis of a run, as far as the run got. A descent that hovers has no rate."""
    decaying = {label: t for label, t in run.trajectories().items() if not hovers(t)}
    found = {label: _rate(t, run.ends.get(label)) for label, t in decaying.items()}
    rates = {label: rate for label, rate in found.items() if rate is not None}
    if run.flow is None:
        return Analysis({}, None, rates)
    comparisons = {d.label: compare(run.flow, d.trajectory) for d in run.descents}
    return Analysis(comparisons, _order(run.descents, comparisons), rates)


def _rate(trajectory: Trajectory, end: EndPoint | None) -> Rate | None:
    """The rate to the risk of the end point, or to a fitted limit if that risk is not known to be
    the limit: no end point was found, or the trajectory ends below it."""
    risk = np.asarray(trajectory.risk)
    rounding = 1e-12 * float(risk[0])
    try:
        if end is not None and end.found and end.risk <= float(risk[-1]) + rounding:
            gap, predicted = risk - end.risk, end.rate
            return fit_rate(trajectory, gap, predicted=predicted)
        return fit_rate(trajectory, risk, known_limit=False)
    except ArgumentError:  # too few points, or a risk that does not decrease
        return None


def _order(descents: list[Descent], comparisons: dict[str, Comparison]) -> ConvergenceOrder | None:
    """The order from the descents with small steps that reached the end."""
    sound = [
        d for d in descents if d.trajectory.succeeded and divergence_time(d.trajectory) is None
    ]
    small = [d for d in sound if d.fraction <= MAX_ORDER_FRACTION]
    usable = [d for d in small if comparisons[d.label].largest > 0]
    if len(usable) < 3:
        return None
    return observed_order([d.step_size for d in usable], [comparisons[d.label] for d in usable])


def divergence_time(trajectory: Trajectory) -> float | None:
    """The first recorded time from which on the risk is above ten times its initial value; None if
    it is not above it at the end."""
    risk = np.asarray(trajectory.risk)
    high = ~(risk <= risk[0] + 9 * abs(risk[0]))
    if not high[-1]:
        return None
    return float(np.asarray(trajectory.ts)[len(high) - int(np.argmin(high[::-1]))])


def hovers(trajectory: Trajectory) -> bool:
    """Whether a descent goes up and down at its end: above a critical point on kinks, steps of one
    size do not settle."""
    if trajectory.kind != "descent" or not trajectory.succeeded:
        return False
    risk = np.asarray(trajectory.risk)[-_LAST_RECORDS:]
    rises = np.diff(risk) > 1e-12 * abs(float(trajectory.risk[0]))
    return bool(np.mean(rises) > 0.2) if len(rises) else False


class FollowedFlow(NamedTuple):
    """The flow as far as it was followed; `end` is its critical point, None if not found."""

    label: str
    trajectory: Trajectory
    end: EndPoint | None


def followed_flow(run: Run) -> FollowedFlow | None:
    """The flow after t1 if there is one, otherwise the flow up to t1."""
    for label, trajectory in ((FURTHER, run.further), ("flow", run.flow)):
        if trajectory is not None:
            end = run.ends.get(label)
            return FollowedFlow(label, trajectory, end if end is not None and end.found else None)
    return None
