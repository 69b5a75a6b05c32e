"""The work of solvers: counted by some of them, inferred for explicit Runge–Kutta methods."""

from typing import Any, NamedTuple

import diffrax
import jax
import jax.numpy as jnp
from jaxtyping import Array, Int


class Work(NamedTuple):
    """Numbers of field evaluations, Jacobian-vector products, and Jacobians with factorisations."""

    evaluations: Int[Array, ""]
    products: Int[Array, ""]
    factorisations: Int[Array, ""]

    def plus(self, evaluations: Any = 0, products: Any = 0, factorisations: Any = 0) -> "Work":
        """This work and more."""
        return Work(
            self.evaluations + evaluations,
            self.products + products,
            self.factorisations + factorisations,
        )


class WorkState(NamedTuple):
    """The state of a solver that keeps nothing but its work."""

    work: Work


def nothing_done() -> Work:
    """The work before the first step."""
    return Work(*(jnp.asarray(0) for _ in Work._fields))


def evaluations_of_a_step(solver: diffrax.AbstractSolver) -> int | None:
    """Field evaluations in a step of an explicit Runge–Kutta solver; None for other solvers."""
    if not isinstance(solver, diffrax.AbstractERK):
        return None
    tableau = solver.tableau
    assert isinstance(tableau, diffrax.ButcherTableau)
    return tableau.num_stages - int(tableau.fsal)


def work_done(solver_state: Any) -> Work | None:
    """The work of a solver that counts it in the field `work` of its state; None for others."""
    return getattr(solver_state, "work", None)


def work_of_step(solver: diffrax.AbstractSolver, before: Any, after: Any, made_jump) -> Work | None:
    """The work of a step from one state of the solver to the next; None if it is unknown."""
    started, done = work_done(before), work_done(after)
    if started is not None and done is not None:
        return jax.tree.map(jnp.subtract, done, started)
    stages = evaluations_of_a_step(solver)
    return None if stages is None else nothing_done().plus(evaluations=stages + made_jump)


def is_counted(solver: diffrax.AbstractSolver, solver_state: Any) -> bool:
    """Whether the work of this solver is known."""
    return work_done(solver_state) is not None or evaluations_of_a_step(solver) is not None


def total(before: Work | None, more: Work | None, evaluations: Any = 0) -> Work | None:
    """The sum of two works and some evaluations; None if one of the works is unknown."""
    if before is None or more is None:
        return None
    return jax.tree.map(jnp.add, before, more).plus(evaluations=evaluations)


def work_of_solve(solver: diffrax.AbstractSolver, solution: diffrax.Solution) -> Work | None:
    """The work of a solve by diffrax; None if it is unknown.

    An explicit Runge–Kutta solve chooses its first step with one evaluation, and starts a
    first-same-as-last tableau with another. A few evaluations that diffrax adds after rejected
    steps are not counted. A solver that counts its own work forgets that of rejected steps, which
    are assumed to cost as much as accepted ones.
    """
    stats, work = solution.stats, work_done(solution.solver_state)
    if work is not None:
        kept = jnp.maximum(stats["num_accepted_steps"], 1)
        return jax.tree.map(lambda n: n + stats["num_rejected_steps"] * n // kept, work)
    stages = evaluations_of_a_step(solver)
    if stages is None or not isinstance(solver, diffrax.AbstractERK):
        return None
    assert isinstance(solver.tableau, diffrax.ButcherTableau)
    started = 1 + int(solver.tableau.fsal)
    return nothing_done().plus(evaluations=stats["num_steps"] * stages + started)
