"""What is solved, over which times, and how."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from gflow.arguments import PyTree
from gflow.flow.stopping import Stop
from gflow.parameters import UNSCALED, TimeScales, unflat
from gflow.programs import program
from gflow.risks import PopulationRisk, without_penalty

# Up to this number of parameters times data, and of parameters on exact risks whose work is linear
# in them, all loops are short.
_BRIEF_WORK, _BRIEF_SIZE = 5000, 100


class FlowProblem(eqx.Module):
    """A risk, and the trained and the other parameters of the network that the flow starts from.

    Solvers see θ in the coordinates φ = θ/√τ of the time scales, in which the flow follows the
    negative gradient; φ = θ without time scales.
    """

    risk: Callable[[Any], Array]
    trained: PyTree
    frozen: PyTree
    time_scales: TimeScales = UNSCALED

    @property
    def is_brief(self) -> bool:
        """Whether the field loops over few numbers at a time, as far as the risk tells."""
        size = sum(a.size for a in jax.tree.leaves(self.trained))
        if isinstance(without_penalty(self.risk), PopulationRisk):
            return size <= _BRIEF_SIZE
        num_data = getattr(self.risk, "num_data", None)
        return num_data is not None and num_data * size <= _BRIEF_WORK

    def params(self, phi: Float[Array, " size"]) -> PyTree:
        """The trained parameters."""
        return unflat(self.trained, self.time_scales.theta(phi))

    def gradient(self, phi: Float[Array, " size"]) -> tuple[Array, Float[Array, " size"]]:
        """L and its generalized gradient in φ."""
        return _value_and_gradient(self, phi)

    def field(self, t, y, args):
        """d/dt of (φ, ∫‖φ'‖²)."""
        del t, args
        _, gradient = self.gradient(y[:-1])
        return jnp.append(-gradient, jnp.sum(gradient**2))


@partial(program, is_brief=lambda problem, phi: problem.is_brief)
def _value_and_gradient(
    problem: FlowProblem, phi: Float[Array, " size"]
) -> tuple[Array, Float[Array, " size"]]:
    """A program within those of a flow, in which it stands many times but is traced once."""
    value = lambda p: problem.risk(eqx.combine(problem.params(p), problem.frozen))
    return jax.value_and_grad(value)(phi)


class Method(NamedTuple):
    """How a flow is integrated, with steps of `step_size`, or adaptive ones if that is None."""

    solver: diffrax.AbstractSolver
    rtol: Float[Array, ""]
    atol: Float[Array, ""]
    step_size: Float[Array, ""] | None
    stop: Stop

    def with_solver(self, solver: diffrax.AbstractSolver) -> "Method":
        return self._replace(solver=solver)


def first_step(theta: Float[Array, " size"], speed: Float[Array, ""]) -> Float[Array, ""]:
    """The time in which θ moves by a hundredth of its norm; the solver corrects the guess."""
    size = jnp.maximum(jnp.sqrt(jnp.sum(theta**2)), 1e-3)
    return jnp.where(speed > 0, 1e-2 * size / jnp.where(speed > 0, speed, 1.0), jnp.inf)
