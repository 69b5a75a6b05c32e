"""Whether a flow converges or goes to infinity, and by which laws."""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from gflow.arguments import ArgumentError, Described, PyTree, RealScalar, positive
from gflow.critical import CriticalKind, CriticalPoint, agreement, refine
from gflow.flow import solve_flow
from gflow.kink_log import KinkLog
from gflow.limits.far import far_path
from gflow.limits.growth import (
    Direction,
    Growth,
    NormLaw,
    direction,
    growth,
    growth_of_logarithm,
)
from gflow.limits.path import Path
from gflow.limits.result import Asymptotics, Behaviour
from gflow.limits.values import RiskLimit, risk_law, risk_limit
from gflow.parameters import flat, split_trainable, unflat
from gflow.rates import Lojasiewicz, Rate, fit_rate, lojasiewicz
from gflow.risks import Risk, penalty_of
from gflow.trajectory import Trajectory, single_trajectory

# Unless the caller says how far, a flow is followed to so many times its end while it is undecided.
_FURTHER = 1e3
_TIMES_PER_DECADE, _MAX_STEPS = 30, 200_000
# A flow is near its limit up to this distance, relative to ‖θ‖, if it has come nearer by this
# factor over the last half decade; or has arrived, up to rounding.
_NEAR, _NEARER, _ARRIVED = 0.03, 0.8, 1e-7
# A saddle is a limit if the flow has rested there for so many times 1/|λ|.
_RESTED = 100.0
# Velocity and θ have at most this angle on the way to infinity, as a cosine; and minima as far
# away as this, relative to ‖θ‖, are no reason to call it that.
_OUTWARD, _FAR = 0.3, 3.0


def asymptotics(
    flow: Trajectory[Any],
    risk: Callable[[Any], Any],
    *,
    follow: RealScalar | None = None,
    trainable: Sequence[str] | PyTree | None = None,
) -> Asymptotics:
    r"""Whether a flow converges, diverges, or does not show it yet, with all rates.

    A gradient flow of a definable risk either converges to a critical point, or ‖θ‖ goes to
    infinity and the risk to an asymptotic critical value. The flow

    - *converges* if `refine` finds a critical point near its end, to which it comes nearer; at a
      saddle only if it has rested there for long;
    - *diverges* if ‖θ‖ grows over the last decades of time like $t^p$ or $(\log t)^q$, mostly
      outwards, while no minimum of lower risk is found within three times ‖θ‖;
    - is *undecided* otherwise. It is then followed further, decade by decade.

    The limit of the risk of a diverging flow comes from $L - L_\infty = t\|\nabla L\|^2/p$, with p
    from the law of the slope. The limit of θ/‖θ‖ is extrapolated in powers of 1/‖θ‖, so that
    logarithms, too, are followed to their end.

    **Arguments:**

    - `flow`: of `solve_flow`. The times saved should cover its last decades, as the default ones
      do.
    - `risk`: its risk.
    - `follow`: the time up to which the flow is followed while it is undecided; by default 1,000
      times its end. At the end of the flow, or before, it is not followed.
    - `trainable`: as in `solve_flow`. Norms and directions are those of the trained parameters.

    **Returns:** an `Asymptotics`. **Raises:** `ArgumentError` for a trajectory that is no flow, or
    has fewer than 10 saved times, or whose time is another (`model`, `time_scales`).

    The dichotomy: arXiv 2505.09572. The rate theorem of non-divergent flows: Eberle, Jentzen,
    Riekert and Weiss, Electron. Res. Arch. 31 (2023) 2519. Homogeneous networks and separable data:
    Lyu and Li, arXiv 1906.05890.
    """
    flow = single_trajectory("flow", flow)
    if flow.kind != "flow" or len(flow) < 10:
        got = Described(f"a {flow.kind} with {len(flow)} saved times")
        raise ArgumentError("flow", got, "a flow of `solve_flow`, with at least 10 saved times")
    if "flow_time" in flow.observed or any(name.startswith("time_scale_") for name in flow.stats):
        got = Described("one in another time, or with time scales")
        raise ArgumentError("flow", got, "a flow dθ/dt = −∇L(θ), whose laws in t are the question")
    if not callable(risk):
        raise ArgumentError("risk", Described(type(risk).__name__), "a function of the network")
    start = float(flow.ts[0])
    last = start + _FURTHER * (float(flow.ts[-1]) - start)
    if follow is not None:
        last = positive("follow", follow)
    trained = lambda net: split_trainable(net, trainable)[0]
    problem = _Problem(risk, trained, trainable, start)
    # What the flow does far away counts to the last of the decades, too.
    may_follow = last > float(flow.ts[-1])
    while True:
        found = _judged(problem, flow, may_follow=may_follow)
        end = float(flow.ts[-1])
        if found.behaviour is not Behaviour.UNDECIDED or end * (1 + 1e-9) >= last:
            break
        longer = _followed(problem, flow, min(last, start + 10 * (end - start)))
        if longer is None:
            break
        flow = longer
    return _described(problem, flow, found)


