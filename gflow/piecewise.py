"""Piecewise polynomials of one variable."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from gflow.arguments import ArgumentError, Described, finite_entries, one_of


class PiecewisePolynomial(eqx.Module):
    r"""A piecewise polynomial: on $[s_j, s_{j+1})$ it is $\sum_m a_{jm} x^m$, in the global x.

    **Arguments:**

    - `breakpoints`: s, shape (k+1,), increasing.
    - `coefficients`: a, shape (k, degree+1): of 1, x, x², … on each of the k pieces.

    Outside of the breakpoints the first and the last piece go on. At an inner breakpoint the piece
    to the right counts.
    """

    breakpoints: Float[Array, " breakpoints"]
    coefficients: Float[Array, "pieces terms"]

    def __init__(self, breakpoints: Any, coefficients: Any):
        s, a = (np.asarray(values, dtype=float) for values in (breakpoints, coefficients))
        if s.ndim != 1 or len(s) < 2 or not (np.diff(s) > 0).all():
            raise ArgumentError("breakpoints", Described(f"{s}"), "at least two increasing numbers")
        finite_entries("breakpoints", s)
        if a.ndim != 2 or a.shape[0] != len(s) - 1 or a.shape[1] == 0:
            wanted = f"shape ({len(s) - 1}, degree + 1), one row for each piece"
            raise ArgumentError("coefficients", Described(f"shape {a.shape}"), wanted)
        finite_entries("coefficients", a)
        self.breakpoints, self.coefficients = jnp.asarray(s), jnp.asarray(a)

    @property
    def interval(self) -> tuple[float, float]:
        """The first and the last breakpoint."""
        return float(self.breakpoints[0]), float(self.breakpoints[-1])

    def __call__(self, x: Any) -> Float[Array, "..."]:
        """The value at each x, a number or an array."""
        x = jnp.asarray(x, self.breakpoints.dtype)
        inner = self.breakpoints[1:-1]
        a = self.coefficients[jnp.searchsorted(inner, x, side="right")]
        value = jnp.zeros_like(x)
        for m in reversed(range(a.shape[-1])):
            value = value * x + a[..., m]
        return value


def tent() -> PiecewisePolynomial:
    """1 − |x| on [−1, 1]."""
    return PiecewisePolynomial([-1, 0, 1], [[1, 1], [1, -1]])


def absolute_value() -> PiecewisePolynomial:
    """|x| on [−1, 1]."""
    return PiecewisePolynomial([-1, 0, 1], [[0, -1], [0, 1]])


def step() -> PiecewisePolynomial:
    """0 left of 0 and 1 from there on, on [−1, 1]."""
    return PiecewisePolynomial([-1, 0, 1], [[0], [1]])


def affine() -> PiecewisePolynomial:
    """x on [−1, 1]."""
    return PiecewisePolynomial([-1, 1], [[0, 1]])


def parabola() -> PiecewisePolynomial:
    """x² on [−1, 1]."""
    return PiecewisePolynomial([-1, 1], [[0, 0, 1]])


def zigzag() -> PiecewisePolynomial:
    """The triangle wave through (−1, 0), (−½, 1), (0, 0), (½, −1), (1, 0)."""
    return PiecewisePolynomial([-1, -0.5, 0.5, 1], [[2, 2], [0, -2], [-2, 2]])


def wave() -> PiecewisePolynomial:
    """4x(1 + x) left of 0 and 4x(1 − x) from there on, on [−1, 1]: one period of a smooth wave."""
    return PiecewisePolynomial([-1, 0, 1], [[0, 4, 4], [0, 4, -4]])


NAMED: dict[str, Callable[[], PiecewisePolynomial]] = {
    f.__name__: f for f in (tent, absolute_value, step, affine, parabola, zigzag, wave)
}


def named(name: str) -> PiecewisePolynomial:
    """The piecewise polynomial of that name: one of `NAMED`."""
    return NAMED[one_of("name", name, NAMED)]()
