"""What a solve returns, whichever way kinks are treated."""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from gflow.results import RESULTS
from gflow.solvers.work import Work


class SavedStates(NamedTuple):
    """States (θ, ∫‖θ'‖²) at the saved times, the first `num_saved` of them filled, and the norms
    `speeds` of the field that was followed, None where that is the generalized gradient."""

    num_saved: Int[Array, ""]
    ys: Float[Array, "times size"]
    speeds: Float[Array, " times"] | None


class StepCounts(NamedTuple):
    """Steps in all, those that were rejected, and those cut short to end at a kink; the work, None
    where the solver does not count it."""

    steps: Int[Array, ""]
    rejected: Int[Array, ""]
    shortened: Int[Array, ""]
    work: Work | None


class FlowOutput(NamedTuple):
    """Where a flow ended, at time `t` in state `y` with this `speed`, and what it left.

    `ts` are the saved times, inf in slots that are not filled; `risk_at_start` is None if it
    is still to be computed."""

    t: Float[Array, ""]
    y: Float[Array, " size"]
    speed: Float[Array, ""] | None
    ts: Float[Array, " times"]
    saved: SavedStates
    counts: StepCounts
    num_kinks: Int[Array, ""] | None
    result: RESULTS
    risk_at_start: Float[Array, ""] | None = None

    def without_gaps(self) -> "FlowOutput":
        """With the last filled slot in those that are not filled."""
        saved = self.saved
        last = jnp.maximum(saved.num_saved - 1, 0)
        place = jnp.minimum(jnp.arange(self.ts.shape[0]), last)
        speeds = None if saved.speeds is None else saved.speeds[place]
        return self._replace(saved=SavedStates(saved.num_saved, saved.ys[place], speeds))

    def with_end(self, wanted: Int[Array, ""]) -> "FlowOutput":
        """With the state where the flow left off in the next slot of the saved ones, if it ended
        before it had saved as many as were `wanted`."""
        (count, ys, speeds), ts = self.saved, self.ts
        last = jnp.where(count > 0, ts[count - 1], -jnp.inf)
        early = (count < wanted) & (self.t > last)
        slot = jnp.where(early, count, ts.shape[0])
        if speeds is not None:
            speeds = speeds.at[slot].set(self.speed, mode="drop")
        saved = SavedStates(
            count + early.astype(count.dtype),
            ys.at[slot].set(self.y, mode="drop"),
            speeds,
        )
        return self._replace(ts=ts.at[slot].set(self.t, mode="drop"), saved=saved)
