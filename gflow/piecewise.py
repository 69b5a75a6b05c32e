"""Piecewise polynomials of one variable: targets, and densities of inputs.

SciPy's `PPoly` neither multiplies nor runs under JAX, and its coefficients are local to the pieces.
Here they are those of the global x; integrals and changes of variable are rational arithmetic,
rounded once.
"""

from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any, Literal

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from scipy import interpolate

from gflow.arguments import ArgumentError, Described, RealScalar, finite, finite_entries, one_of

__all__ = [
    "DENSITIES",
    "NAMED",
    "PiecewisePolynomial",
    "absolute_value",
    "affine",
    "check_density",
    "constant",
    "from_ppoly",
    "histogram",
    "named",
    "named_density",
    "parabola",
    "parabolic",
    "step",
    "tent",
    "through",
    "triangular",
    "uniform",
    "wave",
    "zigzag",
]


class PiecewisePolynomial(eqx.Module):
    r"""A piecewise polynomial: on $[s_j, s_{j+1})$ it is $\sum_m a_{jm} x^m$, in the global x.

    **Arguments:**

    - `breakpoints`: s, shape (k+1,), increasing.
    - `coefficients`: a, shape (k, degree+1): of 1, x, x², … on each of the k pieces.

    Beyond the breakpoints the first and the last polynomial continue. At an inner breakpoint the
    polynomial to its right counts.

    `f + g`, `f - g` and `f * g`, for a number g or a piecewise polynomial on the same interval,
    have the breakpoints of both. Only the call runs under `jax.jit`; arithmetic and the other
    methods run on the host.

    **Raises:** `ArgumentError` for breakpoints that do not increase, coefficients of another shape,
    and entries that are not finite.
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

    @property
    def degree(self) -> int:
        """The largest degree that the shape of the coefficients allows."""
        return self.coefficients.shape[1] - 1

    def __call__(self, x: Any) -> Float[Array, "..."]:
        """The value at each x, a number or an array."""
        x = jnp.asarray(x, self.breakpoints.dtype)
        inner = self.breakpoints[1:-1]
        a = self.coefficients[jnp.searchsorted(inner, x, side="right")]
        value = jnp.zeros_like(x)
        for m in reversed(range(a.shape[-1])):
            value = value * x + a[..., m]
        return value

    def refined(self, breakpoints: Any) -> "PiecewisePolynomial":
        """The same function on other breakpoints, which must include its own between their ends.

        If they begin or end elsewhere, the first and the last polynomial are extended or cut off.
        """
        s, own = np.asarray(breakpoints, float), np.asarray(self.breakpoints)
        missing = [x for x in own[1:-1] if s[0] < x < s[-1] and x not in s]
        if missing:
            got = Described(f"none at {missing[0]:g}")
            raise ArgumentError("breakpoints", got, "all breakpoints of the function among them")
        pieces = np.searchsorted(own[1:-1], s[:-1], side="right")
        return PiecewisePolynomial(s, np.asarray(self.coefficients)[pieces])

    def _joined(self, other: "PiecewisePolynomial") -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """All breakpoints of both, and the coefficients of each between them."""
        if self.interval != other.interval:
            got = Described(f"piecewise polynomials on {self.interval} and {other.interval}")
            raise ArgumentError("other", got, "both on one interval")
        s = np.union1d(self.breakpoints, other.breakpoints)
        a, b = (np.asarray(f.refined(s).coefficients) for f in (self, other))
        return s, a, b

    def __add__(self, other: "PiecewisePolynomial | RealScalar") -> "PiecewisePolynomial":
        if not isinstance(other, PiecewisePolynomial):
            other = constant(other, *self.interval)
        s, a, b = self._joined(other)
        terms = max(a.shape[1], b.shape[1])
        a, b = (np.pad(c, ((0, 0), (0, terms - c.shape[1]))) for c in (a, b))
        return PiecewisePolynomial(s, a + b)

    def __mul__(self, other: "PiecewisePolynomial | RealScalar") -> "PiecewisePolynomial":
        if not isinstance(other, PiecewisePolynomial):
            factor = finite("other", other)
            return PiecewisePolynomial(self.breakpoints, factor * np.asarray(self.coefficients))
        s, a, b = self._joined(other)
        return PiecewisePolynomial(s, [np.convolve(f, g) for f, g in zip(a, b)])

    __radd__, __rmul__ = __add__, __mul__

    def __neg__(self) -> "PiecewisePolynomial":
        return self * -1.0

    def __sub__(self, other: "PiecewisePolynomial | RealScalar") -> "PiecewisePolynomial":
        return self + (-other)

    def __rsub__(self, other: RealScalar) -> "PiecewisePolynomial":
        return (-self) + other

    def derivative(self) -> "PiecewisePolynomial":
        """The derivative of each polynomial; jumps of the function are ignored."""
        a = np.asarray(self.coefficients)
        slopes = a[:, 1:] * np.arange(1, a.shape[1])
        return PiecewisePolynomial(self.breakpoints, slopes if a.shape[1] > 1 else 0 * a)

    def antiderivative(self) -> "PiecewisePolynomial":
        """The continuous F with F' = f and F = 0 at the first breakpoint."""
        s = [Fraction(float(x)) for x in self.breakpoints]
        rows, reached = [], Fraction(0)
        for left, right, row in zip(s, s[1:], _fractions(self)):
            rises = [a / (m + 1) for m, a in enumerate(row)]
            rise_at = lambda x, rises=rises: sum(a * x ** (m + 1) for m, a in enumerate(rises))
            rows.append([reached - rise_at(left), *rises])
            reached += rise_at(right) - rise_at(left)
        return PiecewisePolynomial(self.breakpoints, np.array(rows, dtype=float))

    def moment(self, m: int = 0) -> float:
        """∫ x^m f(x) dx over the interval, correctly rounded."""
        return float(_moment(self, m))

    def integral(self) -> float:
        """∫ f(x) dx over the interval, correctly rounded."""
        return self.moment(0)

    def ppoly(self) -> interpolate.PPoly:
        """The same function as SciPy's `PPoly`, whose coefficients are local to each piece."""
        s = [Fraction(float(x)) for x in self.breakpoints]
        rows = [_shifted(row, left) for row, left in zip(_fractions(self), s)]
        local = np.array(rows, dtype=float)
        return interpolate.PPoly(local.T[::-1], np.asarray(self.breakpoints))


