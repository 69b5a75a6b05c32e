"""Steps per second of `gflow.descend` against the same descent as a plain Python loop.

A run is full-batch gradient descent of a ReLU network for some steps, then the risk at its end;
`descend` records there the gradient norm and the energy too, which its time includes.
The peers are loops over one compiled optax step: called as fast as JAX allows (jit), and as most
people write it (filter_jit); and over torch.optim.SGD on the CPU if torch is installed.
"""

import importlib
import importlib.util
import sys
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax

import gflow
from benchmarks import harness
from gflow.parameters import split_trainable

# Width, rows and features.
SIZES = ((16, 64, 1), (128, 1_000, 10), (1_000, 10_000, 10))
# Sizes whose steps are slow still need some, lest the risk at the end be much of the run.
LEAST_STEPS = 16
RTOL = {"float64": 1e-6, "float32": 1e-3}
COLUMNS = {
    "width × rows × features": ("size", ""),
    "method": ("method", ""),
    "steps": ("number", ",d"),
    "compile s": ("compile_s", ".2f"),
    "run s": ("run_s", ".3f"),
    "spread": ("spread", ".0%"),
    "steps/s": ("rate", ",.0f"),
    "gflow is faster": ("speedup", ".2f"),
    "risk differs": ("difference", ".1e"),
}


class Problem(NamedTuple):
    net: gflow.ShallowNet
    x: jax.Array
    y: jax.Array
    step_size: float


def problem(width: int, rows: int, features: int) -> Problem:
    """A smooth target of normal data."""
    x = jax.random.normal(jax.random.key(0), (rows, features))
    y = jnp.sin(jnp.sum(x, axis=1))
    net = gflow.ShallowNet(features, width, key=jax.random.key(1))
    # The sharpness at the start grows like the width, and 2/sharpness bounds the step size.
    return Problem(net, x, y, 0.1 / width)


def with_descend(given: Problem) -> harness.Run:
    risk = gflow.EmpiricalRisk(given.x, given.y)

    def run(steps: int) -> Any:
        trajectory = gflow.descend(
            risk, given.net, step_size=given.step_size, num_steps=steps, record=[steps]
        )
        return np.asarray(trajectory.risk)[-1]

    return run


def with_jit_loop(given: Problem) -> harness.Run:
    trained, frozen = split_trainable(given.net)
    # Of all pytrees, plain tuples are the cheapest to pass to a compiled function.
    leaves, structure = jax.tree.flatten(trained)
    optimiser = optax.sgd(given.step_size)

    def risk(params, x, y):
        net = eqx.combine(jax.tree.unflatten(structure, params), frozen)
        return gflow.EmpiricalRisk(x, y)(net)

    @jax.jit
    def step(params, state, x, y):
        updates, state = optimiser.update(jax.grad(risk)(params, x, y), state, params)
        return optax.apply_updates(params, updates), state

    compiled_risk = jax.jit(risk)

    def run(steps: int) -> Any:
        params: Any = tuple(leaves)
        state = optimiser.init(params)
        for _ in range(steps):
            params, state = step(params, state, given.x, given.y)
        return compiled_risk(params, given.x, given.y)

    return run


def with_jit_loop_on_net(given: Problem) -> harness.Run:
    empirical = gflow.EmpiricalRisk(given.x, given.y)
    risk = lambda net: empirical(net)
    optimiser = optax.sgd(given.step_size)

    @jax.jit
    def step(net, state):
        updates, state = optimiser.update(jax.grad(risk)(net), state, net)
        return optax.apply_updates(net, updates), state

    compiled_risk = jax.jit(risk)

    def run(steps: int) -> Any:
        net: Any = given.net
        state = optimiser.init(net)
        for _ in range(steps):
            net, state = step(net, state)
        return compiled_risk(net)

    return run


def with_filter_jit_loop(given: Problem) -> harness.Run:
    risk = gflow.EmpiricalRisk(given.x, given.y)
    optimiser = optax.sgd(given.step_size)

    @eqx.filter_jit
    def step(net, state, risk):
        updates, state = optimiser.update(eqx.filter_grad(risk)(net), state, net)
        return eqx.apply_updates(net, updates), state

    compiled_risk = eqx.filter_jit(lambda net, risk: risk(net))

    def run(steps: int) -> Any:
        net = given.net
        state = optimiser.init(eqx.filter(net, eqx.is_inexact_array))
        for _ in range(steps):
            net, state = step(net, state, risk)
        return compiled_risk(net, risk)

    return run


def with_torch_loop(given: Problem, torch: Any) -> harness.Run:
    net = given.net
    x, y, *initial = (
        torch.from_numpy(np.array(a)) for a in (given.x, given.y, net.w, net.b, net.v, net.c)
    )

    def run(steps: int) -> float:
        w, b, v, c = params = [a.clone().requires_grad_() for a in initial]
        optimiser = torch.optim.SGD(params, lr=given.step_size)
        risk = lambda: ((torch.relu(x @ w.T + b) @ v + c - y) ** 2).mean()
        for _ in range(steps):
            optimiser.zero_grad()
            risk().backward()
            optimiser.step()
        with torch.no_grad():
            return float(risk())

    return run


def methods(given: Problem, torch: Any) -> dict[str, harness.Run]:
    found = {
        "gflow.descend": with_descend(given),
        "optax loop, jit on the net": with_jit_loop_on_net(given),
        "optax loop, jit on a tuple": with_jit_loop(given),
        "optax loop, filter_jit": with_filter_jit_loop(given),
    }
    return found if torch is None else found | {"torch loop, CPU": with_torch_loop(given, torch)}


def main() -> int:
    args = harness.start(harness.parser("descent", __doc__))
    torch = importlib.import_module("torch") if importlib.util.find_spec("torch") else None
    facts = {"torch threads": torch.get_num_threads()} if torch else {}
    seconds, least = (0.05, LEAST_STEPS // 4) if args.quick else (0.5, LEAST_STEPS)
    rows = []
    for size in SIZES:
        runs = methods(problem(*size), torch)
        found = harness.measure(runs, seconds=seconds, repeats=args.repeats, least=least)
        harness.compare(found, runs, "gflow.descend", RTOL[args.precision])
        words = " × ".join(f"{n:,}" for n in size)
        rows += [{"size": words, **row} for row in found.values()]
    return harness.report(args, rows, COLUMNS, **facts)


if __name__ == "__main__":
    sys.exit(main())
