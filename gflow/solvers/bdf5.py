r"""BDF5 with Newton's method, for flows along curved valleys to late times.

Late in a flow the parameters move along the floor of a valley whose walls are many orders of
magnitude as steep as its floor. The stages of a Rosenbrock method use the Jacobian of one point, so
that they leave a curved floor by the square of the step; the force of the walls there must stay
below that of the floor, and as the floor becomes flatter the steps become shorter, compared with t.
Chord iterations fail for the same reason. What solves its equation with the Jacobian where it
arrives stays on the floor, and one such equation in a step is the least there can be.
"""

from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import diffrax
import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Bool, Float, Int

from gflow.arguments import PyTree
from gflow.solvers.rodas5p import Rodas5P, lu_apply, lu_factor, risen
from gflow.solvers.work import Counted, Work, nothing_done

ORDER = 5
# Nodes that a dense output of Rodas5P is known by.
_NODES = (0.2, 0.4, 0.6, 0.8)
# After so many steps of BDF5 one of Rodas5P shows which has the smaller error.
_TURN = 200
_ITERATIONS = 8
# What the error of a step is multiplied by: those of many steps are alike, and add up.
_CAUTION = 8.0


class Past(NamedTuple):
    """The last points of the solution, the newest last, of which `known` count, whether BDF5 has
    taken over, and the work done."""

    t: Float[Array, " points"]
    y: Float[Array, "points size"]
    known: Int[Array, ""]
    leads: Bool[Array, ""]
    work: Work


class PastInterpolation(diffrax.AbstractLocalInterpolation):
    r"""$(1-s) y_0 + s y_1 + s (1-s) q(s)$ in the share s of a step, q the cubic with the values `q`
    at `nodes`."""

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


class BDF5(diffrax.AbstractAdaptiveSolver):
    r"""The backward differentiation formula of order 5 on the steps taken, started by Rodas5P.

    With the polynomial p of degree 5 through the last five points and $y_{n+1}$, it solves
    $p'(t_{n+1}) = f(t_{n+1}, y_{n+1})$ by Newton's method, from the value at $t_{n+1}$ of the
    polynomial through the last six points; their difference gives the error. After the start and
    each kink `Rodas5P` steps, until six points are known and the formula has the smaller error.
    Stable on the whole negative real axis, where the stiff eigenvalues of gradient flow are, and
    damped at its end. A step costs one Jacobian, its factorisation and two or more evaluations of
    the field, and where the floor is curved a few of each.

    For `solve_flow(solver=...)`, and any `diffrax.diffeqsolve` with an `ODETerm`.

    **Arguments:**

    - `jacobian`: as for `Rodas5P`.

    ??? cite "Reference"

        K. E. Brenan, S. L. Campbell and L. R. Petzold, Numerical Solution of Initial-Value Problems
        in Differential-Algebraic Equations, SIAM 1996, chapter 5 (formulae on steps of any sizes);
        E. Hairer and G. Wanner, Solving Ordinary Differential Equations II, section V.1.
    """

    jacobian: Callable[..., Float[Array, "size size"]] | None = None

    term_structure: ClassVar = diffrax.ODETerm
    interpolation_cls: ClassVar = PastInterpolation

    def order(self, terms) -> int:
        return ORDER

    def init(self, terms, t0, t1, y0, args) -> Past:
        y, _ = ravel_pytree(y0)
        t = jnp.full(ORDER + 1, t0, jnp.result_type(t0, float))
        ys = jnp.broadcast_to(y, (ORDER + 1, len(y)))
        return Past(t, ys, jnp.asarray(1), jnp.asarray(False), nothing_done())

    def func(self, terms, t0, y0, args) -> PyTree[Array]:
        return terms.vf(t0, y0, args)

    def step(self, terms, t0, t1, y0, args, solver_state: Past, made_jump):
        y, unravel = ravel_pytree(y0)
        past = solver_state
        known = jnp.where(made_jump, 1, past.known)
        whole = known == ORDER + 1
        leads = whole & past.leads
        # In shares of the step; where nothing is known, any that differ.
        others = jnp.arange(-ORDER, 1).astype(past.t.dtype)
        nodes = jnp.where(whole, (past.t - t0) / (t1 - t0), others)
        moves = jnp.where(whole, past.y - y[None], 0.0)
        expected = lagrange(nodes, 1.0) @ moves
        # The error, in terms of what the step moves more than expected.
        share = _CAUTION / (slopes_at_one(nodes[1:])[-1] * (1 - nodes[0]))
        rise, jacobian = risen(terms, t0, t1, y0, args, self.jacobian)

        def multistep():
            field, matrix = lambda z: rise(t1, y + z), lambda z: jacobian(t1, y + z)
            equation = Equation(field, matrix, nodes, moves, expected, share, _weights(y))
            move, error, evaluations, factorisations = equation.solve()
            inner = nodes[1:-1]
            bend = moves[1:-1] - inner[:, None] * move[None]
            work = past.work.plus(evaluations=evaluations, factorisations=factorisations)
            return move, error, inner, bend / (inner * (1 - inner))[:, None], work

        def onestep():
            before = Counted(past.work)
            step = Rodas5P(self.jacobian).step(terms, t0, t1, y0, args, before, made_jump)
            y1, error, dense, after, _ = step
            inner = jnp.asarray(_NODES, y.dtype)
            d = jax.vmap(lambda d: ravel_pytree(d)[0])(dense["d"])
            q = jnp.stack([inner**0, inner, inner**2], axis=1) @ d
            return ravel_pytree(y1)[0] - y, ravel_pytree(error)[0], inner, q, after.work

        move, error, inner, q, work = jax.lax.cond(leads, multistep, onestep)
        size = lambda e: jnp.sum((e * _weights(y)) ** 2)
        better = whole & (size(share * (move - expected)) < size(error))
        push = lambda old, new: jnp.concatenate([old[1:], new[None]])
        past = Past(
            push(past.t, jnp.asarray(t1, past.t.dtype)),
            push(past.y, y + move),
            jnp.minimum(known + 1, ORDER + 1),
            leads | better,
            work,
        )
        y1 = unravel(y + move)
        info = {"y0": y0, "y1": y1, "nodes": inner, "q": jax.vmap(unravel)(q)}
        return y1, unravel(error), info, past, diffrax.RESULTS.successful


