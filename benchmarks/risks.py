"""Time and error of exact risks with their gradients, against sums over rows and quadrature.

A call gives the risk and its generalized gradient for a ReLU network. A run is many calls in one
compiled loop, as in a descent, each at slightly other parameters. Errors are relative, that of the
gradient in the Euclidean norm, against 50-digit arithmetic for widths up to 200.

Peers are JAX's gradients of sums of weight · (N(x) − y)²: over all rows at once, as most people
write it; over blocks of 1,000 rows by `jax.lax.map`; over Gauss–Legendre nodes of the whole
interval or box; on the line also over as many nodes shared among the pieces of the target. Compile
times near zero belong to programs that an earlier method had compiled for the same shapes.
"""

import itertools
import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int
from scipy.special import roots_legendre

import gflow
from benchmarks import exact_risks, harness
from benchmarks.risk_picture import draw

POPULATION, DATA, BOX, GAUSSIAN = "population", "data", "box", "Gaussian"
ALL_ROWS, BLOCKS, GAUSS, SPLIT = "all rows", "blocks of rows", "Gauss", "Gauss, split"
LINE, SORTED = "gflow.PopulationRisk", "gflow.EmpiricalRisk"
WIDTHS, QUICK_WIDTHS = (10, 50, 200, 1_000, 3_000, 10_000), (50, 1_000, 10_000)
# What stays the same while something else varies.
WIDTH, NODES, ROWS = 50, 1_000, 10**6
BOX_WIDTHS, GAUSSIAN_WIDTHS, TEACHER_WIDTH, INPUTS = (5, 20, 50), (10, 50, 200), 5, 10
BLOCK = 1_000
# Pairs of a row and a unit, of which more do not fit into the memory, or take too long.
MOST_AT_ONCE, MOST_IN_BLOCKS = 5 * 10**7, 5 * 10**8
EXACT_WIDTH = 200
# A larger error of what is called exact is a failure.
RTOL = 1e-12
COLUMNS = {
    "risk": ("study", ""),
    "method": ("method", ""),
    "inputs": ("inputs", "d"),
    "width": ("width", ",d"),
    "rows, nodes": ("points", ",d"),
    "compile s": ("compile_s", ".2f"),
    "ms/call": ("ms", ",.4g"),
    "spread": ("spread", ".0%"),
    "error of risk": ("risk_error", ".1e"),
    "of gradient": ("gradient_error", ".1e"),
}


class Sum(eqx.Module):
    """Weight · (N(x) − y)² over points in blocks."""

    x: Float[Array, "blocks rows in"]
    y: Float[Array, "blocks rows"]
    weights: Float[Array, "blocks rows"]

    def risk_and_gradient(self, net: gflow.ShallowNet):
        def of_block(x, y, weights):
            return jax.value_and_grad(lambda n: weights @ (jax.vmap(n)(x) - y) ** 2)(net)

        arrays = self.x, self.y, self.weights
        if self.x.shape[0] == 1:
            return of_block(*(a[0] for a in arrays))
        found = jax.lax.map(lambda block: of_block(*block), arrays)
        return jax.tree.map(lambda a: jnp.sum(a, axis=0), found)


class Case(NamedTuple):
    """Something to measure, and what gives its exact risk and gradient."""

    study: str
    method: str
    net: gflow.ShallowNet
    risk: gflow.Risk | Sum
    points: int | None = None
    exact: Callable[[], exact_risks.Exact] | None = None

    def run(self, number: int) -> tuple[Array, gflow.ShallowNet]:
        return last_of_calls(self.risk, self.net, jnp.asarray(number))


@eqx.filter_jit
def last_of_calls(risk: Any, net: gflow.ShallowNet, number: Int[Array, ""]):
    def call(_, reached):
        net, *_ = reached
        if isinstance(risk, Sum):
            value, gradient = risk.risk_and_gradient(net)
        else:
            value, gradient = jax.value_and_grad(lambda n: risk(n))(net)
        # The parameters change, so that nothing of a call can be left out.
        return jax.tree.map(lambda a, g: a - 1e-12 * g, net, gradient), value, gradient

    nothing = jnp.zeros_like(net.v[0]), jax.tree.map(jnp.zeros_like, net)
    return jax.lax.fori_loop(0, number, call, (net, *nothing))[1:]


def network(inputs: int, width: int, **options: Any) -> gflow.ShallowNet:
    """Half of the kinks are in [−1, 1] if there is one input."""
    return gflow.ShallowNet(inputs, width, key=jax.random.key(width), init="ntk", **options)


def in_blocks(x: Any, y: Any, weights: Any, rows: int = BLOCK) -> Sum:
    rows = min(rows, len(x))
    x = jnp.asarray(x).reshape(-1, rows, x.shape[-1])
    return Sum(x, *(jnp.asarray(a).reshape(-1, rows) for a in (y, weights)))


