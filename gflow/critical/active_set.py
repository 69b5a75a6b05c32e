"""Newton's method across activation patterns, to a point with 0 in its Clarke subdifferential."""

from collections import Counter
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from gflow.critical.landscapes import AbstractLandscape, Kink
from gflow.critical.newton import NewtonResult, SearchLimits, newton
from gflow.critical.pattern_landscape import WEIGHT, AbstractPatternLandscape, PatternSlopes
from gflow.critical.slow_modes import to_rest
from gflow.critical.valleys import Valley, valley

MAX_PATTERNS = 60
# A kink that is met more often lies between critical points of both its sides.
_MAX_MEETINGS = 4


class SearchResult(NamedTuple):
    """The last landscape, where the search on it ended, the number of activation patterns, and a
    direction in which the risk still falls there, if there is one."""

    landscape: AbstractLandscape
    newton: NewtonResult
    num_patterns: int = 1
    valley: Valley | None = None

    @classmethod
    def checked(cls, search: "SearchResult", size: float, limits: SearchLimits) -> "SearchResult":
        """The search, not converged if the risk still falls where it ended, and led on where the
        slope vanishes nearby. θ is of some `size`."""
        found = valley(search.landscape, search.newton, size)
        if found is None:
            return search._replace(newton=to_rest(search.landscape, search.newton, size, limits))
        return search._replace(newton=search.newton._replace(converged=False), valley=found)


def along_kinks(
    land: AbstractPatternLandscape, theta: Float[np.ndarray, " size"], radius: float
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


def _off(land: AbstractPatternLandscape, theta: np.ndarray) -> AbstractPatternLandscape:
    """The pattern without the held kink whose weight is farthest outside (0, 1) or on its boundary;
    the same pattern if all are inside."""
    weights = land.multipliers(theta, land.slopes(theta)).weights
    outside = np.maximum(-weights, weights - 1)
    if np.max(outside, initial=-np.inf) < -WEIGHT:
        return land
    place = int(np.argmax(outside))
    return land.leaving(theta, place, active=bool(weights[place] > 0.5))


def _past(
    land: AbstractPatternLandscape, theta: np.ndarray, kink: Kink
) -> AbstractPatternLandscape:
    """The pattern after a kink that is met. The flow crosses it if it leads to the other side on
    both; if it does not, or only Newton's step leads across, a convex kink is held."""
    held = land.holding(theta, kink)
    if held.are_independent(theta):
        weights, jumps, _ = held.multipliers(theta, held.slopes(theta))
        beyond = weights[-1] <= 0 if land.active[kink] else weights[-1] >= 1
        if jumps[-1] > 0 and not beyond:
            return held
    return land.crossed(theta, kink)


def unheld(land: AbstractPatternLandscape, theta: np.ndarray) -> list[Kink]:
    """The kinks at θ that are not held; one pair stands for all that have the same kink."""
    tied = land.tied(theta)
    for kink in land.held:
        members = land.members(theta, kink)
        tied[members.units, members.rows] = False
    kinks = [Kink(unit, row) for unit, row in np.argwhere(tied).tolist()]
    kinks = [kink for kink in kinks if land.members(theta, kink).first == kink]
    return [kink for kink, normal in zip(kinks, land.normals(theta, kinks)) if normal.any()]


def have_jumps(
    land: AbstractPatternLandscape, theta: np.ndarray, slopes: PatternSlopes, kinks: list[Kink]
) -> Bool[np.ndarray, " kinks"]:
    """Across which kinks ∂L/∂z jumps: not where the loss has no slope."""
    largest = np.max(np.abs(slopes.by_pair), initial=0.0)
    return np.abs(land.jumps(theta, slopes, kinks)) > 1e-9 * largest
