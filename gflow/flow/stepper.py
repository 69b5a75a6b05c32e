"""One step of a solver within a pattern, with the evaluation of the risk at its end."""

from typing import Any, NamedTuple

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from gflow.nonsmooth.pattern import AbstractPattern
from gflow.nonsmooth.pattern_risk import AbstractEvaluation, AbstractPatternRisk
from gflow.rows import with_row


class Stepped(NamedTuple):
    """Where a step leads, the estimate of its error, what its dense output is made of, the state of
    the solver, the evaluation of the risk at its end, and the change of the field along it."""

    y: Float[Array, " size"]
    error: Float[Array, " size"]
    dense: dict[str, Array]
    solver_state: Any
    end: AbstractEvaluation
    turn: Float[Array, " size"]


class Stepper(eqx.Module):
    """Steps of a solver through the field of one pattern.

    Explicit Runge–Kutta methods whose last stage is the first of the next step are written out
    here: the evaluation in the last stage is that at the end of the step, from which kinks are
    judged. For all others it is one more.
    """

    risk: AbstractPatternRisk
    solver: diffrax.AbstractSolver

    @property
    def terms(self) -> diffrax.ODETerm:
        return diffrax.ODETerm(self.risk.field)

    @property
    def by_stages(self) -> bool:
        tableau = getattr(self.solver, "tableau", None)
        explicit = isinstance(self.solver, diffrax.AbstractERK)
        return explicit and isinstance(tableau, diffrax.ButcherTableau) and tableau.fsal

    def init(self, t0, t1, y: Float[Array, " size"], pattern: AbstractPattern) -> Any:
        """The state of the solver before its first step."""
        if self.by_stages:
            return None
        return self.solver.init(self.terms, t0, t1, y, pattern)

    def step(
        self,
        t: Float[Array, ""],
        t_next: Float[Array, ""],
        y: Float[Array, " size"],
        pattern: AbstractPattern,
        start: AbstractEvaluation,
        solver_state: Any,
        made_jump: Bool[Array, ""],
    ) -> Stepped:
        """A step from t to t_next, where `start` is the evaluation at y."""
        if self.by_stages:
            return self._by_stages(t_next - t, y, pattern, start)
        y_next, error, dense, solver_state, _ = self.solver.step(
            self.terms, t, t_next, y, pattern, solver_state, made_jump
        )
        assert isinstance(y_next, Array) and isinstance(error, Array)
        end = self.risk.evaluate(y_next[:-1], pattern)
        turn = end.field - start.field
        return Stepped(y_next, error, dense, solver_state, end, turn)

    def _by_stages(self, dt, y, pattern: AbstractPattern, start: AbstractEvaluation) -> Stepped:
        tableau: Any = self.solver.tableau  # pyright: ignore[reportAttributeAccessIssue]
        number = tableau.num_stages
        lower = np.zeros((number, number))
        for k, row in enumerate(tableau.a_lower, start=1):
            lower[k, : len(row)] = row
        lower = jnp.asarray(lower, y.dtype)
        slope = dt * start.field
        slopes = jnp.zeros((number, len(y)), y.dtype).at[0].set(slope)

        def stage(k, slopes):
            at = y + lower[k] @ slopes
            return with_row(slopes, k, dt * self.risk.field(0.0, at, pattern))

        # What else an evaluation says is wanted in the last stage only.
        slopes = jax.lax.fori_loop(1, number - 1, stage, slopes)
        y_next = y + lower[-1] @ slopes
        end = self.risk.evaluate(y_next[:-1], pattern)
        slopes = slopes.at[-1].set(dt * end.field)
        error = jnp.asarray(tableau.b_error, y.dtype) @ slopes
        turn = (slopes[-1] - slopes[0]) / dt
        return Stepped(y_next, error, {"y0": y, "y1": y_next, "k": slopes}, None, end, turn)

    @property
    def evaluations(self) -> int:
        """Field evaluations of a step by stages."""
        tableau: Any = self.solver.tableau  # pyright: ignore[reportAttributeAccessIssue]
        return tableau.num_stages - 1
