"""Solvers on the test set of nonsmooth gradient flows, `gflow.testsets`.

Each solver follows each flow at one tolerance, rtol, with atol = rtol/100, and is compared with the
answer at all its times. gflow takes the risk and the network. diffrax's `diffeqsolve` takes the
gradient by autodiff, SciPy and CVODE (of scikit-sundae, if it is installed) the field in NumPy: all
of these with ReLU'(0) = 0, as if the field were smooth. A solver has --limit evaluations of the
field for a flow, whatever machine it is on.
"""

import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import scipy.integrate
from jax.flatten_util import ravel_pytree

import gflow
from benchmarks import harness
from benchmarks.kink_solvers import TimeUp, imported
from benchmarks.plain_solvers import EVALUATIONS
from gflow.parameters import split_trainable
from gflow.testsets import NAMES, KnownFlow, known_flow

QUICK = ("crossing", "slide_and_exit", "output_layer")
SCIPY = ("RK45", "LSODA")
CVODE = ("BDF", "Adams")
# A run is right if its error is at most so many times its rtol.
RIGHT = 1e2
COLUMNS = {
    "flow": ("flow", ""),
    "method": ("method", ""),
    "compile s": ("compile_s", ".2f"),
    "run s": ("run_s", ".4f"),
    "error": ("distance", ".1e"),
    "gradients": ("field_evaluations", ",d"),
}
BEGIN, END = "<!-- table: python -m benchmarks.testset --page {} -->", "<!-- end of table -->"

# θ (times, size) and the number of evaluations. **Raises:** TimeUp, or what the solver raises.
Solve = Callable[[], tuple[np.ndarray, int]]


def with_gflow(flow: KnownFlow, rtol: float, limit: int) -> Solve:
    risk, net = flow.risk(), flow.network()

    def solve() -> tuple[np.ndarray, int]:
        found = gflow.solve_flow(
            risk,
            net,
            t1=flow.times[-1],
            ts=flow.times,
            rtol=rtol,
            atol=1e-2 * rtol,
            trainable=flow.trainable,
            max_steps=limit // 6,
            throw=False,
        )
        if not found.succeeded:
            ran_out = found.result_name == "max_steps_reached"
            raise (TimeUp if ran_out else RuntimeError)(found.message)
        return flow.as_vectors(found.params), int(found.stats["num_field_evaluations"])

    return solve


def with_diffrax(name: str, flow: KnownFlow, rtol: float, limit: int) -> Solve:
    trained, frozen = split_trainable(flow.network(), flow.trainable)
    theta0, unravel = ravel_pytree(trained)
    risk = flow.risk()
    network = lambda theta: eqx.combine(unravel(theta), frozen)
    field = lambda t, theta, risk: -jax.grad(lambda a: risk(network(a)))(theta)

    @eqx.filter_jit
    def solve(theta: Any, risk: Any, ts: Any) -> diffrax.Solution:
        return diffrax.diffeqsolve(
            diffrax.ODETerm(field),
            getattr(diffrax, name)(),
            0.0,
            ts[-1],
            None,
            theta,
            args=risk,
            saveat=diffrax.SaveAt(ts=ts),
            stepsize_controller=diffrax.PIDController(rtol=rtol, atol=1e-2 * rtol),
            max_steps=limit // EVALUATIONS[name],
            throw=False,
        )

    def run() -> tuple[np.ndarray, int]:
        found = jax.block_until_ready(solve(theta0, risk, jnp.asarray(flow.times)))
        steps = int(found.stats["num_steps"])
        if found.result == diffrax.RESULTS.max_steps_reached:
            raise TimeUp(f"after {steps:,d} steps")
        if found.result != diffrax.RESULTS.successful:
            raise RuntimeError(f"after {steps:,d} steps: {found.result}")
        return np.asarray(found.ys), EVALUATIONS[name] * steps

    return run


class Counted:
    """A field that gives up after so many evaluations."""

    def __init__(self, flow: KnownFlow, limit: int):
        self.flow, self.limit, self.calls = flow, limit, 0

    def __call__(self, t: float, theta: np.ndarray) -> np.ndarray:
        self.calls += 1
        if self.calls > self.limit:
            raise TimeUp(f"at t = {t:.3g} after {self.limit:,d} evaluations")
        return self.flow.field(t, theta)


def with_scipy(method: str, flow: KnownFlow, rtol: float, limit: int) -> Solve:
    def solve() -> tuple[np.ndarray, int]:
        field, span = Counted(flow, limit), (0.0, flow.times[-1])
        options = {"t_eval": flow.times, "rtol": rtol, "atol": 1e-2 * rtol}
        found = scipy.integrate.solve_ivp(field, span, flow.start, method, **options)
        if not found.success:
            raise RuntimeError(f"at t = {found.t[-1]:.3g}: {found.message}")
        return found.y.T, field.calls

    return solve


