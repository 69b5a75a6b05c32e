"""The price of an accuracy for networks of several hidden layers: gflow against plain solvers.

As `benchmarks.accuracy`, with its methods, and SciPy's DOP853. The flows are two that an
independent integrator followed through every kink, with its ends, and flows of MLPs drawn at random
with --draw, with ends by gflow's own Dopri8, each kink located, at rtol 1e-10.
"""

import sys
from typing import NamedTuple

import equinox as eqx
import jax
import numpy as np

import gflow
from benchmarks import drawn_problems, harness
from benchmarks.accuracy import common_options, compared, with_end
from benchmarks.kink_solvers import Problem, flat
from tests.helpers.deep_networks import deep_reference

REFERENCES = ("deep_1-12-12-1_n40", "deep_2-6-5-1_n20")
SCIPY = ("RK45", "DOP853")


class DeepSize(NamedTuple):
    """An MLP with hidden layers of these widths on a table of so many rows and columns, to t1."""

    columns: int
    width: int
    depth: int
    rows: int
    t1: float

    @property
    def name(self) -> str:
        widths = "-".join([str(self.width)] * self.depth)
        return f"drawn_{self.columns}-{widths}-1_n{self.rows}"

    @property
    def table(self) -> drawn_problems.Size:
        return drawn_problems.Size(self.width, self.rows, self.columns, self.t1)


SMALL = DeepSize(columns=4, width=10, depth=3, rows=50, t1=10.0)
MIDDLE = DeepSize(columns=8, width=64, depth=2, rows=500, t1=2.0)
SIZES = {size.name: size for size in (SMALL, MIDDLE)}


def reference(name: str) -> Problem:
    known = deep_reference(name)
    end = flat(known.at_end().mlp())
    return Problem(name, known.risk, known.mlp(), float(known.ts[-1]), end)


def drawn(size: DeepSize, draw: int) -> Problem:
    """The problem without its end."""
    table = drawn_problems.table(size.table, draw)
    net = eqx.nn.MLP(size.columns, "scalar", size.width, size.depth, key=jax.random.key(draw))
    return Problem(size.name, gflow.EmpiricalRisk(*table), net, size.t1, np.zeros(0))


def widths(given: Problem) -> str:
    """The hidden layers in words."""
    return "-".join(str(layer.out_features) for layer in given.net.layers[:-1]) + " units"


def main() -> int:
    options = common_options("deep", __doc__)
    options.add_argument(
        "--problems",
        nargs="+",
        choices=(*REFERENCES, *SIZES),
        help="which flows (all; the second reference if quick)",
    )
    args = harness.start(options)
    if args.limit is None:
        args.limit = 1.0 if args.quick else 20.0
    if args.problems is None:
        args.problems = REFERENCES[1:] if args.quick else (*REFERENCES, *SIZES)
    problems = (
        with_end(drawn(SIZES[name], args.draw)) if name in SIZES else reference(name)
        for name in args.problems
    )
    return compared(args, problems, widths, SCIPY)


if __name__ == "__main__":
    sys.exit(main())
