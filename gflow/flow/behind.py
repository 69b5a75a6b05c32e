r"""The kinks that a step left behind it, and which of them the tolerance can feel.

Beyond the kink of pair j the field differs by its jump $J_j$. A step that keeps its pattern is off
by $J_j s_j$, with $s_j$ the time since the kink, which is known and made good. What remains is of
second order, about $\tfrac12 \rho J_j s_j^2$ with ρ the rate at which the field answers to a
displacement. Kinks for which that is a small part of the tolerance are passed; a step ends at the
first of the others. As the tolerance falls every kink becomes one of these.
"""

from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from gflow.nonsmooth.pairs import Pairs
from gflow.nonsmooth.passages import Ends, Sight
from gflow.nonsmooth.pattern import AbstractPattern
from gflow.nonsmooth.pattern_risk import AbstractPatternRisk

# Margins of slides are multiplied by this, to be compared with those of kinks.
SLIDE_SCALE = 0.1
# A kink is passed if it costs less than this part of the tolerance; all kinks of a step together,
# if they cost less than that part.
_EACH, _TOGETHER = 0.25, 0.5
# Pairs that may have been past their kinks within a step are within this part of its turn at the
# end: an eighth, and more for what is no parabola.
_TURN = 0.2
# A speed below this part of its jump counts as rest.
_STILL = 1e-9
# A step is shortened at most by this factor, so that its kinks can be passed.
_MAX_SHORTENING = 5.0


class EndedSlides(NamedTuple):
    """Which slots' slides have ended within a step, about how long ago, as a fraction of it (0 if
    not), and what each costs to second order, in units of the tolerance."""

    ended: Bool[Array, "units slots"]
    age: Float[Array, "units slots"]
    cost: Float[Array, "units slots"]


class Behind(NamedTuple):
    """The kinks, and the ends of slides, behind the end of a step.

    - `pairs`: those that are past their kink, or were in between, in the `sight` of the step, with
      fractions of it: `age`, how long ago they met it; `until`, where at the latest.
    - `located`: those at the first of which the step has to end. `passable`: the others that are
      past; of these `crosses` go on to the other side, and begin to slide else.
    - `impulse`: what a pair has cost so far to first order, in units of the tolerance.
    - `slides`: those that have ended; `locates_ends`, whether they are to be located.
    - `shorter`: the factor by which a step has to be shorter for its kinks to be passed; at most 1
      if it need not be.
    """

    pairs: Pairs
    sight: Sight
    age: Float[Array, " pairs"]
    until: Float[Array, " pairs"]
    located: Bool[Array, " pairs"]
    passable: Bool[Array, " pairs"]
    crosses: Bool[Array, " pairs"]
    impulse: Float[Array, " pairs"]
    slides: EndedSlides
    locates_ends: Bool[Array, ""]
    shorter: Float[Array, ""]

    @property
    def slides_end(self) -> Bool[Array, ""]:
        return jnp.any(self.slides.ended)

    @property
    def passes_slides(self) -> Bool[Array, ""]:
        """Whether slides begin or end among what is passed."""
        begins = jnp.any(self.passable & ~self.crosses)
        return begins | (self.slides_end & ~self.locates_ends)

    def age_of(self, unit, row) -> Float[Array, ""]:
        """How long ago, as a fraction of the step, a pair met its kink, if it is passed; else 0."""
        here = self.pairs.is_at(unit, row) & self.passable
        return jnp.max(jnp.where(here, self.age, 0.0), initial=0.0)

    def mean_age(self) -> Float[Array, ""]:
        """The mean age of the pairs that are passed, by weight."""
        weight = jnp.where(self.passable, self.impulse, 0.0)
        total = jnp.sum(weight)
        return jnp.sum(weight * self.age) / jnp.where(total > 0, total, 1.0)

    def second_order(self, rate: Float[Array, ""]) -> Float[Array, ""]:
        """What the pairs that are passed cost, for a `rate` per step, in units of the tolerance."""
        each = jnp.where(self.passable, 0.5 * rate * self.impulse * self.age, 0.0)
        return jnp.sqrt(jnp.sum(each**2))


