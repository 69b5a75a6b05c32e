r"""Rodas5P: a Rosenbrock–Wanner method for the stiff tail of gradient flow.

All stages of a step are linear solves with one matrix. Nothing is iterated, so no iteration can
fail to converge, however long the step. It is own code since diffrax has no Rosenbrock methods: its
implicit solvers iterate with a Jacobian that is kept fixed, and fail on long steps.
"""

from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple, final

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float

from gflow.arguments import PyTree
from gflow.solvers.work import WorkState, nothing_done

# The coefficients of Steinebach (2023), in the form without products with the Jacobian.

GAMMA = 0.21193756319429014
# fmt: off
_LAST = [-7.502846399306121, 2.561846144803919, -11.627539656261098, -0.18268767659942256,
         0.030198172008377946]
_STAGES = [
    [],
    [3.0],
    [2.849394379747939, 0.45842242204463923],
    [-6.954028509809101, 2.489845061869568, -10.358996098473584],
    [2.8029986275628964, 0.5072464736228206, -0.3988312541770524, -0.04721187230404641],
    _LAST,
    [*_LAST, 1.0],
    [*_LAST, 1.0, 1.0],
]
_COUPLINGS = [
    [],
    [-14.155112264123755],
    [-17.97296035885952, -2.859693295451294],
    [147.12150275711716, -1.41221402718213, 71.68940251302358],
    [165.43517024871676, -0.4592823456491126, 42.90938336958603, -5.961986721573306],
    [24.854864614690072, -3.0009227002832186, 47.4931110020768, 5.5814197821558125,
     -0.6610691825249471],
    [30.91273214028599, -3.1208243349937974, 77.79954646070892, 34.28646028294783,
     -19.097331116725623, -28.087943162872662],
    [37.80277123390563, -3.2571969029072276, 112.26918849496327, 66.9347231244047,
     -40.06618937091002, -54.66780262877968, -9.48861652309627],
]
# Coefficients of the dense output.
DENSE = np.array([
    [25.948786856663858, -2.5579724845846235, 10.433815404888879, -2.3679251022685204,
     0.524948541321073, 1.1241088310450404, 0.4272876194431874, -0.17202221070155493],
    [-9.91568850695171, -0.9689944594115154, 3.0438037242978453, -24.495224566215796,
     20.176138334709044, 15.98066361424651, -6.789040303419874, -6.710236069923372],
    [11.419903575922262, 2.8879645146136994, 72.92137995996029, 80.12511834622643,
     -52.072871366152654, -59.78993625266729, -0.15582684282751913, 4.883087185713722],
])
# Coefficients of the step in the time of each stage, and in its term with ∂f/∂t.
NODES = np.array([0.0, 0.6358126895828704, 0.4095798393397535, 0.9769306725060716,
                  0.4288403609558664, 1.0, 1.0, 1.0])
TIMES = np.array([GAMMA, -0.42387512638858027, -0.3384627126235924, 1.8046452872882734,
                  2.325825639765069, 0.0, 0.0, 0.0])
# fmt: on


def _lower(rows: list[list[float]]) -> np.ndarray:
    return np.array([[*row, *[0.0] * (8 - len(row))] for row in rows])


STAGES, COUPLINGS = _lower(_STAGES), _lower(_COUPLINGS)
WEIGHTS = np.array([*_LAST, 1.0, 1.0, 1.0])


class Rodas5PInterpolation(diffrax.AbstractLocalInterpolation):
    r"""$(1-s) y_0 + s (y_1 + (1-s)(d_1 + s (d_2 + s d_3)))$ at the fraction s of a step.

    It has order 4. `d` holds $d_1, d_2, d_3$ along a leading axis.
    """

    t0: Any
    t1: Any
    y0: PyTree[Array]
    y1: PyTree[Array]
    d: PyTree[Array]

    def evaluate(self, t0, t1=None, left: bool = True) -> PyTree[Array]:
        if t1 is not None:
            return jax.tree.map(jnp.subtract, self.evaluate(t1, None, left), self.evaluate(t0))
        size = self.t1 - self.t0
        s = (t0 - self.t0) / jnp.where(size == 0, 1.0, size)

        def blend(y0, y1, d):
            return (1 - s) * y0 + s * (y1 + (1 - s) * (d[0] + s * (d[1] + s * d[2])))

        return jax.tree.map(blend, self.y0, self.y1, self.d)


