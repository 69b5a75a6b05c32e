"""What to do about a flow whose steps collapsed, or were too long."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array

from gflow.flow.run import AbstractRun
from gflow.risks import EmpiricalRisk, penalty_of, without_penalty
from gflow.trajectory import Trajectory

# Steps of fixed size are too long if the drift of energy is this fraction of the risk's fall.
_LARGE_DRIFT = 0.1
# Explicit solvers are stable for step_size · sharpness up to 2 to 4.
_STABLE = 2.0
# Distances at which the slope of a loss is compared, relative to the outputs.
_NEAR, _NEARER = 1e-3, 1e-4


def advice_for(trajectory: Trajectory, run: AbstractRun, risk: Any) -> str | None:
    """A sentence on what is wrong and what to do, None if there is nothing to say."""
    step_size = run.method.step_size
    if step_size is not None:
        return _on_long_steps(trajectory, run, float(step_size))
    ended = trajectory.result_name == "changed_time_ended"
    if ended or (trajectory.succeeded and not trajectory.collapsed()):
        return None
    net, penalty, risk = trajectory.final, penalty_of(risk), without_penalty(risk)
    if isinstance(risk, EmpiricalRisk) and (datum := kink_of_loss(risk, net)) is not None:
        steps, t = int(trajectory.stats["num_steps"]), float(trajectory.ts[-1])
        return (
            f"{steps:,} steps were taken to t = {t:.4g}, since the loss is not differentiable "
            f"where the flow is: its slope jumps at the output of datum {datum}. Kinks of losses "
            "are not located; a loss with a continuous derivative, such as a Huber loss, has none"
        )
    if penalty is not None and not penalty.only_decays and _has_kink(penalty, net):
        return (
            f"{int(trajectory.stats['num_steps']):,} steps were taken to t = "
            f"{float(trajectory.ts[-1]):.4g}, since the penalty is not differentiable where the "
            "flow is. Kinks of penalties, as of |w|, are not located; sqrt(w² + ε²), with a small "
            "ε, has none"
        )
    return trajectory.advice()


def _on_long_steps(trajectory: Trajectory, run: AbstractRun, step_size: float) -> str | None:
    risk, drift = np.asarray(trajectory.risk), np.asarray(trajectory.diagnostics.energy)
    fell = risk[0] - np.min(risk)
    # Along a flow the risk falls. A comparison with NaN is False.
    well = np.max(risk) <= risk[0] + _LARGE_DRIFT * fell
    if trajectory.succeeded and well and np.max(np.abs(drift)) <= _LARGE_DRIFT * fell:
        return None
    stretch = step_size * run.spectral_radius(run.init())
    if stretch <= _STABLE and trajectory.succeeded:
        return None
    return (
        f"steps of size {step_size:g} are too long: step_size · sharpness is {stretch:.3g} at the "
        "start, explicit solvers are stable up to about 3, and the energy drifted by "
        f"{np.nanmax(np.abs(drift)):.2g}. Take a smaller step_size, or leave it to the solver"
    )


def kink_of_loss(risk: EmpiricalRisk, net: Any) -> int | None:
    """The first datum at whose output the slope of the loss jumps, None if there is none."""
    jumps = np.asarray(_slope_jumps(risk, net))
    return int(np.argmax(jumps)) if jumps.any() else None


@eqx.filter_jit
def _slope_jumps(risk: EmpiricalRisk, net: Any) -> Array:
    """For each datum, whether the slope of the loss changes as much within a small distance of its
    output as within a larger one."""
    outputs = jax.vmap(net)(risk.x)
    slope = jax.vmap(jax.grad(risk.loss))

    def change(distance):
        by = distance * jnp.maximum(1.0, jnp.abs(outputs))
        apart = jnp.abs(slope(outputs + by, risk.y) - slope(outputs - by, risk.y))
        return jnp.max(apart.reshape(len(outputs), -1), axis=1)

    near = change(_NEAR)
    size = jnp.max(jnp.abs(slope(outputs, risk.y).reshape(len(outputs), -1)), axis=1)
    return (change(_NEARER) > 0.5 * near) & (near > 1e-2 * jnp.maximum(size, jnp.max(size)))


@eqx.filter_jit
def _has_kink(penalty: Callable, net: Any) -> Array:
    """Whether the slope of a penalty changes as much within a small distance as within a larger
    one, in some entry of the network."""
    theta, unravel = ravel_pytree(eqx.filter(net, eqx.is_inexact_array))
    rest = eqx.filter(net, eqx.is_inexact_array, inverse=True)
    slope = jax.grad(lambda theta: penalty(eqx.combine(unravel(theta), rest)))

    def change(distance):
        by = distance * jnp.max(jnp.abs(theta))
        return jnp.abs(slope(theta + by) - slope(theta - by))

    near, size = change(_NEAR), jnp.max(jnp.abs(slope(theta)))
    return jnp.any((change(_NEARER) > 0.5 * near) & (near > 1e-2 * size))
