"""The choice of solver and step-size controller."""

import diffrax
import jax.numpy as jnp
from jaxtyping import Array, Float

from gflow.arguments import ArgumentError


def as_solver(solver: diffrax.AbstractSolver | None) -> diffrax.AbstractSolver:
    """The solver asked for; Tsit5 if None."""
    if solver is None:
        return diffrax.Tsit5()
    if not isinstance(solver, diffrax.AbstractAdaptiveSolver):
        raise ArgumentError("solver", solver, "a diffrax solver with an error estimate, or None")
    return solver


def controller(rtol, atol, span) -> diffrax.PIDController:
    """Adaptive steps; a step whose error is not finite is rejected and the next is smaller.

    Below a step of 1e-3 roundings of the time span the solve ends rather than shrink for ever.
    """
    least = 1e-3 * jnp.finfo(span.dtype).eps * span
    return diffrax.PIDController(rtol, atol, norm=_finite_rms, dtmin=least, force_dtmin=False)


def _finite_rms(error: Float[Array, " size"]) -> Float[Array, ""]:
    # A NaN would pass through the controller into the step size, and time would never end.
    rms = jnp.sqrt(jnp.mean(error**2))
    return jnp.where(jnp.isfinite(rms), rms, jnp.inf)


def num_field_evaluations(solver: diffrax.AbstractSolver, num_steps, num_solves=1):
    """Evaluations of the field by an explicit Runge–Kutta solver; None for other solvers.

    Each solve chooses its first step with one, and starts a first-same-as-last tableau with one.
    diffrax adds a few where steps are rejected, which are not counted.
    """
    if not isinstance(solver, diffrax.AbstractERK):
        return None
    tableau = solver.tableau
    assert isinstance(tableau, diffrax.ButcherTableau)
    reused = int(tableau.fsal)
    return num_steps * (tableau.num_stages - reused) + num_solves * (1 + reused)