@final
class Rodas5P(diffrax.AbstractAdaptiveSolver):
    r"""Rodas5P of Steinebach (2023), for stiff problems of some ten to some hundred parameters.

    With $W = 1/\gamma - h J$, J the Jacobian of the field f at the start of a step of size h, the
    eight stages

    $$W u_i = h f\Big(t + \alpha_i h,\; y + \sum_{j<i} a_{ij} u_j\Big)
    + \sum_{j<i} c_{ij} u_j + \gamma_i h^2 \partial_t f$$

    give $y + \sum_i m_i u_i$ of order 5, with $u_8$, the difference to order 4, as the estimate of
    the error, and dense output of order 4. L-stable and stiffly accurate. A step costs a Jacobian,
    a factorisation and eight evaluations of the field.

    For `solve_flow(solver=...)`, and any `diffrax.diffeqsolve` with an `ODETerm`.

    **Arguments:**

    - `jacobian`: a function `(t, y, args) -> (size, size)` that gives J for the flattened y, or
      None: the closed form where `solve_flow` locates kinks, otherwise `jax.jacfwd`.

    ??? cite "Reference"

        G. Steinebach, Construction of Rosenbrock–Wanner method Rodas5P and numerical benchmarks
        within the Julia Differential Equations package, BIT Numerical Mathematics 63:27, 2023.
    """

    jacobian: Callable[..., Float[Array, "size size"]] | None = None

    term_structure: ClassVar = diffrax.ODETerm
    interpolation_cls: ClassVar = Rodas5PInterpolation

    def order(self, terms) -> int:
        return 5

    def init(self, terms, t0, t1, y0, args) -> WorkState:
        return WorkState(nothing_done())

    def func(self, terms, t0, y0, args) -> PyTree[Array]:
        return terms.vf(t0, y0, args)

    def step(self, terms, t0, t1, y0, args, solver_state, made_jump):
        y, unravel = ravel_pytree(y0)
        field = StepField.of(terms, t0, t1, y0, args, self.jacobian)
        stages = RosenbrockStages.of(field, t0, t1, y)

        factors = lu_factor(shifted(1 / GAMMA, field.linearised(t0, y)[1]()))

        def stage(i, us):
            rise = field.rise(stages.time(i), y + stages.move(i, us))
            return us.at[i].set(lu_apply(factors, stages.right_side(i, us, rise)))

        us = jax.lax.fori_loop(0, 8, stage, stages.none())
        move, d = stages.result(us)
        y1 = unravel(y + move)
        info = {"y0": y0, "y1": y1, "d": jax.vmap(unravel)(d)}
        done = WorkState(solver_state.work.plus(evaluations=8, factorisations=1))
        return y1, unravel(us[-1]), info, done, diffrax.RESULTS.successful


class RosenbrockStages(NamedTuple):
    """The equations of the stages of a step of size h from (t0, y), whose solutions u_i are the
    rows of `us`.

    `drift` is h² ∂f/∂t.
    """

    t0: Float[Array, ""]
    h: Float[Array, ""]
    drift: Float[Array, " size"]

    @classmethod
    def of(cls, field: "StepField", t0, t1, y: Float[Array, " size"]) -> "RosenbrockStages":
        h = t1 - t0
        _, drift = jax.jvp(lambda t: field.rise(t, y), (t0,), (h,))
        return cls(t0, h, drift)

    def none(self) -> Float[Array, "8 size"]:
        """The stages before the first is known."""
        return jnp.zeros((8, len(self.drift)), self.drift.dtype)

    def time(self, i: Any) -> Array:
        """The time of stage i; that of the first is t0."""
        return self.t0 + self._of(NODES)[i] * self.h

    def move(self, i: Any, us: Float[Array, "8 size"]) -> Array:
        """The point of stage i less y; 0 for the first."""
        return self._of(STAGES)[i] @ us

    def right_side(self, i: Any, us: Float[Array, "8 size"], rise: Array) -> Array:
        """W u_i, where `rise` is h f at that point."""
        return rise + self._of(TIMES)[i] * self.drift + self._of(COUPLINGS)[i] @ us

    def result(self, us: Float[Array, "8 size"]) -> tuple[Array, Float[Array, "3 size"]]:
        """The move of the step, and the coefficients of its dense output."""
        return self._of(WEIGHTS) @ us, self._of(DENSE) @ us

    def _of(self, coefficients: np.ndarray) -> Array:
        return jnp.asarray(coefficients, self.drift.dtype)


class StepField(NamedTuple):
    """h f(t, y) as a function of t and the flattened y, for one step.

    `given` is a function of the same that returns h J(t, y), or None for the derivative of JAX.
    """

    rise: Callable[[Any, Array], Array]
    given: Callable[[Any, Array], Array] | None

    @classmethod
    def of(cls, terms, t0, t1, like: PyTree[Array], args, jacobian: Callable | None):
        """For the step from t0 to t1; `jacobian` is a function `(t, y, args)` that returns J."""
        _, unravel = ravel_pytree(like)
        control = terms.contr(t0, t1)
        rise = lambda t, y: ravel_pytree(terms.vf_prod(t, unravel(y), args, control))[0]
        if jacobian is None:
            return cls(rise, None)
        # Backwards, diffrax steps forwards in −t.
        time = lambda t: jnp.where(control < 0, -t, t)
        return cls(rise, lambda t, y: control * jacobian(time(t), unravel(y), args))

    def linearised(self, t, y: Float[Array, " size"]) -> tuple[Array, Callable[[], Array]]:
        """h f, and a function that returns h J, which shares what f has computed."""
        if self.given is not None:
            given = self.given
            return self.rise(t, y), lambda: given(t, y)
        rise, along = jax.linearize(lambda y: self.rise(t, y), y)
        return rise, lambda: jax.vmap(along, out_axes=-1)(jnp.eye(len(y), dtype=y.dtype))


def shifted(by: Any, jacobian: Float[Array, "size size"]) -> Float[Array, "size size"]:
    """A multiple of the identity less a matrix."""
    return by * jnp.eye(len(jacobian), dtype=jacobian.dtype) - jacobian


def lu_of_identity(y: Float[Array, " size"]) -> tuple[Array, Array]:
    """As `lu_factor` of the identity."""
    return jnp.eye(len(y), dtype=y.dtype), jnp.arange(len(y), dtype=jnp.int32)


def lu_factor(matrix: Float[Array, "size size"]) -> tuple[Array, Array]:
    """The LU factors of a matrix, and the order of its rows."""
    # `jax.scipy.linalg.lu_solve` recomputes the order of the rows from the pivots in each solve.
    factors, _, order = jax.lax.linalg.lu(matrix)
    return factors, order


def lu_apply(lu: tuple[Array, Array], x: Float[Array, " size"]) -> Float[Array, " size"]:
    """matrix⁻¹ x, for the factors of `lu_factor`."""
    factors, order = lu
    solve = jax.lax.linalg.triangular_solve
    half = solve(factors, x[order, None], left_side=True, lower=True, unit_diagonal=True)
    return solve(factors, half, left_side=True)[:, 0]
