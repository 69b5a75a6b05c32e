"""How fast a flow gets on with kinks located or passed one by one, and across all of them.

Where a step has a great many kinks behind it, each of them of no weight, it is quicker to let the
field jump within the step, as a plain solver does, and leave it to the estimate of the error to
shorten it. The two ways are tried in turns of some steps, and the quicker one is kept.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

# The steps of a turn, and the pairs behind each of them, in the mean, for which the other way is
# tried.
_STEPS, _MANY = 8, 16
# What a step with kinks behind it costs, in those without.
_KINK_STEP = 3
# The turns for which a way that was better is kept, at first and at most.
_FIRST_STAY, _LONGEST_STAY = 4, 256


class Pace(NamedTuple):
    """The `steps` of this turn, what they `cost`, the pairs `behind` them, and the time at which it
    `began`; the time per cost of the last turn with a pattern that was `held`; and for how many
    turns the present way is kept, `left` of the whole `stay`."""

    steps: Int[Array, ""]
    cost: Int[Array, ""]
    behind: Int[Array, ""]
    began: Float[Array, ""]
    held: Float[Array, ""]
    left: Int[Array, ""]
    stay: Int[Array, ""]

    @classmethod
    def at(cls, t: Float[Array, ""]) -> "Pace":
        """Before the first step."""
        zero = jnp.asarray(0, int)
        return cls(zero, zero, zero, t, jnp.zeros_like(t), zero, jnp.asarray(_FIRST_STAY, int))

    def after_step(self, at_kinks: Bool[Array, ""], behind: Int[Array, ""]) -> "Pace":
        """After a step, tried or taken."""
        cost = self.cost + jnp.where(at_kinks, _KINK_STEP, 1)
        return self._replace(steps=self.steps + 1, cost=cost, behind=self.behind + behind)

    @property
    def is_due(self) -> Bool[Array, ""]:
        """Whether the turn is over."""
        return self.steps >= _STEPS

    def decided(
        self, t: Float[Array, ""], loose: Bool[Array, ""]
    ) -> tuple["Pace", Bool[Array, ""]]:
        """The next turn, and whether it goes the other way."""
        speed = (t - self.began) / self.cost
        slower = loose & (speed < self.held)
        crowd = self.behind >= _MANY * self.steps
        changes = jnp.where(loose, slower | (self.left <= 0), crowd & (self.left <= 0))
        # One that proves itself again is kept for longer; after a defeat it is tried again later.
        stay = jnp.where(changes, jnp.minimum(2 * self.stay, _LONGEST_STAY), self.stay)
        # From a loose pattern that was not slower it goes back for one turn, to compare.
        left = jnp.where(changes, jnp.where(loose & ~slower, 0, stay), self.left - 1)
        zero = jnp.zeros_like(self.steps)
        held = jnp.where(loose, self.held, speed)
        return Pace(zero, zero, zero, t, held, left, stay), changes
