"""The exact risk for the uniform distribution on a box."""

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from gflow.activations import PiecewiseLinear
from gflow.arguments import ArgumentError, Described, finite_entries, is_concrete
from gflow.networks import ShallowNet
from gflow.risks import simplices
from gflow.risks.base import Risk

MAX_DIMENSION = 3
# Pairs of units whose simplices fit into a processor's cache.
PAIRS_AT_ONCE = 256


class BoxRisk(Risk):
    r"""The population risk for the uniform distribution on a box and a polynomial target f,

    $$L(\theta) = \frac{1}{|B|} \int_B \|N_\theta(x) - f(x)\|^2 \, dx, \qquad
      B = \prod_{a=1}^d [\text{low}_a, \text{high}_a], \quad d \le 3,$$

    exactly up to rounding, for a `ShallowNet` with ReLU or leaky ReLU units.

    **Arguments:**

    - `target`: f, as a mapping from exponents to coefficients: `{(2, 0): 1.0, (0, 1): -3.0}` is
      x₁² − 3 x₂. Coefficients of shape (k,) for networks with k outputs.
    - `low`, `high`: opposite corners of the box, shape (d,), or numbers for a cube.

    Each unit is an affine function plus a ramp κᵢ max(±zᵢ, 0) that vanishes in the middle of the
    box. With q the sum of the affine functions minus the target, the risk is the mean over the box
    of

    $$q^2 + 2 q \sum_i \kappa_i \max(\pm z_i, 0)
      + \sum_{ij} \kappa_i \kappa_j \max(\pm z_i, 0) \max(\pm z_j, 0):$$

    The first term is computed by a Gauss rule of the right degree on the box, the second by rules
    on the parts of the box where a ramp is positive, the third from second moments of the parts
    where both ramps of a pair are. These parts are cut into simplices, 8 for a pair in two
    dimensions and 54 in three. Time and memory grow with the square of the width: for 50 units,
    risk and gradient take 0.6 ms in two dimensions and 5 ms in three, on one core of a CPU
    (`python -m benchmarks.risks`).

    The error is a few roundings of (‖q‖ + Σᵢ |κᵢ| ‖(wᵢ, bᵢ)‖)², for the box scaled to [−1, 1]^d.
    For a perfect fit in which kinks inside the box cancel, the computed risk is therefore about
    1e-16 of this scale, of either sign; without such kinks there is no such floor.

    First and second derivatives are closed forms, too: `jax.grad` is the generalized gradient of
    Eberle, Jentzen, Riekert and Weiss (arXiv 2108.08106), with ReLU'(0) = 0,

    $$G_{w_i} = \frac{2 s v_i}{|B|} \int_{B \cap \{z_i > 0\}} (N_\theta - f)(x) \, x \, dx,$$

    and a unit with w = 0 and b = 0 remains so. Hessian-vector products include the terms of the
    moving kinks.

    **Raises:** `ArgumentError` (a `ValueError`) for targets, boxes and networks of other forms or
    sizes.

    ??? example

        ```python
        risk = gflow.BoxRisk({(2, 0): 1.0, (0, 1): -3.0}, low=(-1, -1), high=(1, 2))
        net = gflow.ShallowNet(2, 10, key=jax.random.key(0))
        value, gradient = jax.value_and_grad(risk)(net)
        ```
    """

    exponents: tuple[tuple[int, ...], ...] = eqx.field(static=True)
    coefficients: Float[Array, " terms"] | Float[Array, "terms out"]
    low: Float[Array, " d"]
    high: Float[Array, " d"]

    def __init__(self, target: Any, low: Any, high: Any):
        self.exponents = _as_exponents(target)
        self.coefficients = _as_coefficients(list(target.values()))
        self.low, self.high = (
            _as_corner(n, a, self.in_size) for n, a in (("low", low), ("high", high))
        )
        if is_concrete(self.low, self.high) and not (self.low < self.high).all():
            got = Described(f"low {np.asarray(self.low)} and high {np.asarray(self.high)}")
            raise ArgumentError("high", got, "each entry above that of low")

    @property
    def in_size(self) -> int:
        return len(self.exponents[0])

    @property
    def degree(self) -> int:
        """The degree of the target."""
        return max(map(sum, self.exponents))

    def target(self, x: Float[Array, "*n d"]) -> Float[Array, "*n"] | Float[Array, "*n out"]:
        """f(x) for each row of x."""
        monomials = [
            math.prod(
                (x[..., a] ** e for a, e in enumerate(es) if e), start=jnp.ones_like(x[..., 0])
            )
            for es in self.exponents
        ]
        return jnp.stack(monomials, axis=-1) @ self.coefficients

    def __call__(self, net: Callable[[Any], Array]) -> Float[Array, ""]:
        return _compiled(_as_network(net, self), self)


