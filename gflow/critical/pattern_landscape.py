"""The risk of a fixed activation pattern, along some of its kinks."""

from collections.abc import Sequence
from typing import NamedTuple

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from gflow.critical.landscapes import AbstractLandscape, Expansion, FirstKink, Kink
from gflow.nonsmooth.shallow.hessian import field_jacobian
from gflow.nonsmooth.shallow.risk import ShallowPatternRisk
from gflow.parameters import ParameterLayout

# Pairs of a unit and a row of size 1 count as being at their kink up to this preactivation.
TIED = 1e-9


class PatternSlopes(NamedTuple):
    """∇L of the pattern, 0 where units stay, and ∂L/∂a of every pair."""

    gradient: Float[np.ndarray, " size"]
    by_pair: Float[np.ndarray, "width rows"]


class Multipliers(NamedTuple):
    """For each held kink the weight λ of its active side with which the gradient vanishes across
    it, and the jump of ∂L/∂z there, which is positive where the kink attracts; and the norm of the
    gradient that remains with all λ clipped to [0, 1]."""

    weights: Float[np.ndarray, " held"]
    jumps: Float[np.ndarray, " held"]
    residual: float


@eqx.filter_jit
def _to_second_order(risk: ShallowPatternRisk, theta: Array, active: Array):
    """The risk of a pattern to second order, and ∂L/∂a of every pair."""
    y = jnp.append(theta, jnp.zeros((), theta.dtype))
    pattern = eqx.tree_at(lambda p: p.active, risk.start(theta), active)
    gradient = -risk.field(0.0, y, pattern)[:-1]
    hessian = -field_jacobian(risk, 0.0, y, pattern)[:-1, :-1]
    parts = risk.evaluate(theta, pattern)
    return parts.value, gradient, (hessian + hessian.T) / 2, parts.q


