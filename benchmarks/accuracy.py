"""The price of an accuracy: gflow against plain solvers, at every error, from small to large.

A run is the gradient flow of a ReLU network on data from its start to the problem's last time. Its
error is that of the final parameters, relative, in the Euclidean norm. The flows are those of
`benchmarks.reference_flows`, with their ends, and flows drawn at random with --draw
(`benchmarks.drawn_problems`), with ends by gflow itself: on the two smaller ones by Dopri8 with
each kink located, at rtol 1e-10; on the largest, which needs --large and only goes to errors of
1e-6, by Tsit5 with located kinks at rtol 1e-8. Every solver has atol = rtol/100.

Peers follow the generalized gradient, ReLU'(0) = 0, as if it were smooth: diffrax's own
`diffeqsolve` with its default controller; SciPy's RK45 with the same field compiled by JAX; and
gradient descent with small steps h by `gflow.descend`. A run that would not be through after
--limit seconds is given up, and then tighter tolerances of that solver are not tried.

For each decade of the error the fastest run of gflow whose error is at most that is compared with
the fastest such run of the peers. All runs take turns in one process.

--first instead tells what a fresh process takes to its first flow (`benchmarks.first_results`).
"""

import statistics
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import diffrax
import jax
import numpy as np

import gflow
from benchmarks import drawn_problems, harness
from benchmarks.drawn_problems import LARGE, SIZES, SMALL, Size
from benchmarks.first_results import first_results, sentences
from benchmarks.kink_solvers import (
    PROBE_STEPS,
    End,
    Made,
    Problem,
    TimeUp,
    budget,
    end_of,
    flat,
    flow,
    scipy_host,
    stock,
    trajectory_of,
    with_host,
)
from benchmarks.plain_solvers import Run, with_descent, with_diffrax
from benchmarks.reference_flows import NAMES as REFERENCES, reference_flow
from benchmarks.work_precision import draw_fronts, fastest

# Each has the rtols from 1e-2 to so many digits, as far as the limit lets it.
GFLOW: dict[str, tuple[Made, int]] = {
    "gflow": (lambda rtol: None, 10),
    "gflow Tsit5": (stock("Tsit5"), 10),
    "gflow Bosh3": (stock("Bosh3"), 7),
    "gflow ROCK4": (lambda rtol: gflow.ROCK4(), 8),
}
DIFFRAX = {"diffrax Tsit5": 10, "diffrax Bosh3": 10, "diffrax Dopri5": 10}
SCIPY, SCIPY_DIGITS = ("RK45",), 10
# The first and the last rtol in digits.
QUICK = {"gflow": (3, 6), "gflow Tsit5": (3, 6), "diffrax Tsit5": (3, 5), "diffrax Bosh3": (3, 5)}
DESCENT = "descent"
# Its step sizes are such parts of the time.
STEPS_OF_DESCENT = tuple(n * 10**k for k in range(2, 7) for n in (1, 3))
DECADES = range(3, 10)
LAST_OF_LARGE = 6
# A probe for the limit takes so many steps, fewer where parameters times rows are many.
_PRODUCTS_OF_PROBE = 6 * 10**8
COLUMNS = {
    "problem": ("problem", ""),
    "method": ("method", ""),
    "rtol or h": ("setting", ""),
    "compile s": ("compile_s", ".2f"),
    "run s": ("run_s", ".4f"),
    "error": ("distance", ".1e"),
    "steps": ("steps", ",d"),
    "gradients": ("field_evaluations", ",d"),
    "kinks": ("kinks", ",d"),
    "passed": ("passed", ",d"),
    "slides": ("slides", ",d"),
}
FIRST_COLUMNS = {
    "problem": ("problem", ""),
    "method": ("method", ""),
    "cache": ("cache", ""),
    "import s": ("import_s", ".2f"),
    "first flow s": ("first_s", ".2f"),
    "again s": ("again_s", ".3f"),
    "one unit less s": ("near_s", ".2f"),
    "programs": ("near_programs", "g"),
    "twice the units s": ("far_s", ".2f"),
    "and programs": ("far_programs", "g"),
}


class Way(NamedTuple):
    """A method with its settings, rtol or h, from loose to tight; what compiles it and gives the
    compile time and its runs."""

    name: str
    settings: Sequence[float]
    prepare: Callable[[], tuple[float, Run]]


def reference(name: str) -> Problem:
    known = reference_flow(name)
    return Problem(name, known.risk, known.net, known.t1, known.params[-1])


def drawn(size: Size, draw: int) -> Problem:
    """The problem without its end."""
    risk = gflow.EmpiricalRisk(*drawn_problems.table(size, draw))
    net = gflow.ShallowNet(size.columns, size.units, key=jax.random.key(draw))
    return Problem(size.name, risk, net, size.t1, np.zeros(0))


