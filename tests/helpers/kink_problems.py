"""Small problems with kinks, and what their flows met."""

from typing import NamedTuple

import jax
import numpy as np

import gflow

KEY = jax.random.key(0)


def single_unit(*w: float) -> gflow.ShallowNet:
    """relu(⟨w, x⟩); the output weight is 1."""
    return gflow.ShallowNet.from_arrays([w], None, [1.0], None)


def data(*rows: tuple, **options) -> gflow.EmpiricalRisk:
    """Rows (x_1, ..., x_d, y)."""
    table = np.array(rows, float)
    return gflow.EmpiricalRisk(table[:, :-1], table[:, -1], **options)


def sine(num_rows: int) -> gflow.EmpiricalRisk:
    """Rows of sin 3x, evenly spaced on [-1, 1]."""
    x = np.linspace(-1, 1, num_rows)
    return gflow.EmpiricalRisk(x[:, None], np.sin(3 * x))


def small_problem():
    """Until t = 12 the flow meets crossings and a slide."""
    return sine(12), gflow.ShallowNet(1, 8, key=jax.random.key(4))


# What a located flow must know of: activations, outputs, losses, what is trained.
KINDS = [
    {},
    {"activation": "leaky_relu(0.2)"},
    {"out_size": 2},
    {"loss": "logistic"},
    {"trainable": ("w", "b")},
    {"trainable": ("b", "v")},
    {"trainable": ("w", "c"), "activation": "leaky_relu(0.2)"},
    {"use_bias": False, "output_scale": 0.5},
]


class Drawn(NamedTuple):
    risk: gflow.EmpiricalRisk
    net: gflow.ShallowNet
    trainable: tuple[str, ...] | None


def drawn(*, out_size="scalar", loss="squared", trainable=None, repeat=False, **options) -> Drawn:
    """Eight weighted points in the plane, two of them twice if asked for, and five units."""
    rng = np.random.default_rng(3)
    x = rng.normal(size=(8, 2))
    y = rng.normal(size=(8,) if out_size == "scalar" else (8, 2))
    x = x[[0, 1, 2, 3, 4, 5, 1, 0]] if repeat else x
    targets = np.sign(y) if loss == "logistic" else y
    risk = gflow.EmpiricalRisk(x, targets, rng.uniform(0.5, 1, 8), loss)
    return Drawn(risk, gflow.ShallowNet(2, 5, out_size, key=KEY, **options), trainable)


def solve(risk, net, t1, **options):
    return gflow.solve_flow(risk, net, t1=t1, **({"rtol": 1e-10} | options))


def kinks(flow) -> list[tuple[str, int, int]]:
    """The name, the unit and the datum of each kink that was met."""
    return [(kink.kind.label, kink.unit, kink.datum) for kink in flow.kinks]


def watched_flow(problem):
    """The flow of a small problem at 60 saved times, with crossings and a slide."""
    return gflow.solve_flow(*problem, t1=12.0, ts=np.append(0, np.geomspace(0.01, 12, 59)))