def _fractions(f: PiecewisePolynomial) -> list[list[Fraction]]:
    return [[Fraction(float(a)) for a in row] for row in np.asarray(f.coefficients)]


def _shifted(row: Sequence[Fraction], by: Fraction) -> list[Fraction]:
    """The coefficients of x ↦ f(x + by), exactly."""
    row = list(row)
    for start in range(len(row) - 1):
        for m in reversed(range(start, len(row) - 1)):
            row[m] += by * row[m + 1]
    return row


def _moment(f: PiecewisePolynomial, power: int, absolute: bool = False) -> Fraction:
    """∫ x^power f, exactly; if `absolute`, a bound of ∫ Σ |a_m x^(m + power)|, its terms."""
    s = [Fraction(float(x)) for x in f.breakpoints]
    total = Fraction(0)
    for left, right, row in zip(s, s[1:], _fractions(f)):
        for m, a in enumerate(row):
            if absolute:
                size = max(abs(left), abs(right)) ** (m + power)
                total += abs(a) * size * (right - left)
            else:
                n = m + power + 1
                total += a * (right**n - left**n) / n
    return total


def from_ppoly(ppoly: interpolate.PPoly) -> PiecewisePolynomial:
    """The piecewise polynomial of a SciPy `PPoly`, such as a spline, between its breakpoints.

    SciPy's coefficients, which are local to each piece, are shifted exactly and rounded once.
    Repeated breakpoints are dropped.
    """
    if not isinstance(ppoly, interpolate.PPoly) or ppoly.c.ndim != 2:
        raise ArgumentError("ppoly", Described(type(ppoly).__name__), "a PPoly of one output")
    kept = np.diff(ppoly.x) > 0
    if not kept.any() or np.any(np.diff(ppoly.x) < 0):
        raise ArgumentError("ppoly", Described(f"breakpoints {ppoly.x}"), "increasing ones")
    rows = [
        _shifted([Fraction(float(a)) for a in local[::-1]], -Fraction(float(left)))
        for local, left in zip(ppoly.c.T[kept], ppoly.x[:-1][kept])
    ]
    s = np.append(ppoly.x[:-1][kept], ppoly.x[-1])
    return PiecewisePolynomial(s, np.array(rows, dtype=float))


