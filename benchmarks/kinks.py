"""Work and precision through ReLU kinks: gflow's located kinks against stock solvers.

A run is the gradient flow of a ReLU network on data from its start to the problem's last time. Its
error is that of the final parameters, relative, in the Euclidean norm: against the trajectories of
`benchmarks.reference_flows`, and on the largest problem against gflow's own Dopri8 at rtol 1e-11.
Every solver has atol = rtol/100.

Peers follow the generalized gradient, ReLU'(0) = 0, as if it were smooth: diffrax through
`solve_flow(kinks="ignore")`; SciPy, and torchdiffeq and CVODE where installed, with the same field
compiled by JAX and called from Python (Radau and LSODA with its Jacobian too, which is not counted
as an evaluation). A run that is not through after --limit seconds is given up, and then tighter
tolerances of that solver are not tried.
"""

import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

import gflow
from benchmarks import harness
from benchmarks.kink_solvers import (
    PROBE_STEPS,
    End,
    Problem,
    Solve,
    TimeUp,
    flow,
    hosts,
    stock,
    with_gflow,
    with_host,
)
from benchmarks.reference_flows import NAMES as REFERENCES, reference_flow
from benchmarks.work_precision import draw
from gflow.app.data import TableOptions, load_table
from gflow.nonsmooth.shallow.risk import ShallowPatternRisk
from gflow.parameters import split_trainable

LARGEST = "diabetes_w64_n442"
# The problems of the summary.
DIABETES, SINE = REFERENCES[:2]
GFLOW = {
    "Tsit5": (1e-4, 1e-6, 1e-8, 1e-10),
    "Dopri8": (1e-8, 1e-10),
    "Bosh3": (1e-4, 1e-6),
}
PLAIN = (1e-3, 1e-4, 1e-5, 1e-6, 1e-7)
HOSTED = (1e-4, 1e-6)
COLUMNS = {
    "problem": ("problem", ""),
    "solver": ("method", ""),
    "rtol": ("rtol", ""),
    "compile s": ("compile_s", ".2f"),
    "run s": ("run_s", ".4f"),
    "error": ("distance", ".1e"),
    "evaluations": ("field_evaluations", ",d"),
    "steps": ("steps", ",d"),
    "rejected": ("rejected_steps", ",d"),
    "kinks": ("kinks", ",d"),
    "µs/step": ("us_per_step", ".1f"),
}


def reference(name: str) -> Problem:
    known = reference_flow(name)
    return Problem(name, known.risk, known.net, known.t1, known.params[-1])


def largest() -> Problem:
    table = load_table("diabetes", TableOptions(), num_points=0)
    net = gflow.ShallowNet(table.x.shape[1], 64, key=jax.random.key(0))
    given = Problem(LARGEST, gflow.EmpiricalRisk(table.x, table.y), net, 5.0, np.zeros(0))
    return given._replace(end=flow(given, diffrax.Dopri8(), "locate", 1e-11).theta)


def methods(
    given: Problem, limit: float, quick: bool
) -> Iterator[tuple[str, Sequence[float], Callable[[], tuple[float, Solve]]]]:
    """Name, tolerances, and what compiles and returns the solve."""
    located = {"Tsit5": (1e-6, 1e-8)} if quick else GFLOW
    for name, rtols in located.items():
        yield f"gflow {name}", rtols, lambda n=name: with_gflow(given, stock(n), "locate", limit)
    for name in ("Tsit5",) if quick else ("Tsit5", "Bosh3", "Dopri8"):
        rtols = (1e-4, 1e-6) if quick else PLAIN
        yield f"diffrax {name}", rtols, lambda n=name: with_gflow(given, stock(n), "ignore", limit)
    for name, host in hosts().items():
        if not quick or name in ("SciPy RK45", "SciPy LSODA"):
            rtols = HOSTED[:1] if quick else HOSTED
            yield name, rtols, lambda h=host: with_host(given, h, limit)