@dataclass(frozen=True)
class _Problem:
    """The risk, what takes the trained parameters out of a network, and when the flow began."""

    risk: Callable[[Any], Any]
    trained: Callable[[Any], Any]
    trainable: Any
    start: float

    def path(self, flow: Trajectory) -> Path:
        return Path.of(flow, self.start, self.trained)

    def theta(self, net: Any) -> np.ndarray:
        return np.asarray(flat(self.trained(net)), float)

    def critical_point(self, net: Any, radius: float) -> CriticalPoint | None:
        """That near a network; None if there is none, or it cannot be looked for."""
        try:
            point = refine(self.risk, net, radius=radius, trainable=self.trainable, throw=False)
        except ArgumentError:
            return None
        return point if point.found else None


class _Judgement(NamedTuple):
    behaviour: Behaviour
    reason: str
    growth: Growth
    point: CriticalPoint | None = None
    far: Path | None = None


def _judged(problem: _Problem, flow: Trajectory, *, may_follow: bool) -> _Judgement:
    path = problem.path(flow)
    norm = growth(path)
    point = problem.critical_point(flow.final, 0.1)
    if point is not None:
        reason = _approach(problem, path, point)
        if reason:
            return _Judgement(Behaviour.CONVERGES, reason, norm, point)
    if norm.law is NormLaw.NONE or not norm.outward >= _OUTWARD:
        where = "no critical point is near its end"
        if point is not None:
            where = f"it has not yet come to rest at the {point.kind} near its end"
        text = f"{where}, and ‖θ‖ does not grow by a law that leads to infinity."
        return _Judgement(Behaviour.UNDECIDED, text, norm)
    penalty = penalty_of(problem.risk)
    if penalty is not None and float(penalty.weight_decay) > 0 and problem.trainable is None:
        text = "‖θ‖ grows, but weight decay keeps it bounded: the flow has not yet converged."
        return _Judgement(Behaviour.UNDECIDED, text, norm)
    if point is not None:
        text = "‖θ‖ grows, though a critical point is near."
        return _Judgement(Behaviour.UNDECIDED, text, norm)
    ahead = problem.critical_point(flow.final, _FAR)
    if (
        ahead is not None
        and ahead.kind is not CriticalKind.SADDLE
        and ahead.risk < float(flow.risk[-1])
    ):
        text = (
            f"‖θ‖ grows, but a critical point of risk {ahead.risk:.6g} is {ahead.distance:.3g} "
            "ahead."
        )
        return _Judgement(Behaviour.UNDECIDED, text, norm)
    far = None
    if norm.law is NormLaw.LOGARITHM and may_follow:
        far = far_path(problem.risk, flow, problem.start, problem.trained, problem.trainable)
        if far is not None:
            later = growth_of_logarithm(far)
            if later is None:
                text = (
                    f"‖θ‖ grows like a logarithm to t = {path.end:.3g}, but not to {far.end:.3g}."
                )
                return _Judgement(Behaviour.UNDECIDED, text, norm)
            norm = later._replace(outward=norm.outward)
    begin = path.end / 1e3
    further = "" if far is None else f", and so to t = {far.end:.3g}"
    reason = (
        f"from t = {begin:.3g} to {path.end:.3g} ‖θ‖ grows from "
        f"{path.at(path.norm, np.log(begin)):.4g} to {path.norm[-1]:.4g} by one law{further}, "
        f"{norm.outward:.0%} of the velocity is outward, and no minimum was found ahead."
    )
    return _Judgement(Behaviour.DIVERGES, reason, norm, far=far)


def _approach(problem: _Problem, path: Path, point: CriticalPoint) -> str:
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


def _followed(problem: _Problem, flow: Trajectory, until: float) -> Trajectory | None:
    """The flow to a later time; None if it does not get there."""
    start, end = problem.start, float(flow.ts[-1])
    decades = np.log10((until - start) / (end - start))
    number = max(int(_TIMES_PER_DECADE * decades), 4)
    ts = start + np.geomspace(end - start, until - start, number + 1)[1:]
    ts[-1] = until
    located = flow.kinks is not None or not flow.kinks_ignored
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        more = solve_flow(
            problem.risk,
            flow.final,
            t0=end,
            t1=until,
            ts=ts,
            rtol=_tolerance(flow),
            kinks="locate" if located else "ignore",
            trainable=problem.trainable,
            max_steps=_MAX_STEPS,
            throw=False,
        )
    if not more.succeeded or len(more) < len(ts):
        return None
    return _joined(flow, more)


def _tolerance(flow: Trajectory) -> float | None:
    rtol = flow.stats.get("rtol")
    return None if rtol is None else float(np.asarray(rtol))