def with_end(given: Problem) -> Problem:
    if given.name == LARGE.name:
        return given._replace(end=flow(given, diffrax.Tsit5(), "locate", 1e-8).theta)
    return given._replace(end=flow(given, diffrax.Dopri8(), "all", 1e-10).theta)


def ways(given: Problem, args: Any, scipy: Sequence[str] = SCIPY) -> Iterator[Way]:
    """gflow's methods, then the peers."""
    limit, probe = args.limit, _probe_steps(given)
    wanted = lambda name: not args.quick or name in QUICK

    def rtols(name: str, digits: int) -> list[float]:
        large = given.name == LARGE.name
        first, last = (3, min(digits, LAST_OF_LARGE)) if large else (2, digits)
        first, last = QUICK[name] if args.quick else (first, last)
        return [10.0**-k for k in range(first, last + 1)]

    for name, (made, digits) in GFLOW.items():
        if wanted(name):
            yield Way(name, rtols(name, digits), partial(with_gflow, given, made, probe, limit))
    for name, digits in DIFFRAX.items():
        if wanted(name):
            solver = name.split()[-1]
            prepare = partial(with_diffrax, given, solver, probe, limit)
            yield Way(name, rtols(name, digits), prepare)
    for method in () if args.quick or given.name == LARGE.name else scipy:
        name = f"SciPy {method}"
        yield Way(name, rtols(name, SCIPY_DIGITS), partial(with_scipy, given, method, limit))
    steps = STEPS_OF_DESCENT[:3] if args.quick else STEPS_OF_DESCENT
    prepare = partial(with_descent, given, probe, limit)
    yield Way(DESCENT, [given.t1 / n for n in steps], prepare)


