"""Late times: the cost of gradient flow against its horizon, and work and precision at t = 10,000.

Against the horizon all solvers have rtol 1e-8 and atol 1e-10; the drift of the energy identity is
relative to the risk at the start. At t = 10,000 the error is that of the final parameters,
relative, against gflow's Rodas5P at rtol 1e-11, for Rodas5P itself against BDF5 at 1e-10; how far
these two are apart is told.

Peers follow the generalized gradient, ReLU'(0) = 0, as if it were smooth: diffrax through
`solve_flow(kinks="ignore")`, Kvaerno5 with its own root finder, with κ = 1 and with Newton's method
by GMRES; SciPy and, where installed, CVODE with the same field and its Jacobian compiled by JAX and
called from Python; the classical Runge–Kutta method with step 1/sharpness, compiled. A run that is
not through after --limit seconds is given up, and then neither tighter tolerances nor later
horizons of that solver are tried. With --large, the network of benchmarks.large_flow, too.
"""

import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from benchmarks import harness
from benchmarks.horizon_picture import draw
from benchmarks.horizon_problems import (
    POPULATION,
    SINE,
    SINES,
    TANH,
    Ends,
    Way,
    own,
    peers,
    problem,
    tight,
)
from benchmarks.kink_solvers import End, Problem, TimeUp

LATE, WANTED = 1e4, 1e-6
RTOL = 1e-8
AGAINST_HORIZON = ("gflow", "gflow BDF5", "gflow Rodas5P", "diffrax Tsit5", "diffrax Kvaerno5")
# What a picture calls the flows of both studies.
HORIZONS = {
    SINE: "40 rows, 20 ReLU units",
    POPULATION: "true risk, 16 ReLU units",
    TANH: "40 rows, 16 tanh units",
}
PRECISIONS = {
    SINES[50]: "100 rows, 50 ReLU units, t = $10^4$",
    TANH: "40 rows, 16 tanh units, t = $10^4$",
}
QUICK = ("gflow", "diffrax Tsit5", "SciPy LSODA", "RK4")
COLUMNS = {
    "study": ("study", ""),
    "problem": ("problem", ""),
    "solver": ("method", ""),
    "rtol": ("rtol", ""),
    "t": ("t1", ".0e"),
    "compile s": ("compile_s", ".2f"),
    "run s": ("run_s", ".4f"),
    "error": ("distance", ".1e"),
    "energy drift": ("energy_drift", ".1e"),
    "steps": ("steps", ",d"),
    "in the decade": ("steps_of_decade", ",d"),
    "rejected": ("rejected_steps", ",d"),
    "evaluations": ("field_evaluations", ",d"),
    "kinks": ("kinks", ",d"),
    "by": ("by", ""),
}
HORIZON, PRECISION = "horizon", "precision"


def against_horizon(given: Problem, args: Any) -> Iterator[harness.Row]:
    """A row for each solver and horizon, early ones first."""
    horizons = [10.0**k for k in range(2, 5 if args.quick else 9)]
    at_start = float(given.risk(given.net))
    chosen = AGAINST_HORIZON[::3] if args.quick else AGAINST_HORIZON
    for way in (way for way in (*own(False), *peers(False)) if way.name in chosen):
        started, solve = prepared(way, given._replace(t1=horizons[-1]), HORIZON, args.limit)
        late, before = "", 0
        for t1 in horizons:
            row = {**started, "rtol": f"{RTOL:.0e}", "t1": t1}
            late = attempt(row, lambda s=solve, t=t1: s(RTOL, t), late, f"t = {t1:.0e}", args)
            if "error" not in row:
                # How much the risk that was lost differs from what the flow dissipated.
                row["energy_drift"] = abs(row.pop("energy")) / at_start
                row["steps_of_decade"] = row["steps"] - before
                before = row["steps"]
            yield row


def work_precision(given: Problem, ends: Ends, args: Any) -> Iterator[harness.Row]:
    """A row for each solver and tolerance at t = 10,000, loose ones first."""
    for way in (*own(args.quick), *peers(args.quick)):
        if args.quick and way.name not in QUICK:
            continue
        started, solve = prepared(way, given, PRECISION, args.limit)
        against = ends.by_bdf5 if way.name == "gflow Rodas5P" else ends.by_rodas5p
        late = ""
        for rtol in way.rtols:
            row = {**started, "rtol": f"{rtol:.0e}" if rtol else "-", "t1": given.t1}
            late = attempt(
                row, lambda s=solve, r=rtol: s(r), late, f"rtol {rtol:.0e}", args, against
            )
            row.pop("energy", None)
            yield row


def prepared(
    way: Way, given: Problem, study: str, limit: float
) -> tuple[harness.Row, Callable[..., End]]:
    row: harness.Row = {"study": study, "problem": given.name, "method": way.name}
    solve: Any = None
    with harness.failure_in(row):
        row["compile_s"], solve = way.prepare(given, limit)
    return row, solve


