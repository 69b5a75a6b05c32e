"""What is solved, and what a solve returns, whichever way kinks are treated."""

from collections.abc import Callable
from typing import Any, NamedTuple

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, PyTree

from gflow.flow.stopping import Stop
from gflow.kink_log import KinkLog
from gflow.results import RESULTS
from gflow.solvers.work import Work
from gflow.trajectory import Switch

# At most so many steps between pauses: for the progress bar and Ctrl-C, checkpoints, and the choice
# of the solver.
PIECE_STEPS = 512


class Problem(eqx.Module):
    risk: Callable[[Any], Array]
    trained: PyTree
    frozen: PyTree
    solver: diffrax.AbstractSolver
    stop: Stop
    rtol: Array
    atol: Array
    step_size: Array | None

    def gradient(self, theta: Float[Array, " size"]) -> tuple[Array, Float[Array, " size"]]:
        """L(θ) and G(θ) for flat trained parameters."""
        _, unravel = ravel_pytree(self.trained)
        return jax.value_and_grad(lambda p: self.risk(eqx.combine(unravel(p), self.frozen)))(theta)

    def field(self, t, y, args):
        """d/dt of (θ, ∫‖θ'‖²)."""
        del t, args
        _, gradient = self.gradient(y[:-1])
        return jnp.append(-gradient, jnp.sum(gradient**2))

    def risk_and_grad_norm(self, theta):
        value, gradient = self.gradient(theta)
        return value, jnp.sqrt(jnp.sum(gradient**2))


class Piece(NamedTuple):
    """States (θ, dissipation) at saved times, the first `count` of them filled, and at the end.

    `speeds` are the norms of the field that was followed at the saved times and at the end, `kinks`
    the log, where kinks were located, `switches` the solvers that took over.
    """

    ts: Float[Array, " times"]
    ys: Float[Array, "times size"]
    count: Any
    end: tuple[Array, Array]
    steps: Any
    rejected: Any
    result: RESULTS
    work: Work | None
    speeds: tuple[Array, Array] | None = None
    kinks: KinkLog | None = None
    shortened: Any = None
    switches: tuple[Switch, ...] = ()

    def with_end(self) -> "Piece":
        """With the state where an early end left off in the next slot."""
        t_end, y_end = self.end
        count = jnp.asarray(self.count)
        last = jnp.where(count > 0, self.ts[count - 1], -jnp.inf)
        early = (count < self.ts.shape[0]) & (t_end > last)
        slot = jnp.where(early, count, self.ts.shape[0])
        speeds = self.speeds
        if speeds is not None:
            speeds = (speeds[0].at[slot].set(speeds[1], mode="drop"), speeds[1])
        return self._replace(
            speeds=speeds,
            ts=self.ts.at[slot].set(t_end, mode="drop"),
            ys=self.ys.at[slot].set(y_end, mode="drop"),
            count=count + early.astype(count.dtype),
        )


def first_step(theta: Float[Array, " size"], speed: Array) -> Array:
    """The time in which θ moves by a hundredth of its norm; the solver corrects the guess."""
    size = jnp.maximum(jnp.sqrt(jnp.sum(theta**2)), 1e-3)
    return jnp.where(speed > 0, 1e-2 * size / jnp.where(speed > 0, speed, 1.0), jnp.inf)
