"""What a fresh process takes to its first flow and to a second shape: by gflow, and by diffrax
in a script without gflow. A process measures one of them and prints it as JSON.

The flow is a drawn problem, at rtol 1e-4 and atol 1e-6. gflow is called with its defaults: located
kinks, 200 saved times. diffrax's Tsit5 saves the end only.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks.drawn_problems import Size, Start, Table, start, table

RTOL, ATOL = 1e-4, 1e-6
# Widths beside the problem's: one that could share its program, and one far from it.
NEAR, FAR = "one unit less", "twice the units"
MOMENTS = {"import": "import_s", "first flow": "first_s", NEAR: "near_s", FAR: "far_s"}
# A first flow from a start on a table to a time.
Follow = Callable[[Start, Table, float], None]
Row = dict[str, Any]


def by_gflow(cache: str) -> Follow:
    import jax

    import gflow

    # Names are imported with the first in use.
    solve_flow, made, network = gflow.solve_flow, gflow.EmpiricalRisk, gflow.ShallowNet
    jax.config.update("jax_enable_x64", True)
    if cache:
        gflow.cache_compilations(cache)

    def follow(start: Start, data: Table, t1: float) -> None:
        risk, net = made(*data), network.from_arrays(*start)
        jax.block_until_ready(solve_flow(risk, net, t1=t1, rtol=RTOL, atol=ATOL))

    return follow


def by_diffrax(cache: str) -> Follow:
    import diffrax
    import jax
    import jax.numpy as jnp

    jax.config.update("jax_enable_x64", True)
    if cache:
        jax.config.update("jax_compilation_cache_dir", cache)
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)

    def risk(params, data):
        hidden = jax.nn.relu(data.x @ params.w.T + params.b)
        return jnp.mean((hidden @ params.v + params.c - data.y) ** 2)

    def field(t, params, data):
        return jax.tree.map(jnp.negative, jax.grad(risk)(params, data))

    @jax.jit
    def solve(params, data, t1):
        term, solver = diffrax.ODETerm(field), diffrax.Tsit5()
        controller = diffrax.PIDController(rtol=RTOL, atol=ATOL)
        found = diffrax.diffeqsolve(
            term,
            solver,
            0.0,
            t1,
            None,
            params,
            args=data,
            stepsize_controller=controller,
            max_steps=10**6,
        )
        return found.ys

    as_arrays = lambda tree: jax.tree.map(jnp.asarray, tree)
    return lambda start, data, t1: jax.block_until_ready(
        solve(as_arrays(start), as_arrays(data), t1)
    )


PROGRAMS: dict[str, Callable[[str], Follow]] = {"gflow": by_gflow, "diffrax": by_diffrax}


def measured(by: str, size: Size, draw: int, cache: str) -> Row:
    """Seconds of the import, of the first flow, of the same again, and of first flows at other
    widths, with how many programs those compile."""
    seconds: Row = {}

    def timed(name: str, run: Callable[[], Any]) -> Any:
        begin = time.perf_counter()
        value = run()
        seconds[name] = time.perf_counter() - begin
        return value

    follow = timed("import_s", lambda: PROGRAMS[by](cache))
    import jax

    compiled: list[str] = []

    def note(event: str, duration_secs: float, **facts: Any) -> None:
        if event.endswith("backend_compile_duration"):
            compiled.append(event)

    jax.monitoring.register_event_duration_secs_listener(note)
    data = table(size, draw)
    run = lambda units: follow(start(size._replace(units=units), draw), data, size.t1)
    timed("first_s", lambda: run(size.units))
    timed("again_s", lambda: run(size.units))
    for name, units in (("near", size.units - 1), ("far", 2 * size.units)):
        before = len(compiled)
        timed(f"{name}_s", lambda units=units: run(units))
        seconds[f"{name}_programs"] = len(compiled) - before
    return seconds


def first_results(size: Size, draw: int, repeats: int) -> Iterator[Row]:
    """Medians over fresh processes: without a cache of programs on disk, and with what a process
    before has left in one."""
    for by in PROGRAMS:
        fresh = lambda cache, by=by: _in_a_process(by, size, draw, cache)
        with tempfile.TemporaryDirectory() as directory:
            kinds = {"none": [fresh("") for _ in range(repeats)], "filled": [fresh(directory)]}
            kinds["warm"] = [fresh(directory) for _ in range(repeats)]
        for cache, runs in kinds.items():
            row: Row = {"problem": size.name, "method": by, "cache": cache, "runs": runs}
            yield row | {name: statistics.median(run[name] for run in runs) for name in runs[0]}


def sentences(rows: Sequence[Row], size: Size) -> Iterator[Row]:
    """gflow against diffrax, for each state of the cache."""
    rows = [row for row in rows if row["problem"] == size.name]
    for cache in dict.fromkeys(row["cache"] for row in rows):
        ours, peer = (
            next(row for row in rows if (row["method"], row["cache"]) == (by, cache))
            for by in PROGRAMS
        )
        told = []
        for words, name in MOMENTS.items():
            ratio = ours[name] / peer[name]
            told.append(f"{words} {ours[name]:.2f} s, diffrax {peer[name]:.2f} s ({ratio:.2f})")
        counts = f"{NEAR} compiles {ours['near_programs']:g} programs"
        yield {"sentence": f"{ours['problem']}, cache {cache}: {'; '.join(told)}; {counts}."}


def _in_a_process(by: str, size: Size, draw: int, cache: str) -> Row:
    command = [
        sys.executable,
        "-m",
        "benchmarks.first_results",
        json.dumps([by, size, draw, cache]),
    ]
    environment = {k: v for k, v in os.environ.items() if k != "JAX_COMPILATION_CACHE_DIR"}
    ended = subprocess.run(
        command,
        cwd=Path(__file__).parent.parent,
        env=environment,
        check=True,
        capture_output=True,
        text=True,
    )
    return json.loads(ended.stdout.splitlines()[-1])


if __name__ == "__main__":
    by, size, draw, cache = json.loads(sys.argv[1])
    print(json.dumps(measured(by, Size(*size), draw, cache)))
