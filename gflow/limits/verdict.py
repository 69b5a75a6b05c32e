"""Whether a flow, as far as it is known, converges or goes to infinity."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from gflow.arguments import ArgumentError
from gflow.critical import CriticalKind, CriticalPoint, refine
from gflow.limits.far import LATEST, Continuation
from gflow.limits.growth import (
    Growth,
    NormLaw,
    decades_of_power,
    growth,
    growth_of_logarithm,
)
from gflow.limits.path import DECADE, Path
from gflow.limits.result import Behaviour
from gflow.parameters import flat
from gflow.risks import penalty_of
from gflow.trajectory import Trajectory

# A flow is near its limit up to this distance, relative to ‖θ‖, if it has come nearer by this
# factor over the last half decade; or has arrived, up to rounding.
_NEAR, _NEARER, _ARRIVED = 0.03, 0.8, 1e-7
# A saddle is a limit if the flow has rested there for so many times 1/|λ|.
_RESTED = 100.0
# Velocity and θ have at most this angle on the way to infinity, as a cosine; and minima as far
# away as this, relative to ‖θ‖, are no reason to call it that.
_OUTWARD, _FAR = 0.3, 3.0
# A power of time leads to infinity if it holds over so many decades, those of the continuation
# included; where that is not possible a logarithm has to be followed by so many.
_DECADES, _MORE_DECADES = 7.0, 3.0


@dataclass(frozen=True)
class Problem:
    """The risk, what takes the trained parameters out of a network, when the flow began, its
    continuation, None if it is not to be followed, and whether to show how far it is."""

    risk: Callable[[Any], Any]
    trained: Callable[[Any], Any]
    trainable: Any
    start: float
    continuation: Continuation | None
    progress: bool

    def path(self, flow: Trajectory) -> Path:
        return Path.of(flow, self.start, self.trained)

    def theta(self, net: Any) -> np.ndarray:
        return np.asarray(flat(self.trained(net)), float)

    def critical_point(self, flow: Trajectory, radius: float) -> CriticalPoint | None:
        """That near the end of a flow; None if there is none, or it cannot be looked for."""
        try:
            point = refine(
                self.risk,
                flow.final,
                radius=radius,
                trainable=self.trainable,
                approach=flow,
                throw=False,
            )
        except ArgumentError:
            return None
        return point if point.found else None


class Judgement(NamedTuple):
    """What a flow does, why, the law of its norm, the critical point that it comes to, and what was
    seen of it later; whether that `turned`: the norm does not grow on by its law."""

    behaviour: Behaviour
    reason: str
    growth: Growth
    point: CriticalPoint | None = None
    far: Path | None = None
    turned: bool = False


def judged(problem: Problem, flow: Trajectory) -> Judgement:
    path = problem.path(flow)
    norm = growth(path)
    point = problem.critical_point(flow, 0.1)
    if point is not None:
        reason = _approach(problem, path, point)
        if reason:
            return Judgement(Behaviour.CONVERGES, reason, norm, point)
    if norm.law is NormLaw.NONE or not norm.outward >= _OUTWARD:
        where = "no critical point is near its end"
        if point is not None:
            where = f"it has not yet come to rest at the {point.kind} near its end"
        text = f"{where}, and ‖θ‖ does not grow by a law that leads to infinity."
        return Judgement(Behaviour.UNDECIDED, text, norm)
    penalty = penalty_of(problem.risk)
    if penalty is not None and float(penalty.weight_decay) > 0 and problem.trainable is None:
        text = "‖θ‖ grows, but weight decay keeps it bounded: the flow has not yet converged."
        return Judgement(Behaviour.UNDECIDED, text, norm)
    if point is not None:
        text = "‖θ‖ grows, though a critical point is near."
        return Judgement(Behaviour.UNDECIDED, text, norm)
    ahead = problem.critical_point(flow, _FAR)
    if (
        ahead is not None
        and ahead.kind is not CriticalKind.SADDLE
        and ahead.risk < float(flow.risk[-1])
    ):
        text = (
            f"‖θ‖ grows, but a critical point of risk {ahead.risk:.6g} is {ahead.distance:.3g} "
            "ahead."
        )
        return Judgement(Behaviour.UNDECIDED, text, norm)
    return _far_away(problem, flow, path, norm)


def _far_away(problem: Problem, flow: Trajectory, path: Path, norm: Growth) -> Judgement:
    """What a flow does whose norm has grown by a law that leads to infinity."""
    begin = path.end / 1e3
    grown = (
        f"from t = {begin:.3g} to {path.end:.3g} ‖θ‖ grows from "
        f"{path.at(path.norm, np.log(begin)):.4g} to {path.norm[-1]:.4g} like {norm.formula()}"
    )
    if problem.continuation is None:
        text = f"{grown}, but that was not followed further (`follow`)."
        return Judgement(Behaviour.UNDECIDED, text, norm)
    far = problem.continuation.of(flow, norm.law)
    whole = path if far is None else Path.joined(path, far)
    if norm.law is NormLaw.POWER and growth(whole).law is NormLaw.LOGARITHM:
        norm = growth(whole)._replace(outward=norm.outward)
        far = problem.continuation.of(flow, norm.law)
        whole = path if far is None else Path.joined(path, far)
    complete = norm.law is NormLaw.LOGARITHM and whole.end >= LATEST
    later = growth_of_logarithm(whole.after(path.end)) if complete else growth(whole)
    if later is None or later.law is NormLaw.NONE:
        text = f"{grown}, but not so to {whole.end:.3g}."
        return Judgement(Behaviour.UNDECIDED, text, norm, far=far, turned=True)
    seen = decades_of_power(whole) if later.law is NormLaw.POWER else np.inf
    more = (whole.log_t[-1] - path.log_t[-1]) / DECADE
    enough = seen >= _DECADES if later.law is NormLaw.POWER else more >= _MORE_DECADES
    if not enough:
        text = f"{grown}, but it could be followed to {whole.end:.3g} only."
        return Judgement(Behaviour.UNDECIDED, text, norm, far=far)
    # The flow itself is known to more digits, as long as it says the same.
    if not complete and _same_law(norm, later):
        later, kept = norm, None
    else:
        later, kept = later._replace(outward=norm.outward), far if complete else whole
    further = "" if far is None else f", and so to t = {far.end:.3g}"
    reason = (
        f"{grown}{further}, {norm.outward:.0%} of the velocity is outward, and no minimum was "
        "found ahead."
    )
    return Judgement(Behaviour.DIVERGES, reason, later, far=kept)


def _same_law(norm: Growth, later: Growth) -> bool:
    """Whether the intervals of two laws of one kind meet."""
    low, high = max(norm.interval[0], later.interval[0]), min(norm.interval[1], later.interval[1])
    return norm.law is later.law and low <= high + 1e-3 * norm.exponent


def _approach(problem: Problem, path: Path, point: CriticalPoint) -> str:
    """Why the flow converges to the point; "" if it does not show that."""
    limit = problem.theta(point.net)
    off = np.linalg.norm(path.theta - limit, axis=1)
    size = max(float(np.linalg.norm(limit)), float(path.norm[0]), float(path.norm[-1])) or 1.0
    now, before = float(off[-1]), path.at(off, path.log_t[-1] - 0.5 * np.log(10.0))
    arrived = now <= _ARRIVED * size
    if not arrived and not (now <= _NEAR * size and now <= _NEARER * before):
        return ""
    if point.kind is CriticalKind.SADDLE:
        lowest = float(np.min(point.spectrum.eigenvalues, initial=0.0))
        resting = path.t[off <= _ARRIVED * size]
        if not arrived or (path.end - float(resting[0])) * abs(lowest) < _RESTED:
            return ""
    return (
        f"its end is {now:.2g} from a critical point, {before / max(now, 1e-300):.3g} times nearer "
        "than half a decade of time before."
    )
