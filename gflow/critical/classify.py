"""The kind of a critical point: from the Hessian, from symmetries that explain its zeros, from the
kinks it is on, and, where these do not decide it, from points nearby."""

from itertools import chain
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from gflow.critical.candidate import Candidate
from gflow.critical.marginal_units import descent_of_marginal_units
from gflow.critical.newton import Eigensystem, NewtonResult, SearchLimits, newton
from gflow.critical.point import CriticalKind
from gflow.risks import BoxRisk, GaussianRisk, without_penalty

# How far away points are looked at, relative to ‖θ‖, where second order does not decide.
_REACH = 0.03
_MAX_PROBES = 6
# Risks that differ by less, relative to the scale of the risk, count as the same.
_SAME_RISK = 1e-11
# Falls by more than this count, if they are seen at _REACH and at these fractions of it.
_LOWER = 1e-14
_FRACTIONS = (1 / 4, 1 / 16)


class Classification(NamedTuple):
    """The kind, why, and the directions in which the risk falls, as columns."""

    kind: CriticalKind
    message: str
    descents: Float[np.ndarray, "size descents"]


def classify(point: Candidate, optimum: float) -> Classification:
    """The kind of a point to which the search converged; `optimum` is the known minimum of the
    risk, or 0."""
    nothing = np.zeros((len(point.theta), 0))
    now, held, weak = point.eigen, point.held, point.weak
    bent = now.vectors[:, ~now.zero & (now.values < 0)]
    if abs(point.value - optimum) <= _rounding(point, optimum) and not bent.shape[1]:
        least = "zero" if optimum == 0 else f"the known minimum, {optimum:g},"
        return Classification(
            CriticalKind.GLOBAL_MINIMUM, f"The risk is {least} to rounding.", nothing
        )
    concave = held.jumps < 0
    # To the inactive side of one kink, along all the others.
    across = -np.linalg.pinv(held.normals)[:, concave]
    across = across / np.linalg.norm(across, axis=0)
    descents = np.concatenate([_on_their_side(bent, weak.normals), across], axis=1)
    if count := descents.shape[1]:
        how = _counted(count, "direction") + (", some across kinks" if concave.any() else "")
        return Classification(CriticalKind.SADDLE, f"The risk falls in {how}.", descents)
    beyond = _descents_beyond_kinks(point)
    if beyond.shape[1]:
        message = "The risk falls beyond a weakly active kink."
        return Classification(CriticalKind.SADDLE, message, beyond)
    marginal = descent_of_marginal_units(
        point.risk, point.theta, point.marginal, _LOWER * point.risk_scale
    )
    if marginal is not None:
        message = (
            "Moving a unit with w = b = 0, or one that touches the data without being active, "
            "lowers the risk."
        )
        return Classification(CriticalKind.SADDLE, message, marginal[:, None])
    if bent.shape[1]:
        message = (
            f"Negative eigenvalues: {bent.shape[1]}, in directions across weakly active kinks. "
            "Second order does not decide the kind."
        )
        return Classification(CriticalKind.DEGENERATE, message, nothing)
    if point.zeros.unexplained == 0:
        return Classification(CriticalKind.LOCAL_MINIMUM, _no_descent(point), nothing)
    return _by_probes(point)


def _rounding(point: Candidate, optimum: float) -> float:
    """The difference up to which risks count as the optimum.

    Sums of squares of residuals that are roundings are far below the roundings of other sums, at
    points that were reached exactly.
    """
    of_data = without_penalty(point.risk.risk)
    squares = optimum == 0 and not isinstance(of_data, (BoxRisk, GaussianRisk))
    return point.risk_scale * ((1e-20 if point.settled else 1e-15) if squares else 1e-13)


