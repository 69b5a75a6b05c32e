"""The choice of solver and step-size controller."""

from collections.abc import Callable

import diffrax
import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from gflow.arguments import ArgumentError
from gflow.flow.problem import Method
from gflow.solvers.bdf5 import BDF5
from gflow.solvers.rodas5p import Rodas5P

# What stands for the tolerances of a root finder that has none of its own.
_AS_THE_STEP = diffrax.with_stepsize_controller_tols(diffrax.VeryChord)().rtol

_DAMPED = {"pcoeff": 0.4, "icoeff": 0.3}


def as_solver(solver: diffrax.AbstractSolver | None) -> diffrax.AbstractSolver:
    """The solver asked for; Tsit5 if None."""
    if solver is None:
        return diffrax.Tsit5()
    if not isinstance(solver, diffrax.AbstractAdaptiveSolver):
        raise ArgumentError("solver", solver, "a diffrax solver with an error estimate, or None")
    if solver.term_structure not in (diffrax.ODETerm, diffrax.AbstractTerm):
        raise ArgumentError("solver", solver, "a diffrax solver of one ODETerm, or None")
    return solver


def with_tolerances(
    solver: diffrax.AbstractSolver, rtol: Float[Array, ""], atol: Float[Array, ""]
) -> diffrax.AbstractSolver:
    """The solver, its equations solved to the tolerances of a step where it names none.

    As `diffrax.diffeqsolve` does it, and with fixed steps, too.
    """
    if not isinstance(solver, diffrax.AbstractImplicitSolver):
        return solver
    finder = solver.root_finder
    given = {"rtol": rtol, "atol": atol, "norm": _finite_rms}
    left = [name for name in given if getattr(finder, name, None) is _AS_THE_STEP]
    if not left:
        return solver
    where = lambda s: [getattr(s.root_finder, name) for name in left]
    return eqx.tree_at(where, solver, [given[name] for name in left])


def with_jacobian(solver: diffrax.AbstractSolver, jacobian: Callable) -> diffrax.AbstractSolver:
    """The solver with this Jacobian, if it takes one and has none."""
    if not isinstance(solver, (BDF5, Rodas5P)) or solver.jacobian is not None:
        return solver
    return type(solver)(jacobian)


def controller(
    method: Method,
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
    ends rather than shrink for ever. Entries of θ that are `padding` count in no norm.
    """
    if method.step_size is not None:
        return diffrax.ConstantStepSize()
    return diffrax.PIDController(
        method.rtol,
        method.atol,
        **(_DAMPED if damped else {}),
        norm=_finite_rms if padding is None else eqx.Partial(_rms_of_others, padding),
        dtmin=min_step,
        force_dtmin=False,
    )


def _finite_rms(error: Float[Array, " size"]) -> Float[Array, ""]:
    # A NaN would pass through the controller into the step size, and time would never end.
    rms = jnp.sqrt(jnp.mean(error**2))
    return jnp.where(jnp.isfinite(rms), rms, jnp.inf)


def _rms_of_others(
    padding: Bool[Array, " size"], error: Float[Array, " size_and_one"]
) -> Float[Array, ""]:
    """The root mean square over the entries that are not padding, the dissipation in."""
    squares = jnp.where(jnp.append(padding, False), 0.0, error**2)
    rms = jnp.sqrt(jnp.sum(squares) / (len(error) - jnp.sum(padding)))
    return jnp.where(jnp.isfinite(rms), rms, jnp.inf)


def accurate_fraction(solver: diffrax.AbstractSolver) -> float:
    """The fraction of a step, from either end, in which its dense output is as accurate.

    The error of dense output vanishes with its derivative at both ends. Cubic Hermite polynomials,
    of third order, are trusted less for solvers beyond order 4.
    """
    made = solver.interpolation_cls
    hermite = diffrax.ThirdOrderHermitePolynomialInterpolation
    cubic = getattr(made, "__self__", made) is hermite
    order = solver.order(diffrax.ODETerm(lambda t, y, args: y))
    return 0.02 if cubic and order is not None and order > 4 else 0.1