def _joined(flow: Trajectory, more: Trajectory) -> Trajectory:
    """One trajectory after the other."""
    join = lambda a, b: jnp.concatenate([a, b]) if eqx.is_array(a) and a.ndim else a
    names = ("ts", "risk", "grad_norm", "diagnostics")
    parts = {n: jax.tree.map(join, getattr(flow, n), getattr(more, n)) for n in names}
    trained, fixed = eqx.partition(flow.params, eqx.is_array)
    parts["params"] = eqx.combine(
        jax.tree.map(join, trained, eqx.filter(more.params, eqx.is_array)), fixed
    )
    kinks = flow.kinks
    if kinks is not None and more.kinks is not None:
        kinks = KinkLog(*map(join, jax.tree.leaves(kinks.used()), jax.tree.leaves(more.kinks)))
    return replace(flow, **parts, kinks=kinks, observed={}, dense=None, result=more.result)


def _described(problem: _Problem, flow: Trajectory, found: _Judgement) -> Asymptotics:
    path, norm, point = problem.path(flow), found.growth, found.point
    lowest = 0.0 if isinstance(problem.risk, Risk) else -np.inf
    latest = path if found.far is None else found.far
    limit = _limit(flow, latest, point, lowest)
    towards = None
    if found.behaviour is Behaviour.DIVERGES:
        towards = direction(latest, norm, path)
    elif point is not None:
        towards = _direction_of(problem, path, point)
    rate = _rate_of(flow, limit.value, None if point is None else point.rate)
    theorem = None
    if point is not None:
        theorem = _theorem(flow, point)
    power = found.behaviour is Behaviour.DIVERGES
    grows = norm if power else Growth(NormLaw.NONE, 0.0, (0.0, 0.0), 0.0, norm.outward)
    law = risk_law(latest, limit, norm).formula() if power else ""
    return Asymptotics(
        behaviour=found.behaviour,
        reason=found.reason,
        risk_limit=limit.value,
        risk_limit_interval=limit.interval,
        risk_rate=rate,
        risk_law=law or ("" if point is None else _called(rate)),
        norm_law=grows.law,
        norm_exponent=grows.norm_exponent,
        norm_log_exponent=grows.exponent if grows.law is NormLaw.LOGARITHM else 0.0,
        norm_interval=grows.interval,
        direction=None if towards is None else _network(problem, flow, towards.limit),
        direction_error=np.nan if towards is None else towards.error,
        direction_distance=np.nan if towards is None else towards.distance,
        direction_power=np.nan if towards is None else towards.power,
        point=point,
        rate_agreement=_agreement(rate, point),
        length=_length(path, found.behaviour),
        theorem=theorem,
        trajectory=flow,
    )


def _limit(flow: Trajectory, path: Path, point: CriticalPoint | None, lowest: float) -> RiskLimit:
    if point is None:
        return risk_limit(path, lowest)
    rounding = 1e-15 * max(float(flow.risk[0]), abs(point.risk))
    low = max(point.risk - rounding, lowest)
    return RiskLimit(point.risk, (low, point.risk + rounding))


def _direction_of(problem: _Problem, path: Path, point: CriticalPoint) -> Direction | None:
    limit = problem.theta(point.net)
    if not np.linalg.norm(limit) > 0 or not path.norm[-1] > 0:
        return None
    unit = limit / np.linalg.norm(limit)
    apart = float(np.linalg.norm(path.theta[-1] / path.norm[-1] - unit))
    return Direction(unit, np.finfo(float).eps, apart, np.nan)


def _network(problem: _Problem, flow: Trajectory, unit: np.ndarray) -> Any:
    trained, frozen = split_trainable(flow.final, problem.trainable)
    return eqx.combine(unflat(trained, jnp.asarray(unit, flat(trained).dtype)), frozen)


def _rate_of(flow: Trajectory, limit: float, predicted: float | None) -> Rate | None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            gap = np.asarray(flow.risk) - limit
            return fit_rate(flow.ts, gap, predicted=predicted, kinks=flow.kinks)
        except ArgumentError:  # too few points above the limit
            return None


def _called(rate: Rate | None) -> str:
    """The law of a rate in a few letters; "" if none is called."""
    return "" if rate is None or rate.law == "undecided" else rate.formula()


def _theorem(flow: Trajectory, point: CriticalPoint) -> Lojasiewicz | None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return lojasiewicz(flow, point.risk, point.net)
        except ArgumentError:  # too few points above the limit
            return None


def _agreement(rate: Rate | None, point: CriticalPoint | None) -> str:
    if rate is None or point is None or point.modes is None:
        return ""
    return agreement(rate, point.modes)


def _length(path: Path, behaviour: Behaviour) -> float:
    if behaviour is Behaviour.DIVERGES:
        return np.inf
    if behaviour is Behaviour.UNDECIDED:
        return np.nan
    exponent = -path.slope(path.speed, (0.5, 0.0))
    left = path.end * path.speed[-1] / (exponent - 1) if exponent > 1 else 0.0
    return path.length + float(left)