def with_cvode(cvode: Any, method: str, flow: KnownFlow, rtol: float, limit: int) -> Solve:
    def solve() -> tuple[np.ndarray, int]:
        field = Counted(flow, limit)

        def into(t: float, theta: np.ndarray, out: np.ndarray) -> None:
            out[:] = field(t, theta)

        options = {"method": method, "rtol": rtol, "atol": 1e-2 * rtol, "max_num_steps": 10**9}
        found = cvode.CVODE(into, **options).solve(np.append(0.0, flow.times), flow.start)
        if not found.success:
            raise RuntimeError(f"at t = {found.t[-1]:.3g}: {found.message}")
        return found.y[1:], field.calls

    return solve


def methods() -> dict[str, Callable[[KnownFlow, float, int], Solve]]:
    """gflow, then the peers that are installed."""
    found: dict[str, Any] = {"gflow": with_gflow}
    found["diffrax Tsit5"] = lambda *given: with_diffrax("Tsit5", *given)
    for method in SCIPY:
        found[f"SciPy {method}"] = lambda *given, method=method: with_scipy(method, *given)
    if cvode := imported("sksundae.cvode"):
        for method in CVODE:
            made = lambda *given, method=method: with_cvode(cvode, method, *given)
            found[f"CVODE {method}"] = made
    return found


def measured(flow: KnownFlow, method: str, made: Any, args: Any) -> harness.Row:
    """A row: a first run, which compiles, then some that are timed."""
    row: harness.Row = {"flow": flow.name, "method": method}
    with harness.failure_in(row):
        solve = made(flow, args.rtol, args.limit)
        first, (theta, evaluations) = _seconds(solve)
        row |= {"distance": flow.error(theta), "field_evaluations": evaluations}
        row["all_run_s"] = [_seconds(solve)[0] for _ in range(args.repeats)]
        row["run_s"] = statistics.median(row["all_run_s"])
        row["compile_s"] = max(first - row["run_s"], 0.0)
    told = row.get("error") or f"error {row['distance']:.1e}"
    print(flow.name, method, told[:90], file=sys.stderr)
    return row


def _seconds(run: Solve) -> tuple[float, Any]:
    begin = time.perf_counter()
    value = run()
    return time.perf_counter() - begin, value


def summary(rows: Sequence[harness.Row], rtol: float) -> Iterator[harness.Row]:
    """For each method, on how many flows it is right, wrong, or gives no answer."""
    for method in dict.fromkeys(row["method"] for row in rows):
        own = [row for row in rows if row["method"] == method]
        right = sum(row.get("distance", np.inf) <= RIGHT * rtol for row in own)
        none = sum("error" in row for row in own)
        sentence = f"{method}: right on {right} of {len(own)} flows, wrong on"
        sentence += f" {len(own) - right - none}, without an answer on {none}."
        yield {"method": method, "right": right, "none": none, "sentence": sentence}


def markdown(rows: Sequence[harness.Row], rtol: float) -> str:
    """Error and evaluations, a line for each flow and a column for each method."""
    names = list(dict.fromkeys(row["method"] for row in rows))
    lines = [["flow", *names], ["---"] * (len(names) + 1)]
    for flow in dict.fromkeys(row["flow"] for row in rows):
        cells = {row["method"]: _cell(row, rtol) for row in rows if row["flow"] == flow}
        lines.append([flow.replace("_", " "), *(cells[name] for name in names)])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell(row: harness.Row, rtol: float) -> str:
    if "error" in row:
        return "–" if row["error"].startswith(TimeUp.__name__) else "fails"
    error = f"{row['distance']:.0e}".replace("e-0", "e-")
    shown = error if row["distance"] <= RIGHT * rtol else f"**{error}**"
    return f"{shown} ({row['field_evaluations']:,d})"


def write_page(page: Path, table: str) -> None:
    """Puts the table between its marks on the page."""
    text, begin = page.read_text(encoding="utf-8"), BEGIN.format(page.as_posix())
    before, _, rest = text.partition(begin)
    if END not in rest:
        raise SystemExit(f"{page} has no lines {begin} and {END}")
    after = rest.partition(END)[2]
    page.write_text(f"{before}{begin}\n\n{table}\n\n{END}{after}", encoding="utf-8")


def main() -> int:
    made = harness.parser("testset", __doc__, precisions=("float64",))
    made.add_argument("--rtol", type=float, default=1e-6, help="of all solvers (1e-6)")
    made.add_argument("--limit", type=int, help="evaluations for a flow (50,000; 2,000 if quick)")
    made.add_argument("--flows", nargs="+", choices=NAMES, help="which (all, or three if quick)")
    made.add_argument("--page", type=Path, help="a page on which the table is replaced")
    args = harness.start(made)
    args.limit = args.limit or (2_000 if args.quick else 50_000)
    rows = [
        measured(known_flow(name), method, made, args)
        for name in args.flows or (QUICK if args.quick else NAMES)
        for method, made in methods().items()
    ]
    told = list(summary(rows, args.rtol))
    harness.report(args, rows, COLUMNS, told)
    if args.page:
        sentences = "\n".join(f"- {row['sentence']}" for row in told)
        write_page(args.page, f"{markdown(rows, args.rtol)}\n\n{sentences}")
    # That a peer has no answer is a result.
    return int(any("error" in row for row in rows if row["method"] == "gflow"))


if __name__ == "__main__":
    sys.exit(main())
