"""A solve piece by piece: to show where it is, to choose its solver, and to keep what was done."""

from typing import Any, Protocol

import diffrax
from jaxtyping import Array, Float

from gflow.flow.choice import Progress, better_solver
from gflow.flow.problem import PIECE_STEPS, Piece, Problem
from gflow.progress import progress_bar
from gflow.results import RESULTS


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

    def start(self) -> Any: ...
    def advance(self, state: Any, max_steps: int) -> Any: ...
    def hand_over(self, state: Any, solver: diffrax.AbstractSolver) -> tuple["Run", Any]: ...
    def unfinished(self, state: Any) -> bool: ...
    def kinks_met(self, state: Any) -> int: ...
    def step_size(self, state: Any) -> float: ...
    def spectral_radius(self, state: Any) -> float: ...
    def piece(self, state: Any) -> Piece: ...


def solve_in_pieces(run: Run, *, max_steps: int, choose: bool, progress: bool) -> Piece:
    """The solve, with pauses after some steps; if it may `choose`, with another solver from where
    that is better."""
    state, switched, interrupted = run.start(), None, False
    with progress_bar(len(run.ts) if progress else None, "gradient flow") as bar:
        try:
            while run.unfinished(state) and int(state.steps) < max_steps:
                before = state
                state = run.advance(state, min(int(state.steps) + PIECE_STEPS, max_steps))
                kinks = run.kinks_met(state)
                met = f", {kinks:,} kinks" if kinks else ""
                bar.advance(int(state.saved) - int(before.saved), f"t = {float(state.t):.4g}{met}")
                if choose and switched is None and run.unfinished(state):
                    solver = _better(run, before, state)
                    if solver is not None:
                        switched = type(solver).__name__, state.t, state.steps
                        run, state = run.hand_over(state, solver)
        except KeyboardInterrupt:
            interrupted = True
    piece = run.piece(state)._replace(switched=switched)
    return piece._replace(result=RESULTS.interrupted) if interrupted else piece


def _better(run: Run, before: Any, state: Any) -> diffrax.AbstractSolver | None:
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
        )
    )
