"""A convolutional network with max-pooling and a residual connection on scikit-learn's digits.

Cross entropy on all 1,797 images, some 10⁴ parameters, a million pairs of a unit and an image. The
flow with kinks is followed to --t1, where the training error is below 1 %; plain solvers (diffrax's
Tsit5 through `kinks="ignore"`) and descent follow it, too. Errors are relative, of the final
parameters, against the flow at the tightest tolerance of --rtols. Every solver has atol = rtol/100.
Times are of a single run, without compilation.
"""

import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from sklearn.datasets import load_digits

import gflow
from benchmarks import harness
from benchmarks.kink_solvers import Kinks, flat

CHANNELS, WIDTH = 4, 128
COLUMNS = {
    "method": ("method", ""),
    "rtol or h": ("setting", ""),
    "compile s": ("compile_s", ".1f"),
    "run s": ("run_s", ".1f"),
    "error": ("distance", ".1e"),
    "drift": ("drift", ".1e"),
    "steps": ("steps", ",d"),
    "gradients": ("field_evaluations", ",d"),
    "kinks": ("kinks", ",d"),
    "risk": ("risk", ".4f"),
    "training error %": ("training_error", ".2f"),
}


class Network(eqx.Module):
    """8 × 8 pixels to 10 classes."""

    first: eqx.nn.Conv2d
    residual: eqx.nn.Conv2d
    pool: eqx.nn.MaxPool2d
    hidden: eqx.nn.Linear
    last: eqx.nn.Linear

    def __init__(self, key: jax.Array):
        keys = jax.random.split(key, 4)
        self.first = eqx.nn.Conv2d(1, CHANNELS, 3, padding=1, key=keys[0])
        self.residual = eqx.nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1, key=keys[1])
        self.pool = eqx.nn.MaxPool2d(2, 2)
        self.hidden = eqx.nn.Linear(16 * CHANNELS, WIDTH, key=keys[2])
        self.last = eqx.nn.Linear(WIDTH, 10, key=keys[3])

    def __call__(self, x: jax.Array) -> jax.Array:
        image = self.pool(jax.nn.relu(self.first(x.reshape(1, 8, 8))))
        image = jax.nn.relu(image + self.residual(image))
        return self.last(jax.nn.relu(self.hidden(image.ravel())))


def problem(draw: int, images: int) -> tuple[gflow.EmpiricalRisk, Network]:
    """The first `images` of the digits, and a network drawn at random."""
    digits: Any = load_digits()
    x, labels = digits.data[:images] / 16.0, digits.target[:images]
    risk = gflow.EmpiricalRisk(x, labels, loss="cross-entropy")
    return risk, Network(jax.random.key(draw))


def training_error(risk: gflow.EmpiricalRisk, net: Network) -> float:
    """In percent."""
    guessed = jnp.argmax(jax.vmap(net)(risk.x), axis=1)
    return 100 * float(jnp.mean(guessed != risk.y))


def measured(args: Any) -> list[harness.Row]:
    """A row for each method and setting."""
    risk, net = problem(args.draw, args.images)
    ends: dict[str, np.ndarray] = {}
    rows = []

    def flow(rtol: float, kinks: Kinks, t1: float) -> gflow.Trajectory:
        return gflow.solve_flow(
            risk, net, t1=t1, ts=[t1], rtol=rtol, atol=1e-2 * rtol, kinks=kinks, max_steps=10**6
        )

    def descent(size: float, t1: float) -> gflow.Trajectory:
        steps = max(1, round(t1 / size))
        # Only the end is recorded.
        return gflow.descend(risk, net, step_size=size, num_steps=steps, record=[steps])

    def measure(method: str, setting: str, run: Callable[[float], gflow.Trajectory]) -> None:
        row: harness.Row = {"method": method, "setting": setting}
        with harness.failure_in(row):
            begin = time.perf_counter()
            jax.block_until_ready(run(1e-6 * args.t1))
            middle = time.perf_counter()
            found = jax.block_until_ready(run(args.t1))
            row["compile_s"], row["run_s"] = middle - begin, time.perf_counter() - middle
            row.update(_facts(found, risk))
            ends[f"{method} {setting}"] = flat(found.final)
        print(row, file=sys.stderr, flush=True)
        rows.append(row)

    ways: tuple[tuple[Kinks, str], ...]
    ways = ("locate", "gflow"), ("ignore", "diffrax Tsit5")
    for kinks, method in ways:
        for rtol in args.rtols if kinks == "locate" else args.rtols[:-1]:
            measure(method, f"{rtol:.0e}", partial(flow, rtol, kinks))
    for size in args.step_sizes:
        measure("descent", f"h = {size:g}", partial(descent, size))
    reference = ends.get(f"gflow {args.rtols[-1]:.0e}")
    for row in rows:
        end = ends.get(f"{row['method']} {row['setting']}")
        if end is not None and reference is not None and end is not reference:
            row["distance"] = float(np.linalg.norm(end - reference) / np.linalg.norm(reference))
    return rows


def _facts(found: gflow.Trajectory, risk: gflow.EmpiricalRisk) -> harness.Row:
    counts = {"steps": "num_steps", "field_evaluations": "num_field_evaluations"}
    counts["kinks"] = "num_kinks"
    facts: harness.Row = {
        name: int(found.stats[key]) for name, key in counts.items() if key in found.stats
    }
    if found.method.startswith("gradient flow"):
        facts["drift"] = abs(float(found.diagnostics.energy[-1]))
    facts["risk"] = float(found.risk[-1])
    return facts | {"training_error": training_error(risk, found.final)}


def main() -> int:
    options = harness.parser("digits", __doc__, precisions=("float64",))
    options.add_argument("--t1", type=float, help="the end (60, or 0.5 if quick)")
    options.add_argument("--images", type=int, help="how many (1,797, or 200 if quick)")
    options.add_argument("--draw", type=int, default=0, help="seed of the network (0)")
    options.add_argument("--rtols", nargs="+", type=float, help="(1e-3 1e-4 1e-5 1e-6)")
    options.add_argument("--step-sizes", nargs="*", type=float, help="of descent (0.05 0.01)")
    args = harness.start(options)
    quick = args.quick
    args.t1 = args.t1 or (0.5 if quick else 60.0)
    args.images = args.images or (200 if quick else 1_797)
    args.rtols = args.rtols or ([1e-3, 1e-4] if quick else [1e-3, 1e-4, 1e-5, 1e-6])
    if args.step_sizes is None:
        args.step_sizes = [0.05] if quick else [0.05, 0.01]
    return harness.report(args, measured(args), COLUMNS)


if __name__ == "__main__":
    sys.exit(main())
