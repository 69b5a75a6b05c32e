r"""What steps through kinks ask of one hidden layer about some of its pairs.

Past its kink, for a time $s$, the pair of unit i and row n pushes along its normal by
$\pm(1-\alpha)\, q_{in}\, m_{in}$ more than before, so that u_i is off by that times $s$, with q at
the middle of this time. A unit that begins to slide is put on its kinks.
"""

from abc import abstractmethod

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from gflow.arguments import PyTree
from gflow.networks import ShallowNet
from gflow.nonsmooth.pairs import Pairs
from gflow.nonsmooth.passages import Ends, Passed, Patience, Pushes, Seen, Sight, Tangles
from gflow.nonsmooth.pattern_risk import AbstractPatternRisk
from gflow.nonsmooth.shallow.pattern import Evaluation, ShallowPattern
from gflow.parameters import unflat
from gflow.rows import with_row

# Pairs that may have been past their kinks within a step are within this part of its turn at the
# end: an eighth, and more for what is no parabola.
_TURN = 0.2


class AbstractPairsOfUnits(AbstractPatternRisk[ShallowPattern]):
    """The part of the pattern risk of one hidden layer that speaks of lists of pairs."""

    trained: eqx.AbstractVar[PyTree]
    frozen: eqx.AbstractVar[PyTree]
    normals: eqx.AbstractVar[Float[Array, "rows dim"]]
    sizes: eqx.AbstractVar[Float[Array, " rows"]]
    negative_slope: eqx.AbstractVar[float]

    @abstractmethod
    def net(self, theta: Float[Array, " size"]) -> ShallowNet:
        """The network at θ."""

    @property
    @abstractmethod
    def inputs(self) -> Float[Array, "rows inputs"]:
        """The rows, with a 1 for the biases if there are any."""

    @abstractmethod
    def assembled(self, by_u: Array, by_v: Array, by_c: Array) -> Array:
        """Packs derivatives by u, v and c in the order of θ."""

    def velocity(self, evaluation: Evaluation) -> Float[Array, "units dim"]:
        """d/dt of the trained ones of (w_i, b_i)."""
        return self.by_units(evaluation.field)

    def by_units(self, y: Float[Array, " size_and_one"]) -> Float[Array, "units dim"]:
        """The entries of a state that belong to the trained ones of (w_i, b_i)."""
        of_theta = unflat(self.trained, y[:-1])
        columns = [] if of_theta.w is None else [of_theta.w]
        columns += [] if of_theta.b is None else [of_theta.b[:, None]]
        return jnp.concatenate(columns, axis=1)

    def on_kinks(
        self, theta: Float[Array, " size"], pattern: ShallowPattern, evaluation: Evaluation
    ) -> Float[Array, " size"]:
        """θ itself: the kinks are planes, which no step leaves."""
        del pattern, evaluation
        return theta

    def suspects(
        self,
        thetas: Float[Array, "3 size"],
        ends: Ends,
        pattern: ShallowPattern,
        scales: Float[Array, " units"],
        eps: float,
        patience: Patience,
    ) -> Bool[Array, "units rows"]:
        del thetas
        margins = self.margins(ends.end.z, pattern, scales)
        largest = ends.dt * self.largest_jump(ends.end, self.tolerances(patience.tolerance))
        # A parabola whose slope changes by some amount rises at most by an eighth of it from its
        # vertex to the nearer end.
        turns = ends.dt * self.reach(ends.start, ends.end, scales)
        # A unit at rest stays where it is, also on its kinks.
        straight = (largest < patience.each) | (turns == 0)
        reach = jnp.where(straight, -eps, jnp.maximum(_TURN * turns, -eps))
        return margins <= reach[:, None]

    def sight(
        self,
        thetas: Float[Array, "3 size"],
        ends: Ends,
        pattern: ShallowPattern,
        scales: Float[Array, " units"],
        pairs: Pairs,
        tolerance: Float[Array, " size_and_one"],
    ) -> Sight:
        unit, row = pairs.unit, pairs.row
        active, normals = pattern.active[unit, row], self.normals[row]
        sign = jnp.where(active, 1.0, -1.0)
        side = sign / (scales[unit] * self.sizes[row])
        both = lambda of: jnp.stack([of(ends.start), of(ends.end)])
        incoming = jax.vmap(lambda theta: self.net(theta).incoming())(thetas)
        z = jnp.sum(incoming[:, unit] * self.inputs[row][None], axis=-1)
        slack = pattern.slack_of(pairs)
        velocity = both(self.velocity)
        speeds = jnp.sum(velocity[:, unit] * normals[None], axis=-1)
        v, r = both(lambda e: e.v)[:, unit], both(lambda e: e.r)[:, row]
        q = v * r if v.ndim == 2 else jnp.sum(v * r, axis=-1)
        pushes = (1 - self.negative_slope) * sign[None] * q
        square = jnp.sum(normals**2, axis=-1)
        return Sight(
            sides=side,
            margins=side[None] * z + slack[None],
            slopes=side[None] * speeds,
            beyond=side * (speeds[1] + pushes[1] * square),
            slack=slack,
            active=active,
            jumps=jnp.abs(pushes[1]) * jnp.sqrt(square) / self.tolerances(tolerance)[unit],
            pushes=Pushes(pushes[0], pushes[1]),
        )

    def jumps_of(self, evaluation: Evaluation, pairs: Pairs) -> Float[Array, "*pairs"]:
        """(1 − α) |∂L/∂a| ‖m‖. Rows that share a kink are counted one by one."""
        lengths = jnp.sqrt(jnp.sum(self.normals[pairs.row] ** 2, axis=-1))
        return abs(1 - self.negative_slope) * jnp.abs(evaluation.q_of(pairs)) * lengths

    def slide_jumps(
        self,
        evaluation: Evaluation,
        pattern: ShallowPattern,
        tolerance: Float[Array, " size_and_one"],
    ) -> Float[Array, "units slots"]:
        units = jnp.broadcast_to(jnp.arange(len(pattern.slots))[:, None], pattern.slots.shape)
        jumps = self.jumps_of(evaluation, Pairs.all_of(units, pattern.slots))
        return jumps / self.tolerances(tolerance)[:, None]

    def largest_jump(
        self, evaluation: Evaluation, tolerances: Float[Array, " units"]
    ) -> Float[Array, ""]:
        """A bound on all jumps over the tolerances of their units."""
        lengths = jnp.sqrt(jnp.sum(self.normals**2, axis=1))
        size = lambda a: jnp.abs(a) if a.ndim == 1 else jnp.sqrt(jnp.sum(a**2, axis=1))
        rows, units = size(evaluation.r) * lengths, size(evaluation.v) / tolerances
        return abs(1 - self.negative_slope) * jnp.max(rows) * jnp.max(units)

    def reach(
        self, start: Evaluation, end: Evaluation, scales: Float[Array, " units"]
    ) -> Float[Array, " units"]:
        """A bound on how much dz/dt of the pairs of a unit differs from one evaluation to the
        other, on their scales."""
        turn = self.by_units(end.field - start.field)
        lengths = jnp.sqrt(jnp.sum(self.normals**2, axis=1))
        return jnp.sqrt(jnp.sum(turn**2, axis=1)) * jnp.max(lengths / self.sizes) / scales

    def tolerances(self, of_y: Float[Array, " size_and_one"]) -> Float[Array, " units"]:
        """The change of θ along a kink of each unit whose error counts as 1 in the norm: the
        harmonic root mean square of the tolerances over (w_i, b_i), times √size."""
        size = len(of_y) if self.padding is None else len(of_y) - jnp.sum(self.padding)
        return jnp.sqrt(size / jnp.mean(self.by_units(of_y) ** -2, axis=1))

    def tangles(self, pattern: ShallowPattern, seen: Seen) -> Tangles:
        """Those of units whose slides change while something else happens to them."""
        unit = seen.pairs.unit
        by_unit = lambda flags: jnp.zeros(len(pattern.used), int).at[unit].add(flags, mode="drop")
        number = by_unit(seen.past) + jnp.sum(seen.ended, axis=1)
        changes = (by_unit(seen.begins) > 0) | jnp.any(seen.ended, axis=1)
        tangled = changes & ((number > 1) | self.nearly_held(pattern))
        of_slides = jnp.broadcast_to(tangled[:, None], seen.ended.shape)
        return Tangles(tangled[unit], of_slides, jnp.zeros_like(seen.past))

    def nearly_held(self, pattern: ShallowPattern) -> Bool[Array, " units"]:
        """The units that one more slide would hold in all directions, or for which it has no
        room."""
        most = min(pattern.used.shape[1], self.normals.shape[1])
        return jnp.sum(pattern.used, axis=1) >= most - 1

    def with_passed(
        self,
        theta: Float[Array, " size"],
        pattern: ShallowPattern,
        passed: Passed,
        back: Float[Array, ""],
        end: Evaluation,
    ) -> tuple[Float[Array, " size"], ShallowPattern]:
        """θ and the pattern at a time `back` before the end of a step, corrected for what was
        passed until then."""
        del end
        pairs, (first, last) = passed.pairs, passed.pushes
        turned = passed.crossed & (passed.age > back)
        push = last - (last - first) * ((passed.age + back) / (2 * passed.dt))
        impulse = jnp.where(turned, push * (passed.age - back), 0.0)
        u = free(pattern, self._summed(pairs, impulse, len(pattern.used)))
        unit = jnp.where(turned, pairs.unit, len(pattern.used))
        active = pattern.active.at[unit, pairs.row].set(~passed.was_active, mode="drop")
        turned_pattern = eqx.tree_at(lambda p: p.active, pattern, active)
        return theta + self.moved(u), turned_pattern

    def jump_of_field(
        self,
        theta: Float[Array, " size"],
        before: ShallowPattern,
        after: ShallowPattern,
        passed: Passed,
        end: Evaluation,
        now: Evaluation,
    ) -> Float[Array, " size"]:
        """The jumps of the field at the end of a step: at kinks that were crossed, and where units
        begin to slide. Where slides end there is none."""
        del theta, now
        jump = jnp.where(passed.crossed, passed.pushes.end, 0.0)
        jump = self._summed(passed.pairs, jump, len(before.used))
        u = self.velocity(end)
        return self.moved(free(after, u + free(before, jump)) - u)

    def within_step(
        self,
        theta: Float[Array, " size"],
        before: ShallowPattern,
        after: ShallowPattern,
        passed: Passed,
        back: Float[Array, ""],
        end: Evaluation,
    ) -> tuple[Float[Array, " size"], ShallowPattern]:
        """θ and the pattern at a time `back` before the end of a step from one pattern to another,
        with the units on their kinks that have begun to slide."""
        theta, pattern = self.with_passed(theta, before, passed, back, end)
        z = self.preactivations(theta, before)
        begun = after.sliding & ~before.sliding
        beyond = jnp.where(before.active, -z, z) >= 0
        units = jnp.any(begun & beyond, axis=1)
        pick = lambda new, old: jnp.where(units.reshape(-1, *[1] * (new.ndim - 1)), new, old)
        names = lambda p: (p.sliding, p.slots, p.used, p.lift, p.projector, p.degenerate)
        slides = tuple(pick(new, old) for new, old in zip(names(after), names(before)))
        pattern = eqx.tree_at(names, pattern, slides)
        past = jnp.take_along_axis(z, pattern.slots, axis=1)
        past = jnp.where(pattern.used & units[:, None], past, 0.0)
        u = -jnp.sum(past[:, :, None] * pattern.lift, axis=1)
        return theta + self.moved(u), pattern

    def _summed(
        self, pairs: Pairs, amounts: Float[Array, " pairs"], units: int
    ) -> Float[Array, "units dim"]:
        """The sum of multiples of the normals of pairs, by unit."""
        # A loop, as a list is rarely full.
        number = jnp.sum(pairs.filled)

        def one(c):
            k, u = c
            unit = pairs.unit[k]
            return k + 1, with_row(u, unit, u[unit] + amounts[k] * self.normals[pairs.row[k]])

        zero = jnp.zeros((units, self.normals.shape[1]), self.normals.dtype)
        return jax.lax.while_loop(lambda c: c[0] < number, one, (jnp.asarray(0), zero))[1]

    def moved(self, u: Float[Array, "units dim"]) -> Float[Array, " size"]:
        """θ moved from 0 by u, for the trained ones of (w_i, b_i)."""
        net = eqx.combine(self.trained, self.frozen)
        c = jnp.zeros(()) if net.c is None else net.c
        return self.assembled(u, jnp.zeros_like(net.v), jnp.zeros_like(c))


def free(pattern: ShallowPattern, u: Float[Array, "units dim"]) -> Float[Array, "units dim"]:
    """The part of u along which the units are free."""
    project = lambda u: jnp.sum(pattern.projector * u[:, None, :], axis=-1)
    return jax.lax.cond(pattern.slides(), project, lambda u: u, u)
