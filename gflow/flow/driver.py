"""How a run is solved: at once, or with pauses in which it is shown, saved and changed."""

import time
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from gflow.arguments import ArgumentError, Described, is_concrete
from gflow.dense import Steps
from gflow.diagnostics import Switch
from gflow.flow.checkpoint import Checkpoint
from gflow.flow.run import AbstractRun, Snapshot
from gflow.flow.solver_choice import SUCCESSORS, RunProgress, better_solver
from gflow.interrupts import noted_interrupts
from gflow.progress import progress_bar
from gflow.results import RESULTS

# Before, a flow has not shown yet whether it is stiff.
_STEPS_BEFORE_A_CHOICE = 128


class Pauses(NamedTuple):
    """What pauses are for: to `choose` another solver, to show `progress`, to keep a `checkpoint`,
    to keep every step for `dense` output, to end after some `seconds`."""

    choose: bool = False
    progress: bool = False
    checkpoint: Checkpoint | None = None
    dense: bool = False
    seconds: float | None = None

    @property
    def required(self) -> list[str]:
        """The arguments of `solve_flow` that cannot do without pauses."""
        given = {
            "progress": self.progress,
            "checkpoint": self.checkpoint is not None,
            "dense": self.dense,
            "stop.seconds": self.seconds is not None,
        }
        return [name for name, wanted in given.items() if wanted]


class Solved(NamedTuple):
    """A run with the state it came to, the solvers that took over, the steps that were kept, and
    the result if it was ended from outside: by Ctrl-C, or as its seconds were over."""

    run: AbstractRun
    state: Any
    switches: tuple[Switch, ...] = ()
    steps: tuple[Steps, ...] = ()
    ended: RESULTS | None = None


def solve(run: AbstractRun, max_steps: int, pauses: Pauses) -> Solved:
    """Solves a run: in one program, or piece by piece where there is anything to pause for.

    What is traced by JAX is solved in one program, since nothing can be looked at on the way.
    """
    start = _start(run, pauses.checkpoint) if pauses.choose or pauses.required else None
    if start is not None and is_concrete(start.state, run):
        return _solve_in_pieces(start, max_steps, pauses)
    if pauses.required:
        got = Described("arrays that JAX traces")
        raise ArgumentError(pauses.required[0], got, "known ones: no jax.jit, no jax.vmap")
    return Solved(run, run.advance(run.init(), max_steps))


def _solve_in_pieces(start: Solved, max_steps: int, pauses: Pauses) -> Solved:
    """Goes on from the start, piece by piece. Ctrl-C ends the solve; where progress is shown, with
    what was reached."""
    solved, pressed, clock = start, False, _Clock(pauses.seconds)
    total = int(start.run.span.num_times) if pauses.progress else None
    with progress_bar(total, "gradient flow") as bar, noted_interrupts() as noted:
        now = asked = solved.run.snapshot(solved.state)
        try:
            while now.unfinished and now.num_steps < max_steps and not noted and not clock.over():
                before, run = now, solved.run
                budget = now.num_steps + run.piece_length(now.num_steps, clock.seconds_per_step)
                # Where a fast machine pauses: results must not depend on the time of steps.
                choice = asked.num_steps + run.piece_length(asked.num_steps, 0.0)
                state = run.advance(solved.state, min(budget, choice, max_steps))
                now = run.snapshot(state)
                clock.note(now.num_steps - before.num_steps)
                solved = solved._replace(state=state, steps=_with_last(solved.steps, run, state))
                met = f", {now.num_kinks:,} kinks" if now.num_kinks else ""
                bar.advance(now.num_saved - before.num_saved, f"t = {now.t:.4g}{met}")
                if now.num_steps >= choice:
                    if pauses.choose and now.unfinished and choice >= _STEPS_BEFORE_A_CHOICE:
                        solved = _with_better_solver(solved, asked, now)
                    asked = now
                if pauses.checkpoint is not None:
                    pauses.checkpoint.save(_facts(solved), solved.state)
        except KeyboardInterrupt:
            pressed = True
    pressed = pressed or bool(noted)
    if pauses.checkpoint is not None:
        pauses.checkpoint.save(_facts(solved), solved.state, last=True)
    if pressed and not pauses.progress:
        raise KeyboardInterrupt
    # A flow that has reached its end was not cut short.
    if not (solved.run.snapshot(solved.state) if pressed else now).unfinished:
        return solved
    if pressed:
        return solved._replace(ended=RESULTS.interrupted)
    return solved._replace(ended=RESULTS.reached_seconds if clock.over() else None)


class _Clock:
    """The time that is left of some seconds, and what a step takes: in the fastest piece, without
    the first, in which the solver is compiled."""

    def __init__(self, seconds: float | None):
        self.seconds_per_step = 0.0
        self._start = self._last = time.monotonic()
        self._seconds = np.inf if seconds is None else seconds
        self._measured: list[float] = []

    def over(self) -> bool:
        return time.monotonic() - self._start >= self._seconds

    def note(self, num_steps: int) -> None:
        """That some steps were taken since the last call."""
        now = time.monotonic()
        self._measured.append((now - self._last) / max(num_steps, 1))
        self.seconds_per_step = min(self._measured[1:], default=0.0)
        self._last = now


def _with_last(steps: tuple[Steps, ...], run: AbstractRun, state: Any) -> tuple[Steps, ...]:
    """With the steps of the last piece, if they are kept."""
    last = run.last_steps(state)
    return steps if last is None else (*steps, last.on_host())


def _start(run: AbstractRun, checkpoint: Checkpoint | None) -> Solved:
    """The run at its start, or at the checkpoint if there is one."""
    if checkpoint is None:
        return Solved(run, run.init())
    found = checkpoint.load(lambda facts: _resumed(run, facts).state)
    if found is None:
        return Solved(run, run.init())
    facts, state = found
    return _resumed(run, facts)._replace(state=state)


def _resumed(run: AbstractRun, facts: dict[str, Any]) -> Solved:
    """The run at its start with the solver of a checkpoint with these facts."""
    switches = tuple(
        Switch(solver, jnp.asarray(time, run.span.t0.dtype), jnp.asarray(num_steps))
        for solver, time, num_steps in facts["switches"]
    )
    start = run.init()
    start = run.with_room(start, facts["room"])
    if not switches:
        return Solved(run, start)
    return Solved(*run.with_solver(SUCCESSORS[switches[-1].solver](), start), switches)


def _facts(solved: Solved) -> dict[str, Any]:
    return {
        "switches": [switch.as_list() for switch in solved.switches],
        "room": solved.run.room(solved.state),
    }


def _with_better_solver(solved: Solved, before: Snapshot, now: Snapshot) -> Solved:
    """With another solver from here on, if one promises less work."""
    run, state, switches = solved.run, solved.state, solved.switches
    progress = RunProgress(
        t=now.t - float(run.span.t0),
        t1=float(run.span.t1 - run.span.t0),
        before=before.t - float(run.span.t0),
        num_kinks=now.num_kinks - before.num_kinks,
        num_evaluations=now.num_evaluations - before.num_evaluations,
        step_size=now.step_size,
        radius=lambda: run.spectral_radius(state),
        rtol=float(run.method.rtol),
        num_params=len(run.phi0),
        located=run.locates_kinks,
    )
    solver = better_solver(progress, after=switches[-1].solver if switches else None)
    if solver is None:
        return solved
    made = Switch(
        type(solver).__name__, jnp.asarray(now.t, run.span.t0.dtype), jnp.asarray(now.num_steps)
    )
    return Solved(*run.with_solver(solver, state), (*switches, made), solved.steps)
