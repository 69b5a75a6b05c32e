r"""What steps through kinks ask of a network of any depth about some of its pairs.

Past its kink, for a time $s$, a pair pushes along its normal by $\pm q_j m_j$ more than before, so
that θ is off by that times $s$, along the kinks that the flow slides on.
"""

from abc import abstractmethod
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from gflow.nonsmooth.deep.pattern import DeepEvaluation, DeepPattern
from gflow.nonsmooth.deep.row_network import RowNetwork
from gflow.nonsmooth.deep.slides import Normals
from gflow.nonsmooth.pairs import Pairs
from gflow.nonsmooth.passages import (
    Ends,
    Passed,
    Patience,
    Pushes,
    Returns,
    Seen,
    Sight,
    Tangles,
)
from gflow.nonsmooth.pattern_risk import AbstractPatternRisk

# Normals that are computed at once.
_AT_ONCE = 8
# Kinks met at ages that differ by less have one kink.
_TOGETHER = 1e-7


class AbstractPassing(AbstractPatternRisk[DeepPattern]):
    """The part of the pattern risk of any network that speaks of kinks within a step."""

    @property
    @abstractmethod
    def network(self) -> RowNetwork:
        """The network as a function of one row."""

    @abstractmethod
    def normal(
        self, theta: Float[Array, " size"], pattern: DeepPattern, unit: Array, row: Array
    ) -> tuple[Float[Array, " size"], Float[Array, " units"]]:
        """The derivatives of one preactivation by θ and by the activations of its row."""

    @abstractmethod
    def normals(self, theta: Float[Array, " size"], pattern: DeepPattern) -> Normals:
        """The normals of the kinks that the pattern slides on."""

    @abstractmethod
    def with_ties(
        self, theta: Float[Array, " size"], before: DeepPattern, after: DeepPattern
    ) -> DeepPattern:
        """The pattern after a change, with those sides that quantities which were equal before have
        taken by it."""

    def suspects(
        self,
        thetas: Float[Array, "3 size"],
        ends: Ends,
        pattern: DeepPattern,
        scales: Float[Array, " units"],
        eps: float,
        patience: Patience,
    ) -> Bool[Array, "units rows"]:
        del patience
        all_z = ends.start.z, self.preactivations(thetas[1], pattern), ends.end.z
        start, half, end = (self.margins(z, pattern, scales) for z in all_z)
        return (end <= -eps) | Returns.of(start, half, end, eps).found

    def sight(
        self,
        thetas: Float[Array, "3 size"],
        ends: Ends,
        pattern: DeepPattern,
        scales: Float[Array, " units"],
        pairs: Pairs,
        tolerance: Float[Array, " size_and_one"],
    ) -> Sight:
        unit, row = pairs.unit, pairs.row
        active = pattern.active[unit, row]
        sign = jnp.where(active, 1.0, -1.0)
        side = sign / scales[unit]

        z_of = lambda theta: self.preactivations(theta, pattern)
        _, speed = jax.jvp(z_of, (thetas[2],), (ends.end.field[:-1],))
        speed = speed[unit, row]
        z = jnp.stack([a[unit, row] for a in (ends.start.z, z_of(thetas[1]), ends.end.z)])
        speeds = jnp.stack([_first_slope(z, ends.dt * speed) / ends.dt, speed])
        slack = pattern.slack_of(pairs)
        q = jnp.stack([ends.start.q[unit, row], ends.end.q[unit, row]])
        pushes = sign[None] * q
        squares, jumps = self._sizes(thetas[2], pattern, pairs, tolerance)
        return Sight(
            sides=side,
            margins=side[None] * z + slack[None],
            slopes=side[None] * speeds,
            beyond=side * (speed + pushes[1] * squares),
            slack=slack,
            active=active,
            jumps=jnp.abs(q[1]) * jumps,
            pushes=Pushes(pushes[0], pushes[1]),
        )

    def _sizes(
        self,
        theta: Float[Array, " size"],
        pattern: DeepPattern,
        pairs: Pairs,
        tolerance: Float[Array, " size_and_one"],
    ) -> tuple[Float[Array, " pairs"], Float[Array, " pairs"]]:
        """The squares of the lengths of the normals of those pairs that are filled, and their
        lengths in units of the tolerance."""
        number, count = jnp.sum(pairs.filled), len(pairs.unit)
        at_once = min(_AT_ONCE, count)

        def some(c):
            first, squares, sizes = c
            # The last ones are done again rather than run over the end.
            first = jnp.minimum(first, count - at_once)
            take = lambda a: jax.lax.dynamic_slice(a, (first,), (at_once,))
            normal = lambda unit, row: self.normal(theta, pattern, unit, row)[0]
            rows = jax.vmap(normal)(take(pairs.unit), take(pairs.row))
            put = lambda a, new: jax.lax.dynamic_update_slice(a, new, (first,))
            square = jnp.sum(rows**2, axis=1)
            size = _in_tolerances(rows, tolerance)
            return first + at_once, put(squares, square), put(sizes, size)

        zero = jnp.zeros(count, theta.dtype)
        start = jnp.asarray(0), zero, zero
        return jax.lax.while_loop(lambda c: c[0] < number, some, start)[1:]

    def slide_jumps(
        self,
        evaluation: DeepEvaluation,
        pattern: DeepPattern,
        tolerance: Float[Array, " size_and_one"],
    ) -> Float[Array, " slots"]:
        q = evaluation.q[pattern.slots.unit, pattern.slots.row]
        normals = evaluation.normals
        return jnp.abs(q) * normals.lengths * _in_tolerances(normals.rows, tolerance)

    def tangles(self, pattern: DeepPattern, seen: Seen) -> Tangles:
        """Pairs that meet their kinks together, and those of rows whose slides change while
        something else happens.

        A crossing changes the normals of kinks of higher layers in the same row: rough are those
        below a slide, or with others of other layers that cross.
        """
        pairs, past = seen.pairs, seen.past
        rows = pattern.active.shape[1]
        of_rows = lambda flags, row: jnp.zeros(rows, int).at[row].add(flags, mode="drop")
        number = of_rows(past, pairs.row) + of_rows(seen.ended, pattern.slots.row)
        changes = of_rows(seen.begins, pairs.row) + of_rows(seen.ended, pattern.slots.row)
        tangled = (changes > 0) & (number > 1)
        # A crossing can part pairs that slide on one kink.
        tangled |= jnp.any(pattern.sliding, axis=0) & pattern.shares()
        together = jax.lax.cond(
            jnp.sum(past) > 1, lambda: _neighbours(seen), lambda: jnp.zeros_like(past)
        )
        layers = jnp.asarray(self.network.places.layer)
        own = layers[pairs.unit]
        top = (
            jnp.full(rows, -1)
            .at[pattern.slots.row]
            .max(jnp.where(pattern.used, layers[pattern.slots.unit], -1))
        )
        row = jnp.where(past, pairs.row, rows)
        # Where preactivations are 0 for want of active units below, these kinks meet.
        zero = (seen.end.z == 0) & ~pattern.sliding & ~jnp.asarray(self.network.ties)[:, None]
        tops = jnp.max(jnp.where(zero, layers[:, None], -1), axis=0)
        highest = top.at[row].max(own, mode="drop")
        lowest = jnp.full(rows, len(layers)).at[row].min(own, mode="drop")
        return Tangles(
            pairs=tangled[pairs.row] | together | (past & (tops[pairs.row] > own)),
            slides=tangled[pattern.slots.row],
            rough=past & ((highest[pairs.row] > own) | (lowest[pairs.row] < own)),
        )

    def with_passed(
        self,
        theta: Float[Array, " size"],
        pattern: DeepPattern,
        passed: Passed,
        back: Float[Array, ""],
        end: DeepEvaluation,
    ) -> tuple[Float[Array, " size"], DeepPattern]:
        """θ and the pattern at a time `back` before the end of a step, corrected for what was
        passed until then."""
        pairs, (first, last) = passed.pairs, passed.pushes
        turned = passed.crossed & (passed.age > back)
        push = last - (last - first) * ((passed.age + back) / (2 * passed.dt))
        impulse = jnp.where(turned, push * (passed.age - back), 0.0)
        unit = jnp.where(turned, pairs.unit, pattern.active.shape[0])
        active = pattern.active.at[unit, pairs.row].set(~passed.was_active, mode="drop")
        after = eqx.tree_at(lambda p: p.active, pattern, active)
        after = self.with_ties(theta, pattern, after)

        def moved():
            return theta + end.normals.free(self._summed(theta, after, pairs, impulse))

        return jax.lax.cond(jnp.any(turned), moved, lambda: theta), after

    def jump_of_field(
        self,
        theta: Float[Array, " size"],
        before: DeepPattern,
        after: DeepPattern,
        passed: Passed,
        end: DeepEvaluation,
        now: DeepEvaluation,
    ) -> Float[Array, " size"]:
        amounts = jnp.where(passed.crossed, passed.pushes.end, 0.0)
        jump = end.normals.free(self._summed(theta, before, passed.pairs, amounts))
        velocity = end.field[:-1]
        return now.normals.free(velocity + jump) - velocity

    def _summed(
        self,
        theta: Float[Array, " size"],
        pattern: DeepPattern,
        pairs: Pairs,
        amounts: Float[Array, " pairs"],
    ) -> Float[Array, " size"]:
        """The sum of multiples of the normals of pairs."""
        by_pairs = jnp.zeros(pattern.active.shape, theta.dtype)
        by_pairs = by_pairs.at[pairs.unit, pairs.row].add(amounts)
        _, pull = jax.vjp(lambda theta: self.preactivations(theta, pattern), theta)
        return pull(by_pairs)[0]

    def within_step(
        self,
        theta: Float[Array, " size"],
        before: DeepPattern,
        after: DeepPattern,
        passed: Passed,
        back: Float[Array, ""],
        end: DeepEvaluation,
    ) -> tuple[Float[Array, " size"], DeepPattern]:
        """θ and the pattern at a time `back` before the end of a step from one pattern to another,
        on those kinks that have begun to be slid on."""
        theta, pattern = self.with_passed(theta, before, passed, back, end)
        z = self.preactivations(theta, pattern)
        beyond = jnp.where(before.active, -z, z) >= 0
        begun = after.sliding & ~before.sliding & beyond
        place = after.slots.unit, after.slots.row
        kept = after.used & (before.sliding[place] | begun[place])
        names = lambda p: (p.sliding, p.slot, p.multiple, p.slots, p.used)
        sliding = after.sliding & (before.sliding | begun)
        known = sliding, after.slot, after.multiple, after.slots, kept
        some = jnp.any(begun)
        pick = lambda new, old: jax.tree.map(lambda n, o: jnp.where(some, n, o), new, old)
        pattern = eqx.tree_at(names, pattern, pick(known, names(before)))

        def put_back():
            past = jnp.where(pattern.used, z[pattern.slots.unit, pattern.slots.row], 0.0)
            return theta + self.normals(theta, pattern).back(past)

        return jax.lax.cond(some, put_back, lambda: theta), pattern


def _first_slope(
    z: Float[Array, "3 pairs"], last_slope: Float[Array, " pairs"]
) -> Float[Array, " pairs"]:
    """The slope at 0 of the cubics with these values at 0, 1/2 and 1, and slopes at 1."""
    half, whole = z[1] - z[0], z[2] - z[0]
    third = 8 * half - 6 * whole + 2 * last_slope
    second = last_slope - whole - 2 * third
    return whole - second - third


def _neighbours(seen: Seen) -> Bool[Array, " pairs"]:
    """The pairs that meet their kinks at the time of another."""
    ages = jnp.where(seen.past, seen.age, jnp.inf)
    order = jnp.argsort(ages)
    close = jnp.diff(ages[order]) <= _TOGETHER
    close = jnp.append(close, False) | jnp.append(False, close)
    return jnp.zeros_like(seen.past).at[order].set(close)


def _in_tolerances(rows: Float[Array, "kinks size"], tolerance: Any) -> Float[Array, " kinks"]:
    """The norms of directions in units of the tolerance."""
    return jnp.sqrt(jnp.sum((rows / tolerance[None, :-1]) ** 2, axis=1) / len(tolerance))
