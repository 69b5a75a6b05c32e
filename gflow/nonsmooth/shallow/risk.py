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

Rows with parallel normals, such as x and −x without biases, can have one kink between them. It is
crossed, or slid along, by all of them at once: their jumps add up, and one of them stands for all
in the slots of the slides.
"""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Bool, Float, Int, PyTree

from gflow.networks import ShallowNet
from gflow.nonsmooth.shallow.pattern import Event, Parts, Pattern, least_pair
from gflow.nonsmooth.shallow.rows import Lines, by_normals

_MOST_SLIDES = 64


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
    lines: Lines
    loss: Any = eqx.field(static=True)
    slope: float = eqx.field(static=True)

    @property
    def whole(self) -> bool:
        """Whether a unit held in all directions is zero, and stays so."""
        zero = self.trained.w is not None and self.frozen.b is None
        # For a single weight, 0 is a kink like any other.
        return zero and self.normals.shape[1] > 1

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
        outputs = v @ a if v.ndim == 1 else a.T @ v
        if net.c is not None:
            outputs = outputs + jnp.broadcast_to(net.c, outputs.shape)
        r = self._slopes_of_loss(outputs)
        q = jnp.outer(v, r) if v.ndim == 1 else v @ r.T
        force = by_normals(jnp.where(pattern.sliding, 0.0, slopes * q), self.normals)
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
            slack=jnp.zeros(active.shape, theta.dtype),
        )

    def repels(self, theta: Array, pattern: Pattern) -> Bool[Array, ""]:
        """Whether θ, where the pattern started, is on a kink from which both sides point away."""
        parts = self.parts(theta, pattern)
        here = self.velocity(pattern, parts) @ self.normals.T
        square = jnp.sum(self.normals**2, axis=1)
        turned = jax.vmap(self.turns)(parts.q, pattern.active, parts.z == 0)
        on_active, on_inactive = (here - turn * square[None, :] for turn in turned)
        return jnp.any((parts.z == 0) & (on_inactive < 0) & (on_active > 0))

    def turns(self, q, active, here: Bool[Array, " rows"]) -> tuple[Array, Array]:
        """By how much q m, in multiples of the rows' normals m, grows in one unit if all its kinks
        that are `here` turn to the side where the row is active; and to the other."""
        ahead = self.lines.along > 0
        along = jnp.where(here, self.lines.along * (1 - self.slope) * q, 0.0)
        above = self.lines.total(along * (ahead.astype(q.dtype) - active)) / self.lines.along
        below = self.lines.total(along * ((~ahead).astype(q.dtype) - active)) / self.lines.along
        return jnp.where(ahead, above, below), jnp.where(ahead, below, above)

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
        return side + pattern.slack

    def kink_margin(self, theta: Array, pattern: Pattern, units, unit, row) -> Float[Array, ""]:
        """The margin of one pair."""
        net = self.net(theta)
        z = net.w[unit] @ self.rows[row]
        z = z if net.b is None else z + net.b[unit]
        side = jnp.where(pattern.active[unit, row], z, -z) / (units[unit] * self.sizes[row])
        return side + pattern.slack[unit, row]

    def slide_margins(self, parts: Parts, pattern: Pattern) -> Float[Array, "width slots"]:
        """min(λ, 1 − λ) of the sliding pairs, negative where λ has left [0, 1]."""
        weight = self.weights_of_active_side(parts, pattern)
        free = pattern.used & ~pattern.degenerate[:, None]
        return jnp.where(free, jnp.minimum(weight, 1 - weight), jnp.inf)

    def weights_of_active_side(self, parts: Parts, pattern: Pattern) -> Array:
        """λ of the sliding pairs; −1 without a pull towards the kink, where there is nothing to
        slide on and λ counts as left."""
        least, pull = self._pulls(parts, pattern)
        multipliers = -jnp.sum(pattern.lift * parts.force[:, None, :], axis=-1)
        share = (multipliers - least) / jnp.where(pull > 0, pull, 1.0)
        return jnp.where(pull > 0, share, -1.0)

    def _pulls(self, parts: Parts, pattern: Pattern) -> tuple[Array, Array]:
        """μ at λ = 0 for each slot, and by how much it grows to λ = 1."""
        if self.lines.line is None:
            q = jnp.take_along_axis(parts.q, pattern.slots, axis=1)
            return self.slope * q, (1 - self.slope) * q
        along = self.lines.along
        weighted = jnp.where(pattern.sliding, parts.q * along[None, :], 0.0)
        total = lambda slopes: jax.vmap(lambda a: self.lines.total(a * slopes) / along)(weighted)
        of_slots = lambda a: jnp.take_along_axis(a, pattern.slots, axis=1)
        above = of_slots(total(jnp.where(along > 0, 1.0, self.slope)))
        below = of_slots(total(jnp.where(along > 0, self.slope, 1.0)))
        ahead = along[pattern.slots] > 0
        least = jnp.where(ahead, below, above)
        return least, jnp.where(ahead, above, below) - least

    def exit(self, pattern: Pattern, parts: Parts, slack) -> tuple[Pattern, Event]:
        """The end of the slide whose λ has left [0, 1] farthest.

        If the pull towards the kink was lost, the flow could leave to either side, or stay.
        """
        margins = self.slide_margins(parts, pattern)
        unit, slot = jnp.unravel_index(jnp.argmin(margins), margins.shape)
        row = pattern.slots[unit, slot]
        to_active = self.weights_of_active_side(parts, pattern)[unit, slot] > 0.5
        repelled = self._pulls(parts, pattern)[1][unit, slot] <= 0
        members = self.lines.members(row) & pattern.sliding[unit]
        pattern = self._turned(pattern, unit, row, members, to_active)
        pattern = eqx.tree_at(
            lambda p: (p.sliding, p.used, p.slack),
            pattern,
            (
                pattern.sliding.at[unit].set(pattern.sliding[unit] & ~members),
                pattern.used.at[unit, slot].set(False),
                pattern.slack.at[unit].set(jnp.where(members, slack, pattern.slack[unit])),
            ),
        )
        kinds = jnp.where(self._aligned(row) == to_active, 3, 4)
        return pattern, Event(unit, row, members, kinds, repelled)

    def _aligned(self, row) -> Bool[Array, " rows"]:
        """Which rows, of those on the line of one, are on the active side where that is."""
        ahead = self.lines.along > 0
        return ahead == ahead[row]

    def _turned(self, pattern: Pattern, unit, row, members, to_active) -> Pattern:
        """The pattern with the kinks of some rows, on the line of one, turned with that."""
        side = self._aligned(row) == to_active
        active = jnp.where(members, side, pattern.active[unit])
        slack = jnp.where(members, 0.0, pattern.slack[unit])
        return eqx.tree_at(
            lambda p: (p.active, p.slack),
            pattern,
            (pattern.active.at[unit].set(active), pattern.slack.at[unit].set(slack)),
        )

    def arrive(
        self, pattern: Pattern, parts: Parts, units, eps: float, circles: Bool[Array, ""]
    ) -> tuple[Pattern, Event]:
        """What happens at the kink that is farthest past: a crossing, or a slide begins.

        Of several at once in one unit, those that are crossed go first, since each changes the
        field at the others.
        """
        margins = self.kink_margins(parts.z, pattern, units)
        unit, first = least_pair(margins)
        past = margins[unit] <= -0.5 * eps
        close = jnp.abs(parts.z[unit]) <= 4 * eps * units[unit] * self.lines.reach
        close = (past | close) & ~pattern.sliding[unit]
        u, active = self.velocity(pattern, parts)[unit], pattern.active[unit]
        here = self.normals @ u
        square = jnp.sum(self.normals**2, axis=1)
        free = jnp.sum((self.normals @ pattern.projector[unit]) ** 2, axis=1)
        to_active, to_inactive = self.turns(parts.q[unit], active, close)
        jump = jnp.where(active, to_inactive, to_active) * free
        beyond = here - jump
        # A side that does not move counts as pointing at the kink: a unit that loses its last
        # active row, or one whose kinks all meet, comes to rest there.
        still = 1e-9 * jnp.abs(jump)
        crosses = jnp.where(active, beyond < -still, beyond > still)
        crosses = crosses | (free < 1e-12 * square)
        # On slides in all directions but one, a unit meets the rest of its kinks at zero.
        # There it rests if next to zero are directions in which no row is active.
        last = self.whole & (jnp.sum(pattern.used[unit]) == self.normals.shape[1] - 1)
        rests = self.slope == 0 and self.trained.b is not None
        crosses = crosses & ~(last & (rests | circles) & (free > 1e-12 * square))
        candidates = jnp.where(crosses & past, margins[unit], jnp.inf)
        crossing = jnp.isfinite(jnp.min(candidates))
        row = jnp.where(crossing, jnp.argmin(candidates), first)
        members = self.lines.members(row) & close
        slides = ~crossing & ~jnp.all(pattern.used[unit])
        slot = jnp.argmin(pattern.used[unit])
        was_active = active[row]
        pattern = self._turned(pattern, unit, row, members, ~was_active)
        changed = eqx.tree_at(
            lambda p: (p.active, p.sliding, p.slack, p.used, p.slots),
            pattern,
            (
                pattern.active.at[unit].set(pattern.active[unit] & ~(members & slides)),
                pattern.sliding.at[unit].set(pattern.sliding[unit] | (members & slides)),
                pattern.slack.at[unit].set(
                    jnp.where(members & slides, jnp.inf, pattern.slack[unit])
                ),
                pattern.used.at[unit, slot].set(slides | pattern.used[unit, slot]),
                pattern.slots.at[unit, slot].set(jnp.where(slides, row, pattern.slots[unit, slot])),
            ),
        )
        stuck = self.whole & (jnp.sum(changed.used[unit]) == self.normals.shape[1])
        crossed = jnp.where(self._aligned(row) == was_active, 1, 0)
        kinds = jnp.where(slides, jnp.where(stuck, 5, 2), crossed)
        return changed, Event(unit, row, members, kinds, jnp.asarray(False))

    def event(self, theta: Array, pattern: Pattern, parts: Parts, units, eps, slack, circles):
        """θ, the pattern and the event after the kink or the end of a slide that is due.

        At zero the events of a unit can lead to one another in `circles`.
        """
        # A slide that rests on the boundary of [0, 1] is not held there, and ends, too.
        over = jnp.min(self.slide_margins(parts, pattern)) <= eps
        exit = lambda: self.exit(pattern, parts, slack)
        arrive = lambda: self.arrive(pattern, parts, units, eps, circles)
        pattern, event = jax.lax.cond(over, exit, arrive)

        def settle(theta, pattern):
            """The unit put back onto z = 0 for all it slides on."""
            pattern = self._with_slots(pattern, event.unit)
            z = parts.z[event.unit, pattern.slots[event.unit]]
            past = jnp.where(pattern.used[event.unit], z, 0.0)
            return self.moved(theta, event.unit, -(past @ pattern.lift[event.unit])), pattern

        same = lambda theta, pattern: (theta, pattern)
        theta, pattern = jax.lax.cond(event.slides, settle, same, theta, pattern)
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