def work_precision(given: Problem, args: Any) -> Iterator[harness.Row]:
    """A row for each solver and tolerance."""
    for name, rtols, prepare in methods(given, args.limit, args.quick):
        started: harness.Row = {"problem": given.name, "method": name}
        solve: Any = None
        with harness.failure_in(started):
            started["compile_s"], solve = prepare()
        late = None
        for rtol in rtols:
            row = {**started, "rtol": f"{rtol:.0e}"}
            if late is not None:
                row["error"] = f"not tried: rtol {late} took more than {args.limit:g} s"
            elif "error" not in row:
                with harness.failure_in(row):
                    _measure(row, lambda s=solve, r=rtol: s(r), given, args)
                if row.get("error", "").startswith(TimeUp.__name__):
                    late = row["rtol"]
            yield row


def distance(end: End, given: Problem) -> float:
    found = float(np.linalg.norm(end.theta - given.end) / np.linalg.norm(given.end))
    if not np.isfinite(found):
        raise RuntimeError("the final parameters are not finite")
    return found


def outcome(row: harness.Row) -> str:
    return row.get("error") or f"{row['run_s']:.3g} s, error {row['distance']:.1e}"


def _measure(row: harness.Row, run: Callable[[], End], given: Problem, args: Any) -> None:
    # A long run says enough by itself, and the others come to a quarter of the limit together.
    times, end = harness.repeated(run, seconds=args.limit / 4, repeats=args.repeats)
    row.update({**times, "distance": distance(end, given), **end.counts})
    if "steps" in row:
        row["us_per_step"] = 1e6 * row["run_s"] / row["steps"]


def step_costs(given: Problem, args: Any) -> harness.Row:
    """What a step costs where no kink is met: until shortly before the first, in fixed steps."""
    net, risk = given.net, given.risk
    log = gflow.solve_flow(risk, net, t1=given.t1, ts=[given.t1], rtol=1e-6).kinks
    assert log is not None
    span = 0.9 * float(log.time[0])
    trained, frozen = split_trainable(net)
    fixed = ShallowPatternRisk.of(risk, trained, frozen)
    assert fixed is not None
    theta0, _ = ravel_pytree(trained)

    def through(kinks: Literal["locate", "ignore"]) -> harness.Run:
        solve = lambda h: gflow.solve_flow(
            risk, net, t1=span, ts=[span], step_size=h, kinks=kinks, max_steps=10**8
        )
        return lambda number: solve(span / number).risk[-1]

    @eqx.filter_jit
    def by_diffrax(fixed, theta, step):
        term, y, pattern = diffrax.ODETerm(fixed.field), jnp.append(theta, 0.0), fixed.start(theta)
        found = diffrax.diffeqsolve(
            term, diffrax.Tsit5(), 0.0, span, step, y, args=pattern, max_steps=10**8
        )
        assert found.ys is not None
        return fixed.value(found.ys[-1][:-1])

    runs: dict[str, harness.Run] = {
        "gflow": through("locate"),
        "diffrax, same field": lambda number: by_diffrax(fixed, theta0, span / number),
        "diffrax, gradient by JAX": through("ignore"),
    }
    seconds = 0.1 if args.quick else 0.5
    rows = harness.measure(runs, seconds=seconds, repeats=args.repeats, least=PROBE_STEPS)
    harness.compare(rows, runs, "gflow", 1e-9)
    told = [f"{name} {1e6 / row['rate']:.1f} µs" for name, row in rows.items() if "rate" in row]
    ratios = [f"{1 / row['speedup']:.2f}" for row in list(rows.values())[1:] if "speedup" in row]
    words = f"{given.name}: a Tsit5 step away from kinks: {', '.join(told)}"
    sentence = f"{words}; gflow over diffrax {' and '.join(ratios)}."
    return {"sentence": sentence, "problem": given.name, "rows": list(rows.values())}


