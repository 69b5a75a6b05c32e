r"""Units that reach w = b = 0 in finite time on exact risks, and stay there.

With $u_i = (w_i, b_i)$, gradient flow keeps $\|u_i\|^2 - \|v_i\|^2$. So a unit with
$\|v_i\| > \|u_i\|$ may shrink to $u_i = 0$ along a fixed direction, at a speed that does not
vanish; the others cannot. In the class where Eberle, Jentzen, Riekert and Weiss (arXiv 2108.08106)
prove uniqueness, the unit is degenerate from then on. A solver alone would step over that point.
The unit could then grow again on the other side, or be driven back and forth by tiny steps.
"""

from typing import Any

import diffrax
import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from gflow.activations import PiecewiseLinear
from gflow.flow.problem import FlowProblem, Method
from gflow.networks import ShallowNet
from gflow.parameters import ParameterLayout, flat, unflat
from gflow.risks import BoxRisk, GaussianRisk, PopulationRisk, penalty_of, without_penalty

# Above this multiple of rtol, (‖v‖² − ‖u‖²)/‖v‖² at the start is not an error of the solver.
_CLEAR = 1e3


def is_possible(problem: FlowProblem, method: Method) -> bool:
    """Whether units may collapse: ReLU units with trained weights on a risk that keeps them zero.

    Fixed steps are left as they are."""
    net, penalty = eqx.combine(problem.trained, problem.frozen), penalty_of(problem.risk)
    if not isinstance(without_penalty(problem.risk), (BoxRisk, GaussianRisk, PopulationRisk)):
        return False
    # The balance, by which it is known what collapses, is a matter of the data and of weight decay.
    if penalty is not None and not penalty.only_decays:
        return False
    if not isinstance(net, ShallowNet) or method.step_size is not None:
        return False
    if not isinstance(net.activation, PiecewiseLinear) or net.activation.negative_slope != 0.0:
        return False
    return problem.trained.w is not None and (net.b is None or problem.trained.b is not None)


def num_collapsed(problem: FlowProblem, phi: Float[Array, " size"]) -> Array:
    """How many units are zero in w and b that were not at the start."""
    degenerate = lambda net: jnp.all(net.incoming() == 0, axis=1)
    return jnp.sum(degenerate(problem.params(phi)) & ~degenerate(problem.trained))


def of_inner(solution: diffrax.Solution) -> diffrax.Solution:
    """A solution by `WithCollapse`, with the state of the solver within."""
    assert solution.solver_state is not None
    return eqx.tree_at(lambda s: s.solver_state, solution, solution.solver_state[0])


class WithCollapse(
    diffrax.AbstractAdaptiveSolver[tuple[Any, Array]],
    diffrax.AbstractWrappedSolver[tuple[Any, Array]],
):
    """A solver that sets units to w = b = 0 where a step takes them through zero.

    The size of such a unit counts as an error of the step, so that the step ends where the unit
    collapses.
    """

    solver: diffrax.AbstractSolver  # pyright: ignore[reportIncompatibleVariableOverride]
    problem: FlowProblem
    method: Method

    @property
    def term_structure(self):  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.solver.term_structure

    @property
    def interpolation_cls(self):  # pyright: ignore
        return self.solver.interpolation_cls

    @property
    def root_finder(self):
        return self.solver.root_finder  # pyright: ignore

    def order(self, terms):
        return self.solver.order(terms)

    def error_order(self, terms):
        return self.solver.error_order(terms)

    def init(self, terms, t0, t1, y0, args):
        return self.solver.init(terms, t0, t1, y0, args), jnp.asarray(False)

    def func(self, terms, t0, y0, args):
        return self.solver.func(terms, t0, y0, args)

    def step(self, terms, t0, t1, y0, args, solver_state, made_jump):
        state, jumped = solver_state
        step = self.solver.step(terms, t0, t1, y0, args, state, made_jump | jumped)
        y1, error, dense, state, result = step
        assert isinstance(y1, Array) and isinstance(error, Array)
        of = self.problem
        start = self._decayed(of.phi(y0), of.flow_time(t1, y1) - of.flow_time(t0, y0))
        gone, too_far = self._nearly_zero(start, of.phi(y1))
        others = len(y1) - of.size
        entries = lambda units: jnp.pad(self._entries(units), (0, others))
        error = jnp.abs(error) + jnp.where(entries(gone | too_far), jnp.abs(y1), 0.0)
        y1 = jnp.where(entries(gone), 0.0, y1)
        return y1, error, dense, (state, jnp.any(gone)), result

    def _decayed(self, theta: Array, dt: Any) -> Array:
        """θ after a time of weight decay alone, which shrinks units but takes none to zero."""
        penalty, roots = penalty_of(self.problem.risk), self.problem.time_scales.roots
        if penalty is None:
            return theta
        rate = penalty.weight_decay.astype(theta.dtype) * (1.0 if roots is None else roots**2)
        return jnp.exp(-rate * dt) * theta

    def _nearly_zero(self, theta0: Array, theta1: Array) -> tuple[Array, Array]:
        """The units that a step takes to zero within the tolerance, on course to cross zero within
        one more step; and those that shrink by more than half.

        A step with a unit of the second kind is rejected: it is too long to tell where it leads."""
        nets = [unflat(self.problem.trained, theta) for theta in (theta0, theta1)]
        u0, u1 = (net.incoming() for net in nets)
        way, size = u1 - u0, _norm(u0)
        length = _norm(way)
        fraction = -jnp.sum(u0 * way, axis=1) / jnp.where(length > 0, length, 1.0) ** 2
        nearest = _norm(u0 + fraction[:, None] * way)
        # The error of one unit that a root mean square within the tolerance allows.
        tolerance = jnp.sqrt(theta0.size + 1) * (self.method.atol + self.method.rtol * size)
        closer = (fraction > 0) & self._able()
        headed = (fraction <= 2) & (nearest <= 0.5 * size)
        return closer & headed & (_norm(u1) <= tolerance), closer & (length > 0.5 * size)

    def _able(self) -> Bool[Array, " width"]:
        """The units that can reach zero, by their balance at the start.

        Units that are smaller than the tolerance are not resolved, and left as they are."""
        problem = self.problem
        phi = problem.time_scales.phi(flat(problem.trained))
        net = eqx.combine(unflat(problem.trained, phi), problem.frozen)
        size = _norm(net.v.reshape(net.width, -1))
        if self.problem.trained.v is None:
            return size > 0
        resolved = self.method.atol * jnp.sqrt(net.w.size)
        surplus = size**2 - net.incoming_norms() ** 2
        return surplus > jnp.maximum(_CLEAR * self.method.rtol * size**2, resolved**2)

    def _entries(self, units: Bool[Array, " width"]) -> Bool[Array, " size"]:
        """The entries of w and b of these units in φ."""
        layout = ParameterLayout(self.problem.trained)
        wide = lambda a: jnp.broadcast_to(units.reshape(-1, *[1] * (a.ndim - 1)), a.shape)
        chosen = {
            name: wide(a) if name in ("w", "b") else jnp.zeros(a.shape, bool)
            for name, a in vars(layout.places).items()
            if isinstance(a, np.ndarray)
        }
        return layout.assembled(chosen, lead=())


def _norm(rows: Float[Array, "rows columns"]) -> Float[Array, " rows"]:
    return jnp.sqrt(jnp.sum(rows**2, axis=1))