def _weights(y: Array) -> Array:
    """By which errors are measured against each other."""
    typical = jnp.sqrt(jnp.mean(y**2))
    return 1 / (jnp.abs(y) + 0.01 * jnp.where(typical > 0, typical, 1.0))


def lagrange(nodes: Float[Array, " n"], s) -> Float[Array, " n"]:
    """The values at s of the polynomials that are 1 at one node and 0 at the others."""
    same = jnp.eye(len(nodes), dtype=bool)
    apart = jnp.where(same, 1.0, nodes[:, None] - nodes[None, :])
    return jnp.prod(jnp.where(same, 1.0, s - nodes[None, :]) / apart, axis=1)


def slopes_at_one(nodes: Float[Array, " n"]) -> Float[Array, " n_and_one"]:
    """The slopes at 1 of the same polynomials for these nodes and 1."""
    to_one = 1 - nodes
    same = jnp.eye(len(nodes), dtype=bool)
    apart = jnp.where(same, 1.0, nodes[:, None] - nodes[None, :])
    others = jnp.prod(jnp.where(same, 1.0, to_one[None, :]) / apart, axis=1)
    return jnp.append(-others / to_one, jnp.sum(1 / to_one))


class Equation(NamedTuple):
    """Σ c_j z_j + c z = h f(z) for the move z of a step, with the moves z_j at earlier nodes."""

    rise: Callable[[Array], Array]
    jacobian: Callable[[Array], Array]
    nodes: Float[Array, " points"]
    moves: Float[Array, "points size"]
    expected: Float[Array, " size"]
    share: Float[Array, ""]
    weights: Float[Array, " size"]

    def solve(self) -> tuple[Array, Array, Any, Any]:
        """z, the error of the step, and how many evaluations and factorisations it took.

        Newton's method takes a new matrix where the last does not shrink the update tenfold. It
        ends at a thousandth of the error; if it does not get there, what is missing counts as
        error.
        """
        slopes = slopes_at_one(self.nodes[1:])
        known, last = slopes[:-1] @ self.moves[1:], slopes[-1]
        eye = jnp.eye(len(known), dtype=known.dtype)
        factor = lambda z: lu_factor(last * eye - self.jacobian(z))
        size = lambda e: jnp.sqrt(jnp.mean((e * self.weights) ** 2))

        def unfinished(c):
            *_, missing, wanted, count, _ = c
            return (count < _ITERATIONS) & ~(missing <= wanted)

        def improve(c):
            z, factors, before, _, _, count, fresh = c
            residual = self.rise(z) - known - last * z
            update = lu_apply(factors, residual)

            def again():
                factors = factor(z)
                return factors, lu_apply(factors, residual)

            stale = (count > 0) & ~(size(update) <= 0.1 * before)
            factors, update = jax.lax.cond(stale, again, lambda: (factors, update))
            z, now = z + update, size(update)
            shrinks = jnp.where(count > 0, now / before, 1.0)
            wanted = 1e-3 * size(self.share * (z - self.expected)) + jnp.finfo(z.dtype).eps
            return z, factors, now, now * shrinks, wanted, count + 1, fresh + stale

        inf = jnp.asarray(jnp.inf, known.dtype)
        start = (self.expected, factor(self.expected), inf, inf, jnp.zeros_like(inf), 0, 1)
        z, _, now, missing, wanted, count, fresh = jax.lax.while_loop(unfinished, improve, start)
        error = jnp.abs(self.share * (z - self.expected))
        error = error + jnp.where(missing <= wanted, 0.0, now / self.weights)
        return z, error, count, fresh
