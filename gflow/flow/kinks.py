r"""Activation patterns, sliding, and what happens at a kink, for data and a shallow net.

Unit i has a kink at row n where its preactivation $z_{in} = \langle w_i, x_n\rangle + b_i$ is 0.
With the pattern of active pairs held fixed the risk is smooth. The fields of the two sides of a
kink differ only along its normal $m = \nabla_\theta z_{in}$, by $-(1-\alpha)\,
(\partial L/\partial a_{in})\, m$ with α the negative slope. If both point at the kink, the flow
slides along it, by Filippov's field, which is minus the minimal-norm element of the Clarke
subdifferential: all sliding pairs of a unit, with normals M, take the multipliers

$$\mu = -(M M^\top)^{-1} M f, \qquad \dot u = -(f + M^\top \mu),$$

where −f is the field of the unit's w and b from its other pairs. The weight of the active side is
$\lambda = (\mu/(\partial L/\partial a) - \alpha)/(1 - \alpha)$; sliding ends where it leaves
[0, 1].
"""

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Bool, Float, Int, PyTree

from gflow.activations import PiecewiseLinear
from gflow.arguments import is_concrete
from gflow.networks import ShallowNet
from gflow.risks import EmpiricalRisk

_MOST_SLIDES = 64


class Pattern(eqx.Module):
    """Which pairs of unit and row are active, and which slide.

    `slots` are the sliding rows of each unit, where `used`. With their normals M, zero elsewhere,
    `lift` is $(M M^\top)^{-1} M$ and `projector` the projector $1 - M^\top (M M^\top)^{-1} M$ onto
    the directions in which the unit is free.
    """

    active: Bool[Array, "width rows"]
    sliding: Bool[Array, "width rows"]
    slots: Int[Array, "width slots"]
    used: Bool[Array, "width slots"]
    lift: Float[Array, "width slots dim"]
    projector: Float[Array, "width dim dim"]
    degenerate: Bool[Array, " width"]


class Parts(NamedTuple):
    """What field and margins are made of, at one θ."""

    z: Float[Array, "width rows"]
    q: Float[Array, "width rows"]
    force: Float[Array, "width dim"]
    g_v: Array
    g_c: Array


class Event(NamedTuple):
    """One entry of the kink log; `kind` is an index into `KINK_KINDS`."""

    unit: Any
    row: Any
    kind: Any