def speedup(given: Problem, args: Any) -> harness.Row:
    """Plain Tsit5 at rtol 1e-6 against gflow at 1e-8, in turns."""
    ends: dict[str, End] = {}

    def run(name: str, kinks: Literal["locate", "ignore"], rtol: float) -> harness.Run:
        _, solve = with_gflow(given, stock("Tsit5"), kinks, args.limit)
        return lambda _: ends.update({name: solve(rtol)})

    ours, plain = "gflow Tsit5 at 1e-8", "diffrax Tsit5 at 1e-6"
    runs = {ours: run(ours, "locate", 1e-8), plain: run(plain, "ignore", 1e-6)}
    rows = harness.measure(runs, seconds=0.0, repeats=min(args.repeats, 3))
    told = []
    for name, row in rows.items():
        if "error" not in row:
            row["distance"] = distance(ends[name], given)
        told.append(f"{name}: " + outcome(row))
    found = {"problem": given.name, "rows": list(rows.values())}
    if all("distance" in row for row in rows.values()):
        times, errors = (rows[plain][key] / rows[ours][key] for key in ("run_s", "distance"))
        told.append(f"{times:,.0f} times faster with an error {errors:,.0f} times less")
        found |= {"ratio_of_times": times, "ratio_of_errors": errors}
    return {"sentence": f"{given.name}: {'; '.join(told)}."} | found


def segments(rows: Sequence[harness.Row]) -> harness.Row:
    """What a segment costs on the sine reference."""
    wanted = (SINE, "gflow Tsit5", "1e-08")
    row = next(row for row in rows if (row["problem"], row["method"], row["rtol"]) == wanted)
    if "error" in row:
        return {"sentence": f"{SINE}: gflow failed: {row['error']}."}
    each = 1e3 * row["run_s"] / (row["kinks"] + 1)
    names = ("steps", "field_evaluations", "kinks")
    counts = ", ".join(f"{row[name]:,d} {name.replace('_', ' ')}" for name in names)
    sentence = f"{SINE}: gflow Tsit5 at 1e-8 takes {row['run_s']:.3f} s: {counts}, "
    return {"sentence": f"{sentence}{each:.2f} ms per segment.", "ms_per_segment": each}


def main() -> int:
    options = harness.parser("kinks", __doc__, precisions=("float64",))
    options.add_argument("--limit", type=float, help="seconds for a run (20, or 3 if quick)")
    options.add_argument("--picture", type=Path, help="file for the work-precision diagrams")
    options.add_argument(
        "--problems",
        nargs="+",
        choices=(*REFERENCES, LARGEST),
        help=f"which flows ({DIABETES} {SINE} {LARGEST}, or the first two if quick)",
    )
    args = harness.start(options)
    if args.limit is None:
        args.limit = 3.0 if args.quick else 20.0
    if args.problems is None:
        args.problems = [DIABETES, SINE] if args.quick else [DIABETES, SINE, LARGEST]
    rows, summary, titles = [], [], {}
    for name in args.problems:
        given = largest() if name == LARGEST else reference(name)
        data, features = given.risk.x.shape
        sizes = f"{data} rows × {features}, width {given.net.width}, t = {given.t1:g}"
        titles[name] = f"{name.split('_')[0]}: {sizes}"
        for row in work_precision(given, args):
            rows.append(row)
            print(name, row["method"], row["rtol"], outcome(row), file=sys.stderr)
        if name in (DIABETES, SINE):
            summary += [speedup(given, args) if name == DIABETES else segments(rows)]
        if name == DIABETES or (name == SINE and not args.quick):
            summary += [step_costs(given, args)]
    harness.report(args, rows, COLUMNS, summary)
    if args.picture:
        draw(rows, titles, args.limit, args.picture)
        print(f"saved {args.picture}")
    # That a peer fails is a result.
    return int(any("error" in row for row in rows if row["method"].startswith("gflow")))


if __name__ == "__main__":
    sys.exit(main())
