"""What padded shapes cost: flows in them, and in the shapes of network and table, in turns.

Flows of drawn problems (`benchmarks.drawn_problems`) at rtol 1e-8, whose numbers of units are just
past a size, where padding adds most, or of the sizes that people choose. `ratio` is the time in
padded shapes over the other; `widths` counts the programs that a loop over widths from 8 to 64
compiles.
"""

import contextlib
import statistics
from collections.abc import Iterator
from typing import Any
from unittest import mock

import jax

import gflow
import gflow.flow.solve
from benchmarks import drawn_problems, harness
from benchmarks.drawn_problems import Size

SIZES = [
    Size(units, rows, columns, t1)
    for units, rows, columns, t1 in (
        (5, 20, 3, 20.0),
        (9, 33, 3, 20.0),
        (17, 50, 5, 20.0),
        (24, 100, 13, 20.0),
        (26, 100, 13, 20.0),
        (32, 64, 5, 20.0),
        (37, 260, 8, 5.0),
        (51, 130, 5, 10.0),
    )
]
RTOL = 1e-8


def flow(size: Size, rtol: float) -> gflow.Trajectory:
    risk = gflow.EmpiricalRisk(*drawn_problems.table(size, 0))
    net = gflow.ShallowNet.from_arrays(*drawn_problems.start(size, 0))
    return gflow.solve_flow(risk, net, t1=size.t1, rtol=rtol)


@contextlib.contextmanager
def in_own_shapes() -> Iterator[None]:
    with mock.patch.object(gflow.flow.solve, "padded", lambda *_: None):
        yield


def price(size: Size, repeats: int) -> harness.Row:
    """Medians of both over flows that take turns."""
    row: harness.Row = {"problem": size.name}
    kinds = {"padded_s": contextlib.nullcontext, "own_s": in_own_shapes}
    spent: dict[str, list[float]] = {name: [] for name in kinds}
    with harness.failure_in(row):
        for turn in range(repeats + 1):
            for name, shapes in kinds.items():
                with shapes():
                    seconds, found = harness.timed(lambda _: flow(size, RTOL), 1)
                if turn > 0:
                    spent[name].append(seconds)
                row["steps"] = int(found.stats["num_steps"])
        row |= {name: statistics.median(times) for name, times in spent.items()}
        row["ratio"] = row["padded_s"] / row["own_s"]
    return row


def programs_of_widths(widths: range) -> harness.Row:
    """How many programs the loops over steps of these widths are."""
    compiled: list[str] = []

    def note(event: str, duration_secs: float, **facts: Any) -> None:
        if event.endswith("backend_compile_duration"):
            compiled.append(facts["fun_name"])

    jax.monitoring.register_event_duration_secs_listener(note)
    for units in widths:
        flow(Size(units, 61, 3, 0.1), 1e-4)
    jax.monitoring.unregister_event_duration_listener(note)
    count = compiled.count("jit(_advance)")
    words = f"{len(widths)} widths from {widths[0]} to {widths[-1]} compile {count} programs"
    return {"programs": count, "sentence": f"{words} of steps, {len(compiled)} in all."}


def main() -> int:
    args = harness.start(harness.parser("shapes", __doc__, ("float64",)))
    rows = [price(size, args.repeats) for size in (SIZES[:3] if args.quick else SIZES)]
    widths = range(8, 65, 8 if args.quick else 1)
    columns = {
        "problem": ("problem", "s"),
        "padded ms": ("padded_ms", ".1f"),
        "own ms": ("own_ms", ".1f"),
        "ratio": ("ratio", ".2f"),
        "steps": ("steps", "d"),
    }
    for row in rows:
        row |= {f"{k}_ms": 1e3 * row[f"{k}_s"] for k in ("padded", "own") if f"{k}_s" in row}
    return harness.report(args, rows, columns, [programs_of_widths(widths)])


if __name__ == "__main__":
    raise SystemExit(main())
