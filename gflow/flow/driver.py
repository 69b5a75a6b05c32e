"""A solve piece by piece: to show where it is, to choose its solver, and to keep what was done."""

from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import diffrax
import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

from gflow.arguments import ArgumentError, Described, is_concrete
from gflow.flow.checkpoint import Checkpoint
from gflow.flow.problem import Piece, Problem
from gflow.flow.solver_choice import SOLVERS, Progress, better_solver
from gflow.interrupts import noted_interrupts
from gflow.progress import progress_bar
from gflow.results import RESULTS
from gflow.trajectory import Switch


@runtime_checkable
class Run(Protocol):
    """A solve that can be taken piece by piece, whichever way kinks are treated."""

    @property
    def problem(self) -> Problem: ...
    @property
    def theta0(self) -> Float[Array, " size"]: ...
    @property
    def t0(self) -> Float[Array, ""]: ...
    @property
    def t1(self) -> Float[Array, ""]: ...
    @property
    def ts(self) -> Float[Array, " times"]: ...

    @property
    def located(self) -> bool: ...

    def whole(self, max_steps: int) -> Piece: ...
    def start(self) -> Any: ...
    def steps_of_piece(self, done: int) -> int: ...
    def advance(self, state: Any, max_steps: int) -> Any: ...
    def hand_over(self, state: Any, solver: diffrax.AbstractSolver) -> tuple["Run", Any]: ...
    def unfinished(self, state: Any) -> bool: ...
    def kinks_met(self, state: Any) -> int: ...
    def step_size(self, state: Any) -> float: ...
    def spectral_radius(self, state: Any) -> float: ...
    def ending(self, state: Any) -> Callable[[], Piece]: ...


def solve_in_pieces(
    run: Run, *, max_steps: int, choose: bool, progress: bool, checkpoint: Checkpoint | None
) -> tuple[Callable[[], Piece], list[Switch]]:
    """The solve, with pauses after some steps; if it may `choose`, with another solver from where
    that is better; from the `checkpoint` on if there is one.

    Returns what makes the piece from the last state, to be compiled with what follows, and the
    switches that were made. Ctrl-C ends the solve, where `progress` is shown with what was reached.
    """
    run, state, switches = _start(run, checkpoint)
    if not is_concrete(state):
        # The risk holds traced arrays: nothing can be looked at on the way.
        if progress or checkpoint is not None:
            name = "progress" if progress else "checkpoint"
            raise ArgumentError(name, Described("a traced risk"), "a known one, for pauses")
        return eqx.Partial(as_it_is, run.whole(max_steps)), []
    interrupted = False
    total = len(run.ts) if progress else None
    with progress_bar(total, "gradient flow") as bar, noted_interrupts() as noted:
        try:
            while run.unfinished(state) and int(state.steps) < max_steps and not noted:
                before = state
                done = int(state.steps)
                state = run.advance(state, min(done + run.steps_of_piece(done), max_steps))
                kinks = run.kinks_met(state)
                met = f", {kinks:,} kinks" if kinks else ""
                bar.advance(int(state.saved) - int(before.saved), f"t = {float(state.t):.4g}{met}")
                if choose and run.unfinished(state):
                    solver = _better(run, before, state, switches)
                    if solver is not None:
                        switches.append(Switch(type(solver).__name__, state.t, state.steps))
                        run, state = run.hand_over(state, solver)
                if checkpoint is not None:
                    checkpoint.save({"switches": [s.as_list() for s in switches]}, state)
        except KeyboardInterrupt:
            interrupted = True
    interrupted = interrupted or bool(noted)
    if checkpoint is not None:
        checkpoint.save({"switches": [s.as_list() for s in switches]}, state, last=True)
    if interrupted and not progress:
        raise KeyboardInterrupt
    return eqx.Partial(_ended, run.ending(state), tuple(switches), interrupted), switches


def as_it_is(piece: Piece) -> Piece:
    return piece


def _ended(ending: Callable[[], Piece], switches: tuple[Switch, ...], interrupted: bool) -> Piece:
    piece = ending()._replace(switches=switches)
    return piece._replace(result=RESULTS.interrupted) if interrupted else piece


def _start(run: Run, checkpoint: Checkpoint | None) -> tuple[Run, Any, list[Switch]]:
    """The run and its state, from the checkpoint if there is one, and the switches made before."""
    if checkpoint is None:
        return run, run.start(), []

    def handed_over(switches: list[Switch]) -> tuple[Run, Any]:
        start = run.start()
        return run.hand_over(start, SOLVERS[switches[-1].solver]()) if switches else (run, start)

    as_switches = lambda facts: [
        Switch(solver, jnp.asarray(time, run.t0.dtype), jnp.asarray(num_steps))
        for solver, time, num_steps in facts["switches"]
    ]
    found = checkpoint.load(lambda facts: handed_over(as_switches(facts))[1])
    if found is None:
        return run, run.start(), []
    switches = as_switches(found[0])
    return handed_over(switches)[0], found[1], switches


def _better(
    run: Run, before: Any, state: Any, switches: list[Switch]
) -> diffrax.AbstractSolver | None:
    work = (state.work, before.work)
    evaluations = [0 if of is None else int(of.evaluations) for of in work]
    return better_solver(
        Progress(
            t=float(state.t - run.t0),
            t1=float(run.t1 - run.t0),
            before=float(before.t - run.t0),
            kinks=run.kinks_met(state) - run.kinks_met(before),
            step_size=run.step_size(state),
            radius=lambda: run.spectral_radius(state),
            rtol=float(run.problem.rtol),
            num_params=len(run.theta0),
            located=run.located,
            evaluations=evaluations[0] - evaluations[1],
        ),
        after=switches[-1].solver if switches else None,
    )
