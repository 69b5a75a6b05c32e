r"""The kinks that a step left behind it, and which of them the tolerance can feel.

Beyond the kink of pair j the field differs by its jump $J_j$. A step that keeps its pattern is off
by $J_j s_j$, with $s_j$ the time since the kink, which is known and made good. What remains is of
second order, about $\tfrac12 \rho J_j s_j^2$ with ρ the rate at which the field answers to a
displacement. Kinks for which that is a small part of the tolerance are passed; a step ends at the
first of the others. As the tolerance falls every kink becomes one of these.
"""

from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from gflow.nonsmooth.pairs import Pairs
from gflow.nonsmooth.passages import Ends, Patience, Returns, Seen, Sight
from gflow.nonsmooth.pattern import AbstractPattern
from gflow.nonsmooth.pattern_risk import AbstractPatternRisk

# Margins of slides are multiplied by this, to be compared with those of kinks.
SLIDE_SCALE = 0.1
# All kinks of a step that are passed may cost together so many times what one may.
_TOGETHER = 2.0
# A speed below this part of its jump counts as rest.
_STILL = 1e-9
# A step is shortened at most by this factor, so that its kinks can be passed.
_MAX_SHORTENING = 5.0


class EndedSlides(NamedTuple):
    """Which slots' slides have ended within a step, about how long ago, as a fraction of it (0 if
    not), and what each costs to second order, in units of the tolerance."""

    ended: Bool[Array, "..."]
    age: Float[Array, "..."]
    cost: Float[Array, "..."]


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

    def max_age(self) -> Float[Array, ""]:
        """The largest age of the pairs that are passed."""
        return jnp.max(jnp.where(self.passable, self.age, 0.0))

    def second_order(self, rate: Float[Array, ""]) -> Float[Array, ""]:
        """What the pairs that are passed cost, for a `rate` per step, in units of the tolerance."""
        each = jnp.where(self.passable, 0.5 * rate * self.impulse * self.age, 0.0)
        return jnp.sqrt(jnp.sum(each**2))


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
    sight = risk.sight(thetas, ends, pattern, scales, pairs, patience.tolerance)
    m0, half, m1 = sight.margins
    slope0, slope = ends.dt * sight.slopes
    curve = m0 - m1 + slope
    past = pairs.filled & (m1 <= -eps)
    straight = past & (slope < 0)
    square = slope**2 - 4 * curve * m1
    root = jnp.sqrt(jnp.maximum(square, 0.0))
    jumps = ends.dt * sight.jumps

    returns = Returns.of(m0, half, m1, eps)
    dips = pairs.filled & ~past & returns.found & ~(jumps * returns.stay < patience.each)
    age = 2 * m1 / jnp.where(straight, slope - root, 1.0)
    age = jnp.where(straight, age, jnp.where(dips, 1 - returns.first, 0.0))
    age = jnp.clip(age, 0.0, 1.0)
    age = jnp.where(past, _refined(age, m0, m1, slope0, slope), age)

    # A side that does not move counts as leading to the kink.
    beyond = ends.dt * sight.beyond
    crosses = straight & (beyond < -_STILL * jnp.abs(beyond - slope))
    rate = patience.rate * ends.dt
    slides = _ended_slides(risk, pattern, ends, eps, patience.tolerance)
    seen = Seen(pairs, past, past & ~crosses, age, slides.ended, ends.end)
    tangles = risk.tangles(pattern, seen)
    cost = jumps * jnp.where(tangles.rough, age, 0.5 * rate * age**2)
    messy = past & ((sight.slack > 0) | ~straight | tangles.pairs)
    cheap = past & ~messy & (cost < patience.each)
    costly_end = slides.ended & ~(~tangles.slides & (slides.cost < patience.each))
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
    tolerance: Float[Array, " size_and_one"],
) -> EndedSlides:
    """Beyond the end of a slide the field is off by what the weight of the active side exceeds
    [0, 1] by, which grows from 0."""
    m0, m1 = (risk.slide_margins(e, pattern) for e in (ends.start, ends.end))
    ended = m1 <= -eps / SLIDE_SCALE
    age = jnp.clip(jnp.where(ended, m1 / jnp.where(ended, m1 - m0, 1.0), 0.0), 0.0, 1.0)
    jumps = ends.dt * risk.slide_jumps(ends.end, pattern, tolerance)
    return EndedSlides(ended, age, jnp.where(ended, -0.5 * age * m1 * jumps, 0.0))


def _shortening(cheap, costly, messy, each: Float[Array, ""]) -> Float[Array, ""]:
    """The factor by which a step has to be shorter, where that is less work than to end it at each
    of the `costly` kinks."""
    # The costs of what is passed, of random signs, grow with the third power of the step; that of
    # one kink with the second.
    allowed = jnp.where(each > 0, each, jnp.inf)
    together = jnp.cbrt(jnp.sqrt(jnp.sum(cheap**2)) / (_TOGETHER * allowed))
    worst = jnp.sqrt(jnp.max(costly) / allowed)
    pays = ~messy & (jnp.sum(costly > 0) > 1.5 * worst + 1)
    return jnp.minimum(jnp.maximum(together, jnp.where(pays, worst, 0.0)), _MAX_SHORTENING)