class Patience(NamedTuple):
    """What a step may leave behind: `tolerance` of each entry of the state, the `rate` ρ, and the
    part of the tolerance that is for kinks, `budget`: 0 if each is to be located."""

    tolerance: Float[Array, " size_and_one"]
    rate: Float[Array, ""]
    budget: Float[Array | np.ndarray, ""]

    @property
    def each(self) -> Float[Array, ""]:
        """What one kink may cost, in units of the tolerance."""
        return _EACH * jnp.asarray(self.budget)


def pairs_behind(
    risk: AbstractPatternRisk,
    pattern: AbstractPattern,
    scales: Any,
    ends: Ends,
    eps: float,
    patience: Patience,
    most: int,
) -> Pairs:
    """The pairs that are past their kink at the end, and those that were for so long in between
    that the tolerance may feel it."""
    margins = risk.margins(ends.end.z, pattern, scales)
    largest = ends.dt * risk.largest_jump(ends.end, risk.tolerances(patience.tolerance))
    # A parabola whose slope changes by some amount rises at most by an eighth of it from its vertex
    # to the nearer end.
    turns = ends.dt * risk.reach(ends.start, ends.end, pattern, scales)
    reach = jnp.where(largest < patience.each, -eps, jnp.maximum(_TURN * turns, -eps))
    return Pairs.where(margins <= reach[:, None], most)


def what_is_behind(
    risk: AbstractPatternRisk,
    pattern: AbstractPattern,
    scales: Any,
    thetas: Float[Array, "3 size"],
    ends: Ends,
    eps: float,
    patience: Patience,
    pairs: Pairs,
) -> Behind:
    """Looks back from the end of a step at its kinks: by cubics through the margins and their
    slopes at both ends, and by parabolas through three margins for pairs that come back."""
    sight = risk.sight(thetas, ends, pattern, scales, pairs)
    m0, half, m1 = sight.margins
    slope0, slope = ends.dt * sight.slopes
    curve = m0 - m1 + slope
    past = pairs.filled & (m1 <= -eps)
    straight = past & (slope < 0)
    square = slope**2 - 4 * curve * m1
    root = jnp.sqrt(jnp.maximum(square, 0.0))
    tolerances = risk.tolerances(patience.tolerance)
    jumps = ends.dt * sight.jumps / tolerances[pairs.unit]

    returns = _returns(m0, half, m1, eps)
    dips = pairs.filled & ~past & returns.found & ~(jumps * returns.stay < patience.each)
    age = 2 * m1 / jnp.where(straight, slope - root, 1.0)
    age = jnp.where(straight, age, jnp.where(dips, 1 - returns.first, 0.0))
    age = jnp.clip(age, 0.0, 1.0)
    age = jnp.where(past, _refined(age, m0, m1, slope0, slope), age)

    # A side that does not move counts as leading to the kink.
    beyond = ends.dt * sight.beyond
    crosses = straight & (beyond < -_STILL * jnp.abs(beyond - slope))
    rate = patience.rate * ends.dt
    cost = 0.5 * rate * jumps * age**2
    slides = _ended_slides(risk, pattern, ends, eps, tolerances)
    tangled = _tangled(risk, pattern, pairs, past, past & ~crosses, slides)
    messy = past & ((sight.slack > 0) | ~straight | tangled[pairs.unit])
    cheap = past & ~messy & (cost < patience.each)
    costly_end = slides.ended & ~(~tangled[:, None] & (slides.cost < patience.each))
    costly = jnp.where(past & ~cheap, cost, 0.0)
    shorter = _shortening(jnp.where(cheap, cost, 0.0), costly, jnp.any(messy), patience.each)
    # Where each kink is located, the first is found also among those that the list cannot hold.
    shorter = jnp.where(pairs.overflows, 2.0, shorter) * (patience.budget > 0)
    return Behind(
        pairs=pairs,
        sight=sight,
        age=age,
        until=jnp.where(dips, returns.lowest, 1.0),
        located=(past & ~cheap) | dips,
        passable=cheap,
        crosses=cheap & crosses,
        impulse=jnp.where(past, jumps * age, 0.0),
        slides=slides,
        # The time of one that is passed is found; those of several would be mixed up.
        locates_ends=jnp.any(costly_end) | (jnp.sum(slides.ended) > 1),
        shorter=shorter,
    )


