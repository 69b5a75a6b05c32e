"""The first event within one step of a solver, found on its dense output.

An event is a margin that falls to −1.5 eps: that of a pair of unit and row at its kink, or of the
weights of the sliding pairs, for which here stands −1.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from gflow.nonsmooth.shallow.pattern import Pattern, least_pair
from gflow.nonsmooth.shallow.risk import SwitchedRisk

SLIDES = -1
# What the weights of slides are multiplied by, to be compared with the margins of kinks.
SLIDE_SCALE = 0.1


class Aim(NamedTuple):
    """The time of the event that the next step is to end at, inf if none, and which it is."""

    time: Float[Array, ""]
    which: Int[Array, ""]


class Found(NamedTuple):
    """The first event of a step: at which share of it (inf if none), which it is, and whether the
    flow `arrives` there or a shorter step is to be aimed at it; the state where it arrives,
    otherwise that at the step's end."""

    share: Float[Array, ""]
    which: Int[Array, ""]
    arrives: Bool[Array, ""]
    y: Float[Array, " size"]


class Step(eqx.Module):
    """One step of a solver within a pattern, with `at` the dense output by share, and `units` the
    units' sizes at the start.

    `which` is the event that the step was aimed at, if `aimed`. The dense
    output is taken to be as accurate as the step within the share `near` of the step from its ends.
    """

    risk: SwitchedRisk
    pattern: Pattern
    at: Callable[[Any], Array]
    units: Float[Array, " width"]
    y_start: Float[Array, " size"]
    y_end: Float[Array, " size"]
    aimed: Bool[Array, ""]
    which: Int[Array, ""]
    eps: float = eqx.field(static=True)
    near: float = eqx.field(static=True)

    def kink_margins(self, y) -> Float[Array, "width rows"]:
        return kink_margins(self.risk, y, self.pattern, self.units)

    def slide_margin(self, y) -> Float[Array, ""]:
        return slide_margin(self.risk, y, self.pattern)

    def without_slack(self, wanted: Bool[Array, ""]) -> Pattern:
        """The pattern, if `wanted` without the slack of pairs that the step leaves on their side by
        as much."""
        slack = self.pattern.slack
        far = wanted & (self.kink_margins(self.y_end) > 2 * slack)
        return eqx.tree_at(lambda p: p.slack, self.pattern, jnp.where(far, 0.0, slack))

    def height(self, which, share) -> Array:
        """1.5 eps more than the margin of an event."""

        def of_pair(y):
            return self.risk.kink_margin(y[:-1], self.pattern, self.units, *self._pair(which))

        of_slides = lambda y: self.slide_margin(y)
        return 1.5 * self.eps + jax.lax.cond(which == SLIDES, of_slides, of_pair, self.at(share))

    def _pair(self, which) -> tuple[Array, Array]:
        """Unit and row."""
        return jnp.divmod(jnp.maximum(which, 0), self.pattern.active.shape[1])

    def first_event(self, wanted: Bool[Array, ""]) -> Found:
        """The first event, looked for where `wanted`."""
        start, end = self.kink_margins(self.y_start), self.kink_margins(self.y_end)
        half = self.kink_margins(self.at(jnp.asarray(0.5, end.dtype)))
        # The parabola through the three shows most pairs that cross and come back within the step.
        curve = 2 * (start - 2 * half + end)
        slope = end - start - curve
        dips = (curve > 0) & (slope < 0) & (slope > -2 * curve)
        dips &= slope**2 >= 4 * curve * (start + self.eps)
        kinks = (end <= -self.eps) | (half <= -self.eps) | dips
        slides = self.slide_margin(self.y_end) <= -self.eps
        wanted = wanted & (jnp.any(kinks) | slides | self.aimed)

        def look():
            # The first root of each parabola, to try the pairs in this order.
            root = -slope + jnp.sqrt(jnp.maximum(slope**2 - 4 * curve * start, 0.0))
            share = 2 * start / jnp.where(root > 0, root, jnp.inf)
            share = jnp.where(root > 0, jnp.clip(share, 0.0, 1.0), 1.0)
            queue = jnp.where(kinks, share, jnp.inf)
            # What was aimed at may lie just past the end.
            late = self.aimed & (self.which != SLIDES)
            queue = queue.at[self._pair(self.which)].min(jnp.where(late, 1.0, jnp.inf))

            def bracket(which):
                pair = self._pair(which)
                below = lambda margins: margins[pair] <= -self.eps
                high = jnp.where(dips[pair], -slope[pair] / (2 * curve[pair]), 1.1)
                high = jnp.where(below(half), 0.5, jnp.where(below(end), 1.0, high))
                return jnp.where(which == SLIDES, jnp.where(slides, 1.0, 1.1), high)

            slides_due = slides | (self.aimed & ~late)
            return self._earliest(wanted, queue, slides_due, bracket)

        return jax.lax.cond(wanted, look, lambda: self._nothing())

    def _nothing(self) -> Found:
        inf, no = jnp.full_like(self.y_end[0], jnp.inf), jnp.asarray(False)
        return Found(inf, self.which, no, self.y_end)

    def _earliest(self, wanted, queue, slides_due, bracket) -> Found:
        """The first event among those in the queue, which has the shares expected of the kinks that
        are due, and the slides if they are due, with the ends of their brackets."""

        def following(queue, slides_due):
            some = jnp.min(queue) < jnp.inf
            return jnp.where(some, _least(queue), SLIDES), some | slides_due

        def unfinished(c):
            *_, more, count = c
            return more & (count < 100)

        def one(c):
            _, which, high, queue, slides_due, _, count = c
            share = self._root(which, high)
            close = (share <= self.near) | (share >= 1 - self.near)
            arrives = close & (share < jnp.inf)

            def check():
                y = self.at(share)
                margins, slide = self.kink_margins(y), self.slide_margin(y)
                worst = jnp.where(slide < jnp.min(margins), SLIDES, _least(margins))
                deep = jnp.minimum(jnp.min(margins), slide) <= -3 * self.eps
                return y, deep & (worst != which), worst

            aside = lambda: (self.y_end, jnp.asarray(False), which)
            y, earlier, worst = jax.lax.cond(arrives, check, aside)
            found = Found(share, which, arrives, y)
            # A dip that proves to stay above 0 is no event, and the next in the queue is tried.
            none = share == jnp.inf
            pair = self._pair(which)
            queue = queue.at[pair].set(jnp.where(which == SLIDES, queue[pair], jnp.inf))
            slides_due = slides_due & (which != SLIDES)
            after, any_left = following(queue, slides_due)
            which = jnp.where(none, after, jnp.where(earlier, worst, which))
            high = jnp.where(none, bracket(after), share)
            return found, which, high, queue, slides_due, earlier | (none & any_left), count + 1

        which, some = following(queue, slides_due)
        nothing = self._nothing()
        start = (nothing, which, bracket(which), queue, slides_due, wanted & some, 0)
        return jax.lax.while_loop(unfinished, one, start)[0]

    def _root(self, which, high) -> Array:
        """The share at which the height of an event is 0, by the Illinois method; inf if there is
        none before `high`.

        Where its event will only be aimed at, a few digits are enough.
        """
        least = 4 * jnp.finfo(high.dtype).eps

        def unfinished(c):
            low, high, _, f_high, _, count, near = c
            narrower = (high - low > least * high) & (f_high < 0) & ~near
            return (count < 2) | (narrower & (count < 100))

        def narrow(c):
            low, high, f_low, f_high, side, count, _ = c
            share = high - f_high * (high - low) / (f_high - f_low)
            halve = ~((share > low) & (share < high)) | (count % 4 == 3)
            share = jnp.where(halve, 0.5 * (low + high), share)
            # The ends come first, one after the other.
            share = jnp.where(count == 0, high, jnp.where(count == 1, low, share))
            f = self.height(which, share)
            amid = (share > self.near) & (share < 1 - self.near)
            near = jnp.abs(f) <= jnp.where(amid, 1e-4 * (f_low - f_high), 0.5 * self.eps)
            near = near & (count > 1)
            below = (f <= 0) | near
            # Illinois: an end that stays twice has its value halved.
            f_low_next = jnp.where(below, jnp.where(side == 1, 0.5 * f_low, f_low), f)
            f_high_next = jnp.where(
                below, jnp.minimum(f, -0.1 * self.eps), jnp.where(side == -1, 0.5 * f_high, f_high)
            )
            inner = (
                jnp.where(below, low, share),
                jnp.where(below, share, high),
                f_low_next,
                f_high_next,
                jnp.where(below, 1, -1),
            )
            after_low = (low, high, jnp.maximum(f, 0.5 * self.eps), f_high, 0)
            after_high = (low, high, f_low, f, 0)
            pick = lambda *of: jnp.where(count == 0, of[0], jnp.where(count == 1, of[1], of[2]))
            return *map(pick, after_high, after_low, inner), count + 1, near

        start = (jnp.zeros_like(high), high, high, -high, 0, 0, jnp.asarray(False))
        found = jax.lax.while_loop(unfinished, narrow, start)
        return jnp.where(found[3] < 0, found[1], jnp.inf)


def _least(margins: Float[Array, "width rows"]) -> Int[Array, ""]:
    unit, row = least_pair(margins)
    return unit * margins.shape[1] + row


def kink_margins(risk: SwitchedRisk, y, pattern: Pattern, units) -> Float[Array, "width rows"]:
    """What is positive until the pairs of unit and row reach their kinks."""
    return risk.kink_margins(risk.preactivations(risk.net(y[:-1])), pattern, units)


def slide_margin(risk: SwitchedRisk, y, pattern: Pattern) -> Float[Array, ""]:
    """The least margin of the slides, on the scale of the kinks' margins."""

    def least(y):
        return SLIDE_SCALE * jnp.min(risk.slide_margins(risk.parts(y[:-1], pattern), pattern))

    nothing = lambda y: jnp.asarray(jnp.inf, y.dtype)
    return jax.lax.cond(jnp.any(pattern.used), least, nothing, y)
