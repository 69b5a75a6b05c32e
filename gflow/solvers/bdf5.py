r"""BDF5 with Newton's method, for flows along curved valleys to late times.

Late in a flow the parameters move along the floor of a valley whose walls are many orders of
magnitude steeper than its floor. The stages of a Rosenbrock method use the Jacobian of one point,
so they leave a curved floor by the square of the step. There the force of the walls must stay below
that of the floor, so the flatter the floor, the shorter the steps relative to t. Iterations with a
fixed Jacobian fail for the same reason. A method that solves its equation with the Jacobian at the
end of the step stays on the floor, and a multistep method has only one such equation per step. It
is own code since diffrax has no multistep methods.
"""

from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple, final

import diffrax
import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Bool, Float, Int

from gflow.arguments import PyTree
from gflow.solvers.rodas5p import Rodas5P, lu_apply, lu_factor, scaled_by_step
from gflow.solvers.work import Work, WorkState, nothing_done

ORDER = 5
# Nodes at which the dense output of Rodas5P is stored.
_NODES = (0.2, 0.4, 0.6, 0.8)
# The largest number of Newton iterations in a step.
_ITERATIONS = 8
# The factor of the error estimate: the errors of many steps are alike, and add up.
_CAUTION = 8.0


class BDF5State(NamedTuple):
    """The last points of the solution, and the work done.

    - `t`, `y`: the points, the newest last; `known`: how many of them are known.
    - `leads`: whether BDF5 has taken over from Rodas5P.
    """

    t: Float[Array, " points"]
    y: Float[Array, "points size"]
    known: Int[Array, ""]
    leads: Bool[Array, ""]
    work: Work


class BDF5Interpolation(diffrax.AbstractLocalInterpolation):
    r"""$(1-s) y_0 + s y_1 + s (1-s) q(s)$ at the fraction s of a step, where the cubic q has the
    values `q` at `nodes`."""

    t0: Any
    t1: Any
    y0: PyTree[Array]
    y1: PyTree[Array]
    nodes: Float[Array, "4"]
    q: PyTree[Array]

    def evaluate(self, t0, t1=None, left: bool = True) -> PyTree[Array]:
        if t1 is not None:
            return jax.tree.map(jnp.subtract, self.evaluate(t1, None, left), self.evaluate(t0))
        size = self.t1 - self.t0
        s = (t0 - self.t0) / jnp.where(size == 0, 1.0, size)
        weights = s * (1 - s) * lagrange(self.nodes, s)

        def blend(y0, y1, q):
            return (1 - s) * y0 + s * y1 + jnp.tensordot(weights, q, 1)

        return jax.tree.map(blend, self.y0, self.y1, self.q)


