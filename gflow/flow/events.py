"""The first event within one step of a solver, found on its dense output.

At an event a margin falls to −1.5 eps: the margin of a pair of unit and row at its kink, or the
smallest margin of the slides. Events are numbered by pairs; −1 stands for the slides.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from gflow.flow.root import falling_root
from gflow.nonsmooth.pattern import AbstractPattern, Pair, pair_of_min
from gflow.nonsmooth.pattern_risk import AbstractPatternRisk

SLIDES = -1
# Margins of slides are multiplied by this, to be compared with those of kinks.
SLIDE_SCALE = 0.1
_MAX_CANDIDATES = 100


class Aim(NamedTuple):
    """The time of the event that the next step is to end at, inf if none, and which it is."""

    time: Float[Array, ""]
    which: Int[Array, ""]


class FirstEvent(NamedTuple):
    """The first event of a step: the fraction of the step at which it happens (inf if none), and
    which event it is. If the flow `arrives` there, y is the state at the event. Otherwise a shorter
    step has to be aimed at the event, and y is the state at the end of the step."""

    fraction: Float[Array, ""]
    which: Int[Array, ""]
    arrives: Bool[Array, ""]
    y: Float[Array, " size"]


class EventAccuracy(eqx.Module):
    """Events are located to margins of `eps`. Dense output is as accurate as the step itself within
    the fraction `near` of the step from either end."""

    eps: float = eqx.field(static=True)
    near: float = eqx.field(static=True)


class Step(eqx.Module):
    """One step of a solver within a pattern, with `at` the dense output by fraction of the step,
    and `scales` what preactivations are measured by.

    `aim` says which event the step was aimed at, if it was `aimed` at one.
    """

    risk: AbstractPatternRisk
    pattern: AbstractPattern
    scales: Any
    y_start: Float[Array, " size"]
    y_end: Float[Array, " size"]
    at: Callable[[Any], Array]
    aimed: Bool[Array, ""]
    aim: Aim
    accuracy: EventAccuracy

    def kink_margins(self, y) -> Float[Array, "units rows"]:
        return self.risk.kink_margins(y[:-1], self.pattern, self.scales)

    def slide_margin(self, y) -> Float[Array, ""]:
        return slide_margin(self.risk, y, self.pattern)

    def without_slack(self, wanted: Bool[Array, ""]) -> AbstractPattern:
        """The pattern; if `wanted`, without the slack of pairs that are well off their kinks."""
        slack = self.pattern.slack
        far = wanted & (self.kink_margins(self.y_end) > 2 * slack)
        return eqx.tree_at(lambda p: p.slack, self.pattern, jnp.where(far, 0.0, slack))

    def height(self, which, fraction) -> Array:
        """1.5 eps more than the margin of an event."""

        def of_pair(y):
            return self.risk.kink_margin(y[:-1], self.pattern, self.scales, self._pair(which))

        of_slides = lambda y: self.slide_margin(y)
        margin = jax.lax.cond(which == SLIDES, of_slides, of_pair, self.at(fraction))
        return 1.5 * self.accuracy.eps + margin

    def _pair(self, which) -> Pair:
        return Pair(*jnp.divmod(jnp.maximum(which, 0), self.pattern.active.shape[1]))

    def first_event(self, wanted: Bool[Array, ""]) -> FirstEvent:
        """The first event, looked for where `wanted`."""
        eps = self.accuracy.eps
        start, end = self.kink_margins(self.y_start), self.kink_margins(self.y_end)
        half = self.kink_margins(self.at(jnp.asarray(0.5, end.dtype)))
        # The parabola through the three shows most pairs that cross twice within the step.
        curve = 2 * (start - 2 * half + end)
        slope = end - start - curve
        dips = (curve > 0) & (slope < 0) & (slope > -2 * curve)
        dips &= slope**2 >= 4 * curve * (start + eps)
        kinks = (end <= -eps) | (half <= -eps) | dips
        slides = self.slide_margin(self.y_end) <= -eps
        wanted = wanted & (jnp.any(kinks) | slides | self.aimed)

        def look():
            # The first root of each parabola, to try the pairs in this order.
            root = -slope + jnp.sqrt(jnp.maximum(slope**2 - 4 * curve * start, 0.0))
            fraction = 2 * start / jnp.where(root > 0, root, jnp.inf)
            fraction = jnp.where(root > 0, jnp.clip(fraction, 0.0, 1.0), 1.0)
            queue = jnp.where(kinks, fraction, jnp.inf)
            # The event aimed at may lie just past the end.
            late = self.aimed & (self.aim.which != SLIDES)
            queue = queue.at[self._pair(self.aim.which)].min(jnp.where(late, 1.0, jnp.inf))

            def bracket(which):
                pair = self._pair(which)
                below = lambda margins: margins[pair] <= -eps
                high = jnp.where(dips[pair], -slope[pair] / (2 * curve[pair]), 1.1)
                high = jnp.where(below(half), 0.5, jnp.where(below(end), 1.0, high))
                return jnp.where(which == SLIDES, jnp.where(slides, 1.0, 1.1), high)

            slides_due = slides | (self.aimed & ~late)
            return self._earliest(wanted, queue, slides_due, bracket)

        return jax.lax.cond(wanted, look, lambda: self._nothing())

    def _nothing(self) -> FirstEvent:
        inf, no = jnp.full_like(self.y_end[0], jnp.inf), jnp.asarray(False)
        return FirstEvent(inf, self.aim.which, no, self.y_end)

    def _earliest(self, wanted, queue, slides_due, bracket) -> FirstEvent:
        """The first of the events that are due: kinks, with the fractions expected of them in the
        `queue`, and slides. `bracket` gives the end of the interval to search for an event."""

        def following(queue, slides_due):
            some = jnp.min(queue) < jnp.inf
            return jnp.where(some, _index_of_min(queue), SLIDES), some | slides_due

        def unfinished(c):
            *_, more, count = c
            return more & (count < _MAX_CANDIDATES)

        def one(c):
            _, which, high, queue, slides_due, _, count = c
            fraction = self._root(which, high)
            arrives = ~self._amid(fraction) & (fraction < jnp.inf)

            def check():
                y = self.at(fraction)
                margins, slide = self.kink_margins(y), self.slide_margin(y)
                worst = jnp.where(slide < jnp.min(margins), SLIDES, _index_of_min(margins))
                deep = jnp.minimum(jnp.min(margins), slide) <= -3 * self.accuracy.eps
                return y, deep & (worst != which), worst

            aside = lambda: (self.y_end, jnp.asarray(False), which)
            y, earlier, worst = jax.lax.cond(arrives, check, aside)
            found = FirstEvent(fraction, which, arrives, y)
            # A dip that stays above 0 is no event, and the next in the queue is tried.
            none = fraction == jnp.inf
            pair = self._pair(which)
            queue = queue.at[pair].set(jnp.where(which == SLIDES, queue[pair], jnp.inf))
            slides_due = slides_due & (which != SLIDES)
            after, any_left = following(queue, slides_due)
            which = jnp.where(none, after, jnp.where(earlier, worst, which))
            high = jnp.where(none, bracket(after), fraction)
            return found, which, high, queue, slides_due, earlier | (none & any_left), count + 1

        which, some = following(queue, slides_due)
        nothing = self._nothing()
        start = (nothing, which, bracket(which), queue, slides_due, wanted & some, 0)
        return jax.lax.while_loop(unfinished, one, start)[0]

    def _root(self, which, high) -> Array:
        height = lambda fraction: self.height(which, fraction)
        return falling_root(height, high, eps=self.accuracy.eps, amid=self._amid)

    def _amid(self, fraction) -> Bool[Array, ""]:
        """Whether a place is so far from both ends of the step that dense output is not accurate
        enough there: an event is then aimed at by a shorter step."""
        near = self.accuracy.near
        return (fraction > near) & (fraction < 1 - near)


def _index_of_min(margins: Float[Array, "units rows"]) -> Int[Array, ""]:
    unit, row = pair_of_min(margins)
    return unit * margins.shape[1] + row


def slide_margin(risk: AbstractPatternRisk, y, pattern: AbstractPattern) -> Float[Array, ""]:
    """The smallest margin of the slides, on the scale of the kinks' margins."""

    def smallest(y):
        evaluation = risk.evaluate(y[:-1], pattern)
        return SLIDE_SCALE * jnp.min(risk.slide_margins(evaluation, pattern))

    nothing = lambda y: jnp.asarray(jnp.inf, y.dtype)
    return jax.lax.cond(pattern.slides(), smallest, nothing, y)
