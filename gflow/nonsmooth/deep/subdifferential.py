r"""The minimal-norm element of the Clarke subdifferential, for data and any network.

Let pairs T of unit and row be at their kinks. Patterns $S \in \{0, 1\}^T$ have the gradients
$g(S) = g + \sum_j \mu_j(S) m_j$ of `first_order`. The subdifferential is the convex hull of those
that occur next to θ. S occurs if the preactivations have its signs along some direction d, to first
order

$$\langle m_j(S), d\rangle > 0 \iff S_j = 1, \qquad
  m_j(S) = m_j + \sum_k S_k \frac{\partial z_j}{\partial a_k} m_k(S),$$

where k are the pairs of the row in lower layers. If the $m_j$ are linearly independent, so are the
$m_j(S)$, and all patterns occur. Ties that depend on each other, by their normals or because they
are in one row, make a group: the patterns are those of all groups, in any combination.
"""

import warnings
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int
from scipy.optimize import linprog

from gflow.nonsmooth.deep.first_order import first_order, heights
from gflow.nonsmooth.deep.risk import DeepPatternRisk
from gflow.nonsmooth.minimal_norm import box_constrained_weights, minimal_norm

# Normals count as zero or dependent below this, relative to the largest.
_DEPENDENT = 1e-9
# Weights count as in [0, 1] up to this, elements as the shortest up to that part of their terms.
_WEIGHT, _ROUNDINGS = 1e-9, 1e-14
# The most patterns of a group that are listed, and the most linear programs that are solved for it.
_MOST_PATTERNS, _MOST_PROGRAMS = 4096, 2000


class Ties(NamedTuple):
    """Pairs at their kinks, in the order of the layers: the gradient with all of them inactive;
    of each q⁰ and the normal m; and `couplings`, $B_{kj} = \\partial z_k/\\partial a_j$ times the
    jump of the slope of j, for pairs of one row."""

    gradient: Float[np.ndarray, " size"]
    q: Float[np.ndarray, " ties"]
    normals: Float[np.ndarray, "ties size"]
    couplings: Float[np.ndarray, "ties ties"]

    @classmethod
    def at(cls, risk: DeepPatternRisk, theta: Float[np.ndarray, " size"], tol: float) -> "Ties":
        """The ties at θ, where preactivations count as 0 up to `tol` on their scales."""
        places = heights(risk, theta)
        tied = places.tied(risk, tol)
        units, rows = np.nonzero(tied)
        # Activations that count as 0 keep their values: only slopes depend on the sides.
        kept = np.where(tied & places.active, places.z, 0.0)
        found = first_order(risk, theta, places.active & ~tied, units, rows, kept)
        couplings = np.where(rows[:, None] == rows, found.by_units[:, units], 0.0)
        return cls(found.gradient, found.q[units, rows], found.normals, couplings)

    def multipliers(self, weights: Float[np.ndarray, " ties"]) -> Float[np.ndarray, " ties"]:
        """μ with these weights λ of the active sides."""
        mu = np.zeros(len(self.q))
        for j in reversed(range(len(mu))):
            mu[j] = weights[j] * (self.q[j] + self.couplings[:, j] @ mu)
        return mu

    def with_multipliers(self, mu: Float[np.ndarray, " ties"]) -> Float[np.ndarray, " size"]:
        """The gradient g + Σ μ_j m_j."""
        return self.gradient + mu @ self.normals

    def of(self, some: Int[np.ndarray, " some"]) -> "Ties":
        """Some of them."""
        return Ties(self.gradient, self.q[some], self.normals[some], self.couplings[some][:, some])


class _Group(NamedTuple):
    """Ties that depend on each other, and the vertices of a polytope that their μ form."""

    ties: Int[np.ndarray, " some"]
    vertices: Float[np.ndarray, "vertices some"]


