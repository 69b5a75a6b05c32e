"""The exact risk of a network with one input, for a piecewise polynomial density."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from gflow.arguments import ArgumentError, Described
from gflow.networks import ShallowNet
from gflow.piecewise import PiecewisePolynomial, check_density
from gflow.risks.base import Risk
from gflow.risks.compensated import FloatPair, add, multiply, prefix_sums, subtract, value
from gflow.risks.one_input import Cells, Knots, Measure, OneInputUnits, one_input_risk


class PopulationRisk(Risk):
    r"""The true risk of a `ShallowNet` with one input,

    $$L(\theta) = \int_a^b \|N_\theta(x) - f(x)\|^2 \, p(x) \, dx,$$

    without quadrature error and without sampling, for a piecewise polynomial target f and density
    p. In this setting Eberle, Jentzen, Riekert and Weiss (arXiv 2108.08106) prove that the gradient
    flow exists, is unique among the solutions whose degenerate units remain degenerate, and
    converges with a rate to a critical point if it does not diverge.

    **Arguments:**

    - `target`: f, a `PiecewisePolynomial`, or one for each output of a network with `out_size=k`.
    - `density`: p on [a, b], a `PiecewisePolynomial`, not negative and of integral one, up to 4096
      units of rounding of its terms (9e-13). The breakpoints of f and p may differ. f must be
      defined on all of [a, b].

    Between the kinks $-b_i/w_i$ and the breakpoints, N is affine, and Gauss–Legendre quadrature of
    the squared residual is exact. So the risk is a sum of squares: it is never negative, and close
    to a perfect fit it is as accurate as elsewhere. Slopes and intercepts of N are summed without
    rounding, so risk and gradient are exact up to a few units of rounding, also for kinks outside
    [a, b], equal kinks, weights of 1e-8 and dead units. In float64 this holds for parameters from
    1e-298 to 1e298 and residuals from 1e-151 to 1e152: beyond, squares and the last digits of
    products leave the range of floats. Time and memory: O(W log W + breakpoints).

    The gradient is the generalized gradient G(θ) in closed form, with σ'(0) that of the inactive
    side. It vanishes in w and b of a degenerate ReLU unit, w = b = 0, which therefore remains
    degenerate along the flow. So do units that become degenerate in finite time, which `solve_flow`
    follows there. Second derivatives are closed forms, too, by `jax.jvp` of `jax.grad` as well as
    in Hessians. If the kink t_i of a unit is inside (a, b), they include the term of the moving
    kink, r(t_i) p(t_i)/|w_i|, with limits from the right where f or p jumps. Third derivatives
    raise `NotImplementedError`.

    Activations: ReLU, leaky ReLU, identity. All transformations of JAX apply, including `jax.vmap`
    over networks; there are no derivatives in target and density.

    **Raises:** `ArgumentError` for a density that is negative somewhere or whose integral is not
    one, a target that is not defined on all of [a, b], and networks of other shapes or activations.

    ??? example

        ```python
        risk = gflow.PopulationRisk(gflow.piecewise.tent(), gflow.piecewise.uniform(-1, 1))
        net = gflow.ShallowNet.from_arrays([[1.0], [-1.0]], [0.0, 0.0], [-1.0, -1.0], 1.0)
        assert risk(net) == 0
        ```
    """

    target: PiecewisePolynomial | tuple[PiecewisePolynomial, ...]
    density: PiecewisePolynomial
    measure: "PolynomialMeasure"

    def __init__(
        self,
        target: PiecewisePolynomial | Sequence[PiecewisePolynomial],
        density: PiecewisePolynomial,
    ):
        if not isinstance(density, PiecewisePolynomial):
            raise ArgumentError("density", density, "a PiecewisePolynomial")
        targets = (target,) if isinstance(target, PiecewisePolynomial) else tuple(target)
        if not targets or not all(isinstance(f, PiecewisePolynomial) for f in targets):
            raise ArgumentError("target", target, "a PiecewisePolynomial, or one for each output")
        check_density(density)
        a, b = density.interval
        for f in targets:
            if f.interval[0] > a or f.interval[1] < b:
                got = Described(f"a function on {list(f.interval)}")
                raise ArgumentError("target", got, f"one on [{a:g}, {b:g}], as the density")
        self.target = target if isinstance(target, PiecewisePolynomial) else targets
        self.density = density
        self.measure = _measure(targets, density)

    def __call__(self, net: Callable[[Any], Array]) -> Float[Array, ""]:
        if not isinstance(net, ShallowNet) or net.in_size != 1:
            raise ArgumentError("net", net, "a ShallowNet with one input")
        wanted = "scalar" if isinstance(self.target, PiecewisePolynomial) else len(self.target)
        if net.out_size != wanted:
            got = Described(f"a network with out_size={net.out_size!r}")
            raise ArgumentError("net", got, f"out_size={wanted!r}, as the target")
        dtype = net.w.dtype
        return one_input_risk(jax.tree.map(lambda a: a.astype(dtype), self.measure), net)


def _measure(
    targets: Sequence[PiecewisePolynomial], density: PiecewisePolynomial
) -> "PolynomialMeasure":
    """Targets and density on their common breakpoints, between the ends of the density."""
    a, b = density.interval
    s = np.unique(np.concatenate([np.asarray(f.breakpoints) for f in (*targets, density)]))
    s = s[(s >= a) & (s <= b)]
    degree = max(1, *(f.degree for f in targets))
    on_pieces = [np.asarray(f.refined(s).coefficients) for f in targets]
    f = np.stack([np.pad(c, ((0, 0), (0, degree + 1 - c.shape[1]))) for c in on_pieces])
    p = np.asarray(density.refined(s).coefficients)[None]
    # (terms, outputs, pieces): `cells` gathers along the last axis.
    return PolynomialMeasure(
        *(jnp.asarray(c) for c in (s, f.transpose(2, 0, 1), p.transpose(2, 0, 1)))
    )


class PolynomialMeasure(Measure):
    """A piecewise polynomial density and the targets of the outputs, on common breakpoints."""

    breakpoints: Float[Array, " breakpoints"]
    target: Float[Array, "terms out pieces"]
    density: Float[Array, "density_terms 1 pieces"]

    def knots(self, units: OneInputUnits) -> Knots:
        s = self.breakpoints
        x = jnp.append(s, units.kinks(s[0], s[-1]))
        return Knots(x, x[None])

    def cells(self, order: Array, knots: Knots, slopes: FloatPair, intercepts: FloatPair) -> Cells:
        x = knots.x
        passed = prefix_sums((order < len(self.breakpoints)).astype(x.dtype)[None])
        piece = passed[0].astype(int) - 1
        piece = jnp.clip(piece, 0, len(self.breakpoints) - 2)
        # As polynomials of u = x − middle, whose terms do not cancel: then they are rounded.
        lengths = jnp.diff(x, append=x[:, -1:])
        middle = x + lengths / 2
        start = x - middle
        density = [value(a) for a in _shifted(self.density[..., piece], middle)]
        f = _shifted(self.target[..., piece], middle)
        f[0] = subtract(f[0], add(multiply(slopes, middle), intercepts))
        f[1] = subtract(f[1], slopes)
        residual = [-value(a) for a in f]
        degree = len(residual) - 1
        nodes, weights = np.polynomial.legendre.leggauss(
            -(-(2 * degree + len(density)) // 2)  # exact up to degree 2 deg r + deg p
        )
        shape = (len(nodes), 1, 1)
        along = jnp.asarray((1 + nodes) / 2, x.dtype).reshape(shape) * lengths[None]
        u = start[None] + along
        r = _horner([a[None] for a in residual], u)
        # Rounding may make a density that touches 0 negative.
        p = jnp.maximum(_horner([a[None] for a in density], u), 0.0)
        mu = jnp.asarray(weights / 2, x.dtype).reshape(shape) * lengths[None] * p
        over = lambda g: jnp.sum(mu * g, axis=0)
        return Cells(
            squares=jnp.sum(over(r**2), axis=0),
            r0=over(r),
            r1=over(r * along),
            m0=over(jnp.ones_like(mu)),
            m1=over(along),
            m2=over(along**2),
            left_end=_horner(residual, start) * _horner(density, start),
        )


def _shifted(
    terms: Float[Array, "terms out knots"], by: Float[Array, "1 knots"]
) -> list[FloatPair]:
    """The coefficients of u ↦ f(by + u)."""
    by = jnp.broadcast_to(by, terms.shape[1:])
    row = [FloatPair(a, jnp.zeros_like(a)) for a in terms]
    for first in range(len(row) - 1):
        for m in reversed(range(first, len(row) - 1)):
            row[m] = add(row[m], multiply(row[m + 1], by))
    return row


def _horner(terms: list[Array], u: Float[Array, "*shape"]) -> Array:
    total = terms[-1]
    for a in reversed(terms[:-1]):
        total = total * u + a
    return jnp.broadcast_to(total, jnp.broadcast_shapes(total.shape, u.shape))
