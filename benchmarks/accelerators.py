"""Flows, batches of flows and descents on an accelerator, beside the CPU of the same machine.

Each job runs on both in one process: once to compile, then for the median of some runs. The end on
the accelerator is compared with that on the CPU: the largest relative difference of the final
parameters over the flows of the job. Without an accelerator only the CPU's rows are printed.
"""

import sys
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import gflow
from benchmarks import drawn_problems, harness
from benchmarks.large_flow import TRAINED, problem as wide_problem

DRAW = 0
COLUMNS = {
    "job": ("job", ""),
    "device": ("device", ""),
    "first s": ("first_s", ".1f"),
    "run s": ("run_s", ".3f"),
    "steps": ("steps", ",d"),
    "flows": ("flows", ",d"),
    "ms/flow": ("ms_flow", ".2f"),
    "kinks": ("kinks", ",d"),
    "faster than CPU": ("speedup", ".2f"),
    "differs by": ("difference", ".1e"),
}


class Done(NamedTuple):
    """Final parameters (flows, parameters), steps of the longest flow, kinks of all."""

    ends: np.ndarray
    steps: int
    kinks: int = 0


Job = Callable[[], Done]


def rows_of(tree: Any, members: int) -> np.ndarray:
    leaves = [np.asarray(leaf).reshape(members, -1) for leaf in jax.tree.leaves(tree)]
    return np.concatenate(leaves, axis=1)


def drawn(size: drawn_problems.Size, precision: str) -> tuple[gflow.EmpiricalRisk, Any]:
    """The risk and the start of a drawn problem."""
    table, start = drawn_problems.table(size, DRAW), drawn_problems.start(size, DRAW)
    w, b, v, c = (jnp.asarray(array, precision) for array in start)
    risk = gflow.EmpiricalRisk(table.x.astype(precision), table.y.astype(precision))
    return risk, gflow.ShallowNet.from_arrays(w, b, v, c)


def through_kinks(size: drawn_problems.Size, rtol: float, precision: str) -> Job:
    risk, net = drawn(size, precision)

    def job() -> Done:
        flow = gflow.solve_flow(risk, net, t1=size.t1, ts=[size.t1], rtol=rtol)
        steps, kinks = int(flow.stats["num_steps"]), int(flow.stats["num_kinks"])
        return Done(rows_of(flow.final, 1), steps, kinks)

    return job


def wide_smooth(t1: float) -> Job:
    """2,000 tanh units on 2,000 rows of 50 columns, 102,001 parameters."""
    risk, net = wide_problem()

    def job() -> Done:
        flow = gflow.solve_flow(risk, net, t1=t1, ts=[t1], rtol=1e-4, trainable=TRAINED)
        return Done(rows_of(flow.final, 1), int(flow.stats["num_steps"]))

    return job


def batch(members: int, activation: str, t1: float, rtol: float, precision: str) -> Job:
    """Flows of 16 units on 64 rows of one column from different seeds, by `jax.vmap`."""
    x = np.linspace(-1, 1, 64, dtype=precision)

    @jax.jit
    def solve(keys, x, y):
        risk = gflow.EmpiricalRisk(x[:, None], y)

        def one(key):
            net = gflow.ShallowNet(1, 16, key=key, activation=activation)
            flow = gflow.solve_flow(risk, net, t1=t1, ts=[t1], rtol=rtol, throw=False)
            kinks = flow.stats.get("num_kinks", jnp.zeros((), int))
            return flow.final, flow.stats["num_steps"], kinks

        return jax.vmap(one)(keys)

    def job() -> Done:
        keys = jax.random.split(jax.random.key(DRAW), members)
        final, steps, kinks = solve(keys, x, np.sin(3 * x))
        return Done(rows_of(final, members), int(steps.max()), int(kinks.sum()))

    return job