@cache
def gauss(nodes: int) -> tuple[np.ndarray, np.ndarray]:
    """Nodes in [−1, 1], and weights of sum one."""
    x, weights = roots_legendre(nodes)
    return x, weights / 2


def gauss_between(ends: Sequence[float], nodes: int) -> tuple[np.ndarray, np.ndarray]:
    """That many nodes, shared among the pieces alike."""
    x, weights = gauss(nodes // (len(ends) - 1))
    half = np.diff(ends)[:, None] / 2
    x = np.add(ends[:-1], ends[1:])[:, None] / 2 + half * x
    return x.ravel(), (half * weights).ravel() * 2 / (ends[-1] - ends[0])


def population(quick: bool) -> Iterator[Case]:
    target = gflow.piecewise.zigzag()
    risk = gflow.PopulationRisk(target, gflow.piecewise.uniform())
    ends = np.asarray(target.breakpoints).tolist()
    numbers = [a * 10**k for k in range(1, 4) for a in (1, 2, 5)]
    for width in QUICK_WIDTHS if quick else WIDTHS:
        net = network(1, width)
        exact = None
        if width <= EXACT_WIDTH:
            exact = cache(partial(exact_risks.population, net, risk))
        yield Case(POPULATION, LINE, net, risk, exact=exact)
        if quick and width != WIDTH:
            continue
        for nodes in numbers if width == WIDTH and not quick else [NODES]:
            for method, of in ((GAUSS, [ends[0], ends[-1]]), (SPLIT, ends)):
                x, weights = gauss_between(of, nodes)
                rule = in_blocks(x[:, None], target(x), weights, rows=len(x))
                yield Case(POPULATION, method, net, rule, len(x), exact)


def data(quick: bool) -> Iterator[Case]:
    rng, target = np.random.default_rng(0), gflow.piecewise.zigzag()
    on_grid = lambda a: np.round(a / exact_risks.GRID) * exact_risks.GRID
    for n in (10**3, 10**5) if quick else (10**k for k in range(3, 8)):
        x = on_grid(rng.uniform(-1, 1, n))
        y = on_grid(np.asarray(target(x)) + 0.1 * rng.normal(size=n))
        risk, weights = gflow.EmpiricalRisk(x[:, None], y), np.full(n, 1 / n)
        blocks = in_blocks(x[:, None], y, weights)
        for width in WIDTHS if n == ROWS else (WIDTH,):
            yield from of_rows(risk, blocks, network(1, width), x, y)


def of_rows(
    risk: gflow.EmpiricalRisk, blocks: Sum, net: gflow.ShallowNet, x: np.ndarray, y: np.ndarray
) -> Iterator[Case]:
    n, pairs = len(x), len(x) * net.width
    exact = None
    if net.width <= EXACT_WIDTH:
        exact = cache(partial(exact_risks.data, net, x, y))
    yield Case(DATA, SORTED, net, risk, n, exact)
    if pairs <= MOST_AT_ONCE:
        whole = jax.tree.map(lambda a: a.reshape(1, n, *a.shape[2:]), blocks)
        yield Case(DATA, ALL_ROWS, net, whole, n, exact)
    if n > BLOCK and pairs <= MOST_IN_BLOCKS:
        yield Case(DATA, BLOCKS, net, blocks, n, exact)


def box(quick: bool) -> Iterator[Case]:
    # x₁² − x₂.
    for d, target in ((2, {(2, 0): 1.0, (0, 1): -1.0}), (3, {(2, 0, 0): 1.0, (0, 1, 0): -1.0})):
        risk = gflow.BoxRisk(target, -1.0, 1.0)
        for width in BOX_WIDTHS[:1] if quick else BOX_WIDTHS:
            net = network(d, width)
            exact = cache(partial(exact_risks.box, net, risk))
            yield Case(BOX, "gflow.BoxRisk", net, risk, exact=exact)
            for points in (10**3,) if quick else (10**3, 10**6):
                t, weights = gauss(round(points ** (1 / d)))
                x = jnp.asarray(np.stack(np.meshgrid(*[t] * d), axis=-1).reshape(-1, d))
                weights = np.prod(np.meshgrid(*[weights] * d), axis=0).ravel()
                rows = BLOCK if len(x) % BLOCK == 0 else len(x)
                rule = in_blocks(x, risk.target(x), weights, rows)
                yield Case(BOX, GAUSS, net, rule, len(x), exact)


def gaussian(quick: bool) -> Iterator[Case]:
    options = {"use_bias": False}
    teacher = network(INPUTS, TEACHER_WIDTH, **options)
    risk = gflow.GaussianRisk(teacher)
    x = jax.random.normal(jax.random.key(0), (10**5 if quick else 10**6, INPUTS))
    blocks = in_blocks(x, jax.vmap(teacher)(x), np.full(len(x), 1 / len(x)))
    for width in GAUSSIAN_WIDTHS[:1] if quick else GAUSSIAN_WIDTHS:
        net = network(INPUTS, width, **options)
        exact = cache(partial(exact_risks.gaussian, net, teacher))
        yield Case(GAUSSIAN, "gflow.GaussianRisk", net, risk, exact=exact)
        yield Case(GAUSSIAN, BLOCKS, net, blocks, len(x), exact)


def measured(cases: Sequence[Case], args: Any) -> Iterator[harness.Row]:
    """A row for each case; all of them take turns."""
    seconds = 0.02 if args.quick else 0.2
    runs: dict[str, harness.Run] = {str(k): case.run for k, case in enumerate(cases)}
    found = harness.measure(runs, seconds=seconds, repeats=args.repeats)
    for case, row in zip(cases, found.values()):
        row |= {"study": case.study, "method": case.method}
        row |= {"inputs": case.net.in_size, "width": case.net.width}
        if case.points is not None:
            row["points"] = case.points
        if "rate" in row:
            row["ms"] = 1e3 / row["rate"]
        if case.exact is not None and "error" not in row:
            with harness.failure_in(row):
                row |= exact_risks.errors(*case.run(1), case.exact())
                worst = max(row["risk_error"], row["gradient_error"])
                if case.method.startswith("gflow") and not worst <= RTOL:
                    row["error"] = f"differs from 50 digits by {worst:.2g}, above {RTOL:g}"
        print(case.study, case.method, row.get("ms"), row.get("error", ""), file=sys.stderr)
        yield row


def growth(times: Mapping[int, float], what: str, of: str) -> Iterator[harness.Row]:
    """How the time grows from the least to the largest size."""
    if len(times) > 1:
        first, last = min(times), max(times)
        ratio = times[last] / times[first]
        exponent = math.log(ratio) / math.log(last / first)
        told = f"time × {ratio:,.3g} (exponent {exponent:.2f})"
        sentence = f"{what}: from {first:,} to {last:,} {of} {told}."
        yield {"sentence": sentence, "ratio": ratio, "exponent": exponent}


def summary(rows: Sequence[harness.Row]) -> Iterator[harness.Row]:
    def chosen(**wanted: Any) -> list[harness.Row]:
        good = [row for row in rows if "error" not in row]
        return [row for row in good if all(row.get(key) == a for key, a in wanted.items())]

    def times(along: str, least: int = 0, **wanted: Any) -> dict[int, float]:
        return {row[along]: row["ms"] for row in chosen(**wanted) if row[along] >= least}

    yield from growth(times("width", 1_000, method=LINE), LINE, "units")
    of_rows = times("points", method=SORTED, width=WIDTH)
    yield from growth(of_rows, f"{SORTED}, width {WIDTH}", "rows")
    for n, ms in of_rows.items():
        what = f"{SORTED}, {n:,} rows"
        yield from growth(times("width", 1_000, method=SORTED, points=n), what, "units")
        for peer in chosen(study=DATA, width=WIDTH, points=n):
            if n >= 10**5 and peer["method"] in (ALL_ROWS, BLOCKS):
                ratio = peer["ms"] / ms
                words = f"width {WIDTH}: {ratio:,.0f} times faster than {peer['method']}"
                yield {"sentence": f"{what}, {words}.", "ratio": ratio}
    for d in (2, 3):
        wide = times("width", method="gflow.BoxRisk", inputs=d)
        yield from growth(wide, f"gflow.BoxRisk, {d} inputs", "units")
    wide = times("width", method="gflow.GaussianRisk")
    yield from growth(wide, f"gflow.GaussianRisk, {INPUTS} inputs", "units")
    for own in chosen(method=LINE):
        for peer in chosen(method=GAUSS, inputs=1, width=own["width"], points=NODES):
            if "gradient_error" in own:
                ratio = peer["ms"] / own["ms"]
                what = f"{GAUSS}, {NODES:,} nodes, width {own['width']}"
                words = f"{ratio:,.2g} times the time of {LINE}"
                off = " for ".join(
                    f"{row['risk_error']:.0e} and {row['gradient_error']:.0e}"
                    for row in (peer, own)
                )
                yield {"sentence": f"{what}: {words}, errors {off}.", "ratio": ratio}


def main() -> int:
    options = harness.parser("risks", __doc__, precisions=("float64",))
    options.add_argument("--picture", type=Path, help="file for the diagrams")
    args = harness.start(options)
    studies = (population, data, box, gaussian)
    rows = list(itertools.chain(*(measured(list(study(args.quick)), args) for study in studies)))
    found = list(summary(rows))
    harness.report(args, rows, COLUMNS, found)
    if args.picture:
        draw(rows, WIDTH, args.picture)
        print(f"saved {args.picture}")
    return int(any("error" in row for row in rows if row["method"].startswith("gflow")))


if __name__ == "__main__":
    sys.exit(main())
