"""A network of 102,001 parameters to t = 1,000: gradients and memory that a flow takes.

2,000 tanh units on 50 features of 2,000 rows, drawn at random, with a teacher of 4 units for a
target; hidden biases are not trained. Smooth, so that only stiffness is compared. gflow's choice at
rtol 1e-4 against the classical Runge–Kutta method with step 1/sharpness. Errors are those of the
final parameters, relative: of the classical method against ROCK4 at rtol 1e-7, of gflow against
both.
"""

import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import numpy as np
from jax.flatten_util import ravel_pytree

import gflow
from benchmarks import harness
from benchmarks.edge import classical
from gflow.parameters import split_trainable

ROWS, FEATURES, WIDTH, TEACHER = 2_000, 50, 2_000, 4
TRAINED = ("w", "v", "c")
T1, RTOL, TIGHT = 1e3, 1e-4, 1e-7
CLASSICAL, CHOICE = "RK4, step 1/sharpness", "gflow"
ROCK4, CLOSER, REFERENCE = "gflow ROCK4", "gflow ROCK4, closer", "gflow ROCK4, tight"
COLUMNS = {
    "method": ("method", ""),
    "rtol": ("rtol", ""),
    "t": ("t1", "g"),
    "evaluations": ("field_evaluations", ",d"),
    "Hessian products": ("hessian_products", ",d"),
    "steps": ("steps", ",d"),
    "s": ("run_s", ".0f"),
    "risk": ("risk", ".6g"),
    "error": ("distance", ".1e"),
    "against RK4": ("to_classical", ".1e"),
}


def problem() -> tuple[gflow.EmpiricalRisk, gflow.ShallowNet]:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(ROWS, FEATURES)) / FEATURES**0.5
    y = np.tanh(1.5 * x @ rng.normal(size=(FEATURES, TEACHER))) @ rng.normal(size=TEACHER)
    key = jax.random.key(0)
    net = gflow.ShallowNet(FEATURES, WIDTH, key=key, activation="tanh", init="ntk")
    return gflow.EmpiricalRisk(x, y), net


