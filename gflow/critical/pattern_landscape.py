"""The risk of a fixed activation pattern, along some of its kinks."""

import abc
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from gflow.critical.landscapes import AbstractLandscape, Kink
from gflow.critical.point import ActiveKink

# Pairs of a unit and a row of size 1 count as being at their kink up to this preactivation.
TIED = 1e-9
# Normals of length 1 count as dependent up to this.
_DEPENDENT = 1e-9
# Weights of kinks count as 0 or 1 up to this, and until a point is found up to that.
WEIGHT, NEARLY = 1e-9, 1e-4


class PatternSlopes(NamedTuple):
    """∇L of the pattern, 0 where units stay, and the jump of ∂L/∂z across the kink of each pair."""

    gradient: Float[np.ndarray, " size"]
    by_pair: Float[np.ndarray, "units rows"]


class Multipliers(NamedTuple):
    """For each held kink the weight λ of its active side with which the gradient vanishes across
    it, and the jump of ∂L/∂z there, which is positive where the kink attracts; and the norm of the
    gradient that remains with all λ clipped to [0, 1]."""

    weights: Float[np.ndarray, " held"]
    jumps: Float[np.ndarray, " held"]
    residual: float


class KinkMembers(NamedTuple):
    """The pairs that have one kink, and their normals as multiples of that of the pair that stands
    for it."""

    units: Int[np.ndarray, " members"]
    rows: Int[np.ndarray, " members"]
    multiples: Float[np.ndarray, " members"]

    @property
    def first(self) -> Kink:
        """The first of the pairs."""
        return Kink(int(self.units[0]), int(self.rows[0]))