def _probe_steps(given: Problem) -> int:
    products = len(flat(given.net)) * len(given.risk.x)
    return min(PROBE_STEPS, max(16, _PRODUCTS_OF_PROBE // products))


def with_gflow(given: Problem, made: Made, probe: int, limit: float) -> tuple[float, Run]:
    """The compile time, and solves with located kinks of about `limit` seconds at most."""
    solve = lambda rtol, steps: trajectory_of(given, made(rtol), "locate", rtol, steps)
    compile_s, most = budget(lambda steps: end_of(solve(1e-6, steps)), probe, limit)

    def run(rtol: float) -> Callable[[], End]:
        trajectory = jax.block_until_ready(solve(rtol, most))
        return lambda: end_of(trajectory)

    return compile_s, run


def with_scipy(given: Problem, method: str, limit: float) -> tuple[float, Run]:
    compile_s, solve = with_host(given, scipy_host(method), limit, jacobian=False)

    def run(rtol: float) -> Callable[[], End]:
        end = solve(rtol)
        return lambda: end

    return compile_s, run


class Trial(NamedTuple):
    """A row, and what runs it again."""

    row: harness.Row
    run: Callable[[], Callable[[], End]]


def work_precision(given: Problem, args: Any, scipy: Sequence[str] = SCIPY) -> list[harness.Row]:
    """A row for each method and setting: all once, which compiles what is left, then in turns as
    long as a row has taken less than a quarter of the limit."""
    trials = [trial for way in ways(given, args, scipy) for trial in _first_runs(way, given, args)]
    for _ in range(args.repeats):
        for row, run in trials:
            if "error" not in row and row["first_s"] + sum(row["all_run_s"]) < args.limit / 4:
                row["all_run_s"].append(_seconds(run)[0])
    for row, _ in trials:
        if "error" not in row:
            row["run_s"] = statistics.median(row["all_run_s"] or [row["first_s"]])
    return [trial.row for trial in trials]


def _first_runs(way: Way, given: Problem, args: Any) -> Iterator[Trial]:
    started: harness.Row = {"problem": given.name, "method": way.name}
    prepared: Any = None  # not called where preparing has failed
    with harness.failure_in(started):
        started["compile_s"], prepared = way.prepare()
    late = None
    for setting in way.settings:
        form = "h = {:.2g}" if way.name == DESCENT else "{:.0e}"
        row = {**started, "setting": form.format(setting)}
        run = lambda prepared=prepared, setting=setting: prepared(setting)
        if late is not None:
            row["error"] = (
                f"{TimeUp.__name__}: not tried, as {late} takes more than {args.limit:g} s"
            )
        elif "error" not in row:
            with harness.failure_in(row):
                _first(row, run, given)
            if _given_up(row):
                late = row["setting"]
        told = row.get("error") or f"{row['first_s']:.3g} s, error {row['distance']:.1e}"
        print(given.name, way.name, row["setting"], told, file=sys.stderr)
        yield Trial(row, run)


def _first(row: harness.Row, run: Any, given: Problem) -> None:
    seconds, told = _seconds(run)
    end = told()
    distance = float(np.linalg.norm(end.theta - given.end) / np.linalg.norm(given.end))
    if not np.isfinite(distance):
        raise RuntimeError("the final parameters are not finite")
    row.update({"first_s": seconds, "all_run_s": [], "distance": distance, **end.counts})


def _seconds(run: Callable[[], Any]) -> tuple[float, Any]:
    begin = time.perf_counter()
    value = run()
    return time.perf_counter() - begin, value


def by_decade(given: Problem, rows: Sequence[harness.Row], limit: float) -> Iterator[harness.Row]:
    """For each decade of the error: gflow's fastest run within it against the peers'."""
    last = LAST_OF_LARGE if given.name == LARGE.name else max(DECADES)
    for decade in range(min(DECADES), last + 1):
        ours, peer = (
            fastest([row for row in rows if is_gflow(row) == own], 10.0**-decade)
            for own in (True, False)
        )
        found: harness.Row = {"problem": given.name, "decade": decade}
        told = [f"gflow {_told(ours)}", f"peers {_told(peer)}"]
        if ours and peer:
            found["ratio"] = peer["run_s"] / ours["run_s"]
            told.append(f"peers take {found['ratio']:.3g} times as long")
        elif ours and _all_given_up(rows):
            found["ratio_above"] = limit / ours["run_s"]
            told.append(f"peers take more than {found['ratio_above']:.3g} times as long")
        yield found | {"sentence": f"{given.name}, error 1e-{decade}: {'; '.join(told)}."}


def _all_given_up(rows: Sequence[harness.Row]) -> bool:
    """Whether each peer came to a setting that takes more than the limit."""
    peers = [row for row in rows if not is_gflow(row)]
    late = [row for row in peers if _given_up(row)]
    return {row["method"] for row in late} == {row["method"] for row in peers}


def _given_up(row: harness.Row) -> bool:
    return row.get("error", "").startswith(TimeUp.__name__)


def is_gflow(row: harness.Row) -> bool:
    return row["method"].startswith("gflow")


def _told(row: harness.Row | None) -> str:
    if row is None:
        return "none of these runs"
    name = row["method"].removeprefix("gflow").strip() or "with its own choice"
    return f"{row['run_s']:.4g} s ({name}, {row['setting']}, error {row['distance']:.1e})"


def common_options(name: str, description: str | None) -> Any:
    """Those of a benchmark of the price of an accuracy."""
    made = harness.parser(name, description, precisions=("float64",))
    made.add_argument("--limit", type=float, help="seconds for a run (20, or 1 if quick)")
    made.add_argument("--draw", type=int, default=0, help="seed of the flows drawn (0)")
    made.add_argument("--picture", type=Path, help="file for the Pareto fronts")
    return made


def options() -> Any:
    made = common_options("accuracy", __doc__)
    made.add_argument("--large", action="store_true", help=f"{LARGE.name}, too: an hour")
    made.add_argument("--first", action="store_true", help="first results of fresh processes only")
    made.add_argument(
        "--problems",
        nargs="+",
        choices=(*REFERENCES, *SIZES),
        help="which flows (all but the largest; the smallest drawn one if quick)",
    )
    return made


def main() -> int:
    args = harness.start(options())
    if args.limit is None:
        args.limit = 1.0 if args.quick else 20.0
    if args.problems is None:
        names = (SMALL.name,) if args.quick else (*REFERENCES, *SIZES)
        args.problems = [name for name in names if name != LARGE.name]
    args.problems += [LARGE.name] if args.large and LARGE.name not in args.problems else []
    if args.first:
        sizes = [SIZES[name] for name in args.problems if name in SIZES and name != LARGE.name]
        repeats = 1 if args.quick else min(args.repeats, 3)
        rows = [row for size in sizes for row in first_results(size, args.draw, repeats)]
        told = [told for size in sizes for told in sentences(rows, size)]
        return harness.report(args, rows, FIRST_COLUMNS, told)
    problems = (
        with_end(drawn(SIZES[name], args.draw)) if name in SIZES else reference(name)
        for name in args.problems
    )
    return compared(args, problems, lambda given: f"width {given.net.width:,d}")


def compared(
    args: Any,
    problems: Iterable[Problem],
    network_of: Callable[[Problem], str],
    scipy: Sequence[str] = SCIPY,
) -> int:
    """Runs, report and picture of problems, whose titles name their networks."""
    rows, summary, titles = [], [], {}
    for given in problems:
        data, features = given.risk.x.shape
        network = network_of(given)
        titles[given.name] = f"{data:,d} rows × {features}, {network}, t = {given.t1:g}"
        found = work_precision(given, args, scipy)
        rows += found
        summary += by_decade(given, found, args.limit)
    harness.report(args, rows, COLUMNS, summary)
    if args.picture:
        draw_fronts(rows, titles, args.picture)
        print(f"saved {args.picture}")
    # That a peer fails is a result, and so is what takes longer than the limit.
    return int(any("error" in row and not _given_up(row) for row in rows if is_gflow(row)))


if __name__ == "__main__":
    sys.exit(main())