def measured(t1: float, directory: Path) -> list[harness.Row]:
    """A row for each solve; the parameters that each came to are kept in the directory."""
    risk, net = problem()
    trained, frozen = split_trainable(net, TRAINED)
    theta0, unravel = ravel_pytree(trained)
    network = lambda theta: eqx.combine(unravel(theta), frozen)
    field = lambda theta: -jax.grad(lambda p: risk(network(p)))(theta)

    def by_gflow(rtol: float, solver):
        solve = lambda end: gflow.solve_flow(
            risk, net, t1=end, ts=[end], rtol=rtol, solver=solver, trainable=TRAINED
        )
        flow = solve(t1)
        counts = ("num_steps", "num_field_evaluations", "num_hessian_products")
        facts: harness.Row = {name.removeprefix("num_"): int(flow.stats[name]) for name in counts}
        for switch in flow.switches:
            facts[f"{switch.solver} from"] = float(switch.time)
        return ravel_pytree(split_trainable(flow.final, TRAINED)[0])[0], facts | {
            "solver": flow.method
        }

    def by_classical():
        sharpness = lambda theta: float(gflow.sharpness(risk, network(theta), TRAINED, tol=1e-2))
        show = lambda t, n: print(f"{CLASSICAL}: t = {t:.4g}, {n:,d}", file=sys.stderr)
        theta, evaluations = classical(field, sharpness)(theta0, t1, show)
        return theta, {"steps": evaluations // 4, "field_evaluations": evaluations}

    solves = {
        (CHOICE, f"{RTOL:.0e}"): lambda: by_gflow(RTOL, None),
        (ROCK4, f"{RTOL:.0e}"): lambda: by_gflow(RTOL, gflow.ROCK4()),
        (CLOSER, f"{0.1 * RTOL:.0e}"): lambda: by_gflow(0.1 * RTOL, gflow.ROCK4()),
        (REFERENCE, f"{TIGHT:.0e}"): lambda: by_gflow(TIGHT, gflow.ROCK4()),
        (CLASSICAL, "-"): by_classical,
    }
    rows, ends = [], {}
    for (name, rtol), solve in solves.items():
        row: harness.Row = {"method": name, "rtol": rtol, "t1": t1}
        begin = time.perf_counter()
        with harness.failure_in(row):
            theta, facts = solve()
            row |= {"run_s": time.perf_counter() - begin, **facts}
            row["risk"] = float(risk(network(theta)))
            ends[name] = np.asarray(theta)
            directory.mkdir(parents=True, exist_ok=True)
            np.save(directory / f"large_{len(ends)}.npy", theta)
        print(row, file=sys.stderr)
        rows.append(row)
    for row in rows:
        for key, to in (("distance", REFERENCE), ("to_classical", CLASSICAL)):
            if row["method"] in ends and to in ends and row["method"] != to:
                off = np.linalg.norm(ends[row["method"]] - ends[to])
                row[key] = float(off / np.linalg.norm(ends[to]))
    return rows


def memory() -> harness.Row:
    """Bytes that the compiled solve by ROCK4 needs besides its arguments, and that one gradient
    and one Hessian product need, as XLA plans them."""
    risk, net = problem()
    trained, frozen = split_trainable(net, TRAINED)
    theta0, unravel = ravel_pytree(trained)
    network = lambda theta: eqx.combine(unravel(theta), frozen)

    def solve(theta):
        flow = gflow.solve_flow(
            risk, network(theta), t1=T1, ts=[T1], rtol=RTOL, solver=gflow.ROCK4(), trainable=TRAINED
        )
        return flow.final.w[-1]

    needs = {}
    gradient = lambda theta: jax.grad(lambda p: risk(network(p)))(theta)
    product = lambda theta: jax.jvp(gradient, (theta,), (theta,))[1]
    programs = {"solve": solve, "gradient": gradient, "product": product}
    for name, program in programs.items():
        planned: Any = jax.jit(program).lower(theta0).compile().memory_analysis()
        needs[name] = planned.temp_size_in_bytes + planned.output_size_in_bytes
    activations = ROWS * WIDTH * theta0.dtype.itemsize
    arrays, rest = divmod(needs["solve"], activations)
    more = rest / theta0.nbytes
    sentence = (
        f"Memory of the solve by ROCK4: {needs['solve'] / 1e6:.0f} MB, {arrays} arrays of "
        f"activations (rows × units) and {more:.1f} times the {len(theta0):,} parameters; of a "
        f"gradient {needs['gradient'] / 1e6:.0f} MB, of a Hessian product "
        f"{needs['product'] / 1e6:.0f} MB."
    )
    return {"sentence": sentence, "times_parameters": more, "arrays": arrays, "bytes": needs}


def summary(rows: list[harness.Row]) -> Iterator[harness.Row]:
    found = {row["method"]: row for row in rows if "error" not in row}
    peer = found.pop(CLASSICAL, None)
    for ours in found.values() if peer else ():
        assert peer is not None
        # A Hessian product counts for two gradients.
        work = ours["field_evaluations"] + 2 * ours["hessian_products"]
        ratio = peer["field_evaluations"] / work
        sentence = (
            f"{ours['solver']}, rtol {ours['rtol']}: the work of {work:,d} gradients, {ratio:.1f} "
            f"times less than {CLASSICAL}; {ours['to_classical']:.1e} from its end."
        )
        yield {"sentence": sentence, "ratio": ratio}
    yield memory()


def main() -> int:
    options = harness.parser("large_flow", __doc__, precisions=("float64",))
    options.add_argument("--t1", type=float, default=T1, help="the end (1,000)")
    args = harness.start(options)
    rows = measured(args.t1, args.out.parent)
    return harness.report(args, rows, COLUMNS, list(summary(rows)))


if __name__ == "__main__":
    sys.exit(main())
