"""Newton's method across activation patterns, to a point with 0 in its Clarke subdifferential."""

from collections import Counter

import jax.numpy as jnp
import numpy as np
from scipy.optimize import lsq_linear

from gflow.critical.landscapes import TIED, OfPattern
from gflow.critical.newton import Found, newton
from gflow.critical.units import units_at_zero
from gflow.nonsmooth.shallow.risk import ShallowPatternRisk

MOST_PATTERNS = 60
# A kink that is met more often stands between critical points of both its sides.
_MOST_MEETINGS = 4
# Weights of kinks count as 0 or 1 up to this.
_WEIGHT, _NEARLY = 1e-9, 1e-4


def pattern_at(risk: ShallowPatternRisk, theta: np.ndarray) -> OfPattern:
    """The pattern where θ is. Of the kinks at which it is, those are held whose weight in the
    minimal-norm subgradient is inside (0, 1)."""
    net = risk.net(jnp.asarray(theta))
    # A single weight at 0 is at a kink like any other.
    zero = units_at_zero(net) if risk.whole else ()
    land = OfPattern(risk, np.zeros((len(net.w), len(risk.rows)), bool))
    tied = (land.margins(theta) <= TIED) & np.any(land.normals != 0, axis=1)
    tied[list(zero)] = False
    land = OfPattern(risk, (land.preactivations(theta) > 0) & ~tied, zero=zero)
    for unit in np.flatnonzero(tied.any(axis=1)).tolist():
        land = _decided(land, theta, unit, np.flatnonzero(tied[unit]))
    return land


def _decided(land: OfPattern, theta, unit: int, rows: np.ndarray) -> OfPattern:
    """With the kinks of one unit that are tied held, or on one side."""
    _, first = np.unique(land.line[rows], return_index=True)
    pairs = [(unit, int(row)) for row in rows[np.sort(first)]]
    base = land
    for pair in pairs:
        base = base.on_side(theta, pair, active=False)
    gradient, q = base.gradient_and_slopes(theta)
    jumps = np.array([base.jump(theta, q, *pair) for pair in pairs])
    gradients = base.gradients_of_kinks(pairs)
    columns = (jumps[:, None] * gradients).T
    used = np.any(gradients != 0, axis=0)
    columns = columns[used]
    found = lsq_linear(columns, -gradient[used], (0.0, 1.0), method="bvls", tol=1e-14)
    # How far beyond 0 or 1 the weight would go. Those at 0 or 1 to a little are held, too, until
    # the point is found.
    pull = np.abs(columns.T @ (columns @ found.x + gradient[used]))
    beyond = pull / np.maximum(np.sum(columns**2, axis=0), np.finfo(float).tiny)
    land = base
    for pair, weight, outside, jump in zip(pairs, found.x, beyond, jumps):
        inside = _WEIGHT < weight < 1 - _WEIGHT
        if inside or (jump > 0 and outside < _NEARLY):
            land = land.holding(theta, *pair)
        else:
            land = land.on_side(theta, pair, active=bool(weight > 0.5))
    return land


def along_kinks(land: OfPattern, theta: np.ndarray, reach: float) -> tuple[OfPattern, Found, int]:
    """Follows θ from pattern to pattern to a critical point, at most `reach` away: where a step
    meets a kink, across it if the flow leads there, along it if it is convex otherwise; off kinks
    whose weight is not in (0, 1).

    **Returns:** the last pattern, where the search ended, and the number of patterns.
    """
    near, steps, patterns = theta, 0, 1
    met: Counter[tuple[int, int]] = Counter()
    while True:
        theta = land.put_on_kinks(theta)
        found = newton(land, theta, near=near, radius=reach)
        theta, steps = found.theta, steps + found.steps
        found = found._replace(steps=steps)
        after = land
        if found.kink is not None:
            met[found.kink] += 1
            if met[found.kink] > _MOST_MEETINGS:
                return land, found, patterns
            after = _past(land, theta, *found.kink)
        elif found.converged:
            after = _off(land, theta)
        if after is land:
            return land, found, patterns
        if patterns == MOST_PATTERNS:
            return land, found._replace(converged=False), patterns + 1
        land, patterns = after, patterns + 1


def _off(land: OfPattern, theta: np.ndarray) -> OfPattern:
    """The pattern without the kink of which the weight is farthest outside (0, 1), or on its
    boundary, if there is one."""
    weights, _, _ = land.weights(theta)
    outside = np.maximum(-weights, weights - 1)
    if np.max(outside, initial=-np.inf) < -_WEIGHT:
        return land
    place = int(np.argmax(outside))
    return land.leaving(theta, place, active=bool(weights[place] > 0.5))


def touched(land: OfPattern, theta: np.ndarray) -> list[tuple[int, int]]:
    """The kinks where θ is that are not held, and across which the slope jumps."""
    tied = (land.margins(theta) <= TIED) & np.any(land.normals != 0, axis=1)
    tied[list(land.zero)] = False
    for unit, row in land.held:
        tied[unit, land.members(theta, unit, row)] = False
    _, q = land.gradient_and_slopes(theta)
    largest = np.max(np.abs(q), initial=0.0)
    found = []
    for unit, row in np.argwhere(tied).tolist():
        first = land.members(theta, unit, row)[0] == row
        if first and abs(land.jump(theta, q, unit, row)) > 1e-9 * largest:
            found.append((unit, row))
    return found


def _past(land: OfPattern, theta, unit: int, row: int) -> OfPattern:
    """The pattern after a kink that is met: the flow crosses it if it leads to the other side on
    both; otherwise, or if only Newton's step leads across, a convex kink is held."""
    held = land.holding(theta, unit, row)
    gradients = held.gradients_of_kinks([pair for pair in held.held if pair[0] == unit])
    if np.linalg.matrix_rank(gradients, tol=1e-9 * np.linalg.norm(gradients)) == len(gradients):
        weights, jumps, _ = held.weights(theta)
        beyond = weights[-1] <= 0 if land.active[unit, row] else weights[-1] >= 1
        if jumps[-1] > 0 and not beyond:
            return held
    return land.crossed(theta, unit, row)