@final
class BDF5(diffrax.AbstractAdaptiveSolver):
    r"""The backward differentiation formula of order 5 on the steps taken, started by Rodas5P.

    With the polynomial p of degree 5 through the last five points and $y_{n+1}$, it solves
    $p'(t_{n+1}) = f(t_{n+1}, y_{n+1})$ by Newton's method. The iteration starts from the polynomial
    through the last six points, whose difference from the solution gives the error. After the start
    and each kink, `Rodas5P` makes the steps until six points are known and the formula has the
    smaller error.

    It is stable on the whole negative real axis, where the stiff eigenvalues of gradient flow are,
    with damping at infinity. A step costs one Jacobian, its factorisation and two or more
    evaluations of the field, or a few of each if the valley is curved.

    For `solve_flow(solver=...)`, and any `diffrax.diffeqsolve` with an `ODETerm`.

    **Arguments:**

    - `jacobian`: as for `Rodas5P`.

    ??? cite "Reference"

        K. E. Brenan, S. L. Campbell and L. R. Petzold, Numerical Solution of Initial-Value Problems
        in Differential-Algebraic Equations, SIAM 1996, chapter 5 (formulae for variable steps);
        E. Hairer and G. Wanner, Solving Ordinary Differential Equations II, section V.1.
    """

    jacobian: Callable[..., Float[Array, "size size"]] | None = None

    term_structure: ClassVar = diffrax.ODETerm
    interpolation_cls: ClassVar = BDF5Interpolation

    def order(self, terms) -> int:
        return ORDER

    def init(self, terms, t0, t1, y0, args) -> BDF5State:
        y, _ = ravel_pytree(y0)
        t = jnp.full(ORDER + 1, t0, jnp.result_type(t0, float))
        ys = jnp.broadcast_to(y, (ORDER + 1, len(y)))
        return BDF5State(t, ys, jnp.asarray(1), jnp.asarray(False), nothing_done())

    def func(self, terms, t0, y0, args) -> PyTree[Array]:
        return terms.vf(t0, y0, args)

    def step(self, terms, t0, t1, y0, args, solver_state: BDF5State, made_jump):
        y, unravel = ravel_pytree(y0)
        past = solver_state
        known = jnp.where(made_jump, 1, past.known)
        whole = known == ORDER + 1
        leads = whole & past.leads
        # As fractions of the step; any distinct ones until all points are known.
        others = jnp.arange(-ORDER, 1).astype(past.t.dtype)
        nodes = jnp.where(whole, (past.t - t0) / (t1 - t0), others)
        moves = jnp.where(whole, past.y - y[None], 0.0)
        expected = lagrange(nodes, 1.0) @ moves
        # The error, as a multiple of the difference between the move and the expected move.
        error_ratio = _CAUTION / (slopes_at_one(nodes[1:])[-1] * (1 - nodes[0]))
        rise, jacobian = scaled_by_step(terms, t0, t1, y0, args, self.jacobian)

        def multistep():
            field, matrix = lambda z: rise(t1, y + z), lambda z: jacobian(t1, y + z)
            equation = BDF5Equation(field, matrix, nodes, moves, expected, error_ratio, _weights(y))
            found = equation.solve()
            inner = nodes[1:-1]
            bend = moves[1:-1] - inner[:, None] * found.move[None]
            work = past.work.plus(found.num_evaluations, factorisations=found.num_factorisations)
            q = bend / (inner * (1 - inner))[:, None]
            return StepOfEither(found.move, found.error, inner, q, work)

        def onestep():
            before = WorkState(past.work)
            step = Rodas5P(self.jacobian).step(terms, t0, t1, y0, args, before, made_jump)
            y1, error, dense, after, _ = step
            inner = jnp.asarray(_NODES, y.dtype)
            d = jax.vmap(lambda d: ravel_pytree(d)[0])(dense["d"])
            q = jnp.stack([inner**0, inner, inner**2], axis=1) @ d
            move, error = ravel_pytree(y1)[0] - y, ravel_pytree(error)[0]
            return StepOfEither(move, error, inner, q, after.work)

        move, error, inner, q, work = jax.lax.cond(leads, multistep, onestep)
        size = lambda e: jnp.sum((e * _weights(y)) ** 2)
        better = whole & (size(error_ratio * (move - expected)) < size(error))
        push = lambda old, new: jnp.concatenate([old[1:], new[None]])
        past = BDF5State(
            t=push(past.t, jnp.asarray(t1, past.t.dtype)),
            y=push(past.y, y + move),
            known=jnp.minimum(known + 1, ORDER + 1),
            leads=leads | better,
            work=work,
        )
        y1 = unravel(y + move)
        info = {"y0": y0, "y1": y1, "nodes": inner, "q": jax.vmap(unravel)(q)}
        return y1, unravel(error), info, past, diffrax.RESULTS.successful


class StepOfEither(NamedTuple):
    """A step of BDF5 or Rodas5P: move and error, the dense output q at `nodes`, and the work."""

    move: Float[Array, " size"]
    error: Float[Array, " size"]
    nodes: Float[Array, "4"]
    q: Float[Array, "4 size"]
    work: Work


def _weights(y: Array) -> Array:
    """The weights by which errors of different entries are compared."""
    typical = jnp.sqrt(jnp.mean(y**2))
    return 1 / (jnp.abs(y) + 0.01 * jnp.where(typical > 0, typical, 1.0))


def lagrange(nodes: Float[Array, " n"], s) -> Float[Array, " n"]:
    """The values at s of the Lagrange polynomials, which are 1 at one node and 0 at the others."""
    same = jnp.eye(len(nodes), dtype=bool)
    apart = jnp.where(same, 1.0, nodes[:, None] - nodes[None, :])
    return jnp.prod(jnp.where(same, 1.0, s - nodes[None, :]) / apart, axis=1)


