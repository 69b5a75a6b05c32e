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
from gflow.flow.stopping import FlowPoint, Stop
from gflow.flow.time_changed import TimeChanged
from gflow.parameters import UNSCALED, TimeScales, unflat
from gflow.programs import program
from gflow.risks import PopulationRisk, without_penalty

# Up to this number of parameters times data, and of parameters on exact risks whose work is linear
# in them, all loops are short.
_BRIEF_WORK, _BRIEF_SIZE = 5000, 100


class FlowProblem(eqx.Module):
    """A risk, and the trained and the other parameters of the network that the flow starts from.

    Solvers see θ in the coordinates φ = θ/√τ of the time scales, in which the flow follows the
    negative gradient; φ = θ without time scales. A state is (φ, ∫‖φ'‖²); with a `model` it has a
    clock, (φ, log(1 + t), the dissipated energy), with the flow time t from the start.
    """

    risk: Callable[[Any], Array]
    trained: PyTree
    frozen: PyTree
    time_scales: TimeScales = UNSCALED
    model: TimeChanged | None = None

    @property
    def is_brief(self) -> bool:
        """Whether the field loops over few numbers at a time, as far as the risk tells."""
        size = self.size
        if isinstance(without_penalty(self.risk), PopulationRisk):
            return size <= _BRIEF_SIZE
        num_data = getattr(self.risk, "num_data", None)
        return num_data is not None and num_data * size <= _BRIEF_WORK

    @property
    def size(self) -> int:
        """The number of trained parameters."""
        return sum(a.size for a in jax.tree.leaves(self.trained))

    def start(self, phi: Float[Array, " size"]) -> Float[Array, "..."]:
        """The state at the start, without the dissipated energy."""
        return phi if self.model is None else jnp.append(phi, jnp.zeros((), phi.dtype))

    def phi(self, y: Float[Array, "..."]) -> Float[Array, " size"]:
        """φ of a state."""
        return y[: self.size]

    def flow_time(self, elapsed: Any, y: Float[Array, "..."]) -> Any:
        """The time of gradient flow since the start, in a state whose own time since then has
        `elapsed`."""
        return elapsed if self.model is None else jnp.expm1(y[-2])

    def atol(self, atol: Float[Array, ""]) -> Float[Array, "..."]:
        """The absolute tolerances of a state, for those `atol` of θ; that of the clock is
        relative."""
        if self.model is None and self.time_scales.roots is None:
            return atol
        of_phi = jnp.broadcast_to(self.time_scales.phi(atol), (self.size,))
        tiny = jnp.full_like(atol, jnp.finfo(of_phi.dtype).tiny)
        return jnp.append(of_phi if self.model is None else jnp.append(of_phi, tiny), atol)

    def point(
        self, elapsed: Float[Array, ""], y: Float[Array, "..."], risk, grad_norm
    ) -> FlowPoint:
        """What criteria look at in a state."""
        theta = self.time_scales.theta(self.phi(y))
        return FlowPoint(elapsed, theta, y[-1], risk, grad_norm)

    def params(self, phi: Float[Array, " size"]) -> PyTree:
        """The trained parameters."""
        return unflat(self.trained, self.time_scales.theta(phi))

    def gradient(self, phi: Float[Array, " size"]) -> tuple[Array, Float[Array, " size"]]:
        """L and its generalized gradient in φ."""
        return _value_and_gradient(self, phi)

    def field(self, t, y, args):
        """The derivative of a state by the solver's time."""
        del t, args
        risk, gradient = self.gradient(self.phi(y))
        if self.model is not None:
            return self.model.field(risk, -gradient, y[-2])
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
