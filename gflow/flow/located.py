"""The flow with every kink located, crossed or slid along."""

import dataclasses
from collections.abc import Callable

import diffrax
import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

from gflow.flow.loop import Loop, Settings, State, advance, begin, handed_over
from gflow.flow.problem import PIECE_STEPS, Piece, Problem
from gflow.flow.solver_setup import accurate_share, with_jacobian
from gflow.kink_log import KinkLog
from gflow.nonsmooth.shallow.hessian import field_jacobian
from gflow.nonsmooth.shallow.risk import SwitchedRisk
from gflow.results import RESULTS
from gflow.solvers.stabilised import radius_at


@dataclasses.dataclass(frozen=True)
class Located:
    """A solve with located kinks, as a whole or piece by piece."""

    problem: Problem
    risk: SwitchedRisk
    theta0: Float[Array, " size"]
    t0: Float[Array, ""]
    t1: Float[Array, ""]
    ts: Float[Array, " times"]
    max_kinks: int

    located = True

    @property
    def loop(self) -> Loop:
        problem = self.problem
        solver = with_jacobian(problem.solver, eqx.Partial(field_jacobian, self.risk))
        tolerances = problem.rtol, problem.atol, problem.step_size
        settings = Settings(solver, *tolerances, problem.stop, self.max_kinks)
        # Kinks are located to this distance, relative to the size of the preactivations.
        eps = 1e-12 if self.theta0.dtype == jnp.float64 else 1e-5
        near = accurate_share(problem.solver)
        return Loop(self.risk, settings, self.t0, self.t1, self.ts, eps, near)

    def whole(self, max_steps: int) -> Piece:
        return _whole(self.loop, self.theta0, jnp.asarray(max_steps))

    def start(self) -> State:
        return _start(self.loop, self.theta0)

    def steps_of_piece(self, done: int) -> int:
        return min(PIECE_STEPS, max(done, PIECE_STEPS // 4))

    def advance(self, state: State, max_steps: int) -> State:
        """After some steps; `max_steps` counts from the start."""
        return _advance(self.loop, state, jnp.asarray(max_steps))

    def hand_over(self, state: State, solver: diffrax.AbstractSolver) -> tuple["Located", State]:
        """The solve, and its state, with another solver from here on."""
        problem = eqx.tree_at(lambda p: p.solver, self.problem, solver)
        run = dataclasses.replace(self, problem=problem)
        return run, _hand_over(run.loop, state)

    def unfinished(self, state: State) -> bool:
        return bool(state.result == RESULTS.successful) and bool(state.t < self.t1)

    def kinks_met(self, state: State) -> int:
        return int(state.log.met)

    def step_size(self, state: State) -> float:
        return float(state.dt)

    def spectral_radius(self, state: State) -> float:
        return float(_spectral_radius(self.risk, state))

    def ending(self, state: State) -> Callable[[], Piece]:
        return eqx.Partial(_piece, self.loop, state)


@eqx.filter_jit
def _start(loop: Loop, theta0) -> State:
    return begin(loop, theta0)


@eqx.filter_jit
def _advance(loop: Loop, state: State, max_steps) -> State:
    return advance(loop, state, max_steps)


@eqx.filter_jit
def _whole(loop: Loop, theta0, max_steps) -> Piece:
    return _piece(loop, advance(loop, begin(loop, theta0), max_steps))


@eqx.filter_jit
def _hand_over(loop: Loop, state: State) -> State:
    return handed_over(loop, state)


@eqx.filter_jit
def _spectral_radius(risk: SwitchedRisk, state: State) -> Array:
    """Of the Jacobian of the field, where the state is."""
    field = lambda theta: risk.field(state.t, jnp.append(theta, 0.0), state.pattern)[:-1]
    return radius_at(field, state.y[:-1])


def _piece(loop: Loop, state: State) -> Piece:
    well = state.result == RESULTS.successful
    result = RESULTS.where(well & state.repelled, RESULTS.repelled, state.result)
    result = RESULTS.where(well & (state.t < loop.t1), RESULTS.max_steps_reached, result)
    log = state.log
    return Piece(
        ts=jnp.where(jnp.arange(len(loop.ts)) < state.saved, loop.ts, jnp.inf),
        ys=state.ys,
        count=state.saved,
        end=(state.t, state.y),
        steps=state.steps,
        rejected=state.rejected,
        shortened=state.shortened,
        result=result,
        work=state.work,
        speeds=(state.speeds, loop.speed(state.y, state.pattern)),
        kinks=KinkLog(log.time, log.unit, loop.risk.first[log.row], log.kind),
    )
