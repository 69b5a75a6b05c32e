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

from gflow.flow.behind import SLIDE_SCALE, Behind
from gflow.flow.root import falling_root
from gflow.nonsmooth.pairs import Pair
from gflow.nonsmooth.pattern import AbstractPattern, pair_of_min
from gflow.nonsmooth.pattern_risk import AbstractPatternRisk

SLIDES = -1
_MAX_CANDIDATES = 100


class Aim(NamedTuple):
    """The time of the event that the next step is to end at, inf if none, and which it is."""

    time: Float[Array, ""]
    which: Int[Array, ""]


class FirstEvent(NamedTuple):
    """The first event of a step: the fraction of the step at which it happens (inf if none), and
    which event it is. If the flow `arrives` there, y is the state at the event. Otherwise a shorter
    step has to be aimed at the event, and y is the state at the end of the step. `slide_ends` is
    where a slide ends that is passed."""

    fraction: Float[Array, ""]
    which: Int[Array, ""]
    arrives: Bool[Array, ""]
    y: Float[Array, " size"]
    slide_ends: Float[Array, ""]


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
    y_end: Float[Array, " size"]
    at: Callable[[Any], Array]
    aimed: Bool[Array, ""]
    aim: Aim
    accuracy: EventAccuracy

    def height(self, which, fraction) -> Array:
        """1.5 eps more than the margin of an event."""

        def of_pair(y):
            return self.risk.kink_margin(y[:-1], self.pattern, self.scales, self._pair(which))

        of_slides = lambda y: slide_margin(self.risk, y, self.pattern)
        margin = jax.lax.cond(which == SLIDES, of_slides, of_pair, self.at(fraction))
        return 1.5 * self.accuracy.eps + margin

    def _pair(self, which) -> Pair:
        return Pair(*jnp.divmod(jnp.maximum(which, 0), self.pattern.active.shape[1]))

    def first_event(self, behind: Behind) -> FirstEvent:
        """The first of the events that have to be located."""
        # The event aimed at may lie just past the end.
        late = self.aimed & (self.aim.which != SLIDES)
        queue = jnp.where(behind.located, 1 - behind.age, jnp.inf)
        found = behind.pairs.unit * self.pattern.active.shape[1] + behind.pairs.row
        again = jnp.any(behind.located & (found == self.aim.which))
        ends = self.aimed & (self.aim.which == SLIDES)
        slides_due = behind.slides_end | ends

        def following(queue, late, slides_due):
            """The next event to look for, where at the latest, and whether there is one."""
            first = jnp.argmin(queue)
            listed, slides = queue[first] < jnp.inf, jnp.where(behind.slides_end, 1.0, 1.1)
            which = jnp.where(listed, found[first], jnp.where(late, self.aim.which, SLIDES))
            high = jnp.where(listed, behind.until[first], jnp.where(late, 1.1, slides))
            return which, high, listed | late | slides_due

        def unfinished(c):
            *_, more, count = c
            return more & (count < _MAX_CANDIDATES)

        def one(c):
            before, which, high, queue, late, slides_due, _, count = c
            fraction = self._root(which, high)
            passes = (which == SLIDES) & behind.slides_end & ~behind.locates_ends
            slide_ends = jnp.where(passes, fraction, before.slide_ends)
            fraction = jnp.where(passes, jnp.inf, fraction)
            arrives = ~self._amid(fraction) & (fraction < jnp.inf)
            aside = lambda: (self.y_end, jnp.asarray(False), which)
            check = lambda: self._earlier(behind, which, fraction)
            y, earlier, worst = jax.lax.cond(arrives, check, aside)
            # A dip that stays above 0 is no event, nor is what is passed, and the next is tried.
            none = fraction == jnp.inf
            queue = jnp.where(behind.located & (found == which), jnp.inf, queue)
            late, slides_due = late & (which != self.aim.which), slides_due & (which != SLIDES)
            after, until, any_left = following(queue, late, slides_due)
            event = FirstEvent(fraction, which, arrives, y, slide_ends)
            which = jnp.where(none, after, jnp.where(earlier, worst, which))
            high = jnp.where(none, until, fraction)
            more = earlier | (none & any_left)
            return event, which, high, queue, late, slides_due, more, count + 1

        late = late & ~again
        which, high, some = following(queue, late, slides_due)
        start = (self.nothing(), which, high, queue, late, slides_due, some, 0)
        return jax.lax.while_loop(unfinished, one, start)[0]

    def nothing(self) -> FirstEvent:
        inf, no = jnp.full_like(self.y_end[0], jnp.inf), jnp.asarray(False)
        return FirstEvent(inf, self.aim.which, no, self.y_end, jnp.ones_like(inf))

    def _earlier(self, behind: Behind, which, fraction):
        """The state at an event, whether others that have to be located came before, and which of
        them is farthest past."""
        y = self.at(fraction)
        z = self.risk.preactivations(y[:-1], self.pattern)
        margins = self.risk.margins(z, self.pattern, self.scales)
        unit = jnp.where(behind.passable, behind.pairs.unit, len(margins))
        margins = margins.at[unit, behind.pairs.row].set(jnp.inf, mode="drop")
        slide = slide_margin(self.risk, y, self.pattern)
        passes = behind.slides_end & ~behind.locates_ends
        slide = jnp.where(passes, jnp.inf, slide)
        worst = jnp.where(slide < jnp.min(margins), SLIDES, _index_of_min(margins))
        deep = jnp.minimum(jnp.min(margins), slide) <= -3 * self.accuracy.eps
        return y, deep & (worst != which), worst

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
