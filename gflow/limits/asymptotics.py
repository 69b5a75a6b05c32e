"""Whether a flow converges or goes to infinity, and by which laws."""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from gflow.arguments import ArgumentError, Described, PyTree, RealScalar, positive
from gflow.critical import CriticalPoint, agreement
from gflow.flow import solve_flow
from gflow.kink_log import KinkLog
from gflow.limits.far import Continuation
from gflow.limits.growth import Direction, Growth, NormLaw, direction
from gflow.limits.path import Path
from gflow.limits.result import Asymptotics, Behaviour
from gflow.limits.values import RiskLimit, lower_bound, risk_law, risk_limit
from gflow.limits.verdict import Judgement, Problem, judged
from gflow.parameters import flat, split_trainable, unflat
from gflow.progress import progress_bar
from gflow.rates import Lojasiewicz, Rate, fit_rate, lojasiewicz
from gflow.trajectory import Trajectory, single_trajectory

# Unless the caller says how far, a flow is followed to so many times its end while it is undecided.
_FURTHER = 1e3
_TIMES_PER_DECADE, _MAX_STEPS = 30, 200_000


def asymptotics(
    flow: Trajectory[Any],
    risk: Callable[[Any], Any],
    *,
    follow: RealScalar | None = None,
    trainable: Sequence[str] | PyTree | None = None,
    progress: bool = False,
) -> Asymptotics:
    r"""Whether a flow converges, diverges, or does not show it yet, with all rates.

    A gradient flow of a definable risk either converges to a critical point, or ‖θ‖ goes to
    infinity and the risk to an asymptotic critical value. The flow

    - *converges* if `refine` finds a critical point near its end, to which it comes nearer; at a
      saddle only if it has rested there for long;
    - *diverges* if ‖θ‖ grows over the last decades of time like $t^p$ or $(\log t)^q$, mostly
      outwards, while no minimum of lower risk is found within three times ‖θ‖, and goes on so in a
      continuation: of a power to $10^{20}$ times the end of the flow, of a logarithm to
      $t = 10^{140}$. Where rounding or kinks end the continuation before, the power has to hold
      over 7 decades in all;
    - is *undecided* otherwise. It is then followed further, decade by decade.

    A flow that turns later than that is called diverging all the same.

    The limit of the risk of a diverging flow comes from $L - L_\infty = t\|\nabla L\|^2/p$, with p
    from the law of the slope. The limit of θ/‖θ‖ is extrapolated in powers of 1/‖θ‖, so that
    logarithms, too, are followed to their end.

    **Arguments:**

    - `flow`: of `solve_flow`. The times saved should cover its last decades, as the default ones
      do.
    - `risk`: its risk.
    - `follow`: the time up to which the flow is followed while it is undecided; by default 1,000
      times its end, or to where the continuation shows that the growth has ended. At the end of
      the flow, or before, it is not followed, and never called diverging.
    - `trainable`: as in `solve_flow`. Norms and directions are those of the trained parameters.
    - `progress`: shows how far the flow has been followed, with a bar for each continuation.

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
    # What the flow does far away counts to the last of the decades, too.
    continuation = None
    if last > float(flow.ts[-1]):
        continuation = Continuation(risk, start, trained, trainable, progress)
    problem = Problem(risk, trained, trainable, start, continuation, progress)
    flow, found = _until_decided(problem, flow, last, extends=follow is None)
    return _described(problem, flow, found)


def _until_decided(
    problem: Problem, flow: Trajectory, last: float, *, extends: bool
) -> tuple[Trajectory, Judgement]:
    """The flow, followed to the time `last` if need be, and what it shows; `extends`: or to where
    its continuation has turned."""
    start, shown = problem.start, 0
    decades = max(int(np.ceil(np.log10((last - start) / (float(flow.ts[-1]) - start)))), 1)
    with progress_bar(decades if problem.progress else None, "gflow.asymptotics") as bar:
        bar.advance(0, f"t = {float(flow.ts[-1]):.3g}, looking for a limit")
        while True:
            end = float(flow.ts[-1])
            found = judged(problem, flow)
            if extends and found.turned and found.far is not None:
                last = max(last, start + found.far.end)
            if found.behaviour is not Behaviour.UNDECIDED or end * (1 + 1e-9) >= last:
                return flow, found
            longer = _followed(problem, flow, min(last, start + 10 * (end - start)))
            if longer is None:
                return flow, found
            flow = longer
            more = int(shown < decades)
            bar.advance(more, f"t = {float(flow.ts[-1]):.3g}, looking for a limit")
            shown += more


def _followed(problem: Problem, flow: Trajectory, until: float) -> Trajectory | None:
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
            progress=problem.progress,
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


def _described(problem: Problem, flow: Trajectory, found: Judgement) -> Asymptotics:
    path, norm, point = problem.path(flow), found.growth, found.point
    lowest = lower_bound(problem.risk)
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
    return RiskLimit.at(point.risk, rounding, lowest)


def _direction_of(problem: Problem, path: Path, point: CriticalPoint) -> Direction | None:
    limit = problem.theta(point.net)
    if not np.linalg.norm(limit) > 0 or not path.norm[-1] > 0:
        return None
    unit = limit / np.linalg.norm(limit)
    apart = float(np.linalg.norm(path.theta[-1] / path.norm[-1] - unit))
    return Direction(unit, np.finfo(float).eps, apart, np.nan)


def _network(problem: Problem, flow: Trajectory, unit: np.ndarray) -> Any:
    trained, frozen = split_trainable(flow.final, problem.trainable)
    return eqx.combine(unflat(trained, jnp.asarray(unit, flat(trained).dtype)), frozen)


def _rate_of(flow: Trajectory, limit: float, predicted: float | None) -> Rate | None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            gap = np.asarray(flow.risk) - limit
            return fit_rate(flow, gap, predicted=predicted)
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
