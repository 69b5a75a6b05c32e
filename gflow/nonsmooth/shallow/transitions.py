r"""What follows a kink of one hidden layer: a crossing, a slide, or the end of one.

At the kink of unit i at row n, with normal $m = \nabla_{u_i} z_{in}$, the velocities of the two
sides differ by $-(1-\alpha)\, q_{in}\, m$. Where both lead to the kink the flow slides along it
(`arrive`). A slide ends where the weight λ of its active side leaves [0, 1] (`leave`).
"""

from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from gflow.nonsmooth.kink_kinds import KinkKind
from gflow.nonsmooth.pattern import Event, pair_of_min
from gflow.nonsmooth.pattern_risk import KinkResolution, Transition
from gflow.nonsmooth.shallow.pattern import Change, Evaluation, ShallowPattern, Slides

if TYPE_CHECKING:
    from gflow.nonsmooth.shallow.risk import ShallowPatternRisk

_STILL, _BOUND = 1e-9, 1e-12


def transition(
    risk: "ShallowPatternRisk",
    theta: Array,
    pattern: ShallowPattern,
    evaluation: Evaluation,
    resolution: KinkResolution,
) -> Transition:
    """θ, pattern and event after the kink, or the end of a slide, that is farthest past."""
    slides = risk.slides(evaluation, pattern)
    # A slide that rests on the boundary of [0, 1] is not held there, and ends, too.
    over = jnp.min(slides.margins) <= resolution.distance
    change, kinds = jax.lax.cond(
        over,
        lambda: leave(risk, pattern, slides, resolution),
        lambda: arrive(risk, pattern, evaluation, resolution),
    )
    event = Event(change.unit, change.row, change.members, kinds)
    pattern = pattern.changed(change)

    def settle(theta, pattern):
        projected = pattern.projected(event.unit, risk.normals, risk.whole)
        return risk.put_on_kinks(theta, projected, evaluation, event.unit), projected

    same = lambda theta, pattern: (theta, pattern)
    theta, pattern = jax.lax.cond(event.changes_slides, settle, same, theta, pattern)
    return Transition(theta, pattern, event)


def arrive(
    risk: "ShallowPatternRisk",
    pattern: ShallowPattern,
    evaluation: Evaluation,
    resolution: KinkResolution,
) -> tuple[Change, Int[Array, " rows"]]:
    """What happens at the kink that is farthest past: a crossing, or a slide begins.

    If one unit meets several kinks at once, crossings are handled first, since each changes the
    field at the others.
    """
    scales, eps = resolution.scales, resolution.distance
    margins = risk.margins(evaluation.z, pattern, scales)
    unit, first = pair_of_min(margins)
    past = margins[unit] <= -0.5 * eps
    close = jnp.abs(evaluation.z[unit]) <= 4 * eps * scales[unit] * risk.lines.reach
    close = (past | close) & ~pattern.sliding[unit]
    crosses, free = _crosses(risk, pattern, evaluation, unit, close)
    crosses = crosses & ~(_last_slide(risk, pattern, unit, resolution.circling) & free)
    candidates = jnp.where(crosses & past, margins[unit], jnp.inf)
    crossing = jnp.isfinite(jnp.min(candidates))
    row = jnp.where(crossing, jnp.argmin(candidates), first)
    members = risk.lines.members(row) & close
    used = pattern.used[unit]
    slides = ~crossing & ~jnp.all(used)
    was_active = pattern.active[unit][row]
    aligned = risk.lines.aligned(row)
    stuck = risk.whole & (jnp.sum(used) + slides == risk.normals.shape[1])
    begins = jnp.where(stuck, KinkKind.UNIT_DEGENERATES, KinkKind.SLIDE_BEGINS)
    crossed = jnp.where(aligned == was_active, KinkKind.CROSS_TO_INACTIVE, KinkKind.CROSS_TO_ACTIVE)
    change = Change(
        unit=unit,
        row=row,
        members=members,
        sides=aligned == ~was_active,
        slot=jnp.argmin(used),
        begins=slides,
        ends=jnp.asarray(False),
        slack=jnp.zeros_like(resolution.slack),
    )
    return change, jnp.where(slides, begins, crossed)


def _crosses(
    risk: "ShallowPatternRisk",
    pattern: ShallowPattern,
    evaluation: Evaluation,
    unit: Array,
    close: Bool[Array, " rows"],
) -> tuple[Bool[Array, " rows"], Bool[Array, " rows"]]:
    """At which rows the field on the other side leads away from the kink, too; and at which the
    slides of the unit leave a direction across the kink."""
    active = pattern.active[unit]
    here = risk.normals @ risk.velocity(evaluation)[unit]
    square = jnp.sum(risk.normals**2, axis=1)
    free = jnp.sum((risk.normals @ pattern.projector[unit]) ** 2, axis=1)
    to_active, to_inactive = risk.turns(evaluation.q[unit], active, close)
    jump = jnp.where(active, to_inactive, to_active) * free
    beyond = here - jump
    # A side that does not move counts as leading to the kink: a unit that loses its last active
    # row, or one whose kinks all meet, comes to rest there.
    still = _STILL * jnp.abs(jump)
    crosses = jnp.where(active, beyond < -still, beyond > still)
    return crosses | (free < _BOUND * square), free > _BOUND * square


def _last_slide(
    risk: "ShallowPatternRisk", pattern: ShallowPattern, unit: Array, circling: Bool[Array, ""]
) -> Bool[Array, ""]:
    """Whether one more slide would hold a unit at zero, where it rests.

    On slides in all directions but one, a unit meets the rest of its kinks at zero. There it rests
    if next to zero are directions in which no row is active.
    """
    last = risk.whole & (jnp.sum(pattern.used[unit]) == risk.normals.shape[1] - 1)
    rests = risk.negative_slope == 0 and risk.trained.b is not None
    return last & (rests | circling)


def leave(
    risk: "ShallowPatternRisk",
    pattern: ShallowPattern,
    slides: Slides,
    resolution: KinkResolution,
) -> tuple[Change, Int[Array, " rows"]]:
    """The end of the slide whose λ has left [0, 1] farthest.

    If the pull towards the kink was lost, the flow branches: it could leave to either side.
    """
    unit, slot = jnp.unravel_index(jnp.argmin(slides.margins), slides.margins.shape)
    row = pattern.slots[unit, slot]
    sides = risk.lines.aligned(row) == (slides.weights[unit, slot] > 0.5)
    change = Change(
        unit=unit,
        row=row,
        members=risk.lines.members(row) & pattern.sliding[unit],
        sides=sides,
        slot=slot,
        begins=jnp.asarray(False),
        ends=jnp.asarray(True),
        slack=resolution.slack,
    )
    ends = jnp.where(sides, KinkKind.SLIDE_ENDS_TO_ACTIVE, KinkKind.SLIDE_ENDS_TO_INACTIVE)
    branches = ~slides.pulled[unit, slot] & (resolution.scales[unit] > resolution.unresolved)
    return change, jnp.where(branches, KinkKind.SLIDE_BRANCHES, ends)
