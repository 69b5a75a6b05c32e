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
from gflow.solvers.rodas5p import (
    GAMMA,
    RosenbrockStages,
    StepField,
    lu_apply,
    lu_factor,
    lu_of_identity,
    shifted,
)
from gflow.solvers.work import Work, nothing_done

ORDER = 5
# Nodes at which the dense output of Rodas5P is stored.
_NODES = (0.2, 0.4, 0.6, 0.8)
# The largest number of Newton iterations in a step, and the number of stages of Rodas5P.
_ITERATIONS = 8
# The factor of the error estimate: the errors of many steps are alike, and add up.
CAUTION = 8.0


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
        error_ratio = CAUTION / (slopes_at_one(nodes[1:])[-1] * (1 - nodes[0]))
        equation = BDF5Equation(nodes, moves, expected, error_ratio, _weights(y))
        step = _step(equation, leads, terms, (t0, t1), y0, args, self.jacobian)
        work = past.work.plus(step.num_evaluations, factorisations=step.num_factorisations)
        move, error, inner, q = step.move, step.error, step.nodes, step.q
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
    num_evaluations: Int[Array, ""]
    num_factorisations: Int[Array, ""]


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


class BDF5Equation(NamedTuple):
    """Σ c_j z_j + c z = h f(z) for the move z of a step, with the moves z_j at earlier nodes.

    `expected` is the predicted z.

    Newton's method computes a new matrix if the last one does not shrink the update tenfold. It
    ends at a thousandth of the error. If it does not converge, the last update is added to the
    error.
    """

    nodes: Float[Array, " points"]
    moves: Float[Array, "points size"]
    expected: Float[Array, " size"]
    error_ratio: Float[Array, ""]
    weights: Float[Array, " size"]

    @property
    def slopes(self) -> Float[Array, " points"]:
        """c_j, and c as the last."""
        return slopes_at_one(self.nodes[1:])

    def residual(self, z: Array, rise: Array) -> Array:
        """h f − Σ c_j z_j − c z."""
        return rise - self.slopes[:-1] @ self.moves[1:] - self.slopes[-1] * z

    def size(self, error: Array) -> Float[Array, ""]:
        return jnp.sqrt(jnp.mean((error * self.weights) ** 2))

    def wanted(self, z: Array) -> Float[Array, ""]:
        """The error at which the method ends."""
        error = self.size(self.error_ratio * (z - self.expected))
        return 1e-3 * error + jnp.finfo(z.dtype).eps

    def error(self, end: "_Iteration") -> Float[Array, " size"]:
        """That of the step."""
        error = jnp.abs(self.error_ratio * (end.z - self.expected))
        return error + jnp.where(end.converged, 0.0, end.update / self.weights)

    def dense(self, z: Array) -> Float[Array, "4 size"]:
        """The values q of the dense output at the inner nodes."""
        inner = self.nodes[1:-1, None]
        return (self.moves[1:-1] - inner * z[None]) / (inner * (1 - inner))


class _Iteration(NamedTuple):
    """The state of Newton's method after some iterations, and the stages of Rodas5P.

    - `z`: the move; `us`: the stages; `factors`: of the last matrix.
    - `update`: the size of the last update; `missing`: an estimate of the remaining error.
    - `wanted`: the error at which Newton's method ends.
    """

    z: Float[Array, " size"]
    us: Float[Array, "8 size"]
    factors: tuple[Array, Array]
    update: Float[Array, ""]
    missing: Float[Array, ""]
    wanted: Float[Array, ""]
    iterations: Int[Array, ""]
    num_factorisations: Int[Array, ""]

    @property
    def converged(self) -> Bool[Array, ""]:
        return self.missing <= self.wanted


def _step(
    equation: BDF5Equation, leads: Bool[Array, ""], terms, times, y0, args, jacobian
) -> StepOfEither:
    """A step of BDF5 if it `leads`, else of Rodas5P.

    Both solve linear equations with one matrix until it is replaced. So they share a loop, in which
    field and Jacobian stand, and are compiled, only once.
    """
    (t0, t1), (y, _) = times, ravel_pytree(y0)
    field = StepField.of(terms, t0, t1, y0, args, jacobian)
    stages = RosenbrockStages.of(field, t0, t1, y)
    pick = lambda of_bdf5, of_rodas: jnp.where(leads, of_bdf5, of_rodas)
    shift = pick(equation.slopes[-1], 1 / GAMMA)

    def unfinished(c: _Iteration):
        return (c.iterations < _ITERATIONS) & ~(leads & c.converged)

    def improve(c: _Iteration):
        i, first = c.iterations, c.iterations == 0
        move = pick(c.z, stages.move(i, c.us))
        rise, matrix = field.linearised(pick(t1, stages.time(i)), y + move)
        right_side = pick(equation.residual(c.z, rise), stages.right_side(i, c.us, rise))
        step = lu_apply(c.factors, right_side)

        def again():
            factors = lu_factor(shifted(shift, matrix()))
            return factors, lu_apply(factors, right_side)

        stale = first | (leads & ~(equation.size(step) <= 0.1 * c.update))
        factors, step = jax.lax.cond(stale, again, lambda: (c.factors, step))
        z, update = c.z + step, equation.size(step)
        return _Iteration(
            z=z,
            us=c.us.at[i].set(step),
            factors=factors,
            update=update,
            missing=update * jnp.where(first, 1.0, update / c.update),
            wanted=equation.wanted(z),
            iterations=i + 1,
            num_factorisations=c.num_factorisations + stale,
        )

    inf, none = jnp.asarray(jnp.inf, y.dtype), jnp.asarray(0)
    start = _Iteration(
        equation.expected,
        stages.none(),
        lu_of_identity(y),
        inf,
        inf,
        jnp.zeros_like(inf),
        none,
        none,
    )
    end = jax.lax.while_loop(unfinished, improve, start)
    return _step_of_either(equation, stages, leads, end)


def _step_of_either(
    equation: BDF5Equation, stages: RosenbrockStages, leads: Bool[Array, ""], end: _Iteration
) -> StepOfEither:
    pick = lambda of_bdf5, of_rodas: jnp.where(leads, of_bdf5, of_rodas)
    move, d = stages.result(end.us)
    at = jnp.asarray(_NODES, end.z.dtype)
    return StepOfEither(
        pick(end.z, move),
        pick(equation.error(end), end.us[-1]),
        pick(equation.nodes[1:-1], at),
        pick(equation.dense(end.z), jnp.stack([at**0, at, at**2], axis=1) @ d),
        end.iterations,
        end.num_factorisations,
    )