def slopes_at_one(nodes: Float[Array, " n"]) -> Float[Array, " n_and_one"]:
    """The slopes at 1 of the Lagrange polynomials of these nodes and 1."""
    to_one = 1 - nodes
    same = jnp.eye(len(nodes), dtype=bool)
    apart = jnp.where(same, 1.0, nodes[:, None] - nodes[None, :])
    others = jnp.prod(jnp.where(same, 1.0, to_one[None, :]) / apart, axis=1)
    return jnp.append(-others / to_one, jnp.sum(1 / to_one))


class NewtonSolution(NamedTuple):
    """The move of a step, its error, and the work."""

    move: Float[Array, " size"]
    error: Float[Array, " size"]
    num_evaluations: int | Int[Array, ""]
    num_factorisations: int | Int[Array, ""]


class _Newton(NamedTuple):
    """The state of Newton's method.

    - `z`: the move; `factors`: of the last matrix.
    - `update`: the size of the last update; `missing`: an estimate of the remaining error.
    - `wanted`: the error at which the method ends.
    """

    z: Float[Array, " size"]
    factors: tuple[Array, Array]
    update: Float[Array, ""]
    missing: Float[Array, ""]
    wanted: Float[Array, ""]
    num_evaluations: int | Int[Array, ""]
    num_factorisations: int | Int[Array, ""]


class BDF5Equation(NamedTuple):
    """Σ c_j z_j + c z = h f(z) for the move z of a step, with the moves z_j at earlier nodes.

    `rise` and `jacobian` are h f and h J; `expected` is the predicted z.
    """

    rise: Callable[[Array], Array]
    jacobian: Callable[[Array], Array]
    nodes: Float[Array, " points"]
    moves: Float[Array, "points size"]
    expected: Float[Array, " size"]
    error_ratio: Float[Array, ""]
    weights: Float[Array, " size"]

    def solve(self) -> NewtonSolution:
        """z and the error of the step.

        Newton's method computes a new matrix if the last one does not shrink the update tenfold. It
        ends at a thousandth of the error. If it does not converge, the last update is added to the
        error.
        """
        slopes = slopes_at_one(self.nodes[1:])
        known, last = slopes[:-1] @ self.moves[1:], slopes[-1]
        eye = jnp.eye(len(known), dtype=known.dtype)
        factor = lambda z: lu_factor(last * eye - self.jacobian(z))
        size = lambda e: jnp.sqrt(jnp.mean((e * self.weights) ** 2))

        def unfinished(c: _Newton):
            return (c.num_evaluations < _ITERATIONS) & ~(c.missing <= c.wanted)

        def improve(c: _Newton):
            residual = self.rise(c.z) - known - last * c.z
            step = lu_apply(c.factors, residual)

            def again():
                factors = factor(c.z)
                return factors, lu_apply(factors, residual)

            stale = (c.num_evaluations > 0) & ~(size(step) <= 0.1 * c.update)
            factors, step = jax.lax.cond(stale, again, lambda: (c.factors, step))
            z, update = c.z + step, size(step)
            shrinks = jnp.where(c.num_evaluations > 0, update / c.update, 1.0)
            wanted = 1e-3 * size(self.error_ratio * (z - self.expected)) + jnp.finfo(z.dtype).eps
            return _Newton(
                z=z,
                factors=factors,
                update=update,
                missing=update * shrinks,
                wanted=wanted,
                num_evaluations=c.num_evaluations + 1,
                num_factorisations=c.num_factorisations + stale,
            )

        inf = jnp.asarray(jnp.inf, known.dtype)
        start = _Newton(self.expected, factor(self.expected), inf, inf, jnp.zeros_like(inf), 0, 1)
        end = jax.lax.while_loop(unfinished, improve, start)
        error = jnp.abs(self.error_ratio * (end.z - self.expected))
        error = error + jnp.where(end.missing <= end.wanted, 0.0, end.update / self.weights)
        return NewtonSolution(end.z, error, end.num_evaluations, end.num_factorisations)
