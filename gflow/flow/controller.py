"""The step-size controller of a flow, one of diffrax."""

from collections.abc import Callable
from typing import Any

import diffrax
import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from gflow.flow.problem import FlowProblem, Method

_DAMPED = {"pcoeff": 0.4, "icoeff": 0.3}


def step_size_controller(
    method: Method,
    problem: FlowProblem,
    *,
    damped: bool,
    min_step: Float[Array, ""] | None = None,
    padding: Bool[Array, " size"] | None = None,
) -> diffrax.AbstractStepSizeController:
    """The step-size controller of diffrax: fixed steps if asked for, or adaptive ones.

    A `damped` controller is proportional and integral (Gustafsson, ACM Trans. Math. Softw. 17,
    1991). Between kinks, where steps are often at the bound of stability, it saves rejections. On a
    smooth flow, whose steps grow with time, it lags behind, and takes up to a third more steps.

    A step whose error is not finite is rejected and the next is smaller; below `min_step` the solve
    ends rather than shrink for ever. Entries of θ that are `padding` count in no norm. Tolerances
    are those of θ, whatever the time scales.
    """
    if method.step_size is not None:
        return diffrax.ConstantStepSize()
    return diffrax.PIDController(
        method.rtol,
        problem.atol(method.atol),
        **(_DAMPED if damped else {}),
        norm=error_norm(padding),
        dtmin=min_step,
        force_dtmin=False,
    )


def error_norm(padding: Bool[Array, " size"] | None) -> Callable[[Array], Array]:
    """The norm of errors of (θ, ∫‖θ'‖²), in units of their tolerances, infinite where it is NaN.

    It is the root mean square over the entries that are not padding, or the last entry if that is
    larger: among those of a large network, the error of the dissipated energy would count for
    nothing.
    """
    return _norm if padding is None else eqx.Partial(_norm_of_others, padding)


def tolerance(
    method: Method, problem: FlowProblem, y: Float[Array, " size"]
) -> Float[Array, " size"]:
    """The error of a step that is tolerated in each entry of a state of this size."""
    return problem.atol(method.atol) + method.rtol * y


def finite_rms(error: Float[Array, " size"]) -> Float[Array, ""]:
    """The root mean square, infinite where it is NaN."""
    return _finite(jnp.mean(error**2))


def _norm(error: Float[Array, " size_and_one"]) -> Float[Array, ""]:
    return _finite(jnp.mean(error**2), error[-1])


def _norm_of_others(
    padding: Bool[Array, " size"], error: Float[Array, " size_and_one"]
) -> Float[Array, ""]:
    squares = jnp.where(jnp.append(padding, False), 0.0, error**2)
    return _finite(jnp.sum(squares) / (len(error) - jnp.sum(padding)), error[-1])


def _finite(mean_square: Float[Array, ""], of_energy: Any = 0.0) -> Float[Array, ""]:
    # A NaN would pass through the controller into the step size, and time would never end.
    norm = jnp.sqrt(jnp.maximum(mean_square, of_energy**2))
    return jnp.where(jnp.isfinite(norm), norm, jnp.inf)
