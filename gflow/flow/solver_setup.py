"""How a solver is prepared: tolerances, Jacobian, and where its dense output is accurate."""

from collections.abc import Callable

import diffrax
import equinox as eqx
import numpy as np
from jaxtyping import Array, Float

from gflow.arguments import ArgumentError
from gflow.flow.controller import finite_rms

# What stands for the tolerances of a root finder that has none of its own.
_AS_THE_STEP = diffrax.with_stepsize_controller_tols(diffrax.VeryChord)().rtol
_FIRST = diffrax.Tsit5()


def as_solver(solver: diffrax.AbstractSolver | None) -> diffrax.AbstractSolver:
    """The solver asked for; Tsit5 if None."""
    if solver is None:
        return _FIRST
    if not isinstance(solver, diffrax.AbstractAdaptiveSolver):
        raise ArgumentError("solver", solver, "a diffrax solver with an error estimate, or None")
    if solver.term_structure not in (diffrax.ODETerm, diffrax.AbstractTerm):
        raise ArgumentError("solver", solver, "a diffrax solver of one ODETerm, or None")
    return solver


def with_tolerances(
    solver: diffrax.AbstractSolver,
    rtol: Float[Array | np.ndarray, ""],
    atol: Float[Array | np.ndarray, ""],
) -> diffrax.AbstractSolver:
    """The solver, its equations solved to the tolerances of a step where it names none.

    As `diffrax.diffeqsolve` does it, and with fixed steps, too.
    """
    if not isinstance(solver, diffrax.AbstractImplicitSolver):
        return solver
    finder = solver.root_finder
    given = {"rtol": rtol, "atol": atol, "norm": finite_rms}
    left = [name for name in given if getattr(finder, name, None) is _AS_THE_STEP]
    if not left:
        return solver
    where = lambda s: [getattr(s.root_finder, name) for name in left]
    return eqx.tree_at(where, solver, [given[name] for name in left])


def with_jacobian(solver: diffrax.AbstractSolver, jacobian: Callable) -> diffrax.AbstractSolver:
    """The solver with this Jacobian, if it has a field `jacobian` that is None."""
    if getattr(solver, "jacobian", jacobian) is not None:
        return solver
    return eqx.tree_at(lambda s: s.jacobian, solver, jacobian, is_leaf=lambda a: a is None)


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