def minimal_element(
    risk: DeepPatternRisk, theta: Float[np.ndarray, " size"], tol: float
) -> Float[np.ndarray, " size"] | None:
    """The element of minimal norm at θ; None if there are no ties."""
    ties = Ties.at(risk, theta, tol)
    if len(ties.q) == 0:
        return None
    slid = _slide(ties)
    if slid is not None:
        return slid
    groups = [one for some in _grouped(ties) for one in _polytopes(ties, some)]
    if all(len(group.ties) == 1 for group in groups):
        return _of_box(ties, groups)

    def lowest(p: np.ndarray) -> np.ndarray:
        mu, along = np.zeros(len(ties.q)), ties.normals @ p
        for some, vertices in groups:
            mu[some] = vertices[np.argmin(vertices @ along[some])]
        return ties.with_multipliers(mu)

    return minimal_norm(lowest, lowest(ties.gradient))


def _slide(ties: Ties) -> Float[np.ndarray, " size"] | None:
    """The element along all the ties, where independent normals and weights in [0, 1] show that it
    is in the subdifferential: no other in the span is shorter."""
    lengths = np.linalg.norm(ties.normals, axis=1)
    if not np.all(lengths > 0):
        return None
    unit = ties.normals / lengths[:, None]
    if _rank(unit) < len(unit):
        return None
    mu = np.linalg.lstsq(unit.T, -ties.gradient)[0] / lengths
    q = ties.q + mu @ ties.couplings
    weights = np.divide(mu, q, out=np.zeros(len(q)), where=q != 0)
    # Weights that are 0 or 1 may be beyond by rounding.
    if not np.all((weights >= -_WEIGHT) & (weights <= 1 + _WEIGHT)):
        return None
    found = ties.with_multipliers(ties.multipliers(np.clip(weights, 0.0, 1.0)))
    size = np.linalg.norm(ties.gradient) + np.abs(mu) @ lengths
    shortest = np.linalg.norm(ties.with_multipliers(mu))
    return found if np.linalg.norm(found) <= shortest + _ROUNDINGS * size else None


def _rank(unit: Float[np.ndarray, "ties size"]) -> int:
    sizes = np.linalg.svd(unit, compute_uv=False)
    return int(np.sum(sizes > _DEPENDENT * np.max(sizes, initial=0.0)))


def _of_box(ties: Ties, boxes: list[_Group]) -> Float[np.ndarray, " size"]:
    """The element of minimal norm where the μ of each tie fill an interval."""
    ends = np.array([(np.min(vertices), np.max(vertices)) for _, vertices in boxes])
    order = np.concatenate([some for some, _ in boxes])
    normals = ties.normals[order]
    start, jumps = ties.gradient + ends[:, 0] @ normals, np.diff(ends)[:, :1] * normals
    return start + box_constrained_weights(start, jumps) @ jumps


# ---- groups -------------------------------------------------------------------------------------


def _grouped(ties: Ties) -> list[Int[np.ndarray, " some"]]:
    """The groups of ties that depend on each other, by linear dependence or in one row."""
    label = np.arange(len(ties.q))

    def join(a: int, b: int) -> None:
        label[label == label[a]] = label[b]

    for k, j in np.argwhere(ties.couplings != 0).tolist():
        join(k, j)
    lengths = np.linalg.norm(ties.normals, axis=1)
    basis: list[int] = []
    for j in np.flatnonzero(lengths > 0).tolist():
        unit = ties.normals[[*basis, j]] / lengths[[*basis, j], None]
        if _rank(unit) == len(unit):
            basis.append(j)
            continue
        # The members of the circuit that j closes.
        parts = np.linalg.lstsq(unit[:-1].T, unit[-1])[0]
        for place in np.flatnonzero(np.abs(parts) > _DEPENDENT).tolist():
            join(j, basis[place])
    return [np.flatnonzero(label == one) for one in np.unique(label)]


def _polytopes(ties: Ties, some: Int[np.ndarray, " some"]) -> list[_Group]:
    """The hull of the μ of a group, over the patterns that occur; where it is a product of
    intervals, these."""
    part = ties.of(some)
    intervals = np.column_stack([np.zeros(len(some)), part.q])
    one_sign = bool(np.all(part.q >= 0) or np.all(part.q <= 0))
    if not part.couplings.any() and one_sign:
        # The risk is convex across all of them, or concave.
        return _boxes(some, intervals)
    patterns = _patterns(part)
    if patterns is not None:
        return [_Group(some, np.unique([part.multipliers(p) for p in patterns], axis=0))]
    warnings.warn(
        f"{len(some)} ties depend on each other, whose patterns are too many to list: the norm of "
        "the Clarke element can be too small.",
        stacklevel=5,
    )
    return _boxes(some, _enclosure(part))


