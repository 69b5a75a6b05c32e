r"""The risk of a network of any depth with a fixed activation pattern, along some of its kinks.

The kinks $z_k(\theta) = 0$ that are held are curved. A critical point along them is one of the
Lagrangian $L_S + \sum_k \mu_k z_k$, whose Hessian on the tangent space is that of the risk along
the kinks. With all held pairs on their inactive sides, $\mu_k = \lambda_k q_k$, where $q_k$ depends
on the multipliers of higher layers in the same row.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from gflow.critical.landscapes import Expansion, FirstKink, Kink
from gflow.critical.pattern_landscape import (
    NEARLY,
    TIED,
    AbstractPatternLandscape,
    KinkMembers,
    Multipliers,
    PatternSlopes,
    clipped,
    complement,
    weights_of,
)
from gflow.critical.point import ActiveKink
from gflow.nonsmooth.deep.first_order import FirstOrderAtPairs, first_order, heights, second_order
from gflow.nonsmooth.deep.risk import DeepPatternRisk

# Normals are parallel, and independent, to this part of their length.
_PARALLEL = 1e-9
_MAX_CORRECTIONS, _MAX_SECANTS = 20, 40
# θ counts as on the held kinks at this distance, relative to its norm.
_ON_KINKS = 1e-10
# Where a step meets a kink is found to this part of the scale of the unit.
_MET = 1e-12


class _AtTheta(NamedTuple):
    """The risk to first order at one θ, with the normals of the held kinks first, then of the pairs
    of degenerate units; and the members of the held kinks."""

    first: FirstOrderAtPairs
    members: tuple[KinkMembers, ...]
    places: tuple[Int[np.ndarray, " members"], ...]


class _Weighed(NamedTuple):
    """The weights of held kinks, the jumps of ∂L/∂z across them, and those of all pairs with these
    weights."""

    weights: Float[np.ndarray, " held"]
    jumps: Float[np.ndarray, " held"]
    by_pair: Float[np.ndarray, "units rows"]


class DeepLandscape(AbstractPatternLandscape):
    """The risk of any network on data. The pairs of `degenerate` units, of which z = 0 on all rows,
    stay on their kinks."""

    def __init__(
        self,
        risk: DeepPatternRisk,
        active: Bool[np.ndarray, "units rows"],
        held: tuple[Kink, ...] = (),
        degenerate: tuple[int, ...] = (),
    ):
        self.risk, self.active, self.held, self.degenerate = risk, active, held, degenerate
        self.layer = risk.places.layer
        still = [Kink(unit, row) for unit in degenerate for row in range(active.shape[1])]
        self._fixed = (*held, *still)
        self._latest: tuple[bytes, _AtTheta] | None = None

    @classmethod
    def at(
        cls, risk: DeepPatternRisk, theta: Float[np.ndarray, " size"]
    ) -> AbstractPatternLandscape:
        """The pattern at θ. Of the kinks there, those are held whose weights along all of them are
        inside (0, 1)."""
        here = heights(risk, theta)
        tied = here.tied(risk, TIED)
        active = here.active & ~tied
        degenerate = _degenerate_units(risk, theta, active, tied)
        tied[list(degenerate)] = False
        land: AbstractPatternLandscape = cls(risk, active, degenerate=degenerate)
        for kink in map(Kink._make, np.argwhere(tied).tolist()):
            if not tied[kink]:
                continue
            members = land.members(theta, kink)
            tied[members.units, members.rows] = False
            more = land.holding(theta, kink)
            if more.are_independent(theta):
                land = more
        while land.held:
            weights = land.multipliers(theta, land.slopes(theta)).weights
            outside = np.maximum(-weights, weights - 1)
            place = int(np.argmax(outside))
            if outside[place] < NEARLY:
                return land
            land = land.leaving(theta, place, active=bool(weights[place] > 0.5))
        return land

    def with_pattern(
        self, active: Bool[np.ndarray, "units rows"], held: tuple[Kink, ...]
    ) -> "DeepLandscape":
        return DeepLandscape(self.risk, active, held, self.degenerate)

    # ---- at one θ -----------------------------------------------------------------------------

    def _at(self, theta: np.ndarray) -> _AtTheta:
        key = theta.tobytes()
        if self._latest is None or self._latest[0] != key:
            self._latest = key, self._evaluated(theta)
        return self._latest[1]

    def _evaluated(self, theta: np.ndarray) -> _AtTheta:
        pairs = list(self._fixed)
        if self.held:
            layers = [self.layer[kink.unit] for kink in self.held]
            near = self.tied(theta) & np.isin(self.layer, layers)[:, None]
            near[tuple(np.transpose(pairs))] = False
            pairs += [Kink(*pair) for pair in np.argwhere(near).tolist()]
        units, rows = np.reshape(np.array(pairs, int), (-1, 2)).T
        first = first_order(self.risk, theta, self.active, units, rows)
        found = [self._parallel(first.normals, units, place) for place in range(len(self.held))]
        members = tuple(KinkMembers(units[p], rows[p], multiples) for p, multiples in found)
        return _AtTheta(first, members, tuple(p for p, _ in found))

    def _parallel(
        self, normals: np.ndarray, units: np.ndarray, place: int
    ) -> tuple[Int[np.ndarray, " members"], Float[np.ndarray, " members"]]:
        """Which pairs have the kink of one of them, and their normals as multiples of its own."""
        normal = normals[place]
        multiples = normals @ normal / max(normal @ normal, np.finfo(float).tiny)
        apart = np.linalg.norm(normals - multiples[:, None] * normal, axis=1)
        same = apart <= _PARALLEL * np.abs(multiples) * np.linalg.norm(normal)
        same &= (multiples != 0) & (self.layer[units] == self.layer[units[place]])
        same[place], multiples[place] = True, 1.0
        chosen = np.flatnonzero(same)
        # In the order of the pairs.
        return chosen, multiples[chosen]

    def _fixed_normals(self, theta: np.ndarray) -> Float[np.ndarray, "fixed size"]:
        """Those of the held kinks and of degenerate units, of length 1 or 0."""
        normals = self._at(theta).first.normals[: len(self._fixed)]
        lengths = np.linalg.norm(normals, axis=1, keepdims=True)
        return normals / np.where(lengths > 0, lengths, 1.0)

    def _pulls(self, theta: np.ndarray) -> Float[np.ndarray, " fixed"]:
        """μ of the held kinks and of degenerate units, by least squares."""
        first, unit = self._at(theta).first, self._fixed_normals(theta)
        lengths = np.linalg.norm(first.normals[: len(unit)], axis=1)
        pulls = np.linalg.lstsq(unit.T, -first.gradient, rcond=_PARALLEL)[0]
        return pulls / np.where(lengths > 0, lengths, 1.0)

    def expansion(self, theta: np.ndarray) -> Expansion:
        first, unit = self._at(theta).first, self._fixed_normals(theta)
        pulls, dense = self._pulls(theta), np.zeros(self.active.shape)
        for kink, pull in zip(self._fixed, pulls):
            dense[kink] += pull
        gradient = first.gradient + pulls @ first.normals[: len(unit)]
        hessian = second_order(self.risk, theta, self.active, dense)
        return Expansion(first.value, gradient, hessian, complement(unit))

    # ---- slopes -------------------------------------------------------------------------------

    def slopes(self, theta: np.ndarray) -> PatternSlopes:
        first = self._at(theta).first
        still = self._fixed_normals(theta)[len(self.held) :]
        basis = complement(still)
        gradient = basis @ (basis.T @ first.gradient) if len(still) else first.gradient
        return PatternSlopes(gradient, self._weighed(theta).by_pair)

    def multipliers(self, theta: np.ndarray, slopes: PatternSlopes) -> Multipliers:
        gradient = slopes.gradient
        weights, jumps, _ = self._weighed(theta)
        inside = clipped(weights)
        clipped_jumps = self._weighed(theta, inside).jumps
        held = self._at(theta).first.normals[: len(self.held)]
        remainder = gradient + (inside * clipped_jumps) @ held
        if self.degenerate:
            basis = complement(self._fixed_normals(theta)[len(self.held) :])
            remainder = basis.T @ remainder
        return Multipliers(weights, jumps, float(np.linalg.norm(remainder)))

    def _weighed(self, theta: np.ndarray, weights: np.ndarray | None = None) -> _Weighed:
        """From the highest layer down: the jumps, and the weights with which they make the pulls,
        or given ones."""
        (first, members, places), pulls = self._at(theta), self._pulls(theta)
        by_pair, count = first.q.copy(), len(self.held)
        jumps, found = np.zeros(count), np.zeros(count) if weights is None else weights
        for k in sorted(range(count), key=lambda k: -self.layer[self.held[k].unit]):
            units, rows, multiples = members[k]
            jumps[k] = by_pair[units, rows] @ np.abs(multiples)
            if weights is None:
                found[k] = weights_of(pulls[[k]], jumps[[k]])[0]
            weight = found[k] if np.isfinite(found[k]) else 0.0
            slopes = np.sign(multiples) * weight * by_pair[units, rows]
            for row, slope, place in zip(rows, slopes, places[k]):
                by_pair[:, row] += slope * first.by_units[place]
        return _Weighed(found, jumps, by_pair)

    # ---- kinks --------------------------------------------------------------------------------

    def tied(self, theta: np.ndarray) -> Bool[np.ndarray, "units rows"]:
        found = heights(self.risk, theta, self.active).tied(self.risk, TIED)
        found[list(self.degenerate)] = False
        return found

    def members(self, theta: np.ndarray, kink: Kink) -> KinkMembers:
        if kink in self.held:
            return self._at(theta).members[self.held.index(kink)]
        near = self.tied(theta) & (self.layer == self.layer[kink.unit])[:, None]
        near[kink] = True
        units, rows = np.nonzero(near)
        if len(units) == 1:
            return KinkMembers(units, rows, np.ones(1))
        first = first_order(self.risk, theta, self.active, units, rows)
        place = int(np.flatnonzero((units == kink.unit) & (rows == kink.row))[0])
        chosen, multiples = self._parallel(first.normals, units, place)
        return KinkMembers(units[chosen], rows[chosen], multiples)

    def normals(self, theta: np.ndarray, kinks: Sequence[Kink]) -> Float[np.ndarray, "kinks size"]:
        if tuple(kinks) == self.held:
            return self._at(theta).first.normals[: len(self.held)]
        units, rows = np.reshape(np.array(kinks, int), (-1, 2)).T
        return first_order(self.risk, theta, self.active, units, rows).normals

    def put_on_kinks(self, theta: np.ndarray) -> np.ndarray:
        """A θ nearby with z = 0 at all held kinks; θ itself where there is none."""
        found = self._corrected(theta)
        return theta if found is None else found

    def moved(self, theta: np.ndarray, step: np.ndarray) -> np.ndarray:
        """Where a step leads, put back on the kinks; θ itself where that fails."""
        found = self._corrected(theta + step)
        return theta if found is None else found

    def _corrected(self, theta: np.ndarray) -> np.ndarray | None:
        """θ on the kinks, by Gauss–Newton steps; None if these do not converge."""
        if not self._fixed:
            return theta
        units, rows = np.array(self._fixed).T
        best, before, size = theta, np.inf, np.linalg.norm(theta)
        for _ in range(_MAX_CORRECTIONS):
            first = self._at(theta).first
            normals = first.normals[: len(units)]
            back = np.linalg.lstsq(normals, -first.z[units, rows], rcond=_PARALLEL)[0]
            distance = np.linalg.norm(back)
            if not distance < before:
                break
            best, before = theta, distance
            if distance <= np.finfo(float).eps * size:
                break
            theta = theta + back
        return best if before <= _ON_KINKS * size else None

    def first_kink(self, theta: np.ndarray, step: np.ndarray) -> FirstKink:
        start, side = heights(self.risk, theta, self.active), np.where(self.active, 1.0, -1.0)
        scale = start.scales[:, None]
        free = ~self._held_mask(theta)
        ties = self.risk.network.ties[:, None]

        def crossing(z: np.ndarray, since: np.ndarray) -> np.ndarray:
            past = (side * z < -1e-13 * scale) & (side * (since - z) > 0)
            return past & free & ~(ties & (z == 0))

        def first(z: np.ndarray, since: np.ndarray, past: np.ndarray) -> tuple[float, Kink]:
            parts = np.full(z.shape, np.inf)
            parts[past] = np.clip(since[past] / (since[past] - z[past]), 0.0, 1.0)
            unit, row = np.unravel_index(np.argmin(parts), parts.shape)
            return float(parts[unit, row]), Kink(int(unit), int(row))

        at = lambda t: heights(self.risk, self.moved(theta, t * step), self.active).z
        begin, low, high, after = start.z, 0.0, 1.0, at(1.0)
        past = crossing(after, begin)
        found = FirstKink()
        for trial in range(_MAX_SECANTS):
            if not past.any():
                break
            part, pair = first(after, begin, past)
            found = FirstKink(high, pair)
            near = _MET * start.scales[pair.unit]
            if np.abs(after[pair]) <= near:
                break
            # Secants, and now and then a bisection.
            middle = low + (part if trial % 3 < 2 else 0.5) * (high - low)
            there = at(middle)
            past = crossing(there, begin)
            if past.any():
                high, after = middle, there
            elif np.abs(there[pair]) <= near:
                return FirstKink(middle, pair)
            else:
                low, begin = middle, there
                past = crossing(after, begin)
        return found

    def _held_mask(self, theta: np.ndarray) -> Bool[np.ndarray, "units rows"]:
        """The pairs that stay on their kinks."""
        made = np.zeros(self.active.shape, bool)
        made[list(self.degenerate)] = True
        for members in self._at(theta).members:
            made[members.units, members.rows] = True
        return made

    def named(self, kink: Kink, weight: float | np.floating | np.bool_) -> ActiveKink:
        places, unit = self.risk.places, kink.unit
        datum = int(self.risk.first_datum[kink.row])
        return ActiveKink(int(places.unit[unit]), datum, float(weight), int(places.layer[unit]))


def _degenerate_units(
    risk: DeepPatternRisk,
    theta: np.ndarray,
    active: Bool[np.ndarray, "units rows"],
    tied: Bool[np.ndarray, "units rows"],
) -> tuple[int, ...]:
    """The units that are at their kink on all rows, with normals that depend on each other."""
    found: list[int] = []
    rows = np.arange(active.shape[1])
    for unit in np.flatnonzero(tied.all(axis=1)).tolist():
        normals = first_order(risk, theta, active, np.full_like(rows, unit), rows).normals
        lengths = np.linalg.norm(normals, axis=1, keepdims=True)
        unit_normals = normals / np.where(lengths > 0, lengths, 1.0)
        if np.linalg.matrix_rank(unit_normals, tol=_PARALLEL) < len(rows):
            found.append(unit)
    return tuple(found)
