"""A flow through kinks: those that matter are located, and crossed or slid along."""

from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from gflow.arguments import is_concrete
from gflow.dense import Steps
from gflow.flow.events import EventAccuracy
from gflow.flow.located_state import EventLog, LocatedState
from gflow.flow.loop import Loop, advance, begin, handed_over
from gflow.flow.output import FlowOutput
from gflow.flow.problem import FlowProblem, Method
from gflow.flow.run import MAX_PIECE_SECONDS, MAX_PIECE_STEPS, AbstractRun, Snapshot
from gflow.flow.solver_setup import accurate_fraction, with_jacobian
from gflow.flow.span import Span
from gflow.kink_log import KinkLog
from gflow.nonsmooth.pattern_risk import AbstractPatternRisk, UnitPlaces
from gflow.programs import always, program
from gflow.results import RESULTS, result_name
from gflow.solvers.stabilised import radius_at

# Kinks are located to this distance, relative to the size of the preactivations.
_KINK_DISTANCE = {"float64": 1e-12, "float32": 1e-5}
# The most numbers that are kept of steps between pauses.
_KEPT_ENTRIES = 10_000_000
# By how much the room for slides grows where it runs out.
_GROWTH = 2
# The first piece of a problem with as many pairs of a parameter and a row, or more.
_MANY_PRODUCTS, _FIRST_PIECE = 200_000, 8


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class LocatedRun(AbstractRun[LocatedState]):
    """A solve by the loop over steps and events."""

    problem: FlowProblem
    method: Method
    span: Span
    phi0: Float[Array, " size"]
    risk: AbstractPatternRisk
    kink_budget: Float[Array | np.ndarray, ""]
    log_size: int = field(metadata={"static": True})
    keeps_steps: bool = field(metadata={"static": True})

    @property
    def locates_kinks(self) -> bool:
        return True

    @property
    def is_brief(self) -> bool:
        return self._num_products < _MANY_PRODUCTS

    @property
    def _num_products(self) -> int:
        return len(self.phi0) * len(self.risk.first_datum)

    @property
    def loop(self) -> Loop:
        method = self.method
        eps = _KINK_DISTANCE.get(str(self.phi0.dtype), 1e-5)
        return Loop(
            self.risk,
            method.with_solver(with_jacobian(method.solver, self.risk.jacobian)),
            self.span,
            self.problem,
            EventAccuracy(eps, accurate_fraction(method.solver)),
            self.kink_budget,
            self.log_size,
            self._most_steps_kept() if self.keeps_steps else 0,
        )

    def init(self) -> LocatedState:
        return _begin(self)

    def advance(self, state: LocatedState, max_steps: int) -> LocatedState:
        state = _advance(self, state, np.asarray(max_steps))
        while is_concrete(state.crowded) and bool(state.crowded):
            state = self.with_room(state, _GROWTH * self.room(state))
            # Those who keep the steps take them first.
            if self.keeps_steps:
                return state
            state = _advance(self, state, np.asarray(max_steps))
        return state

    def output(self, state: LocatedState) -> FlowOutput:
        well = state.result == RESULTS.successful
        result = RESULTS.where(well & state.branched, RESULTS.branched, state.result)
        result = RESULTS.where(well & state.repelled, RESULTS.repelled, result)
        short = well & (state.t < self.span.t1)
        result = RESULTS.where(short, RESULTS.max_steps_reached, result)
        result = RESULTS.where(short & state.crowded, RESULTS.too_many_slides, result)
        return FlowOutput(
            t=state.t,
            y=state.y,
            speed=state.now.grad_norm,
            ts=self.span.filled(state.saved.num_saved),
            saved=state.saved,
            counts=state.counts,
            num_kinks=state.log.num_logged,
            result=result,
        )

    def kinks(self, state: LocatedState) -> KinkLog:
        return _in_order(state.log, self.risk.first_datum, self.risk.places)

    def snapshot(self, state: LocatedState) -> Snapshot:
        work = state.counts.work
        well = result_name(state.result) == "successful"
        return Snapshot(
            t=float(state.t),
            num_steps=int(state.counts.steps),
            num_saved=int(state.saved.num_saved),
            num_kinks=int(state.log.num_logged),
            num_evaluations=0 if work is None else int(work.evaluations),
            step_size=float(state.stepping.size),
            unfinished=well and float(state.t) < float(self.span.t1),
        )

    def last_steps(self, state: LocatedState) -> Steps | None:
        return state.steps

    def piece_length(self, num_steps: int, seconds_per_step: float) -> int:
        most = self._most_steps_kept() if self.keeps_steps else MAX_PIECE_STEPS
        within = MAX_PIECE_SECONDS / seconds_per_step if seconds_per_step > 0 else most
        # Few steps at first where they may be slow, and twice as many each time.
        few = self._num_products < _MANY_PRODUCTS
        first = MAX_PIECE_STEPS // 4 if few else _FIRST_PIECE
        return max(1, min(most, int(within), max(num_steps, first)))

    def _most_steps_kept(self) -> int:
        """As many as fit into some memory, about a dozen states for each."""
        entries = 12 * len(self.phi0)
        return max(8, min(MAX_PIECE_STEPS, _KEPT_ENTRIES // entries))

    def room(self, state: LocatedState) -> int:
        return state.pattern.room

    def with_room(self, state: LocatedState, room: int) -> LocatedState:
        return state if room == self.room(state) else _with_room(self, state, room)

    def spectral_radius(self, state: LocatedState) -> float:
        return float(_spectral_radius(self.risk, state))

    def with_solver(
        self, solver: diffrax.AbstractSolver, state: LocatedState
    ) -> tuple["LocatedRun", LocatedState]:
        run = replace(self, method=self.method.with_solver(solver))
        return run, _handed_over(run, state)


def _in_order(log: EventLog, first_datum: Any, places: UnitPlaces) -> KinkLog:
    """Kinks that one step passed were not found in the order of time."""
    known = is_concrete(log, first_datum)
    like: Any = np if known else jnp
    count, time, entry, first_datum = (
        like.asarray(a) for a in (log.num_logged, log.time, log.entry, first_datum)
    )
    # Of known ones only those that are used, which are few.
    used = slice(min(int(count), log.size) if known else log.size)
    time = like.where(like.arange(len(time[used])) < count, time[used], like.inf)
    order = like.argsort(time, stable=True)
    unit, row, kind, passed = entry[order].T.astype(int)
    layer, unit = (like.asarray(a)[unit] for a in places)
    columns = [time[order], layer, unit, first_datum[row], kind, passed.astype(bool)]
    return KinkLog(*(jax.device_put(columns) if known else columns))


@partial(program, is_brief=always)
def _begin(run: LocatedRun) -> LocatedState:
    return begin(run.loop, run.problem.start(run.phi0))


@partial(program, is_brief=lambda run, *_: run.is_brief)
def _advance(run: LocatedRun, state: LocatedState, max_steps: Any) -> LocatedState:
    return advance(run.loop, state, max_steps)


@partial(program, is_brief=always)
def _handed_over(run: LocatedRun, state: LocatedState) -> LocatedState:
    return handed_over(run.loop, state)


@partial(program, is_brief=lambda run, *_: run.is_brief)
def _with_room(run: LocatedRun, state: LocatedState, room: int) -> LocatedState:
    pattern = state.pattern.with_room(room)
    now = run.risk.evaluate(state.y[:-1], pattern).kept()
    return state._replace(pattern=pattern, now=now, crowded=jnp.asarray(False))


@partial(program, is_brief=always)
def _spectral_radius(risk: AbstractPatternRisk, state: LocatedState) -> Array:
    """That of the Jacobian of the field in this state."""
    field = lambda theta: risk.field(state.t, jnp.append(theta, 0.0), state.pattern)[:-1]
    return radius_at(field, state.y[:-1])