class _PositiveParts(NamedTuple):
    """Where the ramps of the units are positive, in the box scaled to [−1, 1]^d.

    - `side`: 1 or −1, so that side · z is the argument of the ramp.
    - `nodes` (ξ, 1) and `weights`: a quadrature rule on the part of each unit.
    - `own`, `shared`: the mean over the box of (ξ, 1) (ξ, 1)ᵀ times the indicator of the part where
      the ramp of a unit is positive, or where those of both units of a pair i < j are.
    """

    side: Float[Array, " width"]
    nodes: Float[Array, "width nodes affine"]
    weights: Float[Array, "width nodes"]
    own: Float[Array, "width affine affine"]
    shared: Float[Array, "pairs affine affine"]


def _frame(risk: BoxRisk) -> Float[Array, "affine affine"]:
    """F with (x, 1) = F (ξ, 1)."""
    middle, half = (risk.high + risk.low) / 2, (risk.high - risk.low) / 2
    last = jnp.append(jnp.zeros_like(middle), 1.0)
    return jnp.concatenate([jnp.column_stack([jnp.diag(half), middle]), last[None, :]])


def _scaled(net: ShallowNet, risk: BoxRisk) -> Float[Array, "width affine"]:
    """The rows p with z = ⟨p, (ξ, 1)⟩, one for each unit."""
    b = jnp.zeros_like(net.w[:, 0]) if net.b is None else net.b
    return jnp.column_stack([net.w, b]) @ _frame(risk)


def _parts(net: ShallowNet, risk: BoxRisk) -> _PositiveParts:
    p = _scaled(net, risk)
    width, d = net.w.shape
    side = jnp.where(p[:, -1] > 0, -1.0, 1.0).astype(p.dtype)
    # The parts do not depend on the scale of p: no derivative passes through the size.
    size = jax.lax.stop_gradient(jnp.max(jnp.abs(p), axis=1))
    p = p * (side / jnp.where(size > 0, size, 1.0))[:, None]
    whole = jnp.asarray(simplices.cube(d), p.dtype)
    positive = jax.vmap(simplices.cut, (None, 0))(whole, p)
    barycentric, weights = simplices.rule(d, max(risk.degree, 1) + 1)
    nodes = jnp.einsum("nv,uxvd->uxnd", barycentric.astype(p.dtype), positive)
    nodes = nodes.reshape(width, -1, d)
    volumes = simplices.volumes(positive) / 2**d
    weights = (volumes[..., None] * weights.astype(p.dtype)[None, None]).reshape(width, -1)
    pairs = np.triu_indices(width, 1)
    # All at once (batch_size=0) if they are few, to save the compilation of a loop.
    batch_size = PAIRS_AT_ONCE if len(pairs[0]) > PAIRS_AT_ONCE else 0
    both = lambda pair: simplices.second_moments(simplices.cut(positive[pair[0]], p[pair[1]]))
    return _PositiveParts(
        side=side,
        nodes=jnp.concatenate([nodes, jnp.ones_like(nodes[..., :1])], axis=-1),
        weights=weights,
        own=jax.vmap(simplices.second_moments)(positive) / 2**d,
        shared=jax.lax.map(both, pairs, batch_size=batch_size) / 2**d,
    )


def _expand(net: ShallowNet, risk: BoxRisk, parts: _PositiveParts) -> Float[Array, ""]:
    """The risk as the expanded square, for given parts."""
    p = _scaled(net, risk)
    width, d = net.w.shape
    v = net.output_scale * net.v.reshape(width, -1)
    alpha = net.activation.slope(jnp.zeros((), p.dtype))
    # σ(z) = α z + (1 − α) max(z, 0) = z + (1 − α) max(−z, 0).
    slope = jnp.where(parts.side > 0, alpha, 1.0)
    kappa, z = (1 - alpha) * v, parts.side[:, None] * p
    affine = (slope[:, None] * p).T @ v
    if net.c is not None:
        affine = affine.at[-1].add(net.c.reshape(-1))

    def q(nodes):
        x = (nodes @ _frame(risk).T)[..., :-1]
        return nodes @ affine - risk.target(x).reshape(*nodes.shape[:-1], -1)

    nodes, weights = _gauss(d, max(risk.degree, 1), p.dtype)
    squares = weights @ jnp.sum(q(nodes) ** 2, axis=-1)
    ramps = jnp.einsum("una,ua->un", parts.nodes, z)
    mixed = jnp.einsum("un,un,uno,uo->", parts.weights, ramps, q(parts.nodes), kappa)
    i, j = np.triu_indices(width, 1)
    own = jnp.einsum("ua,uab,ub,uo->", z, parts.own, z, kappa**2)
    shared = jnp.einsum("pa,pab,pb,po,po->", z[i], parts.shared, z[j], kappa[i], kappa[j])
    return squares + 2 * mixed + own + 2 * shared


