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
from gflow.nonsmooth.passages import Passed
from gflow.nonsmooth.pattern_risk import AbstractPatternRisk
from gflow.nonsmooth.shallow.pattern import Evaluation, ShallowPattern
from gflow.parameters import unflat


class AbstractPairsOfUnits(AbstractPatternRisk[ShallowPattern]):
    """The part of the pattern risk of one hidden layer that speaks of lists of pairs."""

    trained: eqx.AbstractVar[PyTree]
    rows: eqx.AbstractVar[Float[Array, "rows in"]]
    normals: eqx.AbstractVar[Float[Array, "rows dim"]]
    sizes: eqx.AbstractVar[Float[Array, " rows"]]
    negative_slope: eqx.AbstractVar[float]

    @abstractmethod
    def net(self, theta: Float[Array, " size"]) -> ShallowNet:
        """The network at θ."""

    @abstractmethod
    def velocity(
        self, evaluation: Evaluation, pattern: ShallowPattern
    ) -> Float[Array, "units dim"]:
        """d/dt of the trained ones of (w_i, b_i)."""

    @abstractmethod
    def assembled(self, by_u: Array, by_v: Array, by_c: Array) -> Array:
        """Packs derivatives by u, v and c in the order of θ."""

    def z_of(self, theta: Float[Array, " size"], pairs: Pairs) -> Float[Array, "*pairs"]:
        net = self.net(theta)
        z = jnp.sum(net.w[pairs.unit] * self.rows[pairs.row], axis=-1)
        return z if net.b is None else z + net.b[pairs.unit]

    def sides_of(
        self, pattern: ShallowPattern, scales: Float[Array, " units"], pairs: Pairs
    ) -> Float[Array, "*pairs"]:
        unit, row = pairs.unit, pairs.row
        return jnp.where(pattern.active[unit, row], 1.0, -1.0) / (scales[unit] * self.sizes[row])

    def speeds_of(
        self, evaluation: Evaluation, pattern: ShallowPattern, pairs: Pairs
    ) -> Float[Array, " pairs"]:
        u = self.velocity(evaluation, pattern)
        return jnp.sum(u[pairs.unit] * self.normals[pairs.row], axis=-1)

    def turned_speeds(
        self,
        evaluation: Evaluation,
        pattern: ShallowPattern,
        speeds: Float[Array, " pairs"],
        pairs: Pairs,
    ) -> Float[Array, " pairs"]:
        sign = jnp.where(pattern.active[pairs.unit, pairs.row], 1.0, -1.0)
        square = jnp.sum(self.normals[pairs.row] ** 2, axis=-1)
        return speeds + (1 - self.negative_slope) * sign * evaluation.q_of(pairs) * square

    def jumps_of(self, evaluation: Evaluation, pairs: Pairs) -> Float[Array, "*pairs"]:
        """(1 − α) |∂L/∂a| ‖m‖. Rows that share a kink are counted one by one."""
        lengths = jnp.sqrt(jnp.sum(self.normals[pairs.row] ** 2, axis=-1))
        return abs(1 - self.negative_slope) * jnp.abs(evaluation.q_of(pairs)) * lengths

    def largest_jump(
        self, evaluation: Evaluation, tolerances: Float[Array, " units"]
    ) -> Float[Array, ""]:
        lengths = jnp.sqrt(jnp.sum(self.normals**2, axis=1))
        size = lambda a: jnp.abs(a) if a.ndim == 1 else jnp.sqrt(jnp.sum(a**2, axis=1))
        rows, units = size(evaluation.r) * lengths, size(evaluation.v) / tolerances
        return abs(1 - self.negative_slope) * jnp.max(rows) * jnp.max(units)

    def reach(
        self,
        start: Evaluation,
        end: Evaluation,
        pattern: ShallowPattern,
        scales: Float[Array, " units"],
    ) -> Float[Array, " units"]:
        turn = self.velocity(end, pattern) - self.velocity(start, pattern)
        lengths = jnp.sqrt(jnp.sum(self.normals**2, axis=1))
        return jnp.sqrt(jnp.sum(turn**2, axis=1)) * jnp.max(lengths / self.sizes) / scales

    def tolerances(self, of_y: Float[Array, " size_and_one"]) -> Float[Array, " units"]:
        """The harmonic root mean square over (w_i, b_i), times √size."""
        of_theta = unflat(self.trained, of_y[:-1])
        columns = [] if of_theta.w is None else [of_theta.w]
        columns += [] if of_theta.b is None else [of_theta.b[:, None]]
        weights = 1 / jnp.concatenate(columns, axis=1) ** 2
        return jnp.sqrt(len(of_y) / jnp.mean(weights, axis=1))

    def nearly_held(self, pattern: ShallowPattern) -> Bool[Array, " units"]:
        most = min(pattern.used.shape[1], self.normals.shape[1])
        return jnp.sum(pattern.used, axis=1) >= most - 1

    def with_passed(
        self,
        theta: Float[Array, " size"],
        pattern: ShallowPattern,
        passed: Passed,
        back: Float[Array, ""],
    ) -> tuple[Float[Array, " size"], ShallowPattern]:
        """θ and the pattern at a time `back` before the end of a step, corrected for what was
        passed until then."""
        pairs, start, end = passed.pairs, passed.start, passed.end
        turned = passed.crossed & (passed.age > back)
        was_active = pattern.active[pairs.unit, pairs.row]
        q0, q1 = start.q_of(pairs), end.q_of(pairs)
        middle = q1 - (q1 - q0) * ((passed.age + back) / (2 * passed.dt))
        impulse = (1 - self.negative_slope) * middle * (passed.age - back)
        impulse = jnp.where(turned, jnp.where(was_active, impulse, -impulse), 0.0)
        u = _free(pattern, self._summed(pairs, impulse, len(pattern.used)))
        unit = jnp.where(turned, pairs.unit, len(pattern.used))
        active = pattern.active.at[unit, pairs.row].set(~was_active, mode="drop")
        turned_pattern = eqx.tree_at(lambda p: p.active, pattern, active)
        return theta + self._assembled(u, end), turned_pattern

    def jump_of_field(
        self, before: ShallowPattern, after: ShallowPattern, passed: Passed
    ) -> Float[Array, " size"]:
        """The jumps of the field at the end of a step: at kinks that were crossed, and where units
        begin to slide. Where slides end there is none."""
        pairs, end = passed.pairs, passed.end
        jump = (1 - self.negative_slope) * end.q_of(pairs)
        jump = jnp.where(before.active[pairs.unit, pairs.row], jump, -jump)
        jump = self._summed(pairs, jnp.where(passed.crossed, jump, 0.0), len(before.used))
        u = self.velocity(end, before)
        return self._assembled(_free(after, u + _free(before, jump)) - u, end)

    def within_step(
        self,
        theta: Float[Array, " size"],
        before: ShallowPattern,
        after: ShallowPattern,
        passed: Passed,
        back: Float[Array, ""],
    ) -> tuple[Float[Array, " size"], ShallowPattern]:
        """θ and the pattern at a time `back` before the end of a step from one pattern to another,
        with the units on their kinks that have begun to slide."""
        theta, pattern = self.with_passed(theta, before, passed, back)
        z = self.preactivations(theta)
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
        return theta + self._assembled(u, passed.end), pattern

    def _summed(
        self, pairs: Pairs, amounts: Float[Array, " pairs"], units: int
    ) -> Float[Array, "units dim"]:
        """The sum of multiples of the normals of pairs, by unit."""
        # A loop, as a list is rarely full.
        number = jnp.sum(pairs.filled)

        def one(c):
            k, u = c
            return k + 1, u.at[pairs.unit[k]].add(amounts[k] * self.normals[pairs.row[k]])

        zero = jnp.zeros((units, self.normals.shape[1]), self.normals.dtype)
        return jax.lax.while_loop(lambda c: c[0] < number, one, (jnp.asarray(0), zero))[1]

    def _assembled(self, u: Float[Array, "units dim"], like: Evaluation) -> Array:
        return self.assembled(u, jnp.zeros_like(like.by_v), jnp.zeros_like(like.by_c))


def _free(pattern: ShallowPattern, u: Float[Array, "units dim"]) -> Float[Array, "units dim"]:
    """The part of u along which the units are free."""
    project = lambda u: jnp.sum(pattern.projector * u[:, None, :], axis=-1)
    return jax.lax.cond(pattern.slides(), project, lambda u: u, u)