def through(
    x: Any, y: Any, kind: Literal["linear", "cubic", "monotone"] = "cubic"
) -> PiecewisePolynomial:
    """The function that interpolates points with increasing x; x and y have shape (n,).

    `kind` is "linear", "cubic" (the spline with continuous second derivative) or "monotone" (cubic
    without overshoot, SciPy's `PchipInterpolator`).
    """
    one_of("kind", kind, ("linear", "cubic", "monotone"))
    x, y = (np.asarray(a, dtype=float) for a in (x, y))
    if x.ndim != 1 or len(x) < 2 or not (np.diff(x) > 0).all():
        raise ArgumentError("x", Described(f"{x}"), "at least two increasing numbers")
    if y.shape != x.shape:
        raise ArgumentError("y", Described(f"shape {y.shape}"), f"shape {x.shape}, as x")
    finite_entries("y", y)
    if kind == "linear":
        local = np.stack([np.diff(y) / np.diff(x), y[:-1]])
        return from_ppoly(interpolate.PPoly(local, x))
    spline = interpolate.CubicSpline if kind == "cubic" else interpolate.PchipInterpolator
    return from_ppoly(spline(x, y))


def constant(value: RealScalar, a: RealScalar = -1.0, b: RealScalar = 1.0) -> PiecewisePolynomial:
    """The constant on [a, b]."""
    return PiecewisePolynomial([a, b], [[finite("value", value)]])


def tent() -> PiecewisePolynomial:
    """1 − |x| on [−1, 1]."""
    return PiecewisePolynomial([-1, 0, 1], [[1, 1], [1, -1]])


def absolute_value() -> PiecewisePolynomial:
    """|x| on [−1, 1]."""
    return PiecewisePolynomial([-1, 0, 1], [[0, -1], [0, 1]])


def step() -> PiecewisePolynomial:
    """0 for x < 0 and 1 for x ≥ 0, on [−1, 1]."""
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
    """4x(1 + x) for x < 0 and 4x(1 − x) for x ≥ 0, on [−1, 1]: one period of a C¹ wave."""
    return PiecewisePolynomial([-1, 0, 1], [[0, 4, 4], [0, 4, -4]])


NAMED: dict[str, Callable[[], PiecewisePolynomial]] = {
    f.__name__: f for f in (tent, absolute_value, step, affine, parabola, zigzag, wave)
}


def named(name: str) -> PiecewisePolynomial:
    """The piecewise polynomial of this name, one of `NAMED`."""
    return NAMED[one_of("name", name, NAMED)]()


def uniform(a: RealScalar = -1.0, b: RealScalar = 1.0) -> PiecewisePolynomial:
    """The density 1/(b − a) on [a, b]."""
    a, b = _interval(a, b)
    return PiecewisePolynomial([a, b], [[1 / (b - a)]])


