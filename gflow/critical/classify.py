"""Of what kind a critical point is: from the Hessian, from symmetries that explain its zeros, from
the kinks it is on, and, where these leave it open, from points nearby."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from gflow.activations import PiecewiseLinear
from gflow.critical.landscapes import Landscape
from gflow.critical.newton import Found, Spectral, newton, spectral
from gflow.critical.point import CriticalKind, Zeros
from gflow.critical.units import Units
from gflow.networks import ShallowNet

# How far along directions of which nothing is known points are looked at, in shares of ‖θ‖.
_REACH = 0.03
_MOST_PROBES = 6
# Risks that differ by less, in shares of the scale of the risk, count as the same.
SAME_RISK = 1e-11
# Falls count from here on, and have to be seen at several distances, these shares of the farthest.
LOWER = 1e-14
_SHARES = (1.0, 1 / 4, 1 / 16)


class Verdict(NamedTuple):
    """The kind, why, and the directions in which the risk falls, as columns."""

    kind: CriticalKind
    message: str
    falls: np.ndarray


class Kinks(NamedTuple):
    """Of the kinks that a point slides on the jumps of the slope, and the normals; and the normals
    of others that it touches, towards the side on which it is critical."""

    jumps: np.ndarray
    normals: np.ndarray
    touched: np.ndarray
    touched_jumps: np.ndarray


class Level(NamedTuple):
    """The risk as a function of the parameters, its value at the point, and its scale; and the size
    of the parameters."""

    risk: Callable[[np.ndarray], float]
    value: float
    scale: float
    size: float


def explained_zeros(now: Spectral, net, trained, units: Units | None) -> Zeros:
    """Counts the zero eigenvalues, and those whose eigenvectors span what leaves the network's
    function as it is because of dead units, or of the rescaling of homogeneous ones."""
    null = now.vectors[:, now.zero]
    total = null.shape[1]
    if units is None or total == 0:
        return Zeros(total, 0, 0, total)
    dead, scaled = _symmetries(net, trained, units)
    by_dead = _dimension(null, dead)
    both = _dimension(null, np.concatenate([dead, scaled], axis=1))
    return Zeros(total, by_dead, both - by_dead, total - both)


def _dimension(null: np.ndarray, directions: np.ndarray) -> int:
    """The dimension of the span of the directions that lie in the null space."""
    if directions.shape[1] == 0:
        return 0
    left, sizes, _ = np.linalg.svd(directions, full_matrices=False)
    span = left[:, sizes > 1e-9 * max(sizes[0], 1e-300)]
    return int(np.sum(np.linalg.svd(null.T @ span, compute_uv=False) > 0.999))


def _symmetries(net: ShallowNet, trained, units: Units) -> tuple[np.ndarray, np.ndarray]:
    """Directions in the trained parameters that do nothing to first order, as columns: those of
    dead and degenerate units, and the rescaling of the others."""
    names = [name for name in "wbvc" if getattr(trained, name) is not None]
    sizes = [getattr(net, name).size for name in names]
    starts = dict(zip(names, np.cumsum([0, *sizes])))
    size = sum(sizes)

    def direction(unit: int, entries: dict[str, np.ndarray]) -> np.ndarray:
        made = np.zeros(size)
        for name, values in entries.items():
            if name in starts:
                flat = np.ravel(values)
                begin = starts[name] + unit * len(flat)
                made[begin : begin + len(flat)] = flat
        return made

    dead, scaled = [np.zeros((size, 0))], [np.zeros((size, 0))]
    parts = {name: np.asarray(getattr(net, name), float) for name in names if name != "c"}
    dead_units = set(units.dead)
    for unit in sorted(dead_units | set(units.degenerate)):
        # A degenerate unit that is moved may become active.
        free = parts if unit in dead_units else {n: a for n, a in parts.items() if n == "v"}
        for name, array in free.items():
            for one in np.eye(array[unit].size):
                dead.append(direction(unit, {name: one})[:, None])
    homogeneous = isinstance(net.activation, PiecewiseLinear)
    whole = {"w", "v"} <= set(names) and (net.b is None or "b" in names)
    for unit in range(len(net.w)) if homogeneous and whole else ():
        if unit not in dead_units:
            along = {n: (-1.0 if n == "v" else 1.0) * array[unit] for n, array in parts.items()}
            scaled.append(direction(unit, along)[:, None])
    return np.concatenate(dead, axis=1), np.concatenate(scaled, axis=1)


def classified(
    land: Landscape,
    found: Found,
    now: Spectral,
    zeros: Zeros,
    kinks: Kinks,
    corner: np.ndarray | None,
    level: Level,
    *,
    optimum: float,
    rounding: float,
) -> Verdict:
    """The kind of a critical point, where 0 or the known `optimum` is the least risk; `corner` is
    a direction in which the risk falls from a unit at zero, or one that touches the data."""
    theta, nothing = found.theta, np.zeros((len(found.theta), 0))
    bent = now.vectors[:, ~now.zero & (now.values < 0)]
    if abs(level.value - optimum) <= rounding and not bent.shape[1]:
        least = "zero" if optimum == 0 else f"the known least one, {optimum:g},"
        return Verdict(CriticalKind.GLOBAL_MINIMUM, f"The risk is {least} to rounding.", nothing)
    concave = kinks.jumps < 0
    across = kinks.normals[concave].T
    across = across / np.linalg.norm(across, axis=0)
    inside = _on_its_side(bent, kinks.touched)
    falls = np.concatenate([inside, across], axis=1)
    if falls.shape[1]:
        how = f"{falls.shape[1]} directions in which the risk falls"
        how += ", some across a kink" if concave.any() else ""
        return Verdict(CriticalKind.SADDLE, f"There are {how}.", falls)
    beyond = _beyond_kinks(land, theta, kinks, level)
    if beyond.shape[1]:
        message = "The risk falls beyond a kink that it touches."
        return Verdict(CriticalKind.SADDLE, message, beyond)
    if corner is not None:
        message = (
            "The risk falls from a unit at w = b = 0, or from one that touches the data without "
            "being active."
        )
        return Verdict(CriticalKind.SADDLE, message, corner[:, None])
    if bent.shape[1]:
        message = (
            f"{bent.shape[1]} eigenvalues are negative, in directions across kinks that it "
            "touches: second order leaves the kind open."
        )
        return Verdict(CriticalKind.DEGENERATE, message, nothing)
    if zeros.unexplained == 0:
        return Verdict(CriticalKind.LOCAL_MINIMUM, _no_fall(zeros, len(kinks.jumps)), nothing)
    return _by_probes(land, theta, now, zeros, level)


def _beyond_kinks(land: Landscape, theta, kinks: Kinks, level: Level) -> np.ndarray:
    """The directions across concave kinks that are touched, along the others, in which the risk is
    seen to fall."""
    across = -(kinks.touched[kinks.touched_jumps < 0] @ land.basis) @ land.basis.T
    found = [np.zeros((len(theta), 0))]
    for direction in across:
        size = np.linalg.norm(direction)
        if size > 0 and any(
            level.risk(theta + step * level.size * direction / size)
            < level.value - LOWER * level.scale
            for step in (1e-3, 1e-5)
        ):
            found.append((direction / size)[:, None])
    return np.concatenate(found, axis=1)


def _on_its_side(directions: np.ndarray, touched: np.ndarray) -> np.ndarray:
    """Those of the directions, or of their opposites, along which no kink is crossed."""
    heights = touched @ directions
    rounding = 1e-9 * np.linalg.norm(touched, axis=1, keepdims=True)
    ahead, behind = (np.all(sign * heights >= -rounding, axis=0) for sign in (1, -1))
    return (directions * np.where(ahead, 1.0, -1.0))[:, ahead | behind]


def _no_fall(zeros: Zeros, kinks: int) -> str:
    along = f" along the {kinks} kinks it is on" if kinks else ""
    if zeros.total == 0:
        return f"All eigenvalues{along} are positive."
    return (
        f"All eigenvalues{along} are positive but {zeros.total}, which units that are dead or at "
        f"zero ({zeros.dead}) and the rescaling of units ({zeros.rescaling}) explain."
    )


def _by_probes(land: Landscape, theta, now: Spectral, zeros: Zeros, level: Level) -> Verdict:
    """From points along directions of which second order says nothing.

    Where critical points of the same risk and rank lie in all these directions, they form a
    manifold, across which the Hessian is positive: a local minimum. A lower risk shows a saddle.
    """
    null, reach = now.vectors[:, now.zero], _REACH * level.size
    rng, start, flat = np.random.default_rng(0), land.local(theta).value, True
    for _ in range(min(_MOST_PROBES, 2 * null.shape[1])):
        direction = null @ rng.normal(size=null.shape[1])
        direction /= np.linalg.norm(direction)
        there = _relaxed(land, theta, reach * direction)
        same = abs(there.local.value - start) <= SAME_RISK * level.scale
        away = np.linalg.norm(there.theta - theta) > 0.3 * reach
        alike = np.sum(spectral(there.local, land.basis).zero) == null.shape[1]
        flat = flat and there.converged and same and bool(away and alike)
        if all(_is_lower(land, theta, share * reach * direction, level) for share in _SHARES):
            fall = there.theta - theta
            message = "Second order leaves it open; points nearby have lower risks."
            return Verdict(CriticalKind.SADDLE, message, (fall / np.linalg.norm(fall))[:, None])
    if flat:
        message = (
            f"All eigenvalues are positive but {zeros.total}, and in these directions are critical "
            "points of the same risk."
        )
        return Verdict(CriticalKind.LOCAL_MINIMUM, message, null[:, :0])
    message = (
        f"{zeros.unexplained} eigenvalues are zero for no known reason: second order leaves the "
        "kind open, and no points looked at nearby have lower risks."
    )
    return Verdict(CriticalKind.DEGENERATE, message, null[:, :0])


def _relaxed(land: Landscape, theta, step) -> Found:
    begin, radius = theta + step, 0.5 * float(np.linalg.norm(step))
    return newton(land, begin, near=begin, radius=radius, stop_at_kinks=False)


def _is_lower(land: Landscape, theta, step, level: Level) -> bool:
    """Whether the risk is lower next to the end of a step; beyond kinks it is that of another
    pattern."""
    return level.risk(_relaxed(land, theta, step).theta) < level.value - LOWER * level.scale
