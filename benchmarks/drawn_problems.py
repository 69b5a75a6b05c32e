"""Flows drawn at random, of any size: other draws are held-out problems of the same kind.

NumPy alone, so that a process that times its imports can begin with it.
"""

from typing import NamedTuple

import numpy as np


class Size(NamedTuple):
    """A network of so many units on a table of so many rows and columns, to time t1."""

    units: int
    rows: int
    columns: int
    t1: float

    @property
    def name(self) -> str:
        return f"drawn_w{self.units}_n{self.rows}_d{self.columns}"

    @property
    def pairs(self) -> int:
        return self.units * self.rows


SMALL = Size(24, 100, 13, 20.0)
MIDDLE = Size(256, 2_000, 10, 1.0)
LARGE = Size(1_000, 10_000, 10, 0.03)
SIZES = {size.name: size for size in (SMALL, MIDDLE, LARGE)}


class Table(NamedTuple):
    """Data x (rows, columns) and y (rows,)."""

    x: np.ndarray
    y: np.ndarray


class Start(NamedTuple):
    """The parameters of a network at time 0: w (units, columns), b and v (units,), c ()."""

    w: np.ndarray
    b: np.ndarray
    v: np.ndarray
    c: np.ndarray


def table(size: Size, draw: int) -> Table:
    """x standard normal, y = sin x₀ + x₁ x₂ / 2 + 0.3 noise."""
    rng = np.random.default_rng(draw)
    x = rng.normal(size=(size.rows, size.columns))
    noise = rng.normal(size=size.rows)
    return Table(x, np.sin(x[:, 0]) + 0.5 * x[:, 1] * x[:, 2] + 0.3 * noise)


def start(size: Size, draw: int) -> Start:
    """He's initialisation, biases 0."""
    rng = np.random.default_rng([draw, 1])
    w = rng.normal(size=(size.units, size.columns)) * (2 / size.columns) ** 0.5
    v = rng.normal(size=size.units) * size.units**-0.5
    return Start(w, np.zeros(size.units), v, np.zeros(()))
