"""Solves of one flow by what a user would take without gflow's solvers: diffrax alone, descent."""

import math
from collections.abc import Callable

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

import gflow
from benchmarks.kink_solvers import End, Problem, TimeUp, budget, flat
from gflow.parameters import split_trainable

# Evaluations of the field for a step; those of the choice of the first, and of the start.
EVALUATIONS = {"Tsit5": 6, "Dopri5": 6, "Bosh3": 3}
_AT_START = 2
# Solves at an rtol, or with a step size, and gives what tells the end, which costs no solve.
Run = Callable[[float], Callable[[], End]]


def with_diffrax(given: Problem, name: str, probe_steps: int, limit: float) -> tuple[float, Run]:
    """The compile time, and solves of about `limit` seconds at most, by `diffeqsolve` on the
    gradient with ReLU'(0) = 0, without the dissipation that gflow's states hold."""
    trained, frozen = split_trainable(given.net)
    theta0, unravel = ravel_pytree(trained)
    network = lambda theta: eqx.combine(unravel(theta), frozen)
    field = lambda t, theta, risk: -jax.grad(lambda a: risk(network(a)))(theta)

    @eqx.filter_jit
    def solve(theta, risk, t1, rtol, max_steps):
        return diffrax.diffeqsolve(
            diffrax.ODETerm(field),
            getattr(diffrax, name)(),
            0.0,
            t1,
            None,
            theta,
            args=risk,
            stepsize_controller=diffrax.PIDController(rtol=rtol, atol=1e-2 * rtol),
            max_steps=max_steps,
            throw=False,
        )

    def run(rtol: float, max_steps: int, t1: float = given.t1) -> Callable[[], End]:
        arrays = jnp.asarray(t1), jnp.asarray(rtol)
        found = jax.block_until_ready(solve(theta0, given.risk, *arrays, max_steps))
        return lambda: _end(found, name)

    compile_s, max_steps = budget(lambda steps: run(1e-6, steps)(), probe_steps, limit)
    # Another number of steps is another program.
    run(1e-6, max_steps, 1e-9 * given.t1)
    return compile_s, lambda rtol: run(rtol, max_steps)


def _end(found: diffrax.Solution, name: str) -> End:
    steps, rejected = (int(found.stats[f"num_{kind}"]) for kind in ("steps", "rejected_steps"))
    if found.result == diffrax.RESULTS.max_steps_reached:
        raise TimeUp(f"after {steps:,d} steps")
    if found.result != diffrax.RESULTS.successful or found.ys is None:
        raise RuntimeError(f"after {steps:,d} steps: {found.result}")
    evaluations = EVALUATIONS[name] * steps + _AT_START
    counts = {"steps": steps, "rejected_steps": rejected, "field_evaluations": evaluations}
    return End(np.asarray(found.ys[-1]), counts)


def with_descent(given: Problem, probe_steps: int, limit: float) -> tuple[float, Run]:
    """The compile time, and gradient descent of about `limit` seconds at most, by step size."""

    def descent(step_size: float, num_steps: int) -> gflow.Trajectory:
        # Only the end is recorded.
        return gflow.descend(
            given.risk,
            given.net,
            step_size=step_size,
            num_steps=num_steps,
            record=[num_steps],
            throw=False,
        )

    def probe(steps: int) -> End:
        jax.block_until_ready(descent(1e-9 * given.t1, steps))
        return End(np.zeros(0), {"steps": steps})

    compile_s, most = budget(probe, probe_steps, limit)

    def run(step_size: float) -> Callable[[], End]:
        steps = math.ceil(given.t1 / step_size)
        if steps > most:
            raise TimeUp(f"{steps:,d} steps")
        found = jax.block_until_ready(descent(given.t1 / steps, steps))
        return lambda: _end_of_descent(found, steps)

    return compile_s, run


def _end_of_descent(found: gflow.Trajectory, steps: int) -> End:
    if not found.succeeded:
        raise RuntimeError(found.message.split(".")[0])
    return End(flat(found.final), {"steps": steps, "field_evaluations": steps})