class PatternLandscape(AbstractLandscape):
    """The risk L_S of a `ShallowNet` on data with a fixed pattern, along the kinks that are `held`.

    `active` says which pairs of unit and row are active. Each held kink stands for all rows of its
    line that have the same kink; the pattern is that of its inactive side. `degenerate` units, with
    w = b = 0, stay there.
    """

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
        self.normals = np.asarray(risk.normals, float)
        line = risk.lines.line
        self.line = np.arange(len(self.rows)) if line is None else np.asarray(line)
        self.along = np.asarray(risk.lines.along, float)
        self._layout = ParameterLayout(risk.trained)
        # Unit vectors of the entries of θ that stay.
        self._still = np.eye(self._layout.size)[self._layout.of_units(degenerate)]
        self._basis = _complement(np.concatenate([self.gradients_of_kinks(held), self._still]))

    @property
    def basis(self) -> np.ndarray:
        return self._basis

    def expansion(self, theta: np.ndarray) -> Expansion:
        value, gradient, hessian, _ = self._evaluated(theta)
        return Expansion(float(value), gradient, hessian)

    def slopes(self, theta: np.ndarray) -> PatternSlopes:
        _, gradient, _, by_pair = self._evaluated(theta)
        return PatternSlopes(gradient - self._still.T @ (self._still @ gradient), by_pair)

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
        """Which pairs are at their kink, those of degenerate units apart."""
        tied = (self.margins(theta) <= TIED) & np.any(self.normals != 0, axis=1)
        tied[list(self.degenerate)] = False
        return tied

    def members(self, theta: np.ndarray, unit: int, row: int) -> np.ndarray:
        """The rows that have the kink of a unit at one row, where θ is."""
        here = (self.margins(theta)[unit] <= TIED) & (self.line == self.line[row])
        here[row] = True
        return np.flatnonzero(here)

    def gradients_of_kinks(self, kinks: Sequence[Kink]) -> Float[np.ndarray, "kinks size"]:
        """∂z/∂θ of units at rows."""
        made, places = np.zeros((len(kinks), self._layout.size)), self._layout.places
        features = self.rows.shape[1]
        for gradient, (unit, row) in zip(made, kinks):
            normal = self.normals[row]
            if places.w is not None:
                gradient[places.w[unit]] = normal[:features]
            if places.b is not None:
                gradient[places.b[unit]] = normal[-1]
        return made

    def sides_of_kinks(self, kinks: Sequence[Kink]) -> Float[np.ndarray, "kinks size"]:
        """±∂z/∂θ of units at rows, towards their side in the pattern."""
        sides = np.array([1.0 if self.active[kink] else -1.0 for kink in kinks])
        return sides[:, None] * self.gradients_of_kinks(kinks)

    def put_on_kinks(self, theta: np.ndarray) -> np.ndarray:
        """The nearest θ with z = 0 at all held kinks."""
        if not self.held:
            return theta
        gradients = self.gradients_of_kinks(self.held)
        past = np.array([self.preactivations(theta)[kink] for kink in self.held])
        return theta - np.linalg.lstsq(gradients, past)[0]

    def first_kink(self, theta: np.ndarray, step: np.ndarray) -> FirstKink:
        z, after = self.preactivations(theta), self.preactivations(theta + step)
        side = np.where(self.active, 1.0, -1.0)
        scale = self.sizes[None, :] * max(np.max(np.abs(theta), initial=0.0), 1e-300)
        crosses = (side * after < -1e-13 * scale) & (side * (z - after) > 0)
        for unit, row in self.held:
            crosses[unit, self.members(theta, unit, row)] = False
        if not crosses.any():
            return FirstKink()
        fraction = np.full(z.shape, np.inf)
        fraction[crosses] = np.clip(z[crosses] / (z[crosses] - after[crosses]), 0.0, 1.0)
        unit, row = np.unravel_index(np.argmin(fraction), fraction.shape)
        return FirstKink(float(fraction[unit, row]), Kink(int(unit), int(row)))

    # ---- multipliers --------------------------------------------------------------------------

    def multipliers(self, theta: np.ndarray, slopes: PatternSlopes) -> Multipliers:
        """Those of the held kinks, from the slopes at θ."""
        gradient = slopes.gradient
        if not self.held:
            return Multipliers(np.zeros(0), np.zeros(0), float(np.linalg.norm(gradient)))
        jumps = self.jumps(theta, slopes, self.held)
        gradients = self.gradients_of_kinks(self.held)
        pulls = np.linalg.lstsq(gradients.T, -gradient)[0]
        weights = np.divide(pulls, jumps, out=np.full(len(jumps), np.inf), where=jumps != 0)
        weights = np.where((jumps == 0) & (pulls == 0), 0.5, weights)
        inside = np.clip(np.where(np.isfinite(weights), weights, 0.0), 0.0, 1.0)
        remainder = gradient + (inside * jumps) @ gradients
        return Multipliers(weights, jumps, float(np.linalg.norm(remainder)))

    def jumps(
        self, theta: np.ndarray, slopes: PatternSlopes, kinks: Sequence[Kink]
    ) -> Float[np.ndarray, " kinks"]:
        """The jump of ∂L/∂z across each kink, whichever side θ is on."""
        return np.array([self._jump(theta, slopes, *kink) for kink in kinks])

    def _jump(self, theta: np.ndarray, slopes: PatternSlopes, unit: int, row: int) -> float:
        rows = self.members(theta, unit, row)
        ratio = np.abs(self.along[rows] / self.along[row])
        return float((1 - self.risk.negative_slope) * slopes.by_pair[unit, rows] @ ratio)

    # ---- other patterns -----------------------------------------------------------------------

    def crossed(self, theta: np.ndarray, kink: Kink) -> "PatternLandscape":
        """The pattern on the other side of a kink where θ is."""
        active, rows = self.active.copy(), self.members(theta, *kink)
        active[kink.unit, rows] = ~active[kink.unit, rows]
        return PatternLandscape(self.risk, active, self.held, self.degenerate)

    def holding(self, theta: np.ndarray, kink: Kink) -> "PatternLandscape":
        """The pattern with one more kink held."""
        active = self._turned(theta, kink, active=False)
        return PatternLandscape(self.risk, active, (*self.held, kink), self.degenerate)

    def leaving(self, theta: np.ndarray, place: int, *, active: bool) -> "PatternLandscape":
        """The pattern with one of the held kinks left, to its active side or the other."""
        rest = self.held[:place] + self.held[place + 1 :]
        pattern = self._turned(theta, self.held[place], active=active)
        return PatternLandscape(self.risk, pattern, rest, self.degenerate)

    def on_side(self, theta: np.ndarray, kink: Kink, *, active: bool) -> "PatternLandscape":
        """The pattern on the active side, or the other, of a kink where θ is."""
        pattern = self._turned(theta, kink, active=active)
        return PatternLandscape(self.risk, pattern, self.held, self.degenerate)

    def _turned(
        self, theta: np.ndarray, kink: Kink, *, active: bool
    ) -> Bool[np.ndarray, "width rows"]:
        unit, row = kink
        made, rows = self.active.copy(), self.members(theta, unit, row)
        made[unit, rows] = (np.sign(self.along[rows]) == np.sign(self.along[row])) == active
        return made


def _complement(gradients: Float[np.ndarray, "kinks size"]) -> Float[np.ndarray, "size free"]:
    """An orthonormal basis of the directions orthogonal to all gradients."""
    count, size = gradients.shape
    if count == 0:
        return np.eye(size)
    _, sizes, directions = np.linalg.svd(gradients)
    rank = int(np.sum(sizes > 1e-12 * sizes[0]))
    return directions[rank:].T
