"""The risk as a smooth function of the parameters near a point, on the host: value, gradient and
Hessian, and the directions in which the parameters are free."""

from collections.abc import Callable
from typing import NamedTuple, Protocol, runtime_checkable

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, PyTree

from gflow.nonsmooth.shallow.hessian import field_jacobian
from gflow.nonsmooth.shallow.risk import ShallowPatternRisk

# Pairs of a unit and a row of size 1 count as being at their kink up to this preactivation.
TIED = 1e-9
# Products of so many directions with the Hessian are made at once.
_AT_ONCE = 128


class Local(NamedTuple):
    """The risk to second order at one place, in all directions."""

    value: float
    gradient: Float[np.ndarray, " size"]
    hessian: Float[np.ndarray, "size size"]


@runtime_checkable
class Landscape(Protocol):
    """A smooth risk. Parameters move along the orthonormal columns of `basis`."""

    @property
    def basis(self) -> Float[np.ndarray, "size free"]: ...
    def local(self, theta: np.ndarray) -> Local: ...
    def first_kink(self, theta: np.ndarray, step: np.ndarray) -> tuple[float, tuple[int, int]]:
        """The share of a step at which the first kink is met, inf if none, and its unit and row."""
        ...


class Smooth:
    """A risk as it is, with some entries of θ held."""

    def __init__(self, risk: Callable, trained: PyTree, frozen: PyTree, held: np.ndarray):
        self.risk, self.trained, self.frozen = risk, trained, frozen
        self._basis = np.eye(len(held))[:, ~held]

    @property
    def basis(self) -> np.ndarray:
        return self._basis

    def local(self, theta: np.ndarray) -> Local:
        found = _local(self.risk, self.trained, self.frozen, jnp.asarray(theta))
        # The second derivative of a ReLU at w = b = 0 may be undefined; such entries are held.
        value, gradient, hessian = map(np.asarray, found)
        return Local(float(value), gradient, np.where(np.isfinite(hessian), hessian, 0.0))

    def first_kink(self, theta, step) -> tuple[float, tuple[int, int]]:
        return np.inf, (-1, -1)


@eqx.filter_jit
def _local(risk, trained, frozen, theta: Array):
    _, unravel = ravel_pytree(trained)
    value = lambda p: risk(eqx.combine(unravel(p), frozen))
    product = lambda v: jax.jvp(jax.grad(value), (theta,), (v,))[1]
    directions = jnp.eye(len(theta), dtype=theta.dtype)
    if len(theta) <= _AT_ONCE:
        hessian = jax.vmap(product)(directions)
    else:
        hessian = jax.lax.map(product, directions, batch_size=_AT_ONCE)
    return *jax.value_and_grad(value)(theta), (hessian + hessian.T) / 2


@eqx.filter_jit
def _of_pattern(risk: ShallowPatternRisk, theta: Array, active: Array):
    """The risk of a pattern to second order, and ∂L/∂a of every pair."""
    y = jnp.append(theta, jnp.zeros((), theta.dtype))
    pattern = eqx.tree_at(lambda p: p.active, risk.start(theta), active)
    gradient = -risk.field(0.0, y, pattern)[:-1]
    hessian = -field_jacobian(risk, 0.0, y, pattern)[:-1, :-1]
    parts, net = risk.evaluate(theta, pattern), risk.net(theta)
    a = jnp.where(active, 1.0, risk.slope) * parts.z
    outputs = net.output_scale * (a.T @ net.v)
    outputs = outputs if net.c is None else outputs + net.c
    by_data = outputs if risk.group is None else outputs[risk.group]
    value = risk.weights @ jax.vmap(risk.loss)(by_data, risk.y)
    return value, gradient, (hessian + hessian.T) / 2, parts.q