def triangular(
    a: RealScalar = -1.0, b: RealScalar = 1.0, mode: RealScalar | None = None
) -> PiecewisePolynomial:
    """The density on [a, b] that is affine on both sides of its mode and 0 at a and b.

    The mode is the middle by default. If it is a or b, the density is positive there.
    """
    a, b = _interval(a, b)
    mode = (a + b) / 2 if mode is None else finite("mode", mode)
    if not a <= mode <= b:
        raise ArgumentError("mode", mode, f"a number from {a:g} to {b:g}")
    rows = []
    for foot, there in ((a, a < mode), (b, mode < b)):
        if there:
            left, right, peak = (Fraction(x) for x in (a, b, mode))
            slope = 2 / ((right - left) * (peak - Fraction(foot)))
            rows.append([float(-slope * Fraction(foot)), float(slope)])
    return PiecewisePolynomial(sorted({a, mode, b}), rows)


def parabolic(a: RealScalar = -1.0, b: RealScalar = 1.0) -> PiecewisePolynomial:
    """The density 6 (x − a)(b − x)/(b − a)³ on [a, b] (Epanechnikov's)."""
    a, b = _interval(a, b)
    left, right = Fraction(a), Fraction(b)
    scale = 6 / (right - left) ** 3
    row = [float(scale * m) for m in (-left * right, left + right, Fraction(-1))]
    return PiecewisePolynomial([a, b], [row])


def histogram(breakpoints: Any, masses: Any) -> PiecewisePolynomial:
    """The density that is constant between breakpoints, with these masses, scaled to sum to one."""
    s, masses = np.asarray(breakpoints, float), np.asarray(masses, float)
    if masses.ndim != 1 or not np.isfinite(masses).all() or np.any(masses < 0) or not masses.any():
        raise ArgumentError("masses", Described(f"{masses}"), "numbers ≥ 0, not all of them 0")
    if s.shape != (len(masses) + 1,):
        wanted = f"shape ({len(masses) + 1},), the ends of the bins"
        raise ArgumentError("breakpoints", Described(f"shape {s.shape}"), wanted)
    return PiecewisePolynomial(s, (masses / masses.sum() / np.diff(s))[:, None])


DENSITIES: dict[str, Callable[..., PiecewisePolynomial]] = {
    f.__name__: f for f in (uniform, triangular, parabolic)
}


def named_density(name: str, a: RealScalar = -1.0, b: RealScalar = 1.0) -> PiecewisePolynomial:
    """The density of this name, one of `DENSITIES`, on [a, b]."""
    return DENSITIES[one_of("density", name, DENSITIES)](a, b)


def check_density(density: PiecewisePolynomial) -> None:
    r"""Raises `ArgumentError` unless p ≥ 0 and ∫p = 1; the message says by how much p fails.

    Both are computed from the coefficients without rounding. Allowed are 4096 units of rounding
    (9e-13 for float64) of the sum of terms $\sum_m |a_m x^m|$, and of its integral.
    """
    tolerance = 4096 * Fraction(float(np.finfo(density.coefficients.dtype).eps))
    off, size = _moment(density, 0) - 1, _moment(density, 0, absolute=True)
    if abs(off) > tolerance * size:
        got = Described(f"a function with integral {float(1 + off):.15g}, off by {float(off):.2e}")
        wanted = f"integral one, to {float(tolerance * size):.1e}; f * (1 / f.integral()) has it"
        raise ArgumentError("density", got, wanted)
    s = np.asarray(density.breakpoints, float)
    for left, right, row in zip(s, s[1:], _fractions(density)):
        slopes = [float(m * a) for m, a in enumerate(row)][1:]
        turns = np.roots(slopes[::-1]).real
        for x in (left, right, *turns[(turns > left) & (turns < right)]):
            terms = [a * Fraction(float(x)) ** m for m, a in enumerate(row)]
            if sum(terms) < -tolerance * sum(map(abs, terms)):
                got = Described(f"{float(sum(terms)):.3g} at x = {x:.6g}")
                raise ArgumentError("density", got, "a function that is nowhere negative")


def _interval(a: RealScalar, b: RealScalar) -> tuple[float, float]:
    a, b = finite("a", a), finite("b", b)
    if a >= b:
        raise ArgumentError("b", b, f"more than a = {a:g}")
    return a, b