class SwitchedRisk(eqx.Module):
    """The empirical risk of a `ShallowNet` with piecewise linear activation, pattern by pattern.

    Rows that are equal have one kink: `rows` are the distinct ones, `group` says to which each
    datum belongs, `first` which datum stands for each. `normals` are the rows' normals in the
    trained ones of (w_i, b_i). Preactivations are measured by the norms of their unit, at the start
    of a step, and of their row, in `sizes`.
    """

    trained: PyTree
    frozen: PyTree
    rows: Float[Array, "rows in"]
    group: Int[Array, " data"] | None
    first: Int[Array, " rows"]
    y: Array
    weights: Float[Array, " data"]
    normals: Float[Array, "rows dim"]
    sizes: Float[Array, " rows"]
    loss: Any = eqx.field(static=True)
    slope: float = eqx.field(static=True)

    @property
    def whole(self) -> bool:
        """Whether w and b are trained, so that a unit held in all directions is zero."""
        return self.trained.w is not None and self.frozen.b is None

    def net(self, theta: Float[Array, " size"]) -> ShallowNet:
        _, unravel = ravel_pytree(self.trained)
        return eqx.combine(unravel(theta), self.frozen)

    def preactivations(self, net: ShallowNet) -> Float[Array, "width rows"]:
        z = net.w @ self.rows.T
        return z if net.b is None else z + net.b[:, None]

    def value(self, theta: Float[Array, " size"]) -> Float[Array, ""]:
        """L(θ)."""
        net = self.net(theta)
        outputs = jax.vmap(net)(self.rows)
        by_data = outputs if self.group is None else outputs[self.group]
        return self.weights @ jax.vmap(self.loss)(by_data, self.y)

    def parts(self, theta: Float[Array, " size"], pattern: Pattern) -> Parts:
        net = self.net(theta)
        z = self.preactivations(net)
        slopes = jnp.where(pattern.active, 1.0, self.slope).astype(z.dtype)
        a = slopes * z
        v = net.output_scale * net.v
        outputs = a.T @ v
        if net.c is not None:
            outputs = outputs + jnp.broadcast_to(net.c, outputs.shape)
        r = self._slopes_of_loss(outputs)
        q = jnp.outer(v, r) if v.ndim == 1 else v @ r.T
        force = jnp.where(pattern.sliding, 0.0, slopes * q) @ self.normals
        return Parts(z, q, force, net.output_scale * (a @ r), jnp.sum(r, axis=0))

    def _slopes_of_loss(self, outputs: Array) -> Array:
        """∂L/∂N for each distinct row."""
        by_data = outputs if self.group is None else outputs[self.group]
        losses = lambda n: self.weights @ jax.vmap(self.loss)(n, self.y)
        r = jax.grad(losses)(by_data)
        if self.group is None:
            return r
        return jax.ops.segment_sum(r, self.group, self.rows.shape[0])

    def velocity(self, pattern: Pattern, parts: Parts) -> Float[Array, "width dim"]:
        """d/dt of the trained ones of (w_i, b_i)."""
        return jax.lax.cond(
            jnp.any(pattern.used),
            lambda f: -jnp.sum(pattern.projector * f[:, None, :], axis=-1),
            lambda f: -f,
            parts.force,
        )

    def field(self, t, y: Float[Array, " size_and_one"], pattern: Pattern) -> Array:
        """d/dt of (θ, ∫‖θ'‖²)."""
        del t
        parts = self.parts(y[:-1], pattern)
        u = self.velocity(pattern, parts)
        trained, pieces = self.trained, []
        if trained.w is not None:
            pieces.append(u[:, : self.rows.shape[1]].ravel())
        if trained.b is not None:
            pieces.append(u[:, -1])
        if trained.v is not None:
            pieces.append(-parts.g_v.ravel())
        if trained.c is not None:
            pieces.append(-parts.g_c.ravel())
        theta = jnp.concatenate(pieces)
        return jnp.append(theta, theta @ theta)

    def moved(self, theta: Array, unit, by: Float[Array, " dim"]) -> Array:
        """θ with the trained ones of (w_i, b_i) of one unit moved."""
        _, unravel = ravel_pytree(self.trained)
        net = unravel(theta)
        if net.w is not None:
            net = eqx.tree_at(lambda n: n.w, net, net.w.at[unit].add(by[: self.rows.shape[1]]))
        if net.b is not None:
            net = eqx.tree_at(lambda n: n.b, net, net.b.at[unit].add(by[-1]))
        return ravel_pytree(net)[0]

    def start(self, theta: Float[Array, " size"]) -> Pattern:
        """The pattern of the generalized gradient: z > 0 is active, nothing slides."""
        active = self.preactivations(self.net(theta)) > 0
        width, dim = active.shape[0], self.normals.shape[1]
        slots = min(dim, self.rows.shape[0], _MOST_SLIDES)
        return Pattern(
            active=active,
            sliding=jnp.zeros_like(active),
            slots=jnp.zeros((width, slots), int),
            used=jnp.zeros((width, slots), bool),
            lift=jnp.zeros((width, slots, dim), theta.dtype),
            projector=jnp.broadcast_to(jnp.eye(dim, dtype=theta.dtype), (width, dim, dim)),
            degenerate=jnp.zeros(width, bool),
        )

    def repels(self, theta: Array, pattern: Pattern) -> Bool[Array, ""]:
        """Whether θ, where the pattern started, is on a kink from which both sides point away."""
        parts = self.parts(theta, pattern)
        here = self.velocity(pattern, parts) @ self.normals.T
        square = jnp.sum(self.normals**2, axis=1)
        beyond = here - (1 - self.slope) * parts.q * square[None, :]
        return jnp.any((parts.z == 0) & (here < 0) & (beyond > 0))

    def unit_sizes(self, theta: Array) -> Float[Array, " width"]:
        """‖(w_i, b_i)‖, for units at 0 some small number."""
        net = self.net(theta)
        square = jnp.sum(net.w**2, axis=1) + (0.0 if net.b is None else net.b**2)
        norms = jnp.sqrt(square)
        least = 1e-9 * jnp.max(norms)
        return jnp.maximum(norms, jnp.where(least > 0, least, 1.0))

    def kink_margins(
        self, z: Array, pattern: Pattern, units: Float[Array, " width"]
    ) -> Float[Array, "width rows"]:
        """The distance of z from 0 on the side of the pattern, for units and rows of size 1."""
        # Reciprocals of vectors: a division for each pair would cost as much as the field.
        side = jnp.where(pattern.active, z, -z) * (1 / units)[:, None] * (1 / self.sizes)[None, :]
        return jnp.where(pattern.sliding, jnp.inf, side)

    def kink_margin(self, theta: Array, pattern: Pattern, units, unit, row) -> Float[Array, ""]:
        """The margin of one pair."""
        net = self.net(theta)
        z = net.w[unit] @ self.rows[row]
        z = z if net.b is None else z + net.b[unit]
        return jnp.where(pattern.active[unit, row], z, -z) / (units[unit] * self.sizes[row])

    def slide_margins(self, parts: Parts, pattern: Pattern) -> Float[Array, "width slots"]:
        """min(λ, 1 − λ) of the sliding pairs, negative where λ has left [0, 1]."""
        weight = self.weights_of_active_side(parts, pattern)
        free = pattern.used & ~pattern.degenerate[:, None]
        return jnp.where(free, jnp.minimum(weight, 1 - weight), jnp.inf)

    def weights_of_active_side(self, parts: Parts, pattern: Pattern) -> Array:
        q = jnp.take_along_axis(parts.q, pattern.slots, axis=1)
        # Without a pull towards the kink there is nothing to slide on: λ counts as left.
        pulls = q > 0
        safe = jnp.where(pulls, q, 1.0)
        multipliers = -jnp.sum(pattern.lift * parts.force[:, None, :], axis=-1)
        share = (multipliers / safe - self.slope) / (1 - self.slope)
        return jnp.where(pulls, share, -1.0)

    def exit(self, pattern: Pattern, parts: Parts) -> tuple[Pattern, Event]:
        """The end of the slide whose λ has left [0, 1] farthest."""
        margins = self.slide_margins(parts, pattern)
        unit, slot = jnp.unravel_index(jnp.argmin(margins), margins.shape)
        row = pattern.slots[unit, slot]
        to_active = self.weights_of_active_side(parts, pattern)[unit, slot] > 0.5
        pattern = eqx.tree_at(
            lambda p: (p.active, p.sliding, p.used),
            pattern,
            (
                pattern.active.at[unit, row].set(to_active),
                pattern.sliding.at[unit, row].set(False),
                pattern.used.at[unit, slot].set(False),
            ),
        )
        return pattern, Event(unit, row, jnp.where(to_active, 3, 4))

    def arrive(self, pattern: Pattern, parts: Parts, units, eps: float) -> tuple[Pattern, Event]:
        """What happens at the kink that is farthest past: a crossing, or a slide begins.

        Of several at once in one unit, those that are crossed go first, since each changes the
        field at the others.
        """
        margins = self.kink_margins(parts.z, pattern, units)
        unit, first = least_pair(margins)
        u, active = self.velocity(pattern, parts)[unit], pattern.active[unit]
        here = self.normals @ u
        square = jnp.sum(self.normals**2, axis=1)
        free = jnp.sum((self.normals @ pattern.projector[unit]) ** 2, axis=1)
        jump = (1 - self.slope) * parts.q[unit] * free
        # A side that does not move counts as pointing at the kink: a unit that loses its last
        # active row, or one whose kinks all meet, comes to rest there.
        still = 1e-9 * jnp.abs(jump)
        crosses = jnp.where(active, here + jump < -still, here - jump > still)
        crosses = crosses | (free < 1e-12 * square)
        candidates = jnp.where(crosses & (margins[unit] <= -0.5 * eps), margins[unit], jnp.inf)
        crossing = jnp.isfinite(jnp.min(candidates))
        row = jnp.where(crossing, jnp.argmin(candidates), first)
        slides = ~crossing & ~jnp.all(pattern.used[unit])
        slot = jnp.argmin(pattern.used[unit])
        was_active = active[row]
        changed = eqx.tree_at(
            lambda p: (p.active, p.sliding, p.used, p.slots),
            pattern,
            (
                pattern.active.at[unit, row].set(~was_active & ~slides),
                pattern.sliding.at[unit, row].set(slides),
                pattern.used.at[unit, slot].set(slides | pattern.used[unit, slot]),
                pattern.slots.at[unit, slot].set(jnp.where(slides, row, pattern.slots[unit, slot])),
            ),
        )
        stuck = self.whole & (jnp.sum(changed.used[unit]) == self.normals.shape[1])
        kind = jnp.where(slides, jnp.where(stuck, 5, 2), jnp.where(was_active, 1, 0))
        return changed, Event(unit, row, kind)

    def event(self, theta: Array, pattern: Pattern, parts: Parts, units, eps: float):
        """θ, the pattern and the event after the kink or the end of a slide that is due."""
        # A slide that rests on the boundary of [0, 1] is not held there, and ends, too.
        over = jnp.min(self.slide_margins(parts, pattern)) <= eps
        exit = lambda: self.exit(pattern, parts)
        pattern, event = jax.lax.cond(over, exit, lambda: self.arrive(pattern, parts, units, eps))

        def settle(theta, pattern):
            """The unit put back onto z = 0 for all it slides on."""
            pattern = self._with_slots(pattern, event.unit)
            z = parts.z[event.unit, pattern.slots[event.unit]]
            past = jnp.where(pattern.used[event.unit], z, 0.0)
            return self.moved(theta, event.unit, -(past @ pattern.lift[event.unit])), pattern

        same = lambda theta, pattern: (theta, pattern)
        theta, pattern = jax.lax.cond(event.kind >= 2, settle, same, theta, pattern)
        return theta, pattern, event

    def _with_slots(self, pattern: Pattern, unit) -> Pattern:
        """The pattern with lift and projector of one unit made from its slots."""
        used = pattern.used[unit]
        normals = jnp.where(used[:, None], self.normals[pattern.slots[unit]], 0.0)
        gram = normals @ normals.T + jnp.diag(jnp.where(used, 0.0, 1.0))
        lift = jnp.linalg.inv(gram) @ normals
        dim = normals.shape[1]
        stuck = self.whole & (jnp.sum(used) == dim)
        projector = jnp.where(stuck, 0.0, jnp.eye(dim, dtype=normals.dtype) - normals.T @ lift)
        return eqx.tree_at(
            lambda p: (p.lift, p.projector, p.degenerate),
            pattern,
            (
                pattern.lift.at[unit].set(lift),
                pattern.projector.at[unit].set(projector),
                pattern.degenerate.at[unit].set(stuck),
            ),
        )


