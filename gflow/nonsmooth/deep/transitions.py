r"""What follows a kink of any network: a crossing, a slide, or the end of one.

The field is evaluated on both sides of the kink. If the other side leads on, the kink is crossed;
if it leads back, the flow slides.
"""

from typing import TYPE_CHECKING, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from gflow.nonsmooth.deep.pattern import DeepEvaluation, DeepPattern
from gflow.nonsmooth.kink_kinds import KinkKind
from gflow.nonsmooth.pairs import Pair, Pairs
from gflow.nonsmooth.pattern import Event, pair_of_min
from gflow.nonsmooth.pattern_risk import KinkResolution, Transition

if TYPE_CHECKING:
    from gflow.nonsmooth.deep.risk import DeepPatternRisk

# A speed below this part of its jump counts as rest; directions as bound below that part.
_STILL, _BOUND = 1e-9, 1e-10
# Normals are parallel if products with them agree to this part.
_PARALLEL = 1e-9
# The most ties of a start that are looked at.
_MOST_TIES = 64


class PatternAfter(NamedTuple):
    """The pattern after an event, and the event."""

    pattern: DeepPattern
    event: Event


class SharedKink(NamedTuple):
    """The kink of a pair: its normal, the `members` that share it, and their normals as a
    `multiple` of this one."""

    pair: Pair
    normal: Float[Array, " size"]
    members: Bool[Array, "units rows"]
    multiple: Float[Array, "units rows"]

    def beyond(self, pattern: DeepPattern) -> DeepPattern:
        """The pattern on the other side."""
        active = ~pattern.active[self.pair]
        return pattern.with_sides(self.members, (self.multiple > 0) == active)


def transition(
    risk: "DeepPatternRisk",
    theta: Array,
    pattern: DeepPattern,
    evaluation: DeepEvaluation,
    resolution: KinkResolution,
) -> Transition:
    """θ, pattern and event after the kink, or the end of a slide, that is farthest past."""
    weights = risk.slide_weights(evaluation, pattern)
    margins = jnp.where(pattern.used, jnp.minimum(weights, 1 - weights), jnp.inf)
    # A slide that rests on the boundary of [0, 1] is not held there, and ends, too.
    over = jnp.min(margins) <= resolution.distance
    after, event = jax.lax.cond(
        over,
        lambda: _leave(pattern, weights, margins, resolution),
        lambda: _arrive(risk, theta, pattern, evaluation, resolution),
    )
    turned = jnp.any((after.active != pattern.active) & ~after.sliding, axis=0)
    split = jax.lax.cond(
        jnp.any(turned) & after.shares(), lambda: _split(risk, theta, after, turned), lambda: after
    )
    return Transition(theta, split, event)


def _arrive(
    risk: "DeepPatternRisk",
    theta: Array,
    pattern: DeepPattern,
    evaluation: DeepEvaluation,
    resolution: KinkResolution,
) -> PatternAfter:
    """What happens at the kink that is farthest past: a crossing, or a slide begins."""
    margins = risk.margins(evaluation.z, pattern, resolution.scales)
    pair = pair_of_min(margins)
    close = jnp.abs(evaluation.z) <= 4 * resolution.distance * resolution.scales[:, None]
    kink = _kink(risk, theta, pattern, pair, close & ~pattern.sliding)
    was_active = pattern.active[pair]
    turned = risk.with_ties(theta, pattern, kink.beyond(pattern))
    on = jnp.where(was_active, -1.0, 1.0)
    here = on * (kink.normal @ evaluation.field[:-1])
    beyond = on * (kink.normal @ risk.evaluate(theta, turned).field[:-1])
    # A side that does not move counts as leading to the kink.
    attracts = (here > beyond) & (beyond <= _STILL * (here - beyond))
    attracts &= ~_is_bound(evaluation, pattern, kink.normal)
    slid = pattern.with_slide(pair, kink.members, kink.multiple)
    after = jax.tree.map(lambda a, b: jnp.where(attracts, a, b), slid, turned)
    kind = jnp.where(was_active, KinkKind.CROSS_TO_INACTIVE, KinkKind.CROSS_TO_ACTIVE)
    opposite = jnp.where(was_active, KinkKind.CROSS_TO_ACTIVE, KinkKind.CROSS_TO_INACTIVE)
    begins = KinkKind.SLIDE_BEGINS
    kind, opposite = (jnp.where(attracts, begins, k) for k in (kind, opposite))
    return PatternAfter(after, _event(pair, kink.members, kink.multiple, kind, opposite))


def _leave(
    pattern: DeepPattern,
    weights: Float[Array, " slots"],
    margins: Float[Array, " slots"],
    resolution: KinkResolution,
) -> PatternAfter:
    """The end of the slide whose λ has left [0, 1] farthest.

    If the pull towards the kink was lost, the flow branches: it could leave to either side.
    """
    slot = jnp.argmin(margins)
    pair = Pair(*(a[slot] for a in pattern.slots))
    active = weights[slot] > 0.5
    after = pattern.without_slide(slot, active, resolution.slack)
    ends = KinkKind.SLIDE_ENDS_TO_ACTIVE, KinkKind.SLIDE_ENDS_TO_INACTIVE
    kinds = [jnp.where(a, *ends) for a in (active, ~active)]
    branches = weights[slot] == -1.0
    branches &= resolution.scales[pair.unit] > resolution.unresolved
    kinds = [jnp.where(branches, KinkKind.SLIDE_BRANCHES, kind) for kind in kinds]
    members = pattern.members(slot)
    return PatternAfter(after, _event(pair, members, pattern.multiple, *kinds))