def attempt(
    row: harness.Row,
    run: Callable[[], End],
    late: str,
    what: str,
    args: Any,
    against: np.ndarray | None = None,
) -> str:
    """Measures into the row, unless there is an error or what was tried before came `late`; what
    came late by now."""
    if late:
        row["error"] = f"not tried: {late} took more than {args.limit:g} s"
    elif "error" not in row:
        with harness.failure_in(row):
            times, end = several(run, row["method"].startswith("gflow"), args)
            if not np.isfinite(end.theta).all():
                raise RuntimeError("the final parameters are not finite")
            row |= {**times, **end.counts, "by": end.method.removeprefix("gradient flow, ")}
            row["energy"] = end.energy
            if against is not None:
                row["distance"] = relative(end.theta, against)
        if row.get("error", "").startswith(TimeUp.__name__):
            late = what
    told = row.get("error") or f"{row['run_s']:.3g} s"
    print(row["problem"], row["method"], what, told, file=sys.stderr, flush=True)
    return late


def several(run: Callable[[], End], compiles: bool, args: Any) -> tuple[harness.Row, End]:
    """The times of runs and the end of the last; of a single one if it takes long."""
    seconds = args.limit / 4
    times, end = harness.repeated(run, seconds=0.0, repeats=1)
    if compiles or times["run_s"] < seconds:
        times, end = harness.repeated(run, seconds=seconds, repeats=args.repeats)
    return times, end


def relative(found: np.ndarray, wanted: np.ndarray) -> float:
    return float(np.linalg.norm(found - wanted) / np.linalg.norm(wanted))


def growths(rows: Sequence[harness.Row], name: str) -> Iterator[harness.Row]:
    """How far gflow comes in which time."""
    wanted = (HORIZON, name, "gflow")
    own_rows = [r for r in rows if (r["study"], r["problem"], r["method"]) == wanted]
    good = [row for row in own_rows if "error" not in row]
    if good:
        last = good[-1]
        sentence = (
            f"{name}: gflow to t = {last['t1']:.0e} in {last['run_s']:.3f} s and "
            f"{last['steps']:,d} steps, {last['steps_of_decade']:+,d} against a tenth of it; "
            f"energy drift {last['energy_drift']:.1e}."
        )
        yield {"sentence": sentence, "problem": name}


def speedups(given: Problem, ends: Ends, rows: Sequence[harness.Row], args: Any) -> harness.Row:
    """gflow against the best peer, both with an error of at most 1e-6."""
    good = [
        row
        for row in rows
        if (row["study"], row["problem"]) == (PRECISION, given.name)
        and row.get("distance", np.inf) <= WANTED
    ]
    best = lambda those: min(those, key=lambda row: row["run_s"], default=None)
    told = lambda row: f"{row['method']} at {row['rtol']} {row['run_s']:.3g} s"
    default = best([row for row in good if row["method"] == "gflow"])
    ours = best([row for row in good if row["method"].startswith("gflow")])
    peer = best([row for row in good if not row["method"].startswith("gflow")])
    words = f"{given.name}: Rodas5P and BDF5 agree to {ends.apart:.1e}; error at most {WANTED:g}"
    if default is None or ours is None:
        return {"sentence": f"{words}: gflow has none.", "problem": given.name}
    words += f": {told(default)}, the best of gflow {told(ours)}"
    seconds = args.limit if peer is None else peer["run_s"]
    ratio = seconds / default["run_s"]
    none = f"no peer is so accurate in {args.limit:g} s, more than"
    rest = none if peer is None else f"{told(peer)},"
    sentence = f"{words}; {rest} {ratio:.3g} times gflow's choice."
    return {"sentence": sentence, "problem": given.name, "ratio": ratio, "apart": ends.apart}


def main() -> int:
    options = harness.parser("horizons", __doc__, precisions=("float64",))
    options.add_argument("--limit", type=float, help="seconds for a run (20, or 1 if quick)")
    options.add_argument("--picture", type=str, help="file for the diagrams")
    options.add_argument(
        "--problems",
        nargs="+",
        choices=(*SINES.values(), POPULATION, TANH),
        help=f"which flows (all, or {TANH} if quick)",
    )
    options.add_argument("--large", action="store_true", help="the large network, too (15 minutes)")
    args = harness.start(options)
    if args.limit is None:
        args.limit = 1.0 if args.quick else 20.0
    if args.problems is None:
        args.problems = [TANH] if args.quick else [*SINES.values(), POPULATION, TANH]
    rows: list[harness.Row] = []
    summary = []
    for name in args.problems:
        if name in HORIZONS:
            rows += against_horizon(problem(name), args)
            summary += growths(rows, name)
        given = problem(name)._replace(t1=LATE)
        ends = tight(given)
        rows += work_precision(given, ends, args)
        summary.append(speedups(given, ends, rows, args))
        print(summary[-1]["sentence"], file=sys.stderr)
    harness.report(args, rows, COLUMNS, summary)
    if args.picture:
        named = lambda titles: {name: titles[name] for name in titles if name in args.problems}
        draw(rows, named(HORIZONS), named(PRECISIONS), args.limit, args.picture)
        print(f"saved {args.picture}")
    failed = any("error" in row for row in rows if row["method"].startswith("gflow"))
    if args.large:
        # In a process of its own, as it takes much memory.
        command = [sys.executable, "-m", "benchmarks.large_flow"]
        failed |= subprocess.run(command, check=False).returncode != 0
    # That a peer fails is a result.
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