def _boxes(
    some: Int[np.ndarray, " some"], intervals: Float[np.ndarray, "some ends"]
) -> list[_Group]:
    """A group for each tie, whose μ fills an interval."""
    return [_Group(some[[j]], ends[:, None]) for j, ends in enumerate(intervals)]


def _enclosure(part: Ties) -> Float[np.ndarray, "some ends"]:
    """Intervals that hold μ for all weights in [0, 1]."""
    low, high = np.zeros(len(part.q)), np.zeros(len(part.q))
    for j in reversed(range(len(low))):
        rising, falling = np.maximum(part.couplings[:, j], 0), np.minimum(part.couplings[:, j], 0)
        low[j] = min(part.q[j] + rising @ low + falling @ high, 0.0)
        high[j] = max(part.q[j] + rising @ high + falling @ low, 0.0)
    return np.column_stack([low, high])


class _Branch(NamedTuple):
    """The sides of the lowest ties, their normals m(S), and the directions that go there: those
    whose products with all rows of `ahead` are positive."""

    sides: Float[np.ndarray, " some"]
    normals: Float[np.ndarray, "some dim"]
    ahead: Float[np.ndarray, "moving dim"]

    def longer(self, side: float, normal: np.ndarray, ahead: np.ndarray) -> "_Branch":
        """With the side and the normal of the next tie."""
        return _Branch(np.append(self.sides, side), np.vstack([self.normals, normal]), ahead)


def _patterns(part: Ties) -> list[np.ndarray] | None:
    """The patterns of a group that occur to first order, None if they are too many to list.

    They are built from the lowest layer on: whether the next tie can be active, and inactive,
    depends on the sides of those before.
    """
    left, sizes, _ = np.linalg.svd(part.normals, full_matrices=False)
    kept = sizes > _DEPENDENT * np.max(sizes, initial=0.0)
    # The normals in a basis of their span.
    normals = (left * sizes)[:, kept]
    lengths = np.linalg.norm(normals, axis=1)
    still = _DEPENDENT * np.max(lengths, initial=0.0)
    free = bool(np.all(lengths > still)) and _rank(normals / lengths[:, None]) == len(normals)
    branches, programs = [_Branch(np.zeros(0), normals[:0], normals[:0])], 0
    for j in range(len(normals)):
        found: list[_Branch] = []
        for branch in branches:
            normal = normals[j] + (branch.sides * part.couplings[j, :j]) @ branch.normals
            size = np.linalg.norm(normal)
            if size <= still:
                # What does not move stays as it is, inactive.
                found.append(branch.longer(0.0, normal, branch.ahead))
                continue
            for side, sign in ((0.0, -1.0), (1.0, 1.0)):
                ahead = np.vstack([branch.ahead, sign * normal / size])
                programs += not free
                if free or _feasible(ahead):
                    found.append(branch.longer(side, normal, ahead))
            if programs > _MOST_PROGRAMS or len(found) > _MOST_PATTERNS:
                return None
        branches = found
    return [branch.sides for branch in branches]


def _feasible(rows: Float[np.ndarray, "rows dim"]) -> bool:
    """Whether some direction has a positive product with each of the rows, of length 1."""
    count, dim = rows.shape
    # The largest t with ⟨row, d⟩ ≥ t for all rows, and |d| ≤ 1 in each entry.
    bounds = [(-1.0, 1.0)] * dim + [(None, 1.0)]
    cost, upper = np.append(np.zeros(dim), -1.0), np.column_stack([-rows, np.ones(count)])
    found = linprog(cost, A_ub=upper, b_ub=np.zeros(count), bounds=bounds, method="highs")
    return bool(-found.fun > _DEPENDENT)