@eqx.filter_custom_jvp
def _mean_square(net: ShallowNet, risk: BoxRisk) -> Float[Array, ""]:
    return _expand(net, risk, _parts(net, risk))


@eqx.filter_jit
def _compiled(net: ShallowNet, risk: BoxRisk) -> Float[Array, ""]:
    return _mean_square(net, risk)


@_mean_square.def_jvp
def _mean_square_jvp(primals, tangents):
    # The integrand vanishes at the boundary of its part, so the motion of the parts does not
    # contribute. It contributes to the second derivative, which passes through `_parts`.
    parts = _parts(*primals)
    return eqx.filter_jvp(lambda net, risk: _expand(net, risk, parts), primals, tangents)


def _gauss(d: int, degree: int, dtype) -> tuple[Array, Array]:
    """Nodes (ξ, 1) and weights for the mean over [−1, 1]^d, exact to degree 2·degree + 1."""
    t, w = np.polynomial.legendre.leggauss(degree + 1)
    nodes = np.stack([*np.meshgrid(*[t] * d, indexing="ij"), np.ones([len(t)] * d)], axis=-1)
    weights = np.prod(np.meshgrid(*[w / 2] * d, indexing="ij"), axis=0)
    return jnp.asarray(nodes.reshape(-1, d + 1), dtype), jnp.asarray(weights.ravel(), dtype)


def _as_exponents(target: Any) -> tuple[tuple[int, ...], ...]:
    wanted = "a mapping from exponents to coefficients, such as {(2, 0): 1.0, (0, 1): -3.0}"
    if not isinstance(target, Mapping) or not target:
        raise ArgumentError("target", target, wanted)
    exponents = tuple(target)
    if not all(isinstance(es, tuple) for es in exponents):
        raise ArgumentError("target", Described(f"exponents {exponents}"), wanted)
    d = len(exponents[0])
    if not 1 <= d <= MAX_DIMENSION or any(len(es) != d for es in exponents):
        wanted = f"one exponent for each of at most {MAX_DIMENSION} inputs in all terms"
        raise ArgumentError("target", Described(f"exponents {exponents}"), wanted)
    for es in exponents:
        if not all(isinstance(e, (int, np.integer)) and e >= 0 for e in es):
            raise ArgumentError(
                "target", Described(f"exponents {es}"), "whole numbers, zero or more"
            )
    return tuple(tuple(int(e) for e in es) for es in exponents)


def _as_coefficients(values: list) -> Array:
    wanted = "coefficients that are all numbers, or all of one shape (out_size,)"
    try:
        coefficients = jnp.stack([jnp.asarray(a, jnp.result_type(float)) for a in values])
    except (TypeError, ValueError):
        raise ArgumentError("target", Described(f"coefficients {values}"), wanted) from None
    if coefficients.ndim > 2:
        raise ArgumentError(
            "target", Described(f"coefficients of shape {coefficients.shape[1:]}"), wanted
        )
    if is_concrete(coefficients):
        finite_entries("target", np.asarray(coefficients))
    return coefficients


def _as_corner(name: str, value: Any, d: int) -> Array:
    try:
        corner = jnp.asarray(value, jnp.result_type(float))
    except (TypeError, ValueError):
        raise ArgumentError(name, value, f"a number or {d} numbers") from None
    if corner.ndim == 0:
        corner = jnp.full((d,), corner)
    if corner.shape != (d,):
        wanted = f"a number or {d} numbers, one for each input of the target"
        raise ArgumentError(name, Described(f"shape {corner.shape}"), wanted)
    if is_concrete(corner):
        finite_entries(name, np.asarray(corner))
    return corner


def _as_network(net: Any, risk: BoxRisk) -> ShallowNet:
    wanted = "a ShallowNet of ReLU or leaky ReLU units"
    if not isinstance(net, ShallowNet):
        raise ArgumentError("net", Described(type(net).__name__), wanted)
    if not isinstance(net.activation, PiecewiseLinear):
        raise ArgumentError("net", Described(f"activation {net.activation.name}"), wanted)
    if net.in_size != risk.in_size:
        got = Described(f"a network of {net.in_size} inputs")
        raise ArgumentError("net", got, f"{risk.in_size}, those of the target")
    got, wanted = net.v.shape[1:], risk.coefficients.shape[1:]
    if got != wanted:
        raise ArgumentError(
            "net", Described(f"output of shape {got}"), f"that of the target, {wanted}"
        )
    return net