def loop(members: int, t1: float, rtol: float, precision: str) -> Job:
    """The flows of a `batch` of relu units, one after another."""
    x = np.linspace(-1, 1, 64, dtype=precision)
    risk = gflow.EmpiricalRisk(x[:, None], np.sin(3 * x))

    def job() -> Done:
        flows = []
        for key in jax.random.split(jax.random.key(DRAW), members):
            net = gflow.ShallowNet(1, 16, key=key)
            flows.append(gflow.solve_flow(risk, net, t1=t1, ts=[t1], rtol=rtol, throw=False))
        ends = np.concatenate([rows_of(flow.final, 1) for flow in flows])
        counts = [[int(flow.stats[k]) for k in ("num_steps", "num_kinks")] for flow in flows]
        return Done(ends, max(c[0] for c in counts), sum(c[1] for c in counts))

    return job


def descent(size: drawn_problems.Size, steps: int, precision: str) -> Job:
    risk, net = drawn(size, precision)

    def job() -> Done:
        path = gflow.descend(risk, net, step_size=1e-3, num_steps=steps, record=[steps])
        return Done(rows_of(path.final, 1), steps)

    return job


def jobs(precision: str) -> dict[str, Callable[[], Job]]:
    size, rtol = drawn_problems.Size, 1e-4
    small, middle, large = drawn_problems.SMALL, drawn_problems.MIDDLE, drawn_problems.LARGE
    return {
        "descent, 1,000 × 10,000 × 10": lambda: descent(large, 100, precision),
        "descent, 4,000 × 40,000 × 10": lambda: descent(size(4_000, 40_000, 10, 0), 20, precision),
        "descent, 16 × 64 × 3": lambda: descent(size(16, 64, 3, 0), 3_000, precision),
        "flow, 1,000 × 10,000 × 10": lambda: through_kinks(large, rtol, precision),
        "flow, 256 × 2,000 × 10": lambda: through_kinks(middle, rtol, precision),
        "flow, 24 × 100 × 13": lambda: through_kinks(small._replace(t1=2.0), rtol, precision),
        "flow, 2,000 tanh × 2,000 × 50": lambda: wide_smooth(30.0),
        "batch of 1,000, 16 tanh × 64": lambda: batch(1_000, "tanh", 10.0, rtol, precision),
        "batch of 10,000, 16 tanh × 64": lambda: batch(10_000, "tanh", 10.0, rtol, precision),
        "batch of 100, 16 relu × 64": lambda: batch(100, "relu", 2.0, rtol, precision),
        "loop of 100, 16 relu × 64": lambda: loop(100, 2.0, rtol, precision),
    }


def measured(make: Callable[[], Job], device: Any, args) -> tuple[harness.Row, np.ndarray]:
    with jax.default_device(device):
        job = make()
        first, done = harness.timed(lambda _: job(), 1)
        row, done = harness.repeated(job, seconds=args.seconds, repeats=args.repeats)
    flows = len(done.ends)
    row |= {"first_s": first, "steps": done.steps, "kinks": done.kinks, "flows": flows}
    return row | {"ms_flow": 1e3 * row["run_s"] / flows}, done.ends


def rows_for(name: str, make: Callable[[], Job], devices: list[Any], args) -> list[harness.Row]:
    rows, ends = [], []
    for device in devices:
        row: harness.Row = {"job": name, "device": device.platform}
        with harness.failure_in(row):
            figures, end = measured(make, device, args)
            row |= figures
            ends.append(end)
            if len(ends) == 2:
                off = np.linalg.norm(ends[0] - ends[1], axis=1)
                row["difference"] = float((off / np.linalg.norm(ends[0], axis=1)).max())
                row["speedup"] = rows[0]["run_s"] / row["run_s"]
        print(row, file=sys.stderr, flush=True)
        rows.append(row)
    return rows


def main() -> int:
    options = harness.parser("accelerators", __doc__)
    options.add_argument("--only", default="", help="jobs whose names contain this")
    options.add_argument(
        "--seconds", type=float, default=10.0, help="no further run of a job after these"
    )
    options.add_argument("--limit", type=float, default=1e9, help="no job begins after so many s")
    args = harness.start(options)
    devices = [jax.devices("cpu")[0]]
    if jax.default_backend() != "cpu":
        devices.append(jax.devices()[0])
    begin, rows = time.perf_counter(), []
    for name, make in jobs(args.precision).items():
        if args.only in name and time.perf_counter() - begin < args.limit:
            rows += rows_for(name, make, devices, args)
    return harness.report(args, rows, COLUMNS)


if __name__ == "__main__":
    sys.exit(main())