def _on_their_side(
    directions: Float[np.ndarray, "size some"], normals: Float[np.ndarray, "kinks size"]
) -> Float[np.ndarray, "size fewer"]:
    """Those of the directions, or of their opposites, along which no kink is crossed."""
    heights = normals @ directions
    rounding = 1e-9 * np.linalg.norm(normals, axis=1, keepdims=True)
    ahead, behind = (np.all(sign * heights >= -rounding, axis=0) for sign in (1, -1))
    return (directions * np.where(ahead, 1.0, -1.0))[:, ahead | behind]


def _descents_beyond_kinks(point: Candidate) -> Float[np.ndarray, "size some"]:
    """The directions across weakly active kinks that are concave, along the others, in which the
    risk is seen to fall."""
    found = [np.zeros((len(point.theta), 0))]
    for direction in point.beyond:
        size = np.linalg.norm(direction)
        if size > 0 and any(
            _is_below(point, point.theta + step * point.size * direction / size)
            for step in (1e-3, 1e-5)
        ):
            found.append((direction / size)[:, None])
    return np.concatenate(found, axis=1)


def _no_descent(point: Candidate) -> str:
    zeros, positive = point.zeros, _positive(point)
    if zeros.total == 0:
        return f"{positive}."
    return (
        f"{positive}, except {zeros.total} zero: dead and degenerate units explain {zeros.dead}, "
        f"the rescaling of units {zeros.rescaling}."
    )


def _positive(point: Candidate) -> str:
    count = len(point.held.jumps)
    along = f" along {_counted(count, 'active kink')}" if count else ""
    return f"All eigenvalues{along} are positive"


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}{'s' * (count != 1)}"


def _by_probes(point: Candidate) -> Classification:
    """From points along directions that second order does not decide.

    Where critical points of the same risk and rank lie in all these directions, they form a
    manifold, across which the Hessian is positive: a local minimum. A lower risk shows a saddle.
    """
    theta, now = point.theta, point.eigen
    null, reach = now.vectors[:, now.zero], _REACH * point.size
    nothing, flat = null[:, :0], True
    start, rng = point.search.newton.expansion.value, np.random.default_rng(0)
    for _ in range(min(_MAX_PROBES, 2 * null.shape[1])):
        direction = null @ rng.normal(size=null.shape[1])
        direction /= np.linalg.norm(direction)
        there = _relaxed(point, reach * direction)
        same = abs(there.expansion.value - start) <= _SAME_RISK * point.risk_scale
        away = np.linalg.norm(there.theta - theta) > 0.3 * reach
        zeros = np.sum(Eigensystem.of(there.expansion).zero)
        alike = zeros == null.shape[1]
        flat = flat and there.converged and same and bool(away and alike)
        nearer = (_relaxed(point, fraction * reach * direction) for fraction in _FRACTIONS)
        if all(_is_below(point, probe.theta) for probe in chain([there], nearer)):
            fall = (there.theta - theta) / np.linalg.norm(there.theta - theta)
            message = "Second order does not decide the kind; points nearby have lower risks."
            return Classification(CriticalKind.SADDLE, message, fall[:, None])
    if flat:
        message = (
            f"{_positive(point)}, except {point.zeros.total} zero; critical points of the same "
            "risk lie in these directions."
        )
        return Classification(CriticalKind.LOCAL_MINIMUM, message, nothing)
    message = (
        f"Zero eigenvalues without a known reason: {point.zeros.unexplained}. Second order does "
        "not decide the kind, and no points looked at nearby have lower risks."
    )
    return Classification(CriticalKind.DEGENERATE, message, nothing)


def _relaxed(point: Candidate, step: Float[np.ndarray, " size"]) -> NewtonResult:
    """A critical point near the end of a step. The risk beyond kinks is that of the pattern."""
    land = point.search.landscape
    begin = land.moved(point.theta, step)
    limits = SearchLimits(begin, 0.5 * float(np.linalg.norm(step)), stop_at_kinks=False)
    return newton(land, begin, limits)


def _is_below(point: Candidate, theta: Float[np.ndarray, " size"]) -> bool:
    """Whether the risk, of whichever pattern, is lower there than at the point."""
    return point.risk(theta) < point.value - _LOWER * point.risk_scale
