"""Critical points at the ends of flows on random problems, and what finding them costs.

Each flow is followed to t = 100,000, and `gflow.refine` looks for the critical point it leads to. A
critical point counts as approached where the norm of the subgradient has fallen to 1e-7 of that at
the start. Residuals are in units of the gradient's norm at the start. Early ends, at t = 1, are a
test of the opposite: what is called a critical point there must be one, too.
"""

import sys
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

import gflow
from benchmarks import harness
from gflow import piecewise

LATE, EARLY = 1e5, 1.0
APPROACHED, EXACT = 1e-7, 1e-12
COLUMNS = {
    "problems": ("family", ""),
    "t": ("t1", "g"),
    "number": ("number", "d"),
    "approached": ("approached", "d"),
    "of these found": ("approached_found", "d"),
    "found": ("found", "d"),
    "largest residual": ("residual", ".1e"),
    "kinds": ("kinds", ""),
    "on kinks": ("on_kinks", "d"),
    "ms": ("run_ms", ".0f"),
}


def on_a_line(k: int) -> tuple[Any, Any]:
    """Twelve rows of a sine, 8 ReLU units."""
    x = np.linspace(-1, 1, 12)
    net = gflow.ShallowNet(1, 8, key=jax.random.key(k))
    return gflow.EmpiricalRisk(x[:, None], np.sin(3 * x + k)), net


def in_a_plane(k: int) -> tuple[Any, Any]:
    """Twelve random rows of two features, random targets, 4 ReLU units."""
    rng = np.random.default_rng(k)
    net = gflow.ShallowNet(2, 4, key=jax.random.key(k))
    return gflow.EmpiricalRisk(rng.normal(size=(12, 2)), rng.normal(size=12)), net


def population(k: int) -> tuple[Any, Any]:
    """The tent under the uniform density, 4 ReLU units."""
    net = gflow.ShallowNet(1, 4, key=jax.random.key(k), init="standard_normal")
    return gflow.PopulationRisk(piecewise.tent(), piecewise.uniform()), net


def gaussian(k: int) -> tuple[Any, Any]:
    """A random teacher of 2 units, students of 3, Gaussian inputs of two features."""
    teacher = gflow.ShallowNet(2, 2, key=jax.random.key(1000 + k), use_bias=False)
    net = gflow.ShallowNet(2, 3, key=jax.random.key(k), use_bias=False)
    return gflow.GaussianRisk(teacher), net


def deep(k: int, rows: int, width: int) -> tuple[Any, Any]:
    """Random rows of two features, random targets, two or three hidden layers."""
    rng = np.random.default_rng(k)
    risk = gflow.EmpiricalRisk(rng.normal(size=(rows, 2)), rng.normal(size=rows))
    return risk, eqx.nn.MLP(2, "scalar", width, 2 + k % 2, key=jax.random.key(k))


FAMILIES: dict[str, tuple[Callable[[int], tuple[Any, Any]], int]] = {
    "data on a line": (on_a_line, 30),
    "data in a plane": (in_a_plane, 30),
    "population risk": (population, 20),
    "Gaussian risk": (gaussian, 20),
    "deep, 12 rows": (partial(deep, rows=12, width=4), 10),
    "deep, 30 rows": (partial(deep, rows=30, width=3), 10),
}


def measured(family: str, number: int, t1: float) -> harness.Row:
    make, kinds, seconds, residuals = FAMILIES[family][0], Counter(), [], [0.0]
    row: harness.Row = {"family": family, "t1": t1, "number": number}
    approached = approached_found = on_kinks = 0
    with harness.failure_in(row):
        for k in range(number):
            risk, net = make(k)
            flow = gflow.solve_flow(risk, net, t1=t1, throw=False)
            begin = time.perf_counter()
            point = gflow.refine(risk, flow.final, throw=False)
            seconds.append(time.perf_counter() - begin)
            kinds[str(point.kind)] += 1
            near = flow.grad_norm[-1] <= APPROACHED * flow.grad_norm[0]
            approached, approached_found = approached + near, approached_found + near * point.found
            if point.found:
                residuals.append(_residual(risk, point) / float(flow.grad_norm[0]))
                on_kinks += bool(point.active_kinks)
        row |= {"approached": int(approached), "approached_found": int(approached_found)}
        row |= {"found": sum(kinds.values()) - kinds["not found"], "on_kinks": on_kinks}
        row |= {"residual": max(residuals), "run_ms": 1e3 * float(np.median(seconds))}
        row["kinds"] = ", ".join(f"{n} {kind}" for kind, n in kinds.most_common())
    return row


def _residual(risk: Any, point: gflow.CriticalPoint) -> float:
    """That of the point; on data also the norm of the Clarke subgradient, computed anew, away from
    units at zero."""
    if not isinstance(risk, gflow.EmpiricalRisk) or (point.units and point.units.degenerate):
        return point.residual
    leaves = jax.tree.leaves(gflow.clarke_gradient(risk, point.net))
    return max(point.residual, float(jnp.sqrt(sum(jnp.sum(a**2) for a in leaves))))


def cost(repeats: int) -> harness.Row:
    """Point and kind for 151 parameters, 50 ReLU units on 100 rows, from t = 1e7."""
    x = np.linspace(-1, 1, 100)
    risk = gflow.EmpiricalRisk(x[:, None], np.sin(np.pi * x))
    flow = gflow.solve_flow(risk, gflow.ShallowNet(1, 50, key=jax.random.key(0)), t1=1e7)
    row: harness.Row = {"family": "151 parameters", "t1": 1e7, "number": 1}
    with harness.failure_in(row):
        refine = lambda: gflow.refine(risk, flow.final, throw=False)
        again, point = harness.repeated(refine, seconds=20.0, repeats=repeats)
        row |= {"kinds": str(point.kind), "found": int(point.found), "run_s": again["run_s"]}
        row |= {"run_ms": 1e3 * again["run_s"], "residual": point.residual}
        row |= {"on_kinks": int(bool(point.active_kinks))}
    return row


def summary(rows: list[harness.Row]) -> list[harness.Row]:
    late = [row for row in rows if row["t1"] == LATE and "error" not in row]
    total = {name: sum(row[name] for row in late) for name in ("number", "approached", "found")}
    both = sum(row["approached_found"] for row in late)
    worst = max((row["residual"] for row in rows if "approached" in row), default=np.nan)
    sentence = (
        f"Of {total['number']} flows {total['approached']} approach a critical point; {both} of "
        f"these and {total['found'] - both} others are found. The largest residual of all that was "
        f"called a critical point is {worst:.1e} of the gradient at the start."
    )
    return [{"sentence": sentence, "residual": worst, **total}]


def main() -> int:
    args = harness.start(harness.parser("critical", __doc__, precisions=("float64",)))
    rows = []
    for family, (_, number) in FAMILIES.items():
        for t1 in (LATE, EARLY):
            rows.append(measured(family, 3 if args.quick else number, t1))
    rows.append(cost(args.repeats))
    code = harness.report(args, rows, COLUMNS, summary(rows))
    missed = [row for row in rows if row.get("approached", 0) != row.get("approached_found", 0)]
    return int(bool(code or missed))


if __name__ == "__main__":
    sys.exit(main())
