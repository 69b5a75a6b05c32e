"""The radii at which Chatterjee's criterion 4 f(x⁰) < r² α(x⁰, r) is proved, or fails."""

from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import PRNGKeyArray

from gflow.arguments import ArgumentError, Described, PyTree
from gflow.certificates.bounds import Bounds
from gflow.certificates.ratio_search import ratio_accuracy, smallest_ratios
from gflow.nonsmooth.gradients import norm
from gflow.parameters import split_trainable

# r² α/(4 f) at which the step η = 2ε/M of gradient descent reaches its best ε, one half.
AMPLE = 4.0
# Radii that are tried for the largest r² α/(4 f): their ratio, and their largest number.
_GRID_RATIO, _MAX_RADII = 1.25, 80
# Radii that are searched to refute the criterion for all.
_NUM_SCANNED = 48


def criterion(radius: float, alpha: float, value: float) -> float:
    """r² α/(4 f). The criterion holds if it is above 1."""
    if value == 0:
        return float("inf") if alpha > 0 else 0.0
    return radius**2 * alpha / (4 * value)


class SmallestRatio(NamedTuple):
    """The smallest ratio ‖∇f‖²/f that a search found in the ball of this radius, at `witness`."""

    radius: float
    ratio: float
    witness: PyTree | None


class CriterionProblem(NamedTuple):
    """A function and a start, with their bounds.

    - `value`: f(x⁰), rounded up; `gradient`: the norm ‖∇f(x⁰)‖.
    - `critical`: the distance of a critical point with f > 0, None if none is known.
    - `slack`: the relative error of computed values.
    """

    risk: Any
    trained: PyTree
    frozen: PyTree
    bounds: Bounds
    value: float
    gradient: float
    critical: float | None
    slack: float

    @classmethod
    def of(cls, risk, net, trainable, make_bounds: Callable[[], Bounds]) -> "CriterionProblem":
        trained, frozen = split_trainable(net, trainable)
        value, gradient = (float(a) for a in _value_and_gradient(risk, trained, frozen))
        if not np.isfinite([value, gradient]).all() or value < 0:
            got = Described(f"{value:.6g} at `net`, with a gradient of norm {gradient:.6g}")
            raise ArgumentError("risk", got, "a finite value of at least 0, and a finite gradient")
        bounds = make_bounds()
        proved = bounds.value()
        slack = ratio_accuracy(jax.tree.leaves(trained)[0].dtype)
        value = value if proved is None else proved
        return cls(risk, trained, frozen, bounds, value, gradient, bounds.critical(), slack)

    def criterion(self, radius: float) -> float:
        """The proved r² α/(4 f)."""
        return float(criterion(radius, self.bounds.alpha(radius), self.value))

    @property
    def too_small(self) -> float:
        """2 f/‖∇f‖ at the start. The criterion fails up to it, as α(x⁰, r) ≤ ‖∇f(x⁰)‖²/f(x⁰)."""
        return 2 * self.value / self.gradient if self.gradient > 0 else np.inf

    def best_radius(self) -> float:
        """The radius with the largest proved r² α/(4 f), or the smallest where that is `AMPLE`."""
        radii = self.too_small * _GRID_RATIO ** np.arange(_MAX_RADII)
        values: list[float] = []
        for r in radii:
            values.append(self.criterion(r))
            if values[-1] == 0 or values[-1] >= AMPLE:
                break
        k = int(np.argmax(values))
        low, high = radii[max(k - 1, 0)], radii[min(k + 1, len(radii) - 1)]
        if values[k] == 0:
            return float(radii[0])
        if values[k] >= AMPLE:
            return self._bisected(low, radii[k], AMPLE)
        if values[k] * _GRID_RATIO**2 < 1:
            # α falls with r, so the criterion is not proved for any radius in between.
            return float(radii[k])
        shrink = (5**0.5 - 1) / 2
        while high > 1.002 * low:
            inner, outer = high - shrink * (high - low), low + shrink * (high - low)
            if self.criterion(inner) >= self.criterion(outer):
                high = outer
            else:
                low = inner
        middle = (low + high) / 2
        return float(middle if self.criterion(middle) >= values[k] else radii[k])

    def min_radius(self, radius: float) -> float:
        """The smallest radius for which the criterion is proved, by bisection to 1e-4."""
        return self._bisected(self.too_small, radius, 1 + 1e-9)

    def _bisected(self, low: float, high: float, wanted: float) -> float:
        while high > (1 + 1e-4) * low:
            middle = (low * high) ** 0.5
            if self.criterion(middle) >= wanted:
                high = middle
            else:
                low = middle
        return float(high)

    def search(self, radii: Any, starts: int, key: PRNGKeyArray) -> list[SmallestRatio]:
        """The smallest ratios found in balls of increasing radii, infinite for `starts=0`."""
        radii = [float(r) for r in radii]
        if starts == 0:
            return [SmallestRatio(r, np.inf, None) for r in radii]
        theta, unravel = ravel_pytree(self.trained)
        ratios, points = smallest_ratios(
            self.risk, self.trained, self.frozen, jnp.asarray(radii, theta.dtype), starts, key
        )
        nets = [eqx.combine(unravel(p), self.frozen) for p in points]
        return [SmallestRatio(*row) for row in zip(radii, np.asarray(ratios, float).tolist(), nets)]

    def fails(self, found: SmallestRatio, radius: float | None = None) -> bool:
        """Whether a ratio refutes the criterion at its own radius, or at a larger one."""
        radius = found.radius if radius is None else radius
        value = (1 - self.slack) * self.value
        return bool(criterion(radius, (1 + self.slack) * found.ratio, value) <= 1)

    def scan(
        self, also: float, starts: int, key: PRNGKeyArray
    ) -> tuple[list[SmallestRatio], float]:
        """The smallest ratios in balls of many radii, `also` among them, and the radius up to which
        the criterion fails for all radii (inf if it fails for every radius)."""
        first = self.too_small
        if self.critical is not None and self.critical <= first:
            return self.search([also], starts, key), np.inf
        last = 100 * first if self.critical is None else self.critical
        radii = np.sort(np.append(np.geomspace(first, last, _NUM_SCANNED), also))
        found = self.search(radii, starts, key)
        for k, row in enumerate(found[:-1]):
            # α falls with r: the ratio found in a ball bounds α also for the radii up to the next.
            if radii[k + 1] <= last and not self.fails(row, radii[k + 1]):
                return found, float(radii[k])
        return found, np.inf if self.critical is not None else float(last)

    def distance_to(self, point: PyTree) -> float:
        """The distance of a critical point in the trained parameters.

        **Raises:** `ArgumentError` unless ∇f = 0 and f > 0 there.
        """
        there = jax.tree.map(lambda _, a: jnp.asarray(a), self.trained, point)
        value, gradient = (float(a) for a in _value_and_gradient(self.risk, there, self.frozen))
        steep = self.slack * self.gradient**2 / max(self.value, np.finfo(float).tiny)
        if not value > 0 or not gradient**2 <= steep * value:
            got = Described(f"a point with f = {value:.6g} and ‖∇f‖ = {gradient:.6g}")
            raise ArgumentError("critical_point", got, "one with ∇f = 0 and f > 0")
        return float(norm(jax.tree.map(lambda a, b: a - b, there, self.trained)))


@eqx.filter_jit
def _value_and_gradient(risk, trained: PyTree, frozen: PyTree):
    value, gradient = jax.value_and_grad(lambda p: risk(eqx.combine(p, frozen)))(trained)
    return value, norm(gradient)
