"""Newton's method across activation patterns, to a point with 0 in its Clarke subdifferential."""

from collections import Counter
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from gflow.critical.landscapes import AbstractLandscape, Kink
from gflow.critical.newton import NewtonResult, SearchLimits, newton
from gflow.critical.pattern_landscape import PatternLandscape, PatternSlopes
from gflow.critical.units import degenerate_units
from gflow.nonsmooth.minimal_norm import box_constrained_weights
from gflow.nonsmooth.shallow.risk import ShallowPatternRisk

MAX_PATTERNS = 60
# A kink that is met more often lies between critical points of both its sides.
_MAX_MEETINGS = 4
# Weights of kinks count as 0 or 1 up to this.
_WEIGHT, _NEARLY = 1e-9, 1e-4


class SearchResult(NamedTuple):
    """The last landscape, where the search on it ended, and the number of activation patterns."""

    landscape: AbstractLandscape
    newton: NewtonResult
    num_patterns: int = 1


def pattern_at(risk: ShallowPatternRisk, theta: Float[np.ndarray, " size"]) -> PatternLandscape:
    """The pattern at θ. Of the kinks there, those are held whose weight in the minimal-norm
    subgradient is inside (0, 1)."""
    net = risk.net(jnp.asarray(theta))
    # A single weight at 0 is at a kink like any other.
    degenerate = degenerate_units(net) if risk.whole else ()
    start = np.zeros((net.width, len(risk.rows)), bool)
    land = PatternLandscape(risk, start, degenerate=degenerate)
    tied = land.tied(theta)
    land = PatternLandscape(risk, (land.preactivations(theta) > 0) & ~tied, degenerate=degenerate)
    for unit in np.flatnonzero(tied.any(axis=1)).tolist():
        land = _decided(land, theta, unit, np.flatnonzero(tied[unit]))
    return land


def _decided(
    land: PatternLandscape, theta: np.ndarray, unit: int, rows: Int[np.ndarray, " tied"]
) -> PatternLandscape:
    """The pattern in which each tied kink of one unit is held, or on one side."""
    _, first = np.unique(land.line[rows], return_index=True)
    kinks = [Kink(unit, int(row)) for row in rows[np.sort(first)]]
    base = land
    for kink in kinks:
        base = base.on_side(theta, kink, active=False)
    slopes = base.slopes(theta)
    jumps = base.jumps(theta, slopes, kinks)
    normals = base.gradients_of_kinks(kinks)
    used = np.any(normals != 0, axis=0)
    gradient, changes = slopes.gradient[used], jumps[:, None] * normals[:, used]
    weights = box_constrained_weights(gradient, changes)
    # How far beyond 0 or 1 the weight would go. Weights within _NEARLY of 0 or 1 are held, too,
    # until the point is found.
    pull = np.abs(changes @ (weights @ changes + gradient))
    beyond = pull / np.maximum(np.sum(changes**2, axis=1), np.finfo(float).tiny)
    land = base
    for kink, weight, outside, jump in zip(kinks, weights, beyond, jumps):
        inside = _WEIGHT < weight < 1 - _WEIGHT
        if inside or (jump > 0 and outside < _NEARLY):
            land = land.holding(theta, kink)
        else:
            land = land.on_side(theta, kink, active=bool(weight > 0.5))
    return land


def along_kinks(
    land: PatternLandscape, theta: Float[np.ndarray, " size"], radius: float
) -> SearchResult:
    """Follows θ from pattern to pattern to a critical point, at most `radius` away.

    Where a step meets a kink, the search crosses it if the flow does; otherwise it goes on along
    the kink if that is convex. It leaves kinks whose weight is not in (0, 1).
    """
    limits, steps, patterns = SearchLimits(theta, radius), 0, 1
    met: Counter[Kink] = Counter()
    while True:
        theta = land.put_on_kinks(theta)
        found = newton(land, theta, limits)
        theta, steps = found.theta, steps + found.steps
        found = found._replace(steps=steps)
        after = land
        if found.kink is not None:
            met[found.kink] += 1
            if met[found.kink] > _MAX_MEETINGS:
                return SearchResult(land, found, patterns)
            after = _past(land, theta, found.kink)
        elif found.converged:
            after = _off(land, theta)
        if after is land:
            return SearchResult(land, found, patterns)
        if patterns == MAX_PATTERNS:
            return SearchResult(land, found._replace(converged=False), patterns + 1)
        land, patterns = after, patterns + 1


def _off(land: PatternLandscape, theta: np.ndarray) -> PatternLandscape:
    """The pattern without the held kink whose weight is farthest outside (0, 1) or on its boundary;
    the same pattern if all are inside."""
    weights = land.multipliers(theta, land.slopes(theta)).weights
    outside = np.maximum(-weights, weights - 1)
    if np.max(outside, initial=-np.inf) < -_WEIGHT:
        return land
    place = int(np.argmax(outside))
    return land.leaving(theta, place, active=bool(weights[place] > 0.5))


def _past(land: PatternLandscape, theta: np.ndarray, kink: Kink) -> PatternLandscape:
    """The pattern after a kink that is met. The flow crosses it if it leads to the other side on
    both; if it does not, or only Newton's step leads across, a convex kink is held."""
    held = land.holding(theta, kink)
    gradients = held.gradients_of_kinks([other for other in held.held if other.unit == kink.unit])
    if np.linalg.matrix_rank(gradients, tol=1e-9 * np.linalg.norm(gradients)) == len(gradients):
        weights, jumps, _ = held.multipliers(theta, held.slopes(theta))
        beyond = weights[-1] <= 0 if land.active[kink] else weights[-1] >= 1
        if jumps[-1] > 0 and not beyond:
            return held
    return land.crossed(theta, kink)


def weakly_active(land: PatternLandscape, theta: np.ndarray, slopes: PatternSlopes) -> list[Kink]:
    """The kinks at θ that are not held, and across which ∂L/∂z jumps."""
    tied = land.tied(theta)
    for unit, row in land.held:
        tied[unit, land.members(theta, unit, row)] = False
    largest = np.max(np.abs(slopes.by_pair), initial=0.0)
    kinks = [Kink(unit, row) for unit, row in np.argwhere(tied).tolist()]
    # One row stands for all that have the same kink.
    kinks = [kink for kink in kinks if land.members(theta, *kink)[0] == kink.row]
    jumps = land.jumps(theta, slopes, kinks)
    return [kink for kink, jump in zip(kinks, jumps) if abs(jump) > 1e-9 * largest]