class Returns(NamedTuple):
    """Whether margins fall below 0 and come back, by the parabola through three of them: the first
    root, where they are lowest, and how long they stay below, as fractions of the step."""

    found: Bool[Array, " pairs"]
    first: Float[Array, " pairs"]
    lowest: Float[Array, " pairs"]
    stay: Float[Array, " pairs"]


def _returns(start, half, end, eps: float) -> Returns:
    curve = 2 * (start - 2 * half + end)
    slope = end - start - curve
    vertex = (curve > 0) & (slope < 0) & (slope > -2 * curve)
    touches = vertex & (slope**2 >= 4 * curve * (start + eps))
    below = half <= -eps
    width = jnp.sqrt(jnp.maximum(slope**2 - 4 * curve * start, 0.0))
    curve = jnp.where(touches, curve, 1.0)
    first = 2 * start / jnp.where(touches, width - slope, 1.0)
    return Returns(
        found=touches | below,
        first=jnp.where(touches, jnp.clip(first, 0.0, 1.0), 0.5),
        lowest=jnp.where(below, 0.5, -slope / (2 * curve)),
        stay=jnp.where(touches, width / curve, 0.5),
    )


def _tangled(risk: AbstractPatternRisk, pattern, pairs: Pairs, past, begins, slides):
    """The units whose slides change while something else happens to them."""
    by_unit = lambda flags: jnp.zeros(len(pattern.used), int).at[pairs.unit].add(flags, mode="drop")
    number = by_unit(past) + jnp.sum(slides.ended, axis=1)
    changes = (by_unit(begins) > 0) | jnp.any(slides.ended, axis=1)
    return changes & ((number > 1) | risk.nearly_held(pattern))


def _refined(age, m0, m1, slope0, slope1) -> Float[Array, " pairs"]:
    """The root near an age of the cubic through margins and slopes at both ends, by Newton's
    method."""
    both = m0 - m1 + slope1
    third = slope1 - slope0 - 2 * both
    second = both - third
    for _ in range(2):
        margin = m1 + age * (-slope1 + age * (second + age * third))
        steepness = -slope1 + age * (2 * second + 3 * age * third)
        usable = jnp.abs(margin) < 0.5 * jnp.abs(steepness)
        step = jnp.where(usable, margin / jnp.where(usable, steepness, 1.0), 0.0)
        age = jnp.clip(age - step, 0.0, 1.0)
    return age


def _ended_slides(
    risk: AbstractPatternRisk,
    pattern: AbstractPattern,
    ends: Ends,
    eps: float,
    tolerances: Float[Array, " units"],
) -> EndedSlides:
    """Beyond the end of a slide the field is off by what the weight of the active side exceeds
    [0, 1] by, which grows from 0."""
    m0, m1 = (risk.slide_margins(e, pattern) for e in (ends.start, ends.end))
    ended = m1 <= -eps / SLIDE_SCALE
    age = jnp.clip(jnp.where(ended, m1 / jnp.where(ended, m1 - m0, 1.0), 0.0), 0.0, 1.0)
    units = jnp.broadcast_to(jnp.arange(len(pattern.slots))[:, None], pattern.slots.shape)
    jumps = risk.jumps_of(ends.end, Pairs.all_of(units, pattern.slots))
    jumps = ends.dt * jumps / tolerances[:, None]
    return EndedSlides(ended, age, jnp.where(ended, -0.5 * age * m1 * jumps, 0.0))


def _shortening(cheap, costly, messy, each: Float[Array, ""]) -> Float[Array, ""]:
    """The factor by which a step has to be shorter, where that is less work than to end it at each
    of the `costly` kinks."""
    # The costs of what is passed, of random signs, grow with the third power of the step; that of
    # one kink with the second.
    allowed = jnp.where(each > 0, each, jnp.inf)
    together = jnp.cbrt(jnp.sqrt(jnp.sum(cheap**2)) * (_EACH / _TOGETHER) / allowed)
    worst = jnp.sqrt(jnp.max(costly) / allowed)
    pays = ~messy & (jnp.sum(costly > 0) > 1.5 * worst + 1)
    return jnp.minimum(jnp.maximum(together, jnp.where(pays, worst, 0.0)), _MAX_SHORTENING)