class OfPattern:
    """The risk L_S of a `ShallowNet` on data with a fixed pattern, along the kinks that are `held`.

    `active` says which pairs of unit and row are active. Each held kink is a unit and a row, which
    stands for all rows of its line that have the same kink; the pattern is that of its inactive
    side. Units at `zero`, with w = b = 0, stay there.
    """

    def __init__(
        self,
        risk: ShallowPatternRisk,
        active: np.ndarray,
        held: tuple[tuple[int, int], ...] = (),
        zero: tuple[int, ...] = (),
    ):
        self.risk, self.active, self.held, self.zero = risk, active, held, zero
        self.rows = np.asarray(risk.rows, float)
        self.sizes = np.asarray(risk.sizes, float)
        self.normals = np.asarray(risk.normals, float)
        line = risk.lines.line
        self.line = np.arange(len(self.rows)) if line is None else np.asarray(line)
        self.along = np.asarray(risk.lines.along, float)
        trained = risk.trained
        entries = lambda a: 0 if a is None else a.size
        self.of_w, self.of_b = entries(trained.w), entries(trained.b)
        self.size = sum(map(entries, (trained.w, trained.b, trained.v, trained.c)))
        self._still = self._entries_of(zero)
        self._basis = _complement(np.concatenate([self.gradients_of_kinks(held), self._still]))

    @property
    def basis(self) -> np.ndarray:
        return self._basis

    def local(self, theta: np.ndarray) -> Local:
        value, gradient, hessian, _ = self._found(theta)
        return Local(float(value), gradient, hessian)

    def _found(self, theta: np.ndarray):
        found = _of_pattern(self.risk, jnp.asarray(theta), jnp.asarray(self.active))
        return tuple(map(np.asarray, found))

    # ---- kinks --------------------------------------------------------------------------------

    def weights_and_biases(self, theta: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        frozen, shape = self.risk.frozen, (self.active.shape[0], self.rows.shape[1])
        w = theta[: self.of_w].reshape(shape) if self.of_w else np.asarray(frozen.w, float)
        if self.of_b:
            return w, theta[self.of_w : self.of_w + self.of_b]
        return w, np.zeros(len(w)) if frozen.b is None else np.asarray(frozen.b, float)

    def preactivations(self, theta: np.ndarray) -> Float[np.ndarray, "width rows"]:
        w, b = self.weights_and_biases(theta)
        return w @ self.rows.T + b[:, None]

    def margins(self, theta: np.ndarray) -> Float[np.ndarray, "width rows"]:
        """|z| for units and rows of size 1; the largest unit stands for those near zero."""
        w, b = self.weights_and_biases(theta)
        units = np.sqrt(np.sum(w**2, axis=1) + b**2)
        units = np.maximum(units, 1e-9 * np.max(units, initial=0.0))
        scale = np.where(units > 0, units, 1.0)[:, None] * self.sizes[None, :]
        return np.abs(self.preactivations(theta)) / scale

    def _entries_of(self, units) -> Float[np.ndarray, "entries size"]:
        """Unit vectors of the trained ones of w and b of some units."""
        features = self.rows.shape[1]
        places = [
            *(unit * features + k for unit in units if self.of_w for k in range(features)),
            *(self.of_w + unit for unit in units if self.of_b),
        ]
        return np.eye(self.size)[np.array(places, int)]

    def members(self, theta: np.ndarray, unit: int, row: int) -> np.ndarray:
        """The rows that have the kink of a unit at one row, where θ is."""
        here = (self.margins(theta)[unit] <= TIED) & (self.line == self.line[row])
        here[row] = True
        return np.flatnonzero(here)

    def gradients_of_kinks(self, held) -> Float[np.ndarray, "held size"]:
        """∂z/∂θ of units at rows."""
        made = np.zeros((len(held), self.size))
        features = self.rows.shape[1]
        for place, (unit, row) in enumerate(held):
            normal = self.normals[row]
            if self.of_w:
                made[place, unit * features : (unit + 1) * features] = normal[:features]
            if self.of_b:
                made[place, self.of_w + unit] = normal[-1]
        return made

    def sides_of_kinks(self, pairs) -> Float[np.ndarray, "pairs size"]:
        """±∂z/∂θ of units at rows, towards their side in the pattern."""
        sides = np.array([1.0 if self.active[pair] else -1.0 for pair in pairs])
        return sides[:, None] * self.gradients_of_kinks(pairs)

    def put_on_kinks(self, theta: np.ndarray) -> np.ndarray:
        """θ moved onto z = 0 of all held kinks, by the least distance."""
        if not self.held:
            return theta
        gradients = self.gradients_of_kinks(self.held)
        past = np.array([self.preactivations(theta)[pair] for pair in self.held])
        return theta - np.linalg.lstsq(gradients, past)[0]

    def first_kink(self, theta, step) -> tuple[float, tuple[int, int]]:
        z, after = self.preactivations(theta), self.preactivations(theta + step)
        side = np.where(self.active, 1.0, -1.0)
        scale = self.sizes[None, :] * max(np.max(np.abs(theta), initial=0.0), 1e-300)
        crosses = (side * after < -1e-13 * scale) & (side * (z - after) > 0)
        for unit, row in self.held:
            crosses[unit, self.members(theta, unit, row)] = False
        if not crosses.any():
            return np.inf, (-1, -1)
        share = np.full(z.shape, np.inf)
        share[crosses] = np.clip(z[crosses] / (z[crosses] - after[crosses]), 0.0, 1.0)
        unit, row = np.unravel_index(np.argmin(share), share.shape)
        return float(share[unit, row]), (int(unit), int(row))

    # ---- multipliers --------------------------------------------------------------------------

    def weights(self, theta: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
        """For each held kink the weight λ of its active side with which the gradient vanishes
        across it, and the jump of the slope ∂L/∂z there, which is positive where the kink attracts;
        and the norm of the gradient that is left with all λ in [0, 1]."""
        gradient, q = self.gradient_and_slopes(theta)
        if not self.held:
            return np.zeros(0), np.zeros(0), float(np.linalg.norm(gradient))
        jumps = np.array([self.jump(theta, q, *pair) for pair in self.held])
        gradients = self.gradients_of_kinks(self.held)
        multipliers = np.linalg.lstsq(gradients.T, -gradient)[0]
        shares = np.divide(multipliers, jumps, out=np.full(len(jumps), np.inf), where=jumps != 0)
        shares = np.where((jumps == 0) & (multipliers == 0), 0.5, shares)
        inside = np.clip(np.where(np.isfinite(shares), shares, 0.0), 0.0, 1.0)
        left = gradient + (inside * jumps) @ gradients
        return shares, jumps, float(np.linalg.norm(left))

    def gradient_and_slopes(self, theta: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """∇L of the pattern, 0 where units stay, and ∂L/∂a of every pair."""
        _, gradient, _, q = self._found(theta)
        return gradient - self._still.T @ (self._still @ gradient), q

    def jumps(self, theta: np.ndarray, pairs) -> Float[np.ndarray, " pairs"]:
        """Those of some kinks, whichever side θ is on."""
        _, q = self.gradient_and_slopes(theta)
        return np.array([self.jump(theta, q, *pair) for pair in pairs])

    def jump(self, theta: np.ndarray, q: np.ndarray, unit: int, row: int) -> float:
        rows = self.members(theta, unit, row)
        share = np.abs(self.along[rows] / self.along[row])
        return float((1 - self.risk.slope) * q[unit, rows] @ share)

    # ---- other patterns -----------------------------------------------------------------------

    def crossed(self, theta: np.ndarray, unit: int, row: int) -> "OfPattern":
        """With one kink, at which θ is, crossed."""
        active, rows = self.active.copy(), self.members(theta, unit, row)
        active[unit, rows] = ~active[unit, rows]
        return OfPattern(self.risk, active, self.held, self.zero)

    def holding(self, theta: np.ndarray, unit: int, row: int) -> "OfPattern":
        """Along one kink more."""
        pair = (unit, row)
        active = self._turned(theta, pair, active=False)
        return OfPattern(self.risk, active, (*self.held, pair), self.zero)

    def leaving(self, theta: np.ndarray, place: int, *, active: bool) -> "OfPattern":
        """With one of the kinks left, to its active side or the other."""
        rest = self.held[:place] + self.held[place + 1 :]
        pattern = self._turned(theta, self.held[place], active=active)
        return OfPattern(self.risk, pattern, rest, self.zero)

    def on_side(self, theta, pair: tuple[int, int], *, active: bool) -> "OfPattern":
        """With one kink, at which θ is, on its active side or the other."""
        pattern = self._turned(theta, pair, active=active)
        return OfPattern(self.risk, pattern, self.held, self.zero)

    def _turned(self, theta: np.ndarray, pair: tuple[int, int], *, active: bool) -> np.ndarray:
        unit, row = pair
        made, rows = self.active.copy(), self.members(theta, unit, row)
        made[unit, rows] = (np.sign(self.along[rows]) == np.sign(self.along[row])) == active
        return made


def _complement(gradients: np.ndarray) -> Float[np.ndarray, "size free"]:
    """An orthonormal basis of the directions along which no kink is left."""
    count, size = gradients.shape
    if count == 0:
        return np.eye(size)
    _, sizes, directions = np.linalg.svd(gradients)
    rank = int(np.sum(sizes > 1e-12 * sizes[0]))
    return directions[rank:].T
