"""The risk of a network with one hidden layer and a fixed activation pattern, in closed form."""

from collections.abc import Sequence

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from gflow.critical.landscapes import Expansion, FirstKink, Kink
from gflow.critical.pattern_landscape import (
    NEARLY,
    TIED,
    WEIGHT,
    AbstractPatternLandscape,
    KinkMembers,
    Multipliers,
    PatternSlopes,
    clipped,
    complement,
    weights_of,
)
from gflow.critical.point import ActiveKink
from gflow.critical.units import degenerate_units
from gflow.nonsmooth.minimal_norm import box_constrained_weights
from gflow.nonsmooth.shallow.hessian import field_jacobian
from gflow.nonsmooth.shallow.risk import ShallowPatternRisk
from gflow.parameters import ParameterLayout


@eqx.filter_jit
def _to_second_order(risk: ShallowPatternRisk, theta: Array, active: Array):
    """The risk of a pattern to second order, and ∂L/∂a of every pair."""
    y = jnp.append(theta, jnp.zeros((), theta.dtype))
    pattern = eqx.tree_at(lambda p: p.active, risk.start(theta), active)
    gradient = -risk.field(0.0, y, pattern)[:-1]
    hessian = -field_jacobian(risk, 0.0, y, pattern)[:-1, :-1]
    parts = risk.evaluate(theta, pattern)
    return parts.value, gradient, (hessian + hessian.T) / 2, parts.q


