"""The order of descent in the step size, on random tables, widths and seeds.

Each case is a main job: a flow, and descents at the default step sizes over the same time. Tables
are generated or come with scikit-learn. Theory predicts order 1, so 95 % of the intervals should
contain 1.
"""

import sys
import time
from typing import Any, NamedTuple

import numpy as np
from sklearn import datasets

from benchmarks import harness
from gflow.app.analysis import analyse
from gflow.app.config import Config
from gflow.app.data import Table
from gflow.app.experiment import compute
from gflow.app.run_directory import Run

COLUMNS = {
    "table": ("table", ""),
    "rows": ("rows", "d"),
    "features": ("features", "d"),
    "width": ("width", "d"),
    "seed": ("seed", "d"),
    "t1": ("t1", "g"),
    "slides": ("slides", "d"),
    "order": ("order", ".3f"),
    "from": ("low", ".3f"),
    "to": ("high", ".3f"),
    "contains 1": ("contains", ""),
    "parted": ("parted", "d"),
    "until": ("until", ".3g"),
    "s": ("run_s", ".0f"),
}
BUNDLED = ("linnerud", "iris", "wine", "diabetes")
GENERATED = ("sine", "steps", "noise", "teacher")


class Case(NamedTuple):
    table: Table
    width: int
    seed: int
    t1: float


def drawn(rng: np.random.Generator) -> Case:
    """A random case: half of the tables are bundled, half are generated."""
    name = str(rng.choice(BUNDLED + GENERATED))
    x, y = bundled(name, rng) if name in BUNDLED else generated(name, rng)
    x, y = ((a - a.mean(axis=0)) / a.std(axis=0) for a in (x, y))
    names = tuple(f"x{k}" for k in range(x.shape[1]))
    width, seed = int(rng.choice([2, 3, 4, 5, 8, 12, 20, 32])), int(rng.integers(10**6))
    t1 = float(rng.choice([10, 30, 100])) if len(y) > 100 else float(rng.choice([30, 100, 300]))
    return Case(Table(x, y, names, "y", name), width, seed, t1)


def bundled(name: str, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Some columns of a table of scikit-learn, as features and target."""
    bunch: Any = getattr(datasets, f"load_{name}")()
    x, target = np.asarray(bunch["data"], dtype=float), np.asarray(bunch["target"], dtype=float)
    if name == "linnerud":
        return x, target[:, rng.integers(3)]
    if name == "iris":
        column = rng.integers(4)
        return np.delete(x, column, axis=1), x[:, column]
    most = min(x.shape[1], 6)
    return x[:, rng.choice(x.shape[1], rng.integers(1, most + 1), replace=False)], target


def generated(name: str, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Functions on a line, pure noise, or a noisy teacher of three units."""
    n, d = int(rng.integers(10, 120)), int(rng.integers(1, 6))
    line, x = np.linspace(-1, 1, n), rng.normal(size=(n, d))
    if name == "sine":
        return line[:, None], np.sin(rng.uniform(2, 9) * line + rng.uniform(0, 6))
    if name == "steps":
        return line[:, None], np.sign(np.sin(rng.uniform(2, 9) * line + rng.uniform(0, 6)))
    if name == "noise":
        return x, rng.normal(size=n)
    hidden = np.maximum(x @ rng.normal(size=(d, 3)) + rng.normal(size=3), 0)
    return x, hidden @ rng.normal(size=3) + 0.3 * rng.normal(size=n)


def measured(case: Case) -> harness.Row:
    rows, features = case.table.x.shape
    row: harness.Row = {"table": case.table.name, "rows": rows, "features": features}
    row |= {"width": case.width, "seed": case.seed, "t1": case.t1}
    with harness.failure_in(row):
        begin = time.perf_counter()
        run = Run(Config(width=case.width, seed=case.seed, t1=case.t1), case.table, {})
        compute(run)
        order = analyse(run).order
        row["run_s"] = time.perf_counter() - begin
        assert run.flow is not None and order is not None, "no order"
        assert run.flow.kinks is not None
        low, high = order.interval
        row |= {"order": order.value, "low": low, "high": high, "until": order.until}
        row |= {"contains": "yes" if low <= 1 <= high else "no", "parted": len(order.partings)}
        row["slides"] = run.flow.kinks.counts()["slide begins"]
    return row


def summary(rows: list[harness.Row]) -> list[harness.Row]:
    good = [row for row in rows if "error" not in row]
    covered = sum(row["contains"] == "yes" for row in good)
    parted = sum(row["parted"] > 0 for row in good)
    lengths = np.array([row["high"] - row["low"] for row in good])
    sentence = (
        f"{covered} of {len(good)} intervals contain 1. Half of them are shorter than "
        f"{np.median(lengths):.2f}, nine in ten shorter than {np.quantile(lengths, 0.9):.2f}. "
        f"Cases in which some descents part from the flow: {parted}."
    )
    return [{"sentence": sentence, "covered": covered, "cases": len(good)}]


def main() -> int:
    options = harness.parser("orders", __doc__, precisions=("float64",))
    options.add_argument("--cases", type=int, help="how many (20, or 2 if quick)")
    options.add_argument("--draw", type=int, default=0, help="the seed of the cases")
    args = harness.start(options)
    number = args.cases or (2 if args.quick else 20)
    rng = np.random.default_rng(args.draw)
    rows = [measured(drawn(rng)) for _ in range(number)]
    return harness.report(args, rows, COLUMNS, summary(rows))


if __name__ == "__main__":
    sys.exit(main())
