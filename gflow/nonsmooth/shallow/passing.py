r"""Kinks of one hidden layer that a step passes, with what they do to the flow to first order.

Past its kink, for a time $s$, the pair of unit i and row n pushes along its normal by
$\pm(1-\alpha)\, q_{in}\, m_{in}$ more than before, so that u_i is off by that times $s$, with q at
the middle of this time. A unit that begins to slide is put on its kinks.
"""

from typing import TYPE_CHECKING

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from gflow.nonsmooth.pairs import Pairs
from gflow.nonsmooth.passages import Passed
from gflow.nonsmooth.shallow.pattern import Evaluation, ShallowPattern

if TYPE_CHECKING:
    from gflow.nonsmooth.shallow.risk import ShallowPatternRisk


def with_passed(
    risk: "ShallowPatternRisk",
    theta: Float[Array, " size"],
    pattern: ShallowPattern,
    passed: Passed,
    back: Float[Array, ""],
) -> tuple[Float[Array, " size"], ShallowPattern]:
    """θ and the pattern at a time `back` before the end of a step, corrected for what was passed
    until then."""
    pairs, start, end = passed.pairs, passed.start, passed.end
    turned = passed.crossed & (passed.age > back)
    was_active = pattern.active[pairs.unit, pairs.row]
    q0, q1 = start.q_of(pairs), end.q_of(pairs)
    middle = q1 - (q1 - q0) * ((passed.age + back) / (2 * passed.dt))
    impulse = (1 - risk.negative_slope) * middle * (passed.age - back)
    impulse = jnp.where(turned, jnp.where(was_active, impulse, -impulse), 0.0)
    u = _free(pattern, _summed(risk, pairs, impulse, len(pattern.used)))
    unit = jnp.where(turned, pairs.unit, len(pattern.used))
    active = pattern.active.at[unit, pairs.row].set(~was_active, mode="drop")
    turned_pattern = eqx.tree_at(lambda p: p.active, pattern, active)
    return theta + _assembled(risk, u, end), turned_pattern


def jump_of_field(
    risk: "ShallowPatternRisk",
    evaluation: Evaluation,
    before: ShallowPattern,
    after: ShallowPattern,
    pairs: Pairs,
) -> Float[Array, " size"]:
    """How much the field changes from one pattern to another, which differ at some pairs and at
    slides, with the preactivations as if they were 0 there."""

    def turned(pairs: Pairs) -> Array:
        slopes = [risk.slopes_of(pattern, pairs) for pattern in (after, before)]
        return jnp.where(pairs.filled, (slopes[0] - slopes[1]) * evaluation.q_of(pairs), 0.0)

    units = jnp.broadcast_to(jnp.arange(len(before.slots))[:, None], before.slots.shape)
    held = jnp.where(before.used, turned(Pairs.all_of(units, before.slots)), 0.0)
    force = _summed(risk, pairs, turned(pairs), len(before.used))
    force = force + jnp.einsum("us,usd->ud", held, risk.normals[before.slots])
    u = _free(before, evaluation.force) - _free(after, evaluation.force + force)
    return _assembled(risk, u, evaluation)


def within_step(
    risk: "ShallowPatternRisk",
    theta: Float[Array, " size"],
    before: ShallowPattern,
    after: ShallowPattern,
    passed: Passed,
    back: Float[Array, ""],
) -> tuple[Float[Array, " size"], ShallowPattern]:
    """θ and the pattern at a time `back` before the end of a step from one pattern to another, with
    the units on their kinks that have begun to slide."""
    theta, pattern = with_passed(risk, theta, before, passed, back)
    z = risk.z(risk.net(theta))
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
    return theta + _assembled(risk, u, passed.end), pattern


def _summed(
    risk: "ShallowPatternRisk", pairs: Pairs, amounts: Float[Array, " pairs"], units: int
) -> Float[Array, "units dim"]:
    """The sum of multiples of the normals of pairs, by unit. A loop, as a list is rarely full."""
    number = jnp.sum(pairs.filled)

    def one(c):
        k, u = c
        return k + 1, u.at[pairs.unit[k]].add(amounts[k] * risk.normals[pairs.row[k]])

    zero = jnp.zeros((units, risk.normals.shape[1]), risk.normals.dtype)
    return jax.lax.while_loop(lambda c: c[0] < number, one, (jnp.asarray(0), zero))[1]


def _assembled(risk: "ShallowPatternRisk", u: Float[Array, "units dim"], like: Evaluation) -> Array:
    return risk.assembled(u, jnp.zeros_like(like.by_v), jnp.zeros_like(like.by_c))


def _free(pattern: ShallowPattern, u: Float[Array, "units dim"]) -> Float[Array, "units dim"]:
    """The part of u along which the units are free."""
    project = lambda u: jnp.sum(pattern.projector * u[:, None, :], axis=-1)
    return jax.lax.cond(pattern.slides(), project, lambda u: u, u)