class ShallowLandscape(AbstractPatternLandscape):
    """The risk of a `ShallowNet` on data. `degenerate` units, with w = b = 0, stay there."""

    def __init__(
        self,
        risk: ShallowPatternRisk,
        active: Bool[np.ndarray, "width rows"],
        held: tuple[Kink, ...] = (),
        degenerate: tuple[int, ...] = (),
    ):
        self.risk, self.active, self.held, self.degenerate = risk, active, held, degenerate
        self.rows = np.asarray(risk.rows, float)
        self.sizes = np.asarray(risk.sizes, float)
        self.ones = np.asarray(risk.normals, float)
        line = risk.lines.line
        self.line = np.arange(len(self.rows)) if line is None else np.asarray(line)
        self.along = np.asarray(risk.lines.along, float)
        self._layout = ParameterLayout(risk.trained)
        # Unit vectors of the entries of θ that stay.
        self._still = np.eye(self._layout.size)[self._layout.of_units(degenerate)]
        self._basis = complement(np.concatenate([self._normals(held), self._still]))

    @classmethod
    def at(
        cls, risk: ShallowPatternRisk, theta: Float[np.ndarray, " size"]
    ) -> AbstractPatternLandscape:
        """The pattern at θ. Of the kinks there, those are held whose weight in the minimal-norm
        subgradient is inside (0, 1)."""
        net = risk.net(jnp.asarray(theta))
        # A single weight at 0 is at a kink like any other.
        degenerate = degenerate_units(net) if risk.whole else ()
        start = np.zeros((net.width, len(risk.rows)), bool)
        land = cls(risk, start, degenerate=degenerate)
        tied = land.tied(theta)
        found: AbstractPatternLandscape = cls(
            risk, (land.preactivations(theta) > 0) & ~tied, degenerate=degenerate
        )
        for unit in np.flatnonzero(tied.any(axis=1)).tolist():
            rows = np.flatnonzero(tied[unit])
            # Rows of one line have one kink.
            _, first = np.unique(land.line[rows], return_index=True)
            found = _decided(found, theta, [Kink(unit, int(n)) for n in rows[np.sort(first)]])
        return found

    def with_pattern(
        self, active: Bool[np.ndarray, "units rows"], held: tuple[Kink, ...]
    ) -> "ShallowLandscape":
        return ShallowLandscape(self.risk, active, held, self.degenerate)

    def expansion(self, theta: np.ndarray) -> Expansion:
        value, gradient, hessian, _ = self._evaluated(theta)
        return Expansion(float(value), gradient, hessian, self._basis)

    def slopes(self, theta: np.ndarray) -> PatternSlopes:
        _, gradient, _, by_pair = self._evaluated(theta)
        gradient = gradient - self._still.T @ (self._still @ gradient)
        return PatternSlopes(gradient, (1 - self.risk.negative_slope) * by_pair)

    def size_of_terms(self, theta: np.ndarray, value: float) -> float:
        """At most the sum over active pairs: rows without one add nothing, whatever their loss."""
        if self._layout.places.c is not None:
            return abs(value)
        *_, by_pair = self._evaluated(theta)
        each = np.abs(by_pair * self.preactivations(theta))
        slopes = np.where(self.active, 1.0, abs(self.risk.negative_slope))
        return min(abs(value), float(np.sum(slopes * each)))

    def _evaluated(self, theta: np.ndarray):
        found = _to_second_order(self.risk, jnp.asarray(theta), jnp.asarray(self.active))
        return tuple(map(np.asarray, found))

    # ---- kinks --------------------------------------------------------------------------------

    def _weights_and_biases(self, theta: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        places, frozen = self._layout.places, self.risk.frozen
        w = np.asarray(frozen.w, float) if places.w is None else theta[places.w]
        if places.b is not None:
            return w, theta[places.b]
        return w, np.zeros(len(w)) if frozen.b is None else np.asarray(frozen.b, float)

    def preactivations(self, theta: np.ndarray) -> Float[np.ndarray, "width rows"]:
        w, b = self._weights_and_biases(theta)
        return w @ self.rows.T + b[:, None]

    def margins(self, theta: np.ndarray) -> Float[np.ndarray, "width rows"]:
        """|z| for units and rows of size 1; units near zero are measured by the largest unit."""
        w, b = self._weights_and_biases(theta)
        units = np.sqrt(np.sum(w**2, axis=1) + b**2)
        units = np.maximum(units, 1e-9 * np.max(units, initial=0.0))
        scale = np.where(units > 0, units, 1.0)[:, None] * self.sizes[None, :]
        return np.abs(self.preactivations(theta)) / scale

    def tied(self, theta: np.ndarray) -> Bool[np.ndarray, "width rows"]:
        tied = (self.margins(theta) <= TIED) & np.any(self.ones != 0, axis=1)
        tied[list(self.degenerate)] = False
        return tied

    def members(self, theta: np.ndarray, kink: Kink) -> KinkMembers:
        unit, row = kink
        here = (self.margins(theta)[unit] <= TIED) & (self.line == self.line[row])
        here[row] = True
        rows = np.flatnonzero(here)
        return KinkMembers(np.full_like(rows, unit), rows, self.along[rows] / self.along[row])

    def normals(self, theta: np.ndarray, kinks: Sequence[Kink]) -> Float[np.ndarray, "kinks size"]:
        return self._normals(kinks)

    def _normals(self, kinks: Sequence[Kink]) -> Float[np.ndarray, "kinks size"]:
        made, places = np.zeros((len(kinks), self._layout.size)), self._layout.places
        features = self.rows.shape[1]
        for normal, (unit, row) in zip(made, kinks):
            one = self.ones[row]
            if places.w is not None:
                normal[places.w[unit]] = one[:features]
            if places.b is not None:
                normal[places.b[unit]] = one[-1]
        return made

    def put_on_kinks(self, theta: np.ndarray) -> np.ndarray:
        """The nearest θ with z = 0 at all held kinks."""
        if not self.held:
            return theta
        past = np.array([self.preactivations(theta)[kink] for kink in self.held])
        return theta - np.linalg.lstsq(self._normals(self.held), past)[0]

    def first_kink(self, theta: np.ndarray, step: np.ndarray) -> FirstKink:
        z, after = self.preactivations(theta), self.preactivations(theta + step)
        side = np.where(self.active, 1.0, -1.0)
        scale = self.sizes[None, :] * max(np.max(np.abs(theta), initial=0.0), 1e-300)
        crosses = (side * after < -1e-13 * scale) & (side * (z - after) > 0)
        for kink in self.held:
            crosses[kink.unit, self.members(theta, kink).rows] = False
        if not crosses.any():
            return FirstKink()
        fraction = np.full(z.shape, np.inf)
        fraction[crosses] = np.clip(z[crosses] / (z[crosses] - after[crosses]), 0.0, 1.0)
        unit, row = np.unravel_index(np.argmin(fraction), fraction.shape)
        return FirstKink(float(fraction[unit, row]), Kink(int(unit), int(row)))

    def multipliers(self, theta: np.ndarray, slopes: PatternSlopes) -> Multipliers:
        gradient = slopes.gradient
        if not self.held:
            return Multipliers(np.zeros(0), np.zeros(0), float(np.linalg.norm(gradient)))
        jumps, normals = self.jumps(theta, slopes, self.held), self._normals(self.held)
        weights = weights_of(np.linalg.lstsq(normals.T, -gradient)[0], jumps)
        remainder = gradient + (clipped(weights) * jumps) @ normals
        return Multipliers(weights, jumps, float(np.linalg.norm(remainder)))

    def named(self, kink: Kink, weight: float | np.floating | np.bool_) -> ActiveKink:
        return ActiveKink(kink.unit, int(self.risk.first_datum[kink.row]), float(weight))


def _decided(
    land: AbstractPatternLandscape, theta: np.ndarray, kinks: Sequence[Kink]
) -> AbstractPatternLandscape:
    """The pattern in which each kink of one unit is held, or on one side."""
    base = land
    for kink in kinks:
        base = base.on_side(theta, kink, active=False)
    slopes = base.slopes(theta)
    jumps = base.jumps(theta, slopes, kinks)
    normals = base.normals(theta, kinks)
    used = np.any(normals != 0, axis=0)
    gradient, changes = slopes.gradient[used], jumps[:, None] * normals[:, used]
    weights = box_constrained_weights(gradient, changes)
    # How far beyond 0 or 1 the weight would go. Weights within NEARLY of 0 or 1 are held, too,
    # until the point is found.
    pull = np.abs(changes @ (weights @ changes + gradient))
    beyond = pull / np.maximum(np.sum(changes**2, axis=1), np.finfo(float).tiny)
    land = base
    for kink, weight, outside, jump in zip(kinks, weights, beyond, jumps):
        inside = WEIGHT < weight < 1 - WEIGHT
        if inside or (jump > 0 and outside < NEARLY):
            land = land.holding(theta, kink)
        else:
            land = land.on_side(theta, kink, active=bool(weight > 0.5))
    return land