def _split(
    risk: "DeepPatternRisk", theta: Array, pattern: DeepPattern, turned: Bool[Array, " rows"]
) -> DeepPattern:
    """Lets pairs go whose kink is no longer that of their slide, since a unit below has turned in
    their row. They start on their inactive sides, from where they find their way."""

    def one(c):
        slot, pattern = c
        members = pattern.members(slot)
        steady = members & ~turned[None, :]
        unit, row = jnp.unravel_index(jnp.argmax(steady), steady.shape)
        old = Pair(*(a[slot] for a in pattern.slots))
        moved = turned[old.row] & jnp.any(steady)
        pair = Pair(*(jnp.where(moved, a, b) for a, b in zip((unit, row), old)))
        kink = _kink(risk, theta, pattern, pair, members)
        return slot + 1, pattern.with_members(slot, kink.pair, kink.members, kink.multiple)

    more = lambda c: c[0] < pattern.room
    return jax.lax.while_loop(more, one, (jnp.asarray(0), pattern))[1]


def _event(
    pair: Pair,
    members: Bool[Array, "units rows"],
    multiple: Float[Array, "units rows"],
    kind: Int[Array, ""],
    opposite: Int[Array, ""],
) -> Event:
    """The event of a pair, and of those rows whose preactivation of this unit is another multiple
    of the same quantity. Rows with the same preactivation have one kink."""
    rows = jnp.arange(members.shape[1])
    other = members[pair.unit] & (jnp.abs(multiple[pair.unit] - 1) > _PARALLEL)
    kinds = jnp.where(multiple[pair.unit] > 0, kind, opposite)
    return Event(*pair, other | (rows == pair.row), jnp.where(rows == pair.row, kind, kinds))


def _kink(
    risk: "DeepPatternRisk",
    theta: Array,
    pattern: DeepPattern,
    pair: Pair,
    close: Bool[Array, "units rows"],
) -> SharedKink:
    """The kink of a pair, which of those that are close to theirs may share."""
    normal, _ = risk.normal(theta, pattern, *pair)
    own = jnp.zeros_like(close).at[pair].set(True)
    square = normal @ normal

    def compared():
        # If all normals are multiples, so are their products with any other direction.
        other = jnp.asarray(np.random.default_rng(0).standard_normal(theta.shape), theta.dtype)
        z_of = lambda theta: risk.preactivations(theta, pattern)
        product = lambda direction: jax.jvp(z_of, (theta,), (direction,))[1]
        along, products = jax.vmap(product)(jnp.stack([normal, other]))
        multiple = along / jnp.where(square > 0, square, 1.0)
        apart = jnp.abs(products - multiple * (normal @ other))
        size = jnp.sqrt(square * (other @ other))
        same = (apart <= _PARALLEL * jnp.abs(multiple) * size) & (jnp.abs(along) > 0)
        return close & same, multiple

    alone = lambda: (own, own.astype(theta.dtype))
    members, multiple = jax.lax.cond(jnp.any(close & ~own), compared, alone)
    return SharedKink(pair, normal, members | own, jnp.where(own, 1.0, multiple))


def _is_bound(
    evaluation: DeepEvaluation, pattern: DeepPattern, normal: Float[Array, " size"]
) -> Bool[Array, ""]:
    """Whether the slides leave no direction across the kink of this normal."""
    along = lambda: evaluation.normals.free(normal)
    free = jax.lax.cond(pattern.slides(), along, lambda: normal)
    return free @ free <= _BOUND * (normal @ normal)


def leads_both_ways(
    risk: "DeepPatternRisk",
    theta: Array,
    pattern: DeepPattern,
    evaluation: DeepEvaluation,
    near: Bool[Array, "units rows"],
) -> Bool[Array, ""]:
    """Whether the flow could leave one of these kinks to either side: both lead away from it, or
    one does and the other rests."""
    pairs = Pairs.where(near, min(near.size, _MOST_TIES))

    def one(c):
        k, found = c
        kink = _kink(risk, theta, pattern, Pair(pairs.unit[k], pairs.row[k]), near)
        here = kink.normal @ evaluation.field[:-1]
        there = (
            kink.normal
            @ risk.evaluate(theta, risk.with_ties(theta, pattern, kink.beyond(pattern))).field[:-1]
        )
        active = pattern.active[kink.pair]
        on_active, on_inactive = jnp.where(active, here, there), jnp.where(active, there, here)
        apart = (on_inactive <= 0) & (on_active >= 0) & (on_active > on_inactive)
        return k + 1, found | apart

    start = jnp.asarray(0), jnp.asarray(False)
    return jax.lax.while_loop(lambda c: c[0] < jnp.sum(pairs.filled), one, start)[1]