def least_pair(margins: Float[Array, "width rows"]) -> tuple[Array, Array]:
    """Unit and row of the least margin: by units first, much faster than a flat `argmin` in XLA."""
    unit = jnp.argmin(jnp.min(margins, axis=1))
    return unit, jnp.argmin(margins[unit])


def switched(risk: Any, trained: PyTree, frozen: PyTree) -> SwitchedRisk | None:
    """The risk pattern by pattern, or None where no kinks are known.

    That is where the risk is not the `EmpiricalRisk` of a `ShallowNet`, its activation is smooth,
    or neither w nor b is trained.
    """
    net = eqx.combine(trained, frozen)
    if not isinstance(risk, EmpiricalRisk) or not isinstance(net, ShallowNet):
        return None
    activation = net.activation
    if not isinstance(activation, PiecewiseLinear) or not activation.kinked:
        return None
    if trained.w is None and trained.b is None:
        return None
    rows, first, group = _distinct(risk.x)
    # Done by NumPy if it can be: eager operations of JAX would take as long as a short flow.
    like = np if is_concrete(rows) else jnp
    x = like.asarray(rows)
    ones = like.ones((x.shape[0], 1), x.dtype)
    parts = ([x] if trained.w is not None else []) + ([ones] if trained.b is not None else [])
    sizes = like.linalg.norm(x if net.b is None else like.concatenate([x, ones], 1), axis=1)
    n = risk.num_data
    return SwitchedRisk(
        trained=trained,
        frozen=frozen,
        rows=rows,
        group=group,
        first=first,
        y=risk.y,
        weights=jnp.asarray(like.full(n, 1 / n, x.dtype)) if risk.weights is None else risk.weights,
        normals=jnp.asarray(like.concatenate(parts, axis=1)),
        # A row at the origin of a net without biases has no kink: its z is always 0.
        sizes=jnp.asarray(like.where(sizes > 0, sizes, 1.0), x.dtype),
        loss=risk.loss,
        slope=activation.negative_slope,
    )


def _distinct(x: Array) -> tuple[Array, Array, Array | None]:
    """The distinct rows, the first datum of each, and to which each datum belongs (None if all are
    distinct). Data that are traced are taken to be distinct."""
    n = x.shape[0]
    if not is_concrete(x):
        return x, jnp.arange(n), None
    _, first, group = np.unique(np.asarray(x), axis=0, return_index=True, return_inverse=True)
    if len(first) == n:
        return x, jnp.arange(n), None
    # In the order of the data.
    order = np.argsort(first)
    rank = np.empty(len(first), int)
    rank[order] = np.arange(len(first))
    kept = np.sort(first)
    return x[kept], jnp.asarray(kept), jnp.asarray(rank[group.ravel()])