class AbstractPatternLandscape(AbstractLandscape):
    """The risk L_S of a network on data with a fixed pattern, along the kinks that are `held`.

    `active` says which pairs of unit and row are active. Each held kink stands for all pairs that
    have the same kink; the pattern is that of its inactive side.
    """

    active: Bool[np.ndarray, "units rows"]
    held: tuple[Kink, ...]

    @abc.abstractmethod
    def with_pattern(
        self, active: Bool[np.ndarray, "units rows"], held: tuple[Kink, ...]
    ) -> "AbstractPatternLandscape":
        """The landscape of another pattern."""

    def size_of_terms(self, theta: Float[np.ndarray, " size"], value: float) -> float:
        """How large the terms are that add up to θ·∇L, which is known up to their roundings. The
        risk stands for it."""
        del theta
        return abs(value)

    @abc.abstractmethod
    def tied(self, theta: Float[np.ndarray, " size"]) -> Bool[np.ndarray, "units rows"]:
        """Which pairs are at their kink, those of degenerate units apart."""

    @abc.abstractmethod
    def members(self, theta: Float[np.ndarray, " size"], kink: Kink) -> KinkMembers:
        """The pairs that have the kink of a pair, where θ is, in their order."""

    @abc.abstractmethod
    def slopes(self, theta: Float[np.ndarray, " size"]) -> PatternSlopes: ...

    @abc.abstractmethod
    def multipliers(self, theta: Float[np.ndarray, " size"], slopes: PatternSlopes) -> Multipliers:
        """Those of the held kinks, from the slopes at θ."""

    @abc.abstractmethod
    def normals(
        self, theta: Float[np.ndarray, " size"], kinks: Sequence[Kink]
    ) -> Float[np.ndarray, "kinks size"]:
        """∂z/∂θ of pairs."""

    @abc.abstractmethod
    def put_on_kinks(self, theta: Float[np.ndarray, " size"]) -> Float[np.ndarray, " size"]:
        """A θ nearby with z = 0 at all held kinks."""

    @abc.abstractmethod
    def named(self, kink: Kink, weight: float | np.floating | np.bool_) -> ActiveKink:
        """A kink by the numbers of layer, unit and datum."""

    def jumps(
        self, theta: np.ndarray, slopes: PatternSlopes, kinks: Sequence[Kink]
    ) -> Float[np.ndarray, " kinks"]:
        """The jump of ∂L/∂z across each kink, whichever side θ is on."""
        found = np.zeros(len(kinks))
        for place, kink in enumerate(kinks):
            units, rows, multiples = self.members(theta, kink)
            found[place] = slopes.by_pair[units, rows] @ np.abs(multiples)
        return found

    def sides_of_kinks(
        self, theta: np.ndarray, kinks: Sequence[Kink]
    ) -> Float[np.ndarray, "kinks size"]:
        """±∂z/∂θ of pairs, towards their side in the pattern."""
        sides = np.array([1.0 if self.active[kink] else -1.0 for kink in kinks])
        return sides[:, None] * self.normals(theta, kinks)

    def across(
        self, theta: np.ndarray, kinks: Sequence[Kink], place: int
    ) -> Float[np.ndarray, " size"]:
        """The shortest direction to the other side of one kink, with speed 1, along the other kinks
        and the held ones, as they are on that side."""
        beyond = self.crossed(theta, kinks[place])
        normals = beyond.normals(theta, [*kinks, *self.held])
        return np.linalg.pinv(normals)[:, place] * (-1.0 if self.active[kinks[place]] else 1.0)

    def are_independent(self, theta: np.ndarray) -> bool:
        """Whether the normals of the held kinks are linearly independent."""
        normals = self.normals(theta, self.held)
        lengths = np.linalg.norm(normals, axis=1)
        if not np.all(lengths > 0):
            return False
        return bool(
            np.linalg.matrix_rank(normals / lengths[:, None], tol=_DEPENDENT) == len(lengths)
        )

    # ---- other patterns -----------------------------------------------------------------------

    def crossed(self, theta: np.ndarray, kink: Kink) -> "AbstractPatternLandscape":
        """The pattern on the other side of a kink where θ is."""
        active, members = self.active.copy(), self.members(theta, kink)
        active[members.units, members.rows] ^= True
        return self.with_pattern(active, self.held)

    def holding(self, theta: np.ndarray, kink: Kink) -> "AbstractPatternLandscape":
        """The pattern with one more kink held."""
        return self.with_pattern(self._turned(theta, kink, active=False), (*self.held, kink))

    def leaving(self, theta: np.ndarray, place: int, *, active: bool) -> "AbstractPatternLandscape":
        """The pattern with one of the held kinks left, to its active side or the other."""
        rest = self.held[:place] + self.held[place + 1 :]
        return self.with_pattern(self._turned(theta, self.held[place], active=active), rest)

    def on_side(self, theta: np.ndarray, kink: Kink, *, active: bool) -> "AbstractPatternLandscape":
        """The pattern on the active side, or the other, of a kink where θ is."""
        return self.with_pattern(self._turned(theta, kink, active=active), self.held)

    def _turned(
        self, theta: np.ndarray, kink: Kink, *, active: bool
    ) -> Bool[np.ndarray, "units rows"]:
        made, members = self.active.copy(), self.members(theta, kink)
        made[members.units, members.rows] = (members.multiples > 0) == active
        return made


def weights_of(
    pulls: Float[np.ndarray, " kinks"], jumps: Float[np.ndarray, " kinks"]
) -> Float[np.ndarray, " kinks"]:
    """The weights λ with which jumps make pulls; ½ where neither is, infinite without a jump."""
    weights = np.divide(pulls, jumps, out=np.full(len(jumps), np.inf), where=jumps != 0)
    return np.where((jumps == 0) & (pulls == 0), 0.5, weights)


def clipped(weights: Float[np.ndarray, " kinks"]) -> Float[np.ndarray, " kinks"]:
    """The weights in [0, 1] next to these, 0 for those that are not finite."""
    return np.clip(np.where(np.isfinite(weights), weights, 0.0), 0.0, 1.0)


def complement(normals: Float[np.ndarray, "kinks size"]) -> Float[np.ndarray, "size free"]:
    """An orthonormal basis of the directions orthogonal to all normals."""
    count, size = normals.shape
    if count == 0:
        return np.eye(size)
    _, sizes, directions = np.linalg.svd(normals)
    rank = int(np.sum(sizes > 1e-12 * sizes[0]))
    return directions[rank:].T
